//! Numbers in the main data of records of fixed layout, by tables. In words, and with what has lists: [`crate::wal::describe`].
//!
//! PG 15, 17, 18: src/include/access/{heapam,nbt,hash,gin,gist,spg,brin}_xlog.h (nbtxlog.h, ginxlog.h, gistxlog.h, spgxlog.h).

use crate::PgVersion;
use crate::inspect::fields::{Fields, Layout, Width::*};
use crate::wal::{DecodedRecord, rmgr};

/// The numbers of a record's body, for records of fixed layout.
pub(super) fn fields(version: PgVersion, record: &DecodedRecord) -> Option<Fields> {
    let layout = match record.rmid {
        rmgr::HEAP => heap(record.operation() & 0x70),
        rmgr::HEAP2 => heap2(version, record.operation() & 0x70),
        rmgr::BTREE => btree(record.operation()),
        rmgr::HASH => hash(record.operation()),
        rmgr::GIN => gin(record.operation()),
        rmgr::GIST => gist(record.operation()),
        rmgr::SPGIST => spgist(record.operation()),
        rmgr::BRIN => brin(record.operation() & 0x70),
        _ => return None,
    };
    Some(Fields::read(record.main_data(), layout)).filter(|fields| !fields.0.is_empty())
}

fn heap(operation: u8) -> Layout {
    match operation {
        0x00 => &[("off", 0, U16), ("flags", 2, U8)],
        0x10 => &[("xmax", 0, U32), ("off", 4, U16), ("infobits", 6, U8), ("flags", 7, U8)],
        0x20 | 0x40 => &[
            ("old_xmax", 0, U32),
            ("old_off", 4, U16),
            ("old_infobits", 6, U8),
            ("flags", 7, U8),
            ("new_xmax", 8, U32),
            ("new_off", 12, U16),
        ],
        0x30 => &[("database", 0, U32), ("relations", 4, U32), ("flags", 8, U8)],
        0x50 | 0x70 => &[("off", 0, U16)],
        0x60 => &[("xmax", 0, U32), ("off", 4, U16), ("infobits", 6, U8), ("flags", 7, U8)],
        _ => &[],
    }
}

fn heap2(version: PgVersion, operation: u8) -> Layout {
    let is_new_prune = version >= PgVersion::V17;
    match operation {
        0x10..=0x30 if is_new_prune => &[("reason", 0, U8), ("flags", 1, U8)],
        0x10 => &[("conflict_xid", 0, U32), ("redirected", 4, U16), ("dead", 6, U16)],
        0x20 => &[("unused", 0, U16)],
        0x30 if version >= PgVersion::V16 => &[("conflict_xid", 0, U32), ("plans", 4, U16)],
        0x30 => &[("cutoff_xid", 0, U32), ("tuples", 4, U16)],
        0x40 => &[("conflict_xid", 0, U32), ("flags", 4, U8)],
        0x50 => &[("flags", 0, U8), ("tuples", 2, U16)],
        0x60 => &[("xmax", 0, U32), ("off", 4, U16), ("infobits", 6, U8), ("flags", 7, U8)],
        _ => &[],
    }
}

fn btree(operation: u8) -> Layout {
    match operation {
        0x00 | 0x10 | 0x20 | 0x50 => &[("off", 0, U16)],
        0x30 | 0x40 => {
            &[("level", 0, U32), ("first_right_off", 4, U16), ("new_item_off", 6, U16), ("posting_off", 8, U16)]
        }
        0x60 => &[("intervals", 0, U16)],
        0x70 => &[("conflict_xid", 0, U32), ("deleted", 4, U16), ("updated", 6, U16)],
        0x80 | 0x90 => &[("left", 0, U32), ("right", 4, U32), ("level", 8, U32), ("safe_xid", 16, U64)],
        0xA0 => &[("root", 0, U32), ("level", 4, U32)],
        0xB0 => {
            &[("parent_off", 0, U16), ("leaf", 4, U32), ("left", 8, U32), ("right", 12, U32), ("top_parent", 16, U32)]
        }
        0xC0 => &[("deleted", 0, U16), ("updated", 2, U16)],
        0xD0 => &[("tablespace", 0, U32), ("database", 4, U32), ("relation", 8, U32), ("block", 12, U32)],
        _ => &[],
    }
}

fn hash(operation: u8) -> Layout {
    match operation {
        0x00 => &[("tuples", 0, F64), ("function", 8, U32), ("fill_factor", 12, U16)],
        0x10 => &[("bitmap_bytes", 0, U16)],
        0x20 => &[("off", 0, U16)],
        0x30 => &[("bitmap_bytes", 0, U16), ("bitmap_page_found", 2, U8)],
        0x40 => &[("new_bucket", 0, U32), ("old_bucket_flag", 4, U16), ("new_bucket_flag", 6, U16), ("flags", 8, U8)],
        0x60 => &[("old_bucket_flag", 0, U16), ("new_bucket_flag", 2, U16)],
        0x70 => &[("tuples", 0, U16), ("same_primary", 2, U8)],
        0x80 => {
            &[("prev", 0, U32), ("next", 4, U32), ("tuples", 8, U16), ("same_primary", 10, U8), ("same_prev", 11, U8)]
        }
        0x90 => &[("clear_dead_marking", 0, U8), ("primary", 1, U8)],
        0xB0 => &[("tuples", 0, F64)],
        0xC0 => &[("conflict_xid", 0, U32), ("tuples", 4, U16)],
        _ => &[],
    }
}

fn gin(operation: u8) -> Layout {
    match operation {
        0x10 => &[("bytes", 0, U32)],
        0x20 => &[("flags", 0, U16)],
        0x50 => &[("parent_off", 0, U16), ("right_link", 4, U32)],
        0x70 => &[("right_link", 0, U32), ("tuples", 4, U32)],
        _ => &[],
    }
}

fn gist(operation: u8) -> Layout {
    match operation {
        0x00 => &[("deleted", 0, U16), ("inserted", 2, U16)],
        0x10 => &[("conflict_xid", 0, U32), ("deleted", 4, U16)],
        0x20 => &[("tablespace", 0, U32), ("database", 4, U32), ("relation", 8, U32), ("block", 12, U32)],
        0x30 => &[("right_link", 0, U32), ("leaf", 16, U8), ("pages", 18, U16), ("follow_right", 20, U8)],
        0x60 => &[("delete_xid", 0, U64), ("downlink_off", 8, U16)],
        _ => &[],
    }
}

fn spgist(operation: u8) -> Layout {
    match operation {
        0x10 => &[
            ("new_page", 0, U8),
            ("nulls", 1, U8),
            ("off", 2, U16),
            ("head_off", 4, U16),
            ("parent_off", 6, U16),
            ("node", 8, U16),
        ],
        0x20 => &[("moves", 0, U16), ("new_page", 2, U8), ("replace_dead", 3, U8), ("nulls", 4, U8)],
        0x30 => &[("off", 0, U16), ("new_off", 2, U16), ("new_page", 4, U8)],
        0x40 => &[("prefix_off", 0, U16), ("postfix_off", 2, U16), ("new_page", 4, U8), ("same_page", 5, U8)],
        0x50 => &[("root_split", 0, U8), ("deleted", 2, U16), ("inserted", 4, U16)],
        0x60 => &[("dead", 0, U16), ("placeholders", 2, U16), ("moves", 4, U16), ("chains", 6, U16)],
        0x70 => &[("deleted", 0, U16)],
        0x80 => &[("placeholders", 0, U16), ("first_placeholder", 2, U16)],
        _ => &[],
    }
}

fn brin(operation: u8) -> Layout {
    match operation {
        0x00 => &[("pages_per_range", 0, U32), ("version", 4, U16)],
        0x10 => &[("heap_block", 0, U32), ("pages_per_range", 4, U32), ("off", 8, U16)],
        0x20 => &[("old_off", 0, U16), ("heap_block", 4, U32), ("pages_per_range", 8, U32), ("off", 12, U16)],
        0x30 => &[("off", 0, U16)],
        0x40 => &[("target_block", 0, U32)],
        0x50 => &[("pages_per_range", 0, U32), ("heap_block", 4, U32), ("off", 8, U16)],
        _ => &[],
    }
}
