//! What the store counts, and what it tells.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// Buckets of the histogram of gather lengths.
const GATHER_LENGTH_BUCKETS: usize = 12;

/// A snapshot of the store's counters. Counters begin at 0 when the store is opened; bytes are bytes on disk unless said otherwise.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StoreStats {
    /// Memory of open layers, over all timelines.
    pub open_layer_bytes: u64,
    /// Memory of layers that wait for the flusher or are being written.
    pub frozen_layer_bytes: u64,
    /// Memory of materialised pages that wait for a flush.
    pub cache_back_bytes: u64,
    /// Versions put since open.
    pub put_versions: u64,
    /// Bytes of values put since open.
    pub put_value_bytes: u64,
    /// Nanoseconds that `put` waited for the flusher.
    pub put_blocked_nanos: u64,
    /// Sets of files given to RocksDB.
    pub flushes: u64,
    /// Versions written by the flusher, watermarks and materialised pages included.
    pub flushed_versions: u64,
    /// Bytes of SST files written by the flusher.
    pub flushed_bytes: u64,
    /// Nanoseconds that the flusher worked.
    pub flush_nanos: u64,
    /// Materialised pages written by the flusher.
    pub cached_back_pages: u64,
    /// Materialised pages dropped because the queue was full.
    pub cache_back_dropped_pages: u64,
    /// Long chains that flushes found.
    pub long_chains: u64,
    /// Of these, not told because nobody took what was told before.
    pub long_chains_untold: u64,
    /// Calls of `gather`.
    pub gathers: u64,
    /// Seeks in RocksDB made by `gather`: at most one each.
    pub gather_seeks: u64,
    /// Seeks in RocksDB of all kinds, by RocksDB's own count.
    pub rocksdb_seeks: u64,
    /// Files that RocksDB has opened, each time they were.
    pub rocksdb_file_opens: u64,
    /// Versions that `gather` gave back.
    pub gathered_versions: u64,
    /// `gather` calls by number of versions given back: bucket 0 none, bucket n up to 2^(n-1), the last one all above.
    pub gather_lengths: [u64; GATHER_LENGTH_BUCKETS],
    /// Levels of RocksDB, from 0.
    pub levels: Vec<LevelStats>,
    /// RocksDB's estimate of the number of versions it holds.
    pub versions_estimate: u64,
    /// SST files on disk.
    pub sst_bytes: u64,
    /// Blob files on disk.
    pub blob_bytes: u64,
    /// Bytes of blob files that compaction wrote, not counted by `compaction_written_bytes`.
    pub blob_written_bytes: u64,
    /// Bytes that compaction read.
    pub compaction_read_bytes: u64,
    /// Bytes that compaction wrote. Write amplification since open is `1 + compaction_written_bytes / flushed_bytes`.
    pub compaction_written_bytes: u64,
    /// Bytes that compaction has yet to rewrite, estimated.
    pub compaction_pending_bytes: u64,
    /// Blocks found in the block cache.
    pub block_cache_hits: u64,
    /// Blocks read from disk.
    pub block_cache_misses: u64,
    /// Bytes in the block cache.
    pub block_cache_bytes: u64,
    /// The failure that stopped writes, if one did.
    pub poisoned: Option<String>,
    /// Why compaction is paused, if it is.
    pub compaction_paused: Option<String>,
}

/// One level of RocksDB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LevelStats {
    /// SST files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The counters behind [`StoreStats`].
#[derive(Default)]
pub(super) struct Counters {
    pub put_versions: Counter,
    pub put_value_bytes: Counter,
    pub put_blocked_nanos: Counter,
    pub flushes: Counter,
    pub flushed_versions: Counter,
    pub flushed_bytes: Counter,
    pub flush_nanos: Counter,
    pub cached_back_pages: Counter,
    pub cache_back_dropped_pages: Counter,
    pub long_chains: Counter,
    pub long_chains_untold: Counter,
    pub gathers: Counter,
    pub gather_seeks: Counter,
    pub gathered_versions: Counter,
    gather_lengths: [Counter; GATHER_LENGTH_BUCKETS],
}

/// A count that many threads add to and nobody orders anything by.
#[derive(Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    /// Counts one gather that gave back `version_count` versions.
    pub fn count_gather(&self, version_count: usize) {
        self.gathers.add(1);
        self.gathered_versions.add(version_count as u64);
        self.gather_lengths[gather_length_bucket(version_count)].add(1);
    }

    pub fn add_to(&self, stats: &mut StoreStats) {
        stats.put_versions = self.put_versions.get();
        stats.put_value_bytes = self.put_value_bytes.get();
        stats.put_blocked_nanos = self.put_blocked_nanos.get();
        stats.flushes = self.flushes.get();
        stats.flushed_versions = self.flushed_versions.get();
        stats.flushed_bytes = self.flushed_bytes.get();
        stats.flush_nanos = self.flush_nanos.get();
        stats.cached_back_pages = self.cached_back_pages.get();
        stats.cache_back_dropped_pages = self.cache_back_dropped_pages.get();
        stats.long_chains = self.long_chains.get();
        stats.long_chains_untold = self.long_chains_untold.get();
        stats.gathers = self.gathers.get();
        stats.gather_seeks = self.gather_seeks.get();
        stats.gathered_versions = self.gathered_versions.get();
        for (length, counter) in stats.gather_lengths.iter_mut().zip(&self.gather_lengths) {
            *length = counter.get();
        }
    }
}

/// 0 for none, then 1, 2, 3-4, 5-8, and so on.
fn gather_length_bucket(version_count: usize) -> usize {
    let bucket = match version_count {
        0 => 0,
        n => 1 + (n.next_power_of_two().trailing_zeros() as usize),
    };
    bucket.min(GATHER_LENGTH_BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    //! Goal: the histogram's buckets are what the documentation says. Method: the edges.

    use super::*;

    #[test]
    fn gather_lengths_fall_into_powers_of_two() {
        for (version_count, bucket) in
            [(0, 0), (1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (8, 4), (9, 5), (1024, 11), (1 << 40, 11)]
        {
            assert_eq!(gather_length_bucket(version_count), bucket, "{version_count}");
        }
    }
}
