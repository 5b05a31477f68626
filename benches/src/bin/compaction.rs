//! What a history costs on disk, and what writing it costs, by the settings of RocksDB: level and universal compaction, with and without blob files, LZ4 and ZSTD.
//!
//! A primary is filled and imported, then a bank runs on it. For each setting the same WAL is ingested into a copy of the store as the import left it,
//! as fast as it goes, and the store comes to rest; then all is merged. Told are bytes on disk against bytes of WAL, bytes written by flush and
//! compaction against bytes flushed, what a read of a random page at a random LSN costs, by processor time, from a small block cache, and what is left when
//! garbage collection keeps nothing but the last LSN.
//!
//! The yardstick: the same WAL and one base backup, both under zstd.
//! Needs PostgreSQL 15 with `pgbench` and `pg_basebackup` (`scripts/setup`).

use std::io::Read;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use benches::{pgbench, recorded_wal};
use bytes::Bytes;
use clap::Parser;
use keyenc::Key;
use pageserver::config::{Config, StoreSection};
use pageserver::store::{CompactionStyle, Compression, StoreStats};
use pageserver::timeline::gc::{OwnRetention, RetentionTime, WalSize};
use pageserver::timeline::{Repository, Timeline, TimelineIngest};
use postgres_ffi::{ForkNumber, Lsn, PgVersion, RelTag};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tests::{PageServer, Postgres, TestDir, standby, wait_until};

/// What is fed to ingest at once.
const CHUNK_BYTES: usize = 1 << 20;
const LIMIT: Duration = Duration::from_secs(600);
/// How often a store that is coming to rest is looked at, and for how long it must have been quiet.
const REST_INTERVAL: Duration = Duration::from_millis(500);
const REST_LOOKS: u32 = 4;
const READS: u32 = 5_000;

/// Measure space and write amplification of settings of RocksDB.
#[derive(Parser)]
struct Arguments {
    /// pgbench scale, one unit is 15 MB
    #[arg(long, default_value_t = 10)]
    scale: u32,
    /// pgbench transactions
    #[arg(long, default_value_t = 300_000)]
    transactions: u32,
    /// Memory for recent WAL, in MiB: small, so that there is much to compact
    #[arg(long, default_value_t = 32)]
    layer_mib: u64,
    /// Only settings whose name holds this
    #[arg(long, default_value = "")]
    only: String,
}

/// A row of the table.
struct Setting {
    name: &'static str,
    set: fn(&mut StoreSection),
}

const SETTINGS: [Setting; 12] = [
    Setting { name: "level, LZ4, last level ZSTD", set: |_| () },
    Setting { name: "level, LZ4", set: |store| store.bottommost_compression = Compression::Lz4 },
    Setting { name: "level, ZSTD", set: |store| store.compression = Compression::Zstd },
    Setting { name: "level, last level ZSTD, blobs from 4 KiB", set: |store| store.blob_bytes_min = 4096 },
    Setting { name: "level, last level ZSTD with 16 KiB of dictionary", set: |store| store.dictionary_kib = 16 },
    Setting { name: "level, last level ZSTD with 64 KiB of dictionary", set: |store| store.dictionary_kib = 64 },
    Setting { name: "level, last level ZSTD, blocks of 32 KiB", set: |store| store.block_kib = 32 },
    Setting {
        name: "level, last level ZSTD, blocks of 32 KiB, 64 KiB of dictionary",
        set: |store| (store.block_kib, store.dictionary_kib) = (32, 64),
    },
    Setting {
        name: "level, last level ZSTD, blocks of 16 KiB, 64 KiB of dictionary",
        set: |store| (store.block_kib, store.dictionary_kib) = (16, 64),
    },
    Setting {
        name: "level, last level ZSTD, blocks of 64 KiB, 64 KiB of dictionary",
        set: |store| (store.block_kib, store.dictionary_kib) = (64, 64),
    },
    Setting { name: "universal, LZ4, last run ZSTD", set: |store| store.compaction = CompactionStyle::Universal },
    Setting {
        name: "universal, last run ZSTD, blobs from 4 KiB",
        set: |store| (store.compaction, store.blob_bytes_min) = (CompactionStyle::Universal, 4096),
    },
];

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let dir = TestDir::new("bench-compaction")?;
    let primary = Postgres::builder(PgVersion::V15)
        .setting("synchronous_commit", "off")
        .setting("max_wal_size", "1GB")
        .setting("wal_keep_size", "64GB")
        .setting("shared_buffers", "256MB")
        .start(&dir)?;
    pgbench(&primary, &["--initialize", "--quiet", &format!("--scale={}", arguments.scale)])?;
    let base_backup = zstd_bytes_of_base_backup(&primary)?;
    let mut server = PageServer::builder().start(&dir)?;
    server.import("main", &primary.conninfo())?;
    let start = primary.current_lsn()?;
    wait_until("the import", LIMIT, || Ok(start <= server.timeline("main", "last_record_lsn")?.parse::<Lsn>()?))?;
    server.stop()?;
    let per_client = format!("--transactions={}", arguments.transactions / 4);
    pgbench(&primary, &["--client=4", "--jobs=2", "--no-vacuum", "--protocol=prepared", &per_client])?;
    primary.execute("SET synchronous_commit = on; CREATE TABLE the_end ()")?;
    let end: Lsn = primary.query_text("SELECT pg_current_wal_flush_lsn()::text")?.parse()?;
    let wal = recorded_wal::read(&primary.data_dir().join("pg_wal"), start, end)?;
    let wal_zstd = zstd::stream::encode_all(&wal[..], 1)?.len() as u64;
    let mb = |bytes: u64| bytes as f64 / 1e6;
    println!(
        "WAL {:.0} MB, under zstd {:.0} MB; base backup under zstd {:.0} MB; together {:.0} MB\n",
        mb(wal.len() as u64),
        mb(wal_zstd),
        mb(base_backup),
        mb(wal_zstd + base_backup)
    );
    println!(
        "| setting | ingest to rest s | written / flushed | on disk at rest MB | merged MB | merged : WAL and base backup under zstd | read us | after GC of all but the last LSN MB | written for it MB |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for setting in SETTINGS.iter().filter(|setting| setting.name.contains(&arguments.only)) {
        let copy = dir.path().join("copy");
        standby::copy_data_dir(server.data_dir(), &copy, standby::Tablespaces::InPlace)?;
        let row = measure(setting, &copy, &arguments, &primary).with_context(|| setting.name)?;
        std::fs::remove_dir_all(&copy)?;
        println!(
            "| {} | {:.0} | {:.1} | {:.0} | {:.0} | {:.2} | {:.0} | {:.0} | {:.0} |",
            setting.name,
            row.time.as_secs_f64(),
            row.amplification,
            mb(row.at_rest),
            mb(row.merged),
            row.merged as f64 / (wal_zstd + base_backup) as f64,
            row.read.as_secs_f64() * 1e6,
            mb(row.collected),
            mb(row.written_by_gc),
        );
    }
    Ok(())
}

struct Row {
    time: Duration,
    amplification: f64,
    at_rest: u64,
    merged: u64,
    read: Duration,
    /// What is left when garbage collection has kept nothing but the last LSN.
    collected: u64,
    /// What it and compaction have written for that.
    written_by_gc: u64,
}

fn measure(setting: &Setting, data_dir: &Path, arguments: &Arguments, primary: &Postgres) -> Result<Row> {
    let mut config = Config::load(data_dir)?;
    (config.gc.paused, config.gc.mib_per_second) = (true, 0);
    config.store.layer_mib = arguments.layer_mib;
    config.store.block_cache_mib = 32;
    config.store.flush_interval_seconds = 1;
    (config.store.block_kib, config.store.dictionary_kib) = (8, 0);
    (setting.set)(&mut config.store);
    let repository = Repository::open(data_dir, config)?;
    let timeline = repository.timeline_named("main")?;
    let started = Instant::now();
    ingest(&timeline, primary)?;
    wait_until("the last flush", LIMIT, || Ok(timeline.durable_lsn() == Some(timeline.last_record_lsn())))?;
    let stats = rest(&repository);
    let time = started.elapsed();
    let written = stats.flushed_bytes + stats.compaction_written_bytes + stats.blob_written_bytes;
    let at_rest = stats.sst_bytes + stats.blob_bytes;
    repository.compact_store();
    let stats = rest(&repository);
    let read = read(&timeline)?;
    let written_by_gc = collect(&repository)?;
    let collected = rest(&repository);
    repository.shutdown()?;
    Ok(Row {
        time,
        amplification: written as f64 / stats.flushed_bytes as f64,
        at_rest,
        merged: stats.sst_bytes + stats.blob_bytes,
        read,
        collected: collected.sst_bytes + collected.blob_bytes,
        written_by_gc,
    })
}

/// Gives up everything but the last LSN. Bytes that were written for it.
fn collect(repository: &Repository) -> Result<u64> {
    let nothing = OwnRetention { time: Some(RetentionTime::from_seconds(0)), wal: Some(WalSize::from_bytes(0)) };
    repository.set_retention("main", Some(nothing))?;
    let counts = repository.collect_garbage("main", false, &mut |_, _| ControlFlow::Continue(()))?.counts;
    Ok(counts.written_bytes + counts.compacted_bytes)
}

fn ingest(timeline: &std::sync::Arc<Timeline>, primary: &Postgres) -> Result<()> {
    let mut ingest = TimelineIngest::new(std::sync::Arc::clone(timeline))?;
    let end: Lsn = primary.query_text("SELECT pg_current_wal_flush_lsn()::text")?.parse()?;
    let wal: Bytes = recorded_wal::read(&primary.data_dir().join("pg_wal"), ingest.fed_until(), end)?;
    for chunk_start in (0..wal.len()).step_by(CHUNK_BYTES) {
        ingest.feed(wal.slice(chunk_start..(chunk_start + CHUNK_BYTES).min(wal.len())))?;
    }
    Ok(())
}

/// The counters once nothing has been written for a while.
fn rest(repository: &Repository) -> StoreStats {
    let (mut last, mut quiet) = (repository.store_stats(), 0);
    while quiet < REST_LOOKS {
        thread::sleep(REST_INTERVAL);
        let now = repository.store_stats();
        let same = now.compaction_written_bytes == last.compaction_written_bytes && now.sst_bytes == last.sst_bytes;
        quiet = if same { quiet + 1 } else { 0 };
        last = now;
    }
    last
}

/// Processor time of a read of a random block of the bank at a random LSN, redo included.
fn read(timeline: &Timeline) -> Result<Duration> {
    let last_lsn = timeline.last_record_lsn();
    let first_lsn = timeline.first_readable_lsn().context("readable")?;
    let relations: Vec<(RelTag, ForkNumber, u32)> = timeline.all_relations(first_lsn)?;
    let largest = relations.iter().filter(|(_, fork, _)| *fork == ForkNumber::Main).max_by_key(|(.., blocks)| *blocks);
    let (rel, fork, blocks) = *largest.context("a relation")?;
    let mut rng = SmallRng::seed_from_u64(1);
    let started = benches::cpu_time("thread-self");
    for _ in 0..READS {
        let lsn = Lsn::new(rng.random_range(first_lsn.as_u64()..=last_lsn.as_u64()));
        timeline.get_page_at_lsn(Key::block(rel, fork, rng.random_range(0..blocks)), lsn)?;
    }
    Ok((benches::cpu_time("thread-self") - started) / READS)
}

fn zstd_bytes_of_base_backup(primary: &Postgres) -> Result<u64> {
    let mut command = Command::new(primary.bin_dir().join("pg_basebackup"));
    command.args(["--host=127.0.0.1", "--username=postgres", "--pgdata=-", "--format=tar"]);
    command.args(["--wal-method=none", "--checkpoint=fast"]).arg(format!("--port={}", primary.port()));
    let mut backup = command.stdout(Stdio::piped()).spawn().context("run pg_basebackup")?;
    let mut encoder = zstd::stream::Encoder::new(Counted::default(), 1)?;
    let mut out = backup.stdout.take().context("its output")?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = out.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        std::io::Write::write_all(&mut encoder, &buffer[..count])?;
    }
    ensure!(backup.wait()?.success(), "pg_basebackup failed");
    Ok(encoder.finish()?.0)
}

/// Counts what is written.
#[derive(Default)]
struct Counted(u64);

impl std::io::Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
