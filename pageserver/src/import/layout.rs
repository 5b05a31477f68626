//! Which file of a data directory is what.
//!
//! PG 14-18: src/common/relpath.c (GetRelationPath), src/backend/storage/file/reinit.c, src/backend/access/transam/slru.c (SlruFileName),
//! twophase.c (TwoPhaseFilePath).

use postgres_ffi::control_file::catalog_version;
use postgres_ffi::rel::{DEFAULTTABLESPACE_OID, GLOBALTABLESPACE_OID};
use postgres_ffi::start::files::tablespace_version_directory;
use postgres_ffi::{ForkNumber, Oid, PgVersion, RelTag, SlruKind};

/// Blocks in one segment file of a relation: 1 GiB. PG: pg_config.h, RELSEG_SIZE.
pub const RELSEG_BLOCKS: u32 = 131_072;

/// What a file of a data directory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A segment of a relation fork.
    Relation {
        /// The relation.
        rel: RelTag,
        /// The fork.
        fork: ForkNumber,
        /// Which GiB of it.
        segment_no: u32,
    },
    /// A segment of an SLRU.
    Slru {
        /// Which SLRU.
        kind: SlruKind,
        /// Which segment.
        segment_no: u32,
    },
    /// `pg_filenode.map`.
    RelationMap {
        /// Tablespace.
        spc_oid: Oid,
        /// Database, 0 for the shared one.
        db_oid: Oid,
    },
    /// `PG_VERSION` of a database: the database is there.
    Database {
        /// Tablespace.
        spc_oid: Oid,
        /// Database.
        db_oid: Oid,
    },
    /// `global/pg_control`.
    ControlFile,
    /// State of a prepared transaction. Up to 16 the name holds the low half of the xid alone.
    TwoPhase {
        /// The number in its name.
        xid: u64,
    },
    /// `pg_logical/replorigin_checkpoint`.
    ReplicationOrigins,
    /// In a tablespace, of a server of this version that is no release. Kept as little as the next.
    Unreleased {
        /// Its catalog version.
        catalog_version_no: u32,
    },
    /// Nothing that is kept: configuration, statistics, caches, locks, temporary and unknown files.
    NotKept,
}

/// What the file at `path` is, relative to the data directory of a cluster of `version`. Files in tablespaces stand at `pg_tblspc/OID/PG_.../DB/FILE`; what lies there under another
/// version's name is another cluster's: pg_upgrade leaves the old one's files beside.
pub fn classify(path: &str, version: PgVersion) -> FileKind {
    let parts: Vec<&str> = path.trim_start_matches("./").split('/').filter(|part| !part.is_empty()).collect();
    let found = match parts[..] {
        ["global", "pg_control"] => Some(FileKind::ControlFile),
        ["global", file] => in_database(GLOBALTABLESPACE_OID, 0, file),
        ["base", db, file] => number(db).and_then(|db_oid| in_database(DEFAULTTABLESPACE_OID, db_oid, file)),
        ["pg_tblspc", spc, dir, db, file] if dir == tablespace_version_directory(version, catalog_version(version)) => {
            number(spc).zip(number(db)).and_then(|(spc_oid, db_oid)| in_database(spc_oid, db_oid, file))
        }
        ["pg_tblspc", _, dir, _, ..] => {
            unreleased_catalog(dir, version).map(|catalog_version_no| FileKind::Unreleased { catalog_version_no })
        }
        ["pg_xact", file] => slru(SlruKind::Clog, file),
        ["pg_multixact", "members", file] => slru(SlruKind::MultiXactMembers, file),
        ["pg_multixact", "offsets", file] => slru(SlruKind::MultiXactOffsets, file),
        ["pg_commit_ts", file] => slru(SlruKind::CommitTs, file),
        ["pg_twophase", file] => hexadecimal(file, 8..=16).map(|xid| FileKind::TwoPhase { xid }),
        ["pg_logical", "replorigin_checkpoint"] => Some(FileKind::ReplicationOrigins),
        _ => None,
    };
    found.unwrap_or(FileKind::NotKept)
}

/// The catalog version in the name of a tablespace's directory, if it is one of `version` and not that of its releases: of a beta, or of a server that was built otherwise.
fn unreleased_catalog(dir: &str, version: PgVersion) -> Option<u32> {
    let catalog_version_no = number(dir.strip_prefix(&format!("PG_{version}_"))?)?;
    (catalog_version_no != catalog_version(version)).then_some(catalog_version_no)
}

fn in_database(spc_oid: Oid, db_oid: Oid, file: &str) -> Option<FileKind> {
    match file {
        "pg_filenode.map" => Some(FileKind::RelationMap { spc_oid, db_oid }),
        "PG_VERSION" => Some(FileKind::Database { spc_oid, db_oid }),
        _ => relation_file(file).map(|(rel_number, fork, segment_no)| FileKind::Relation {
            rel: RelTag { spc_oid, db_oid, rel_number },
            fork,
            segment_no,
        }),
    }
}

/// `16384`, `16384_vm`, `16384.1`, `16384_init.2`. Temporary relations (`t3_16384`) are not of this form.
fn relation_file(file: &str) -> Option<(Oid, ForkNumber, u32)> {
    let (name, segment_no) = match file.split_once('.') {
        Some((name, segment)) => (name, number(segment).filter(|segment_no| *segment_no > 0)?),
        None => (file, 0),
    };
    let (rel_number, fork) = match name.split_once('_') {
        Some((rel_number, "init")) => (rel_number, ForkNumber::Init),
        Some((rel_number, "fsm")) => (rel_number, ForkNumber::Fsm),
        Some((rel_number, "vm")) => (rel_number, ForkNumber::Vm),
        Some(_) => return None,
        None => (name, ForkNumber::Main),
    };
    // The highest segment whose blocks still have 32-bit numbers.
    let is_addressable = segment_no < u32::MAX / RELSEG_BLOCKS;
    number(rel_number).filter(|_| is_addressable).map(|rel_number| (rel_number, fork, segment_no))
}

fn slru(kind: SlruKind, file: &str) -> Option<FileKind> {
    let segment_no = u32::try_from(hexadecimal(file, 4..=15)?).ok()?;
    // Page numbers have 32 bits.
    (segment_no < u32::MAX / postgres_ffi::rel::SLRU_PAGES_PER_SEGMENT).then_some(FileKind::Slru { kind, segment_no })
}

/// A decimal number as PostgreSQL writes it: no sign, no leading zero.
fn number(text: &str) -> Option<u32> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if is_plain { text.parse().ok() } else { None }
}

fn hexadecimal(text: &str, digits: std::ops::RangeInclusive<usize>) -> Option<u64> {
    let is_plain = digits.contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F'));
    if is_plain { u64::from_str_radix(text, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    //! Goal: every file of a data directory is what it is, and nothing else. Method: names, one of each form.

    use super::*;

    fn rel(spc_oid: Oid, db_oid: Oid, rel_number: Oid) -> RelTag {
        RelTag { spc_oid, db_oid, rel_number }
    }

    #[test]
    fn files_are_what_their_names_say() {
        let relation = |rel, fork, segment_no| FileKind::Relation { rel, fork, segment_no };
        for (path, expected) in [
            ("base/5/16384", relation(rel(1663, 5, 16384), ForkNumber::Main, 0)),
            ("./base/5/16384.12", relation(rel(1663, 5, 16384), ForkNumber::Main, 12)),
            ("base/5/16384_vm", relation(rel(1663, 5, 16384), ForkNumber::Vm, 0)),
            ("base/5/16384_init.1", relation(rel(1663, 5, 16384), ForkNumber::Init, 1)),
            ("global/1262_fsm", relation(rel(1664, 0, 1262), ForkNumber::Fsm, 0)),
            ("pg_tblspc/16400/PG_15_202209061/5/16401", relation(rel(16400, 5, 16401), ForkNumber::Main, 0)),
            ("base/5/PG_VERSION", FileKind::Database { spc_oid: 1663, db_oid: 5 }),
            ("base/5/pg_filenode.map", FileKind::RelationMap { spc_oid: 1663, db_oid: 5 }),
            ("global/pg_filenode.map", FileKind::RelationMap { spc_oid: 1664, db_oid: 0 }),
            ("global/pg_control", FileKind::ControlFile),
            ("pg_xact/001A", FileKind::Slru { kind: SlruKind::Clog, segment_no: 0x1A }),
            ("pg_multixact/offsets/0000", FileKind::Slru { kind: SlruKind::MultiXactOffsets, segment_no: 0 }),
            ("pg_twophase/000002F0", FileKind::TwoPhase { xid: 0x2F0 }),
            ("pg_twophase/0000000100000001", FileKind::TwoPhase { xid: 0x1_0000_0001 }),
        ] {
            assert_eq!(classify(path, PgVersion::V15), expected, "{path}");
        }
    }

    #[test]
    fn tablespaces_of_unreleased_servers_are_known() {
        for (path, expected) in [
            ("pg_tblspc/16400/PG_15_202209062/5/16401", Some(202_209_062)),
            ("./pg_tblspc/16400/PG_15_1/5", Some(1)),
            ("pg_tblspc/16400/PG_15_202209061/5/16401", None),
            ("pg_tblspc/16400/PG_14_202107181/5/16401", None),
            ("pg_tblspc/16400/PG_15_1", None),
            ("base/5/16401", None),
        ] {
            let found = match classify(path, PgVersion::V15) {
                FileKind::Unreleased { catalog_version_no } => Some(catalog_version_no),
                _ => None,
            };
            assert_eq!(found, expected, "{path}");
        }
    }

    #[test]
    fn everything_else_is_not_kept() {
        for path in [
            "PG_VERSION",
            "postgresql.conf",
            "base/5/t3_16384",
            "base/5/pg_internal.init",
            "base/5/16384.0",
            "base/5/16384.x",
            "base/5/016384",
            "base/5/99999999999",
            "base/pgsql_tmp/x",
            "pg_wal/000000010000000000000001",
            "pg_xact/00",
            "",
            "base/5/16384_x",
            "base/5/16384.4000000000",
            "base/5/16384.32768",
            "pg_xact/FFFFFFFF",
            "../base/5/1",
            "backup_label",
            "pg_tblspc/16400/PG_14_202107181/5/16401",
            "pg_tblspc/16400/PG_9.6_201608131/5/PG_VERSION",
        ] {
            assert_eq!(classify(path, PgVersion::V15), FileKind::NotKept, "{path}");
        }
    }
}
