//! The store as a whole: open it, get timelines, delete them, ask for statistics.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use crossbeam_channel::Receiver;
use keyenc::TimelineNo;
use postgres_ffi::Lsn;
use rocksdb::ErrorKind;

use super::carried::Carried;
use super::db::{Db, IngestionError};
use super::gather::{self, Gathered};
use super::inner::Inner;
use super::layer_map::LayerMap;
use super::timeline_state::TimelineState;
use super::watermark::{DecodedWatermark, watermark_key};
use super::{
    LongChains, LostStretches, StoreConfig, StoreError, StoreStats, TimelineStore, Watermark, file_set, flusher, mended,
};

/// RocksDB, shared by all timelines, and the thread that flushes. Dropping it ends the thread and flushes nothing.
///
/// On disk: `<dir>/rocksdb`, and `<dir>/pending` for files that are not part of it yet.
pub struct Store {
    inner: Arc<Inner>,
    flusher: Option<JoinHandle<()>>,
}

impl Store {
    /// Opens the store in `dir`, or makes an empty one. One process at a time.
    /// Errors: `Config`, `Locked`, `Corrupt`, `Open`.
    pub fn open(dir: &Path, config: &StoreConfig) -> Result<Arc<Store>, StoreError> {
        config.check()?;
        mended::settle(dir)?;
        let inner = Arc::new(Inner::new(Db::open(dir, config)?, config.clone()));
        let flusher = flusher::start(&inner)
            .map_err(|error| StoreError::Open { dir: dir.to_owned(), cause: error.to_string() })?;
        Ok(Arc::new(Store { inner, flusher: Some(flusher) }))
    }

    /// The timeline's versions. All calls with the same number share one set of layers. Reads the watermark the first time.
    /// Errors: `Corrupt`, `Read`; `TimelineDeleted` while `delete_timeline` is at work.
    pub fn timeline(self: &Arc<Self>, timeline: TimelineNo) -> Result<Arc<TimelineStore>, StoreError> {
        // Held over the read: else a timeline deleted meanwhile could come back with its old watermark.
        let mut timelines = self.inner.timelines.lock();
        let state = match timelines.get(&timeline) {
            Some(state) => Arc::clone(state),
            None => {
                let state = Arc::new(read_watermark(&self.inner, timeline)?);
                timelines.insert(timeline, Arc::clone(&state));
                state
            }
        };
        drop(timelines);
        state.check_not_deleted()?;
        Ok(Arc::new(TimelineStore::new(Arc::clone(self), state)))
    }

    /// A handle to a timeline that [`Store::timeline`] cannot open, because of `cause`: it takes no versions and gives none, and can be deleted.
    pub fn timeline_unread(self: &Arc<Self>, timeline: TimelineNo, cause: &str) -> Arc<TimelineStore> {
        let mut timelines = self.inner.timelines.lock();
        let new = || Arc::new(TimelineState::unread(timeline, cause));
        let state = Arc::clone(timelines.entry(timeline).or_insert_with(new));
        Arc::new(TimelineStore::new(Arc::clone(self), state))
    }

    /// True if there may be versions of the timeline on disk, whether or not it has a watermark.
    pub fn has_files(&self, timeline: TimelineNo) -> bool {
        !self.inner.db.timeline_files(timeline).is_empty()
    }

    /// The highest number of which there are versions, or a removal of all, on disk; 0: of none.
    pub fn highest_number(&self) -> u32 {
        let number = |key: &[u8]| key.first_chunk().map(|prefix| u32::from_be_bytes(*prefix));
        self.inner.db.files().iter().filter_map(|file| number(&file.end_key)).max().unwrap_or(0)
    }

    /// Deletes all versions of a timeline, durably. The files that hold nothing else are gone at once, unread: damaged ones too; of others compaction gives the
    /// space back later. After a crash meanwhile call it again, even if there is no watermark any more. Handles to it fail with `TimelineDeleted`
    /// from then on; the number may be used again, as for an import that starts over.
    /// Errors: `Corrupt`, `Read`: RocksDB looks into a damaged file first, and what stands beside it stays, under a number that nobody may have again; `Poisoned`;
    /// `TimelineDeleted` when another call is at it.
    ///
    /// Requires: no other timeline reads through this one.
    pub fn delete_timeline(self: &Arc<Self>, timeline: TimelineNo) -> Result<(), StoreError> {
        let inner = &self.inner;
        inner.check_writable()?;
        let state = self.mark_deleted(timeline)?;
        inner.drop_jobs_of(&state)?;
        let result = file_set::delete_timeline(&inner.db, timeline);
        // Nobody puts or freezes in a deleted timeline: the open layer is the one that is counted.
        let open_bytes = state.layers.current().open.allocated_bytes();
        state.layers.clear();
        *state.carried.lock() = Carried::default();
        inner.memory.open_changed(open_bytes, 0);
        let (_, queued_bytes) = std::mem::take(&mut *state.cache_back.lock()).take(Lsn::MAX);
        inner.memory.cache_back.fetch_sub(queued_bytes, Ordering::Relaxed);
        inner.timelines.lock().remove(&timeline);
        result.map_err(|error| {
            if let Some(unreadable) = refused_for(&inner.db, timeline, &error) {
                return unreadable;
            }
            inner.poison(error.to_string());
            StoreError::Poisoned { cause: error.to_string() }
        })
    }

    /// Nothing is read of one that nobody has opened: it may be what is damaged.
    fn mark_deleted(&self, timeline: TimelineNo) -> Result<Arc<TimelineState>, StoreError> {
        let mut timelines = self.inner.timelines.lock();
        if let Some(state) = timelines.get(&timeline).map(Arc::clone) {
            drop(timelines);
            state.mark_deleted()?;
            return Ok(state);
        }
        let state = Arc::new(TimelineState::new(timeline, None, Carried::default(), LostStretches::default()));
        state.mark_deleted()?;
        timelines.insert(timeline, Arc::clone(&state));
        Ok(state)
    }

    /// What flushes find of chains with at least `StoreConfig::long_chain_deltas_min` deltas; each find goes to one taker. The flusher
    /// waits for no taker. The channel ends with the store.
    pub fn long_chains(&self) -> Receiver<LongChains> {
        self.inner.long_chains()
    }

    /// A snapshot of the counters.
    pub fn stats(&self) -> StoreStats {
        let inner = &self.inner;
        let mut stats = StoreStats {
            open_layer_bytes: inner.memory.open.load(Ordering::Relaxed) as u64,
            frozen_layer_bytes: inner.memory.frozen.load(Ordering::Relaxed) as u64,
            cache_back_bytes: inner.memory.cache_back.load(Ordering::Relaxed) as u64,
            poisoned: inner.poisoned().map(str::to_owned),
            compaction_paused: self.compaction_paused(),
            ..StoreStats::default()
        };
        inner.counters.add_to(&mut stats);
        inner.db.add_stats(&mut stats);
        stats
    }

    /// Bytes of all SST files, obsolete ones that a reader still holds included.
    pub fn disk_bytes(&self) -> u64 {
        self.inner.db.sst_bytes()
    }

    /// The server ends: where compaction is paused and level 0 is full, nobody waits for room any more, but gets `ShuttingDown`. What is in memory then is not written.
    pub fn begin_closing(&self) {
        self.inner.begin_closing();
    }

    /// Why compaction is paused; `None`: it is not.
    pub fn compaction_paused(&self) -> Option<String> {
        self.inner.db.pause().get().map(|pause| pause.cause)
    }

    /// The SST file that paused compaction, as far as it is known.
    pub fn paused_file(&self) -> Option<String> {
        self.inner.db.pause().get()?.file
    }

    /// The number under which everything in the SST file `name` stands; `None`: there may be versions of several in it, or it is not part of the store.
    pub fn only_number_in(&self, name: &str) -> Option<TimelineNo> {
        self.inner.db.file(name)?.only_number()
    }

    /// Lets compaction go on, now and after the next open, if the file that paused it is gone or can be read now.
    /// Errors: `Corrupt`, `Read`: it still cannot; `Poisoned`: reopen first; `Write`: the mark cannot be taken away.
    pub fn resume_compaction(&self) -> Result<(), StoreError> {
        let (inner, db) = (&self.inner, &self.inner.db);
        inner.check_writable()?;
        let Some(pause) = db.pause().get() else { return Ok(()) };
        if let Some(file) = pause.file.as_ref().and_then(|name| db.file(name)) {
            db.check_file(file)?;
        }
        // The mark first: should compaction stop again at once, the one that is set then stays.
        let cannot = |cause: String| StoreError::Write { cause };
        db.pause().clear().map_err(|error| cannot(error.to_string()))?;
        db.enable_auto_compactions().map_err(|error| {
            // Else flushes would wait for a compaction that does not come.
            let _ = db.pause().set(pause);
            cannot(error.to_string())
        })
    }

    /// Merges all levels and returns when done, at once while compaction is paused: for benchmarks and tests that want a store at rest.
    pub fn compact_all(&self) {
        self.inner.db.compact_all();
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.inner
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.inner.request_stop();
        if let Some(flusher) = self.flusher.take() {
            let _ = flusher.join(); // A panic there has poisoned the store and was printed.
        }
    }
}

/// What could not be read of the timeline, if its deletion failed for that and nothing was written. RocksDB looks whether it has something that the removal of all
/// lies above; and once a compaction has failed it says the same of everything.
fn refused_for(db: &Db, timeline: TimelineNo, error: &IngestionError) -> Option<StoreError> {
    let IngestionError::RocksDb(error) = error else { return None };
    let may_be_of_a_read = matches!(error.kind(), ErrorKind::Corruption | ErrorKind::IOError);
    if !may_be_of_a_read || db.background_errors() > 0 || db.manifest_is_in_doubt() {
        return None;
    }
    db.timeline_files(timeline).into_iter().find_map(|file| db.check_file(file).err())
}

/// The timeline as its watermark tells: without one it has nothing, so there are no chains, and nothing is lost.
fn read_watermark(inner: &Inner, timeline: TimelineNo) -> Result<TimelineState, StoreError> {
    let mut found = Gathered::default();
    let no_layers = LayerMap::new(Lsn::ZERO);
    gather::gather(&inner.db, timeline, &no_layers, &watermark_key(), Lsn::MAX, &mut found, &Default::default())?;
    let Some((version_lsn, _, value)) = found.versions.first() else {
        return Ok(TimelineState::new(timeline, None, Carried::new(0), LostStretches::default()));
    };
    let DecodedWatermark { watermark, carried, lost } = Watermark::decode_whole(value)?;
    if watermark.last_record_lsn != *version_lsn {
        return Err(StoreError::Corrupt {
            detail: format!(
                "watermark and its key differ. last_record_lsn=`{}`, version_lsn=`{version_lsn}`",
                watermark.last_record_lsn
            ),
        });
    }
    let weight_max = inner.weight_max();
    // One that knew of no bound, or had none: chains may weigh anything.
    let carried = carried.map_or_else(|| Carried::new(weight_max), |carried| carried.with_floor_at_most(weight_max));
    Ok(TimelineState::new(timeline, Some(watermark), carried, lost))
}
