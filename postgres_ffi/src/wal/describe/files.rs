//! Relations, databases and tablespaces as files, relation maps, sequences.
//!
//! PG 15, 17, 18: src/backend/access/rmgrdesc/{smgr,dbase,tblspc,relmap,seq}desc.c.

use super::body::{Body, Text, spaced};
use crate::records::dbase::{DatabaseRecord, TABLESPACE_CREATE, TABLESPACE_DROP};
use crate::records::relmap::{self, RelmapUpdate};
use crate::records::smgr::{self, Truncate};
use crate::rel::{DEFAULTTABLESPACE_OID, GLOBALTABLESPACE_OID};
use crate::wal::DecodedRecord;
use crate::{ForkNumber, PgVersion, RelTag};

/// The file's path as PostgreSQL names it. PG: src/common/relpath.c, GetRelationPath.
pub(super) fn path(rel: RelTag, fork: ForkNumber, version: PgVersion) -> String {
    let RelTag { spc_oid, db_oid, rel_number } = rel;
    let suffix = fork.file_suffix();
    match spc_oid {
        GLOBALTABLESPACE_OID => format!("global/{rel_number}{suffix}"),
        DEFAULTTABLESPACE_OID => format!("base/{db_oid}/{rel_number}{suffix}"),
        _ => {
            let folder = format!("PG_{version}_{}", catalog_version(version));
            format!("pg_tblspc/{spc_oid}/{folder}/{db_oid}/{rel_number}{suffix}")
        }
    }
}

/// PG: src/include/catalog/catversion.h, CATALOG_VERSION_NO.
fn catalog_version(version: PgVersion) -> u32 {
    match version {
        PgVersion::V14 => 202_107_181,
        PgVersion::V15 => 202_209_061,
        PgVersion::V16 => 202_307_071,
        PgVersion::V17 => 202_406_281,
        PgVersion::V18 => 202_506_291,
    }
}

pub(super) fn storage(record: &DecodedRecord, version: PgVersion) -> Text {
    let data = record.main_data();
    Ok(match record.operation() {
        smgr::CREATE => {
            let (rel, fork) = smgr::parse_create(data)?;
            path(rel, fork, version)
        }
        smgr::TRUNCATE => {
            let Truncate { rel, block_count, main, vm, fsm } = Truncate::parse(data)?;
            let flags = u8::from(main) | u8::from(vm) << 1 | u8::from(fsm) << 2;
            format!("{} to {block_count} blocks flags {flags}", path(rel, ForkNumber::Main, version))
        }
        _ => String::new(),
    })
}

pub(super) fn database(record: &DecodedRecord, version: PgVersion) -> Text {
    Ok(match DatabaseRecord::parse(version, record.operation(), record.main_data())? {
        Some(DatabaseRecord::CreateFileCopy { target, template }) => {
            format!("copy dir {}/{} to {}/{}", template.spc_oid, template.db_oid, target.spc_oid, target.db_oid)
        }
        Some(DatabaseRecord::CreateWalLog { target }) => format!("create dir {}/{}", target.spc_oid, target.db_oid),
        Some(DatabaseRecord::Drop { db_oid, tablespaces }) => {
            format!("dir{}", spaced(tablespaces.iter().map(|spc_oid| format!("{spc_oid}/{db_oid}"))))
        }
        None => String::new(),
    })
}

pub(super) fn tablespace(record: &DecodedRecord) -> Text {
    let body = Body::of(record);
    Ok(match record.operation() {
        TABLESPACE_CREATE => format!("{} \"{}\"", body.u32(0)?, body.string(4)?),
        TABLESPACE_DROP => body.u32(0)?.to_string(),
        _ => String::new(),
    })
}

pub(super) fn relation_map(record: &DecodedRecord, version: PgVersion) -> Text {
    if record.operation() != relmap::UPDATE {
        return Ok(String::new());
    }
    let update = RelmapUpdate::parse(version, record.main_data())?;
    Ok(format!("database {} tablespace {} size {}", update.db_oid, update.spc_oid, update.file.len()))
}

pub(super) fn sequence(record: &DecodedRecord) -> Text {
    if record.operation() != 0 {
        return Ok(String::new());
    }
    Ok(format!("rel {}", Body::of(record).rel(0)?))
}
