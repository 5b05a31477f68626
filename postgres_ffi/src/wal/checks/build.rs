//! Makes records byte by byte. PG: src/backend/access/transam/xloginsert.c, XLogRecordAssemble.

use crate::wal::{BlockImage, Compression, DecodedBlock, DecodedRecord};
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
    /// What `record` says, but for where the record before it starts.
    pub fn of(record: &DecodedRecord) -> Self {
        let image_of = |image: &BlockImage| ImageBuilder {
            bytes: record.image_bytes(image).to_vec(),
            hole_offset: image.hole_offset,
            hole_len: image.hole_len,
            compression: image.compression,
            apply: image.apply,
        };
        let block_of = |block: &DecodedBlock| BlockBuilder {
            block_id: block.block_id,
            rel: block.rel,
            fork: block.fork,
            block_no: block.block_no,
            will_init: block.will_init,
            image: block.image.as_ref().map(image_of),
            data: record.block_data(block).to_vec(),
        };
        RecordBuilder {
            xid: record.xid,
            rmid: record.rmid,
            info: record.info,
            origin_id: record.origin_id,
            top_xid: record.top_xid,
            blocks: record.blocks.iter().map(block_of).collect(),
            main_data: record.main_data().to_vec(),
        }
    }

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

/// Sets the CRC of the whole record right, from the definition and not with the routine under test.
pub fn put_crc(record: &mut [u8]) {
    let crc = crc32c(record[24..].iter().chain(&record[..20]));
    record[20..24].copy_from_slice(&crc.to_le_bytes());
}

/// CRC-32C of one byte, by which all others follow.
const CRC_OF_BYTE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// CRC-32C as RFC 3720 defines it (reflected polynomial 0x82F63B78).
fn crc32c<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    !bytes.fold(u32::MAX, |crc, byte| (crc >> 8) ^ CRC_OF_BYTE[usize::from(crc as u8 ^ byte)])
}

#[cfg(test)]
mod tests {
    #[test]
    fn crc_of_the_standard_s_own_example() {
        // RFC 3720, B.4: 32 bytes of zeroes, 32 bytes of ones.
        assert_eq!(super::crc32c([0_u8; 32].iter()), 0x8A91_36AA);
        assert_eq!(super::crc32c([0xFF_u8; 32].iter()), 0x62A8_AB43);
    }
}
