//! Tablespaces as the catalog has them at an LSN.

use std::collections::BTreeMap;

use bytes::Bytes;
use keyenc::{Key, Object};
use postgres_ffi::page::Page;
use postgres_ffi::rel::GLOBALTABLESPACE_OID;
use postgres_ffi::relation_map::RelationMap;
use postgres_ffi::slru::{XidStatus, clog_place, clog_status};
use postgres_ffi::start::tablespaces::{TABLESPACE_CATALOG_OID, tablespaces};
use postgres_ffi::{ForkNumber, Lsn, Oid, PgVersion, RelTag, SlruKind, TransactionId};

use super::BackupError;
use crate::timeline::{DatabaseTag, Timeline};

/// The shared relations' place.
const SHARED: DatabaseTag = DatabaseTag { spc_oid: GLOBALTABLESPACE_OID, db_oid: 0 };

/// Tablespaces in `pg_tablespace` as of `branch_lsn`, but for those that every cluster has.
pub(super) fn in_catalog(
    timeline: &Timeline,
    branch_lsn: Lsn,
    version: PgVersion,
    relation_maps: &BTreeMap<DatabaseTag, Bytes>,
) -> Result<Vec<Oid>, BackupError> {
    let missing = || BackupError::Missing { what: "relation map of shared catalogs", request_lsn: branch_lsn };
    let map = relation_maps.get(&SHARED).ok_or_else(missing)?;
    let key = Key::from(Object::RelationMap { spc_oid: SHARED.spc_oid, db_oid: SHARED.db_oid });
    let map = RelationMap::decode(version, map).map_err(|_| BackupError::Damaged { key })?;
    let catalog = map.mappings.iter().find(|mapping| mapping.catalog_oid == TABLESPACE_CATALOG_OID);
    let catalog = catalog.ok_or(BackupError::Damaged { key })?;
    let rel = RelTag { spc_oid: SHARED.spc_oid, db_oid: SHARED.db_oid, rel_number: catalog.rel_number };
    let block_count = timeline.relation_size(rel, ForkNumber::Main, branch_lsn)?.unwrap_or(0);
    let mut found = Vec::new();
    let mut clog = Clog { timeline, branch_lsn, failed: None };
    for block_no in 0..block_count {
        let page = page_at(timeline, Key::block(rel, ForkNumber::Main, block_no), branch_lsn)?;
        found.extend(tablespaces(&page, |xid| clog.status(xid)));
    }
    clog.failed.map_or(Ok(found), Err)
}

fn page_at(timeline: &Timeline, key: Key, request_lsn: Lsn) -> Result<Box<Page>, BackupError> {
    let bytes = timeline.get_page_at_lsn(key, request_lsn)?;
    let page: &Page = bytes[..].try_into().map_err(|_| BackupError::Damaged { key })?;
    Ok(Box::new(*page))
}

struct Clog<'a> {
    timeline: &'a Timeline,
    branch_lsn: Lsn,
    /// Why an answer is none.
    failed: Option<BackupError>,
}

impl Clog<'_> {
    fn status(&mut self, xid: TransactionId) -> XidStatus {
        let (page_no, index) = clog_place(xid);
        let key = Key::from(Object::SlruPage { kind: SlruKind::Clog, page_no });
        match page_at(self.timeline, key, self.branch_lsn) {
            Ok(page) => clog_status(&page, index),
            Err(error) => {
                self.failed.get_or_insert(error);
                XidStatus::InProgress
            }
        }
    }
}
