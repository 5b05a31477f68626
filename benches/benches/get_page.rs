//! GetPage in process, without a network: a hot page, one at a time and 32 together; random pages from the store.
//!
//! The timeline is a new cluster of PostgreSQL 15. Hot pages come from the page cache, stored ones are images in RocksDB's block cache.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use keyenc::Key;
use pageserver::config::Config;
use pageserver::timeline::{Repository, Timeline};
use postgres_ffi::{ForkNumber, Lsn, PgVersion, RelTag};
use tests::{PageServer, TestDir};

/// As many as a connection's requests are gathered at once.
const TOGETHER: usize = 32;
/// So little page cache that random pages come from the store.
const STORED: &str = "page_cache_mib = 1\n";

fn largest_relation(timeline: &Timeline, lsn: Lsn) -> (RelTag, ForkNumber, u32) {
    let relations = timeline.all_relations(lsn).expect("readable");
    relations.into_iter().max_by_key(|(.., blocks)| *blocks).expect("a cluster has relations")
}

fn with_timeline(config: &str, measure: impl FnOnce(&Timeline)) {
    let dir = TestDir::new("bench-get-page-in-process").expect("a directory");
    let mut server = PageServer::builder()
        .initdb(PgVersion::V15)
        .config(config)
        .expect("a configuration")
        .start(&dir)
        .expect("a server");
    server.stop().expect("stops");
    let data_dir = server.data_dir();
    let repository = Repository::open(data_dir, Config::load(data_dir).expect("loads")).expect("opens");
    measure(&repository.timeline_named("main").expect("the cluster"));
    repository.shutdown().expect("shuts down");
}

fn hot(c: &mut Criterion) {
    with_timeline("", |timeline| {
        let lsn = timeline.last_record_lsn();
        let (rel, fork, _) = largest_relation(timeline, lsn);
        let requests: Vec<(Key, Lsn)> =
            (0..TOGETHER as u32).map(|block_no| (Key::block(rel, fork, block_no), lsn)).collect();
        let (key, lsn) = requests[0];
        let mut group = c.benchmark_group("get_page/hot");
        group.throughput(Throughput::Elements(1));
        group.bench_function("1", |b| b.iter(|| timeline.get_page_at_lsn(key, lsn).expect("a page")));
        group.throughput(Throughput::Elements(TOGETHER as u64));
        group.bench_function("32", |b| b.iter(|| timeline.get_pages_at_lsn(&requests)));
    });
}

fn stored(c: &mut Criterion) {
    with_timeline(STORED, |timeline| {
        let lsn = timeline.last_record_lsn();
        let (keys, mut next) = (all_blocks(timeline, lsn), 0);
        let mut group = c.benchmark_group("get_page/stored");
        group.throughput(Throughput::Elements(1));
        group.bench_function("1", |b| {
            b.iter(|| {
                next = (next + 7_919) % keys.len(); // A prime: every page comes once before one comes again.
                timeline.get_page_at_lsn(keys[next], lsn).expect("a page")
            });
        });
    });
}

fn all_blocks(timeline: &Timeline, lsn: Lsn) -> Vec<Key> {
    let relations = timeline.all_relations(lsn).expect("readable");
    let blocks =
        |(rel, fork, count): (RelTag, ForkNumber, u32)| (0..count).map(move |block_no| Key::block(rel, fork, block_no));
    relations.into_iter().flat_map(blocks).collect()
}

criterion_group!(get_page, hot, stored);
criterion_main!(get_page);
