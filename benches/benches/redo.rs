//! Redo of real chains of 1, 2, 12 and 200 records: in Rust, and by a stock PostgreSQL in a process, side by side.
//!
//! The chains are of one heap page (updates and pruning), one B-tree leaf (insertions) and one leaf of a GIN posting tree, taken from the WAL of a
//! PostgreSQL 15 that the benchmark makes. Both engines' pages are compared before anything is measured.

use std::sync::Arc;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use keyenc::{Key, TimelineNo};
use pageserver::delta::POSTGRES_TAG;
use pageserver::redo::{Chain, Engine, EngineRequest, RedoConfig, WalRedo};
use postgres_ffi::Lsn;
use postgres_ffi::wal::rmgr;

use benches::redo_cluster::RedoCluster;

/// As many as a walredo thread takes at once.
const PIPELINED: usize = 32;
const LENGTHS: [usize; 4] = [1, 2, 12, 200];
const MANAGERS: [(&str, u8); 3] = [("heap", rmgr::HEAP), ("btree", rmgr::BTREE), ("gin", rmgr::GIN)];
const STATEMENTS: &[&str] = &[
    "CREATE TABLE counter (id int, n int, pad text)",
    "INSERT INTO counter SELECT i, 0, repeat('x', 40) FROM generate_series(1, 40) i",
    "DO $$ BEGIN FOR k IN 1..20 LOOP UPDATE counter SET n = n + 1; COMMIT; END LOOP; END $$",
    "CREATE TABLE keyed (k int)",
    "CREATE INDEX keyed_k ON keyed (k)",
    "INSERT INTO keyed SELECT (i * 7919) % 10007 FROM generate_series(1, 300) i",
    "CREATE TABLE tagged (t int[])",
    "CREATE INDEX tagged_t ON tagged USING gin (t) WITH (fastupdate = off)",
    "INSERT INTO tagged SELECT ARRAY[1] FROM generate_series(1, 6000) i",
];

fn chain(request: &EngineRequest) -> Chain {
    let delta = |record: &Bytes| Bytes::from([&[POSTGRES_TAG], &record[..]].concat());
    Chain {
        timeline: TimelineNo(1),
        key: Key::block(request.rel, request.fork, request.block_no),
        version_lsn: request.records.last().map_or(Lsn::ZERO, |(lsn, _)| *lsn),
        base: request.base.clone().map(|page| (Lsn::ZERO, page)),
        deltas: request.records.iter().map(|(lsn, record)| (*lsn, delta(record))).collect(),
    }
}

/// The engines themselves, asked by one thread.
fn engines(c: &mut Criterion) {
    let cluster = RedoCluster::new(STATEMENTS).expect("a cluster");
    let (native, process) = (cluster.native(), cluster.process().expect("a redo process"));
    for (name, rmid) in MANAGERS {
        for length in LENGTHS {
            let request = cluster.chain(rmid, length).expect("a chain");
            let requests = vec![request; PIPELINED];
            let pages = native.redo(&requests[..1]).into_iter().zip(process.redo(&requests[..1]));
            for (native, process) in pages {
                let (native, process) = (native.expect("a page"), process.expect("a page"));
                assert!(native[..8] == process[..8] && native[10..] == process[10..], "the engines differ: {name}");
            }
            let mut group = c.benchmark_group(format!("redo/{name}/{length}"));
            group.throughput(Throughput::Elements(1));
            group.bench_function("native", |b| b.iter(|| native.redo(&requests[..1])));
            group.bench_function("process", |b| b.iter(|| process.redo(&requests[..1])));
            group.throughput(Throughput::Elements(PIPELINED as u64));
            group.bench_function("process_32_pipelined", |b| b.iter(|| process.redo(&requests)));
            group.finish();
        }
    }
}

/// What a reader of pages waits for: on its own thread with native redo, behind the walredo threads with a process.
fn walredo(c: &mut Criterion) {
    let cluster = RedoCluster::new(STATEMENTS).expect("a cluster");
    let engines: [(&str, Arc<dyn Engine>); 2] =
        [("native", cluster.native()), ("process", cluster.process().expect("a redo process"))];
    for length in [2, 200] {
        let request = cluster.chain(rmgr::HEAP, length).expect("a chain");
        let chains: Vec<Chain> =
            (0..PIPELINED as u32).map(|block_no| Chain { timeline: TimelineNo(block_no), ..chain(&request) }).collect();
        for (name, engine) in &engines {
            let redo = WalRedo::start(&RedoConfig::default(), engine.clone());
            let mut group = c.benchmark_group(format!("walredo/{name}/{length}"));
            group.throughput(Throughput::Elements(1));
            group.bench_function("one", |b| b.iter(|| redo.submit(chains[0].clone()).wait()));
            group.throughput(Throughput::Elements(PIPELINED as u64));
            group.bench_function("32_at_once", |b| {
                b.iter(|| {
                    let pending: Vec<_> = chains.iter().map(|chain| redo.submit(chain.clone())).collect();
                    pending.into_iter().all(|page| page.wait().is_ok())
                });
            });
            group.finish();
        }
    }
}

criterion_group!(benches, engines, walredo);
criterion_main!(benches);
