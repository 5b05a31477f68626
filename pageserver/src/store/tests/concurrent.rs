//! Goal: readers miss nothing and meet nothing wrong while versions move from the open layer to a frozen one to RocksDB, through compaction.
//! Method: record n touches one key with a kind and a value that follow from n, so that a reader can tell what any chain must be.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;

pub(super) const KEYS: u64 = 500;
const RECORDS: u64 = 120_000;
const RECORDS_PER_BATCH: u64 = 50;
/// Every so many records of a key one is an image.
const IMAGE_EVERY: u64 = 6;

fn kind(record: u64) -> Kind {
    if (record / KEYS).is_multiple_of(IMAGE_EVERY) { Kind::Image } else { Kind::Delta }
}

fn value(record: u64) -> Vec<u8> {
    let length = if kind(record) == Kind::Image { 2000 } else { 60 };
    record.to_be_bytes().into_iter().cycle().take(length).collect()
}

/// Ends at LSN `(record + 1) * 8`.
pub(super) fn expected_chain(key_no: u64, request_lsn: u64) -> Chain {
    let mut chain = Vec::new();
    let Some(last_record) = (request_lsn / 8).checked_sub(1) else { return (chain, false) };
    let newest = last_record.checked_sub((last_record + KEYS - key_no) % KEYS);
    let mut next = newest;
    while let Some(record) = next {
        chain.push(((record + 1) * 8, kind(record), value(record)));
        if kind(record).ends_gather() {
            return (chain, true);
        }
        next = record.checked_sub(KEYS);
    }
    (chain, false)
}

/// Puts these records as one batch.
pub(super) fn put_records(timeline: &TimelineStore, versions: &mut Batch, records: Range<u64>) {
    versions.clear();
    let end_lsn = Lsn::new(records.end * 8);
    for record in records {
        versions.put(block((record % KEYS) as u32), Lsn::new((record + 1) * 8), kind(record), &value(record));
    }
    timeline.put(versions, end_lsn).expect("put");
}

fn write(timeline: &TimelineStore, last_record_lsn: &AtomicU64) {
    let mut versions = Batch::new();
    for start in (0..RECORDS).step_by(RECORDS_PER_BATCH as usize) {
        let end = start + RECORDS_PER_BATCH;
        put_records(timeline, &mut versions, start..end);
        last_record_lsn.store(end * 8, Ordering::Release);
    }
}

fn read(timeline: &TimelineStore, last_record_lsn: &AtomicU64, done: &AtomicBool, seed: u64) -> u64 {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut reads = 0;
    while !done.load(Ordering::Acquire) {
        let newest_lsn = last_record_lsn.load(Ordering::Acquire);
        let request_lsn = if random.random_bool(0.7) { newest_lsn } else { random.random_range(0..=newest_lsn) };
        let key_no = random.random_range(0..KEYS);
        let (mut expect, mut ended) = expected_chain(key_no, request_lsn);
        let (found, found_ended) = gather(timeline, &block(key_no as u32), request_lsn).expect("gather");
        if let Some((lsn, Kind::Image, page)) = found.last().filter(|(_, _, page)| page == b"cached back") {
            expect.truncate(found.len());
            let last = expect.last_mut().expect("the page stands for a version");
            assert_eq!(last.0, *lsn);
            *last = (*lsn, Kind::Image, page.clone());
            ended = true;
        }
        assert_eq!((found, found_ended), (expect, ended), "block {key_no} at {request_lsn}, seed {seed}");
        if reads % 16 == 0 {
            let lsn = request_lsn / 8 / KEYS * 8 * KEYS + (key_no + 1) * 8;
            let is_delta = lsn <= newest_lsn && lsn > 0 && kind(lsn / 8 - 1) == Kind::Delta;
            if is_delta {
                timeline.cache_back(block(key_no as u32), Lsn::new(lsn), Bytes::from_static(b"cached back"));
            }
        }
        reads += 1;
    }
    reads
}

#[test]
fn readers_see_every_version_while_layers_move() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let timeline = store.timeline(T1).expect("a timeline");
    timeline.flush(true).expect("flush");
    let (last_record_lsn, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let reads: u64 = thread::scope(|scope| {
        let (timeline, last_record_lsn, done) = (&timeline, &last_record_lsn, &done);
        let readers: Vec<_> = (0..3).map(|n| scope.spawn(move || read(timeline, last_record_lsn, done, n))).collect();
        let writer = scope.spawn(move || write(timeline, last_record_lsn)).join();
        done.store(true, Ordering::Release);
        writer.expect("the writer ends well");
        readers.into_iter().map(|reader| reader.join().expect("a reader ends well")).sum()
    });
    let stats = store.stats();
    assert!(stats.flushes > 20, "{} flushes", stats.flushes);
    assert!(reads > 1000, "{reads} reads");
    assert!(stats.cached_back_pages > 0);
    for key_no in 0..KEYS {
        let found = gather(&timeline, &block(key_no as u32), u64::MAX / 16 * 8).expect("gather");
        let (newest, _) = expected_chain(key_no, RECORDS * 8);
        assert_eq!(found.0.first().map(|version| version.0), newest.first().map(|version| version.0));
    }
}
