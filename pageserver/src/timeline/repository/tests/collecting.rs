//! Goal: what garbage collection promises and refuses, by hand and beside readers. Method: plain cases; threads that read without a pause.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use keyenc::Kind;

use super::super::*;
use super::rig::*;
use crate::timeline::gc::{OwnRetention, RetentionTime, WalSize};
use crate::timeline::{BranchPoint, ReadError};

const BLOCKS: u32 = 8;
const ROUNDS: u64 = 60;

fn write_rounds(repository: &Repository, timeline: &Timeline, rounds: std::ops::RangeInclusive<u64>) {
    for n in rounds {
        let tag = |block_no: u32| n * 1000 + u64::from(block_no);
        let mut writes = vec![Write::Size(0, Some(BLOCKS))];
        writes.extend((0..BLOCKS).map(|block_no| Write::Block(0, block_no, tag(block_no))));
        write(repository, timeline, at(n), &writes);
    }
}

fn tag_at(timeline: &Timeline, n: u64, block_no: u32) -> Result<u64, ReadError> {
    let found = timeline.get_page_at_lsn(block(0, block_no), at(n))?;
    let tag = u64::from_be_bytes(found[..8].try_into().unwrap());
    assert_eq!(found, page(tag));
    Ok(tag)
}

fn lsns_of(error: &RepositoryError) -> (Lsn, Lsn) {
    match error {
        RepositoryError::Read(ReadError::BelowFirstReadable { request_lsn, first_readable_lsn }) => {
            (*request_lsn, *first_readable_lsn)
        }
        RepositoryError::Branch(BranchError::LsnTooLow { branch_lsn, first_readable_lsn, .. }) => {
            (*branch_lsn, *first_readable_lsn)
        }
        other => panic!("{other}"),
    }
}

#[test]
fn what_is_pinned_can_be_pinned_again_and_nothing_else_below_the_horizon() {
    let dir = tempfile::tempdir().unwrap();
    let repository = open(&dir);
    let main = import(&repository, "main");
    write_rounds(&repository, &main, 1..=20);
    let lease = repository.lease("main", at(5), LEASE_DEFAULT).unwrap();
    repository.create_branch("old", "main", BranchPoint::Lsn(at(9))).unwrap();
    assert_eq!(collect(&repository, "main", 4).horizon_lsn, Some(at(16)));
    let lease_refused = repository.lease("main", at(6), LEASE_DEFAULT).err().unwrap();
    assert_eq!(lsns_of(&lease_refused), (at(6), at(16)));
    let branch_refused = repository.create_branch("no", "main", BranchPoint::Lsn(at(10))).err().unwrap();
    assert_eq!(lsns_of(&branch_refused), (at(10), at(16)));
    let again = repository.lease("main", at(5), LEASE_DEFAULT).unwrap();
    let through_branch = repository.lease("old", at(9), LEASE_DEFAULT).unwrap();
    let of_lease = repository.create_branch("of-lease", "main", BranchPoint::Lsn(at(5))).unwrap().timeline;
    assert_eq!(tag_at(&of_lease, 5, 3).unwrap(), 5003);
    repository.end_lease(lease.lease_id).unwrap();
    collect(&repository, "main", 0);
    assert_eq!(main.first_readable_lsn(), Some(at(20)));
    let readable = |timeline: &Timeline| (1..=20).filter(|n| tag_at(timeline, *n, 1).is_ok()).collect::<Vec<_>>();
    assert_eq!(readable(&main), [5, 9, 20]);
    // Nothing of the branch's own was given up, but what is below it is the ancestor's.
    let old = repository.timeline_named("old").unwrap();
    assert_eq!((readable(&old), old.first_readable_lsn()), (vec![5, 9], Some(at(9))));
    drop((main, old, of_lease, repository));

    let repository = open(&dir);
    let main = repository.timeline_named("main").unwrap();
    assert_eq!(readable(&main), [5, 9, 20]);
    repository.end_lease(again.lease_id).unwrap();
    repository.end_lease(through_branch.lease_id).unwrap();
    repository.delete_timeline("of-lease").unwrap();
    collect(&repository, "main", 0);
    assert_eq!(readable(&main), [9, 20]);
    repository.delete_timeline("old").unwrap();
    let report = collect(&repository, "main", 0);
    assert_eq!(report.counts.removed["relation_block"].versions, u64::from(BLOCKS));
    assert_eq!(readable(&main), [20]);
}

#[test]
fn a_page_cached_back_below_the_horizon_does_no_harm_and_goes_again() {
    let dir = tempfile::tempdir().unwrap();
    let repository = open(&dir);
    let main = import(&repository, "main");
    write_rounds(&repository, &main, 1..=9);
    repository.lease("main", at(4), LEASE_DEFAULT).unwrap();
    collect(&repository, "main", 0);
    // As a read made it that was under way.
    main.store.cache_back(block(0, 1), at(2), page(2001));
    main.store.cache_back(block(0, 2), at(6), page(6002));
    write_rounds(&repository, &main, 10..=10);
    main.store.flush(true).unwrap();
    let stored = |block_no| main.store.history(&block(0, block_no), Lsn::ZERO..Lsn::MAX).unwrap();
    assert_eq!(stored(1).iter().map(|(lsn, ..)| *lsn).collect::<Vec<_>>(), [at(10), at(9), at(4), at(2)]);
    for (n, expect) in [(4, Some(4)), (9, Some(9)), (10, Some(10)), (2, None), (6, None), (8, None)] {
        for block_no in 0..BLOCKS {
            let found = tag_at(&main, n, block_no).ok();
            assert_eq!(found, expect.map(|n: u64| n * 1000 + u64::from(block_no)), "block {block_no} at {n}");
        }
    }
    let report = collect(&repository, "main", 0);
    assert_eq!(report.counts.removed["relation_block"].versions, 2 + u64::from(BLOCKS));
    assert_eq!(
        stored(1).iter().map(|(lsn, kind, _)| (*lsn, *kind)).collect::<Vec<_>>(),
        [(at(10), Kind::Image), (at(4), Kind::Image)]
    );
}

#[test]
fn time_keeps_history_while_the_size_of_wal_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let repository = open(&dir);
    let main = import(&repository, "main");
    write_rounds(&repository, &main, 1..=9);
    main.store.flush(true).unwrap();
    let collect_with = |time: Option<RetentionTime>| {
        repository.set_retention("main", Some(OwnRetention { time, wal: Some(WalSize::from_bytes(0)) })).unwrap();
        repository.collect_garbage("main", false, &mut |_, _| ControlFlow::Continue(())).unwrap().horizon_lsn
    };
    // The rig's timeline knows no times: everything may be as young as a week.
    assert_eq!(collect_with(None), None);
    assert_eq!(collect_with(Some(RetentionTime::from_seconds(0))), Some(at(9)));
    // What is not named stays.
    let own = || main.metadata().retention;
    assert_eq!(
        own(),
        Some(OwnRetention { time: Some(RetentionTime::from_seconds(0)), wal: Some(WalSize::from_bytes(0)) })
    );
    repository.set_retention("main", Some(OwnRetention { time: None, wal: Some(WalSize::from_bytes(8)) })).unwrap();
    assert_eq!(
        own(),
        Some(OwnRetention { time: Some(RetentionTime::from_seconds(0)), wal: Some(WalSize::from_bytes(8)) })
    );
    // A horizon does not go back.
    repository.set_retention("main", None).unwrap();
    assert_eq!(main.first_readable_lsn(), Some(at(9)));
    assert!(tag_at(&main, 8, 0).is_err());
}

#[test]
fn passes_begin_by_themselves_unless_paused() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config { page_cache_mib: 1, ..Config::default() };
    (config.gc.period_seconds, config.gc.horizon_step_mib, config.gc.paused) = (1, 0, true);
    (config.retention.time, config.retention.wal_mib) = (RetentionTime::from_seconds(0), 0);
    let repository = Repository::open(dir.path(), config).unwrap();
    let main = import(&repository, "main");
    write_rounds(&repository, &main, 1..=9);
    main.store.flush(true).unwrap();
    repository.start_collecting().unwrap();
    let state = || repository.collecting_status(Some("main")).unwrap()[0].state;
    assert_eq!((state(), main.first_readable_lsn()), (GcState::Paused, Some(START_LSN)));
    // By hand it runs all the same.
    collect(&repository, "main", 4);
    assert_eq!((state(), main.first_readable_lsn()), (GcState::Paused, Some(at(5))));
    repository.set_retention("main", None).unwrap();
    // Far enough for what the files take.
    let far = 200_000;
    write_rounds(&repository, &main, far..=far);
    main.store.flush(true).unwrap();
    repository.resume_collecting();
    while main.metadata().gc.as_ref().and_then(|gc| gc.swept_lsn) != Some(at(far)) {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!((main.first_readable_lsn(), tag_at(&main, far, 1).unwrap()), (Some(at(far)), far * 1000 + 1));
    assert!(tag_at(&main, 9, 1).is_err());
    drop(main);
    repository.shutdown().unwrap();
}

#[test]
fn readers_beside_a_moving_horizon_see_right_pages_or_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let repository = open(&dir);
    let main = import(&repository, "main");
    // Blocks beneath, which a branch must never fall through to.
    write_rounds(&repository, &main, 1..=2);
    let branch = repository.create_branch("branch", "main", BranchPoint::Last).unwrap().timeline;
    write_rounds(&repository, &branch, 3..=5);
    let (newest, stop) = (AtomicU64::new(5), AtomicBool::new(false));
    let (answers, refusals) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for reader in 0..3 {
            let (branch, newest, stop, answers, refusals) = (&branch, &newest, &stop, &answers, &refusals);
            scope.spawn(move || {
                let mut turn = reader * 7;
                while !stop.load(Ordering::Relaxed) {
                    turn += 1;
                    let last = newest.load(Ordering::SeqCst);
                    let (n, block_no) = (last - turn % last.min(6), (turn % u64::from(BLOCKS)) as u32);
                    // Past the cache and the first look at the horizon, too.
                    let found = match turn % 2 {
                        0 => tag_at(branch, n, block_no),
                        _ => branch
                            .pages_uncached(&[block(0, block_no)], at(n))
                            .map(|pages| u64::from_be_bytes(pages[0][..8].try_into().unwrap())),
                    };
                    match found {
                        Ok(tag) => {
                            assert_eq!(tag, n * 1000 + u64::from(block_no));
                            answers.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(ReadError::BelowFirstReadable { request_lsn, first_readable_lsn }) => {
                            assert!(request_lsn < first_readable_lsn && at(n) == request_lsn);
                            refusals.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        for n in 6..6 + ROUNDS {
            write_rounds(&repository, &branch, n..=n);
            newest.store(n, Ordering::SeqCst);
            collect(&repository, "branch", n % 3);
            if n % 10 == 0 {
                repository.store.compact_all();
            }
        }
        while answers.load(Ordering::Relaxed) < 1000 || refusals.load(Ordering::Relaxed) < 100 {
            std::thread::sleep(Duration::from_millis(1));
        }
        stop.store(true, Ordering::Relaxed);
    });
}
