//! The store under puts that do not end: what compaction lets through, what it rewrites, and what reads cost meanwhile.
//!
//! Not a criterion benchmark, since a run is one sample. Random blocks, one version in a hundred an image, so chains are about 40 long once
//! the store is old: the worst case, with nothing that keeps chains short. `STORE_RECORDS`, `STORE_BLOCKS` and `STORE_CACHE_MB` change the run.

use std::time::{Duration, Instant};

use benches::{clock, is_full_size};
use keyenc::{Key, Kind, TimelineNo};
use pageserver::store::{Batch, Gathered, Store, StoreConfig, TimelineStore};
use postgres_ffi::{ForkNumber, Lsn, RelTag};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const SEED: u64 = 42;
const RECORD_BYTES: usize = 100;
const RECORDS_PER_IMAGE: u32 = 100;
const RECORDS_PER_BATCH: usize = 1000;
const GATHERS: u32 = 2000;
const REPORTS: u64 = 5;
/// Compaction that writes nothing for so long is taken to have ended.
const REST: Duration = Duration::from_secs(3);

fn main() {
    let setting = |name: &str, default: u64| match std::env::var(name) {
        Ok(value) => value.parse().expect("a number"),
        Err(_) => default,
    };
    let (records, blocks) = if is_full_size() { (10_000_000, 200_000) } else { (20_000, 1000) };
    let (records, blocks) = (setting("STORE_RECORDS", records), setting("STORE_BLOCKS", blocks) as u32);
    let block_cache_bytes = (setting("STORE_CACHE_MB", 256) as usize) << 20;

    let dir = tempfile::tempdir().expect("a directory");
    let config = StoreConfig { block_cache_bytes, ..StoreConfig::default() };
    let store = Store::open(dir.path(), &config).expect("the store opens");
    let timeline = store.timeline(TimelineNo(1)).expect("a timeline");
    timeline.flush(true).expect("flush");
    let mut random = SmallRng::seed_from_u64(SEED);
    // Half of it random: compresses about as pages and records do.
    let noise: Vec<u8> = (0..1 << 20).map(|at| if at % 2 == 0 { random.random() } else { 0 }).collect();
    let mut batch = Batch::new();
    let started_at = Instant::now();
    for n in 1..=records {
        let is_image = random.random_range(0..RECORDS_PER_IMAGE) == 0;
        let (kind, length) = if is_image { (Kind::Image, 8192) } else { (Kind::Delta, RECORD_BYTES) };
        let at = random.random_range(0..noise.len() - length);
        batch.put(block(random.random_range(0..blocks)), Lsn::new(n * 8), kind, &noise[at..at + length]);
        if batch.len() == RECORDS_PER_BATCH || n == records {
            timeline.put(&batch, Lsn::new(n * 8)).expect("put");
            batch.clear();
        }
        if n % (records / REPORTS) == 0 {
            report(&store, &timeline, n, started_at, blocks, &mut random);
        }
    }
    timeline.flush(true).expect("flush");
    if is_full_size() {
        wait_for_rest(&store);
        report(&store, &timeline, records, started_at, blocks, &mut random);
    }
    drop((timeline, store));
    let opened_at = Instant::now();
    Store::open(dir.path(), &config).expect("the store opens");
    println!("opened again in {:?}", opened_at.elapsed());
}

fn block(block_no: u32) -> Key {
    Key::block(RelTag { spc_oid: 1663, db_oid: 5, rel_number: 16384 }, ForkNumber::Main, block_no)
}

fn wait_for_rest(store: &Store) {
    let mut written_bytes = None;
    while written_bytes != Some(store.stats().compaction_written_bytes) {
        written_bytes = Some(store.stats().compaction_written_bytes);
        std::thread::sleep(REST);
    }
}

fn report(
    store: &Store,
    timeline: &TimelineStore,
    records: u64,
    started_at: Instant,
    blocks: u32,
    random: &mut SmallRng,
) {
    let (elapsed, stats) = (started_at.elapsed().as_secs_f64(), store.stats());
    let gathers_started_at = clock();
    let mut versions = 0;
    for _ in 0..GATHERS {
        let mut found = Gathered::default();
        timeline.gather(&block(random.random_range(0..blocks)), Lsn::MAX, &mut found).expect("gather");
        versions += found.versions.len();
    }
    let levels: Vec<_> = stats.levels.iter().map(|level| format!("{}:{}", level.files, level.bytes >> 20)).collect();
    println!(
        "{elapsed:.0} s, {:.1} M records, put blocked {:.1} s, write amplification {:.1}, files:MB by level {}, \
         gather {:?} of {:.1} versions, {:.0} % of blocks in cache",
        records as f64 / 1e6,
        stats.put_blocked_nanos as f64 / 1e9,
        1.0 + stats.compaction_written_bytes as f64 / stats.flushed_bytes.max(1) as f64,
        levels.join(" "),
        (clock() - gathers_started_at) / GATHERS,
        versions as f64 / f64::from(GATHERS),
        100.0 * stats.block_cache_hits as f64 / (stats.block_cache_hits + stats.block_cache_misses).max(1) as f64,
    );
}
