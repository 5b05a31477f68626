//! GiST.
//!
//! Special area (16 bytes), offsets from its start: nsn high u32@0, nsn low u32@4, right link u32@8, flags u16@12, page id u16@14.
//! A deleted page has no line pointers; the full xid of its deletion (u64) stands where they would begin.
//!
//! PAGE_REUSE and ASSIGN_LSN touch no page.
//!
//! PG 14-18: src/backend/access/gist/gistxlog.c (gist_redo), src/include/access/gistxlog.h, src/include/access/gist.h.

use byteorder::{ByteOrder, LittleEndian};

use super::{Change, RedoError, Stamp, index_tuple, page_error};
use crate::mask::index::{
    FLAGS_OF_16, GIST_FOLLOW_RIGHT, GIST_HAS_GARBAGE, GIST_LEAF, GIST_NSN_AT, GIST_TUPLES_DELETED,
};
use crate::page::edit::{self, Placement};
use crate::page::layout::Header;
use crate::page::{BLCKSZ, PAGE_HEADER_LEN, PD_LOWER, Page};
use crate::records::fields::Fields;
use crate::{BlockNumber, PgVersion};

const PAGE_UPDATE: u8 = 0x00;
const DELETE: u8 = 0x10;
const PAGE_SPLIT: u8 = 0x30;
const PAGE_DELETE: u8 = 0x60;

const SPECIAL_LEN: usize = 16;
const RIGHT_LINK_AT: usize = BLCKSZ - 8;
const PAGE_ID_AT: usize = BLCKSZ - 2;
/// PG: gist.h, GIST_PAGE_ID.
const PAGE_ID: u16 = 0xFF81;
/// PG: gist.h, F_DELETED.
const GIST_DELETED: u16 = 1 << 1;
/// PG: gist_private.h, GIST_ROOT_BLKNO.
const ROOT_BLOCK_NO: BlockNumber = 0;
/// No page to the right. PG: block.h, InvalidBlockNumber.
const NO_BLOCK: BlockNumber = BlockNumber::MAX;
/// Length of GISTDeletedPageContents.
const DELETED_CONTENTS_LEN: usize = 8;

pub(super) fn redo(change: &Change<'_>, page: &mut Page) -> Result<Stamp, RedoError> {
    let (operation, block_id) = (change.operation(), change.block_id());
    let is_made_anew = operation == PAGE_SPLIT && block_id > 0;
    if change.block.will_init != is_made_anew {
        return Err(change.unknown_operation());
    }
    if !is_made_anew {
        check_special(page)?;
    }
    match (operation, block_id) {
        (PAGE_UPDATE, 0) => page_update(change, page)?,
        (PAGE_UPDATE, 1) | (PAGE_SPLIT, 0) => finish_split(change, page),
        (DELETE, 0) => delete(change, page)?,
        (PAGE_SPLIT, _) => page_split(change, page)?,
        (PAGE_DELETE, 0) => page_delete(change, page)?,
        (PAGE_DELETE, 1) => delete_downlink(change, page)?,
        _ => return Err(change.unknown_operation()),
    }
    Ok(Stamp::Record)
}

/// Tuples that go, then tuples that come. PG 14-18: gistRedoPageUpdateRecord.
fn page_update(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let mut fields = Fields::new("gistxlogPageUpdate", change.main_data());
    let (delete_count, insert_count) = (usize::from(fields.u16()?), usize::from(fields.u16()?));
    let mut data = Fields::new("gistxlogPageUpdate's block data", change.block_data());
    let deleted = data.offset_nos(delete_count)?;
    let tuples = data.rest();
    // One for one is an overwrite, which leaves the other tuples where a deletion and an insertion would not.
    if let (1, 1, Some(offset_no)) = (delete_count, insert_count, deleted.iter().next()) {
        let tuple = index_tuple::split_first(tuples).filter(|(_, rest)| rest.is_empty());
        let (tuple, _) = tuple.ok_or_else(|| data.impossible("tuples", tuples.len() as i64))?;
        return Ok(edit::overwrite_item(page, offset_no, tuple)?);
    }
    if delete_count > 0 {
        edit::delete_items(page, deleted.iter())?;
        if flags(page) & GIST_LEAF != 0 {
            set_flags(page, flags(page) | tuples_deleted_flag(change.version()));
        }
    }
    append_tuples(page, &data, insert_count)
}

/// The child whose right half got its downlink by this record: the split is complete as of this record's LSN.
/// Done on top of an image as well: when it was taken, that LSN was not known. PG 14-18: gistRedoClearFollowRight.
fn finish_split(change: &Change<'_>, page: &mut Page) {
    set_nsn(page, change.end_lsn().as_u64());
    set_flags(page, flags(page) & !GIST_FOLLOW_RIGHT);
}

/// Tuples that a scan found dead. PG 14-18: gistRedoDeleteRecord; from 16 on isCatalogRel (bool) and a byte of padding stand before the numbers.
///
/// Where redo sets F_TUPLES_DELETED here, the primary that wrote the record did not (gist.c, gistprunepage).
fn delete(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let mut fields = Fields::new("gistxlogDelete", change.main_data());
    fields.u32()?;
    let count = usize::from(fields.u16()?);
    if change.version() >= PgVersion::V16 {
        fields.u16()?;
    }
    edit::delete_items(page, fields.offset_nos(count)?.iter())?;
    set_flags(page, flags(page) & !GIST_HAS_GARBAGE | tuples_deleted_flag(change.version()));
    Ok(())
}

/// One page of those that a page was split into; each has all its tuples in the record. PG 14-18: gistRedoPageSplitRecord.
fn page_split(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let mut fields = Fields::new("gistxlogPageSplit", change.main_data());
    let right_link_before = fields.u32()?;
    fields.align(8);
    let nsn_before = fields.u64()?;
    let is_leaf = fields.flag()?;
    fields.align(2);
    let last_block_id = fields.u16()?;
    let is_to_follow_right = fields.flag()?;

    let block_id = change.block_id();
    if u16::from(block_id) > last_block_id {
        return Err(change.unknown_operation());
    }
    // The root keeps its number when it is split: then it is the first, with the others below it.
    let is_root_split = change.block_no_of(1)? == ROOT_BLOCK_NO;
    let is_root = change.block.block_no == ROOT_BLOCK_NO;
    if is_root && block_id != 1 {
        return Err(fields.impossible("root's block id", block_id.into()).into());
    }
    let is_last = u16::from(block_id) == last_block_id;
    let right_link = match (is_root, is_last) {
        (true, _) => NO_BLOCK,
        (false, true) => right_link_before,
        (false, false) => change.block_no_of(block_id + 1)?,
    };
    let leaf = if is_leaf && !is_root { GIST_LEAF } else { 0 };
    let follow_right = if is_to_follow_right && !is_root_split && !is_last { GIST_FOLLOW_RIGHT } else { 0 };
    init_page(page, leaf | follow_right, right_link);
    set_nsn(page, nsn_before);
    let mut data = Fields::new("gistxlogPageSplit's block data", change.block_data());
    let count = data.count()?;
    append_tuples(page, &data, count)
}

/// An empty leaf is taken out of the tree. PG 14-18: gistRedoPageDelete; gist.h, GistPageSetDeleted.
fn page_delete(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let mut fields = Fields::new("gistxlogPageDelete", change.main_data());
    let deletion_xid = fields.u64()?;
    let item_count = Header::read(page).item_count();
    if item_count > 0 {
        return Err(page_error("page to be deleted is not empty", item_count));
    }
    set_flags(page, flags(page) | GIST_DELETED);
    LittleEndian::write_u64(&mut page[PAGE_HEADER_LEN..][..DELETED_CONTENTS_LEN], deletion_xid);
    LittleEndian::write_u16(&mut page[PD_LOWER..][..2], (PAGE_HEADER_LEN + DELETED_CONTENTS_LEN) as u16);
    Ok(())
}

/// The deleted leaf's parent. PG 14-18: gistRedoPageDelete.
fn delete_downlink(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let mut fields = Fields::new("gistxlogPageDelete", change.main_data());
    fields.u64()?;
    Ok(edit::delete_item(page, fields.u16()?)?)
}

/// What redo of a deletion sets on a leaf: F_TUPLES_DELETED, which PostgreSQL never asks for (pageinspect shows it).
///
/// It is a matter of the minor release, which WAL does not tell: 14.23, 15.18, 16.14, 17.10 and 18.6 set it, 15.20 does not, neither on the primary
/// nor in redo. Here it goes by the releases that our tests compare with.
fn tuples_deleted_flag(version: PgVersion) -> u16 {
    if version == PgVersion::V15 { 0 } else { GIST_TUPLES_DELETED }
}

/// Puts the rest of `data`, which must be `count` tuples, behind the tuples that are there.
fn append_tuples(page: &mut Page, data: &Fields<'_>, count: usize) -> Result<(), RedoError> {
    let impossible = || data.impossible("tuples", count as i64);
    let mut rest = data.rest();
    for _ in 0..count {
        let (tuple, behind) = index_tuple::split_first(rest).ok_or_else(impossible)?;
        edit::add_item(page, tuple, Header::read(page).item_count() + 1, Placement::Insert)?;
        rest = behind;
    }
    if rest.is_empty() { Ok(()) } else { Err(impossible().into()) }
}

/// PG 14-18: gistutil.c, gistinitpage.
fn init_page(page: &mut Page, flags: u16, right_link: BlockNumber) {
    edit::init_page(page, SPECIAL_LEN);
    LittleEndian::write_u32(&mut page[RIGHT_LINK_AT..][..4], right_link);
    set_flags(page, flags);
    LittleEndian::write_u16(&mut page[PAGE_ID_AT..], PAGE_ID);
}

fn flags(page: &Page) -> u16 {
    LittleEndian::read_u16(&page[FLAGS_OF_16..])
}

fn set_flags(page: &mut Page, flags: u16) {
    LittleEndian::write_u16(&mut page[FLAGS_OF_16..][..2], flags);
}

/// Stored as an LSN is: high half first.
fn set_nsn(page: &mut Page, nsn: u64) {
    LittleEndian::write_u32(&mut page[GIST_NSN_AT..][..4], (nsn >> 32) as u32);
    LittleEndian::write_u32(&mut page[GIST_NSN_AT + 4..][..4], (nsn & 0xFFFF_FFFF) as u32);
}

/// The offsets above hold for a special area of the right length only.
fn check_special(page: &Page) -> Result<(), RedoError> {
    let special = Header::read(page).special;
    if special == BLCKSZ - SPECIAL_LEN { Ok(()) } else { Err(page_error("not a GiST page, pd_special", special)) }
}

const _: () = assert!(FLAGS_OF_16 == BLCKSZ - SPECIAL_LEN + 12);

#[cfg(test)]
mod tests;
