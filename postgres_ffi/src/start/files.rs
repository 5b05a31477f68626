//! Names of the files and directories of a data directory.
//!
//! PG 14-18: src/common/relpath.c (GetRelationPath, GetDatabasePath), src/backend/access/transam/slru.c (SlruFileName), twophase.c
//! (TwoPhaseFilePath), src/bin/initdb/initdb.c (subdirs).

use crate::rel::{DEFAULTTABLESPACE_OID, GLOBALTABLESPACE_OID};
use crate::{ForkNumber, Oid, PgVersion, RelTag, SlruKind};

/// What initdb makes, without `base/1`: a server does not make these itself.
const DIRECTORIES: &[&str] = &[
    "global",
    "base",
    "pg_commit_ts",
    "pg_dynshmem",
    "pg_logical",
    "pg_logical/mappings",
    "pg_logical/snapshots",
    "pg_multixact",
    "pg_multixact/members",
    "pg_multixact/offsets",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_tblspc",
    "pg_twophase",
    "pg_wal",
    "pg_wal/archive_status",
    "pg_xact",
];

/// The directories of every cluster of `version`, each behind the one that it lies in.
pub fn directories(version: PgVersion) -> impl Iterator<Item = &'static str> {
    DIRECTORIES.iter().copied().chain((version >= PgVersion::V17).then_some("pg_wal/summaries"))
}

/// `PG_15_202209061`: what a version calls its part of a tablespace.
pub fn tablespace_version_directory(version: PgVersion, catalog_version_no: u32) -> String {
    format!("PG_{version}_{catalog_version_no}")
}

/// The directory of a database in a tablespace: `global`, `base/5`, `pg_tblspc/16400/PG_15_202209061/5`.
pub fn database_directory(version: PgVersion, catalog_version_no: u32, spc_oid: Oid, db_oid: Oid) -> String {
    match spc_oid {
        GLOBALTABLESPACE_OID => "global".to_owned(),
        DEFAULTTABLESPACE_OID => format!("base/{db_oid}"),
        _ => format!("pg_tblspc/{spc_oid}/{}/{db_oid}", tablespace_version_directory(version, catalog_version_no)),
    }
}

/// The file of a segment of a relation fork within its database's directory: `16384`, `16384_vm`, `16384.1`.
pub fn relation_file_name(rel: RelTag, fork: ForkNumber, segment_no: u32) -> String {
    let name = format!("{}{}", rel.rel_number, fork.file_suffix());
    if segment_no == 0 { name } else { format!("{name}.{segment_no}") }
}

/// `pg_xact/001A`. A segment number above 16 bits takes more digits.
pub fn slru_segment_path(kind: SlruKind, segment_no: u32) -> String {
    format!("{}/{segment_no:04X}", kind.directory())
}

/// The state file of a prepared transaction. `xid` has its epoch in the high half; up to 16 the name leaves that out.
pub fn two_phase_path(version: PgVersion, xid: u64) -> String {
    if version >= PgVersion::V17 {
        format!("pg_twophase/{xid:016X}")
    } else {
        format!("pg_twophase/{:08X}", xid & 0xFFFF_FFFF)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_postgresql_s() {
        let rel = RelTag { spc_oid: 1663, db_oid: 5, rel_number: 16384 };
        assert_eq!(relation_file_name(rel, ForkNumber::Main, 0), "16384");
        assert_eq!(relation_file_name(rel, ForkNumber::Init, 2), "16384_init.2");
        assert_eq!(database_directory(PgVersion::V15, 202_209_061, 1664, 0), "global");
        assert_eq!(database_directory(PgVersion::V15, 202_209_061, 1663, 5), "base/5");
        assert_eq!(database_directory(PgVersion::V15, 202_209_061, 16400, 5), "pg_tblspc/16400/PG_15_202209061/5");
        assert_eq!(slru_segment_path(SlruKind::MultiXactMembers, 0x1_4078), "pg_multixact/members/14078");
        assert_eq!(slru_segment_path(SlruKind::Clog, 0x1A), "pg_xact/001A");
        assert_eq!(two_phase_path(PgVersion::V16, 0x1_0000_02F0), "pg_twophase/000002F0");
        assert_eq!(two_phase_path(PgVersion::V17, 0x1_0000_02F0), "pg_twophase/00000001000002F0");
    }

    #[test]
    fn each_directory_follows_the_one_that_it_lies_in() {
        for version in PgVersion::ALL {
            let all: Vec<_> = directories(version).collect();
            assert_eq!(all.contains(&"pg_wal/summaries"), version >= PgVersion::V17);
            for (index, directory) in all.iter().enumerate() {
                let Some((parent, _)) = directory.rsplit_once('/') else { continue };
                assert!(all[..index].contains(&parent), "{directory}");
            }
        }
    }
}
