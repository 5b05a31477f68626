//! Deduplication: runs of equal tuples become posting lists, and the page is made anew.
//!
//! PG 14-18: src/backend/access/nbtree/nbtxlog.c (btree_xlog_dedup), src/backend/access/nbtree/nbtdedup.c (_bt_dedup_start_pending and following).

use super::posting::{self, Parts};
use super::{BTP_HAS_GARBAGE, HIGH_KEY, Special, init_page, push, tuple_range};
use crate::page::Page;
use crate::page::edit::{self, Placement};
use crate::page::layout::Header;
use crate::records::fields::Fields;
use crate::redo::{Change, RedoError, page_error};

/// Redo's limit, larger than that of the server that wrote the record. PG: nbtree.h, BTMaxItemSize.
const TUPLE_LEN_MAX: usize = 2704;

pub(super) fn dedup(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let interval_count = Fields::new("xl_btree_dedup", change.main_data()).u16()?;
    let mut intervals = Fields::new("BTDedupInterval", change.block_data());
    let mut special = Special::read(page)?;
    let old = *page;
    special.flags &= !BTP_HAS_GARBAGE;
    init_page(page, special);
    let mut next_no = special.first_data_item();
    copy_items(page, &old, HIGH_KEY, next_no)?;
    for _ in 0..interval_count {
        let (base_no, item_count) = (intervals.u16()?, intervals.u16()?);
        let end_no = base_no.checked_add(item_count).filter(|_| next_no <= base_no && item_count > 1);
        let end_no = end_no.ok_or_else(|| intervals.impossible("baseoff", base_no.into()))?;
        copy_items(page, &old, next_no, base_no)?;
        merge_items(page, &old, base_no, end_no)?;
        next_no = end_no;
    }
    copy_items(page, &old, next_no, Header::read(&old).item_count() + 1)
}

/// Copies the items from `first_no` to the one before `end_no`.
fn copy_items(page: &mut Page, old: &Page, first_no: u16, end_no: u16) -> Result<(), RedoError> {
    (first_no..end_no).try_for_each(|offset_no| push(page, &old[tuple_range(old, offset_no)?]))
}

/// Makes one posting list of the items from `base_no` to the one before `end_no`.
fn merge_items(page: &mut Page, old: &Page, base_no: u16, end_no: u16) -> Result<(), RedoError> {
    let parts = |offset_no| Parts::of(&old[tuple_range(old, offset_no)?]);
    let keys = parts(base_no)?.keys;
    let mut tids_len = 0;
    for offset_no in base_no..end_no {
        tids_len += parts(offset_no)?.tids.len();
    }
    let tid_count = tids_len / posting::TID_LEN;
    let len = posting::tuple_len(keys.len(), tid_count);
    if len > TUPLE_LEN_MAX || keys.len() % 8 != 0 {
        return Err(page_error("posting list would be too long, or its key is not aligned, bytes", len));
    }
    let offset_no = Header::read(page).item_count() + 1;
    let range = edit::add_space(page, len, offset_no, Placement::Insert)?;
    let mut rest = posting::form(&mut page[range], keys, tid_count);
    for offset_no in base_no..end_no {
        let tids = parts(offset_no)?.tids;
        let (place, behind) = rest.split_at_mut(tids.len());
        place.copy_from_slice(tids);
        rest = behind;
    }
    Ok(())
}
