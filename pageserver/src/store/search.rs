//! The oldest version of one object that is late enough, where what is asked about grows along the WAL.
//!
//! - In memory: a walk down the versions. In RocksDB: a binary search over LSNs with one iterator; a few seeks for each doubling of the
//!   number of versions, whatever their distances.
//! - As in a gather, layers come first and the iterator second: see `layer_map`.

use bytes::Bytes;
use keyenc::{Key, Kind, TimelineNo, VersionKey};
use postgres_ffi::Lsn;
use rocksdb::DBRawIterator;

use super::StoreError;
use super::db::{Db, read_error};
use super::gather::decode_version;
use super::layer_map::Layers;
use super::version_bound::VersionBound;

type Found = Option<(Lsn, Bytes)>;

/// See `TimelineStore::first_version_where`.
pub(super) fn first_version_where<E: From<StoreError>>(
    db: &Db,
    timeline: TimelineNo,
    layers: &Layers,
    key: &Key,
    through: Lsn,
    mut holds: impl FnMut(Lsn, &[u8]) -> Result<bool, E>,
) -> Result<Found, E> {
    let mut found = None;
    for layer in layers.newest_first() {
        let data = layer.read();
        let (mut oldest, mut ended) = (None, false);
        for version in data.versions(key, VersionBound::at(through)) {
            if !holds(version.lsn, version.value)? {
                ended = true;
                break;
            }
            oldest = Some(version);
        }
        if let Some(oldest) = oldest {
            found = Some((oldest.lsn, Bytes::copy_from_slice(oldest.value)));
        }
        if ended {
            return Ok(found);
        }
    }
    let below = match &found {
        Some((lsn, _)) => VersionBound::below(*lsn, Kind::Tombstone),
        None => Some(VersionBound::at(through)),
    };
    let Some(bound) = below else { return Ok(found) };
    let mut versions = VersionsInDb::new(db, timeline, key);
    Ok(versions.first_where(bound, holds)?.or(found))
}

/// The versions of one object in RocksDB.
struct VersionsInDb<'a> {
    versions: DBRawIterator<'a>,
    timeline: TimelineNo,
    key: &'a Key,
    prefix: [u8; keyenc::OBJECT_PREFIX_LEN],
}

impl<'a> VersionsInDb<'a> {
    fn new(db: &'a Db, timeline: TimelineNo, key: &'a Key) -> Self {
        let prefix = VersionKey::object_prefix(timeline, key);
        VersionsInDb { versions: db.object_iterator(timeline, key), timeline, key, prefix }
    }

    fn first_where<E: From<StoreError>>(
        &mut self,
        bound: VersionBound,
        mut holds: impl FnMut(Lsn, &[u8]) -> Result<bool, E>,
    ) -> Result<Found, E> {
        let Some((mut high_lsn, mut found)) = self.newest(bound)? else { return Ok(None) };
        if !holds(high_lsn, &found)? {
            return Ok(None);
        }
        // It holds at `high_lsn`, and not at or below `low_lsn`; nothing below is asked about.
        let mut low_lsn = Lsn::ZERO;
        loop {
            let middle_lsn = Lsn::new(low_lsn.as_u64() + high_lsn.saturating_sub(low_lsn) / 2);
            let next = match self.newest(VersionBound::at(middle_lsn))? {
                Some((lsn, value)) if low_lsn < lsn && holds(lsn, &value)? => {
                    (high_lsn, found) = (lsn, value);
                    continue;
                }
                // The version above it: there is one, since `high_lsn` is above.
                Some(_) => self.following()?,
                None => self.oldest()?,
            };
            let Some((lsn, value)) = next else { break };
            if high_lsn <= lsn || holds(lsn, &value)? {
                (high_lsn, found) = (lsn, value);
                break;
            }
            low_lsn = lsn;
        }
        Ok(Some((high_lsn, found)))
    }

    fn newest(&mut self, bound: VersionBound) -> Result<Found, StoreError> {
        self.versions.seek_for_prev(bound.version_key(self.timeline, self.key).encode());
        self.here()
    }

    fn oldest(&mut self) -> Result<Found, StoreError> {
        self.versions.seek(self.prefix);
        self.here()
    }

    fn following(&mut self) -> Result<Found, StoreError> {
        self.versions.next();
        self.here()
    }

    /// The version that the iterator stands at.
    fn here(&self) -> Result<Found, StoreError> {
        let Some((version_key, value)) = self.versions.item() else {
            // The end and a failure look alike until asked.
            self.versions.status().map_err(|error| read_error(&error))?;
            return Ok(None);
        };
        if !version_key.starts_with(&self.prefix) {
            return Ok(None);
        }
        let (lsn, _) = decode_version(version_key)?;
        Ok(Some((lsn, Bytes::copy_from_slice(value))))
    }
}
