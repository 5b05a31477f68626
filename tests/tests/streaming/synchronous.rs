//! What we report, as the primary sees it and as commits that wait for it feel it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use pageserver::wal::WalLog;
use postgres_ffi::{Lsn, PgVersion};
use tests::{Postgres, TestDir, wait_until};

use super::follower::{Follower, LIMIT, Load, flush_lsn, main_versions};

#[test]
fn the_primary_sees_write_flush_and_apply_advance() -> Result<()> {
    for version in main_versions() {
        let dir = TestDir::new("sync-positions")?;
        let server = Postgres::builder(version).start(&dir)?;
        let follower = Follower::start(&dir, &server, &server.conninfo())?;
        follower.catch_up(&server)?;
        server.execute("CREATE TABLE some_rows AS SELECT generate_series(1, 1000)")?;
        let lsn = flush_lsn(&server)?;
        let sql = "SELECT least(write_lsn, flush_lsn, replay_lsn) FROM pg_stat_replication WHERE application_name = 'pageserver'";
        wait_until("the positions", LIMIT, || Ok(server.query_text(sql)?.parse::<Lsn>()? >= lsn))?;
        let slot = "SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'follower' AND active";
        wait_until("the slot's position", LIMIT, || Ok(server.query_text(slot)?.parse::<Lsn>()? >= lsn))?;

        // A sink that stands still: durable goes on, readable does not.
        follower.seen.held.store(true, Ordering::SeqCst);
        server.execute("CREATE TABLE more_rows AS SELECT generate_series(1, 1000)")?;
        let lsn = flush_lsn(&server)?;
        let flushed =
            "SELECT count(*) FROM pg_stat_replication WHERE write_lsn > replay_lsn AND flush_lsn > replay_lsn";
        wait_until("flush ahead of replay", LIMIT, || Ok(server.query_text(flushed)? == "1"))?;
        let replayed = "SELECT replay_lsn FROM pg_stat_replication";
        assert!(server.query_text(replayed)?.parse::<Lsn>()? < lsn);
        follower.seen.held.store(false, Ordering::SeqCst);
        follower.catch_up(&server)?;
    }
    Ok(())
}

#[test]
fn a_commit_waits_for_us_and_what_was_acknowledged_is_durable_here() -> Result<()> {
    let dir = TestDir::new("sync-commit")?;
    let mut server = Postgres::builder(PgVersion::V15).setting("synchronous_standby_names", "pageserver").init(&dir)?;
    server.start()?;
    server.execute("SET synchronous_commit = local; CREATE TABLE acknowledged (n int)")?;
    let mut follower = Follower::prepare(&dir, &server, &server.conninfo())?;

    // Nobody to wait for: the commit does not come back.
    let mut waiting = server.connect()?;
    let done = std::thread::spawn(move || waiting.batch_execute("INSERT INTO acknowledged VALUES (0)").is_ok());
    std::thread::sleep(Duration::from_millis(500));
    assert!(!done.is_finished());
    follower.resume(follower.start_lsn)?;
    assert!(done.join().expect("the session panicked"));

    // Both die; whatever was acknowledged lies before the end of our files.
    let mut session = server.connect()?;
    let mut acknowledged_lsn = Lsn::ZERO;
    for n in 1..300 {
        session.execute("INSERT INTO acknowledged VALUES ($1)", &[&n])?;
        acknowledged_lsn = server.query_text("SELECT pg_current_wal_flush_lsn()")?.parse()?;
        if n == 299 {
            server.kill()?;
        }
    }
    follower.stop()?;
    let end_lsn = WalLog::open(follower.config.layout.clone(), Lsn::ZERO)?.expect("no WAL").written_lsn();
    assert!(acknowledged_lsn <= end_lsn, "{acknowledged_lsn} was acknowledged, our WAL ends at {end_lsn}");
    assert!(follower.seen.last_record_lsn() <= end_lsn);
    Ok(())
}

#[test]
fn remote_apply_waits_until_the_sink_has_it() -> Result<()> {
    let dir = TestDir::new("sync-apply")?;
    let builder = Postgres::builder(PgVersion::V15).setting("synchronous_standby_names", "ANY 1 (pageserver, another)");
    let server = builder.setting("synchronous_commit", "local").start(&dir)?;
    let follower = Follower::start(&dir, &server, &server.conninfo())?;
    Load::init(&server)?;
    follower.catch_up(&server)?;
    let mut session = server.connect()?;
    session.batch_execute("SET synchronous_commit = remote_apply")?;
    for n in 0..50 {
        session.execute("INSERT INTO pgbench_history (tid) VALUES ($1)", &[&n])?;
        // The commit record of this transaction is before this position and it was applied when the commit came back.
        assert!(follower.seen.last_record_lsn() > Lsn::ZERO);
    }
    let lsn: Lsn = server.query_text("SELECT replay_lsn FROM pg_stat_replication")?.parse()?;
    assert!(lsn <= follower.seen.last_record_lsn());
    follower.seen.held.store(true, Ordering::SeqCst);
    let done =
        std::thread::spawn(move || session.execute("INSERT INTO pgbench_history (tid) VALUES (51)", &[]).is_ok());
    std::thread::sleep(Duration::from_millis(700));
    assert!(!done.is_finished(), "a commit came back that the sink does not have");
    follower.seen.held.store(false, Ordering::SeqCst);
    assert!(done.join().expect("the session panicked"));
    Ok(())
}
