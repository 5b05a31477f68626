//! Lists as of an LSN, and the history of one object: layers and RocksDB merged.
//!
//! - No lock is held while the caller's function runs; an iterator of RocksDB is, so it keeps old files on disk for that time.
//! - Ordered by key across sources: at equal keys the newest version wins, wherever it stands.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};

use bytes::Bytes;
use keyenc::{Key, Kind, TimelineNo, VersionKey};
use postgres_ffi::Lsn;
use rocksdb::DBRawIterator;

use super::StoreError;
use super::db::{Db, read_error};
use super::gather::decode_version;
use super::layer_map::Layers;
use super::version_bound::VersionBound;

/// Steps over versions of one key before a seek is cheaper.
const STEPS_MAX: usize = 8;

/// What a scan calls for each key.
pub type EachNewest<'a> = dyn FnMut(Key, Lsn, Kind, Bytes) -> ControlFlow<()> + 'a;

type Found = (Key, Lsn, Kind, Bytes);

/// See `TimelineStore::scan_newest`. Break: `each` said so.
pub(super) fn scan_newest(
    db: &Db,
    timeline: TimelineNo,
    layers: &Layers,
    (first, last): (&Key, &Key),
    request_lsn: Lsn,
    each: &mut EachNewest<'_>,
) -> Result<ControlFlow<()>, StoreError> {
    let mut in_layers = newest_in_layers(layers, (first, last), request_lsn).into_iter().peekable();
    let mut in_db = NewestInDb::new(db, timeline, (first, last), request_lsn);
    let mut from_db = in_db.next()?;
    loop {
        let next = match (in_layers.peek(), &from_db) {
            (None, None) => return Ok(ControlFlow::Continue(())),
            (Some(layer), Some(stored)) if layer.0 == stored.0 => {
                // A layer's versions are at or above all that RocksDB has; equal ones say the same. Compare all the same.
                let layer_wins = (layer.1, layer.2) >= (stored.1, stored.2);
                let (stored, layer) = (from_db.take(), in_layers.next());
                from_db = in_db.next()?;
                if layer_wins { layer } else { stored }
            }
            (Some(layer), Some(stored)) if layer.0 < stored.0 => in_layers.next(),
            (Some(_), None) => in_layers.next(),
            (_, Some(_)) => std::mem::replace(&mut from_db, in_db.next()?),
        };
        let Some((key, lsn, kind, value)) = next else { return Ok(ControlFlow::Continue(())) };
        if each(key, lsn, kind, value).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
}

/// About so many bytes of RocksDB are in one answer of [`history`].
const HISTORY_BYTES: usize = 16 << 20;

/// See `TimelineStore::history`.
pub(super) fn history(
    db: &Db,
    timeline: TimelineNo,
    layers: &Layers,
    key: &Key,
    lsn_range: Range<Lsn>,
) -> Result<Vec<(Lsn, Kind, Bytes)>, StoreError> {
    let Some(bound) = VersionBound::below(lsn_range.end, Kind::Tombstone) else { return Ok(Vec::new()) };
    let mut found = BTreeMap::new();
    for layer in layers.newest_first() {
        for version in layer.read().versions(key, bound).take_while(|version| version.lsn >= lsn_range.start) {
            found.entry((version.lsn, version.kind)).or_insert_with(|| Bytes::copy_from_slice(version.value));
        }
    }
    let prefix = VersionKey::object_prefix(timeline, key);
    let mut versions = db.object_iterator(timeline, key);
    versions.seek_for_prev(bound.version_key(timeline, key).encode());
    let (mut bytes, mut oldest_lsn) = (0, Lsn::MAX);
    while let Some((found_key, value)) = versions.item() {
        let (lsn, kind) = decode_version(found_key)?;
        if !found_key.starts_with(&prefix) || lsn < lsn_range.start {
            break;
        }
        if HISTORY_BYTES <= bytes && lsn < oldest_lsn {
            // Above, what is in the layers is all there is.
            found.retain(|(found_lsn, _), _| oldest_lsn <= *found_lsn);
            break;
        }
        (bytes, oldest_lsn) = (bytes + found_key.len() + value.len(), lsn);
        found.entry((lsn, kind)).or_insert_with(|| Bytes::copy_from_slice(value));
        versions.prev();
    }
    versions.status().map_err(|error| read_error(&error))?;
    Ok(found.into_iter().rev().map(|((lsn, kind), value)| (lsn, kind, value)).collect())
}

/// The newest version at or below `request_lsn` of each key of the layers, in key order.
fn newest_in_layers(layers: &Layers, (first, last): (&Key, &Key), request_lsn: Lsn) -> Vec<Found> {
    let bound = VersionBound::at(request_lsn);
    let mut newest = BTreeMap::new();
    for layer in layers.newest_first() {
        let data = layer.read();
        for key in data.keys_between(first, last) {
            if newest.contains_key(&key) {
                continue; // A newer layer has it.
            }
            if let Some(version) = data.versions(&key, bound).next() {
                newest.insert(key, (version.lsn, version.kind, Bytes::copy_from_slice(version.value)));
            }
        }
    }
    newest.into_iter().map(|(key, (lsn, kind, value))| (key, lsn, kind, value)).collect()
}

/// The newest version at or below an LSN of each key in RocksDB, in key order.
struct NewestInDb<'a> {
    versions: DBRawIterator<'a>,
    timeline: TimelineNo,
    bound: VersionBound,
}

impl<'a> NewestInDb<'a> {
    fn new(db: &'a Db, timeline: TimelineNo, (first, last): (&Key, &Key), request_lsn: Lsn) -> Self {
        let mut versions = db.range_iterator(timeline, first, last);
        versions.seek(VersionKey::object_prefix(timeline, first));
        NewestInDb { versions, timeline, bound: VersionBound::at(request_lsn) }
    }

    fn next(&mut self) -> Result<Option<Found>, StoreError> {
        // Stands at the oldest version of the next key.
        while let Some(key) = self.key()? {
            let newest = self.newest_of(&key)?;
            self.move_behind(&key)?;
            if let Some((lsn, kind, value)) = newest {
                return Ok(Some((key, lsn, kind, value)));
            }
        }
        Ok(None)
    }

    /// Walks a few versions, then seeks: relation sizes may have millions.
    fn newest_of(&mut self, key: &Key) -> Result<Option<(Lsn, Kind, Bytes)>, StoreError> {
        let mut newest = None;
        for _ in 0..STEPS_MAX {
            match self.version_of(key)? {
                Some((lsn, kind, value)) if self.bound.includes(lsn, kind) => newest = Some((lsn, kind, value)),
                _ => return Ok(newest.map(|(lsn, kind, value)| (lsn, kind, Bytes::from(value)))),
            }
            self.versions.next();
        }
        self.versions.seek_for_prev(self.bound.version_key(self.timeline, key).encode());
        let found = self.version_of(key)?;
        Ok(found.map(|(lsn, kind, value)| (lsn, kind, Bytes::from(value))))
    }

    /// Moves to the first version of the key after `key`.
    fn move_behind(&mut self, key: &Key) -> Result<(), StoreError> {
        for _ in 0..STEPS_MAX {
            match self.key()? {
                Some(at) if at == *key => self.versions.next(),
                _ => return Ok(()),
            }
        }
        self.versions.seek(VersionBound::at(Lsn::MAX).version_key(self.timeline, key).encode());
        if self.key()? == Some(*key) {
            self.versions.next();
        }
        Ok(())
    }

    fn version_of(&self, key: &Key) -> Result<Option<(Lsn, Kind, Vec<u8>)>, StoreError> {
        if self.key()? != Some(*key) {
            return Ok(None);
        }
        let Some((version_key, value)) = self.versions.item() else { return Ok(None) };
        let (lsn, kind) = decode_version(version_key)?;
        Ok(Some((lsn, kind, value.to_vec())))
    }

    /// The key of the version that the iterator stands at. None: at the end, and nothing failed.
    fn key(&self) -> Result<Option<Key>, StoreError> {
        let Some(version_key) = self.versions.key() else {
            self.versions.status().map_err(|error| read_error(&error))?;
            return Ok(None);
        };
        let version = VersionKey::decode(version_key)
            .map_err(|error| StoreError::Corrupt { detail: format!("{error}: key {version_key:02x?}") })?;
        Ok(Some(version.key))
    }
}
