//! Leaf tuples that go, and posting lists that lose some of their rows.
//!
//! The data of block 0, for both operations: the offset numbers of items that go, those of items that are changed, then for each of these
//! how many rows go (u16) and their places in the list (u16 each, from 0).
//!
//! PG 14-18: src/backend/access/nbtree/nbtxlog.c (btree_xlog_vacuum, btree_xlog_delete, btree_xlog_updates),
//! src/backend/access/nbtree/nbtdedup.c (_bt_update_posting).

use byteorder::{ByteOrder, LittleEndian};

use super::posting::{self, Parts, TID_LEN};
use super::{BTP_HAS_GARBAGE, Special, tuple_range};
use crate::PgVersion;
use crate::page::edit;
use crate::page::{BLCKSZ, Page};
use crate::records::fields::Fields;
use crate::redo::{Change, RedoError, page_error};

/// By VACUUM. Before 18 redo leaves the cycle id as it is.
pub(super) fn vacuum(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let mut fields = Fields::new("xl_btree_vacuum", change.main_data());
    change_items(change, page, fields.u16()?, fields.u16()?)?;
    let mut special = Special::read(page)?;
    special.flags &= !BTP_HAS_GARBAGE;
    if change.version() >= PgVersion::V18 {
        special.cycle_id = 0;
    }
    special.write(page);
    Ok(())
}

/// Before an insertion.
pub(super) fn delete(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let mut fields = Fields::new("xl_btree_delete", change.main_data());
    let _conflict_xid = fields.u32()?;
    change_items(change, page, fields.u16()?, fields.u16()?)?;
    let mut special = Special::read(page)?;
    special.flags &= !BTP_HAS_GARBAGE;
    special.write(page);
    Ok(())
}

/// Posting lists first: the numbers of items are those from before the deletion.
fn change_items(change: &Change<'_>, page: &mut Page, deleted_count: u16, changed_count: u16) -> Result<(), RedoError> {
    let mut fields = Fields::new("deleted items", change.block_data());
    let deleted = words(fields.items(deleted_count.into(), 2)?);
    let changed = words(fields.items(changed_count.into(), 2)?);
    for offset_no in changed {
        let row_count = fields.u16()?;
        let places = words(fields.items(row_count.into(), 2)?);
        remove_rows(page, offset_no, places)?;
    }
    Ok(edit::delete_items(page, deleted)?)
}

fn words(bytes: &[u8]) -> impl DoubleEndedIterator<Item = u16> + ExactSizeIterator {
    bytes.chunks_exact(2).map(LittleEndian::read_u16)
}

/// Takes the rows at `places`, which ascend, out of a posting list; some stay. PG: _bt_update_posting.
fn remove_rows(page: &mut Page, offset_no: u16, places: impl ExactSizeIterator<Item = u16>) -> Result<(), RedoError> {
    let mut scratch = [0; BLCKSZ];
    let Parts { keys, tids } = Parts::of_posting(&page[tuple_range(page, offset_no)?])?;
    let all_count = tids.len() / TID_LEN;
    let kept_count = all_count.checked_sub(places.len()).filter(|count| 0 < *count && *count < all_count);
    let kept_count = kept_count.ok_or_else(|| page_error("posting list cannot lose as many rows", places.len()))?;
    let tuple = &mut scratch[..posting::tuple_len(keys.len(), kept_count)];
    let mut room = posting::form(tuple, keys, kept_count).chunks_exact_mut(TID_LEN);
    let mut places = places.peekable();
    for (place, tid) in tids.chunks_exact(TID_LEN).enumerate() {
        if places.next_if(|removed| usize::from(*removed) == place).is_some() {
            continue;
        }
        let room =
            room.next().ok_or_else(|| page_error("rows to remove are not in the posting list of item", offset_no))?;
        room.copy_from_slice(tid);
    }
    Ok(edit::overwrite_item(page, offset_no, tuple)?)
}
