//! What timelines cost: how big each is, what its history and its WAL take, what its deletion would give back, and what it keeps of others.
//!
//! - Nothing is walked: sizes are kept (`timeline/sizes.rs`), what versions take is asked of RocksDB's indexes, WAL is a list of files. Only how much a branch
//!   pins in its ancestors is counted in a walk, when asked for.
//! - What a timeline has of its own is what its deletion gives back: a branch has nothing of what it shows of its ancestors.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use keyenc::{Key, Object};
use postgres_ffi::Lsn;

use super::collecting::OnCollected;
use super::{Repository, RepositoryError};
use crate::store::TimelineBytes;
use crate::timeline::gc::{Pace, Pass, PassProgress};
use crate::timeline::{LogicalSize, ReadError, Timeline};

/// What one timeline costs.
#[derive(Clone, Debug)]
pub struct TimelineSizes {
    /// Its name.
    pub timeline: String,
    /// Where its logical size was looked at; `None`: it could not be opened.
    pub request_lsn: Option<Lsn>,
    /// How big it is there; `None` while it cannot be read yet.
    pub logical: Option<LogicalSize>,
    /// What its own versions take.
    pub versions: TimelineBytes,
    /// Files of its WAL on disk.
    pub wal_file_bytes: u64,
    /// WAL of its own between the LSN from which on it can be read, or where it left its ancestor, and its last record: its history. `None`: it could not be opened.
    pub wal_history_bytes: Option<u64>,
    /// Who keeps an LSN below its horizon that would be gone otherwise.
    pub pinned_by: Vec<Pin>,
    /// LSNs below the horizons of its ancestors that would be gone without it; `by` is the ancestor's name.
    pub pins: Vec<Pin>,
}

/// Who keeps an LSN below a horizon, or of whom one is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// Name of a timeline, or `lease` and its number.
    pub by: String,
    /// The LSN.
    pub lsn: Lsn,
}

impl std::fmt::Display for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {}", self.by, self.lsn)
    }
}

impl TimelineSizes {
    /// What its deletion gives back on disk: files of the store, once they are compacted, and WAL.
    pub fn own_bytes(&self) -> u64 {
        self.versions.files.saturating_add(self.wal_file_bytes)
    }
}

impl Repository {
    /// What the timeline named `name` costs, its logical size as of `request_lsn`, or its last record.
    /// Errors: there is no such timeline; the LSN cannot be read; its WAL cannot be listed.
    pub fn timeline_sizes(&self, name: &str, request_lsn: Option<Lsn>) -> Result<TimelineSizes, RepositoryError> {
        self.sizes_of(&self.timeline_named(name)?, request_lsn)
    }

    /// The same of all timelines, ordered by name; without one that is deleted meanwhile. Errors: as [`Repository::timeline_sizes`].
    pub fn all_sizes(&self, request_lsn: Option<Lsn>) -> Result<Vec<TimelineSizes>, RepositoryError> {
        let mut all = Vec::new();
        for timeline in self.timelines() {
            // What cannot be read at all has no size at any LSN.
            match self.sizes_of(&timeline, request_lsn.filter(|_| !timeline.is_damaged())) {
                Err(_) if timeline.is_gone() => {}
                sizes => all.push(sizes?),
            }
        }
        Ok(all)
    }

    fn sizes_of(&self, timeline: &Arc<Timeline>, request_lsn: Option<Lsn>) -> Result<TimelineSizes, RepositoryError> {
        let last_record_lsn = timeline.last_record_lsn();
        let logical = match timeline.logical_size(request_lsn.unwrap_or(last_record_lsn)) {
            Ok(size) => Some(size),
            // Its import is under way, its ancestor's WAL has not come again, or it could not be opened.
            Err(ReadError::BelowFirstReadable { .. } | ReadError::NotYet { .. } | ReadError::Unopened { .. })
                if request_lsn.is_none() =>
            {
                None
            }
            Err(error) => return Err(error.into()),
        };
        let first_lsn = timeline.first_readable_lsn().unwrap_or(last_record_lsn);
        let branch_lsn = timeline.nearest_ancestor().map_or(Lsn::ZERO, |(_, branch_lsn)| branch_lsn);
        let history_bytes = last_record_lsn.saturating_sub(first_lsn.max(branch_lsn).max(timeline.horizon.lsn()));
        Ok(TimelineSizes {
            timeline: timeline.metadata().name.clone(),
            request_lsn: (!timeline.is_damaged()).then_some(request_lsn.unwrap_or(last_record_lsn)),
            logical,
            versions: timeline.store.bytes(),
            wal_file_bytes: self.wal_layout(timeline).file_bytes()?,
            wal_history_bytes: (!timeline.is_damaged()).then_some(history_bytes),
            pinned_by: self.pinned_by(timeline),
            pins: pins_of_ancestors(timeline),
        })
    }

    /// Who keeps an LSN below the horizon of `timeline`, by LSN.
    fn pinned_by(&self, timeline: &Timeline) -> Vec<Pin> {
        let horizon_lsn = timeline.horizon.lsn();
        let mut pins = self.named_pins(timeline, None);
        pins.retain(|pin| pin.lsn < horizon_lsn);
        pins.sort_by(|left, right| (left.lsn, &left.by).cmp(&(right.lsn, &right.by)));
        pins
    }

    /// Bytes of versions, before compression, that are kept in the ancestors of the timeline named `name` for it alone: what garbage collection could remove
    /// if the timeline and leases on it were not there. Walks over all that its ancestors have, twice, but only where it keeps an LSN below a horizon.
    ///
    /// Errors: there is no such timeline; an ancestor cannot be read; [`GcError::Stopped`](crate::timeline::gc::GcError) when `on_progress` says so.
    pub fn pinned_bytes(&self, name: &str, on_progress: &mut OnCollected<'_>) -> Result<u64, RepositoryError> {
        let timeline = self.timeline_named(name)?;
        timeline.check_here()?;
        let mut pinned_bytes = 0;
        for (ancestor, branch_lsn) in &timeline.lineage().ancestors {
            let horizon_lsn = ancestor.horizon.lsn();
            if horizon_lsn <= *branch_lsn {
                continue;
            }
            let with = self.pins_without(ancestor, None);
            let without = self.pins_without(ancestor, Some(&timeline));
            let kept = self.would_remove(ancestor, with, horizon_lsn, on_progress)?;
            let removed = self.would_remove(ancestor, without, horizon_lsn, on_progress)?;
            pinned_bytes += removed.saturating_sub(kept);
        }
        Ok(pinned_bytes)
    }

    /// What a pass would remove of `timeline`, less what it would make in its place.
    fn would_remove(
        &self,
        timeline: &Timeline,
        mut pins: Vec<Lsn>,
        horizon_lsn: Lsn,
        on_progress: &mut OnCollected<'_>,
    ) -> Result<u64, RepositoryError> {
        pins.retain(|pin_lsn| *pin_lsn < horizon_lsn);
        pins.push(horizon_lsn);
        let progress = Arc::new(PassProgress::default());
        let shown = Arc::clone(&progress);
        let mut on_wait = |wait: Duration| -> ControlFlow<()> {
            std::thread::sleep(wait);
            let key = shown.get().0.unwrap_or(Key::from(Object::Watermark));
            let (before, all) = timeline.store.disk_bytes_before(&key);
            on_progress(before, all)
        };
        let mut pace = Pace::new(self.config.gc.mib_per_second << 20, &mut on_wait);
        Pass { timeline, pins: &pins, dry_run: true, pace: &mut pace, progress: &progress }.run()?;
        let removed = progress.get().1.total();
        Ok(removed.bytes.saturating_sub(removed.image_bytes))
    }
}

fn pins_of_ancestors(timeline: &Timeline) -> Vec<Pin> {
    let lineage = timeline.lineage();
    let below = lineage.ancestors.iter().filter(|(ancestor, branch_lsn)| *branch_lsn < ancestor.horizon.lsn());
    below.map(|(ancestor, lsn)| Pin { by: ancestor.metadata().name.clone(), lsn: *lsn }).collect()
}
