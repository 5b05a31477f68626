//! One leg: one version, one set of settings, from the empty cluster to the report.

use std::time::Duration;

use anyhow::{Context, Result};
use pageserver::redo_check::CheckReport;
use pageserver::replication::{Connection, Mode};
use postgres_ffi::PgVersion;
use postgres_ffi::redo::case::RedoCase;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::follower::{Checked, Follower};
use super::regression;
use crate::prove::{Load, Narrator};
use crate::workload::{Target, tpcb};
use crate::{Postgres, TestDir, standby};

/// The slot that holds WAL for the check.
pub(super) const SLOT: &str = "redo_check";
/// Until every workload has run.
const WORKLOADS_LIMIT: Duration = Duration::from_secs(1800);
/// Statements, one a line, that make every kind of page change there is.
const STATEMENTS: &str = include_str!("../../../pageserver/tests/redo/workload.sql");

/// The settings of a leg.
#[derive(Clone, Copy, Debug)]
pub struct Leg {
    /// Major version.
    pub version: PgVersion,
    /// Page checksums.
    pub checksums: bool,
    /// `wal_log_hints`
    pub wal_log_hints: bool,
    /// `full_page_writes`
    pub full_page_writes: bool,
    /// `wal_compression`
    pub wal_compression: &'static str,
    /// `wal_level = logical`, which adds to records.
    pub logical: bool,
    /// PostgreSQL's own regression suite runs too.
    pub regression: bool,
}

impl Leg {
    /// The legs of a version. Between them each setting stands at each of its values.
    pub fn all(version: PgVersion) -> [Leg; 3] {
        // 14 knows one kind of compression, and of the servers that the tests have only Debian's 15 was built with the two others.
        let (first, second) = match version {
            PgVersion::V14 => ("on", "off"),
            PgVersion::V15 => ("lz4", "zstd"),
            PgVersion::V16 | PgVersion::V17 | PgVersion::V18 => ("pglz", "off"),
        };
        let plain = Leg {
            version,
            checksums: true,
            wal_log_hints: false,
            full_page_writes: false,
            wal_compression: "off",
            logical: false,
            regression: false,
        };
        [
            plain,
            Leg {
                checksums: false,
                wal_log_hints: true,
                full_page_writes: true,
                wal_compression: first,
                regression: true,
                ..plain
            },
            Leg { checksums: false, full_page_writes: true, wal_compression: second, logical: true, ..plain },
        ]
    }
}

/// How much of everything.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Branches of the bank.
    pub scale: i32,
    /// What everything random follows from.
    pub seed: u64,
    /// Where `scripts/setup --regression` has put PostgreSQL's regression suites; `None`: they do not run.
    pub regression_dir: Option<std::path::PathBuf>,
}

/// What a leg has shown.
#[derive(Clone, Debug)]
pub struct Proof {
    /// The check's report.
    pub report: CheckReport,
    /// Examples of each operation.
    pub cases: Vec<RedoCase>,
    /// What was done, in words.
    pub done: Vec<String>,
}

/// Runs one leg. That pages differ is in the report, not an error.
pub fn run_leg(leg: Leg, plan: &Plan) -> Result<Proof> {
    let narrator = Narrator::start();
    narrator.say(format_args!("{leg:?}"));
    let dir = TestDir::new(&format!("prove-redo-{}", leg.version))?;
    let mut primary = init_primary(leg, &dir)?;
    let cold_dir = dir.create_subdir("cold")?.join("data");
    standby::copy_data_dir(primary.data_dir(), &cold_dir, standby::Tablespaces::InPlace)?;
    primary.start()?;
    let conninfo = primary.conninfo();
    Connection::connect(&conninfo.parse()?, Mode::Replication)?.create_physical_slot(SLOT)?;
    let follower = Follower::start(&conninfo, cold_dir)?;
    let mut done = Vec::new();

    if let Some(suites) = plan.regression_dir.as_deref().filter(|_| leg.regression) {
        let summary = regression::run(&primary, &dir, suites)?;
        narrator.say(&summary);
        done.push(summary);
    }
    run_statements(&primary).context("workload.sql")?;
    narrator.say("all statements of workload.sql have run");
    let (transactions, workloads) = run_load(&primary, plan, narrator)?;
    done.push(format!("{transactions} TPC-B transactions, {workloads} runs of workloads, workload.sql"));

    primary.execute("CHECKPOINT")?;
    follower.check()?;
    narrator.say("the load has ended; the check catches up");
    let Checked { report, cases } = follower.finish(primary.current_lsn()?)?;
    narrator.say(format_args!("{} records, {:?}", report.records, report.total));
    Ok(Proof { report, cases, done })
}

fn init_primary(leg: Leg, dir: &TestDir) -> Result<Postgres> {
    let on_off = |on: bool| if on { "on" } else { "off" };
    Postgres::builder(leg.version)
        .checksums(leg.checksums)
        .wal_level(if leg.logical { "logical" } else { "replica" })
        .setting("wal_consistency_checking", "all")
        .setting("wal_log_hints", on_off(leg.wal_log_hints))
        .setting("full_page_writes", on_off(leg.full_page_writes))
        .setting("wal_compression", leg.wal_compression)
        .setting("autovacuum_naptime", "2s")
        .setting("checkpoint_timeout", "60s")
        .setting("max_prepared_transactions", "20")
        .setting("wal_keep_size", "256MB") // Until the slot holds it.
        .init(dir)
}

/// Each line is a statement. In a database of its own, in one session.
fn run_statements(primary: &Postgres) -> Result<()> {
    primary.execute("CREATE DATABASE statements")?;
    let mut session = primary.connect_to("statements")?;
    for statement in STATEMENTS.lines().filter(|line| !line.is_empty() && !line.starts_with("--")) {
        session.batch_execute(statement).with_context(|| statement.to_owned())?;
    }
    Ok(())
}

/// TPC-B all the time, and every workload beside it at least once.
fn run_load(primary: &Postgres, plan: &Plan, narrator: Narrator) -> Result<(u64, u32)> {
    tpcb::init(&mut primary.connect()?, plan.scale)?;
    let mut rng = SmallRng::seed_from_u64(plan.seed);
    let mut load = Load::start(&Target::new(primary), plan.scale, &mut rng, narrator);
    load.wait_for_all_workloads(WORKLOADS_LIMIT)?;
    let (transactions, runs) = load.stop()?;
    Ok((transactions, runs.values().sum()))
}
