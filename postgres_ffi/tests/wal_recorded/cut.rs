//! Goal: wherever a log is cut, the end that is found is the end of its last whole record.
//! Method: the recorded log of 15 and 17, cut at every byte of it: nothing after the cut, zeroes after it, or what another segment left there.

use anyhow::{Context, Result};
use bytes::Bytes;
use postgres_ffi::wal::find_end::{WalEnd, find_end};
use postgres_ffi::wal::{DecodedRecord, WalErrorKind, WalStreamDecoder};
use postgres_ffi::{Lsn, PgVersion};

use crate::fixture::Fixture;

const PAGE_BYTES: usize = 8192;

/// Offset behind the last byte of the record, without padding; page headers within it counted.
fn last_byte(fixture: &Fixture, record: &DecodedRecord) -> usize {
    let (mut at, mut rest) = (fixture.offset(record.start_lsn), record.raw.len());
    loop {
        let here = rest.min(PAGE_BYTES - at % PAGE_BYTES);
        (at, rest) = (at + here, rest - here);
        if rest == 0 {
            return at;
        }
        at += if at.is_multiple_of(fixture.segment_bytes as usize) { 40 } else { 24 };
    }
}

#[test]
fn a_log_that_stops_anywhere_ends_with_its_last_whole_record() -> Result<()> {
    for version in [PgVersion::V14, PgVersion::V15, PgVersion::V17] {
        let fixture = Fixture::load(version)?;
        let records = fixture.records()?;
        let mut whole = records.iter().map(|record| (last_byte(&fixture, record), record.end_lsn)).peekable();
        let mut expected = fixture.start_lsn;
        let mut decoder = fixture.decoder();
        // One byte more each time: what is known after it is what a log cut there gives.
        for cut in 1..=fixture.bytes.len() {
            decoder.feed(fixture.bytes.slice(cut - 1..cut));
            while decoder.next_record()?.is_some() {}
            if let Some((_, end_lsn)) = whole.next_if(|(last_byte, _)| *last_byte == cut) {
                expected = end_lsn;
            }
            assert_eq!(decoder.last_record_end(), expected, "{version} cut at {cut}");
        }
        assert_eq!(whole.next(), None);
    }
    Ok(())
}

#[test]
fn pieces_of_any_size_give_the_same_records() -> Result<()> {
    let fixture = Fixture::load(PgVersion::V15)?;
    let expected: Vec<_> = fixture.records()?.into_iter().map(|r| (r.start_lsn, r.end_lsn, r.raw)).collect();
    for piece_len in [1, 7, 24, 100, 8191, 8192, 8193, 131_072] {
        let mut decoder = fixture.decoder();
        let mut records = Vec::new();
        for from in (0..fixture.bytes.len()).step_by(piece_len) {
            decoder.feed(fixture.bytes.slice(from..fixture.bytes.len().min(from + piece_len)));
            while let Some(record) = decoder.next_record()? {
                records.push(record);
            }
        }
        assert!(records == expected, "pieces of {piece_len}");
    }
    Ok(())
}

/// The end found in the log from `record` on, when everything from `cut` on is replaced by `tail`.
fn end_with_tail(fixture: &Fixture, record: &DecodedRecord, cut: usize, tail: &[u8]) -> WalEnd {
    let log = [&fixture.bytes[fixture.offset(record.start_lsn)..cut], tail].concat();
    let decoder = WalStreamDecoder::new(fixture.version, record.start_lsn, fixture.segment_bytes)
        .with_record_before(record.prev_lsn);
    find_end(decoder, [Bytes::from(log)])
}

/// Each byte of small records; of large ones, those near both ends and a sample of the rest, as their CRC is what takes the time.
fn cuts(from: usize, to: usize) -> impl Iterator<Item = usize> {
    (from..to).filter(move |cut| to - from < 400 || cut - from < 70 || to - cut < 20 || cut % 61 == 0)
}

/// Cuts each record everywhere and puts behind the cut what `tail` gives for that offset.
fn check_with_tail<'a>(fixture: &Fixture, tail: impl Fn(usize) -> &'a [u8]) -> Result<usize> {
    let mut checked = 0;
    for record in fixture.records()? {
        let (from, to) = (fixture.offset(record.start_lsn), last_byte(fixture, &record));
        for cut in cuts(from, to) {
            let tail = tail(cut);
            // The cut may go unnoticed: what follows it may be what stood there.
            let is_whole = tail.get(..to - cut) == Some(&fixture.bytes[cut..to]);
            let end = end_with_tail(fixture, &record, cut, tail);
            let at = format!("{} cut at {cut}: {end:?}", record.start_lsn);
            assert_eq!(end.end_lsn, if is_whole { record.end_lsn } else { record.start_lsn }, "{at}");
            assert_eq!(end.record_count, u64::from(is_whole), "{at}");
            if let Some(error) = &end.stopped_by {
                assert_eq!(error.kind(), WalErrorKind::EndOfWal, "{at}");
            }
            checked += 1;
        }
    }
    Ok(checked)
}

#[test]
fn zeroes_after_the_cut_end_the_log() -> Result<()> {
    let zeroes = [0; 2 * PAGE_BYTES];
    let fixture = Fixture::load(PgVersion::V15)?;
    assert!(check_with_tail(&fixture, |_| &zeroes)? > 400_000);
    Ok(())
}

#[test]
fn a_segment_used_again_ends_the_log_where_the_new_records_end() -> Result<()> {
    // Behind the cut stands what was written to the same offsets of the segment in its earlier life: here, the segment before or after.
    let fixture = Fixture::load(PgVersion::V15)?;
    let segment = fixture.segment_bytes as usize;
    let old = |cut: usize| {
        let from = if cut < segment { cut + segment } else { cut - segment };
        &fixture.bytes[from.min(fixture.bytes.len())..fixture.bytes.len().min(from + 2 * PAGE_BYTES)]
    };
    assert!(check_with_tail(&fixture, old)? > 400_000);
    Ok(())
}

#[test]
fn the_end_of_a_whole_segment_is_found_from_its_start() -> Result<()> {
    let fixture = Fixture::load(PgVersion::V17)?;
    let records = fixture.records()?;
    for record in records.iter().step_by(397) {
        let cut = last_byte(&fixture, record) - 1;
        let mut log = fixture.bytes.to_vec();
        log[cut..].fill(0);
        let is_whole = fixture.bytes[cut] == 0;
        let expected: Vec<&DecodedRecord> = records
            .iter()
            .take_while(|r| r.start_lsn < record.start_lsn || is_whole && r.start_lsn == record.start_lsn)
            .collect();
        let end = find_end(fixture.decoder(), Bytes::from(log).chunks(8192).map(Bytes::copy_from_slice));
        let last = expected.last().context("the first record is not cut")?;
        assert_eq!((end.end_lsn, end.last_record_lsn), (last.end_lsn, Some(last.start_lsn)), "cut at {cut}");
        assert_eq!(end.record_count, expected.len() as u64);
    }
    Ok(())
}

#[test]
fn nothing_but_zeroes_has_no_record() -> Result<()> {
    let start_lsn = Lsn::new(0x0100_0000);
    let end =
        find_end(WalStreamDecoder::new_at_page(PgVersion::V16, start_lsn, 1 << 20), [Bytes::from_static(&[0; 100])]);
    assert_eq!((end.end_lsn, end.last_record_lsn, end.record_count), (start_lsn, None, 0));
    assert_eq!(end.stopped_by.context("stopped")?.kind(), WalErrorKind::EndOfWal);
    Ok(())
}
