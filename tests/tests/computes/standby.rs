//! Computes that are hot standbys: of a primary that the branch follows, and of another compute.

use anyhow::Result;
use postgres_ffi::PgVersion;
use tests::{Compute, Computes, PageServer, Postgres, TestDir, wait_until};

use super::life::{LIMIT, rig};

const COUNT: &str = "SELECT count(*)::text FROM t";

fn wait_for_count(standby: &Compute, count: &str) -> Result<()> {
    wait_until("the standby to follow", LIMIT, || Ok(standby.query_text(COUNT)? == count))
}

#[test]
fn a_standby_follows_the_primary_of_its_branch() -> Result<()> {
    for version in tests::versions() {
        let dir = TestDir::new("compute-standby")?;
        let primary = Postgres::builder(version).start(&dir)?;
        let mut server = PageServer::builder().start(&dir)?;
        server.import("main", &primary.conninfo())?;
        let computes = Computes::new(&mut server)?;
        primary.execute("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")?;
        primary.execute("CHECKPOINT")?;
        primary.execute("INSERT INTO t VALUES (1001)")?;
        let end_lsn = primary.current_lsn()?;
        wait_until("the page server", LIMIT, || {
            Ok(server.timeline("main", "last_record_lsn")?.parse::<postgres_ffi::Lsn>()? >= end_lsn)
        })?;
        let refused = computes.outcome(&["create", "replica", "--branch", "main", "--standby"])?;
        assert!(refused.exit_code == 2 && refused.stderr.contains("--primary"), "{refused:?}");
        let arguments = ["--standby", "--primary", &primary.conninfo(), "--no-sync"];
        let standby = computes.create("replica", "main", &arguments)?;
        assert_eq!(
            (standby.report["branch"].as_str(), standby.report["standby"].as_bool()),
            (Some("main"), Some(true))
        );
        assert_eq!(standby.query_text("SELECT pg_is_in_recovery()::text")?, "true");
        primary.execute("INSERT INTO t VALUES (1002)")?;
        wait_for_count(&standby, "1002")?;
        // The branch goes on following its primary; nobody is disturbed.
        assert_eq!(server.timeline("main", "receiver")?, "streaming");
        computes.run(&["stop", "replica"])?;
        primary.execute("INSERT INTO t VALUES (1003)")?;
        computes.run(&["start", "replica"])?;
        wait_for_count(&standby, "1003")?;
        standby.kill()?;
        assert_eq!(computes.listed("replica")?["state"], "crashed");
        computes.run(&["start", "replica"])?;
        computes.destroy("replica")?;
        assert_eq!(server.timeline("main", "receiver")?, "streaming");
        let names: Vec<String> = server.query("SHOW TIMELINES")?.into_iter().map(|row| row[0].clone()).collect();
        assert_eq!(names, ["main"]);
    }
    Ok(())
}

#[test]
fn a_standby_of_a_compute_finds_it_by_the_branch() -> Result<()> {
    let dir = TestDir::new("compute-standby-of-compute")?;
    let (_server, computes) = rig(&dir, PgVersion::V15)?;
    let first = computes.create("first", "main", &["--no-sync"])?;
    first.execute("CREATE TABLE t AS SELECT generate_series(1, 10) AS n")?;
    let standby = computes.create("replica", "main", &["--standby", "--no-sync"])?;
    first.execute("INSERT INTO t VALUES (11)")?;
    wait_for_count(&standby, "11")?;
    // The branch is the first one's still: a third one gets a branch of its own.
    let third = computes.create("third", "main", &["--no-sync"])?;
    assert_eq!(third.report["branch"], "third");
    computes.destroy("replica")?;
    first.execute("INSERT INTO t VALUES (12)")?;
    Ok(())
}
