//! Goal: what cannot be opened keeps nobody else from opening, answers nothing, and loses nothing that it still needs.
//! Method: one file of the store after the other is damaged where a watermark stands, and mended by putting its bytes back.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::super::*;
use super::rig::*;
use crate::timeline::{BranchPoint, ReadError, SlotThen, TimelineState};
use crate::verify::{Finding, VerifyError, VerifyProgress, VerifySink};

/// `main` with two branches, one of which has versions of its own, and `other`, all in files.
fn cluster(dir: &tempfile::TempDir) {
    // Compaction is off for as long as there is such a file: files stay as flushes have made them.
    fs::create_dir(dir.path().join("store")).unwrap();
    fs::write(dir.path().join("store/compaction_paused"), "").unwrap();
    let repository = open(dir);
    let main = import(&repository, "main");
    let other = import(&repository, "other");
    for n in 1..=20 {
        for timeline in [&main, &other] {
            write(&repository, timeline, at(n), &[Write::Size(0, Some(1)), Write::Block(0, 0, n)]);
        }
    }
    let branch = repository.create_branch("branch", "main", BranchPoint::Lsn(at(5))).unwrap().timeline;
    repository.create_branch("empty", "branch", BranchPoint::Last).unwrap();
    write(&repository, &branch, at(6), &[Write::Block(0, 0, 600)]);
    repository.shutdown().unwrap();
}

fn tag(repository: &Repository, name: &str, n: u64) -> Result<u64, ReadError> {
    let found = repository.timeline_named(name).unwrap().get_page_at_lsn(block(0, 0), at(n))?;
    Ok(u64::from_be_bytes(found[..8].try_into().unwrap()))
}

/// SST files whose first block, which begins with the watermark of a timeline, is made unreadable; and their bytes as they were.
fn damaged_files(dir: &Path) -> impl Iterator<Item = (PathBuf, Vec<u8>)> {
    let files = fs::read_dir(dir.join("store/rocksdb")).unwrap().map(|entry| entry.unwrap().path());
    let ssts: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|extension| extension == "sst")).collect();
    assert!(ssts.len() >= 3, "{ssts:?}");
    ssts.into_iter().map(|path| {
        let whole = fs::read(&path).unwrap();
        let mut damaged = whole.clone();
        damaged[16..32].fill(0xA5);
        fs::write(&path, damaged).unwrap();
        (path, whole)
    })
}

fn is_damaged(repository: &Repository, name: &str) -> bool {
    matches!(repository.timeline_named(name).unwrap().state(), TimelineState::Damaged { .. })
}

#[test]
fn damaged_metadata_come_back_from_their_copies() {
    let dir = tempfile::tempdir().unwrap();
    cluster(&dir);
    let dirs = fs::read_dir(dir.path().join(TIMELINES_DIR)).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<PathBuf> = dirs.map(|dir| dir.join("timeline.json")).collect();
    let whole: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    files.iter().for_each(|file| fs::write(file, b"{").unwrap());
    assert_eq!(StoppedTimeline::all(dir.path()).unwrap().len(), 4);
    assert!(files.iter().all(|file| fs::read(file).unwrap() == b"{"), "reading changes nothing");
    let repository = open(&dir);
    assert_eq!([tag(&repository, "main", 7).unwrap(), tag(&repository, "branch", 6).unwrap()], [7, 600]);
    drop(repository);
    assert!(files.iter().zip(&whole).all(|(file, whole)| fs::read(file).unwrap() == *whole));
    for ending in ["json", "json.copy"] {
        fs::write(files[0].with_extension(ending), b"{").unwrap();
    }
    assert!(StoppedTimeline::all(dir.path()).is_err());
    let refused = Repository::open(dir.path(), Config::default()).err().unwrap();
    assert!(refused.to_string().contains("timeline.json"), "{refused}");
}

#[test]
fn a_damaged_timeline_keeps_no_other_from_opening() {
    let dir = tempfile::tempdir().unwrap();
    cluster(&dir);
    let mut damaged = std::collections::BTreeSet::new();
    for (path, whole) in damaged_files(dir.path()) {
        let repository = open(&dir);
        for (name, n, expected, depends_on) in [
            ("main", 20, 20, &["main"][..]),
            ("other", 20, 20, &["other"]),
            ("branch", 6, 600, &["main", "branch"]),
            ("empty", 5, 5, &["main", "branch"]),
        ] {
            let found = tag(&repository, name, n);
            if depends_on.iter().any(|name| is_damaged(&repository, name)) {
                assert!(is_damaged(&repository, name), "{name}");
                assert!(matches!(found, Err(ReadError::Unopened { .. })), "{name}: {found:?}");
                let timeline = repository.timeline_named(name).unwrap();
                assert!(matches!(timeline.wait_lsn(at(1000)), Err(ReadError::Unopened { .. })), "nobody waits");
                let refused = repository.create_branch("new", name, BranchPoint::Last).err().unwrap();
                assert!(matches!(refused, RepositoryError::Read(ReadError::Unopened { .. })), "{refused}");
                assert!(repository.lease(name, at(n), LEASE_DEFAULT).is_err());
                assert!(repository.follow_primary(name, "host=127.0.0.1").is_err());
                assert!(matches!(repository.begin_import(name), Err(RepositoryError::NameTaken { .. })));
                assert!(repository.timeline_sizes(name, None).unwrap().logical.is_none());
                damaged.insert(name);
            } else {
                assert_eq!(found.unwrap(), expected, "{name}");
                let timeline = repository.timeline_named(name).unwrap();
                write(&repository, &timeline, at(100), &[Write::Block(0, 0, 7)]);
                assert_eq!(tag(&repository, name, 100).unwrap(), 7);
            }
        }
        repository.follow_primaries().unwrap();
        // Nothing of it is nobody's.
        for timeline in repository.timelines() {
            repository.delete_orphans(timeline.timeline_no()).unwrap();
        }
        drop(repository); // Nothing of what was just written was flushed.
        fs::write(path, whole).unwrap();
    }
    assert_eq!(damaged.into_iter().collect::<Vec<_>>(), ["branch", "empty", "main", "other"]);
    let repository = open(&dir);
    assert_eq!((tag(&repository, "main", 20).unwrap(), tag(&repository, "empty", 5).unwrap()), (20, 5));
}

#[test]
fn a_damaged_branch_keeps_what_it_reads_of_its_ancestor() {
    let dir = tempfile::tempdir().unwrap();
    cluster(&dir);
    let mut removed = 0;
    for (path, whole) in damaged_files(dir.path()) {
        let repository = open(&dir);
        if is_damaged(&repository, "branch") && !is_damaged(&repository, "main") {
            let main = repository.timeline_named("main").unwrap();
            let report = collect(&repository, "main", 1);
            assert_eq!(report.horizon_lsn, Some(at(19)));
            removed += report.counts.total().versions;
            let readable: Vec<u64> = (1..=20).filter(|n| tag(&repository, "main", *n).is_ok()).collect();
            assert_eq!(readable, [5, 19, 20]);
            let refused = repository.delete_timeline("main").err().unwrap();
            assert!(matches!(refused, RepositoryError::Branch(BranchError::HasBranches { .. })), "{refused}");
            main.store.flush(true).unwrap();
        }
        repository.shutdown().unwrap();
        drop(repository);
        if path.exists() {
            fs::write(path, whole).unwrap();
        }
    }
    assert!(removed > 30, "{removed}");
    let repository = open(&dir);
    assert_eq!((tag(&repository, "branch", 6).unwrap(), tag(&repository, "branch", 5).unwrap()), (600, 5));
}

#[test]
fn a_damaged_timeline_can_be_deleted_and_its_branches_first() {
    let dir = tempfile::tempdir().unwrap();
    cluster(&dir);
    let mut is_main_alone = false;
    for (path, whole) in damaged_files(dir.path()) {
        let repository = open(&dir);
        is_main_alone = is_damaged(&repository, "main") && !is_damaged(&repository, "other");
        drop(repository);
        if is_main_alone {
            break;
        }
        fs::write(path, whole).unwrap();
    }
    assert!(is_main_alone);
    let repository = open(&dir);
    let main_no = repository.timeline_named("main").unwrap().timeline_no();
    for name in ["main", "branch"] {
        let refused = repository.delete_timeline(name).err().unwrap();
        assert!(matches!(refused, RepositoryError::Branch(BranchError::HasBranches { .. })), "{refused}");
    }
    let notices = |name: &str| repository.delete_timeline(name).unwrap().notices;
    assert_eq!([notices("empty"), notices("branch")], [Vec::<String>::new(), Vec::new()]);
    // RocksDB looks into the damaged block before it takes the removal of all.
    assert!(notices("main").iter().any(|notice| notice.contains("pageserver mend")));
    assert!(repository.store.has_files(main_no));
    // The store goes on.
    let other = repository.timeline_named("other").unwrap();
    write(&repository, &other, at(100), &[Write::Block(0, 0, 7)]);
    repository.shutdown().unwrap();
    drop((other, repository));
    let repository = open(&dir);
    assert_eq!(repository.timelines().iter().map(|it| it.metadata().name.clone()).collect::<Vec<_>>(), ["other"]);
    assert_eq!((tag(&repository, "other", 20).unwrap(), tag(&repository, "other", 100).unwrap()), (20, 7));
    // Nobody gets the number of versions that are still there.
    assert!(import(&repository, "main").timeline_no() > main_no);
    assert!(repository.store.has_files(main_no));
}

#[test]
fn what_lacks_its_control_file_alone_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    cluster(&dir);
    let repository = open(&dir);
    let main = repository.timeline_named("main").unwrap();
    let mut batch = crate::store::Batch::new();
    batch.put(Object::ControlFile.into(), at(21), keyenc::Kind::Image, b"no control file");
    main.store.put(&batch, at(21)).unwrap();
    main.last_record.advance(at(21));
    repository.shutdown().unwrap();
    drop((main, repository));

    let repository = open(&dir);
    let main = repository.timeline_named("main").unwrap();
    assert_eq!(
        ["main", "branch", "empty", "other"].map(|name| is_damaged(&repository, name)),
        [true, true, true, false]
    );
    let watermark = main.store.watermark();
    assert_eq!(watermark.map(|it| it.last_record_lsn), Some(at(21)));
    repository.set_retention("main", Some(keep_records(1))).unwrap();
    for dry_run in [true, false] {
        let refused = repository.collect_garbage("main", dry_run, &mut |_, _| ControlFlow::Continue(())).err().unwrap();
        assert!(matches!(refused, RepositoryError::Read(ReadError::Unopened { .. })), "{refused}");
    }
    assert!(main.metadata().gc.is_none());
    let refused = repository.detach_branch("branch", &mut |_, _| ControlFlow::Continue(())).err().unwrap();
    assert!(matches!(refused, RepositoryError::Read(ReadError::Unopened { .. })), "{refused}");
    assert!(repository.timeline_named("branch").unwrap().metadata().ancestor.is_some());
    assert!(repository.unfollow_primary("main", SlotThen::Dropped).is_ok(), "it follows nobody");
    assert!(repository.pinned_bytes("branch", &mut |_, _| ControlFlow::Continue(())).is_err());
    assert_eq!(repository.all_sizes(None).unwrap().len(), 4);
    repository.shutdown().unwrap();
    assert_eq!(main.store.watermark(), watermark);
}

/// Asks to stop as soon as it is told anything.
struct Stops;

impl VerifySink for Stops {
    fn finding(&mut self, _: &Finding) -> ControlFlow<()> {
        ControlFlow::Break(())
    }

    fn progress(&mut self, _: &VerifyProgress) -> ControlFlow<()> {
        ControlFlow::Break(())
    }
}

#[test]
fn a_repair_stops_when_it_is_asked_to() {
    let dir = tempfile::tempdir().unwrap();
    cluster(&dir);
    let repository = open(&dir);
    assert!(matches!(repository.repair(None, false, &mut Stops), Err(VerifyError::Cancelled)));
}

#[test]
fn who_finds_no_room_to_follow_does_when_there_is() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("store")).unwrap();
    fs::write(dir.path().join("store/compaction_paused"), "").unwrap();
    let repository = open(&dir);
    let main = import(&repository, "main");
    let branch = repository.create_branch("branch", "main", BranchPoint::Last).unwrap().timeline;
    let nobody = "host=127.0.0.1 port=1 user=nobody";
    repository.follow_primary("main", nobody).unwrap();

    let impatience = main.store.impatient();
    let full = (1..1000).find_map(|n| {
        write(&repository, &main, at(n), &[Write::Block(0, 0, n)]);
        main.store.flush(true).err()
    });
    assert!(matches!(full, Some(StoreError::NoRoom)), "{full:?}");
    drop(impatience);

    let refused = |changed: Result<Changed, RepositoryError>| match changed {
        Err(error) => matches!(error, RepositoryError::Store(StoreError::NoRoom)),
        Ok(_) => false,
    };
    let follows = |timeline: &Timeline| timeline.receiver.read().is_some() && timeline.metadata().primary.is_some();
    assert!(refused(repository.unfollow_primary("main", SlotThen::Dropped)) && follows(&main));
    assert!(refused(repository.follow_primary("branch", nobody)) && !follows(&branch));
    assert!(matches!(branch.state(), TimelineState::Stopped { reason, .. } if reason.contains("no room")));
    assert!(refused(repository.detach_branch("branch", &mut |_, _| ControlFlow::Continue(()))));
    repository.set_retention("main", Some(keep_records(1))).unwrap();
    let collected = repository.collect_garbage("main", false, &mut |_, _| ControlFlow::Continue(()));
    assert!(one_line(&collected.err().unwrap()).contains("no room"));

    // One whose watermark is still in memory leaves nothing behind.
    let gone = repository.create_branch("gone", "main", BranchPoint::Last).unwrap().timeline;
    assert!(refused(repository.follow_primary("gone", nobody)) && gone.store.watermark().is_none());
    repository.delete_timeline("gone").unwrap();

    repository.resume_compaction().unwrap();
    assert!(follows(&branch) && matches!(branch.state(), TimelineState::Active), "{:?}", branch.state());
    repository.unfollow_primary("main", SlotThen::Dropped).unwrap();
    assert!(repository.store.timeline(gone.timeline_no()).unwrap().watermark().is_none());
    repository.shutdown().unwrap();
}
