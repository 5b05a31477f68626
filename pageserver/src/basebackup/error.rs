//! Why there is no backup.

use keyenc::Key;
use postgres_ffi::checkpoint::CheckpointError;
use postgres_ffi::control_file::ControlFileError;
use postgres_ffi::start::StartError;
use postgres_ffi::{Lsn, SlruKind};

use crate::timeline::{ReadError, RepositoryError};
use crate::wal::WalFileError;

/// A backup was refused, or ended in the middle.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Something cannot be read as of the LSN.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Our WAL files cannot be read.
    #[error(transparent)]
    Wal(#[from] WalFileError),
    /// What every cluster has is not there.
    #[error("no base backup: the timeline has none of this at the LSN. what=`{what}`, request_lsn=`{request_lsn}`")]
    Missing {
        /// What it is.
        what: &'static str,
        /// As of when.
        request_lsn: Lsn,
    },
    /// A transaction was prepared that, by the counters, was not begun. PostgreSQL would throw it away with a warning.
    #[error(
        "no base backup: a prepared transaction is not below the next transaction id. xid=`{xid}`, next_xid=`{next_xid}`"
    )]
    PreparedInFuture {
        /// The prepared one, epoch in the high half.
        xid: u64,
        /// The next one.
        next_xid: u64,
    },
    /// A page is missing that a server would ask for.
    #[error(
        "no base backup: a page is missing of those that transactions since the oldest one need. page=`{kind}/{page_no}`, needed=`{first}` to `{last}`, request_lsn=`{request_lsn}`"
    )]
    SlruPageMissing {
        /// Of which SLRU.
        kind: SlruKind,
        /// The page.
        page_no: u32,
        /// First page that is needed.
        first: u32,
        /// Last page that is needed; below the first behind the wrap.
        last: u32,
        /// As of when.
        request_lsn: Lsn,
    },
    /// The stored counters cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The stored control file cannot be read.
    #[error(transparent)]
    ControlFile(#[from] ControlFileError),
    /// A stored value does not have the form that its key promises.
    #[error("a stored value is damaged. key=`{key}`")]
    Damaged {
        /// Of what.
        key: Key,
    },
    /// No server can start there.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A standby needs WAL that our files do not have.
    #[error(
        "no base backup for a standby: WAL from the last checkpoint on is not on our disk; raise wal.keep_mib. redo_lsn=`{redo_lsn}`, branch_lsn=`{branch_lsn}`"
    )]
    StandbyWalGone {
        /// Where the last checkpoint's redo begins.
        redo_lsn: Lsn,
        /// End of what is needed.
        branch_lsn: Lsn,
    },
    /// A standby would replay what was written while the cluster was being imported, and nobody knows what was prepared then.
    #[error(
        "no base backup for a standby: the last checkpoint began before the first readable LSN; after the next one there will be. redo_lsn=`{redo_lsn}`, first_readable_lsn=`{first_readable_lsn}`"
    )]
    StandbyTooEarly {
        /// Where the last checkpoint's redo begins.
        redo_lsn: Lsn,
        /// Nothing below can be read.
        first_readable_lsn: Lsn,
    },
    /// Replay would make a tablespace of the primary's path: on its machine the standby would write into the primary's files.
    #[error(
        "no base backup for a standby: a tablespace was made since the last checkpoint, and replay would put it where the primary has it; behind the next checkpoint there will be. record_lsn=`{record_lsn}`, location=`{location}`"
    )]
    StandbyTablespace {
        /// Where the record starts.
        record_lsn: Lsn,
        /// The primary's directory.
        location: String,
    },
    /// The PostgreSQL timeline was switched since the last checkpoint.
    #[error(
        "no base backup for a standby: PostgreSQL's timeline was switched since the last checkpoint; after the next one there will be. redo_lsn=`{redo_lsn}`, branch_lsn=`{branch_lsn}`"
    )]
    StandbyAcrossSwitch {
        /// Where the last checkpoint's redo begins.
        redo_lsn: Lsn,
        /// End of what is needed.
        branch_lsn: Lsn,
    },
    /// A page is newer than the LSN of the backup. It would ask for WAL that does not exist.
    #[error(
        "the backup ends here: a page is newer than the backup. page=`{key}`, page_lsn=`{page_lsn}`, branch_lsn=`{branch_lsn}`"
    )]
    PageAhead {
        /// The page.
        key: Key,
        /// Its LSN.
        page_lsn: Lsn,
        /// That of the backup.
        branch_lsn: Lsn,
    },
    /// PostgreSQL's own timelines: their history cannot be read, or no id can be given out.
    #[error(transparent)]
    PgTimelines(#[from] RepositoryError),
    /// Threads that read pages cannot be started.
    #[error("no thread to read pages")]
    Thread(#[source] std::io::Error),
    /// Who should receive the archive does not take it.
    #[error("the archive cannot be written")]
    Output(#[source] std::io::Error),
}

impl BackupError {
    /// What an error of the archive's writer means: one of ours that went through it, or the receiver's.
    pub(super) fn from_io(error: std::io::Error) -> Self {
        match error.downcast::<BackupError>() {
            Ok(ours) => ours,
            Err(error) => BackupError::Output(error),
        }
    }
}
