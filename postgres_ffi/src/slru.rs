//! Where things stand in the SLRU areas: CLOG, commit timestamps, multixact offsets and members.
//!
//! - SLRU pages carry no header and no LSN: the whole page is data.
//! - Ids wrap around at 2^32, and so do page and segment numbers. Which page is older is decided by [`page_precedes`], never by `<`.
//!
//! PG 14-18: src/backend/access/transam/clog.c, commit_ts.c, multixact.c, slru.c.

use crate::page::{BLCKSZ, Page};
use crate::rel::{SLRU_PAGES_PER_SEGMENT, SlruKind};
use crate::{MultiXactId, MultiXactOffset, TimestampTz, TransactionId};

/// The lowest transaction id that is given out. PG: src/include/access/transam.h, FirstNormalTransactionId.
pub const FIRST_NORMAL_XID: TransactionId = 3;
/// The lowest multixact id. PG: multixact.h, FirstMultiXactId.
pub const FIRST_MULTI: MultiXactId = 1;

/// Status of a transaction in CLOG, two bits. PG: clog.h, TRANSACTION_STATUS_*.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum XidStatus {
    /// Running, or gone without a trace (which counts as aborted).
    InProgress = 0,
    /// Committed.
    Committed = 1,
    /// Aborted.
    Aborted = 2,
    /// Committed as a subtransaction whose parent's commit is under way.
    SubCommitted = 3,
}

impl XidStatus {
    /// The status with the number `number`, `None` if there is none.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::InProgress, Self::Committed, Self::Aborted, Self::SubCommitted].get(usize::from(number)).copied()
    }
}

/// Transactions on one CLOG page: two bits each.
pub const CLOG_XACTS_PER_PAGE: u32 = BLCKSZ as u32 * 4;

/// The CLOG page of `xid`, and its place there.
pub fn clog_place(xid: TransactionId) -> (u32, u16) {
    (xid / CLOG_XACTS_PER_PAGE, (xid % CLOG_XACTS_PER_PAGE) as u16)
}

/// Status of the transaction at `index` of a CLOG page. Requires: `index` is below [`CLOG_XACTS_PER_PAGE`].
pub fn clog_status(page: &Page, index: u16) -> XidStatus {
    let bits = page[usize::from(index) / 4] >> ((index % 4) * 2) & 3;
    XidStatus::from_number(bits).unwrap_or(XidStatus::InProgress)
}

/// Sets the status at `index`. Requires: `index` is below [`CLOG_XACTS_PER_PAGE`].
pub fn set_clog_status(page: &mut Page, index: u16, status: XidStatus) {
    let shift = (index % 4) * 2;
    let byte = &mut page[usize::from(index) / 4];
    *byte = *byte & !(3 << shift) | (status as u8) << shift;
}

/// Size of a commit timestamp's entry: time and origin, packed. PG: commit_ts.c, SizeOfCommitTimestampEntry.
pub const COMMIT_TS_ENTRY_LEN: usize = 10;
/// Transactions on one page of commit timestamps.
pub const COMMIT_TS_XACTS_PER_PAGE: u32 = (BLCKSZ / COMMIT_TS_ENTRY_LEN) as u32;

/// The commit timestamp page of `xid`, and its place there.
pub fn commit_ts_place(xid: TransactionId) -> (u32, u16) {
    (xid / COMMIT_TS_XACTS_PER_PAGE, (xid % COMMIT_TS_XACTS_PER_PAGE) as u16)
}

/// Sets time and origin at `index`. Requires: `index` is below [`COMMIT_TS_XACTS_PER_PAGE`].
pub fn set_commit_ts(page: &mut Page, index: u16, time: TimestampTz, origin_id: u16) {
    let at = usize::from(index) * COMMIT_TS_ENTRY_LEN;
    page[at..at + 8].copy_from_slice(&time.to_le_bytes());
    page[at + 8..at + COMMIT_TS_ENTRY_LEN].copy_from_slice(&origin_id.to_le_bytes());
}

/// Time (0: none) and origin at `index`. Requires: `index` is below [`COMMIT_TS_XACTS_PER_PAGE`].
pub fn commit_ts(page: &Page, index: u16) -> (TimestampTz, u16) {
    let entry = &page[usize::from(index) * COMMIT_TS_ENTRY_LEN..][..COMMIT_TS_ENTRY_LEN];
    let (time, origin) = entry.split_at(8);
    let time = time.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
    (time as i64, u16::from(origin[0]) | u16::from(origin[1]) << 8)
}

/// Multixacts on one page of offsets: four bytes each.
pub const MULTI_OFFSETS_PER_PAGE: u32 = (BLCKSZ / 4) as u32;

/// The offsets page of `multi`, and its place there.
pub fn multi_offset_place(multi: MultiXactId) -> (u32, u16) {
    (multi / MULTI_OFFSETS_PER_PAGE, (multi % MULTI_OFFSETS_PER_PAGE) as u16)
}

/// The multixact after `multi`: 0 is skipped. PG: multixact.c, RecordNewMultiXact.
pub fn next_multi(multi: MultiXactId) -> MultiXactId {
    multi.wrapping_add(1).max(FIRST_MULTI)
}

/// The multixact before `multi`. PG: multixact.c, PreviousMultiXactId.
pub fn previous_multi(multi: MultiXactId) -> MultiXactId {
    if multi <= FIRST_MULTI { MultiXactId::MAX } else { multi - 1 }
}

/// Sets the offset at `index`. Requires: `index` is below [`MULTI_OFFSETS_PER_PAGE`].
pub fn set_multi_offset(page: &mut Page, index: u16, offset: MultiXactOffset) {
    let at = usize::from(index) * 4;
    page[at..at + 4].copy_from_slice(&offset.to_le_bytes());
}

/// Four members form a group: four flag bytes, then four xids. PG: multixact.c, MULTIXACT_MEMBERGROUP_SIZE.
const MEMBERS_PER_GROUP: u32 = 4;
const MEMBER_GROUP_LEN: usize = 20;
/// Members on one page. The last 12 bytes of a page stay unused.
pub const MULTI_MEMBERS_PER_PAGE: u32 = (BLCKSZ / MEMBER_GROUP_LEN) as u32 * MEMBERS_PER_GROUP;

/// The members page of `offset`, and its place there.
pub fn multi_member_place(offset: MultiXactOffset) -> (u32, u16) {
    (offset / MULTI_MEMBERS_PER_PAGE, (offset % MULTI_MEMBERS_PER_PAGE) as u16)
}

/// Byte offsets of flags and xid of the member at `index` of its page.
fn member_at(index: u16) -> (usize, usize) {
    let group = usize::from(index / MEMBERS_PER_GROUP as u16) * MEMBER_GROUP_LEN;
    let in_group = usize::from(index % MEMBERS_PER_GROUP as u16);
    (group + in_group, group + MEMBERS_PER_GROUP as usize + in_group * 4)
}

/// Sets the member at `index`. Requires: `index` is below [`MULTI_MEMBERS_PER_PAGE`].
pub fn set_multi_member(page: &mut Page, index: u16, xid: TransactionId, status: u8) {
    let (flags_at, xid_at) = member_at(index);
    page[flags_at] = status;
    page[xid_at..xid_at + 4].copy_from_slice(&xid.to_le_bytes());
}

/// The member at `index`: xid and status. Requires: `index` is below [`MULTI_MEMBERS_PER_PAGE`].
pub fn multi_member(page: &Page, index: u16) -> (TransactionId, u8) {
    let (flags_at, xid_at) = member_at(index);
    let xid = page[xid_at..xid_at + 4].iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
    (xid, page[flags_at])
}

/// The transaction id given out before `xid`: special ones are skipped. PG: transam.h, TransactionIdRetreat.
pub fn previous_xid(xid: TransactionId) -> TransactionId {
    if xid <= FIRST_NORMAL_XID { TransactionId::MAX } else { xid - 1 }
}

/// True when transaction `a` is older than `b`, around the wrap. PG: transam.c, TransactionIdPrecedes.
pub fn xid_precedes(a: TransactionId, b: TransactionId) -> bool {
    if a < FIRST_NORMAL_XID || b < FIRST_NORMAL_XID { a < b } else { wraps_before(a, b) }
}

/// True when `a` comes before `b` in 32-bit modulo arithmetic: multixact ids and offsets.
/// PG: multixact.c, MultiXactIdPrecedes, MultiXactOffsetPrecedes.
pub fn wraps_before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// True when all of page `page1` is older than all of `page2`.
/// PG: CLOGPagePrecedes, CommitTsPagePrecedes, MultiXactOffsetPagePrecedes, MultiXactMemberPagePrecedes.
pub fn page_precedes(kind: SlruKind, page1: u32, page2: u32) -> bool {
    // The first ids are not used on page 0: comparing from behind them keeps special ids out of it.
    let (per_page, skip) = match kind {
        SlruKind::Clog => (CLOG_XACTS_PER_PAGE, FIRST_NORMAL_XID + 1),
        SlruKind::CommitTs => (COMMIT_TS_XACTS_PER_PAGE, FIRST_NORMAL_XID + 1),
        SlruKind::MultiXactOffsets => (MULTI_OFFSETS_PER_PAGE, FIRST_MULTI + 1),
        SlruKind::MultiXactMembers => (MULTI_MEMBERS_PER_PAGE, 0),
    };
    let precedes = match kind {
        SlruKind::Clog | SlruKind::CommitTs => xid_precedes,
        SlruKind::MultiXactOffsets | SlruKind::MultiXactMembers => wraps_before,
    };
    let first1 = page1.wrapping_mul(per_page).wrapping_add(skip);
    let first2 = page2.wrapping_mul(per_page).wrapping_add(skip);
    precedes(first1, first2) && precedes(first1, first2.wrapping_add(per_page - 1))
}

/// True when a truncation that keeps `cutoff_page` and what follows removes the segment. PG: slru.c, SlruMayDeleteSegment.
pub fn truncation_removes_segment(kind: SlruKind, segment_no: u32, cutoff_page: u32) -> bool {
    let first = segment_no.wrapping_mul(SLRU_PAGES_PER_SEGMENT);
    let last = first.wrapping_add(SLRU_PAGES_PER_SEGMENT - 1);
    page_precedes(kind, first, cutoff_page) && page_precedes(kind, last, cutoff_page)
}

/// The segment of a page, and the page's place there.
pub fn segment_place(page_no: u32) -> (u32, u32) {
    (page_no / SLRU_PAGES_PER_SEGMENT, page_no % SLRU_PAGES_PER_SEGMENT)
}

/// The last members segment: behind it comes segment 0. PG: multixact.c, PerformMembersTruncation.
pub const LAST_MEMBERS_SEGMENT: u32 = MultiXactOffset::MAX / MULTI_MEMBERS_PER_PAGE / SLRU_PAGES_PER_SEGMENT;

/// The segments that a truncation of members removes: from that of `start` to before that of `end`, around the wrap.
/// PG: multixact.c, PerformMembersTruncation. At most [`LAST_MEMBERS_SEGMENT`] numbers.
pub fn removed_members_segments(start: MultiXactOffset, end: MultiXactOffset) -> impl Iterator<Item = u32> {
    let segment_of = |offset| segment_place(multi_member_place(offset).0).0;
    let last = segment_of(end);
    let mut segment = segment_of(start);
    std::iter::from_fn(move || {
        if segment == last {
            return None;
        }
        let removed = segment;
        segment = if segment == LAST_MEMBERS_SEGMENT { 0 } else { segment + 1 };
        Some(removed)
    })
}

const _: () = assert!(CLOG_XACTS_PER_PAGE == 32_768);
const _: () = assert!(COMMIT_TS_XACTS_PER_PAGE == 819);
const _: () = assert!(MULTI_OFFSETS_PER_PAGE == 2_048);
const _: () = assert!(MULTI_MEMBERS_PER_PAGE == 1_636);

#[cfg(test)]
mod tests {
    //! Set and get against plain models, edges of pages, and the order of pages around the wrap.

    use super::*;

    #[test]
    fn clog_keeps_neighbours() {
        let mut page = [0; BLCKSZ];
        for index in [0u16, 1, 2, 3, 4, 32_767] {
            set_clog_status(&mut page, index, XidStatus::Committed);
        }
        set_clog_status(&mut page, 1, XidStatus::Aborted);
        assert_eq!(page[0], 0b01_01_10_01);
        assert_eq!(clog_status(&page, 1), XidStatus::Aborted);
        assert_eq!(clog_status(&page, 2), XidStatus::Committed);
        assert_eq!(clog_status(&page, 5), XidStatus::InProgress);
        assert_eq!(page[BLCKSZ - 1], 0b01_00_00_00);
        assert_eq!(clog_place(32_767), (0, 32_767));
        assert_eq!(clog_place(32_768), (1, 0));
        assert_eq!(clog_place(u32::MAX), (131_071, 32_767));
    }

    #[test]
    fn commit_timestamps_are_packed() {
        let mut page = [0; BLCKSZ];
        set_commit_ts(&mut page, 818, -5, 0x0102);
        assert_eq!(commit_ts(&page, 818), (-5, 0x0102));
        assert_eq!(commit_ts(&page, 817), (0, 0));
        assert_eq!(page[8188..], [2, 1, 0, 0]);
        assert_eq!(commit_ts_place(819), (1, 0));
    }

    #[test]
    fn members_stand_in_groups() {
        let mut page = [0; BLCKSZ];
        set_multi_member(&mut page, 0, 0x0403_0201, 5);
        set_multi_member(&mut page, 5, 700, 1);
        set_multi_member(&mut page, 1_635, 9, 2);
        assert_eq!(page[..8], [5, 0, 0, 0, 1, 2, 3, 4]);
        assert_eq!(page[21], 1);
        assert_eq!(multi_member(&page, 5), (700, 1));
        assert_eq!(multi_member(&page, 1_635), (9, 2));
        assert_eq!(page[8_180..], [0; 12]);
        assert_eq!(multi_member_place(1_636), (1, 0));
    }

    #[test]
    fn ids_skip_the_special_ones() {
        assert_eq!(next_multi(u32::MAX), 1);
        assert_eq!(previous_multi(1), u32::MAX);
        assert_eq!(multi_offset_place(2_048), (1, 0));
        assert_eq!((previous_xid(3), previous_xid(0), previous_xid(4)), (u32::MAX, u32::MAX, 3));
        assert!(xid_precedes(2, 3) && xid_precedes(0, u32::MAX));
        assert!(xid_precedes(u32::MAX, 3));
        assert!(!xid_precedes(3, u32::MAX));
    }

    #[test]
    fn pages_are_ordered_around_the_wrap() {
        for kind in SlruKind::ALL {
            assert!(page_precedes(kind, 1, 2), "{kind}");
            assert!(!page_precedes(kind, 2, 1), "{kind}");
            assert!(!page_precedes(kind, 2, 2), "{kind}");
        }
        let last = u32::MAX / CLOG_XACTS_PER_PAGE;
        assert!(page_precedes(SlruKind::Clog, last, 0));
        assert!(page_precedes(SlruKind::Clog, last, 5));
        assert!(!page_precedes(SlruKind::Clog, 0, last));
        // Half the circle away: neither precedes, so neither is ever removed for the other.
        let half = last / 2 + 1;
        assert!(!page_precedes(SlruKind::Clog, 0, half) || !page_precedes(SlruKind::Clog, half, 0));
    }

    #[test]
    fn truncation_keeps_the_segment_of_the_cutoff() {
        assert!(!truncation_removes_segment(SlruKind::Clog, 0, 31));
        assert!(truncation_removes_segment(SlruKind::Clog, 0, 32));
        assert!(!truncation_removes_segment(SlruKind::Clog, 1, 32));
        assert!(!truncation_removes_segment(SlruKind::Clog, 2, 32));
        // The old end of the circle goes when the cutoff is behind the wrap.
        let last_segment = u32::MAX / CLOG_XACTS_PER_PAGE / 32;
        assert!(truncation_removes_segment(SlruKind::Clog, last_segment, 40));
    }

    #[test]
    fn members_segments_go_around_the_wrap() {
        let per_segment = MULTI_MEMBERS_PER_PAGE * SLRU_PAGES_PER_SEGMENT;
        let removed: Vec<_> = removed_members_segments(0, 2 * per_segment + 5).collect();
        assert_eq!(removed, [0, 1]);
        assert_eq!(removed_members_segments(7, 9).count(), 0);
        let removed: Vec<_> = removed_members_segments(u32::MAX, per_segment).collect();
        assert_eq!(removed, [LAST_MEMBERS_SEGMENT, 0]);
    }
}
