//! Visibility map and free space map pages.
//!
//! PG 14-18: visibilitymap.c (see [`crate::mask::visibility_map`]); src/include/storage/fsm_internals.h, FSMPageData: next slot i32@24,
//! then a binary tree of one byte per node, 32 bytes of free space per step: 4095 inner nodes, then the leaves.

use byteorder::{ByteOrder, LittleEndian};
use serde::Serialize;

use crate::BlockNumber;
use crate::mask::visibility_map::{HEAP_BLOCKS_PER_PAGE, Visibility, visibility};
use crate::page::{BLCKSZ, PAGE_HEADER_LEN, Page};

const FSM_NODES: usize = PAGE_HEADER_LEN + 4;
/// PG: fsm_internals.h, NonLeafNodesPerPage.
const FSM_INNER_NODES: usize = BLCKSZ / 2 - 1;

/// What a map page says about the heap blocks it covers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Visible {
    /// First heap block that the page covers.
    pub first_heap_block: u64,
    /// Blocks that are all-visible.
    pub all_visible: u32,
    /// Blocks that are all-frozen.
    pub all_frozen: u32,
    /// Runs of all-visible heap blocks, first and last.
    pub visible_runs: Vec<(u64, u64)>,
    /// Runs of all-frozen heap blocks, first and last.
    pub frozen_runs: Vec<(u64, u64)>,
}

/// Requires: a visibility map page; `block_no` is its own number.
pub(super) fn visible(page: &Page, block_no: BlockNumber) -> Visible {
    let first_heap_block = u64::from(block_no) * u64::from(HEAP_BLOCKS_PER_PAGE);
    let runs = |is_set: fn(Visibility) -> bool| {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for slot in (0..HEAP_BLOCKS_PER_PAGE).filter(|slot| is_set(visibility(page, *slot))) {
            let heap_block = first_heap_block + u64::from(slot);
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == heap_block => *last = heap_block,
                _ => runs.push((heap_block, heap_block)),
            }
        }
        runs
    };
    let count = |runs: &[(u64, u64)]| runs.iter().map(|(first, last)| (last - first + 1) as u32).sum();
    let (visible_runs, frozen_runs) = (runs(|bits| bits.all_visible), runs(|bits| bits.all_frozen));
    Visible {
        first_heap_block,
        all_visible: count(&visible_runs),
        all_frozen: count(&frozen_runs),
        visible_runs,
        frozen_runs,
    }
}

/// A free space map page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FreeSpace {
    /// Where the next search starts.
    pub next_slot: i32,
    /// The most free space below this page, in bytes.
    pub most_free_bytes: u32,
    /// Leaves (heap blocks, or map pages below) with free space.
    pub leaves_with_space: usize,
}

pub(super) fn free_space(page: &Page) -> FreeSpace {
    let nodes = &page[FSM_NODES..];
    FreeSpace {
        next_slot: LittleEndian::read_i32(&page[PAGE_HEADER_LEN..]),
        most_free_bytes: u32::from(nodes[0]) * 32,
        leaves_with_space: nodes[FSM_INNER_NODES..].iter().filter(|category| **category > 0).count(),
    }
}
