//! The life of a compute: made, stopped, started, crashed, listed, asked, destroyed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Result, ensure};
use postgres_ffi::{Lsn, PgVersion};
use tests::{Computes, PageServer, TestDir, wait_until};

pub const LIMIT: Duration = Duration::from_secs(60);

/// A page server with a new cluster as `main`, and no computes yet.
pub fn rig(dir: &TestDir, version: PgVersion) -> Result<(PageServer, Computes)> {
    let mut server = PageServer::builder().initdb(version).start(dir)?;
    let computes = Computes::new(&mut server)?;
    Ok((server, computes))
}

#[test]
fn a_compute_is_stopped_started_asked_and_destroyed() -> Result<()> {
    for version in tests::versions() {
        let dir = TestDir::new("compute-life")?;
        let (server, computes) = rig(&dir, version)?;
        let compute = computes.create("dev", "main", &[])?;
        let report = &compute.report;
        assert_eq!(report["pg_version"], version.major());
        assert!(report["base_backup_bytes"].as_u64().is_some_and(|bytes| bytes > 10_000_000), "{report}");
        compute.execute("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")?;

        // Commits wait for the page server, and what it has is what was committed.
        assert_eq!(compute.query_text("SELECT sync_state FROM pg_stat_replication")?, "sync");
        let row = computes.listed("dev")?;
        assert_eq!(
            (row["state"].as_str(), row["branch"].as_str(), row["port"].as_u64()),
            (Some("running"), Some("main"), report["port"].as_u64())
        );
        assert_eq!(row["pid"], report["pid"]);
        assert!(row["disk_bytes"].as_u64().is_some_and(|bytes| bytes > 10_000_000), "{row}");
        let text = computes.outcome(&["list"])?.stdout;
        assert!(text.contains("running") && text.contains("dev"), "{text}");

        // psql, and its exit code.
        let asked = computes.outcome(&["psql", "dev", "--", "-Atc", "SELECT count(*), current_database() FROM t"])?;
        assert_eq!((asked.exit_code, asked.stdout.as_str()), (0, "1000|postgres\n"), "{asked:?}");
        assert_eq!(computes.outcome(&["psql", "dev", "--", "-Atc", "SELECT 1/0"])?.exit_code, 1);

        // A fast stop hands over everything.
        let stopped = computes.run(&["stop", "dev"])?;
        assert_eq!(
            (stopped["state"].as_str(), stopped["complete"].as_bool()),
            (Some("stopped"), Some(true)),
            "{stopped}"
        );
        assert_eq!(stopped["end_lsn"], stopped["last_record_lsn"]);
        assert_eq!(computes.listed("dev")?["state"], "stopped");
        computes.run(&["start", "dev"])?;
        assert_eq!(compute.query_text("SELECT count(*) FROM t")?, "1000");
        compute.execute("INSERT INTO t VALUES (1001)")?;
        computes.run(&["stop", "dev", "--immediate"])?;
        assert_eq!(computes.listed("dev")?["state"], "stopped");
        computes.run(&["start", "dev"])?;
        compute.execute("INSERT INTO t VALUES (1002)")?;

        // Killed, it is shown as crashed, and starts.
        compute.kill()?;
        assert_eq!(computes.listed("dev")?["state"], "crashed");
        computes.run(&["start", "dev"])?;
        assert_eq!(computes.listed("dev")?["state"], "running");
        assert_eq!(compute.query_text("SELECT count(*) FROM t")?, "1002");
        computes.run(&["start", "dev"])?; // Runs already: well.
        let lsn: Lsn = compute.query_text("SELECT pg_current_wal_flush_lsn()")?.parse()?;

        // Destroyed only when that is meant.
        let told = computes.run(&["destroy", "dev"])?;
        assert_eq!(told["done"], false);
        assert_eq!(computes.listed("dev")?["state"], "running");
        let destroyed = computes.outcome(&["destroy", "dev", "--confirm"])?;
        assert!(destroyed.exit_code == 0 && destroyed.stderr.is_empty(), "{destroyed:?}");
        assert!(computes.listed("dev").is_err());
        assert!(!server.data_dir().join("slots.json").exists(), "nobody looks for a slot that is gone with its server");
        wait_until("the branch to be nobody's", LIMIT, || Ok(server.timeline("main", "receiver")?.is_empty()))?;
        assert!(server.timeline("main", "last_record_lsn")?.parse::<Lsn>()? >= lsn);
        let again = computes.create("dev", "main", &["--no-sync"])?;
        assert_eq!(again.query_text("SELECT count(*) FROM t")?, "1002");
    }
    Ok(())
}

#[test]
fn with_its_branch_it_leaves_nothing() -> Result<()> {
    let dir = TestDir::new("compute-branch")?;
    let (server, computes) = rig(&dir, PgVersion::V15)?;
    let first = computes.create("first", "main", &["--no-sync"])?;
    first.execute("CREATE TABLE t (n int)")?;
    computes.create("second", "first-is-no-branch", &[]).expect_err("no such branch");
    let second = computes.create("second", "main", &["--no-sync", "--asynchronous"])?;
    assert_eq!(second.report["branch"], "second");
    assert_eq!(second.query_text("SHOW synchronous_standby_names")?, "");
    assert_eq!(second.query_text("SHOW fsync")?, "off");
    // A branch that was there before stays whatever is asked.
    let refused = computes.outcome(&["destroy", "first", "--confirm", "--with-branch"])?;
    assert!(refused.exit_code == 2 && refused.stderr.contains("was not made for this compute"), "{refused:?}");
    assert_eq!(computes.listed("first")?["state"], "running");
    let done = computes.run(&["destroy", "second", "--confirm", "--with-branch"])?;
    assert_eq!(done["branch_deleted"], true);
    let names: Vec<String> = server.query("SHOW TIMELINES")?.into_iter().map(|row| row[0].clone()).collect();
    assert_eq!(names, ["main"]);
    Ok(())
}

#[test]
fn made_and_not_started_it_starts_later() -> Result<()> {
    let dir = TestDir::new("compute-later")?;
    let (_server, computes) = rig(&dir, PgVersion::V17)?;
    let compute = computes.create("later", "main", &["--no-start"])?;
    assert_eq!(compute.report["pid"], serde_json::Value::Null);
    assert_eq!(computes.listed("later")?["state"], "stopped");
    // The branch is spoken for, although nobody follows yet; so is the port.
    let other = computes.create("other", "main", &["--no-sync"])?;
    assert_eq!(other.report["branch"], "other");
    assert_ne!(other.report["port"], compute.report["port"]);
    computes.run(&["start", "later"])?;
    compute.execute("CREATE TABLE t (n int)")?;
    Ok(())
}

#[test]
fn files_are_the_servers_users_alone() -> Result<()> {
    let dir = TestDir::new("compute-rights")?;
    let (_server, computes) = rig(&dir, PgVersion::V15)?;
    let compute = computes.create("dev", "main", &["--no-sync"])?;
    let rights =
        |name: &str| -> Result<u32> { Ok(fs::metadata(compute.root().join(name))?.permissions().mode() & 0o777) };
    for name in ["", "data", "data/base", "tablespaces"] {
        assert_eq!(rights(name)?, 0o700, "{name}");
    }
    for name in ["compute.json", "data/PG_VERSION", "data/pg_hba.conf", "data/global/pg_control", "log"] {
        assert_eq!(rights(name)?, 0o600, "{name}");
    }
    Ok(())
}

#[test]
fn passwords_are_asked_for_over_tcp_and_the_page_server_comes_over_the_socket() -> Result<()> {
    let dir = TestDir::new("compute-scram")?;
    let (_server, computes) = rig(&dir, PgVersion::V15)?;
    let compute = computes.create("dev", "main", &["--no-sync", "--auth", "scram-sha-256"])?;
    let root = compute.root().display().to_string();
    assert_eq!(compute.report["conninfo"].as_str().map(|text| text.contains(&root)), Some(true));
    compute.execute("CREATE ROLE someone LOGIN PASSWORD 'of no worth'")?;
    let over_tcp = |password: &str| {
        let port = compute.report["port"].as_u64().unwrap_or_default();
        let text = format!("host=127.0.0.1 port={port} user=someone password='{password}' dbname=postgres");
        postgres::Client::connect(&text, postgres::NoTls)
    };
    assert!(over_tcp("of no worth").is_ok());
    let refused = over_tcp("guessed").err().map(|error| format!("{error:?}")).unwrap_or_default();
    ensure!(refused.contains("password authentication failed"), "{refused}");
    assert_eq!(computes.outcome(&["psql", "dev", "--", "-Atc", "SELECT 1"])?.stdout, "1\n");
    Ok(())
}

#[test]
fn an_interrupted_create_is_seen_and_can_be_destroyed() -> Result<()> {
    let dir = TestDir::new("compute-interrupted")?;
    let (server, computes) = rig(&dir, PgVersion::V15)?;
    let compute = computes.create("dev", "main", &["--no-sync"])?;
    // As it is between two steps: everything there, and not said to be complete.
    let path = compute.root().join("compute.json");
    let text = fs::read_to_string(&path)?.replace("\"ready\"", "\"creating\"");
    fs::write(&path, &text)?;
    assert_eq!(computes.listed("dev")?["state"], "creating");
    for arguments in [&["start", "dev"][..], &["stop", "dev"], &["psql", "dev"]] {
        let refused = computes.outcome(arguments)?;
        assert!(refused.exit_code == 2 && refused.stderr.contains("never completed"), "{refused:?}");
    }
    computes.destroy("dev")?;
    assert_eq!(server.timeline("main", "receiver")?, "");

    // As it is right after the first step.
    let root = computes.root().join("begun");
    fs::create_dir(&root)?;
    let begun = text.replace("\"dev\"", "\"begun\"").replace("\"role\": \"postgres\"", "\"role\": null");
    fs::write(root.join("compute.json"), begun)?;
    assert_eq!(computes.listed("begun")?["state"], "creating");
    computes.destroy("begun")?;

    // Killed before it had made its branch; meanwhile somebody else has made one of that name.
    fs::create_dir(&root)?;
    let mut begun: serde_json::Value = serde_json::from_str(&text)?;
    (begun["name"], begun["branch"]) = ("begun".into(), "begun".into());
    (begun["branch_id"], begun["branch_is_own"]) = (serde_json::Value::Null, true.into());
    fs::write(root.join("compute.json"), begun.to_string())?;
    server.query("BRANCH CREATE begun FROM main")?;
    let told = computes.outcome(&["destroy", "begun", "--confirm", "--with-branch"])?;
    assert!(told.exit_code == 0 && told.stderr.contains("may have been made for this compute"), "{told:?}");
    assert!(!root.exists() && server.timeline("begun", "name")? == "begun");

    // Damaged, only force removes it.
    fs::create_dir(&root)?;
    fs::write(root.join("compute.json"), "{")?;
    assert_eq!(computes.listed("begun")?["state"], "damaged");
    let refused = computes.outcome(&["destroy", "begun", "--confirm"])?;
    assert!(refused.exit_code == 2 && refused.stderr.contains("damaged"), "{refused:?}");
    computes.run(&["destroy", "begun", "--confirm", "--force"])?;
    assert!(!root.exists());
    Ok(())
}
