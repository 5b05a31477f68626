//! What a cluster consists of at an LSN: lists, no pages.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use keyenc::{Key, Object};
use postgres_ffi::control_file::ControlFile;
use postgres_ffi::rel::DEFAULTTABLESPACE_OID;
use postgres_ffi::start::files;
use postgres_ffi::{BLCKSZ, BlockNumber, ForkNumber, Lsn, Oid, PgVersion, RelTag, SlruKind};

use super::{BackupError, tablespaces};
use crate::ingest::OriginProgress;
use crate::timeline::{DatabaseTag, Timeline};

/// Everything that goes into the archive, but for the pages themselves.
pub(super) struct Contents {
    pub(super) version: PgVersion,
    pub(super) catalog_version_no: u32,
    /// Directories of databases, shared relations and other tablespaces included.
    pub(super) databases: Vec<DatabaseTag>,
    pub(super) relation_maps: BTreeMap<DatabaseTag, Bytes>,
    /// Tablespaces but for the two that every cluster has, empty ones included.
    pub(super) tablespaces: BTreeSet<Oid>,
    pub(super) slrus: BTreeMap<SlruKind, BTreeMap<u32, u32>>,
    /// Full transaction ids and state files.
    pub(super) two_phase: Vec<(u64, Bytes)>,
    pub(super) origins: Vec<(u16, Lsn)>,
    /// Forks with their blocks, without those that an init fork stands for.
    pub(super) forks: Vec<(RelTag, ForkNumber, BlockNumber)>,
}

impl Contents {
    /// Everything as of `branch_lsn`, of prepared transactions those that were prepared by `two_phase_lsn` already.
    pub(super) fn list(
        timeline: &Timeline,
        branch_lsn: Lsn,
        two_phase_lsn: Lsn,
        control_file: &ControlFile,
    ) -> Result<Self, BackupError> {
        let mut relation_maps = BTreeMap::new();
        for (object, value) in timeline.objects_of_class(Object::RelationMap { spc_oid: 0, db_oid: 0 }, branch_lsn)? {
            if let Object::RelationMap { spc_oid, db_oid } = object {
                relation_maps.insert(DatabaseTag { spc_oid, db_oid }, value);
            }
        }
        let mut slrus = BTreeMap::new();
        for kind in SlruKind::ALL {
            slrus.insert(kind, timeline.slru_segments(kind, branch_lsn)?.into_iter().collect());
        }
        // Of a transaction that has ended since, PostgreSQL does not want to find the file either.
        let earlier: BTreeSet<u64> = two_phase(timeline, two_phase_lsn)?.into_iter().map(|(xid, _)| xid).collect();
        let mut two_phase = two_phase(timeline, branch_lsn)?;
        two_phase.retain(|(xid, _)| earlier.contains(xid));
        let databases = timeline.databases(branch_lsn)?;
        let with_files = databases.iter().map(|database| database.spc_oid).filter(|spc_oid| !is_built_in(*spc_oid));
        let mut tablespaces: BTreeSet<Oid> = with_files.collect();
        tablespaces.extend(tablespaces::in_catalog(timeline, branch_lsn, control_file.version, &relation_maps)?);
        Ok(Contents {
            version: control_file.version,
            catalog_version_no: control_file.catalog_version_no,
            databases,
            relation_maps,
            tablespaces,
            slrus,
            two_phase,
            origins: origins(timeline, branch_lsn)?,
            forks: without_reset_forks(timeline.all_relations(branch_lsn)?),
        })
    }

    /// Bytes of all files with pages.
    pub(super) fn bytes(&self, no_data: bool) -> u64 {
        let slru_pages = self.slrus.values().flat_map(BTreeMap::values).map(|count| u64::from(*count));
        let fork_pages = self.forks_sent(no_data).map(|(_, _, block_count)| u64::from(*block_count));
        slru_pages.chain(fork_pages).sum::<u64>() * BLCKSZ as u64
    }

    /// The forks that go into the archive.
    pub(super) fn forks_sent(&self, no_data: bool) -> impl Iterator<Item = &(RelTag, ForkNumber, BlockNumber)> + Clone {
        self.forks.iter().filter(move |(_, fork, _)| !no_data || *fork == ForkNumber::Init)
    }

    /// The directory of a database, of shared relations, or of a database in another tablespace.
    pub(super) fn directory_of(&self, database: DatabaseTag) -> String {
        files::database_directory(self.version, self.catalog_version_no, database.spc_oid, database.db_oid)
    }
}

fn is_built_in(spc_oid: Oid) -> bool {
    matches!(spc_oid, DEFAULTTABLESPACE_OID | postgres_ffi::rel::GLOBALTABLESPACE_OID)
}

/// Full transaction ids and state files of what is prepared.
fn two_phase(timeline: &Timeline, request_lsn: Lsn) -> Result<Vec<(u64, Bytes)>, BackupError> {
    let mut found = Vec::new();
    for (object, value) in timeline.objects_of_class(Object::TwoPhase { xid: 0 }, request_lsn)? {
        if let Object::TwoPhase { xid } = object {
            found.push((xid, value));
        }
    }
    Ok(found)
}

fn origins(timeline: &Timeline, branch_lsn: Lsn) -> Result<Vec<(u16, Lsn)>, BackupError> {
    let mut origins = Vec::new();
    for (object, value) in timeline.objects_of_class(Object::ReplicationOrigin { origin_id: 0 }, branch_lsn)? {
        let Object::ReplicationOrigin { origin_id } = object else { continue };
        let progress = OriginProgress::decode(&value).ok_or(BackupError::Damaged { key: Key::from(object) })?;
        origins.push((origin_id, progress.remote_lsn));
    }
    Ok(origins)
}

/// Without the forks of unlogged relations that the server makes from init forks as it starts. It wants none of them there.
/// PG 15, 18: src/backend/storage/file/reinit.c.
fn without_reset_forks(forks: Vec<(RelTag, ForkNumber, BlockNumber)>) -> Vec<(RelTag, ForkNumber, BlockNumber)> {
    let is_init = |(_, fork, _): &&(RelTag, ForkNumber, BlockNumber)| *fork == ForkNumber::Init;
    let unlogged: BTreeSet<RelTag> = forks.iter().filter(is_init).map(|(rel, _, _)| *rel).collect();
    let is_kept =
        |(rel, fork, _): &(RelTag, ForkNumber, BlockNumber)| *fork == ForkNumber::Init || !unlogged.contains(rel);
    forks.into_iter().filter(is_kept).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_init_fork_stands_for_all_others() {
        let rel = |rel_number| RelTag { spc_oid: 1663, db_oid: 5, rel_number };
        let forks = vec![
            (rel(1), ForkNumber::Main, 3),
            (rel(1), ForkNumber::Fsm, 3),
            (rel(2), ForkNumber::Main, 9),
            (rel(2), ForkNumber::Fsm, 3),
            (rel(2), ForkNumber::Vm, 1),
            (rel(2), ForkNumber::Init, 0),
        ];
        let kept = without_reset_forks(forks);
        assert_eq!(kept, [(rel(1), ForkNumber::Main, 3), (rel(1), ForkNumber::Fsm, 3), (rel(2), ForkNumber::Init, 0)]);
    }
}
