//! Page splits, and the new root after a split of the root.
//!
//! PG 14-18: src/backend/access/nbtree/nbtxlog.c (btree_xlog_split, btree_xlog_newroot, _bt_restore_page).

use byteorder::{ByteOrder, LittleEndian};

use super::posting::{self, Tid};
use super::{
    BTP_INCOMPLETE_SPLIT, BTP_LEAF, BTP_ROOT, NO_SIBLING, Special, finish_split, init_page, push, split_first_padded,
    tuple_range,
};
use crate::page::edit::{self, Placement};
use crate::page::layout::{Header, ITEM_ID_LEN, ItemFlags};
use crate::page::{PAGE_HEADER_LEN, PD_LOWER, PD_UPPER, Page};
use crate::records::fields::Fields;
use crate::redo::{Change, RedoError, page_error};
use crate::wal::describe::btree::operation::SPLIT_L;

/// xl_btree_split.
struct Split {
    level: u32,
    /// The first item of the old page that goes to the right one.
    first_right_no: u16,
    /// Where the new tuple would be on the old page, numbered as if it was there.
    new_no: u16,
    /// Where in the posting list before the new tuple its row belongs, 0 if nowhere.
    posting_place: u16,
    is_new_on_left: bool,
}

impl Split {
    fn read(change: &Change<'_>) -> Result<Self, RedoError> {
        let mut fields = Fields::new("xl_btree_split", change.main_data());
        Ok(Split {
            level: fields.u32()?,
            first_right_no: fields.u16()?,
            new_no: fields.u16()?,
            posting_place: fields.u16()?,
            is_new_on_left: change.operation() == SPLIT_L,
        })
    }

    fn leaf_flag(&self) -> u16 {
        if self.level == 0 { BTP_LEAF } else { 0 }
    }
}

/// The data of block 0: the new tuple, if it goes to the left page or its row swaps places with one of a posting list there, then the left page's high key.
struct LeftData<'a> {
    /// With the row that it gets in the end.
    new: Option<(&'a [u8], Tid)>,
    high_key: &'a [u8],
}

impl<'a> LeftData<'a> {
    fn read(split: &Split, data: &'a [u8]) -> Result<Self, RedoError> {
        const BODY: &str = "left page of a split";
        let (mut new, mut rest) = (None, data);
        if split.is_new_on_left || split.posting_place != 0 {
            let (tuple, behind) = split_first_padded(BODY, data)?;
            new = tuple.first_chunk().map(|tid| (tuple, *tid));
            rest = behind;
        }
        let (high_key, rest) = split_first_padded(BODY, rest)?;
        if !rest.is_empty() {
            return Err(page_error("left page of a split has data that belongs nowhere, bytes", rest.len()));
        }
        Ok(LeftData { new, high_key })
    }
}

/// The old page, made anew from its own left half: tuples get the order of their line pointers, and the space between is zeroes.
pub(super) fn left(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let split = Split::read(change)?;
    let LeftData { mut new, high_key } = LeftData::read(&split, change.block_data())?;
    let mut special = Special::read(page)?;
    let items = special.first_data_item()..split.first_right_no.max(special.first_data_item());
    if new.is_some() && (split.new_no < items.start || items.end < split.new_no) {
        return Err(page_error("new tuple is not on the left page, offset number", split.new_no));
    }
    let mut old = *page;
    if let Some((tuple, tid)) = new.as_mut().filter(|_| split.posting_place != 0) {
        let range = tuple_range(&old, split.new_no - 1)?;
        *tid = posting::swap(&mut old[range], split.posting_place, tuple)?;
    }

    special.flags = BTP_INCOMPLETE_SPLIT | split.leaf_flag();
    special.next = change.block_no_of(1)?;
    special.cycle_id = 0;
    init_page(page, special);
    push(page, high_key)?;
    let new_at = |offset_no: u16| new.filter(|_| split.is_new_on_left && offset_no == split.new_no);
    for offset_no in items.clone() {
        if let Some((tuple, tid)) = new_at(offset_no) {
            push_with_tid(page, tuple, tid)?;
        }
        push(page, &old[tuple_range(&old, offset_no)?])?;
    }
    if let Some((tuple, tid)) = new_at(items.end) {
        push_with_tid(page, tuple, tid)?;
    }
    Ok(())
}

fn push_with_tid(page: &mut Page, tuple: &[u8], tid: Tid) -> Result<(), RedoError> {
    let offset_no = Header::read(page).item_count() + 1;
    let range = edit::add_space(page, tuple.len(), offset_no, Placement::Insert)?;
    posting::put_with_tid(&mut page[range], tuple, tid);
    Ok(())
}

/// The new page.
pub(super) fn right(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let split = Split::read(change)?;
    let special = Special {
        prev: change.block_no_of(0)?,
        next: change.record.block(2).map_or(NO_SIBLING, |block| block.block_no),
        level: split.level,
        flags: split.leaf_flag(),
        cycle_id: 0,
    };
    init_page(page, special);
    restore_tuples(page, change.block_data())
}

/// The page that was behind the old one has a new left sibling.
pub(super) fn behind(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let mut special = Special::read(page)?;
    special.prev = change.block_no_of(1)?;
    special.write(page);
    Ok(())
}

/// The page whose own split brought the new tuple: it is finished with that.
pub(super) fn child(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    if Split::read(change)?.level == 0 {
        return Err(change.unknown_operation());
    }
    finish_split(page)
}

/// A root above the two halves of the old one, or the first and empty root. PG: btree_xlog_newroot.
pub(super) fn new_root(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let level = level_of_new_root(change)?;
    let leaf_flag = if level == 0 { BTP_LEAF } else { 0 };
    init_page(page, Special { level, flags: BTP_ROOT | leaf_flag, ..Special::default() });
    if level == 0 { Ok(()) } else { restore_tuples(page, change.block_data()) }
}

/// The half of the old root that is finished with its split. An empty root has no child.
pub(super) fn child_of_new_root(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    if level_of_new_root(change)? == 0 {
        return Err(change.unknown_operation());
    }
    finish_split(page)
}

fn level_of_new_root(change: &Change<'_>) -> Result<u32, RedoError> {
    let mut fields = Fields::new("xl_btree_newroot", change.main_data());
    let (_root, level) = (fields.u32()?, fields.u32()?);
    Ok(level)
}

/// Puts tuples back that were logged as they lay on a page, the last one first: one copy, then line pointers that count down. PG: _bt_restore_page.
///
/// Requires: `page` is empty.
fn restore_tuples(page: &mut Page, tuples: &[u8]) -> Result<(), RedoError> {
    const BODY: &str = "tuples of a new page";
    let (mut rest, mut count) = (tuples, 0);
    while !rest.is_empty() {
        rest = split_first_padded(BODY, rest)?.1;
        count += 1;
    }
    let lower = PAGE_HEADER_LEN + count * ITEM_ID_LEN;
    let upper = Special::AT.checked_sub(tuples.len()).filter(|upper| lower <= *upper);
    let upper = upper.ok_or_else(|| page_error("tuples do not fit on a new page, bytes", tuples.len()))?;
    page[upper..Special::AT].copy_from_slice(tuples);
    let mut offset = upper;
    for offset_no in (1..=count as u16).rev() {
        let len = split_first_padded(BODY, &tuples[offset - upper..])?.0.len();
        edit::put_item_id(page, offset_no, offset, ItemFlags::Normal, len);
        offset += len;
    }
    LittleEndian::write_u16(&mut page[PD_LOWER..], lower as u16);
    LittleEndian::write_u16(&mut page[PD_UPPER..], upper as u16);
    Ok(())
}
