//! Native redo: what PostgreSQL's redo routines do to one page, as functions over bytes.
//!
//! - In: the page as it was, one record (whole or cut down for this block, see [`crate::wal::trim`]), facts of the cluster. Out: the page as PostgreSQL would
//!   have it, byte for byte but for `pd_checksum`, which redo leaves alone.
//! - Every offset and length that comes from the record or the page is checked: bytes that make no sense are an error, never a panic.
//! - **Never:** a page that half of a record was applied to is taken for a page. After an error it holds anything: throw it away.
//! - Neither I/O nor allocation beyond what an image or a posting list needs unpacked, and that is bounded by the page.
//!
//! One file per resource manager, named as PostgreSQL names it. All of them work on the block that is asked for and on no other; what the record says
//! of its other blocks is read only where PostgreSQL reads it as well.
//!
//! In reading order: [`redo`] (here), what all of them do to line pointers and tuples ([`crate::page::edit`]), the resource managers.
//!
//! PG 14-18: src/backend/access/transam/xlogutils.c (XLogReadBufferForRedoExtended).

pub mod case;

mod xlog;

mod brin;
mod btree;
mod generic;
mod gin;
mod gist;
mod hash;
mod heap;
mod heap2;
mod heap_prune;
mod heap_tuple;
mod index_tuple;
#[cfg(test)]
mod made_up;
mod sequence;
mod spgist;
mod visibility_map;

use crate::page::edit::PageError;
use crate::page::{Page, page_is_new, page_lsn, set_page_lsn};
use crate::records::RecordError;
use crate::wal::image::ImageError;
use crate::wal::{DecodedBlock, DecodedRecord, rmgr, trim};
use crate::{BlockNumber, ForkNumber, Lsn, PgVersion, RelTag};

/// What redo must know of the cluster that wrote the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterFacts {
    /// Its major version.
    pub version: PgVersion,
    /// Data checksums are on, or `wal_log_hints` is: then some records stamp pages that they would not stamp otherwise.
    /// PG: src/include/access/xlog.h, XLogHintBitIsNeeded.
    pub hint_bits_logged: bool,
}

/// Which page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageAddress {
    /// The relation.
    pub rel: RelTag,
    /// The fork.
    pub fork: ForkNumber,
    /// The block.
    pub block_no: BlockNumber,
}

/// Why a record does not apply to a page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedoError {
    /// The record does not name this page.
    #[error("record does not touch the page. rel=`{rel}`, fork=`{fork}`, block_no=`{block_no}`")]
    NotTouched {
        /// The relation.
        rel: RelTag,
        /// The fork.
        fork: ForkNumber,
        /// The block.
        block_no: BlockNumber,
    },
    /// Redo of this resource manager is not ours: an extension's, or one that changes no pages.
    #[error("no native redo for this resource manager. rmid=`{rmid}`")]
    UnknownManager {
        /// Its number.
        rmid: u8,
    },
    /// The resource manager has no such operation in this version, or none that touches this block.
    #[error(
        "resource manager has no such operation on this block. rmid=`{rmid}`, operation=`{operation:#04x}`, block_id=`{block_id}`"
    )]
    UnknownOperation {
        /// The resource manager.
        rmid: u8,
        /// `info` without the flags.
        operation: u8,
        /// The block's number within the record.
        block_id: u8,
    },
    /// The record changes what is there, but the page was never initialised.
    #[error("record changes a page that was never initialised")]
    PageIsNew,
    /// The image in the record is broken.
    #[error("page image cannot be restored: {0}")]
    Image(#[from] ImageError),
    /// The record's body is not what its operation promises.
    #[error("{0}")]
    Body(#[from] RecordError),
    /// The page is not one that this change could be made on.
    #[error("{0}")]
    Page(#[from] PageError),
}

/// Changes `page` as redo of `record` does.
///
/// A record at or below the page's LSN changes nothing, as in PostgreSQL, unless it makes the page anew.
/// Errors: the record does not apply, see [`RedoError`]; `page` is then useless.
pub fn redo(
    page: &mut Page,
    address: PageAddress,
    record: &DecodedRecord,
    facts: ClusterFacts,
) -> Result<(), RedoError> {
    let PageAddress { rel, fork, block_no } = address;
    let is_it = |block: &&DecodedBlock| block.block_no == block_no && block.fork == fork && block.rel == rel;
    let block = record.blocks.iter().find(is_it).ok_or(RedoError::NotTouched { rel, fork, block_no })?;
    if let Some(image) = block.image.as_ref().filter(|image| image.apply) {
        page.copy_from_slice(&record.restore_image(image)?[..]);
        // A page that was logged before anybody initialised it has no place for an LSN.
        if !page_is_new(page) {
            set_page_lsn(page, record.end_lsn);
        }
        if !trim::redo_goes_on_after_image(record, block.block_id) {
            return Ok(());
        }
    } else if block.will_init {
        page.fill(0);
    } else if page_is_new(page) && fork != ForkNumber::Vm {
        return Err(RedoError::PageIsNew);
    } else if page_lsn(page).is_some_and(|lsn| record.end_lsn <= lsn) {
        return Ok(());
    }
    let stamp = manager_redo(&Change { facts, record, block }, page)?;
    if stamp == Stamp::Record {
        set_page_lsn(page, record.end_lsn);
    }
    Ok(())
}

fn manager_redo(change: &Change<'_>, page: &mut Page) -> Result<Stamp, RedoError> {
    match change.record.rmid {
        rmgr::XLOG => xlog::redo(change),
        rmgr::HEAP2 => heap2::redo(change, page),
        rmgr::HEAP => heap::redo(change, page),
        rmgr::BTREE => btree::redo(change, page),
        rmgr::HASH => hash::redo(change, page),
        rmgr::GIN => gin::redo(change, page),
        rmgr::GIST => gist::redo(change, page),
        rmgr::SEQ => sequence::redo(change, page),
        rmgr::SPGIST => spgist::redo(change, page),
        rmgr::BRIN => brin::redo(change, page),
        rmgr::GENERIC => generic::redo(change, page),
        rmid => Err(RedoError::UnknownManager { rmid }),
    }
}

/// The resource managers whose page changes [`redo`] knows: all of PostgreSQL's own that have any.
pub const MANAGERS: [u8; 11] = [
    rmgr::XLOG,
    rmgr::HEAP2,
    rmgr::HEAP,
    rmgr::BTREE,
    rmgr::HASH,
    rmgr::GIN,
    rmgr::GIST,
    rmgr::SEQ,
    rmgr::SPGIST,
    rmgr::BRIN,
    rmgr::GENERIC,
];

/// True for resource managers whose page changes [`redo`] knows.
pub fn is_native(rmid: u8) -> bool {
    MANAGERS.contains(&rmid)
}

/// Whether the page gets the record's LSN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stamp {
    /// Yes, as nearly always.
    Record,
    /// No: the page keeps the LSN it has.
    Keep,
}

/// One record at one of its blocks. The page is not older than the record's change: that was checked already.
struct Change<'a> {
    facts: ClusterFacts,
    record: &'a DecodedRecord,
    /// The block that the page is.
    block: &'a DecodedBlock,
}

impl<'a> Change<'a> {
    fn version(&self) -> PgVersion {
        self.facts.version
    }

    /// Upper four bits of `info`.
    fn operation(&self) -> u8 {
        self.record.operation()
    }

    fn block_id(&self) -> u8 {
        self.block.block_id
    }

    fn main_data(&self) -> &'a [u8] {
        self.record.main_data()
    }

    /// The data of this block.
    fn block_data(&self) -> &'a [u8] {
        self.record.block_data(self.block)
    }

    /// What redo stamps.
    fn end_lsn(&self) -> Lsn {
        self.record.end_lsn
    }

    /// The number of the block with `block_id`, for tuples and links that point there.
    fn block_no_of(&self, block_id: u8) -> Result<BlockNumber, RedoError> {
        self.record.block(block_id).map(|block| block.block_no).ok_or_else(|| self.unknown_operation())
    }

    /// For blocks that redo makes anew: PostgreSQL insists that the record says so (xlogutils.c, XLogReadBufferForRedoExtended).
    fn check_will_init(&self) -> Result<(), RedoError> {
        if self.block.will_init {
            return Ok(());
        }
        Err(page_error("page is made anew, but the record does not say so. block_id", self.block_id()))
    }

    /// The error for an operation, or a block of it, that the resource manager does not have.
    fn unknown_operation(&self) -> RedoError {
        let (rmid, operation) = (self.record.rmid, self.operation());
        RedoError::UnknownOperation { rmid, operation, block_id: self.block_id() }
    }
}

/// The error for a page that cannot be changed as the record wants.
fn page_error(what: &'static str, value: impl TryInto<i64>) -> RedoError {
    RedoError::Page(PageError { what, value: value.try_into().unwrap_or(i64::MAX) })
}
