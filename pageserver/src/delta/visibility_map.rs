//! Where a heap block's two bits stand in the visibility map.
//!
//! PG 14-18: src/backend/access/heap/visibilitymap.c.

use postgres_ffi::BlockNumber;
use postgres_ffi::page::{BLCKSZ, PAGE_HEADER_LEN};

/// Bytes of bits on a page: all behind the header. PG: MAPSIZE.
pub const MAP_LEN: usize = BLCKSZ - PAGE_HEADER_LEN;
/// Heap blocks that one byte speaks for.
pub const HEAP_BLOCKS_PER_BYTE: u32 = 4;
/// Heap blocks that one page speaks for. PG: HEAPBLOCKS_PER_PAGE.
pub const HEAP_BLOCKS_PER_PAGE: u32 = MAP_LEN as u32 * HEAP_BLOCKS_PER_BYTE;
/// Both bits of a heap block. PG: visibilitymapdefs.h, VISIBILITYMAP_VALID_BITS.
pub const VALID_BITS: u8 = postgres_ffi::records::heap::VM_VALID_BITS;

/// The map's page that speaks for `heap_block`, and the block's place there.
pub fn place(heap_block: BlockNumber) -> (BlockNumber, u16) {
    (heap_block / HEAP_BLOCKS_PER_PAGE, (heap_block % HEAP_BLOCKS_PER_PAGE) as u16)
}

/// Byte of the page and bit within it of the place `index`. Requires: `index` is below [`HEAP_BLOCKS_PER_PAGE`].
pub(super) fn byte_and_shift(index: u16) -> (usize, u8) {
    let byte = PAGE_HEADER_LEN + usize::from(index) / HEAP_BLOCKS_PER_BYTE as usize;
    (byte, (index % HEAP_BLOCKS_PER_BYTE as u16) as u8 * 2)
}

/// How a map is cut when its heap is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Pages of the map that remain.
    pub page_count: BlockNumber,
    /// The last remaining page and the place from which its bits are cleared, unless the cut falls on a page's end.
    pub partial: Option<(BlockNumber, u16)>,
}

/// The cut for a heap of `heap_block_count` blocks. PG: visibilitymap_prepare_truncate.
pub fn cut(heap_block_count: BlockNumber) -> Cut {
    let (page_no, index) = place(heap_block_count);
    if index == 0 {
        Cut { page_count: page_no, partial: None }
    } else {
        Cut { page_count: page_no + 1, partial: Some((page_no, index)) }
    }
}

const _: () = assert!(HEAP_BLOCKS_PER_PAGE == 32_672);
