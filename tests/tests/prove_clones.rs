//! A clone is what the primary was: a short course of `make prove-clones`.
//!
//! Method: see `tests::prove_clones`. Fewer LSNs, kinds and recoveries than there, the same checks of each clone.

#![allow(clippy::unwrap_used, reason = "a test; helpers of tests as well")]

use std::time::Duration;

use postgres_ffi::PgVersion;
use tests::prove_clones::{Kind, Leg, Plan, run_leg};

/// The same LSNs' kinds each time; `SEED=42` takes another course.
const SEED: u64 = 20_261_125;
const MOMENTS: usize = 8;

fn prove(version: PgVersion) {
    let plan = Plan {
        scale: 1,
        seed: std::env::var("SEED").map_or(SEED, |seed| seed.parse().unwrap()),
        moments: MOMENTS,
        recoveries: 3,
        kinds: Some(vec![
            Kind::MidTransaction,
            Kind::BtreeSplit,
            Kind::Checkpoint,
            Kind::CreateDatabaseFiles,
            Kind::SpanInside,
            Kind::AfterSwitch,
            Kind::Prepared,
        ]),
        load: Duration::from_secs(5),
        jobs: 2,
        kills: 3,
    };
    let summary = run_leg(Leg::of(version), &plan).unwrap();
    summary.rows.iter().for_each(|row| println!("{row}"));
    assert!(summary.rows.len() >= MOMENTS, "clones were checked");
    assert_eq!(summary.failures(), 0);
}

#[test]
fn clones_of_15_are_what_the_primary_was() {
    prove(PgVersion::V15);
}

#[test]
fn clones_of_17_are_what_the_primary_was() {
    prove(PgVersion::V17);
}
