//! RocksDB, shared by all timelines.

use std::path::Path;
use std::sync::Arc;

use keyenc::TimelineNo;

use super::{StoreConfig, StoreError, StoreStats, TimelineStore};

/// RocksDB, shared by all timelines, and the thread that flushes.
pub struct Store {}

impl Store {
    /// Opens the store in `dir`, or makes an empty one. Errors: `Locked`, `Config`, `Open`, `Corrupt`.
    pub fn open(dir: &Path, config: &StoreConfig) -> Result<Arc<Store>, StoreError> {
        config.check()?;
        Err(StoreError::Locked { dir: dir.to_owned() })
    }

    /// The timeline's versions; reads its watermark.
    pub fn timeline(self: &Arc<Self>, timeline: TimelineNo) -> Result<Arc<TimelineStore>, StoreError> {
        Err(StoreError::TimelineDeleted { timeline })
    }

    /// Drops everything of the timeline, durably.
    pub fn delete_timeline(&self, timeline: TimelineNo) -> Result<(), StoreError> {
        Err(StoreError::TimelineDeleted { timeline })
    }

    /// A snapshot of the counters.
    pub fn stats(&self) -> StoreStats {
        StoreStats::default()
    }

    /// Bytes of all SST files, obsolete ones that are still open included.
    pub fn disk_bytes(&self) -> u64 {
        0
    }
}
