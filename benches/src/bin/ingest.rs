//! Ingest of four kinds of WAL, beside a stock hot standby that replays the same WAL in the same run.
//!
//! For each kind a primary is filled, imported and copied to a standby; both are stopped, the load runs, and then each has to catch up:
//! - *in process*: decoding and ingest alone, from the primary's segment files, without network; then with the final flush; and the same without a bound on chains,
//!   the one before the other in turn, the median of some runs;
//! - *server*: the page server as it runs, from its start until the last record is readable (streaming, fsync of the segments, ingest);
//! - *standby*: PostgreSQL, from its start until the same record is replayed.
//!
//! Needs PostgreSQL 17 and `pgbench` (`scripts/setup`).

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use benches::{pgbench, recorded_wal};
use clap::Parser;
use pageserver::config::Config;
use pageserver::timeline::{Repository, TimelineIngest};
use postgres_ffi::wal::WalStreamDecoder;
use postgres_ffi::{Lsn, PgVersion};
use tests::{PageServer, Postgres, Stop, TestDir, standby, wait_until};
use tools::bench_getpage::process_cpu;

/// What is fed to ingest at once: what a read of the socket may bring.
const CHUNK_BYTES: usize = 1 << 20;
const LIMIT: Duration = Duration::from_secs(600);

/// Measure ingest of four kinds of WAL beside a hot standby.
#[derive(Parser)]
struct Arguments {
    /// Major version of the primary
    #[arg(long, default_value = "17")]
    pg: PgVersion,
    /// pgbench transactions
    #[arg(long, default_value_t = 100_000)]
    transactions: u32,
    /// Rows that COPY loads and CREATE INDEX sorts
    #[arg(long, default_value_t = 2_000_000)]
    rows: u32,
    /// Runs in process, with and without a bound on chains each
    #[arg(long, default_value_t = 3)]
    in_process_runs: u32,
    /// Only kinds whose name holds this
    #[arg(long, default_value = "")]
    only: String,
}

/// A kind of WAL: what is there before, and what makes it.
struct Kind {
    name: &'static str,
    full_page_writes: &'static str,
    prepare: fn(&Postgres, &Arguments) -> Result<()>,
    load: fn(&Postgres, &Arguments) -> Result<()>,
}

const KINDS: [Kind; 4] = [
    Kind { name: "pgbench without full-page images", full_page_writes: "off", prepare: fill_bank, load: run_bank },
    Kind { name: "COPY", full_page_writes: "on", prepare: |_, _| Ok(()), load: copy_rows },
    Kind { name: "CREATE INDEX", full_page_writes: "on", prepare: copy_rows, load: create_index },
    Kind { name: "pgbench with full-page images", full_page_writes: "on", prepare: fill_bank, load: run_bank },
];

fn fill_bank(primary: &Postgres, _: &Arguments) -> Result<()> {
    pgbench(primary, &["--initialize", "--quiet", "--scale=10"])
}

fn run_bank(primary: &Postgres, arguments: &Arguments) -> Result<()> {
    let per_client = format!("--transactions={}", arguments.transactions / 4);
    pgbench(primary, &["--client=4", "--jobs=2", "--no-vacuum", "--protocol=prepared", &per_client])
}

fn copy_rows(primary: &Postgres, arguments: &Arguments) -> Result<()> {
    let rows = arguments.rows;
    primary.execute("CREATE TABLE copied (a int, b text)")?;
    primary.execute(&format!("COPY copied FROM PROGRAM 'seq 1 {rows} | sed \"s/.*/&\\tsome text that is copied/\"'"))
}

fn create_index(primary: &Postgres, _: &Arguments) -> Result<()> {
    primary.execute("CREATE INDEX ON copied (a)")
}

/// A time, and what else is to be told.
struct Measured {
    wal_mb: f64,
    records: u64,
    in_process: Duration,
    in_process_flushed: Duration,
    unbounded: Duration,
    bound_images: u64,
    server: Duration,
    server_cpu: Duration,
    server_peak_mb: f64,
    standby: Duration,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    println!(
        "| WAL of PostgreSQL {} | MB | records | in process MB/s (M records/s) | flushed MB/s | without a bound MB/s (M records/s), images of the bound | server MB/s, CPU, peak memory | hot standby MB/s | server / standby |",
        arguments.pg
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for kind in KINDS.iter().filter(|kind| kind.name.contains(&arguments.only)) {
        let m = measure(kind, &arguments).with_context(|| kind.name)?;
        let rate = |time: Duration| m.wal_mb / time.as_secs_f64();
        println!(
            "| {} | {:.0} | {} | {:.0} ({:.2}) | {:.0} | {:.0} ({:.2}), {} | {:.0}, {:.1} s, {:.0} MB | {:.0} | {:.2} |",
            kind.name,
            m.wal_mb,
            m.records,
            rate(m.in_process),
            m.records as f64 / 1e6 / m.in_process.as_secs_f64(),
            rate(m.in_process_flushed),
            rate(m.unbounded),
            m.records as f64 / 1e6 / m.unbounded.as_secs_f64(),
            m.bound_images,
            rate(m.server),
            m.server_cpu.as_secs_f64(),
            m.server_peak_mb,
            rate(m.standby),
            m.standby.as_secs_f64() / m.server.as_secs_f64()
        );
    }
    Ok(())
}

fn measure(kind: &Kind, arguments: &Arguments) -> Result<Measured> {
    let dir = TestDir::new("bench-ingest")?;
    let primary = Postgres::builder(arguments.pg)
        .setting("full_page_writes", kind.full_page_writes)
        .setting("synchronous_commit", "off")
        .setting("max_wal_size", "8GB")
        .setting("checkpoint_timeout", "1h")
        .setting("wal_keep_size", "8GB")
        .setting("shared_buffers", "512MB")
        .setting("track_commit_timestamp", "off")
        .start(&dir)?;
    (kind.prepare)(&primary, arguments)?;
    let mut server = PageServer::builder().start(&dir)?;
    server.import("main", &primary.conninfo())?;
    let mut standby = standby::start_standby(&primary)?;
    primary.execute("CHECKPOINT")?;
    let before = primary.current_lsn()?;
    wait_for(&server, before)?;
    wait_for_replay(&standby, before)?;
    server.stop()?;
    standby.stop(Stop::Fast)?;
    (kind.load)(&primary, arguments)?;
    primary.execute("SET synchronous_commit = on; CREATE TABLE the_end ()")?; // Its commit is flushed, and all before it.
    let end: Lsn = primary.query_text("SELECT pg_current_wal_flush_lsn()::text")?.parse()?;

    let mut runs = [Vec::new(), Vec::new()];
    for run in 0..2 * arguments.in_process_runs.max(1) {
        let is_bounded = run % 2 == 0;
        let copy = dir.path().join("in-process");
        standby::copy_data_dir(server.data_dir(), &copy, standby::Tablespaces::InPlace)?;
        runs[usize::from(is_bounded)].push(ingest_in_process(
            &copy,
            &primary.data_dir().join("pg_wal"),
            end,
            is_bounded,
        )?);
        std::fs::remove_dir_all(&copy)?;
    }
    let [unbounded, bounded] = runs.map(median);

    let started = Instant::now();
    server.start()?;
    wait_for(&server, end)?;
    let server_time = started.elapsed();
    let (server_cpu, server_peak_mb) = usage_of(&server)?;
    server.stop()?;
    let started = Instant::now();
    standby.start()?;
    wait_for_replay(&standby, end)?;
    let wal_mb = end.saturating_sub(before) as f64 / 1e6;
    Ok(Measured {
        wal_mb,
        records: bounded.records,
        in_process: bounded.ingested,
        in_process_flushed: bounded.flushed,
        unbounded: unbounded.ingested,
        bound_images: bounded.bound_images,
        server: server_time,
        server_cpu,
        server_peak_mb,
        standby: started.elapsed(),
    })
}

/// One run in process.
struct InProcess {
    /// Until all is readable.
    ingested: Duration,
    /// Until all is durable in the store as well.
    flushed: Duration,
    records: u64,
    bound_images: u64,
}

fn median(mut runs: Vec<InProcess>) -> InProcess {
    runs.sort_by_key(|run| run.ingested);
    runs.swap_remove(runs.len() / 2)
}

fn ingest_in_process(data_dir: &Path, pg_wal: &Path, end: Lsn, is_bounded: bool) -> Result<InProcess> {
    let mut config = Config::load(data_dir)?;
    if !is_bounded {
        config.redo.chain_records_max = 0;
    }
    let repository = Repository::open(data_dir, config)?;
    let timeline = repository.timeline_named("main")?;
    let cluster = timeline.metadata().cluster.clone();
    let mut ingest = TimelineIngest::new(timeline)?;
    let start = ingest.fed_until();
    let wal = recorded_wal::read(pg_wal, start, end)?;
    let mut decoder = WalStreamDecoder::new(cluster.pg_version, start, cluster.wal_segment_bytes);
    decoder.feed(wal.clone());
    let mut records = 0;
    while decoder.next_record()?.is_some() {
        records += 1;
    }
    let started = Instant::now();
    for chunk_start in (0..wal.len()).step_by(CHUNK_BYTES) {
        ingest.feed(wal.slice(chunk_start..(chunk_start + CHUNK_BYTES).min(wal.len())))?;
    }
    let ingested = started.elapsed();
    let stats: Vec<_> = repository.redo_stats().into_iter().map(|(_, stats, _)| stats).collect();
    for stats in stats.iter().filter(|_| is_bounded) {
        eprintln!(
            "images of the bound: {}, short: {}, waits: {}, {} ms",
            stats.bound_images, stats.bound_short, stats.bound_ingest_waits, stats.bound_ingest_wait_ms
        );
    }
    let bound_images = stats.iter().map(|stats| stats.bound_images).sum();
    repository.shutdown()?;
    Ok(InProcess { ingested, flushed: started.elapsed(), records, bound_images })
}

fn wait_for(server: &PageServer, lsn: Lsn) -> Result<()> {
    wait_until("the page server to be there", LIMIT, || {
        let last_record_lsn: Lsn = server.timeline("main", "last_record_lsn")?.parse()?;
        Ok(lsn <= last_record_lsn)
    })
}

fn wait_for_replay(standby: &Postgres, lsn: Lsn) -> Result<()> {
    wait_until("the standby to be there", LIMIT, || {
        let replayed = standby.query_text("SELECT coalesce(pg_last_wal_replay_lsn(), '0/0')::text")?;
        Ok(lsn <= replayed.parse::<Lsn>()?)
    })
}

/// Time on the processor so far, and the most memory that it ever had.
fn usage_of(server: &PageServer) -> Result<(Duration, f64)> {
    let pid = server.pid().context("the page server runs")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let Some(peak) = status.lines().find_map(|line| line.strip_prefix("VmHWM:")) else { bail!("no VmHWM") };
    let peak_kb: f64 = peak.trim().trim_end_matches(" kB").parse()?;
    let cpu = u32::try_from(pid).ok().and_then(process_cpu).context("its processor time")?;
    Ok((cpu, peak_kb / 1024.0))
}
