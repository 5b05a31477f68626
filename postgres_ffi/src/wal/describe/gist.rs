//! GiST. PG 15, 17, 18: src/backend/access/rmgrdesc/gistdesc.c, src/include/access/gistxlog.h.

use super::body::{Body, Text};
use crate::PgVersion;
use crate::wal::DecodedRecord;

pub(super) fn describe(record: &DecodedRecord, version: PgVersion) -> Text {
    let body = Body::of(record);
    let horizon = if version < PgVersion::V16 { "latestRemovedXid" } else { "snapshotConflictHorizon" };
    let is_catalog = |at: usize| match version {
        PgVersion::V14 | PgVersion::V15 | PgVersion::V16 => Ok(String::new()),
        _ => body.t_or_f(at).map(|is_catalog| format!(", isCatalogRel {is_catalog}")),
    };
    Ok(match record.operation() {
        0x10 => format!("delete: {horizon} {}, nitems: {}{}", body.u32(0)?, body.u16(4)?, is_catalog(6)?),
        0x20 => {
            format!("rel {}; blk {}; {horizon} {}{}", body.rel(0)?, body.u32(12)?, body.full_xid(16)?, is_catalog(24)?)
        }
        0x30 => format!("page_split: splits to {} pages", body.u16(18)?),
        0x60 => format!("deleteXid {}; downlink {}", body.full_xid(0)?, body.u16(8)?),
        _ => String::new(),
    })
}
