//! The metapage of a hash index, block 0: how many buckets there are, and how many overflow pages before each group of them.
//!
//! - A splitpoint (place in `spares`) or a bitmap number (place in `mapp`) outside of its array is refused.
//! - Numbers that only count wrap around, as in PostgreSQL.
//!
//! HashMetaPageData, behind the page header:
//! ```text
//! magic u32@0, version u32@4, ntuples f64@8, ffactor u16@16, bsize u16@18, bmsize u16@20, bmshift u16@22, maxbucket u32@24, highmask u32@28,
//! lowmask u32@32, ovflpoint u32@36, firstfree u32@40, nmaps u32@44, procid u32@48, spares 98 x u32@52, mapp 1024 x u32@444, padding@4540
//! ```
//! PG 14-18: src/include/access/hash.h; src/backend/access/hash/hashpage.c (_hash_init_metabuffer), hashutil.c (_hash_spareindex,
//! _hash_get_totalbuckets), hash_xlog.c.

use byteorder::{ByteOrder, LittleEndian};

use super::{
    Change, LH_META_PAGE, NONE, RedoError, SPECIAL_AT, Special, SplitAllocatePage, check_special, init_page,
    page_error, put_u16, put_u32, set_pd_lower,
};
use crate::page::{PAGE_HEADER_LEN, Page};
use crate::records::fields::Fields;
use crate::wal::describe::hash::{MASKS_UPDATED, SPLIT_POINT_CHANGED};

const MAGIC: u32 = 0x0644_0640;
const VERSION: u32 = 4;
/// Buckets that an index may start with.
const INITIAL_BUCKETS_MAX: u32 = 1 << 30;
/// Up to this many doublings, each has one splitpoint. PG: HASH_SPLITPOINT_GROUPS_WITH_ONE_PHASE.
const GROUPS_OF_ONE_PHASE: u32 = 10;
/// Each later doubling has 4 of them. PG: HASH_SPLITPOINT_PHASE_BITS.
const PHASE_BITS: u32 = 2;
const PHASE_MASK: u32 = (1 << PHASE_BITS) - 1;
/// PG: HASH_MAX_SPLITPOINTS.
const SPLITPOINTS_MAX: usize = 98;
/// PG: HASH_MAX_BITMAPS.
const BITMAPS_MAX: usize = 1024;

/// Room for a bitmap on its page. PG: HashGetMaxBitmapSize.
const BITMAP_ROOM: u16 = (SPECIAL_AT - PAGE_HEADER_LEN) as u16;
/// The largest power of two therein, and its logarithm.
const BITMAP_LEN_LOG2: u16 = BITMAP_ROOM.ilog2() as u16;
const BITS_PER_BYTE_LOG2: u16 = 3;

/// Where the fields stand in the page.
mod at {
    use super::{BITMAPS_MAX, PAGE_HEADER_LEN, SPLITPOINTS_MAX};

    pub const MAGIC: usize = PAGE_HEADER_LEN;
    pub const VERSION: usize = MAGIC + 4;
    pub const TUPLE_COUNT: usize = MAGIC + 8;
    pub const FILL_FACTOR: usize = MAGIC + 16;
    pub const BITMAP_ROOM: usize = MAGIC + 18;
    pub const BITMAP_LEN: usize = MAGIC + 20;
    pub const BITMAP_SHIFT: usize = MAGIC + 22;
    pub const MAX_BUCKET: usize = MAGIC + 24;
    pub const HIGH_MASK: usize = MAGIC + 28;
    pub const LOW_MASK: usize = MAGIC + 32;
    pub const SPLITPOINT: usize = MAGIC + 36;
    pub const FIRST_FREE: usize = MAGIC + 40;
    pub const BITMAP_COUNT: usize = MAGIC + 44;
    pub const FUNCTION: usize = MAGIC + 48;
    pub const SPARES: usize = MAGIC + 52;
    pub const BITMAPS: usize = SPARES + 4 * SPLITPOINTS_MAX;
    /// The struct is padded to 8 bytes for the sake of `ntuples`.
    pub const END: usize = PAGE_HEADER_LEN + (BITMAPS - PAGE_HEADER_LEN + 4 * BITMAPS_MAX).next_multiple_of(8);
}

/// xl_hash_init_meta_page: expected number of tuples f64, hash function u32, fill factor (tuples per bucket) u16.
pub(super) fn init(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let mut fields = Fields::new("xl_hash_init_meta_page", change.main_data());
    let (tuple_count, function, fill_factor) = (f64::from_bits(fields.u64()?), fields.u32()?, fields.u16()?);
    let bucket_count = initial_bucket_count(tuple_count, fill_factor);
    let splitpoint = splitpoint_of(bucket_count);
    let high_mask = (bucket_count + 1).next_power_of_two() - 1;

    init_page(change, page, Special { prev: NONE, bucket: NONE, flags: LH_META_PAGE })?;
    put_u32(page, at::MAGIC, MAGIC);
    put_u32(page, at::VERSION, VERSION);
    put_u16(page, at::FILL_FACTOR, fill_factor);
    put_u16(page, at::BITMAP_ROOM, BITMAP_ROOM);
    put_u16(page, at::BITMAP_LEN, 1 << BITMAP_LEN_LOG2);
    put_u16(page, at::BITMAP_SHIFT, BITMAP_LEN_LOG2 + BITS_PER_BYTE_LOG2);
    put_u32(page, at::MAX_BUCKET, bucket_count - 1);
    put_u32(page, at::HIGH_MASK, high_mask);
    put_u32(page, at::LOW_MASK, high_mask >> 1);
    put_u32(page, at::SPLITPOINT, splitpoint);
    put_u32(page, at::FUNCTION, function);
    // The first bitmap, which is an overflow page as well.
    put_u32(page, spare_at(splitpoint)?, 1);
    set_pd_lower(page, at::END);
    Ok(())
}

/// Two at least, otherwise the number of buckets that there are at the end of a splitpoint.
fn initial_bucket_count(tuple_count: f64, fill_factor: u16) -> u32 {
    let wanted = tuple_count / f64::from(fill_factor);
    if wanted >= f64::from(INITIAL_BUCKETS_MAX) {
        INITIAL_BUCKETS_MAX
    } else if wanted > 2.0 {
        bucket_count_at(splitpoint_of(wanted as u32)) // The fraction is cut off.
    } else {
        2
    }
}

/// The splitpoint at which there are `bucket_count` buckets. PG: _hash_spareindex.
///
/// Requires: `bucket_count` is 1 to 2^30.
fn splitpoint_of(bucket_count: u32) -> u32 {
    let group = bucket_count.next_power_of_two().ilog2();
    if group < GROUPS_OF_ONE_PHASE {
        return group;
    }
    let phase = ((bucket_count - 1) >> (group - (PHASE_BITS + 1))) & PHASE_MASK;
    GROUPS_OF_ONE_PHASE + ((group - GROUPS_OF_ONE_PHASE) << PHASE_BITS) + phase
}

/// How many buckets there are at the end of a splitpoint. PG: _hash_get_totalbuckets.
///
/// Requires: `splitpoint` comes from [`splitpoint_of`].
fn bucket_count_at(splitpoint: u32) -> u32 {
    let Some(phase) = splitpoint.checked_sub(GROUPS_OF_ONE_PHASE) else {
        return 1 << splitpoint;
    };
    let before_group = 1 << (GROUPS_OF_ONE_PHASE + (phase >> PHASE_BITS) - 1);
    before_group + (before_group >> PHASE_BITS) * ((phase & PHASE_MASK) + 1)
}

/// The first bitmap is in the block behind the first buckets, of which the first is in block 1.
pub(super) fn add_first_bitmap(page: &mut Page) -> Result<(), RedoError> {
    check_special(page)?;
    let block_no = get_u32(page, at::MAX_BUCKET).wrapping_add(2);
    add_bitmap(page, block_no)
}

/// Data of the block: first free overflow page u32. xl_hash_add_ovfl_page: length of a bitmap u16, bmpage_found u8: a freed page was used again,
/// otherwise the file grew. Block 3 is a new bitmap, if there is one, for which the file grew too.
pub(super) fn add_overflow_page(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let mut fields = Fields::new("xl_hash_add_ovfl_page", change.main_data());
    let _bitmap_len = fields.u16()?;
    let is_used_again = fields.flag()?;
    set_first_free(change, page)?;
    if is_used_again {
        return Ok(());
    }
    let mut grown_by = 1;
    if let Some(bitmap) = change.record.block(3) {
        add_bitmap(page, bitmap.block_no)?;
        grown_by += 1;
    }
    let spare_at = spare_at(get_u32(page, at::SPLITPOINT))?;
    add_to_u32(page, spare_at, grown_by);
    Ok(())
}

/// Data of the block: first free overflow page u32.
pub(super) fn set_first_free(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    check_special(page)?;
    put_u32(page, at::FIRST_FREE, Fields::new("first free overflow page", change.block_data()).u32()?);
    Ok(())
}

/// Data of the block: low mask u32 and high mask u32 when they change, splitpoint u32 and overflow pages before it u32 when it changes.
pub(super) fn add_bucket(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let body = SplitAllocatePage::of(change)?;
    let mut fields = Fields::new("metapage at a split", change.block_data());
    check_special(page)?;
    put_u32(page, at::MAX_BUCKET, body.new_bucket);
    if body.meta_flags & MASKS_UPDATED != 0 {
        put_u32(page, at::LOW_MASK, fields.u32()?);
        put_u32(page, at::HIGH_MASK, fields.u32()?);
    }
    if body.meta_flags & SPLIT_POINT_CHANGED != 0 {
        let splitpoint = fields.u32()?;
        put_u32(page, spare_at(splitpoint)?, fields.u32()?);
        put_u32(page, at::SPLITPOINT, splitpoint);
    }
    Ok(())
}

/// xl_hash_update_meta_page: number of tuples f64.
pub(super) fn set_tuple_count(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    check_special(page)?;
    let tuple_count = Fields::new("xl_hash_update_meta_page", change.main_data()).take(8)?;
    page[at::TUPLE_COUNT..at::TUPLE_COUNT + 8].copy_from_slice(tuple_count);
    Ok(())
}

pub(super) fn add_to_tuple_count(page: &mut Page, added: f64) -> Result<(), RedoError> {
    check_special(page)?;
    let place = &mut page[at::TUPLE_COUNT..at::TUPLE_COUNT + 8];
    LittleEndian::write_f64(place, LittleEndian::read_f64(place) + added);
    Ok(())
}

fn add_bitmap(page: &mut Page, block_no: u32) -> Result<(), RedoError> {
    let bitmap_count = get_u32(page, at::BITMAP_COUNT) as usize;
    if bitmap_count >= BITMAPS_MAX {
        return Err(page_error("metapage has no room for a bitmap", bitmap_count));
    }
    put_u32(page, at::BITMAPS + 4 * bitmap_count, block_no);
    add_to_u32(page, at::BITMAP_COUNT, 1);
    Ok(())
}

/// Where the number of overflow pages before a splitpoint stands.
fn spare_at(splitpoint: u32) -> Result<usize, RedoError> {
    let index = splitpoint as usize;
    if index >= SPLITPOINTS_MAX {
        return Err(page_error("there is no such splitpoint", splitpoint));
    }
    Ok(at::SPARES + 4 * index)
}

fn get_u32(page: &Page, at: usize) -> u32 {
    LittleEndian::read_u32(&page[at..])
}

fn add_to_u32(page: &mut Page, at: usize, added: u32) {
    put_u32(page, at, get_u32(page, at).wrapping_add(added));
}

const _: () = assert!(at::SPARES == PAGE_HEADER_LEN + 52);
const _: () = assert!(at::BITMAPS == PAGE_HEADER_LEN + 444);
const _: () = assert!(at::END == PAGE_HEADER_LEN + 4544);
const _: () = assert!(at::END <= SPECIAL_AT);

#[cfg(test)]
mod tests {
    //! The arithmetic against numbers that PostgreSQL's functions give, and numbers that point out of the arrays.

    use super::*;
    use crate::redo::made_up::empty_page;

    #[test]
    fn splitpoints_are_those_of_postgresql() {
        for (bucket_count, splitpoint, at_its_end) in [
            (1, 0, 1),
            (2, 1, 2),
            (3, 2, 4),
            (5, 3, 8),
            (512, 9, 512),
            (513, 10, 640),
            (640, 10, 640),
            (641, 11, 768),
            (1024, 13, 1024),
            (1025, 14, 1280),
            (1281, 15, 1536),
            (100_000, 40, 114_688),
            (1 << 20, 53, 1 << 20),
            ((1 << 29) + 1, 90, 671_088_640),
            (1 << 30, 93, 1 << 30),
        ] {
            assert_eq!(splitpoint_of(bucket_count), splitpoint, "{bucket_count}");
            assert_eq!(bucket_count_at(splitpoint), at_its_end, "{bucket_count}");
        }
        for (tuple_count, fill_factor, bucket_count) in [
            (0.0, 307, 2),
            (-1.0, 307, 2),
            (0.0, 0, 2), // Not a number.
            (2.9 * 307.0, 307, 2),
            (3.0 * 307.0, 307, 4),
            (400_000.0, 307, 1536),
            (1e300, 307, 1 << 30),
            (1.0, 0, 1 << 30),
        ] {
            assert_eq!(initial_bucket_count(tuple_count, fill_factor), bucket_count, "{tuple_count}");
        }
    }

    #[test]
    fn arrays_end_where_they_end() {
        assert_eq!(spare_at(97), Ok(at::BITMAPS - 4));
        assert!(spare_at(98).is_err());
        let page = &mut empty_page(16);
        for (bitmap_count, is_good) in [(1023, true), (1024, false), (u32::MAX, false)] {
            put_u32(page, at::BITMAP_COUNT, bitmap_count);
            assert_eq!(add_bitmap(page, 7).is_ok(), is_good, "{bitmap_count}");
        }
        assert_eq!(get_u32(page, at::END - 8), 7);
    }
}
