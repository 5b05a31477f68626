//! Goal: records come out of a log whole, with PostgreSQL's ends, however the log is cut; where there is no record, the error says so.
//! Method: logs written record by record (`checks::layout`), one case per edge of the format; random logs cut at random.

use proptest::prelude::*;

use super::super::checks::arbitrary;
use super::super::checks::build::{RecordBuilder, put_crc};
use super::super::checks::layout::WalWriter;
use super::*;

const V: PgVersion = PgVersion::V15;
const SEGMENT_BYTES: u32 = 1 << 20;
const SEGMENT: u64 = SEGMENT_BYTES as u64;
/// A position within a page, right behind its header.
const START: Lsn = Lsn::new(5 * SEGMENT + 3 * PAGE_BYTES + 24);

type Records = Vec<(Lsn, Lsn, Bytes)>;

/// A Heap record of `total_len` bytes.
fn record_of(total_len: usize) -> RecordBuilder {
    let data_len = match total_len {
        24 => 0,
        26..=281 => total_len - 26,
        _ => total_len - 29,
    };
    RecordBuilder { rmid: rmgr::HEAP, main_data: vec![0xDA; data_len], ..RecordBuilder::default() }
}

fn switch() -> RecordBuilder {
    RecordBuilder { rmid: rmgr::XLOG, info: XLOG_SWITCH, ..RecordBuilder::default() }
}

/// Reads all of `log` in pieces of `piece_len`; the records and the error that ended it.
fn read(mut decoder: WalStreamDecoder, log: &[u8], piece_len: usize) -> (Records, Option<WalError>) {
    let mut records = Vec::new();
    for piece in log.chunks(piece_len) {
        decoder.feed(Bytes::copy_from_slice(piece));
        loop {
            match decoder.next_record() {
                Ok(Some(record)) => records.push(record),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(decoder.next_record(), Err(error.clone()), "an error stays");
                    return (records, Some(error));
                }
            }
        }
    }
    assert_eq!(decoder.last_record_end(), records.last().map_or(decoder.last_record_end(), |record| record.1));
    (records, None)
}

/// Reads `log` in one piece, in single bytes and in something between; all must agree.
fn read_all_ways(start_lsn: Lsn, log: &[u8]) -> (Records, Option<WalErrorReason>) {
    let results = [log.len().max(1), 1, 1000].map(|piece_len| {
        let (records, error) = read(WalStreamDecoder::new(V, start_lsn, SEGMENT_BYTES), log, piece_len);
        (records, error.map(|error| error.reason))
    });
    assert_eq!(results[0], results[1]);
    assert_eq!(results[0], results[2]);
    let [first, ..] = results;
    first
}

fn writer_at(start_lsn: u64) -> WalWriter {
    WalWriter::new(V, Lsn::new(start_lsn), SEGMENT_BYTES)
}

#[test]
fn a_record_that_fills_its_page_ends_at_the_page_boundary() {
    // PostgreSQL's EndRecPtr is the boundary, the next record starts behind the header there.
    let mut writer = writer_at(START.as_u64());
    let first = writer.append(&record_of(8192 - 24));
    let second = writer.append(&record_of(40));
    assert_eq!(first.1, Lsn::new(5 * SEGMENT + 4 * PAGE_BYTES));
    assert_eq!(second.0, Lsn::new(5 * SEGMENT + 4 * PAGE_BYTES + 24));
    let (records, error) = read_all_ways(START, &writer.into_bytes());
    assert_eq!((records, error), (vec![first, second], None));
}

#[test]
fn a_record_that_almost_fills_its_page_ends_at_the_page_boundary_too() {
    let mut writer = writer_at(START.as_u64());
    let first = writer.append(&record_of(8192 - 24 - 7));
    let second = writer.append(&record_of(40));
    assert_eq!(first.1.as_u64() % PAGE_BYTES, 0);
    let (records, error) = read_all_ways(START, &writer.into_bytes());
    assert_eq!((records, error), (vec![first, second], None));
}

#[test]
fn a_header_may_lie_on_two_pages() {
    for room in [8, 16] {
        let mut writer = writer_at(START.as_u64());
        let mut expected = vec![writer.append(&record_of(8192 - 24 - room)), writer.append(&record_of(100))];
        expected.push(writer.append(&record_of(24)));
        assert_eq!(expected[1].0.as_u64() % PAGE_BYTES, PAGE_BYTES - room as u64);
        let (records, error) = read_all_ways(START, &writer.into_bytes());
        assert_eq!((records, error), (expected, None));
    }
}

#[test]
fn a_record_goes_over_pages_and_segments() {
    let start_lsn = 7 * SEGMENT - PAGE_BYTES + 200;
    let mut writer = writer_at(start_lsn);
    let expected = vec![writer.append(&record_of(3 * 8192 + 5)), writer.append(&record_of(30))];
    // 7992 on the first page, 8152 behind the long header, 8168, then 269, aligned.
    assert_eq!(expected[0].1, Lsn::new(7 * SEGMENT + 2 * PAGE_BYTES + 24 + 272));
    let (records, error) = read_all_ways(Lsn::new(start_lsn), &writer.into_bytes());
    assert_eq!((records, error), (expected, None));
}

#[test]
fn a_continued_record_that_ends_with_a_page_ends_at_the_boundary() {
    let mut writer = writer_at(START.as_u64());
    let expected = vec![writer.append(&record_of(2 * (8192 - 24))), writer.append(&record_of(30))];
    assert_eq!(expected[0].1, Lsn::new(5 * SEGMENT + 5 * PAGE_BYTES));
    let (records, error) = read_all_ways(START, &writer.into_bytes());
    assert_eq!((records, error), (expected, None));
}

#[test]
fn after_a_switch_the_next_segment_follows() {
    let mut writer = writer_at(START.as_u64());
    let expected = vec![writer.append(&record_of(30)), writer.append(&switch()), writer.append(&record_of(99))];
    assert_eq!(expected[1].1, Lsn::new(6 * SEGMENT), "EndRecPtr is the end of the segment");
    assert_eq!(expected[2].0, Lsn::new(6 * SEGMENT + 40));
    let (records, error) = read_all_ways(START, &writer.into_bytes());
    assert_eq!((records, error), (expected, None));
}

#[test]
fn a_switch_that_ends_with_its_segment_skips_nothing() {
    let start_lsn = 6 * SEGMENT - 24;
    let mut writer = writer_at(start_lsn);
    let expected = vec![writer.append(&switch()), writer.append(&record_of(99))];
    assert_eq!(expected[0].1, Lsn::new(6 * SEGMENT));
    let (records, error) = read_all_ways(Lsn::new(start_lsn), &writer.into_bytes());
    assert_eq!((records, error), (expected, None));
}

#[test]
fn what_follows_a_switch_is_not_looked_at() {
    let mut writer = writer_at(START.as_u64());
    let expected = vec![writer.append(&switch())];
    let rest = writer.position().as_u64() - (START.as_u64() + 24);
    let mut log = writer.into_bytes();
    let from = log.len() - rest as usize;
    log[from..].fill(0xEE);
    assert_eq!(read_all_ways(START, &log), (expected, None));
}

#[test]
fn reading_starts_at_the_boundary_that_an_end_lsn_points_to() {
    for start_lsn in [5 * SEGMENT + PAGE_BYTES, 5 * SEGMENT] {
        let mut writer = writer_at(start_lsn);
        let expected = vec![writer.append(&record_of(30))];
        assert!(expected[0].0.as_u64() > start_lsn);
        assert_eq!(read_all_ways(Lsn::new(start_lsn), &writer.into_bytes()), (expected, None));
    }
}

#[test]
fn the_rest_of_a_record_is_skipped_from_a_page_start_on() {
    // One record over five pages, read from each of them; lengths that end before, at and after a page end.
    for total_len in [4 * 8168 + 100, 5 * 8168 - 3, 5 * 8168, 5 * 8168 + 1] {
        let mut writer = writer_at(START.as_u64());
        let long = writer.append(&record_of(total_len));
        let next = writer.append(&record_of(30));
        let log = writer.into_bytes();
        for page in 4..8_u64 {
            let page_lsn = Lsn::new(5 * SEGMENT + page * PAGE_BYTES);
            let from = &log[page_lsn.saturating_sub(START) as usize..];
            for piece_len in [1, 50, from.len()] {
                let decoder = WalStreamDecoder::new_at_page(V, page_lsn, SEGMENT_BYTES);
                let (records, error) = read(decoder, from, piece_len);
                assert_eq!((records, error), (vec![next.clone()], None), "{total_len} page {page}");
            }
        }
        let mut decoder = WalStreamDecoder::new_at_page(V, Lsn::new(5 * SEGMENT + 4 * PAGE_BYTES), SEGMENT_BYTES);
        decoder.feed(Bytes::copy_from_slice(&log[8192 - 24..]));
        while let Ok(Some(_)) = decoder.next_record() {}
        assert_eq!(decoder.last_record_end(), next.1);
        let mut decoder = WalStreamDecoder::new_at_page(V, Lsn::new(5 * SEGMENT + 4 * PAGE_BYTES), SEGMENT_BYTES);
        let long_end = long.1.saturating_sub(START) as usize;
        decoder.feed(Bytes::copy_from_slice(&log[8192 - 24..long_end]));
        assert_eq!(decoder.next_record(), Ok(None));
        assert_eq!(decoder.last_record_end(), long.1, "where the skipped record ends is known");
    }
}

#[test]
fn a_page_start_without_a_rest_is_read_from_its_first_record() {
    let mut writer = writer_at(5 * SEGMENT);
    let expected = vec![writer.append(&record_of(30))];
    let decoder = WalStreamDecoder::new_at_page(V, Lsn::new(5 * SEGMENT), SEGMENT_BYTES);
    assert_eq!(read(decoder, &writer.into_bytes(), 7), (expected, None));
}

fn overwrite_of(lsn: Lsn) -> RecordBuilder {
    let main_data = [lsn.as_u64().to_le_bytes(), [0; 8]].concat();
    RecordBuilder { rmid: rmgr::XLOG, info: XLOG_OVERWRITE_CONTRECORD, main_data, ..RecordBuilder::default() }
}

#[test]
fn a_torn_record_is_given_up_when_another_stands_in_its_place() {
    let mut writer = writer_at(START.as_u64());
    let first = writer.append(&record_of(100));
    let torn_lsn = writer.append_torn(&record_of(20_000));
    assert_eq!(writer.prev_lsn(), first.0, "the torn record is no one's predecessor");
    writer.put_page_header(super::super::page_header::FIRST_IS_OVERWRITE_CONTRECORD, 0);
    let overwrite = writer.append(&overwrite_of(torn_lsn));
    let last = writer.append(&record_of(50));
    let (records, error) = read_all_ways(START, &writer.into_bytes());
    assert_eq!((records, error), (vec![first, overwrite, last], None));
}

#[test]
fn a_torn_record_is_not_given_up_for_a_record_that_does_not_name_it() {
    for wrong in [overwrite_of(Lsn::new(0x1234)), record_of(50)] {
        let mut writer = writer_at(START.as_u64());
        let abandoned_lsn = writer.append_torn(&record_of(20_000));
        writer.put_page_header(super::super::page_header::FIRST_IS_OVERWRITE_CONTRECORD, 0);
        writer.append(&wrong);
        let (records, error) = read_all_ways(START, &writer.into_bytes());
        assert_eq!((records, error), (vec![], Some(WalErrorReason::WrongOverwrite { abandoned_lsn })));
    }
}

#[test]
fn a_torn_record_ends_the_log_otherwise() {
    let mut writer = writer_at(START.as_u64());
    let first = writer.append(&record_of(100));
    writer.append_torn(&record_of(20_000));
    let page_lsn = writer.position();
    let mut other = writer.clone();
    writer.put_page_header(0, 0);
    writer.append(&record_of(50));
    let reason = WalErrorReason::NoContinuation { page_lsn };
    assert_eq!(read_all_ways(START, &writer.into_bytes()), (vec![first.clone()], Some(reason)));

    other.put_page_header(1, 77);
    let expected = (20_000 - (8192 - 24 - 104)) as u32;
    let reason = WalErrorReason::ContinuationLength { page_lsn, rem_len: 77, expected };
    assert_eq!(read_all_ways(START, &other.into_bytes()), (vec![first], Some(reason)));
}

#[test]
fn a_page_that_continues_nothing_is_refused() {
    let start_lsn = 5 * SEGMENT + PAGE_BYTES;
    let mut writer = writer_at(start_lsn);
    writer.put_page_header(1, 50);
    writer.append(&record_of(50));
    let page_lsn = Lsn::new(start_lsn);
    let reason = WalErrorReason::UnexpectedContinuation { page_lsn };
    assert_eq!(read_all_ways(page_lsn, &writer.into_bytes()), (vec![], Some(reason)));
}

/// Two good records and where the second starts in the log.
fn two_records() -> (Records, Vec<u8>, usize) {
    let mut writer = writer_at(START.as_u64());
    let records = vec![writer.append(&record_of(100)), writer.append(&record_of(100))];
    (records, writer.into_bytes(), 104)
}

#[test]
fn whatever_is_no_record_ends_the_log_with_its_reason() {
    let (records, log, second) = two_records();
    let broken = |change: &dyn Fn(&mut [u8])| {
        let mut log = log.clone();
        change(&mut log[second..second + 100]);
        let (read, error) = read(WalStreamDecoder::new(V, START, SEGMENT_BYTES), &log, 8192);
        assert_eq!(read, records[..1]);
        let error = error.expect("the second record is broken");
        assert_eq!((error.kind(), error.record_lsn), (WalErrorKind::EndOfWal, records[1].0));
        error.reason
    };
    assert_eq!(broken(&|record| record.fill(0)), WalErrorReason::Length { total_len: 0 });
    assert_eq!(broken(&|record| record[0] = 23), WalErrorReason::Length { total_len: 23 });
    assert_eq!(broken(&|record| record[3] = 0x40), WalErrorReason::Length { total_len: 0x4000_0064 });
    assert_eq!(broken(&|record| record[17] = 22), WalErrorReason::ResourceManager { rmid: 22 });
    assert_eq!(broken(&|record| record[99] ^= 1), WalErrorReason::Crc);
    assert_eq!(broken(&|record| record[16] ^= 1), WalErrorReason::Crc);
    let other_prev = |record: &mut [u8]| {
        record[8..16].copy_from_slice(&0x28_u64.to_le_bytes());
        put_crc(record);
    };
    assert_eq!(broken(&other_prev), WalErrorReason::PrevLink { prev_lsn: Lsn::new(0x28) });
}

#[test]
fn resource_managers_of_extensions_exist_from_15_on() {
    for (version, exists) in [(PgVersion::V14, false), (PgVersion::V15, true), (PgVersion::V18, true)] {
        let mut writer = WalWriter::new(version, START, SEGMENT_BYTES);
        writer.append(&RecordBuilder { rmid: 128, ..record_of(50) });
        let (records, error) = read(WalStreamDecoder::new(version, START, SEGMENT_BYTES), &writer.into_bytes(), 100);
        assert_eq!((records.len() == 1, error.is_none()), (exists, exists), "{version}");
    }
}

#[test]
fn the_link_of_the_first_record_must_lead_back() {
    let (_, mut log, _) = two_records();
    log[8..16].copy_from_slice(&START.as_u64().to_le_bytes());
    put_crc(&mut log[..100]);
    let (records, error) = read_all_ways(START, &log);
    assert_eq!((records, error), (vec![], Some(WalErrorReason::PrevLink { prev_lsn: START })));
}

#[test]
fn an_older_record_at_the_start_is_refused_when_the_one_before_is_known() {
    let (records, log, second) = two_records();
    let decoder = || WalStreamDecoder::new(V, records[1].0, SEGMENT_BYTES);
    let right = read(decoder().with_record_before(records[0].0), &log[second..], 100);
    assert_eq!(right, (records[1..].to_vec(), None));
    let (none, error) = read(decoder().with_record_before(Lsn::new(0x28)), &log[second..], 100);
    let reason = WalErrorReason::PrevLink { prev_lsn: records[0].0 };
    assert_eq!((none, error.map(|error| error.reason)), (vec![], Some(reason)));
}

#[test]
fn a_zero_or_recycled_page_ends_the_log_and_a_foreign_one_is_told() {
    let mut writer = writer_at(START.as_u64());
    let first = writer.append(&record_of(8192 - 24));
    writer.append(&record_of(50));
    let log = writer.into_bytes();
    let broken = |change: &dyn Fn(&mut [u8])| {
        let mut log = log.clone();
        change(&mut log[8192 - 24..]);
        let (records, error) = read(WalStreamDecoder::new(V, START, SEGMENT_BYTES), &log, 8192);
        assert_eq!(records, std::slice::from_ref(&first));
        let error = error.expect("the page is broken");
        assert_eq!(error.record_lsn, first.1);
        (error.kind(), error.reason)
    };
    assert!(matches!(broken(&|page| page.fill(0)), (WalErrorKind::EndOfWal, WalErrorReason::Page { .. })));
    assert!(matches!(broken(&|page| page[10] ^= 0x10), (WalErrorKind::EndOfWal, WalErrorReason::Page { .. })));
    assert!(matches!(broken(&|page| page[2] |= 2), (WalErrorKind::EndOfWal, WalErrorReason::Page { .. })));
    assert!(matches!(broken(&|page| page[0] = 0x18), (WalErrorKind::Foreign, WalErrorReason::Page { .. })));
}

#[test]
fn wal_of_another_cluster_is_refused() {
    let mut writer = writer_at(5 * SEGMENT);
    writer.system_id = 99;
    writer.append(&record_of(50));
    let log = writer.into_bytes();
    let decoder = || WalStreamDecoder::new(V, Lsn::new(5 * SEGMENT), SEGMENT_BYTES);
    let (records, error) = read(decoder().with_system_id(99), &log, 100);
    assert_eq!((records.len(), error), (1, None));
    let (_, error) = read(decoder().with_system_id(98), &log, 100);
    assert_eq!(error.map(|error| error.kind()), Some(WalErrorKind::Foreign));
    let other_size = WalStreamDecoder::new(V, Lsn::new(10 * SEGMENT), 2 * SEGMENT_BYTES);
    let mut writer = writer_at(10 * SEGMENT);
    writer.append(&record_of(50));
    let (_, error) = read(other_size, &writer.into_bytes(), 100);
    assert_eq!(error.map(|error| error.kind()), Some(WalErrorKind::Foreign));
}

#[test]
fn impossible_starts_are_told() {
    let segment_start = 5 * SEGMENT;
    for (start_lsn, segment_bytes) in [
        (segment_start + 8, SEGMENT_BYTES),
        (segment_start + 32, SEGMENT_BYTES),
        (segment_start + PAGE_BYTES + 16, SEGMENT_BYTES),
        (segment_start + 101, SEGMENT_BYTES),
        (segment_start + 104, 0),
        (segment_start + 104, SEGMENT_BYTES + 1),
    ] {
        let mut decoder = WalStreamDecoder::new(V, Lsn::new(start_lsn), segment_bytes);
        decoder.feed(Bytes::from_static(&[0; 100]));
        let error = decoder.next_record().expect_err("impossible");
        assert_eq!(error.kind(), WalErrorKind::InvalidStart, "{start_lsn:X} {segment_bytes}");
    }
    let mut decoder = WalStreamDecoder::new_at_page(V, Lsn::new(segment_start + 104), SEGMENT_BYTES);
    assert_eq!(decoder.next_record().expect_err("no page start").kind(), WalErrorKind::InvalidStart);
}

#[test]
fn the_end_of_the_address_space_is_an_error() {
    for start_lsn in [u64::MAX - 7, u64::MAX - 8191, u64::MAX - 3 * 8192 + 1] {
        let mut decoder = WalStreamDecoder::new(V, Lsn::new(start_lsn), SEGMENT_BYTES);
        let record = RecordBuilder { rmid: 10, main_data: vec![1; 300_000], ..RecordBuilder::default() };
        let mut log = vec![0; 40_000];
        let raw = record.build(V, Lsn::ZERO);
        log.splice(..0, raw);
        decoder.feed(Bytes::from(log));
        assert!(decoder.next_record().is_err());
    }
}

#[test]
fn a_claimed_length_allocates_nothing() {
    let mut decoder = WalStreamDecoder::new(V, START, SEGMENT_BYTES);
    let mut log = record_of(100).build(V, Lsn::ZERO);
    log[..4].copy_from_slice(&RECORD_LEN_MAX.to_le_bytes());
    log.resize(8192 - 24, 7);
    decoder.feed(Bytes::from(log));
    assert_eq!(decoder.next_record(), Ok(None));
    let State::InRecord(partial) = &decoder.state else { panic!("in the record") };
    assert!(partial.bytes.capacity() <= ASSEMBLY_RESERVE_MAX.max(2 * partial.bytes.len()));
}

#[test]
fn the_end_is_seen_from_the_first_four_bytes() {
    let mut decoder = WalStreamDecoder::new(V, START, SEGMENT_BYTES);
    decoder.feed(Bytes::from_static(&[0; 3]));
    assert_eq!(decoder.next_record(), Ok(None));
    decoder.feed(Bytes::from_static(&[0]));
    assert_eq!(decoder.next_record().expect_err("zeroes").reason, WalErrorReason::Length { total_len: 0 });
}

#[test]
fn the_timeline_and_the_bytes_fed_are_known() {
    let mut writer = writer_at(5 * SEGMENT);
    writer.append(&record_of(100));
    let log = Bytes::from(writer.into_bytes());
    let mut decoder = WalStreamDecoder::new(V, Lsn::new(5 * SEGMENT), SEGMENT_BYTES);
    assert_eq!((decoder.timeline_id(), decoder.fed_until()), (None, Lsn::new(5 * SEGMENT)));
    decoder.feed(log.slice(..140));
    assert_eq!(decoder.fed_until(), Lsn::new(5 * SEGMENT + 140));
    assert!(matches!(decoder.next_record(), Ok(Some(_))));
    assert_eq!(decoder.timeline_id(), Some(1));
    assert_eq!(decoder.last_record_end(), Lsn::new(5 * SEGMENT + 144), "padding need not have come");
    assert_eq!(decoder.fed_until(), Lsn::new(5 * SEGMENT + 140));
    assert_eq!(decoder.last_record_start(), Some(Lsn::new(5 * SEGMENT + 40)));
}

#[test]
fn a_record_within_one_piece_is_not_copied() {
    let (records, log, _) = two_records();
    let log = Bytes::from(log);
    let mut decoder = WalStreamDecoder::new(V, START, SEGMENT_BYTES);
    decoder.feed(log.clone());
    let (_, _, raw) = decoder.next_record().expect("good").expect("there");
    assert_eq!(raw, records[0].2);
    assert_eq!(raw.as_ptr(), log.as_ptr());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn however_a_log_is_cut_the_same_records_come_out(
        version in arbitrary::version(),
        builders in proptest::collection::vec(arbitrary::record(), 1..8),
        before_segment_end in 0..40_000_u64,
        cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..20),
    ) {
        let start_lsn = 6 * SEGMENT - before_segment_end / 8 * 8;
        let start_lsn = Lsn::new(if start_lsn % PAGE_BYTES < 24 { start_lsn / PAGE_BYTES * PAGE_BYTES } else { start_lsn });
        let mut writer = WalWriter::new(version, start_lsn, SEGMENT_BYTES);
        let written: Records = builders.iter().map(|builder| writer.append(builder)).collect();
        let log = Bytes::from(writer.into_bytes());
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(log.len())).chain([0, log.len()]).collect();
        cuts.sort_unstable();
        let mut decoder = WalStreamDecoder::new(version, start_lsn, SEGMENT_BYTES);
        let mut read = Vec::new();
        for cut in cuts.windows(2) {
            decoder.feed(log.slice(cut[0]..cut[1]));
            while let Some(record) = decoder.next_record().expect("a good log") {
                read.push(record);
            }
            let whole = written.iter().rev().find(|(start, _, raw)| end_of_bytes(*start, raw.len()) <= start_lsn.as_u64() + cut[1] as u64);
            prop_assert_eq!(decoder.last_record_end(), whole.map_or(start_lsn, |record| record.1));
        }
        prop_assert_eq!(read, written);
    }

    #[test]
    fn a_log_with_changed_bytes_gives_only_records_that_were_written(
        builders in proptest::collection::vec(arbitrary::record(), 1..6),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut writer = WalWriter::new(V, START, SEGMENT_BYTES);
        let written: Records = builders.iter().map(|builder| writer.append(builder)).collect();
        let mut log = writer.into_bytes();
        for (at, value) in changes {
            let at = at.index(log.len());
            log[at] = value;
        }
        let (read, _) = read(WalStreamDecoder::new(V, START, SEGMENT_BYTES), &log, 5000);
        prop_assert!(read.len() <= written.len());
        prop_assert_eq!(&read[..], &written[..read.len()]);
    }
}

/// Position behind the last byte of a record of `len` bytes that starts at `start_lsn`, page headers counted.
fn end_of_bytes(start_lsn: Lsn, len: usize) -> u64 {
    let (mut at, mut rest) = (start_lsn.as_u64(), len as u64);
    loop {
        let here = rest.min(PAGE_BYTES - at % PAGE_BYTES);
        at += here;
        rest -= here;
        if rest == 0 {
            return at;
        }
        at += if at.is_multiple_of(SEGMENT) { 40 } else { 24 };
    }
}
