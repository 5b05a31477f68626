//! Why a branch cannot be made, changed or deleted.

use postgres_ffi::Lsn;

/// Refusals that a person can act on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BranchError {
    /// The timeline's import is not through.
    #[error("the timeline cannot be read yet: it is {state}. timeline=`{timeline}`")]
    NotReadableYet {
        /// The timeline.
        timeline: String,
        /// What it is doing.
        state: &'static str,
    },
    /// The LSN has not arrived.
    #[error(
        "the branch LSN has not arrived yet. branch_lsn=`{branch_lsn}`, last_record_lsn=`{last_record_lsn}`, timeline=`{timeline}`"
    )]
    LsnNotYet {
        /// What was asked for.
        branch_lsn: Lsn,
        /// End of the last record that can be read.
        last_record_lsn: Lsn,
        /// The timeline to branch from.
        timeline: String,
    },
    /// The LSN is below what the timeline can show.
    #[error(
        "the branch LSN is below the first readable one. branch_lsn=`{branch_lsn}`, first_readable_lsn=`{first_readable_lsn}`, timeline=`{timeline}`"
    )]
    LsnTooLow {
        /// What was asked for.
        branch_lsn: Lsn,
        /// The lowest LSN that can be read.
        first_readable_lsn: Lsn,
        /// The timeline to branch from.
        timeline: String,
    },
    /// It is an imported timeline, or was detached.
    #[error("the timeline is not a branch: it has no ancestor. timeline=`{timeline}`")]
    NotABranch {
        /// The timeline.
        timeline: String,
    },
    /// Others read through it.
    #[error(
        "other timelines branch off; delete or detach them first. timeline=`{timeline}`, branches=`{}`",
        .branches.join("`, `")
    )]
    HasBranches {
        /// The timeline.
        timeline: String,
        /// Their names, in order.
        branches: Vec<String>,
    },
    /// Somebody needs LSNs of it.
    #[error("leases are on the timeline; end them first. timeline=`{timeline}`, leases={leases:?}")]
    Leased {
        /// The timeline.
        timeline: String,
        /// Their ids.
        leases: Vec<u64>,
    },
    /// Somebody stopped it.
    #[error("cancelled; the branch is as it was. timeline=`{timeline}`")]
    Cancelled {
        /// The timeline.
        timeline: String,
    },
    /// Something long is being done with it.
    #[error("the timeline is being {doing}; try again when that is through. timeline=`{timeline}`")]
    Busy {
        /// The timeline.
        timeline: String,
        /// What.
        doing: &'static str,
    },
}
