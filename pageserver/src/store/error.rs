//! What can go wrong in the store, by what a caller does about it.

use std::path::PathBuf;

use keyenc::{Key, TimelineNo};
use postgres_ffi::Lsn;

/// Errors of the store. Cloneable, so that everyone who waits for the same flush learns the same cause.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another process, or another `Store` of this one, has the directory open.
    #[error("store is open elsewhere; stop the other page server, or choose another directory. dir=`{dir}`")]
    Locked {
        /// The directory given to `Store::open`.
        dir: PathBuf,
    },
    /// The store could not be opened for another reason than those below.
    #[error("cannot open store: {cause}. dir=`{dir}`")]
    Open {
        /// The directory given to `Store::open`.
        dir: PathBuf,
        /// What RocksDB or the file system said.
        cause: String,
    },
    /// A setting that cannot be worked with.
    #[error("unusable store setting: {reason}. setting=`{setting}`")]
    Config {
        /// Name of the field of `StoreConfig`.
        setting: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Bytes on disk are not what was written. Nothing was guessed; restore the store or build it again from a backup.
    #[error("store is corrupt: {detail}")]
    Corrupt {
        /// File, offset and check that failed, as far as known.
        detail: String,
    },
    /// What is stored has a format that this release does not know. Nothing is damaged: start the release that wrote it.
    #[error(
        "the store has {what} of a format that this release does not know; start the release that wrote it. format=`{format}`"
    )]
    UnknownFormat {
        /// What has it.
        what: &'static str,
        /// The format.
        format: u8,
    },
    /// Versions that the answer may have depended on were lost; see `pageserver mend`. Other objects, and this one behind its next image, can be read.
    #[error(
        "records of this object are lost: they stood in a part of the store that could not be read and was taken out; it can be read again from the next image of it on that lies above the LSN up to which they are lost. key=`{key}`, lost_through_lsn=`{through_lsn}`"
    )]
    Lost {
        /// The object, or the first one that a list may lack.
        key: Key,
        /// Nothing above it is lost.
        through_lsn: Lsn,
    },
    /// A read failed below us (I/O error, memory). The data may be intact.
    #[error("cannot read from store: {cause}")]
    Read {
        /// What RocksDB said.
        cause: String,
    },
    /// Files could not be written that are not part of the store yet: nothing was added, nothing is lost.
    #[error("cannot write to store: {cause}")]
    Write {
        /// What RocksDB said.
        cause: String,
    },
    /// A write, sync or ingestion failed earlier: nothing more is taken until the store is reopened. Reads of intact data go on.
    #[error("store takes no more writes until it is reopened, because an earlier write failed: {cause}")]
    Poisoned {
        /// The first failure.
        cause: String,
    },
    /// Something of this timeline could not be read: nothing more is put into it until the store is reopened. Reads of intact data go on.
    #[error(
        "timeline takes no more versions until the server is restarted, because a file of the store could not be read; `pagectl verify` lists what is damaged: {cause}"
    )]
    Damaged {
        /// The first failure.
        cause: String,
    },
    /// A batch begins below what was put already: reads would meet versions in the wrong order.
    #[error(
        "versions put out of LSN order. key=`{key}`, version_lsn=`{version_lsn}`, last_record_lsn=`{last_record_lsn}`"
    )]
    OutOfOrder {
        /// Key of the first version of the batch.
        key: Key,
        /// Its LSN.
        version_lsn: Lsn,
        /// How far the timeline's data goes.
        last_record_lsn: Lsn,
    },
    /// The timeline was deleted while this handle to it was in use.
    #[error("timeline was deleted. timeline_no=`{}`", .timeline.0)]
    TimelineDeleted {
        /// Its number.
        timeline: TimelineNo,
    },
    /// Compaction is paused, and level 0 is full: who puts or flushes would wait until somebody makes room.
    #[error(
        "the store has no room: compaction is paused and level 0 is full; `pagectl repair` says why, and deleting the timeline whose file is damaged makes room"
    )]
    NoRoom,
    /// The store is being closed.
    #[error("store is shutting down")]
    ShuttingDown,
}
