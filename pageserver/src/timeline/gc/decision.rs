//! Which versions of one object may go: pure, fed with the object's versions oldest first.
//!
//! - A **pin** is an LSN that must stay readable; the highest one is the horizon, and above it everything stays.
//! - Of what lies at or below the horizon stays exactly what a pin needs: the newest version at or below it and, where that is a delta, the chain
//!   that it rests on, or an image in the chain's place.
//! - **Never:** a delta stays without what it rests on, whatever the pins say.
//! - What comes out is in the order of keys: it goes into sorted files.
//! - Memory is bounded by the longest chain, not by the number of versions.

use keyenc::Kind;
use postgres_ffi::{BLCKSZ, Lsn};

/// What a version's key takes.
pub(in crate::timeline) const KEY_BYTES: u64 = keyenc::ENCODED_KEY_LEN as u64;
/// A chain that takes no more than this stays as it is: a page and a quarter. So what a pin keeps of a page takes a quarter more than it
/// must at most, and a pass makes and writes no page to save less than two KiB.
pub(in crate::timeline) const CHAIN_BYTES_MAX: u64 = (BLCKSZ + BLCKSZ / 4) as u64;

/// One version as the decision needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::timeline) struct Version {
    pub lsn: Lsn,
    pub kind: Kind,
    pub value_bytes: u64,
}

impl Version {
    /// What it takes, key included, before compression.
    pub fn bytes(&self) -> u64 {
        KEY_BYTES + self.value_bytes
    }
}

/// What is to be done with one version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::timeline) enum Change {
    /// It goes.
    Remove(Version),
    /// The object as of a pin, where its newest version is a delta, becomes an image at that version's LSN. Comes before the removal of that delta,
    /// in the order of keys behind it.
    MakeImage {
        /// Where the image is to stand.
        version_lsn: Lsn,
        /// Where it can be read.
        pin_lsn: Lsn,
    },
}

/// What the decision asks about the object, and whom it tells. Errors end it.
pub(in crate::timeline) trait Judge {
    /// Why no answer can be given.
    type Error;

    /// False when nobody who reads at the pin can see the object, whatever versions it has.
    fn is_shown(&mut self, pin_lsn: Lsn) -> Result<bool, Self::Error>;

    /// True when an ancestor has the object: a tombstone hides it.
    fn is_inherited(&mut self) -> Result<bool, Self::Error>;

    /// Takes a change. False for an image that cannot be made: then its chain stays.
    fn change(&mut self, change: Change) -> Result<bool, Self::Error>;
}

/// The decision about one object.
pub(in crate::timeline) struct Decision<'a> {
    /// Ascending, the horizon last.
    pins: &'a [Lsn],
    next_pin: usize,
    /// From the newest base up; what stays already comes first.
    chain: Vec<Version>,
    kept_len: usize,
    /// Some version below stays.
    kept_any: bool,
}

impl<'a> Decision<'a> {
    /// Begins with an object. Requires: `pins` are ascending.
    pub fn new(pins: &'a [Lsn]) -> Self {
        Decision { pins, next_pin: 0, chain: Vec::new(), kept_len: 0, kept_any: false }
    }

    /// Takes the next version. Requires: versions come in the order of keys.
    pub fn push<J: Judge>(&mut self, version: Version, judge: &mut J) -> Result<(), J::Error> {
        while let Some(pin_lsn) = self.pins.get(self.next_pin)
            && version.lsn > *pin_lsn
        {
            let is_last = self.next_pin + 1 == self.pins.len();
            self.reach(*pin_lsn, is_last && version.kind == Kind::Delta, judge)?;
        }
        if self.next_pin == self.pins.len() {
            return Ok(()); // Above the horizon.
        }
        if version.kind.ends_gather() {
            self.drop_rest(judge)?;
            self.chain.clear();
            self.kept_len = 0;
        }
        self.chain.push(version);
        Ok(())
    }

    /// To be called behind the last version.
    pub fn finish<J: Judge>(mut self, judge: &mut J) -> Result<(), J::Error> {
        while let Some(pin_lsn) = self.pins.get(self.next_pin) {
            self.reach(*pin_lsn, false, judge)?;
        }
        Ok(())
    }

    /// All versions at or below the next pin were seen. `rested_on`: a delta that stays follows.
    fn reach<J: Judge>(&mut self, pin_lsn: Lsn, rested_on: bool, judge: &mut J) -> Result<(), J::Error> {
        self.next_pin += 1;
        if self.kept_len < self.chain.len() && (rested_on || self.is_needed(pin_lsn, judge)?) {
            self.keep_chain(pin_lsn, judge)?;
        }
        if self.next_pin == self.pins.len() {
            self.drop_rest(judge)?;
        }
        Ok(())
    }

    fn is_needed<J: Judge>(&mut self, pin_lsn: Lsn, judge: &mut J) -> Result<bool, J::Error> {
        let is_tombstone = self.chain.last().is_some_and(|newest| newest.kind == Kind::Tombstone);
        if is_tombstone { Ok(self.kept_any || judge.is_inherited()?) } else { judge.is_shown(pin_lsn) }
    }

    /// The chain's newest version stays, and what it rests on: as it is, or as an image in its place.
    fn keep_chain<J: Judge>(&mut self, pin_lsn: Lsn, judge: &mut J) -> Result<(), J::Error> {
        let Some(newest) = self.chain.last().copied() else { return Ok(()) };
        let rest = &self.chain[self.kept_len..];
        let is_long = rest.len() > 1 && rest.iter().map(Version::bytes).sum::<u64>() > CHAIN_BYTES_MAX;
        if newest.kind == Kind::Delta && is_long && self.replace_chain(newest.lsn, pin_lsn, judge)? {
            return Ok(());
        }
        self.kept_len = self.chain.len();
        self.kept_any = true;
        Ok(())
    }

    fn replace_chain<J: Judge>(&mut self, version_lsn: Lsn, pin_lsn: Lsn, judge: &mut J) -> Result<bool, J::Error> {
        // The image stands behind the delta at its LSN, so all that goes stands before it; but whether it goes depends on the image.
        if !judge.change(Change::MakeImage { version_lsn, pin_lsn })? {
            return Ok(false);
        }
        self.drop_rest(judge)?;
        self.chain.clear();
        self.chain.push(Version { lsn: version_lsn, kind: Kind::Image, value_bytes: BLCKSZ as u64 });
        self.kept_len = 1;
        self.kept_any = true;
        Ok(true)
    }

    fn drop_rest<J: Judge>(&mut self, judge: &mut J) -> Result<(), J::Error> {
        for version in &self.chain[self.kept_len..] {
            judge.change(Change::Remove(*version))?;
        }
        self.chain.truncate(self.kept_len);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    //! Goal: after any decision every pin and every LSN above the horizon shows what it showed before, nothing is left over that nobody
    //! needs, and what comes out is in order. Method: plain cases, then random versions and pins against the definition.

    use std::collections::{BTreeMap, BTreeSet};
    use std::convert::Infallible;

    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    #[derive(Default)]
    struct Recorder {
        unshown: BTreeSet<Lsn>,
        is_inherited: bool,
        cannot_make: bool,
        changes: Vec<Change>,
    }

    impl Judge for Recorder {
        type Error = Infallible;

        fn is_shown(&mut self, pin_lsn: Lsn) -> Result<bool, Infallible> {
            Ok(!self.unshown.contains(&pin_lsn))
        }

        fn is_inherited(&mut self) -> Result<bool, Infallible> {
            Ok(self.is_inherited)
        }

        fn change(&mut self, change: Change) -> Result<bool, Infallible> {
            if self.cannot_make && matches!(change, Change::MakeImage { .. }) {
                return Ok(false);
            }
            self.changes.push(change);
            Ok(true)
        }
    }

    const BIG: u64 = 6000;

    fn version(lsn: u64, kind: Kind) -> Version {
        let value_bytes = match kind {
            Kind::Image => BLCKSZ as u64,
            Kind::Tombstone => 0,
            Kind::Delta | Kind::InitDelta => 100,
        };
        Version { lsn: Lsn::new(lsn), kind, value_bytes }
    }

    fn big_delta(lsn: u64) -> Version {
        Version { value_bytes: BIG, ..version(lsn, Kind::Delta) }
    }

    fn decide(versions: &[Version], pins: &[u64], recorder: &mut Recorder) -> Vec<String> {
        let pins: Vec<Lsn> = pins.iter().copied().map(Lsn::new).collect();
        let mut decision = Decision::new(&pins);
        for version in versions {
            let Ok(()) = decision.push(*version, recorder);
        }
        let Ok(()) = decision.finish(recorder);
        let shown = |change: &Change| match change {
            Change::Remove(version) => format!("-{}", version.lsn.as_u64()),
            Change::MakeImage { version_lsn, pin_lsn } => format!("+{}@{}", version_lsn.as_u64(), pin_lsn.as_u64()),
        };
        recorder.changes.iter().map(shown).collect()
    }

    #[test]
    fn pins_keep_what_they_need() {
        use Kind::{Delta, Image, InitDelta};
        let image = |lsn| version(lsn, Image);
        let delta = |lsn| version(lsn, Delta);
        let check = |versions: &[Version], pins: &[u64], expect: &[&str]| {
            assert_eq!(decide(versions, pins, &mut Recorder::default()), expect, "{versions:?} {pins:?}");
        };
        check(&[image(1), image(2), image(3)], &[2], &["-1"]);
        check(&[image(1), image(2), image(3)], &[3], &["-1", "-2"]);
        check(&[image(1), image(2), image(3)], &[1, 3], &["-2"]);
        check(&[image(5)], &[3], &[]);
        check(&[image(1), image(2)], &[0], &[]);
        // A short chain stays, a long one becomes an image; above the horizon nothing is touched.
        check(&[image(1), delta(2), delta(3), delta(9)], &[5], &[]);
        check(&[image(1), big_delta(2), delta(3), delta(9)], &[5], &["+3@5", "-1", "-2", "-3"]);
        check(&[image(1), big_delta(2), big_delta(7), big_delta(9)], &[5, 8], &["+2@5", "-1", "-2"]);
        check(
            &[image(1), big_delta(2), big_delta(4), big_delta(7), big_delta(9)],
            &[5, 8],
            &["+4@5", "-1", "-2", "-4"],
        );
        // An init delta is a base.
        check(&[image(1), version(2, InitDelta), delta(3)], &[5], &["-1"]);
        // Deltas of a map, or of a branch, rest on nothing of their own.
        check(&[delta(1), delta(2)], &[2], &[]);
    }

    #[test]
    fn what_nobody_sees_goes_unless_a_delta_rests_on_it() {
        let (image, delta) = (|lsn| version(lsn, Kind::Image), |lsn| version(lsn, Kind::Delta));
        let check = |versions: &[Version], pins: &[u64], unshown: &[u64], expect: &[&str]| {
            let unshown = unshown.iter().copied().map(Lsn::new).collect();
            let mut recorder = Recorder { unshown, ..Recorder::default() };
            assert_eq!(decide(versions, pins, &mut recorder), expect, "{versions:?} {pins:?}");
        };
        check(&[image(1), delta(2)], &[5], &[5], &["-1", "-2"]);
        check(&[image(1), delta(2), image(7)], &[5], &[5], &["-1", "-2"]);
        check(&[image(1), delta(2), delta(7)], &[5], &[5], &[]);
        check(&[image(1), delta(2), image(3)], &[2, 5], &[5], &["-3"]);
        check(&[image(1), delta(2), delta(3)], &[2, 5], &[2], &[]);
        check(&[image(1), delta(2), delta(3)], &[2, 5], &[5], &["-3"]);
    }

    #[test]
    fn a_tombstone_stays_while_something_lies_beneath() {
        let (image, tombstone) = (version(1, Kind::Image), version(3, Kind::Tombstone));
        let check = |versions: &[Version], pins: &[u64], is_inherited, expect: &[&str]| {
            let mut recorder = Recorder { is_inherited, ..Recorder::default() };
            assert_eq!(decide(versions, pins, &mut recorder), expect, "{versions:?} {pins:?}");
        };
        check(&[image, tombstone], &[5], false, &["-1", "-3"]);
        check(&[image, tombstone], &[5], true, &["-1"]);
        check(&[image, tombstone], &[2, 5], false, &[]);
        check(&[tombstone, version(6, Kind::Image)], &[5], false, &["-3"]);
    }

    #[test]
    fn a_chain_of_which_no_page_can_be_made_stays() {
        let versions = [version(1, Kind::Image), version(2, Kind::Image), big_delta(3), big_delta(4)];
        let mut recorder = Recorder { cannot_make: true, ..Recorder::default() };
        assert_eq!(decide(&versions, &[5], &mut recorder), ["-1"]);
    }

    /// What is read at `lsn`: the LSNs and kinds of the versions that make the object, an image standing for all that it was made of.
    fn read(versions: &BTreeMap<(u64, Kind), BTreeSet<u64>>, lsn: u64) -> BTreeSet<u64> {
        let mut seen = BTreeSet::new();
        for ((_, kind), made_of) in versions.range(..=(lsn, Kind::Image)).rev() {
            if *kind == Kind::Tombstone {
                break;
            }
            seen.extend(made_of);
            if kind.ends_gather() {
                break;
            }
        }
        seen
    }

    #[test]
    fn every_pin_shows_what_it_showed_before() {
        for seed in 0..20_000 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let is_page = rng.random::<bool>();
            let mut versions = Vec::new();
            let mut lsn = 0;
            for _ in 0..rng.random_range(1..12) {
                lsn += rng.random_range(1..4);
                versions.push(match rng.random_range(0..6) {
                    0 if is_page => version(lsn, Kind::InitDelta),
                    1 | 2 if is_page => version(lsn, Kind::Delta),
                    3 if is_page => big_delta(lsn),
                    4 if !is_page => version(lsn, Kind::Tombstone),
                    _ => version(lsn, Kind::Image),
                });
            }
            let pins: BTreeSet<u64> = (0..rng.random_range(1..5)).map(|_| rng.random_range(0..lsn + 3)).collect();
            let pins: Vec<u64> = pins.into_iter().collect();
            let horizon = *pins.last().expect("there is one");
            let unshown: BTreeSet<Lsn> =
                pins.iter().filter(|_| is_page && rng.random_range(0..4) == 0).copied().map(Lsn::new).collect();
            let is_inherited = rng.random();
            let before: BTreeMap<_, _> =
                versions.iter().map(|v| ((v.lsn.as_u64(), v.kind), BTreeSet::from([v.lsn.as_u64()]))).collect();
            let mut recorder = Recorder { unshown: unshown.clone(), is_inherited, ..Recorder::default() };
            decide(&versions, &pins, &mut recorder);
            let mut after = before.clone();
            let mut images = Vec::new();
            let mut last = None;
            for change in &recorder.changes {
                match change {
                    Change::Remove(version) => {
                        let key = (version.lsn.as_u64(), version.kind);
                        assert!(last < Some(key), "seed {seed}: out of order");
                        last = Some(key);
                        assert!(after.remove(&key).is_some(), "seed {seed}: removed twice");
                    }
                    Change::MakeImage { version_lsn, pin_lsn } => {
                        images.push(((version_lsn.as_u64(), Kind::Image), read(&before, pin_lsn.as_u64())));
                    }
                }
            }
            after.extend(images);
            let shown = |lsn: &u64| !unshown.contains(&Lsn::new(*lsn));
            for at in pins.iter().copied().filter(shown).chain(horizon + 1..lsn + 3) {
                if !shown(&horizon)
                    && at > horizon
                    && !versions.iter().any(|v| (horizon + 1..=at).contains(&v.lsn.as_u64()))
                {
                    continue; // Still what nobody sees.
                }
                assert_eq!(read(&after, at), read(&before, at), "seed {seed}: at {at}, {versions:?} {pins:?}");
            }
            // A tombstone that hides what is inherited, or an older version, is still there.
            if is_inherited {
                for pin in &pins {
                    let newest = before.range(..=(*pin, Kind::Image)).next_back().map(|((_, kind), _)| *kind);
                    let newest_after = after.range(..=(*pin, Kind::Image)).next_back().map(|((_, kind), _)| *kind);
                    assert!(newest != Some(Kind::Tombstone) || newest_after == newest, "seed {seed}");
                }
            }
            // What is left is needed: no two pins share an interval with more than a chain.
            let kept: u64 = after.keys().filter(|(lsn, _)| *lsn <= horizon).count() as u64;
            let bases = after.keys().filter(|(lsn, kind)| *lsn <= horizon && kind.ends_gather()).count();
            assert!(bases <= pins.len(), "seed {seed}: {kept} versions, {bases} bases, {pins:?}");
        }
    }
}
