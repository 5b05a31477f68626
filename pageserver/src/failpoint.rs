//! Failpoints: places right before and right after each durable step, at which a test lets the server end as by `kill -9`.
//!
//! - Armed by the environment variable `PAGESERVER_FAILPOINT=NAME[:NTH]` alone, read once when `pageserver serve` begins; passing one that is not
//!   armed is one relaxed load. They are in every build, so what is proven is the program that runs.
//! - The only thing a failpoint does is to end the process with SIGKILL. It never returns an error and never changes what follows.
//! - `pageserver failpoints` lists them; `docs/crashes.md` says how they are used.

use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The environment variable that arms a failpoint: `wal-synced`, or `wal-synced:3` for the third time that it is passed.
pub const FAILPOINT_VARIABLE: &str = "PAGESERVER_FAILPOINT";
/// What stands on stderr, before the name, when the process ends at a failpoint.
pub const REACHED: &str = "failpoint reached, the server ends as by SIGKILL. failpoint=";

/// Number of the armed failpoint plus one; 0 for none.
static ARMED: AtomicU32 = AtomicU32::new(0);
/// Times that the armed one is still passed, the last of them not survived.
static PASSES_LEFT: AtomicU32 = AtomicU32::new(0);

macro_rules! failpoints {
    ($($variant:ident, $name:literal, $moment:literal;)+) => {
        /// A moment at which the server can be made to crash.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Failpoint {
            $(#[doc = $moment] $variant,)+
        }

        impl Failpoint {
            /// All of them, in the order of the list.
            pub const ALL: &[Failpoint] = &[$(Failpoint::$variant,)+];

            /// Its name, as `PAGESERVER_FAILPOINT` takes it.
            pub const fn name(self) -> &'static str {
                match self { $(Failpoint::$variant => $name,)+ }
            }

            /// What has happened by then, and what has not.
            pub const fn moment(self) -> &'static str {
                match self { $(Failpoint::$variant => $moment,)+ }
            }
        }
    };
}

failpoints! {
    WalSegmentBeforeSync, "wal-segment-before-sync", "a new WAL segment file is there, and not durable";
    WalSegmentMade, "wal-segment-made", "a new WAL segment file is durable, and holds nothing";
    WalBeforeWrite, "wal-before-write", "WAL has come, and is in no file";
    WalWritten, "wal-written", "WAL is in its file, and not fsynced";
    WalSynced, "wal-synced", "WAL is fsynced, and neither told to the primary nor ingested";
    WalIngested, "wal-ingested", "WAL is ingested, and the primary does not know that it is here";
    WalFileBeforeRename, "wal-file-before-rename", "a history file or the first segment after a switch is fsynced under another name";
    WalFileRenamed, "wal-file-renamed", "the same has its name, and its directory is not fsynced";
    WalFileDurable, "wal-file-durable", "the same is durable";
    WalBeforeRemove, "wal-before-remove", "a WAL segment file is about to be removed";
    WalRemoved, "wal-removed", "a WAL segment file is removed, and its directory not fsynced";
    WalBeforeCut, "wal-before-cut", "what lies behind the last whole record is about to be zeroed";
    WalCut, "wal-cut", "the WAL ends at its last whole record, durably";
    StoreOpened, "store-opened", "RocksDB is open, files of an earlier run that it had not taken are removed";
    StoreFileWritten, "store-file-written", "an SST file is written, and not part of the store";
    StoreBeforeIngest, "store-before-ingest", "all files of a flush are written, and not part of the store";
    StoreIngested, "store-ingested", "a flush and its watermark are part of the store, and memory does not know";
    StoreFlushed, "store-flushed", "a flush is part of the store, its layer is gone from memory";
    StorePagesBeforeIngest, "store-pages-before-ingest", "as store-before-ingest, with pages that are cached back in the set";
    StorePagesIngested, "store-pages-ingested", "as store-ingested, with pages that are cached back in the set";
    StoreBeforeDelete, "store-before-delete", "a timeline's versions are about to be deleted";
    StoreFilesDeleted, "store-files-deleted", "files that hold nothing but a timeline's versions are gone, durably, and the rest of its versions is there";
    StoreDeleted, "store-deleted", "a timeline's versions are deleted, durably, and memory does not know";
    StoreImagesBeforeIngest, "store-images-before-ingest", "a detach has written images, and they are not part of the store";
    StoreImagesIngested, "store-images-ingested", "a detach's images are part of the store";
    MetadataBeforeRename, "metadata-before-rename", "timeline.json is fsynced under another name";
    MetadataRenamed, "metadata-renamed", "timeline.json is new, and its directory not fsynced";
    MetadataSaved, "metadata-saved", "timeline.json is new, durably";
    MarkBeforeSync, "mark-before-sync", "a mark is there, and neither filled nor fsynced";
    MarkSet, "mark-set", "a mark is durable";
    MarkRemoved, "mark-removed", "a mark is removed, and its directory not fsynced";
    MarkCleared, "mark-cleared", "a mark is gone, durably";
    BranchDirMade, "branch-dir-made", "a branch's directory is there under another name, and empty";
    BranchBeforeRename, "branch-before-rename", "the directory of a branch or an import is whole, under another name";
    BranchRenamed, "branch-renamed", "the same has its name, and what is above it is not fsynced";
    BranchDurable, "branch-durable", "the same is durable, and not open";
    BranchOpened, "branch-opened", "a branch is open, and nobody has been told";
    DeleteMarked, "delete-marked", "a timeline is marked as being deleted";
    DeleteSlotDropped, "delete-slot-dropped", "its slot at the primary is dropped";
    DeleteVersionsGone, "delete-versions-gone", "its versions are deleted, its directory is there";
    DeleteDirRenamed, "delete-dir-renamed", "its directory has another name, durably";
    DeleteDirRemoved, "delete-dir-removed", "its directory is removed";
    DeleteDone, "delete-done", "all of it is gone, and nobody has been told";
    RenameSaved, "rename-saved", "a timeline has its new name, and nobody has been told";
    ResetMarked, "reset-marked", "a branch is marked as being reset";
    ResetMetadataSaved, "reset-metadata-saved", "it has its new number and branch LSN, the old WAL and versions are there";
    ResetSlotDropped, "reset-slot-dropped", "its slot at the primary is dropped";
    ResetWalEmptied, "reset-wal-emptied", "its old WAL is gone";
    ResetVersionsGone, "reset-versions-gone", "its old versions are gone";
    ResetDone, "reset-done", "the mark is gone, and nobody has been told";
    DetachPublished, "detach-published", "a branch that is being detached has a watermark";
    DetachImagesDurable, "detach-images-durable", "all its images are durable, and it still has an ancestor";
    DetachHistoryWritten, "detach-history-written", "the history file is durable, and it still has an ancestor";
    DetachMetadataSaved, "detach-metadata-saved", "it has no ancestor any more, and nobody has been told";
    ImportDirMade, "import-dir-made", "the directory of an import is there under another name, without a mark";
    ImportMarked, "import-marked", "an import is marked, and nothing of it is stored";
    ImportSlotMade, "import-slot-made", "the slot at the primary is there, nothing is stored";
    ImportFilesDurable, "import-files-durable", "all files are stored with a watermark, and there is no timeline.json";
    ImportMetadataSaved, "import-metadata-saved", "timeline.json is there, and the mark is, too";
    ImportWalIngested, "import-wal-ingested", "the WAL that came with files is ingested and durable, and the mark is there";
    ImportDone, "import-done", "the mark is gone, and nobody has been told";
    FollowSaved, "follow-saved", "a timeline has a primary, and does not follow it yet";
    FollowPublished, "follow-published", "a branch that begins to follow has a watermark";
    FollowDone, "follow-done", "a timeline follows its primary, and nobody has been told";
    UnfollowFlushed, "unfollow-flushed", "all that was received is durable in the store, and it still has a primary";
    UnfollowSaved, "unfollow-saved", "a timeline has no primary any more, and the slot is there";
    LeaseBeforeRename, "lease-before-rename", "leases.json is fsynced under another name";
    LeaseRenamed, "lease-renamed", "leases.json is new, and its directory not fsynced";
    LeaseSaved, "lease-saved", "leases.json is new, durably, and nobody has been told";
    SlotsBeforeRename, "slots-before-rename", "slots.json is fsynced under another name";
    SlotsRenamed, "slots-renamed", "slots.json is new, and its directory not fsynced";
    SlotsSaved, "slots-saved", "slots.json is new, durably: what it says of a slot is not done yet";
    GcHorizonSaved, "gc-horizon-saved", "a horizon is durable, and no version below it is gone";
    GcBeforeIngest, "gc-before-ingest", "a part of what garbage collection removes is written, and not part of the store";
    GcIngested, "gc-ingested", "the same is removed, durably, and later parts are not";
    GcPassSaved, "gc-pass-saved", "a pass of garbage collection is noted as done, durably";
    TenantBeforeRename, "tenant-before-rename", "tenant.json is fsynced under another name";
    TenantRenamed, "tenant-renamed", "tenant.json is new, and its directory not fsynced";
    TenantSaved, "tenant-saved", "tenant.json is new, durably, and the PostgreSQL timeline id in it is not given";
    TenantRemoved, "tenant-removed", "the directory of a tenant without timelines is removed";
    OpenLeftOverRemoved, "open-left-over-removed", "at the start: a directory that a crash has left is removed";
    OpenTakenAway, "open-taken-away", "at the start: what a deletion or import that a crash has cut off has left is gone";
    OpenResetFinished, "open-reset-finished", "at the start: a reset that a crash has cut off is finished";
    OpenDone, "open-done", "at the start: all timelines are open, and none follows";
}

/// A failpoint and the how manieth time that it is passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Armed {
    /// Where.
    pub failpoint: Failpoint,
    /// Counted from 1.
    pub nth: u32,
}

/// What `PAGESERVER_FAILPOINT` says is not a failpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a failpoint, expected NAME or NAME:NTH with a name of `pageserver failpoints`. value=`{value}`")]
pub struct NoSuchFailpoint {
    /// The text found.
    pub value: String,
}

impl FromStr for Armed {
    type Err = NoSuchFailpoint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || NoSuchFailpoint { value: text.chars().take(100).collect() };
        let (name, nth) = match text.split_once(':') {
            Some((name, nth)) => (name, nth.parse().map_err(|_| refused())?),
            None => (text, 1),
        };
        let failpoint = Failpoint::ALL.iter().find(|failpoint| failpoint.name() == name).ok_or_else(refused)?;
        if nth == 0 { Err(refused()) } else { Ok(Armed { failpoint: *failpoint, nth }) }
    }
}

impl std::fmt::Display for Armed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.failpoint.name(), self.nth)
    }
}

impl Failpoint {
    /// Goes on, unless this is the armed one and its time has come.
    #[inline]
    pub fn pass(self) {
        if ARMED.load(Ordering::Relaxed) == self as u32 + 1 {
            self.pass_armed();
        }
    }

    #[cold]
    fn pass_armed(self) {
        let one_less = |left: u32| left.checked_sub(1);
        if PASSES_LEFT.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less) != Ok(1) {
            return;
        }
        eprintln!("{REACHED}{}", self.name());
        let _ = kill(Pid::this(), Signal::SIGKILL);
        // Nothing more is done, even if the signal takes a moment.
        loop {
            std::thread::park();
        }
    }
}

/// Arms the failpoint that the environment names, if it names one. Called once, before anything is opened. Errors: there is no such failpoint.
pub fn arm_from_environment() -> Result<Option<Armed>, NoSuchFailpoint> {
    let Some(value) = std::env::var_os(FAILPOINT_VARIABLE) else { return Ok(None) };
    let armed: Armed = value.to_string_lossy().parse()?;
    PASSES_LEFT.store(armed.nth, Ordering::SeqCst);
    ARMED.store(armed.failpoint as u32 + 1, Ordering::SeqCst);
    Ok(Some(armed))
}

#[cfg(test)]
mod tests {
    //! Goal: names are names, and nothing else arms. Method: plain cases. That they crash is proven with the real server (`tests`, prove_crash).

    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_plain() {
        let names: BTreeSet<&str> = Failpoint::ALL.iter().map(|failpoint| failpoint.name()).collect();
        assert_eq!(names.len(), Failpoint::ALL.len());
        let is_plain = |name: &&str| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
        assert!(names.iter().all(is_plain), "{names:?}");
    }

    #[test]
    fn what_arms_is_a_name_and_a_number() {
        let armed = |text: &str| text.parse::<Armed>();
        assert_eq!(armed("wal-synced"), Ok(Armed { failpoint: Failpoint::WalSynced, nth: 1 }));
        assert_eq!(armed("lease-saved:7"), Ok(Armed { failpoint: Failpoint::LeaseSaved, nth: 7 }));
        for bad in ["", "wal", "wal-synced:0", "wal-synced:", "wal-synced:x", "wal-synced:1:2", "WAL-SYNCED"] {
            assert_eq!(armed(bad), Err(NoSuchFailpoint { value: bad.to_owned() }));
        }
        for failpoint in Failpoint::ALL {
            let text = Armed { failpoint: *failpoint, nth: 2 }.to_string();
            assert_eq!(text.parse(), Ok(Armed { failpoint: *failpoint, nth: 2 }));
        }
    }

    #[test]
    fn what_is_not_armed_is_passed() {
        Failpoint::ALL.iter().for_each(|failpoint| failpoint.pass());
    }
}
