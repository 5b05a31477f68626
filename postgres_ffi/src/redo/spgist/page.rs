//! What SP-GiST's redo does to the tuples of a page and to the counts in its special area.
//!
//! - Special area (8 bytes), offsets from its start: flags u16@0, redirects u16@2, placeholders u16@4, page id u16@6.
//! - Leaf tuple: state (2 bits) and size (30 bits) u32@0, next in chain (14 bits) and flags u16@4, row 6 bytes@6. A dead tuple is the same with a
//!   pointer in place of the row and xid u32@12.
//! - Inner tuple: state (2 bits), flag, count of nodes (13 bits), size of prefix (16 bits) u32@0, size u16@4, at 8 the prefix, then the nodes. A node
//!   begins as an index tuple does.
//!
//! PG 14-18: src/include/access/spgist_private.h.

use std::ops::Range;

use byteorder::{ByteOrder, LittleEndian};

use super::record::{ParentNode, RedirectState};
use crate::BlockNumber;
use crate::mask::index::SPGIST_FLAGS_AT;
use crate::page::edit::{self, Placement};
use crate::page::layout::{Header, ITEM_ID_LEN, item, item_id_at};
use crate::page::{BLCKSZ, Page};
use crate::records::fields::OffsetNos;
use crate::redo::index_tuple::{self, TID_LEN, tid};
use crate::redo::{RedoError, page_error};

/// Flags of a page. PG: SPGIST_LEAF, SPGIST_NULLS.
pub(super) const LEAF: u16 = 1 << 2;
pub(super) const NULLS: u16 = 1 << 3;

/// Every tuple can become a dead one, so none is shorter. PG: SGDTSIZE.
pub(super) const TUPLE_LEN_MIN: usize = 16;

const SPECIAL_LEN: usize = 8;
const REDIRECTS_AT: usize = BLCKSZ - 6;
const PLACEHOLDERS_AT: usize = BLCKSZ - 4;
const PAGE_ID_AT: usize = BLCKSZ - 2;
/// PG: SPGIST_PAGE_ID.
const PAGE_ID: u16 = 0xFF82;

/// In the first byte.
const STATE_MASK: u8 = 3;
const NEXT_AT: usize = 4;
const NEXT_MASK: u16 = 0x3FFF;
const POINTER_AT: usize = 6;
const XID_AT: usize = 12;
/// PG: SGITHDRSZ.
const INNER_HEADER_LEN: usize = 8;
/// A pointer that points nowhere. PG: ItemPointerSetInvalid.
const NOWHERE: (BlockNumber, u16) = (BlockNumber::MAX, 0);
/// One record changes no more tuples of a page. PG: itup.h, MaxIndexTuplesPerPage.
const CHANGED_MAX: usize = 408;

/// PG: SPGIST_LIVE and following.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    Live = 0,
    Redirect = 1,
    Dead = 2,
    Placeholder = 3,
}

/// A whole dead tuple.
pub(super) type DeadTuple = [u8; TUPLE_LEN_MIN];

/// An empty page. PG: spgutils.c, SpGistInitPage.
pub(super) fn init(page: &mut Page, flags: u16) {
    edit::init_page(page, SPECIAL_LEN);
    LittleEndian::write_u16(&mut page[SPGIST_FLAGS_AT..][..2], flags);
    LittleEndian::write_u16(&mut page[PAGE_ID_AT..], PAGE_ID);
}

/// The offsets above hold for a special area of the right length only.
pub(super) fn check_special(page: &Page) -> Result<(), RedoError> {
    let special = Header::read(page).special;
    if special == BLCKSZ - SPECIAL_LEN { Ok(()) } else { Err(page_error("not an SP-GiST page, pd_special", special)) }
}

/// A dead tuple that points nowhere. PG: spgutils.c, spgFormDeadTuple.
pub(super) fn dead_tuple(state: State) -> DeadTuple {
    form_dead_tuple(state, NOWHERE, 0)
}

/// The redirect to a tuple that moved; a placeholder while the index is being built. PG: spgutils.c, spgFormDeadTuple.
pub(super) fn redirect(block_no: BlockNumber, offset_no: u16, state: RedirectState) -> DeadTuple {
    if state.is_build {
        return dead_tuple(State::Placeholder);
    }
    form_dead_tuple(State::Redirect, (block_no, offset_no), state.xid)
}

fn form_dead_tuple(state: State, (block_no, offset_no): (BlockNumber, u16), xid: u32) -> DeadTuple {
    let mut tuple = [0; TUPLE_LEN_MIN];
    LittleEndian::write_u32(&mut tuple[..NEXT_AT], (TUPLE_LEN_MIN as u32) << 2 | state as u32);
    tuple[POINTER_AT..XID_AT].copy_from_slice(&tid(block_no, offset_no));
    LittleEndian::write_u32(&mut tuple[XID_AT..], xid);
    tuple
}

/// Puts `tuple` in the place of the tuple that is there. PG: PageIndexTupleDelete, PageAddItem.
pub(super) fn replace(page: &mut Page, tuple: &[u8], offset_no: u16) -> Result<(), RedoError> {
    edit::delete_item(page, offset_no)?;
    Ok(edit::add_item(page, tuple, offset_no, Placement::Insert)?)
}

/// Puts `tuple` behind the last one, or in the place of a placeholder. PG: spgxlog.c, addOrReplaceTuple.
pub(super) fn add_or_replace_placeholder(page: &mut Page, tuple: &[u8], offset_no: u16) -> Result<(), RedoError> {
    if offset_no <= Header::read(page).item_count() {
        if !is_in(State::Placeholder, &page[tuple_range(page, offset_no)?]) {
            return Err(page_error("tuple to be replaced is not a placeholder", offset_no));
        }
        uncount_placeholders(page, 1)?;
        edit::delete_item(page, offset_no)?;
    }
    Ok(edit::add_item(page, tuple, offset_no, Placement::Insert)?)
}

/// Puts dead tuples in the places of others: `first` for the first of `offset_nos`, which come in any order, `rest` for the rest.
/// PG: spgdoinsert.c, spgPageIndexMultiDelete.
pub(super) fn replace_by_dead(
    page: &mut Page,
    offset_nos: OffsetNos<'_>,
    first: &DeadTuple,
    rest: &DeadTuple,
) -> Result<(), RedoError> {
    let Some(first_offset_no) = offset_nos.iter().next() else { return Ok(()) };
    let mut sorted = [0; CHANGED_MAX];
    let count = offset_nos.iter().len();
    let sorted = sorted.get_mut(..count).ok_or_else(|| page_error("more tuples than a page has", count))?;
    sorted.iter_mut().zip(offset_nos.iter()).for_each(|(place, offset_no)| *place = offset_no);
    sorted.sort_unstable();
    edit::delete_items(page, sorted.iter().copied())?;
    for offset_no in sorted {
        let tuple = if *offset_no == first_offset_no { first } else { rest };
        edit::add_item(page, tuple, *offset_no, Placement::Insert)?;
        count_dead(page, tuple)?;
    }
    Ok(())
}

/// Counts a dead tuple that came.
pub(super) fn count_dead(page: &mut Page, tuple: &DeadTuple) -> Result<(), RedoError> {
    if is_in(State::Redirect, tuple) {
        change_count(page, REDIRECTS_AT, |count| count.checked_add(1))
    } else if is_in(State::Placeholder, tuple) {
        change_count(page, PLACEHOLDERS_AT, |count| count.checked_add(1))
    } else {
        Ok(())
    }
}

/// Counts placeholders that went.
pub(super) fn uncount_placeholders(page: &mut Page, gone: usize) -> Result<(), RedoError> {
    change_count(page, PLACEHOLDERS_AT, |count| usize::from(count).checked_sub(gone)?.try_into().ok())
}

/// Makes a redirect a placeholder where it stands; its xid stays. PG: spgxlog.c, spgRedoVacuumRedirect.
pub(super) fn redirect_to_placeholder(page: &mut Page, offset_no: u16) -> Result<(), RedoError> {
    let range = tuple_range(page, offset_no)?;
    let tuple = &mut page[range];
    if !is_in(State::Redirect, tuple) {
        return Err(page_error("tuple is not a redirect", offset_no));
    }
    tuple[0] = tuple[0] & !STATE_MASK | State::Placeholder as u8;
    tuple[POINTER_AT..XID_AT].copy_from_slice(&tid(NOWHERE.0, NOWHERE.1));
    change_count(page, REDIRECTS_AT, |count| count.checked_sub(1))?;
    change_count(page, PLACEHOLDERS_AT, |count| count.checked_add(1))
}

/// Lets two tuples change numbers.
pub(super) fn swap_items(page: &mut Page, offset_no: u16, other_no: u16) -> Result<(), RedoError> {
    tuple_range(page, offset_no)?;
    tuple_range(page, other_no)?;
    for i in 0..ITEM_ID_LEN {
        page.swap(item_id_at(offset_no) + i, item_id_at(other_no) + i);
    }
    Ok(())
}

/// The next tuple in the chain after leaf `offset_no`, 0 for none.
pub(super) fn next_in_chain(page: &Page, offset_no: u16) -> Result<u16, RedoError> {
    Ok(next_of(&page[tuple_range(page, offset_no)?]))
}

/// Lets the chain go on with `next` after leaf `offset_no`. PG: SGLT_SET_NEXTOFFSET.
pub(super) fn set_next_in_chain(page: &mut Page, offset_no: u16, next: u16) -> Result<(), RedoError> {
    let range = tuple_range(page, offset_no)?;
    let leaf = &mut page[range];
    if !is_in(State::Live, leaf) {
        return Err(page_error("tuple in a chain is dead", offset_no));
    }
    let word = LittleEndian::read_u16(&leaf[NEXT_AT..]) & !NEXT_MASK | next & NEXT_MASK;
    LittleEndian::write_u16(&mut leaf[NEXT_AT..POINTER_AT], word);
    Ok(())
}

/// The next tuple in the chain after `leaf`, which is of [`TUPLE_LEN_MIN`] at least.
pub(super) fn next_of(leaf: &[u8]) -> u16 {
    LittleEndian::read_u16(&leaf[NEXT_AT..]) & NEXT_MASK
}

/// Lets a node of an inner tuple point to item `offset_no` of `block_no`. PG: spgdoinsert.c, spgUpdateNodeLink.
pub(super) fn set_link(
    page: &mut Page,
    node: ParentNode,
    block_no: BlockNumber,
    offset_no: u16,
) -> Result<(), RedoError> {
    let range = tuple_range(page, node.offset_no)?;
    let inner = &mut page[range];
    let place = node_at(inner, node.node_no).ok_or_else(|| page_error("no such node in the tuple", node.node_no))?;
    inner[place..place + TID_LEN].copy_from_slice(&tid(block_no, offset_no));
    Ok(())
}

/// Where node `node_no` begins, which lies within the tuple.
fn node_at(inner: &[u8], node_no: u16) -> Option<usize> {
    let word = LittleEndian::read_u32(inner);
    let (node_count, prefix_size) = (word >> 3 & 0x1FFF, (word >> 16) as usize);
    if u32::from(node_no) >= node_count {
        return None;
    }
    let mut rest = inner.get(INNER_HEADER_LEN + prefix_size..)?;
    for _ in 0..node_no {
        rest = index_tuple::split_first(rest)?.1;
    }
    index_tuple::split_first(rest)?;
    Some(inner.len() - rest.len())
}

/// Size of the leaf tuple that starts with `head`.
///
/// Requires: `head` is of 4 bytes at least.
pub(super) fn leaf_size(head: &[u8]) -> usize {
    (LittleEndian::read_u32(head) >> 2) as usize
}

fn is_in(state: State, tuple: &[u8]) -> bool {
    tuple.first().is_some_and(|byte| byte & STATE_MASK == state as u8)
}

/// Where the tuple of an item lies, which is at least [`TUPLE_LEN_MIN`] long.
fn tuple_range(page: &Page, offset_no: u16) -> Result<Range<usize>, RedoError> {
    let range = item(page, offset_no).and_then(|item| item.range()).filter(|range| range.len() >= TUPLE_LEN_MIN);
    range.ok_or_else(|| page_error("there is no tuple with this offset number", offset_no))
}

fn change_count(page: &mut Page, at: usize, changed: impl FnOnce(u16) -> Option<u16>) -> Result<(), RedoError> {
    let before = LittleEndian::read_u16(&page[at..]);
    let after = changed(before).ok_or_else(|| page_error("count of dead tuples makes no sense", before))?;
    LittleEndian::write_u16(&mut page[at..][..2], after);
    Ok(())
}

const _: () = assert!(POINTER_AT + TID_LEN == XID_AT);
const _: () = assert!(XID_AT + 4 == TUPLE_LEN_MIN);
const _: () = assert!(SPGIST_FLAGS_AT == BLCKSZ - SPECIAL_LEN);
