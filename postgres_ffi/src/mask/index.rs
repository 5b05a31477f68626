//! Pages of the index access methods.
//!
//! Special areas, offsets from their start (all little endian):
//! - btree (16 bytes): prev u32@0, next u32@4, level u32@8, flags u16@12, cycle id u16@14
//! - hash (16): prev u32@0, next u32@4, bucket u32@8, flags u16@12, page id u16@14
//! - GiST (16): nsn 2 x u32@0, right link u32@8, flags u16@12, page id u16@14
//! - GIN (8): right link u32@0, max offset u16@4, flags u16@6
//! - SP-GiST (8): flags u16@0, redirections u16@2, placeholders u16@4, page id u16@6
//! - BRIN (8): unused u32@0, flags u16@4, page type u16@6
//!
//! PG 15: nbtxlog.c (btree_mask), hash_xlog.c (hash_mask), gistxlog.c (gist_mask), ginxlog.c (gin_mask), spgxlog.c (spg_mask),
//! brin_xlog.c (brin_mask); the same in 17 and 18.

use std::ops::Range;

use byteorder::{ByteOrder, LittleEndian};

use super::{Rule, mask_item_flags, mask_page_content, mask_unused_space};
use crate::page::layout::Header;
use crate::page::{BLCKSZ, PAGE_HEADER_LEN, Page};

/// Flags of a special area of 16 bytes.
pub(crate) const FLAGS_OF_16: usize = BLCKSZ - 4;
/// GIN's flags.
pub(crate) const GIN_FLAGS_AT: usize = BLCKSZ - 2;
/// BRIN's flags.
pub(crate) const BRIN_FLAGS_AT: usize = BLCKSZ - 4;
/// SP-GiST's flags.
pub(crate) const SPGIST_FLAGS_AT: usize = BLCKSZ - 8;
const BTREE_CYCLE_ID_AT: usize = BLCKSZ - 2;
/// BRIN's page type.
pub(crate) const BRIN_TYPE_AT: usize = BLCKSZ - 2;
pub(crate) const GIST_NSN_AT: usize = BLCKSZ - 16;

pub(crate) const BTP_LEAF: u16 = 1 << 0;
const BTP_SPLIT_END: u16 = 1 << 5;
pub(crate) const BTP_HAS_GARBAGE: u16 = 1 << 6;

pub(crate) const LH_OVERFLOW_PAGE: u16 = 1 << 0;
const LH_BUCKET_PAGE: u16 = 1 << 1;
const LH_PAGE_TYPE: u16 = 0x000F;
pub(crate) const LH_PAGE_HAS_DEAD_TUPLES: u16 = 1 << 7;

pub(crate) const GIST_LEAF: u16 = 1 << 0;
pub(crate) const GIST_TUPLES_DELETED: u16 = 1 << 2;
pub(crate) const GIST_FOLLOW_RIGHT: u16 = 1 << 3;
pub(crate) const GIST_HAS_GARBAGE: u16 = 1 << 4;

pub(crate) const GIN_DELETED: u16 = 1 << 2;

const SPGIST_META: u16 = 1 << 0;
/// 8 times (block u32, free bytes i32) behind the magic number. PG: spgist_private.h, SpGistMetaPageData.
const SPGIST_LAST_USED_PAGES: Range<usize> = PAGE_HEADER_LEN + 4..PAGE_HEADER_LEN + 4 + 8 * 8;

pub(crate) const BRIN_META: u16 = 0xF091;
pub(crate) const BRIN_REGULAR: u16 = 0xF093;
const BRIN_EVACUATE_PAGE: u16 = 1 << 0;

/// LP_DEAD on leaves and the garbage flag are hints; the cycle id and SPLIT_END only matter to a vacuum that is running.
pub(super) fn mask_btree(page: &mut Page) {
    mask_unused_space(page);
    if flags_at(page, FLAGS_OF_16) & BTP_LEAF != 0 {
        mask_item_flags(page);
    }
    clear_flags(page, FLAGS_OF_16, BTP_HAS_GARBAGE | BTP_SPLIT_END);
    page[BTREE_CYCLE_ID_AT..].fill(0);
}

/// An unused page keeps whatever it held; LP_DEAD in buckets and the flag that tells of it are hints.
pub(super) fn mask_hash(page: &mut Page) {
    mask_unused_space(page);
    match flags_at(page, FLAGS_OF_16) & LH_PAGE_TYPE {
        // This wipes the special area too, as in PostgreSQL.
        0 => mask_page_content(page),
        LH_BUCKET_PAGE | LH_OVERFLOW_PAGE => mask_item_flags(page),
        _ => {}
    }
    clear_flags(page, FLAGS_OF_16, LH_PAGE_HAS_DEAD_TUPLES);
}

/// LP_DEAD on leaves and the garbage flag are hints. While a record is being written NSN and FOLLOW_RIGHT run ahead or behind,
/// so PostgreSQL's rule hides them; on disk they are those of the last record. There, the flag for deleted tuples is masked: redo of most minor
/// releases sets it where the primary does not, and nothing reads it (PG 18.6: gistxlog.c, gistRedoDeleteRecord; gist.c, gistprunepage).
pub(super) fn mask_gist(page: &mut Page, rule: Rule) {
    mask_unused_space(page);
    if rule == Rule::Replay {
        page[GIST_NSN_AT..GIST_NSN_AT + 8].fill(0);
        clear_flags(page, FLAGS_OF_16, GIST_FOLLOW_RIGHT);
    } else {
        clear_flags(page, FLAGS_OF_16, GIST_TUPLES_DELETED);
    }
    if flags_at(page, FLAGS_OF_16) & GIST_LEAF != 0 {
        mask_item_flags(page);
    }
    clear_flags(page, FLAGS_OF_16, GIST_HAS_GARBAGE);
}

/// A deleted page keeps whatever it held; the hole is told by `pd_lower` where it is set at all.
pub(super) fn mask_gin(page: &mut Page) {
    if flags_at(page, GIN_FLAGS_AT) & GIN_DELETED != 0 {
        mask_page_content(page);
    } else if Header::read(page).lower > PAGE_HEADER_LEN {
        mask_unused_space(page);
    }
}

/// The hole. On disk the meta page's list of pages with room is ahead of the WAL: it is written without any (spgutils.c, SpGistUpdateMetaPage).
pub(super) fn mask_spgist(page: &mut Page, rule: Rule) {
    mask_unused_space(page);
    if rule == Rule::DataDirectory && flags_at(page, SPGIST_FLAGS_AT) & SPGIST_META != 0 {
        page[SPGIST_LAST_USED_PAGES].fill(0);
    }
}

/// The hole of regular pages, and of meta pages that set `pd_lower`; a revmap page is an array up to its end.
pub(super) fn mask_brin(page: &mut Page) {
    let has_hole = match flags_at(page, BRIN_TYPE_AT) {
        BRIN_REGULAR => true,
        BRIN_META => Header::read(page).lower > PAGE_HEADER_LEN,
        _ => false,
    };
    if has_hole {
        mask_unused_space(page);
    }
    // Means something only to the backend that is moving tuples away.
    clear_flags(page, BRIN_FLAGS_AT, BRIN_EVACUATE_PAGE);
}

fn flags_at(page: &Page, offset: usize) -> u16 {
    LittleEndian::read_u16(&page[offset..])
}

fn clear_flags(page: &mut Page, offset: usize, flags: u16) {
    let kept = flags_at(page, offset) & !flags;
    LittleEndian::write_u16(&mut page[offset..offset + 2], kept);
}
