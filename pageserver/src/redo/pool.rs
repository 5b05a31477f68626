//! The walredo threads: many requesters, few threads, each page made once.
//!
//! - Requesters wait for their page with no lock held; threads never ask for pages. So any number of requesters come to
//!   an end with a single thread.
//! - Whoever asks for a page that is being made already waits for that one.
//! - A thread takes what waits in batches, and the engine gets the batch as one: that is what pipelines the process.
//! - **Never:** a requester waits for ever. Each request is answered, at the latest when it is dropped: by a thread that
//!   panicked, or by the pool that goes down.
//! - A chain that is plain computation (deltas of ours, native redo) and not long is made by who asks for it: quicker than two changes of thread.
//!   It too is made once for all who ask at the same time.
//! - Threads with nothing to do take chains from a backlog, one at a time.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded, select_biased};
use keyenc::{Key, TimelineNo};
use parking_lot::{Condvar, Mutex};
use postgres_ffi::Lsn;

use super::making::{self, Making, Step};
pub use super::stats::RedoStats;
use super::stats::{Counters, count};
use super::{Chain, Engine, EngineReport, RedoError};

/// How often a thread that has nothing to do tells the engine so.
const IDLE_TICK: Duration = Duration::from_secs(10);
/// A longer chain goes to the threads, though it is plain computation: at some 0.1 µs a delta it would hold up what else the asker has to do.
const INLINE_DELTAS_MAX: usize = 500;

/// How many threads, and how much may wait for them.
#[derive(Clone, Debug)]
pub struct RedoConfig {
    /// Walredo threads. They start with the first request that needs them.
    pub threads: usize,
    /// Requests that may wait for a thread; who comes then waits to hand in the request.
    pub queue_len: usize,
    /// The most that a thread takes at once.
    pub batch_len_max: usize,
    /// Chains that may wait in the backlog; more are turned away.
    pub backlog_len: usize,
}

impl Default for RedoConfig {
    fn default() -> Self {
        RedoConfig { threads: 2, queue_len: 256, batch_len_max: 32, backlog_len: 64 }
    }
}

/// The walredo threads of one cluster and the engine behind them. Dropped: waits for the threads to end.
pub struct WalRedo {
    shared: Arc<Shared>,
    requests: Sender<Job>,
    backlog: Sender<BacklogJob>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    threads_started: AtomicBool,
    config: RedoConfig,
    /// What the threads take from; here so that they can be started late.
    queues: Queues,
}

#[derive(Clone)]
struct Queues {
    requests: Receiver<Job>,
    backlog: Receiver<BacklogJob>,
}

struct Shared {
    engine: Arc<dyn Engine>,
    in_flight: Mutex<HashMap<PageVersion, Arc<Waiters>, foldhash::fast::RandomState>>,
    last_request: Mutex<Instant>,
    shutting_down: AtomicBool,
    counters: Counters,
}

/// What two requests must agree in to be the same.
type PageVersion = (TimelineNo, Key, Lsn);

/// A page that one or more wait for.
#[derive(Default)]
struct Waiters {
    page: Mutex<Option<Result<Bytes, RedoError>>>,
    made: Condvar,
}

/// A request on its way. Dropped without an answer, it answers with an error.
struct Job {
    chain: Option<Chain>,
    version: PageVersion,
    waiters: Arc<Waiters>,
    shared: Arc<Shared>,
}

/// What has become of a chain that was too long, or was taken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoundOutcome {
    /// An image ends it.
    Made,
    /// It was not too long.
    Short,
    /// No page can be made of it.
    Failed,
}

/// What becomes of a chain from the backlog.
pub type BacklogCallback = Box<dyn FnOnce(Result<Bytes, RedoError>) + Send>;

struct BacklogJob {
    chain: Chain,
    done: BacklogCallback,
}

enum Work {
    Request(Job),
    Backlog(BacklogJob),
}

impl WalRedo {
    /// Takes requests from now on.
    pub fn start(config: &RedoConfig, engine: Arc<dyn Engine>) -> Arc<Self> {
        let (requests, requests_out) = bounded(config.queue_len.max(1));
        let (backlog, backlog_out) = bounded(config.backlog_len.max(1));
        let shared = Shared {
            engine,
            in_flight: Mutex::default(),
            last_request: Mutex::new(Instant::now()),
            shutting_down: AtomicBool::new(false),
            counters: Counters::default(),
        };
        Arc::new(WalRedo {
            shared: Arc::new(shared),
            requests,
            backlog,
            threads: Mutex::default(),
            threads_started: AtomicBool::new(false),
            config: config.clone(),
            queues: Queues { requests: requests_out, backlog: backlog_out },
        })
    }

    /// Asks for the page that `chain` makes. A short chain that is plain computation is made before this returns; otherwise it returns at once, unless too
    /// many wait already.
    pub fn submit(&self, chain: Chain) -> PendingPage {
        let counters = &self.shared.counters;
        count(&counters.requests, 1);
        let is_short = chain.deltas.len() <= INLINE_DELTAS_MAX;
        let is_made_here = is_short && making::is_computed(&chain, &*self.shared.engine);
        let version = (chain.timeline, chain.key, chain.version_lsn);
        let waiters = {
            let mut in_flight = self.shared.in_flight.lock();
            if let Some(waiters) = in_flight.get(&version) {
                count(&counters.coalesced, 1);
                return PendingPage(Pending::Waiting(waiters.clone()));
            }
            let waiters = Arc::new(Waiters::default());
            in_flight.insert(version, waiters.clone());
            waiters
        };
        if is_made_here {
            count(&counters.inline, 1);
            let job = Job { chain: None, version, waiters, shared: self.shared.clone() };
            return PendingPage(Pending::Made(job.make_here(chain)));
        }
        let job = Job { chain: Some(chain), version, waiters: waiters.clone(), shared: self.shared.clone() };
        match self.ensure_threads() {
            // Never fails while we hold a receiver; if it did, the job would answer for itself.
            Ok(()) => _ = self.requests.send(job),
            Err(reason) => job.answer(Err(RedoError::CannotStart { reason })),
        }
        PendingPage(Pending::Waiting(waiters))
    }

    /// Leaves `chain` to a thread that has nothing better to do, and `done` gets the page. False: the backlog is full.
    ///
    /// Requires: `done` asks for no page itself. It is not called if the pool goes down first.
    pub fn offer_backlog(&self, chain: Chain, done: BacklogCallback) -> bool {
        let accepted = self.ensure_threads().is_ok() && self.backlog.try_send(BacklogJob { chain, done }).is_ok();
        if accepted {
            count(&self.shared.counters.backlog_accepted, 1);
        }
        accepted
    }

    /// The page, if making it is plain computation, made before this returns; else the chain again, for [`WalRedo::offer_backlog`].
    pub fn make_if_computed(&self, chain: Chain) -> Result<Result<Bytes, RedoError>, Chain> {
        if !making::is_computed(&chain, &*self.shared.engine) {
            return Err(chain);
        }
        let mut made = None;
        let making = || make_all(&self.shared, vec![chain], &mut |_, page| made = Some(page));
        if catch_unwind(AssertUnwindSafe(making)).is_err() {
            count(&self.shared.counters.panics, 1);
        }
        Ok(made.unwrap_or_else(|| Err(panicked())))
    }

    /// True if the backlog takes another chain. It stays true until the caller offers one, if nobody else does.
    pub fn has_backlog_room(&self) -> bool {
        !self.backlog.is_full()
    }

    /// Counts a read whose chain had this many deltas.
    pub fn count_read_chain(&self, delta_count: usize) {
        self.shared.counters.count_read_chain(delta_count);
    }

    /// Counts long chains that never came to be offered because too many waited.
    pub fn count_backlog_dropped(&self, chain_count: usize) {
        count(&self.shared.counters.backlog_dropped, chain_count as u64);
    }

    /// Counts a long chain that could not be offered because its versions could not be read.
    pub fn count_backlog_unreadable(&self) {
        count(&self.shared.counters.backlog_failed, 1);
    }

    /// Counts what has become of a chain that was too long, or was taken for it.
    pub fn count_bound(&self, outcome: BoundOutcome) {
        let counters = &self.shared.counters;
        let counter = match outcome {
            BoundOutcome::Made => &counters.bound_images,
            BoundOutcome::Short => &counters.bound_short,
            BoundOutcome::Failed => &counters.bound_failed,
        };
        count(counter, 1);
    }

    /// Counts that ingest stood still for pages because their chains were far too long.
    pub fn count_ingest_wait(&self, waited: Duration) {
        count(&self.shared.counters.bound_ingest_waits, 1);
        count(&self.shared.counters.bound_ingest_wait_nanos, waited.as_nanos() as u64);
    }

    /// What the threads have done so far.
    pub fn stats(&self) -> RedoStats {
        self.shared.counters.snapshot(self.requests.len(), self.backlog.len())
    }

    /// What the engine is and has done.
    pub fn engine_report(&self) -> EngineReport {
        self.shared.engine.report()
    }

    /// From now on requests for the threads are answered with [`RedoError::ShuttingDown`]; those in the engine are finished.
    pub fn shut_down(&self) {
        self.shared.shutting_down.store(true, Ordering::Release);
    }

    fn ensure_threads(&self) -> Result<(), String> {
        if self.threads_started.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut threads = self.threads.lock();
        while threads.len() < self.config.threads.max(1) {
            let worker = Worker {
                shared: self.shared.clone(),
                queues: self.queues.clone(),
                threads: self.config.threads.max(1),
                batch_len_max: self.config.batch_len_max.max(1),
            };
            let name = format!("walredo-{}", threads.len());
            match std::thread::Builder::new().name(name).spawn(move || worker.run()) {
                Ok(thread) => threads.push(thread),
                Err(error) if threads.is_empty() => return Err(format!("no thread for walredo: {error}")),
                Err(error) => {
                    tracing::warn!(threads = threads.len(), %error, "fewer walredo threads than configured");
                    break;
                }
            }
        }
        self.threads_started.store(true, Ordering::Release);
        Ok(())
    }
}

impl Drop for WalRedo {
    fn drop(&mut self) {
        self.shut_down();
        // Ends the threads: they hold receivers only.
        self.requests = bounded(0).0;
        self.backlog = bounded(0).0;
        let ourselves = std::thread::current().id();
        for thread in self.threads.get_mut().drain(..) {
            // A callback of the backlog may hold the last handle: a thread does not wait for itself.
            if thread.thread().id() != ourselves {
                let _ = thread.join(); // A panic was answered and logged where it happened.
            }
        }
    }
}

/// A page that has been asked for.
#[must_use]
pub struct PendingPage(Pending);

enum Pending {
    Made(Result<Bytes, RedoError>),
    Waiting(Arc<Waiters>),
}

impl PendingPage {
    /// The page. Blocks until it is made or has failed.
    ///
    /// Requires: the caller holds no lock that another request needs, or that lock waits as well.
    pub fn wait(self) -> Result<Bytes, RedoError> {
        match self.0 {
            Pending::Made(page) => page,
            Pending::Waiting(waiters) => {
                let mut page = waiters.page.lock();
                loop {
                    match &*page {
                        Some(page) => return page.clone(),
                        None => waiters.made.wait(&mut page),
                    }
                }
            }
        }
    }
}

impl Job {
    fn answer(self, page: Result<Bytes, RedoError>) {
        self.give(page);
    }

    /// Makes the page on this thread and gives it to whoever else waits by now.
    fn make_here(self, chain: Chain) -> Result<Bytes, RedoError> {
        let mut made = None;
        let making = || make_all(&self.shared, vec![chain], &mut |_, page| made = Some(page));
        if catch_unwind(AssertUnwindSafe(making)).is_err() {
            count(&self.shared.counters.panics, 1);
        }
        let page = made.unwrap_or_else(|| Err(panicked()));
        self.give(page.clone());
        page
    }

    fn give(&self, page: Result<Bytes, RedoError>) {
        // Out of the map first: who comes after this asks anew, who came before has the waiters.
        self.shared.in_flight.lock().remove(&self.version);
        self.shared.counters.count_result(&page);
        self.waiters.page.lock().get_or_insert(page);
        self.waiters.made.notify_all();
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if self.waiters.page.lock().is_none() {
            self.give(Err(if std::thread::panicking() { panicked() } else { RedoError::ShuttingDown }));
        }
    }
}

fn panicked() -> RedoError {
    RedoError::Internal { message: "redo of the page panicked, see the log".to_owned() }
}

/// Makes the pages of `chains`; each is given to `done` with its index as soon as it is ready.
fn make_all(shared: &Shared, chains: Vec<Chain>, done: &mut dyn FnMut(usize, Result<Bytes, RedoError>)) {
    let mut making = Vec::with_capacity(chains.len());
    for (index, chain) in chains.into_iter().enumerate() {
        count(&shared.counters.input_bytes, chain.size_bytes() as u64);
        match Making::new(chain) {
            Ok(page) => making.push((index, page)),
            Err(error) => done(index, Err(error)),
        }
    }
    // Most chains are through after one round; those of ours and PostgreSQL's in turn take more.
    while !making.is_empty() {
        let mut asking = Vec::with_capacity(making.len());
        let mut requests = Vec::with_capacity(making.len());
        for (index, mut page) in making.drain(..) {
            match page.advance() {
                Ok(Step::Ask(request)) => {
                    requests.push(request);
                    asking.push((index, page));
                }
                Ok(Step::Done(result)) => {
                    shared.counters.count_deltas(page.counts());
                    done(index, Ok(result));
                }
                Err(error) => done(index, Err(error)),
            }
        }
        if requests.is_empty() {
            break;
        }
        let mut answers = shared.engine.redo(&requests).into_iter();
        for (index, mut page) in asking {
            match answers.next() {
                Some(Ok(made)) => {
                    page.resume(made);
                    making.push((index, page));
                }
                Some(Err(error)) => done(index, Err(error)),
                None => done(index, Err(RedoError::Internal { message: "the engine lost an answer".to_owned() })),
            }
        }
    }
}

struct Worker {
    shared: Arc<Shared>,
    queues: Queues,
    threads: usize,
    batch_len_max: usize,
}

impl Worker {
    fn run(self) {
        while let Some(work) = self.next() {
            let started = Instant::now();
            // What was taken answers for itself when it is dropped, so nobody waits for a panic.
            let outcome = catch_unwind(AssertUnwindSafe(|| match work {
                Work::Request(job) => self.make_batch(job),
                Work::Backlog(job) => self.make_backlog(job),
            }));
            if outcome.is_err() {
                count(&self.shared.counters.panics, 1);
            }
            count(&self.shared.counters.busy_nanos, started.elapsed().as_nanos() as u64);
        }
    }

    /// What to do next; requests before the backlog. `None`: the pool is gone.
    fn next(&self) -> Option<Work> {
        loop {
            if let Ok(job) = self.queues.requests.try_recv() {
                return Some(Work::Request(job));
            }
            select_biased! {
                recv(self.queues.requests) -> job => return job.ok().map(Work::Request),
                recv(self.queues.backlog) -> job => return job.ok().map(Work::Backlog),
                default(IDLE_TICK) => {
                    let idle = self.shared.last_request.lock().elapsed();
                    self.shared.engine.idle(idle);
                }
            }
        }
    }

    /// `first` and what else waits, but no more than this thread's share of it.
    fn make_batch(&self, first: Job) {
        let share = (self.queues.requests.len() / self.threads + 1).min(self.batch_len_max);
        let mut jobs = vec![first];
        while jobs.len() < share
            && let Ok(job) = self.queues.requests.try_recv()
        {
            jobs.push(job);
        }
        count(&self.shared.counters.batches, 1);
        *self.shared.last_request.lock() = Instant::now();
        if self.shared.shutting_down.load(Ordering::Acquire) {
            return; // Each job says so when it is dropped.
        }
        let chains = jobs.iter_mut().filter_map(|job| job.chain.take()).collect();
        let mut jobs: Vec<Option<Job>> = jobs.into_iter().map(Some).collect();
        make_all(&self.shared, chains, &mut |index, page| {
            if let Some(job) = jobs[index].take() {
                job.answer(page);
            }
        });
    }

    fn make_backlog(&self, job: BacklogJob) {
        if self.shared.shutting_down.load(Ordering::Acquire) {
            return;
        }
        let mut made = None;
        make_all(&self.shared, vec![job.chain], &mut |_, page| made = Some(page));
        if let Some(page) = made {
            let counters = &self.shared.counters;
            count(if page.is_ok() { &counters.backlog_made } else { &counters.backlog_failed }, 1);
            (job.done)(page);
        }
    }
}

#[cfg(test)]
mod tests;
