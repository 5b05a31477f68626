//! Page server and computes are killed while rows are written: what was acknowledged is in the branch.

use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Result, ensure};
use postgres_ffi::PgVersion;
use tests::{Compute, Computes, PageServer, TestDir, wait_until};

use super::life::{LIMIT, rig};
use super::writers::{TABLE, Writer};

/// Kills come after so many more acknowledged rows.
const ROWS_BETWEEN: i32 = 40;

fn wait_for_rows(writer: &Writer) -> Result<()> {
    let enough = writer.count() + ROWS_BETWEEN;
    wait_until("acknowledged rows", LIMIT, || Ok(writer.count() >= enough))
}

/// Kills in turn, a few times; at the end the compute is killed and stays so.
fn kill_around(
    server: &mut PageServer,
    computes: &Computes,
    (name, compute, writer): (&str, &Compute, &Writer),
) -> Result<()> {
    for _ in 0..3 {
        wait_for_rows(writer)?;
        server.kill()?;
        // Commits wait now, for as long as it takes.
        let waiting = writer.count();
        std::thread::sleep(Duration::from_millis(500));
        assert!(writer.count() <= waiting + 1, "a commit was acknowledged that the page server cannot have");
        server.start()?;
        wait_for_rows(writer)?;
        compute.kill()?;
        computes.run(&["start", name])?;
        wait_for_rows(writer)?;
    }
    server.kill()?;
    compute.kill()?; // Both, in this order: what is acknowledged is on the page server's disk alone.
    server.start()
}

#[test]
fn every_acknowledged_row_is_in_the_branch() -> Result<()> {
    for version in tests::versions() {
        let dir = TestDir::new("compute-crashes")?;
        let (mut server, computes) = rig(&dir, version)?;
        let first = computes.create("first", "main", &[])?;
        first.execute(TABLE)?;
        let second = computes.create("second", "main", &[])?;
        let writers = ["first", "second"].map(Writer::new);
        let killed = std::thread::scope(|scope| {
            scope.spawn(|| writers[0].run(&first));
            scope.spawn(|| writers[1].run(&second));
            let killed = kill_around(&mut server, &computes, ("second", &second, &writers[1]));
            writers.iter().for_each(|writer| writer.stop.store(true, Ordering::SeqCst));
            killed
        });
        killed?;
        first.kill()?;
        for (name, branch, writer) in [("second", "second", &writers[1]), ("first", "main", &writers[0])] {
            assert_eq!(computes.listed(name)?["state"], "crashed");
            computes.destroy(name)?;
            let again = computes.create(&format!("{name}-again"), branch, &["--no-sync"])?;
            writer.check(&again)?;
            again.execute("INSERT INTO written VALUES ('afterwards', 1)")?;
        }
    }
    Ok(())
}

#[test]
fn what_was_not_handed_over_is_not_thrown_away() -> Result<()> {
    let dir = TestDir::new("compute-not-handed-over")?;
    let (mut server, computes) = rig(&dir, PgVersion::V15)?;
    for (name, arguments, change) in
        [("dev", &["--asynchronous"][..], "SELECT 1"), ("changed", &[], "ALTER SYSTEM SET synchronous_commit = local")]
    {
        let compute = computes.create(name, "main", arguments)?;
        compute.execute(&format!("CREATE TABLE {name} (n int)"))?;
        compute.execute(change)?;
        compute.execute("SELECT pg_reload_conf()")?;
        wait_until("the setting", LIMIT, || {
            Ok(name == "dev" || compute.query_text("SHOW synchronous_commit")? == "local")
        })?;
        server.kill()?;
        compute.execute(&format!("INSERT INTO {name} VALUES (1)"))?; // Acknowledged by the compute alone.
        let refused = computes.outcome(&["destroy", name, "--confirm"])?;
        assert!(refused.exit_code == 2 && refused.stderr.contains("connect to the page server"), "{refused:?}");
        assert_eq!(computes.listed(name)?["state"], "running", "not stopped for nothing");
        compute.kill()?;
        server.start()?;
        let refused = computes.outcome(&["destroy", name, "--confirm"])?;
        assert!(refused.exit_code == 2 && refused.stderr.contains("--force"), "{refused:?}");
        // As it says: started, it hands over the rest.
        computes.run(&["start", name])?;
        computes.destroy(name)?;
    }
    let again = computes.create("again", "main", &["--no-sync"])?;
    assert_eq!(again.query_text("SELECT dev.n + changed.n FROM dev, changed")?, "2");
    Ok(())
}

#[test]
fn a_branch_that_follows_another_server_is_left_to_it() -> Result<()> {
    let dir = TestDir::new("compute-left-branch")?;
    let (mut server, computes) = rig(&dir, PgVersion::V15)?;
    for text in ["diverged", "does not descend", "its history is not ours"] {
        server.expect_in_log(text);
    }
    let dev = computes.create("dev", "main", &["--no-sync"])?;
    dev.execute("CREATE TABLE t AS SELECT 1 AS n")?;
    let standby = computes.create("standby", "main", &["--standby"])?;
    wait_until("the standby", LIMIT, || Ok(standby.query_text("SELECT to_regclass('t') IS NOT NULL")? == "t"))?;
    computes.run(&["stop", "dev"])?;
    standby.execute("SELECT pg_promote()")?;
    let port = standby.report["port"].to_string();
    server.query(&format!("TIMELINE FOLLOW main FROM 'host=127.0.0.1 port={port} user=postgres'"))?;
    standby.execute("INSERT INTO t VALUES (2)")?;
    wait_until("main to follow", LIMIT, || Ok(server.timeline("main", "receiver")? == "streaming"))?;

    for arguments in [&["start", "dev"][..], &["destroy", "dev", "--confirm"]] {
        let refused = computes.outcome(arguments)?;
        let text = format!("has come to follow another server, postgres@127.0.0.1:{port}");
        assert!(refused.exit_code == 2 && refused.stderr.contains(&text), "{arguments:?}: {refused:?}");
    }
    assert_eq!(computes.listed("dev")?["state"], "stopped");
    computes.run(&["destroy", "dev", "--confirm", "--force"])?;
    assert!(!dev.root().exists());
    assert_eq!(server.timeline("main", "receiver")?, "streaming");

    // Nor is one deleted that was made for it.
    let own = computes.create("own", "main", &["--no-sync"])?;
    assert_eq!(own.report["branch"], "own");
    computes.run(&["stop", "own"])?;
    server.query(&format!("TIMELINE FOLLOW own FROM 'host=127.0.0.1 port={port} user=postgres'"))?;
    let done = computes.run(&["destroy", "own", "--confirm", "--force", "--with-branch"])?;
    assert_eq!(done["branch_deleted"], false);
    assert!(server.timeline("own", "primary")?.ends_with(&port));
    assert!(server.timeline("main", "primary")?.ends_with(&port));
    Ok(())
}

#[test]
fn a_branch_that_was_reset_does_not_count_as_what_its_compute_wrote() -> Result<()> {
    let dir = TestDir::new("compute-reset")?;
    let (mut server, computes) = rig(&dir, PgVersion::V15)?;
    for text in ["diverged", "a clone that began at", "a replication slot stays"] {
        server.expect_in_log(text);
    }
    let pagectl = server.pagectl()?;
    let first = computes.create("first", "main", &["--no-sync"])?;
    first.execute("CREATE TABLE t AS SELECT 1 AS n")?;
    let before_lsn = server.timeline("main", "last_record_lsn")?;
    first.execute("INSERT INTO t VALUES (2)")?;
    let dev = computes.create("dev", "main", &["--asynchronous", "--no-sync"])?;
    dev.execute("INSERT INTO t VALUES (3)")?;
    computes.run(&["stop", "dev"])?;

    // Set back to before the compute began: what the compute has in front of its beginning is no WAL to go on with.
    pagectl.run(&["branch", "reset", "dev", "--lsn", &before_lsn, "--confirm"])?;
    start_until_told(&computes, "a clone that began at")?;
    let refused = computes.outcome(&["stop", "dev"])?;
    assert_eq!((refused.exit_code, computes.listed("dev")?["state"].as_str()), (1, Some("stopped")), "{refused:?}");

    // Set forward to behind where the compute has come.
    first.execute("INSERT INTO t SELECT generate_series(4, 10000)")?;
    pagectl.run(&["branch", "reset", "dev", "--confirm"])?;
    let text = "not with WAL of this compute";
    for is_followed in [false, true] {
        if is_followed {
            start_until_told(&computes, "left timeline")?;
        }
        let refused = computes.outcome(&["destroy", "dev", "--confirm"])?;
        assert!(refused.exit_code == 2 && refused.stderr.contains(text) && dev.root().exists(), "{refused:?}");
    }
    computes.run(&["destroy", "dev", "--confirm", "--force"])?;

    // One that is gone keeps nobody from stopping.
    let gone = computes.create("gone", "main", &["--no-sync"])?;
    pagectl.run(&["branch", "delete", "gone", "--confirm"])?;
    let told = computes.outcome(&["stop", "gone"])?;
    assert!(told.exit_code == 2 && told.stderr.contains("no branch"), "{told:?}");
    assert_eq!(computes.listed("gone")?["state"], "stopped");
    computes.run(&["destroy", "gone", "--confirm", "--force"])?;
    assert!(!gone.root().exists());

    // One that is refused in the middle is as it was.
    let leased = computes.create("leased", "main", &["--no-sync"])?;
    let lsn = server.timeline("leased", "last_record_lsn")?;
    pagectl.run(&["lease", "create", "leased", "--lsn", &lsn])?;
    let refused = computes.outcome(&["destroy", "leased", "--confirm", "--with-branch"])?;
    assert!(refused.exit_code == 2 && refused.stderr.contains("lease"), "{refused:?}");
    computes.run(&["start", "leased"])?;
    leased.execute("INSERT INTO t VALUES (5)")?;
    computes.destroy("leased").map(drop)
}

/// Starts `dev` until the page server has said why it does not follow. It may need more than a start's few seconds for that.
fn start_until_told(computes: &Computes, text: &str) -> Result<()> {
    wait_until(text, LIMIT, || {
        let refused = computes.outcome(&["start", "dev", "--timeout", "3"])?;
        ensure!(refused.exit_code == 2, "{refused:?}");
        Ok(refused.stderr.contains(text))
    })
}
