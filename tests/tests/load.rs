//! The load of prove-pages survives what prove-pages does to a primary: restarts, kills, a promotion, quiet moments.
//!
//! Method: all of it once, on the oldest and the newest version, without a page server: what fails here is the harness.

#![allow(clippy::unwrap_used, reason = "a test; helpers of tests as well")]

use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use postgres_ffi::PgVersion;
use tests::prove::{Narrator, history, load::Load};
use tests::workload::{ALL, Target, tpcb};
use tests::{Postgres, Stop, TestDir, standby};

fn disturb(version: PgVersion) {
    let mut rng = SmallRng::seed_from_u64(7);
    let dir = TestDir::new("load").unwrap();
    let mut primary = Postgres::builder(version).setting("autovacuum_naptime", "2s").start(&dir).unwrap();
    let mut session = primary.connect().unwrap();
    session.batch_execute("CREATE EXTENSION pageinspect").unwrap();
    tpcb::init(&mut session, 1).unwrap();
    let first_lsn = primary.current_lsn().unwrap();
    let target = Target::new(&primary);
    let mut load = Load::start(&target, 1, &mut rng, Narrator::start());
    primary.restart(Stop::Fast).unwrap();
    primary.restart(Stop::Immediate).unwrap();
    primary.kill().unwrap();
    primary.start().unwrap();
    let backup = target.begin_backup();
    let mut standby = standby::start_standby(&primary).unwrap();
    drop(backup);
    {
        let _quiet = target.quiesce();
        primary.stop(Stop::Fast).unwrap();
        standby.promote().unwrap();
        target.move_to(&standby);
    }
    let mut glimpsed = 0;
    for _ in 0..5 {
        let (_, samples) = history::take_moment(&target, &mut rng).unwrap();
        assert!(samples.len() > 20, "{} pages in a moment", samples.len());
        // Under load a table may go away between two looks; that is no failure, but not every time.
        glimpsed += history::take_glimpse(&target, first_lsn, &mut rng).map_or(0, |samples| samples.len());
    }
    assert!(glimpsed > 20, "{glimpsed} pages glimpsed");
    load.wait_for_all_workloads(Duration::from_secs(300)).unwrap();
    let (committed, runs) = load.stop().unwrap();
    assert!(committed > 100, "{committed} transactions");
    assert_eq!(runs.len(), ALL.len());
    standby.stop(Stop::Fast).unwrap();
}

#[test]
fn load_survives_on_14() {
    disturb(PgVersion::V14);
}

#[test]
fn load_survives_on_18() {
    disturb(PgVersion::V18);
}
