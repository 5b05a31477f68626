//! What the store counts, and what it tells.

use serde::Serialize;

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
    /// Calls of `gather`.
    pub gathers: u64,
    /// Seeks in RocksDB made by `gather`: at most one each.
    pub gather_seeks: u64,
    /// Versions that `gather` gave back.
    pub gathered_versions: u64,
    /// `gather` calls by number of versions given back: bucket 0 none, bucket n up to 2^(n-1), the last one all above.
    pub gather_lengths: [u64; 12],
    /// Levels of RocksDB, from 0.
    pub levels: Vec<LevelStats>,
    /// RocksDB's estimate of the number of versions it holds.
    pub versions_estimate: u64,
    /// SST files on disk.
    pub sst_bytes: u64,
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
}

/// One level of RocksDB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LevelStats {
    /// SST files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}
