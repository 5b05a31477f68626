//! When a version of the time is put, and what it says.

use keyenc::{Kind, Object};
use postgres_ffi::records::xact;
use postgres_ffi::wal::rmgr;
use postgres_ffi::{Lsn, PgVersion};

use super::rig::*;
use crate::ingest::{CommitTime, IngestError, WalIngest};

/// What the record put, and the LSN before it.
fn put(rig: &mut Rig, record: &Rec) -> (Option<CommitTime>, Lsn) {
    let before_lsn = rig.lsn();
    let puts = rig.ingest_all(record);
    let found = puts.into_iter().find(|(object, _, _)| *object == Object::CommitTime);
    let time = found.map(|(_, kind, value)| {
        assert_eq!(kind, Kind::Image);
        CommitTime::decode(&value).expect("16 bytes")
    });
    (time, before_lsn)
}

fn end(info: u8, time: i64) -> Rec {
    let body = Body::default().u64(time as u64);
    match info {
        xact::COMMIT | xact::ABORT => rec(rmgr::XACT, info, 1000, body),
        _ => rec(rmgr::XACT, info | xact::HAS_INFO, 0, body.u32(0x10).u32(1000)),
    }
}

#[test]
fn the_value_is_16_bytes() {
    let value = CommitTime { time: 0x0102_0304_0506_0708, before_lsn: Some(Lsn::new(0x16B_5A50)) };
    assert_eq!(value.encode(), *b"\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0\x01\x6b\x5a\x50");
    assert_eq!(CommitTime { time: 1, before_lsn: None }.encode(), *b"\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0");
    let imported = CommitTime { time: i64::MIN, before_lsn: None };
    for value in [value, imported, CommitTime { time: -1, before_lsn: Some(Lsn::MAX) }] {
        assert_eq!(CommitTime::decode(&value.encode()), Some(value));
    }
    for length in (0..40).filter(|length| *length != 16) {
        assert_eq!(CommitTime::decode(&vec![0; length]), None);
    }
}

#[test]
fn every_end_of_a_transaction_counts_and_nothing_else() {
    for version in PgVersion::ALL {
        let mut rig = Rig::new(version);
        for (nth, info) in
            [xact::COMMIT, xact::ABORT, xact::COMMIT_PREPARED, xact::ABORT_PREPARED].into_iter().enumerate()
        {
            let time = 5_000 + nth as i64 * 1_000;
            let (found, before_lsn) = put(&mut rig, &end(info, time));
            assert_eq!(found, Some(CommitTime { time, before_lsn: Some(before_lsn) }), "{version} {info:#x}");
        }
        let assignment = rec(rmgr::XACT, xact::ASSIGNMENT, 1000, Body::default().u32(1000).u32(1).u32(1001));
        assert_eq!(put(&mut rig, &assignment).0, None);
        // From elsewhere: the clock that counts is the one here.
        let replicated = Body::default().u64(90_000).u32(0x20).u64(0x900).u64(77_000_000);
        let replicated = rec(rmgr::XACT, xact::COMMIT | xact::HAS_INFO, 1000, replicated).origin(4);
        assert_eq!(put(&mut rig, &replicated).0.map(|found| found.time), Some(90_000));
    }
}

#[test]
fn the_highest_time_is_kept_by_the_millisecond() {
    let mut rig = Rig::new(PgVersion::V17);
    let stored: Vec<Option<i64>> = [10_000, 10_999, 11_000, 3_000, 11_999, 12_000, i64::MAX, i64::MIN, i64::MAX]
        .into_iter()
        .map(|time| put(&mut rig, &end(xact::COMMIT, time)).0.map(|found| found.time))
        .collect();
    assert_eq!(stored, [Some(10_000), None, Some(11_000), None, None, Some(12_000), Some(i64::MAX), None, None]);
}

#[test]
fn ingest_goes_on_from_the_stored_time() {
    let mut rig = Rig::new(PgVersion::V17);
    put(&mut rig, &end(xact::COMMIT, 10_000));
    put(&mut rig, &end(xact::COMMIT, 10_900));
    let lsn = rig.lsn();
    let mut rig = Rig::over(PgVersion::V17, rig.timeline, lsn);
    assert_eq!(put(&mut rig, &end(xact::COMMIT, 10_950)).0, None);
    assert_eq!(put(&mut rig, &end(xact::COMMIT, 11_000)).0.map(|found| found.time), Some(11_000));
    // What lies above where ingest goes on does not count: it comes again.
    let mut rig = Rig::over(PgVersion::V17, rig.timeline, lsn);
    rig.timeline.watermark.set(lsn);
    assert_eq!(put(&mut rig, &end(xact::COMMIT, 11_000)).0.map(|found| found.time), Some(11_000));
}

#[test]
fn what_an_import_put_is_no_end_of_a_transaction() {
    let rig = Rig::new(PgVersion::V17);
    let imported = CommitTime { time: 50_000, before_lsn: None };
    rig.timeline.put(Object::CommitTime, START_LSN, Kind::Image, &imported.encode());
    let mut rig = Rig::over(PgVersion::V17, rig.timeline, START_LSN);
    assert_eq!(put(&mut rig, &end(xact::COMMIT, 49_000)).0.map(|found| found.time), Some(49_000));
    assert_eq!(put(&mut rig, &end(xact::COMMIT, 49_500)).0, None);
}

#[test]
fn a_damaged_time_is_refused() {
    let rig = Rig::new(PgVersion::V17);
    rig.timeline.put(Object::CommitTime, START_LSN, Kind::Image, b"short");
    let refused = WalIngest::new(PgVersion::V17, START_LSN, &rig.timeline);
    assert!(matches!(refused.err(), Some(IngestError::StoredValue { length: 5, .. })));
}
