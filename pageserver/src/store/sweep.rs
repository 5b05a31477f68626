//! What garbage collection reads and writes: a timeline's versions in RocksDB in key order, and sets of removals and images.
//!
//! - A walk sees RocksDB as it was when it began, and nothing of what is in memory.
//! - A set becomes part of the store as a whole: who reads sees an object as it was, or as it is behind the set, never in between.
//! - Removed versions take room until compaction has merged them with what they remove: see [`TimelineStore::compact_removed`].

use std::ops::ControlFlow;

use keyenc::{Key, Kind, VersionKey};
use postgres_ffi::Lsn;

use super::db::read_error;
use super::file_set::{FileSet, write_error};
use super::merges::worthwhile_merges;
use super::{StoreError, TimelineStore};
use crate::failpoint::Failpoint;

/// A version in RocksDB, without its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredVersion {
    /// Of what.
    pub key: Key,
    /// Which.
    pub lsn: Lsn,
    /// What kind.
    pub kind: Kind,
    /// Length of its value.
    pub value_bytes: u64,
}

/// Removals and images on their way. Dropped before [`SweepSet::finish`]: nothing has happened.
pub struct SweepSet<'a> {
    store: &'a TimelineStore,
    files: FileSet<'a>,
}

impl TimelineStore {
    /// Calls `each` with every version in RocksDB of objects at or behind `from`, in key order, until it breaks. True: there are no more.
    ///
    /// `each` may wait, but old files stay on disk meanwhile. Errors: `Corrupt`, `Read`; what `each` gives.
    pub fn walk_durable<E: From<StoreError>>(
        &self,
        from: &Key,
        each: &mut dyn FnMut(&StoredVersion) -> Result<ControlFlow<()>, E>,
    ) -> Result<bool, E> {
        let timeline = self.timeline_no();
        let mut versions = self.store().inner().db.walk_iterator(timeline);
        versions.seek(VersionKey::object_prefix(timeline, from));
        while let Some((version_key, value)) = versions.item() {
            let VersionKey { key, lsn, kind, .. } = VersionKey::decode(version_key)
                .map_err(|error| StoreError::Corrupt { detail: format!("{error}: key {version_key:02x?}") })?;
            let version = StoredVersion { key, lsn, kind, value_bytes: value.len() as u64 };
            if each(&version)?.is_break() {
                return Ok(false);
            }
            versions.next();
        }
        // The end and a failure look alike until asked.
        versions.status().map_err(|error| read_error(&error))?;
        Ok(true)
    }

    /// Begins a set.
    pub fn begin_sweep(&self) -> SweepSet<'_> {
        SweepSet { store: self, files: FileSet::new(&self.store().inner().db, self.timeline_no(), true) }
    }

    /// The timeline's share of all SST files, in bytes, and how much of that lies before `key`: by whole files, so roughly.
    pub fn disk_bytes_before(&self, key: &Key) -> (u64, u64) {
        let cursor = VersionKey::object_prefix(self.timeline_no(), key);
        self.store().inner().db.timeline_files(self.timeline_no()).iter().fold((0, 0), |(before, all), file| {
            let is_before = file.end_key.as_slice() < &cursor[..];
            (if is_before { before + file.bytes } else { before }, all + file.bytes)
        })
    }

    /// Merges removals with what they remove, of whatever timeline, where that gives back enough for what it writes ([`super::merges`]); one merge after
    /// the other, until `stop` says so or none is left. Returns the bytes that compaction wrote meanwhile.
    pub fn compact_removed(&self, stop: &mut dyn FnMut(u64) -> bool) -> u64 {
        let db = &self.store().inner().db;
        let begun = db.compaction_written_bytes();
        let written = || db.compaction_written_bytes().saturating_sub(begun);
        // What a file becomes that cannot be got rid of is not looked at again.
        for merge in worthwhile_merges(&db.files()) {
            if stop(written()) {
                break;
            }
            if merge.files.iter().any(|file| db.has_file(file)) {
                db.compact_range(&merge.start_key, &merge.end_key);
            }
        }
        written()
    }
}

impl SweepSet<'_> {
    /// Removes a version. Requires: versions come in ascending order, images of the set included. Errors: `Write`.
    pub fn remove(&mut self, key: &Key, lsn: Lsn, kind: Kind) -> Result<(), StoreError> {
        self.files.remove(key, lsn, kind).map_err(|error| write_error(&error))
    }

    /// Adds an image. Requires: as [`SweepSet::remove`]. Errors: `Write`.
    pub fn put_image(&mut self, key: &Key, lsn: Lsn, image: &[u8]) -> Result<(), StoreError> {
        self.files.put_image(key, lsn, image).map_err(|error| write_error(&error))
    }

    /// True when there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Makes the set part of the store, durably. Bytes of its files. Blocks while compaction is behind.
    /// Errors: `Write` (nothing was changed), `Poisoned`, `TimelineDeleted`, `ShuttingDown`.
    pub fn finish(self) -> Result<u64, StoreError> {
        self.files.finish(self.store, [Failpoint::GcBeforeIngest, Failpoint::GcIngested])
    }
}
