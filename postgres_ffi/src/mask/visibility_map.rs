//! The visibility map: two bits per heap block, and why every one of them must be right.
//!
//! A bit that is set wrongly makes index-only scans and VACUUM skip heap blocks: wrong answers. So, unlike
//! `wal_consistency_checking`, whose mask hides the whole map as if it were unused space, we compare every byte of it.
//! What may differ is only how "no bit set" is written: a page is zeroes until its first reader initialises it in memory
//! (visibilitymap.c, vm_readbuf), and no record says so.
//!
//! Byte `24 + (heap block % 32672) / 4` of map page `heap block / 32672`; bit 2n says all-visible, bit 2n+1 all-frozen.
//!
//! PG 14-18: src/backend/access/heap/visibilitymap.c.

use byteorder::{ByteOrder, LittleEndian};

use crate::BlockNumber;
use crate::page::{BLCKSZ, PAGE_HEADER_LEN, PD_LOWER, PD_PAGESIZE_VERSION, PD_SPECIAL, PD_UPPER, Page, page_is_new};

/// Heap blocks on one map page.
pub const HEAP_BLOCKS_PER_PAGE: u32 = ((BLCKSZ - PAGE_HEADER_LEN) * HEAP_BLOCKS_PER_BYTE) as u32;
const HEAP_BLOCKS_PER_BYTE: usize = 4;
const BITS_PER_HEAP_BLOCK: usize = 2;
/// `pd_pagesize_version` of a page that PostgreSQL initialises: size 8192, layout 4.
const PAGESIZE_VERSION: u16 = BLCKSZ as u16 | 4;

const _: () = assert!(HEAP_BLOCKS_PER_PAGE == 32_672);

/// What the map says about one heap block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visibility {
    /// All tuples are visible to everyone.
    pub all_visible: bool,
    /// All tuples are frozen.
    pub all_frozen: bool,
}

/// What `map_page` says about `heap_block`. Requires: the map page is number `heap_block / HEAP_BLOCKS_PER_PAGE`.
pub fn visibility(map_page: &Page, heap_block: BlockNumber) -> Visibility {
    let (byte, shift) = byte_and_shift(heap_block);
    let bits = map_page[byte] >> shift;
    Visibility { all_visible: bits & 1 != 0, all_frozen: bits & 2 != 0 }
}

/// Where the two bits of `heap_block` stand in its map page: offset of the byte in the page, and how far up in it they are.
pub(crate) fn byte_and_shift(heap_block: BlockNumber) -> (usize, usize) {
    let slot = (heap_block % HEAP_BLOCKS_PER_PAGE) as usize;
    (PAGE_HEADER_LEN + slot / HEAP_BLOCKS_PER_BYTE, slot % HEAP_BLOCKS_PER_BYTE * BITS_PER_HEAP_BLOCK)
}

/// True when `map_page` has no bit that `of` has not. Bits that are missing cost speed, never a wrong answer.
pub fn is_subset(map_page: &Page, of: &Page) -> bool {
    map_page[PAGE_HEADER_LEN..].iter().zip(&of[PAGE_HEADER_LEN..]).all(|(bits, others)| bits & !others == 0)
}

/// Writes the header of an empty map into a page of zeroes, as its first reader would.
pub(super) fn initialise_if_new(page: &mut Page) {
    if !page_is_new(page) {
        return;
    }
    let mut set = |offset: usize, value: u16| LittleEndian::write_u16(&mut page[offset..offset + 2], value);
    set(PD_LOWER, PAGE_HEADER_LEN as u16);
    set(PD_UPPER, BLCKSZ as u16);
    set(PD_SPECIAL, BLCKSZ as u16);
    set(PD_PAGESIZE_VERSION, PAGESIZE_VERSION);
}
