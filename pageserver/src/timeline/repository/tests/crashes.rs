//! Goal: whatever was under way when the server ended is there as a whole or not at all after the next start, and nothing of it is left behind.
//! Method: the steps up to each point, then the repository is opened anew.

use std::ops::ControlFlow;

use super::super::detaching::Copy;
use super::super::marks::{DELETING, IMPORTING, RESETTING, set_mark};
use super::super::*;
use super::rig::*;
use crate::timeline::BranchPoint;
use crate::timeline::metadata::Ancestor;

/// `main` with a block of each of two LSNs, and `branch`, which left in between and has one of its own.
fn repository(dir: &tempfile::TempDir) -> Arc<Repository> {
    let repository = open(dir);
    let main = import(&repository, "main");
    write(&repository, &main, at(1), &[Write::Size(0, Some(1)), Write::Block(0, 0, 1)]);
    let branch = repository.create_branch("branch", "main", BranchPoint::Last).unwrap().timeline;
    write(&repository, &main, at(2), &[Write::Block(0, 0, 2)]);
    write(&repository, &branch, at(3), &[Write::Block(0, 0, 3)]);
    main.store.flush(true).unwrap();
    branch.store.flush(true).unwrap();
    repository
}

fn tag(timeline: &Timeline, lsn: Lsn) -> u64 {
    let page = timeline.get_page_at_lsn(block(0, 0), lsn).unwrap();
    u64::from_be_bytes(page[..8].try_into().unwrap())
}

fn names(repository: &Repository) -> Vec<String> {
    repository.timelines().iter().map(|timeline| timeline.metadata().name.clone()).collect()
}

fn entries(dir: &tempfile::TempDir) -> usize {
    std::fs::read_dir(dir.path().join(TIMELINES_DIR)).unwrap().count()
}

/// Versions that are stored under a number, the watermark included.
fn is_empty(repository: &Repository, no: u32) -> bool {
    let store = repository.store.timeline(keyenc::TimelineNo(no)).unwrap();
    store.watermark().is_none() && store.history(&block(0, 0), Lsn::ZERO..Lsn::MAX).unwrap().is_empty()
}

#[test]
fn a_branch_that_was_not_made_whole_is_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let first = repository(&dir);
    let metadata = first.timeline_named("branch").unwrap().metadata();
    drop(first);
    for with_metadata in [false, true] {
        let new =
            dir.path().join(TIMELINES_DIR).join(format!("{}{}", branching::NEW_DIR_PREFIX, TimelineId::generate()));
        std::fs::create_dir_all(new.join("wal")).unwrap();
        if with_metadata {
            let half_made = TimelineMetadata { name: "half".into(), ..(*metadata).clone() };
            half_made.save(&new).unwrap();
        }
        let again = open(&dir);
        assert_eq!((names(&again), entries(&dir)), (vec!["branch".to_owned(), "main".to_owned()], 2));
    }
}

#[test]
fn a_deletion_is_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let first = repository(&dir);
    let metadata = first.timeline_named("branch").unwrap().metadata();
    set_mark(&first.timeline_dir(metadata.timeline_id), DELETING, metadata.timeline_no).unwrap();
    drop(first);
    let again = open(&dir);
    assert_eq!((names(&again), entries(&dir)), (vec!["main".to_owned()], 1));
    assert!(is_empty(&again, metadata.timeline_no));
    assert_eq!(tag(&again.timeline_named("main").unwrap(), at(2)), 2);
    // The number may be given again: nothing of the deleted one shows.
    let next = again.create_branch("next", "main", BranchPoint::Lsn(at(1))).unwrap().timeline;
    assert_eq!(tag(&next, at(1)), 1);
    write(&again, &next, at(4), &[Write::TwoPhase(1, true)]);
    assert_eq!(tag(&next, at(4)), 1);
}

#[test]
fn a_deletion_whose_first_half_took_the_watermark_is_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let first = repository(&dir);
    let branch_dir = first.timeline_dir(first.timeline_named("branch").unwrap().metadata().timeline_id);
    // The watermark's file is gone, and other versions are there.
    let no = first.next_timeline_no();
    let store = first.store.timeline(keyenc::TimelineNo(no)).unwrap();
    let mut batch = crate::store::Batch::new();
    batch.put(block(0, 0), at(1), keyenc::Kind::Image, &page(9));
    store.put(&batch, at(1)).unwrap();
    store.flush(false).unwrap();
    assert!(store.watermark().is_none() && !is_empty(&first, no));
    set_mark(&branch_dir, DELETING, no).unwrap();
    drop((first, store));
    let again = open(&dir);
    assert_eq!((names(&again), entries(&dir)), (vec!["main".to_owned()], 1));
    assert!(is_empty(&again, no));
}

#[test]
fn what_was_being_removed_is_removed_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let first = repository(&dir);
    let branch_dir = first.timeline_dir(first.timeline_named("branch").unwrap().metadata().timeline_id);
    drop(first);
    let old = branch_dir.with_file_name(format!("{}x", marks::OLD_DIR_PREFIX));
    std::fs::rename(branch_dir, old).unwrap();
    assert_eq!((names(&open(&dir)), entries(&dir)), (vec!["main".to_owned()], 1));
}

#[test]
fn an_import_that_was_cut_off_is_taken_away_even_with_metadata() {
    let dir = tempfile::tempdir().unwrap();
    let first = repository(&dir);
    let metadata = first.timeline_named("branch").unwrap().metadata();
    set_mark(&first.timeline_dir(metadata.timeline_id), IMPORTING, metadata.timeline_no).unwrap();
    drop(first);
    let again = open(&dir);
    assert_eq!(names(&again), ["main"]);
    assert!(is_empty(&again, metadata.timeline_no));
}

#[test]
fn a_reset_has_happened_or_not() {
    for (has_metadata, expect) in [(false, 3), (true, 2)] {
        let dir = tempfile::tempdir().unwrap();
        let first = repository(&dir);
        let metadata = first.timeline_named("branch").unwrap().metadata();
        let branch_dir = first.timeline_dir(metadata.timeline_id);
        set_mark(&branch_dir, RESETTING, metadata.timeline_no).unwrap();
        std::fs::write(branch_dir.join("wal").join("00001000.history"), b"1\t0/1000030\tx\n").unwrap();
        let old_no = metadata.timeline_no;
        if has_metadata {
            let mut new = (*metadata).clone();
            new.timeline_no = first.next_timeline_no();
            new.ancestor = Some(Ancestor { lsn: at(2), ..new.ancestor.unwrap() });
            new.save(&branch_dir).unwrap();
        }
        drop(first);
        let again = open(&dir);
        let branch = again.timeline_named("branch").unwrap();
        assert_eq!(tag(&branch, branch.last_record_lsn()), expect);
        assert_eq!(is_empty(&again, old_no), has_metadata);
        assert_eq!(branch_dir.join("wal").join("00001000.history").exists(), !has_metadata);
        assert!(!branch_dir.join(RESETTING).exists());
    }
}

/// Resets `branch` in a directory whose WAL cannot be emptied; its number before, and what is in the way.
fn fail_to_reset(repository: &Repository) -> (u32, std::path::PathBuf) {
    let metadata = repository.timeline_named("branch").unwrap().metadata();
    let wal_dir = repository.timeline_dir(metadata.timeline_id).join("wal");
    std::fs::remove_dir_all(&wal_dir).unwrap();
    std::fs::write(&wal_dir, "no directory").unwrap();
    assert!(repository.reset_branch("branch", BranchPoint::Lsn(at(2))).is_err());
    (metadata.timeline_no, wal_dir)
}

#[test]
fn what_a_failed_reset_has_left_goes_with_its_branch() {
    let dir = tempfile::tempdir().unwrap();
    let repository = repository(&dir);
    let (no, _) = fail_to_reset(&repository);
    assert!(!is_empty(&repository, no));
    repository.delete_timeline("branch").unwrap();
    assert!(is_empty(&repository, no));
    assert_eq!(names(&repository), ["main"]);
}

#[test]
fn what_a_failed_reset_has_left_goes_with_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let repository = repository(&dir);
    let (no, in_the_way) = fail_to_reset(&repository);
    std::fs::remove_file(in_the_way).unwrap();
    let branch = repository.reset_branch("branch", BranchPoint::Lsn(at(2))).unwrap().timeline;
    assert!(is_empty(&repository, no));
    assert_eq!(tag(&branch, branch.last_record_lsn()), 2);
}

#[test]
fn a_detach_that_was_cut_off_starts_over() {
    let dir = tempfile::tempdir().unwrap();
    let first = repository(&dir);
    let (branch, branch_lsn, busy) = first.begin_detach("branch").unwrap();
    // All images are there, and the metadata does not know of them.
    Copy::new(&branch, branch_lsn, &mut |_, _| ControlFlow::Continue(())).unwrap().run().unwrap();
    let busy_error = first.delete_timeline("branch").err().unwrap();
    assert!(matches!(busy_error, RepositoryError::Branch(BranchError::Busy { .. })));
    drop(busy);
    assert_eq!([tag(&branch, at(0).max(branch_lsn)), tag(&branch, at(3))], [1, 3]);
    drop((branch, first));
    let again = open(&dir);
    let branch = again.timeline_named("branch").unwrap();
    assert_eq!(branch.first_readable_lsn(), Some(START_LSN));
    assert_eq!([tag(&branch, branch_lsn), tag(&branch, at(3))], [1, 3]);
    again.detach_branch("branch", &mut |_, _| ControlFlow::Continue(())).unwrap();
    again.delete_timeline("main").unwrap();
    drop(branch);
    drop(again);
    let last = open(&dir);
    let branch = last.timeline_named("branch").unwrap();
    assert_eq!(branch.first_readable_lsn(), Some(branch_lsn));
    assert_eq!([tag(&branch, branch_lsn), tag(&branch, at(3))], [1, 3]);
    assert_eq!(names(&last), ["branch"]);
}
