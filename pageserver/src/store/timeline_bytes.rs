//! What a timeline's versions take, without a look at them: by RocksDB's index blocks and the counters of layers.

use super::TimelineStore;

/// What the versions of one timeline take: its own, not those of ancestors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimelineBytes {
    /// In RocksDB's files, compressed; removed versions count until compaction has merged them. Estimated, to a few blocks of 32 KiB.
    pub files: u64,
    /// The same before compression, by what the store compresses to on average.
    pub uncompressed: u64,
    /// In layers that are not flushed yet.
    pub memory: u64,
}

impl TimelineStore {
    /// What its versions take. Costs a look at the index of each file that overlaps them, and at the properties of all files.
    pub fn bytes(&self) -> TimelineBytes {
        let db = &self.store().inner().db;
        let files = db.timeline_bytes(self.timeline_no());
        let uncompressed = (files as f64 * db.compression_ratio()) as u64;
        // First RocksDB, then the layers: one that is flushed in between counts nowhere rather than twice.
        let layers = self.state().layers.current();
        let memory = layers.newest_first().map(|layer| layer.allocated_bytes() as u64).sum();
        TimelineBytes { files, uncompressed, memory }
    }
}
