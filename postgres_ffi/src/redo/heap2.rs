//! Heap, second set: many tuples at once, visibility, locks on newer versions of a row. Pruning and freezing: [`heap_prune`].
//!
//! PG 14-18: src/backend/access/heap/heapam.c (heap2_redo; from 18: heapam_xlog.c), src/include/access/heapam_xlog.h.

use super::heap_tuple::{self, LoggedHeader, TupleHeader, XmaxChange};
use super::{Change, RedoError, Stamp, heap_prune, page_error, visibility_map};
use crate::PgVersion;
use crate::page::Page;
use crate::records::fields::Fields;
use crate::records::heap::{CLEARED, INIT_PAGE, OPERATION_MASK, heap2_operation as heap2};

/// COPY with FREEZE. PG: XLH_INSERT_ALL_FROZEN_SET.
const INSERT_ALL_FROZEN_SET: u8 = 0x20;

pub(super) fn redo(change: &Change<'_>, page: &mut Page) -> Result<Stamp, RedoError> {
    let merged_prune = change.version() >= PgVersion::V17;
    match (change.operation() & OPERATION_MASK, change.block_id()) {
        (heap2::PRUNE_ON_ACCESS | heap2::PRUNE_VACUUM_SCAN | heap2::PRUNE_VACUUM_CLEANUP, 0) if merged_prune => {
            heap_prune::prune_and_freeze(change, page)
        }
        (heap2::PRUNE, 0) => heap_prune::prune(change, page),
        (heap2::VACUUM, 0) => heap_prune::vacuum(change, page),
        (heap2::FREEZE_PAGE, 0) => heap_prune::freeze_page(change, page),
        (heap2::VISIBLE, 0) => visibility_map::set(change, page),
        (heap2::VISIBLE, 1) => heap_page_visible(change, page),
        (heap2::MULTI_INSERT, 0) => multi_insert(change, page),
        (heap2::LOCK_UPDATED, 0) => lock_updated(change, page),
        (heap2::MULTI_INSERT | heap2::LOCK_UPDATED, 1) => visibility_map::clear(change, page),
        _ => Err(change.unknown_operation()),
    }
}

/// Without checksums no image of this page is ever logged with the record, and then the page must not look as if it were that new.
/// PG: heap_xlog_visible.
fn heap_page_visible(change: &Change<'_>, page: &mut Page) -> Result<Stamp, RedoError> {
    heap_tuple::set_all_visible(page, true);
    Ok(if change.facts.hint_bits_logged { Stamp::Record } else { Stamp::Keep })
}

/// xl_heap_multi_insert: flags u8, padding, ntuples u16, then their offset numbers unless the page starts empty and they count up from 1.
/// In the block's data, each at an even offset: xl_multi_insert_tuple (length of what follows u16, header) and the tuple without its fixed part.
fn multi_insert(change: &Change<'_>, page: &mut Page) -> Result<Stamp, RedoError> {
    let mut body = Fields::new("xl_heap_multi_insert", change.main_data());
    let (flags, _padding, tuple_count) = (body.u8()?, body.u8()?, body.u16()?);
    let is_init = change.operation() & INIT_PAGE != 0;
    heap_tuple::init_page_if_told(change, page)?;
    let mut data = Fields::new("xl_multi_insert_tuple", change.block_data());
    for nth in 1..=tuple_count {
        let offset_no = if is_init { nth } else { body.u16()? };
        data.align(2);
        let rest_len = usize::from(data.u16()?);
        let logged = LoggedHeader::read(&mut data)?;
        let rest = heap_tuple::add(change, page, offset_no, logged, 0, rest_len)?;
        page[rest].copy_from_slice(data.take(rest_len)?);
    }
    if !data.rest().is_empty() {
        return Err(page_error("record holds more than its tuples", data.rest().len()));
    }
    if flags & CLEARED != 0 {
        heap_tuple::set_all_visible(page, false);
    }
    if flags & INSERT_ALL_FROZEN_SET != 0 {
        heap_tuple::set_all_visible(page, true);
    }
    Ok(Stamp::Record)
}

/// Unlike LOCK it leaves the command id and the way to the next version alone.
fn lock_updated(change: &Change<'_>, page: &mut Page) -> Result<Stamp, RedoError> {
    let body = XmaxChange::read(&mut Fields::new("xl_heap_lock_updated", change.main_data()))?;
    let mut tuple = TupleHeader::of(page, body.offset_no)?;
    tuple.set_infobits(body.infobits);
    tuple.set_xmax(body.xmax);
    Ok(Stamp::Record)
}
