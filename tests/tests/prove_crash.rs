//! Crashes of the page server lose and spoil nothing: a short course of `make prove-crash`, and its list of failpoints.
//!
//! Method: see `tests::prove_crash`: the real server, under ingest, reads and operations, killed at random moments and at failpoints. The long course
//! comes to every failpoint, this one to some.

#![allow(clippy::unwrap_used, reason = "a test; helpers of tests as well")]

use std::path::Path;

use pageserver::failpoint::{FAILPOINT_VARIABLE, Failpoint};
use postgres_ffi::PgVersion;
use tests::prove_crash::{Course, Plan, run_course};
use tests::{PageServer, TestDir};

/// The same course each time; `SEED=42` takes another one, and so does `make prove-crash` each time.
const SEED: u64 = 20_261_126;
const ROUNDS: usize = 12;

#[test]
fn crashes_lose_and_spoil_nothing() {
    let seed = std::env::var("SEED").map_or(SEED, |seed| seed.parse().unwrap());
    println!("seed {seed}");
    let course = Course { version: PgVersion::V15, rounds: ROUNDS, seed };
    let summary = run_course(course, &mut Plan::new(seed)).unwrap_or_else(|error| panic!("{error:#}"));
    println!("{summary}");
    assert_eq!(summary.times("crashes"), ROUNDS as u64);
    assert!(!summary.reached.is_empty(), "no failpoint was reached: {summary}");
}

#[test]
fn every_failpoint_is_in_the_list_and_no_other_can_be_armed() {
    let dir = TestDir::new("failpoints").unwrap();
    let mut server = PageServer::builder().start(&dir).unwrap();
    server.stop().unwrap();
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/crashes.md");
    let document = std::fs::read_to_string(document).unwrap();
    let rows: Vec<&str> = document.lines().filter(|line| line.starts_with("| `")).collect();
    let expected: Vec<String> =
        Failpoint::ALL.iter().map(|failpoint| format!("| `{}` | {} |", failpoint.name(), failpoint.moment())).collect();
    assert_eq!(rows, expected, "the table of docs/crashes.md");

    server.launch(&[(FAILPOINT_VARIABLE, "no-such-place")]).unwrap();
    let refused = format!("{:#}", server.wait_for_connections().unwrap_err());
    assert!(refused.contains("not a failpoint") && refused.contains("no-such-place"), "{refused}");
}
