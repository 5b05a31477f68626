//! Why a cluster could not be imported.

use std::path::PathBuf;

use postgres_ffi::TimeLineId;
use postgres_ffi::control_file::ControlFileError;

use crate::replication::ReplicationError;
use crate::store::StoreError;

/// An import failed; nothing of it stays.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The primary refused, or the connection broke.
    #[error(transparent)]
    Replication(#[from] ReplicationError),
    /// The store takes no writes.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The control file cannot be used.
    #[error(transparent)]
    ControlFile(#[from] ControlFileError),
    /// A setting of the cluster that cannot be served.
    #[error("the cluster cannot be served: {setting} must be {expected}. value=`{value}`")]
    UnsupportedCluster {
        /// Which setting.
        setting: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        value: String,
    },
    /// The backup lacks a file that every cluster has.
    #[error("the backup is not whole: a file is missing. file=`{file}`")]
    FileMissing {
        /// Path within the data directory.
        file: &'static str,
    },
    /// A file ends within a page, or before its announced length.
    #[error("the backup is not whole: a file is cut off. file=`{file}`, length=`{length}`")]
    FileCut {
        /// Path within the data directory.
        file: String,
        /// Bytes that came.
        length: u64,
    },
    /// A file of the cluster does not have the form that its name promises.
    #[error("a file of the cluster is damaged: {reason}. file=`{file}`")]
    FileDamaged {
        /// Path within the data directory.
        file: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The archive of the base backup is not a tar archive, or ends too early.
    #[error("the backup's archive cannot be read. archive=`{archive}`")]
    Archive {
        /// Which tablespace's archive.
        archive: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file cannot be read.
    #[error("cannot read a file of the cluster. path=`{path}`")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The data directory was not cleanly stopped.
    #[error("the data directory was not cleanly stopped; start and stop its server first. state=`{state}`")]
    NotShutDown {
        /// What the control file says.
        state: String,
    },
    /// The shutdown checkpoint that the control file names cannot be read.
    #[error("the shutdown checkpoint cannot be read from pg_wal. checkpoint_lsn=`{checkpoint_lsn}`: {reason}")]
    NoCheckpoint {
        /// Where it should be.
        checkpoint_lsn: postgres_ffi::Lsn,
        /// What is there.
        reason: String,
    },
    /// A program of PostgreSQL's failed.
    #[error("{program} failed: {message}")]
    Program {
        /// Which one.
        program: String,
        /// What it said.
        message: String,
    },
    /// A slot of the wanted name was there before and keeps no WAL.
    #[error("the replication slot exists and keeps no WAL; drop it or choose another name. slot=`{slot}`")]
    SlotKeepsNothing {
        /// The slot.
        slot: String,
    },
    /// The standby that the backup was taken from became a primary in the meantime.
    #[error(
        "the server was promoted during the backup; import it again. start_timeline_id=`{start_timeline_id}`, end_timeline_id=`{end_timeline_id}`"
    )]
    Promoted {
        /// PostgreSQL timeline at the start.
        start_timeline_id: TimeLineId,
        /// PostgreSQL timeline at the end.
        end_timeline_id: TimeLineId,
    },
    /// Somebody asked to stop.
    #[error("the import was cancelled")]
    Cancelled,
}
