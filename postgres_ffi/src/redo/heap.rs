//! Heap: single tuples inserted, deleted, updated, locked, overwritten in place.
//!
//! Nothing here differs between versions; what came late are references to the visibility map's page (see [`visibility_map::clear`]).
//!
//! PG 14-18: src/backend/access/heap/heapam.c (heap_redo; from 18: heapam_xlog.c), src/include/access/heapam_xlog.h.

use std::ops::Range;

use super::heap_tuple::{self, LoggedHeader, TupleHeader, XmaxChange};
use super::{Change, RedoError, Stamp, page_error, visibility_map};
use crate::TransactionId;
use crate::page::Page;
use crate::records::RecordError;
use crate::records::fields::Fields;
use crate::records::heap::{CLEARED, OPERATION_MASK, UPDATE_NEW_CLEARED, heap_operation as heap};

/// A speculative insertion is taken back. PG: XLH_DELETE_IS_SUPER.
const DELETE_IS_SUPER: u8 = 0x08;
/// The row went to another partition. PG: XLH_DELETE_IS_PARTITION_MOVE.
const DELETE_IS_PARTITION_MOVE: u8 = 0x10;
/// PG: XLH_UPDATE_PREFIX_FROM_OLD.
const UPDATE_PREFIX_FROM_OLD: u8 = 0x20;
/// PG: XLH_UPDATE_SUFFIX_FROM_OLD.
const UPDATE_SUFFIX_FROM_OLD: u8 = 0x40;

pub(super) fn redo(change: &Change<'_>, page: &mut Page) -> Result<Stamp, RedoError> {
    match (change.operation() & OPERATION_MASK, change.block_id()) {
        (heap::INSERT, 0) => insert(change, page),
        (heap::DELETE, 0) => delete(change, page),
        (heap::UPDATE, 0) => update(change, page, false),
        (heap::UPDATE, 1) => update_old_page(change, page),
        (heap::HOT_UPDATE, 0) => update(change, page, true),
        (heap::CONFIRM, 0) => confirm(change, page),
        (heap::LOCK, 0) => lock(change, page),
        (heap::INPLACE, 0) => inplace(change, page),
        (heap::INSERT | heap::DELETE | heap::LOCK, 1) | (heap::UPDATE | heap::HOT_UPDATE, 2 | 3) => {
            visibility_map::clear(change, page)
        }
        _ => Err(change.unknown_operation()),
    }
}

fn insert(change: &Change<'_>, page: &mut Page) -> Result<Stamp, RedoError> {
    let mut body = Fields::new("xl_heap_insert", change.main_data());
    let (offset_no, flags) = (body.u16()?, body.u8()?);
    let mut data = Fields::new("xl_heap_header", change.block_data());
    let logged = LoggedHeader::read(&mut data)?;
    heap_tuple::init_page_if_told(change, page)?;
    let rest = heap_tuple::add(change, page, offset_no, logged, 0, data.rest().len())?;
    page[rest].copy_from_slice(data.rest());
    if flags & CLEARED != 0 {
        heap_tuple::set_all_visible(page, false);
    }
    Ok(Stamp::Record)
}

fn delete(change: &Change<'_>, page: &mut Page) -> Result<Stamp, RedoError> {
    let body = XmaxChange::read(&mut Fields::new("xl_heap_delete", change.main_data()))?;
    let mut tuple = TupleHeader::of(page, body.offset_no)?;
    tuple.set_infobits(body.infobits);
    tuple.set_hot_updated(false);
    if body.flags & DELETE_IS_SUPER != 0 {
        tuple.set_xmin(0);
    } else {
        tuple.set_xmax(body.xmax);
    }
    tuple.clear_command_id();
    let is_moved = body.flags & DELETE_IS_PARTITION_MOVE != 0;
    tuple.set_ctid(if is_moved { heap_tuple::MOVED_PARTITIONS } else { (change.block.block_no, body.offset_no) });
    heap_tuple::set_prunable(change, page);
    if body.flags & CLEARED != 0 {
        heap_tuple::set_all_visible(page, false);
    }
    Ok(Stamp::Record)
}

/// xl_heap_update.
struct Update {
    old: XmaxChange,
    new_xmax: TransactionId,
    new_offset_no: u16,
}

impl Update {
    fn read(change: &Change<'_>) -> Result<Self, RecordError> {
        let mut fields = Fields::new("xl_heap_update", change.main_data());
        Ok(Update { old: XmaxChange::read(&mut fields)?, new_xmax: fields.u32()?, new_offset_no: fields.u16()? })
    }

    fn flags(&self) -> u8 {
        self.old.flags
    }
}

/// The page of the new version, which mostly is that of the old one as well.
fn update(change: &Change<'_>, page: &mut Page, is_hot: bool) -> Result<Stamp, RedoError> {
    let body = Update::read(change)?;
    let is_within_page = change.record.block(1).is_none_or(|old| old.block_no == change.block.block_no);
    let old_version = match (is_within_page, is_hot) {
        (true, _) => Some(leave_old_version(change, page, &body, is_hot)?),
        (false, false) => {
            heap_tuple::init_page_if_told(change, page)?;
            None
        }
        (false, true) => return Err(change.unknown_operation()),
    };
    put_new_version(change, page, &body, old_version)?;
    if body.flags() & UPDATE_NEW_CLEARED != 0 {
        heap_tuple::set_all_visible(page, false);
    }
    Ok(Stamp::Record)
}

fn update_old_page(change: &Change<'_>, page: &mut Page) -> Result<Stamp, RedoError> {
    leave_old_version(change, page, &Update::read(change)?, false)?;
    Ok(Stamp::Record)
}

/// Lets the old version lead to the new one and returns where it lies.
fn leave_old_version(
    change: &Change<'_>,
    page: &mut Page,
    body: &Update,
    is_hot: bool,
) -> Result<Range<usize>, RedoError> {
    let new_block_no = change.block_no_of(0)?;
    let place = heap_tuple::place(page, body.old.offset_no)?;
    let mut tuple = TupleHeader::at(page, place.start)?;
    tuple.set_infobits(body.old.infobits);
    tuple.set_hot_updated(is_hot);
    tuple.set_xmax(body.old.xmax);
    tuple.clear_command_id();
    tuple.set_ctid((new_block_no, body.new_offset_no));
    heap_tuple::set_prunable(change, page);
    if body.flags() & CLEARED != 0 {
        heap_tuple::set_all_visible(page, false);
    }
    Ok(place)
}

/// Adds the new version: null bitmap and padding from the record, then values, whose first and last bytes may be those of the old version.
fn put_new_version(
    change: &Change<'_>,
    page: &mut Page,
    body: &Update,
    old_version: Option<Range<usize>>,
) -> Result<(), RedoError> {
    let mut data = Fields::new("xl_heap_header", change.block_data());
    let prefix_len = if body.flags() & UPDATE_PREFIX_FROM_OLD != 0 { data.u16()?.into() } else { 0 };
    let suffix_len = if body.flags() & UPDATE_SUFFIX_FROM_OLD != 0 { data.u16()?.into() } else { 0 };
    let logged = LoggedHeader::read(&mut data)?;
    let (prefix, suffix) = match old_version {
        Some(old_version) => shared_values(page, &old_version, prefix_len, suffix_len)?,
        None if prefix_len + suffix_len == 0 => (0..0, 0..0),
        // PostgreSQL leaves nothing out when the old version is on another page: redo could not know it.
        None => return Err(page_error("new version shares bytes with one on another page", body.new_offset_no)),
    };
    let bitmap = if prefix_len == 0 { &[] } else { data.take(logged.bitmap_len()?)? };
    let rest_len = bitmap.len() + prefix_len + data.rest().len() + suffix_len;
    let mut at = heap_tuple::add(change, page, body.new_offset_no, logged, body.new_xmax, rest_len)?.start;
    put(page, &mut at, bitmap);
    page.copy_within(prefix, at);
    at += prefix_len;
    put(page, &mut at, data.rest());
    page.copy_within(suffix, at);
    Ok(())
}

/// The first `prefix_len` and the last `suffix_len` bytes of a version's values.
fn shared_values(
    page: &Page,
    version: &Range<usize>,
    prefix_len: usize,
    suffix_len: usize,
) -> Result<(Range<usize>, Range<usize>), RedoError> {
    if prefix_len + suffix_len == 0 {
        return Ok((0..0, 0..0));
    }
    let Range { start, end } = heap_tuple::values(page, version)?;
    if prefix_len.max(suffix_len) <= end - start {
        return Ok((start..start + prefix_len, end - suffix_len..end));
    }
    Err(page_error("old version is shorter than what the new one shares with it", end - start))
}

fn put(page: &mut Page, at: &mut usize, bytes: &[u8]) {
    page[*at..*at + bytes.len()].copy_from_slice(bytes);
    *at += bytes.len();
}

/// A speculative insertion came true: its ctid held a token until now.
fn confirm(change: &Change<'_>, page: &mut Page) -> Result<Stamp, RedoError> {
    let offset_no = Fields::new("xl_heap_confirm", change.main_data()).u16()?;
    TupleHeader::of(page, offset_no)?.set_ctid((change.block.block_no, offset_no));
    Ok(Stamp::Record)
}

fn lock(change: &Change<'_>, page: &mut Page) -> Result<Stamp, RedoError> {
    let body = XmaxChange::read(&mut Fields::new("xl_heap_lock", change.main_data()))?;
    let mut tuple = TupleHeader::of(page, body.offset_no)?;
    tuple.set_infobits(body.infobits);
    // Otherwise somebody updated the row, and the way to its next version must stay.
    if tuple.is_locked_only() {
        tuple.set_hot_updated(false);
        tuple.set_ctid((change.block.block_no, body.offset_no));
    }
    tuple.set_xmax(body.xmax);
    tuple.clear_command_id();
    Ok(Stamp::Record)
}

/// Invalidation messages in the record (from 18) concern caches, not the page.
fn inplace(change: &Change<'_>, page: &mut Page) -> Result<Stamp, RedoError> {
    let offset_no = Fields::new("xl_heap_inplace", change.main_data()).u16()?;
    let tuple = heap_tuple::place(page, offset_no)?;
    let old_values = heap_tuple::values(page, &tuple)?;
    let new_values = change.block_data();
    if old_values.len() != new_values.len() {
        return Err(page_error("values overwritten in place have another length", new_values.len()));
    }
    page[old_values].copy_from_slice(new_values);
    Ok(Stamp::Record)
}

#[cfg(test)]
mod tests;
