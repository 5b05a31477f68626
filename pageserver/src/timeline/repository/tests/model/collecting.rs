//! Garbage collection in the model: what is promised stays readable, what is not is refused, and of the versions at or below a horizon exactly those
//! are left that a pin needs.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use keyenc::Kind;

use super::*;
use crate::store::StoredVersion;
use crate::timeline::gc::{GcError, OwnRetention, RetentionTime, WalSize};
use crate::timeline::repository::collecting::GcReport;

/// What an image of a page takes, key included.
const PAGE_BYTES: u64 = 31 + 8192;

/// What the server gave up of a life's own history.
#[derive(Clone, Default)]
pub(super) struct GivenUp {
    pub horizon_lsn: Option<Lsn>,
    pub pins: BTreeSet<Lsn>,
}

impl GivenUp {
    fn keeps(&self, lsn: Lsn) -> bool {
        self.horizon_lsn.is_none_or(|horizon_lsn| horizon_lsn <= lsn) || self.pins.contains(&lsn)
    }
}

impl Run {
    /// Where the life leaves its parent, unless it was detached.
    pub(super) fn left(&self, life: usize) -> Option<(usize, Lsn)> {
        self.lives[life].parent.filter(|_| !self.lives[life].is_detached)
    }

    fn first_readable_lsn_before_gc(&self, life: usize) -> Lsn {
        match (self.left(life), self.lives[life].parent) {
            (Some((parent, branch_lsn)), _) => self.first_readable_lsn(parent).min(branch_lsn),
            (None, Some((_, branch_lsn))) => branch_lsn,
            (None, None) => START_LSN,
        }
    }

    pub(super) fn first_readable_lsn(&self, life: usize) -> Lsn {
        let horizon_lsn = self.lives[life].given_up.horizon_lsn;
        self.first_readable_lsn_before_gc(life).max(horizon_lsn.unwrap_or(Lsn::ZERO))
    }

    /// True when `lsn`, which has arrived, can be read.
    pub(super) fn is_readable(&self, life: usize, lsn: Lsn) -> bool {
        let is_above = match self.left(life) {
            Some((_, branch_lsn)) if branch_lsn <= lsn => true,
            Some((parent, _)) => self.is_readable(parent, lsn),
            None => self.first_readable_lsn_before_gc(life) <= lsn,
        };
        is_above && self.lives[life].given_up.keeps(lsn)
    }

    /// What branches and leases keep of a life.
    fn pins(&self, life: usize) -> BTreeSet<Lsn> {
        let mut pins = BTreeSet::new();
        for (name, other) in &self.named {
            let (mut at, mut up_to) = (*other, Lsn::MAX);
            while at != life
                && let Some((parent, branch_lsn)) = self.left(at)
            {
                (at, up_to) = (parent, up_to.min(branch_lsn));
            }
            if at != life {
                continue;
            }
            let leased = self.leases.values().filter(|(leased, lsn)| leased == name && *lsn < up_to);
            pins.extend(leased.map(|(_, lsn)| *lsn));
            pins.extend((up_to < Lsn::MAX).then_some(up_to));
        }
        let record_ends: Vec<Lsn> = pins.iter().map(|pin_lsn| record_end(*pin_lsn)).collect();
        pins.extend(record_ends);
        pins
    }

    pub(super) fn restore_pins(&mut self) {
        for life in self.named.clone().into_values() {
            self.lives[life].given_up.pins = self.pins(life);
        }
    }

    fn wanted_horizon(&self, life: usize, wal_bytes: u64) -> Option<Lsn> {
        let (name, _) = self.named.iter().find(|(_, named)| **named == life).unwrap();
        let watermark = self.repository().timeline_named(name).unwrap().store.watermark()?;
        let last = self.lives[life].last_record_lsn;
        let wanted = last.as_u64().saturating_sub(wal_bytes).min(watermark.last_record_lsn.as_u64());
        let horizon_lsn = record_end(Lsn::new(wanted)).max(self.lives[life].given_up.horizon_lsn.unwrap_or(Lsn::ZERO));
        let has_own = match self.left(life) {
            Some((_, branch_lsn)) => branch_lsn < horizon_lsn,
            None => self.first_readable_lsn_before_gc(life) <= horizon_lsn,
        };
        has_own.then_some(horizon_lsn)
    }

    pub(super) fn collect(&mut self) {
        let (name, life) = self.any();
        let repository = self.repository();
        let history = self.lives[life].last_record_lsn.saturating_sub(self.first_readable_lsn(life));
        let wal_bytes = if self.rng.random_range(0..4) == 0 { 0 } else { self.rng.random_range(0..=history) };
        let own =
            OwnRetention { time: Some(RetentionTime::from_seconds(0)), wal: Some(WalSize::from_bytes(wal_bytes)) };
        repository.set_retention(&name, Some(own)).unwrap();
        let wanted = self.wanted_horizon(life, wal_bytes);
        let planned = repository.collect_garbage(&name, true, &mut |_, _| ControlFlow::Continue(())).unwrap();
        assert_eq!(planned.horizon_lsn, wanted, "{name}");
        let timeline = repository.timeline_named(&name).unwrap();
        assert_eq!(timeline.first_readable_lsn(), Some(self.first_readable_lsn(life)), "nothing was done");
        // Now and then somebody stops it, or the server is killed, between two ranges.
        let mut looks_left = if self.rng.random_range(0..3) == 0 { self.rng.random_range(0..40) } else { u32::MAX };
        let outcome = repository.collect_garbage(&name, false, &mut |_, _| {
            looks_left = looks_left.saturating_sub(1);
            if looks_left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        if let Some(horizon_lsn) = wanted {
            let pins = self.pins(life).into_iter().filter(|pin_lsn| *pin_lsn < horizon_lsn).collect();
            self.lives[life].given_up = GivenUp { horizon_lsn: Some(horizon_lsn), pins };
        }
        match outcome {
            Ok(report) => {
                assert_eq!((&report.horizon_lsn, &report.counts.removed), (&wanted, &planned.counts.removed));
                self.check_left(&name, life, &report);
                *self.done.entry("collected").or_default() += 1;
                *self.done.entry("versions removed").or_default() += report.counts.total().versions as usize;
                *self.done.entry("images made").or_default() += report.counts.total().images as usize;
            }
            Err(RepositoryError::Gc(GcError::Stopped)) => {
                *self.done.entry("collecting stopped").or_default() += 1;
                if self.rng.random() {
                    drop((timeline, repository));
                    self.reopen(true);
                }
            }
            Err(error) => panic!("{error}"),
        }
        self.check(&name, life);
    }

    /// Compares what is left of a life's own versions at or below its horizon with what the pins need.
    fn check_left(&mut self, name: &str, life: usize, report: &GcReport) {
        let Some(horizon_lsn) = report.horizon_lsn else { return };
        let timeline = self.repository().timeline_named(name).unwrap();
        let mut left: BTreeMap<Key, BTreeSet<(Lsn, Kind)>> = BTreeMap::new();
        let (mut chain_bytes, mut watermarks) = (0, 0);
        timeline
            .store
            .walk_durable(&Key::from(Object::Watermark), &mut |version: &StoredVersion| {
                match version.key.object().unwrap() {
                    Object::Watermark => watermarks += 1,
                    Object::SlruPage { .. } if version.lsn <= horizon_lsn => chain_bytes += 31 + version.value_bytes,
                    Object::ControlFile | Object::Checkpoint | Object::Database { .. } => {}
                    _ if version.lsn <= horizon_lsn => {
                        left.entry(version.key).or_default().insert((version.lsn, version.kind));
                    }
                    _ => {}
                }
                Ok::<_, StoreError>(ControlFlow::Continue(()))
            })
            .unwrap();
        assert_eq!(watermarks, 1);
        let mut pins: Vec<Lsn> = self.lives[life].given_up.pins.iter().copied().collect();
        pins.push(horizon_lsn);
        let (needed, needed_chain_bytes) = self.needed(life, &pins);
        assert_eq!(left, needed, "{name}: pins {pins:?}");
        assert!(
            chain_bytes * 10 <= needed_chain_bytes * 13,
            "{name}: {chain_bytes} bytes of SLRU pages are left, {needed_chain_bytes} are needed. pins {pins:?}"
        );
        self.left_bytes += chain_bytes;
        self.needed_bytes += needed_chain_bytes;
    }

    /// The versions of the life that pins need, but of SLRU pages the bytes that images of them take.
    fn needed(&self, life: usize, pins: &[Lsn]) -> (BTreeMap<Key, BTreeSet<(Lsn, Kind)>>, u64) {
        let mut own: BTreeMap<Key, Vec<(Lsn, Kind)>> = BTreeMap::new();
        if self.lives[life].parent.is_none() {
            for (object, kind) in imported_objects() {
                own.entry(object.into()).or_default().push((START_LSN, kind));
            }
        }
        for (key, lsn, kind) in &self.lives[life].copied {
            own.entry(*key).or_default().push((*lsn, *kind));
        }
        for (lsn, write) in &self.lives[life].writes {
            let (key, kind, _) = version(write);
            own.entry(key).or_default().push((*lsn, kind));
        }
        for (key, lsn, kind) in self.kept_sizes(life) {
            own.entry(key).or_default().push((lsn, kind));
        }
        let inherited = self.left(life).map(|(parent, branch_lsn)| self.expect(parent, branch_lsn));
        let mut needed: BTreeMap<Key, BTreeSet<(Lsn, Kind)>> = BTreeMap::new();
        let mut chain_bytes = 0;
        let shown_at: Vec<Seen> = pins.iter().map(|pin_lsn| self.expect(life, *pin_lsn)).collect();
        for (key, versions) in own {
            let object = key.object().unwrap();
            let mut kept = BTreeSet::new();
            for (pin_lsn, shown) in pins.iter().zip(&shown_at) {
                let Some(newest) = versions.iter().filter(|(lsn, _)| lsn <= pin_lsn).max() else { continue };
                let is_needed = match object {
                    _ if newest.1 == Kind::Tombstone => {
                        !kept.is_empty() || inherited.as_ref().is_some_and(|inherited| has_object(inherited, &object))
                    }
                    Object::RelationBlock { rel, block_no, .. } => {
                        shown.blocks.contains_key(&(rel.rel_number - 16384, block_no))
                    }
                    Object::SlruPage { page_no, .. } => is_slru_page_shown(shown, page_no),
                    _ => true,
                };
                if is_needed {
                    kept.insert(*newest);
                }
            }
            if matches!(object, Object::SlruPage { .. }) {
                // A page that begins with zeroes takes next to nothing.
                let bytes_of = |newest: &(Lsn, Kind)| match newest.1 {
                    Kind::Image
                        if !self.lives[life]
                            .copied
                            .iter()
                            .any(|(copied, lsn, _)| (copied, lsn) == (&key, &newest.0)) =>
                    {
                        31
                    }
                    _ => PAGE_BYTES,
                };
                chain_bytes += kept.iter().map(bytes_of).sum::<u64>();
            } else if !kept.is_empty() {
                needed.insert(key, kept);
            }
        }
        (needed, chain_bytes)
    }

    /// Versions of kept sizes that the life's own writes have made.
    fn kept_sizes(&self, life: usize) -> Vec<(Key, Lsn, Kind)> {
        let this = &self.lives[life];
        let mut seen = match this.parent {
            Some((parent, branch_lsn)) => self.seen(parent, branch_lsn),
            None => Seen::default(),
        };
        let mut versions = Vec::new();
        for record in this.writes.chunk_by(|(lsn, _), (other_lsn, _)| lsn == other_lsn) {
            let before = [seen.database_size(), seen.slru_size()];
            record.iter().for_each(|(_, write)| seen.apply(write));
            let after = [seen.database_size(), seen.slru_size()];
            for (object, before, after) in [(DATABASE, before[0], after[0]), (SLRU, before[1], after[1])] {
                let kind = if after == KeptSize::ZERO { Kind::Tombstone } else { Kind::Image };
                versions.extend((before != after).then_some((Key::from(object), record[0].0, kind)));
            }
        }
        versions
    }

    /// False until the SLRU changes: the import of the rig keeps none, as in a store that was made before sizes were kept.
    fn is_slru_size_kept(&self, life: usize, lsn: Lsn) -> bool {
        let is_own = self.kept_sizes(life).iter().any(|(key, kept_lsn, _)| *key == SLRU.into() && *kept_lsn <= lsn);
        let parent = self.lives[life].parent;
        is_own || parent.is_some_and(|(parent, branch_lsn)| self.is_slru_size_kept(parent, lsn.min(branch_lsn)))
    }

    /// What a detach has copied.
    pub(super) fn copied(&self, parent: usize, branch_lsn: Lsn) -> Vec<(Key, Lsn, Kind)> {
        let shown = self.expect(parent, branch_lsn);
        let mut keys: Vec<Key> = Vec::new();
        keys.extend(imported_objects().into_iter().map(|(object, _)| Key::from(object)));
        keys.extend(shown.sizes.keys().map(|n| version(&Write::Size(*n, None)).0));
        keys.extend(shown.blocks.keys().map(|(n, block_no)| block(*n, *block_no)));
        keys.extend(shown.two_phase.iter().map(|xid| Key::from(Object::TwoPhase { xid: *xid })));
        keys.extend(shown.segment.is_some().then(|| version(&Write::Segment(None)).0));
        keys.extend((0..shown.segment.unwrap_or(0)).map(slru_page));
        keys.extend((!shown.sizes.is_empty()).then(|| Key::from(DATABASE)));
        keys.extend(self.is_slru_size_kept(parent, branch_lsn).then(|| Key::from(SLRU)));
        keys.into_iter().map(|key| (key, branch_lsn, Kind::Image)).collect()
    }
}

const DATABASE: Object = Object::DatabaseSize { spc_oid: 1663, db_oid: 5 };
const SLRU: Object = Object::SlruSize { kind: postgres_ffi::SlruKind::Clog };

impl Seen {
    fn database_size(&self) -> KeptSize {
        KeptSize { blocks: self.sizes.values().map(|size| u64::from(*size)).sum(), count: self.sizes.len() as u64 }
    }

    /// With the segment of four pages that the import has put.
    fn slru_size(&self) -> KeptSize {
        KeptSize { blocks: 4 + u64::from(self.segment.unwrap_or(0)), count: 1 + u64::from(self.segment.is_some()) }
    }
}

/// Of what an import of the rig puts, what takes part.
fn imported_objects() -> Vec<(Object, Kind)> {
    let mut objects = vec![(Object::SlruSegment { kind: postgres_ffi::SlruKind::Clog, segment_no: 0 }, Kind::Image)];
    let page = |page_no| (Object::SlruPage { kind: postgres_ffi::SlruKind::Clog, page_no }, Kind::Image);
    objects.extend((0..4).map(page));
    objects
}

fn is_slru_page_shown(shown: &Seen, page_no: u32) -> bool {
    page_no < 32 || shown.segment.is_some_and(|page_count| page_no - 32 < page_count)
}

fn has_object(shown: &Seen, object: &Object) -> bool {
    match object {
        Object::RelationSize { rel, .. } => shown.sizes.contains_key(&(rel.rel_number - 16384)),
        Object::DatabaseSize { .. } => !shown.sizes.is_empty(),
        Object::TwoPhase { xid } => shown.two_phase.contains(xid),
        Object::SlruSegment { segment_no: 1, .. } => shown.segment.is_some(),
        _ => false,
    }
}
