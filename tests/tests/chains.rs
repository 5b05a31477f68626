//! Goal: no chain is longer than the bound and what may come in before it is seen, whatever a primary does to one page; and the pages are right.
//!
//! Method: a stock primary without full-page writes updates one row in thousands of transactions, draws from a sequence, and sets and clears bits of one page of the
//! visibility map. The page server flushes all the time, crashes and restarts in between; a compute goes on with it on a branch. Nothing but the bound makes images: the
//! backlog and the caching back of what was read are off. Then every stored version of these pages is counted, and the pages are read at many LSNs.

#![allow(clippy::unwrap_used, reason = "a test; helpers of tests as well")]

use std::time::Duration;

use postgres_ffi::{Lsn, PgVersion};
use serde_json::Value;
use tests::{Computes, PageServer, Postgres, Stop, TestDir, wait_until};

const LIMIT: Duration = Duration::from_secs(300);
/// `redo.chain_records_max`
const BOUND: usize = 32;
/// Ingest stands still at twice the bound, and sees that when a batch is in, half of the bound at most.
const KNOWN_MAX: usize = 2 * BOUND + BOUND / 2;
/// On a branch it does so when as much has come as the bound, whatever was there.
const BRANCH_MAX: usize = KNOWN_MAX + BOUND + BOUND / 2;
/// Updates of the row before, between and after the restarts.
const UPDATES: [u32; 3] = [7000, 7000, 6000];
const UPDATES_ON_BRANCH: u32 = 2000;
const VACUUMS: u32 = 40;
/// A page is read at every version so far apart.
const READ_STEP: usize = 53;

fn config() -> String {
    format!(
        "page_cache_mib = 1\n[store]\nlayer_mib = 1\nflush_interval_seconds = 1\n\
         [redo]\nchain_records_max = {BOUND}\nbacklog_records_min = 0\ncache_back_records_min = 1000000"
    )
}

/// Updates the row in a transaction each, and draws from the sequence.
fn updates(count: u32) -> String {
    format!(
        "DO $$ BEGIN FOR i IN 1..{count} LOOP UPDATE hot SET n = n + 1; PERFORM nextval('drawn'); COMMIT; END LOOP; END $$"
    )
}

fn change(primary: &Postgres, count: u32) {
    let mut client = primary.connect().unwrap();
    client.batch_execute(&updates(count)).unwrap();
    for _ in 0..VACUUMS {
        client.batch_execute("UPDATE seen SET n = n + 1").unwrap();
        client.batch_execute("VACUUM seen").unwrap();
    }
}

fn wait_for(server: &PageServer, timeline: &str, lsn: Lsn) {
    wait_until("the page server to be there", LIMIT, || {
        Ok(server.timeline(timeline, "last_record_lsn")?.parse::<Lsn>()? >= lsn)
    })
    .unwrap();
}

fn counter(server: &PageServer, name: &str) -> u64 {
    let rows = server.query("SHOW REDO").unwrap();
    let row = rows.iter().find(|row| row[0].ends_with(name)).unwrap_or_else(|| panic!("no {name} in {rows:?}"));
    row[1].parse().unwrap()
}

/// The first of the pages that are changed most: the others are not stamped when a bit of the visibility map is set, or never.
const STAMPED: usize = 2;

/// The pages that are changed most, as the page server names them.
fn hot_pages(primary: &Postgres) -> Vec<String> {
    let database = primary.query_text("SELECT oid FROM pg_database WHERE datname = current_database()").unwrap();
    let relation = |name: &str| primary.query_text(&format!("SELECT pg_relation_filenode('{name}')")).unwrap();
    let page = |name: &str, fork: &str| format!("1663/{database}/{}/{fork}/0", relation(name));
    vec![page("hot", "main"), page("drawn", "main"), page("seen", "vm"), page("seen", "main"), "pg_xact/0".to_owned()]
}

/// Counts the versions of a page. The longest run of deltas between two bases; all deltas; the LSNs of all versions.
fn count_chains(server: &PageServer, timeline: &str, page: &str) -> (usize, usize, Vec<String>) {
    let versions = server.query(&format!("PAGE HISTORY {timeline} {page}")).unwrap();
    let (mut longest, mut run, mut deltas) = (0, 0, 0);
    for version in &versions {
        match version[1].as_str() {
            "delta" => (run, deltas) = (run + 1, deltas + 1),
            "init_delta" => (run, deltas) = (0, deltas + 1),
            _ => run = 0,
        }
        longest = longest.max(run);
    }
    (longest, deltas, versions.into_iter().map(|version| version[0].clone()).collect())
}

/// Reads the page at many of `lsns`, but for those that came with the base backup and cannot be read. `is_stamped`: every version of it gives it its LSN.
fn read_page(server: &PageServer, timeline: &str, page: &str, lsns: &[String], is_stamped: bool) {
    let first_readable_lsn: Lsn = server.timeline(timeline, "first_readable_lsn").unwrap().parse().unwrap();
    for lsn in lsns.iter().filter(|lsn| first_readable_lsn <= lsn.parse().unwrap()).step_by(READ_STEP) {
        let row = server.query(&format!("PAGE GET {timeline} {page} AT {lsn}")).unwrap().remove(0);
        let hex = row[2].strip_prefix("\\x").unwrap();
        assert_eq!(hex.len(), 2 * 8192, "{page} at {lsn}");
        if is_stamped {
            let number = |at: usize| {
                let byte = |n: usize| u32::from_str_radix(&hex[2 * n..2 * n + 2], 16).unwrap();
                (at..at + 4).rev().fold(0, |number, n| number << 8 | u64::from(byte(n)))
            };
            let page_lsn = Lsn::new(number(0) << 32 | number(4));
            assert_eq!(page_lsn, lsn.parse().unwrap(), "{page} at {lsn}");
        }
    }
}

/// What reads met since the server started, and that all could be made.
fn check_reads(server: &PageServer, longest: usize) {
    assert_eq!(counter(server, "walredo.chain_records_max"), BOUND as u64);
    assert_eq!(counter(server, "walredo.bound_failed"), 0);
    assert_eq!(counter(server, "walredo.read_chains.above_1024"), 0);
    let met = counter(server, "walredo.read_chain_longest");
    assert!(met <= longest as u64, "a read met a chain of {met}");
}

fn bounds_chains(version: PgVersion) {
    let dir = TestDir::new("chains").unwrap();
    let mut primary =
        Postgres::builder(version).setting("full_page_writes", "off").setting("autovacuum", "off").start(&dir).unwrap();
    primary.execute("CREATE TABLE hot AS SELECT 0 AS n; CREATE TABLE seen AS SELECT 0 AS n").unwrap();
    primary.execute("CREATE SEQUENCE drawn").unwrap();
    primary.execute("VACUUM seen").unwrap();
    primary.execute("CHECKPOINT").unwrap();
    let mut server = PageServer::builder().config(&config()).unwrap().start(&dir).unwrap();
    server.expect_in_log("connection to the primary");
    server.import("main", &primary.conninfo()).unwrap();

    change(&primary, UPDATES[0]);
    server.kill().unwrap();
    server.start().unwrap();
    change(&primary, UPDATES[1]);
    wait_for(&server, "main", primary.current_lsn().unwrap());
    assert!(counter(&server, "walredo.bound_images") >= u64::from(UPDATES[1]) / KNOWN_MAX as u64);
    check_reads(&server, KNOWN_MAX);
    server.stop().unwrap();
    server.start().unwrap();
    change(&primary, UPDATES[2]);
    wait_for(&server, "main", primary.current_lsn().unwrap());

    let pages = hot_pages(&primary);
    for (nth, page) in pages.iter().enumerate() {
        let (longest, deltas, lsns) = count_chains(&server, "main", page);
        println!("PostgreSQL {version}: {page}: {deltas} deltas, {longest} at most between two images");
        assert!(longest <= KNOWN_MAX, "{page}: {longest}");
        assert!(deltas > 2 * KNOWN_MAX, "{page} was not changed often: {deltas}");
        read_page(&server, "main", page, &lsns, nth < STAMPED);
    }
    check_reads(&server, KNOWN_MAX);

    let computes = Computes::new(&mut server).unwrap();
    let compute = computes.create("dev", "main", &["--no-sync"]).unwrap();
    compute.connect().unwrap().batch_execute(&updates(UPDATES_ON_BRANCH)).unwrap();
    let all_updates = UPDATES.iter().sum::<u32>() + UPDATES_ON_BRANCH;
    assert_eq!(compute.query_text("SELECT n FROM hot").unwrap(), all_updates.to_string());
    wait_for(&server, "dev", compute.query_text("SELECT pg_current_wal_flush_lsn()").unwrap().parse().unwrap());
    for (nth, page) in pages.iter().enumerate() {
        let (longest, _, lsns) = count_chains(&server, "dev", page);
        println!("PostgreSQL {version}: {page} on the branch: {longest} at most between two images");
        assert!(longest <= BRANCH_MAX, "{page}: {longest}");
        read_page(&server, "dev", page, &lsns, nth < STAMPED);
    }
    check_reads(&server, BRANCH_MAX);
    computes.destroy("dev").unwrap();

    primary.stop(Stop::Fast).unwrap();
    let data_dir = primary.data_dir().to_str().unwrap();
    let report = server.pagectl().unwrap().run(&["--json", "compare", "--timeline", "main", "--datadir", data_dir]);
    let report: Value = serde_json::from_str(&report.unwrap()).unwrap();
    assert_eq!(report["mismatches"], 0, "{report}");
    assert!(report["compared"].as_u64().unwrap() > 500, "{report}");
    check_reads(&server, BRANCH_MAX);
    assert_eq!(server.query("VERIFY main").unwrap(), Vec::<Vec<String>>::new());
}

#[test]
fn no_chain_is_longer_than_its_bound_on_15() {
    bounds_chains(PgVersion::V15);
}

#[test]
fn no_chain_is_longer_than_its_bound_on_18() {
    bounds_chains(PgVersion::V18);
}
