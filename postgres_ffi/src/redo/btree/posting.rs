//! Posting lists: many rows under one key.
//!
//! A tuple whose t_info has [`ALT_TID`] and whose offset number has [`BT_IS_POSTING`] is one. Its t_tid holds, in place of a row's position, where the
//! list begins (as block number, a multiple of 8) and how many row positions it has (in the offset number). The list fills the tuple to its end, apart from
//! padding. Example, a key of 8 bytes and three rows: t_tid 0000 1000 0320, t_info 2820, key, 3 * 6 bytes, 6 bytes of padding.
//!
//! PG 14-18: src/include/access/nbtree.h (BTreeTupleIsPosting and its like), src/backend/access/nbtree/nbtdedup.c.

use std::ops::Range;

use byteorder::{ByteOrder, LittleEndian};

use super::{tuple_range, whole_tuple};
use crate::inspect::index::{ALT_TID, BT_IS_POSTING, BT_OFFSET_MASK};
use crate::page::Page;
use crate::page::edit::{self, Placement, aligned};
use crate::records::fields::Fields;
pub(super) use crate::redo::index_tuple::TID_LEN;
use crate::redo::index_tuple::{HEADER_LEN, INFO_AT, LEN_MASK};
use crate::redo::{Change, RedoError, page_error};

/// Where the offset number stands in a tuple.
const OFFSET_NO_AT: usize = 4;

/// A row's position.
pub(super) type Tid = [u8; TID_LEN];

/// A leaf tuple in two: `keys` with the header in front, and the row positions one after the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts<'a> {
    pub keys: &'a [u8],
    pub tids: &'a [u8],
}

impl<'a> Parts<'a> {
    /// Requires: `tuple` is a whole tuple. Errors: it is one of an inner page, or its list is not within it.
    pub(super) fn of(tuple: &'a [u8]) -> Result<Self, RedoError> {
        if is_plain(tuple) {
            let tids = tuple.get(..TID_LEN).unwrap_or_default();
            return Ok(Parts { keys: tuple, tids });
        }
        Self::of_posting(tuple)
    }

    /// The same, of a posting list only.
    pub(super) fn of_posting(tuple: &'a [u8]) -> Result<Self, RedoError> {
        let list = list_range(tuple)?;
        Ok(Parts { keys: &tuple[..list.start], tids: &tuple[list] })
    }
}

/// The tuple has one row position, or is one of an inner page in an index from before 12.
fn is_plain(tuple: &[u8]) -> bool {
    tuple.get(INFO_AT..HEADER_LEN).is_some_and(|info| LittleEndian::read_u16(info) & ALT_TID == 0)
}

/// Where the row positions of a posting list tuple lie in it; not empty, and within it.
fn list_range(tuple: &[u8]) -> Result<Range<usize>, RedoError> {
    let word = |at: usize| tuple.get(at..at + 2).map_or(0, LittleEndian::read_u16);
    let offset_no = word(OFFSET_NO_AT);
    let start = usize::from(word(0)) << 16 | usize::from(word(2));
    let end = start + usize::from(offset_no & BT_OFFSET_MASK) * TID_LEN;
    let is_posting = word(INFO_AT) & ALT_TID != 0 && offset_no & BT_IS_POSTING != 0;
    if !is_posting || start % 8 != 0 || start < HEADER_LEN || start == end || tuple.len() < end {
        return Err(page_error("tuple has no posting list within it, offset number", offset_no));
    }
    Ok(start..end)
}

/// Length of a tuple with `tid_count` row positions and `keys_len` bytes before them; a single one has its place in the header.
/// PG: _bt_form_posting, _bt_update_posting.
pub(super) fn tuple_len(keys_len: usize, tid_count: usize) -> usize {
    if tid_count == 1 { keys_len } else { aligned(keys_len + tid_count * TID_LEN) }
}

/// Makes `tuple`, zeroes, one with the header and key of `keys`, and returns the place for its `tid_count` row positions.
///
/// Requires: `tuple` is as long as [`tuple_len`] says, which is not more than [`LEN_MASK`]. PG: _bt_form_posting, _bt_update_posting.
pub(super) fn form<'a>(tuple: &'a mut [u8], keys: &[u8], tid_count: usize) -> &'a mut [u8] {
    assert!(tuple.len() == tuple_len(keys.len(), tid_count));
    assert!(tuple.len() <= usize::from(LEN_MASK));
    tuple[..keys.len()].copy_from_slice(keys);
    let info = LittleEndian::read_u16(&tuple[INFO_AT..]) & !LEN_MASK | tuple.len() as u16;
    if tid_count == 1 {
        LittleEndian::write_u16(&mut tuple[INFO_AT..], info & !ALT_TID);
        return &mut tuple[..TID_LEN];
    }
    LittleEndian::write_u16(&mut tuple[INFO_AT..], info | ALT_TID);
    LittleEndian::write_u16(&mut tuple[0..], 0);
    LittleEndian::write_u16(&mut tuple[2..], keys.len() as u16);
    LittleEndian::write_u16(&mut tuple[OFFSET_NO_AT..], tid_count as u16 | BT_IS_POSTING);
    &mut tuple[keys.len()..keys.len() + tid_count * TID_LEN]
}

/// Puts the row of the new tuple into the posting list in `posting` at `place`, and returns the row that had to leave for it, the last one:
/// the new tuple gets that.
/// PG: _bt_swap_posting.
pub(super) fn swap(posting: &mut [u8], place: u16, new: &[u8]) -> Result<Tid, RedoError> {
    let list = list_range(posting)?;
    let tids = &mut posting[list];
    let (start, last) = (usize::from(place) * TID_LEN, tids.len() - TID_LEN);
    let new_tid: &Tid =
        new.first_chunk().filter(|_| is_plain(new)).ok_or_else(|| page_error("new tuple has no row", place))?;
    if start == 0 || start > last {
        return Err(page_error("posting list cannot be split at this place", place));
    }
    let mut last_tid = [0; TID_LEN];
    last_tid.copy_from_slice(&tids[last..]);
    tids.copy_within(start..last, start + TID_LEN);
    tids[start..start + TID_LEN].copy_from_slice(new_tid);
    Ok(last_tid)
}

/// A tuple whose row belongs into the posting list of the item before it. PG: btree_xlog_insert, the case of a posting split.
pub(super) fn insert_into(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let offset_no = Fields::new("xl_btree_insert", change.main_data()).u16()?;
    let mut fields = Fields::new("posting split", change.block_data());
    let place = fields.u16()?;
    let new = whole_tuple("posting split", fields.rest())?;
    let posting = tuple_range(page, offset_no.saturating_sub(1))?;
    let tid = swap(&mut page[posting], place, new)?;
    let range = edit::add_space(page, new.len(), offset_no, Placement::Insert)?;
    put_with_tid(&mut page[range], new, tid);
    Ok(())
}

/// Writes `tuple` with another row position. Requires: `place` has its length.
pub(super) fn put_with_tid(place: &mut [u8], tuple: &[u8], tid: Tid) {
    place.copy_from_slice(tuple);
    place[..TID_LEN].copy_from_slice(&tid);
}
