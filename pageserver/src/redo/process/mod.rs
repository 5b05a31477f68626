//! A stock PostgreSQL as redo engine, in a process of its own: one per cluster.
//!
//! - Started with the first request that needs it. Many may wait for it: one starts it, the others wait for that start;
//!   nobody who does not need it waits.
//! - A process that breaks (dies, hangs, sends garbage) is killed, waited for and replaced at the next request. What was
//!   in flight is tried once more, each request alone on a process of its own: so one request that breaks it harms no
//!   other, and is known for what it is. Its like is refused for a while without being tried.
//! - A page is checked before it is believed: it must carry the LSN of one of the records, or the one it came with.
//! - Inputs that failed are saved, a bounded number of them, for `pagectl redo replay`.
//!
//! In reading order: the frames ([`protocol`]), starting ([`skeleton`], [`library`], [`launch`]), looking after ([`keeper`]), sending and
//! receiving ([`pipeline`]), what is kept of failures ([`super::failed_input`], [`quarantine`]), and the engine (here).

mod keeper;
pub mod launch;
mod library;
mod pipeline;
mod plausible;
pub mod protocol;
mod quarantine;
mod skeleton;
mod slot;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use postgres_ffi::PgVersion;
use postgres_ffi::page::Page;

pub use self::launch::{PostgresProgram, Program};
pub use self::library::Library;
use self::pipeline::{Broken, Pipeline};
use self::protocol::Reply;
use self::quarantine::Quarantine;
use self::slot::Slot;
use super::failed_input::{FailedInput, FailedInputs};
use super::{Engine, EngineReport, EngineRequest, RedoError};

/// A chain longer than this is sent in parts, so that nobody waits long behind it.
const REQUEST_BYTES_MAX: usize = 1024 * 1024;

/// How to start a redo process, and what to expect of it.
#[derive(Clone, Debug)]
pub struct ProcessConfig {
    /// What is started.
    pub program: Program,
    /// The cluster's major version; a process of another is refused.
    pub version: PgVersion,
    /// A process that owes a reply and gives none for so long is killed.
    pub timeout: Duration,
    /// A process that is not ready after so long is killed.
    pub start_timeout: Duration,
    /// After a failed start nobody tries again for so long.
    pub start_retry_delay: Duration,
    /// A process that nobody has asked for so long is ended.
    pub idle_timeout: Duration,
    /// A process is replaced after so many records that made PostgreSQL panic. It survived them, but who knows how.
    pub panics_max: u32,
    /// Where inputs that failed are saved. `None`: nowhere.
    pub failed_inputs_dir: Option<PathBuf>,
    /// The most that this directory may hold.
    pub failed_inputs_max: usize,
}

impl ProcessConfig {
    /// Usual limits for `program`.
    pub fn new(program: Program, version: PgVersion) -> Self {
        ProcessConfig {
            program,
            version,
            timeout: Duration::from_secs(10),
            start_timeout: Duration::from_secs(20),
            start_retry_delay: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(600),
            panics_max: 20,
            failed_inputs_dir: None,
            failed_inputs_max: 32,
        }
    }
}

/// What the engine has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessStats {
    /// Processes that said hello.
    pub starts: u64,
    /// Processes that did not.
    pub start_failures: u64,
    /// Processes killed because a reply did not come in time.
    pub kills_timeout: u64,
    /// Processes killed for what they sent.
    pub kills_garbage: u64,
    /// Processes that ended without being asked to.
    pub deaths: u64,
    /// Processes replaced because they had survived too much, or had nothing to do.
    pub retired: u64,
    /// Requests sent, those sent again included.
    pub requests: u64,
    /// Records in them.
    pub records: u64,
    /// Batches that they were sent in.
    pub batches: u64,
    /// Requests refused by PostgreSQL.
    pub refused: u64,
    /// Requests tried again alone, because the process broke under them.
    pub retried: u64,
    /// Requests that broke it alone, too.
    pub failed: u64,
    /// Requests not tried because their like had failed.
    pub quarantined: u64,
}

#[derive(Default)]
struct Counters {
    starts: AtomicU64,
    start_failures: AtomicU64,
    kills_timeout: AtomicU64,
    kills_garbage: AtomicU64,
    deaths: AtomicU64,
    retired: AtomicU64,
    requests: AtomicU64,
    records: AtomicU64,
    batches: AtomicU64,
    refused: AtomicU64,
    retried: AtomicU64,
    failed: AtomicU64,
    quarantined: AtomicU64,
}

/// The redo engine that is a process. Dropped: the process is killed and waited for.
pub struct ProcessEngine {
    config: ProcessConfig,
    /// `config.program` as it is now.
    program: Mutex<Program>,
    slot: Slot,
    quarantine: Quarantine,
    failed_inputs: Option<FailedInputs>,
    counters: Counters,
}

type Answer = Result<Box<Page>, RedoError>;

impl ProcessEngine {
    /// Starts nothing yet.
    pub fn new(config: ProcessConfig) -> Self {
        let failed_inputs =
            config.failed_inputs_dir.clone().map(|dir| FailedInputs::new(dir, config.failed_inputs_max));
        let slot = Slot::new(config.start_retry_delay);
        let program = Mutex::new(config.program.clone());
        ProcessEngine {
            config,
            program,
            slot,
            quarantine: Quarantine::default(),
            failed_inputs,
            counters: Counters::default(),
        }
    }

    /// Tells of a new control file or a changed `wal_log_hints` of the cluster: the LSN of some pages depends on them.
    /// The process that runs is replaced at the next request. Does nothing for a [`Program::Other`].
    pub fn set_cluster(&self, pg_control: Bytes, wal_log_hints: bool) {
        if let Program::Postgres(program) = &mut *self.program.lock() {
            program.pg_control = pg_control;
            program.wal_log_hints = wal_log_hints;
        }
        if self.slot.retire_current() {
            count(&self.counters.retired, 1);
        }
    }

    /// What it has done so far.
    pub fn stats(&self) -> ProcessStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let c = &self.counters;
        ProcessStats {
            starts: read(&c.starts),
            start_failures: read(&c.start_failures),
            kills_timeout: read(&c.kills_timeout),
            kills_garbage: read(&c.kills_garbage),
            deaths: read(&c.deaths),
            retired: read(&c.retired),
            requests: read(&c.requests),
            records: read(&c.records),
            batches: read(&c.batches),
            refused: read(&c.refused),
            retried: read(&c.retried),
            failed: read(&c.failed),
            quarantined: read(&c.quarantined),
        }
    }

    /// The process id of the running process, if one runs.
    pub fn pid(&self) -> Option<u32> {
        self.slot.current().map(|process| process.keeper().pid())
    }

    /// Bytes that the running process has written to stderr.
    pub fn stderr_bytes(&self) -> Option<u64> {
        self.slot.current().map(|process| process.keeper().stderr_bytes())
    }

    fn launch(&self) -> Result<Pipeline, String> {
        let program = self.program.lock().clone();
        match launch::launch(&ProcessConfig { program, ..self.config.clone() }) {
            Ok((process, hello)) => {
                count(&self.counters.starts, 1);
                tracing::info!(
                    pid = process.keeper().pid(),
                    pg_version_num = hello.pg_version_num,
                    data_checksums = hello.data_checksums,
                    "redo process started"
                );
                Ok(process)
            }
            Err(reason) => {
                count(&self.counters.start_failures, 1);
                tracing::error!(reason, "redo process cannot be started");
                Err(reason)
            }
        }
    }

    /// The shared process, started if need be.
    fn process(&self) -> Result<Arc<Pipeline>, RedoError> {
        let start = |worn_out: Option<Arc<Pipeline>>| {
            if let Some(process) = worn_out {
                self.count_break(&process, &process.broken().unwrap_or(Broken::Ended));
            }
            self.launch()
        };
        self.slot.get_or_start(start).map_err(|reason| RedoError::CannotStart { reason })
    }

    /// Requests of any number, each short enough to be sent whole.
    fn redo_short(&self, requests: &[&EngineRequest]) -> Vec<Answer> {
        let mut answers = Vec::with_capacity(requests.len());
        while answers.len() < requests.len() {
            let left = &requests[answers.len()..];
            let process = match self.process() {
                Ok(process) => process,
                Err(error) => {
                    answers.extend(left.iter().map(|_| Err(error.clone())));
                    break;
                }
            };
            let batch = &left[..left.len().min(process.batch_len_max())];
            let replies = self.exchange(&process, batch);
            let mut alone = None;
            for (request, reply) in batch.iter().zip(replies) {
                answers.push(match reply {
                    Some(reply) => self.judge(&process, request, reply),
                    None => self.redo_alone(request, &mut alone),
                });
            }
            if process.panics() >= self.config.panics_max && self.slot.retire(&process) {
                count(&self.counters.retired, 1);
            }
        }
        answers
    }

    /// Sends and receives; a page that cannot be is as good as none, and breaks the process.
    fn exchange(&self, process: &Pipeline, batch: &[&EngineRequest]) -> Vec<Option<Reply>> {
        count(&self.counters.batches, 1);
        count(&self.counters.requests, batch.len() as u64);
        count(&self.counters.records, batch.iter().map(|request| request.records.len() as u64).sum());
        let mut replies = process.exchange(batch);
        for (request, reply) in batch.iter().zip(&mut replies) {
            let Some(Reply::Page(page)) = reply else { continue };
            if let Err(reason) = plausible::check(request, page) {
                process.break_off(Broken::ImpossiblePage(reason));
                *reply = None;
            }
        }
        if let Some(why) = process.broken() {
            self.count_break(process, &why);
        }
        replies
    }

    /// Counts and logs the end of a process once, whoever notices it.
    fn count_break(&self, process: &Pipeline, why: &Broken) {
        if !process.claim_report() {
            return;
        }
        let counter = match why {
            Broken::TimedOut(_) => &self.counters.kills_timeout,
            Broken::Garbage(_) | Broken::ImpossiblePage(_) => &self.counters.kills_garbage,
            Broken::Ended | Broken::Pipe(_) => &self.counters.deaths,
        };
        count(counter, 1);
        let end = process.keeper().end();
        tracing::warn!(pid = process.keeper().pid(), %why, end, "redo process is given up");
    }

    fn judge(&self, process: &Pipeline, request: &EngineRequest, reply: Reply) -> Answer {
        match reply {
            Reply::Page(page) => Ok(page),
            Reply::Refused { message, panicked } => {
                count(&self.counters.refused, 1);
                if panicked {
                    process.count_panic();
                }
                self.save_failed(request, &message);
                let EngineRequest { rel, fork, block_no, .. } = *request;
                Err(RedoError::Refused { rel, fork, block_no, message })
            }
        }
    }

    /// Tries a request that the process broke under on a process that has nothing else to do. `alone` keeps that
    /// process for the next such request of this caller.
    fn redo_alone(&self, request: &EngineRequest, alone: &mut Option<Pipeline>) -> Answer {
        count(&self.counters.retried, 1);
        let process = match alone.take().filter(Pipeline::is_usable) {
            Some(process) => process,
            None => self.launch().map_err(|reason| RedoError::CannotStart { reason })?,
        };
        let reply = self.exchange(&process, &[request]).pop().flatten();
        match reply {
            Some(reply) => {
                let answer = self.judge(&process, request, reply);
                *alone = Some(process);
                answer
            }
            None => Err(self.fail(&process, request)),
        }
    }

    /// The request broke a process all by itself.
    fn fail(&self, process: &Pipeline, request: &EngineRequest) -> RedoError {
        count(&self.counters.failed, 1);
        let why = process.broken().map_or_else(String::new, |why| why.to_string());
        let message = format!("{why} ({})", process.keeper().end());
        let saved = self.save_failed(request, &message);
        let EngineRequest { rel, fork, block_no, .. } = *request;
        tracing::error!(%rel, %fork, block_no, message, ?saved, "redo request breaks the process");
        let error = RedoError::EngineFailed { rel, fork, block_no, message };
        self.quarantine.put(request, error.clone());
        error
    }

    fn save_failed(&self, request: &EngineRequest, message: &str) -> Option<PathBuf> {
        let (pg_control, wal_log_hints) = match &*self.program.lock() {
            Program::Postgres(program) => (program.pg_control.clone(), program.wal_log_hints),
            Program::Other { .. } => (Bytes::new(), false),
        };
        let (version, message, request) = (self.config.version, message.to_owned(), request.clone());
        self.failed_inputs.as_ref()?.save(&FailedInput { version, wal_log_hints, pg_control, message, request })
    }

    /// A chain that is sent in parts: the page that one part makes is the base of the next.
    fn redo_long(&self, request: &EngineRequest) -> Answer {
        let mut part = EngineRequest { records: Vec::new(), ..request.clone() };
        let mut records = request.records.iter().peekable();
        loop {
            let mut len = protocol::empty_request_len();
            part.records.clear();
            while let Some(record) = records.next_if(|(_, record)| {
                part.records.is_empty() || len + protocol::record_len(record.len()) <= REQUEST_BYTES_MAX
            }) {
                len += protocol::record_len(record.1.len());
                part.records.push(record.clone());
            }
            let page = self.redo_short(&[&part]).pop().ok_or_else(no_answer)??;
            if records.peek().is_none() {
                return Ok(page);
            }
            part.base = Some(Bytes::from(page as Box<[u8]>));
        }
    }

    /// What can be said of a request without asking the process.
    fn answer_unasked(&self, request: &EngineRequest) -> Option<Answer> {
        let EngineRequest { rel, fork, block_no, .. } = *request;
        if let Some(base) = request.base.as_ref().filter(|base| base.len() != postgres_ffi::BLCKSZ) {
            let message = format!("base has {} bytes", base.len());
            return Some(Err(RedoError::Refused { rel, fork, block_no, message }));
        }
        let longest = request.records.iter().map(|(_, record)| record.len()).max().unwrap_or(0);
        let length = protocol::empty_request_len() + protocol::record_len(longest);
        if length > protocol::BODY_BYTES_MAX {
            let limit = protocol::BODY_BYTES_MAX;
            return Some(Err(RedoError::TooLong { rel, fork, block_no, length, limit }));
        }
        let error = self.quarantine.get(request)?;
        count(&self.counters.quarantined, 1);
        Some(Err(error))
    }
}

impl Engine for ProcessEngine {
    fn redo(&self, requests: &[EngineRequest]) -> Vec<Answer> {
        let mut answers: Vec<Option<Answer>> = requests.iter().map(|request| self.answer_unasked(request)).collect();
        let is_open = |answer: &Option<Answer>| answer.is_none();
        let mut short = Vec::with_capacity(requests.len());
        for (request, answer) in requests.iter().zip(&answers) {
            if is_open(answer) && protocol::request_len(request) <= REQUEST_BYTES_MAX {
                short.push(request);
            }
        }
        let mut short_answers = self.redo_short(&short).into_iter();
        for (request, answer) in requests.iter().zip(&mut answers) {
            if is_open(answer) {
                *answer = if protocol::request_len(request) <= REQUEST_BYTES_MAX {
                    short_answers.next()
                } else {
                    Some(self.redo_long(request))
                };
            }
        }
        answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err(no_answer()))).collect()
    }

    fn report(&self) -> EngineReport {
        let stats = self.stats();
        let counts = [
            ("processes started", stats.starts),
            ("starts failed", stats.start_failures),
            ("killed for a late reply", stats.kills_timeout),
            ("killed for what they sent", stats.kills_garbage),
            ("died", stats.deaths),
            ("retired", stats.retired),
            ("process requests", stats.requests),
            ("process records", stats.records),
            ("process batches", stats.batches),
            ("process refused", stats.refused),
            ("process retried alone", stats.retried),
            ("process failed", stats.failed),
            ("process quarantined", stats.quarantined),
        ];
        EngineReport { engine: "postgres", counts: counts.to_vec() }
    }

    fn idle(&self, idle: Duration) {
        if idle >= self.config.idle_timeout && self.slot.retire_current() {
            count(&self.counters.retired, 1);
        }
    }
}

/// There is one answer per request; said as an error rather than a panic because a caller waits for it.
fn no_answer() -> RedoError {
    RedoError::Internal { message: "redo engine lost an answer".to_owned() }
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

#[cfg(test)]
mod tests;
