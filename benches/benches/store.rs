//! The store: versions put and flushed per second, and pages gathered per second against a plain RocksDB loop of the same shape.
//!
//! Fixed seed. Everything read stands in the block cache. The plain loop has the same keys, values, block size and filters,
//! and also one iterator for each page.

use std::cell::LazyCell;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use benches::{clock, cpu_time, is_full_size};
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use keyenc::{Key, Kind, OBJECT_PREFIX_LEN, TimelineNo, VersionKey};
use pageserver::store::{Batch, Gathered, Store, StoreConfig, TimelineStore};
use postgres_ffi::{ForkNumber, Lsn, RelTag};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rocksdb::{BlockBasedOptions, Cache, DB, DBCompressionType, Options, ReadOptions, SliceTransform, SstFileWriter};

const SEED: u64 = 42;
const TIMELINE: TimelineNo = TimelineNo(1);
const RECORD_BYTES: usize = 100;
const RECORDS_PER_BATCH: usize = 1000;
const DELTAS_PER_PAGE: u32 = 8;
const DELTA_BYTES: usize = 150;

struct Sizes {
    put_records: u64,
    put_pages: u32,
    gather_pages: u32,
}

fn sizes() -> Sizes {
    if is_full_size() {
        Sizes { put_records: 4_000_000, put_pages: 200_000, gather_pages: 20_000 }
    } else {
        Sizes { put_records: 20_000, put_pages: 1000, gather_pages: 200 }
    }
}

fn config() -> StoreConfig {
    StoreConfig { block_cache_bytes: 1 << 30, ..StoreConfig::default() }
}

fn block(block_no: u32) -> Key {
    Key::block(RelTag { spc_oid: 1663, db_oid: 5, rel_number: 16384 }, ForkNumber::Main, block_no)
}

fn value(random: &mut SmallRng, length: usize) -> Vec<u8> {
    // Half of it random: compresses about as pages and records do.
    (0..length).map(|at| if at % 2 == 0 { random.random() } else { 0 }).collect()
}

#[derive(Clone, Copy)]
enum Order {
    Sorted,
    Random,
}

/// Puts `records` and flushes. Returns the time from the first put to the durable end.
fn put_and_flush(dir: &Path, order: Order, sizes: &Sizes) -> Duration {
    let store = Store::open(dir, &config()).expect("the store opens");
    let timeline = store.timeline(TIMELINE).expect("a timeline");
    let mut random = SmallRng::seed_from_u64(SEED);
    let values: Vec<Vec<u8>> = (0..64).map(|_| value(&mut random, RECORD_BYTES)).collect();
    let mut batch = Batch::new();
    let (started_at, cpu_started_at) = (Instant::now(), cpu_time("thread-self"));
    for n in 0..sizes.put_records {
        let block_no = match order {
            Order::Sorted => (n * u64::from(sizes.put_pages) / sizes.put_records) as u32,
            Order::Random => random.random_range(0..sizes.put_pages),
        };
        batch.put(block(block_no), Lsn::new((n + 1) * 8), Kind::Delta, &values[n as usize % values.len()]);
        if batch.len() == RECORDS_PER_BATCH {
            timeline.put(&batch, Lsn::new((n + 1) * 8)).expect("put");
            batch.clear();
        }
    }
    timeline.put(&batch, Lsn::new(sizes.put_records * 8)).expect("put");
    timeline.flush(true).expect("flush");
    let elapsed = started_at.elapsed();
    if std::env::var_os("STORE_BENCH_STATS").is_some() {
        print_stats(&store, elapsed, cpu_started_at);
    }
    elapsed
}

/// What the clock does not tell on a busy machine: time on the processor of the thread that puts and of the flusher.
fn print_stats(store: &Store, elapsed: Duration, cpu_started_at: Duration) {
    let stats = store.stats();
    let put_cpu = cpu_time("thread-self") - cpu_started_at;
    let flusher_cpu: Duration = std::fs::read_dir("/proc/self/task")
        .expect("threads")
        .map(|task| format!("self/task/{}", task.expect("a thread").file_name().display()))
        .filter(|task| {
            std::fs::read_to_string(format!("/proc/{task}/comm")).is_ok_and(|name| name == "store-flusher\n")
        })
        .map(|task| cpu_time(&task))
        .sum();
    eprintln!(
        "{:.2} s; cpu: put {:.2} s, flusher {:.2} s, {:.2} million records/s of both; {} flushes, {:.2} s blocked, {} MB flushed, {} MB compacted",
        elapsed.as_secs_f64(),
        put_cpu.as_secs_f64(),
        flusher_cpu.as_secs_f64(),
        stats.put_versions as f64 / 1e6 / (put_cpu + flusher_cpu).as_secs_f64(),
        stats.flushes,
        stats.put_blocked_nanos as f64 / 1e9,
        stats.flushed_bytes >> 20,
        stats.compaction_written_bytes >> 20,
    );
}

fn put(c: &mut Criterion) {
    let sizes = sizes();
    let mut group = c.benchmark_group("put_and_flush_100_bytes");
    group.throughput(Throughput::Elements(sizes.put_records)).sample_size(10).measurement_time(Duration::from_secs(20));
    for (name, order) in [("sorted_keys", Order::Sorted), ("random_keys", Order::Random)] {
        group.bench_function(name, |b| {
            b.iter_custom(|iterations| {
                (0..iterations)
                    .map(|_| put_and_flush(tempfile::tempdir().expect("a directory").path(), order, &sizes))
                    .sum()
            })
        });
    }
    group.finish();
}

/// The versions of one page, oldest first: an image and eight deltas.
fn page_versions(random: &mut SmallRng, block_no: u32) -> Vec<(Lsn, Kind, Vec<u8>)> {
    let lsn = |n: u32| Lsn::new(u64::from(block_no) + u64::from(n + 1) * 0x100_0000);
    let mut versions = vec![(lsn(0), Kind::Image, value(random, 8192))];
    versions.extend((1..=DELTAS_PER_PAGE).map(|n| (lsn(n), Kind::Delta, value(random, DELTA_BYTES))));
    versions
}

fn filled_store(dir: &Path, pages: u32) -> (Arc<Store>, Arc<TimelineStore>) {
    let store = Store::open(dir, &config()).expect("the store opens");
    let timeline = store.timeline(TIMELINE).expect("a timeline");
    let mut random = SmallRng::seed_from_u64(SEED);
    let all: Vec<_> = (0..pages).map(|block_no| page_versions(&mut random, block_no)).collect();
    for n in 0..=DELTAS_PER_PAGE as usize {
        for (block_no, versions) in all.iter().enumerate() {
            let (lsn, kind, value) = &versions[n];
            let mut batch = Batch::new();
            batch.put(block(block_no as u32), *lsn, *kind, value);
            timeline.put(&batch, *lsn).expect("put");
        }
    }
    timeline.flush(true).expect("flush");
    store.compact_all();
    (store, timeline)
}

/// Plain RocksDB with the same content in one sorted file.
fn filled_rocksdb(dir: &Path, pages: u32) -> DB {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(1 << 30));
    table.set_block_size(config().block_bytes);
    table.set_bloom_filter(10.0, false);
    table.set_whole_key_filtering(false);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&table);
    options.set_prefix_extractor(SliceTransform::create_fixed_prefix(OBJECT_PREFIX_LEN));
    options.set_compression_type(DBCompressionType::Lz4);
    let db = DB::open(&options, dir.join("db")).expect("RocksDB opens");
    let mut random = SmallRng::seed_from_u64(SEED);
    let mut writer = SstFileWriter::create(&options);
    writer.open(dir.join("all.sst")).expect("a file");
    for block_no in 0..pages {
        for (lsn, kind, value) in page_versions(&mut random, block_no) {
            let version = VersionKey { timeline: TIMELINE, key: block(block_no), lsn, kind };
            writer.put(version.encode(), value).expect("put");
        }
    }
    writer.finish().expect("finish");
    db.ingest_external_file(vec![dir.join("all.sst")]).expect("ingest");
    db
}

fn gather_from_rocksdb(db: &DB, key: &Key, request_lsn: Lsn) -> usize {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(VersionKey::object_prefix(TIMELINE, key).to_vec());
    options.set_prefix_same_as_start(true);
    let mut versions = db.raw_iterator_opt(options);
    versions.seek_for_prev(VersionKey { timeline: TIMELINE, key: *key, lsn: request_lsn, kind: Kind::Image }.encode());
    let mut found = Vec::new();
    while let Some((version_key, value)) = versions.item() {
        let (lsn, kind) = VersionKey::decode_version(version_key).expect("a version key");
        found.push((lsn, kind, value.to_vec()));
        if kind.ends_gather() {
            break;
        }
        versions.prev();
    }
    found.len()
}

fn gather_from_store(timeline: &TimelineStore, key: &Key, request_lsn: Lsn) -> usize {
    let mut found = Gathered::default();
    timeline.gather(key, request_lsn, &mut found).expect("gather");
    black_box(&found).versions.len()
}

fn timed(times: u64, mut each: impl FnMut() -> usize) -> Duration {
    let started_at = clock();
    (0..times).for_each(|_| assert!(black_box(each()) <= DELTAS_PER_PAGE as usize + 1));
    clock() - started_at
}

fn gather(c: &mut Criterion) {
    let pages = sizes().gather_pages;
    let (store_dir, rocksdb_dir) =
        (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    // Filled by the first benchmark that is not filtered out.
    let store = LazyCell::new(|| filled_store(store_dir.path(), pages));
    let db = LazyCell::new(|| filled_rocksdb(rocksdb_dir.path(), pages));
    let versions_per_page = DELTAS_PER_PAGE as usize + 1;
    let mut group = c.benchmark_group("gather_image_and_8_deltas");
    group.throughput(Throughput::Elements(1));
    let mut random = SmallRng::seed_from_u64(SEED);
    let any_block = move || block(random.random_range(0..pages));
    let run = |name: &str, group: &mut BenchmarkGroup<'_, _>, read: &dyn Fn(&Key) -> usize| {
        let mut any_block = any_block.clone();
        group.bench_function(name, |b| {
            (0..pages).for_each(|block_no| assert_eq!(read(&block(block_no)), versions_per_page)); // Warms the cache too.
            b.iter_custom(|reads| timed(reads, || read(&any_block())))
        });
    };
    run("plain_rocksdb", &mut group, &|key| gather_from_rocksdb(&db, key, Lsn::MAX));
    run("store", &mut group, &|key| gather_from_store(&store.1, key, Lsn::MAX));
    group.finish();
}

/// A child timeline that has nothing of the page: what a branch adds to each read of its parent.
fn miss(c: &mut Criterion) {
    let pages = sizes().gather_pages;
    let dir = tempfile::tempdir().expect("a directory");
    let child = LazyCell::new(|| {
        let (store, _) = filled_store(dir.path(), pages);
        let child = store.timeline(TimelineNo(2)).expect("a timeline");
        let mut batch = Batch::new();
        (0..pages).step_by(10).for_each(|n| batch.put(block(n), Lsn::new(8), Kind::Image, &[1; 8192]));
        child.put(&batch, Lsn::new(8)).expect("put");
        child.flush(true).expect("flush");
        child
    });
    let mut random = SmallRng::seed_from_u64(SEED);
    let mut group = c.benchmark_group("gather_miss_in_branch");
    group.bench_function("store", |b| {
        LazyCell::force(&child);
        let mut read = || gather_from_store(&child, &block(random.random_range(0..pages) / 10 * 10 + 1), Lsn::MAX);
        b.iter_custom(|reads| timed(reads, &mut read))
    });
    group.finish();
}

criterion_group!(benches, put, gather, miss);
criterion_main!(benches);
