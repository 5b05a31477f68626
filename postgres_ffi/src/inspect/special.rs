//! Special areas and meta pages.
//!
//! The layouts of the special areas stand in `mask/index.rs`; those of meta pages here, beside their tables.

use byteorder::{ByteOrder, LittleEndian};
use serde::Serialize;

use super::fields::Fields;
use super::fields::Layout;
use super::fields::Width::*;
use super::index::TupleId;
use crate::mask::PageKind;
use crate::mask::index::{BRIN_FLAGS_AT, FLAGS_OF_16, GIN_FLAGS_AT, SPGIST_FLAGS_AT};
use crate::mask::sequence;
use crate::page::layout::Header;
use crate::page::{BLCKSZ, PAGE_HEADER_LEN, Page};

/// The special area of an index page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Special {
    /// Names of the flags that are set, without their prefixes.
    pub flags: Vec<&'static str>,
    /// Neighbours, level and so on.
    #[serde(flatten)]
    pub fields: Fields,
}

type FlagNames = &'static [(u16, &'static str)];

const BTREE: Layout = &[
    ("prev", BLCKSZ - 16, U32),
    ("next", BLCKSZ - 12, U32),
    ("level", BLCKSZ - 8, U32),
    ("cycle_id", BLCKSZ - 2, U16),
];
const BTREE_FLAGS: FlagNames = &[
    (1 << 0, "LEAF"),
    (1 << 1, "ROOT"),
    (1 << 2, "DELETED"),
    (1 << 3, "META"),
    (1 << 4, "HALF_DEAD"),
    (1 << 5, "SPLIT_END"),
    (1 << 6, "HAS_GARBAGE"),
    (1 << 7, "INCOMPLETE_SPLIT"),
    (1 << 8, "HAS_FULLXID"),
];
const HASH: Layout = &[("prev", BLCKSZ - 16, U32), ("next", BLCKSZ - 12, U32), ("bucket", BLCKSZ - 8, U32)];
const HASH_FLAGS: FlagNames = &[
    (1 << 0, "OVERFLOW"),
    (1 << 1, "BUCKET"),
    (1 << 2, "BITMAP"),
    (1 << 3, "META"),
    (1 << 4, "BEING_POPULATED"),
    (1 << 5, "BEING_SPLIT"),
    (1 << 6, "NEEDS_SPLIT_CLEANUP"),
    (1 << 7, "HAS_DEAD_TUPLES"),
];
const GIST: Layout = &[("nsn_high", BLCKSZ - 16, U32), ("nsn_low", BLCKSZ - 12, U32), ("right_link", BLCKSZ - 8, U32)];
const GIST_FLAGS: FlagNames = &[
    (1 << 0, "LEAF"),
    (1 << 1, "DELETED"),
    (1 << 2, "TUPLES_DELETED"),
    (1 << 3, "FOLLOW_RIGHT"),
    (1 << 4, "HAS_GARBAGE"),
];
const GIN: Layout = &[("right_link", BLCKSZ - 8, U32), ("max_offset", BLCKSZ - 4, U16)];
const GIN_DATA: u16 = 1 << 0;
const GIN_LEAF: u16 = 1 << 1;
const GIN_META: u16 = 1 << 3;
const GIN_COMPRESSED: u16 = 1 << 7;
const GIN_FLAGS: FlagNames = &[
    (GIN_DATA, "DATA"),
    (GIN_LEAF, "LEAF"),
    (1 << 2, "DELETED"),
    (GIN_META, "META"),
    (1 << 4, "LIST"),
    (1 << 5, "LIST_FULLROW"),
    (1 << 6, "INCOMPLETE_SPLIT"),
    (GIN_COMPRESSED, "COMPRESSED"),
];
const SPGIST: Layout = &[("redirections", BLCKSZ - 6, U16), ("placeholders", BLCKSZ - 4, U16)];
const SPGIST_META: u16 = 1 << 0;
const SPGIST_LEAF: u16 = 1 << 2;
const SPGIST_FLAGS: FlagNames = &[(SPGIST_META, "META"), (1 << 1, "DELETED"), (SPGIST_LEAF, "LEAF"), (1 << 3, "NULLS")];
const BRIN: Layout = &[];
const BRIN_FLAGS: FlagNames = &[(1 << 0, "EVACUATE_PAGE")];
pub(crate) const BTP_META: u16 = 1 << 3;
const LH_BITMAP_OR_META: u16 = 1 << 2 | 1 << 3;
const LH_META: u16 = 1 << 3;

/// The special area; `None` for kinds without one.
pub(super) fn decode(page: &Page, kind: PageKind) -> Option<Special> {
    let (layout, flags_at, names) = match kind {
        PageKind::Btree => (BTREE, FLAGS_OF_16, BTREE_FLAGS),
        PageKind::Hash => (HASH, FLAGS_OF_16, HASH_FLAGS),
        PageKind::Gist => (GIST, FLAGS_OF_16, GIST_FLAGS),
        PageKind::Gin => (GIN, GIN_FLAGS_AT, GIN_FLAGS),
        PageKind::Spgist => (SPGIST, SPGIST_FLAGS_AT, SPGIST_FLAGS),
        PageKind::Brin => (BRIN, BRIN_FLAGS_AT, BRIN_FLAGS),
        _ => return None,
    };
    let word = LittleEndian::read_u16(&page[flags_at..]);
    let mut flags: Vec<_> = names.iter().filter(|(bit, _)| word & bit != 0).map(|(_, name)| *name).collect();
    if kind == PageKind::Brin {
        flags.push(brin_type(page));
    }
    Some(Special { flags, fields: Fields::read(page, layout) })
}

fn brin_type(page: &Page) -> &'static str {
    match LittleEndian::read_u16(&page[BLCKSZ - 2..]) {
        0xF091 => "META",
        0xF092 => "REVMAP",
        _ => "REGULAR",
    }
}

/// True when the page has line pointers.
pub(super) fn has_items(page: &Page, kind: PageKind) -> bool {
    let flags = |offset: usize| LittleEndian::read_u16(&page[offset..]);
    match kind {
        PageKind::New | PageKind::VisibilityMap | PageKind::FreeSpaceMap => false,
        PageKind::Btree => flags(FLAGS_OF_16) & BTP_META == 0,
        PageKind::Hash => flags(FLAGS_OF_16) & LH_BITMAP_OR_META == 0,
        PageKind::Gin => flags(GIN_FLAGS_AT) & (GIN_DATA | GIN_META) == 0,
        PageKind::Spgist => flags(SPGIST_FLAGS_AT) & SPGIST_META == 0,
        PageKind::Brin => brin_type(page) == "REGULAR",
        PageKind::Heap | PageKind::Gist | PageKind::Sequence | PageKind::Generic => true,
    }
}

/// True for a leaf page of SP-GiST.
pub(super) fn is_spgist_leaf(page: &Page) -> bool {
    LittleEndian::read_u16(&page[SPGIST_FLAGS_AT..]) & SPGIST_LEAF != 0
}

// PG: nbtree.h, BTMetaPageData.
const BTREE_META_PAGE: Layout = &[
    ("magic", 0, U32),
    ("version", 4, U32),
    ("root", 8, U32),
    ("level", 12, U32),
    ("fast_root", 16, U32),
    ("fast_level", 20, U32),
    ("last_cleanup_deleted_pages", 24, U32),
    ("all_equal_image", 40, U8),
];
// PG: hash.h, HashMetaPageData.
const HASH_META_PAGE: Layout = &[
    ("magic", 0, U32),
    ("version", 4, U32),
    ("tuples", 8, F64),
    ("fill_factor", 16, U16),
    ("max_bucket", 24, U32),
    ("high_mask", 28, U32),
    ("low_mask", 32, U32),
    ("overflow_point", 36, U32),
    ("first_free", 40, U32),
    ("bitmap_pages", 44, U32),
    ("hash_function", 48, U32),
];
// PG: ginblock.h, GinMetaPageData.
const GIN_META_PAGE: Layout = &[
    ("pending_head", 0, U32),
    ("pending_tail", 4, U32),
    ("tail_free_bytes", 8, U32),
    ("pending_pages", 12, U32),
    ("pending_tuples", 16, I64),
    ("total_pages", 24, U32),
    ("entry_pages", 28, U32),
    ("data_pages", 32, U32),
    ("entries", 40, I64),
    ("version", 48, U32),
];
// PG: spgist_private.h, SpGistMetaPageData.
const SPGIST_META_PAGE: Layout = &[
    ("magic", 0, U32),
    ("last_inner_page", 4, U32),
    ("last_inner_free_bytes", 8, U32),
    ("last_leaf_page", 36, U32),
    ("last_leaf_free_bytes", 40, U32),
];
// PG: brin_page.h, BrinMetaPageData.
const BRIN_META_PAGE: Layout =
    &[("magic", 0, U32), ("version", 4, U32), ("pages_per_range", 8, U32), ("last_revmap_page", 12, U32)];
// PG: sequence.h, FormData_pg_sequence_data.
const SEQUENCE: Layout = &[("last_value", 0, I64), ("log_count", 8, I64), ("is_called", 16, U8)];

/// What the page holds instead of tuples.
pub(super) fn contents(page: &Page, kind: PageKind) -> Option<Fields> {
    let flags = |offset: usize| LittleEndian::read_u16(&page[offset..]);
    let layout = match kind {
        PageKind::Btree if flags(FLAGS_OF_16) & BTP_META != 0 => BTREE_META_PAGE,
        PageKind::Hash if flags(FLAGS_OF_16) & LH_META != 0 => HASH_META_PAGE,
        PageKind::Gin if flags(GIN_FLAGS_AT) & GIN_META != 0 => GIN_META_PAGE,
        PageKind::Gin if flags(GIN_FLAGS_AT) & GIN_DATA != 0 => return Some(gin_data(page, flags(GIN_FLAGS_AT))),
        PageKind::Spgist if flags(SPGIST_FLAGS_AT) & SPGIST_META != 0 => SPGIST_META_PAGE,
        PageKind::Brin if brin_type(page) == "META" => BRIN_META_PAGE,
        PageKind::Brin if brin_type(page) == "REVMAP" => return Some(brin_revmap(page)),
        PageKind::Sequence => return sequence::data_range(page).map(|range| Fields::read(&page[range], SEQUENCE)),
        _ => return None,
    };
    Some(Fields::read(&page[PAGE_HEADER_LEN..], layout))
}

/// A posting tree page: right bound (6 bytes, padded to 8), then child pointers of 10 bytes, or compressed lists of
/// (first tid 6 bytes, u16 bytes, that many bytes padded to 2). PG: ginblock.h, PostingItem, GinPostingList, GinDataLeafPageGetPostingList.
fn gin_data(page: &Page, flags: u16) -> Fields {
    const LISTS_START: usize = PAGE_HEADER_LEN + 8;
    const LIST_HEADER_LEN: usize = 8;
    let bound = TupleId::decode(&page[PAGE_HEADER_LEN..]);
    let mut fields = vec![
        ("right_bound_block", bound.map_or(0, |tid| i64::from(tid.block_no))),
        ("right_bound_offset", bound.map_or(0, |tid| i64::from(tid.offset_no))),
    ];
    if flags & GIN_LEAF == 0 {
        fields.push(("children", i64::from(LittleEndian::read_u16(&page[BLCKSZ - 4..]))));
    } else if flags & GIN_COMPRESSED != 0 {
        let mut rest = page.get(LISTS_START..Header::read(page).lower.min(BLCKSZ)).unwrap_or_default();
        let (mut lists, mut tids) = (0, 0);
        while let Some(header) = rest.get(..LIST_HEADER_LEN) {
            let len = usize::from(LittleEndian::read_u16(&header[6..]));
            let Some(list) = rest.get(LIST_HEADER_LEN..LIST_HEADER_LEN + len) else { break };
            lists += 1;
            tids += 1 + count_varbytes(list);
            rest = rest.get(LIST_HEADER_LEN + len.next_multiple_of(2)..).unwrap_or_default();
        }
        fields.extend([("posting_lists", lists), ("tids", tids)]);
    }
    Fields(fields)
}

/// Numbers of 7 bits per byte, the high bit says that more follow; the seventh byte is always the last. PG: ginpostinglist.c, decode_varbyte.
fn count_varbytes(bytes: &[u8]) -> i64 {
    let (mut count, mut run) = (0, 0);
    for byte in bytes {
        run += 1;
        if byte & 0x80 == 0 || run == 7 {
            count += 1;
            run = 0;
        }
    }
    count
}

/// An array of tids of 6 bytes, one for each range of heap blocks.
fn brin_revmap(page: &Page) -> Fields {
    let slots = page[PAGE_HEADER_LEN..BLCKSZ - 8].chunks_exact(6);
    let used = slots.clone().filter(|tid| tid[4..] != [0, 0]).count();
    Fields(vec![("ranges", slots.len() as i64), ("summarised_ranges", used as i64)])
}
