//! Timelines with which something long is being done, outside of the lock of changes: others are told, and do not wait.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Repository;
use super::branch_error::BranchError;
use crate::timeline::metadata::TimelineMetadata;
use crate::timeline::{Timeline, TimelineId};

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Busy {
    /// It becomes a timeline without an ancestor.
    Detached,
    /// WAL of it is being taken from its primary again: nobody else feeds it.
    Repaired,
}

impl Busy {
    /// The timeline is being so.
    fn name(self) -> &'static str {
        match self {
            Busy::Detached => "detached",
            Busy::Repaired => "repaired",
        }
    }
}

/// Each with what is being done.
#[derive(Clone, Default)]
pub(super) struct BusyTimelines(Arc<Mutex<HashMap<TimelineId, Busy>>>);

/// While this lives nobody deletes, resets or detaches the timeline; while it is being repaired nobody follows or unfollows either.
pub(super) struct BusyGuard {
    timeline_id: TimelineId,
    busy: BusyTimelines,
}

impl Drop for BusyGuard {
    fn drop(&mut self) {
        self.busy.0.lock().remove(&self.timeline_id);
    }
}

impl Repository {
    /// From now on, until what it gives is dropped. Requires: `changes` is locked. Errors: it is busy already.
    pub(super) fn begin_busy(&self, timeline: &Timeline, doing: Busy) -> Result<BusyGuard, BranchError> {
        let metadata = timeline.metadata();
        self.check_not_busy(&metadata)?;
        self.busy.0.lock().insert(metadata.timeline_id, doing);
        Ok(BusyGuard { timeline_id: metadata.timeline_id, busy: self.busy.clone() })
    }

    /// Errors: a timeline that something long is being done with.
    pub(super) fn check_not_busy(&self, metadata: &TimelineMetadata) -> Result<(), BranchError> {
        match self.busy.0.lock().get(&metadata.timeline_id) {
            Some(doing) => Err(BranchError::Busy { timeline: metadata.name.clone(), doing: doing.name() }),
            None => Ok(()),
        }
    }

    /// True while nobody else may feed the timeline.
    pub(super) fn is_being_repaired(&self, timeline: &Timeline) -> bool {
        self.busy.0.lock().get(&timeline.metadata().timeline_id) == Some(&Busy::Repaired)
    }

    /// Errors: a timeline that is being repaired.
    pub(super) fn check_not_repaired(&self, timeline: &Timeline) -> Result<(), BranchError> {
        if self.is_being_repaired(timeline) { self.check_not_busy(&timeline.metadata()) } else { Ok(()) }
    }
}
