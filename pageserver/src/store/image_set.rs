//! Images that go straight into RocksDB, past the layers: what a timeline had to read elsewhere so far, as versions of its own.
//!
//! - All of them are at or below what the timeline's layers begin with: a reader that goes from new to old meets them last.
//! - They become part of the store together, or not at all.

use keyenc::Key;
use postgres_ffi::Lsn;

use super::file_set::{FileSet, write_error};
use super::{StoreError, TimelineStore};
use crate::failpoint::Failpoint;

/// Images on their way. Dropped before [`ImageSet::finish`]: nothing has happened.
pub struct ImageSet<'a> {
    store: &'a TimelineStore,
    files: FileSet<'a>,
    image_lsn: Lsn,
    last_key: Option<Key>,
}

impl TimelineStore {
    /// Begins a set of images that all have the LSN `image_lsn`.
    ///
    /// Requires: every other version of this timeline is above it, or an image of the same content at it.
    pub fn begin_images(&self, image_lsn: Lsn) -> ImageSet<'_> {
        let files = FileSet::new(&self.store().inner().db, self.timeline_no(), true);
        ImageSet { store: self, files, image_lsn, last_key: None }
    }
}

impl ImageSet<'_> {
    /// Adds the image of `key`. Requires: keys come in ascending order. Errors: `Write`.
    pub fn put(&mut self, key: Key, image: &[u8]) -> Result<(), StoreError> {
        assert!(self.last_key < Some(key), "images come in key order");
        self.last_key = Some(key);
        self.files.put_image(&key, self.image_lsn, image).map_err(|error| write_error(&error))
    }

    /// Makes the set part of the store, durably. Blocks while compaction is behind.
    /// Errors: `Write` (nothing was added), `Poisoned`, `TimelineDeleted`, `ShuttingDown`.
    pub fn finish(self) -> Result<(), StoreError> {
        let points = [Failpoint::StoreImagesBeforeIngest, Failpoint::StoreImagesIngested];
        self.files.finish(self.store, points).map(drop)
    }
}
