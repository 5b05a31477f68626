//! One timeline's versions: put, flush, gather, scan.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use keyenc::{Key, Kind, TimelineNo};
use postgres_ffi::Lsn;

use super::cache_back::page_bytes;
use super::chain_weight::HeavyFinder;
use super::gather::{self, Gathered};
use super::layer_map::LayerMap;
use super::scan;
use super::search;
use super::timeline_state::{Impatience, TimelineState};
use super::version_bound::VersionBound;
use super::{Batch, HeavyChain, LostStretches, Store, StoreError, Watermark};

/// A timeline's versions. All handles of one timeline share its layers; dropping the last one flushes nothing.
pub struct TimelineStore {
    store: Arc<Store>,
    state: Arc<TimelineState>,
}

impl TimelineStore {
    pub(super) fn new(store: Arc<Store>, state: Arc<TimelineState>) -> Self {
        TimelineStore { store, state }
    }

    pub(super) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    pub(super) fn state(&self) -> &Arc<TimelineState> {
        &self.state
    }

    /// Why nothing can be put any more: a failed write of the store, or something of this timeline that could not be read. `None`: all is well.
    pub fn trouble(&self) -> Option<String> {
        let poisoned = self.store.inner().check_writable();
        poisoned.and_then(|()| self.state.check_not_damaged()).err().map(|error| error.to_string())
    }

    fn note<T>(&self, outcome: Result<T, StoreError>) -> Result<T, StoreError> {
        self.state.note(outcome, |error| Some(error))
    }

    /// Number of the timeline.
    pub fn timeline_no(&self) -> TimelineNo {
        self.state.timeline
    }

    /// How far the data in RocksDB goes. None: nothing was ever flushed with a watermark.
    pub fn watermark(&self) -> Option<Watermark> {
        *self.state.watermark.lock()
    }

    /// How far the data goes, memory included: the highest `last_record_lsn` that was put. `Lsn::ZERO`: nothing yet.
    pub fn last_record_lsn(&self) -> Lsn {
        self.state.writer.lock().last_record_lsn
    }

    /// Makes the batch readable. Blocks while the flusher is behind: memory is bounded by `StoreConfig::layer_bytes` and one batch.
    /// `last_record_lsn` = end of the last record in or before the batch. An empty batch moves only that.
    /// Of two versions with the same key, LSN and kind the one put last counts, so a batch may be put again after a restart.
    ///
    /// Requires:
    /// - Our WAL up to `last_record_lsn` is fsynced: a flush may make the batch durable at any time, and a store that is ahead of its
    ///   WAL cannot be repaired by reading WAL again.
    /// - No version is below the `last_record_lsn` of the put before (`OutOfOrder`); and all versions of one (key, LSN) are in one batch.
    /// - Versions above `last_record_lsn` belong to the one record that is being ingested: the watermark stays below it, so it comes
    ///   again after a crash.
    ///
    /// Errors: `Poisoned`, `Damaged`, `TimelineDeleted`, `OutOfOrder`, `ShuttingDown`; then nothing was put.
    pub fn put(&self, batch: &Batch, last_record_lsn: Lsn) -> Result<(), StoreError> {
        self.put_weighed(batch, last_record_lsn).map(drop)
    }

    /// As [`TimelineStore::put`]; what it gives are chains that are too heavy now (`StoreConfig::chain_weight_max`), some more than once, each again
    /// when it has become an eighth heavier. See [`TimelineStore::settle`].
    pub fn put_weighed(&self, batch: &Batch, last_record_lsn: Lsn) -> Result<Vec<HeavyChain>, StoreError> {
        let inner = self.store.inner();
        inner.wait_for_room(&self.state)?;
        let mut heavy = HeavyFinder::new(inner.config.chain_weight_max);
        {
            let mut writer = self.state.writer.lock();
            self.state.check_not_deleted()?;
            self.state.check_not_damaged()?;
            check_order(batch, writer.last_record_lsn)?;
            let layers = self.state.layers.current();
            let before = layers.open.allocated_bytes();
            let weight_below =
                |key: &Key| layers.frozen_weight(key).unwrap_or_else(|| self.state.carried.lock().weight(key));
            layers.open.put(batch, &weight_below, &mut heavy);
            inner.memory.open_changed(before, layers.open.allocated_bytes());
            if last_record_lsn > writer.last_record_lsn || !batch.is_empty() {
                writer.last_record_lsn = writer.last_record_lsn.max(last_record_lsn);
                writer.changed_at.get_or_insert_with(Instant::now);
            }
        }
        inner.counters.put_versions.add(batch.len() as u64);
        inner.counters.put_value_bytes.add(batch.value_bytes() as u64);
        inner.freeze_if_full();
        Ok(heavy.found)
    }

    /// While the value lives, a `put` or `flush` that would wait until somebody makes room ends with `NoRoom`. A put has put nothing then; what was to be flushed is as soon as there is room.
    pub fn impatient(&self) -> Impatience {
        Impatience::with(&self.state)
    }

    /// True: a `put` that waits for room and a `flush` that waits end with `ShuttingDown`, as somebody waits for whoever puts and will not need it. False: they wait again.
    pub fn set_waited_for(&self, waited_for: bool) {
        self.state.set_waited_for(waited_for);
        self.store.inner().wake_waiting();
    }

    /// Flushes all that was put and returns when it is durable.
    ///
    /// A timeline gets its first watermark with the first call that says `publish`; before that, flushes (by size and age too)
    /// write none, so a crash during an import leaves a timeline that says it has nothing. After it every flush writes one.
    ///
    /// With nothing new it writes nothing, and waits for what is being written.
    ///
    /// Errors: `Poisoned` (what was put may or may not be durable: reopen), `TimelineDeleted`, `ShuttingDown`.
    pub fn flush(&self, publish: bool) -> Result<(), StoreError> {
        let inner = self.store.inner();
        inner.check_writable()?;
        let job_no = {
            let mut writer = self.state.writer.lock();
            self.state.check_not_deleted()?;
            writer.publishing |= publish;
            let is_new = writer.changed_at.is_some() || writer.publishing != writer.is_published;
            if is_new { inner.freeze(&self.state, &mut writer) } else { writer.last_job_no }
        };
        inner.wait_for_job(&self.state, job_no)
    }

    /// Adds the versions of `key` at or below `request_lsn`, newest first, to `found` until one ends the gather (image, tombstone or
    /// initialising delta). True: it ended here; false: go on in the ancestor. Versions are strictly below those already in `found`.
    ///
    /// Requires: `request_lsn` is at or below what was put before the call; above it the answer may be incomplete.
    ///
    /// Errors: `Corrupt`, `Read`, `Lost`; `found` is then as before.
    pub fn gather(&self, key: &Key, request_lsn: Lsn, found: &mut Gathered) -> Result<bool, StoreError> {
        self.gather_through(&self.state.layers, key, request_lsn, found)
    }

    /// As [`TimelineStore::gather`], from RocksDB alone: takes no lock that `put` may have to wait for, however many versions there are.
    ///
    /// Requires: `request_lsn` is at or below the watermark; above it the answer may be incomplete.
    pub fn gather_durable(&self, key: &Key, request_lsn: Lsn, found: &mut Gathered) -> Result<bool, StoreError> {
        self.gather_through(&LayerMap::new(Lsn::ZERO), key, request_lsn, found)
    }

    fn gather_through(
        &self,
        layer_map: &LayerMap,
        key: &Key,
        request_lsn: Lsn,
        found: &mut Gathered,
    ) -> Result<bool, StoreError> {
        let (inner, lost) = (self.store.inner(), &self.state.lost);
        let known = found.versions.len();
        let bound = gather::first_bound(request_lsn, found);
        let outcome =
            gather::gather(&inner.db, self.state.timeline, layer_map, key, request_lsn, found, &inner.counters);
        let is_ended = self.note(outcome)?;
        if let Some(bound) = bound.filter(|_| !lost.is_empty()) {
            let end = found.versions[known..].last().filter(|_| is_ended).map(|(lsn, kind, _)| (*lsn, *kind));
            lost.check(key, bound, end).inspect_err(|_| found.versions.truncate(known))?;
        }
        Ok(is_ended)
    }

    /// What was taken out of the timeline because it could not be read; see `pageserver mend`.
    pub fn lost(&self) -> &LostStretches {
        &self.state.lost
    }

    /// True if no version of `key` lies above `after` and at or below `through`, as far as the layers in memory can tell; they can where
    /// all versions above `after` are in them. For caches: takes no look at RocksDB.
    ///
    /// Requires: `through` is at or below what was put before the call.
    pub fn is_unchanged(&self, key: &Key, after: Lsn, through: Lsn) -> bool {
        let layers = self.state.layers.current();
        after >= layers.covered_above
            && layers.newest_first().all(|layer| {
                let data = layer.read();
                data.versions(key, VersionBound::at(through)).next().is_none_or(|version| version.lsn <= after)
            })
    }

    /// Calls `each` with the newest version at or below `request_lsn` (tombstones too) of each key in `first..=last`, in key order,
    /// until it breaks. For sizes, databases, lists; over blocks it looks at every block in memory.
    ///
    /// `each` should not wait: old files stay on disk meanwhile. Errors: `Corrupt`, `Read`, `Lost`.
    pub fn scan_newest(
        &self,
        first: &Key,
        last: &Key,
        request_lsn: Lsn,
        each: &mut dyn FnMut(Key, Lsn, Kind, Bytes) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let layers = self.state.layers.current();
        let db = &self.store.inner().db;
        let mut expected = self.state.lost.check_list(first, last, VersionBound::at(request_lsn))?;
        let mut is_complete = Ok(());
        let mut checked_each = |key: Key, lsn: Lsn, kind: Kind, value: Bytes| {
            is_complete = expected.see(&(key, lsn, kind));
            if is_complete.is_ok() { each(key, lsn, kind, value) } else { ControlFlow::Break(()) }
        };
        let scanned =
            scan::scan_newest(db, self.state.timeline, &layers, (first, last), request_lsn, &mut checked_each);
        let is_whole = self.note(scanned)?.is_continue();
        is_complete?;
        if is_whole { expected.end() } else { Ok(()) }
    }

    /// Versions of `key` with an LSN in `lsn_range` (end exclusive), newest first: all of them, or where they are many the newest of all. The others are asked for with the LSN of the last
    /// one as the end. Errors: `Corrupt`, `Read`.
    pub fn history(&self, key: &Key, lsn_range: Range<Lsn>) -> Result<Vec<(Lsn, Kind, Bytes)>, StoreError> {
        let layers = self.state.layers.current();
        self.note(scan::history(&self.store.inner().db, self.state.timeline, &layers, key, lsn_range))
    }

    /// The oldest version of `key` at or below `through` of which `holds` (given LSN and value) is true; `None` if there is none here.
    ///
    /// Requires: of two versions, what holds of the older one holds of the newer one; no version is a delta or a tombstone; `through` is at
    /// or below what was put before the call. Looks at versions in memory one by one: for objects with few versions a second.
    ///
    /// Errors: `Corrupt`, `Read`, `Lost`, and what `holds` gives.
    pub fn first_version_where<E: From<StoreError>>(
        &self,
        key: &Key,
        through: Lsn,
        holds: impl FnMut(Lsn, &[u8]) -> Result<bool, E>,
    ) -> Result<Option<(Lsn, Bytes)>, E> {
        let layers = self.state.layers.current();
        let found =
            search::first_version_where(&self.store.inner().db, self.state.timeline, &layers, key, through, holds)?;
        if !self.state.lost.is_empty() {
            // An older one that holds may be lost, but not below one that does not hold; and what was found may be there because its removal is lost.
            let (at, below) = match &found {
                Some((lsn, _)) => (*lsn, lsn.as_u64().checked_sub(1).map(Lsn::new)),
                None => (through, Some(through)),
            };
            let mut older = Gathered::default();
            below.map_or(Ok(true), |below| self.gather(key, below, &mut older))?;
            let end = older.versions.first().map(|(lsn, kind, _)| (*lsn, *kind));
            self.state.lost.check(key, VersionBound::at(at), end)?;
        }
        Ok(found)
    }

    /// Queues the page that redo made of `key` as of its version at `lsn` for the next flush; drops it when the queue is full.
    ///
    /// Requires: `lsn` is that of a version of this very timeline, not of an ancestor.
    pub fn cache_back(&self, key: Key, lsn: Lsn, page: Bytes) {
        let inner = self.store.inner();
        let queued = &inner.memory.cache_back;
        let is_full = queued.load(Ordering::Relaxed) + page_bytes(&page) > inner.config.cache_back_bytes;
        if is_full || self.state.is_deleted() || inner.poisoned().is_some() {
            return inner.counters.cache_back_dropped_pages.add(1);
        }
        let mut queue = self.state.cache_back.lock();
        if self.state.is_deleted() {
            return inner.counters.cache_back_dropped_pages.add(1); // Marked first, and then emptied under this lock.
        }
        queued.fetch_add(queue.push(key, lsn, page), Ordering::Relaxed);
    }
}

fn check_order(batch: &Batch, last_record_lsn: Lsn) -> Result<(), StoreError> {
    match batch.first() {
        Some(first) if first.lsn < last_record_lsn => {
            Err(StoreError::OutOfOrder { key: first.key, version_lsn: first.lsn, last_record_lsn })
        }
        _ => Ok(()),
    }
}
