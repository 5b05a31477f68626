//! The visibility map's pages in heap records: bits set by VISIBLE, and bits cleared where the map's page is named in the record.
//!
//! Most records that clear bits do not name the map's page; what they clear is no business of redo here (see [`crate::records::heap::VmClear`]).
//!
//! PG 14-18: src/backend/access/heap/visibilitymap.c.

use super::{Change, RedoError, Stamp, page_error};
use crate::mask::visibility_map::{HEAP_BLOCKS_PER_PAGE, byte_and_shift};
use crate::page::edit;
use crate::page::{Page, page_is_new};
use crate::records::fields::Fields;
use crate::records::heap::{VISIBLE_HEAP_BLOCK_ID, VM_VALID_BITS, VmClear};
use crate::{BlockNumber, ForkNumber, PgVersion};

/// VISIBLE. The page may be one that was never written. A map that says all of it already is not stamped.
/// PG: heap_xlog_visible, visibilitymap_set. Up to 15 the flags are the bits and nothing else.
pub(super) fn set(change: &Change<'_>, page: &mut Page) -> Result<Stamp, RedoError> {
    let mut fields = Fields::new("xl_heap_visible", change.main_data());
    let (_horizon_xid, flags) = (fields.u32()?, fields.u8()?);
    let bits = flags & VM_VALID_BITS;
    let has_others = change.version() < PgVersion::V16 && flags != bits;
    if bits == 0 || has_others {
        return Err(fields.impossible("flags", flags.into()).into());
    }
    let (byte, shift) = place(change, change.block_no_of(VISIBLE_HEAP_BLOCK_ID)?)?;
    if page_is_new(page) {
        edit::init_page(page, 0);
    }
    if page[byte] >> shift & VM_VALID_BITS == bits {
        return Ok(Stamp::Keep);
    }
    page[byte] |= bits << shift;
    Ok(Stamp::Record)
}

/// Records that change tuples. A map that says nothing of it already is not stamped.
/// PG 17 and 18, late minor releases: heapam_xlog.c (17: heapam.c), heap_xlog_vm_clear, heap_xlog_update.
pub(super) fn clear(change: &Change<'_>, page: &mut Page) -> Result<Stamp, RedoError> {
    let record = change.record;
    let vm_clear = VmClear::of_record(record.rmid, record.info, change.main_data())?;
    let vm_clear = vm_clear.ok_or_else(|| change.unknown_operation())?;
    let new_block = change.block_no_of(0)?;
    let old_block =
        if vm_clear.is_update { record.block(1).map_or(new_block, |block| block.block_no) } else { new_block };
    let is_page_of_new = change.block_id() == vm_clear.vm_block_ids()[0];
    if !(if is_page_of_new { vm_clear.new_block } else { vm_clear.old_block }) {
        return Err(change.unknown_operation());
    }
    let mut cleared = false;
    if is_page_of_new {
        cleared |= clear_bits(page, place(change, new_block)?, vm_clear.bits);
    }
    // The page of the new block is named for both when it speaks for both.
    if vm_clear.old_block && (!is_page_of_new || is_on_page(change, old_block)) {
        cleared |= clear_bits(page, place(change, old_block)?, vm_clear.bits);
    }
    Ok(if cleared { Stamp::Record } else { Stamp::Keep })
}

fn clear_bits(page: &mut Page, (byte, shift): (usize, usize), bits: u8) -> bool {
    let mask = bits << shift;
    let is_set = page[byte] & mask != 0;
    page[byte] &= !mask;
    is_set
}

/// Where the bits of `heap_block` stand on the page.
fn place(change: &Change<'_>, heap_block: BlockNumber) -> Result<(usize, usize), RedoError> {
    if is_on_page(change, heap_block) {
        return Ok(byte_and_shift(heap_block));
    }
    Err(page_error("map page does not speak for the heap block", heap_block))
}

fn is_on_page(change: &Change<'_>, heap_block: BlockNumber) -> bool {
    change.block.fork == ForkNumber::Vm && change.block.block_no == heap_block / HEAP_BLOCKS_PER_PAGE
}
