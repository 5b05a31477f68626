//! Goal: who reads while a branch is detached and its ancestor deleted sees right pages, or is told that the timeline is gone.
//! Method: threads that read without a pause, the whole time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::super::*;
use super::rig::*;
use crate::timeline::BranchPoint;

const BLOCKS: u32 = 64;

#[test]
fn readers_see_right_pages_while_a_branch_is_detached_and_its_ancestor_goes() {
    let dir = tempfile::tempdir().unwrap();
    let repository = open(&dir);
    let main = import(&repository, "main");
    let at = |n: u64| Lsn::new(START_LSN.as_u64() + n * 8);
    let mut writes = vec![Write::Size(0, Some(BLOCKS))];
    writes.extend((0..BLOCKS).map(|block_no| Write::Block(0, block_no, 1_000 + u64::from(block_no))));
    write(&repository, &main, at(1), &writes);
    let branch = repository.create_branch("branch", "main", BranchPoint::Last).unwrap().timeline;
    write(&repository, &branch, at(2), &[Write::Block(0, 7, 77)]);
    let leaf = repository.create_branch("leaf", "branch", BranchPoint::Last).unwrap().timeline;
    write(&repository, &leaf, at(3), &[Write::Block(0, 8, 88)]);
    drop(main);

    let (stop, reads, refusals) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let tag_of = |timeline: &Timeline, lsn, block_no| {
        timeline.pages_unchecked(&[block(0, block_no)], lsn).map(|pages| {
            assert_eq!(pages[0], page(u64::from_be_bytes(pages[0][..8].try_into().unwrap())));
            u64::from_be_bytes(pages[0][..8].try_into().unwrap())
        })
    };
    std::thread::scope(|scope| {
        for (timeline, last) in [(&branch, 2), (&leaf, 3)] {
            let (stop, reads, refusals) = (&stop, &reads, &refusals);
            scope.spawn(move || {
                let mut turn = 0;
                while !stop.load(Ordering::Relaxed) {
                    turn += 1;
                    let (block_no, n) = (turn % BLOCKS, 1 + u64::from(turn) % last);
                    let expect = match (block_no, n) {
                        (7, 2..) => 77,
                        (8, 3..) => 88,
                        _ => 1_000 + u64::from(block_no),
                    };
                    match tag_of(timeline, at(n), block_no) {
                        Ok(tag) => assert_eq!(tag, expect, "block {block_no} at {n}"),
                        Err(ReadError::Gone { .. }) => drop(refusals.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => panic!("{error}"),
                    }
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let pause = |count: u64| {
            let until = reads.load(Ordering::Relaxed) + count;
            while reads.load(Ordering::Relaxed) < until {
                std::thread::yield_now();
            }
        };
        pause(1_000);
        repository.detach_branch("branch", &mut |_, _| std::ops::ControlFlow::Continue(())).unwrap();
        pause(1_000);
        repository.delete_timeline("main").unwrap();
        pause(1_000);
        repository.store.compact_all();
        pause(1_000);
        assert_eq!(refusals.load(Ordering::Relaxed), 0, "nobody who reads what is left is refused");
        repository.delete_timeline("leaf").unwrap();
        pause(1_000);
        repository.reset_branch("branch", BranchPoint::Last).err().unwrap();
        repository.delete_timeline("branch").unwrap();
        pause(1_000);
        stop.store(true, Ordering::Relaxed);
    });
    assert!(refusals.load(Ordering::Relaxed) > 0);
}

#[test]
fn a_read_that_began_before_a_detach_ends_with_what_the_detach_has_made() {
    let dir = tempfile::tempdir().unwrap();
    let repository = open(&dir);
    let main = import(&repository, "main");
    let lsn = Lsn::new(START_LSN.as_u64() + 8);
    write(&repository, &main, lsn, &[Write::Size(0, Some(1)), Write::Block(0, 0, 7)]);
    let branch = repository.create_branch("branch", "main", BranchPoint::Last).unwrap().timeline;
    drop(main);
    let key = block(0, 0);
    let looks = std::cell::Cell::new(0);
    let found = branch.gather_with(&key, lsn, |found| {
        let ended = branch.store.gather(&key, lsn, found)?;
        looks.set(looks.get() + 1);
        if looks.get() == 1 {
            // Between a look at the branch's own versions and one at its ancestors'.
            assert!(!ended);
            repository.detach_branch("branch", &mut |_, _| std::ops::ControlFlow::Continue(())).unwrap();
            repository.delete_timeline("main").unwrap();
        }
        Ok(ended)
    });
    assert_eq!((found.unwrap().versions[0].2.clone(), looks.get()), (page(7), 2));
}

/// Names decide in which order timelines are told of a detach; the history of all must end where that of the detached one does.
#[test]
fn what_a_detach_gives_up_is_refused_on_every_branch_that_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let repository = open(&dir);
    let main = import(&repository, "main");
    let below_lsn = Lsn::new(START_LSN.as_u64() + 8);
    write(&repository, &main, below_lsn, &[Write::Commit(1)]);
    write(&repository, &main, Lsn::new(START_LSN.as_u64() + 16), &[Write::Commit(2)]);
    let mut older = "main";
    for name in ["c", "b", "a", "d"] {
        let branch = repository.create_branch(name, older, BranchPoint::Last).unwrap().timeline;
        write(&repository, &branch, Lsn::new(branch.last_record_lsn().as_u64() + 8), &[Write::Commit(3)]);
        older = name;
    }
    repository.detach_branch("c", &mut |_, _| std::ops::ControlFlow::Continue(())).unwrap();
    for name in ["a", "b", "c", "d"] {
        let timeline = repository.timeline_named(name).unwrap();
        for outcome in [
            timeline.get_page_at_lsn(clog(), below_lsn),
            timeline.pages_uncached(&[clog()], below_lsn).map(|mut pages| pages.remove(0)),
        ] {
            assert!(
                matches!(outcome, Err(ReadError::BelowFirstReadable { request_lsn, .. }) if request_lsn == below_lsn),
                "{name}"
            );
        }
        assert!(timeline.get_page_at_lsn(clog(), timeline.last_record_lsn()).is_ok());
    }
}
