//! A thousand timelines in one store, each with versions of its own: the memory that they take, how long the repository takes to open with them, and how
//! long garbage collection takes over all of them.
//!
//! A primary is filled by pgbench and imported; every branch leaves it at the same record, streams the WAL behind it from the primary into itself, and then
//! follows nobody: as if each had had a primary of its own that did the same. Everything but the primary runs in this process. Needs PostgreSQL and `pgbench` (`scripts/setup`).

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use benches::pgbench;
use clap::Parser;
use pageserver::config::Config;
use pageserver::timeline::gc::{GcCounts, OwnRetention, RetentionTime, WalSize};
use pageserver::timeline::{BranchPoint, Repository, SlotThen};
use postgres_ffi::{Lsn, PgVersion};
use tests::{Postgres, TestDir, wait_until};

const LIMIT: Duration = Duration::from_secs(600);

/// Measure many timelines.
#[derive(Parser)]
struct Arguments {
    /// Major version of the primary
    #[arg(long, default_value = "17")]
    pg: PgVersion,
    /// How many branches
    #[arg(long, default_value_t = 1000)]
    branches: usize,
    /// WAL of its own that each has, in KiB
    #[arg(long, default_value_t = 512)]
    wal_kib: u64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let dir = TestDir::new("bench-timelines")?;
    let primary = Postgres::builder(arguments.pg).setting("wal_keep_size", "1GB").start(&dir)?;
    pgbench(&primary, &["--initialize", "--quiet", "--scale=1"])?;
    primary.execute("CHECKPOINT")?;
    let data_dir = dir.path().join("repository");
    let repository = Repository::open(&data_dir, config())?;
    let (main, _) = repository.import_primary("main", &primary.conninfo(), &mut |_| ControlFlow::Continue(()))?;
    let branch_lsn = primary_end(&primary)?;
    wait_until("the page server to catch up", LIMIT, || Ok(main.last_record_lsn() >= branch_lsn))?;
    let branch_lsn = main.last_record_lsn();
    repository.unfollow_primary("main", SlotThen::Dropped)?;
    let end_lsn = write_wal(&primary, branch_lsn, arguments.wal_kib << 10)?;
    drop(main);
    println!("| timelines | repository opens in | memory (RSS) | threads | SST files |");
    println!("|---|---|---|---|---|");
    let repository = report(repository, &data_dir)?;

    let begun = Instant::now();
    for n in 0..arguments.branches {
        repository.create_branch(&name(n), "main", BranchPoint::Lsn(branch_lsn))?;
        let branch = repository.follow_primary(&name(n), &primary.conninfo())?.timeline;
        wait_until("a branch to catch up", LIMIT, || Ok(branch.last_record_lsn() >= end_lsn))?;
        repository.unfollow_primary(&name(n), SlotThen::Dropped)?;
    }
    let filled = begun.elapsed();
    let memory = status("VmRSS")?;
    let repository = report(repository, &data_dir)?;
    println!();
    let count = u32::try_from(arguments.branches)?;
    let wal_kib = end_lsn.saturating_sub(branch_lsn) >> 10;
    println!(
        "{wal_kib} KiB of WAL each: {:.1?} each to make and fill; memory before the restart: {memory}",
        filled / count
    );
    for pass in ["first", "second (nothing has become garbage)"] {
        collect(&repository, &arguments, pass)?;
    }
    repository.compact_store();
    println!("SST files after compaction: {} MB", repository.store_stats().sst_bytes / 1_000_000);
    repository.shutdown()?;
    Ok(())
}

fn name(n: usize) -> String {
    format!("branch{n}")
}

/// No passes but ours, as fast as they go, and no history beside the last record.
fn config() -> Config {
    let mut config = Config::default();
    (config.gc.paused, config.gc.mib_per_second) = (true, 0);
    config
}

fn primary_end(primary: &Postgres) -> Result<Lsn> {
    primary.execute("SELECT pg_logical_emit_message(true, 'bench', 'flush')")?;
    Ok(primary.query_text("SELECT pg_current_wal_flush_lsn()")?.parse()?)
}

/// Has pgbench write at least `length` bytes of WAL behind `start_lsn`. Where they end.
fn write_wal(primary: &Postgres, start_lsn: Lsn, length: u64) -> Result<Lsn> {
    loop {
        pgbench(primary, &["--no-vacuum", "--transactions=200"])?;
        let end_lsn = primary_end(primary)?;
        if end_lsn.saturating_sub(start_lsn) >= length {
            return Ok(end_lsn);
        }
    }
}

/// Closes the repository and opens it anew: a row of the table.
fn report(repository: Arc<Repository>, data_dir: &Path) -> Result<Arc<Repository>> {
    repository.shutdown()?;
    drop(repository);
    let begun = Instant::now();
    let repository = Repository::open(data_dir, config())?;
    let opened = begun.elapsed();
    let (count, sst_mb) = (repository.timelines().len(), repository.store_stats().sst_bytes / 1_000_000);
    println!("| {count} | {opened:.1?} | {} | {} | {sst_mb} MB |", status("VmRSS")?, status("Threads")?);
    Ok(repository)
}

/// A line of `/proc/self/status`.
fn status(what: &str) -> Result<String> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'));
    Ok(line.with_context(|| format!("{what} in /proc/self/status"))?.trim().to_owned())
}

fn collect(repository: &Repository, arguments: &Arguments, pass: &str) -> Result<()> {
    let nothing = OwnRetention { time: Some(RetentionTime::from_seconds(0)), wal: Some(WalSize::from_bytes(0)) };
    let (mut times, mut counts) = (Vec::with_capacity(arguments.branches), GcCounts::default());
    for n in 0..arguments.branches {
        repository.set_retention(&name(n), Some(nothing))?;
        let begun = Instant::now();
        counts.add(&repository.collect_garbage(&name(n), false, &mut |_, _| ControlFlow::Continue(()))?.counts);
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    let sum: Duration = times.iter().sum();
    let total = counts.total();
    println!(
        "{pass} pass over all: {sum:.1?}, each {:.1?}, p99 {:.1?}; {} versions ({} MB) removed, {} images made; written {:.1} MB, merged {:.1} MB",
        times[times.len() / 2],
        times[times.len() * 99 / 100],
        total.versions,
        total.bytes / 1_000_000,
        total.images,
        counts.written_bytes as f64 / 1e6,
        counts.compacted_bytes as f64 / 1e6
    );
    Ok(())
}
