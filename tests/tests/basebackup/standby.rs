//! Hot standbys from backups: consistent at the backup's LSN, then following the primary, then promoted.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use postgres_ffi::{Lsn, PgVersion};
use tests::{Postgres, Stop, backup_server, wait_until};

use super::clone::{self, check_start_log};
use super::primary::{self, Followed, backup};

const LIMIT: Duration = Duration::from_secs(120);

/// A standby from a backup as of `request_lsn`, not started.
fn standby_of(followed: &Followed, request_lsn: Option<Lsn>) -> Result<Postgres> {
    let archive = backup(followed, request_lsn, &["--standby"])?;
    let mut standby = backup_server::unpacked(&followed.dir, followed.primary.version(), archive)?;
    standby.set("primary_conninfo", &followed.primary.conninfo())?;
    Ok(standby)
}

/// Starts it, lets it catch up, compares it with the primary.
fn check_follows(followed: &Followed, standby: &mut Postgres, consistent_at: Lsn) -> Result<()> {
    standby.start()?;
    let log = standby.log()?;
    ensure!(log.contains(&format!("consistent recovery state reached at {consistent_at}")), "{consistent_at}: {log}");
    check_start_log(standby)?;
    primary::transactions(&followed.primary, 100, 5)?;
    followed.primary.execute("INSERT INTO marks VALUES ('after', '')")?;
    let goal: Lsn = followed.primary.query_text("SELECT pg_current_wal_flush_lsn()")?.parse()?;
    wait_until("the standby to follow", LIMIT, || Ok(standby.current_lsn()? >= goal))?;
    for sql in [
        "SELECT count(*) || ' ' || sum(abalance) FROM pgbench_accounts",
        "SELECT count(*) || ' ' || max(mark) FROM marks",
        "SELECT count(*) FROM far_away",
    ] {
        let (expect, found) = (followed.primary.query_text(sql)?, standby.query_text(sql)?);
        ensure!(expect == found, "{sql}: {found}, not {expect}");
    }
    check_start_log(standby)
}

fn check_version(version: PgVersion) -> Result<()> {
    let followed = Followed::start("standby", version, "wal.keep_mib = 1024")?;
    let primary = &followed.primary;
    followed.catch_up()?;
    match backup(&followed, None, &["--standby"]) {
        Ok(_) => bail!("the import's own checkpoint is no start for a standby"),
        Err(error) => ensure!(error.to_string().contains("first readable"), "{error}"),
    }
    primary.execute("BEGIN; INSERT INTO marks VALUES ('before', ''); PREPARE TRANSACTION 'before'")?;
    primary.execute("BEGIN; INSERT INTO marks VALUES ('ended', ''); PREPARE TRANSACTION 'ended'")?;
    primary.execute("CHECKPOINT")?;
    primary.execute("BEGIN; INSERT INTO marks VALUES ('behind', ''); PREPARE TRANSACTION 'behind'")?;
    primary.execute("COMMIT PREPARED 'ended'")?;
    primary.execute("CREATE TABLE gone AS SELECT generate_series(1, 1000) n")?;
    primary::transactions(primary, 200, 3)?;
    primary.execute("DROP TABLE gone; TRUNCATE locked; INSERT INTO locked SELECT generate_series(1, 500)")?;
    primary::multixacts(primary)?;
    let early = followed.catch_up()?;
    primary::transactions(primary, 200, 4)?;
    let late = followed.catch_up()?;

    let mut first = standby_of(&followed, Some(late))?;
    check_follows(&followed, &mut first, late)?;
    let mut second = standby_of(&followed, Some(early))?;
    check_follows(&followed, &mut second, early)?;

    second.promote()?;
    ensure!(second.query_text("SELECT count(*) FROM pg_prepared_xacts")? == "2");
    second.execute("COMMIT PREPARED 'before'; ")?;
    second.execute("COMMIT PREPARED 'behind'; ")?;
    clone::check_unlogged(&second)?;
    clone::check_writable(&second)?;
    clone::check_relations(&second)?;
    clone::check_crash(&mut second)?;
    first.stop(Stop::Fast)?;
    second.stop(Stop::Fast)
}

#[test]
fn standbys_follow_from_wherever_they_begin() {
    for version in tests::versions() {
        check_version(version).unwrap_or_else(|error| panic!("{version}: {error:?}"));
    }
}

/// Without the WAL since the last checkpoint there is no standby, and the answer says so.
#[test]
fn a_standby_needs_wal_since_the_last_checkpoint() {
    check_wal_gone().unwrap();
}

fn check_wal_gone() -> Result<()> {
    let dir = tests::TestDir::new("standby-wal-gone")?;
    let builder = Postgres::builder(PgVersion::V15).wal_segment_mb(1);
    let builder = builder.setting("checkpoint_timeout", "1h").setting("max_wal_size", "10GB");
    let followed = Followed::start_with(builder, dir, "wal.keep_mib = 0\nstore.flush_interval_seconds = 1")?;
    followed.primary.execute("CHECKPOINT")?;
    let before_lsn = followed.primary.current_lsn()?;
    let checkpoint_later = || -> Result<()> {
        followed.primary.execute("SELECT pg_logical_emit_message(false, 'p', repeat('x', 3000000))")?;
        followed.primary.execute("CHECKPOINT")
    };
    checkpoint_later()?;
    // What is older than the last checkpoint goes, whatever has been kept for it.
    super::positions::age_out(&followed, before_lsn)?;
    let redo: Lsn = followed.primary.query_text("SELECT redo_lsn FROM pg_control_checkpoint()")?.parse()?;
    let past_lsn = followed.primary.current_lsn()?;
    followed.catch_up()?;
    backup(&followed, Some(past_lsn), &["--standby"]).context("WAL back to the last checkpoint stays")?;
    // A lease keeps it as well, for as long as it lasts.
    let lease = followed.page_server.query(&format!("LEASE main AT '{past_lsn}' FOR 3600"))?.remove(0).remove(0);
    checkpoint_later()?;
    checkpoint_later()?;
    followed.catch_up()?;
    wait_until("the lease to count", LIMIT, || {
        followed.primary.execute("SELECT pg_switch_wal()")?;
        followed.catch_up()?;
        Ok(followed.page_server.timeline("main", "wal_needed_by")? == "a lease")
    })?;
    let oldest_lsn: Lsn = followed.page_server.timeline("main", "oldest_wal_lsn")?.parse()?;
    ensure!(oldest_lsn <= redo, "{oldest_lsn}");
    backup(&followed, Some(past_lsn), &["--standby"]).context("WAL back to the checkpoint before a lease stays")?;
    followed.page_server.query(&format!("LEASE END {lease}"))?;
    checkpoint_later()?;
    super::positions::age_out(&followed, redo)?;
    let needed_by = followed.page_server.timeline("main", "wal_needed_by")?;
    ensure!(needed_by != "a lease" && !needed_by.is_empty(), "{needed_by}");
    match backup(&followed, Some(past_lsn), &["--standby"]) {
        Ok(_) => bail!("a standby without its WAL"),
        Err(error) => ensure!(error.to_string().contains("wal.keep_mib"), "{error}"),
    }
    backup(&followed, Some(past_lsn), &[])?;
    backup(&followed, None, &["--standby"])?;
    Ok(())
}
