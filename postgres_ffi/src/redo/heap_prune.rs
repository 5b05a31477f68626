//! Pruning and freezing of heap pages: line pointers redirected, dead or unused, gaps closed, xmax and flags of tuples overwritten.
//!
//! | | main data | data of block 0 |
//! |---|---|---|
//! | 14-16 PRUNE | xid u32, nredirected u16, ndead u16 | redirected (pairs), dead, unused up to the end |
//! | 14-16 VACUUM | nunused u16 | unused |
//! | 14-15 FREEZE_PAGE | xid u32, ntuples u16 | xl_heap_freeze_tuple, one per tuple |
//! | 16 FREEZE_PAGE | xid u32, nplans u16 | plans, then offset numbers of each |
//! | 17-18 PRUNE_* | reason u8, flags u8 | plans, redirected, dead, unused, each with its count if the flags say so, then offset numbers of the plans |
//!
//! What PostgreSQL merely asserts of the line pointers (a redirected one leads to a heap-only tuple, and so on) is not looked at here: release
//! builds go on as well, and the bytes they make are defined.
//!
//! PG 14-17: src/backend/access/heap/heapam.c, PG 18: heapam_xlog.c; all: pruneheap.c (heap_page_prune_execute), src/include/access/heapam_xlog.h.

use super::heap_tuple::TupleHeader;
use super::{Change, RedoError, Stamp, page_error};
use crate::page::Page;
use crate::page::edit;
use crate::page::layout::{Header, ItemFlags};
use crate::records::RecordError;
use crate::records::fields::Fields;
use crate::records::heap::{FREEZE_PLAN_LEN, prune_flag};
use crate::{PgVersion, TransactionId};

/// PG: heapam_xlog.h, XLH_FREEZE_XVAC and XLH_INVALID_XVAC.
const FREEZE_XVAC: u8 = 0x02;
const INVALID_XVAC: u8 = 0x04;
/// PG: transam.h, FrozenTransactionId.
const FROZEN_XID: TransactionId = 2;
/// PG 14-15: heapam_xlog.h, xl_heap_freeze_tuple with its padding.
const FREEZE_TUPLE_LEN: usize = 12;

/// Line pointers that change, as lists of offset numbers.
#[derive(Default)]
struct Pruned<'a> {
    /// Pairs: from, to.
    redirected: &'a [u8],
    dead: &'a [u8],
    unused: &'a [u8],
}

impl Pruned<'_> {
    fn is_empty(&self) -> bool {
        self.redirected.is_empty() && self.dead.is_empty() && self.unused.is_empty()
    }

    /// PG: heap_page_prune_execute.
    fn set_items(&self, page: &mut Page) -> Result<(), RedoError> {
        let count = Header::read(page).item_count();
        let known = |offset_no: u16| {
            let is_known = 0 < offset_no && offset_no <= count;
            if is_known {
                Ok(offset_no)
            } else {
                Err(page_error("there is no item with this offset number", offset_no))
            }
        };
        for [from_low, from_high, to_low, to_high] in self.redirected.as_chunks().0 {
            let from = known(u16::from_le_bytes([*from_low, *from_high]))?;
            let to = known(u16::from_le_bytes([*to_low, *to_high]))?;
            edit::put_item_id(page, from, to.into(), ItemFlags::Redirect, 0);
        }
        for offset_no in offset_nos(self.dead) {
            edit::put_item_id(page, known(offset_no)?, 0, ItemFlags::Dead, 0);
        }
        for offset_no in offset_nos(self.unused) {
            edit::put_item_id(page, known(offset_no)?, 0, ItemFlags::Unused, 0);
        }
        Ok(())
    }
}

/// 14-16.
pub(super) fn prune(change: &Change<'_>, page: &mut Page) -> Result<Stamp, RedoError> {
    let mut body = Fields::new("xl_heap_prune", change.main_data());
    let (_horizon_xid, redirected_count, dead_count) = (body.u32()?, body.u16()?, body.u16()?);
    let mut data = Fields::new("xl_heap_prune", change.block_data());
    let redirected = data.items(redirected_count.into(), 4)?;
    let dead = data.items(dead_count.into(), 2)?;
    let unused = data.items(data.rest().len() / 2, 2)?;
    check_all_read(&data)?;
    Pruned { redirected, dead, unused }.set_items(page)?;
    edit::repair_fragmentation(page, change.version())?;
    Ok(Stamp::Record)
}

/// 14-16: line pointers that were dead already; no tuple moves.
pub(super) fn vacuum(change: &Change<'_>, page: &mut Page) -> Result<Stamp, RedoError> {
    let unused_count = Fields::new("xl_heap_vacuum", change.main_data()).u16()?;
    let unused = Fields::new("xl_heap_vacuum", change.block_data()).items(unused_count.into(), 2)?;
    Pruned { unused, ..Pruned::default() }.set_items(page)?;
    edit::truncate_items(page)?;
    Ok(Stamp::Record)
}

/// 14-16.
pub(super) fn freeze_page(change: &Change<'_>, page: &mut Page) -> Result<Stamp, RedoError> {
    let mut body = Fields::new("xl_heap_freeze_page", change.main_data());
    let (_horizon_xid, count) = (body.u32()?, usize::from(body.u16()?));
    let mut data = Fields::new("xl_heap_freeze_page", change.block_data());
    if change.version() >= PgVersion::V16 {
        let plans = data.items(count, FREEZE_PLAN_LEN)?;
        freeze_by_plans(page, plans, &mut data)?;
        return Ok(Stamp::Record);
    }
    for tuple in data.items(count, FREEZE_TUPLE_LEN)?.chunks_exact(FREEZE_TUPLE_LEN) {
        let mut fields = Fields::new("xl_heap_freeze_tuple", tuple);
        let (xmax, offset_no) = (fields.u32()?, fields.u16()?);
        Plan::read_rest(xmax, &mut fields)?.freeze(page, offset_no)?;
    }
    Ok(Stamp::Record)
}

/// 17-18.
pub(super) fn prune_and_freeze(change: &Change<'_>, page: &mut Page) -> Result<Stamp, RedoError> {
    let mut body = Fields::new("xl_heap_prune", change.main_data());
    let (_reason, flags) = (body.u8()?, body.u8()?);
    let mut data = Fields::new("xlhp_*", change.block_data());
    let mut plans = &[][..];
    if flags & prune_flag::HAS_FREEZE_PLANS != 0 {
        let (count, _padding) = (data.u16()?, data.u16()?);
        plans = data.items(count.into(), FREEZE_PLAN_LEN)?;
    }
    let mut items = |flag, item_len| {
        let count = if flags & flag != 0 { data.u16()? } else { 0 };
        data.items(count.into(), item_len)
    };
    let pruned = Pruned {
        redirected: items(prune_flag::HAS_REDIRECTIONS, 4)?,
        dead: items(prune_flag::HAS_DEAD_ITEMS, 2)?,
        unused: items(prune_flag::HAS_NOW_UNUSED_ITEMS, 2)?,
    };
    if !pruned.is_empty() {
        pruned.set_items(page)?;
        if flags & prune_flag::CLEANUP_LOCK != 0 {
            edit::repair_fragmentation(page, change.version())?;
        } else {
            edit::truncate_items(page)?;
        }
    }
    freeze_by_plans(page, plans, &mut data)?;
    Ok(Stamp::Record)
}

/// How tuples are frozen.
struct Plan {
    xmax: TransactionId,
    infomask2: u16,
    infomask: u16,
    flags: u8,
}

impl Plan {
    fn read_rest(xmax: TransactionId, fields: &mut Fields<'_>) -> Result<Self, RecordError> {
        Ok(Plan { xmax, infomask2: fields.u16()?, infomask: fields.u16()?, flags: fields.u8()? })
    }

    /// PG: heap_execute_freeze_tuple.
    fn freeze(&self, page: &mut Page, offset_no: u16) -> Result<(), RedoError> {
        let mut tuple = TupleHeader::of(page, offset_no)?;
        tuple.set_xmax(self.xmax);
        if self.flags & FREEZE_XVAC != 0 {
            tuple.set_field3(FROZEN_XID);
        }
        if self.flags & INVALID_XVAC != 0 {
            tuple.set_field3(0);
        }
        tuple.set_infomask(self.infomask);
        tuple.set_infomask2(self.infomask2);
        Ok(())
    }
}

/// Each plan is for the next few of the offset numbers that are the rest of `data`.
fn freeze_by_plans(page: &mut Page, plans: &[u8], data: &mut Fields<'_>) -> Result<(), RedoError> {
    for plan in plans.chunks_exact(FREEZE_PLAN_LEN) {
        let mut fields = Fields::new("freeze plan", plan);
        let xmax = fields.u32()?;
        let plan = Plan::read_rest(xmax, &mut fields)?;
        let (_padding, tuple_count) = (fields.u8()?, fields.u16()?);
        for offset_no in offset_nos(data.items(tuple_count.into(), 2)?) {
            plan.freeze(page, offset_no)?;
        }
    }
    check_all_read(data)
}

fn check_all_read(data: &Fields<'_>) -> Result<(), RedoError> {
    if data.rest().is_empty() { Ok(()) } else { Err(page_error("record holds more than it says", data.rest().len())) }
}

fn offset_nos(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.as_chunks().0.iter().map(|offset_no| u16::from_le_bytes(*offset_no))
}
