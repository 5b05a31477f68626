//! A clone at any LSN is what the primary was there: a short course of `make prove-clones`.
//!
//! Method: see `tests::prove_clones`: stock servers started from the page server at LSNs chosen by looking at the WAL, checked, and some of them held
//! against PostgreSQL's own point-in-time recovery; then a tree of branches with kills. 15 has small WAL segments, 17 a page server that keeps little
//! WAL. `make prove-clones` has more of everything, and every version.

#![allow(clippy::unwrap_used, reason = "a test; helpers of tests as well")]

use std::time::Duration;

use postgres_ffi::PgVersion;
use tests::prove_clones::{Kind, Leg, Plan, run_leg};

/// The same course each time; `SEED=42` takes another one, and so does `make prove-clones` each time.
const SEED: u64 = 20_261_125;

fn prove(version: PgVersion, kinds: [Kind; 8]) {
    let seed = std::env::var("SEED").map_or(SEED, |seed| seed.parse().unwrap());
    let plan = Plan {
        scale: 1,
        seed,
        moments: kinds.len(),
        recoveries: 3,
        under_load: 2,
        kinds: Some(kinds.into()),
        load: Duration::from_secs(5),
        jobs: 2,
        kills: 3,
    };
    println!("seed {seed}");
    let summary = run_leg(Leg::of(version), &plan).unwrap_or_else(|error| panic!("{error:#}"));
    assert!(summary.rows.len() > 8, "clones and branches were checked");
    let failed: Vec<String> = summary.rows.iter().filter(|row| row.outcome.is_err()).map(ToString::to_string).collect();
    assert!(failed.is_empty(), "seed {seed}: {}", failed.join("\n"));
    println!("{}, clones checked: {}", summary.load, summary.rows.len());
}

#[test]
fn a_clone_of_15_is_what_its_primary_was() {
    prove(
        PgVersion::V15,
        [
            Kind::Random,
            Kind::MidTransaction,
            Kind::BtreeSplit,
            Kind::Checkpoint,
            Kind::CreateDatabaseBlocks,
            Kind::SpanInside,
            Kind::Prepared,
            Kind::PageBoundary,
        ],
    );
}

#[test]
fn a_clone_of_17_is_what_its_primary_was() {
    prove(
        PgVersion::V17,
        [
            Kind::Crash,
            Kind::MidTransaction,
            Kind::BtreeSplit,
            Kind::Checkpoint,
            Kind::CreateDatabaseFiles,
            Kind::SpanEnd,
            Kind::AfterSwitch,
            Kind::Prepared,
        ],
    );
}
