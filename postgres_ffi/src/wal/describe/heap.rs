//! Heap and Heap2. PG 15, 17, 18: src/backend/access/rmgrdesc/heapdesc.c, src/include/access/heapam_xlog.h.

use super::body::{Body, Text, list, spaced, t_or_f, u16s};
use super::standby;
use crate::PgVersion;
use crate::records::fields::Fields;
use crate::records::heap::{
    FREEZE_PLAN_LEN, OPERATION_MASK, heap_operation as heap, heap2_operation as heap2, prune_flag,
};
use crate::wal::DecodedRecord;

/// XLHL_*, in the order of the bits.
const INFOBITS: [&str; 5] = ["IS_MULTI", "LOCK_ONLY", "EXCL_LOCK", "KEYSHR_LOCK", "KEYS_UPDATED"];
/// XLH_TRUNCATE_CASCADE, XLH_TRUNCATE_RESTART_SEQS
const TRUNCATE_FLAGS: [&str; 2] = ["CASCADE", "RESTART_SEQS"];

pub(super) fn heap(record: &DecodedRecord, version: PgVersion) -> Text {
    let (body, operation) = (Body::of(record), record.operation() & OPERATION_MASK);
    if version < PgVersion::V16 { heap_to_15(body, operation) } else { heap_from_16(body, operation, version) }
}

fn heap_to_15(body: Body<'_>, operation: u8) -> Text {
    Ok(match operation {
        heap::INSERT => format!("off {} flags 0x{:02X}", body.u16(0)?, body.u8(2)?),
        heap::DELETE => format!("off {} flags 0x{:02X} {}", body.u16(4)?, body.u8(7)?, infobits_to_15(body)?),
        heap::UPDATE | heap::HOT_UPDATE => format!(
            "off {} xmax {} flags 0x{:02X} {}; new off {} xmax {}",
            body.u16(4)?,
            body.u32(0)?,
            body.u8(7)?,
            infobits_to_15(body)?,
            body.u16(12)?,
            body.u32(8)?
        ),
        heap::TRUNCATE => {
            let flags: String = set_bits(body.u8(8)?, &TRUNCATE_FLAGS).map(|name| name.to_lowercase() + " ").collect();
            let count = body.u32(4)?;
            format!("{flags}nrelids {count} relids{}", spaced(oids(body, 12, count)?))
        }
        heap::CONFIRM | heap::INPLACE => format!("off {}", body.u16(0)?),
        heap::LOCK => {
            let (xid, off, flags) = (body.u32(0)?, body.u16(4)?, body.u8(7)?);
            format!("off {off}: xid {xid}: flags 0x{flags:02X} {}", infobits_to_15(body)?)
        }
        _ => String::new(),
    })
}

fn heap_from_16(body: Body<'_>, operation: u8, version: PgVersion) -> Text {
    Ok(match operation {
        heap::INSERT => format!("off: {}, flags: 0x{:02X}", body.u16(0)?, body.u8(2)?),
        heap::DELETE | heap::LOCK => lock_from_16(body)?,
        heap::UPDATE | heap::HOT_UPDATE => format!(
            "old_xmax: {}, old_off: {}, old_infobits: {}, flags: 0x{:02X}, new_xmax: {}, new_off: {}",
            body.u32(0)?,
            body.u16(4)?,
            list(set_bits(body.u8(6)?, &INFOBITS)),
            body.u8(7)?,
            body.u32(8)?,
            body.u16(12)?
        ),
        heap::TRUNCATE => {
            let (count, flags) = (body.u32(4)?, body.u8(8)?);
            let flags = list(set_bits(flags, &TRUNCATE_FLAGS));
            format!("flags: {flags}, nrelids: {count}, relids: {}", list(oids(body, 12, count)?))
        }
        heap::CONFIRM => format!("off: {}", body.u16(0)?),
        heap::INPLACE => {
            let mut text = format!("off: {}", body.u16(0)?);
            if version >= PgVersion::V18 {
                text += &standby::invalidations_with_database(body, 4, version)?;
            }
            text
        }
        _ => String::new(),
    })
}

/// xl_heap_delete, xl_heap_lock and xl_heap_lock_updated are alike.
fn lock_from_16(body: Body<'_>) -> Text {
    let (xmax, off, infobits, flags) = (body.u32(0)?, body.u16(4)?, body.u8(6)?, body.u8(7)?);
    let infobits = list(set_bits(infobits, &INFOBITS));
    Ok(format!("xmax: {xmax}, off: {off}, infobits: {infobits}, flags: 0x{flags:02X}"))
}

/// Each set bit and a space behind it.
fn infobits_to_15(body: Body<'_>) -> Text {
    Ok(set_bits(body.u8(6)?, &INFOBITS).map(|name| format!("{name} ")).collect())
}

fn set_bits(bits: u8, names: &'static [&'static str]) -> impl Iterator<Item = &'static str> {
    names.iter().enumerate().filter(move |(bit, _)| bits >> bit & 1 == 1).map(|(_, name)| *name)
}

fn oids(body: Body<'_>, at: usize, count: u32) -> Result<impl Iterator<Item = u32>, crate::records::RecordError> {
    let bytes = body.from(at)?.items(count as usize, 4)?;
    Ok(bytes.as_chunks().0.iter().map(|oid| u32::from_le_bytes(*oid)))
}

pub(super) fn heap2(record: &DecodedRecord, version: PgVersion) -> Text {
    match version {
        PgVersion::V14 | PgVersion::V15 => heap2_to_15(record),
        PgVersion::V16 => heap2_in_16(record),
        PgVersion::V17 | PgVersion::V18 => match record.operation() & OPERATION_MASK {
            0x10..=0x30 => prune_from_17(record),
            operation => heap2_from_16(record, operation),
        },
    }
}

fn heap2_to_15(record: &DecodedRecord) -> Text {
    let body = Body::of(record);
    Ok(match record.operation() & OPERATION_MASK {
        0x10 => format!("latestRemovedXid {} nredirected {} ndead {}", body.u32(0)?, body.u16(4)?, body.u16(6)?),
        0x20 => format!("nunused {}", body.u16(0)?),
        0x30 => format!("cutoff xid {} ntuples {}", body.u32(0)?, body.u16(4)?),
        heap2::VISIBLE => format!("cutoff xid {} flags 0x{:02X}", body.u32(0)?, body.u8(4)?),
        heap2::MULTI_INSERT => format!("{} tuples flags 0x{:02X}", body.u16(2)?, body.u8(0)?),
        heap2::LOCK_UPDATED => {
            let (xmax, off, flags) = (body.u32(0)?, body.u16(4)?, body.u8(7)?);
            format!("off {off}: xmax {xmax}: flags 0x{flags:02X} {}", infobits_to_15(body)?)
        }
        heap2::NEW_CID => format!(
            "rel {}; tid {}/{}; cmin: {}, cmax: {}, combo: {}",
            body.rel(16)?,
            body.block_id(28)?,
            body.u16(32)?,
            body.u32(4)?,
            body.u32(8)?,
            body.u32(12)?
        ),
        _ => String::new(),
    })
}

/// Pruning, vacuum and freezing still have records of their own, with lists in the description.
fn heap2_in_16(record: &DecodedRecord) -> Text {
    let (body, data) = (Body::of(record), Body::of_block_0(record));
    let mut fields = data.from(0)?;
    Ok(match record.operation() & OPERATION_MASK {
        0x10 => {
            let (horizon, redirected, dead) = (body.u32(0)?, body.u16(4)?, body.u16(6)?);
            let mut text = format!("snapshotConflictHorizon: {horizon}, nredirected: {redirected}, ndead: {dead}");
            if !data.is_empty() {
                let redirected = fields.items(redirected.into(), 4)?;
                let dead = fields.items(dead.into(), 2)?;
                let unused = fields.rest();
                text += &format!(
                    ", nunused: {}, redirected: {}, dead: {}, unused: {}",
                    unused.len() / 2,
                    redirections(redirected),
                    list(u16s(dead)),
                    list(u16s(unused))
                );
            }
            text
        }
        0x20 => {
            let count = body.u16(0)?;
            let unused = if data.is_empty() { None } else { Some(fields.items(count.into(), 2)?) };
            let unused = unused.map_or_else(String::new, |unused| format!(", unused: {}", list(u16s(unused))));
            format!("nunused: {count}{unused}")
        }
        0x30 => {
            let (horizon, count) = (body.u32(0)?, body.u16(4)?);
            let mut text = format!("snapshotConflictHorizon: {horizon}, nplans: {count}");
            if !data.is_empty() {
                let plans = fields.items(count.into(), FREEZE_PLAN_LEN)?;
                text += &format!(", plans: {}", freeze_plans(plans, &mut fields)?);
            }
            text
        }
        operation => heap2_from_16(record, operation)?,
    })
}

fn heap2_from_16(record: &DecodedRecord, operation: u8) -> Text {
    let body = Body::of(record);
    Ok(match operation {
        heap2::VISIBLE => format!("snapshotConflictHorizon: {}, flags: 0x{:02X}", body.u32(0)?, body.u8(4)?),
        heap2::MULTI_INSERT => {
            let (flags, count) = (body.u8(0)?, body.u16(2)?);
            let mut text = format!("ntuples: {count}, flags: 0x{flags:02X}");
            // On a new page the tuples get the first offsets; with an image nobody needs them.
            let is_new_page = record.operation() & !OPERATION_MASK != 0;
            if !is_new_page && !Body::of_block_0(record).is_empty() {
                text += &format!(", offsets: {}", list(u16s(body.from(4)?.items(count.into(), 2)?)));
            }
            text
        }
        heap2::LOCK_UPDATED => lock_from_16(body)?,
        heap2::NEW_CID => format!(
            "rel: {}, tid: {}/{}, cmin: {}, cmax: {}, combo: {}",
            body.rel(16)?,
            body.block_id(28)?,
            body.u16(32)?,
            body.u32(4)?,
            body.u32(8)?,
            body.u32(12)?
        ),
        _ => String::new(),
    })
}

/// One body for all three kinds of pruning. PG 17: heapam_xlog.h, xl_heap_prune and the xlhp_* in the data of block 0.
fn prune_from_17(record: &DecodedRecord) -> Text {
    use prune_flag::*;
    let (body, data) = (Body::of(record), Body::of_block_0(record));
    let flags = body.u8(1)?;
    let mut text = String::new();
    if flags & HAS_CONFLICT_HORIZON != 0 {
        text = format!("snapshotConflictHorizon: {}", body.u32(2)?);
    }
    text += &format!(", isCatalogRel: {}", t_or_f(flags & IS_CATALOG_REL != 0));
    if data.is_empty() {
        return Ok(text);
    }
    let mut fields = data.from(0)?;
    let mut items = |flag: u8, padding_len: usize, item_len: usize| {
        if flags & flag == 0 {
            return Ok((0, &[][..]));
        }
        let count = fields.u16()?;
        fields.take(padding_len)?;
        Ok((count, fields.items(count.into(), item_len)?))
    };
    let (plan_count, plans) = items(HAS_FREEZE_PLANS, 2, FREEZE_PLAN_LEN)?;
    let (redirected_count, redirected) = items(HAS_REDIRECTIONS, 0, 4)?;
    let (dead_count, dead) = items(HAS_DEAD_ITEMS, 0, 2)?;
    let (unused_count, unused) = items(HAS_NOW_UNUSED_ITEMS, 0, 2)?;
    text += &format!(
        ", nplans: {plan_count}, nredirected: {redirected_count}, ndead: {dead_count}, nunused: {unused_count}"
    );
    let plans = freeze_plans(plans, &mut fields)?;
    for (count, name, list) in [
        (plan_count, "plans", plans),
        (redirected_count, "redirected", redirections(redirected)),
        (dead_count, "dead", list(u16s(dead))),
        (unused_count, "unused", list(u16s(unused))),
    ] {
        if count > 0 {
            text += &format!(", {name}: {list}");
        }
    }
    Ok(text)
}

fn redirections(offsets: &[u8]) -> String {
    list(
        offsets
            .as_chunks::<4>()
            .0
            .iter()
            .map(|[a, b, c, d]| format!("{}->{}", u16::from_le_bytes([*a, *b]), u16::from_le_bytes([*c, *d]))),
    )
}

/// Plans and the offsets that each is for, which follow one after the other at `offsets`.
fn freeze_plans(plans: &[u8], offsets: &mut Fields<'_>) -> Text {
    let mut texts = Vec::new();
    for plan in plans.chunks_exact(FREEZE_PLAN_LEN) {
        let mut plan = Fields::new("freeze plan", plan);
        let (xmax, infomask2, infomask) = (plan.u32()?, plan.u16()?, plan.u16()?);
        let _flags_and_padding = plan.u16()?;
        let count = plan.u16()?;
        let offsets = list(u16s(offsets.items(count.into(), 2)?));
        texts.push(format!(
            "{{ xmax: {xmax}, infomask: {infomask}, infomask2: {infomask2}, ntuples: {count}, offsets: {offsets} }}"
        ));
    }
    Ok(list(texts.iter()))
}
