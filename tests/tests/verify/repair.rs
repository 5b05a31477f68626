//! What can be mended: WAL from the primary, files of metadata from what the server knows.

use std::fs;

use anyhow::Result;
use tests::standby::start_standby;
use tests::{PageServer, Stop, wait_until};

use super::files::{assert_clean, assert_found, files, flip, name, segments};
use super::rig::{LIMIT, Rig, small_primary};

fn server(name: &str) -> Result<Rig> {
    let primary = small_primary().setting("wal_keep_size", "1GB");
    let mut rig = Rig::start(name, primary, PageServer::builder())?;
    for _ in 0..6 {
        rig.write()?;
    }
    rig.catch_up()?;
    rig.pageserver.expect_in_log("ingest stopped");
    Ok(rig)
}

#[test]
fn damaged_and_missing_wal_comes_from_the_primary_again() -> Result<()> {
    let mut rig = server("repair-wal")?;
    let segments = segments(&rig.pageserver)?;
    assert!(segments.len() > 5, "{segments:?}");
    let (damaged, missing) = (&segments[2], &segments[4]);
    flip(damaged, 300_001)?;
    let before = fs::read(missing)?;
    fs::remove_file(missing)?;
    assert_found(&rig.pageserver, &[name(damaged), "missing between others"]);
    let pagectl = rig.pageserver.pagectl()?;
    let outcome = pagectl.outcome(&["repair", "--dry-run"])?;
    assert!(
        outcome.exit_code == 1 && outcome.stdout.contains("would be repaired"),
        "{}{}",
        outcome.stdout,
        outcome.stderr
    );
    assert!(!missing.exists(), "a dry run does nothing");
    let outcome = pagectl.outcome(&["repair", "--timeline", "main"])?;
    assert_eq!(outcome.exit_code, 0, "{}{}", outcome.stdout, outcome.stderr);
    assert!(outcome.stdout.contains("taken from the primary"), "{}", outcome.stdout);
    assert!(fs::read(missing)? == before, "the same bytes");
    assert_clean(&rig.pageserver);
    // It is good enough to start from: nothing was flushed, so all of it is read.
    rig.write()?;
    rig.catch_up()?;
    rig.pageserver.kill()?;
    rig.pageserver.start()?;
    rig.wait_for("receiver", "streaming")?;
    rig.stop_and_compare()
}

fn follow(rig: &Rig, conninfo: &str) -> Result<()> {
    rig.pageserver.query(&format!("TIMELINE FOLLOW main FROM '{}'", conninfo.replace('\'', "''"))).map(drop)
}

#[test]
fn wal_does_not_come_from_a_server_with_another_history() -> Result<()> {
    let mut rig = server("repair-twin")?;
    for text in ["diverged", "its history is not ours"] {
        rig.pageserver.expect_in_log(text);
    }
    let mut twin = start_standby(&rig.primary)?;
    let parted_lsn = rig.catch_up()?;
    wait_until("the standby", LIMIT, || Ok(twin.current_lsn()? >= parted_lsn))?;
    // It hears no more of the primary; we do.
    twin.execute("ALTER SYSTEM SET primary_conninfo = ''")?;
    twin.restart(Stop::Fast)?;
    for _ in 0..3 {
        rig.write()?;
    }
    rig.catch_up()?;
    twin.promote()?;
    follow(&rig, &twin.conninfo())?;
    rig.wait_for("receiver", "diverged")?;

    // One that was written before they parted: the twin has it too, but nobody can know that.
    let damaged = &segments(&rig.pageserver)?[2];
    flip(damaged, 300_001)?;
    let before = fs::read(damaged)?;
    let outcome = rig.pageserver.pagectl()?.outcome(&["repair"])?;
    assert_eq!(outcome.exit_code, 1, "{}{}", outcome.stdout, outcome.stderr);
    assert!(outcome.stdout.contains("its history is not ours"), "{}", outcome.stdout);
    assert!(fs::read(damaged)? == before);
    follow(&rig, &rig.primary.conninfo())?;
    let outcome = rig.pageserver.pagectl()?.outcome(&["repair"])?;
    assert_eq!(outcome.exit_code, 0, "{}{}", outcome.stdout, outcome.stderr);
    assert_clean(&rig.pageserver);
    rig.stop_and_compare()
}

#[test]
fn wal_that_the_primary_has_no_more_stays_damaged_and_says_why() -> Result<()> {
    // Nothing is kept for us but what the slot asks for.
    let primary = small_primary().setting("wal_keep_size", "0").setting("min_wal_size", "2MB");
    let mut rig = Rig::start("repair-wal-gone", primary, PageServer::builder())?;
    for _ in 0..6 {
        rig.write()?;
    }
    rig.catch_up()?;
    let segments = segments(&rig.pageserver)?;
    let is_there = format!("SELECT count(*) FROM pg_ls_waldir() WHERE name = '{}'", name(&segments[1]));
    wait_until("the primary to forget the segment", LIMIT, || {
        rig.write()?;
        rig.catch_up()?;
        rig.primary.execute("CHECKPOINT")?;
        Ok(rig.primary.query_text(&is_there)? == "0")
    })?;
    flip(&segments[1], 300_001)?;
    let outcome = rig.pageserver.pagectl()?.outcome(&["repair"])?;
    assert_eq!(outcome.exit_code, 1, "{}{}", outcome.stdout, outcome.stderr);
    assert!(outcome.stdout.contains("stays") && outcome.stdout.contains("removed"), "{}", outcome.stdout);
    assert_found(&rig.pageserver, &[name(&segments[1])]);
    // The timeline goes on all the same.
    rig.write()?;
    rig.wait_for("receiver", "streaming")?;
    rig.stop_and_compare()
}

#[test]
fn metadata_is_written_again_from_what_the_server_or_a_copy_knows() -> Result<()> {
    let mut rig = server("repair-metadata")?;
    rig.pageserver.expect_in_log("a damaged file is replaced by its copy"); // tenant.json: what stood there only the copy knows.
    let pagectl = rig.pageserver.pagectl()?;
    let lsn = rig.catch_up()?.to_string();
    pagectl.run(&["lease", "create", "main", "--lsn", &lsn, "--seconds", "86400"])?;
    let data_dir = rig.pageserver.data_dir().to_owned();
    let tar = rig.dir.path().join("backup.tar");
    pagectl.run(&["basebackup", "main", "--output", &tar.to_string_lossy()])?; // Makes tenant.json.
    let mut damaged = Vec::new();
    for part in ["timeline.json", "leases.json", "tenant.json"] {
        let found = files(&data_dir, part)?;
        assert_eq!(found.len(), 2, "the file and its copy: {found:?}");
        damaged.extend(found.into_iter().map(|(file, size)| (file, size, part)));
    }
    for (file, size, part) in damaged {
        let before = fs::read(&file)?;
        flip(&file, size / 2)?;
        assert_found(&rig.pageserver, &[part, "metadata"]);
        let outcome = pagectl.outcome(&["repair"])?;
        assert!(
            outcome.exit_code == 0 && outcome.stdout.contains("written again"),
            "{}{}",
            outcome.stdout,
            outcome.stderr
        );
        assert!(fs::read(&file)? == before, "the same bytes");
        assert_clean(&rig.pageserver);
    }
    rig.pageserver.kill()?;
    rig.pageserver.start()?;
    rig.wait_for("receiver", "streaming")?;
    assert_eq!(pagectl.run(&["lease", "list"])?.lines().count(), 2, "a header and the lease");
    rig.stop_and_compare()
}
