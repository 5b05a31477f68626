//! Changes to line pointers and tuples of a page, as PostgreSQL makes them: the same bytes end up at the same places, those between the two areas too.
//!
//! - Everything is checked before the first byte is written, so a refused change leaves the page as it was (but for [`delete_items`] of one or two
//!   items, which are two changes).
//! - A page whose header makes no sense is refused.
//!
//! PG 14-18: src/backend/storage/page/bufpage.c; of the algorithms only [`repair_fragmentation`] changed in these versions.

use std::ops::Range;

use byteorder::{ByteOrder, LittleEndian};

use super::layout::{Header, ITEM_ID_LEN, Item, ItemFlags, item, item_flags, item_id_at};
use super::{
    BLCKSZ, PAGE_HEADER_LEN, PD_FLAGS, PD_HAS_FREE_LINES, PD_LOWER, PD_PAGESIZE_VERSION, PD_SPECIAL, PD_UPPER, Page,
    put_u16,
};
use crate::PgVersion;

/// More tuples do not fit on a heap page. PG: src/include/access/htup_details.h, MaxHeapTuplesPerPage.
pub const HEAP_TUPLES_PER_PAGE_MAX: u16 = 291;
/// In the low byte beside the page size. PG: bufpage.h, PG_PAGE_LAYOUT_VERSION.
const LAYOUT_VERSION: u16 = 4;
/// Line pointers that fit between the header and the end of a page.
const ITEMS_MAX: usize = (BLCKSZ - PAGE_HEADER_LEN) / ITEM_ID_LEN;

/// Why a page does not take a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("page does not take the change: {what}. value=`{value}`")]
pub struct PageError {
    /// What is wrong.
    pub what: &'static str,
    /// The number that shows it.
    pub value: i64,
}

/// Of tuples on a page, in bytes. PG: pg_config.h, MAXIMUM_ALIGNOF.
const ALIGNMENT: usize = 8;

/// `len` rounded up to the alignment of tuples on a page. PG: c.h, MAXALIGN.
pub const fn aligned(len: usize) -> usize {
    len.next_multiple_of(ALIGNMENT)
}

/// An empty page with a special area of `special_len` bytes. PG: PageInit.
pub fn init_page(page: &mut Page, special_len: usize) {
    assert!(special_len <= BLCKSZ - PAGE_HEADER_LEN);
    let special = (BLCKSZ - aligned(special_len)) as u16;
    page.fill(0);
    put_u16(page, PD_LOWER, PAGE_HEADER_LEN as u16);
    put_u16(page, PD_UPPER, special);
    put_u16(page, PD_SPECIAL, special);
    put_u16(page, PD_PAGESIZE_VERSION, BLCKSZ as u16 | LAYOUT_VERSION);
}

/// What happens to the line pointers at and behind the place of a new tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// They move up by one.
    Insert,
    /// They stay: the place is behind the last one or that of an unused line pointer.
    Overwrite,
    /// As `Overwrite`, with the limit on tuples of a heap page.
    OverwriteHeap,
}

/// Puts `tuple` on the page as item `offset_no`. PG: PageAddItemExtended.
pub fn add_item(page: &mut Page, tuple: &[u8], offset_no: u16, placement: Placement) -> Result<(), PageError> {
    let range = add_space(page, tuple.len(), offset_no, placement)?;
    page[range].copy_from_slice(tuple);
    Ok(())
}

/// Makes item `offset_no` of `len` bytes and returns their place; the bytes are still what they were before. PG: PageAddItemExtended.
pub fn add_space(page: &mut Page, len: usize, offset_no: u16, placement: Placement) -> Result<Range<usize>, PageError> {
    let header = sane_header(page)?;
    let limit = header.item_count() + 1;
    if offset_no == 0 || offset_no > limit {
        return refused("there is no place with this offset number", offset_no);
    }
    if placement == Placement::OverwriteHeap && offset_no > HEAP_TUPLES_PER_PAGE_MAX {
        return refused("more tuples than a heap page takes", offset_no);
    }
    let is_new = offset_no == limit || placement == Placement::Insert;
    if !is_new && item(page, offset_no).is_some_and(|item| item.flags != ItemFlags::Unused || item.len != 0) {
        return refused("line pointer is in use", offset_no);
    }
    let lower = header.lower + if is_new { ITEM_ID_LEN } else { 0 };
    let upper = header.upper.checked_sub(aligned(len)).filter(|upper| lower <= *upper);
    let Some(upper) = upper else { return refused("tuple does not fit", len) };
    let place = item_id_at(offset_no);
    if offset_no < limit && placement == Placement::Insert {
        page.copy_within(place..header.lower, place + ITEM_ID_LEN);
    }
    put_item_id(page, offset_no, upper, ItemFlags::Normal, len);
    put_u16(page, PD_LOWER, lower as u16);
    put_u16(page, PD_UPPER, upper as u16);
    Ok(upper..upper + len)
}

/// Deletes item `offset_no`; those behind it move down by one. Refused where a line pointer has no tuple: PostgreSQL asserts that all have one.
/// PG: PageIndexTupleDelete.
pub fn delete_item(page: &mut Page, offset_no: u16) -> Result<(), PageError> {
    let header = special_aligned(sane_header(page)?)?;
    let deleted = stored_item(page, &header, offset_no)?;
    if let Some(empty) = super::layout::items(page).find(|item| item.len == 0) {
        return refused("line pointer has no tuple", empty.offset_no);
    }
    page.copy_within(item_id_at(offset_no + 1)..header.lower, item_id_at(offset_no));
    put_u16(page, PD_LOWER, (header.lower - ITEM_ID_LEN) as u16);
    close_gap(page, &header, &deleted);
    Ok(())
}

/// Deletes the tuple of item `offset_no` but keeps the numbers of all others: the line pointer becomes unused, or goes if it is the last.
/// PG: PageIndexTupleDeleteNoCompact.
pub fn delete_item_keeping_numbers(page: &mut Page, offset_no: u16) -> Result<(), PageError> {
    let header = special_aligned(sane_header(page)?)?;
    let deleted = stored_item(page, &header, offset_no)?;
    if offset_no < header.item_count() {
        put_item_id(page, offset_no, 0, ItemFlags::Unused, 0);
    } else {
        put_u16(page, PD_LOWER, (header.lower - ITEM_ID_LEN) as u16);
    }
    close_gap(page, &header, &deleted);
    Ok(())
}

/// Deletes the items `offset_nos`, which ascend; the others keep their order. PG: PageIndexMultiDelete.
pub fn delete_items(
    page: &mut Page,
    offset_nos: impl DoubleEndedIterator<Item = u16> + ExactSizeIterator,
) -> Result<(), PageError> {
    if offset_nos.len() <= 2 {
        return offset_nos.rev().try_for_each(|offset_no| delete_item(page, offset_no));
    }
    let header = special_aligned(sane_header(page)?)?;
    let mut kept = Tuples::<ITEMS_MAX>::default();
    let mut kept_ids = [0_u32; ITEMS_MAX];
    let mut to_delete = offset_nos.peekable();
    for offset_no in 1..=header.item_count() {
        let found = stored_item(page, &header, offset_no)?;
        if to_delete.next_if_eq(&offset_no).is_none() {
            kept_ids[kept.len] = LittleEndian::read_u32(&page[item_id_at(offset_no)..]);
            kept.push(kept.len as u16 + 1, &found)?;
        }
    }
    if let Some(offset_no) = to_delete.next() {
        return refused("offset numbers do not ascend, or one is not there", offset_no);
    }
    kept.check(&header)?;
    for (index, id) in kept_ids[..kept.len].iter().enumerate() {
        LittleEndian::write_u32(&mut page[item_id_at(index as u16 + 1)..], *id);
    }
    put_u16(page, PD_LOWER, (PAGE_HEADER_LEN + kept.len * ITEM_ID_LEN) as u16);
    kept.compactify(page, &header);
    Ok(())
}

/// Puts `tuple` in place of that of item `offset_no`, moving others if the length is another. PG: PageIndexTupleOverwrite.
pub fn overwrite_item(page: &mut Page, offset_no: u16, tuple: &[u8]) -> Result<(), PageError> {
    let header = special_aligned(sane_header(page)?)?;
    let old = stored_item(page, &header, offset_no)?;
    let (old_len, new_len) = (aligned(old.len), aligned(tuple.len()));
    if new_len > old_len + (header.upper - header.lower) {
        return refused("tuple does not fit", tuple.len());
    }
    // What lies before the tuple moves by the difference, down or up. Wraps for a line pointer that is garbage only.
    let moved = |offset: usize| (offset + old_len).wrapping_sub(new_len);
    if old_len != new_len {
        page.copy_within(header.upper..old.offset, moved(header.upper));
        put_u16(page, PD_UPPER, moved(header.upper) as u16);
        for offset_no in 1..=header.item_count() {
            move_item(page, offset_no, old.offset, moved);
        }
    }
    let offset = moved(old.offset);
    put_item_id(page, offset_no, offset, old.flags, tuple.len());
    page[offset..offset + tuple.len()].copy_from_slice(tuple);
    Ok(())
}

/// Closes the gaps between tuples, cuts unused line pointers off the end (from 15), and notes whether there are others. PG: PageRepairFragmentation.
pub fn repair_fragmentation(page: &mut Page, version: PgVersion) -> Result<(), PageError> {
    let header = special_aligned(sane_header(page)?)?;
    let mut kept = Tuples::<{ HEAP_TUPLES_PER_PAGE_MAX as usize }>::default();
    let (mut last_used, mut unused_count, mut unused_are_clear) = (0, 0, true);
    for found in super::layout::items(page) {
        if found.flags == ItemFlags::Unused {
            unused_count += 1;
            unused_are_clear &= found.offset == 0 && found.len == 0;
            continue;
        }
        last_used = found.offset_no;
        if found.len > 0 {
            if found.offset < header.upper || found.offset >= header.special {
                return refused("line pointer points outside of the tuples", found.offset);
            }
            kept.push(found.offset_no, &found)?;
        }
    }
    kept.check(&header)?;
    if !unused_are_clear {
        clear_unused_items(page);
    }
    kept.compactify(page, &header);
    if version >= PgVersion::V15 {
        cut_items(page, &header, last_used);
        unused_count -= header.item_count() - last_used;
    }
    set_has_free_lines(page, unused_count > 0);
    Ok(())
}

/// Cuts unused line pointers off the end, but never the first one, and notes whether there are others. PG: PageTruncateLinePointerArray.
pub fn truncate_items(page: &mut Page) -> Result<(), PageError> {
    let header = sane_header(page)?;
    let is_unused = |offset_no: &u16| item_flags(page, *offset_no) == ItemFlags::Unused;
    let cut_count = (2..=header.item_count()).rev().take_while(is_unused).count();
    let last_kept = header.item_count() - cut_count as u16;
    let has_unused = (1..=last_kept).rev().any(|offset_no| is_unused(&offset_no));
    cut_items(page, &header, last_kept);
    set_has_free_lines(page, has_unused);
    Ok(())
}

/// Writes a line pointer. PG: itemid.h, ItemIdSetNormal and its like.
///
/// Requires: the page has this line pointer; `offset` and `len` are below 32768.
pub fn put_item_id(page: &mut Page, offset_no: u16, offset: usize, flags: ItemFlags, len: usize) {
    assert!(offset < 1 << 15);
    assert!(len < 1 << 15);
    let word = offset as u32 | (flags as u32) << 15 | (len as u32) << 17;
    LittleEndian::write_u32(&mut page[item_id_at(offset_no)..], word);
}

/// Tuples that stay, in the order of their line pointers; at most `N`.
struct Tuples<const N: usize> {
    /// Line pointer, where the tuple is, its aligned length.
    list: [(u16, u16, u16); N],
    len: usize,
    total_len: usize,
    /// Where the tuple pushed last is.
    last_offset: usize,
    /// Each tuple ends before the one pushed before it starts.
    descend: bool,
}

impl<const N: usize> Default for Tuples<N> {
    fn default() -> Self {
        Tuples { list: [(0, 0, 0); N], len: 0, total_len: 0, last_offset: BLCKSZ, descend: true }
    }
}

impl<const N: usize> Tuples<N> {
    #[inline]
    fn push(&mut self, offset_no: u16, found: &Item) -> Result<(), PageError> {
        let len = aligned(found.len);
        if found.offset + len > BLCKSZ || !found.offset.is_multiple_of(ALIGNMENT) {
            return refused("line pointer points outside of the tuples", found.offset);
        }
        self.descend &= found.offset + len <= self.last_offset;
        self.last_offset = found.offset;
        let Some(place) = self.list.get_mut(self.len) else {
            return refused("more tuples than a page takes", self.len);
        };
        *place = (offset_no, found.offset as u16, len as u16);
        self.len += 1;
        self.total_len += len;
        Ok(())
    }

    /// They fit, and no two have bytes in common: PostgreSQL would make something of such a page that depends on what else is in its memory.
    fn check(&self, header: &Header) -> Result<(), PageError> {
        if self.total_len > header.special - header.lower {
            return refused("tuples are longer than the page", self.total_len);
        }
        if self.descend {
            return Ok(());
        }
        let mut taken = [false; BLCKSZ / ALIGNMENT];
        for (_, offset, len) in &self.list[..self.len] {
            let units = &mut taken[usize::from(*offset) / ALIGNMENT..][..usize::from(*len) / ALIGNMENT];
            if units.contains(&true) {
                return refused("tuples overlap", *offset);
            }
            units.fill(true);
        }
        Ok(())
    }

    /// Moves the tuples to the end of the page in the order of their line pointers; bytes below them stay as they are.
    /// PG: compactify_tuples, which has several ways for speed and one outcome.
    fn compactify(&self, page: &mut Page, header: &Header) {
        let list = &self.list[..self.len];
        let mut upper = header.special;
        let in_place = list.iter().take_while(|(_, offset, len)| {
            let is_in_place = usize::from(*offset) + usize::from(*len) == upper;
            upper -= if is_in_place { usize::from(*len) } else { 0 };
            is_in_place
        });
        let first_moved = in_place.count();
        // Tuples that descend move up, each over nothing but what has moved. Others need to be read from where nothing is written.
        let copy;
        let old = if self.descend {
            None
        } else {
            copy = *page;
            Some(&copy)
        };
        let mut run = Run { from: upper..upper, to_end: upper };
        for (offset_no, offset, len) in &list[first_moved..] {
            let (offset, len) = (usize::from(*offset), usize::from(*len));
            if offset + len != run.from.start {
                run.copy(page, old);
                run = Run { from: offset + len..offset + len, to_end: upper };
            }
            run.from.start = offset;
            upper -= len;
            let word = LittleEndian::read_u32(&page[item_id_at(*offset_no)..]) & !0x7FFF | upper as u32;
            LittleEndian::write_u32(&mut page[item_id_at(*offset_no)..], word);
        }
        run.copy(page, old);
        put_u16(page, PD_UPPER, upper as u16);
    }
}

/// Tuples one after the other without a gap, which move as one.
struct Run {
    from: Range<usize>,
    /// Where the end goes.
    to_end: usize,
}

impl Run {
    fn copy(&self, page: &mut Page, old: Option<&Page>) {
        let to = self.to_end - self.from.len();
        match old {
            Some(old) => page[to..self.to_end].copy_from_slice(&old[self.from.clone()]),
            None => page.copy_within(self.from.clone(), to),
        }
    }
}

/// Moves the tuples before a deleted one over it. The deleted item's line pointer is gone or unused already; `header` is that from before.
fn close_gap(page: &mut Page, header: &Header, deleted: &Item) {
    let len = aligned(deleted.len);
    page.copy_within(header.upper..deleted.offset, header.upper + len);
    put_u16(page, PD_UPPER, (header.upper + len) as u16);
    for offset_no in 1..=Header::read(page).item_count() {
        move_item(page, offset_no, deleted.offset, |offset| offset + len);
    }
}

/// Lets a line pointer at or before `last_offset` follow its tuple.
fn move_item(page: &mut Page, offset_no: u16, last_offset: usize, moved: impl Fn(usize) -> usize) {
    let at = item_id_at(offset_no);
    let word = LittleEndian::read_u32(&page[at..]);
    let (offset, len) = ((word & 0x7FFF) as usize, word >> 17);
    if len != 0 && offset <= last_offset {
        // An item with storage lies between `pd_upper` and the tuple: `moved` stays within the page. One that does not is garbage, and stays it.
        LittleEndian::write_u32(&mut page[at..at + 4], word & !0x7FFF | (moved(offset) as u32 & 0x7FFF));
    }
}

fn clear_unused_items(page: &mut Page) {
    for offset_no in 1..=Header::read(page).item_count() {
        if item_flags(page, offset_no) == ItemFlags::Unused {
            put_item_id(page, offset_no, 0, ItemFlags::Unused, 0);
        }
    }
}

fn cut_items(page: &mut Page, header: &Header, last_kept: u16) {
    let gone = usize::from(header.item_count() - last_kept) * ITEM_ID_LEN;
    put_u16(page, PD_LOWER, (header.lower - gone) as u16);
}

fn set_has_free_lines(page: &mut Page, has_free_lines: bool) {
    let flags = LittleEndian::read_u16(&page[PD_FLAGS..]) & !PD_HAS_FREE_LINES;
    put_u16(page, PD_FLAGS, flags | if has_free_lines { PD_HAS_FREE_LINES } else { 0 });
}

/// An item whose tuple lies where tuples lie.
fn stored_item(page: &Page, header: &Header, offset_no: u16) -> Result<Item, PageError> {
    let Some(found) = item(page, offset_no) else {
        return refused("there is no item with this offset number", offset_no);
    };
    let end = found.offset + aligned(found.len);
    if found.len == 0 || found.offset < header.upper || end > header.special || !found.offset.is_multiple_of(ALIGNMENT)
    {
        return refused("line pointer points outside of the tuples", found.offset);
    }
    Ok(found)
}

/// The header of a page with whole line pointers.
fn sane_header(page: &Page) -> Result<Header, PageError> {
    let header = Header::read(page);
    let is_sane = header.is_sane() && (header.lower - PAGE_HEADER_LEN).is_multiple_of(ITEM_ID_LEN);
    if is_sane { Ok(header) } else { refused("page header makes no sense, pd_lower", header.lower) }
}

fn special_aligned(header: Header) -> Result<Header, PageError> {
    if header.special.is_multiple_of(ALIGNMENT) {
        Ok(header)
    } else {
        refused("special area is not aligned", header.special)
    }
}

fn refused<T>(what: &'static str, value: impl TryInto<i64>) -> Result<T, PageError> {
    Err(PageError { what, value: value.try_into().unwrap_or(i64::MAX) })
}

const _: () = assert!(BLCKSZ < 1 << 15);
const _: () = assert!(ITEM_ID_LEN == 4);
