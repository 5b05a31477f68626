//! Goal: a page server beside a busy primary gives history up, and its space back; what is promised stays right.
//!
//! Method: pgbench over a small database, a branch and a lease in its past, a short retention, a table that is dropped. Everything that branch and lease
//! show is hashed before and after; every page of the newest moment is compared with the primary's files; below the horizon reads are refused with both
//! LSNs. The page server is killed in between. How much went and what that cost is printed.

#![allow(clippy::unwrap_used, reason = "a test; helpers of tests as well")]

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::process::Command;
use std::time::Duration;

use pageserver::client::{Client, ClientConfig, ClientError, PageStream, ReadAt};
use pageserver::page_service::pagestream::wire::Version;
use postgres_ffi::{ForkNumber, Lsn, PgVersion, RelTag};
use serde_json::Value;
use tests::{PageServer, Postgres, Stop, TestDir, wait_until};

const LIMIT: Duration = Duration::from_secs(300);
const CONFIG: &str = "store.layer_mib = 4\nstore.flush_interval_seconds = 1\nretention.time = \"0\"\nretention.wal_mib = 100000\ngc.period_seconds = 3600\ngc.mib_per_second = 0";

struct Rig {
    server: PageServer,
    primary: Postgres,
}

impl Rig {
    fn pgbench(&self, arguments: &[&str]) {
        let mut command = Command::new(self.primary.bin_dir().join("pgbench"));
        command.args(["--host", "127.0.0.1", "--username", "postgres", "--port", &self.primary.port().to_string()]);
        let output = command.args(arguments).arg("postgres").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Returns where the primary was, once that is durable in the store.
    fn catch_up(&self) -> Lsn {
        let lsn = self.primary.current_lsn().unwrap();
        wait_until("everything to be flushed", LIMIT, || {
            Ok(self.server.timeline("main", "durable_lsn")?.parse::<Lsn>()? >= lsn)
        })
        .unwrap();
        lsn
    }

    fn client(&self) -> Client {
        Client::connect(&ClientConfig::new(format!("127.0.0.1:{}", self.server.port()))).unwrap()
    }

    fn refusal(&self, command: &str) -> String {
        match self.client().query(command) {
            Err(ClientError::Server(error)) => error.to_string(),
            other => panic!("{command}: {other:?}"),
        }
    }

    /// A hash of everything that a timeline shows at an LSN.
    fn everything(&self, timeline: &str, lsn: Lsn) -> u64 {
        let mut hasher = DefaultHasher::new();
        let mut client = self.client();
        for command in ["SLRU LIST", "OBJECT LIST", "DATABASE LIST"] {
            let rows = client.query_one(&format!("{command} {timeline} AT '{lsn}'")).unwrap();
            rows.rows.iter().for_each(|row| row.values().hash(&mut hasher));
        }
        let relations = client.query_one(&format!("RELATION LIST {timeline} AT '{lsn}'")).unwrap();
        let mut blocks: Vec<(RelTag, ForkNumber, u32)> = Vec::new();
        for row in &relations.rows {
            row.values().hash(&mut hasher);
            let [rel, fork, count] = [0, 1, 2].map(|column| row.get(column).unwrap_or_default());
            let (rel, fork) = (rel.parse().unwrap(), fork.parse().unwrap());
            blocks.extend((0..count.parse().unwrap()).map(|block_no| (rel, fork, block_no)));
        }
        let lsns = ReadAt { request_lsn: lsn, not_modified_since: lsn };
        let mut stream = PageStream::start(client, Version::V3, None, timeline).unwrap();
        stream.get_pages(blocks.iter().copied(), lsns, |_, page| page.unwrap().hash(&mut hasher)).unwrap();
        hasher.finish()
    }

    fn number(&self, name: &str) -> u64 {
        let rows = self.server.query("STORE STATS").unwrap();
        rows.iter().find(|row| row[0] == name).unwrap_or_else(|| panic!("no {name}"))[1].parse().unwrap()
    }

    fn pagectl_json(&self, arguments: &[&str]) -> Vec<Value> {
        let answer = self.server.pagectl().unwrap().run(&[&["--json"], arguments].concat()).unwrap();
        answer.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn total<'a>(rows: &'a [Value], timeline: &str) -> &'a Value {
        rows.iter().find(|row| row["class"] == "total" && row["timeline"] == timeline).unwrap()
    }

    fn compare(&self) -> u64 {
        let data_dir = self.primary.data_dir().to_str().unwrap();
        let report = self
            .pagectl_json(&["compare", "--timeline", "main", "--datadir", data_dir, "--wait-seconds", "300"])
            .remove(0);
        assert_eq!(report["mismatches"], 0, "{report}");
        report["compared"].as_u64().unwrap()
    }
}

#[test]
fn history_goes_and_what_is_promised_stays() {
    let version = PgVersion::V15; // With pgbench beside it.
    let dir = TestDir::new("gc").unwrap();
    // No checkpoint beside the load: a page that is being written while somebody sets a hint bit for the first time since then keeps its LSN on the primary, though
    // its whole image is in the WAL under a newer one (PG 15: bufmgr.c, MarkBufferDirtyHint). A follower has that one, and the comparison would tell.
    let builder = Postgres::builder(version).checksums(true).wal_segment_mb(1);
    let builder = builder.setting("checkpoint_timeout", "1h").setting("max_wal_size", "10GB");
    let primary = builder.start(&dir).unwrap();
    let mut server = PageServer::builder().config(CONFIG).unwrap().start(&dir).unwrap();
    server.expect_in_log("connection to the primary"); // It goes away.
    server.import("main", &primary.conninfo()).unwrap();
    let mut rig = Rig { server, primary };
    rig.pgbench(&["--initialize", "--scale", "2", "--quiet"]);
    rig.pgbench(&["--client", "2", "--transactions", "1000"]);
    let branch_lsn = rig.catch_up();
    rig.server.query(&format!("BRANCH CREATE past FROM main AT '{branch_lsn}'")).unwrap();
    rig.primary
        .execute("CREATE TABLE dropped AS SELECT n, repeat('x', 500) AS x FROM generate_series(1, 20000) n")
        .unwrap();
    rig.pgbench(&["--client", "2", "--transactions", "1000"]);
    let leased_lsn = rig.catch_up();
    let lease = rig.server.query(&format!("LEASE main AT '{leased_lsn}' FOR 3600")).unwrap()[0][0].clone();
    let branch_lsn: Lsn = rig.server.timeline("past", "ancestor_lsn").unwrap().parse().unwrap();
    let leased_time = rig.server.query(&format!("SHOW TIME main AT '{leased_lsn}'")).unwrap()[0][2].clone();
    let (past, leased) = (rig.everything("past", branch_lsn), rig.everything("main", leased_lsn));
    for sql in [
        "DROP TABLE dropped",
        "CREATE TABLE cut AS SELECT n FROM generate_series(1, 100000) n",
        "DELETE FROM cut WHERE n > 10",
        "VACUUM cut",
        "INSERT INTO cut SELECT n FROM generate_series(1, 30000) n",
    ] {
        rig.primary.execute(sql).unwrap();
    }
    for _ in 0..3 {
        rig.pgbench(&["--client", "2", "--transactions", "2000", "--vacuum-all"]);
    }
    rig.catch_up();

    // Nothing is due yet; then everything but the last MiB of WAL, or nearly.
    assert_eq!(Rig::total(&rig.pagectl_json(&["gc", "run", "--dry-run"]), "main")["versions"], 0);
    let status = rig.pagectl_json(&["timeline", "retention", "main", "--wal", "1MiB"]).remove(0);
    assert_eq!((&status["kept_wal"], &status["kept_time"]), (&"1MiB".into(), &"0".into()));
    let plan = rig.pagectl_json(&["gc", "run", "main", "--dry-run"]);
    assert!(status["horizon_lsn"].is_null() && Rig::total(&plan, "main")["versions"].as_u64() > Some(1000), "{plan:?}");
    assert!(plan.iter().any(|row| row["class"] == "relation_block" && row["images"].as_u64() > Some(0)), "{plan:?}");
    rig.catch_up();
    let (bytes_before, written_before) = (rig.number("store.sst_bytes"), rig.number("store.compaction_written_bytes"));
    let done = rig.pagectl_json(&["gc", "run", "main"]);
    let total = Rig::total(&done, "main");
    let (bytes_after, written_after) = (rig.number("store.sst_bytes"), rig.number("store.compaction_written_bytes"));
    println!(
        "removed {} versions of {} bytes, made {} images; files {bytes_before} -> {bytes_after} bytes, compaction wrote {}",
        total["versions"],
        total["bytes"],
        total["images"],
        written_after - written_before
    );
    assert!(total["versions"].as_u64() > Some(1000), "{done:?}");
    assert!(bytes_after < bytes_before, "{bytes_before} -> {bytes_after}");
    let time_at = |rig: &Rig, lsn: Lsn| rig.server.query(&format!("SHOW TIME main AT '{lsn}'")).unwrap()[0][2].clone();
    let check = |rig: &Rig| {
        assert_eq!((rig.everything("past", branch_lsn), rig.everything("main", leased_lsn)), (past, leased));
        let horizon_lsn: Lsn = rig.server.timeline("main", "first_readable_lsn").unwrap().parse().unwrap();
        assert!(leased_lsn < horizon_lsn);
        // The time there is known; which LSN a time has, from the horizon on.
        assert_eq!(time_at(rig, leased_lsn), leased_time);
        let horizon_time = time_at(rig, horizon_lsn);
        let lsn_at = |time: &str| rig.client().query(&format!("SHOW LSN main AT TIME '{time}'"));
        let (found, first_time) = match lsn_at(&horizon_time) {
            Ok(found) => (found, horizon_time),
            // The horizon lies inside the record of the next end: that one's time is the first that can be asked for.
            Err(error) => {
                let error = error.to_string();
                let (_, first_time) = error.split_once("first_time=`").unwrap_or_else(|| panic!("{error}"));
                let first_time = first_time.split('`').next().unwrap().to_owned();
                assert!(horizon_time < first_time, "{error}");
                (lsn_at(&first_time).unwrap(), first_time)
            }
        };
        let value = |index| found[0].rows[0].get(index).unwrap();
        assert!(horizon_lsn <= value(1).parse().unwrap() && value(2) == first_time, "{found:?}");
        let refusal = rig.refusal(&format!("SHOW LSN main AT TIME '{leased_time}'"));
        assert!(refusal.contains("before the first one"), "{refusal}");
        let gone_lsn = Lsn::new(horizon_lsn.as_u64() - 8);
        for command in [
            format!("PAGE GET main 1663/5/1259/main/0 AT '{gone_lsn}'"),
            format!("LEASE main AT '{gone_lsn}'"),
            format!("BRANCH CREATE no FROM main AT '{gone_lsn}'"),
        ] {
            let refusal = rig.refusal(&command);
            assert!(refusal.contains(&gone_lsn.to_string()) && refusal.contains(&horizon_lsn.to_string()), "{refusal}");
        }
    };
    check(&rig);

    // It goes on: killed, more load, another run.
    rig.server.kill().unwrap();
    rig.server.start().unwrap();
    check(&rig);
    rig.pgbench(&["--client", "2", "--transactions", "1000"]);
    rig.catch_up();
    rig.pagectl_json(&["gc", "run"]);
    check(&rig);
    let again = rig.server.query(&format!("LEASE main AT '{leased_lsn}' FOR 60")).unwrap()[0][0].clone();
    for lease in [lease, again] {
        rig.server.query(&format!("LEASE END {lease}")).unwrap();
    }
    rig.pagectl_json(&["gc", "run", "main"]);
    let refusal = rig.refusal(&format!("PAGE GET main 1663/5/1259/main/0 AT '{leased_lsn}'"));
    assert!(refusal.contains(&leased_lsn.to_string()), "{refusal}");
    assert_eq!(rig.everything("past", branch_lsn), past);
    let paused = rig.pagectl_json(&["gc", "pause"]).remove(0);
    assert_eq!(paused["state"], "paused");
    assert_eq!(rig.pagectl_json(&["gc", "resume"]).remove(0)["state"], "idle");
    let log = std::fs::read_to_string(rig.server.log_path()).unwrap();
    log.lines().filter(|line| line.contains("garbage collected")).for_each(|line| println!("{line}"));
    rig.primary.stop(Stop::Fast).unwrap();
    assert!(rig.compare() > 500);
}
