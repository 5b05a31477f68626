//! GIN: the entry tree, the posting tree of each frequent key, the pending list and the metapage.
//!
//! - An entry page has items like those of a B-tree. A posting page keeps heap tuple ids from byte 32 on: inner pages an array of posting items, leaves
//!   compressed posting lists, or a plain array if the page comes from before 9.4.
//! - Splits and the vacuum of entry pages are nothing but images; they never get here with one.
//!
//! In reading order: [`redo`] (here) with everything but leaves of posting trees, [`page`] (special area and posting items), [`posting_leaf`],
//! [`posting_list`].
//!
//! PG 14-18: src/backend/access/gin/ginxlog.c (gin_redo), src/include/access/ginxlog.h; nothing changed in these versions but names.

mod page;
mod posting_leaf;
mod posting_list;

use byteorder::{ByteOrder, LittleEndian};

use self::page::{COMPRESSED, DATA, DELETED, INCOMPLETE_SPLIT, LEAF, LIST, LIST_FULLROW, META};
use super::{Change, RedoError, Stamp, index_tuple, page_error};
use crate::BlockNumber;
use crate::page::edit::{self, Placement};
use crate::page::layout::{self, Header};
use crate::page::{PAGE_HEADER_LEN, PD_LOWER, PD_PRUNE_XID, Page};
use crate::records::RecordError;
use crate::records::fields::Fields;

const CREATE_PTREE: u8 = 0x10;
const INSERT: u8 = 0x20;
const SPLIT: u8 = 0x30;
const VACUUM_PAGE: u8 = 0x40;
const DELETE_PAGE: u8 = 0x50;
const UPDATE_META_PAGE: u8 = 0x60;
const INSERT_LISTPAGE: u8 = 0x70;
const DELETE_LISTPAGE: u8 = 0x80;
const VACUUM_DATA_LEAF_PAGE: u8 = 0x90;

/// Flags of ginxlogInsert and ginxlogSplit: GIN_INSERT_ISDATA, GIN_INSERT_ISLEAF.
const INSERT_IS_DATA: u16 = 0x01;
const INSERT_IS_LEAF: u16 = 0x02;
/// Where the flags stand in ginxlogSplit.
const SPLIT_FLAGS_AT: usize = 24;

/// sizeof(GinMetaPageData).
const METADATA_LEN: usize = 56;
/// What stands before the metadata in ginxlogUpdateMeta: a RelFileNode / RelFileLocator, padded.
const UPDATE_META_HEAD_LEN: usize = 16;
/// BlockIdData: high half u16, low half u16.
const BLOCK_ID_LEN: usize = 4;
/// InvalidBlockNumber.
const NO_BLOCK: BlockNumber = BlockNumber::MAX;

pub(super) fn redo(change: &Change<'_>, page: &mut Page) -> Result<Stamp, RedoError> {
    match (change.operation(), change.block_id()) {
        (CREATE_PTREE, 0) => create_posting_tree(change, page)?,
        (INSERT, 0) => insert(change, page)?,
        (INSERT, 1) | (SPLIT, 3) => finish_split(change, page)?,
        (SPLIT, block_id @ 0..=2) | (VACUUM_PAGE, block_id @ 0) => {
            return Err(page_error("only an image makes this change, block_id", block_id));
        }
        (DELETE_PAGE, 0) => delete_page(change, page)?,
        (DELETE_PAGE, 1) => delete_downlink(change, page)?,
        (DELETE_PAGE, 2) => unlink_right(change, page)?,
        (UPDATE_META_PAGE, 0) => replace_metapage(change, page, UPDATE_META_HEAD_LEN)?,
        (UPDATE_META_PAGE, 1) => change_tail(change, page)?,
        (INSERT_LISTPAGE, 0) => create_list_page(change, page)?,
        (DELETE_LISTPAGE, 0) => replace_metapage(change, page, 0)?,
        (DELETE_LISTPAGE, block_id) => delete_list_page(change, page, block_id)?,
        (VACUUM_DATA_LEAF_PAGE, 0) => {
            page::expect(page, DATA | LEAF, DATA | LEAF)?;
            posting_leaf::recompress(page, change.block_data())?;
        }
        _ => return Err(change.unknown_operation()),
    }
    Ok(Stamp::Record)
}

/// ginxlogCreatePostingTree: the length of the posting lists (u32), then they themselves.
fn create_posting_tree(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let mut fields = Fields::new("ginxlogCreatePostingTree", change.main_data());
    let len = fields.u32()? as usize;
    let lists = fields.take(len)?;
    page::init(page, DATA | LEAF | COMPRESSED);
    let Some(place) = page[page::DATA_RANGE].get_mut(..len) else {
        return Err(page_error("posting lists do not fit on a page", len));
    };
    place.copy_from_slice(lists);
    page::set_data_end(page, page::DATA_RANGE.start + len);
    Ok(())
}

/// ginxlogInsert: flags, then for inner pages the block ids of both halves of the split below that is finished with this.
fn insert(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let mut fields = Fields::new("ginxlogInsert", change.main_data());
    let flags = fields.u16()?;
    let (is_data, is_leaf) = (flags & INSERT_IS_DATA != 0, flags & INSERT_IS_LEAF != 0);
    page::expect(page, DATA | LEAF, flags & (INSERT_IS_DATA | INSERT_IS_LEAF))?;
    if is_leaf && is_data {
        return posting_leaf::recompress(page, change.block_data());
    }
    if is_leaf {
        return insert_entry(page, change.block_data(), None);
    }
    fields.take(BLOCK_ID_LEN)?;
    let right_child = fields.take(BLOCK_ID_LEN)?;
    if is_data {
        insert_posting_item(page, change.block_data(), right_child)
    } else {
        insert_entry(page, change.block_data(), Some(right_child))
    }
}

/// ginxlogInsertEntry: offset number, whether the tuple there goes first, padding, the new tuple. PG: ginRedoInsertEntry.
fn insert_entry(page: &mut Page, data: &[u8], right_child: Option<&[u8]>) -> Result<(), RedoError> {
    let mut fields = Fields::new("ginxlogInsertEntry", data);
    let (offset_no, is_delete) = (fields.u16()?, fields.flag()?);
    fields.align(4);
    if is_delete && right_child.is_some() {
        return Err(fields.impossible("isDelete", 1).into());
    }
    if let Some(right_child) = right_child.filter(|block_id| **block_id != [0xFF; BLOCK_ID_LEN]) {
        set_downlink(page, offset_no, right_child)?;
    }
    if is_delete {
        edit::delete_item(page, offset_no)?;
    }
    add_tuples(page, offset_no, 1, fields.rest())
}

/// The key that led to the page that was split leads to its right half now; the new tuple before it leads to the left one.
fn set_downlink(page: &mut Page, offset_no: u16, block_id: &[u8]) -> Result<(), RedoError> {
    let tuple = layout::item(page, offset_no).and_then(|item| item.range()).and_then(|range| page.get_mut(range));
    let Some(link) = tuple.and_then(|tuple| tuple.get_mut(..index_tuple::INFO_AT)) else {
        return Err(page_error("there is no downlink with this offset number", offset_no));
    };
    link[..BLOCK_ID_LEN].copy_from_slice(block_id);
    link[BLOCK_ID_LEN..].fill(0); // InvalidOffsetNumber.
    Ok(())
}

/// ginxlogInsertDataInternal: offset number, posting item. PG: ginRedoInsertData, gindatapage.c (GinDataPageAddPostingItem).
fn insert_posting_item(page: &mut Page, data: &[u8], right_child: &[u8]) -> Result<(), RedoError> {
    let mut fields = Fields::new("ginxlogInsertDataInternal", data);
    let offset_no = fields.u16()?;
    let new_item = fields.take(page::POSTING_ITEM_LEN)?;
    let (items, place) = page::posting_items(page, offset_no)?;
    if page::DATA_RANGE.end - items.end < page::POSTING_ITEM_LEN {
        return Err(page_error("posting item does not fit", items.end));
    }
    page[place.start..place.start + BLOCK_ID_LEN].copy_from_slice(right_child);
    page.copy_within(place.start..items.end, place.end);
    page[place].copy_from_slice(new_item);
    page::set_posting_items_end(page, items.end + page::POSTING_ITEM_LEN);
    Ok(())
}

/// The child of the page that got a downlink: all know of both its halves now. PG: ginRedoClearIncompleteSplit.
fn finish_split(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let mut fields = Fields::new("ginxlogInsert or ginxlogSplit", change.main_data());
    if change.operation() == SPLIT {
        fields.take(SPLIT_FLAGS_AT)?;
    }
    if fields.u16()? & INSERT_IS_LEAF != 0 {
        return Err(change.unknown_operation());
    }
    let flags = page::flags(page)?;
    page::set_flags(page, flags & !INCOMPLETE_SPLIT);
    Ok(())
}

struct DeletePage {
    parent_offset_no: u16,
    right_link: BlockNumber,
    delete_xid: u32,
}

impl DeletePage {
    fn parse(main_data: &[u8]) -> Result<Self, RecordError> {
        let mut fields = Fields::new("ginxlogDeletePage", main_data);
        let parent_offset_no = fields.u16()?;
        fields.align(4);
        Ok(DeletePage { parent_offset_no, right_link: fields.u32()?, delete_xid: fields.u32()? })
    }
}

/// The page itself: what it holds stays, for scans that are about to visit it.
fn delete_page(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let record = DeletePage::parse(change.main_data())?;
    let flags = page::expect(page, DATA, DATA)?;
    page::set_flags(page, flags | DELETED);
    // PG: ginblock.h, GinPageSetDeleteXid.
    LittleEndian::write_u32(&mut page[PD_PRUNE_XID..], record.delete_xid);
    Ok(())
}

/// Its parent. PG: gindatapage.c (GinPageDeletePostingItem).
fn delete_downlink(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let record = DeletePage::parse(change.main_data())?;
    page::expect(page, DATA | LEAF, DATA)?;
    let (items, deleted) = page::posting_items(page, record.parent_offset_no)?;
    page.copy_within(deleted.end..items.end, deleted.start);
    page::set_posting_items_end(page, items.end - page::POSTING_ITEM_LEN);
    Ok(())
}

/// Its left neighbour.
fn unlink_right(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let record = DeletePage::parse(change.main_data())?;
    page::expect(page, DATA, DATA)?;
    page::set_right_link(page, record.right_link);
    Ok(())
}

/// GinMetaPageData from byte `at` of the main data. PG: ginutil.c (GinInitMetabuffer).
fn replace_metapage(change: &Change<'_>, page: &mut Page, at: usize) -> Result<(), RedoError> {
    let mut fields = Fields::new("GinMetaPageData", change.main_data());
    fields.take(at)?;
    let metadata = fields.take(METADATA_LEN)?;
    page::init(page, META);
    page[PAGE_HEADER_LEN..][..METADATA_LEN].copy_from_slice(metadata);
    LittleEndian::write_u16(&mut page[PD_LOWER..], (PAGE_HEADER_LEN + METADATA_LEN) as u16);
    Ok(())
}

/// The last page of the pending list gets the tuples of one more heap tuple, or a page after it.
///
/// ginxlogUpdateMeta: behind the metadata the last page as it was before (u32), the first page after it (u32), the count of tuples.
fn change_tail(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let mut fields = Fields::new("ginxlogUpdateMeta", change.main_data());
    fields.take(UPDATE_META_HEAD_LEN + METADATA_LEN)?;
    let (tail_before, new_right_link, tuple_count) = (fields.u32()?, fields.u32()?, fields.count()?);
    if tuple_count == 0 && tail_before == NO_BLOCK {
        return Err(change.unknown_operation());
    }
    page::expect(page, LIST, LIST)?;
    if tuple_count == 0 {
        page::set_right_link(page, new_right_link);
        return Ok(());
    }
    let next_offset_no = Header::read(page).item_count() + 1;
    add_tuples(page, next_offset_no, tuple_count, change.block_data())?;
    let heap_tuple_count = page::max_offset(page);
    let one_more = heap_tuple_count.checked_add(1);
    page::set_max_offset(page, one_more.ok_or_else(|| page_error("too many heap tuples", heap_tuple_count))?);
    Ok(())
}

/// ginxlogInsertListPage: link to the right, count of tuples. The last page of a sublist holds all tuples of exactly one heap tuple, or its end.
fn create_list_page(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let mut fields = Fields::new("ginxlogInsertListPage", change.main_data());
    let (right_link, tuple_count) = (fields.u32()?, fields.count()?);
    let is_tail = right_link == NO_BLOCK;
    page::init(page, LIST | if is_tail { LIST_FULLROW } else { 0 });
    page::set_right_link(page, right_link);
    page::set_max_offset(page, is_tail.into());
    add_tuples(page, 1, tuple_count, change.block_data())
}

/// ginxlogDeleteListPages: metadata, count of pages deleted, which are the blocks from 1 on.
fn delete_list_page(change: &Change<'_>, page: &mut Page, block_id: u8) -> Result<(), RedoError> {
    let mut fields = Fields::new("ginxlogDeleteListPages", change.main_data());
    fields.take(METADATA_LEN)?;
    if fields.count()? < usize::from(block_id) {
        return Err(change.unknown_operation());
    }
    page::init(page, DELETED);
    Ok(())
}

/// Puts `count` tuples on the page as the items from `offset_no` on. `tuples` holds them without gaps and nothing else.
fn add_tuples(page: &mut Page, mut offset_no: u16, count: usize, mut tuples: &[u8]) -> Result<(), RedoError> {
    for _ in 0..count {
        let Some((tuple, rest)) = index_tuple::split_first(tuples) else {
            return Err(page_error("tuple is cut or its length makes no sense", tuples.len()));
        };
        edit::add_item(page, tuple, offset_no, Placement::Insert)?;
        offset_no += 1; // At most the count of items that fit on a page.
        tuples = rest;
    }
    if tuples.is_empty() { Ok(()) } else { Err(page_error("more bytes than tuples", tuples.len())) }
}

// The record's flags are the page's, as `insert` takes them.
const _: () = assert!(INSERT_IS_DATA == DATA);
const _: () = assert!(INSERT_IS_LEAF == LEAF);

#[cfg(test)]
mod tests;
