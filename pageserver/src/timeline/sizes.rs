//! How big a timeline is at an LSN: blocks of relations, by database, and pages of SLRUs.
//!
//! - Read as it is kept (`ingest::kept_sizes`): one object for each database, whatever the number of relations. Where none is kept (a store that
//!   was made before sizes were, until the database changes; a database without relations) the sizes are summed up.
//! - Exact at every LSN that can be read. What PostgreSQL has as files but not in its WAL is not in it: temporary relations, all of an unlogged
//!   one but its init forks, relation maps and the like.

use std::collections::BTreeMap;

use bytes::Bytes;
use keyenc::{Key, Object};
use postgres_ffi::rel::GLOBALTABLESPACE_OID;
use postgres_ffi::{Lsn, SlruKind};

use super::objects::decode_count;
use super::{DatabaseTag, ReadError, Timeline};
use crate::ingest::{KeptSize, summed_keys};

/// A database's share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatabaseSize {
    /// Which; shared relations are `pg_global` and database 0.
    pub database: DatabaseTag,
    /// All forks of its relations in that tablespace.
    pub size: KeptSize,
}

/// What a timeline shows at an LSN.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogicalSize {
    /// Every database in every tablespace, in key order; the shared relations are always there.
    pub databases: Vec<DatabaseSize>,
    /// Every SLRU.
    pub slrus: Vec<(SlruKind, KeptSize)>,
}

impl LogicalSize {
    /// Bytes of all relations and SLRUs.
    pub fn bytes(&self) -> u64 {
        self.relation_bytes().saturating_add(self.slru_bytes())
    }

    /// Bytes of all relations.
    pub fn relation_bytes(&self) -> u64 {
        self.databases.iter().fold(0, |sum, database| sum.saturating_add(database.size.bytes()))
    }

    /// Bytes of all SLRUs.
    pub fn slru_bytes(&self) -> u64 {
        self.slrus.iter().fold(0, |sum, (_, size)| sum.saturating_add(size.bytes()))
    }
}

impl Timeline {
    /// Blocks and relations of a database in a tablespace, all forks.
    pub fn database_size(&self, database: DatabaseTag, request_lsn: Lsn) -> Result<KeptSize, ReadError> {
        let DatabaseTag { spc_oid, db_oid } = database;
        self.size_of(Object::DatabaseSize { spc_oid, db_oid }, request_lsn)
    }

    /// The timeline as it is at `request_lsn`: a read for each database and SLRU.
    pub fn logical_size(&self, request_lsn: Lsn) -> Result<LogicalSize, ReadError> {
        let kept = self.kept_sizes(Object::DatabaseSize { spc_oid: 0, db_oid: 0 }, request_lsn)?;
        let mut all: BTreeMap<DatabaseTag, Option<KeptSize>> =
            self.databases(request_lsn)?.into_iter().map(|database| (database, None)).collect();
        all.entry(DatabaseTag { spc_oid: GLOBALTABLESPACE_OID, db_oid: 0 }).or_default();
        for (object, size) in kept {
            if let Object::DatabaseSize { spc_oid, db_oid } = object {
                all.insert(DatabaseTag { spc_oid, db_oid }, Some(size));
            }
        }
        let mut databases = Vec::with_capacity(all.len());
        for (database, kept) in all {
            let size = kept.map_or_else(|| self.database_size(database, request_lsn), Ok)?;
            databases.push(DatabaseSize { database, size });
        }
        let slru = |kind| Ok((kind, self.size_of(Object::SlruSize { kind }, request_lsn)?));
        let slrus = SlruKind::ALL.into_iter().map(slru).collect::<Result<_, ReadError>>()?;
        Ok(LogicalSize { databases, slrus })
    }

    /// The sizes of `class` (its fields do not matter) that are kept at `request_lsn`.
    pub(crate) fn kept_sizes(&self, class: Object, request_lsn: Lsn) -> Result<Vec<(Object, KeptSize)>, ReadError> {
        let kept = self.objects_of_class(class, request_lsn)?;
        kept.into_iter().map(|(object, value)| Ok((object, decode(object, request_lsn, &value)?))).collect()
    }

    fn size_of(&self, object: Object, request_lsn: Lsn) -> Result<KeptSize, ReadError> {
        self.check_readable(request_lsn)?;
        match self.object_unchecked(&object.into(), request_lsn)? {
            Some(value) => decode(object, request_lsn, &value),
            None => self.summed_size(object, request_lsn),
        }
    }

    /// What a kept size is the sum of, summed up.
    pub(crate) fn summed_size(&self, object: Object, request_lsn: Lsn) -> Result<KeptSize, ReadError> {
        let (first, last) = summed_keys(object);
        let mut size = KeptSize::ZERO;
        for (key, value) in self.objects_between(&first, &last, request_lsn)? {
            let number = decode_count(&key, request_lsn, &value)?;
            match key.object()? {
                Object::RelationSize { fork, .. } => size.add_fork(fork, number),
                _ => size.add_segment(number),
            }
        }
        Ok(size)
    }
}

fn decode(object: Object, version_lsn: Lsn, value: &Bytes) -> Result<KeptSize, ReadError> {
    let damaged =
        || ReadError::Damaged { key: Key::from(object), version_lsn, reason: "a kept size that has not sixteen bytes" };
    KeptSize::decode(value).ok_or_else(damaged)
}
