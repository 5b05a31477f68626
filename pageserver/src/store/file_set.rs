//! Writes one frozen layer as sorted SST files: its versions, materialised pages and the watermark, ready to be ingested together.
//!
//! - A file is closed at a size, but never between two versions of one object.
//! - A set that is dropped before it is ingested leaves no file behind.

use std::fs;
use std::iter::Peekable;
use std::path::PathBuf;

use bytes::Bytes;
use keyenc::{Key, Kind, TimelineNo, VersionKey};
use postgres_ffi::Lsn;
use rocksdb::SstFileWriter;

use super::db::Db;
use super::layer::{LayerData, LayerVersion};
use super::version_bound::VersionBound;

/// An image that does not stand in the layer: a materialised page, or the watermark.
pub(super) type ExtraImage = (Key, Lsn, Bytes);

/// Files that are written but not part of the store yet.
pub(super) struct FileSet<'a> {
    db: &'a Db,
    timeline: TimelineNo,
    writer: Option<SstFileWriter<'a>>,
    files: Vec<PathBuf>,
    pub versions: u64,
    pub bytes: u64,
}

impl<'a> FileSet<'a> {
    pub fn new(db: &'a Db, timeline: TimelineNo) -> Self {
        FileSet { db, timeline, writer: None, files: Vec::new(), versions: 0, bytes: 0 }
    }

    /// Writes all versions of `layer` and `extra`, which is in key order. Returns false when `stop` said so first.
    pub fn write(
        &mut self,
        layer: &LayerData,
        extra: &[ExtraImage],
        stop: &dyn Fn() -> bool,
    ) -> Result<bool, rocksdb::Error> {
        let mut extra = extra.iter().peekable();
        let mut newest_first = Vec::new();
        for (n, key) in layer.sorted_keys().iter().enumerate() {
            if n % 4096 == 0 && stop() {
                return Ok(false);
            }
            while let Some((extra_key, lsn, value)) = extra.next_if(|(extra_key, ..)| extra_key < key) {
                self.put_first(extra_key, *lsn, Kind::Image, value)?;
            }
            newest_first.extend(layer.versions(key, VersionBound::at(Lsn::MAX)));
            self.write_key(key, &newest_first, &mut extra)?;
            newest_first.clear();
        }
        for (key, lsn, value) in extra {
            self.put_first(key, *lsn, Kind::Image, value)?;
        }
        self.close_file()?;
        Ok(true)
    }

    /// Makes the set part of the store: durable, all or nothing.
    pub fn ingest(mut self) -> Result<(), rocksdb::Error> {
        assert!(self.writer.is_none(), "the last file is closed");
        if !self.files.is_empty() {
            self.db.ingest(&self.files)?;
        }
        self.files.clear();
        Ok(())
    }

    /// All versions of one key, oldest first, with the extra images of that key in between.
    fn write_key<'b>(
        &mut self,
        key: &Key,
        newest_first: &[LayerVersion<'_>],
        extra: &mut Peekable<impl Iterator<Item = &'b ExtraImage>>,
    ) -> Result<(), rocksdb::Error> {
        let mut is_first = true;
        for version in newest_first.iter().rev() {
            let below =
                |(extra_key, lsn, _): &&ExtraImage| extra_key == key && (*lsn, Kind::Image) < version_of(version);
            while let Some((_, lsn, value)) = extra.next_if(below) {
                self.put(key, *lsn, Kind::Image, value, is_first)?;
                is_first = false;
            }
            // The same image twice: the one in the layer came with WAL.
            extra.next_if(|(extra_key, lsn, _)| extra_key == key && (*lsn, Kind::Image) == version_of(version));
            self.put(key, version.lsn, version.kind, version.value, is_first)?;
            is_first = false;
        }
        while let Some((_, lsn, value)) = extra.next_if(|(extra_key, ..)| extra_key == key) {
            self.put(key, *lsn, Kind::Image, value, false)?;
        }
        Ok(())
    }

    fn put_first(&mut self, key: &Key, lsn: Lsn, kind: Kind, value: &[u8]) -> Result<(), rocksdb::Error> {
        self.put(key, lsn, kind, value, true)
    }

    fn put(
        &mut self,
        key: &Key,
        lsn: Lsn,
        kind: Kind,
        value: &[u8],
        may_begin_file: bool,
    ) -> Result<(), rocksdb::Error> {
        let is_full = |writer: &SstFileWriter<'_>| writer.file_size() >= self.db.file_bytes;
        if may_begin_file && self.writer.as_ref().is_some_and(is_full) {
            self.close_file()?;
        }
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => none.insert(open_file(self.db, &mut self.files)?),
        };
        let version = VersionKey { timeline: self.timeline, key: *key, lsn, kind };
        self.versions += 1;
        writer.put(version.encode(), value)
    }

    fn close_file(&mut self) -> Result<(), rocksdb::Error> {
        let Some(mut writer) = self.writer.take() else { return Ok(()) };
        writer.finish()?;
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

fn open_file<'a>(db: &'a Db, files: &mut Vec<PathBuf>) -> Result<SstFileWriter<'a>, rocksdb::Error> {
    let path = db.new_pending_path();
    let writer = SstFileWriter::create(db.file_options());
    files.push(path.clone());
    writer.open(&path)?;
    Ok(writer)
}

fn version_of(version: &LayerVersion<'_>) -> (Lsn, Kind) {
    (version.lsn, version.kind)
}

/// Deletes all versions of `timeline`, its watermark included: one range deletion in a file of its own, ingested.
pub(super) fn delete_timeline(db: &Db, timeline: TimelineNo) -> Result<(), rocksdb::Error> {
    let mut set = FileSet::new(db, timeline);
    let mut writer = open_file(db, &mut set.files)?;
    let first = timeline.0.to_be_bytes().to_vec();
    let end = match timeline.0.checked_add(1) {
        Some(next) => next.to_be_bytes().to_vec(),
        None => vec![0xFF; keyenc::ENCODED_KEY_LEN + 1],
    };
    writer.delete_range(first, end)?;
    writer.finish()?;
    drop(writer);
    set.ingest()
}
