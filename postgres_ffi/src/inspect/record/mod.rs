//! Decoded WAL records, for a person: one line each, as pg_waldump has it, or all of it as JSON.
//!
//! - What cannot be read is said in the line; it never hides the record.
//! - The line is pg_waldump's, that of the record's own version, with times in UTC; so the two can be compared.

mod body;

use std::fmt;

use serde::Serialize;

use super::Fields;
use crate::wal::describe::{Description, describe};
use crate::wal::{DecodedBlock, DecodedRecord, rmgr};
use crate::{BlockNumber, ForkNumber, Lsn, PgVersion, RelTag, TransactionId};

pub use crate::wal::describe::operation_name;

/// A record for a person.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RecordView {
    /// Where it starts.
    pub lsn: Lsn,
    /// Where it ends: the LSN of the pages that it changed.
    pub end_lsn: Lsn,
    /// Where the record before it starts.
    pub prev_lsn: Lsn,
    /// Its transaction, 0 for none.
    pub xid: TransactionId,
    /// Resource manager; `custom128` to `custom255` for those of extensions.
    pub rmgr: String,
    /// Operation; `UNKNOWN (f0)` when its version has none such.
    pub operation: String,
    /// Length without page images.
    pub len: usize,
    /// Length.
    pub total_len: usize,
    /// Numbers of the body, under the same names in every version. Not part of the line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fields: Option<Fields>,
    /// The body in pg_waldump's words.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Replication origin.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin_id: Option<u16>,
    /// Blocks that it touches.
    pub blocks: Vec<BlockView>,
}

/// A block that a record touches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BlockView {
    /// Number within the record.
    pub block_id: u8,
    /// Relation.
    pub rel: RelTag,
    /// Fork.
    pub fork: ForkNumber,
    /// Block.
    pub block_no: BlockNumber,
    /// Redo makes the page anew.
    pub will_init: bool,
    /// Bytes of data for this block.
    pub data_len: usize,
    /// The image, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageView>,
}

/// A page image in a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageView {
    /// Bytes in the record.
    pub len: usize,
    /// Start of the zeroes that were left out.
    pub hole_offset: u16,
    /// How many were.
    pub hole_len: u16,
    /// `pglz`, `lz4` or `zstd`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression: Option<String>,
    /// Redo puts it in place of the page; otherwise it is there to compare with.
    pub apply: bool,
}

impl RecordView {
    /// Describes a record of `version`.
    pub fn new(version: PgVersion, record: &DecodedRecord) -> Self {
        let Description { operation, detail } = describe(record, version);
        let blocks: Vec<BlockView> = record.blocks.iter().map(|block| BlockView::new(record, block)).collect();
        let images_len: usize = blocks.iter().filter_map(|block| block.image.as_ref()).map(|image| image.len).sum();
        let total_len = record.raw.len();
        RecordView {
            lsn: record.start_lsn,
            end_lsn: record.end_lsn,
            prev_lsn: record.prev_lsn,
            xid: record.xid,
            rmgr: rmgr::builtin_name(record.rmid).map_or_else(|| format!("custom{:03}", record.rmid), str::to_owned),
            operation: operation.into_owned(),
            len: total_len - images_len,
            total_len,
            fields: body::fields(version, record),
            description: detail,
            origin_id: record.origin_id,
            blocks,
        }
    }
}

impl BlockView {
    fn new(record: &DecodedRecord, block: &DecodedBlock) -> Self {
        let image = block.image.as_ref().map(|image| ImageView {
            len: record.image_bytes(image).len(),
            hole_offset: image.hole_offset,
            hole_len: image.hole_len,
            compression: image.compression.map(|method| format!("{method:?}").to_lowercase()),
            apply: image.apply,
        });
        BlockView {
            block_id: block.block_id,
            rel: block.rel,
            fork: block.fork,
            block_no: block.block_no,
            will_init: block.will_init,
            data_len: record.block_data(block).len(),
            image,
        }
    }
}

impl fmt::Display for RecordView {
    /// PG 15: src/bin/pg_waldump/pg_waldump.c, XLogDumpDisplayRecord.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "rmgr: {:<11} len (rec/tot): {:>6}/{:>6}, tx: {:>10}, lsn: {}, prev {}, desc: {} ",
            self.rmgr,
            self.len,
            self.total_len,
            self.xid,
            padded(self.lsn),
            padded(self.prev_lsn),
            self.operation
        )?;
        f.write_str(&self.description)?;
        self.blocks.iter().try_for_each(|block| write!(f, ", {block}"))
    }
}

/// Eight digits in the low half, as pg_waldump prints positions.
fn padded(lsn: Lsn) -> String {
    format!("{:X}/{:08X}", lsn.as_u64() >> 32, lsn.as_u64() & 0xFFFF_FFFF)
}

impl fmt::Display for BlockView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blkref #{}: rel {}", self.block_id, self.rel)?;
        if self.fork != ForkNumber::Main {
            write!(f, " fork {}", self.fork)?;
        }
        write!(f, " blk {}", self.block_no)?;
        match &self.image {
            Some(image) if image.apply => f.write_str(" FPW"),
            Some(_) => f.write_str(" FPW for WAL verification"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
