//! Goal: a damaged file that a compaction meets stops ingest once, not after each restart; deleting the timeline that it is of takes it away. Method: flipped bytes
//! in files of the store; compactions that meet them; opened again.

use std::fs;
use std::time::Instant;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::faults::{flip, remove_obstacles};
use super::*;

const BLOCKS: u32 = 40;
const ALL: [u32; 3] = [1, 2, 3];
const MARK: &str = "compaction_paused";

/// Does not compress, so that the middle of a file is data.
fn page(no: u32, block_no: u32, lsn: u64) -> Vec<u8> {
    let mut page = vec![0; 8192];
    SmallRng::seed_from_u64(u64::from(no) << 48 | u64::from(block_no) << 32 | lsn).fill(&mut page[..]);
    page
}

/// Every block anew.
fn put_all(store: &Arc<Store>, no: u32, lsn: u64) -> Result<(), StoreError> {
    let timeline = store.timeline(TimelineNo(no))?;
    let mut versions = Batch::new();
    (0..BLOCKS).for_each(|n| versions.put(block(n), Lsn::new(lsn), Kind::Image, &page(no, n, lsn)));
    timeline.put(&versions, Lsn::new(lsn))?;
    timeline.flush(true)
}

/// How many blocks are corrupt at an LSN; all others are right.
fn corrupt(store: &Arc<Store>, no: u32, lsn: u64) -> usize {
    let timeline = store.timeline(TimelineNo(no)).expect("a timeline");
    let is_corrupt = |n: &u32| match gather(&timeline, &block(*n), lsn) {
        Ok(found) => {
            assert_eq!(found, (vec![(lsn, Kind::Image, page(no, *n, lsn))], true), "number {no} block {n}");
            false
        }
        Err(StoreError::Corrupt { .. }) => true,
        Err(error) => panic!("number {no} block {n}: {error}"),
    };
    (0..BLOCKS).filter(is_corrupt).count()
}

fn is_empty(store: &Arc<Store>, no: u32) -> bool {
    let timeline = store.timeline(TimelineNo(no)).expect("a timeline");
    let nothing = Ok((vec![], false));
    timeline.watermark().is_none() && (0..BLOCKS).all(|n| gather(&timeline, &block(n), 1000) == nothing)
}

/// Three numbers side by side in the last level, with LSNs 8 and 16.
fn three_timelines(dir: &Path) -> Arc<Store> {
    let store = open(dir);
    for lsn in [8, 16] {
        ALL.iter().for_each(|no| put_all(&store, *no, lsn).expect("flush"));
    }
    store.compact_all();
    store
}

/// A file in the middle of those that hold versions of number 2 alone.
fn file_of_two(store: &Store) -> String {
    let mut files = store.inner().db.files();
    files.retain(|file| file.only_number() == Some(TimelineNo(2)));
    files.sort_by(|one, other| one.start_key.cmp(&other.start_key));
    files.swap_remove(files.len() / 2).name
}

fn flip_the_middle(dir: &Path, file: &str) {
    let path = dir.join("rocksdb").join(file);
    flip(&path, std::fs::metadata(&path).expect("the file is there").len() / 2);
}

/// Opens the store and has a compaction fail; what a flush says then.
fn compact_and_fail(dir: &Path, lsn: u64) -> (Arc<Store>, String) {
    let store = open(dir);
    put_all(&store, 2, lsn).expect("what is written is sound");
    store.compact_all();
    let failed = put_all(&store, 2, lsn + 8);
    let Err(StoreError::Poisoned { cause }) = failed else { panic!("the store takes no more: {failed:?}") };
    (store, cause)
}

/// A store whose compaction is paused by a damaged file of number 2, open.
fn paused(dir: &Path) -> (Arc<Store>, String) {
    let file = file_of_two(&three_timelines(dir));
    flip_the_middle(dir, &file);
    let (store, cause) = compact_and_fail(dir, 24);
    assert!(cause.contains("Corruption") && cause.contains("pagectl repair") && cause.contains(&file), "{cause}");
    assert!(store.stats().compaction_paused.is_some_and(|cause| cause.contains(&file)));
    drop(store);
    assert!(dir.join(MARK).exists());
    (open(dir), file)
}

#[test]
fn ingest_goes_on_after_a_restart_and_compaction_is_paused() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, file) = paused(dir.path());
    assert!(store.stats().compaction_paused.is_some_and(|cause| cause.contains(&file)));
    assert_eq!(store.paused_file(), Some(file));
    // More files in level 0 than a flush waits for otherwise.
    for lsn in (32..32 + 16 * 8).step_by(8) {
        ALL.iter().for_each(|no| put_all(&store, *no, lsn).expect("flush"));
    }
    let db = &store.inner().db;
    assert!(db.level0_files() > small_config().level0_files_max.into(), "{} files", db.level0_files());
    store.compact_all();
    let files = db.files();
    db.compact_range(&files[0].start_key, &files[0].end_key);
    assert_eq!((db.background_errors(), store.stats().poisoned), (0, None));
    assert_eq!([1, 3].map(|no| corrupt(&store, no, 16) + corrupt(&store, no, 80)), [0, 0]);
    let lost = corrupt(&store, 2, 8) + corrupt(&store, 2, 16);
    // A read of what a newer file has looks into the older one as well: RocksDB seeks in each level.
    let beside = corrupt(&store, 2, 24);
    assert!((1..=4).contains(&lost) && beside <= 2, "what the byte is in: {lost}, beside: {beside}");

    // It is not resumed while the file cannot be read, whoever asks, and stays so after another start.
    let refused = store.resume_compaction();
    assert!(matches!(&refused, Err(StoreError::Corrupt { detail }) if detail.contains(".sst")), "{refused:?}");
    drop(store);
    let store = open(dir.path());
    assert!(store.compaction_paused().is_some());
    put_all(&store, 1, 200).expect("flush");
}

#[test]
fn deleting_the_timeline_takes_the_damaged_file_and_compaction_goes_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, file) = paused(dir.path());
    for lsn in (32..32 + 8 * 8).step_by(8) {
        ALL.iter().for_each(|no| put_all(&store, *no, lsn).expect("flush"));
    }
    store.delete_timeline(TimelineNo(2)).expect("deleted");
    assert!(!store.inner().db.has_file(&file) && !dir.path().join("rocksdb").join(&file).exists());
    assert!(is_empty(&store, 2));
    store.resume_compaction().expect("nothing is damaged any more");
    assert!(!dir.path().join(MARK).exists() && store.stats().compaction_paused.is_none());
    // By itself, without another flush.
    let begun = Instant::now();
    while store.inner().db.level0_files() >= 4 {
        assert!(begun.elapsed() < Duration::from_secs(60), "{} files", store.inner().db.level0_files());
        std::thread::sleep(Duration::from_millis(10));
    }
    put_all(&store, 1, 200).expect("flush");
    store.compact_all();
    assert_eq!((store.inner().db.background_errors(), store.stats().poisoned), (0, None));
    drop(store);
    let store = open(dir.path());
    assert_eq!((store.compaction_paused(), is_empty(&store, 2)), (None, true));
    assert_eq!([(1, 16), (3, 16), (1, 88), (3, 88), (1, 200)].map(|(no, lsn)| corrupt(&store, no, lsn)), [0; 5]);
    put_all(&store, 2, 8).expect("its number is free");
    assert_eq!(corrupt(&store, 2, 8), 0);
}

#[test]
fn a_damaged_file_of_level_0_stays_and_so_does_the_pause() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = {
        let store = three_timelines(dir.path());
        let before: Vec<String> = store.inner().db.files().into_iter().map(|file| file.name).collect();
        put_all(&store, 2, 24).expect("flush");
        let files = store.inner().db.files().into_iter();
        let new: Vec<_> = files.filter(|file| !before.contains(&file.name)).collect();
        assert_eq!(new.len() as u64, store.inner().db.level0_files());
        new.into_iter().max_by_key(|file| file.bytes).expect("a file of level 0").name
    };
    flip_the_middle(dir.path(), &file);
    drop(compact_and_fail(dir.path(), 32));
    let store = open(dir.path());
    assert_eq!(store.paused_file(), Some(file.clone()));
    store.delete_timeline(TimelineNo(2)).expect("deleted");
    assert!(is_empty(&store, 2) && store.inner().db.has_file(&file));
    // Nobody reads it any more, but a compaction would.
    assert!(matches!(store.resume_compaction(), Err(StoreError::Corrupt { .. })));
    drop(store);
    let store = open(dir.path());
    assert!(store.compaction_paused().is_some());
    put_all(&store, 1, 32).expect("flush");
    assert_eq!(corrupt(&store, 1, 32), 0);
}

#[test]
fn a_deletion_that_a_damaged_file_refuses_changes_nothing_of_the_store() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = three_timelines(dir.path());
    let before: Vec<String> = store.inner().db.files().into_iter().map(|file| file.name).collect();
    let timeline = store.timeline(TimelineNo(2)).expect("a timeline");
    timeline.put(&batch(&[(block(0), 24, Kind::Image, &page(2, 0, 24))]), Lsn::new(24)).expect("put");
    timeline.flush(true).expect("flush");
    let mut new = store.inner().db.files();
    new.retain(|file| !before.contains(&file.name));
    assert_eq!(new.len(), 1, "the newest of level 0, which is looked into first");
    let first = new.swap_remove(0).name;
    drop(timeline);
    drop(store);
    // Where RocksDB looks whether something lies below the removal of all.
    flip(&dir.path().join("rocksdb").join(first), 20);
    std::fs::write(dir.path().join(MARK), "").expect("compaction is paused: it would meet the file");
    let store = open(dir.path());
    let refused = store.delete_timeline(TimelineNo(2));
    assert!(matches!(refused, Err(StoreError::Corrupt { .. })), "{refused:?}");
    assert_eq!(store.stats().poisoned, None);
    // What is acknowledged from now on is there after the next start, whatever became of files meanwhile.
    for no in [1, 3] {
        put_all(&store, no, 32).expect("flush");
    }
    assert_eq!([16, 32].map(|lsn| corrupt(&store, 3, lsn)), [0, 0]);
    store.delete_timeline(TimelineNo(3)).expect("deleted");
    put_all(&store, 1, 40).expect("flush");
    drop(store);
    assert!(!dir.path().join("ingest_failed").exists());
    let store = open(dir.path());
    assert_eq!([16, 32, 40].map(|lsn| corrupt(&store, 1, lsn)), [0; 3]);
    assert!(store.has_files(TimelineNo(2)));
}

#[test]
fn a_file_that_can_be_read_again_pauses_no_longer() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, file) = paused(dir.path());
    drop(store);
    flip_the_middle(dir.path(), &file);
    let store = open(dir.path());
    assert!(store.compaction_paused().is_some(), "nobody has looked yet");
    store.resume_compaction().expect("it can be read");
    store.compact_all();
    assert_eq!((store.inner().db.level0_files(), store.inner().db.background_errors()), (0, 0));
    assert_eq!(ALL.map(|no| corrupt(&store, no, 8) + corrupt(&store, no, 16)), [0; 3]);
}

#[test]
fn a_deletion_that_ended_between_files_and_the_rest_is_whole_after_another() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = three_timelines(dir.path());
    put_all(&store, 2, 24).expect("flush");
    let count = store.inner().db.files().len();
    store.inner().db.delete_whole_files(TimelineNo(2)).expect("deleted");
    assert!(store.inner().db.files().len() < count);
    drop(store);
    let store = open(dir.path());
    assert!(!is_empty(&store, 2), "what lies in level 0 and beside others' versions is still there");
    assert!(store.has_files(TimelineNo(2)));
    store.delete_timeline(TimelineNo(2)).expect("deleted");
    store.delete_timeline(TimelineNo(2)).expect("deleted again");
    for is_merged in [false, true] {
        if is_merged {
            store.compact_all();
        }
        assert!(is_empty(&store, 2));
        assert_eq!([1, 3].map(|no| corrupt(&store, no, 8) + corrupt(&store, no, 16)), [0, 0]);
    }
}

#[test]
fn a_failed_write_of_compaction_is_no_damage() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = three_timelines(dir.path());
    put_all(&store, 2, 24).expect("flush");
    for file_no in 1..1000 {
        // Where there is none yet.
        let _ = std::fs::create_dir(dir.path().join(format!("rocksdb/{file_no:06}.sst")));
    }
    store.compact_all();
    assert!(store.inner().db.background_errors() > 0);
    let failed = put_all(&store, 2, 32);
    assert!(matches!(&failed, Err(StoreError::Poisoned { cause }) if !cause.contains("paused")), "{failed:?}");
    assert!(!dir.path().join(MARK).exists() && store.compaction_paused().is_none());
    drop(store);
    remove_obstacles(dir.path());
    let store = open(dir.path());
    store.compact_all();
    put_all(&store, 2, 32).expect("flush");
    assert_eq!((store.inner().db.background_errors(), corrupt(&store, 2, 32)), (0, 0));
}

/// Waits until what `is_so` says holds.
fn wait_until(is_so: impl Fn() -> bool) {
    while !is_so() {
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_full_level_0_that_nobody_empties_keeps_nobody_from_deleting_stopping_or_closing() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join(MARK), "").expect("paused");
    let config = StoreConfig { level0_files_max: 4, ..small_config() };
    let store = Store::open(dir.path(), &config).expect("the store opens");
    let is_full = || store.inner().db.is_level0_full();
    let fill = |timeline: &TimelineStore| {
        (1_u64..).find_map(|n| {
            let batch = batch(&[(block(1), n * 8, Kind::Image, &[7; 100])]);
            timeline.put(&batch, Lsn::new(n * 8)).and_then(|()| timeline.flush(true)).err()
        })
    };
    let [first, second, third] = ALL.map(|no| store.timeline(TimelineNo(no)).expect("a timeline"));
    std::thread::scope(|scope| {
        // Somebody waits for a flush, which waits for level 0.
        let flushing = scope.spawn(|| fill(&first));
        wait_until(is_full);
        store.delete_timeline(T1).expect("deleted");
        assert!(matches!(flushing.join(), Ok(Some(StoreError::TimelineDeleted { .. }))));

        // Somebody waits for room.
        let flushing = scope.spawn(|| fill(&second));
        wait_until(is_full);
        let putting = scope.spawn(|| {
            let value = vec![7; 100_000];
            (1_u64..).find_map(|n| third.put(&batch(&[(block(1), n * 8, Kind::Image, &value)]), Lsn::new(n * 8)).err())
        });
        wait_until(|| !store.inner().has_room());
        third.set_waited_for(true);
        assert!(matches!(putting.join(), Ok(Some(StoreError::ShuttingDown))));

        store.begin_closing();
        assert!(matches!(flushing.join(), Ok(Some(StoreError::ShuttingDown))));
    });
    // The flusher has ended with a layer of it in hand.
    store.delete_timeline(TimelineNo(2)).expect("deleted");
    drop((first, second, third, store));
    fs::remove_file(dir.path().join(MARK)).expect("goes on");
    let store = Store::open(dir.path(), &config).expect("the store opens");
    put_all(&store, 2, 8).expect("there is room again");
    assert!(is_empty(&store, 1));
}
