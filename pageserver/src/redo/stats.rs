//! What redo counts, on the walredo threads and on those that ask.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::RedoError;
use super::making::DeltaCounts;

/// Deltas of a read's chain, each bound inclusive; one bucket more is for what is longer.
const READ_CHAIN_BOUNDS: [usize; 12] = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];
const READ_CHAIN_BUCKETS: usize = READ_CHAIN_BOUNDS.len() + 1;

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
    /// Pages that could not be made from it, or whose versions could not be read for it.
    pub backlog_failed: u64,
    /// Long chains that never got into it: too many waited.
    pub backlog_dropped: u64,
    /// Deltas of the longest chain that a read met.
    pub read_chain_longest: u64,
    /// Pages made because their chain had become too long, and put where it ends.
    pub bound_images: u64,
    /// Chains looked at because they might have been too long, and were not.
    pub bound_short: u64,
    /// Chains that stay too long because no page can be made of them.
    pub bound_failed: u64,
    /// Times that ingest stood still for such pages, because their chains were far too long: it made them, or waited until they were made.
    pub bound_ingest_waits: u64,
    /// How long, all together, in milliseconds.
    pub bound_ingest_wait_ms: u64,
    /// Requests that wait for a thread now.
    pub queue_len: u64,
    /// Chains in the backlog now.
    pub backlog_len: u64,
    /// Reads that went to the store, by the number of deltas of their chain. See [`RedoStats::read_chains`].
    #[serde(skip)]
    read_chains: [u64; READ_CHAIN_BUCKETS],
}

impl RedoStats {
    /// Reads of pages that went to the store, those of ingest included, by the number of deltas (PostgreSQL's and ours) behind their base:
    /// name and count of each bucket, from `up_to_0` (an image, or zeroes) to `above_1024`.
    pub fn read_chains(&self) -> impl Iterator<Item = (String, u64)> {
        let up_to = READ_CHAIN_BOUNDS.iter().map(|bound| format!("up_to_{bound}"));
        let above = READ_CHAIN_BOUNDS.last().map(|bound| format!("above_{bound}"));
        up_to.chain(above).zip(self.read_chains)
    }
}

fn read_chain_bucket(delta_count: usize) -> usize {
    READ_CHAIN_BOUNDS.partition_point(|bound| *bound < delta_count)
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
    pub backlog_failed: AtomicU64,
    pub backlog_dropped: AtomicU64,
    pub bound_images: AtomicU64,
    pub bound_short: AtomicU64,
    pub bound_failed: AtomicU64,
    pub bound_ingest_waits: AtomicU64,
    pub bound_ingest_wait_nanos: AtomicU64,
    read_chain_longest: AtomicU64,
    read_chains: [AtomicU64; READ_CHAIN_BUCKETS],
}

pub(super) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl Counters {
    pub fn count_result(&self, page: &Result<Bytes, RedoError>) {
        count(if page.is_ok() { &self.pages } else { &self.failed }, 1);
    }

    pub fn count_read_chain(&self, delta_count: usize) {
        count(&self.read_chains[read_chain_bucket(delta_count)], 1);
        self.read_chain_longest.fetch_max(delta_count as u64, Ordering::Relaxed);
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
            backlog_failed: read(&self.backlog_failed),
            backlog_dropped: read(&self.backlog_dropped),
            bound_images: read(&self.bound_images),
            bound_short: read(&self.bound_short),
            bound_failed: read(&self.bound_failed),
            bound_ingest_waits: read(&self.bound_ingest_waits),
            bound_ingest_wait_ms: read(&self.bound_ingest_wait_nanos) / 1_000_000,
            read_chain_longest: read(&self.read_chain_longest),
            read_chains: self.read_chains.each_ref().map(read),
            queue_len: queue_len as u64,
            backlog_len: backlog_len as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: the histogram's buckets are what their names say. Method: the edges.

    use super::*;

    #[test]
    fn read_chains_fall_into_the_bucket_of_their_name() {
        for (delta_count, name) in [
            (0, "up_to_0"),
            (1, "up_to_1"),
            (2, "up_to_2"),
            (3, "up_to_4"),
            (4, "up_to_4"),
            (5, "up_to_8"),
            (256, "up_to_256"),
            (257, "up_to_512"),
            (1025, "above_1024"),
            (usize::MAX, "above_1024"),
        ] {
            let counters = Counters::default();
            counters.count_read_chain(delta_count);
            let found: Vec<_> = counters.snapshot(0, 0).read_chains().filter(|(_, count)| *count > 0).collect();
            assert_eq!(found, [(name.to_owned(), 1)], "{delta_count}");
        }
    }
}
