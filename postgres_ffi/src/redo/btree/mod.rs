//! B-tree.
//!
//! - Tuples keep the order in which they lie, not only that of their line pointers: a page is rebuilt tuple by tuple as PostgreSQL rebuilds it.
//! - What PostgreSQL only asserts is checked where it decides which bytes are written. The order of row positions within a posting list is not:
//!   it changes nothing of where they go.
//!
//! In reading order: single tuples, the metapage, flags and links (here), [`posting`] lists, [`split`], [`dedup`], [`delete`], whole pages that go
//! ([`unlink`]).
//!
//! PG 14-18: src/backend/access/nbtree/nbtxlog.c (btree_redo), src/include/access/nbtxlog.h. Records have the same layout in all of them but for
//! a flag at the end of xl_btree_delete and xl_btree_reuse_page (from 16), which redo of pages has no use for.

mod posting;

mod dedup;
mod delete;
mod split;
mod unlink;

#[cfg(test)]
mod tests;

use std::ops::Range;

use byteorder::{ByteOrder, LittleEndian};

use super::{Change, RedoError, Stamp, index_tuple, page_error};
use crate::BlockNumber;
use crate::inspect::special::BTP_META;
use crate::mask::index::{BTP_HAS_GARBAGE, BTP_LEAF};
use crate::page::edit::{self, Placement};
use crate::page::layout::{Header, item};
use crate::page::{BLCKSZ, PAGE_HEADER_LEN, PD_LOWER, Page};
use crate::records::RecordError;
use crate::records::fields::Fields;
use crate::wal::describe::btree::operation::*;

const BTP_ROOT: u16 = 1 << 1;
const BTP_DELETED: u16 = 1 << 2;
const BTP_HALF_DEAD: u16 = 1 << 4;
const BTP_INCOMPLETE_SPLIT: u16 = 1 << 7;
const BTP_HAS_FULLXID: u16 = 1 << 8;

/// No sibling: block 0 is the metapage. PG: nbtree.h, P_NONE.
const NO_SIBLING: BlockNumber = 0;
/// The high key's item, on all but the rightmost page of a level. PG: nbtree.h, P_HIKEY.
const HIGH_KEY: u16 = 1;
const METAPAGE: BlockNumber = 0;
/// PG: nbtree.h, BTREE_MAGIC.
const MAGIC: u32 = 0x053162;
/// Metapages of older versions have fewer fields and are brought up to date before they are logged. PG: nbtree.h, BTREE_NOVAC_VERSION.
const META_VERSION_MIN: u32 = 3;
/// sizeof(xl_btree_metadata): six u32, a bool, padding.
const META_RECORD_LEN: usize = 28;
/// sizeof(BTMetaPageData).
const META_LEN: usize = 48;

pub(super) fn redo(change: &Change<'_>, page: &mut Page) -> Result<Stamp, RedoError> {
    match (change.operation(), change.block_id()) {
        (INSERT_LEAF | INSERT_UPPER | INSERT_META, 0) => insert(change, page),
        (INSERT_POST, 0) => posting::insert_into(change, page),
        (INSERT_UPPER | INSERT_META, 1) => finish_split(page),
        (INSERT_META | NEWROOT, 2) | (UNLINK_PAGE_META, 4) | (META_CLEANUP, 0) => make_meta(change, page),
        (SPLIT_L | SPLIT_R, 0) => split::left(change, page),
        (SPLIT_L | SPLIT_R, 1) => split::right(change, page),
        (SPLIT_L | SPLIT_R, 2) => split::behind(change, page),
        (SPLIT_L | SPLIT_R, 3) => split::child(change, page),
        (DEDUP, 0) => dedup::dedup(change, page),
        (VACUUM, 0) => delete::vacuum(change, page),
        (DELETE, 0) => delete::delete(change, page),
        (MARK_PAGE_HALFDEAD, 0) => unlink::leaf_half_dead(change, page),
        (MARK_PAGE_HALFDEAD, 1) => unlink::parent(change, page),
        (UNLINK_PAGE | UNLINK_PAGE_META, 0) => unlink::target(change, page),
        (UNLINK_PAGE | UNLINK_PAGE_META, 1) => unlink::left_sibling(change, page),
        (UNLINK_PAGE | UNLINK_PAGE_META, 2) => unlink::right_sibling(change, page),
        (UNLINK_PAGE | UNLINK_PAGE_META, 3) => unlink::leaf_below(change, page),
        (NEWROOT, 0) => split::new_root(change, page),
        (NEWROOT, 1) => split::child_of_new_root(change, page),
        // REUSE_PAGE only tells standbys; it names no block.
        _ => Err(change.unknown_operation()),
    }?;
    Ok(Stamp::Record)
}

/// PG: btree_xlog_insert.
fn insert(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let offset_no = Fields::new("xl_btree_insert", change.main_data()).u16()?;
    let tuple = whole_tuple("xl_btree_insert", change.block_data())?;
    Ok(edit::add_item(page, tuple, offset_no, Placement::Insert)?)
}

/// The parent knows of the right page now. PG: _bt_clear_incomplete_split.
fn finish_split(page: &mut Page) -> Result<(), RedoError> {
    let mut special = Special::read(page)?;
    if special.flags & BTP_INCOMPLETE_SPLIT == 0 {
        return Err(page_error("no incomplete split to finish, btpo_flags", special.flags));
    }
    special.flags &= !BTP_INCOMPLETE_SPLIT;
    special.write(page);
    Ok(())
}

/// PG: _bt_restore_meta.
fn make_meta(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let mut fields = Fields::new("xl_btree_metadata", change.block_data());
    let bytes = fields.take(META_RECORD_LEN)?;
    let version = LittleEndian::read_u32(bytes);
    if version < META_VERSION_MIN {
        return Err(fields.impossible("version", version.into()).into());
    }
    if change.block.block_no != METAPAGE {
        return Err(page_error("a metapage is never this block", change.block.block_no));
    }
    init_page(page, Special { flags: BTP_META, ..Special::default() });
    let meta = &mut page[PAGE_HEADER_LEN..PAGE_HEADER_LEN + META_LEN];
    LittleEndian::write_u32(meta, MAGIC);
    // Version, root and level, fast root and level, number of deleted pages: in the same order in both.
    meta[4..28].copy_from_slice(&bytes[..24]);
    // The number of heap tuples at the last cleanup: unknown.
    LittleEndian::write_f64(&mut meta[32..], -1.0);
    // Equal values look alike in all columns: deduplication is safe.
    meta[40] = bytes[24];
    LittleEndian::write_u16(&mut page[PD_LOWER..], (PAGE_HEADER_LEN + META_LEN) as u16);
    Ok(())
}

/// The special area, 16 bytes: prev u32, next u32, level u32, flags u16, cycle id u16. PG: nbtree.h, BTPageOpaqueData.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Special {
    prev: BlockNumber,
    next: BlockNumber,
    level: u32,
    flags: u16,
    /// Which vacuum ran when the page was split, 0 for none.
    cycle_id: u16,
}

impl Special {
    const LEN: usize = 16;
    const AT: usize = BLCKSZ - Self::LEN;

    fn read(page: &Page) -> Result<Self, RedoError> {
        let header = Header::read(page);
        if header.special != Self::AT {
            return Err(page_error("special area is not that of a B-tree, pd_special", header.special));
        }
        let area = &page[Self::AT..];
        Ok(Special {
            prev: LittleEndian::read_u32(&area[0..]),
            next: LittleEndian::read_u32(&area[4..]),
            level: LittleEndian::read_u32(&area[8..]),
            flags: LittleEndian::read_u16(&area[12..]),
            cycle_id: LittleEndian::read_u16(&area[14..]),
        })
    }

    fn write(self, page: &mut Page) {
        let area = &mut page[Self::AT..];
        LittleEndian::write_u32(&mut area[0..], self.prev);
        LittleEndian::write_u32(&mut area[4..], self.next);
        LittleEndian::write_u32(&mut area[8..], self.level);
        LittleEndian::write_u16(&mut area[12..], self.flags);
        LittleEndian::write_u16(&mut area[14..], self.cycle_id);
    }

    /// The first item behind the high key. PG: nbtree.h, P_FIRSTDATAKEY.
    fn first_data_item(self) -> u16 {
        if self.next == NO_SIBLING { HIGH_KEY } else { HIGH_KEY + 1 }
    }
}

/// An empty page. PG: _bt_pageinit, and what follows it everywhere.
fn init_page(page: &mut Page, special: Special) {
    edit::init_page(page, Special::LEN);
    special.write(page);
}

/// Puts `tuple` behind the last item.
fn push(page: &mut Page, tuple: &[u8]) -> Result<(), RedoError> {
    let offset_no = Header::read(page).item_count() + 1;
    Ok(edit::add_item(page, tuple, offset_no, Placement::Insert)?)
}

/// Where the tuple of item `offset_no` lies. An item is as long as its tuple says that it is itself: amcheck holds every B-tree to that.
fn tuple_range(page: &Page, offset_no: u16) -> Result<Range<usize>, RedoError> {
    let range = item(page, offset_no).and_then(|item| item.range());
    let whole = range.filter(|range| is_whole_tuple(&page[range.clone()]));
    whole.ok_or_else(|| page_error("item is not there or not as long as its tuple", offset_no))
}

/// `bytes`, if they are one tuple and nothing else.
fn whole_tuple<'a>(body: &'static str, bytes: &'a [u8]) -> Result<&'a [u8], RecordError> {
    let len = bytes.len() as i64;
    if is_whole_tuple(bytes) { Ok(bytes) } else { Err(RecordError::Value { body, field: "tuple length", value: len }) }
}

fn is_whole_tuple(bytes: &[u8]) -> bool {
    index_tuple::split_first(bytes).is_some_and(|(_, rest)| rest.is_empty())
}

/// The first tuple of `bytes` with its padding, and what follows.
fn split_first_padded<'a>(body: &'static str, bytes: &'a [u8]) -> Result<(&'a [u8], &'a [u8]), RecordError> {
    let padded =
        index_tuple::split_first(bytes).and_then(|(tuple, _)| bytes.split_at_checked(edit::aligned(tuple.len())));
    padded.ok_or(RecordError::Value { body, field: "tuple length", value: bytes.len() as i64 })
}

const _: () = assert!(META_LEN == 40 + 8);
const _: () = assert!(Special::AT == crate::mask::index::FLAGS_OF_16 - 12);
