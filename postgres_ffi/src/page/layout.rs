//! The parts that every page has in common: header and line pointers, read with all bounds checked.
//!
//! PG 14-18: src/include/storage/bufpage.h (PageHeaderData), src/include/storage/itemid.h (ItemIdData).

use std::ops::Range;

use byteorder::{ByteOrder, LittleEndian};
use serde::Serialize;

use super::{
    BLCKSZ, PAGE_HEADER_LEN, PD_FLAGS, PD_LOWER, PD_PAGESIZE_VERSION, PD_PRUNE_XID, PD_SPECIAL, PD_UPPER, Page,
};

/// Size of a line pointer in bytes.
pub const ITEM_ID_LEN: usize = 4;

/// The page header as it stands, not yet checked. Offsets in bytes from the page's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Header {
    /// `pd_flags`.
    pub flags: u16,
    /// End of the line pointers.
    pub lower: usize,
    /// Start of the tuples.
    pub upper: usize,
    /// Start of the special area.
    pub special: usize,
    /// Page size, with the layout version in the low byte.
    pub pagesize_version: u16,
    /// Oldest xid that pruning could remove, 0 for none; a hint.
    pub prune_xid: u32,
}

impl Header {
    /// Reads the header.
    pub fn read(page: &Page) -> Self {
        let word = |offset: usize| LittleEndian::read_u16(&page[offset..]);
        Header {
            flags: word(PD_FLAGS),
            lower: usize::from(word(PD_LOWER)),
            upper: usize::from(word(PD_UPPER)),
            special: usize::from(word(PD_SPECIAL)),
            pagesize_version: word(PD_PAGESIZE_VERSION),
            prune_xid: LittleEndian::read_u32(&page[PD_PRUNE_XID..]),
        }
    }

    /// True when the areas lie in order within the page. PG: bufmask.c, mask_unused_space, asks the same.
    pub fn is_sane(&self) -> bool {
        PAGE_HEADER_LEN <= self.lower
            && self.lower <= self.upper
            && self.upper <= self.special
            && self.special <= BLCKSZ
    }

    /// The unused space between line pointers and tuples; `None` when the header makes no sense.
    pub fn hole(&self) -> Option<Range<usize>> {
        self.is_sane().then_some(self.lower..self.upper)
    }

    /// Number of line pointers, never more than a page has room for. PG: bufpage.h, PageGetMaxOffsetNumber.
    pub fn item_count(&self) -> u16 {
        let bytes = self.lower.min(BLCKSZ).saturating_sub(PAGE_HEADER_LEN);
        (bytes / ITEM_ID_LEN) as u16 // At most 2042.
    }
}

/// State of a line pointer. PG: itemid.h, LP_UNUSED and following.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u32)]
pub enum ItemFlags {
    /// Free.
    Unused = 0,
    /// Points to a tuple.
    Normal = 1,
    /// HOT redirect: the offset is another line pointer's number.
    Redirect = 2,
    /// Dead, with or without storage.
    Dead = 3,
}

/// A line pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    /// Its number, from 1. PG: off.h, OffsetNumber.
    pub offset_no: u16,
    /// Where the tuple starts, or the target of a redirect. Up to 32767, not checked.
    pub offset: usize,
    /// State.
    pub flags: ItemFlags,
    /// Length of the tuple in bytes, 0 for none. Not checked.
    pub len: usize,
}

impl Item {
    /// The tuple's place in the page; `None` without storage, or when it does not lie in the page.
    pub fn range(&self) -> Option<Range<usize>> {
        let end = self.offset + self.len;
        (self.len > 0 && PAGE_HEADER_LEN <= self.offset && end <= BLCKSZ).then_some(self.offset..end)
    }
}

/// All line pointers in order.
pub fn items(page: &Page) -> impl Iterator<Item = Item> + '_ {
    let count = Header::read(page).item_count();
    page[PAGE_HEADER_LEN..]
        .chunks_exact(ITEM_ID_LEN)
        .zip(1..=count)
        .map(|(bytes, offset_no)| read_item(bytes, offset_no))
}

/// One line pointer; `None` if the page has none with this number.
pub fn item(page: &Page, offset_no: u16) -> Option<Item> {
    let exists = 0 < offset_no && offset_no <= Header::read(page).item_count();
    exists.then(|| read_item(&page[item_id_at(offset_no)..], offset_no))
}

/// State of line pointer `offset_no`. Requires: the page has it.
pub(super) fn item_flags(page: &Page, offset_no: u16) -> ItemFlags {
    flags_of(LittleEndian::read_u32(&page[item_id_at(offset_no)..]))
}

/// Where line pointer `offset_no` stands in the page.
///
/// Requires: `offset_no` is not 0.
pub fn item_id_at(offset_no: u16) -> usize {
    assert!(0 < offset_no);
    PAGE_HEADER_LEN + (usize::from(offset_no) - 1) * ITEM_ID_LEN
}

fn read_item(bytes: &[u8], offset_no: u16) -> Item {
    let word = LittleEndian::read_u32(bytes);
    Item { offset_no, offset: (word & 0x7FFF) as usize, flags: flags_of(word), len: (word >> 17) as usize }
}

fn flags_of(word: u32) -> ItemFlags {
    match word >> 15 & 3 {
        0 => ItemFlags::Unused,
        1 => ItemFlags::Normal,
        2 => ItemFlags::Redirect,
        _ => ItemFlags::Dead,
    }
}

/// Changes the state of a line pointer that [`items`] gave, and nothing else of it.
pub(crate) fn set_item_flags(page: &mut Page, offset_no: u16, flags: ItemFlags) {
    let start = item_id_at(offset_no);
    let bytes = &mut page[start..start + ITEM_ID_LEN];
    let word = LittleEndian::read_u32(bytes) & !(3 << 15) | (flags as u32) << 15;
    LittleEndian::write_u32(bytes, word);
}
