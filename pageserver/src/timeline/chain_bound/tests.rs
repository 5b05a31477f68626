//! Goal: no chain is longer than the bound and what may come in before it is seen, whatever lies between: flushes, restarts, branches; what cannot be made
//! stops nobody. Method: a real store and chains of our own deltas on one page, a few records at a time as ingest puts them.

use keyenc::Kind;
use postgres_ffi::slru::{XidStatus, clog_status};

use super::super::backlog::tests::{Rig, clog};
use super::*;
use crate::delta::{Delta, Index, POSTGRES_TAG};
use crate::redo::RedoStats;
use crate::store::Batch;

const BOUND: u32 = 16;
/// Records in one batch: what ingest would take with this bound.
const BATCH: u32 = BOUND / 2;
/// Ingest waits at twice the bound, and sees it when a batch is in.
const KNOWN_MAX: usize = (2 * BOUND + BATCH) as usize;
/// What was there when nothing was known may be as long; then it waits when as much has come as the bound, and sees it when a batch is in.
const UNKNOWN_MAX: usize = KNOWN_MAX + (BOUND + BATCH) as usize;

/// Record number `n` sets transaction `n % 30000`, counted from 0, of the page to committed where it was not; all of them one batch.
fn put(timeline: &Timeline, page_no: u32, records: std::ops::Range<u32>) {
    let mut batch = Batch::new();
    let mut lsn = timeline.last_record_lsn();
    for n in records {
        lsn = lsn.checked_add(8).unwrap();
        let mut value = Vec::new();
        let indexes = &[Index::new((n % 30_000) as u16)];
        Delta::ClogStatus { status: XidStatus::Committed, indexes }.encode(&mut value);
        batch.put(clog(page_no), lsn, Kind::Delta, &value);
    }
    timeline.commit_batch(&mut batch, lsn).unwrap();
}

fn chain_len(timeline: &Timeline, page_no: u32, request_lsn: Lsn) -> usize {
    timeline.gather(&clog(page_no), request_lsn).unwrap().delta_count()
}

/// Checks the page at every `step`th record: its chain, and what is on it. Returns the longest chain.
fn check(timeline: &Timeline, page_no: u32, first_lsn: Lsn, records: u32, step: usize) -> usize {
    let mut longest = 0;
    for n in (0..=records).step_by(step) {
        let request_lsn = first_lsn.checked_add(8 * u64::from(n)).unwrap();
        longest = longest.max(chain_len(timeline, page_no, request_lsn));
        let page = timeline.get_page_at_lsn(clog(page_no), request_lsn).unwrap();
        let page = page[..].try_into().unwrap();
        let is_set = |n: u32| clog_status(page, n as u16) == XidStatus::Committed;
        assert!((n == 0 || is_set(n - 1)) && !is_set(n), "record {n}");
    }
    longest
}

fn settled(stats: &RedoStats) -> u64 {
    stats.bound_images + stats.bound_short
}

#[test]
fn a_hot_page_keeps_short_chains_through_flushes() {
    const RECORDS: u32 = 4000;
    let rig = Rig::bounded(BOUND);
    let timeline = rig.timeline(1, None);
    let first_lsn = timeline.last_record_lsn();
    for start in (0..RECORDS).step_by(BATCH as usize) {
        put(&timeline, 0, start..start + BATCH);
        if start % 400 == 0 {
            timeline.store.flush(true).unwrap();
        }
    }
    let longest = check(&timeline, 0, first_lsn, RECORDS, 1);
    let stats = rig.redo.stats();
    assert!(longest <= KNOWN_MAX, "{longest}");
    assert!(stats.bound_images >= u64::from(RECORDS / UNKNOWN_MAX as u32), "{stats:?}");
    assert_eq!(stats.bound_failed, 0);
    assert!(timeline.store.flush(true).is_ok());
    assert!(check(&timeline, 0, first_lsn, RECORDS, 7) <= KNOWN_MAX);
}

#[test]
fn a_few_records_between_restarts_come_to_no_long_chain() {
    const ROUNDS: u32 = 12;
    let mut rig = Rig::bounded(BOUND);
    let mut first_lsn = None;
    for round in 0..ROUNDS {
        let timeline = rig.timeline(1, None);
        first_lsn.get_or_insert(timeline.last_record_lsn());
        put(&timeline, 0, round * 5..round * 5 + 5);
        timeline.store.flush(true).unwrap();
        assert!(chain_len(&timeline, 0, timeline.last_record_lsn()) <= KNOWN_MAX);
        drop(timeline);
        rig = rig.reopened();
    }
    let timeline = rig.timeline(1, None);
    let longest = check(&timeline, 0, first_lsn.unwrap(), ROUNDS * 5, 1);
    // What a flush counted the restart knows: no page is looked at that is not too long.
    assert!((BOUND as usize / 2..=KNOWN_MAX).contains(&longest), "{longest}");
}

#[test]
fn a_few_records_on_each_branch_of_a_branch_come_to_no_long_chain() {
    const DEPTH: u32 = 20;
    let rig = Rig::bounded(BOUND);
    let mut timeline = rig.timeline(1, None);
    let first_lsn = timeline.last_record_lsn();
    put(&timeline, 0, 0..5);
    for depth in 1..DEPTH {
        let branch = rig.timeline(depth + 1, Some((&timeline, timeline.last_record_lsn())));
        let before = settled(&rig.redo.stats());
        put(&branch, 0, depth * 5..depth * 5 + 5);
        rig.wait_for(|stats| settled(stats) > before);
        timeline = branch;
    }
    let longest = check(&timeline, 0, first_lsn, DEPTH * 5, 1);
    assert!((BOUND as usize / 2..=UNKNOWN_MAX).contains(&longest), "{longest}");
    assert!(rig.redo.stats().bound_images > 0);
}

#[test]
fn a_page_that_cannot_be_made_stops_nobody() {
    let rig = Rig::bounded(BOUND);
    let timeline = rig.timeline(1, None);
    // There is no engine for PostgreSQL's records.
    let mut records = 0;
    for _ in 0..40 {
        let mut batch = Batch::new();
        let mut lsn = timeline.last_record_lsn();
        for _ in 0..BATCH {
            lsn = lsn.checked_add(8).unwrap();
            batch.put(clog(0), lsn, Kind::Delta, &[POSTGRES_TAG]);
            records += 1;
        }
        timeline.commit_batch(&mut batch, lsn).unwrap();
        put(&timeline, 1, records..records + 1);
    }
    let stats = rig.wait_for(|stats| stats.bound_failed > 0);
    assert!(stats.bound_failed < 40, "told again only when as much has come: {stats:?}");
    assert_eq!(chain_len(&timeline, 0, timeline.last_record_lsn()), records as usize);
    assert!(chain_len(&timeline, 1, timeline.last_record_lsn()) <= KNOWN_MAX);
}

#[test]
fn nothing_is_made_while_catching_up_and_all_of_it_then() {
    let rig = Rig::bounded(BOUND);
    let timeline = rig.timeline(1, None);
    timeline.is_catching_up.store(true, Ordering::Relaxed);
    let readable_lsn = Lsn::new(8 + 8 * 4 * 80);
    let mut metadata = (*timeline.metadata()).clone();
    metadata.imported.as_mut().unwrap().first_readable_lsn = readable_lsn;
    *timeline.metadata.write() = Arc::new(metadata);
    for page_no in 0..4 {
        assert_eq!(settled(&rig.redo.stats()), 0);
        assert!(timeline.last_record_lsn() < readable_lsn);
        for start in (0..80).step_by(BATCH as usize) {
            put(&timeline, page_no, start..start + BATCH);
        }
        if page_no == 1 {
            timeline.store.flush(true).unwrap();
        }
    }
    rig.wait_for(|stats| stats.bound_images >= 4);
    let longest = (0..4).map(|page_no| chain_len(&timeline, page_no, readable_lsn)).max();
    assert!(longest <= Some(KNOWN_MAX), "{longest:?}");
}

#[test]
fn who_waits_is_let_go_by_whatever_ends_the_wait() {
    let queue = HeavyQueue::new();
    let (no, key) = (TimelineNo(1), clog(0));
    let wait = |queue: &Arc<HeavyQueue>| {
        let queue = Arc::clone(queue);
        std::thread::spawn(move || queue.wait_for(no, key))
    };
    let take = || loop {
        if let Some((_, in_hand)) = queue.take() {
            break in_hand;
        }
        std::thread::yield_now();
    };
    let waiter = wait(&queue);
    let in_hand = take();
    queue.tell(no, &[HeavyChain { key, weight: 99 }]);
    assert!(queue.take().is_none(), "nobody takes it twice");
    in_hand.put_back();
    drop(take());
    waiter.join().unwrap();
    assert!(queue.take().is_none());
    let waiter = wait(&queue);
    queue.stop();
    waiter.join().unwrap();
    queue.wait_for(no, key);
}
