//! Reading fields of a body at their offsets, and the lists that descriptions hold.

use std::fmt::Display;

use byteorder::{ByteOrder, LittleEndian};

use crate::RelTag;
use crate::records::RecordError;
use crate::records::fields::Fields;
use crate::wal::DecodedRecord;

/// A detail, or why there is none.
pub(super) type Text = Result<String, RecordError>;

/// Bytes that are read at offsets which the format fixes.
#[derive(Clone, Copy)]
pub(super) struct Body<'a> {
    name: &'static str,
    pub bytes: &'a [u8],
}

impl<'a> Body<'a> {
    /// The record's main data.
    pub fn of(record: &'a DecodedRecord) -> Self {
        Body { name: "main data", bytes: record.main_data() }
    }

    /// The data of block 0, empty without such a block or data.
    pub fn of_block_0(record: &'a DecodedRecord) -> Self {
        let bytes = record.block(0).map(|block| record.block_data(block)).unwrap_or_default();
        Body { name: "data of block 0", bytes }
    }

    pub fn is_empty(self) -> bool {
        self.bytes.is_empty()
    }

    /// A cursor at offset `at`.
    pub fn from(self, at: usize) -> Result<Fields<'a>, RecordError> {
        let mut fields = Fields::new(self.name, self.bytes);
        fields.take(at)?;
        Ok(fields)
    }

    fn take(self, at: usize, len: usize) -> Result<&'a [u8], RecordError> {
        self.from(at)?.take(len)
    }

    pub fn u8(self, at: usize) -> Result<u8, RecordError> {
        Ok(self.take(at, 1)?[0])
    }

    pub fn u16(self, at: usize) -> Result<u16, RecordError> {
        Ok(LittleEndian::read_u16(self.take(at, 2)?))
    }

    pub fn u32(self, at: usize) -> Result<u32, RecordError> {
        Ok(LittleEndian::read_u32(self.take(at, 4)?))
    }

    pub fn i32(self, at: usize) -> Result<i32, RecordError> {
        Ok(LittleEndian::read_i32(self.take(at, 4)?))
    }

    pub fn u64(self, at: usize) -> Result<u64, RecordError> {
        Ok(LittleEndian::read_u64(self.take(at, 8)?))
    }

    pub fn f64(self, at: usize) -> Result<f64, RecordError> {
        Ok(LittleEndian::read_f64(self.take(at, 8)?))
    }

    pub fn rel(self, at: usize) -> Result<RelTag, RecordError> {
        self.from(at)?.rel()
    }

    pub fn is_set(self, at: usize) -> Result<bool, RecordError> {
        Ok(self.u8(at)? != 0)
    }

    /// A bool as `T` or `F`.
    pub fn t_or_f(self, at: usize) -> Result<char, RecordError> {
        Ok(t_or_f(self.is_set(at)?))
    }

    /// A transaction id of 64 bits as `epoch:xid`.
    pub fn full_xid(self, at: usize) -> Text {
        Ok(full_xid(self.u64(at)?))
    }

    /// A block number stored as two halves, the high one first. PG: src/include/storage/block.h, BlockIdData.
    pub fn block_id(self, at: usize) -> Result<u32, RecordError> {
        Ok(u32::from(self.u16(at)?) << 16 | u32::from(self.u16(at + 2)?))
    }

    /// A string that ends at its first NUL, or with the body.
    pub fn string(self, at: usize) -> Text {
        Ok(string(self.from(at)?.rest()))
    }
}

pub(super) fn t_or_f(is_true: bool) -> char {
    if is_true { 'T' } else { 'F' }
}

pub(super) fn full_xid(xid: u64) -> String {
    format!("{}:{}", xid >> 32, xid & 0xFFFF_FFFF)
}

/// The bytes up to the first NUL.
pub(super) fn string(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

/// `[a, b]`; `[]` for none.
pub(super) fn list(items: impl Iterator<Item = impl Display>) -> String {
    let items: Vec<String> = items.map(|item| item.to_string()).collect();
    format!("[{}]", items.join(", "))
}

/// Offset numbers or other numbers of 16 bits.
pub(super) fn u16s(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.as_chunks().0.iter().map(|number| u16::from_le_bytes(*number))
}

/// ` item` of each.
pub(super) fn spaced(items: impl Iterator<Item = impl Display>) -> String {
    items.map(|item| format!(" {item}")).collect()
}
