//! Hash indexes: buckets and their overflow pages, bitmaps of free overflow pages. The metapage is in [`meta`].
//!
//! - A page whose special area is not that of a hash index is refused: PostgreSQL follows `pd_special`.
//! - Three operations name the primary page of a bucket (block 0) only to lock it. It stays as it is, LSN included.
//!
//! Special area, see also `mask/index.rs`: prev u32@0, next u32@4, bucket u32@8, flags u16@12, page id u16@14.
//!
//! PG 14-18: src/backend/access/hash/hash_xlog.c (hash_redo), hashpage.c (_hash_initbuf), hashovfl.c (_hash_initbitmapbuffer);
//! src/include/access/hash_xlog.h, hash.h. Different between versions: `VACUUM_ONE_PAGE` (a field got smaller in 16), `SQUEEZE_PAGE`
//! (from 17 a page that only gets locked keeps its LSN).

mod meta;

use byteorder::{ByteOrder, LittleEndian};

use super::{Change, RedoError, Stamp, index_tuple, page_error};
use crate::mask::HASH_PAGE_ID;
use crate::mask::index::{FLAGS_OF_16, LH_OVERFLOW_PAGE, LH_PAGE_HAS_DEAD_TUPLES};
use crate::page::edit::{self, Placement, aligned};
use crate::page::layout::Header;
use crate::page::{BLCKSZ, PAGE_HEADER_LEN, PD_LOWER, Page, put_u16, put_u32};
use crate::records::fields::Fields;
use crate::{BlockNumber, PgVersion};

const INIT_META_PAGE: u8 = 0x00;
const INIT_BITMAP_PAGE: u8 = 0x10;
const INSERT: u8 = 0x20;
const ADD_OVFL_PAGE: u8 = 0x30;
const SPLIT_ALLOCATE_PAGE: u8 = 0x40;
const SPLIT_PAGE: u8 = 0x50;
const SPLIT_COMPLETE: u8 = 0x60;
const MOVE_PAGE_CONTENTS: u8 = 0x70;
const SQUEEZE_PAGE: u8 = 0x80;
const DELETE: u8 = 0x90;
const SPLIT_CLEANUP: u8 = 0xA0;
const UPDATE_META_PAGE: u8 = 0xB0;
const VACUUM_ONE_PAGE: u8 = 0xC0;

/// HashPageOpaqueData.
const SPECIAL_LEN: usize = 16;
const SPECIAL_AT: usize = BLCKSZ - SPECIAL_LEN;
/// Of an overflow page. A bucket's primary page has the highest bucket number here, as of its last split.
const PREV_AT: usize = SPECIAL_AT;
const NEXT_AT: usize = SPECIAL_AT + 4;
const BUCKET_AT: usize = SPECIAL_AT + 8;
const PAGE_ID_AT: usize = SPECIAL_AT + 14;
/// PG: block.h, InvalidBlockNumber; hash.h, InvalidBucket.
const NONE: u32 = u32::MAX;
/// More flags beside those of `mask/index.rs`. PG: hash.h.
const LH_UNUSED_PAGE: u16 = 0;
const LH_BITMAP_PAGE: u16 = 1 << 2;
const LH_META_PAGE: u16 = 1 << 3;
const LH_BUCKET_NEEDS_SPLIT_CLEANUP: u16 = 1 << 6;

pub(super) fn redo(change: &Change<'_>, page: &mut Page) -> Result<Stamp, RedoError> {
    match (change.operation(), change.block_id()) {
        (INIT_META_PAGE, 0) => meta::init(change, page)?,
        (INIT_BITMAP_PAGE, 0) | (ADD_OVFL_PAGE, 3) => init_bitmap(change, page)?,
        (INIT_BITMAP_PAGE, 1) => meta::add_first_bitmap(page)?,
        (INSERT, 0) => insert(change, page)?,
        (INSERT, 1) => meta::add_to_tuple_count(page, 1.0)?,
        (ADD_OVFL_PAGE, 0) => init_overflow_page(change, page)?,
        (ADD_OVFL_PAGE, 1) => put_special_u32(page, NEXT_AT, change.block_no_of(0)?)?,
        (ADD_OVFL_PAGE, 2) => set_bitmap_bit(change, page, true)?,
        (ADD_OVFL_PAGE, 4) => meta::add_overflow_page(change, page)?,
        (SPLIT_ALLOCATE_PAGE, 0) => begin_split_of_bucket(change, page)?,
        (SPLIT_ALLOCATE_PAGE, 1) => init_new_bucket(change, page)?,
        (SPLIT_ALLOCATE_PAGE, 2) => meta::add_bucket(change, page)?,
        // The whole page comes as an image, and then nobody gets here.
        (SPLIT_PAGE, 0) => return Err(page_error("split of a bucket without the image of the page", 0)),
        (SPLIT_COMPLETE, 0 | 1) => end_split(change, page)?,
        (MOVE_PAGE_CONTENTS | SQUEEZE_PAGE | DELETE, 0) => return Ok(Stamp::Keep),
        (MOVE_PAGE_CONTENTS, 1) => add_moved_tuples(change, page)?,
        (MOVE_PAGE_CONTENTS, 2) => delete_offsets(page, change.block_data())?,
        (SQUEEZE_PAGE, 1..=6) => return squeeze(change, page),
        (DELETE, 1) => delete(change, page)?,
        (SPLIT_CLEANUP, 0) => clear_flags(page, LH_BUCKET_NEEDS_SPLIT_CLEANUP)?,
        (UPDATE_META_PAGE, 0) => meta::set_tuple_count(change, page)?,
        (VACUUM_ONE_PAGE, 0) => delete_dead(change, page)?,
        (VACUUM_ONE_PAGE, 1) => meta::add_to_tuple_count(page, -deleted_count(change)?)?,
        _ => return Err(change.unknown_operation()),
    }
    Ok(Stamp::Record)
}

/// xl_hash_insert: offset number u16. Data of the block: the tuple.
fn insert(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let offset_no = Fields::new("xl_hash_insert", change.main_data()).u16()?;
    edit::add_item(page, change.block_data(), offset_no, Placement::Insert)?;
    Ok(())
}

/// xl_hash_init_bitmap_page and the start of xl_hash_add_ovfl_page: length of the bitmap in bytes u16. All pages start as used.
fn init_bitmap(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let bitmap_len = Fields::new("xl_hash_init_bitmap_page", change.main_data()).u16()?;
    let end = PAGE_HEADER_LEN + usize::from(bitmap_len);
    if end > SPECIAL_AT {
        return Err(page_error("bitmap does not fit on the page", bitmap_len));
    }
    init_page(change, page, Special { prev: NONE, bucket: NONE, flags: LH_BITMAP_PAGE })?;
    page[PAGE_HEADER_LEN..end].fill(0xFF);
    set_pd_lower(page, end);
    Ok(())
}

/// Data of the block: bit number u32.
fn set_bitmap_bit(change: &Change<'_>, page: &mut Page, is_used: bool) -> Result<(), RedoError> {
    let bit_no = Fields::new("bit number", change.block_data()).u32()?;
    check_special(page)?;
    // The bits are in words of 32, which makes no difference when all is little endian.
    let byte = page[PAGE_HEADER_LEN..SPECIAL_AT].get_mut((bit_no / 8) as usize);
    let byte = byte.ok_or_else(|| page_error("bit lies beyond the bitmap", bit_no))?;
    let bit = 1 << (bit_no % 8);
    *byte = if is_used { *byte | bit } else { *byte & !bit };
    Ok(())
}

/// Data of the block: bucket u32. The page follows that of block 1.
fn init_overflow_page(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let bucket = Fields::new("bucket", change.block_data()).u32()?;
    init_page(change, page, Special { prev: change.block_no_of(1)?, bucket, flags: LH_OVERFLOW_PAGE })
}

/// xl_hash_split_allocate_page.
struct SplitAllocatePage {
    new_bucket: u32,
    old_bucket_flags: u16,
    new_bucket_flags: u16,
    /// What changes on the metapage, see `wal/describe/hash.rs`.
    meta_flags: u8,
}

impl SplitAllocatePage {
    fn of(change: &Change<'_>) -> Result<Self, RedoError> {
        let mut fields = Fields::new("xl_hash_split_allocate_page", change.main_data());
        Ok(SplitAllocatePage {
            new_bucket: fields.u32()?,
            old_bucket_flags: fields.u16()?,
            new_bucket_flags: fields.u16()?,
            meta_flags: fields.u8()?,
        })
    }
}

/// Done on top of an image too: that one is from before the flags changed.
fn begin_split_of_bucket(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let body = SplitAllocatePage::of(change)?;
    set_flags(page, body.old_bucket_flags)?;
    put_special_u32(page, PREV_AT, body.new_bucket)
}

fn init_new_bucket(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let body = SplitAllocatePage::of(change)?;
    init_page(change, page, Special { prev: body.new_bucket, bucket: body.new_bucket, flags: body.new_bucket_flags })
}

/// xl_hash_split_complete: flags of the old (block 0) and the new (block 1) bucket, u16 each. Done on top of an image too.
fn end_split(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let mut fields = Fields::new("xl_hash_split_complete", change.main_data());
    let (old_bucket_flags, new_bucket_flags) = (fields.u16()?, fields.u16()?);
    set_flags(page, if change.block_id() == 0 { old_bucket_flags } else { new_bucket_flags })
}

/// xl_hash_move_page_contents: number of tuples u16.
fn add_moved_tuples(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let tuple_count = Fields::new("xl_hash_move_page_contents", change.main_data()).u16()?;
    add_tuples(page, change.block_data(), tuple_count)
}

/// `data`: that many offset numbers u16, then as many tuples, each padded to the alignment and stored with the padding.
fn add_tuples(page: &mut Page, data: &[u8], tuple_count: u16) -> Result<(), RedoError> {
    if tuple_count == 0 {
        return Ok(()); // Whatever the data is.
    }
    let mut fields = Fields::new("moved hash tuples", data);
    let offset_nos = fields.items(usize::from(tuple_count), 2)?;
    for offset_no in offset_nos.chunks_exact(2).map(LittleEndian::read_u16) {
        let first = index_tuple::split_first(fields.rest());
        let (tuple, _) = first.ok_or_else(|| fields.impossible("t_info", fields.rest().len() as i64))?;
        edit::add_item(page, fields.take(aligned(tuple.len()))?, offset_no, Placement::Insert)?;
    }
    if !fields.rest().is_empty() {
        return Err(fields.impossible("ntups", tuple_count.into()).into());
    }
    Ok(())
}

/// xl_hash_squeeze_page.
struct SqueezePage {
    /// Neighbours of the page that is freed.
    prev: BlockNumber,
    next: BlockNumber,
    /// Tuples that move to the page of block 1.
    tuple_count: u16,
    /// Block 1 is the page before the one that is freed.
    is_write_page_prev: bool,
}

impl SqueezePage {
    fn of(change: &Change<'_>) -> Result<Self, RedoError> {
        let mut fields = Fields::new("xl_hash_squeeze_page", change.main_data());
        let (prev, next, tuple_count) = (fields.u32()?, fields.u32()?, fields.u16()?);
        let _is_write_page_primary = fields.u8()?;
        Ok(SqueezePage { prev, next, tuple_count, is_write_page_prev: fields.flag()? })
    }
}

/// The last tuples of an overflow page (block 2) move to an earlier page of the bucket (block 1) and the overflow page is freed: it leaves the chain
/// (blocks 3 and 4), the bitmap (block 5) and perhaps the metapage (block 6) tell that it is free.
fn squeeze(change: &Change<'_>, page: &mut Page) -> Result<Stamp, RedoError> {
    let body = SqueezePage::of(change)?;
    match change.block_id() {
        1 => return squeeze_write_page(change, page, &body),
        2 => put_empty_page(page, Special { prev: NONE, bucket: NONE, flags: LH_UNUSED_PAGE }),
        // Then block 1 was that page.
        3 if body.is_write_page_prev => return Ok(Stamp::Keep),
        3 => put_special_u32(page, NEXT_AT, body.next)?,
        4 => put_special_u32(page, PREV_AT, body.prev)?,
        5 => set_bitmap_bit(change, page, false)?,
        6 => meta::set_first_free(change, page)?,
        _ => return Err(change.unknown_operation()),
    }
    Ok(Stamp::Record)
}

fn squeeze_write_page(change: &Change<'_>, page: &mut Page, body: &SqueezePage) -> Result<Stamp, RedoError> {
    add_tuples(page, change.block_data(), body.tuple_count)?;
    if body.is_write_page_prev {
        put_special_u32(page, NEXT_AT, body.next)?;
    }
    let is_changed = body.tuple_count > 0 || body.is_write_page_prev;
    // Otherwise the record names the page only to have it locked. Up to 16 it was stamped all the same.
    Ok(if is_changed || change.version() <= PgVersion::V16 { Stamp::Record } else { Stamp::Keep })
}

/// xl_hash_delete: clear_dead_marking u8, is_primary_bucket_page u8. Data of the block: offset numbers.
fn delete(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let is_dead_flag_cleared = Fields::new("xl_hash_delete", change.main_data()).flag()?;
    delete_offsets(page, change.block_data())?;
    if is_dead_flag_cleared {
        clear_flags(page, LH_PAGE_HAS_DEAD_TUPLES)?;
    }
    Ok(())
}

fn delete_dead(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    delete_offsets(page, deleted_offsets(change)?)?;
    clear_flags(page, LH_PAGE_HAS_DEAD_TUPLES)
}

/// xl_hash_vacuum_one_page: horizon u32, count (i32 up to 15; u16 and a flag u8, padded, from 16), offset numbers u16.
fn deleted_offsets<'a>(change: &Change<'a>) -> Result<&'a [u8], RedoError> {
    let mut fields = Fields::new("xl_hash_vacuum_one_page", change.main_data());
    let _horizon = fields.u32()?;
    let count = match change.version() {
        PgVersion::V14 | PgVersion::V15 => fields.count()?,
        PgVersion::V16 | PgVersion::V17 | PgVersion::V18 => {
            let count = fields.u16()?;
            let _is_catalog_and_padding = fields.u16()?;
            count.into()
        }
    };
    Ok(fields.items(count, 2)?)
}

fn deleted_count(change: &Change<'_>) -> Result<f64, RedoError> {
    Ok((deleted_offsets(change)?.len() / 2) as f64)
}

fn delete_offsets(page: &mut Page, offset_nos: &[u8]) -> Result<(), RedoError> {
    edit::delete_items(page, offset_nos.chunks_exact(2).map(LittleEndian::read_u16))?;
    Ok(())
}

/// What is not the same in all special areas of new pages.
struct Special {
    prev: u32,
    bucket: u32,
    flags: u16,
}

/// The page of a block that redo makes anew. PG: hashpage.c, _hash_initbuf.
fn init_page(change: &Change<'_>, page: &mut Page, special: Special) -> Result<(), RedoError> {
    change.check_will_init()?;
    put_empty_page(page, special);
    Ok(())
}

fn put_empty_page(page: &mut Page, special: Special) {
    edit::init_page(page, SPECIAL_LEN);
    put_u32(page, PREV_AT, special.prev);
    put_u32(page, NEXT_AT, NONE);
    put_u32(page, BUCKET_AT, special.bucket);
    put_u16(page, FLAGS_OF_16, special.flags);
    put_u16(page, PAGE_ID_AT, HASH_PAGE_ID);
}

fn check_special(page: &Page) -> Result<(), RedoError> {
    match Header::read(page).special {
        SPECIAL_AT => Ok(()),
        special => Err(page_error("special area is not that of a hash index", special)),
    }
}

fn put_special_u32(page: &mut Page, at: usize, value: u32) -> Result<(), RedoError> {
    check_special(page)?;
    put_u32(page, at, value);
    Ok(())
}

fn set_flags(page: &mut Page, flags: u16) -> Result<(), RedoError> {
    check_special(page)?;
    put_u16(page, FLAGS_OF_16, flags);
    Ok(())
}

fn clear_flags(page: &mut Page, flags: u16) -> Result<(), RedoError> {
    let kept = LittleEndian::read_u16(&page[FLAGS_OF_16..]) & !flags;
    set_flags(page, kept)
}

fn set_pd_lower(page: &mut Page, lower: usize) {
    put_u16(page, PD_LOWER, lower as u16);
}

const _: () = assert!(FLAGS_OF_16 == SPECIAL_AT + 12);

#[cfg(test)]
mod tests;
