//! What may differ between a page that replay made and the page of the server that wrote the WAL.
//!
//! PostgreSQL changes some bits without logging them (hint bits, the free space between pointers and tuples, LP_DEAD on
//! index leaves). Two pages are the same when they are equal after those bits were masked; nothing else may differ.
//!
//! - [`mask_page`] is PostgreSQL's own rule, bit for bit: what `wal_consistency_checking` compares. It also hides the LSN.
//! - [`mask_unlogged`] is narrower: only what the primary may change on disk without WAL. Two data directories at the same LSN
//!   must agree after it. It keeps the LSN, PD_ALL_VISIBLE, and the lock bits of heap tuples; see [`compare`].
//! - Masks are idempotent, touch no byte outside the page, and leave a page alone whose header makes no sense: such a page
//!   is then compared byte for byte, which can only find more differences.
//! - The rules are the same in 14 to 18, so no version comes in.
//!
//! PG 15, 17, 18: src/backend/access/common/bufmask.c and the functions `*_mask` of the resource managers.

pub mod bloom;
pub mod compare;
pub(crate) mod heap;
pub(crate) mod index;
pub(crate) mod sequence;
pub mod visibility_map;

use byteorder::{ByteOrder, LittleEndian};
use serde::Serialize;

use crate::page::layout::{self, Header, ItemFlags, items};
use crate::page::{
    BLCKSZ, PAGE_HEADER_LEN, PD_ALL_VISIBLE, PD_CHECKSUM, PD_FLAGS, PD_HAS_FREE_LINES, PD_LOWER, PD_PAGE_FULL,
    PD_PRUNE_XID, PD_UPPER, Page, page_is_new,
};
use crate::{BlockNumber, ForkNumber};

pub use compare::{Equality, PageComparison, compare_pages, differs_in_gist_flag_alone, equal_after_masking};

/// What kind of page it is: which rules and which decoder apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PageKind {
    /// Never initialised (`pd_upper` is 0).
    New,
    /// A table, TOAST table or materialised view.
    Heap,
    /// nbtree.
    Btree,
    /// Hash index.
    Hash,
    /// GiST.
    Gist,
    /// GIN.
    Gin,
    /// SP-GiST.
    Spgist,
    /// BRIN.
    Brin,
    /// Sequence.
    Sequence,
    /// Visibility map fork.
    VisibilityMap,
    /// Free space map fork.
    FreeSpaceMap,
    /// An access method that writes generic WAL (contrib's bloom), or one that we do not know.
    Generic,
}

impl PageKind {
    /// One word for people and counters.
    pub fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Heap => "heap",
            Self::Btree => "btree",
            Self::Hash => "hash",
            Self::Gist => "gist",
            Self::Gin => "gin",
            Self::Spgist => "spgist",
            Self::Brin => "brin",
            Self::Sequence => "sequence",
            Self::VisibilityMap => "visibility map",
            Self::FreeSpaceMap => "free space map",
            Self::Generic => "generic",
        }
    }
}

// Page ids in the last two bytes of the special area.
/// PG: hash.h, HASHO_PAGE_ID.
pub(crate) const HASH_PAGE_ID: u16 = 0xFF80;
/// PG: gist.h, GIST_PAGE_ID.
const GIST_PAGE_ID: u16 = 0xFF81;
/// PG: spgist_private.h, SPGIST_PAGE_ID.
const SPGIST_PAGE_ID: u16 = 0xFF82;
/// PG: brin_page.h, BRIN_PAGETYPE_META, _REVMAP and _REGULAR.
const BRIN_PAGE_IDS: std::ops::RangeInclusive<u16> = 0xF091..=0xF093;
/// Higher cycle ids are never given out, so that page ids can be told from them. PG: nbtree.h, MAX_BT_CYCLE_ID.
const BTREE_CYCLE_ID_MAX: u16 = 0xFF7F;
/// All flags that GIN has. PG: ginblock.h, GIN_DATA to GIN_COMPRESSED.
const GIN_FLAGS: u16 = 0x00FF;
/// First word of a sequence's special area. PG: sequence.c, SEQ_MAGIC.
const SEQUENCE_MAGIC: u32 = 0x1717;

/// The kind of `page`, from its fork and its special area.
///
/// A sequence's magic number could also be a GIN right link, but a sequence has one block only and GIN's block 0 is its meta page.
pub fn classify(page: &Page, fork: ForkNumber, block_no: BlockNumber) -> PageKind {
    match fork {
        ForkNumber::Vm => return PageKind::VisibilityMap,
        ForkNumber::Fsm => return PageKind::FreeSpaceMap,
        ForkNumber::Main | ForkNumber::Init => {}
    }
    if page_is_new(page) {
        return PageKind::New;
    }
    let special_start = Header::read(page).special;
    let Some(special) = page.get(special_start..) else { return PageKind::Generic };
    let page_id = LittleEndian::read_u16(&page[BLCKSZ - 2..]);
    match special.len() {
        0 => PageKind::Heap,
        16 if page_id == HASH_PAGE_ID => PageKind::Hash,
        16 if page_id == GIST_PAGE_ID => PageKind::Gist,
        16 if page_id <= BTREE_CYCLE_ID_MAX => PageKind::Btree,
        8 if page_id == SPGIST_PAGE_ID => PageKind::Spgist,
        8 if BRIN_PAGE_IDS.contains(&page_id) => PageKind::Brin,
        8 if block_no == 0 && LittleEndian::read_u32(special) == SEQUENCE_MAGIC => PageKind::Sequence,
        8 if page_id & !GIN_FLAGS == 0 => PageKind::Gin,
        _ => PageKind::Generic,
    }
}

/// Masks what `wal_consistency_checking` masks on a page of this kind.
pub fn mask_page(page: &mut Page, kind: PageKind, block_no: BlockNumber) {
    page[..PD_CHECKSUM].fill(0);
    mask_flags(page, kind, PD_HAS_FREE_LINES | PD_PAGE_FULL | PD_ALL_VISIBLE);
    mask_content(page, kind, block_no, Rule::Replay);
}

/// Masks what a primary may change on a page of this kind without a word in the WAL, and nothing more.
pub fn mask_unlogged(page: &mut Page, kind: PageKind, block_no: BlockNumber) {
    mask_flags(page, kind, PD_HAS_FREE_LINES | PD_PAGE_FULL);
    mask_content(page, kind, block_no, Rule::DataDirectory);
}

/// Whose rule: see the head of this file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rule {
    Replay,
    DataDirectory,
}

/// The checksum, and the hints in the page header. Sequences and generic pages have no such hints (sequence.c, seq_mask; generic_xlog.c, generic_mask).
fn mask_flags(page: &mut Page, kind: PageKind, flags: u16) {
    page[PD_CHECKSUM..PD_CHECKSUM + 2].fill(0);
    if matches!(kind, PageKind::Sequence | PageKind::Generic | PageKind::VisibilityMap | PageKind::FreeSpaceMap) {
        return;
    }
    page[PD_PRUNE_XID..PAGE_HEADER_LEN].fill(0);
    let kept = LittleEndian::read_u16(&page[PD_FLAGS..]) & !flags;
    LittleEndian::write_u16(&mut page[PD_FLAGS..PD_FLAGS + 2], kept);
}

fn mask_content(page: &mut Page, kind: PageKind, block_no: BlockNumber, rule: Rule) {
    match kind {
        PageKind::New | PageKind::FreeSpaceMap => {}
        PageKind::Heap => heap::mask(page, block_no, rule),
        PageKind::Btree => index::mask_btree(page),
        PageKind::Hash => index::mask_hash(page),
        PageKind::Gist => index::mask_gist(page, rule),
        PageKind::Gin => index::mask_gin(page),
        PageKind::Spgist => index::mask_spgist(page, rule),
        PageKind::Brin => index::mask_brin(page),
        PageKind::Sequence | PageKind::Generic => mask_unused_space(page),
        PageKind::VisibilityMap => visibility_map::initialise_if_new(page),
    }
}

/// The hole between line pointers and tuples. PG: bufmask.c, mask_unused_space.
fn mask_unused_space(page: &mut Page) {
    if let Some(hole) = Header::read(page).hole() {
        page[hole].fill(0);
    }
}

/// Flags of used line pointers: leaves of indexes get LP_DEAD without WAL. PG: bufmask.c, mask_lp_flags.
fn mask_item_flags(page: &mut Page) {
    for item in items(page).collect::<Vec<_>>() {
        if item.flags != ItemFlags::Unused {
            layout::set_item_flags(page, item.offset_no, ItemFlags::Unused);
        }
    }
}

/// Everything behind the header. PG: bufmask.c, mask_page_content.
fn mask_page_content(page: &mut Page) {
    page[PAGE_HEADER_LEN..].fill(0);
    page[PD_LOWER..PD_LOWER + 2].fill(0);
    page[PD_UPPER..PD_UPPER + 2].fill(0);
}

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod tests;
