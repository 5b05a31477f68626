//! Tuples of heap pages: their headers, changed where they lie, and new tuples made of what a record holds.
//!
//! - A tuple is found only through a line pointer in use, and only where tuples lie: between `pd_upper` and the special area.
//! - Bytes that round a tuple's length up to a multiple of 8 are not written, here as in PostgreSQL: they stay what they were.
//!
//! PG 14-18: src/include/access/htup_details.h (HeapTupleHeaderData), src/include/access/heapam_xlog.h (xl_heap_header).

use std::ops::Range;

use byteorder::{ByteOrder, LittleEndian};

use super::{Change, RedoError, page_error};
use crate::mask::heap::{
    HEAP_COMBOCID, HEAP_XMAX_COMMITTED, HEAP_XMAX_INVALID, T_CTID, T_FIELD3, T_HOFF, T_INFOMASK, T_INFOMASK2, T_XMAX,
    TUPLE_HEADER_LEN,
};
use crate::page::edit::{self, Placement};
use crate::page::layout::{Header, ItemFlags, item};
use crate::page::{PD_ALL_VISIBLE, PD_FLAGS, PD_PRUNE_XID, Page};
use crate::records::RecordError;
use crate::records::fields::Fields;
use crate::records::heap::INIT_PAGE;
use crate::slru::xid_precedes;
use crate::{BlockNumber, TransactionId};

const T_XMIN: usize = 0;

// t_infomask: what xmax is.
const HEAP_XMAX_KEYSHR_LOCK: u16 = 0x0010;
const HEAP_XMAX_EXCL_LOCK: u16 = 0x0040;
const HEAP_XMAX_LOCK_ONLY: u16 = 0x0080;
const HEAP_XMAX_IS_MULTI: u16 = 0x1000;
const HEAP_LOCK_MASK: u16 = HEAP_XMAX_KEYSHR_LOCK | HEAP_XMAX_EXCL_LOCK;
const HEAP_XMAX_BITS: u16 =
    HEAP_XMAX_COMMITTED | HEAP_XMAX_INVALID | HEAP_XMAX_IS_MULTI | HEAP_LOCK_MASK | HEAP_XMAX_LOCK_ONLY;
/// t_infomask: left by VACUUM FULL before 9.0. PG: HEAP_MOVED_OFF, HEAP_MOVED_IN.
const HEAP_MOVED: u16 = 0xC000;
// t_infomask2.
const HEAP_KEYS_UPDATED: u16 = 0x2000;
const HEAP_HOT_UPDATED: u16 = 0x4000;

/// What a record says of xmax, and what t_infomask says. PG: heapam_xlog.h, XLHL_*.
const INFOBITS: [(u8, u16); 4] = [
    (0x01, HEAP_XMAX_IS_MULTI),
    (0x02, HEAP_XMAX_LOCK_ONLY),
    (0x04, HEAP_XMAX_EXCL_LOCK),
    (0x08, HEAP_XMAX_KEYSHR_LOCK),
];
/// PG: XLHL_KEYS_UPDATED, for t_infomask2.
const INFOBIT_KEYS_UPDATED: u8 = 0x10;

/// ctid of a row that went to another partition. PG: src/include/storage/itemptr.h, MovedPartitionsBlockNumber, MovedPartitionsOffsetNumber.
pub(super) const MOVED_PARTITIONS: (BlockNumber, u16) = (BlockNumber::MAX, 0xFFFD);

/// What a record tells of a new tuple's header: t_infomask2, t_infomask, t_hoff. Null bitmap, padding and values follow.
#[derive(Clone, Copy)]
pub(super) struct LoggedHeader {
    infomask2: u16,
    infomask: u16,
    header_len: u8,
}

impl LoggedHeader {
    /// The next bytes of `fields`. PG: xl_heap_header, and the same fields in xl_multi_insert_tuple.
    pub fn read(fields: &mut Fields<'_>) -> Result<Self, RecordError> {
        Ok(LoggedHeader { infomask2: fields.u16()?, infomask: fields.u16()?, header_len: fields.u8()? })
    }

    /// Length of null bitmap and padding.
    pub fn bitmap_len(self) -> Result<usize, RedoError> {
        let len = usize::from(self.header_len).checked_sub(TUPLE_HEADER_LEN);
        len.ok_or_else(|| page_error("header of the new tuple is too short", self.header_len))
    }
}

/// What is said of a tuple that gets another xmax: how xl_heap_delete, xl_heap_update, xl_heap_lock and xl_heap_lock_updated begin.
pub(super) struct XmaxChange {
    pub xmax: TransactionId,
    pub offset_no: u16,
    pub infobits: u8,
    pub flags: u8,
}

impl XmaxChange {
    /// The next bytes of `fields`.
    pub fn read(fields: &mut Fields<'_>) -> Result<Self, RecordError> {
        Ok(XmaxChange { xmax: fields.u32()?, offset_no: fields.u16()?, infobits: fields.u8()?, flags: fields.u8()? })
    }
}

/// Where the tuple of item `offset_no` lies; the fixed part of a header fits in it.
pub(super) fn place(page: &Page, offset_no: u16) -> Result<Range<usize>, RedoError> {
    let header = Header::read(page);
    let found = item(page, offset_no).filter(|item| item.flags == ItemFlags::Normal);
    let found = found.ok_or_else(|| page_error("there is no tuple with this offset number", offset_no))?;
    let is_tuple = |range: &Range<usize>| {
        header.upper <= range.start && range.end <= header.special && TUPLE_HEADER_LEN <= range.len()
    };
    let range = found.range().filter(is_tuple);
    range.ok_or_else(|| page_error("line pointer does not point to a tuple", found.offset))
}

/// Where the values of the tuple at `tuple` lie.
pub(super) fn values(page: &Page, tuple: &Range<usize>) -> Result<Range<usize>, RedoError> {
    let header_len = usize::from(page[tuple.start + T_HOFF]);
    let start = tuple.start + header_len;
    if TUPLE_HEADER_LEN <= header_len && start <= tuple.end {
        return Ok(start..tuple.end);
    }
    Err(page_error("tuple is shorter than its header", header_len))
}

/// Makes a new tuple, item `offset_no`, and returns where what follows the fixed part of its header goes: `rest_len` bytes, yet to be written.
///
/// xmin is the record's transaction, ctid the tuple itself, the command id the first.
/// Errors: the offset number is taken or beyond the next one, the tuple does not fit or is shorter than its header.
pub(super) fn add(
    change: &Change<'_>,
    page: &mut Page,
    offset_no: u16,
    logged: LoggedHeader,
    xmax: TransactionId,
    rest_len: usize,
) -> Result<Range<usize>, RedoError> {
    if logged.bitmap_len()? > rest_len {
        return Err(page_error("new tuple is shorter than its header", logged.header_len));
    }
    let range = edit::add_space(page, TUPLE_HEADER_LEN + rest_len, offset_no, Placement::OverwriteHeap)?;
    let mut header = TupleHeader::at(page, range.start)?;
    header.0.fill(0);
    header.set_xmin(change.record.xid);
    header.set_xmax(xmax);
    header.set_ctid((change.block.block_no, offset_no));
    header.set_infomask2(logged.infomask2);
    header.set_infomask(logged.infomask & !HEAP_COMBOCID);
    header.0[T_HOFF] = logged.header_len;
    Ok(range.start + TUPLE_HEADER_LEN..range.end)
}

/// The fixed part of a tuple's header on the page.
pub(super) struct TupleHeader<'a>(&'a mut [u8; TUPLE_HEADER_LEN]);

impl<'a> TupleHeader<'a> {
    /// That of item `offset_no`.
    pub fn of(page: &'a mut Page, offset_no: u16) -> Result<Self, RedoError> {
        let start = place(page, offset_no)?.start;
        Self::at(page, start)
    }

    /// That of the tuple that starts at `start`.
    pub fn at(page: &'a mut Page, start: usize) -> Result<Self, RedoError> {
        let bytes = page.get_mut(start..).and_then(|bytes| bytes.first_chunk_mut());
        bytes.map(TupleHeader).ok_or_else(|| page_error("tuple reaches beyond the page", start))
    }

    /// Takes away all that is known of xmax, then sets what the record says. PG: fix_infomask_from_infobits and what its callers do before.
    pub fn set_infobits(&mut self, infobits: u8) {
        let set = INFOBITS.iter().filter(|(bit, _)| infobits & bit != 0).fold(0, |mask, (_, of_xmax)| mask | of_xmax);
        self.set_infomask(self.infomask() & !(HEAP_XMAX_BITS | HEAP_MOVED) | set);
        let keys_updated = if infobits & INFOBIT_KEYS_UPDATED != 0 { HEAP_KEYS_UPDATED } else { 0 };
        self.set_infomask2(self.infomask2() & !HEAP_KEYS_UPDATED | keys_updated);
    }

    pub fn set_hot_updated(&mut self, is_hot_updated: bool) {
        let hot_updated = if is_hot_updated { HEAP_HOT_UPDATED } else { 0 };
        self.set_infomask2(self.infomask2() & !HEAP_HOT_UPDATED | hot_updated);
    }

    /// True when xmax only locks the row. PG: HEAP_XMAX_IS_LOCKED_ONLY.
    pub fn is_locked_only(&self) -> bool {
        let infomask = self.infomask();
        infomask & HEAP_XMAX_LOCK_ONLY != 0 || infomask & (HEAP_XMAX_IS_MULTI | HEAP_LOCK_MASK) == HEAP_XMAX_EXCL_LOCK
    }

    /// Redo knows no command ids. PG: HeapTupleHeaderSetCmax with FirstCommandId.
    pub fn clear_command_id(&mut self) {
        self.set_field3(0);
        self.set_infomask(self.infomask() & !HEAP_COMBOCID);
    }

    pub fn set_xmin(&mut self, xmin: TransactionId) {
        self.put_u32(T_XMIN, xmin);
    }

    pub fn set_xmax(&mut self, xmax: TransactionId) {
        self.put_u32(T_XMAX, xmax);
    }

    /// Command id or xvac.
    pub fn set_field3(&mut self, value: u32) {
        self.put_u32(T_FIELD3, value);
    }

    /// Block number, high half first, and offset number.
    pub fn set_ctid(&mut self, (block_no, offset_no): (BlockNumber, u16)) {
        self.put_u16(T_CTID, (block_no >> 16) as u16);
        self.put_u16(T_CTID + 2, (block_no & 0xFFFF) as u16);
        self.put_u16(T_CTID + 4, offset_no);
    }

    pub fn set_infomask(&mut self, infomask: u16) {
        self.put_u16(T_INFOMASK, infomask);
    }

    pub fn set_infomask2(&mut self, infomask2: u16) {
        self.put_u16(T_INFOMASK2, infomask2);
    }

    fn infomask(&self) -> u16 {
        LittleEndian::read_u16(&self.0[T_INFOMASK..])
    }

    fn infomask2(&self) -> u16 {
        LittleEndian::read_u16(&self.0[T_INFOMASK2..])
    }

    fn put_u16(&mut self, at: usize, value: u16) {
        LittleEndian::write_u16(&mut self.0[at..], value);
    }

    fn put_u32(&mut self, at: usize, value: u32) {
        LittleEndian::write_u32(&mut self.0[at..], value);
    }
}

/// Starts with an empty page if the operation says so.
///
/// Errors: the block reference says otherwise. PG: xlogutils.c, XLogReadBufferForRedoExtended, panics then.
pub(super) fn init_page_if_told(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let is_told = change.operation() & INIT_PAGE != 0;
    if is_told != change.block.will_init {
        return Err(change.unknown_operation());
    }
    if is_told {
        edit::init_page(page, 0);
    }
    Ok(())
}

/// Notes that the record's transaction left something to prune, unless an older one did. PG: bufpage.h, PageSetPrunable.
pub(super) fn set_prunable(change: &Change<'_>, page: &mut Page) {
    let (xid, oldest) = (change.record.xid, LittleEndian::read_u32(&page[PD_PRUNE_XID..]));
    if oldest == 0 || xid_precedes(xid, oldest) {
        LittleEndian::write_u32(&mut page[PD_PRUNE_XID..], xid);
    }
}

/// PG: bufpage.h, PageSetAllVisible, PageClearAllVisible.
pub(super) fn set_all_visible(page: &mut Page, is_all_visible: bool) {
    let flags = LittleEndian::read_u16(&page[PD_FLAGS..]) & !PD_ALL_VISIBLE;
    LittleEndian::write_u16(&mut page[PD_FLAGS..], flags | if is_all_visible { PD_ALL_VISIBLE } else { 0 });
}
