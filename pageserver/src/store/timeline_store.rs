//! One timeline's versions: put, flush, gather, scan.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use bytes::Bytes;
use keyenc::{Key, Kind, TimelineNo};
use postgres_ffi::Lsn;

use super::{Batch, Store, StoreError, Watermark};

/// What a page at an LSN is made of, as found so far.
#[derive(Default, Debug)]
pub struct Gathered {
    /// Newest first; the last one ends the gather when `gather` said true.
    pub versions: Vec<(Lsn, Kind, Bytes)>,
}

/// A timeline's versions. Cheap to clone the `Arc` of; all handles of one timeline share its layers.
pub struct TimelineStore {
    store: Arc<Store>,
    timeline: TimelineNo,
}

impl TimelineStore {
    /// How far the data in RocksDB goes. None: nothing was ever flushed with a watermark.
    pub fn watermark(&self) -> Option<Watermark> {
        None
    }

    /// Makes the batch readable. Blocks while the flusher is behind. `last_record_lsn` = end of the last record in or before the batch;
    /// an empty batch only moves it.
    ///
    /// Requires: our WAL up to `last_record_lsn` is fsynced. One caller at a time, in LSN order.
    pub fn put(&self, batch: &Batch, last_record_lsn: Lsn) -> Result<(), StoreError> {
        let _ = (batch, last_record_lsn, &self.store, self.timeline);
        Err(StoreError::ShuttingDown)
    }

    /// Flushes all that was put and returns when it is durable. No watermark is written before the first call with `publish: true`.
    pub fn flush(&self, publish: bool) -> Result<(), StoreError> {
        let _ = publish;
        Err(StoreError::ShuttingDown)
    }

    /// Adds the versions of `key` at or below `request_lsn`, newest first, to `found` until one ends the gather. True: it ended here.
    pub fn gather(&self, key: &Key, request_lsn: Lsn, found: &mut Gathered) -> Result<bool, StoreError> {
        let _ = (key, request_lsn, found);
        Err(StoreError::ShuttingDown)
    }

    /// For each key in `first..=last` its newest version at or below `request_lsn` (tombstones too), in key order.
    pub fn scan_newest(
        &self,
        first: &Key,
        last: &Key,
        request_lsn: Lsn,
        each: &mut dyn FnMut(Key, Lsn, Kind, Bytes) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let _ = (first, last, request_lsn, each);
        Err(StoreError::ShuttingDown)
    }

    /// Every version of `key` with an LSN in `lsn_range`, newest first.
    pub fn history(&self, key: &Key, lsn_range: Range<Lsn>) -> Result<Vec<(Lsn, Kind, Bytes)>, StoreError> {
        let _ = (key, lsn_range);
        Err(StoreError::ShuttingDown)
    }

    /// Queues a materialised page for the next flush; drops it when the queue is full.
    pub fn cache_back(&self, key: Key, lsn: Lsn, page: Bytes) {
        let _ = (key, lsn, page);
    }
}
