//! Each record against PostgreSQL's own word: under `wal_consistency_checking = all` a record brings every page that it changes as it must become.
//!
//! Method: `workload.sql` fills a cluster. [`RedoCheck`] takes its WAL record by record the way of the server, and compares each page with the image in
//! the record after PostgreSQL's own masks; then each page's whole history since its last beginning is applied at once, which must give the same
//! page, byte for byte. With `verify` both engines make each of these pages and must agree in all bytes, masked or not.

use std::sync::Arc;

use pageserver::redo::native::NativeEngine;
use pageserver::redo::verify::{VerifiedCluster, VerifyEngine};
use pageserver::redo::{Engine, NoEngine, RedoConfig, WalRedo};
use pageserver::redo_check::{CheckReport, CheckSettings, RedoCheck};
use postgres_ffi::PgVersion;
use postgres_ffi::redo::MANAGERS;
use postgres_ffi::wal::rmgr;

use crate::cluster::Cluster;

const WORKLOAD: &str = include_str!("workload.sql");

/// Checks the WAL of `cluster`, each page's history at once too. `leave_out_every`: records whose number is a multiple of it do not happen.
fn check(cluster: &Cluster, engine: Arc<dyn Engine>, leave_out_every: Option<u64>) -> CheckReport {
    // Up to what the threads take at once, so that a process has many pages to make at a time.
    let redo = WalRedo::start(&RedoConfig { threads: 1, batch_len_max: 64, ..RedoConfig::default() }, engine);
    let control_file = cluster.control_file();
    let settings = CheckSettings {
        version: cluster.version,
        data_checksums: control_file.data_checksums(),
        wal_log_hints: control_file.wal_log_hints,
        has_base: true,
        chains: true,
        cases: 0,
    };
    let mut check = RedoCheck::new(settings, &redo, Box::new(|tag| cluster.page_of_initdb(tag)));
    let mut record_no = 0;
    cluster.for_each_record(|record| {
        record_no += 1;
        if leave_out_every.is_none_or(|every| record_no % every != 0) {
            check.record(&record).unwrap();
        }
    });
    check.check_chains();
    check.report()
}

fn cluster_with_workload(version: PgVersion, settings: &[&str], initdb_args: &[&str]) -> Cluster {
    let all: Vec<&str> = ["wal_consistency_checking=all"].into_iter().chain(settings.iter().copied()).collect();
    let cluster = Cluster::init(version, &all, initdb_args);
    let statements: Vec<&str> = WORKLOAD.lines().filter(|line| !line.is_empty() && !line.starts_with("--")).collect();
    cluster.sql(&statements);
    cluster
}

fn expect_all_equal(report: &CheckReport) {
    for row in &report.operations {
        let counts = row.counts;
        println!("{} {:10} {:22} {counts:?}", report.version, row.rmgr, row.operation);
    }
    println!("{} records, {} chains, {:?}", report.records, report.chains_equal, report.total);
    assert!(report.is_good(), "{:#?}", report.differences);
    // Those of XLOG are images alone: there is nothing to compare them with.
    for rmid in MANAGERS.into_iter().filter(|rmid| *rmid != rmgr::XLOG) {
        let name = rmgr::builtin_name(rmid).unwrap();
        let checked: u64 = report.operations.iter().filter(|row| row.rmgr == name).map(|row| row.counts.checked).sum();
        assert!(checked > 0, "no record of {name} was checked");
    }
    assert!(report.operations.len() >= OPERATIONS_MIN, "{} operations", report.operations.len());
    assert!(report.chains_equal > 1000, "{} chains", report.chains_equal);
    assert!(report.total.checked > 200_000, "{:?}", report.total);
}

/// Different operations (with and without initialisation) that the workload makes in the version with the fewest.
const OPERATIONS_MIN: usize = 60;

/// Redo in Rust alone: there is no postgres in it.
fn native(version: PgVersion, settings: &[&str], initdb_args: &[&str]) {
    let cluster = cluster_with_workload(version, settings, initdb_args);
    let engine = Arc::new(NativeEngine::new(version, Arc::new(NoEngine)));
    expect_all_equal(&check(&cluster, engine, None));
}

/// Both engines, compared unmasked, record by record and chain by chain.
fn both(version: PgVersion, settings: &[&str], initdb_args: &[&str]) {
    let cluster = cluster_with_workload(version, settings, initdb_args);
    let process = Arc::new(cluster.engine());
    let pg_control = cluster.pg_control();
    let engine = Arc::new(VerifyEngine::new(VerifiedCluster { version, pg_control }, process.clone(), None));
    let report = check(&cluster, engine.clone(), None);
    let (equal, different) = engine.equal_and_different();
    println!("{:?}", engine.report());
    expect_all_equal(&report);
    assert_eq!((different, process.stats().refused, process.stats().retried), (0, 0, 0));
    assert!(equal > 200_000, "{equal} pages compared");
}

#[test]
fn lost_records_are_noticed() {
    let cluster = Cluster::init(PgVersion::V15, &["wal_consistency_checking=all", "full_page_writes=off"], &[]);
    cluster.sql(&[
        "CREATE TABLE t (id int PRIMARY KEY, v text)",
        "INSERT INTO t SELECT i, repeat('x', i % 100) FROM generate_series(1, 1000) i",
        "UPDATE t SET v = v || 'y' WHERE id % 3 = 0",
    ]);
    let report = check(&cluster, Arc::new(cluster.engine()), None);
    assert!(report.is_good() && report.total.checked > 1000, "{report:?}");
    let report = check(&cluster, Arc::new(cluster.engine()), Some(97));
    let left_out = report.records / 97;
    // Some of those left out change no page, or one that begins anew before it is looked at again.
    assert!(report.total.different > left_out / 2, "{left_out} records left out, {:?}", report.total);
}

#[test]
fn redo_of_14_with_checksums_and_without_full_page_writes() {
    native(PgVersion::V14, &["full_page_writes=off"], &["--data-checksums"]);
}

#[test]
fn redo_of_15_with_full_page_writes() {
    native(PgVersion::V15, &["wal_compression=zstd"], &[]);
}

#[test]
fn redo_of_15_with_checksums_and_without_full_page_writes() {
    both(PgVersion::V15, &["full_page_writes=off"], &["--data-checksums"]);
}

#[test]
fn redo_of_16_with_hint_bits_logged() {
    native(PgVersion::V16, &["wal_log_hints=on", "wal_compression=pglz"], &[]);
}

#[test]
fn redo_of_17_with_checksums_and_without_full_page_writes() {
    both(PgVersion::V17, &["full_page_writes=off"], &["--data-checksums"]);
}

#[test]
fn redo_of_15_with_hint_bits_logged() {
    native(PgVersion::V15, &["wal_log_hints=on", "wal_compression=lz4"], &[]);
}

#[test]
fn redo_of_18_without_hint_bits_logged() {
    both(PgVersion::V18, &["full_page_writes=off"], &["--no-data-checksums"]);
}
