//! What the handles of a store and its flusher share: RocksDB, timelines, memory, the queue of frozen layers, the poison.
//!
//! Locks, outermost first: `TimelineState::writer`, then `queue`. None of the two is taken while `timelines` is held.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use keyenc::TimelineNo;
use parking_lot::{Condvar, Mutex};

use super::chain_weight::Weight;
use super::db::Db;
use super::layer_map::FrozenLayer;
use super::long_chains::LongChains;
use super::pause::pause_if_damaged;
use super::stats::Counters;
use super::timeline_state::{TimelineState, WriterState};
use super::{StoreConfig, StoreError};

/// A wake-up lost by mistake costs this much, not for ever.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// Flushes whose long chains nobody has taken yet; those of later ones are not told.
const LONG_CHAINS_QUEUE_LEN: usize = 16;

/// Weights of chains below the layers that all timelines may carry together: some 50 MiB.
const CARRIED_KEYS_MAX: usize = 1 << 20;
/// What each of very many timelines may carry all the same.
const CARRIED_KEYS_MIN: usize = 1 << 10;

/// The shared part of a store.
pub(super) struct Inner {
    pub db: Db,
    pub config: StoreConfig,
    pub counters: Counters,
    pub timelines: Mutex<HashMap<TimelineNo, Arc<TimelineState>>>,
    pub memory: Memory,
    queue: Mutex<Queue>,
    /// There is a job, or the store closes.
    work: Condvar,
    /// A job is done, memory is free, or the store is poisoned or closes.
    progress: Condvar,
    poison: OnceLock<String>,
    closing: AtomicBool,
    long_chains: (Sender<LongChains>, Receiver<LongChains>),
}

/// Bytes of layers and of queued pages, over all timelines.
#[derive(Default)]
pub(super) struct Memory {
    pub open: AtomicUsize,
    pub frozen: AtomicUsize,
    pub cache_back: AtomicUsize,
}

/// Frozen layers in the order in which they are flushed.
#[derive(Default)]
struct Queue {
    jobs: VecDeque<FlushJob>,
    running: Option<TimelineNo>,
    queued: JobNo,
    /// All jobs up to here are done or dropped.
    done: JobNo,
    stopping: bool,
}

/// Jobs are numbered from 1.
pub(super) type JobNo = u64;

/// One frozen layer to write.
#[derive(Clone)]
pub(super) struct FlushJob {
    job_no: JobNo,
    pub timeline: Arc<TimelineState>,
    pub frozen: Arc<FrozenLayer>,
}

impl Inner {
    pub fn new(db: Db, config: StoreConfig) -> Self {
        Inner {
            db,
            config,
            counters: Counters::default(),
            timelines: Mutex::default(),
            memory: Memory::default(),
            queue: Mutex::default(),
            work: Condvar::new(),
            progress: Condvar::new(),
            poison: OnceLock::new(),
            closing: AtomicBool::new(false),
            long_chains: bounded(LONG_CHAINS_QUEUE_LEN),
        }
    }

    /// Takes no more writes from now on. The first cause stays. If it is a damaged file, compaction is paused from the next open on.
    pub fn poison(&self, cause: String) {
        let cause = if self.poisoned().is_none() { pause_if_damaged(&self.db, cause) } else { cause };
        if self.poison.set(cause.clone()).is_ok() {
            tracing::error!(cause, "the store takes no more writes");
        }
        let _queue = self.queue.lock(); // Nobody is between looking at the poison and waiting.
        self.progress.notify_all();
    }

    pub fn poisoned(&self) -> Option<&str> {
        self.poison.get().map(String::as_str)
    }

    pub fn check_writable(&self) -> Result<(), StoreError> {
        match self.poisoned() {
            Some(cause) => Err(StoreError::Poisoned { cause: cause.to_owned() }),
            None => Ok(()),
        }
    }

    /// True if what is put now need not wait, and can become durable.
    pub fn has_room(&self) -> bool {
        self.check_writable().is_ok() && self.memory.layers() < self.config.layer_bytes
    }

    /// Waits until the layers take less than they may. Errors: also when somebody wants the timeline's writer to end, or is impatient.
    pub fn wait_for_room(&self, state: &TimelineState) -> Result<(), StoreError> {
        self.check_writable()?;
        if self.memory.layers() < self.config.layer_bytes {
            return Ok(());
        }
        let blocked_at = Instant::now();
        while self.memory.layers() >= self.config.layer_bytes {
            self.check_writable()?;
            self.check_patience(state)?;
            if self.memory.frozen.load(Ordering::Relaxed) == 0 {
                self.freeze_largest();
            }
            let mut queue = self.queue.lock();
            if queue.stopping || state.is_waited_for() {
                return Err(StoreError::ShuttingDown);
            }
            if self.memory.layers() >= self.config.layer_bytes && self.poisoned().is_none() {
                self.progress.wait_for(&mut queue, WAIT_MAX);
            }
        }
        self.counters.put_blocked_nanos.add(blocked_at.elapsed().as_nanos() as u64);
        self.check_writable()
    }

    /// Freezes the largest open layer when the open layers take their half.
    pub fn freeze_if_full(&self) {
        if self.memory.open.load(Ordering::Relaxed) >= self.config.layer_bytes / 2 {
            self.freeze_largest();
        }
    }

    fn freeze_largest(&self) {
        let open_bytes = |state: &&Arc<TimelineState>| state.layers.current().open.allocated_bytes();
        let largest =
            self.timelines.lock().values().filter(|state| !state.is_deleted()).max_by_key(open_bytes).map(Arc::clone);
        if let Some(state) = largest {
            let mut writer = state.writer.lock();
            if writer.changed_at.is_some() && !state.is_deleted() {
                self.freeze(&state, &mut writer);
            }
        }
    }

    /// Queues the open layer of a timeline for the flusher. Returns the job to wait for.
    ///
    /// Requires: the timeline is not deleted.
    pub fn freeze(&self, state: &Arc<TimelineState>, writer: &mut WriterState) -> JobNo {
        let frozen = state.layers.freeze(writer.last_record_lsn, writer.publishing);
        writer.changed_at = None;
        writer.is_published = frozen.publish;
        self.memory.move_to_frozen(frozen.allocated_bytes);
        let mut queue = self.queue.lock();
        queue.queued += 1;
        let job_no = queue.queued;
        writer.last_job_no = job_no;
        queue.jobs.push_back(FlushJob { job_no, timeline: Arc::clone(state), frozen });
        self.work.notify_one();
        job_no
    }

    /// Errors: `NoRoom`, where an impatient one would wait until somebody makes room.
    fn check_patience(&self, state: &TimelineState) -> Result<(), StoreError> {
        if state.is_impatient() && self.db.is_stuck() { Err(StoreError::NoRoom) } else { Ok(()) }
    }

    /// Waits until a job is durable.
    pub fn wait_for_job(&self, state: &TimelineState, job_no: JobNo) -> Result<(), StoreError> {
        let mut queue = self.queue.lock();
        loop {
            state.check_not_deleted()?;
            if queue.done >= job_no {
                return Ok(());
            }
            self.check_writable()?;
            self.check_patience(state)?;
            if queue.stopping || state.is_waited_for() {
                return Err(StoreError::ShuttingDown);
            }
            self.progress.wait_for(&mut queue, WAIT_MAX);
        }
    }

    /// Waits for the next job, until `deadline`. Err: the store closes, or is poisoned and needs no flusher any more.
    pub fn next_job(&self, deadline: Instant) -> Result<Option<FlushJob>, StoreError> {
        let mut queue = self.queue.lock();
        loop {
            self.check_writable()?;
            if queue.stopping {
                return Err(StoreError::ShuttingDown);
            }
            // It stays in the queue until it is done: a failure leaves it there.
            if let Some(job) = queue.jobs.front().cloned() {
                queue.running = Some(job.timeline.timeline);
                return Ok(Some(job));
            }
            if self.work.wait_until(&mut queue, deadline).timed_out() {
                return Ok(None);
            }
        }
    }

    /// Takes a job that is durable, or whose timeline is deleted, from the queue.
    pub fn finish_job(&self, job: &FlushJob) {
        let mut queue = self.queue.lock();
        queue.running = None;
        queue.done = job.job_no;
        if queue.jobs.front().is_some_and(|front| front.job_no == job.job_no) {
            queue.jobs.pop_front();
            self.memory.free_frozen(job.frozen.allocated_bytes);
        }
        self.progress.notify_all();
    }

    /// The flusher ends with its job undone: nobody has it in hand any more.
    pub fn leave_job(&self) {
        self.queue.lock().running = None;
        self.progress.notify_all();
    }

    /// Drops the queued layers of a deleted timeline and waits until the flusher has none of them in hand.
    pub fn drop_jobs_of(&self, state: &TimelineState) -> Result<(), StoreError> {
        let mut queue = self.queue.lock();
        loop {
            queue.drop_jobs_of(state, &self.memory);
            self.progress.notify_all();
            if queue.running != Some(state.timeline) {
                return Ok(());
            }
            self.check_writable()?;
            self.progress.wait_for(&mut queue, WAIT_MAX);
        }
    }

    /// The weight from which on chains are told of; 0: none are.
    pub fn weight_max(&self) -> Weight {
        Weight::try_from(self.config.chain_weight_max).unwrap_or(Weight::MAX)
    }

    /// How many weights a timeline may carry: its share of what all may.
    pub fn carried_keys_max(&self) -> usize {
        (CARRIED_KEYS_MAX / self.timelines.lock().len().max(1)).max(CARRIED_KEYS_MIN)
    }

    /// Never waits: what finds no room is not told.
    pub fn tell_long_chains(&self, found: LongChains) {
        self.counters.long_chains.add(found.chains.len() as u64);
        if let Err(error) = self.long_chains.0.try_send(found) {
            self.counters.long_chains_untold.add(error.into_inner().chains.len() as u64);
        }
    }

    pub fn long_chains(&self) -> Receiver<LongChains> {
        self.long_chains.1.clone()
    }

    /// Ends whatever waits, and the flusher.
    pub fn request_stop(&self) {
        self.queue.lock().stopping = true;
        self.work.notify_all();
        self.progress.notify_all();
    }

    /// From now on nobody waits for what does not come by itself.
    pub fn begin_closing(&self) {
        self.closing.store(true, Ordering::SeqCst);
    }

    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    /// Has who waits for room look again.
    pub fn wake_waiting(&self) {
        let _queue = self.queue.lock(); // Nobody is between looking and waiting.
        self.progress.notify_all();
    }

    pub fn is_stopping(&self) -> bool {
        self.queue.lock().stopping
    }
}

impl Queue {
    /// All but the one that is being written: `finish_job` takes that one.
    fn drop_jobs_of(&mut self, state: &TimelineState, memory: &Memory) {
        let is_running = self.running == Some(state.timeline);
        let mut position = 0;
        self.jobs.retain(|job| {
            let in_hand = position == 0 && is_running;
            position += 1;
            let keep = in_hand || !std::ptr::eq(&*job.timeline, state);
            if !keep {
                memory.free_frozen(job.frozen.allocated_bytes);
            }
            keep
        });
    }
}

impl Memory {
    fn layers(&self) -> usize {
        self.open.load(Ordering::Relaxed) + self.frozen.load(Ordering::Relaxed)
    }

    /// Counts an open layer that took `before` and takes `after` bytes now.
    pub fn open_changed(&self, before: usize, after: usize) {
        if after >= before {
            self.open.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.open.fetch_sub(before - after, Ordering::Relaxed);
        }
    }

    fn move_to_frozen(&self, bytes: usize) {
        // In this order: for a moment it counts twice, never not at all.
        self.frozen.fetch_add(bytes, Ordering::Relaxed);
        self.open.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn free_frozen(&self, bytes: usize) {
        self.frozen.fetch_sub(bytes, Ordering::Relaxed);
    }
}
