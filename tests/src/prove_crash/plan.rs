//! Which crash comes when: failpoints in an order that follows from the seed, each with what must have crashed before, and kills at random
//! moments in between.

use std::collections::VecDeque;

use pageserver::failpoint::{Armed, Failpoint};
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

use super::operation::Kind;

/// One way for the server to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The server is started with this failpoint armed.
    Failpoint(Armed),
    /// It is started, looked at, and killed some time after.
    Random,
    /// It is killed while it starts.
    Starting,
}

impl std::fmt::Display for Crash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Crash::Failpoint(armed) => write!(f, "at {armed}"),
            Crash::Random => f.write_str("at a random moment"),
            Crash::Starting => f.write_str("while it started"),
        }
    }
}

/// What brings a running server to a failpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provocation {
    /// An operation of one of these kinds.
    Operation(&'static [Kind]),
    /// WAL that comes in, and time.
    Ingest,
    /// Every start.
    Start,
    /// The start after a crash at one of these.
    StartAfter(&'static [Failpoint]),
}

/// What brings a running server to `failpoint`.
pub fn provocation(failpoint: Failpoint) -> Provocation {
    use Failpoint as F;
    use Provocation::{Ingest, Operation, Start, StartAfter};
    match failpoint {
        F::WalSegmentBeforeSync
        | F::WalSegmentMade
        | F::WalBeforeWrite
        | F::WalWritten
        | F::WalSynced
        | F::WalIngested
        | F::WalBeforeRemove
        | F::WalRemoved
        | F::StoreFileWritten
        | F::StoreBeforeIngest
        | F::StoreIngested
        | F::StoreFlushed
        | F::StorePagesBeforeIngest
        | F::StorePagesIngested
        | F::GcHorizonSaved
        | F::GcBeforeIngest
        | F::GcIngested
        | F::GcPassSaved => Ingest,
        F::WalBeforeCut | F::WalCut | F::StoreOpened | F::OpenDone => Start,
        F::WalFileBeforeRename | F::WalFileRenamed | F::WalFileDurable => Operation(&[Kind::Detach, Kind::Import]),
        F::StoreBeforeDelete | F::StoreFilesDeleted | F::StoreDeleted => {
            Operation(&[Kind::DeleteFollower, Kind::ResetFollower])
        }
        F::StoreImagesBeforeIngest
        | F::StoreImagesIngested
        | F::DetachPublished
        | F::DetachImagesDurable
        | F::DetachHistoryWritten
        | F::DetachMetadataSaved => Operation(&[Kind::Detach]),
        F::MetadataBeforeRename | F::MetadataRenamed | F::MetadataSaved => {
            Operation(&[Kind::Branch, Kind::Rename, Kind::Follow, Kind::Reset, Kind::Detach, Kind::Unfollow])
        }
        F::MarkBeforeSync | F::MarkSet => Operation(&[Kind::Delete, Kind::Reset, Kind::ImportFiles]),
        F::MarkRemoved | F::MarkCleared => Operation(&[Kind::Reset, Kind::ImportFiles]),
        F::BranchDirMade | F::BranchBeforeRename | F::BranchRenamed | F::BranchDurable | F::BranchOpened => {
            Operation(&[Kind::Branch])
        }
        F::DeleteMarked
        | F::DeleteSlotDropped
        | F::DeleteVersionsGone
        | F::DeleteDirRenamed
        | F::DeleteDirRemoved
        | F::DeleteDone => Operation(&[Kind::Delete, Kind::DeleteFollower, Kind::DeleteImport]),
        F::RenameSaved => Operation(&[Kind::Rename]),
        F::ResetMarked
        | F::ResetSlotDropped
        | F::ResetMetadataSaved
        | F::ResetWalEmptied
        | F::ResetVersionsGone
        | F::ResetDone => Operation(&[Kind::Reset, Kind::ResetFollower]),
        F::ImportSlotMade => Operation(&[Kind::Import]),
        F::ImportWalIngested => Operation(&[Kind::ImportFiles]),
        F::ImportDirMade | F::ImportMarked | F::ImportFilesDurable | F::ImportMetadataSaved | F::ImportDone => {
            Operation(&[Kind::Import, Kind::ImportFiles, Kind::ImportFiles])
        }
        F::FollowSaved | F::FollowPublished | F::FollowDone => Operation(&[Kind::Follow]),
        F::UnfollowFlushed | F::UnfollowSaved => Operation(&[Kind::Unfollow]),
        F::LeaseBeforeRename | F::LeaseRenamed | F::LeaseSaved => Operation(&[Kind::Lease, Kind::EndLease]),
        F::SlotsBeforeRename | F::SlotsRenamed | F::SlotsSaved => {
            Operation(&[Kind::Import, Kind::Unfollow, Kind::DeleteFollower, Kind::ResetFollower])
        }
        F::TenantBeforeRename | F::TenantRenamed | F::TenantSaved => Operation(&[Kind::Backup]),
        F::TenantRemoved => Operation(&[Kind::DeleteImport]),
        F::OpenLeftOverRemoved => {
            StartAfter(&[F::BranchDirMade, F::BranchBeforeRename, F::DeleteDirRenamed, F::ImportDirMade])
        }
        F::OpenTakenAway => {
            StartAfter(&[F::DeleteMarked, F::DeleteVersionsGone, F::ImportMarked, F::ImportFilesDurable])
        }
        F::OpenResetFinished => StartAfter(&[F::ResetMarked, F::ResetMetadataSaved, F::ResetWalEmptied]),
    }
}

/// The kinds of crashes of a course, one after the other.
pub struct Plan {
    waiting: VecDeque<Failpoint>,
    next: VecDeque<Crash>,
    rng: SmallRng,
}

impl Plan {
    /// What comes follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Plan { waiting: VecDeque::new(), next: VecDeque::new(), rng: SmallRng::seed_from_u64(seed) }
    }

    /// The next crash.
    pub fn next_crash(&mut self) -> Crash {
        if self.next.is_empty() {
            self.plan_some();
        }
        self.next.pop_front().unwrap_or(Crash::Random)
    }

    /// Another server goes on with the plan: what was to come right after the last crash of this one begins anew.
    pub fn begin_again(&mut self) {
        for crash in self.next.drain(..).rev() {
            if let Crash::Failpoint(armed) = crash {
                self.waiting.push_front(armed.failpoint);
            }
        }
    }

    /// The server did not come there: it is tried again before any other is tried twice.
    pub fn again(&mut self, failpoint: Failpoint) {
        self.waiting.push_front(failpoint);
    }

    /// A failpoint, what must come before it, and a kill.
    fn plan_some(&mut self) {
        if self.waiting.is_empty() {
            let mut all = Failpoint::ALL.to_vec();
            all.shuffle(&mut self.rng);
            self.waiting.extend(all);
        }
        let Some(failpoint) = self.waiting.pop_front() else { return };
        if let Provocation::StartAfter(before) = provocation(failpoint)
            && let Some(before) = before.choose(&mut self.rng)
        {
            self.next.push_back(Crash::Failpoint(Armed { failpoint: *before, nth: 1 }));
        }
        let nth = self.nth(failpoint);
        self.next.push_back(Crash::Failpoint(Armed { failpoint, nth }));
        self.next.push_back(if self.rng.random_bool(0.25) { Crash::Starting } else { Crash::Random });
    }

    /// The how manieth time: what comes often is not always met at the first.
    fn nth(&mut self, failpoint: Failpoint) -> u32 {
        let nth_max = match failpoint {
            Failpoint::WalBeforeWrite | Failpoint::WalWritten | Failpoint::WalSynced | Failpoint::WalIngested => 200,
            Failpoint::StoreFileWritten | Failpoint::StoreBeforeIngest => 8,
            Failpoint::StoreIngested | Failpoint::StoreFlushed => 8,
            Failpoint::MetadataBeforeRename | Failpoint::MetadataRenamed | Failpoint::MetadataSaved => 3,
            Failpoint::WalSegmentBeforeSync | Failpoint::WalSegmentMade | Failpoint::WalBeforeRemove => 2,
            _ => 1,
        };
        self.rng.random_range(1..=nth_max)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_failpoint_has_its_turn_and_the_seed_says_when() {
        let crashes = |seed| {
            let mut plan = Plan::new(seed);
            (0..3 * Failpoint::ALL.len()).map(|_| plan.next_crash()).collect::<Vec<_>>()
        };
        assert_eq!(crashes(1), crashes(1));
        assert_ne!(crashes(1), crashes(2));
        let planned: BTreeSet<Failpoint> = crashes(1)
            .into_iter()
            .filter_map(|crash| if let Crash::Failpoint(armed) = crash { Some(armed.failpoint) } else { None })
            .collect();
        assert_eq!(planned.len(), Failpoint::ALL.len());
    }
}
