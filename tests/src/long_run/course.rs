//! The run: a primary with one table, updates at a steady pace, a page server, samples.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use postgres_ffi::{PgVersion, RelTag};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::probe::Probe;
use super::reader::Reader;
use super::report::report;
use super::{Sample, graph};
use crate::prove::Narrator;
use crate::{Background, PageServer, Postgres, TestDir};

const TIMELINE: &str = "main";
/// One page read per so long.
const READ_PAUSE: Duration = Duration::from_millis(5);
/// Samples between two lines that say how it goes.
const SAMPLES_BETWEEN_WORDS: usize = 12;
/// Rows changed by one statement.
const ROWS_AT_ONCE: i32 = 20;

/// What is run.
#[derive(Clone, Debug)]
pub struct LongRun {
    /// Major version of PostgreSQL.
    pub version: PgVersion,
    /// How long the load goes on.
    pub duration: Duration,
    /// Between two samples.
    pub sample_interval: Duration,
    /// Rows of the table, some 140 bytes each.
    pub rows: i32,
    /// Statements per second.
    pub updates_per_second: u32,
    /// Text of `pageserver.toml`.
    pub config: String,
    /// Commands for the page server after the import, as `TIMELINE RETENTION main TIME '1m'`.
    pub commands: Vec<String>,
    /// Where the samples go.
    pub csv: PathBuf,
    /// Where the picture goes.
    pub svg: PathBuf,
}

/// Runs it, writes the files, and returns the ratios.
pub fn run(what: &LongRun) -> Result<String> {
    let narrator = Narrator::start();
    narrator.say(format_args!("{what:?}"));
    let dir = TestDir::new("long-run")?;
    let primary = start_primary(what, &dir)?;
    let mut server = PageServer::builder().config(&what.config)?.start(&dir)?;
    server.expect_in_log("connection to the primary");
    server.import(TIMELINE, &primary.conninfo())?;
    for command in &what.commands {
        server.query(command)?;
        narrator.say(command);
    }
    let (rel, block_count) = table(&primary)?;
    let mut updates = start_updates(&primary, what)?;
    let address = format!("127.0.0.1:{}", server.port());
    let reader = Reader::start(address, TIMELINE, rel, block_count, READ_PAUSE)?;
    let samples = sample(what, &mut server, &reader, narrator)?;
    let statements = updates.stop()?.context("it is stopped once")?;
    reader.stop()?;
    std::fs::write(&what.csv, Sample::csv(&samples)).with_context(|| format!("write {}", what.csv.display()))?;
    let title = format!(
        "PostgreSQL {}, {} rows, {} statements of {ROWS_AT_ONCE} rows per second, {} minutes",
        what.version,
        what.rows,
        what.updates_per_second,
        what.duration.as_secs() / 60
    );
    std::fs::write(&what.svg, graph::svg(&title, &samples)).with_context(|| format!("write {}", what.svg.display()))?;
    server.stop()?;
    Ok(format!("{statements} statements, {} samples\n{}", samples.len(), report(&samples)))
}

fn start_primary(what: &LongRun, dir: &TestDir) -> Result<Postgres> {
    let primary = Postgres::builder(what.version)
        .checksums(true)
        .setting("autovacuum_naptime", "5s")
        .setting("autovacuum_vacuum_cost_delay", "0")
        .setting("checkpoint_timeout", "60s")
        .setting("wal_keep_size", "64MB")
        .start(dir)?;
    // Room in each page for the next versions of its rows, so that the table keeps its size.
    let mut session = primary.connect()?;
    session.batch_execute("CREATE TABLE fixed (id int PRIMARY KEY, n int, filler text) WITH (fillfactor = 50)")?;
    session.execute(
        "INSERT INTO fixed SELECT i, 0, repeat(md5(i::text), 3) FROM generate_series(1, $1::int) i",
        &[&what.rows],
    )?;
    session.batch_execute("VACUUM ANALYZE fixed")?;
    Ok(primary)
}

/// The table's address, and its size in blocks.
fn table(primary: &Postgres) -> Result<(RelTag, u32)> {
    let sql = "SELECT (SELECT dattablespace FROM pg_database WHERE datname = current_database()) || '/' ||
                      (SELECT oid FROM pg_database WHERE datname = current_database()) || '/' || pg_relation_filenode('fixed')";
    let rel = primary.query_text(sql)?.parse()?;
    Ok((rel, primary.query_text("SELECT (pg_relation_size('fixed') / 8192)::text")?.parse()?))
}

fn sample(what: &LongRun, server: &mut PageServer, reader: &Reader, narrator: Narrator) -> Result<Vec<Sample>> {
    let begun = Instant::now();
    let mut probe = Probe::start(server, TIMELINE)?;
    let mut samples = Vec::new();
    while begun.elapsed() < what.duration {
        thread::sleep(what.sample_interval);
        server.check_alive()?;
        let sample = probe.sample(server, TIMELINE, reader)?;
        samples.push(sample);
        if samples.len().is_multiple_of(SAMPLES_BETWEEN_WORDS) {
            let mib = |bytes: u64| bytes >> 20;
            narrator.say(format_args!(
                "disk {} MiB, memory {} MiB, lag {} MiB, GetPage p99 {} us",
                mib(sample.disk_bytes),
                mib(sample.rss_bytes),
                mib(sample.lag_bytes),
                sample.read_p99_us
            ));
        }
    }
    Ok(samples)
}

/// Starts to update rows at a steady pace. Ended, it says how many statements that were.
fn start_updates(primary: &Postgres, what: &LongRun) -> Result<Background<u64>> {
    let mut session = primary.connect()?;
    let (rows, pause) = (what.rows, Duration::from_secs(1) / what.updates_per_second);
    Ok(Background::start("the updates", move |stop| {
        let mut rng = SmallRng::seed_from_u64(2);
        let update = session.prepare("UPDATE fixed SET n = n + 1 WHERE id = ANY($1)")?;
        let (mut due, mut done) = (Instant::now(), 0);
        while !stop.load(Ordering::SeqCst) {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let ids: Vec<i32> = (0..ROWS_AT_ONCE).map(|_| rng.random_range(1..=rows)).collect();
            session.execute(&update, &[&ids])?;
            done += 1;
            due = Instant::now().max(due + pause);
        }
        Ok(done)
    }))
}
