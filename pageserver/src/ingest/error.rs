//! Why a record cannot be ingested.

use keyenc::Key;
use postgres_ffi::checkpoint::CheckpointError;
use postgres_ffi::records::RecordError;
use postgres_ffi::records::dbase::DatabaseDir;
use postgres_ffi::records::xlog::ControlFileTooShort;
use postgres_ffi::wal::{DecodedRecord, ImageError};
use postgres_ffi::{BlockNumber, ForkNumber, Lsn, RelTag};

impl IngestError {
    /// The error for a record whose body cannot be read.
    pub fn body(record: &DecodedRecord, source: RecordError) -> Self {
        IngestError::Body { record_start_lsn: record.start_lsn, rmid: record.rmid, info: record.info, source }
    }
}

/// What the timeline says when it cannot read or take a batch. Passed on as it is.
pub type StateError = Box<dyn std::error::Error + Send + Sync>;

/// Ingest stops here: going on would leave pages wrong.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The body is not what its resource manager and operation promise.
    #[error("bad record body. record_start_lsn=`{record_start_lsn}`, rmid=`{rmid}`, info=`{info:#04x}`")]
    Body {
        /// Where the record starts.
        record_start_lsn: Lsn,
        /// Resource manager.
        rmid: u8,
        /// Operation and flags.
        info: u8,
        /// What is wrong with it.
        source: RecordError,
    },
    /// A resource manager that we know, an operation that we do not: it may change anything.
    #[error("unknown operation. record_start_lsn=`{record_start_lsn}`, rmid=`{rmid}`, info=`{info:#04x}`")]
    UnknownOperation {
        /// Where the record starts.
        record_start_lsn: Lsn,
        /// Resource manager.
        rmid: u8,
        /// Operation and flags.
        info: u8,
    },
    /// A resource manager that this version does not have.
    #[error("unknown resource manager. record_start_lsn=`{record_start_lsn}`, rmid=`{rmid}`, info=`{info:#04x}`")]
    UnknownResourceManager {
        /// Where the record starts.
        record_start_lsn: Lsn,
        /// Resource manager.
        rmid: u8,
        /// Operation and flags.
        info: u8,
    },
    /// Block references in a record that never has any.
    #[error("unexpected block references. record_start_lsn=`{record_start_lsn}`, rmid=`{rmid}`, info=`{info:#04x}`")]
    UnexpectedBlocks {
        /// Where the record starts.
        record_start_lsn: Lsn,
        /// Resource manager.
        rmid: u8,
        /// Operation and flags.
        info: u8,
    },
    /// A block reference that the record must have is not there.
    #[error("block reference missing. record_start_lsn=`{record_start_lsn}`, block_id=`{block_id}`")]
    BlockMissing {
        /// Where the record starts.
        record_start_lsn: Lsn,
        /// The block's number within the record.
        block_id: u8,
    },
    /// A record that is nothing but page images has a block without one.
    #[error("page image missing. record_start_lsn=`{record_start_lsn}`, block_id=`{block_id}`")]
    ImageMissing {
        /// Where the record starts.
        record_start_lsn: Lsn,
        /// The block's number within the record.
        block_id: u8,
    },
    /// What a base backup has in the place of WAL that was gone when it was made (`postgres_ffi::start::filler`).
    #[error(
        "this is no WAL: it stands in the first segment of a clone in front of where the clone began. record_start_lsn=`{record_start_lsn}`"
    )]
    Filler {
        /// Where the record starts.
        record_start_lsn: Lsn,
    },
    /// A page image does not give a page.
    #[error("bad page image. record_start_lsn=`{record_start_lsn}`, block_id=`{block_id}`")]
    Image {
        /// Where the record starts.
        record_start_lsn: Lsn,
        /// The block's number within the record.
        block_id: u8,
        /// What is wrong with it.
        source: ImageError,
    },
    /// A block so far behind the end of its fork that no server would have put it there.
    #[error(
        "block far behind its fork's end. record_start_lsn=`{record_start_lsn}`, rel=`{rel}`, fork=`{fork}`, block_count=`{block_count}`, block_no=`{block_no}`"
    )]
    GapTooLarge {
        /// Where the record starts.
        record_start_lsn: Lsn,
        /// The relation.
        rel: RelTag,
        /// Its fork.
        fork: ForkNumber,
        /// Blocks that the fork has.
        block_count: BlockNumber,
        /// The block touched.
        block_no: BlockNumber,
    },
    /// Checkpoint data that cannot be.
    #[error("bad checkpoint. record_start_lsn=`{record_start_lsn}`")]
    Checkpoint {
        /// Where the record starts.
        record_start_lsn: Lsn,
        /// What is wrong with it.
        source: CheckpointError,
    },
    /// The control file that we keep cannot be changed as the record says.
    #[error("bad control file. record_start_lsn=`{record_start_lsn}`")]
    ControlFile {
        /// Where the record starts.
        record_start_lsn: Lsn,
        /// What is wrong with it.
        source: ControlFileTooShort,
    },
    /// From here on the primary does not log everything: bulk loads skip WAL. Start anew from a backup with `wal_level` at `replica` or above.
    #[error(
        "wal_level is minimal, the log is incomplete from here on. record_start_lsn=`{record_start_lsn}`, wal_level=`{wal_level}`"
    )]
    WalLevelMinimal {
        /// Where the record starts.
        record_start_lsn: Lsn,
        /// As the record has it.
        wal_level: i32,
    },
    /// PostgreSQL's own recovery from this backup would give a database that the primary never had. Import again.
    #[error(
        "a database was copied as files during the base backup, and what it was copied from changed before the backup ended: \
         its pages cannot be proven. Delete the timeline and import again while no database is made from a template or moved. \
         tablespace=`{}`, database=`{}`, copied_from_tablespace=`{}`, copied_from_database=`{}`, backup_end_lsn=`{first_readable_lsn}`",
        target.spc_oid, target.db_oid, origin.spc_oid, origin.db_oid
    )]
    OriginChanged {
        /// The copy.
        target: DatabaseDir,
        /// The directory in the backup that it was made of.
        origin: DatabaseDir,
        /// Where the backup ends.
        first_readable_lsn: Lsn,
    },
    /// A record that was ingested before.
    #[error("record out of order. record_end_lsn=`{record_end_lsn}`, last_record_lsn=`{last_record_lsn}`")]
    OutOfOrder {
        /// End of the record given.
        record_end_lsn: Lsn,
        /// End of the last record.
        last_record_lsn: Lsn,
    },
    /// The timeline lacks an object that every timeline has.
    #[error("timeline lacks an object. what=`{what}`")]
    Missing {
        /// Which.
        what: &'static str,
    },
    /// A stored value is not of the shape that its key promises.
    #[error("stored value has the wrong shape. key=`{key}`, length=`{length}`")]
    StoredValue {
        /// Of which object.
        key: Key,
        /// Its length.
        length: usize,
    },
    /// The timeline could not be read, or did not take the batch.
    #[error("timeline state not available")]
    State {
        /// What it said.
        source: StateError,
    },
}
