//! How big is a timeline? Kept sizes against a sum over all relations, in one run.
//!
//! A primary with many relations is imported, one of them grows block by block while WAL is ingested, and the page server is stopped. Then, in process: the
//! size of every database as it is kept, as a sum (what was done before sizes were kept), and all that `pagectl size` shows; at the last record, and at
//! one before the growth, which the chains of versions in memory and in files lie above.
//!
//! Needs PostgreSQL 17 (`scripts/setup`).

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use pageserver::config::Config;
use pageserver::timeline::{Repository, Timeline};
use postgres_ffi::{BLCKSZ, Lsn, PgVersion};
use tests::{PageServer, Postgres, TestDir, wait_until};

const LIMIT: Duration = Duration::from_secs(600);
/// Tables made in one transaction: locks are bounded.
const TABLES_AT_ONCE: u32 = 500;

/// Measure what it costs to ask for sizes.
#[derive(Parser)]
struct Arguments {
    /// Major version of the primary
    #[arg(long, default_value = "17")]
    pg: PgVersion,
    /// Relations beside those of every cluster
    #[arg(long, default_value_t = 10_000)]
    relations: u32,
    /// Blocks by which one of them grows
    #[arg(long, default_value_t = 50_000)]
    blocks: u32,
    /// How often each is asked for; the median counts
    #[arg(long, default_value_t = 21)]
    reads: usize,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let dir = TestDir::new("bench-sizes")?;
    let primary = Postgres::builder(arguments.pg)
        .setting("autovacuum", "off")
        .setting("synchronous_commit", "off")
        .setting("max_locks_per_transaction", "1024")
        .start(&dir)?;
    make_relations(&primary, arguments.relations)?;
    let mut server = PageServer::builder().start(&dir)?;
    server.import("main", &primary.conninfo())?;
    let before_lsn = catch_up(&server, &primary)?;
    let grow = format!("INSERT INTO t1 SELECT repeat('x', 7000) FROM generate_series(1, {})", arguments.blocks);
    primary.execute(&grow)?;
    catch_up(&server, &primary)?;
    server.stop()?;

    let repository = Repository::open(server.data_dir(), Config::load(server.data_dir())?)?;
    let timeline = repository.timeline_named("main")?;
    println!("| at | kept µs | summed µs | ratio | all that `pagectl size` shows, µs |\n|---|---|---|---|---|");
    for (name, lsn) in [("last record", timeline.last_record_lsn()), ("before the growth", before_lsn)] {
        measure(name, lsn, &repository, &timeline, arguments.reads)?;
    }
    repository.shutdown()?;
    Ok(())
}

fn measure(name: &str, lsn: Lsn, repository: &Repository, timeline: &Timeline, reads: usize) -> Result<()> {
    ensure!(kept(timeline, lsn)? == summed(timeline, lsn)?, "a kept size is wrong");
    let (mut of_kept, mut of_summed, mut of_all) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..reads {
        of_kept.push(timed(|| kept(timeline, lsn))?);
        of_summed.push(timed(|| summed(timeline, lsn))?);
        of_all.push(timed(|| Ok(repository.all_sizes(Some(lsn))?))?);
    }
    let [kept, summed, all] = [of_kept, of_summed, of_all].map(median_micros);
    println!("| {name} | {kept:.0} | {summed:.0} | {:.0} | {all:.0} |", summed / kept);
    Ok(())
}

fn kept(timeline: &Timeline, lsn: Lsn) -> Result<u64> {
    let mut bytes = 0;
    for database in timeline.databases(lsn)? {
        bytes += timeline.database_size(database, lsn)?.bytes();
    }
    Ok(bytes)
}

fn summed(timeline: &Timeline, lsn: Lsn) -> Result<u64> {
    let mut blocks = 0;
    for database in timeline.databases(lsn)? {
        blocks += timeline.relations(database, lsn)?.iter().map(|(.., blocks)| u64::from(*blocks)).sum::<u64>();
    }
    Ok(blocks * BLCKSZ as u64)
}

fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<Duration> {
    let begun = Instant::now();
    work()?;
    Ok(begun.elapsed())
}

fn median_micros(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e6
}

fn make_relations(primary: &Postgres, count: u32) -> Result<()> {
    for first in (1..=count).step_by(TABLES_AT_ONCE as usize) {
        let last = count.min(first + TABLES_AT_ONCE - 1);
        primary.execute(&format!(
            "DO $$ BEGIN FOR n IN {first}..{last} LOOP EXECUTE format('CREATE TABLE t%s AS SELECT ''x'' AS a', n); END LOOP; END $$"
        ))?;
    }
    primary.execute("ALTER TABLE t1 ALTER a SET STORAGE plain; CHECKPOINT")
}

fn catch_up(server: &PageServer, primary: &Postgres) -> Result<Lsn> {
    primary.execute("SET synchronous_commit = on; SELECT pg_logical_emit_message(true, 'bench', 'flush')")?;
    let lsn: Lsn = primary.query_text("SELECT pg_current_wal_flush_lsn()")?.parse()?;
    wait_until("the page server to be there", LIMIT, || {
        Ok(server.timeline("main", "last_record_lsn")?.parse::<Lsn>()? >= lsn)
    })?;
    Ok(lsn)
}
