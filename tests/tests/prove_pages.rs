//! No page is wrong: a short course of `make prove-pages`.
//!
//! Method: see `tests::prove`. `make prove-pages` has more of everything, and both legs of each version.

#![allow(clippy::unwrap_used, reason = "a test; helpers of tests as well")]

use postgres_ffi::PgVersion;
use tests::prove::{Leg, Plan, Times, run_leg};

/// The same course each time; `SEED=42` takes another one, and so does `make prove-pages` each time.
const SEED: u64 = 20_261_120;

fn prove(version: PgVersion, leg: usize) {
    let seed = std::env::var("SEED").map_or(SEED, |seed| seed.parse().unwrap());
    let plan = Plan { scale: 1, times: Times::SHORT, seed };
    println!("seed {}", plan.seed);
    let summary = run_leg(Leg::both(version)[leg], plan).unwrap();
    assert!(summary.comparison.contains("mismatches: 0"), "{}", summary.comparison);
    println!("{:?}", summary.counts);
}

#[test]
fn no_page_is_wrong_on_17() {
    prove(PgVersion::V17, 0);
}
