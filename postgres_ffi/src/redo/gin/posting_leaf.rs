//! Changes to leaves of posting trees: some of their posting lists (segments) are replaced, the others close up.
//!
//! - Bytes behind the last list are those that were there before: lists are written one after the other, never further than the last of them ends.
//! - A leaf from before 9.4, a plain array of tuple ids, first becomes one with a single list.
//!
//! ginxlogRecompressDataLeaf: count of actions u16, then for each: segment number u8, action u8, and what it needs: a posting list (insert, replace), a
//! count u16 and as many tuple ids (add items), nothing (delete). Numbers are those of the lists before the change and never descend;
//! an insert comes before the list that has its number.
//!
//! PG 14-18: src/backend/access/gin/ginxlog.c (ginRedoRecompress), src/include/access/ginxlog.h.

use std::ops::Range;

use super::page::{self, COMPRESSED, DATA_RANGE};
use super::posting_list::{self, Encoder, List, TUPLE_ID_LEN};
use crate::page::Page;
use crate::page::layout::Header;
use crate::records::fields::Fields;
use crate::redo::{RedoError, page_error};

/// GIN_SEGMENT_DELETE and following.
const DELETE: u8 = 1;
const INSERT: u8 = 2;
const REPLACE: u8 = 3;
const ADD_ITEMS: u8 = 4;
/// PostgreSQL makes lists of at most 384 bytes (gindatapage.c, GinPostingListSegmentMaxSize); longer ones are from before 9.4.
const SHORT_LIST_LEN_MAX: usize = 512;

/// Requires: the page is a leaf of a posting tree.
pub(super) fn recompress(page: &mut Page, actions: &[u8]) -> Result<(), RedoError> {
    if page::flags(page)? & COMPRESSED == 0 {
        compress(page)?;
    }
    let mut fields = Fields::new("ginxlogRecompressDataLeaf", actions);
    let action_count = fields.u16()?;
    if action_count == 0 {
        // PostgreSQL writes no such record; its redo would take the lists that it has not walked over for deleted.
        return Err(fields.impossible("nactions", 0).into());
    }
    let first = fields.rest();
    if let ([list_no, ADD_ITEMS, ..], 1) = (first, action_count) {
        fields.take(2)?;
        let ids = take_ids(&mut fields)?;
        expect_no_more(&fields)?;
        if add_to_one(page, (*list_no).into(), ids)? {
            return Ok(());
        }
    }
    let mut fields = Fields::new("ginxlogRecompressDataLeaf", first);
    let before = *page;
    let mut lists = Lists::new(&before, page)?;
    for _ in 0..action_count {
        let (list_no, action) = (u16::from(fields.u8()?), fields.u8()?);
        lists.keep_before(list_no)?;
        match action {
            DELETE => lists.skip().map(drop)?,
            INSERT => lists.put(List::take(&mut fields)?)?,
            REPLACE => {
                lists.skip()?;
                lists.put(List::take(&mut fields)?)?;
            }
            ADD_ITEMS => lists.add_to_next(take_ids(&mut fields)?)?,
            _ => return Err(fields.impossible("action", action.into()).into()),
        }
    }
    expect_no_more(&fields)?;
    lists.finish()
}

/// The tuple ids of an action that adds them.
fn take_ids<'a>(fields: &mut Fields<'a>) -> Result<&'a [u8], RedoError> {
    let count = fields.u16()?;
    Ok(fields.items(count.into(), TUPLE_ID_LEN)?)
}

fn expect_no_more(fields: &Fields<'_>) -> Result<(), RedoError> {
    match fields.rest() {
        [] => Ok(()),
        rest => Err(page_error("more bytes than actions", rest.len())),
    }
}

/// What nearly every record is: one list gets more items. Saves the copy of the page that takes longer than all the rest of it.
/// False, and nothing has changed: the list becomes longer than [`SHORT_LIST_LEN_MAX`].
fn add_to_one(page: &mut Page, list_no: u16, added: &[u8]) -> Result<bool, RedoError> {
    let end = lists_end(page)?;
    let mut start = DATA_RANGE.start;
    for number in 0..list_no {
        start += list_at(page, start..end, number)?.bytes().len();
    }
    let list = list_at(page, start..end, list_no)?;
    let list_end = start + list.bytes().len();
    let mut new_list = [0; SHORT_LIST_LEN_MAX];
    // An added tuple id of six bytes takes seven at most, and what follows it no more than before.
    if new_list.len() < list.bytes().len() + 2 * added.len() {
        return Ok(false);
    }
    let new_len = posting_list::merge(list, added, &mut new_list)?;
    let new_end = start + new_len + (end - list_end);
    if DATA_RANGE.end < new_end {
        return Err(page_error("posting lists do not fit", new_end));
    }
    page.copy_within(list_end..end, start + new_len);
    page[start..start + new_len].copy_from_slice(&new_list[..new_len]);
    page::set_data_end(page, new_end);
    Ok(true)
}

/// Where the posting lists of a leaf end.
fn lists_end(page: &Page) -> Result<usize, RedoError> {
    let end = Header::read(page).lower;
    if !(DATA_RANGE.start..=DATA_RANGE.end).contains(&end) {
        return Err(page_error("end of the posting lists makes no sense", end));
    }
    Ok(end)
}

/// The list at the start of `range`; its number is for the error.
fn list_at(page: &Page, range: Range<usize>, number: u16) -> Result<List<'_>, RedoError> {
    let list = page.get(range).and_then(List::first_of);
    list.ok_or_else(|| page_error("there is no posting list with this number", number))
}

/// Makes one posting list of a plain array.
fn compress(page: &mut Page) -> Result<(), RedoError> {
    let before = *page;
    let count = page::max_offset(page);
    let Some(ids) = before[DATA_RANGE].get(..usize::from(count) * TUPLE_ID_LEN) else {
        return Err(page_error("more tuple ids than fit on a page", count));
    };
    let mut len = 0;
    if count > 0 {
        let mut list = Encoder::new(&mut page[DATA_RANGE]);
        posting_list::items(ids).try_for_each(|item| list.push(item?))?;
        len = list.finish()?;
    }
    page::set_data_end(page, DATA_RANGE.start + len);
    page::set_max_offset(page, 0);
    let flags = page::flags(page)?;
    page::set_flags(page, flags | COMPRESSED);
    Ok(())
}

/// A leaf between its old and its new lists.
struct Lists<'a> {
    /// The leaf as it was.
    before: &'a Page,
    /// Number of the next old list.
    next_no: u16,
    /// Where it starts.
    next: usize,
    /// Where the last one ends.
    end: usize,
    /// The leaf as it becomes. Behind `written` it is still as it was.
    page: &'a mut Page,
    /// Where the new lists end so far.
    written: usize,
}

impl<'a> Lists<'a> {
    fn new(before: &'a Page, page: &'a mut Page) -> Result<Self, RedoError> {
        let (start, end) = (DATA_RANGE.start, lists_end(before)?);
        Ok(Lists { before, next_no: 0, next: start, end, page, written: start })
    }

    /// Goes on to old list `list_no`; those before it stay.
    fn keep_before(&mut self, list_no: u16) -> Result<(), RedoError> {
        if list_no < self.next_no {
            return Err(page_error("numbers of posting lists descend", list_no));
        }
        while self.next_no < list_no {
            let start = self.next;
            let list = self.skip()?;
            if start == self.written {
                self.written = self.next;
            } else {
                self.put(list)?;
            }
        }
        Ok(())
    }

    /// Goes behind the next old list.
    fn skip(&mut self) -> Result<List<'a>, RedoError> {
        let list = list_at(self.before, self.next..self.end, self.next_no)?;
        self.next += list.bytes().len();
        self.next_no += 1; // At most as many as fit on a page.
        Ok(list)
    }

    fn put(&mut self, list: List<'_>) -> Result<(), RedoError> {
        self.put_bytes(list.bytes())
    }

    fn put_bytes(&mut self, bytes: &[u8]) -> Result<(), RedoError> {
        let place = self.page[self.written..DATA_RANGE.end].get_mut(..bytes.len());
        place.ok_or_else(|| page_error("posting lists do not fit", bytes.len()))?.copy_from_slice(bytes);
        self.written += bytes.len();
        Ok(())
    }

    /// Puts the next old list with more items.
    fn add_to_next(&mut self, added: &[u8]) -> Result<(), RedoError> {
        let list = self.skip()?;
        self.written += posting_list::merge(list, added, &mut self.page[self.written..DATA_RANGE.end])?;
        Ok(())
    }

    /// Keeps what is left.
    fn finish(mut self) -> Result<(), RedoError> {
        let rest = &self.before[self.next..self.end];
        if self.next == self.written {
            self.written = self.end;
        } else {
            self.put_bytes(rest)?;
        }
        page::set_data_end(self.page, self.written);
        Ok(())
    }
}
