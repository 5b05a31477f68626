//! Settings of the store.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::StoreError;

/// How compaction arranges files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CompactionStyle {
    /// Levels, each ten times the one above: little space, more writing.
    Level,
    /// Runs that are merged when there are many of a size: less writing, up to twice the space for a while.
    Universal,
}

/// How blocks are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Fast.
    Lz4,
    /// Small, at level 1.
    Zstd,
}

/// Settings of the store. Sizes in bytes. Memory in use is about `layer_bytes + block_cache_bytes + cache_back_bytes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// Memory for versions that are not in RocksDB yet, over all timelines. `put` blocks at this limit. An open layer is frozen when
    /// the open layers together reach half of it: the other half is room for new versions while the flusher works.
    pub layer_bytes: usize,
    /// RocksDB's cache of uncompressed blocks, index and filter blocks included.
    pub block_cache_bytes: usize,
    /// Materialised pages that wait for the next flush; more are dropped.
    pub cache_back_bytes: usize,
    /// A layer is flushed at this age even when it is small, so that an idle timeline becomes durable and its WAL can go.
    pub flush_interval: Duration,
    /// Size of an SST file that compaction writes; the flusher closes one at four times that.
    pub file_bytes: u64,
    /// Uncompressed size of a data block: a larger one takes less space, since pages are compressed together, and costs each read that misses
    /// the cache more.
    pub block_bytes: usize,
    /// How compaction arranges files. May be changed between two opens.
    pub compaction: CompactionStyle,
    /// Compression of files that compaction writes, but for the last level. What the flusher writes is LZ4.
    pub compression: Compression,
    /// Compression of the last level, where most of everything is.
    pub bottommost_compression: Compression,
    /// Size of the dictionary of each file of the last level, if that is ZSTD; 0: none.
    pub dictionary_bytes: u32,
    /// Compaction moves values of at least this size into blob files, which it need not rewrite each time. 0: none.
    pub blob_bytes_min: u64,
    /// Threads that RocksDB may use for compaction.
    pub background_jobs: u32,
    /// Limit of compaction's writes, in bytes per second. 0: none.
    pub compaction_bytes_per_second: u64,
    /// The flusher waits while level 0 has this many files: each one costs every read.
    pub level0_files_max: u32,
    /// SST files that RocksDB keeps open.
    pub open_files_max: u32,
    /// A flush tells of pages that it wrote at least this many deltas of, with no image above (see `Store::long_chains`). 0: of none.
    pub long_chain_deltas_min: u32,
    /// `TimelineStore::put_weighed` tells of chains of at least this weight: as many deltas, or fewer with more than 4 KiB for each. 0: of none.
    pub chain_weight_max: u32,
}

/// Weights are counted in 16 bits, and a chain may come to weigh some times the limit.
pub(crate) const CHAIN_WEIGHT_LIMIT: u32 = 10_000;

impl Default for StoreConfig {
    fn default() -> Self {
        StoreConfig {
            layer_bytes: 256 << 20,
            block_cache_bytes: 256 << 20,
            cache_back_bytes: 32 << 20,
            flush_interval: Duration::from_secs(600),
            file_bytes: 64 << 20,
            block_bytes: 32 << 10,
            compaction: CompactionStyle::Level,
            compression: Compression::Lz4,
            bottommost_compression: Compression::Zstd,
            dictionary_bytes: 64 << 10,
            blob_bytes_min: 0,
            background_jobs: 2,
            compaction_bytes_per_second: 0,
            level0_files_max: 12,
            open_files_max: 1024,
            long_chain_deltas_min: 0,
            chain_weight_max: 0,
        }
    }
}

impl StoreConfig {
    /// Refuses settings that cannot work, by name.
    pub fn check(&self) -> Result<(), StoreError> {
        let refuse = |setting, reason| Err(StoreError::Config { setting, reason });
        match () {
            () if self.layer_bytes < 1 << 20 => refuse("layer_bytes", "must be at least 1 MiB"),
            () if self.block_cache_bytes < 1 << 20 => refuse("block_cache_bytes", "must be at least 1 MiB"),
            () if !(4 << 10..=1 << 40).contains(&self.file_bytes) => {
                refuse("file_bytes", "must be between 4 KiB and 1 TiB")
            }
            () if !(1 << 10..=1 << 20).contains(&self.block_bytes) => {
                refuse("block_bytes", "must be between 1 KiB and 1 MiB")
            }
            () if !(1..=64).contains(&self.background_jobs) => refuse("background_jobs", "must be between 1 and 64"),
            () if self.level0_files_max < 4 => refuse("level0_files_max", "must be at least 4"),
            () if !(16..=1 << 20).contains(&self.open_files_max) => {
                refuse("open_files_max", "must be between 16 and 1048576")
            }
            () if self.chain_weight_max > CHAIN_WEIGHT_LIMIT => refuse("chain_weight_max", "must be at most 10000"),
            () if self.flush_interval.is_zero() => refuse("flush_interval", "must not be zero"),
            () => Ok(()),
        }
    }
}
