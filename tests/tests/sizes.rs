//! Goal: how big a timeline is, at the last record and at every LSN before, is what PostgreSQL says of its files; and what people are shown of it.
//!
//! Method: a real PostgreSQL 15 (it extends relations block by block when one session writes; later ones add blocks at once that no WAL knows of until they
//! are used). At each moment its sizes are remembered: `pg_relation_size` of the main, visibility map and init forks of every permanent relation, of the
//! init forks alone of unlogged ones, nothing of temporary ones: the rest is not in WAL. Nor are free space maps: they are compared right after the import,
//! and left out later. The page server's sizes are asked for then, at the end, after a kill, on a branch, and on a detached one, and compared with its
//! own list of relations each time: with all forks.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use postgres_ffi::{Lsn, PgVersion};
use serde_json::Value;
use tests::{PageServer, Postgres, TestDir, wait_until};

const LIMIT: Duration = Duration::from_secs(300);
const CONFIG: &str = "store.layer_mib = 4\nstore.flush_interval_seconds = 1";
/// What changes sizes: growth, cuts, rewrites, drops, copies of databases in both ways, what is not in WAL.
const STEPS: &[&str] = &[
    "CREATE TABLE t (i int PRIMARY KEY, v text); INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, 20000) i",
    "CREATE UNLOGGED TABLE u AS SELECT * FROM t; CREATE INDEX ON u (v); CREATE TEMP TABLE s AS SELECT * FROM t",
    "CREATE TABLE big AS SELECT i, string_agg(md5((i * j)::text), '') v FROM generate_series(1, 50) i, generate_series(1, 400) j GROUP BY i",
    "CREATE DATABASE logged STRATEGY wal_log",
    "CREATE DATABASE copied STRATEGY file_copy",
    "DELETE FROM t WHERE i > 3000",
    "VACUUM t",
    "CREATE INDEX ON t USING gin (to_tsvector('simple', v)); REINDEX TABLE t",
    "BEGIN; CREATE TABLE never AS SELECT * FROM t; ROLLBACK",
    "VACUUM FULL t",
    "TRUNCATE big",
    "DROP DATABASE logged",
    "DROP TABLE u, big; CREATE MATERIALIZED VIEW m AS SELECT * FROM t; CREATE SEQUENCE q",
];

/// Bytes by database; `None`: shared relations.
type Sizes = BTreeMap<Option<u32>, u64>;

struct Rig {
    server: PageServer,
    primary: Postgres,
}

impl Rig {
    fn catch_up(&self) -> Result<Lsn> {
        self.primary.execute("SELECT pg_logical_emit_message(true, 'test', 'flush')")?;
        let primary_lsn: Lsn = self.primary.query_text("SELECT pg_current_wal_flush_lsn()")?.parse()?;
        wait_until("main to catch up", LIMIT, || {
            Ok(self.server.timeline("main", "last_record_lsn")?.parse::<Lsn>()? >= primary_lsn)
        })?;
        Ok(primary_lsn)
    }

    /// As PostgreSQL has them as files.
    fn primary_sizes(&self, with_free_space_maps: bool) -> Result<Sizes> {
        let fsm = if with_free_space_maps { ", 'fsm'" } else { "" };
        let sum = |is_shared: bool| {
            format!(
                "SELECT coalesce(sum(pg_relation_size(c.oid, f)), 0)::text FROM pg_class c, unnest(ARRAY['main', 'vm', 'init'{fsm}]) f
                 WHERE relisshared = {is_shared} AND relkind IN ('r', 'i', 't', 'm', 'S')
                 AND (relpersistence = 'p' OR relpersistence = 'u' AND f = 'init')"
            )
        };
        let shared = self.primary.query_text(&sum(true))?.parse()?;
        let mut sizes = Sizes::from([(None, shared)]);
        let list = "SELECT string_agg(oid || ' ' || datname, ',') FROM pg_database WHERE datallowconn";
        for listed in self.primary.query_text(list)?.split(',') {
            let (oid, name) = listed.split_once(' ').context("oid and name")?;
            let row = self.primary.connect_to(name)?.query_one(&sum(false), &[])?;
            sizes.insert(Some(oid.parse()?), row.get::<_, String>(0).parse()?);
        }
        Ok(sizes)
    }

    /// As the page server lists them, without free space maps if asked so. Its kept sizes are what it lists with them.
    fn shown_sizes(&self, timeline: &str, lsn: Lsn, with_free_space_maps: bool) -> Result<Sizes> {
        let mut sizes = Sizes::new();
        for row in self.server.query(&format!("SHOW SIZES {timeline} AT '{lsn}'"))? {
            let [tablespace, database, relations, blocks, bytes] = [2, 3, 4, 5, 6].map(|column| &row[column]);
            let listed =
                self.server.query(&format!("RELATION LIST {timeline} IN {tablespace}/{database} AT '{lsn}'"))?;
            let count = |row: &Vec<String>| row[2].parse::<u64>();
            let sum: u64 = listed.iter().map(count).sum::<Result<u64, _>>()?;
            let main_forks = listed.iter().filter(|row| row[1] == "main").count();
            let kept: [u64; 3] = [relations.parse()?, blocks.parse()?, bytes.parse()?];
            assert_eq!(kept, [main_forks as u64, sum, sum * 8192], "{timeline} {tablespace}/{database} at {lsn}");
            let wanted = listed.iter().filter(|row| with_free_space_maps || row[1] != "fsm");
            let blocks: u64 = wanted.map(count).sum::<Result<u64, _>>()?;
            let database = database.parse::<u32>()?;
            *sizes.entry((database != 0).then_some(database)).or_default() += blocks * 8192;
        }
        Ok(sizes)
    }

    /// Errors: the page server shows something else of a database that PostgreSQL has; of one that nobody can connect to it may show what it likes.
    fn check(&self, timeline: &str, lsn: Lsn, expect: &Sizes, with_free_space_maps: bool) -> Result<()> {
        let mut shown = self.shown_sizes(timeline, lsn, with_free_space_maps)?;
        shown.retain(|database, _| expect.contains_key(database) || *database != Some(TEMPLATE0));
        assert_eq!(shown, *expect, "{timeline} at {lsn}");
        Ok(())
    }

    fn json(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let text = self.server.pagectl()?.run(&[&["--json", "size"], arguments].concat())?;
        text.lines().map(|line| serde_json::from_str(line).context("JSON")).collect()
    }
}

/// Nobody may connect to it. PG 15: src/include/catalog/pg_database.dat.
const TEMPLATE0: u32 = 4;

#[test]
fn sizes_are_what_postgres_says_at_every_lsn_and_wherever_they_are_asked_for() -> Result<()> {
    let dir = TestDir::new("sizes")?;
    let primary = Postgres::builder(PgVersion::V15).setting("autovacuum", "off").start(&dir)?;
    primary.execute("CREATE TABLE old AS SELECT i FROM generate_series(1, 5000) i")?;
    primary.execute("VACUUM old")?;
    primary.execute("CHECKPOINT")?;
    let mut server = PageServer::builder().config(CONFIG)?.start(&dir)?;
    server.expect_in_log("connection to the primary");
    server.import("main", &primary.conninfo())?;
    let mut rig = Rig { server, primary };
    let first_lsn = rig.catch_up()?;
    rig.check("main", first_lsn, &rig.primary_sizes(true)?, true)?;

    let mut moments = Vec::new();
    for step in STEPS {
        rig.primary.connect()?.batch_execute(step).with_context(|| (*step).to_owned())?;
        let (lsn, sizes) = (rig.catch_up()?, rig.primary_sizes(false)?);
        rig.check("main", lsn, &sizes, false).with_context(|| (*step).to_owned())?;
        moments.push((lsn, sizes));
    }
    let (branch_lsn, at_branch) = moments[5].clone();
    rig.server.query(&format!("BRANCH CREATE dev FROM main AT '{branch_lsn}'"))?;
    rig.server.kill()?;
    rig.server.start()?;
    rig.catch_up()?;
    for (lsn, sizes) in &moments {
        rig.check("main", *lsn, sizes, false)?;
    }
    rig.check("dev", branch_lsn, &at_branch, false)?;
    shown_by_the_tool(&rig, branch_lsn)?;

    rig.server.query("BRANCH DETACH dev")?;
    rig.check("dev", branch_lsn, &at_branch, false)?;
    let verified = rig.server.pagectl()?.outcome(&["verify"])?;
    assert_eq!(verified.exit_code, 0, "{verified:?}");
    rig.server.stop()
}

fn shown_by_the_tool(rig: &Rig, branch_lsn: Lsn) -> Result<()> {
    let (all, at) = (rig.json(&[])?, rig.json(&["main", "--at", &branch_lsn.to_string()])?);
    let names: Vec<_> = all.iter().map(|row| row["timeline"].as_str().unwrap_or_default()).collect();
    assert_eq!(names, ["dev", "main"]);
    let (dev, main) = (&all[0], &all[1]);
    assert_eq!((&at[0]["lsn"], &at[0]["logical_bytes"]), (&dev["lsn"], &dev["logical_bytes"]));
    let number = |row: &Value, name: &str| row[name].as_u64().with_context(|| format!("{name} in {row}"));
    let databases: Vec<Value> = rig.json(&["main", "--databases"])?;
    let relation_bytes = databases.iter().map(|row| number(row, "bytes")).sum::<Result<u64>>()?;
    assert_eq!(number(main, "logical_bytes")?, relation_bytes + number(main, "slru_bytes")?);
    assert_eq!(number(main, "own_bytes")?, number(main, "history_bytes")? + number(main, "wal_bytes")?);
    // What a branch shows is its ancestor's; the import alone takes a few MiB.
    assert!(number(dev, "own_bytes")? < 1 << 20 && number(main, "history_bytes")? > 1 << 20, "{all:?}");
    assert!(number(main, "wal_bytes")? >= 1 << 20, "{main}");
    assert_eq!((&dev["pins"], &dev["pinned_bytes"]), (&Value::Null, &Value::Null));
    assert_eq!(rig.json(&["dev", "--pins"])?[0]["pinned_bytes"], Value::from(0));

    let pagectl = rig.server.pagectl()?;
    let table = pagectl.run(&["size"])?;
    let head: Vec<&str> = table.lines().next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(head, ["timeline", "logical", "history", "wal", "own", "pinned", "by"], "{table}");
    assert!(table.contains("MiB"), "{table}");
    assert!(pagectl.run(&["size", "main", "--databases"])?.contains("relations"));
    let refused = pagectl.outcome(&["size", "main", "--at", "0/1"])?;
    assert_eq!(refused.exit_code, 2, "{refused:?}");
    Ok(())
}
