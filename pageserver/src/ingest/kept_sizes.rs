//! Sizes that are kept: blocks and relations of each database in a tablespace, pages and segments of each SLRU, as objects of their own.
//!
//! - A version stands at the end of each record that changed the sum, beside the sizes that it is the sum of: exact at every LSN, and one read.
//! - **Never:** a kept size that is not the sum of the sizes at its LSN (model test, `verify`). One that is not known, or cannot be right, is no
//!   object: then who reads sums up, and so does the next record that changes it. That is also how a store that was made before sizes were kept gets them.
//! - Nothing (no block, no relation) is no object either.
//! - What a record changes is gathered and put behind all else of the record: a key gets one version at an LSN.

use std::collections::HashMap;
use std::ops::ControlFlow;

use foldhash::fast::RandomState;
use keyenc::{Key, Kind, Object};
use postgres_ffi::{BLCKSZ, BlockNumber, ForkNumber, Lsn, RelTag, SlruKind};

use super::step::number_of;
use super::{IngestError, TimelineReader};
use crate::store::Batch;

/// The value of `Object::DatabaseSize` and `Object::SlruSize`: 16 bytes, big-endian.
///
/// ```text
/// | blocks u64 | count u64 |
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeptSize {
    /// Blocks of all forks; pages of all segments.
    pub blocks: u64,
    /// Relations, by their main forks; segments.
    pub count: u64,
}

impl KeptSize {
    /// Nothing.
    pub const ZERO: Self = KeptSize { blocks: 0, count: 0 };

    /// The stored bytes.
    pub fn encode(&self) -> [u8; 16] {
        let mut value = [0; 16];
        value[..8].copy_from_slice(&self.blocks.to_be_bytes());
        value[8..].copy_from_slice(&self.count.to_be_bytes());
        value
    }

    /// What the stored bytes say, `None` if they are not 16.
    pub fn decode(value: &[u8]) -> Option<Self> {
        let (blocks, count) = value.split_first_chunk::<8>()?;
        Some(KeptSize {
            blocks: u64::from_be_bytes(*blocks),
            count: u64::from_be_bytes(<[u8; 8]>::try_from(count).ok()?),
        })
    }

    /// Adds a fork.
    pub fn add_fork(&mut self, fork: ForkNumber, block_count: BlockNumber) {
        self.blocks = self.blocks.saturating_add(block_count.into());
        self.count += u64::from(fork == ForkNumber::Main);
    }

    /// Adds a segment of an SLRU.
    pub fn add_segment(&mut self, page_count: u32) {
        self.blocks = self.blocks.saturating_add(page_count.into());
        self.count += 1;
    }

    /// In bytes.
    pub fn bytes(&self) -> u64 {
        self.blocks.saturating_mul(BLCKSZ as u64)
    }

    /// `None`: there cannot be less than nothing.
    fn changed(&self, change: Change) -> Option<Self> {
        Some(KeptSize {
            blocks: self.blocks.checked_add_signed(change.blocks)?,
            count: self.count.checked_add_signed(change.count)?,
        })
    }
}

/// First and last key of the sizes that a kept size is the sum of. Requires: `object` is a kept size.
pub(crate) fn summed_keys(object: Object) -> (Key, Key) {
    match object {
        Object::DatabaseSize { spc_oid, db_oid } => Key::relation_sizes_of_database(spc_oid, db_oid),
        Object::SlruSize { kind } => Key::segments_of_slru(kind),
        other => unreachable!("not a kept size: {other:?}"),
    }
}

/// What a record changes of a kept size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Change {
    blocks: i64,
    count: i64,
}

/// See the head of the file.
#[derive(Default)]
pub(crate) struct KeptSizes {
    /// As of the last record, the batch included. `None`: it is known that there is no object although there may be something to sum up.
    known: HashMap<Object, Option<KeptSize>, RandomState>,
    /// Of the record that is being ingested: of a few databases at most.
    changes: Vec<(Object, Change)>,
}

impl KeptSizes {
    /// Forgets everything. Requires: the batch is committed, no record is being ingested.
    pub fn clear(&mut self) {
        self.known.clear();
    }

    /// A fork that had `before` blocks has `after`; `None`: it does not exist.
    pub fn fork_changed(
        &mut self,
        rel: RelTag,
        fork: ForkNumber,
        before: Option<BlockNumber>,
        after: Option<BlockNumber>,
    ) {
        let object = Object::DatabaseSize { spc_oid: rel.spc_oid, db_oid: rel.db_oid };
        self.changed(object, before, after, fork == ForkNumber::Main);
    }

    /// The same of a segment of an SLRU, in pages.
    pub fn segment_changed(&mut self, kind: SlruKind, before: Option<u32>, after: Option<u32>) {
        self.changed(Object::SlruSize { kind }, before, after, true);
    }

    fn changed(&mut self, object: Object, before: Option<u32>, after: Option<u32>, counts: bool) {
        let place = self.changes.iter().position(|(changed, _)| *changed == object).unwrap_or_else(|| {
            self.changes.push((object, Change::default()));
            self.changes.len() - 1
        });
        let change = &mut self.changes[place].1;
        change.blocks += i64::from(after.unwrap_or(0)) - i64::from(before.unwrap_or(0));
        if counts {
            change.count += i64::from(after.is_some()) - i64::from(before.is_some());
        }
    }

    /// True when the record changed something.
    #[inline]
    pub fn has_changes(&self) -> bool {
        !self.changes.is_empty()
    }

    /// Puts what the record that ends at `lsn` has changed. What is not known is read as of `last_record_lsn`, the record before; the batch may be
    /// committed for that.
    pub fn put(
        &mut self,
        batch: &mut Batch,
        lsn: Lsn,
        state: &dyn TimelineReader,
        last_record_lsn: Lsn,
    ) -> Result<(), IngestError> {
        let mut changes = std::mem::take(&mut self.changes);
        for (object, change) in changes.drain(..).filter(|(_, change)| *change != Change::default()) {
            let before = match self.known.get(&object).copied() {
                Some(Some(known)) => known,
                Some(None) => sum(object, batch, state, last_record_lsn)?,
                None => match stored(object, state, last_record_lsn)? {
                    Some(stored) => stored,
                    None => sum(object, batch, state, last_record_lsn)?,
                },
            };
            let after = before.changed(change);
            match after.filter(|after| *after != KeptSize::ZERO) {
                Some(size) => batch.put(object.into(), lsn, Kind::Image, &size.encode()),
                None => batch.put(object.into(), lsn, Kind::Tombstone, &[]),
            }
            if after.is_none() {
                tracing::warn!(?object, ?before, ?change, %lsn, "a kept size was wrong; it is summed up anew");
            }
            self.known.insert(object, after);
        }
        self.changes = changes;
        Ok(())
    }
}

fn stored(object: Object, state: &dyn TimelineReader, last_record_lsn: Lsn) -> Result<Option<KeptSize>, IngestError> {
    let key = Key::from(object);
    let found = state.object(&key, last_record_lsn).map_err(|source| IngestError::State { source })?;
    let decode =
        |value: bytes::Bytes| KeptSize::decode(&value).ok_or(IngestError::StoredValue { key, length: value.len() });
    found.map(decode).transpose()
}

/// The sum as of `last_record_lsn`, whatever is kept.
fn sum(
    object: Object,
    batch: &mut Batch,
    state: &dyn TimelineReader,
    last_record_lsn: Lsn,
) -> Result<KeptSize, IngestError> {
    let state_error = |source| IngestError::State { source };
    if !batch.is_empty() {
        state.commit(batch, last_record_lsn).map_err(state_error)?;
    }
    let mut size = KeptSize::ZERO;
    let mut failed = None;
    let mut each = |key: Key, value: bytes::Bytes| match add(&mut size, key, &value) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            failed = Some(error);
            ControlFlow::Break(())
        }
    };
    let (first, last) = summed_keys(object);
    state.scan(&first, &last, last_record_lsn, &mut each).map_err(state_error)?;
    failed.map_or(Ok(size), Err)
}

fn add(size: &mut KeptSize, key: Key, value: &[u8]) -> Result<(), IngestError> {
    let number = number_of(key, value)?;
    match key.object() {
        Ok(Object::RelationSize { fork, .. }) => size.add_fork(fork, number),
        Ok(Object::SlruSegment { .. }) => size.add_segment(number),
        _ => return Err(IngestError::StoredValue { key, length: value.len() }),
    }
    Ok(())
}
