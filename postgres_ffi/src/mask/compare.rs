//! Are two versions of a page the same page?
//!
//! - [`equal_after_masking`]: PostgreSQL's rule, for a page that replay made and the image that `wal_consistency_checking` logged.
//! - [`compare_pages`]: the narrower rule, for our page and the page in the directory of a cleanly stopped server at the same LSN.
//!
//! Why the LSN counts in the second: whatever the primary stamps on a page comes from a record, and redo stamps the same record's
//! end. A hint bit that is set without WAL leaves the LSN alone; with checksums or `wal_log_hints` the first one after a checkpoint
//! logs the page and stamps it, and the image in our WAL is stamped alike. So a different LSN means that a record was lost,
//! applied twice, or stamped where PostgreSQL does not. Pages without any WAL have LSN 0 on both sides. Two exceptions, both
//! of pages that are written to disk first and logged afterwards, so that the file misses the stamp:
//!
//! - init forks of some indexes up to 15 have LSN 0 on disk (PG 15: nbtree.c, btbuildempty; spginsert.c, spgbuildempty);
//! - pages of a sorted GiST build up to 16 have LSN 0/1 on disk (PG 15: gistbuild.c, gist_indexsortbuild_flush_ready_pages).

use serde::Serialize;

use super::index::{FLAGS_OF_16, GIST_TUPLES_DELETED};
use super::{PageKind, classify, mask_page, mask_unlogged, sequence};
use crate::page::layout::Header;
use crate::page::{BLCKSZ, PAGE_HEADER_LEN, PD_CHECKSUM, PD_FLAGS, Page, ZERO_PAGE, page_lsn};
use crate::{BlockNumber, ForkNumber, Lsn};

/// Stamped on pages while an index is built. PG: gist.h, GistBuildLSN.
const GIST_BUILD_LSN: Lsn = Lsn::new(1);

/// How two pages relate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Equality {
    /// Every byte is the same.
    Equal,
    /// They differ only in bits that may differ.
    EqualMasked,
    /// They differ in a bit that may not.
    Different {
        /// Byte offset of the first difference that is left after masking.
        first_offset: usize,
    },
}

/// What [`compare_pages`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PageComparison {
    /// Kind of the page on disk (of ours, if that one is new).
    pub kind: PageKind,
    /// All but LSN, checksum and hints.
    pub equality: Equality,
    /// The LSN that our page carries.
    pub our_lsn: Option<Lsn>,
    /// The LSN that the page on disk carries.
    pub disk_lsn: Option<Lsn>,
    /// The stamps differ, and this is none of the exceptions in the head of this file.
    pub lsn_differs: bool,
}

impl PageComparison {
    /// True when one of the two pages is wrong.
    pub fn is_mismatch(&self) -> bool {
        matches!(self.equality, Equality::Different { .. }) || self.lsn_differs
    }
}

/// Compares under PostgreSQL's own masks for pages of `kind`.
pub fn equal_after_masking(a: &Page, b: &Page, kind: PageKind, block_no: BlockNumber) -> Equality {
    if a == b {
        return Equality::Equal;
    }
    let (mut a, mut b) = (*a, *b);
    mask_page(&mut a, kind, block_no);
    mask_page(&mut b, kind, block_no);
    masked_equality(&a, &b)
}

/// True when two GiST pages differ in the flag for deleted tuples and, after PostgreSQL's masks, in nothing else.
///
/// PostgreSQL's own difference: redo marks a page with deleted tuples where the primary's pruning does not, and its own recovery stops at the same record
/// with "inconsistent page found". Seen with 14.23, 16.14, 17.10 and 18.4; not with 15.20, whose redo sets the flag no more. Nothing in PostgreSQL reads it.
/// PG 18.6: gistxlog.c, gistRedoDeleteRecord sets F_TUPLES_DELETED; gist.c, gistprunepage does not.
pub fn differs_in_gist_flag_alone(a: &Page, b: &Page) -> bool {
    let flag = |page: &Page| page[FLAGS_OF_16] & GIST_TUPLES_DELETED as u8;
    let without_flag = |page: &Page| {
        let mut page = *page;
        page[FLAGS_OF_16] &= !(GIST_TUPLES_DELETED as u8);
        page
    };
    // GiST's masks do not look at the block's number, and a GiST index has no other fork with pages of this kind but its init fork.
    let kind = classify(b, ForkNumber::Main, 1);
    kind == PageKind::Gist
        && flag(a) != flag(b)
        && !matches!(equal_after_masking(&without_flag(a), &without_flag(b), kind, 1), Equality::Different { .. })
}

/// Compares our page with the one on disk of a cleanly stopped server at the same LSN.
pub fn compare_pages(ours: &Page, on_disk: &Page, fork: ForkNumber, block_no: BlockNumber) -> PageComparison {
    let disk_kind = classify(on_disk, fork, block_no);
    let kind = if disk_kind == PageKind::New { classify(ours, fork, block_no) } else { disk_kind };
    let (our_lsn, disk_lsn) = (page_lsn(ours), page_lsn(on_disk));
    let equality = if ours == on_disk { Equality::Equal } else { compare_masked(ours, on_disk, kind, block_no) };
    let lsn_differs = our_lsn != disk_lsn && !is_stamp_lost_on_disk(kind, fork, disk_lsn);
    PageComparison { kind, equality, our_lsn, disk_lsn, lsn_differs }
}

fn is_stamp_lost_on_disk(kind: PageKind, fork: ForkNumber, disk_lsn: Option<Lsn>) -> bool {
    match (kind, fork) {
        (_, ForkNumber::Init) => disk_lsn.is_none(),
        (PageKind::Gist, _) => disk_lsn == Some(GIST_BUILD_LSN),
        _ => false,
    }
}

fn compare_masked(ours: &Page, on_disk: &Page, kind: PageKind, block_no: BlockNumber) -> Equality {
    if *ours == ZERO_PAGE && kind == PageKind::Heap && is_empty_without_wal(on_disk) {
        return Equality::EqualMasked;
    }
    let (mut ours, mut on_disk) = (*ours, *on_disk);
    if kind == PageKind::Sequence && classify(&ours, ForkNumber::Main, block_no) == kind {
        sequence::take_over_position(&mut ours, &on_disk);
    }
    for page in [&mut ours, &mut on_disk] {
        mask_unlogged(page, kind, block_no);
        page[..PD_CHECKSUM].fill(0); // The LSN is compared apart.
    }
    masked_equality(&ours, &on_disk)
}

/// A heap page that was initialised in memory and written out before anything was logged on it: a backend took an all-zero page for
/// its tuple and failed before the insertion (hio.c, RelationGetBufferForTuple). It says the same as zeroes: nothing here.
fn is_empty_without_wal(page: &Page) -> bool {
    let header = Header::read(page);
    page_lsn(page).is_none()
        && page[PD_FLAGS..PD_FLAGS + 2] == [0, 0]
        && header.lower == PAGE_HEADER_LEN
        && header.upper == BLCKSZ
        && page[PAGE_HEADER_LEN..].iter().all(|byte| *byte == 0)
}

fn masked_equality(a: &Page, b: &Page) -> Equality {
    match a.iter().zip(b).position(|(x, y)| x != y) {
        None => Equality::EqualMasked,
        Some(first_offset) => Equality::Different { first_offset },
    }
}
