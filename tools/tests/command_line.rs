//! Goal: pagectl says what it should, where it should, and exits as it should. Method: the binary, on a piece of a real WAL segment
//! (PostgreSQL 15, its first 16 KiB) and pages made here.

use std::process::{Command, Output, Stdio};

use tempfile::tempdir;

const SEGMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/00000001000000000000000A");

fn pagectl(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pagectl")).args(args).output().expect("run pagectl")
}

/// Standard output of a command that must succeed.
fn text(args: &[&str]) -> String {
    let output = pagectl(args);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Standard error of a command that must fail with exit code 2.
fn failure(args: &[&str]) -> String {
    let output = pagectl(args);
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).expect("UTF-8")
}

#[test]
fn a_wal_segment_is_dumped_record_by_record() {
    let all = text(&["wal", "dump", SEGMENT]);
    let lines: Vec<&str> = all.lines().collect();
    assert!(lines.len() > 50, "{}", lines.len());
    assert!(lines.iter().all(|line| line.starts_with("rmgr: ") && line.contains(", lsn: 0/0A00")), "{all}");

    let two = text(&["wal", "dump", SEGMENT, "--limit", "2"]);
    assert_eq!(two.lines().collect::<Vec<_>>(), lines[..2]);

    let heap = text(&["wal", "dump", SEGMENT, "--rmgr", "heap"]);
    assert!(heap.lines().count() > 10 && heap.lines().all(|line| line.starts_with("rmgr: Heap ")), "{heap}");
}

#[test]
fn a_dump_starts_and_ends_where_it_is_told() {
    let all = text(&["--json", "wal", "dump", SEGMENT]);
    let lsn = |line: &str| {
        let record: serde_json::Value = serde_json::from_str(line).expect("JSON");
        record["lsn"].as_str().expect("lsn").to_owned()
    };
    let lsns: Vec<String> = all.lines().map(lsn).collect();
    let part = text(&["--json", "wal", "dump", SEGMENT, "--start", &lsns[10], "--end", &lsns[30]]);
    assert_eq!(part.lines().map(lsn).collect::<Vec<_>>(), lsns[10..30]);
    // A start within a record is that of the next one.
    let within: postgres_ffi::Lsn = lsns[10].parse().expect("lsn");
    let within = within.checked_add(8).expect("lsn").to_string();
    let part = text(&["--json", "wal", "dump", SEGMENT, "--start", &within, "--limit", "1"]);
    assert_eq!(part.lines().map(lsn).collect::<Vec<_>>(), lsns[11..12]);
}

#[test]
fn a_folder_is_read_like_its_segments() {
    let folder = tempdir().expect("temporary folder");
    std::fs::copy(SEGMENT, folder.path().join("00000001000000000000000A")).expect("copy");
    std::fs::write(folder.path().join("00000002.history"), "1\t0/2000000\tno reason\n").expect("write");
    let path = folder.path().to_str().expect("UTF-8");
    assert_eq!(text(&["wal", "dump", path]), text(&["wal", "dump", SEGMENT]));
    assert!(failure(&["wal", "dump", path, "--timeline-id", "7"]).contains("no WAL segments"));
}

#[test]
fn damaged_wal_ends_the_dump_with_a_reason() {
    let folder = tempdir().expect("temporary folder");
    let path = folder.path().join("00000001000000000000000A");
    let mut bytes = std::fs::read(SEGMENT).expect("read");
    bytes[9000] ^= 1;
    std::fs::write(&path, &bytes).expect("write");
    let output = pagectl(&["wal", "dump", path.to_str().expect("UTF-8")]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("end of the log at 0/A002"), "{stderr}");

    bytes[0] ^= 0x80;
    std::fs::write(&path, &bytes).expect("write");
    assert!(failure(&["wal", "dump", path.to_str().expect("UTF-8")]).contains("WAL of an unknown version"));
}

#[test]
fn a_page_in_a_file_is_decoded() {
    let folder = tempdir().expect("temporary folder");
    let path = folder.path().join("16384_vm");
    let mut pages = vec![0; 2 * 8192];
    for (at, word) in [(12, 24_u16), (14, 8192), (16, 8192), (18, 0x2004)] {
        pages[8192 + at..8192 + at + 2].copy_from_slice(&word.to_le_bytes());
    }
    pages[8192 + 24] = 0b0111;
    std::fs::write(&path, &pages).expect("write");
    let path = path.to_str().expect("UTF-8");
    let decoded = text(&["page", "show", path, "--page", "1"]);
    assert!(decoded.contains("visibility map page, fork vm, block 1"), "{decoded}");
    // The second page of a map begins with heap block 32672.
    assert!(
        decoded.contains("all-visible 2: 32672-32673") && decoded.contains("all-frozen 1: 32672-32672"),
        "{decoded}"
    );
    assert_eq!(text(&["page", "show", path, "--format", "hex"]).lines().count(), 3);
    let raw = pagectl(&["page", "show", path, "--page", "1", "--format", "raw"]);
    assert_eq!(raw.stdout, pages[8192..]);
    assert!(failure(&["page", "show", path, "--page", "2"]).contains("no such page"));
}

#[test]
fn what_cannot_be_done_is_exit_code_2_with_a_reason() {
    assert!(failure(&["wal", "dump", "/nowhere"]).starts_with("pagectl: open /nowhere"));
    assert!(failure(&["compare", "--datadir", "/nowhere", "--timeline", "main"]).contains("read /nowhere/PG_VERSION"));
    // Port 1 of loopback: nobody listens there.
    assert!(failure(&["--server", "127.0.0.1:1", "status"]).contains("connect to the page server at 127.0.0.1:1"));
    assert!(failure(&["wal", "dump", SEGMENT, "--rmgr", "nothing"]).contains("unknown resource manager"));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_pagectl"))
        .args(["--json", "wal", "dump", SEGMENT])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run pagectl");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("wait");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn completion_scripts_name_the_subcommands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = text(&["completion", shell]);
        assert!(["compare", "timeline", "size"].iter().all(|command| script.contains(command)), "{shell}");
    }
}
