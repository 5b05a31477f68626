//! Goal: damage is told, never guessed over; a failed write stops the store until it is reopened. Method: real faults: a full device
//! (`/dev/full`), a file in the way, flipped bytes, a second open. Each ends with write, reopen, read back.

use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::PathBuf;

use super::*;

const PAGE: &[u8] = &[7; 8192];

#[test]
fn a_second_open_is_refused_with_the_directory() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    fs::write(dir.path().join("pending/in-use.sst"), "x").expect("write");
    let refused = Store::open(dir.path(), &small_config()).err();
    assert_eq!(refused, Some(StoreError::Locked { dir: dir.path().to_owned() }));
    assert!(dir.path().join("pending/in-use.sst").exists(), "the second open touches nothing");
    drop(store);
    drop(open(dir.path()));
    assert!(!dir.path().join("pending/in-use.sst").exists(), "what was never ingested is removed");
}

/// Puts, lets `spoil` break something, and checks that the failure is told and lasts; then reopens and goes on.
fn check_failed_flush(spoil: impl Fn(&std::path::Path), expect_in_cause: &str) {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let timeline = store.timeline(T1).expect("a timeline");
    timeline.put(&batch(&[(block(1), 8, Kind::Image, PAGE)]), Lsn::new(8)).expect("put");
    timeline.flush(true).expect("flush");
    timeline.put(&batch(&[(block(1), 16, Kind::Delta, b"a")]), Lsn::new(16)).expect("put");
    spoil(dir.path());
    let failed = timeline.flush(true);
    let Err(StoreError::Poisoned { cause }) = &failed else { panic!("the flush fails: {failed:?}") };
    assert!(cause.contains(expect_in_cause), "{cause}");
    assert_eq!(timeline.watermark().map(|w| w.last_record_lsn), Some(Lsn::new(8)));
    assert_eq!(timeline.put(&Batch::new(), Lsn::new(24)), failed);
    assert_eq!(timeline.flush(true), failed);
    assert_eq!(store.delete_timeline(T1), failed);
    assert_eq!(store.stats().poisoned.as_ref(), Some(cause));
    let expect = (vec![(16, Kind::Delta, b"a".to_vec()), (8, Kind::Image, PAGE.to_vec())], true);
    assert_eq!(gather(&timeline, &block(1), 16), Ok(expect.clone()), "reads of intact data go on");
    drop((timeline, store));

    // Reopened, it stands at the old watermark and takes the rest again.
    remove_obstacles(dir.path());
    let store = open(dir.path());
    let timeline = store.timeline(T1).expect("a timeline");
    assert_eq!(timeline.watermark().map(|w| w.last_record_lsn), Some(Lsn::new(8)));
    assert_eq!(gather(&timeline, &block(1), 8), Ok((expect.0[1..].to_vec(), true)));
    timeline.put(&batch(&[(block(1), 16, Kind::Delta, b"a")]), Lsn::new(16)).expect("put");
    timeline.flush(true).expect("flush");
    drop((timeline, store));
    let store = open(dir.path());
    assert_eq!(gather(&store.timeline(T1).expect("a timeline"), &block(1), 16), Ok(expect));
}

pub(super) fn remove_obstacles(dir: &std::path::Path) {
    for entry in fs::read_dir(dir.join("rocksdb")).expect("the directory is there") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            fs::remove_dir(path).expect("an empty directory");
        }
    }
}

#[test]
fn a_full_disk_while_writing_a_file_poisons() {
    let spoil = |dir: &std::path::Path| {
        for file_no in 1..20 {
            symlink("/dev/full", dir.join(format!("pending/{file_no:08}.sst"))).expect("a link");
        }
    };
    check_failed_flush(spoil, "No space left on device");
}

#[test]
fn a_failed_ingestion_poisons() {
    let spoil = |dir: &std::path::Path| {
        for file_no in 1..200 {
            let _ = fs::create_dir(dir.join(format!("rocksdb/{file_no:06}.sst")));
        }
    };
    check_failed_flush(spoil, "File exists");
}

#[test]
fn a_missing_pending_directory_poisons() {
    check_failed_flush(|dir| fs::remove_dir(dir.join("pending")).expect("it is empty"), "No such file or directory");
}

#[test]
fn a_flipped_byte_is_corruption_never_a_wrong_value() {
    let dir = tempfile::tempdir().expect("a directory");
    let value = |n: u32| -> Vec<u8> { n.wrapping_mul(2_654_435_761).to_be_bytes().repeat(40) };
    {
        let store = open(dir.path());
        let timeline = store.timeline(T1).expect("a timeline");
        let mut versions = Batch::new();
        for n in 0..300 {
            versions.put(
                block(n % 100),
                Lsn::new(u64::from(n + 1) * 8),
                if n < 100 { Kind::Image } else { Kind::Delta },
                &value(n),
            );
        }
        timeline.put(&versions, Lsn::new(2400)).expect("put");
        timeline.flush(true).expect("flush");
    }
    let file = only_sst(dir.path());
    let length = fs::metadata(&file).expect("the file is there").len();
    let (mut corrupt, mut intact) = (0, 0);
    // Every part of the file: data, filter, index, properties, footer.
    for at in (0..length).step_by((length / 150).max(1) as usize).chain(length - 60..length) {
        flip(&file, at);
        match read_all(dir.path(), &value) {
            Ok(()) => intact += 1,
            Err(StoreError::Corrupt { detail }) => {
                assert!(!detail.is_empty());
                corrupt += 1;
            }
            Err(other) => panic!("byte {at}: {other}"),
        }
        flip(&file, at);
    }
    assert!(corrupt > 100, "{corrupt} corrupt, {intact} intact");
    assert_eq!(read_all(dir.path(), &value), Ok(()), "all bytes are back");
}

#[test]
fn corruption_met_by_compaction_poisons() {
    let dir = tempfile::tempdir().expect("a directory");
    // Does not compress, so that the middle of the file is data.
    let page: Vec<u8> = (0..8192u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let put = |timeline: &TimelineStore, lsn: u64| {
        let mut versions = Batch::new();
        (0..40).for_each(|n| versions.put(block(n), Lsn::new(lsn), Kind::Image, &page));
        timeline.put(&versions, Lsn::new(lsn)).expect("put");
    };
    {
        let store = open(dir.path());
        let timeline = store.timeline(T1).expect("a timeline");
        put(&timeline, 8);
        timeline.flush(true).expect("flush");
    }
    let file = only_sst(dir.path());
    flip(&file, fs::metadata(&file).expect("the file is there").len() / 2);
    let store = open(dir.path());
    let timeline = store.timeline(T1).expect("a timeline");
    put(&timeline, 16);
    timeline.flush(true).expect("what is written is sound");
    store.compact_all();
    put(&timeline, 24);
    let failed = timeline.flush(true);
    assert!(matches!(&failed, Err(StoreError::Poisoned { cause }) if cause.contains("Corruption")), "{failed:?}");
    assert_eq!(timeline.put(&Batch::new(), Lsn::new(32)), failed);
    let intact = gather(&timeline, &block(0), 16);
    assert_eq!(intact, Ok((vec![(16, Kind::Image, page.clone())], true)), "reads of intact data go on");
    let corrupt =
        (0..40).filter(|n| matches!(gather(&timeline, &block(*n), 8), Err(StoreError::Corrupt { .. }))).count();
    assert!((1..=2).contains(&corrupt), "the blocks that the byte is in: {corrupt}");
}

fn read_all(dir: &std::path::Path, value: &dyn Fn(u32) -> Vec<u8>) -> Result<(), StoreError> {
    let store = Store::open(dir, &small_config())?;
    let timeline = store.timeline(T1)?;
    // A watermark that cannot be read is an error, not an empty timeline.
    assert_eq!(timeline.watermark().map(|w| w.last_record_lsn), Some(Lsn::new(2400)));
    let mut first_error = Ok(());
    for n in 0..100 {
        match gather(&timeline, &block(n), 2400) {
            Ok(found) => {
                let version = |m: u32, kind| (u64::from(m + 1) * 8, kind, value(m));
                let expect =
                    vec![version(n + 200, Kind::Delta), version(n + 100, Kind::Delta), version(n, Kind::Image)];
                assert_eq!(found, (expect, true));
            }
            Err(error) => first_error = Err(error),
        }
    }
    first_error
}

fn only_sst(dir: &std::path::Path) -> PathBuf {
    let entries = fs::read_dir(dir.join("rocksdb")).expect("the directory is there");
    let files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sst"))
        .collect();
    assert_eq!(files.len(), 1);
    files[0].clone()
}

pub(super) fn flip(file: &std::path::Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(file).expect("the file opens");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ 0x40], at).expect("write");
}
