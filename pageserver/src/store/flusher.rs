//! The thread that turns frozen layers into files of RocksDB, one layer at a time, oldest first.
//!
//! - Order: files written and synced, ingested with the watermark in one step, layer dropped, watermark published. A reader between two
//!   of these steps sees the same versions.
//! - The first failure, of a flush or of a compaction, poisons the store and ends the thread. Layers that were not written stay readable.
//! - Waits while level 0 is full: memory fills up, `put` blocks, and the primary sees replication lag.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::Watermark;
use super::db::IngestionError;
use super::file_set::{ExtraImage, FileSet};
use super::inner::{FlushJob, Inner};
use super::layer::LayerData;
use super::long_chains::{ChainFinder, LongChains};
use super::timeline_state::TimelineState;
use super::watermark::watermark_key;
use crate::failpoint::Failpoint;

/// How often ages are looked at, at most.
const AGE_CHECK_INTERVAL_MAX: Duration = Duration::from_secs(5);
/// How often level 0 is looked at while it is full.
const LEVEL0_CHECK_INTERVAL: Duration = Duration::from_millis(10);
/// How often the log is told that compaction is paused.
const PAUSE_WARNING_INTERVAL: Duration = Duration::from_secs(3600);

/// Weights taken over under one hold of their lock: some 50 µs.
const WEIGHTS_PER_LOCK: usize = 1024;

/// Body of the flusher thread.
pub(super) fn run(inner: &Arc<Inner>) {
    let _poison_on_panic = PoisonOnPanic { inner };
    let age_check_interval = (inner.config.flush_interval / 4).min(AGE_CHECK_INTERVAL_MAX);
    let mut next_age_check = Instant::now() + age_check_interval;
    let mut next_pause_warning = Instant::now() + PAUSE_WARNING_INTERVAL;
    loop {
        match inner.next_job(next_age_check) {
            Ok(Some(job)) => match flush(inner, &job) {
                Ok(Outcome::Done) => inner.finish_job(&job),
                Ok(Outcome::Stopped) => return inner.leave_job(),
                Err(error) => {
                    return inner
                        .poison(format!("flush of timeline number {} failed: {error}", job.timeline.timeline.0));
                }
            },
            Ok(None) => {}
            Err(_) => return,
        }
        if Instant::now() >= next_age_check {
            if inner.db.background_errors() > 0 {
                // Told now, and not when somebody puts something next.
                return inner.poison(inner.db.background_error());
            }
            if Instant::now() >= next_pause_warning {
                inner.db.warn_if_paused();
                next_pause_warning = Instant::now() + PAUSE_WARNING_INTERVAL;
            }
            freeze_old_layers(inner);
            next_age_check = Instant::now() + age_check_interval;
        }
    }
}

enum Outcome {
    Done,
    /// The store closes; what was written is dropped.
    Stopped,
}

fn flush(inner: &Inner, job: &FlushJob) -> Result<Outcome, IngestionError> {
    let started_at = Instant::now();
    let state = &job.timeline;
    let frozen = &job.frozen;
    carry_weights(inner, state, &frozen.layer.read());
    let extra = extra_images(inner, job);
    let mut set = FileSet::new(&inner.db, state.timeline, !frozen.publish);
    if frozen.publish {
        set.chains = ChainFinder::new(inner.config.long_chain_deltas_min);
    }
    let stop = || inner.is_stopping() || state.is_deleted();
    let is_whole = set.write(&frozen.layer.read(), &extra, &stop)?;
    if !is_whole || !wait_for_level0(inner, state) {
        return Ok(if state.is_deleted() { Outcome::Done } else { Outcome::Stopped });
    }
    let (versions, bytes, chains) = (set.versions, set.bytes, set.chains.take());
    let has_pages = extra.len() > usize::from(frozen.publish);
    pass(has_pages, Failpoint::StoreBeforeIngest, Failpoint::StorePagesBeforeIngest);
    set.ingest()?;
    pass(has_pages, Failpoint::StoreIngested, Failpoint::StorePagesIngested);
    // Before it shows: whoever knows the watermark finds its flush counted.
    let counters = &inner.counters;
    counters.flushes.add(1);
    counters.flushed_versions.add(versions);
    counters.flushed_bytes.add(bytes);
    counters.cached_back_pages.add(extra.len().saturating_sub(usize::from(frozen.publish)) as u64);
    counters.flush_nanos.add(started_at.elapsed().as_nanos() as u64);
    // Dropped first: whoever knows the watermark finds no layer any more that it covers. See `gather`.
    state.layers.drop_frozen(frozen);
    if frozen.publish {
        *state.watermark.lock() = Some(Watermark { last_record_lsn: frozen.last_record_lsn });
    }
    Failpoint::StoreFlushed.pass();
    if !chains.is_empty() {
        inner.tell_long_chains(LongChains { timeline: state.timeline, chains });
    }
    Ok(Outcome::Done)
}

/// Before the watermark is written, which tells of them, and before the layer goes: whoever looks for a weight finds it in one of the two. A few at a time: `put` may
/// wait for the lock.
fn carry_weights(inner: &Inner, state: &TimelineState, flushed: &LayerData) {
    if inner.weight_max() == 0 {
        return;
    }
    let keys_max = inner.carried_keys_max();
    let mut weights = flushed.weights().peekable();
    while weights.peek().is_some() {
        state.carried.lock().take_over(weights.by_ref().take(WEIGHTS_PER_LOCK), keys_max);
    }
}

/// With pages that are cached back in the set, both.
fn pass(has_pages: bool, always: Failpoint, with_pages: Failpoint) {
    always.pass();
    if has_pages {
        with_pages.pass();
    }
}

/// The watermark and the materialised pages at or below it. Before a watermark may be written: nothing.
fn extra_images(inner: &Inner, job: &FlushJob) -> Vec<ExtraImage> {
    if !job.frozen.publish {
        return Vec::new();
    }
    let last_record_lsn = job.frozen.last_record_lsn;
    let carried = job.timeline.carried.lock();
    let watermark =
        Watermark { last_record_lsn }.encode((inner.weight_max() > 0).then_some(&*carried), &job.timeline.lost);
    drop(carried);
    let (pages, freed) = job.timeline.cache_back.lock().take(last_record_lsn);
    inner.memory.cache_back.fetch_sub(freed, Ordering::Relaxed);
    let mut extra = pages;
    // The lowest key there is; sorted all the same, since a file out of order would poison the store.
    extra.push((watermark_key(), last_record_lsn, watermark));
    extra.sort_unstable_by_key(|(key, lsn, _)| (*key, *lsn));
    extra
}

/// Waits until level 0 has room for files of the timeline. False: the store closes, or the timeline is deleted.
fn wait_for_level0(inner: &Inner, state: &TimelineState) -> bool {
    wait_for_level0_unless(inner, &|| {
        if inner.is_closing() && inner.db.is_stuck() {
            // What is in memory comes again from WAL.
            inner.request_stop();
        }
        inner.is_stopping() || state.is_deleted()
    })
}

/// Waits until level 0 has room. False: `gives_up`, which is asked again and again, said so. True also when the store takes no more writes: what follows says why.
pub(super) fn wait_for_level0_unless(inner: &Inner, gives_up: &dyn Fn() -> bool) -> bool {
    while inner.db.is_level0_full() {
        if inner.db.background_errors() > 0 || inner.poisoned().is_some() {
            return true;
        }
        if gives_up() {
            return false;
        }
        thread::sleep(LEVEL0_CHECK_INTERVAL);
    }
    true
}

fn freeze_old_layers(inner: &Inner) {
    let states: Vec<Arc<TimelineState>> = inner.timelines.lock().values().map(Arc::clone).collect();
    for state in states {
        // A timeline whose writer is busy is looked at next time.
        let Some(mut writer) = state.writer.try_lock() else { continue };
        let has_waited =
            |since: Option<Instant>| since.is_some_and(|since| since.elapsed() >= inner.config.flush_interval);
        // Pages are cached back in the end, even where no more WAL comes.
        let has_pages = || writer.publishing && has_waited(state.cache_back.lock().waiting_since());
        if (has_waited(writer.changed_at) || has_pages()) && !state.is_deleted() {
            inner.freeze(&state, &mut writer);
        }
    }
}

struct PoisonOnPanic<'a> {
    inner: &'a Inner,
}

impl Drop for PoisonOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.inner.poison("the flusher panicked".to_owned());
        }
    }
}

/// Starts the flusher.
pub(super) fn start(inner: &Arc<Inner>) -> io::Result<JoinHandle<()>> {
    let inner = Arc::clone(inner);
    thread::Builder::new().name("store-flusher".to_owned()).spawn(move || run(&inner))
}
