//! The free space map: a tree of three levels of pages, each page a tree of bytes.
//!
//! PG 14-18: src/backend/storage/freespace/{freespace,fsmpage}.c, src/include/storage/fsm_internals.h.
//!
//! WAL holds of it only full-page images and the truncation of its heap. What we keep may promise space that is not there; PostgreSQL
//! finds out when it looks at the heap page, and repairs the map.

use postgres_ffi::BlockNumber;
use postgres_ffi::page::{BLCKSZ, PAGE_HEADER_LEN, Page};

/// The tree's bytes start behind the page header and `fp_next_slot`.
const NODES_AT: usize = PAGE_HEADER_LEN + 4;
/// Bytes of the tree. PG: NodesPerPage.
const NODE_COUNT: usize = BLCKSZ - NODES_AT;
/// Inner nodes; the leaves follow. PG: NonLeafNodesPerPage.
const INNER_NODE_COUNT: usize = BLCKSZ / 2 - 1;
/// Leaves of one page: heap blocks at the bottom level, pages of the level below otherwise. PG: SlotsPerFSMPage.
pub const SLOTS_PER_PAGE: u32 = (NODE_COUNT - INNER_NODE_COUNT) as u32;
/// PG: FSM_TREE_DEPTH for 8 KiB pages.
const LEVELS: u32 = 3;

/// The physical page of page `logical_no` of `level` (0 is the bottom). Pages stand depth first. PG: fsm_logical_to_physical.
fn physical_page(level: u32, logical_no: BlockNumber) -> BlockNumber {
    // 64 bits: for the root the leftmost leaf below the next page would not fit 32.
    let mut leaf_no = u64::from(logical_no) * u64::from(SLOTS_PER_PAGE).pow(level);
    let mut pages = 0;
    for _ in 0..LEVELS {
        pages += leaf_no + 1;
        leaf_no /= u64::from(SLOTS_PER_PAGE);
    }
    (pages - u64::from(level) - 1) as BlockNumber
}

/// How a map is cut when its heap is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Pages of the map that remain.
    pub page_count: BlockNumber,
    /// Bottom page whose slots are cleared from a place on, unless the cut falls on its end: without that page there is nothing to cut.
    pub partial: Option<(BlockNumber, u16)>,
    /// Pages of the upper levels whose slots are cleared from a place on.
    pub upper: [Option<(BlockNumber, u16)>; 2],
}

/// The cut for a heap of `heap_block_count` blocks.
///
/// PG: FreeSpaceMapPrepareTruncateRel; then FreeSpaceMapVacuumRange, of which this keeps that removed children count as full. The slot of
/// the child that was cut in part keeps its value, which may be too high.
pub fn cut(heap_block_count: BlockNumber) -> Cut {
    let (leaf_no, slot) = (heap_block_count / SLOTS_PER_PAGE, heap_block_count % SLOTS_PER_PAGE);
    let leaf_page = physical_page(0, leaf_no);
    let partial = (slot > 0).then_some((leaf_page, slot as u16));
    let mut upper = [None; 2];
    let (mut child_no, mut child_keeps_some) = (leaf_no, slot > 0);
    for (level, page) in (1..LEVELS).zip(&mut upper) {
        let (parent_no, slot) = (child_no / SLOTS_PER_PAGE, child_no % SLOTS_PER_PAGE);
        let first_cleared = slot + u32::from(child_keeps_some);
        if first_cleared < SLOTS_PER_PAGE {
            *page = Some((physical_page(level, parent_no), first_cleared as u16));
        }
        (child_no, child_keeps_some) = (parent_no, first_cleared > 0);
    }
    Cut { page_count: leaf_page + u32::from(slot > 0), partial, upper }
}

/// Clears the slots from `first_slot` on and makes the inner nodes right. Requires: `first_slot` is below [`SLOTS_PER_PAGE`].
/// PG: fsmpage.c, fsm_truncate_avail, fsm_rebuild_page.
pub(super) fn clear_slots(page: &mut Page, first_slot: u16) {
    let nodes = &mut page[NODES_AT..];
    let cleared = &mut nodes[INNER_NODE_COUNT + usize::from(first_slot)..];
    if cleared.iter().all(|value| *value == 0) {
        return;
    }
    cleared.fill(0);
    for node in (0..INNER_NODE_COUNT).rev() {
        let child = |child: usize| nodes.get(child).copied().unwrap_or(0);
        nodes[node] = child(2 * node + 1).max(child(2 * node + 2));
    }
}

const _: () = assert!(SLOTS_PER_PAGE == 4_069);

#[cfg(test)]
mod tests {
    //! Page numbers against PostgreSQL's picture (depth first), cuts at the edges, the tree of a page against a plain maximum.

    use super::*;

    #[test]
    fn pages_stand_depth_first() {
        assert_eq!([physical_page(2, 0), physical_page(1, 0), physical_page(0, 0), physical_page(0, 1)], [0, 1, 2, 3]);
        // The second page of level 1 follows all leaves of the first.
        assert_eq!(physical_page(1, 1), 2 + SLOTS_PER_PAGE);
        assert_eq!(physical_page(0, SLOTS_PER_PAGE), 3 + SLOTS_PER_PAGE);
    }

    #[test]
    fn cut_to_nothing_keeps_two_upper_pages() {
        assert_eq!(cut(0), Cut { page_count: 2, partial: None, upper: [Some((1, 0)), Some((0, 0))] });
    }

    #[test]
    fn cut_within_a_leaf_keeps_its_slot_above() {
        assert_eq!(cut(10), Cut { page_count: 3, partial: Some((2, 10)), upper: [Some((1, 1)), Some((0, 1))] });
        let at_leaf_end = cut(SLOTS_PER_PAGE);
        assert_eq!(at_leaf_end, Cut { page_count: 3, partial: None, upper: [Some((1, 1)), Some((0, 1))] });
    }

    #[test]
    fn cut_at_the_end_of_a_level_clears_nothing_there() {
        let blocks = SLOTS_PER_PAGE * SLOTS_PER_PAGE - 1; // within the last leaf of the first page of level 1
        let cut = cut(blocks);
        assert_eq!(cut.upper, [None, Some((0, 1))]);
        assert_eq!(cut.partial, Some((1 + SLOTS_PER_PAGE, SLOTS_PER_PAGE as u16 - 1)));
    }

    #[test]
    fn inner_nodes_hold_the_maximum_of_their_leaves() {
        let mut page = [0; BLCKSZ];
        for slot in 0..SLOTS_PER_PAGE as usize {
            page[NODES_AT + INNER_NODE_COUNT + slot] = (slot % 251) as u8;
        }
        clear_slots(&mut page, 100);
        let leaves = &page[NODES_AT + INNER_NODE_COUNT..];
        assert_eq!(leaves[..100].iter().max(), Some(&99));
        assert!(leaves[100..].iter().all(|value| *value == 0));
        assert_eq!(page[NODES_AT], 99);
        let before = page;
        clear_slots(&mut page, 100);
        assert_eq!(page, before);
    }
}
