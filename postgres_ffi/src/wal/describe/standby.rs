//! What a hot standby needs to know, and the invalidation messages that other records carry too.
//!
//! PG 15, 17, 18: src/backend/access/rmgrdesc/standbydesc.c, src/include/storage/standbydefs.h, src/include/storage/sinval.h.

use super::body::{Body, Text, spaced};
use crate::records::standby::{INVALIDATIONS, LOCK, RUNNING_XACTS};
use crate::records::{RecordError, fields::Fields};
use crate::wal::DecodedRecord;
use crate::{Oid, PgVersion};

/// Length of xl_standby_lock.
const LOCK_LEN: usize = 12;
/// Length of SharedInvalidationMessage.
const MESSAGE_LEN: usize = 16;

pub(super) fn describe(record: &DecodedRecord, version: PgVersion) -> Text {
    let body = Body::of(record);
    match record.operation() {
        LOCK => locks(body),
        RUNNING_XACTS => running_xacts(body, version),
        INVALIDATIONS => invalidations_with_database(body, 0, version),
        _ => Ok(String::new()),
    }
}

fn locks(body: Body<'_>) -> Text {
    let mut fields = body.from(0)?;
    let count = fields.count()?;
    let mut locks = Fields::new("xl_standby_lock", fields.items(count, LOCK_LEN)?);
    let mut text = String::new();
    for _ in 0..count {
        text += &format!("xid {} db {} rel {} ", locks.u32()?, locks.u32()?, locks.u32()?);
    }
    Ok(text)
}

/// xl_running_xacts: counts, an overflow flag, three transactions, then the running ones and their subtransactions.
fn running_xacts(body: Body<'_>, version: PgVersion) -> Text {
    let mut fields = body.from(0)?;
    let (count, sub_count) = (fields.count()?, fields.count()?);
    let is_overflown = fields.u8()? != 0;
    fields.align(4);
    let (next, oldest, latest) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let mut text = format!("nextXid {next} latestCompletedXid {latest} oldestRunningXid {oldest}");
    let mut xids = |count: usize| Ok::<_, RecordError>(spaced(xids(fields.items(count, 4)?)));
    let running = xids(count)?;
    if count > 0 {
        text += &format!("; {count} xacts:{running}");
    }
    if is_overflown {
        text += if version < PgVersion::V16 { "; subxid ovf" } else { "; subxid overflowed" };
    }
    if version >= PgVersion::V16 && sub_count > 0 {
        text += &format!("; {sub_count} subxacts:{}", xids(sub_count)?);
    }
    Ok(text)
}

fn xids(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.as_chunks().0.iter().map(|xid| u32::from_le_bytes(*xid))
}

/// Database, tablespace, whether the relation cache's file goes, messages: as they stand at `at`.
pub(super) fn invalidations_with_database(body: Body<'_>, at: usize, version: PgVersion) -> Text {
    let mut fields = body.from(at)?;
    let (db_oid, spc_oid, drops_file) = (fields.u32()?, fields.u32()?, fields.u8()? != 0);
    fields.align(4);
    let count = fields.count()?;
    let messages = fields.items(count, MESSAGE_LEN)?;
    invalidations(messages, drops_file.then_some((db_oid, spc_oid)), version)
}

/// A count and that many messages.
pub(super) fn counted_invalidations(body: Body<'_>, version: PgVersion) -> Text {
    let mut fields = body.from(0)?;
    let count = fields.count()?;
    invalidations(fields.items(count, MESSAGE_LEN)?, None, version)
}

/// The messages, empty if there are none. `dropped_file` is the database and tablespace whose relation cache file goes.
pub(super) fn invalidations(messages: &[u8], dropped_file: Option<(Oid, Oid)>, version: PgVersion) -> Text {
    if messages.is_empty() {
        return Ok(String::new());
    }
    let mut text = String::new();
    if let Some((db_oid, spc_oid)) = dropped_file {
        text = format!("; relcache init file inval dbid {db_oid} tsid {spc_oid}");
    }
    text += "; inval msgs:";
    for message in messages.chunks_exact(MESSAGE_LEN) {
        text += &invalidation(message, version)?;
    }
    Ok(text)
}

/// Each message begins with an id, a catalog cache's own or a negative one. A database follows at 4, what it is about at 8.
fn invalidation(message: &[u8], version: PgVersion) -> Text {
    let mut fields = Fields::new("SharedInvalidationMessage", message);
    let id = fields.u8()?.cast_signed();
    fields.align(4);
    let (db_oid, oid) = (fields.u32()?, fields.u32()?);
    Ok(match id {
        0.. => format!(" catcache {id}"),
        -1 => format!(" catalog {oid}"),
        -2 => format!(" relcache {oid}"),
        -3 => " smgr".to_owned(),
        -4 => format!(" relmap db {db_oid}"),
        -5 => format!(" snapshot {oid}"),
        -6 if version >= PgVersion::V18 => format!(" relsync {oid}"),
        _ => format!(" unrecognized id {id}"),
    })
}
