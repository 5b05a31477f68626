//! The primary: its settings, what it holds before the load begins, and a thread that sees to it that the WAL has every kind of place.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use postgres_ffi::PgVersion;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::workload::{Target, Workload, is_transient, tpcb};
use crate::{Background, Postgres, TestDir, wait_until_some};

/// What runs beside bank transactions.
const WORKLOADS: &[&str] = &[
    "ddl",
    "toast",
    "two_phase",
    "multixacts",
    "unlogged",
    "databases",
    "btree",
    "subtransactions",
    "tablespaces",
    "lockers",
    "sequences",
];
/// A database in a tablespace of its own, with markers of its own.
pub const OTHER_DATABASE: &str = "elsewhere";
/// Between two things that the restless thread does.
const PAUSE_MS_MAX: u64 = 400;

/// Until the primary takes connections after a crash.
const CRASH_LIMIT: Duration = Duration::from_secs(180);

/// The workloads of the load.
pub fn workloads() -> Result<Vec<&'static Workload>> {
    WORKLOADS.iter().map(|name| Workload::find(name)).collect()
}

/// A running primary with everything in it that a clone must bring, under `dir`.
pub fn start(version: PgVersion, wal_segment_mb: u32, scale: i32, dir: &TestDir) -> Result<Postgres> {
    let primary = Postgres::builder(version)
        .checksums(true)
        .wal_segment_mb(wal_segment_mb)
        .setting("autovacuum_naptime", "2s")
        .setting("checkpoint_timeout", "30s")
        .setting("max_wal_size", if wal_segment_mb == 1 { "64MB" } else { "512MB" })
        .setting("wal_keep_size", "16GB") // All of it: it is read in the end, and recovered from.
        .start(dir)?;
    fill(&primary, scale, dir)?;
    Ok(primary)
}

fn fill(primary: &Postgres, scale: i32, dir: &TestDir) -> Result<()> {
    // Databases made from it have the extension, too.
    primary.connect_to("template1")?.batch_execute("CREATE EXTENSION amcheck")?;
    let mut session = primary.connect()?;
    session.batch_execute("CREATE EXTENSION amcheck")?;
    tpcb::init(&mut session, scale)?;
    for name in ["outside", "empty"] {
        let location = dir.create_subdir(&format!("tablespace-{name}"))?;
        session.batch_execute(&format!("CREATE TABLESPACE {name} LOCATION '{}'", location.display()))?;
    }
    session.batch_execute(
        "CREATE TABLE markers (n int PRIMARY KEY, filler text);
         CREATE UNLOGGED TABLE unlogged AS SELECT n, md5(n::text) t FROM generate_series(1, 1000) n;
         CREATE INDEX ON unlogged (n);
         CREATE INDEX ON unlogged USING gin ((ARRAY[n]));
         CREATE TABLE far_away TABLESPACE outside AS SELECT n, md5(n::text) t FROM generate_series(1, 5000) n;
         CREATE INDEX far_away_t ON far_away USING hash (t) TABLESPACE outside;
         CREATE TABLE many_rows (n int, t text);
         CREATE INDEX many_rows_t ON many_rows (t);
         CREATE SEQUENCE numbers;
         SELECT nextval('numbers') FROM generate_series(1, 50)",
    )?;
    session.batch_execute(&format!("CREATE DATABASE {OTHER_DATABASE} TABLESPACE outside"))?;
    primary.connect_to(OTHER_DATABASE)?.batch_execute("CREATE TABLE markers (n int PRIMARY KEY, filler text)")?;
    primary.execute("CHECKPOINT")
}

/// Starts a thread that does what the workloads do too seldom: checkpoints, segment switches, long transactions, prepared ones that stay a while,
/// databases made in both ways. Ended, it says how many rounds it went; each does everything once.
pub fn start_restless(target: &Target, seed: u64) -> Background<u64> {
    let target = target.clone();
    Background::start("the restless thread", move |stop| run(&target, stop, seed))
}

fn run(target: &Target, stop: &AtomicBool, seed: u64) -> Result<u64> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut session = target.connect("postgres")?;
    session.batch_execute("SET lock_timeout = '1min'")?;
    let mut rounds = 0;
    while !stop.load(Ordering::SeqCst) {
        rounds += 1;
        match round(&mut session, target.version(), rounds, &mut rng) {
            Err(error) if is_transient(&error) => session = begin_again(target)?,
            done => done?,
        }
    }
    Ok(rounds)
}

/// A session after a crash; what the last round had prepared is committed.
fn begin_again(target: &Target) -> Result<postgres::Client> {
    let connect = || Ok(target.connect("postgres").ok());
    let mut session = wait_until_some("the primary after a crash", CRASH_LIMIT, connect)?;
    session.batch_execute("SET lock_timeout = '1min'")?;
    for row in session.query("SELECT gid FROM pg_prepared_xacts WHERE gid LIKE 'restless %'", &[])? {
        session.batch_execute(&format!("COMMIT PREPARED '{}'", row.get::<_, &str>(0)))?;
    }
    Ok(session)
}

fn round(session: &mut postgres::Client, version: PgVersion, number: u64, rng: &mut SmallRng) -> Result<()> {
    let rows = rng.random_range(1000..4000);
    let files = if version >= PgVersion::V15 { " STRATEGY file_copy" } else { "" };
    let mut statements = vec![
        "BEGIN".to_owned(),
        format!("INSERT INTO many_rows SELECT n, md5(({number} * n)::text) FROM generate_series(1, {rows}) n"),
        "DELETE FROM many_rows WHERE n % 3 = 0".to_owned(),
        if number.is_multiple_of(3) { "ROLLBACK" } else { "COMMIT" }.to_owned(),
        format!("BEGIN; INSERT INTO many_rows VALUES (-{number}, 'prepared'); PREPARE TRANSACTION 'restless {number}'"),
        "CHECKPOINT".to_owned(),
        format!("DROP DATABASE IF EXISTS restless_{}", number.wrapping_sub(2)),
        format!("CREATE DATABASE restless_{number} TEMPLATE template0{files}"),
        "SELECT pg_switch_wal()".to_owned(),
        format!("COMMIT PREPARED 'restless {number}'"),
        "DELETE FROM many_rows WHERE n > 500".to_owned(),
        "VACUUM many_rows".to_owned(),
    ];
    if version >= PgVersion::V15 && number.is_multiple_of(2) {
        statements.push("DROP DATABASE IF EXISTS restless_blocks".to_owned()); // A crash may have left it.
        statements.push("CREATE DATABASE restless_blocks TEMPLATE template0 STRATEGY wal_log".to_owned());
        statements.push("DROP DATABASE restless_blocks".to_owned());
    }
    for statement in statements {
        session.batch_execute(&statement).with_context(|| statement.clone())?;
        thread::sleep(Duration::from_millis(rng.random_range(0..PAUSE_MS_MAX)));
    }
    Ok(())
}
