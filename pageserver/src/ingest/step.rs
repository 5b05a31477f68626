//! One record on its way: what every part of ingest needs, and how versions of it are put.

use std::ops::ControlFlow;

use bytes::Bytes;
use keyenc::{Key, Kind, Object};
use postgres_ffi::Lsn;
use postgres_ffi::page::BLCKSZ;
use postgres_ffi::records::RecordError;
use postgres_ffi::wal::DecodedRecord;

use super::{IngestError, TimelineReader};
use crate::store::Batch;

/// A record that puts more than this hands over what it has: 65,536 versions of a few bytes are some 4 MB.
const PART_VERSIONS_MAX: usize = 65_536;
/// The same for values: 16 MiB, two thousand pages.
const PART_VALUE_BYTES_MAX: usize = 16 << 20;

/// The record, where its versions go, and where what was before it can be read.
pub(super) struct Step<'a> {
    pub record: &'a DecodedRecord,
    pub batch: &'a mut Batch,
    pub state: &'a dyn TimelineReader,
    pub last_record_lsn: Lsn,
}

impl Step<'_> {
    /// The LSN of this record's versions.
    #[inline]
    pub fn lsn(&self) -> Lsn {
        self.record.end_lsn
    }

    /// Puts a version.
    pub fn put(&mut self, object: Object, kind: Kind, value: &[u8]) {
        self.batch.put(Key::from(object), self.record.end_lsn, kind, value);
    }

    /// Puts a page as it stands: a page of zeroes takes no value.
    pub fn put_page(&mut self, key: Key, page: &[u8]) {
        let is_zero = page.iter().all(|byte| *byte == 0);
        self.batch.put(key, self.record.end_lsn, Kind::Image, if is_zero { &[] } else { page });
    }

    /// Makes everything put so far readable. Reads see what is at or below `last_record_lsn` of it.
    pub fn commit(&mut self) -> Result<(), IngestError> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.state.commit(self.batch, self.last_record_lsn).map_err(|source| IngestError::State { source })?;
        assert!(self.batch.is_empty(), "a committed batch comes back empty");
        Ok(())
    }

    /// Commits when this record alone would let the batch grow without bound.
    #[inline]
    pub fn commit_if_full(&mut self) -> Result<(), IngestError> {
        if self.batch.len() < PART_VERSIONS_MAX && self.batch.value_bytes() < PART_VALUE_BYTES_MAX {
            return Ok(());
        }
        self.commit()
    }

    /// Value of an object as of the record before. Requires: what the batch changed of it is known or committed.
    pub fn object(&self, object: Object) -> Result<Option<Bytes>, IngestError> {
        let found = self.state.object(&Key::from(object), self.last_record_lsn);
        found.map_err(|source| IngestError::State { source })
    }

    /// Big-endian u32 value of an object as of the record before: sizes. Requires: as [`Self::object`].
    pub fn number(&self, object: Object) -> Result<Option<u32>, IngestError> {
        self.object(object)?.map(|value| number_of(Key::from(object), &value)).transpose()
    }

    /// All objects in `first..=last` as of the record before, the batch included.
    pub fn scan(&mut self, first: &Key, last: &Key) -> Result<Vec<(Object, Bytes)>, IngestError> {
        self.commit()?;
        let mut found = Vec::new();
        let mut bad_key = None;
        let mut each = |key: Key, value: Bytes| match key.object() {
            Ok(object) => {
                found.push((object, value));
                ControlFlow::Continue(())
            }
            Err(_) => {
                bad_key = Some(IngestError::StoredValue { key, length: value.len() });
                ControlFlow::Break(())
            }
        };
        let done = self.state.scan(first, last, self.last_record_lsn, &mut each);
        done.map_err(|source| IngestError::State { source })?;
        bad_key.map_or(Ok(found), Err)
    }

    /// Pages as of the record before. Requires: the batch is committed.
    pub fn pages(&self, keys: &[Key]) -> Result<Vec<Bytes>, IngestError> {
        let pages = self.state.pages(keys, self.last_record_lsn).map_err(|source| IngestError::State { source })?;
        assert!(pages.len() == keys.len(), "one page per key");
        for (key, page) in keys.iter().zip(&pages) {
            if page.len() != BLCKSZ {
                return Err(IngestError::StoredValue { key: *key, length: page.len() });
            }
        }
        Ok(pages)
    }

    /// This step if the record has no block references; an error if it has, because nobody would take care of them.
    pub fn without_blocks(&mut self) -> Result<&mut Self, IngestError> {
        if self.record.blocks.is_empty() {
            return Ok(self);
        }
        Err(IngestError::UnexpectedBlocks {
            record_start_lsn: self.record.start_lsn,
            rmid: self.record.rmid,
            info: self.record.info,
        })
    }

    /// The error for an operation that nobody knows.
    pub fn unknown_operation(&self) -> IngestError {
        IngestError::UnknownOperation {
            record_start_lsn: self.record.start_lsn,
            rmid: self.record.rmid,
            info: self.record.info,
        }
    }

    /// The error for a body that cannot be read.
    pub fn bad_body(&self, source: RecordError) -> IngestError {
        IngestError::body(self.record, source)
    }
}

/// A stored big-endian u32.
pub(super) fn number_of(key: Key, value: &[u8]) -> Result<u32, IngestError> {
    let bytes = value.try_into().map_err(|_| IngestError::StoredValue { key, length: value.len() })?;
    Ok(u32::from_be_bytes(bytes))
}
