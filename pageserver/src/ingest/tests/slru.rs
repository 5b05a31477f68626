//! CLOG, commit timestamps and multixacts.

use keyenc::{Key, Kind, Object};
use postgres_ffi::checkpoint::Checkpoint;
use postgres_ffi::records::{multixact, slru as body, xact, xlog};
use postgres_ffi::slru::{self, XidStatus};
use postgres_ffi::wal::rmgr;
use postgres_ffi::{PgVersion, SlruKind};

use super::rig::*;

fn page_no(version: PgVersion, page_no: u32) -> Body {
    if version >= PgVersion::V17 { Body::default().u64(page_no.into()) } else { Body::default().u32(page_no) }
}

fn zero(rig: &mut Rig, rmid: u8, info: u8, page: u32) -> Vec<String> {
    let body = page_no(rig.version, page);
    rig.shown(&rec(rmid, info, 0, body))
}

fn page(rig: &Rig, kind: SlruKind, page_no: u32) -> Box<postgres_ffi::page::Page> {
    Box::new(rig.timeline.page(&Key::from(Object::SlruPage { kind, page_no }), rig.lsn()).unwrap())
}

fn end(info: u8, xid: u32, subxacts: &[u32]) -> Rec {
    let mut body = Body::default().u64(77).u32(2).u32(subxacts.len() as u32);
    for subxact in subxacts {
        body = body.u32(*subxact);
    }
    rec(rmgr::XACT, info | xact::HAS_INFO, xid, body)
}

#[test]
fn zeroed_pages_make_their_segment_longer() {
    let mut rig = Rig::new(PgVersion::V16);
    assert_eq!(zero(&mut rig, rmgr::CLOG, 0, 0), ["pg_xact segment 0 Image 1", "pg_xact page 0 Image"]);
    assert_eq!(
        zero(&mut rig, rmgr::CLOG, 0, 34),
        ["pg_xact segment 1 Image 3", "pg_xact page 32 Image", "pg_xact page 33 Image", "pg_xact page 34 Image"]
    );
    let mut rig = Rig::new(PgVersion::V17);
    assert_eq!(zero(&mut rig, rmgr::COMMIT_TS, 0, 0), ["pg_commit_ts segment 0 Image 1", "pg_commit_ts page 0 Image"]);
}

#[test]
fn ends_of_transactions_are_set_across_pages() {
    let mut rig = Rig::with(PgVersion::V15, Checkpoint { next_xid: 32_000, ..start_checkpoint() });
    zero(&mut rig, rmgr::CLOG, 0, 0);
    zero(&mut rig, rmgr::CLOG, 0, 1);
    rig.ingest(&end(xact::COMMIT, 32_766, &[32_767, 32_768, 32_770]));
    rig.ingest(&end(xact::ABORT, 32_771, &[32_769]));
    let (page0, page1) = (page(&rig, SlruKind::Clog, 0), page(&rig, SlruKind::Clog, 1));
    let status = |page, index| slru::clog_status(page, index);
    assert_eq!(status(&page0, 32_765), XidStatus::InProgress);
    assert_eq!((status(&page0, 32_766), status(&page0, 32_767)), (XidStatus::Committed, XidStatus::Committed));
    assert_eq!((status(&page1, 0), status(&page1, 2)), (XidStatus::Committed, XidStatus::Committed));
    assert_eq!((status(&page1, 1), status(&page1, 3)), (XidStatus::Aborted, XidStatus::Aborted));
    assert_eq!(rig.ingest.checkpoint().next_xid, 32_772);
}

#[test]
fn a_missing_page_starts_from_zeroes() {
    let mut rig = Rig::new(PgVersion::V15);
    let puts = rig.shown(&end(xact::COMMIT, 1000, &[]));
    assert_eq!(puts[0], "pg_xact segment 0 Image 1");
    assert!(puts[1].starts_with("pg_xact page 0 InitDelta ClogStatus"), "{puts:?}");
}

#[test]
fn truncation_removes_whole_segments_around_the_wrap() {
    for version in [PgVersion::V14, PgVersion::V18] {
        let mut rig = Rig::with(version, Checkpoint { next_xid: (1 << 32) | 2_300_000, ..start_checkpoint() });
        let last_page = u32::MAX / slru::CLOG_XACTS_PER_PAGE;
        for page in [last_page, 0, 31, 32, 70] {
            zero(&mut rig, rmgr::CLOG, 0, page);
        }
        let body = page_no(version, 33).u32(33 * 32_768 + 5).u32(9);
        let last_segment = last_page / 32;
        assert_eq!(
            rig.shown(&rec(rmgr::CLOG, body::TRUNCATE, 0, body.clone())),
            ["pg_xact segment 0 Tombstone".to_owned(), format!("pg_xact segment {last_segment} Tombstone")]
        );
        assert!(rig.ingest(&rec(rmgr::CLOG, body::TRUNCATE, 0, body)).is_empty());
        // The removed segment may come again.
        assert_eq!(zero(&mut rig, rmgr::CLOG, 0, 0)[0], "pg_xact segment 0 Image 1");
    }
}

#[test]
fn truncation_that_would_remove_the_newest_page_is_not_done() {
    let mut rig = Rig::new(PgVersion::V15); // next xid 1000: page 0 is the newest
    zero(&mut rig, rmgr::CLOG, 0, 0);
    assert!(rig.ingest(&rec(rmgr::CLOG, body::TRUNCATE, 0, Body::default().u32(40).u32(5).u32(9))).is_empty());
}

fn parameters(track_commit_timestamp: u8) -> Rec {
    let body = Body::default().u32(100).u32(8).u32(10).u32(0).u32(64).u32(1).u8(0).u8(track_commit_timestamp);
    rec(rmgr::XLOG, xlog::operation::PARAMETER_CHANGE, 0, body)
}

#[test]
fn commit_timestamps_are_kept_while_the_parameter_is_on() {
    let mut rig = Rig::new(PgVersion::V15);
    rig.ingest(&end(xact::COMMIT, 1000, &[]));
    let puts = rig.shown(&parameters(1));
    assert_eq!(
        puts,
        [
            "ControlFile Image page",
            "pg_commit_ts segment 0 Image 2",
            "pg_commit_ts page 0 Image",
            "pg_commit_ts page 1 Image"
        ]
    );
    assert_eq!(rig.ingest.checkpoint().oldest_commit_ts_xid, 1001);
    rig.ingest(&end(xact::COMMIT, 1001, &[1002]).origin(0));
    rig.ingest(&end(xact::ABORT, 1003, &[]));
    let ts_page = page(&rig, SlruKind::CommitTs, 1);
    assert_eq!(slru::commit_ts(&ts_page, 1001 - 819), (77, 0));
    assert_eq!(slru::commit_ts(&ts_page, 1002 - 819), (77, 0));
    assert_eq!(slru::commit_ts(&ts_page, 1003 - 819), (0, 0));
    assert_eq!(rig.ingest.checkpoint().newest_commit_ts_xid, 1002);
    // A restart finds the parameter in the control file.
    let (lsn, timeline) = (rig.lsn(), rig.timeline);
    let mut rig = Rig::over(PgVersion::V15, timeline, lsn);
    assert!(rig.shown(&end(xact::COMMIT, 1004, &[])).iter().any(|put| put.starts_with("pg_commit_ts page 1 Delta")));
    assert_eq!(rig.shown(&parameters(0)), ["ControlFile Image page", "pg_commit_ts segment 0 Tombstone"]);
    assert!(!rig.shown(&end(xact::COMMIT, 1005, &[])).iter().any(|put| put.contains("commit_ts")));
}

#[test]
fn commit_timestamps_of_a_server_that_crashed_before_a_checkpoint_knew_of_them() {
    // Switched on, and no checkpoint since: the control file knows of it, its checkpoint does not.
    let mut rig = Rig::new(PgVersion::V15);
    rig.ingest(&parameters(1));
    let (_, control_file) = rig.timeline.newest(&Object::ControlFile.into(), rig.lsn()).unwrap();
    let rig = Rig::new(PgVersion::V15);
    rig.timeline.put(Object::ControlFile, START_LSN, Kind::Image, &control_file);
    let mut rig = Rig::over(PgVersion::V15, rig.timeline, START_LSN);
    rig.ingest(&parameters(1));
    rig.ingest(&end(xact::COMMIT, 1000, &[]));
    assert_eq!(rig.ingest.checkpoint().oldest_commit_ts_xid, 1000);
    // Known to a checkpoint, it stays.
    rig.ingest(&parameters(1));
    assert_eq!(rig.ingest.checkpoint().oldest_commit_ts_xid, 1000);
}

#[test]
fn commit_timestamps_begin_no_later_than_the_next_transaction_where_that_is_known_rounded() {
    // As a restart finds it: the next one may be 1025. No shutdown checkpoint before the setting comes: a promotion.
    let mut rig = Rig::with(PgVersion::V15, Checkpoint { next_xid: 2048, ..start_checkpoint() });
    let puts = rig.shown(&parameters(1));
    assert_eq!(rig.ingest.checkpoint().oldest_commit_ts_xid, 1025);
    for page_no in [1, 2] {
        assert!(puts.contains(&format!("pg_commit_ts page {page_no} Image")), "{puts:?}");
    }
    rig.ingest(&end(xact::COMMIT, 1025, &[]));
    assert_eq!(slru::commit_ts(&page(&rig, SlruKind::CommitTs, 1), 1025 - 819), (77, 0));
}

#[test]
fn a_page_of_commit_timestamps_that_nobody_makes_ends_its_segment() {
    // On page 158; page 160, which begins segment 5, comes next: a clone went on at a rounded id.
    let mut rig = Rig::with(PgVersion::V15, Checkpoint { next_xid: 158 * 819 + 647, ..start_checkpoint() });
    assert!(rig.shown(&parameters(1)).contains(&"pg_commit_ts segment 4 Image 31".to_owned()));
    let puts = rig.shown(&end(xact::COMMIT, 131_072, &[]));
    let commit_ts: Vec<&String> = puts.iter().filter(|put| put.contains("commit_ts")).collect();
    assert_eq!(
        commit_ts,
        [
            "pg_commit_ts segment 4 Image 32",
            "pg_commit_ts segment 5 Image 1",
            "pg_commit_ts page 159 Image",
            "pg_commit_ts page 160 InitDelta CommitTs { time: 77, origin_id: 0, indexes: [U16(32)] }"
        ]
    );
}

#[test]
fn commit_timestamp_truncation_moves_the_oldest() {
    let mut rig = Rig::new(PgVersion::V17);
    rig.ingest(&parameters(1));
    let truncate = rec(rmgr::COMMIT_TS, body::TRUNCATE, 0, page_no(PgVersion::V17, 40).u32(40 * 819));
    assert_eq!(rig.shown(&truncate), ["pg_commit_ts segment 0 Tombstone"]);
    assert_eq!(rig.ingest.checkpoint().oldest_commit_ts_xid, 40 * 819);
}

fn create(multi: u32, offset: u32, members: &[(u32, u32)]) -> Rec {
    let mut body = Body::default().u32(multi).u32(offset).u32(members.len() as u32);
    for (xid, status) in members {
        body = body.u32(*xid).u32(*status);
    }
    rec(rmgr::MULTIXACT, multixact::CREATE_ID, 1000, body)
}

fn offset_at(rig: &Rig, multi: u32) -> u32 {
    let (page_no, index) = slru::multi_offset_place(multi);
    let page = page(rig, SlruKind::MultiXactOffsets, page_no);
    u32::from_le_bytes(page[usize::from(index) * 4..][..4].try_into().unwrap())
}

#[test]
fn multixacts_set_their_offset_and_the_next() {
    let mut rig = Rig::new(PgVersion::V15);
    zero(&mut rig, rmgr::MULTIXACT, multixact::ZERO_OFFSETS_PAGE, 0);
    zero(&mut rig, rmgr::MULTIXACT, multixact::ZERO_MEMBERS_PAGE, 0);
    rig.ingest(&create(1, 1, &[(1000, 1), (1001, 5)]));
    assert_eq!((offset_at(&rig, 1), offset_at(&rig, 2)), (1, 3));
    let members = page(&rig, SlruKind::MultiXactMembers, 0);
    assert_eq!((slru::multi_member(&members, 1), slru::multi_member(&members, 2)), ((1000, 1), (1001, 5)));
    let checkpoint = rig.ingest.checkpoint();
    assert_eq!((checkpoint.next_multi, checkpoint.next_multi_offset, checkpoint.next_xid), (2, 3, 1002));
}

#[test]
fn members_go_over_page_and_wrap() {
    let mut rig = Rig::with(PgVersion::V16, Checkpoint { next_multi_offset: 1_634, ..start_checkpoint() });
    rig.ingest(&create(5, 1_634, &[(1, 0), (2, 1), (3, 2)]));
    let (page0, page1) = (page(&rig, SlruKind::MultiXactMembers, 0), page(&rig, SlruKind::MultiXactMembers, 1));
    assert_eq!((slru::multi_member(&page0, 1_634), slru::multi_member(&page0, 1_635)), ((1, 0), (2, 1)));
    assert_eq!(slru::multi_member(&page1, 0), (3, 2));
    let mut rig = Rig::with(PgVersion::V16, Checkpoint { next_multi_offset: u32::MAX - 1, ..start_checkpoint() });
    rig.ingest(&create(5, u32::MAX - 1, &[(11, 0), (12, 0)]));
    assert_eq!((offset_at(&rig, 5), offset_at(&rig, 6)), (u32::MAX - 1, 1), "offset 0 is no start");
    rig.ingest(&create(6, u32::MAX, &[(13, 0), (14, 0)]));
    let (last_page, last_index) = slru::multi_member_place(u32::MAX);
    assert_eq!(slru::multi_member(&page(&rig, SlruKind::MultiXactMembers, last_page), last_index), (13, 0));
    assert_eq!(slru::multi_member(&page(&rig, SlruKind::MultiXactMembers, 0), 0), (14, 0));
}

#[test]
fn the_first_entry_of_a_page_survives_the_zeroing_by_an_older_server() {
    let mut rig = Rig::new(PgVersion::V14);
    zero(&mut rig, rmgr::MULTIXACT, multixact::ZERO_OFFSETS_PAGE, 0);
    let puts = rig.shown(&create(2_047, 10, &[(1000, 1)]));
    assert!(puts.contains(&"pg_multixact/offsets segment 0 Image 2".to_owned()), "{puts:?}");
    assert_eq!((offset_at(&rig, 2_047), offset_at(&rig, 2_048)), (10, 11));
    assert!(zero(&mut rig, rmgr::MULTIXACT, multixact::ZERO_OFFSETS_PAGE, 1).is_empty());
    assert_eq!(offset_at(&rig, 2_048), 11);
    // With more on it, it is an old page that comes again.
    rig.ingest(&create(2_048, 11, &[(1000, 1)]));
    assert_eq!(zero(&mut rig, rmgr::MULTIXACT, multixact::ZERO_OFFSETS_PAGE, 1), ["pg_multixact/offsets page 1 Image"]);
    assert_eq!(offset_at(&rig, 2_048), 0);
}

#[test]
fn multixact_truncation_removes_both_kinds_of_segments() {
    let start = Checkpoint { next_multi: 200_000, next_multi_offset: 400_000, ..start_checkpoint() };
    let mut rig = Rig::with(PgVersion::V15, start);
    for segment in 0..4 {
        zero(&mut rig, rmgr::MULTIXACT, multixact::ZERO_OFFSETS_PAGE, segment * 32);
        zero(&mut rig, rmgr::MULTIXACT, multixact::ZERO_MEMBERS_PAGE, segment * 32);
    }
    let per_members_segment = slru::MULTI_MEMBERS_PER_PAGE * 32;
    let body = Body::default().u32(9).u32(1).u32(2_048 * 64).u32(1).u32(2 * per_members_segment + 7);
    let expect = [
        "pg_multixact/members segment 0 Tombstone",
        "pg_multixact/members segment 1 Tombstone",
        // The cutoff is one multixact before the oldest: segment 1 may hold it.
        "pg_multixact/offsets segment 0 Tombstone",
    ];
    assert_eq!(rig.shown(&rec(rmgr::MULTIXACT, multixact::TRUNCATE_ID, 0, body)), expect);
    assert_eq!((rig.ingest.checkpoint().oldest_multi, rig.ingest.checkpoint().oldest_multi_db), (2_048 * 64, 9));
}

#[test]
fn stored_kinds_match_what_is_read() {
    let mut rig = Rig::new(PgVersion::V15);
    rig.ingest(&end(xact::COMMIT, 1000, &[]));
    let key = Key::from(Object::SlruPage { kind: SlruKind::Clog, page_no: 0 });
    assert_eq!(rig.timeline.newest(&key, rig.lsn()).unwrap().0, Kind::InitDelta);
    rig.ingest(&end(xact::COMMIT, 1001, &[]));
    assert_eq!(rig.timeline.newest(&key, rig.lsn()).unwrap().0, Kind::Delta);
}
