//! What redo counts, on the walredo threads and on those that ask.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::RedoError;
use super::making::DeltaCounts;

/// What the threads of one pool have done since they started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct RedoStats {
    /// Pages asked for.
    pub requests: u64,
    /// Of these, answered by a redo that was already on its way.
    pub coalesced: u64,
    /// Of these, made by the thread that asked, because that was plain computation and not much of it.
    pub inline: u64,
    /// Batches that the threads took.
    pub batches: u64,
    /// Pages made.
    pub pages: u64,
    /// Pages that could not be made.
    pub failed: u64,
    /// PostgreSQL records applied.
    pub records_postgres: u64,
    /// Deltas of ours applied.
    pub records_ours: u64,
    /// Bytes of bases and deltas that pages were made of.
    pub input_bytes: u64,
    /// Time that the threads worked, all together.
    pub busy: Duration,
    /// Panics caught.
    pub panics: u64,
    /// Chains taken into the backlog.
    pub backlog_accepted: u64,
    /// Pages made from it.
    pub backlog_made: u64,
    /// Requests that wait for a thread now.
    pub queue_len: u64,
    /// Chains in the backlog now.
    pub backlog_len: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    pub requests: AtomicU64,
    pub coalesced: AtomicU64,
    pub inline: AtomicU64,
    pub batches: AtomicU64,
    pub pages: AtomicU64,
    pub failed: AtomicU64,
    pub records_postgres: AtomicU64,
    pub records_ours: AtomicU64,
    pub input_bytes: AtomicU64,
    pub busy_nanos: AtomicU64,
    pub panics: AtomicU64,
    pub backlog_accepted: AtomicU64,
    pub backlog_made: AtomicU64,
}

pub(super) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl Counters {
    pub fn count_result(&self, page: &Result<Bytes, RedoError>) {
        count(if page.is_ok() { &self.pages } else { &self.failed }, 1);
    }

    pub fn count_deltas(&self, deltas: DeltaCounts) {
        count(&self.records_postgres, deltas.postgres);
        count(&self.records_ours, deltas.ours);
    }

    pub fn snapshot(&self, queue_len: usize, backlog_len: usize) -> RedoStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RedoStats {
            requests: read(&self.requests),
            coalesced: read(&self.coalesced),
            inline: read(&self.inline),
            batches: read(&self.batches),
            pages: read(&self.pages),
            failed: read(&self.failed),
            records_postgres: read(&self.records_postgres),
            records_ours: read(&self.records_ours),
            input_bytes: read(&self.input_bytes),
            busy: Duration::from_nanos(read(&self.busy_nanos)),
            panics: read(&self.panics),
            backlog_accepted: read(&self.backlog_accepted),
            backlog_made: read(&self.backlog_made),
            queue_len: queue_len as u64,
            backlog_len: backlog_len as u64,
        }
    }
}
