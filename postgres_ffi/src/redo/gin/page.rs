//! What GIN keeps on a page beside items: the special area, and the posting items on inner pages of a posting tree.
//!
//! - The special area is the last eight bytes: link to the right u32, a number u16, flags u16. The number is the count of posting items on inner
//!   pages, of tuple ids on leaves from before 9.4, of heap tuples on pages of the pending list.
//! - Posting pages: page header, right bound (a tuple id, padded to 8), data. Their `pd_lower` is the end of the data, but pages from before 9.4 do not
//!   set it, so for posting items only their count tells.
//!
//! PG 14-18: src/include/access/ginblock.h, src/backend/access/gin/ginutil.c (GinInitPage).

use std::ops::Range;

use byteorder::{ByteOrder, LittleEndian};

use crate::BlockNumber;
use crate::mask::index::GIN_FLAGS_AT;
use crate::page::edit;
use crate::page::layout::Header;
use crate::page::{BLCKSZ, PAGE_HEADER_LEN, PD_LOWER, Page};
use crate::redo::{RedoError, page_error};

pub(super) use crate::mask::index::GIN_DELETED as DELETED;
pub(super) const DATA: u16 = 1 << 0;
pub(super) const LEAF: u16 = 1 << 1;
pub(super) const META: u16 = 1 << 3;
pub(super) const LIST: u16 = 1 << 4;
pub(super) const LIST_FULLROW: u16 = 1 << 5;
pub(super) const INCOMPLETE_SPLIT: u16 = 1 << 6;
pub(super) const COMPRESSED: u16 = 1 << 7;

/// sizeof(GinPageOpaqueData).
const SPECIAL_LEN: usize = 8;
const SPECIAL_AT: usize = BLCKSZ - SPECIAL_LEN;
const RIGHT_LINK_AT: usize = SPECIAL_AT;
const MAX_OFFSET_AT: usize = SPECIAL_AT + 4;

/// Where the data of a posting page can be.
pub(super) const DATA_RANGE: Range<usize> = PAGE_HEADER_LEN + 8..SPECIAL_AT;
/// PostingItem: block id of the child, its right bound (a tuple id).
pub(super) const POSTING_ITEM_LEN: usize = 10;

/// An empty page without a right neighbour.
pub(super) fn init(page: &mut Page, flags: u16) {
    edit::init_page(page, SPECIAL_LEN);
    set_right_link(page, BlockNumber::MAX);
    set_flags(page, flags);
}

/// The flags, if the page has the special area of GIN.
pub(super) fn flags(page: &Page) -> Result<u16, RedoError> {
    let special = Header::read(page).special;
    if special != SPECIAL_AT {
        return Err(page_error("special area is not that of GIN", special));
    }
    Ok(LittleEndian::read_u16(&page[GIN_FLAGS_AT..]))
}

/// The flags; an error if those of `mask` are not `wanted`.
pub(super) fn expect(page: &Page, mask: u16, wanted: u16) -> Result<u16, RedoError> {
    let flags = flags(page)?;
    if flags & mask == wanted { Ok(flags) } else { Err(page_error("page is of another kind, flags", flags)) }
}

pub(super) fn set_flags(page: &mut Page, flags: u16) {
    LittleEndian::write_u16(&mut page[GIN_FLAGS_AT..], flags);
}

pub(super) fn set_right_link(page: &mut Page, block_no: BlockNumber) {
    LittleEndian::write_u32(&mut page[RIGHT_LINK_AT..], block_no);
}

pub(super) fn max_offset(page: &Page) -> u16 {
    LittleEndian::read_u16(&page[MAX_OFFSET_AT..])
}

pub(super) fn set_max_offset(page: &mut Page, max_offset: u16) {
    LittleEndian::write_u16(&mut page[MAX_OFFSET_AT..], max_offset);
}

/// PG: ginblock.h, GinDataPageSetDataSize.
///
/// Requires: `end` is in or at the end of [`DATA_RANGE`].
pub(super) fn set_data_end(page: &mut Page, end: usize) {
    assert!(DATA_RANGE.start <= end);
    assert!(end <= DATA_RANGE.end);
    LittleEndian::write_u16(&mut page[PD_LOWER..], end as u16);
}

/// Where all posting items are, and where the one with `offset_no` is.
pub(super) fn posting_items(page: &Page, offset_no: u16) -> Result<(Range<usize>, Range<usize>), RedoError> {
    let count = max_offset(page);
    let start = DATA_RANGE.start;
    let end = start + usize::from(count) * POSTING_ITEM_LEN;
    if DATA_RANGE.end < end {
        return Err(page_error("more posting items than fit on a page", count));
    }
    if offset_no == 0 || count < offset_no {
        return Err(page_error("there is no posting item with this offset number", offset_no));
    }
    let item_end = start + usize::from(offset_no) * POSTING_ITEM_LEN;
    Ok((start..end, item_end - POSTING_ITEM_LEN..item_end))
}

/// Requires: `end` is the end of a posting item, or of none.
pub(super) fn set_posting_items_end(page: &mut Page, end: usize) {
    set_max_offset(page, ((end - DATA_RANGE.start) / POSTING_ITEM_LEN) as u16);
    set_data_end(page, end);
}
