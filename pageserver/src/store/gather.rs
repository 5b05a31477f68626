//! All versions that a page at an LSN is made of: from the layers, then with one reverse seek from RocksDB.
//!
//! - **Never:** a version above `request_lsn`, or one twice. Each source is read strictly below the last version seen.
//! - At most one seek; none when a layer ends the gather.
//! - **Never:** newer versions as they were before a garbage collection and older ones as they are after it: together they are no page. What is collected lies at or
//!   below the watermark, which is known only after the layers that it covers were dropped. So no layer may have been dropped between the two.
//! - Values of one gather share one allocation: a page that is kept keeps its own few deltas, never a layer or a block.

use std::cell::RefCell;
use std::ops::Range;

use bytes::Bytes;
use keyenc::{Key, Kind, TimelineNo, VersionKey};
use postgres_ffi::Lsn;
use rocksdb::DBRawIterator;

use super::StoreError;
use super::db::{Db, read_error};
use super::layer_map::{LayerMap, Layers};
use super::stats::Counters;
use super::version_bound::VersionBound;

/// A thread's buffers larger than this are given back after use.
const SCRATCH_BYTES_KEPT: usize = 256 << 10;

/// What a page at an LSN is made of, as found so far.
#[derive(Clone, Default, Debug)]
pub struct Gathered {
    /// Newest first; the last one ends the gather when `gather` said true.
    pub versions: Vec<(Lsn, Kind, Bytes)>,
    /// Blocks that are read for it do not enter RocksDB's cache.
    is_cold: bool,
}

impl Gathered {
    /// Nothing yet, to be found without pushing anything out of RocksDB's cache.
    pub fn cold() -> Self {
        Gathered { versions: Vec::new(), is_cold: true }
    }

    /// How many of them are records to apply.
    pub fn delta_count(&self) -> usize {
        self.versions.iter().filter(|(_, kind, _)| matches!(kind, Kind::Delta | Kind::InitDelta)).count()
    }
}

/// Versions found by one gather before their values are moved into one allocation.
#[derive(Default)]
struct Scratch {
    versions: Vec<(Lsn, Kind, Range<usize>)>,
    values: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

/// Adds the versions of `key` at or below `request_lsn`, and strictly below the last one of `found`. True: one of them ends the gather.
pub(super) fn gather(
    db: &Db,
    timeline: TimelineNo,
    layer_map: &LayerMap,
    key: &Key,
    request_lsn: Lsn,
    found: &mut Gathered,
    counters: &Counters,
) -> Result<bool, StoreError> {
    loop {
        // First the layers, then (inside) the iterator: see `layer_map`. Again only after a flush.
        let layers = layer_map.current();
        if let Some(ended) = gather_from(db, timeline, (layer_map, &layers), key, request_lsn, found, counters)? {
            return Ok(ended);
        }
    }
}

/// As [`gather`], with layers that were taken from the map before. `None`: `found` is as before, since they do not go with what is in RocksDB any more.
pub(super) fn gather_from(
    db: &Db,
    timeline: TimelineNo,
    (layer_map, layers): (&LayerMap, &Layers),
    key: &Key,
    request_lsn: Lsn,
    found: &mut Gathered,
    counters: &Counters,
) -> Result<Option<bool>, StoreError> {
    let Some(bound) = first_bound(request_lsn, found) else { return Ok(Some(false)) };
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.clear();
        let ended = match scratch.add_from_layers(layers, key, bound) {
            Progress::Ended => true,
            Progress::Exhausted => false,
            Progress::Below(bound) => {
                counters.gather_seeks.add(1);
                let mut versions = match found.is_cold {
                    true => db.cold_object_iterator(timeline, key),
                    false => db.object_iterator(timeline, key),
                };
                if !scratch.versions.is_empty() && layer_map.current().covered_above != layers.covered_above {
                    return Ok(None);
                }
                scratch.add_from_db(&mut versions, timeline, key, bound)?
            }
        };
        counters.count_gather(scratch.versions.len());
        scratch.move_to(found);
        Ok(Some(ended))
    })
}

/// Where a gather begins: at or below the request, and strictly below what the timelines before this one gave. `None`: nothing is there.
pub(super) fn first_bound(request_lsn: Lsn, found: &Gathered) -> Option<VersionBound> {
    let at_request = VersionBound::at(request_lsn);
    match found.versions.last() {
        Some((lsn, kind, _)) => Some(VersionBound::below(*lsn, *kind)?.min(at_request)),
        None => Some(at_request),
    }
}

enum Progress {
    /// A version ended the gather.
    Ended,
    /// Go on here.
    Below(VersionBound),
    /// There is nothing below the last version.
    Exhausted,
}

impl Scratch {
    fn clear(&mut self) {
        self.versions.clear();
        self.values.clear();
    }

    /// True when this version ends the gather.
    fn push(&mut self, lsn: Lsn, kind: Kind, value: &[u8]) -> bool {
        let start = self.values.len();
        self.values.extend_from_slice(value);
        self.versions.push((lsn, kind, start..self.values.len()));
        kind.ends_gather()
    }

    fn add_from_layers(&mut self, layers: &Layers, key: &Key, mut bound: VersionBound) -> Progress {
        for layer in layers.newest_first() {
            let mut last = None;
            for version in layer.read().versions(key, bound) {
                if self.push(version.lsn, version.kind, version.value) {
                    return Progress::Ended;
                }
                last = Some((version.lsn, version.kind));
            }
            if let Some((lsn, kind)) = last {
                match VersionBound::below(lsn, kind) {
                    Some(below) => bound = below,
                    None => return Progress::Exhausted,
                }
            }
        }
        Progress::Below(bound)
    }

    fn add_from_db(
        &mut self,
        versions: &mut DBRawIterator<'_>,
        timeline: TimelineNo,
        key: &Key,
        bound: VersionBound,
    ) -> Result<bool, StoreError> {
        let prefix = VersionKey::object_prefix(timeline, key);
        versions.seek_for_prev(bound.version_key(timeline, key).encode());
        while let Some((found_key, value)) = versions.item() {
            if !found_key.starts_with(&prefix) {
                return Ok(false);
            }
            let (lsn, kind) = decode_version(found_key)?;
            if self.push(lsn, kind, value) {
                return Ok(true);
            }
            versions.prev();
        }
        // The end and a failure look alike until asked.
        versions.status().map_err(|error| read_error(&error))?;
        Ok(false)
    }

    fn move_to(&mut self, found: &mut Gathered) {
        let values = Bytes::copy_from_slice(&self.values);
        found.versions.reserve(self.versions.len());
        found.versions.extend(self.versions.drain(..).map(|(lsn, kind, range)| (lsn, kind, values.slice(range))));
        if self.values.capacity() > SCRATCH_BYTES_KEPT {
            self.values = Vec::new();
        }
    }
}

/// LSN and kind of a key that RocksDB gave. Errors: `Corrupt`, since nobody writes such a key.
pub(super) fn decode_version(version_key: &[u8]) -> Result<(Lsn, Kind), StoreError> {
    VersionKey::decode_version(version_key)
        .map_err(|error| StoreError::Corrupt { detail: format!("{error}: key {version_key:02x?}") })
}
