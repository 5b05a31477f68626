//! Heap pages: hint bits, command ids, speculative tokens, padding.
//!
//! PG 15: src/backend/access/heap/heapam.c (heap_mask; from 18 in heapam_xlog.c), src/include/access/htup_details.h.

use byteorder::{ByteOrder, LittleEndian};

use super::{Rule, mask_unused_space};
use crate::BlockNumber;
use crate::lsn::MAXALIGN;
use crate::page::layout::{Header, ITEM_ID_LEN, Item, ItemFlags, items};
use crate::page::{BLCKSZ, PAGE_HEADER_LEN, Page};

/// Offsets within a heap tuple header. PG: htup_details.h, HeapTupleHeaderData.
pub(crate) const T_XMAX: usize = 4;
pub(crate) const T_FIELD3: usize = 8;
pub(crate) const T_CTID: usize = 12;
pub(crate) const T_INFOMASK2: usize = 18;
pub(crate) const T_INFOMASK: usize = 20;
pub(crate) const T_HOFF: usize = 22;
/// Fixed part of the header, up to the null bitmap.
pub(crate) const TUPLE_HEADER_LEN: usize = 23;

pub(crate) const HEAP_COMBOCID: u16 = 0x0020;
const HEAP_XMIN_FROZEN: u16 = 0x0300;
pub(crate) const HEAP_XMAX_COMMITTED: u16 = 0x0400;
pub(crate) const HEAP_XMAX_INVALID: u16 = 0x0800;
/// All visibility bits. PG: htup_details.h, HEAP_XACT_MASK.
const HEAP_XACT_MASK: u16 = 0xFFF0;
/// Position number of a ctid that holds a speculative token. PG: htup_details.h, SpecTokenOffsetNumber.
const SPECULATIVE_TOKEN: u16 = 0xFFFE;

pub(super) fn mask(page: &mut Page, block_no: BlockNumber, rule: Rule) {
    mask_unused_space(page);
    let tuples_start = PAGE_HEADER_LEN + usize::from(Header::read(page).item_count()) * ITEM_ID_LEN;
    for item in items(page).collect::<Vec<_>>() {
        // A tuple inside the line pointers is damage; masking it would change the pointers that we follow.
        if item.offset < tuples_start {
            continue;
        }
        if item.flags == ItemFlags::Normal {
            mask_tuple(page, &item, block_no, rule);
        }
        mask_padding(page, &item);
    }
}

fn mask_tuple(page: &mut Page, item: &Item, block_no: BlockNumber, rule: Rule) {
    let Some(tuple) = page.get_mut(item.offset..item.offset + TUPLE_HEADER_LEN) else { return };
    let infomask = LittleEndian::read_u16(&tuple[T_INFOMASK..]);
    let kept = infomask & !hint_bits(infomask, rule);
    LittleEndian::write_u16(&mut tuple[T_INFOMASK..T_INFOMASK + 2], kept);
    // Replay sets the command id to the first one. PG: heapam.c, heap_xlog_insert.
    tuple[T_FIELD3..T_CTID].fill(0);
    if LittleEndian::read_u16(&tuple[T_CTID + 4..]) == SPECULATIVE_TOKEN {
        point_to_itself(&mut tuple[T_CTID..T_INFOMASK2], block_no, item.offset_no);
    }
}

/// Bits that are set without WAL. Those of xmin count once the tuple is frozen, since freezing is logged.
fn hint_bits(infomask: u16, rule: Rule) -> u16 {
    let frozen = infomask & HEAP_XMIN_FROZEN == HEAP_XMIN_FROZEN;
    let of_xmax = HEAP_XMAX_COMMITTED | HEAP_XMAX_INVALID;
    match (frozen, rule) {
        (true, _) => of_xmax,
        // PostgreSQL hides all bits about transactions here, the lock bits of xmax among them.
        (false, Rule::Replay) => HEAP_XACT_MASK,
        // The lock bits and HEAP_UPDATED come from the records; replay knows no combo command ids, as it knows no command ids.
        (false, Rule::DataDirectory) => of_xmax | HEAP_XMIN_FROZEN | HEAP_COMBOCID,
    }
}

/// A ctid (block high half, block low half, position) that names its own tuple, as replay leaves it behind a speculative insertion.
fn point_to_itself(ctid: &mut [u8], block_no: BlockNumber, offset_no: u16) {
    LittleEndian::write_u16(&mut ctid[0..2], (block_no >> 16) as u16);
    LittleEndian::write_u16(&mut ctid[2..4], (block_no & 0xFFFF) as u16);
    LittleEndian::write_u16(&mut ctid[4..6], offset_no);
}

/// Bytes between a tuple's end and the next multiple of 8 were never written by anyone.
fn mask_padding(page: &mut Page, item: &Item) {
    if item.len == 0 {
        return;
    }
    let end = item.offset + item.len;
    let aligned_end = item.offset.saturating_add(item.len.next_multiple_of(MAXALIGN as usize));
    if aligned_end <= BLCKSZ {
        page[end..aligned_end].fill(0);
    }
}
