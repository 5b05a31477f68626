//! SP-GiST. PG 15, 17, 18: src/backend/access/rmgrdesc/spgdesc.c, src/include/access/spgxlog.h.

use super::body::{Body, Text};
use crate::PgVersion;
use crate::records::RecordError;
use crate::wal::DecodedRecord;

pub(super) fn describe(record: &DecodedRecord, version: PgVersion) -> Text {
    let body = Body::of(record);
    Ok(match record.operation() {
        0x10 => format!(
            "off: {}, headoff: {}, parentoff: {}, nodeI: {}{}",
            body.u16(2)?,
            body.u16(4)?,
            body.u16(6)?,
            body.u16(8)?,
            flags(body, &[(0, "newpage"), (1, "nulls")])?
        ),
        0x20 => format!(
            "nmoves: {}, parentoff: {}, nodeI: {}{}",
            body.u16(0)?,
            body.u16(6)?,
            body.u16(8)?,
            flags(body, &[(2, "newpage"), (3, "replacedead"), (4, "nulls")])?
        ),
        0x30 => format!(
            "off: {}, newoff: {}, parentBlk: {}, parentoff: {}, nodeI: {}{}",
            body.u16(0)?,
            body.u16(2)?,
            body.u8(5)?.cast_signed(),
            body.u16(6)?,
            body.u16(8)?,
            flags(body, &[(4, "newpage")])?
        ),
        0x40 => format!(
            "prefixoff: {}, postfixoff: {}{}",
            body.u16(0)?,
            body.u16(2)?,
            flags(body, &[(4, "newpage"), (5, "same")])?
        ),
        0x50 => format!(
            "ndelete: {}, ninsert: {}, inneroff: {}, parentoff: {}, nodeI: {}{}",
            body.u16(2)?,
            body.u16(4)?,
            body.u16(8)?,
            body.u16(14)?,
            body.u16(16)?,
            flags(body, &[(12, "innerIsParent"), (11, "nulls"), (0, "isRootSplit")])?
        ),
        0x60 => format!(
            "ndead: {}, nplaceholder: {}, nmove: {}, nchain: {}",
            body.u16(0)?,
            body.u16(2)?,
            body.u16(4)?,
            body.u16(6)?
        ),
        0x70 => format!("ndelete: {}", body.u16(0)?),
        0x80 => vacuum_redirect(body, version)?,
        _ => String::new(),
    })
}

/// ` (name)` of each flag that is set, in the given order.
fn flags(body: Body<'_>, flags: &[(usize, &str)]) -> Result<String, RecordError> {
    let mut text = String::new();
    for (at, name) in flags {
        if body.is_set(*at)? {
            text += &format!(" ({name})");
        }
    }
    Ok(text)
}

fn vacuum_redirect(body: Body<'_>, version: PgVersion) -> Text {
    let (placeholders, first, xid) = (body.u16(0)?, body.u16(2)?, body.u32(4)?);
    let horizon = if version < PgVersion::V16 { "newestredirectxid" } else { "snapshotConflictHorizon" };
    let mut text = format!("ntoplaceholder: {placeholders}, firstplaceholder: {first}, {horizon}: {xid}");
    if version >= PgVersion::V17 {
        text += &format!(", isCatalogRel: {}", body.t_or_f(8)?);
    }
    Ok(text)
}
