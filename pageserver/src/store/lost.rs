//! What was taken out of a timeline because it could not be read, and which answers may therefore not be believed.
//!
//! - A stretch holds every position of every object between two versions that could be read: nobody knows what stood in it, removals included.
//! - **One rule for every read:** an answer is good only if it ends at a version *strictly above* the highest lost position that it could have depended on. What is left
//!   within a stretch is not believed either: its removal may be what was lost.
//! - Nothing above `through_lsn` was ever in it: later versions are not lost, so objects come back with their next image.
//! - Made while no server runs, kept in the watermark, gone with the timeline.

use std::collections::VecDeque;
use std::fmt;

use bytes::{Buf, BufMut, BytesMut};
use keyenc::{ENCODED_KEY_LEN, KEY_LEN, Key, KeyError, Kind, TimelineNo, VersionKey};
use postgres_ffi::Lsn;

use super::StoreError;
use super::version_bound::VersionBound;

/// More are merged with their neighbours: what a watermark takes is bounded.
const STRETCHES_MAX: usize = 1024;
const POSITION_LEN: usize = KEY_LEN + size_of::<Lsn>() + 1;
/// Bytes of a stretch in a watermark: `after | before | through_lsn`.
pub(super) const STRETCH_LEN: usize = 2 * POSITION_LEN + size_of::<Lsn>();
/// Stands for "from the beginning"; no key begins with such a class.
const NO_AFTER: [u8; POSITION_LEN] = [0; POSITION_LEN];
/// Stands for "to the end".
const NO_BEFORE: [u8; POSITION_LEN] = [0xFF; POSITION_LEN];

/// A version of a timeline: of what, when, which kind; in the order of keys.
pub type Position = (Key, Lsn, Kind);

/// A part of a timeline's versions that could not be read. Both ends are exclusive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostStretch {
    /// The last version before it that could be read. `None`: it begins with the timeline's first.
    pub after: Option<Position>,
    /// The first version behind it that could be read. `None`: it goes to the timeline's end.
    pub before: Option<Position>,
    /// No version in it had an LSN above this.
    pub through_lsn: Lsn,
}

impl LostStretch {
    /// The highest position of `key` within the bound that is lost.
    fn highest(&self, key: &Key, bound: VersionBound) -> Option<(Lsn, Kind)> {
        let within = bound.min(VersionBound::at(self.through_lsn));
        let highest = match self.before {
            Some((before, lsn, kind)) if before == *key => within.min(VersionBound::below(lsn, kind)?),
            Some((before, ..)) if before < *key => return None,
            _ => within,
        };
        let (lsn, kind) = highest.highest();
        self.after.is_none_or(|after| after < (*key, lsn, kind)).then_some((lsn, kind))
    }

    /// The object that it is all of; `None`: it may hold objects that nobody knows of.
    fn only_object(&self) -> Option<Key> {
        match (self.after, self.before) {
            (Some((after, ..)), Some((before, ..))) if after == before => Some(after),
            _ => None,
        }
    }

    /// True if it may hold versions of an object between the two, both inclusive.
    pub fn meets(&self, first: &Key, last: &Key) -> bool {
        self.after.is_none_or(|(after, ..)| after <= *last) && self.before.is_none_or(|(before, ..)| before >= *first)
    }

    /// One that holds both. Requires: `next` does not begin before this one; it may end before it.
    fn merged(&self, next: &LostStretch) -> LostStretch {
        let before = self.before.zip(next.before).map(|(this, next)| this.max(next));
        LostStretch { after: self.after, before, through_lsn: self.through_lsn.max(next.through_lsn) }
    }
}

/// `between KEY@LSN and KEY@LSN, up to LSN`; both ends are exclusive.
impl fmt::Display for LostStretch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.after {
            Some((key, lsn, _)) => write!(f, "between {key}@{lsn}")?,
            None => write!(f, "between the beginning")?,
        }
        match self.before {
            Some((key, lsn, _)) => write!(f, " and {key}@{lsn}")?,
            None => write!(f, " and the end")?,
        }
        write!(f, ", up to {}", self.through_lsn)
    }
}

/// All of a timeline, in the order of where they begin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LostStretches(Vec<LostStretch>);

impl LostStretches {
    /// These; neighbours are merged where they are too many.
    pub fn new(mut stretches: Vec<LostStretch>) -> Self {
        stretches.sort_unstable_by_key(|stretch| (stretch.after, stretch.before, stretch.through_lsn));
        stretches.dedup();
        while stretches.len() > STRETCHES_MAX {
            stretches = stretches
                .chunks(2)
                .map(|pair| pair.last().map_or_else(|| pair[0].clone(), |last| pair[0].merged(last)))
                .collect();
        }
        LostStretches(stretches)
    }

    /// These and those.
    pub fn with(&self, other: &LostStretches) -> LostStretches {
        LostStretches::new(self.iter().chain(other.iter()).cloned().collect())
    }

    /// True if a version of `key` may be lost above `newest_lsn`, an image of it; `None`: whatever its LSN.
    pub fn may_hide(&self, key: &Key, newest_lsn: Option<Lsn>) -> bool {
        self.check(key, VersionBound::at(Lsn::MAX), newest_lsn.map(|lsn| (lsn, Kind::Image))).is_err()
    }

    /// Each of them.
    pub fn iter(&self) -> std::slice::Iter<'_, LostStretch> {
        self.0.iter()
    }

    /// True if nothing was lost.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Err: what a read of `key` down from `bound` found may be wrong. `end`: the version that ended it; `None`: it went to the oldest one.
    pub(super) fn check(&self, key: &Key, bound: VersionBound, end: Option<(Lsn, Kind)>) -> Result<(), StoreError> {
        let found_above = |lost: (Lsn, Kind)| end.is_some_and(|end| lost < end);
        let is_good = |stretch: &&LostStretch| stretch.highest(key, bound).is_none_or(found_above);
        match self.0.iter().find(|stretch| !is_good(stretch)) {
            None => Ok(()),
            Some(stretch) => Err(StoreError::Lost { key: *key, through_lsn: stretch.through_lsn }),
        }
    }

    /// What a list of the objects between `first` and `last` as of the bound has to show to be believed. Err: it may lack one that nobody knows of.
    pub(super) fn check_list(
        &self,
        first: &Key,
        last: &Key,
        bound: VersionBound,
    ) -> Result<ExpectedInList, StoreError> {
        let mut newer_than: Vec<Position> = Vec::new();
        for stretch in self.0.iter().filter(|stretch| stretch.meets(first, last)) {
            let Some(key) = stretch.only_object() else {
                let key = stretch.after.map_or(*first, |(after, ..)| after.max(*first));
                return Err(StoreError::Lost { key, through_lsn: stretch.through_lsn });
            };
            newer_than.extend(stretch.highest(&key, bound).map(|(lsn, kind)| (key, lsn, kind)));
        }
        newer_than.sort_unstable();
        Ok(ExpectedInList { newer_than: newer_than.into() })
    }

    /// Appends them: [`STRETCH_LEN`] bytes each.
    pub(super) fn encode(&self, bytes: &mut BytesMut) {
        for stretch in &self.0 {
            put_position(bytes, stretch.after, &NO_AFTER);
            put_position(bytes, stretch.before, &NO_BEFORE);
            bytes.put_u64(stretch.through_lsn.as_u64());
        }
    }

    /// What [`LostStretches::encode`] wrote. Err: something that it never writes.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let bad = || StoreError::Corrupt { detail: "watermark lists a lost stretch that is none".to_owned() };
        let (stretches, []) = bytes.as_chunks::<STRETCH_LEN>() else { return Err(bad()) };
        let stretch = |bytes: &[u8; STRETCH_LEN]| {
            let (after, rest) = bytes.split_first_chunk().ok_or_else(bad)?;
            let (before, mut rest) = rest.split_first_chunk().ok_or_else(bad)?;
            let after = position(after, &NO_AFTER).map_err(|_| bad())?;
            let before = position(before, &NO_BEFORE).map_err(|_| bad())?;
            Ok(LostStretch { after, before, through_lsn: Lsn::new(rest.get_u64()) })
        };
        Ok(LostStretches(stretches.iter().map(stretch).collect::<Result<_, StoreError>>()?))
    }
}

/// Objects whose newest versions may be lost: a list has to show something newer of each. In order.
pub(super) struct ExpectedInList {
    newer_than: VecDeque<Position>,
}

impl ExpectedInList {
    /// The list, in order, shows this. Err: it should have shown something else before, or something newer now.
    pub fn see(&mut self, shown: &Position) -> Result<(), StoreError> {
        while let Some(lost) = self.newer_than.front().filter(|lost| lost.0 <= shown.0) {
            if lost.0 < shown.0 || shown <= lost {
                return Err(lost_at(lost));
            }
            self.newer_than.pop_front();
        }
        Ok(())
    }

    /// The list ends. Err: it should have shown something else before.
    pub fn end(&self) -> Result<(), StoreError> {
        self.newer_than.front().map_or(Ok(()), |lost| Err(lost_at(lost)))
    }
}

fn lost_at((key, lsn, _): &Position) -> StoreError {
    StoreError::Lost { key: *key, through_lsn: *lsn }
}

/// Bytes of the timeline's number, with which a version's key begins and a position does not.
const NO_LEN: usize = ENCODED_KEY_LEN - POSITION_LEN;

fn put_position(bytes: &mut BytesMut, position: Option<Position>, none: &[u8; POSITION_LEN]) {
    let Some((key, lsn, kind)) = position else { return bytes.put_slice(none) };
    bytes.put_slice(&VersionKey { timeline: TimelineNo(0), key, lsn, kind }.encode()[NO_LEN..]);
}

/// `Ok(None)`: the bytes are `none`. Err: they are no position.
fn position(bytes: &[u8; POSITION_LEN], none: &[u8; POSITION_LEN]) -> Result<Option<Position>, KeyError> {
    if bytes == none {
        return Ok(None);
    }
    let mut version_key = [0; ENCODED_KEY_LEN];
    version_key[NO_LEN..].copy_from_slice(bytes);
    let VersionKey { key, lsn, kind, .. } = VersionKey::decode(&version_key)?;
    Ok(Some((key, lsn, kind)))
}

#[cfg(test)]
mod tests {
    //! Goal: an answer is believed exactly if nothing lost could change it. Method: small worlds in which every stretch and every read is tried, and the
    //! rule is asked about each lost position for itself; bytes there and back, and hostile ones.

    use std::collections::BTreeSet;

    use keyenc::Object;

    use super::*;

    const KINDS: [Kind; 4] = [Kind::Tombstone, Kind::Delta, Kind::InitDelta, Kind::Image];

    fn keys() -> [Key; 3] {
        [Object::ControlFile, Object::Checkpoint, Object::CommitTime].map(Key::from)
    }

    /// Every position of three objects at LSN 1 to 3.
    fn positions() -> Vec<Position> {
        let lsns = (1..=3).map(Lsn::new);
        let of_key = |key: Key| lsns.clone().flat_map(move |lsn| KINDS.map(|kind| (key, lsn, kind)));
        keys().into_iter().flat_map(of_key).collect()
    }

    fn ends() -> Vec<Option<Position>> {
        std::iter::once(None).chain(positions().into_iter().map(Some)).collect()
    }

    /// Every stretch that can be.
    fn stretches() -> Vec<LostStretch> {
        let mut all = Vec::new();
        for after in ends() {
            for before in ends().into_iter().filter(|before| before.is_none() || after < *before) {
                all.extend((1..=3).map(|lsn| LostStretch { after, before, through_lsn: Lsn::new(lsn) }));
            }
        }
        all
    }

    fn holds(stretch: &LostStretch, position: &Position) -> bool {
        stretch.after.is_none_or(|after| after < *position)
            && stretch.before.is_none_or(|before| *position < before)
            && position.1 <= stretch.through_lsn
    }

    #[test]
    fn an_answer_is_believed_if_no_lost_position_is_at_or_above_its_end() {
        let (mut believed, mut refused) = (0, 0);
        for stretch in stretches() {
            let lost = LostStretches::new(vec![stretch.clone()]);
            for key in keys() {
                for at in (1..=3).map(Lsn::new) {
                    for end in std::iter::once(None)
                        .chain((1..=at.as_u64()).flat_map(|lsn| KINDS.map(|kind| Some((Lsn::new(lsn), kind)))))
                    {
                        let could_change = |position: &Position| {
                            position.0 == key
                                && position.1 <= at
                                && end.is_none_or(|end| end <= (position.1, position.2))
                                && holds(&stretch, position)
                        };
                        let expect = !positions().iter().any(could_change);
                        // LSN 0 is no version's, but a stretch without a beginning has it; the rule may refuse for it where nothing was found.
                        let outcome = lost.check(&key, VersionBound::at(at), end).is_ok();
                        let only_below_all = end.is_none() && expect && !outcome;
                        assert!(outcome == expect || only_below_all, "{stretch:?} {key} {at} {end:?}");
                        *(if outcome { &mut believed } else { &mut refused }) += 1;
                    }
                }
            }
        }
        assert!(believed > 10_000 && refused > 10_000, "{believed} {refused}");
    }

    #[test]
    fn a_list_is_refused_where_an_unknown_object_may_be_missing() {
        let (mut refused, mut to_be_newer) = (0, 0);
        for stretch in stretches() {
            let lost = LostStretches::new(vec![stretch.clone()]);
            for (n, first) in keys().iter().enumerate() {
                for last in &keys()[n..] {
                    let within =
                        |position: &&Position| (*first..=*last).contains(&position.0) && holds(&stretch, position);
                    let objects: BTreeSet<Key> = positions().iter().filter(within).map(|position| position.0).collect();
                    let is_of_one =
                        stretch.after.map(|it| it.0) == stretch.before.map(|it| it.0) && stretch.after.is_some();
                    match lost.check_list(first, last, VersionBound::at(Lsn::new(3))) {
                        Err(_) => {
                            refused += 1;
                            assert!(!is_of_one, "{stretch:?} {first} {last}");
                        }
                        Ok(expected) => {
                            assert!(is_of_one || objects.is_empty(), "{stretch:?} {first} {last}");
                            let named: BTreeSet<Key> = expected.newer_than.iter().map(|position| position.0).collect();
                            assert!(objects.is_subset(&named), "{stretch:?} {first} {last}: {named:?}");
                            to_be_newer += named.len();
                        }
                    }
                }
            }
        }
        assert!(refused > 100 && to_be_newer > 100, "{refused} {to_be_newer}");
    }

    #[test]
    fn bytes_there_and_back_and_no_others() {
        let all: Vec<LostStretch> = stretches().into_iter().step_by(17).collect();
        let lost = LostStretches::new(all);
        let mut bytes = BytesMut::new();
        lost.encode(&mut bytes);
        assert_eq!(bytes.len(), lost.iter().len() * STRETCH_LEN);
        assert_eq!(LostStretches::decode(&bytes), Ok(lost));
        assert!(LostStretches::decode(&bytes[1..]).is_err());
        let mut no_kind = bytes.clone();
        no_kind[2 * POSITION_LEN - 1] = 9;
        assert!(LostStretches::decode(&no_kind).is_err());
        let mut no_class = bytes;
        no_class[POSITION_LEN] = 0xEE;
        assert!(LostStretches::decode(&no_class).is_err());
    }

    #[test]
    fn too_many_are_merged_and_cover_what_they_covered() {
        let page = |block_no| {
            Key::block(
                postgres_ffi::RelTag { spc_oid: 1663, db_oid: 5, rel_number: 7 },
                postgres_ffi::ForkNumber::Main,
                block_no,
            )
        };
        let at = |block_no, lsn| Some((page(block_no), Lsn::new(lsn), Kind::Image));
        let many = (0..2 * STRETCHES_MAX as u32 + 5).map(|n| LostStretch {
            after: at(4 * n, 1),
            before: at(4 * n + 1, 1),
            through_lsn: Lsn::new(5),
        });
        // Others reach over many of them, or to the end.
        let nested = [(3, Some(3000)), (5, None)].map(|(first, last)| LostStretch {
            after: at(first, 1),
            before: last.and_then(|last| at(last, 1)),
            through_lsn: Lsn::new(5),
        });
        let many: Vec<LostStretch> = many.chain(nested).collect();
        let lost = LostStretches::new(many.clone());
        assert!(lost.iter().len() <= STRETCHES_MAX);
        for stretch in &many {
            let within = lost.iter().any(|merged| {
                merged.after <= stretch.after
                    && (merged.before.is_none() || stretch.before.is_some() && stretch.before <= merged.before)
            });
            assert!(within, "{stretch:?}");
        }
    }
}
