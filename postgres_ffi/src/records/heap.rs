//! Heap records: which visibility map bits they clear without always saying so in a block reference.
//!
//! PG: src/include/access/heapam_xlog.h; redo in heapam.c (14-17) and heapam_xlog.c (18).
//!
//! At first no version registered the map's page. Late minor releases (seen in 17.11 and 18.6, not in 15.18) register it when its
//! bits were really set, with the block ids in [`VmClear::vm_block_ids`]; records without the reference keep their old meaning. So both
//! forms are understood in every version.

use super::fields::{Fields, RecordError};
use crate::wal::{DecodedBlock, DecodedRecord, rmgr};

/// Bits of `info` that name the operation. PG: XLOG_HEAP_OPMASK.
pub const OPERATION_MASK: u8 = 0x70;
/// Bit of `info`: redo starts with an empty page. PG: XLOG_HEAP_INIT_PAGE.
pub const INIT_PAGE: u8 = 0x80;

/// Operations of the Heap resource manager. PG: XLOG_HEAP_*.
pub mod heap_operation {
    #![allow(missing_docs)] // The names are PostgreSQL's.
    pub const INSERT: u8 = 0x00;
    pub const DELETE: u8 = 0x10;
    pub const UPDATE: u8 = 0x20;
    pub const TRUNCATE: u8 = 0x30;
    pub const HOT_UPDATE: u8 = 0x40;
    pub const CONFIRM: u8 = 0x50;
    pub const LOCK: u8 = 0x60;
    pub const INPLACE: u8 = 0x70;
}

/// Operations of the Heap2 resource manager that matter by name. PG: XLOG_HEAP2_*.
pub mod heap2_operation {
    #![allow(missing_docs)] // The names are PostgreSQL's.
    pub const REWRITE: u8 = 0x00;
    // Up to 16.
    pub const PRUNE: u8 = 0x10;
    pub const VACUUM: u8 = 0x20;
    pub const FREEZE_PAGE: u8 = 0x30;
    // From 17; the three have one body.
    pub const PRUNE_ON_ACCESS: u8 = 0x10;
    pub const PRUNE_VACUUM_SCAN: u8 = 0x20;
    pub const PRUNE_VACUUM_CLEANUP: u8 = 0x30;
    pub const VISIBLE: u8 = 0x40;
    pub const MULTI_INSERT: u8 = 0x50;
    pub const LOCK_UPDATED: u8 = 0x60;
    pub const NEW_CID: u8 = 0x70;
}

/// What a record of pruning and freezing holds. PG 17: heapam_xlog.h, XLHP_*.
pub(crate) mod prune_flag {
    pub const IS_CATALOG_REL: u8 = 1 << 1;
    pub const CLEANUP_LOCK: u8 = 1 << 2;
    pub const HAS_CONFLICT_HORIZON: u8 = 1 << 3;
    pub const HAS_FREEZE_PLANS: u8 = 1 << 4;
    pub const HAS_REDIRECTIONS: u8 = 1 << 5;
    pub const HAS_DEAD_ITEMS: u8 = 1 << 6;
    pub const HAS_NOW_UNUSED_ITEMS: u8 = 1 << 7;
}

/// Length of xl_heap_freeze_plan (16) and xlhp_freeze_plan (from 17).
pub(crate) const FREEZE_PLAN_LEN: usize = 12;

/// Both bits of a heap block. PG: visibilitymapdefs.h, VISIBILITYMAP_VALID_BITS.
pub const VM_VALID_BITS: u8 = 0x03;
/// The upper bit. PG: visibilitymapdefs.h, VISIBILITYMAP_ALL_FROZEN.
pub const VM_ALL_FROZEN: u8 = 0x02;

/// XLH_INSERT_ALL_VISIBLE_CLEARED, XLH_DELETE_ALL_VISIBLE_CLEARED, XLH_UPDATE_OLD_ALL_VISIBLE_CLEARED, XLH_LOCK_ALL_FROZEN_CLEARED
pub(crate) const CLEARED: u8 = 0x01;
/// XLH_UPDATE_NEW_ALL_VISIBLE_CLEARED
pub(crate) const UPDATE_NEW_CLEARED: u8 = 0x02;

/// Where `flags` stands: in xl_heap_insert, in xl_heap_multi_insert, and in the others alike.
const INSERT_FLAGS_AT: usize = 2;
const MULTI_INSERT_FLAGS_AT: usize = 0;
const OTHER_FLAGS_AT: usize = 7;

/// The heap block of Heap2 VISIBLE; block 0 is the map's. PG 14-18: heapam_xlog.h, xl_heap_visible.
pub(crate) const VISIBLE_HEAP_BLOCK_ID: u8 = 1;

/// The heap block that a record says is all-visible; `None` for other records.
pub fn visible_heap_block(record: &DecodedRecord) -> Option<&DecodedBlock> {
    let is_visible = record.rmid == rmgr::HEAP2 && record.operation() & OPERATION_MASK == heap2_operation::VISIBLE;
    record.block(VISIBLE_HEAP_BLOCK_ID).filter(|_| is_visible)
}

/// Visibility map bits that a record clears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmClear {
    /// The bits: [`VM_VALID_BITS`] or [`VM_ALL_FROZEN`].
    pub bits: u8,
    /// Of the heap block with id 0 (for updates: where the new tuple went).
    pub new_block: bool,
    /// Of the heap block where the old tuple was: id 1, or 0 when the record has no heap block 1. Only updates.
    pub old_block: bool,
    /// True for updates: the map's pages are block ids 2 (new) and 3 (old). False: id 1.
    pub is_update: bool,
}

impl VmClear {
    /// What a record of Heap or Heap2 clears, `None` if nothing. `info` is the record's.
    #[inline]
    pub fn of_record(rmid: u8, info: u8, main_data: &[u8]) -> Result<Option<Self>, RecordError> {
        use {heap_operation as heap, heap2_operation as heap2};
        let operation = info & OPERATION_MASK;
        let (flags_at, bits, is_update) = match (rmid, operation) {
            (rmgr::HEAP, heap::INSERT) => (INSERT_FLAGS_AT, VM_VALID_BITS, false),
            (rmgr::HEAP, heap::DELETE) => (OTHER_FLAGS_AT, VM_VALID_BITS, false),
            (rmgr::HEAP, heap::UPDATE | heap::HOT_UPDATE) => (OTHER_FLAGS_AT, VM_VALID_BITS, true),
            (rmgr::HEAP, heap::LOCK) | (rmgr::HEAP2, heap2::LOCK_UPDATED) => (OTHER_FLAGS_AT, VM_ALL_FROZEN, false),
            (rmgr::HEAP2, heap2::MULTI_INSERT) => (MULTI_INSERT_FLAGS_AT, VM_VALID_BITS, false),
            _ => return Ok(None),
        };
        let mut fields = Fields::new("xl_heap_*", main_data);
        fields.take(flags_at)?;
        let flags = fields.u8()?;
        let (new_block, old_block) = if is_update {
            (flags & UPDATE_NEW_CLEARED != 0, flags & CLEARED != 0)
        } else {
            (flags & CLEARED != 0, false)
        };
        Ok((new_block || old_block).then_some(VmClear { bits, new_block, old_block, is_update }))
    }

    /// The block ids under which the map's pages stand when they are registered.
    pub fn vm_block_ids(&self) -> &'static [u8] {
        if self.is_update { &[2, 3] } else { &[1] }
    }
}

#[cfg(test)]
mod tests {
    //! The flag byte of each record, set and not set.

    use super::*;

    fn check(rmid: u8, operation: u8, flags_at: usize, flags: u8, expect: Option<(u8, bool, bool)>) {
        let mut body = vec![0xFF; flags_at + 1];
        body[flags_at] = flags;
        for info in [operation, operation | 0x80] {
            let found = VmClear::of_record(rmid, info, &body).unwrap();
            assert_eq!(found.map(|vm| (vm.bits, vm.new_block, vm.old_block)), expect, "{rmid} {operation:#x}");
        }
        if [INSERT_FLAGS_AT, OTHER_FLAGS_AT].contains(&flags_at) && operation != 0x30 {
            assert!(VmClear::of_record(rmid, operation, &body[..flags_at]).is_err());
        }
    }

    #[test]
    fn flags_say_which_bits_go() {
        use {heap_operation as heap, heap2_operation as heap2};
        check(rmgr::HEAP, heap::INSERT, 2, 0x01, Some((3, true, false)));
        check(rmgr::HEAP, heap::INSERT, 2, 0xFE, None);
        check(rmgr::HEAP, heap::DELETE, 7, 0x01, Some((3, true, false)));
        check(rmgr::HEAP, heap::UPDATE, 7, 0x01, Some((3, false, true)));
        check(rmgr::HEAP, heap::UPDATE, 7, 0x02, Some((3, true, false)));
        check(rmgr::HEAP, heap::HOT_UPDATE, 7, 0x03, Some((3, true, true)));
        check(rmgr::HEAP, heap::LOCK, 7, 0x01, Some((2, true, false)));
        check(rmgr::HEAP2, heap2::LOCK_UPDATED, 7, 0x01, Some((2, true, false)));
        check(rmgr::HEAP2, heap2::MULTI_INSERT, 0, 0x01, Some((3, true, false)));
        check(rmgr::HEAP2, heap2::MULTI_INSERT, 0, 0x20, None);
    }

    #[test]
    fn other_records_clear_nothing() {
        assert_eq!(VmClear::of_record(rmgr::HEAP2, heap2_operation::VISIBLE, &[]), Ok(None));
        assert_eq!(VmClear::of_record(rmgr::HEAP, heap_operation::INPLACE, &[]), Ok(None));
        assert_eq!(VmClear::of_record(rmgr::BTREE, 0, &[]), Ok(None));
    }
}
