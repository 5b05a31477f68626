//! RocksDB and the layers in memory in front of it: every version of every object of every timeline.
//!
//! A version is put once, in LSN order, and never changed. New versions stand in an *open layer* in memory; it is
//! frozen at a size or an age, and one background thread writes it as sorted SST files that RocksDB takes over in one atomic step,
//! together with the watermark that says how far the timeline's data goes. RocksDB has no log and sees no put.
//!
//! - **Never:** a read at L returns a version above L, or misses one at or below it (model test).
//! - **Never:** a watermark is durable without the data it speaks of, or the other way round for a published timeline.
//! - Each layer of a timeline holds only LSNs at or above everything in older layers and RocksDB: a reader that goes from new to old
//!   meets versions newest first, and always continues *strictly below* the (lsn, kind) that it saw last. So it does no harm
//!   when a layer becomes an SST under its feet.
//! - **Never:** an answer that something lost could change; see `lost`.
//! - After a failed write the store is poisoned until reopened. Nobody retries an fsync.
//! - RocksDB is named here and nowhere else.
//!
//! In reading order.

mod error;
pub use error::StoreError;
mod config;
pub(crate) use config::CHAIN_WEIGHT_LIMIT;
pub use config::{CompactionStyle, Compression, StoreConfig};
mod batch;
pub use batch::Batch;
mod watermark;
pub use watermark::Watermark;
mod stats;
pub use stats::{LevelStats, StoreStats};
mod cache_back;
mod chain_weight;
pub use chain_weight::HeavyChain;
mod long_chains;
pub use long_chains::{LongChain, LongChains};
mod cold_read;
mod db;
mod manifest;
mod pause;
pub use cold_read::{ColdItem, ColdRead, UnreadableRange};
mod carried;
mod gather;
mod layer;
mod layer_map;
mod level0_view;
mod lost;
mod version_bound;
pub use gather::Gathered;
pub use lost::{LostStretch, LostStretches, Position};
mod failed_ingest;
mod file_set;
mod image_set;
pub use image_set::ImageSet;
mod flusher;
mod inner;
mod mended;
mod merges;
pub use mended::{MendedStore, MendedTimeline};
pub(crate) use mended::{is_unsettled, settle};
mod scan;
mod search;
mod sweep;
pub use sweep::{StoredVersion, SweepSet};
mod settle;
mod timeline_bytes;
pub use timeline_bytes::TimelineBytes;
mod timeline_state;
pub use settle::Settled;
pub use timeline_state::Impatience;
mod timeline_store;
pub use timeline_store::TimelineStore;
#[expect(clippy::module_inception, reason = "the type that the folder is about")]
mod store;
pub use store::Store;

#[cfg(test)]
mod tests;
