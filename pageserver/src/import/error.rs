//! Why a cluster could not be imported.

use std::path::PathBuf;

use postgres_ffi::TimeLineId;
use postgres_ffi::control_file::ControlFileError;

use super::backup_label::LabelError;
use crate::replication::ReplicationError;
use crate::store::StoreError;
use crate::wal::WalFileError;

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
    #[error("cannot read or copy a file of the cluster. path=`{path}`")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A server still writes the files.
    #[error(
        "a server runs on this data directory; stop it, or import it with `import NAME from 'CONNINFO'`. pid=`{pid}`, path=`{path}`"
    )]
    ServerRuns {
        /// Its process id.
        pid: i32,
        /// The directory.
        path: PathBuf,
    },
    /// The files changed while they were read.
    #[error("a server was started on this data directory while it was imported. path=`{path}`")]
    Changed {
        /// The directory.
        path: PathBuf,
    },
    /// The path does not name what the command needs.
    #[error("{what}. path=`{path}`")]
    NotThere {
        /// What is not there.
        what: &'static str,
        /// Where.
        path: PathBuf,
    },
    /// A version that is not served.
    #[error("the cluster cannot be served: {0}")]
    Version(#[from] postgres_ffi::version::UnsupportedVersion),
    /// The backup's own description of itself cannot be used.
    #[error(transparent)]
    Label(#[from] LabelError),
    /// Less than the whole archive.
    #[error("the archive is cut off: it does not end as archives do. archive=`{archive}`, length=`{length}`")]
    ArchiveCut {
        /// The file.
        archive: String,
        /// Its bytes, unpacked.
        length: u64,
    },
    /// A tablespace of the backup is not beside it.
    #[error("the backup is not whole: a tablespace is missing. missing=`{missing}`")]
    TablespaceMissing {
        /// The archive or directory.
        missing: String,
    },
    /// A segment that is needed is not there.
    #[error("WAL is missing: {needed} must still come. segment=`{segment}`, end_lsn=`{end_lsn}`")]
    WalMissing {
        /// The segment.
        segment: String,
        /// End of the last record that is there.
        end_lsn: postgres_ffi::Lsn,
        /// What it is needed for.
        needed: String,
    },
    /// The last segment holds less than is needed.
    #[error("WAL ends too early: {needed} must still come. segment=`{segment}`, end_lsn=`{end_lsn}`: {reason}")]
    WalEndsEarly {
        /// The segment.
        segment: String,
        /// End of the last record that is there.
        end_lsn: postgres_ffi::Lsn,
        /// What it is needed for.
        needed: String,
        /// Why there is no record behind it.
        reason: String,
    },
    /// A segment is not there, but later ones are.
    #[error("WAL has a hole. segment=`{segment}`, later=`{later}`")]
    WalHole {
        /// The segment that is missing.
        segment: String,
        /// One that was written behind it.
        later: String,
    },
    /// A segment ends with no record, but later ones were written.
    #[error("a WAL segment is damaged. segment=`{segment}`, end_lsn=`{end_lsn}`, later=`{later}`: {reason}")]
    WalDamaged {
        /// The segment.
        segment: String,
        /// Why its next record is none.
        reason: String,
        /// End of the last right record.
        end_lsn: postgres_ffi::Lsn,
        /// A segment that was written behind it.
        later: String,
    },
    /// WAL of another cluster.
    #[error("WAL beside the cluster's files is not the cluster's")]
    Wal {
        /// Why.
        source: Box<postgres_ffi::wal::WalError>,
    },
    /// Our own WAL files cannot be used.
    #[error(transparent)]
    WalFile(#[from] WalFileError),
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
