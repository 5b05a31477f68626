//! Goal: long chains become short with nobody reading, and the pages are right.
//!
//! Method: a stock primary without full-page writes changes a few pages many times; the page server flushes. With the backlog the stored
//! versions get images by themselves, and a comparison of every page meets short chains only. Without it the same comparison meets the long
//! ones: so it was the backlog. Images are looked for in the stored versions, which takes no read of a page.

#![allow(clippy::unwrap_used, reason = "a test; helpers of tests as well")]

use std::time::Duration;

use postgres_ffi::{Lsn, PgVersion};
use serde_json::Value;
use tests::{PageServer, Postgres, Stop, TestDir, wait_until};

const LIMIT: Duration = Duration::from_secs(120);
const PAGES: usize = 20;
const ROUNDS: u32 = 300;
/// Deltas above a page's newest image that count as short. A flush offers pages from 8 deltas on; several in a row may each have fewer.
const SHORT: usize = 64;

fn counter(pageserver: &PageServer, command: &str, name: &str) -> u64 {
    let rows = pageserver.query(command).unwrap();
    let row = rows.iter().find(|row| row[0].ends_with(name)).unwrap_or_else(|| panic!("no {name} in {rows:?}"));
    row[1].parse().unwrap()
}

/// Reads whose chain had more than `SHORT` deltas.
fn long_reads(pageserver: &PageServer) -> u64 {
    ["up_to_128", "up_to_256", "up_to_512", "up_to_1024", "above_1024"]
        .iter()
        .map(|bucket| counter(pageserver, "SHOW REDO", &format!("walredo.read_chains.{bucket}")))
        .sum()
}

/// One row a page, changed in every round. Returns the relation as the page server names it.
fn change_few_pages_often(primary: &Postgres) -> String {
    primary
        .execute(
            "CREATE TABLE few (id int, n int, filler text) WITH (fillfactor = 25);
             INSERT INTO few SELECT i, 0, repeat('f', 1500) FROM generate_series(1, 20) i",
        )
        .unwrap();
    primary.execute("CHECKPOINT").unwrap();
    let rounds = format!("DO $$ BEGIN FOR i IN 1..{ROUNDS} LOOP UPDATE few SET n = n + 1; COMMIT; END LOOP; END $$");
    primary.connect().unwrap().batch_execute(&rounds).unwrap();
    let sql = "SELECT '1663/' || oid || '/' || pg_relation_filenode('few') FROM pg_database WHERE datname = 'postgres'";
    primary.query_text(sql).unwrap()
}

fn deltas_above_image(pageserver: &PageServer, relation: &str, block_no: usize) -> usize {
    let versions = pageserver.query(&format!("PAGE HISTORY main {relation}/main/{block_no}")).unwrap();
    versions.iter().take_while(|version| version[1] == "delta" || version[1] == "init_delta").count()
}

/// What the comparison of every page met: reads of long chains.
fn run(version: PgVersion, backlog_records_min: u32) -> u64 {
    let dir = TestDir::new("backlog").unwrap();
    let builder = Postgres::builder(version).setting("full_page_writes", "off").setting("autovacuum", "off");
    let mut primary = builder.start(&dir).unwrap();
    let config = format!(
        "redo.backlog_records_min = {backlog_records_min}\nredo.chain_records_max = 0\nstore.layer_mib = 1\nstore.flush_interval_seconds = 1"
    );
    let mut pageserver = PageServer::builder().config(&config).unwrap().start(&dir).unwrap();
    pageserver.expect_in_log("connection to the primary"); // It goes away.
    pageserver.import("main", &primary.conninfo()).unwrap();

    let relation = change_few_pages_often(&primary);
    let end_lsn = primary.current_lsn().unwrap();
    wait_until("everything to be flushed", LIMIT, || {
        Ok(pageserver.timeline("main", "durable_lsn")?.parse::<Lsn>()? >= end_lsn)
    })
    .unwrap();
    if backlog_records_min > 0 {
        wait_until("every page to have a new image", LIMIT, || {
            Ok((0..PAGES).all(|block_no| deltas_above_image(&pageserver, &relation, block_no) <= SHORT))
        })
        .unwrap();
        assert!(counter(&pageserver, "SHOW REDO", "walredo.backlog_made") >= PAGES as u64);
        assert_eq!(counter(&pageserver, "SHOW REDO", "walredo.backlog_failed"), 0);
        assert!(counter(&pageserver, "STORE STATS", "store.cached_back_pages") >= PAGES as u64);
    } else {
        assert_eq!(counter(&pageserver, "SHOW REDO", "walredo.backlog_accepted"), 0);
        assert!((0..PAGES).all(|block_no| deltas_above_image(&pageserver, &relation, block_no) > ROUNDS as usize / 2));
    }

    primary.stop(Stop::Fast).unwrap();
    let before = long_reads(&pageserver);
    let data_dir = primary.data_dir().to_str().unwrap();
    let report = pageserver.pagectl().unwrap().run(&["--json", "compare", "--timeline", "main", "--datadir", data_dir]);
    let report: Value = serde_json::from_str(&report.unwrap()).unwrap();
    assert_eq!(report["mismatches"], 0, "{report}");
    assert!(report["compared"].as_u64().unwrap() > 500, "{report}");
    long_reads(&pageserver) - before
}

fn shortens_chains(version: PgVersion) {
    // Some pages of the catalogues and SLRUs may be long as well, with no image since the import.
    let without = run(version, 0);
    assert!(without >= PAGES as u64, "{without} reads of long chains without a backlog");
    let with = run(version, 8);
    println!(
        "PostgreSQL {version}: reads of chains above {SHORT} deltas: {without} without the backlog, {with} with it"
    );
    assert!(with < PAGES as u64, "{with} reads of long chains, {without} without a backlog");
}

#[test]
fn long_chains_become_short_with_nobody_reading_on_15() {
    shortens_chains(PgVersion::V15);
}

#[test]
fn long_chains_become_short_with_nobody_reading_on_18() {
    shortens_chains(PgVersion::V18);
}
