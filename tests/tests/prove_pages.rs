//! No page is wrong: a short course of `make prove-pages`.
//!
//! Method: see `tests::prove`: whole clusters, page by page, and pages of the past, after kills, cuts, restarts and a promotion. 15 takes the
//! leg without full-page writes, 17 the one with them and with a promotion. `make prove-pages` has more of everything, and both legs of each version.

#![allow(clippy::unwrap_used, reason = "a test; helpers of tests as well")]

use postgres_ffi::PgVersion;
use tests::prove::{Leg, Plan, Times, run_leg};

/// The same course each time; `SEED=42` takes another one, and so does `make prove-pages` each time.
const SEED: u64 = 20_261_120;

fn prove(version: PgVersion, leg: usize) {
    let seed = std::env::var("SEED").map_or(SEED, |seed| seed.parse().unwrap());
    let plan = Plan { scale: 1, times: Times::SHORT, seed };
    println!("seed {}", plan.seed);
    let summary = run_leg(Leg::both(version)[leg], plan).unwrap_or_else(|error| panic!("{error:#}"));
    assert!(summary.comparison.contains("mismatches: 0"), "{}", summary.comparison);
    println!("{:?}", summary.counts);
}

#[test]
fn no_page_is_wrong_on_15() {
    prove(PgVersion::V15, 1);
}

#[test]
fn no_page_is_wrong_on_17() {
    prove(PgVersion::V17, 0);
}
