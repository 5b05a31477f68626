//! Applies our deltas to a page, as PostgreSQL's redo changes the same page.

use byteorder::{ByteOrder, LittleEndian};
use postgres_ffi::page::{PD_ALL_VISIBLE, PD_FLAGS, Page, edit, page_is_new, page_lsn, set_page_lsn};
use postgres_ffi::{Lsn, slru};

use super::{Delta, DeltaError, free_space_map, visibility_map};

/// Changes `page` as the record that ends at `record_lsn` did.
///
/// Errors: `NotOurs` for a PostgreSQL record, `PageIsNew` where redo would not find a page. Applying twice is the same as once.
pub fn apply(delta: &Delta<'_>, page: &mut Page, record_lsn: Lsn) -> Result<(), DeltaError> {
    match *delta {
        Delta::Postgres(_) => return Err(DeltaError::NotOurs),
        Delta::ClogStatus { status, indexes } => {
            for index in indexes {
                slru::set_clog_status(page, index.get(), status);
            }
        }
        Delta::MultiOffsets(entries) => {
            for entry in entries {
                slru::set_multi_offset(page, entry.index.get(), entry.offset.get());
            }
        }
        Delta::MultiMembers { first_index, members } => {
            for (index, member) in (first_index..).zip(members) {
                slru::set_multi_member(page, index, member.xid.get(), member.status);
            }
        }
        Delta::CommitTs { time, origin_id, indexes } => {
            for index in indexes {
                slru::set_commit_ts(page, index.get(), time, origin_id);
            }
        }
        Delta::VisibilityMapClear { lsn_guarded: false, bits, indexes } => {
            init_if_new(page);
            clear_bits(page, bits, indexes.iter().map(|index| index.get()));
        }
        Delta::VisibilityMapClear { lsn_guarded: true, bits, indexes } => {
            if page_is_new(page) {
                return Err(DeltaError::PageIsNew);
            }
            let done_already = page_lsn(page).is_some_and(|lsn| record_lsn <= lsn);
            if !done_already && clear_bits(page, bits, indexes.iter().map(|index| index.get())) {
                set_page_lsn(page, record_lsn);
            }
        }
        Delta::VisibilityMapTruncate { first_index } => {
            init_if_new(page);
            let (byte, shift) = visibility_map::byte_and_shift(first_index);
            page[byte] &= (1 << shift) - 1;
            page[byte + 1..].fill(0);
        }
        Delta::FreeSpaceMapTruncate { first_slot } => {
            init_if_new(page);
            free_space_map::clear_slots(page, first_slot);
        }
        // PG 14-18: heapam.c / heapam_xlog.c, heap_xlog_visible, when XLogHintBitIsNeeded() is false.
        Delta::HeapAllVisible => {
            if page_is_new(page) {
                return Err(DeltaError::PageIsNew);
            }
            if page_lsn(page).is_none_or(|lsn| lsn < record_lsn) {
                let flags = LittleEndian::read_u16(&page[PD_FLAGS..]) | PD_ALL_VISIBLE;
                LittleEndian::write_u16(&mut page[PD_FLAGS..PD_FLAGS + 2], flags);
            }
        }
    }
    Ok(())
}

/// Clears the bits, true if one was set. PG: visibilitymap.c, visibilitymap_clear (no LSN is stamped there).
fn clear_bits(page: &mut Page, bits: u8, indexes: impl Iterator<Item = u16>) -> bool {
    let mut cleared = false;
    for index in indexes {
        let (byte, shift) = visibility_map::byte_and_shift(index);
        let mask = bits << shift;
        cleared |= page[byte] & mask != 0;
        page[byte] &= !mask;
    }
    cleared
}

/// A page read to be changed gets a header if it has none. PG: visibilitymap.c, vm_readbuf; freespace.c, fsm_readbuf; bufpage.c, PageInit.
fn init_if_new(page: &mut Page) {
    if page_is_new(page) {
        edit::init_page(page, 0);
    }
}
