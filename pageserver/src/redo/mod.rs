//! A chain of versions becomes a page: walredo threads and the engines behind them.
//!
//! - A page that cannot be proven right is an error: no engine, a refused record or a broken process never give a page.
//! - Nobody holds a lock while waiting for redo: requesters wait on their own slot, threads on their channel.
//! - One [`WalRedo`] (threads and engine) per cluster: what goes wrong in one stalls no other, and no page of one
//!   cluster ever enters the process of another.
//! - Checksums are not set here: redo leaves `pd_checksum` as it was, who serves the page sets it.
//!
//! In reading order: the types that cross to other modules (here), one page on its way ([`making`]), the threads
//! ([`pool`]), redo in Rust as an engine ([`native`]), PostgreSQL as an engine ([`process`]), both at once ([`verify`]), what
//! is kept of failures ([`failed_input`]).

mod making;
pub mod pool;
mod stats;

pub mod native;
pub mod process;
pub mod verify;

pub mod failed_input;

use std::time::Duration;

use bytes::Bytes;
use keyenc::{Key, TimelineNo};
use postgres_ffi::page::Page;
use postgres_ffi::{BlockNumber, ForkNumber, Lsn, RelTag};

pub use pool::{BoundOutcome, PendingPage, RedoConfig, RedoStats, WalRedo};

/// What a page at an LSN is made of.
#[derive(Clone, Debug)]
pub struct Chain {
    /// The timeline that the page is read on.
    pub timeline: TimelineNo,
    /// The page: a relation block or an SLRU page.
    pub key: Key,
    /// LSN of the newest delta. Together with `timeline` and `key` it names the result: two chains that agree in
    /// these three give the same page.
    pub version_lsn: Lsn,
    /// The image to start from and its LSN: 8,192 bytes, or none at all for a page of zeroes. `None`: zeroes.
    pub base: Option<(Lsn, Bytes)>,
    /// End LSN and value (tag byte first) of each delta, oldest first.
    pub deltas: Vec<(Lsn, Bytes)>,
}

impl Chain {
    /// Bytes of the base and of all deltas.
    pub fn size_bytes(&self) -> usize {
        let base = self.base.as_ref().map_or(0, |(_, page)| page.len());
        base + self.deltas.iter().map(|(_, delta)| delta.len()).sum::<usize>()
    }
}

/// One relation block for an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineRequest {
    /// The relation.
    pub rel: RelTag,
    /// The fork.
    pub fork: ForkNumber,
    /// The block.
    pub block_no: BlockNumber,
    /// The page before the first record: 8,192 bytes. `None`: zeroes.
    pub base: Option<Bytes>,
    /// PostgreSQL records that touch this block, oldest first: end LSN, complete XLogRecord.
    pub records: Vec<(Lsn, Bytes)>,
}

impl EngineRequest {
    /// Bytes of the base and of all records.
    pub fn size_bytes(&self) -> usize {
        self.base.as_ref().map_or(0, Bytes::len) + self.records.iter().map(|(_, record)| record.len()).sum::<usize>()
    }
}

/// Applies PostgreSQL records to relation blocks. Implementations serve any number of threads at once.
pub trait Engine: Send + Sync {
    /// One answer per request, in their order. A request that fails harms no other. Blocks until all are answered.
    fn redo(&self, requests: &[EngineRequest]) -> Vec<Result<Box<Page>, RedoError>>;

    /// True when applying `record`, a whole XLogRecord, is plain computation: it waits for nobody and may run on any thread.
    fn computes(&self, _record: &[u8]) -> bool {
        false
    }

    /// What it is and what it has done, for people.
    fn report(&self) -> EngineReport;

    /// Called by a walredo thread that has had nothing to do for `idle`: the engine may give back what it holds.
    fn idle(&self, _idle: Duration) {}
}

/// An engine's name and counters, in the order to be shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineReport {
    /// As the configuration names it.
    pub engine: &'static str,
    /// What was counted, and how much of it.
    pub counts: Vec<(&'static str, u64)>,
}

/// The engine of a server that has none: every request is refused.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoEngine;

impl Engine for NoEngine {
    fn redo(&self, requests: &[EngineRequest]) -> Vec<Result<Box<Page>, RedoError>> {
        requests.iter().map(|r| Err(RedoError::NoEngine { rel: r.rel, fork: r.fork, block_no: r.block_no })).collect()
    }

    fn report(&self) -> EngineReport {
        EngineReport { engine: "none", counts: Vec::new() }
    }
}

/// What the caller of redo can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedoErrorKind {
    /// The stored chain does not make a page. Asking again gives the same answer; a person must look.
    Corrupt,
    /// There is no engine just now. Asking again later may help.
    Unavailable,
    /// The server is going down.
    ShuttingDown,
    /// Our own bug.
    Internal,
}

/// Why a page could not be made. Cheap to clone: everyone who waits for the same page gets it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RedoError {
    /// The chain is not one: wrong length of the base, an unreadable delta, a record on a page that has no relation.
    #[error("chain cannot be applied: {reason}. key=`{key}`, version_lsn=`{version_lsn}`")]
    BadChain {
        /// The page.
        key: Key,
        /// Its newest delta.
        version_lsn: Lsn,
        /// What is wrong.
        reason: String,
    },
    /// The engine says that these records do not apply to this page.
    #[error("records do not apply to the page: {message}. block=`{rel}/{fork}/{block_no}`")]
    Refused {
        /// The relation.
        rel: RelTag,
        /// The fork.
        fork: ForkNumber,
        /// The block.
        block_no: BlockNumber,
        /// The engine's words; those of PostgreSQL are its own.
        message: String,
    },
    /// The engine died of this request alone, or took too long for it, or answered what cannot be its result.
    #[error("engine failed at this request: {message}. block=`{rel}/{fork}/{block_no}`")]
    EngineFailed {
        /// The relation.
        rel: RelTag,
        /// The fork.
        fork: ForkNumber,
        /// The block.
        block_no: BlockNumber,
        /// What happened.
        message: String,
    },
    /// The request is longer than any engine takes.
    #[error("record too long for the engine. block=`{rel}/{fork}/{block_no}`, length=`{length}`, limit=`{limit}`")]
    TooLong {
        /// The relation.
        rel: RelTag,
        /// The fork.
        fork: ForkNumber,
        /// The block.
        block_no: BlockNumber,
        /// Its bytes.
        length: usize,
        /// The most that would be taken.
        limit: usize,
    },
    /// The page needs a redo process, because of its records or because the configuration says so, and there is none.
    #[error(
        "page needs redo by a PostgreSQL process, and none was found at start: its records are an extension's, or redo.engine is not `native` (see redo.postgres_bin_dirs and redo.extension_dir). block=`{rel}/{fork}/{block_no}`"
    )]
    NoEngine {
        /// The relation.
        rel: RelTag,
        /// The fork.
        fork: ForkNumber,
        /// The block.
        block_no: BlockNumber,
    },
    /// The engine's process could not be started.
    #[error("redo engine cannot be started: {reason}")]
    CannotStart {
        /// Why.
        reason: String,
    },
    /// The walredo threads have been told to end.
    #[error("walredo is shutting down")]
    ShuttingDown,
    /// Our own bug: a walredo thread panicked while it worked on this page (the log has the panic), or an engine gave
    /// fewer answers than it got requests.
    #[error("walredo failed: {message}")]
    Internal {
        /// What went wrong.
        message: String,
    },
}

impl RedoError {
    /// What to do about it.
    pub fn kind(&self) -> RedoErrorKind {
        match self {
            Self::BadChain { .. } | Self::Refused { .. } | Self::EngineFailed { .. } | Self::TooLong { .. } => {
                RedoErrorKind::Corrupt
            }
            Self::NoEngine { .. } | Self::CannotStart { .. } => RedoErrorKind::Unavailable,
            Self::ShuttingDown => RedoErrorKind::ShuttingDown,
            Self::Internal { .. } => RedoErrorKind::Internal,
        }
    }
}
