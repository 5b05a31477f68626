//! Redo by a stock PostgreSQL in a process: chains of 2 and of 200 records, one in flight and pipelined.
//!
//! A chain is a page and heap insertions into it, one tuple of 32 bytes each. Needs PostgreSQL 15 with its server headers
//! (`scripts/setup`): `initdb` gives the control file, the extension is built on the spot.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use keyenc::{Key, TimelineNo};
use nix::unistd::{Uid, User};
use pageserver::delta::POSTGRES_TAG;
use pageserver::redo::process::{PostgresProgram, ProcessConfig, ProcessEngine, Program};
use pageserver::redo::{Chain, Engine, EngineRequest, RedoConfig, WalRedo};
use postgres_ffi::page::{PD_LOWER, PD_PAGESIZE_VERSION, PD_SPECIAL, PD_UPPER, Page, ZERO_PAGE, set_page_lsn};
use postgres_ffi::{BLCKSZ, ForkNumber, Lsn, PgVersion, RelTag};

/// As many as a walredo thread takes at once.
const PIPELINED: usize = 32;
const BASE_LSN: u64 = 0x0100_0000;
const INCLUDE_DIR: &str = "/usr/include/postgresql/15/server";

/// The engine, and the directory that it was set up in.
fn engine() -> Result<(Arc<ProcessEngine>, tempfile::TempDir)> {
    let bin = std::env::var_os("PAGESERVER_TEST_PG15_BIN").map_or("/usr/lib/postgresql/15/bin".into(), PathBuf::from);
    let dir = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir()?;
    let user = if Uid::effective().is_root() { User::from_name("postgres")? } else { None };
    let data_dir = dir.path().join("data");
    fs::create_dir(&data_dir)?;
    let mut initdb = Command::new(bin.join("initdb"));
    initdb.args(["--no-sync", "--no-instructions", "--auth=trust", "--locale=C", "-D"]).arg(&data_dir);
    initdb.current_dir(dir.path());
    if let Some(user) = &user {
        chown(&data_dir, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        initdb.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    let output = initdb.output().context("run initdb")?;
    ensure!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../pageserver/redo_extension");
    let mut make = Command::new("make");
    make.arg("--silent").arg("-C").arg(source).arg(format!("INCLUDE={INCLUDE_DIR}"));
    let built = make.arg(format!("OUT={}", dir.path().display())).status().context("run make")?;
    ensure!(built.success(), "the redo extension does not build");
    let program = PostgresProgram {
        postgres: bin.join("postgres"),
        extension: dir.path().join("pageserver_redo.so"),
        pg_control: fs::read(data_dir.join("global/pg_control"))?.into(),
        wal_log_hints: false,
        preload_libraries: Vec::new(),
        work_dir: None,
        run_as: user.map(|user| user.name),
    };
    let config = ProcessConfig::new(Program::Postgres(program), PgVersion::V15);
    Ok((Arc::new(ProcessEngine::new(config)), dir))
}

fn empty_heap_page() -> Page {
    let mut page = ZERO_PAGE;
    set_page_lsn(&mut page, Lsn::new(BASE_LSN));
    for (at, value) in [(PD_LOWER, 24), (PD_UPPER, BLCKSZ), (PD_SPECIAL, BLCKSZ), (PD_PAGESIZE_VERSION, BLCKSZ | 4)] {
        page[at..at + 2].copy_from_slice(&(value as u16).to_le_bytes());
    }
    page
}

/// XLOG_HEAP_INSERT of one tuple with 8 bytes of data. PG 15: src/include/access/heapam_xlog.h, xl_heap_insert, xl_heap_header.
fn insert_record(rel: RelTag, block_no: u32, offset: u16) -> Bytes {
    let mut record = vec![0; 24];
    record[4..8].copy_from_slice(&700u32.to_le_bytes()); // xl_xid
    record[17] = 10; // xl_rmid: heap
    let tuple: Vec<u8> =
        [&1u16.to_le_bytes()[..], &0x0900u16.to_le_bytes(), &[24, 0], &u64::from(offset).to_le_bytes()].concat();
    record.extend_from_slice(&[0, 0x20]); // block 0, main fork, has data
    record.extend_from_slice(&(tuple.len() as u16).to_le_bytes());
    for number in [rel.spc_oid, rel.db_oid, rel.rel_number, block_no] {
        record.extend_from_slice(&number.to_le_bytes());
    }
    record.extend_from_slice(&[255, 3]); // main data, short
    record.extend_from_slice(&tuple);
    record.extend_from_slice(&offset.to_le_bytes());
    record.push(0); // flags
    let len = record.len() as u32;
    record[..4].copy_from_slice(&len.to_le_bytes());
    record.into()
}

fn request(block_no: u32, record_count: u16) -> EngineRequest {
    let rel = RelTag { spc_oid: 1663, db_oid: 5, rel_number: 16384 };
    let base = Some(Bytes::copy_from_slice(&empty_heap_page()));
    let record = |no: u16| (Lsn::new(BASE_LSN + u64::from(no) * 64), insert_record(rel, block_no, no));
    EngineRequest { rel, fork: ForkNumber::Main, block_no, base, records: (1..=record_count).map(record).collect() }
}

fn chain(request: &EngineRequest) -> Chain {
    let delta = |record: &Bytes| Bytes::from([&[POSTGRES_TAG], &record[..]].concat());
    Chain {
        timeline: TimelineNo(1),
        key: Key::block(request.rel, request.fork, request.block_no),
        version_lsn: request.records.last().map_or(Lsn::ZERO, |(lsn, _)| *lsn),
        base: request.base.clone().map(|page| (Lsn::new(BASE_LSN), page)),
        deltas: request.records.iter().map(|(lsn, record)| (*lsn, delta(record))).collect(),
    }
}

/// The process itself, asked by one thread.
fn process(c: &mut Criterion) {
    let (engine, _dir) = engine().expect("a redo engine");
    for record_count in [2, 200] {
        let mut group = c.benchmark_group(format!("redo_process/{record_count}_records"));
        let requests: Vec<_> = (0..PIPELINED as u32).map(|block_no| request(block_no, record_count)).collect();
        for answer in engine.redo(&requests) {
            let page = answer.expect("a page");
            assert_eq!(page[PD_LOWER..][..2], (24 + record_count * 4).to_le_bytes());
        }
        group.throughput(Throughput::Elements(1));
        group.bench_function("one_in_flight", |b| b.iter(|| engine.redo(&requests[..1])));
        group.throughput(Throughput::Elements(PIPELINED as u64));
        group.bench_function("32_pipelined", |b| b.iter(|| engine.redo(&requests)));
        group.finish();
    }
}

/// The walredo threads in front of it: what a reader of pages waits for.
fn pool(c: &mut Criterion) {
    let (engine, _dir) = engine().expect("a redo engine");
    let redo = WalRedo::start(&RedoConfig::default(), engine);
    for record_count in [2, 200] {
        let mut group = c.benchmark_group(format!("walredo_threads/{record_count}_records"));
        let chains: Vec<_> = (0..PIPELINED as u32).map(|block_no| chain(&request(block_no, record_count))).collect();
        group.throughput(Throughput::Elements(1));
        group.bench_function("one_in_flight", |b| b.iter(|| redo.submit(chains[0].clone()).wait()));
        group.throughput(Throughput::Elements(PIPELINED as u64));
        group.bench_function("32_pipelined", |b| {
            b.iter(|| {
                let pending: Vec<_> = chains.iter().map(|chain| redo.submit(chain.clone())).collect();
                pending.into_iter().all(|page| page.wait().is_ok())
            });
        });
        group.finish();
    }
}

criterion_group!(benches, process, pool);
criterion_main!(benches);
