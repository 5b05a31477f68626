//! Reads of whole objects: relation sizes, databases, SLRU segments, files.

use std::ops::ControlFlow;

use byteorder::{BigEndian, ByteOrder};
use bytes::Bytes;
use keyenc::{Key, Kind, Object};
use postgres_ffi::{BlockNumber, ForkNumber, Lsn, Oid, RelTag, SlruKind};

use super::{ReadError, Timeline};
use crate::store::LostStretches;

/// A database and the tablespace that it lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DatabaseTag {
    /// Tablespace.
    pub spc_oid: Oid,
    /// Database.
    pub db_oid: Oid,
}

impl Timeline {
    /// The newest whole value of `object` at or below `request_lsn`; `None` where it does not exist.
    /// For pages use [`Timeline::get_page_at_lsn`].
    pub fn object(&self, object: Object, request_lsn: Lsn) -> Result<Option<Bytes>, ReadError> {
        self.check_readable(request_lsn)?;
        self.object_unchecked(&Key::from(object), request_lsn)
    }

    /// As [`Timeline::object`], for ingest: the LSN may be one that readers cannot ask for yet.
    pub(super) fn object_unchecked(&self, key: &Key, request_lsn: Lsn) -> Result<Option<Bytes>, ReadError> {
        let unchanged = |after, through| self.is_unchanged(key, after, through);
        if let Some(known) = self.cache.get(self.no, key, request_lsn, unchanged) {
            return Ok(known);
        }
        let found = self.gather(key, request_lsn)?;
        let Some((lsn, kind, value)) = found.versions.into_iter().next() else {
            self.cache.insert(self.no, key, None, request_lsn, None);
            return Ok(None);
        };
        let value = match kind {
            Kind::Tombstone => None,
            Kind::Image => Some(value),
            Kind::Delta | Kind::InitDelta => {
                return Err(ReadError::Damaged {
                    key: *key,
                    version_lsn: lsn,
                    reason: "a delta of something that is no page",
                });
            }
        };
        self.cache.insert(self.no, key, Some(lsn), request_lsn, value.clone());
        Ok(value)
    }

    /// Blocks of a relation fork; `None` if the fork does not exist at `request_lsn`.
    pub fn relation_size(
        &self,
        rel: RelTag,
        fork: ForkNumber,
        request_lsn: Lsn,
    ) -> Result<Option<BlockNumber>, ReadError> {
        self.check_readable(request_lsn)?;
        self.count_object(Object::RelationSize { rel, fork }, request_lsn)
    }

    /// Pages of an SLRU segment file; `None` if the segment does not exist at `request_lsn`.
    pub fn slru_segment_pages(
        &self,
        kind: SlruKind,
        segment_no: u32,
        request_lsn: Lsn,
    ) -> Result<Option<u32>, ReadError> {
        self.check_readable(request_lsn)?;
        self.count_object(Object::SlruSegment { kind, segment_no }, request_lsn)
    }

    pub(super) fn count_object(&self, object: Object, request_lsn: Lsn) -> Result<Option<u32>, ReadError> {
        let key = Key::from(object);
        self.object_unchecked(&key, request_lsn)?.map(|value| decode_count(&key, request_lsn, &value)).transpose()
    }

    /// The objects between `first` and `last` that exist at `request_lsn`, in key order, with their values.
    pub(super) fn objects_between(
        &self,
        first: &Key,
        last: &Key,
        request_lsn: Lsn,
    ) -> Result<Vec<(Key, Bytes)>, ReadError> {
        let newest = self.through_ancestors(request_lsn, |ancestors| {
            let mut newest: std::collections::BTreeMap<Key, Option<Bytes>> = std::collections::BTreeMap::new();
            let own = std::iter::once((&self.store, request_lsn));
            let inherited =
                ancestors.iter().map(|(ancestor, branch_lsn)| (&ancestor.store, request_lsn.min(*branch_lsn)));
            for (store, lsn) in own.chain(inherited) {
                store.scan_newest(first, last, lsn, &mut |key, _lsn, kind, value| {
                    newest.entry(key).or_insert((kind == Kind::Image).then_some(value));
                    ControlFlow::Continue(())
                })?;
            }
            Ok(newest)
        })?;
        Ok(newest.into_iter().filter_map(|(key, value)| Some((key, value?))).collect())
    }

    /// Relation forks of a database in a tablespace with their number of blocks, ordered by relation and fork.
    /// Shared relations: `pg_global` and database 0.
    pub fn relations(
        &self,
        database: DatabaseTag,
        request_lsn: Lsn,
    ) -> Result<Vec<(RelTag, ForkNumber, BlockNumber)>, ReadError> {
        self.check_readable(request_lsn)?;
        let (first, last) = Key::relation_sizes_of_database(database.spc_oid, database.db_oid);
        self.relations_between(&first, &last, request_lsn)
    }

    /// Every relation fork of the cluster with its number of blocks.
    pub fn all_relations(&self, request_lsn: Lsn) -> Result<Vec<(RelTag, ForkNumber, BlockNumber)>, ReadError> {
        self.check_readable(request_lsn)?;
        self.all_relations_unchecked(request_lsn)
    }

    /// The same below what can be read: for ingest.
    pub(super) fn all_relations_unchecked(
        &self,
        request_lsn: Lsn,
    ) -> Result<Vec<(RelTag, ForkNumber, BlockNumber)>, ReadError> {
        let any = RelTag { spc_oid: 0, db_oid: 0, rel_number: 0 };
        let (first, last) = Key::class_of(Object::RelationSize { rel: any, fork: ForkNumber::Main });
        self.relations_between(&first, &last, request_lsn)
    }

    fn relations_between(
        &self,
        first: &Key,
        last: &Key,
        request_lsn: Lsn,
    ) -> Result<Vec<(RelTag, ForkNumber, BlockNumber)>, ReadError> {
        let mut relations = Vec::new();
        for (key, value) in self.objects_between(first, last, request_lsn)? {
            if let Object::RelationSize { rel, fork } = key.object()? {
                relations.push((rel, fork, decode_count(&key, request_lsn, &value)?));
            }
        }
        Ok(relations)
    }

    /// Objects of the class that `class` belongs to (its fields do not matter), with their values, in key order.
    pub fn objects_of_class(&self, class: Object, request_lsn: Lsn) -> Result<Vec<(Object, Bytes)>, ReadError> {
        self.check_readable(request_lsn)?;
        let (first, last) = Key::class_of(class);
        self.objects_between(&first, &last, request_lsn)?
            .into_iter()
            .map(|(key, value)| Ok((key.object()?, value)))
            .collect()
    }

    /// Databases that exist at `request_lsn`.
    pub fn databases(&self, request_lsn: Lsn) -> Result<Vec<DatabaseTag>, ReadError> {
        let found = self.objects_of_class(Object::Database { spc_oid: 0, db_oid: 0 }, request_lsn)?;
        Ok(found
            .into_iter()
            .filter_map(|(object, _)| match object {
                Object::Database { spc_oid, db_oid } => Some(DatabaseTag { spc_oid, db_oid }),
                _ => None,
            })
            .collect())
    }

    /// Segments of an SLRU with their number of pages, ordered by number.
    pub fn slru_segments(&self, kind: SlruKind, request_lsn: Lsn) -> Result<Vec<(u32, u32)>, ReadError> {
        let mut segments = Vec::new();
        for (object, value) in self.objects_of_class(Object::SlruSegment { kind, segment_no: 0 }, request_lsn)? {
            if let Object::SlruSegment { kind: found, segment_no } = object
                && found == kind
            {
                segments.push((segment_no, decode_count(&Key::from(object), request_lsn, &value)?));
            }
        }
        Ok(segments)
    }

    /// What a mend had to leave out of its own versions.
    pub fn lost(&self) -> &LostStretches {
        self.store.lost()
    }

    /// Versions of `object` with an LSN in `lsn_range` that are stored, newest first, of this timeline or the nearest ancestor that has some. Older ones are asked for with the LSN of
    /// the last one as the end, until none comes.
    pub fn history(
        &self,
        object: Object,
        lsn_range: std::ops::Range<Lsn>,
    ) -> Result<Vec<(Lsn, Kind, Bytes)>, ReadError> {
        let key = Key::from(object);
        let floor_lsn = self.lineage().floor_lsn;
        self.through_ancestors_as_stored(floor_lsn, |ancestors| {
            let mut versions = self.store.history(&key, lsn_range.clone())?;
            for (ancestor, branch_lsn) in ancestors {
                let end = branch_lsn.checked_add(1).unwrap_or(Lsn::MAX).min(lsn_range.end);
                if versions.is_empty() && lsn_range.start < end {
                    versions = ancestor.store.history(&key, lsn_range.start..end)?;
                }
            }
            Ok(versions)
        })
    }
}

/// Sizes are stored as a big-endian u32.
pub(super) fn decode_count(key: &Key, version_lsn: Lsn, value: &[u8]) -> Result<u32, ReadError> {
    if value.len() != 4 {
        return Err(ReadError::Damaged { key: *key, version_lsn, reason: "a size that has not four bytes" });
    }
    Ok(BigEndian::read_u32(value))
}
