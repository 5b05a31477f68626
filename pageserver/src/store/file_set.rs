//! Writes one frozen layer as sorted SST files: its versions, materialised pages and the watermark, ready to be ingested together.
//!
//! - A file is closed at a size, but never between two versions of one object: what a mend leaves out with a file (`level0_view`) rests on it.
//! - A set that is dropped before it is ingested leaves no file behind.

use std::fs;
use std::iter::Peekable;
use std::path::PathBuf;

use bytes::Bytes;
use keyenc::{Key, Kind, TimelineNo, VersionKey};
use postgres_ffi::Lsn;
use rocksdb::{Options, SstFileWriter};

use super::db::{Db, IngestionError};
use super::flusher::wait_for_level0_unless;
use super::layer::{LayerData, LayerVersion, SortedWindows};
use super::long_chains::ChainFinder;
use super::{StoreError, TimelineStore};
use crate::failpoint::Failpoint;

/// An image that does not stand in the layer: a materialised page, or the watermark.
pub(super) type ExtraImage = (Key, Lsn, Bytes);

/// Files that are written but not part of the store yet.
pub(super) struct FileSet<'a> {
    db: &'a Db,
    options: &'a Options,
    timeline: TimelineNo,
    writer: Option<SstFileWriter<'a>>,
    last_key: Option<Key>,
    split_before_blocks: bool,
    /// For the last level RocksDB keeps a file in memory until it is finished, to make the dictionary of its blocks, and tells no size of it before.
    is_buffered: bool,
    /// Of keys and values in the file that is being written.
    file_bytes: u64,
    files: Vec<PathBuf>,
    /// Sees every version that is written.
    pub chains: ChainFinder,
    pub versions: u64,
    pub bytes: u64,
}

impl<'a> FileSet<'a> {
    /// `split_before_blocks`: blocks get files of their own. An import brings relation after relation; without sizes and the like,
    /// whose keys are far away, its files do not overlap, and RocksDB takes them to the last level at once, never to be rewritten.
    pub fn new(db: &'a Db, timeline: TimelineNo, split_before_blocks: bool) -> Self {
        FileSet {
            split_before_blocks,
            is_buffered: false,
            file_bytes: 0,
            options: db.file_options(),
            db,
            timeline,
            writer: None,
            last_key: None,
            files: Vec::new(),
            chains: ChainFinder::new(0),
            versions: 0,
            bytes: 0,
        }
    }

    /// A set with nothing below or above it: its files are what compaction would make of them.
    pub fn for_last_level(db: &'a Db, timeline: TimelineNo) -> Self {
        let mut set = FileSet::new(db, timeline, false);
        set.options = db.last_level_options();
        set.is_buffered = true;
        set
    }

    /// Writes all versions of `layer` and `extra`, which is in key order. Returns false when `stop` said so first.
    pub fn write(
        &mut self,
        layer: &LayerData,
        extra: &[ExtraImage],
        stop: &dyn Fn() -> bool,
    ) -> Result<bool, rocksdb::Error> {
        let mut extra = extra.iter().peekable();
        let mut windows = SortedWindows::new(layer);
        while let Some(window) = windows.next_window() {
            if stop() {
                return Ok(false);
            }
            for (key, versions) in window.iter() {
                while let Some((extra_key, lsn, value)) = extra.next_if(|(extra_key, ..)| extra_key < key) {
                    self.put(extra_key, *lsn, Kind::Image, value)?;
                }
                self.put_key(key, versions, &mut extra)?;
            }
        }
        for (key, lsn, value) in extra {
            self.put(key, *lsn, Kind::Image, value)?;
        }
        self.close_file()?;
        Ok(true)
    }

    /// Makes the set part of the store: durable, all or nothing.
    pub fn ingest(mut self) -> Result<(), IngestionError> {
        assert!(self.writer.is_none(), "the last file is closed");
        if !self.files.is_empty() {
            self.db.ingest(&self.files)?;
        }
        self.files.clear();
        Ok(())
    }

    /// Ends the set and makes it part of the store beside the flusher, durably; `points` are passed right before and right after. Bytes of its files. Blocks
    /// while compaction is behind. Errors: `Write`, `NoRoom` (nothing was changed), `Poisoned`, `TimelineDeleted`, `ShuttingDown`.
    pub fn finish(mut self, store: &TimelineStore, points: [Failpoint; 2]) -> Result<u64, StoreError> {
        self.close_file().map_err(|error| write_error(&error))?;
        let inner = store.store().inner();
        let state = store.state();
        let gives_up = || inner.is_stopping() || state.is_deleted() || inner.db.is_stuck();
        if !wait_for_level0_unless(inner, &gives_up) {
            state.check_not_deleted()?;
            return Err(if inner.is_stopping() { StoreError::ShuttingDown } else { StoreError::NoRoom });
        }
        let bytes = self.bytes;
        // Whoever deletes the timeline takes this lock first: nothing comes in behind it.
        let _writer = state.writer.lock();
        state.check_not_deleted()?;
        inner.check_writable()?;
        points[0].pass();
        self.ingest().map_err(|error| {
            inner.poison(error.to_string());
            StoreError::Poisoned { cause: error.to_string() }
        })?;
        points[1].pass();
        Ok(bytes)
    }

    /// All versions of one key, oldest first, with the extra images of that key in between.
    fn put_key<'b>(
        &mut self,
        key: &Key,
        versions: &[LayerVersion<'_>],
        extra: &mut Peekable<impl Iterator<Item = &'b ExtraImage>>,
    ) -> Result<(), rocksdb::Error> {
        for version in versions {
            let at = (version.lsn, version.kind);
            let is_below = |(extra_key, lsn, _): &&ExtraImage| extra_key == key && (*lsn, Kind::Image) < at;
            while let Some((_, lsn, value)) = extra.next_if(is_below) {
                self.put(key, *lsn, Kind::Image, value)?;
            }
            // The same image twice: the one in the layer came with WAL.
            extra.next_if(|(extra_key, lsn, _)| extra_key == key && (*lsn, Kind::Image) == at);
            self.put(key, version.lsn, version.kind, version.value)?;
        }
        while let Some((_, lsn, value)) = extra.next_if(|(extra_key, ..)| extra_key == key) {
            self.put(key, *lsn, Kind::Image, value)?;
        }
        Ok(())
    }

    /// Adds one image. Requires: keys come in ascending order.
    pub fn put_image(&mut self, key: &Key, lsn: Lsn, image: &[u8]) -> Result<(), rocksdb::Error> {
        self.put(key, lsn, Kind::Image, image)
    }

    /// Adds the removal of a version. Requires: keys come in ascending order.
    pub fn remove(&mut self, key: &Key, lsn: Lsn, kind: Kind) -> Result<(), rocksdb::Error> {
        let version = VersionKey { timeline: self.timeline, key: *key, lsn, kind };
        let encoded = version.encode();
        let writer = self.writer_for(key)?;
        writer.delete(encoded)?;
        self.file_bytes += encoded.len() as u64;
        Ok(())
    }

    /// True when nothing was added.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Adds a version. Requires: keys come in ascending order.
    pub fn put(&mut self, key: &Key, lsn: Lsn, kind: Kind, value: &[u8]) -> Result<(), rocksdb::Error> {
        let version = VersionKey { timeline: self.timeline, key: *key, lsn, kind };
        self.versions += 1;
        self.chains.add(key, kind);
        let encoded = version.encode();
        let writer = self.writer_for(key)?;
        writer.put(encoded, value)?;
        self.file_bytes += (encoded.len() + value.len()) as u64;
        Ok(())
    }

    /// The file that the next version of `key` goes into.
    fn writer_for(&mut self, key: &Key) -> Result<&mut SstFileWriter<'a>, rocksdb::Error> {
        if self.last_key != Some(*key) {
            if self.split_before_blocks && key.is_block() && !self.last_key.is_some_and(|last| last.is_block()) {
                self.close_file()?;
            }
            self.last_key = Some(*key);
            let file_size =
                |writer: &SstFileWriter<'_>| if self.is_buffered { self.file_bytes } else { writer.file_size() };
            let is_full = |writer: &SstFileWriter<'_>| file_size(writer) >= self.db.flushed_file_bytes;
            if self.writer.as_ref().is_some_and(is_full) {
                self.close_file()?;
            }
        }
        match &mut self.writer {
            Some(writer) => Ok(writer),
            none => Ok(none.insert(open_file(self.db, self.options, &mut self.files)?)),
        }
    }

    /// Ends the file that is being written, if there is one.
    pub fn close_file(&mut self) -> Result<(), rocksdb::Error> {
        let Some(mut writer) = self.writer.take() else { return Ok(()) };
        self.file_bytes = 0;
        writer.finish()?;
        Failpoint::StoreFileWritten.pass();
        self.bytes += writer.file_size();
        Ok(())
    }
}

impl Drop for FileSet<'_> {
    fn drop(&mut self) {
        self.writer = None;
        for file in &self.files {
            // Best effort: what is left is removed when the store is opened again.
            let _ = fs::remove_file(file);
        }
    }
}

/// What a set that cannot be written means to who fills it.
pub(super) fn write_error(error: &dyn std::error::Error) -> StoreError {
    StoreError::Write { cause: error.to_string() }
}

fn open_file<'a>(db: &Db, options: &'a Options, files: &mut Vec<PathBuf>) -> Result<SstFileWriter<'a>, rocksdb::Error> {
    let path = db.new_pending_path();
    let writer = SstFileWriter::create(options);
    files.push(path.clone());
    writer.open(&path)?;
    Ok(writer)
}

/// Deletes all versions of `timeline`, its watermark included: first the files that hold nothing else, unread, then the rest with one range deletion in a file of
/// its own, ingested. After a crash between the two something of it may be left, with or without a watermark: it must be called again.
pub(super) fn delete_timeline(db: &Db, timeline: TimelineNo) -> Result<(), IngestionError> {
    Failpoint::StoreBeforeDelete.pass();
    db.delete_whole_files(timeline)?;
    Failpoint::StoreFilesDeleted.pass();
    let mut set = FileSet::new(db, timeline, false);
    let mut writer = open_file(db, db.file_options(), &mut set.files)?;
    let first = timeline.0.to_be_bytes().to_vec();
    let end = match timeline.0.checked_add(1) {
        Some(next) => next.to_be_bytes().to_vec(),
        None => vec![0xFF; keyenc::ENCODED_KEY_LEN + 1],
    };
    writer.delete_range(first, end)?;
    writer.finish()?;
    drop(writer);
    set.ingest()?;
    Failpoint::StoreDeleted.pass();
    Ok(())
}

#[cfg(test)]
mod tests {
    //! Goal: files end where they are large enough, whatever RocksDB tells of their size. Method: images that do not compress.

    use postgres_ffi::{ForkNumber, RelTag};
    use rand::rngs::SmallRng;
    use rand::{RngCore, SeedableRng};

    use super::*;
    use crate::store::{Store, StoreConfig};

    #[test]
    fn files_for_the_last_level_have_their_size() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = StoreConfig { file_bytes: 64 << 10, ..StoreConfig::default() };
        let store = Store::open(dir.path(), &config).expect("the store opens");
        let db = &store.inner().db;
        let rel = RelTag { spc_oid: 1663, db_oid: 5, rel_number: 16384 };
        let mut random = SmallRng::seed_from_u64(1);
        let mut image = [0; 8192];
        let image_count = 4 * db.flushed_file_bytes / image.len() as u64;
        for mut set in [FileSet::for_last_level(db, TimelineNo(1)), FileSet::new(db, TimelineNo(1), false)] {
            for block_no in 0..image_count {
                random.fill_bytes(&mut image);
                let key = Key::block(rel, ForkNumber::Main, u32::try_from(block_no).expect("a few"));
                set.put(&key, Lsn::new(8), Kind::Image, &image).expect("put");
            }
            set.close_file().expect("closed");
            assert!((4..=6).contains(&set.files.len()), "{}", set.files.len());
        }
    }
}
