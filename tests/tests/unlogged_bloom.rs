//! The init fork of an unlogged bloom index: what no WAL tells of from 16 on is PostgreSQL's own loss, and the comparison forgives just that.
//!
//! Method: a stock primary, a stock standby of it and a page server, both of which follow it. The index is made, the server's own
//! reader of WAL (`pg_walinspect`) says which records name its init fork, the primary is stopped cleanly, and its file
//! is held against the standby's and ours. See `postgres_ffi::mask::bloom`.

#![allow(clippy::unwrap_used, reason = "a test; helpers of tests as well")]

use std::fs;
use std::time::Duration;

use postgres_ffi::mask::bloom::is_unlogged_empty_metapage;
use postgres_ffi::{BLCKSZ, Lsn, PgVersion};
use serde_json::Value;
use tests::standby::start_standby;
use tests::{PageServer, Postgres, Stop, TestDir, wait_until};

const LIMIT: Duration = Duration::from_secs(60);
const EXCEPTION: &str = "meta page of an unlogged bloom index";

/// What became of one index on one version.
struct Found {
    /// Records that have a block of the init fork, as the server itself reads its WAL; none for servers without `pg_walinspect`.
    records: Option<i64>,
    /// The init fork in the primary's and the standby's directory.
    on_disk: Vec<u8>,
    on_standby: Vec<u8>,
    /// What `pagectl compare` says of us.
    report: Value,
}

fn make_index(version: PgVersion) -> Found {
    let dir = TestDir::new("unlogged-bloom").unwrap();
    let mut primary = Postgres::builder(version).start(&dir).unwrap();
    primary.execute("CREATE EXTENSION bloom").unwrap();
    let mut standby = start_standby(&primary).unwrap();
    let mut pageserver = PageServer::builder().start(&dir).unwrap();
    pageserver.expect_in_log("connection to the primary"); // It goes away.
    pageserver.import("main", &primary.conninfo()).unwrap();

    let start_lsn = primary.current_lsn().unwrap();
    primary.execute("CREATE UNLOGGED TABLE u (a int); CREATE INDEX u_a ON u USING bloom (a)").unwrap();
    primary.execute("CHECKPOINT").unwrap();
    let records = (version >= PgVersion::V15).then(|| records_of_init_fork(&primary, start_lsn));
    let path = primary.query_text("SELECT pg_relation_filepath('u_a') || '_init'").unwrap();
    let end_lsn = primary.current_lsn().unwrap();
    wait_until("the standby", LIMIT, || {
        let replayed = standby.query_text("SELECT pg_last_wal_replay_lsn()")?;
        Ok(replayed.parse::<Lsn>()? >= end_lsn)
    })
    .unwrap();
    primary.stop(Stop::Fast).unwrap();
    standby.stop(Stop::Fast).unwrap(); // Writes what it has in memory.
    let [on_disk, on_standby] = [&primary, &standby].map(|server| fs::read(server.data_dir().join(&path)).unwrap());
    let data_dir = primary.data_dir().to_str().unwrap();
    let arguments = ["--json", "compare", "--timeline", "main", "--datadir", data_dir];
    let report = serde_json::from_str(&pageserver.pagectl().unwrap().outcome(&arguments).unwrap().stdout).unwrap();
    Found { records, on_disk, on_standby, report }
}

/// `block_ref` is a text that names the relation as tablespace/database/number, and a fork that is not the main one by its name.
fn records_of_init_fork(primary: &Postgres, start_lsn: Lsn) -> i64 {
    primary.execute("CREATE EXTENSION pg_walinspect").unwrap();
    let sql = format!(
        "SELECT count(*) FROM pg_get_wal_records_info('{start_lsn}', pg_current_wal_flush_lsn()) w
          WHERE w.block_ref ~ ('/' || pg_relation_filenode('u_a') || ' fork init ')"
    );
    primary.query_text(&sql).unwrap().parse().unwrap()
}

fn exceptions(report: &Value) -> u64 {
    let reasons = report["kinds"]["init"]["left_out"].as_object().unwrap();
    reasons.iter().filter(|(reason, _)| reason.starts_with(EXCEPTION)).filter_map(|(_, count)| count.as_u64()).sum()
}

fn is_noted(report: &Value) -> bool {
    report["notes"].as_array().unwrap().iter().any(|note| note.as_str().unwrap().contains(EXCEPTION))
}

fn is_logged(version: PgVersion) {
    let found = make_index(version);
    assert_ne!(found.records, Some(0));
    assert_eq!(found.on_disk.len(), BLCKSZ);
    assert_eq!(found.on_standby.len(), BLCKSZ, "a standby has the page");
    let report = found.report;
    assert_eq!(report["mismatches"], 0, "{report}");
    assert!(exceptions(&report) == 0 && !is_noted(&report), "{report}");
}

fn is_not_logged(version: PgVersion) {
    let found = make_index(version);
    assert_eq!(found.records, Some(0));
    assert!(is_unlogged_empty_metapage(found.on_disk.as_slice().try_into().unwrap()));
    assert!(found.on_standby.iter().all(|byte| *byte == 0), "a standby has no page, or one of zeroes");
    let report = found.report;
    assert_eq!(report["mismatches"], 0, "{report}");
    assert!(exceptions(&report) == 1 && is_noted(&report), "{report}");
}

#[test]
fn the_meta_page_is_logged_by_14() {
    is_logged(PgVersion::V14);
}

#[test]
fn the_meta_page_is_logged_by_15() {
    is_logged(PgVersion::V15);
}

#[test]
fn no_server_that_follows_16_has_the_meta_page() {
    is_not_logged(PgVersion::V16);
}

#[test]
fn no_server_that_follows_17_has_the_meta_page() {
    is_not_logged(PgVersion::V17);
}

#[test]
fn no_server_that_follows_18_has_the_meta_page() {
    is_not_logged(PgVersion::V18);
}
