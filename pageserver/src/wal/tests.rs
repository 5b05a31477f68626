//! Goal: what was flushed is read back after any crash, and nothing else is. Method: logs built record by record, files cut and
//! damaged at every kind of place, then opened again.

use std::fs;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use postgres_ffi::wal::WalStreamDecoder;
use postgres_ffi::wal::checks::build::RecordBuilder;
use postgres_ffi::wal::checks::layout::WalWriter;
use postgres_ffi::{Lsn, PgVersion};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;

use super::*;

pub(crate) const SEGMENT_BYTES: u32 = 1024 * 1024;
const FIRST_SEGMENT_NO: u64 = 3;

fn record(rng: &mut SmallRng) -> RecordBuilder {
    let length = match rng.random_range(0..10) {
        0 => rng.random_range(8000..40_000),
        1..4 => rng.random_range(1000..9000),
        _ => rng.random_range(0..300),
    };
    // Resource manager 10 is heap; a switch now and then.
    if rng.random_range(0..60) == 0 {
        return RecordBuilder { rmid: 0, info: 0x40, ..RecordBuilder::default() };
    }
    RecordBuilder { xid: 700, rmid: 10, main_data: vec![rng.random(); length], ..RecordBuilder::default() }
}

/// A log from a segment's start on, with records of all lengths and switches.
pub(crate) fn random_log(seed: u64, record_count: usize) -> (Lsn, Vec<u8>) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let start_lsn = Lsn::new(FIRST_SEGMENT_NO * u64::from(SEGMENT_BYTES));
    let mut writer = WalWriter::new(PgVersion::V15, start_lsn, SEGMENT_BYTES);
    for _ in 0..record_count {
        writer.append(&record(&mut rng));
    }
    (start_lsn, writer.into_bytes())
}

/// Such a log on disk, its bytes, and where each record begins and ends.
pub(crate) fn written_log(
    layout: &WalLayout,
    seed: u64,
    record_count: usize,
) -> (WalLog, Lsn, Vec<u8>, Vec<(Lsn, Lsn)>) {
    let (start_lsn, wal) = random_log(seed, record_count);
    let mut log = WalLog::create(layout.clone(), 1, start_lsn).expect("created");
    log.append(start_lsn, &[Bytes::copy_from_slice(&wal)]).expect("appended");
    log.flush().expect("flushed");
    let mut decoder = WalStreamDecoder::new(PgVersion::V15, start_lsn, SEGMENT_BYTES);
    decoder.feed(Bytes::copy_from_slice(&wal));
    let next = || decoder.next_record().ok().flatten().map(|(start_lsn, end_lsn, _)| (start_lsn, end_lsn));
    let records = std::iter::from_fn(next).collect();
    (log, start_lsn, wal, records)
}

pub(crate) fn layout(directory: &TempDir) -> WalLayout {
    WalLayout {
        directory: directory.path().join("wal"),
        version: PgVersion::V15,
        segment_bytes: SEGMENT_BYTES,
        system_id: 7,
    }
}

/// Writes `wal` in pieces of random size.
fn write(log: &mut WalLog, wal: &[u8], rng: &mut SmallRng) {
    let mut rest = wal;
    while !rest.is_empty() {
        let mut pieces = Vec::new();
        for _ in 0..rng.random_range(1..5) {
            let length = rng.random_range(1..40_000).min(rest.len());
            pieces.push(Bytes::copy_from_slice(&rest[..length]));
            rest = &rest[length..];
        }
        let start_lsn = log.written_lsn();
        log.append(start_lsn, &pieces).unwrap();
        if rng.random() {
            log.flush().unwrap();
        }
    }
}

fn read_all(layout: &WalLayout, start_lsn: Lsn, end_lsn: Lsn) -> Vec<u8> {
    let mut reader = WalReader::new(layout.clone());
    let mut bytes = Vec::new();
    loop {
        let at = Lsn::new(start_lsn.as_u64() + bytes.len() as u64);
        let piece = reader.read(at, end_lsn, 100_000).unwrap();
        if piece.is_empty() {
            return bytes;
        }
        bytes.extend_from_slice(&piece);
    }
}

#[test]
fn what_is_written_is_read_back_and_found_again() {
    let directory = TempDir::new().unwrap();
    let (start_lsn, wal) = random_log(1, 400);
    let mut log = WalLog::create(layout(&directory), 1, start_lsn).unwrap();
    write(&mut log, &wal, &mut SmallRng::seed_from_u64(2));
    let end_lsn = log.flush().unwrap();
    assert_eq!(end_lsn, Lsn::new(start_lsn.as_u64() + wal.len() as u64));
    assert_eq!(log.flushed_record_end_lsn(), Some(end_lsn));
    assert_eq!(read_all(&layout(&directory), start_lsn, end_lsn), wal);
    drop(log);

    let log = WalLog::open(layout(&directory), Lsn::ZERO).unwrap().unwrap();
    assert_eq!((log.written_lsn(), log.timeline_id()), (end_lsn, 1));
    for entry in fs::read_dir(directory.path().join("wal")).unwrap() {
        assert_eq!(entry.unwrap().metadata().unwrap().len(), u64::from(SEGMENT_BYTES));
    }
}

#[test]
fn a_cut_anywhere_ends_at_the_last_whole_record_and_leaves_no_trace() {
    let (start_lsn, wal) = random_log(3, 60);
    let whole = ends_of(start_lsn, &wal);
    let mut rng = SmallRng::seed_from_u64(4);
    let cuts = (0..120).map(|index| if index < 40 { index * 7 } else { rng.random_range(1..wal.len()) });
    for cut in cuts.collect::<Vec<_>>() {
        let directory = TempDir::new().unwrap();
        let mut log = WalLog::create(layout(&directory), 1, start_lsn).unwrap();
        write(&mut log, &wal[..cut], &mut rng);
        drop(log);
        let cut_lsn = Lsn::new(start_lsn.as_u64() + cut as u64);
        let expected = whole.iter().rfind(|record| record.whole_lsn <= cut_lsn).map(|record| record.end_lsn);
        let opened = WalLog::open(layout(&directory), Lsn::ZERO).unwrap();
        assert_eq!(kept(&directory), Vec::<String>::new(), "a crash leaves no whole record behind the end");
        let Some(expected) = expected else {
            assert!(opened.is_none(), "cut at {cut_lsn}");
            continue;
        };
        let mut log = opened.unwrap();
        assert_eq!(log.written_lsn(), expected, "cut at {cut_lsn}");
        let segment_end = layout(&directory).segment_start(expected).as_u64() + u64::from(SEGMENT_BYTES);
        if layout(&directory).segment_start(expected) != expected {
            let tail = read_all(&layout(&directory), expected, Lsn::new(segment_end));
            assert!(tail.iter().all(|byte| *byte == 0), "a trace behind {expected}");
        }
        // Write, reopen, read back.
        write(&mut log, wal.get(expected.saturating_sub(start_lsn) as usize..).unwrap_or(&[]), &mut rng);
        let end_lsn = log.flush().unwrap();
        drop(log);
        assert_eq!(WalLog::open(layout(&directory), Lsn::ZERO).unwrap().unwrap().written_lsn(), end_lsn);
        assert_eq!(read_all(&layout(&directory), start_lsn, end_lsn), wal);
    }
}

/// Names of the copies of files that were cut.
fn kept(directory: &TempDir) -> Vec<String> {
    let names = fs::read_dir(directory.path().join("wal")).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter_map(|name| name.into_string().ok().filter(|name| name.ends_with(".cut"))).collect()
}

/// Writes over `bytes.len()` bytes of a file of WAL.
fn overwrite(directory: &TempDir, name: &str, offset: u64, bytes: &[u8]) {
    let file = fs::OpenOptions::new().write(true).open(directory.path().join("wal").join(name)).unwrap();
    file.write_all_at(bytes, offset).unwrap();
}

/// A log on disk with a damaged record in its last segment and whole records on pages behind it.
struct DamagedLog {
    directory: TempDir,
    /// The damaged record's begin and end.
    damaged: (Lsn, Lsn),
    /// Where each record ends.
    ends: Vec<Lsn>,
    end_lsn: Lsn,
    /// Name of the damaged file, and its content.
    name: String,
    content: Vec<u8>,
}

impl DamagedLog {
    fn new(seed: u64) -> Option<Self> {
        let directory = TempDir::new().unwrap();
        let (log, _, _, records) = written_log(&layout(&directory), seed, 120);
        let end_lsn = log.written_lsn();
        let last_lsn = records[records.len() - 1].0;
        let segment_start = layout(&directory).segment_start(last_lsn);
        let mut in_last = records.iter().filter(|(begin, _)| segment_start <= *begin);
        let damaged = *in_last.nth(2)?;
        if last_lsn < Lsn::new(damaged.1.as_u64() + 3 * 8192 + 40_000) {
            return None;
        }
        let name = names::segment_file_name(1, layout(&directory).segment_no(damaged.0), SEGMENT_BYTES);
        overwrite(&directory, &name, damaged.0.saturating_sub(segment_start) + 20, &[0xFF; 4]);
        let content = fs::read(directory.path().join("wal").join(&name)).unwrap();
        let ends = records.into_iter().map(|(_, end_lsn)| end_lsn).collect();
        Some(DamagedLog { directory, damaged, ends, end_lsn, name, content })
    }

    fn open(&self, ingested_lsn: Lsn) -> Lsn {
        WalLog::open(layout(&self.directory), ingested_lsn).unwrap().unwrap().written_lsn()
    }

    fn content_of(&self, name: &str) -> Vec<u8> {
        fs::read(self.directory.path().join("wal").join(name)).unwrap()
    }
}

#[test]
fn what_stands_behind_damage_in_the_last_segment_is_kept() {
    let log = (10..30).find_map(DamagedLog::new).expect("a log with enough in its last segment");
    let (damaged_lsn, _) = log.damaged;
    assert!(log.open(damaged_lsn) <= damaged_lsn);
    let copy = format!("{}.cut", log.name);
    assert_eq!(kept(&log.directory), [copy.as_str()]);
    assert!(log.content_of(&copy) == log.content);
    // Once: what was cut is gone.
    fs::remove_file(log.directory.path().join("wal").join(copy)).unwrap();
    assert!(log.open(damaged_lsn) <= damaged_lsn);
    assert!(kept(&log.directory).is_empty());
}

#[test]
fn damage_below_what_is_ingested_is_no_end() {
    for log in (10..40).filter_map(DamagedLog::new) {
        // Ingested behind the damaged record at once, and further, to the end.
        let (_, behind_damage) = log.damaged;
        let later = log.ends.iter().copied().filter(|end_lsn| behind_damage <= *end_lsn);
        for ingested_lsn in later.step_by(7).chain([log.end_lsn]) {
            assert_eq!(log.open(ingested_lsn), log.end_lsn);
            assert!(kept(&log.directory).is_empty());
            assert!(log.content_of(&log.name) == log.content);
        }
        // Behind the end: the log never led there, and it is cut where it cannot be read.
        assert!(log.open(Lsn::new(log.end_lsn.as_u64() + 8)) <= log.damaged.0);
        assert_eq!(kept(&log.directory), [format!("{}.cut", log.name)]);
    }
}

#[test]
fn damage_over_where_ingest_goes_on_is_cut_as_any_end() {
    for log in (10..40).filter_map(DamagedLog::new) {
        // The record that comes next is damaged, too, and good ones follow.
        let (damaged_lsn, ingested_lsn) = log.damaged;
        overwrite(&log.directory, &log.name, layout(&log.directory).segment_offset(ingested_lsn) + 20, &[0xEE; 4]);
        assert!(log.open(ingested_lsn) <= damaged_lsn);
        assert_eq!(kept(&log.directory), [format!("{}.cut", log.name)]);
    }
}

#[test]
fn records_of_many_pages_behind_damage_are_found() {
    let start_lsn = Lsn::new(FIRST_SEGMENT_NO * u64::from(SEGMENT_BYTES));
    let mut writer = WalWriter::new(PgVersion::V15, start_lsn, SEGMENT_BYTES);
    writer.append(&long_record(100));
    let (damaged_lsn, ..) = writer.append(&long_record(100));
    let ends: Vec<Lsn> = (0..3).map(|_| writer.append(&long_record(32 * 8192)).1).collect();
    let end_lsn = writer.position();
    let wal = writer.into_bytes();
    for ingested_lsn in ends {
        let directory = TempDir::new().unwrap();
        let mut log = WalLog::create(layout(&directory), 1, start_lsn).unwrap();
        write(&mut log, &wal, &mut SmallRng::seed_from_u64(1));
        drop(log);
        let name = names::segment_file_name(1, FIRST_SEGMENT_NO, SEGMENT_BYTES);
        overwrite(&directory, &name, damaged_lsn.saturating_sub(start_lsn) + 30, &[0xFF]);
        assert_eq!(WalLog::open(layout(&directory), ingested_lsn).unwrap().unwrap().written_lsn(), end_lsn);
        assert!(kept(&directory).is_empty());
        // Not ingested: an end, and what stands behind it is kept.
        assert_eq!(WalLog::open(layout(&directory), damaged_lsn).unwrap().unwrap().written_lsn(), damaged_lsn);
        assert_eq!(kept(&directory), [format!("{name}.cut")]);
    }
}

#[test]
fn a_log_without_a_whole_record_begins_again_where_it_began() {
    let directory = TempDir::new().unwrap();
    let start_lsn = Lsn::new(FIRST_SEGMENT_NO * u64::from(SEGMENT_BYTES));
    let mut writer = WalWriter::new(PgVersion::V15, start_lsn, SEGMENT_BYTES);
    writer.append(&long_record(2 * SEGMENT_BYTES as usize));
    let wal = writer.into_bytes();
    let mut log = WalLog::create(layout(&directory), 1, start_lsn).unwrap();
    write(&mut log, &wal[..wal.len() / 2 + 9000], &mut SmallRng::seed_from_u64(5));
    assert!(Lsn::new(start_lsn.as_u64() + u64::from(SEGMENT_BYTES)) < log.written_lsn());
    assert_eq!(log.rewind_to_record_end().unwrap(), start_lsn);
    write(&mut log, &wal, &mut SmallRng::seed_from_u64(6));
    let end_lsn = log.flush().unwrap();
    assert_eq!(read_all(&layout(&directory), start_lsn, end_lsn), wal);
    assert_eq!(WalLog::open(layout(&directory), Lsn::ZERO).unwrap().unwrap().written_lsn(), end_lsn);
}

/// Where a record counts as whole, and where the next one may start.
struct RecordEnd {
    whole_lsn: Lsn,
    end_lsn: Lsn,
}

fn ends_of(start_lsn: Lsn, wal: &[u8]) -> Vec<RecordEnd> {
    let mut decoder = postgres_ffi::wal::WalStreamDecoder::new(PgVersion::V15, start_lsn, SEGMENT_BYTES);
    decoder.feed(Bytes::copy_from_slice(wal));
    let mut ends = Vec::new();
    while let Ok(Some((record_start_lsn, end_lsn, raw))) = decoder.next_record() {
        // Behind a switch lies only padding up to the segment's end, which zeroes stand for as well.
        let is_switch = raw[17] == 0 && raw[16] == 0x40;
        let record_end_lsn = record_start_lsn.checked_add(raw.len() as u64).unwrap();
        ends.push(RecordEnd { whole_lsn: if is_switch { record_end_lsn } else { end_lsn }, end_lsn });
    }
    ends
}

/// A record of `length` bytes of main data.
fn long_record(length: usize) -> RecordBuilder {
    RecordBuilder { rmid: 10, main_data: vec![0xAB; length], ..RecordBuilder::default() }
}

#[test]
fn a_record_longer_than_segments_is_found_or_cut_whole() {
    let start_lsn = Lsn::new(FIRST_SEGMENT_NO * u64::from(SEGMENT_BYTES));
    let mut writer = WalWriter::new(PgVersion::V15, start_lsn, SEGMENT_BYTES);
    writer.append(&long_record(100));
    let (record_start, record_end, _) = writer.append(&long_record(3 * SEGMENT_BYTES as usize));
    let wal = writer.into_bytes();
    for (length, expected) in [(wal.len(), record_end), (wal.len() - 9, record_start)] {
        let directory = TempDir::new().unwrap();
        let mut log = WalLog::create(layout(&directory), 1, start_lsn).unwrap();
        write(&mut log, &wal[..length], &mut SmallRng::seed_from_u64(5));
        drop(log);
        let log = WalLog::open(layout(&directory), Lsn::ZERO).unwrap().unwrap();
        assert_eq!(log.written_lsn(), expected);
        let segment_count = layout(&directory).segments().unwrap().len() as u64;
        assert_eq!(segment_count, layout(&directory).segment_no(expected) - FIRST_SEGMENT_NO + 1);
    }
}

#[test]
fn damage_in_a_durable_segment_is_an_error_with_its_place() {
    let directory = TempDir::new().unwrap();
    let start_lsn = Lsn::new(FIRST_SEGMENT_NO * u64::from(SEGMENT_BYTES));
    let mut writer = WalWriter::new(PgVersion::V15, start_lsn, SEGMENT_BYTES);
    writer.append(&long_record(10));
    let (damaged, ..) = writer.append(&long_record(10));
    // No record starts in the second segment, so the first one is read too.
    writer.append(&long_record(SEGMENT_BYTES as usize - 2000));
    writer.append(&long_record(2 * SEGMENT_BYTES as usize));
    let wal = writer.into_bytes();
    let mut log = WalLog::create(layout(&directory), 1, start_lsn).unwrap();
    write(&mut log, &wal[..wal.len() - 5000], &mut SmallRng::seed_from_u64(6));
    drop(log);
    let name = names::segment_file_name(1, FIRST_SEGMENT_NO, SEGMENT_BYTES);
    let path = directory.path().join("wal").join(&name);
    overwrite(&directory, &name, damaged.saturating_sub(start_lsn) + 30, &[0xFF]);
    match WalLog::open(layout(&directory), Lsn::ZERO) {
        Err(WalFileError::Corrupt { path: found, offset, lsn, .. }) => {
            assert_eq!((found, offset, lsn), (path, damaged.saturating_sub(start_lsn), damaged));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn files_of_another_cluster_are_refused() {
    let directory = TempDir::new().unwrap();
    let (start_lsn, wal) = random_log(1, 10);
    let mut log = WalLog::create(layout(&directory), 1, start_lsn).unwrap();
    write(&mut log, &wal, &mut SmallRng::seed_from_u64(1));
    drop(log);
    let other = WalLayout { system_id: 8, ..layout(&directory) };
    assert!(matches!(WalLog::open(other, Lsn::ZERO), Err(WalFileError::Foreign { .. })));
    let other = WalLayout { version: PgVersion::V17, ..layout(&directory) };
    assert!(matches!(WalLog::open(other, Lsn::ZERO), Err(WalFileError::Foreign { .. })));
}

#[test]
fn a_hole_in_the_stream_is_refused() {
    let directory = TempDir::new().unwrap();
    let (start_lsn, wal) = random_log(1, 10);
    let mut log = WalLog::create(layout(&directory), 1, start_lsn).unwrap();
    let later = Lsn::new(start_lsn.as_u64() + 8);
    let refused = log.append(later, &[Bytes::copy_from_slice(&wal)]);
    assert!(matches!(refused, Err(WalFileError::NotContiguous { .. })));
}

#[test]
fn a_new_timeline_starts_with_the_bytes_before_the_switch() {
    let directory = TempDir::new().unwrap();
    let start_lsn = Lsn::new(FIRST_SEGMENT_NO * u64::from(SEGMENT_BYTES));
    let mut writer = WalWriter::new(PgVersion::V15, start_lsn, SEGMENT_BYTES);
    for length in [10, 9000, 500] {
        writer.append(&long_record(length));
    }
    let switch_lsn = writer.position();
    writer.append(&long_record(20_000));
    let wal = writer.into_bytes();
    let before = switch_lsn.saturating_sub(start_lsn) as usize;
    let mut rng = SmallRng::seed_from_u64(1);

    let mut log = WalLog::create(layout(&directory), 1, start_lsn).unwrap();
    // The old primary had sent part of a record that the new one never had.
    write(&mut log, &wal[..before + 3000], &mut rng);
    let elsewhere = log.switch_timeline(2, switch_lsn, b"1\t0/1\tx\n");
    assert!(matches!(elsewhere, Err(WalFileError::SwitchElsewhere { .. })));
    assert_eq!(log.rewind_to_record_end().unwrap(), switch_lsn);
    let history = format!("1\t{switch_lsn}\tno recovery target specified\n");
    log.switch_timeline(2, switch_lsn, history.as_bytes()).unwrap();
    write(&mut log, &wal[before..], &mut rng);
    let end_lsn = log.flush().unwrap();
    drop(log);

    assert_eq!(read_all(&layout(&directory), start_lsn, end_lsn), wal);
    let log = WalLog::open(layout(&directory), Lsn::ZERO).unwrap().unwrap();
    assert_eq!((log.written_lsn(), log.timeline_id()), (end_lsn, 2));
    let history = layout(&directory).history(2).unwrap().unwrap();
    assert_eq!(history.left_at(1), Some(switch_lsn));
    let old = fs::read(directory.path().join("wal").join(names::segment_file_name(1, FIRST_SEGMENT_NO, SEGMENT_BYTES)));
    assert!(old.unwrap()[before..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_timeline_without_a_record_can_be_left_again() {
    let start_lsn = Lsn::new(FIRST_SEGMENT_NO * u64::from(SEGMENT_BYTES));
    let mut writer = WalWriter::new(PgVersion::V15, start_lsn, SEGMENT_BYTES);
    for length in [10, 9000, 500] {
        writer.append(&long_record(length));
    }
    let switch_lsn = writer.position();
    writer.append(&long_record(20_000));
    let wal = writer.into_bytes();
    let before = switch_lsn.saturating_sub(start_lsn) as usize;
    let history = format!("1\t{switch_lsn}\tx\n");
    // Nothing, the beginning of a record, or a whole one came on timeline 2; with and without opening anew.
    for (more, reopen, expect) in [(0, true, 1), (0, false, 1), (3000, true, 1), (3000, false, 1), (21_000, true, 2)] {
        let directory = TempDir::new().unwrap();
        let mut rng = SmallRng::seed_from_u64(3);
        let mut log = WalLog::create(layout(&directory), 1, start_lsn).unwrap();
        write(&mut log, &wal[..before], &mut rng);
        log.switch_timeline(2, switch_lsn, history.as_bytes()).unwrap();
        let end = wal.len().min(before + more);
        write(&mut log, &wal[before..end], &mut rng);
        log.flush().unwrap();
        if reopen {
            log = WalLog::open(layout(&directory), Lsn::ZERO).unwrap().unwrap();
        }
        assert_eq!(log.leave_empty_timeline().unwrap(), expect == 1, "{more} {reopen}");
        assert_eq!(log.timeline_id(), expect);
        assert!(!log.leave_empty_timeline().unwrap());
        if expect == 1 {
            assert_eq!((log.written_lsn(), layout(&directory).newest_timeline_id().unwrap()), (switch_lsn, Some(1)));
            // Another one that left at the same place.
            log.switch_timeline(3, switch_lsn, history.as_bytes()).unwrap();
            write(&mut log, &wal[before..], &mut rng);
        }
        let end_lsn = log.flush().unwrap();
        drop(log);
        let log = WalLog::open(layout(&directory), Lsn::ZERO).unwrap().unwrap();
        assert_eq!((log.written_lsn(), log.timeline_id()), (end_lsn, if expect == 1 { 3 } else { 2 }));
        assert_eq!(read_all(&layout(&directory), start_lsn, end_lsn), wal);
    }
}

#[test]
fn old_segments_go_and_the_last_one_stays() {
    let directory = TempDir::new().unwrap();
    let (start_lsn, wal) = random_log(1, 600);
    let mut log = WalLog::create(layout(&directory), 1, start_lsn).unwrap();
    write(&mut log, &wal, &mut SmallRng::seed_from_u64(1));
    let end_lsn = log.flush().unwrap();
    let segment_count = layout(&directory).segments().unwrap().len();
    assert!(segment_count > 2);
    let second = Lsn::new(start_lsn.as_u64() + u64::from(SEGMENT_BYTES) + 5);
    assert_eq!(log.remove_below(second).unwrap(), 1);
    assert_eq!(log.remove_below(second).unwrap(), 0);
    assert_eq!(log.remove_below(Lsn::MAX).unwrap(), segment_count - 2);
    assert_eq!(WalLog::open(layout(&directory), Lsn::ZERO).unwrap().unwrap().written_lsn(), end_lsn);
    let gone = WalReader::new(layout(&directory)).read(start_lsn, end_lsn, 10);
    assert!(matches!(gone, Err(WalFileError::Missing { .. })));
}
