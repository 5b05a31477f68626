//! Goal: a process that is killed while it puts, flushes and compacts leaves a store that opens, whose watermark is true, and
//! that goes on. Method: this test runs itself as a child that writes, kills it after a random time, and reads what is there.

use std::env;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use super::concurrent::{KEYS, expected_chain, put_records};
use super::*;

const CHILD_DIR: &str = "STORE_KILL_TEST_DIR";
const RECORDS_PER_BATCH: u64 = 50;
const ROUNDS: usize = 8;

#[test]
fn a_killed_process_leaves_a_store_that_is_true_to_its_watermark() {
    if let Some(dir) = env::var_os(CHILD_DIR) {
        return write_until_killed(Path::new(&dir));
    }
    let dir = tempfile::tempdir().expect("a directory");
    let mut watermark_lsns = Vec::new();
    for _ in 0..ROUNDS {
        let mut child = Command::new(env::current_exe().expect("this test"))
            .args(["--exact", "store::tests::kill::a_killed_process_leaves_a_store_that_is_true_to_its_watermark"])
            .env(CHILD_DIR, dir.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("the child starts");
        thread::sleep(Duration::from_millis(rand::random_range(100..600)));
        assert_eq!(child.try_wait().expect("the child is ours"), None, "the child fails by itself");
        child.kill().expect("kill");
        child.wait().expect("wait");
        watermark_lsns.push(check(dir.path()));
    }
    println!("watermarks {watermark_lsns:?}");
    assert!(watermark_lsns.is_sorted());
    assert!(watermark_lsns.last() > Some(&0), "something was flushed");
}

fn write_until_killed(dir: &Path) {
    let store = open(dir);
    let timeline = store.timeline(T1).expect("a timeline");
    if timeline.watermark().is_none() {
        timeline.flush(true).expect("flush");
    }
    let mut versions = Batch::new();
    for start in (timeline.last_record_lsn().as_u64() / 8..).step_by(RECORDS_PER_BATCH as usize) {
        put_records(&timeline, &mut versions, start..start + RECORDS_PER_BATCH);
    }
}

/// All that the watermark promises is there. Returns its LSN.
fn check(dir: &Path) -> u64 {
    let store = open(dir);
    let timeline = store.timeline(T1).expect("a timeline");
    let Some(watermark) = timeline.watermark() else { return 0 };
    let watermark_lsn = watermark.last_record_lsn.as_u64();
    assert!((watermark_lsn / 8).is_multiple_of(RECORDS_PER_BATCH), "a flush cut a batch");
    for key_no in 0..KEYS {
        let found = gather(&timeline, &block(key_no as u32), u64::MAX);
        assert_eq!(found, Ok(expected_chain(key_no, watermark_lsn)), "block {key_no} at {watermark_lsn}");
    }
    watermark_lsn
}
