//! Cuts a record down to what redo of one of its blocks needs: what a version of that page is stored as.
//!
//! - The result is a complete record that PostgreSQL's DecodeXLogRecord of the same version takes, with a CRC of zero.
//! - Kept: the fixed header (length and CRC apart), every block reference with its flags, main data, the target's own data and its image if
//!   redo applies it. Dropped: data and images of the other blocks, images that are only there to compare with, origin and top-level transaction.
//! - **Never:** something is dropped that redo of the target reads. The exceptions below say where redo looks at another block.
//!
//! Redo routines ask for each block whether it needs redo and read the block's data only then; other blocks are presented to them as done already.
//! Two things break this rule. A block with WILL_INIT is never "done": redo makes it anew without asking, and where its data is missing it reads
//! through a null pointer. And some routines insist on an image. Found by reading every use of XLogRecGetBlockData, XLogInitBufferForRedo and
//! BLK_RESTORED in the redo routines of 15.18, 17.11 and 18.6 (the routines of 14 and 16 have the same shape):
//!
//! | record | of another block it reads | where (PG 15) |
//! |---|---|---|
//! | Heap INSERT+INIT, UPDATE+INIT, Heap2 MULTI_INSERT+INIT | data of block 0, the new page | heapam.c, heap_xlog_insert, heap_xlog_update, heap_xlog_multi_insert |
//! | Btree INSERT_META, NEWROOT | data of block 2, the metapage | nbtxlog.c, _bt_restore_meta |
//! | Btree UNLINK_PAGE_META | data of block 4, the metapage | nbtxlog.c, _bt_restore_meta |
//! | Hash ADD_OVFL_PAGE | data of block 0, the new overflow page | hash_xlog.c, hash_xlog_add_ovfl_page |
//! | Gist PAGE_SPLIT | data of all pages of the split | gistxlog.c, gistRedoPageSplitRecord |
//! | Gin SPLIT | images of all pages of the split | ginxlog.c, ginRedoSplit |
//! | BRIN INSERT+INIT, UPDATE+INIT | data of block 0, the new page | brin_xlog.c, brin_xlog_insert_update |
//! | records of extensions | unknown, all is kept | |
//!
//! Btree SPLIT makes its right page (block 1) anew too, but takes missing data as no tuples (_bt_restore_page with length 0).

use super::record::{
    DecodedBlock, DecodedRecord, FORK_MASK, HAS_DATA, HAS_IMAGE, ID_DATA_LONG, ID_DATA_SHORT, RECORD_HEADER_LEN,
    SAME_REL, WILL_INIT,
};
use super::{rmgr, rmgr::MIN_CUSTOM_ID};
use crate::{ForkNumber, RelTag};

/// Operations with an exception in the table above. The numbers are the same in 14 to 18.
/// PG: src/include/access/heapam_xlog.h, nbtxlog.h, hash_xlog.h, gistxlog.h, ginxlog.h, brin_xlog.h.
mod operation {
    pub(super) const HEAP_INSERT_INIT: u8 = 0x80;
    pub(super) const HEAP_UPDATE_INIT: u8 = 0xA0;
    pub(super) const HEAP2_MULTI_INSERT_INIT: u8 = 0xD0;
    pub(super) const BTREE_INSERT_META: u8 = 0x20;
    pub(super) const BTREE_UNLINK_PAGE_META: u8 = 0x90;
    pub(super) const BTREE_NEWROOT: u8 = 0xA0;
    pub(super) const HASH_ADD_OVFL_PAGE: u8 = 0x30;
    pub(super) const HASH_SPLIT_ALLOCATE_PAGE: u8 = 0x40;
    pub(super) const HASH_SPLIT_COMPLETE: u8 = 0x60;
    pub(super) const GIST_PAGE_UPDATE: u8 = 0x00;
    pub(super) const GIST_PAGE_SPLIT: u8 = 0x30;
    pub(super) const GIN_SPLIT: u8 = 0x30;
    pub(super) const BRIN_INSERT_INIT: u8 = 0x90;
    pub(super) const BRIN_UPDATE_INIT: u8 = 0xA0;
}

/// Appends to `out` the record cut down for its block `block_id`.
///
/// A `block_id` that the record does not have gives a record with references only.
pub fn trim_for_block(record: &DecodedRecord, block_id: u8, out: &mut Vec<u8>) {
    let start = out.len();
    if is_trimmed_already(record, block_id) {
        out.extend_from_slice(&record.raw);
    } else {
        rebuild(record, block_id, out);
    }
    clear_crc(out, start);
}

/// True when redo changes the page even after putting an image from the record in its place: then the image alone is *not* the page as of
/// this record, and the version must be the record with the image in it.
///
/// - Gist: the page's NSN is set to the record's own LSN, which was not known when the image was taken. PG 15: gistxlog.c, gistRedoClearFollowRight.
/// - Hash: the bucket's flags are changed after the image was taken. PG 15: hash_xlog.c, hash_xlog_split_allocate_page, hash_xlog_split_complete.
pub fn redo_goes_on_after_image(record: &DecodedRecord, block_id: u8) -> bool {
    matches!(
        (record.rmid, record.operation(), block_id),
        (rmgr::GIST, operation::GIST_PAGE_UPDATE, 1)
            | (rmgr::GIST, operation::GIST_PAGE_SPLIT, 0)
            | (rmgr::HASH, operation::HASH_SPLIT_ALLOCATE_PAGE, 0)
            | (rmgr::HASH, operation::HASH_SPLIT_COMPLETE, 0 | 1)
    )
}

/// What of a block goes into the record cut down.
#[derive(Clone, Copy)]
struct Kept {
    data: bool,
    image: bool,
}

fn kept(record: &DecodedRecord, target_id: u8, block: &DecodedBlock) -> Kept {
    let applied = block.image.as_ref().is_some_and(|image| image.apply);
    if block.block_id == target_id {
        return Kept { data: block.has_data, image: applied };
    }
    let (data, image) = read_of_another_block(record, block.block_id);
    Kept { data: data && block.has_data, image: image && applied }
}

/// Whether redo of some block of this record reads (data, image) of `other_id`, another one. The table in the module's head.
fn read_of_another_block(record: &DecodedRecord, other_id: u8) -> (bool, bool) {
    match (record.rmid, record.operation(), other_id) {
        (rmgr::HEAP, operation::HEAP_INSERT_INIT | operation::HEAP_UPDATE_INIT, 0)
        | (rmgr::HEAP2, operation::HEAP2_MULTI_INSERT_INIT, 0)
        | (rmgr::BTREE, operation::BTREE_INSERT_META | operation::BTREE_NEWROOT, 2)
        | (rmgr::BTREE, operation::BTREE_UNLINK_PAGE_META, 4)
        | (rmgr::HASH, operation::HASH_ADD_OVFL_PAGE, 0)
        | (rmgr::GIST, operation::GIST_PAGE_SPLIT, _)
        | (rmgr::BRIN, operation::BRIN_INSERT_INIT | operation::BRIN_UPDATE_INIT, 0) => (true, false),
        (rmgr::GIN, operation::GIN_SPLIT, _) => (false, true),
        (MIN_CUSTOM_ID..=u8::MAX, _, _) => (true, true),
        _ => (false, false),
    }
}

/// The record of most page changes: one block, no image, nothing to leave out.
#[inline]
fn is_trimmed_already(record: &DecodedRecord, block_id: u8) -> bool {
    matches!(&record.blocks[..], [block] if block.block_id == block_id && block.image.is_none())
        && record.origin_id.is_none()
        && record.top_xid.is_none()
}

fn rebuild(record: &DecodedRecord, target_id: u8, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(record.raw.get(..RECORD_HEADER_LEN).unwrap_or_default());
    let mut rel_before = None;
    for block in &record.blocks {
        put_block_header(record, block, kept(record, target_id, block), rel_before, out);
        rel_before = Some(block.rel);
    }
    let main_data = record.main_data();
    put_main_data_header(main_data.len(), out);
    for block in &record.blocks {
        let kept = kept(record, target_id, block);
        if let Some(image) = block.image.as_ref().filter(|_| kept.image) {
            out.extend_from_slice(record.image_bytes(image));
        }
        if kept.data {
            out.extend_from_slice(record.block_data(block));
        }
    }
    out.extend_from_slice(main_data);
    // Never longer than the record it comes from, whose length is a u32.
    let total_len = (out.len() - start) as u32;
    if let Some(field) = out.get_mut(start..start + 4) {
        field.copy_from_slice(&total_len.to_le_bytes());
    }
}

fn put_block_header(
    record: &DecodedRecord,
    block: &DecodedBlock,
    kept: Kept,
    rel_before: Option<RelTag>,
    out: &mut Vec<u8>,
) {
    let image = block.image.as_ref().filter(|_| kept.image);
    let is_same_rel = rel_before == Some(block.rel);
    let data = if kept.data { record.block_data(block) } else { &[] };
    let mut flags = fork_number(block.fork) & FORK_MASK;
    flags |= if image.is_some() { HAS_IMAGE } else { 0 };
    flags |= if data.is_empty() { 0 } else { HAS_DATA };
    flags |= if block.will_init { WILL_INIT } else { 0 };
    flags |= if is_same_rel { SAME_REL } else { 0 };
    out.extend_from_slice(&[block.block_id, flags]);
    out.extend_from_slice(&(data.len() as u16).to_le_bytes()); // It was read from a u16.
    if let Some(image) = image {
        image.put_header(record.image_bytes(image).len() as u16, out); // So was this.
    }
    if !is_same_rel {
        for oid in [block.rel.spc_oid, block.rel.db_oid, block.rel.rel_number] {
            out.extend_from_slice(&oid.to_le_bytes());
        }
    }
    out.extend_from_slice(&block.block_no.to_le_bytes());
}

fn fork_number(fork: ForkNumber) -> u8 {
    fork as u8
}

/// PG 15: src/backend/access/transam/xloginsert.c, XLogRecordAssemble: short up to 255 bytes, none for none.
fn put_main_data_header(len: usize, out: &mut Vec<u8>) {
    match u8::try_from(len) {
        Ok(0) => {}
        Ok(len) => out.extend_from_slice(&[ID_DATA_SHORT, len]),
        Err(_) => {
            out.push(ID_DATA_LONG);
            out.extend_from_slice(&(len as u32).to_le_bytes());
        }
    }
}

#[inline]
fn clear_crc(out: &mut [u8], start: usize) {
    if let Some(crc) = out.get_mut(start + super::record::CRC_OFFSET..start + RECORD_HEADER_LEN) {
        crc.fill(0);
    }
}

#[cfg(test)]
mod tests;
