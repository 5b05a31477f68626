//! What must be there for a server to start and to know every transaction's fate.
//!
//! PG 15, 18: src/backend/access/transam/clog.c (TrimCLOG), multixact.c (TrimMultiXact, find_multixact_start), commit_ts.c (ActivateCommitTs),
//! twophase.c (ProcessTwoPhaseBuffer).

use std::collections::BTreeMap;

use byteorder::{ByteOrder, LittleEndian};
use keyenc::{Key, Object};
use postgres_ffi::checkpoint::{Checkpoint, NEXT_XID_STEP};
use postgres_ffi::control_file::ControlFile;
use postgres_ffi::slru::{
    CLOG_XACTS_PER_PAGE, COMMIT_TS_XACTS_PER_PAGE, MULTI_MEMBERS_PER_PAGE, MULTI_OFFSETS_PER_PAGE, clog_place,
    commit_ts_place, multi_member_place, multi_offset_place, previous_multi, previous_xid, segment_place, xid_precedes,
};
use postgres_ffi::{Lsn, MultiXactId, MultiXactOffset, SlruKind, TransactionId};

use super::BackupError;
use super::contents::Contents;
use crate::timeline::Timeline;

/// Refuses a backup that a server could not start from, or would start from with transactions forgotten.
pub(super) fn check(
    timeline: &Timeline,
    branch_lsn: Lsn,
    counters: &Checkpoint,
    control_file: &ControlFile,
    contents: &Contents,
) -> Result<(), BackupError> {
    check_prepared(counters, &contents.two_phase)?;
    let slrus = Slrus { branch_lsn, contents };
    slrus.check_clog(counters)?;
    slrus.check_multixacts(timeline, counters)?;
    if control_file.track_commit_timestamp {
        slrus.check_commit_ts(counters)?;
    }
    Ok(())
}

/// PostgreSQL throws away state files of the future.
fn check_prepared<T>(counters: &Checkpoint, two_phase: &[(u64, T)]) -> Result<(), BackupError> {
    let next_xid = counters.next_xid;
    match two_phase.iter().find(|(xid, _)| *xid >= next_xid) {
        Some((xid, _)) => Err(BackupError::PreparedInFuture { xid: *xid, next_xid }),
        None => Ok(()),
    }
}

struct Slrus<'a> {
    branch_lsn: Lsn,
    contents: &'a Contents,
}

impl Slrus<'_> {
    fn check_clog(&self, counters: &Checkpoint) -> Result<(), BackupError> {
        // The page of the next id need not exist if it is the first there. PG 14-18: src/backend/access/transam/clog.c, TrimCLOG.
        let next_xid = counters.next_xid_low();
        let last = match clog_place(next_xid) {
            (_, 0) => clog_place(previous_xid(next_xid)).0,
            (page_no, _) => page_no,
        };
        self.need(SlruKind::Clog, clog_place(counters.oldest_xid).0, last)
    }

    /// Above the exact next id no timestamp was ever written; the stored one is rounded up.
    fn check_commit_ts(&self, counters: &Checkpoint) -> Result<(), BackupError> {
        let oldest = counters.oldest_commit_ts_xid;
        let surely_used = counters.next_xid.saturating_sub(NEXT_XID_STEP) as TransactionId;
        if oldest == 0 || !xid_precedes(oldest, surely_used) {
            return Ok(());
        }
        self.need(SlruKind::CommitTs, commit_ts_place(oldest).0, commit_ts_place(surely_used).0)
    }

    fn check_multixacts(&self, timeline: &Timeline, counters: &Checkpoint) -> Result<(), BackupError> {
        let Checkpoint { oldest_multi, next_multi, next_multi_offset, .. } = *counters;
        let (next_page, next_index) = multi_offset_place(next_multi);
        let is_empty = oldest_multi == next_multi;
        if is_empty && next_index == 0 {
            return Ok(());
        }
        let (first_page, last_page) = if next_index == 0 {
            (multi_offset_place(oldest_multi).0, multi_offset_place(previous_multi(next_multi)).0)
        } else {
            (multi_offset_place(oldest_multi).0, next_page)
        };
        self.need(SlruKind::MultiXactOffsets, first_page, last_page)?;
        let (next_member_page, next_member) = multi_member_place(next_multi_offset);
        let last_member = if next_member == 0 { next_multi_offset.wrapping_sub(1) } else { next_multi_offset };
        let first_member = if is_empty { None } else { self.first_member(timeline, oldest_multi)? };
        match first_member {
            Some(first) => {
                self.need(SlruKind::MultiXactMembers, multi_member_place(first).0, multi_member_place(last_member).0)
            }
            None if next_member == 0 => Ok(()),
            None => self.need(SlruKind::MultiXactMembers, next_member_page, next_member_page),
        }
    }

    /// Where the members of a multixact begin; `None` if nobody wrote it.
    fn first_member(&self, timeline: &Timeline, multi: MultiXactId) -> Result<Option<MultiXactOffset>, BackupError> {
        let (page_no, index) = multi_offset_place(multi);
        let key = Key::from(Object::SlruPage { kind: SlruKind::MultiXactOffsets, page_no });
        let page = timeline.get_page_at_lsn(key, self.branch_lsn)?;
        let entry = page.get(usize::from(index) * 4..usize::from(index) * 4 + 4).ok_or(BackupError::Damaged { key })?;
        Ok(Some(LittleEndian::read_u32(entry)).filter(|offset| *offset != 0))
    }

    /// Every page from `first` to `last`, around the wrap, must be there.
    fn need(&self, kind: SlruKind, first: u32, last: u32) -> Result<(), BackupError> {
        let none = BTreeMap::new();
        let segments = self.contents.slrus.get(&kind).unwrap_or(&none);
        match missing_page(kind, segments, first, last) {
            Some(page_no) => {
                Err(BackupError::SlruPageMissing { kind, page_no, first, last, request_lsn: self.branch_lsn })
            }
            None => Ok(()),
        }
    }
}

/// The first page from `first` to `last`, around the wrap, that no segment has.
fn missing_page(kind: SlruKind, segments: &BTreeMap<u32, u32>, first: u32, last: u32) -> Option<u32> {
    let per_page = match kind {
        SlruKind::Clog => CLOG_XACTS_PER_PAGE,
        SlruKind::CommitTs => COMMIT_TS_XACTS_PER_PAGE,
        SlruKind::MultiXactOffsets => MULTI_OFFSETS_PER_PAGE,
        SlruKind::MultiXactMembers => MULTI_MEMBERS_PER_PAGE,
    };
    let highest = u32::MAX / per_page;
    let mut page_no = first;
    loop {
        let (segment_no, place) = segment_place(page_no);
        if segments.get(&segment_no).is_none_or(|page_count| *page_count <= place) {
            return Some(page_no);
        }
        if page_no == last {
            return None;
        }
        page_no = if page_no >= highest { 0 } else { page_no + 1 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_missing(segments: &[(u32, u32)], first: u32, last: u32, expect: Option<u32>) {
        let segments = segments.iter().copied().collect();
        assert_eq!(missing_page(SlruKind::Clog, &segments, first, last), expect, "{segments:?} {first} {last}");
    }

    #[test]
    fn a_missing_page_is_found_around_the_wrap() {
        check_missing(&[(0, 1)], 0, 0, None);
        check_missing(&[(0, 1)], 0, 1, Some(1));
        check_missing(&[], 0, 0, Some(0));
        check_missing(&[(0, 32), (1, 3)], 5, 34, None);
        check_missing(&[(0, 31), (1, 3)], 5, 34, Some(31));
        check_missing(&[(1, 3)], 5, 34, Some(5));
        let last_page = u32::MAX / CLOG_XACTS_PER_PAGE;
        let last_segment = last_page / 32;
        check_missing(&[(last_segment, 32), (0, 2)], last_page - 1, 1, None);
        check_missing(&[(last_segment, 32)], last_page - 1, 1, Some(0));
    }

    #[test]
    fn prepared_transactions_lie_below_the_next_one() {
        let counters = Checkpoint { next_xid: 1 << 32 | 1024, ..Checkpoint::default() };
        assert!(check_prepared(&counters, &[(1023, ()), (1 << 32 | 1023, ())]).is_ok());
        let refused = check_prepared(&counters, &[(1 << 32 | 1024, ())]);
        assert!(matches!(refused, Err(BackupError::PreparedInFuture { .. })), "{refused:?}");
    }
}
