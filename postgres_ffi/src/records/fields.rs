//! Little-endian fields of a record body, read one after the other, and the two kinds of lists that bodies hold.

use byteorder::{ByteOrder, LittleEndian};

use crate::RelTag;

/// A record body that is not what its resource manager and operation promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The body ends before a field.
    #[error("record body too short. body=`{body}`, needed=`{needed}`, length=`{length}`")]
    TooShort {
        /// The struct, by PostgreSQL's name.
        body: &'static str,
        /// Bytes up to the end of the field that was wanted.
        needed: usize,
        /// Bytes that are there.
        length: usize,
    },
    /// A count is negative or promises more than the body holds.
    #[error("record body holds fewer items than it says. body=`{body}`, count=`{count}`")]
    Count {
        /// The struct, by PostgreSQL's name.
        body: &'static str,
        /// The count found.
        count: i32,
    },
    /// A field has a value that it can never have.
    #[error("impossible value in a record body. body=`{body}`, field=`{field}`, value=`{value}`")]
    Value {
        /// The struct, by PostgreSQL's name.
        body: &'static str,
        /// The field, by PostgreSQL's name.
        field: &'static str,
        /// What it holds.
        value: i64,
    },
}

/// A cursor over the body of one record.
pub(crate) struct Fields<'a> {
    body: &'static str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    /// A cursor at the first byte. `body` is PostgreSQL's name of the struct, for errors.
    pub fn new(body: &'static str, bytes: &'a [u8]) -> Self {
        Fields { body, bytes, at: 0 }
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], RecordError> {
        let needed = self.at.saturating_add(len);
        let taken = self.bytes.get(self.at..needed).ok_or(RecordError::TooShort {
            body: self.body,
            needed,
            length: self.bytes.len(),
        })?;
        self.at = needed;
        Ok(taken)
    }

    /// Bytes not yet taken.
    pub fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    pub fn u8(&mut self) -> Result<u8, RecordError> {
        Ok(self.take(1)?[0])
    }

    /// A C bool. Any other byte than 0 or 1 is refused: what compilers make of one differs.
    pub fn flag(&mut self) -> Result<bool, RecordError> {
        match self.u8()? {
            byte @ 0..=1 => Ok(byte == 1),
            byte => Err(self.impossible("bool", byte.into())),
        }
    }

    pub fn u16(&mut self) -> Result<u16, RecordError> {
        Ok(LittleEndian::read_u16(self.take(2)?))
    }

    pub fn u32(&mut self) -> Result<u32, RecordError> {
        Ok(LittleEndian::read_u32(self.take(4)?))
    }

    pub fn i32(&mut self) -> Result<i32, RecordError> {
        Ok(LittleEndian::read_i32(self.take(4)?))
    }

    pub fn u64(&mut self) -> Result<u64, RecordError> {
        Ok(LittleEndian::read_u64(self.take(8)?))
    }

    pub fn i64(&mut self) -> Result<i64, RecordError> {
        Ok(LittleEndian::read_i64(self.take(8)?))
    }

    /// RelFileNode (up to 15) or RelFileLocator: three OIDs.
    pub fn rel(&mut self) -> Result<RelTag, RecordError> {
        Ok(read_rel(self.take(REL_LEN)?))
    }

    /// A count (int32) as a length. What it counts is checked by the `take` that follows.
    pub fn count(&mut self) -> Result<usize, RecordError> {
        let count = self.i32()?;
        usize::try_from(count).map_err(|_| RecordError::Count { body: self.body, count })
    }

    /// The next `count` items of `item_len` bytes.
    pub fn items(&mut self, count: usize, item_len: usize) -> Result<&'a [u8], RecordError> {
        let fits = count.checked_mul(item_len).filter(|len| *len <= self.rest().len());
        let len = fits.ok_or(RecordError::Count { body: self.body, count: count.min(i32::MAX as usize) as i32 })?;
        self.take(len)
    }

    /// The next `count` offset numbers.
    pub fn offset_nos(&mut self, count: usize) -> Result<OffsetNos<'a>, RecordError> {
        Ok(OffsetNos(self.items(count, 2)?))
    }

    /// Skips to the next multiple of `alignment` from the start of the body (or to its end).
    pub fn align(&mut self, alignment: usize) {
        self.at = self.at.next_multiple_of(alignment);
    }

    /// The error for a field that holds `value`.
    pub fn impossible(&self, field: &'static str, value: i64) -> RecordError {
        RecordError::Value { body: self.body, field, value }
    }
}

/// Length of RelFileNode / RelFileLocator.
pub(super) const REL_LEN: usize = 12;

fn read_rel(bytes: &[u8]) -> RelTag {
    RelTag {
        spc_oid: LittleEndian::read_u32(&bytes[0..4]),
        db_oid: LittleEndian::read_u32(&bytes[4..8]),
        rel_number: LittleEndian::read_u32(&bytes[8..12]),
    }
}

/// Offset numbers as they stand in a record.
#[derive(Clone, Copy)]
pub(crate) struct OffsetNos<'a>(&'a [u8]);

impl<'a> OffsetNos<'a> {
    /// One after the other, in the record's order.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = u16> + ExactSizeIterator + Clone + 'a {
        self.0.chunks_exact(2).map(LittleEndian::read_u16)
    }
}

/// Ids of 32 bits as they stand in a record: transactions or objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ids<'a>(pub(crate) &'a [u8]);

impl<'a> Ids<'a> {
    /// How many.
    pub fn len(self) -> usize {
        self.0.len() / 4
    }

    /// True when there are none.
    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// One after the other, in the record's order.
    pub fn iter(self) -> impl Iterator<Item = u32> + Clone + 'a {
        self.0.chunks_exact(4).map(LittleEndian::read_u32)
    }
}

/// Relations as they stand in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rels<'a>(pub(crate) &'a [u8]);

impl<'a> Rels<'a> {
    /// How many.
    pub fn len(self) -> usize {
        self.0.len() / REL_LEN
    }

    /// True when there are none.
    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// One after the other, in the record's order.
    pub fn iter(self) -> impl Iterator<Item = RelTag> + Clone + 'a {
        self.0.chunks_exact(REL_LEN).map(read_rel)
    }
}

/// Builds record bodies for tests, field by field.
#[cfg(test)]
#[derive(Default)]
pub(crate) struct Body(pub Vec<u8>);

#[cfg(test)]
impl Body {
    pub fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    pub fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn rel(self, rel: RelTag) -> Self {
        self.u32(rel.spc_oid).u32(rel.db_oid).u32(rel.rel_number)
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    pub fn align(mut self, alignment: usize) -> Self {
        self.0.resize(self.0.len().next_multiple_of(alignment), 0);
        self
    }
}
