//! Makes records byte by byte. PG: src/backend/access/transam/xloginsert.c, XLogRecordAssemble.

use crate::wal::Compression;
use crate::{BlockNumber, ForkNumber, Lsn, PgVersion, RelTag, TransactionId};

/// What a record shall say.
#[derive(Clone, Debug, Default)]
pub struct RecordBuilder {
    /// Transaction.
    pub xid: TransactionId,
    /// Resource manager.
    pub rmid: u8,
    /// Operation and flags.
    pub info: u8,
    /// Replication origin.
    pub origin_id: Option<u16>,
    /// Top-level transaction.
    pub top_xid: Option<TransactionId>,
    /// Blocks in the order they shall stand.
    pub blocks: Vec<BlockBuilder>,
    /// Main data.
    pub main_data: Vec<u8>,
}

/// What a block of it shall say.
#[derive(Clone, Debug)]
pub struct BlockBuilder {
    /// Block id.
    pub block_id: u8,
    /// Relation; left out of the record when it is that of the block before.
    pub rel: RelTag,
    /// Fork.
    pub fork: ForkNumber,
    /// Block.
    pub block_no: BlockNumber,
    /// WILL_INIT.
    pub will_init: bool,
    /// Image.
    pub image: Option<ImageBuilder>,
    /// Data.
    pub data: Vec<u8>,
}

/// What an image shall say.
#[derive(Clone, Debug)]
pub struct ImageBuilder {
    /// The bytes in the record.
    pub bytes: Vec<u8>,
    /// Start of the hole.
    pub hole_offset: u16,
    /// Length of the hole, 0 for none.
    pub hole_len: u16,
    /// Compression.
    pub compression: Option<Compression>,
    /// Redo uses it.
    pub apply: bool,
}

impl RecordBuilder {
    /// The whole record with the right length and CRC.
    pub fn build(&self, version: PgVersion, prev_lsn: Lsn) -> Vec<u8> {
        let mut record = vec![0; 24];
        record[4..8].copy_from_slice(&self.xid.to_le_bytes());
        record[8..16].copy_from_slice(&prev_lsn.as_u64().to_le_bytes());
        record[16] = self.info;
        record[17] = self.rmid;
        let mut rel = None;
        for block in &self.blocks {
            block.put_header(version, rel == Some(block.rel), &mut record);
            rel = Some(block.rel);
        }
        if let Some(origin_id) = self.origin_id {
            record.push(253);
            record.extend(origin_id.to_le_bytes());
        }
        if let Some(top_xid) = self.top_xid {
            record.push(252);
            record.extend(top_xid.to_le_bytes());
        }
        match self.main_data.len() {
            0 => {}
            len @ 1..=255 => record.extend([255, len as u8]),
            len => {
                record.push(254);
                record.extend((len as u32).to_le_bytes());
            }
        }
        for block in &self.blocks {
            if let Some(image) = &block.image {
                record.extend(&image.bytes);
            }
            record.extend(&block.data);
        }
        record.extend(&self.main_data);
        let total_len = record.len() as u32;
        record[..4].copy_from_slice(&total_len.to_le_bytes());
        put_crc(&mut record);
        record
    }
}

impl BlockBuilder {
    fn put_header(&self, version: PgVersion, same_rel: bool, record: &mut Vec<u8>) {
        let mut flags = self.fork as u8;
        for (is_set, flag) in
            [(self.image.is_some(), 0x10), (!self.data.is_empty(), 0x20), (self.will_init, 0x40), (same_rel, 0x80)]
        {
            flags |= if is_set { flag } else { 0 };
        }
        record.extend([self.block_id, flags]);
        record.extend((self.data.len() as u16).to_le_bytes());
        if let Some(image) = &self.image {
            image.put_header(version, record);
        }
        if !same_rel {
            for oid in [self.rel.spc_oid, self.rel.db_oid, self.rel.rel_number] {
                record.extend(oid.to_le_bytes());
            }
        }
        record.extend(self.block_no.to_le_bytes());
    }
}

impl ImageBuilder {
    fn put_header(&self, version: PgVersion, record: &mut Vec<u8>) {
        let is_14 = version == PgVersion::V14;
        let mut flags = if self.hole_len == 0 { 0 } else { 1 };
        flags |= match (self.apply, is_14) {
            (false, _) => 0,
            (true, true) => 4,
            (true, false) => 2,
        };
        flags |= match (self.compression, is_14) {
            (None, _) => 0,
            (Some(_), true) => 2,
            (Some(Compression::Pglz), false) => 4,
            (Some(Compression::Lz4), false) => 8,
            (Some(Compression::Zstd), false) => 16,
        };
        record.extend((self.bytes.len() as u16).to_le_bytes());
        record.extend(self.hole_offset.to_le_bytes());
        record.push(flags);
        if self.compression.is_some() && self.hole_len != 0 {
            record.extend(self.hole_len.to_le_bytes());
        }
    }
}

/// Sets the CRC of the whole record right, bit by bit, not with the routine under test.
pub fn put_crc(record: &mut [u8]) {
    let crc = crc32c_slow(record[24..].iter().chain(&record[..20]));
    record[20..24].copy_from_slice(&crc.to_le_bytes());
}

/// CRC-32C as the standard defines it (RFC 3720, reflected polynomial 0x82F63B78).
fn crc32c_slow<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 };
        }
    }
    !crc
}
