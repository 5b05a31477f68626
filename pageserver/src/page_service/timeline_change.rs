//! Changes of timelines as wholes: branches, and which primary is followed. From the command to the repository.

use std::ops::ControlFlow;

use super::backend::{BackendError, BackendErrorKind, ImportProgress, TimelineBackend, TimelineInfo};
use super::command::Conninfo;
use crate::timeline::{BranchError, BranchPoint, Repository, SlotThen};

/// What is to be done with which timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TimelineChange {
    /// `BRANCH CREATE name FROM timeline [AT lsn | AT TIME 'time']`
    CreateBranch {
        /// The branch to make.
        name: String,
        /// The timeline that it leaves.
        timeline: String,
        /// Where.
        point: BranchPoint,
    },
    /// `TIMELINE FOLLOW name FROM 'conninfo'`
    Follow {
        /// The timeline.
        timeline: String,
        /// Its primary from now on. May hold a password: never logged.
        conninfo: Conninfo,
    },
    /// `TIMELINE UNFOLLOW name [KEEP SLOT]`
    Unfollow {
        /// The timeline.
        timeline: String,
        /// What becomes of its slot.
        slot: SlotThen,
    },
    /// `BRANCH DELETE name`, `TIMELINE DELETE name`
    Delete {
        /// The timeline.
        timeline: String,
    },
    /// `BRANCH RENAME name TO new`
    Rename {
        /// The timeline.
        timeline: String,
        /// Its name from now on.
        new_name: String,
    },
    /// `BRANCH RESET name [AT lsn | AT TIME 'time']`
    Reset {
        /// The branch.
        timeline: String,
        /// Where of its ancestor it begins from now on.
        point: BranchPoint,
    },
    /// `BRANCH DETACH name`
    Detach {
        /// The branch.
        timeline: String,
    },
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineChanged {
    /// The timeline as it is now; a deleted one as it was.
    pub info: TimelineInfo,
    /// What a person should hear, one sentence each.
    pub notices: Vec<String>,
}

/// Told of progress now and then; breaks to cancel.
pub type OnProgress<'a> = dyn FnMut(&ImportProgress) -> ControlFlow<()> + 'a;

/// Does it.
pub(super) fn apply(
    repository: &Repository,
    change: &TimelineChange,
    progress: &mut OnProgress<'_>,
) -> Result<TimelineChanged, BackendError> {
    let changed = match change {
        TimelineChange::CreateBranch { name, timeline, point } => repository.create_branch(name, timeline, *point)?,
        TimelineChange::Follow { timeline, conninfo } => repository.follow_primary(timeline, &conninfo.0)?,
        TimelineChange::Unfollow { timeline, slot } => repository.unfollow_primary(timeline, *slot)?,
        TimelineChange::Delete { timeline } => repository.delete_timeline(timeline)?,
        TimelineChange::Rename { timeline, new_name } => repository.rename_timeline(timeline, new_name)?,
        TimelineChange::Reset { timeline, point } => repository.reset_branch(timeline, *point)?,
        TimelineChange::Detach { timeline } => repository.detach_branch(timeline, &mut |bytes_done, bytes_total| {
            let phase = "detach".to_owned();
            progress(&ImportProgress { phase, bytes_done, bytes_total: Some(bytes_total) })
        })?,
    };
    Ok(TimelineChanged { info: changed.timeline.info(), notices: changed.notices })
}

impl From<&BranchError> for BackendErrorKind {
    fn from(error: &BranchError) -> Self {
        match error {
            BranchError::NotReadableYet { .. } | BranchError::LsnNotYet { .. } | BranchError::Busy { .. } => {
                BackendErrorKind::NotYet
            }
            BranchError::LsnTooLow { .. }
            | BranchError::NotABranch { .. }
            | BranchError::HasBranches { .. }
            | BranchError::Leased { .. } => BackendErrorKind::InvalidRequest,
            BranchError::Cancelled { .. } => BackendErrorKind::Cancelled,
        }
    }
}
