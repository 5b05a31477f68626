//! Goal: without a fault it is a file system like any other, and a fault is met by exactly the operations that it picks. Method: plain
//! system calls on a mounted one.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use super::*;

fn mounted(name: &str) -> Option<(TestDir, FaultyFs)> {
    let dir = TestDir::new(name).unwrap();
    let disk = FaultyFs::mount(&dir, "disk").unwrap()?;
    Some((dir, disk))
}

fn code(result: std::io::Result<()>) -> Option<i32> {
    result.err().map(|error| error.raw_os_error().unwrap())
}

#[test]
fn without_a_fault_everything_is_handed_through() {
    let Some((_dir, disk)) = mounted("faulty-through") else { return };
    let at = |name: &str| disk.path().join(name);
    fs::create_dir_all(at("a/b")).unwrap();
    fs::write(at("a/b/one"), vec![7; 3 << 20]).unwrap();
    assert_eq!(fs::read(at("a/b/one")).unwrap(), vec![7; 3 << 20]);
    assert_eq!(fs::read(disk.backing().join("a/b/one")).unwrap().len(), 3 << 20);
    fs::hard_link(at("a/b/one"), at("a/two")).unwrap();
    assert_eq!(fs::metadata(at("a/two")).unwrap().nlink(), 2);
    fs::remove_file(at("a/b/one")).unwrap();
    fs::rename(at("a"), at("c")).unwrap();
    assert_eq!(fs::read(at("c/two")).unwrap().len(), 3 << 20);
    let mut names: Vec<_> = fs::read_dir(at("c")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["b", "two"]);
    // An open file goes on under another name, and without one; appended bytes go to the end.
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(at("log")).unwrap();
    file.write_all(b"first ").unwrap();
    fs::rename(at("log"), at("log.old")).unwrap();
    file.write_all(b"second").unwrap();
    fs::remove_file(at("log.old")).unwrap();
    file.sync_all().unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "first second");
    file.set_len(5).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 5);
    fs::write(at("private"), "x").unwrap();
    fs::set_permissions(at("private"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(fs::metadata(at("private")).unwrap().mode() & 0o777, 0o600);
    std::os::unix::fs::symlink("private", at("link")).unwrap();
    assert_eq!(fs::read(at("link")).unwrap(), b"x");
    assert_eq!(code(fs::remove_dir(at("c"))), Some(Errno::ENOTEMPTY as i32));
    assert_eq!(code(File::open(at("nothing")).map(drop)), Some(Errno::ENOENT as i32));
    File::open(disk.path()).unwrap().sync_all().unwrap();
}

#[test]
fn a_fault_is_met_by_what_it_picks_and_by_nothing_else() {
    let Some((_dir, disk)) = mounted("faulty-picks") else { return };
    let wal = disk.path().join("wal");
    fs::create_dir(&wal).unwrap();
    let (file, other) = (File::create(wal.join("1")).unwrap(), File::create(disk.path().join("store")).unwrap());
    let fault = disk.inject(Fault::new(Operation::Fsync, "wal/", Effect::Error(Errno::EIO)).nth(2));
    let outcomes: Vec<_> = (0..4).map(|_| code(file.sync_all())).collect();
    assert_eq!(outcomes, [None, Some(Errno::EIO as i32), None, None]);
    other.sync_all().unwrap();
    assert_eq!((fault.hits(), fault.matched()), (1, 4));

    disk.inject(Fault::new(Operation::Write, "store", Effect::CutOff { bytes: 3, error: Errno::ENOSPC }));
    assert_eq!(code(other.write_all_at(b"12345", 0)), Some(Errno::ENOSPC as i32));
    assert_eq!(fs::read(disk.path().join("store")).unwrap(), b"123");
    file.write_all_at(b"abcdef", 0).unwrap();

    let flip = disk.inject(Fault::new(Operation::Read, "wal/1", Effect::FlipBit { at: 2 }));
    assert_eq!(fs::read(wal.join("1")).unwrap(), b"abbdef");
    assert_eq!(fs::read(disk.backing().join("wal/1")).unwrap(), b"abcdef");
    let file = File::open(wal.join("1")).unwrap();
    let hits = flip.hits();
    let mut tail = [0; 3];
    file.read_exact_at(&mut tail, 3).unwrap();
    assert_eq!((&tail, flip.hits()), (b"def", hits));

    for operation in [Operation::Rename, Operation::Link, Operation::Open, Operation::FsyncDir, Operation::Truncate] {
        disk.inject(Fault::new(operation, "wal", Effect::Error(Errno::EIO)));
    }
    let eio = Some(Errno::EIO as i32);
    assert_eq!(code(fs::rename(disk.path().join("store"), wal.join("2"))), eio);
    assert_eq!(code(fs::hard_link(disk.path().join("store"), wal.join("2"))), eio);
    assert_eq!(code(File::open(wal.join("1")).map(drop)), eio);
    assert_eq!(code(File::create(wal.join("3")).map(drop)), eio);
    assert_eq!(code(File::open(&wal).unwrap().sync_all()), eio);
    disk.heal();
    assert_eq!(fs::read(wal.join("1")).unwrap(), b"abcdef");
    fs::rename(disk.path().join("store"), wal.join("2")).unwrap();
    File::open(&wal).unwrap().sync_all().unwrap();
}
