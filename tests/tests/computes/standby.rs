//! Computes that are hot standbys: of a primary that the branch follows, and of another compute.

use std::fs;

use anyhow::{Context, Result};
use postgres_ffi::PgVersion;
use tests::{Compute, Computes, PageServer, Pagectl, Postgres, TestDir, wait_until};

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
        wait_until_ingested(&server, &primary)?;
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

/// Replay would put the tablespace where the primary has it.
#[test]
fn a_tablespace_that_was_just_made_is_not_replayed_into_the_primary() -> Result<()> {
    let dir = TestDir::new("compute-standby-tablespace")?;
    let primary = Postgres::builder(PgVersion::V15).start(&dir)?;
    let mut server = PageServer::builder().start(&dir)?;
    server.import("main", &primary.conninfo())?;
    let computes = Computes::new(&mut server)?;
    primary.execute("CHECKPOINT")?;
    let location = dir.create_subdir("tablespace")?;
    let location = location.to_str().context("a path in UTF-8")?;
    primary.connect()?.batch_execute(&format!("CREATE TABLESPACE elsewhere LOCATION '{location}'"))?;
    primary.execute("CREATE TABLE t TABLESPACE elsewhere AS SELECT generate_series(1, 1000) AS n")?;
    wait_until_ingested(&server, &primary)?;
    let conninfo = primary.conninfo();
    let arguments = ["create", "replica", "--branch", "main", "--standby", "--primary", &conninfo, "--no-sync"];
    let refused = computes.outcome(&arguments)?;
    assert!(refused.exit_code == 2 && refused.stderr.contains(location), "{refused:?}");

    primary.execute("CHECKPOINT")?;
    primary.execute("INSERT INTO t VALUES (1001)")?;
    wait_until_ingested(&server, &primary)?;
    let standby = computes.create("replica", "main", &["--standby", "--primary", &conninfo, "--no-sync"])?;
    wait_for_count(&standby, "1001")?;
    let its_own =
        standby.query_text("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'elsewhere'")?;
    assert_ne!(its_own, location);
    computes.destroy("replica").map(drop)
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

/// Writes a segment and more, and a checkpoint behind it.
fn write_wal(primary: &Postgres) -> Result<()> {
    primary.execute("SELECT pg_logical_emit_message(false, 'p', repeat('x', 1500000)), pg_switch_wal()")?;
    primary.execute("CHECKPOINT")
}

fn wait_until_ingested(server: &PageServer, primary: &Postgres) -> Result<()> {
    let end_lsn = primary.current_lsn()?;
    wait_until("the page server", LIMIT, || {
        Ok(server.timeline("main", "last_record_lsn")?.parse::<postgres_ffi::Lsn>()? >= end_lsn)
    })
}

#[test]
fn a_standby_takes_wal_from_the_page_server_that_its_primary_has_removed() {
    for version in tests::versions() {
        check_removed_wal(version).unwrap_or_else(|error| panic!("{version}: {error:?}"));
    }
}

fn check_removed_wal(version: PgVersion) -> Result<()> {
    let dir = TestDir::new("compute-standby-wal")?;
    let primary = Postgres::builder(version)
        .wal_segment_mb(1)
        .setting("min_wal_size", "2MB")
        .setting("max_wal_size", "2MB")
        .setting("wal_keep_size", "0")
        .start(&dir)?;
    let config = "[wal]\nkeep_mib = 1024\n[store]\nflush_interval_seconds = 1";
    let mut server = PageServer::builder().config(config)?.start(&dir)?;
    server.import("main", &primary.conninfo())?;
    let computes = Computes::new(&mut server)?;
    primary.execute("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")?;
    primary.execute("CHECKPOINT")?;
    wait_until_ingested(&server, &primary)?;
    let arguments = ["--standby", "--primary", &primary.conninfo(), "--no-sync"];
    let standby = computes.create("replica", "main", &arguments)?;
    wait_for_count(&standby, "1000")?;
    computes.run(&["stop", "replica"])?;

    let needed = primary.query_text("SELECT pg_walfile_name(pg_current_wal_lsn())")?;
    primary.execute("INSERT INTO t VALUES (1001)")?;
    wait_until("the primary to remove what the standby has not had", LIMIT, || {
        write_wal(&primary)?;
        wait_until_ingested(&server, &primary)?;
        Ok(!primary.data_dir().join("pg_wal").join(&needed).exists())
    })?;
    primary.execute("INSERT INTO t VALUES (1002)")?;
    computes.run(&["start", "replica"])?;
    wait_for_count(&standby, "1002")?;
    let log = fs::read_to_string(standby.root().join("log")).context("the standby's log")?;
    assert!(log.contains(&format!("restored log file \"{needed}\" from archive")), "{log}");
    primary.execute("INSERT INTO t VALUES (1003)")?;
    wait_for_count(&standby, "1003")?;
    check_files(&server, &primary, &needed, &dir)
}

/// What `pagectl wal get` gives: the primary's own bytes, whole segments alone, an ancestor's up to where the branch left.
fn check_files(server: &PageServer, primary: &Postgres, removed: &str, dir: &TestDir) -> Result<()> {
    let pagectl = server.pagectl()?;
    let path = dir.path().join("fetched");
    let path_text = path.to_str().context("a path in UTF-8")?.to_owned();
    let get =
        |pagectl: &Pagectl, timeline: &str, file: &str| pagectl.outcome(&["wal", "get", timeline, file, &path_text]);
    let current = || primary.query_text("SELECT pg_walfile_name(pg_current_wal_lsn())");

    // From here on the primary keeps its files, to compare with.
    primary.execute("ALTER SYSTEM SET wal_keep_size = '1GB'")?;
    primary.execute("SELECT pg_reload_conf()")?;
    wait_until("the setting", LIMIT, || Ok(primary.query_text("SHOW wal_keep_size")? == "1GB"))?;
    server.query("BRANCH CREATE early FROM main")?;
    let at_branch = current()?;
    write_wal(primary)?;
    let behind_branch = current()?;
    write_wal(primary)?;
    let unfinished = current()?;
    wait_until_ingested(server, primary)?;
    for (timeline, file) in
        [("main", behind_branch.as_str()), ("main", &at_branch), ("main", removed), ("early", removed)]
    {
        let outcome = get(&pagectl, timeline, file)?;
        assert_eq!(outcome.exit_code, 0, "{timeline} {file}: {outcome:?}");
        let fetched = fs::read(&path)?;
        assert_eq!(fetched.len(), 1 << 20);
        let is_removed = file == removed;
        assert!(is_removed || fetched == fs::read(primary.data_dir().join("pg_wal").join(file))?, "{file}");
        fs::remove_file(&path)?;
    }
    let never = "0000000100000000000000FF";
    // Half way through the removed one, a flipped bit.
    let damaged = server.data_dir().join("timelines").join(server.timeline("main", "id")?).join("wal").join(removed);
    let mut bytes = fs::read(&damaged)?;
    bytes[100_000] ^= 1;
    fs::write(&damaged, bytes)?;
    for (timeline, file, expected, says_that_there_is_none) in [
        ("main", unfinished.as_str(), "not received to its end yet", true),
        ("early", &at_branch, "Not found", true),
        ("early", &behind_branch, "Not found", true),
        ("main", never, "Not found", true),
        ("main", "00000002.history", "Not found", true),
        ("main", removed, "is corrupt", false),
        ("main", "../timeline.json", "not the name", false),
        ("nobody", never, "no such timeline", false),
    ] {
        let outcome = get(&pagectl, timeline, file)?;
        assert!(outcome.exit_code == 2 && outcome.stderr.contains(expected), "{timeline} {file}: {outcome:?}");
        let strict = pagectl.outcome(&["wal", "get", "--strict", timeline, file, &path_text])?;
        let exit_code = if says_that_there_is_none { 2 } else { 126 };
        assert!(strict.exit_code == exit_code && strict.stderr.contains(expected), "{timeline} {file}: {strict:?}");
        assert!(!path.exists() && !dir.path().join("fetched.part").exists());
    }
    let nobody = pagectl.outcome(&["--server", "127.0.0.1:1", "wal", "get", "--strict", "main", never, &path_text])?;
    assert_eq!(nobody.exit_code, 126, "{nobody:?}");
    Ok(())
}
