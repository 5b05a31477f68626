//! Goal: what is made up reads back, wherever it stands. Method: our own decoder, from the segment's start through filler and checkpoint, with every
//! position around the ends of pages and segments; the control file decoded again.

use bytes::Bytes;

use super::control::control_file;
use super::history::history_content;
use super::*;
use crate::checkpoint::Checkpoint;
use crate::control_file::{ControlFile, DbState};
use crate::records::xlog::operation;
use crate::wal::{DecodedRecord, WalStreamDecoder};
use crate::{Lsn, PgVersion};

const TIMELINE: u32 = 0x1000;

fn place(segment_bytes: u32) -> WalPlace {
    WalPlace { version: PgVersion::V15, system_id: 0x1122_3344, segment_bytes }
}

fn counters() -> Checkpoint {
    Checkpoint {
        this_tli: 1,
        prev_tli: 1,
        next_xid: 2048,
        next_oid: 20_000,
        next_multi: 7,
        next_multi_offset: 30,
        oldest_xid: 730,
        oldest_xid_db: 1,
        oldest_multi: 1,
        oldest_multi_db: 1,
        oldest_commit_ts_xid: 740,
        newest_commit_ts_xid: 1000,
        oldest_active_xid: 900,
        ..Checkpoint::default()
    }
}

fn real_control() -> ControlFile {
    ControlFile::decode(include_bytes!("../../tests/data/control/pg_control.15")).expect("a real file")
}

fn start_at(place: WalPlace, branch_lsn: u64, prev_record: Option<Lsn>) -> Result<Start, StartError> {
    let point = StartPoint {
        branch_lsn: Lsn::new(branch_lsn),
        timeline_id: TIMELINE,
        prev_timeline_id: 1,
        prev_record,
        time: 1_700_000_000,
    };
    Start::new(place, point, &counters(), &real_control())
}

/// Filler and checkpoint from the segment's start on.
fn segments(place: WalPlace, branch_lsn: u64) -> (Vec<u8>, Option<Lsn>, Start) {
    let mut filler = Filler::new(place, 1, Lsn::new(branch_lsn));
    let mut bytes: Vec<u8> = filler.by_ref().flatten().collect();
    let prev_record = filler.last_record();
    let start = start_at(place, branch_lsn, prev_record).expect("a server can start here");
    bytes.extend(&start.wal);
    (bytes, prev_record, start)
}

fn check(place: WalPlace, branch_lsn: u64) {
    let (bytes, prev_record, start) = segments(place, branch_lsn);
    let segment_start = place.segment_start(Lsn::new(branch_lsn));
    assert_eq!(segment_start.as_u64() + bytes.len() as u64, start.end_lsn.as_u64(), "{branch_lsn:#x}");
    let mut decoder = WalStreamDecoder::new_at_page(place.version, segment_start, place.segment_bytes)
        .with_system_id(place.system_id);
    decoder.feed(Bytes::from(bytes));
    let mut before = None;
    loop {
        let (start_lsn, end_lsn, raw) = decoder.next_record().expect("WAL").expect("a record");
        let record = DecodedRecord::decode(place.version, start_lsn, end_lsn, raw).expect("decodes");
        assert_eq!(record.prev_lsn, before.unwrap_or(Lsn::ZERO), "{branch_lsn:#x}");
        if record.operation() == operation::NOOP {
            assert!(end_lsn <= start.point.branch_lsn);
            before = Some(start_lsn);
            continue;
        }
        assert_eq!((before, start_lsn, end_lsn), (prev_record, start.record_lsn, start.end_lsn), "{branch_lsn:#x}");
        assert_eq!(record.operation(), operation::CHECKPOINT_SHUTDOWN);
        let read = Checkpoint::decode(place.version, record.main_data()).expect("a checkpoint");
        assert_eq!(read, start.checkpoint);
        assert_eq!((read.redo, read.this_tli, read.prev_tli), (start_lsn.as_u64(), TIMELINE, 1));
        return;
    }
}

/// Positions where a record can end, around `at`.
fn ends_around(place: WalPlace, at: u64, bytes: u64) -> impl Iterator<Item = u64> {
    let can_end = move |lsn: &u64| place.record_end_at_or_before(Lsn::new(*lsn)) == Lsn::new(*lsn);
    (at - bytes..=at + bytes).step_by(8).filter(can_end)
}

#[test]
fn filler_and_checkpoint_read_back_around_every_border() {
    let mut checked = 0;
    for (segment_mib, bytes_around) in [(1, 400), (16, 136)] {
        let place = place(segment_mib << 20);
        let segment = u64::from(place.segment_bytes);
        // The first page of a segment, a page within, and the last page with the segment's end.
        for border in [3 * segment + 8192, 3 * segment + 40 * 8192, 4 * segment] {
            for branch_lsn in ends_around(place, border, bytes_around) {
                check(place, branch_lsn);
                checked += 1;
            }
        }
    }
    assert!(checked > 350, "{checked}");
}

#[test]
fn every_gap_in_the_first_page_is_filled() {
    let place = place(1 << 20);
    let tails: Vec<_> = (0..=8192)
        .step_by(8)
        .map(|offset| (7 << 20) + offset)
        .filter(|lsn| place.record_end_at_or_before(Lsn::new(*lsn)) == Lsn::new(*lsn))
        .filter(|lsn| {
            check(place, *lsn);
            lsn % (1 << 20) > 0 && segments(place, *lsn).1.is_none()
        })
        .collect();
    // 8 and 16 bytes of content: the tail of a record of the segment before.
    assert_eq!(tails, [(7 << 20) + 48, (7 << 20) + 56]);
}

#[test]
fn filler_records_stay_short() {
    let place = place(16 << 20);
    for offset in (0..64).map(|i| filler::RECORD_BYTES_MAX + 128 * 24 + 16 - i * 8 + 24).chain([(16 << 20) - 64]) {
        let branch_lsn = place.record_end_at_or_before(Lsn::new((32 << 20) + offset));
        check(place, branch_lsn.as_u64());
        for piece in Filler::new(place, 1, branch_lsn) {
            assert!(piece.len() as u64 <= filler::RECORD_BYTES_MAX + (1 << 13), "{}", piece.len());
        }
    }
}

#[test]
fn positions_where_no_record_ends_are_moved_or_refused() {
    let place = place(1 << 20);
    let segment = 5 << 20;
    for (lsn, expect) in [
        (segment, segment),
        (segment + 1, segment),
        (segment + 40, segment),
        (segment + 47, segment),
        (segment + 48, segment + 48),
        (segment + 8191, segment + 8184),
        (segment + 8192 + 24, segment + 8192),
        (segment + 8192 + 33, segment + 8192 + 32),
    ] {
        assert_eq!(place.record_end_at_or_before(Lsn::new(lsn)), Lsn::new(expect), "{lsn:#x}");
        let started = start_at(place, lsn, None);
        assert_eq!(started.is_ok(), lsn == expect, "{lsn:#x} {started:?}");
    }
    assert!(matches!(start_at(place, 0, None), Err(StartError::Position { .. })));
    assert!(matches!(start_at(place, u64::MAX / 8 * 8, None), Err(StartError::Position { .. })));
    let same = StartPoint { timeline_id: 1, ..start_at(place, segment, None).expect("starts").point };
    assert!(matches!(Start::new(place, same, &counters(), &real_control()), Err(StartError::TimelineOrder { .. })));
    let odd = WalPlace { segment_bytes: 3 << 20, ..place };
    assert!(matches!(start_at(odd, segment, None), Err(StartError::SegmentSize { .. })));
}

#[test]
fn commit_timestamps_reach_up_to_the_next_transaction() {
    let start = start_at(place(1 << 20), 5 << 20, None).expect("starts");
    assert!(!real_control().track_commit_timestamp);
    assert_eq!(start.checkpoint.newest_commit_ts_xid, 1000);
    let tracking = ControlFile { track_commit_timestamp: true, ..real_control() };
    let start = Start::new(place(1 << 20), start.point, &counters(), &tracking).expect("starts");
    assert_eq!(start.checkpoint.newest_commit_ts_xid, 2047);
    assert_eq!(start.checkpoint.oldest_active_xid, 0);
}

#[test]
fn the_control_file_points_at_the_record() {
    let start = start_at(place(16 << 20), (5 << 24) + 0x28, None);
    assert!(start.is_err(), "within a header");
    let start = start_at(place(16 << 20), (5 << 24) + 0x2000, None).expect("starts");
    let control = control_file(&real_control(), &start);
    let again = ControlFile::decode(&control.encode()).expect("decodes");
    assert_eq!(again, control);
    assert_eq!(again.state, DbState::InProduction);
    assert_eq!(again.checkpoint_lsn, start.record_lsn);
    assert_eq!(again.checkpoint_copy, start.checkpoint.encode(PgVersion::V15));
    assert_eq!((again.min_recovery_lsn, again.backup_start_lsn, again.backup_end_lsn), (None, None, None));
    assert_eq!(again.system_identifier, real_control().system_identifier);
}

#[test]
fn history_repeats_the_parent_s() {
    let line = |before: &[u8]| {
        String::from_utf8(history_content(before, 2, Lsn::new(0x300_0148), "base backup\nof x")).expect("text")
    };
    assert_eq!(line(b""), "2\t0/3000148\tbase backup of x\n");
    assert_eq!(line(b"1\t0/1000000\twhy"), "1\t0/1000000\twhy\n2\t0/3000148\tbase backup of x\n");
    assert_eq!(line(b"1\t0/1000000\twhy\n").lines().count(), 2);
}
