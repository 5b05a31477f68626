//! What can be wrong with WAL files.

use std::io;
use std::path::{Path, PathBuf};

use postgres_ffi::wal::WalError;
use postgres_ffi::{Lsn, TimeLineId};

use super::history::HistoryError;

/// Errors of reading and writing WAL files.
#[derive(Debug, thiserror::Error)]
pub enum WalFileError {
    /// A file or the directory cannot be read or written.
    #[error("cannot {action} WAL file. path=`{path}`")]
    Io {
        /// What we tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A write or fsync failed before: what is on disk is unknown until the directory is opened again.
    #[error("an earlier write of WAL failed; restart to find out what is on disk. first_error=`{first_error}`")]
    Poisoned {
        /// That earlier error.
        first_error: String,
    },
    /// Durable bytes are not what was written.
    #[error("WAL file is corrupt. path=`{path}`, offset=`{offset}`, lsn=`{lsn}`")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where in the file the record starts that cannot be read.
        offset: u64,
        /// The same as a position in the WAL.
        lsn: Lsn,
        /// What is wrong.
        #[source]
        source: Box<WalError>,
    },
    /// The files belong to another cluster, version or build.
    #[error("WAL files are of another cluster or version. path=`{path}`")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is different.
        #[source]
        source: Box<WalError>,
    },
    /// A segment file is longer than a segment.
    #[error("WAL file has the wrong length. path=`{path}`, length=`{length}`, expected=`{expected}`")]
    Length {
        /// The file.
        path: PathBuf,
        /// Its length.
        length: u64,
        /// The length of a segment.
        expected: u64,
    },
    /// A file of the sequence is missing.
    #[error("WAL is not there. lsn=`{lsn}`, directory=`{directory}`")]
    Missing {
        /// The position that no file holds.
        lsn: Lsn,
        /// Where we looked.
        directory: PathBuf,
    },
    /// Bytes do not go on where the last ones ended.
    #[error("WAL does not go on where it ended. written_lsn=`{written_lsn}`, start_lsn=`{start_lsn}`")]
    NotContiguous {
        /// Where it ended.
        written_lsn: Lsn,
        /// Where the new bytes start.
        start_lsn: Lsn,
    },
    /// The new timeline does not begin where the log ends.
    #[error(
        "cannot switch to timeline {timeline_id}: it begins elsewhere. switch_lsn=`{switch_lsn}`, written_lsn=`{written_lsn}`"
    )]
    SwitchElsewhere {
        /// The new timeline.
        timeline_id: TimeLineId,
        /// Where it begins.
        switch_lsn: Lsn,
        /// Where the log ends.
        written_lsn: Lsn,
    },
    /// A history file makes no sense.
    #[error("bad timeline history file. path=`{path}`")]
    History {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: HistoryError,
    },
}

/// For `map_err`: wraps an I/O error with what was done to which file.
pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> WalFileError {
    let path = path.to_owned();
    move |source| WalFileError::Io { action, path, source }
}
