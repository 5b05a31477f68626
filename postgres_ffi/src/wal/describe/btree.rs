//! B-tree. PG 15, 17, 18: src/backend/access/rmgrdesc/nbtdesc.c, src/include/access/nbtxlog.h.

use super::body::{Body, Text, list, u16s};
use crate::PgVersion;
use crate::wal::DecodedRecord;

pub(crate) mod operation {
    pub const INSERT_LEAF: u8 = 0x00;
    pub const INSERT_UPPER: u8 = 0x10;
    pub const INSERT_META: u8 = 0x20;
    pub const SPLIT_L: u8 = 0x30;
    pub const SPLIT_R: u8 = 0x40;
    pub const INSERT_POST: u8 = 0x50;
    pub const DEDUP: u8 = 0x60;
    pub const DELETE: u8 = 0x70;
    pub const UNLINK_PAGE: u8 = 0x80;
    pub const UNLINK_PAGE_META: u8 = 0x90;
    pub const NEWROOT: u8 = 0xA0;
    pub const MARK_PAGE_HALFDEAD: u8 = 0xB0;
    pub const VACUUM: u8 = 0xC0;
    pub const REUSE_PAGE: u8 = 0xD0;
    pub const META_CLEANUP: u8 = 0xE0;
}
use operation::*;

/// Where `last_cleanup_num_delpages` stands in xl_btree_metadata.
const META_DELETED_PAGES_AT: usize = 20;

pub(super) fn describe(record: &DecodedRecord, version: PgVersion) -> Text {
    if version < PgVersion::V16 { describe_to_15(record) } else { describe_from_16(record, version) }
}

fn describe_to_15(record: &DecodedRecord) -> Text {
    let body = Body::of(record);
    Ok(match record.operation() {
        INSERT_LEAF | INSERT_UPPER | INSERT_META | INSERT_POST => format!("off {}", body.u16(0)?),
        SPLIT_L | SPLIT_R => format!(
            "level {}, firstrightoff {}, newitemoff {}, postingoff {}",
            body.u32(0)?,
            body.u16(4)?,
            body.u16(6)?,
            body.u16(8)?
        ),
        DEDUP => format!("nintervals {}", body.u16(0)?),
        VACUUM => format!("ndeleted {}; nupdated {}", body.u16(0)?, body.u16(2)?),
        DELETE => {
            format!("latestRemovedXid {}; ndeleted {}; nupdated {}", body.u32(0)?, body.u16(4)?, body.u16(6)?)
        }
        MARK_PAGE_HALFDEAD => format!(
            "topparent {}; leaf {}; left {}; right {}",
            body.u32(16)?,
            body.u32(4)?,
            body.u32(8)?,
            body.u32(12)?
        ),
        UNLINK_PAGE | UNLINK_PAGE_META => format!(
            "left {}; right {}; level {}; safexid {}; leafleft {}; leafright {}; leaftopparent {}",
            body.u32(0)?,
            body.u32(4)?,
            body.u32(8)?,
            body.full_xid(16)?,
            body.u32(24)?,
            body.u32(28)?,
            body.u32(32)?
        ),
        NEWROOT => format!("lev {}", body.u32(4)?),
        REUSE_PAGE => format!("rel {}; latestRemovedXid {}", body.rel(0)?, body.full_xid(16)?),
        META_CLEANUP => {
            format!("last_cleanup_num_delpages {}", Body::of_block_0(record).u32(META_DELETED_PAGES_AT)?)
        }
        _ => String::new(),
    })
}

fn describe_from_16(record: &DecodedRecord, version: PgVersion) -> Text {
    let body = Body::of(record);
    let is_catalog = |at: usize| match version {
        PgVersion::V16 => Ok(String::new()),
        _ => body.t_or_f(at).map(|is_catalog| format!(", isCatalogRel: {is_catalog}")),
    };
    Ok(match record.operation() {
        INSERT_LEAF | INSERT_UPPER | INSERT_META | INSERT_POST => format!("off: {}", body.u16(0)?),
        SPLIT_L | SPLIT_R => format!(
            "level: {}, firstrightoff: {}, newitemoff: {}, postingoff: {}",
            body.u32(0)?,
            body.u16(4)?,
            body.u16(6)?,
            body.u16(8)?
        ),
        DEDUP => format!("nintervals: {}", body.u16(0)?),
        VACUUM => {
            let (deleted, updated) = (body.u16(0)?, body.u16(2)?);
            format!("ndeleted: {deleted}, nupdated: {updated}{}", deleted_items(record, deleted, updated)?)
        }
        DELETE => {
            let (horizon, deleted, updated) = (body.u32(0)?, body.u16(4)?, body.u16(6)?);
            format!(
                "snapshotConflictHorizon: {horizon}, ndeleted: {deleted}, nupdated: {updated}{}{}",
                is_catalog(8)?,
                deleted_items(record, deleted, updated)?
            )
        }
        MARK_PAGE_HALFDEAD => format!(
            "topparent: {}, leaf: {}, left: {}, right: {}",
            body.u32(16)?,
            body.u32(4)?,
            body.u32(8)?,
            body.u32(12)?
        ),
        UNLINK_PAGE | UNLINK_PAGE_META => format!(
            "left: {}, right: {}, level: {}, safexid: {}, leafleft: {}, leafright: {}, leaftopparent: {}",
            body.u32(0)?,
            body.u32(4)?,
            body.u32(8)?,
            body.full_xid(16)?,
            body.u32(24)?,
            body.u32(28)?,
            body.u32(32)?
        ),
        NEWROOT => format!("level: {}", body.u32(4)?),
        REUSE_PAGE => {
            format!("rel: {}, snapshotConflictHorizon: {}{}", body.rel(0)?, body.full_xid(16)?, is_catalog(24)?)
        }
        META_CLEANUP => {
            format!("last_cleanup_num_delpages: {}", Body::of_block_0(record).u32(META_DELETED_PAGES_AT)?)
        }
        _ => String::new(),
    })
}

/// Offsets of items that go, and of posting lists that lose some of their row positions. Empty when an image took the data's place.
fn deleted_items(record: &DecodedRecord, deleted: u16, updated: u16) -> Text {
    let data = Body::of_block_0(record);
    if data.is_empty() {
        return Ok(String::new());
    }
    let mut fields = data.from(0)?;
    let deleted = fields.items(deleted.into(), 2)?;
    let updated = fields.items(updated.into(), 2)?;
    let mut lists = Vec::new();
    for offset in u16s(updated) {
        let count = fields.u16()?;
        let positions = list(u16s(fields.items(count.into(), 2)?));
        lists.push(format!("{{ off: {offset}, nptids: {count}, ptids: {positions} }}"));
    }
    Ok(format!(", deleted: {}, updated: {}", list(u16s(deleted)), list(lists.iter())))
}
