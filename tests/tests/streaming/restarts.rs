//! The primary, the connection, the receiver: each ends and comes back.

use std::time::Duration;

use anyhow::{Context, Result};
use pageserver::wal::WalLog;
use pageserver::wal_receiver::ReceiverState;
use postgres_ffi::{Lsn, PgVersion};
use tests::{CutProxy, Postgres, Stop, TestDir, wait_until};

use super::follower::{Follower, LIMIT, Load, flush_lsn, main_versions};

/// A stop that waits for nobody: far below every timeout.
const PROMPT: Duration = Duration::from_secs(20);

#[test]
fn files_equal_the_servers_under_load() -> Result<()> {
    for version in PgVersion::ALL.into_iter().filter(|version| Postgres::is_installed(*version)) {
        let dir = TestDir::new("stream-load")?;
        // Small segments, so that there are many ends of segments.
        let server = Postgres::builder(version).wal_segment_mb(1).start(&dir)?;
        let follower = Follower::start(&dir, &server, &server.conninfo())?;
        Load::init(&server)?;
        let load = Load::start(&server.conninfo(), 4);
        load.wait_for(300)?;
        server.execute("SELECT pg_switch_wal(); CHECKPOINT")?;
        load.wait_for(100)?;
        load.stop();
        let end_lsn = follower.catch_up(&server)?;
        let compared = follower.compare(&server, follower.start_lsn, end_lsn)?;
        assert!(compared > 10 << 20, "{version}: only {compared} bytes");
        assert!(follower.seen.records.load(std::sync::atomic::Ordering::SeqCst) > 10_000);
    }
    Ok(())
}

#[test]
fn restarts_of_the_primary_are_survived() -> Result<()> {
    for version in main_versions() {
        let dir = TestDir::new("stream-restart")?;
        let mut server = Postgres::builder(version).wal_segment_mb(1).start(&dir)?;
        Load::init(&server)?;
        let mut follower = Follower::start(&dir, &server, &server.conninfo())?;
        let load = Load::start(&server.conninfo(), 4);
        for round in 0..4 {
            load.wait_for(100)?;
            match round % 2 {
                // A clean stop waits for us: it hangs if we do not report the last record as flushed.
                0 => server.restart(Stop::Fast)?,
                _ => {
                    server.kill()?;
                    server.start()?;
                }
            }
        }
        load.wait_for(100)?;
        load.stop();
        let end_lsn = follower.catch_up(&server)?;
        assert!(follower.compare(&server, follower.start_lsn, end_lsn)? > 0);
        assert!(follower.status()?.reconnect_count >= 4);
        assert!(follower.stop()? < PROMPT);
    }
    Ok(())
}

#[test]
fn connections_cut_in_mid_record_lose_and_repeat_nothing() -> Result<()> {
    let dir = TestDir::new("stream-cut")?;
    let server = Postgres::builder(PgVersion::V15).wal_segment_mb(1).start(&dir)?;
    Load::init(&server)?;
    let proxy = CutProxy::start(server.port())?;
    let follower = Follower::start(&dir, &server, &server.conninfo_through(proxy.port()))?;
    let load = Load::start(&server.conninfo(), 4);
    for round in 0..15 {
        // Odd numbers: most places are in the middle of a record, many in the middle of its header.
        proxy.cut_after(20_001 + round * 7_919);
        wait_until("the cut", LIMIT, || Ok(proxy.cuts() > round))?;
    }
    load.stop();
    let end_lsn = follower.catch_up(&server)?;
    assert!(follower.compare(&server, follower.start_lsn, end_lsn)? > 0);
    assert!(follower.status()?.reconnect_count >= 15);
    Ok(())
}

#[test]
fn our_own_restart_goes_on_from_files_and_slot() -> Result<()> {
    let dir = TestDir::new("stream-own")?;
    // Without the slot the primary would keep nothing.
    let builder = Postgres::builder(PgVersion::V15).wal_segment_mb(1).setting("wal_keep_size", "0");
    let server = builder.setting("max_wal_size", "4MB").setting("min_wal_size", "2MB").start(&dir)?;
    let mut follower = Follower::start(&dir, &server, &server.conninfo())?;
    Load::init(&server)?;
    let middle_lsn = follower.catch_up(&server)?;
    let load = Load::start(&server.conninfo(), 4);
    load.wait_for(100)?;
    follower.stop()?;
    let stopped_lsn = WalLog::open(follower.config.layout.clone(), Lsn::ZERO)?.context("no WAL")?.written_lsn();
    assert!(middle_lsn <= stopped_lsn);
    load.wait_for(300)?;
    server.execute("CHECKPOINT; SELECT pg_switch_wal(); CHECKPOINT")?;
    // The sink comes back with less than what our files have: it gets that from them, though the primary has removed it.
    follower.resume(middle_lsn)?;
    load.wait_for(100)?;
    load.stop();
    let end_lsn = follower.catch_up(&server)?;
    assert!(follower.compare(&server, stopped_lsn, end_lsn)? > 0);

    // Sink at the end, and a tail that a crash has torn.
    follower.stop()?;
    tear_the_tail(&follower)?;
    follower.resume(end_lsn)?;
    server.execute("CREATE TABLE after_the_tear AS SELECT generate_series(1, 1000)")?;
    let last_lsn = follower.catch_up(&server)?;
    follower.compare(&server, stopped_lsn, last_lsn)?;
    Ok(())
}

#[test]
fn old_files_go_as_the_sink_allows_and_damage_is_named_with_its_place() -> Result<()> {
    let dir = TestDir::new("stream-old")?;
    let server = Postgres::builder(PgVersion::V15).wal_segment_mb(1).start(&dir)?;
    let mut follower = Follower::start(&dir, &server, &server.conninfo())?;
    let fill = || server.execute("SELECT pg_logical_emit_message(false, 'test', repeat('x', 3000000))");
    fill()?;
    let keep_lsn = follower.catch_up(&server)?;
    let segment_count = || -> Result<usize> { Ok(std::fs::read_dir(&follower.config.layout.directory)?.count()) };
    let before = segment_count()?;
    follower.seen.keep_lsn.store(keep_lsn.as_u64(), std::sync::atomic::Ordering::SeqCst);
    fill()?;
    let end_lsn = follower.catch_up(&server)?;
    wait_until("the removal", LIMIT, || Ok(segment_count()? < before + 3))?;
    let reader = pageserver::wal::WalReader::new(follower.config.layout.clone());
    let first_lsn = reader.first_lsn()?.context("no file")?;
    assert_eq!(first_lsn, follower.config.layout.segment_start(keep_lsn));

    // A byte flips in a record that the sink has to read again.
    follower.stop()?;
    let layout = follower.config.layout.clone();
    let segment_bytes = u64::from(layout.segment_bytes);
    let name = pageserver::wal::names::segment_file_name(1, keep_lsn.segment_no(segment_bytes), layout.segment_bytes);
    let file = std::fs::OpenOptions::new().write(true).open(layout.directory.join(&name))?;
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xFF; 4], keep_lsn.segment_offset(segment_bytes) + 40)?;
    follower.resume(keep_lsn)?;
    let status = follower.wait_for_state("the failure", |state| matches!(state, ReceiverState::Failed { .. }))?;
    let error = status.last_error.context("no error")?;
    let offset = format!("offset {}", keep_lsn.segment_offset(segment_bytes));
    assert!(error.contains(&name) && error.contains(&offset), "{error}");
    assert!(keep_lsn < end_lsn);
    Ok(())
}

/// Rubbish behind the last record, as an fsync that never happened leaves it.
fn tear_the_tail(follower: &Follower) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let layout = &follower.config.layout;
    let end_lsn = WalLog::open(layout.clone(), Lsn::ZERO)?.context("no WAL")?.written_lsn();
    let segment_bytes = u64::from(layout.segment_bytes);
    let name = pageserver::wal::names::segment_file_name(1, end_lsn.segment_no(segment_bytes), layout.segment_bytes);
    let file = std::fs::OpenOptions::new().write(true).open(layout.directory.join(name))?;
    // Looks like a record of 100 bytes, of which the rest is missing.
    file.write_all_at(&[100, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7], end_lsn.segment_offset(segment_bytes))?;
    Ok(())
}

#[test]
fn wal_that_is_gone_and_other_clusters_are_named() -> Result<()> {
    let dir = TestDir::new("stream-gone")?;
    let builder = Postgres::builder(PgVersion::V15).wal_segment_mb(1).setting("wal_keep_size", "0");
    let server = builder.setting("max_wal_size", "2MB").setting("min_wal_size", "2MB").start(&dir)?;
    let mut follower = Follower::prepare(&dir, &server, &server.conninfo())?;
    server.execute("SELECT pg_drop_replication_slot('follower')")?;
    for _ in 0..10 {
        server
            .execute("SELECT pg_logical_emit_message(false, 'test', repeat('x', 1000000)); SELECT pg_switch_wal()")?;
    }
    server.execute("CHECKPOINT")?;
    server.execute("SELECT pg_switch_wal(); CHECKPOINT")?;
    follower.resume(follower.start_lsn)?;
    let status =
        follower.wait_for_state("the missing WAL", |state| matches!(state, ReceiverState::WalRemoved { .. }))?;
    let ReceiverState::WalRemoved { next_lsn, reason } = status.state else { unreachable!() };
    assert_eq!(next_lsn, follower.start_lsn);
    assert!(reason.contains("removed"), "{reason}");
    assert!(follower.stop()? < PROMPT);

    let other = Postgres::builder(PgVersion::V15).start(&TestDir::new("stream-other")?)?;
    let stranger_dir = TestDir::new("stream-stranger")?;
    let mut stranger = Follower::prepare(&stranger_dir, &server, &other.conninfo())?;
    stranger.resume(stranger.start_lsn)?;
    let status = stranger.wait_for_state("the refusal", |state| matches!(state, ReceiverState::Waiting))?;
    assert!(status.last_error.context("no error")?.contains("of another cluster"));
    Ok(())
}

#[test]
fn a_stop_is_prompt_wherever_the_receiver_is() -> Result<()> {
    let dir = TestDir::new("stream-stop")?;
    let server = Postgres::builder(PgVersion::V15).start(&dir)?;
    let mut follower = Follower::prepare(&dir, &server, &server.conninfo())?;
    follower.config.receive_timeout = Duration::from_secs(120);
    // Nobody answers there: a listener whose queue nobody takes from.
    let silent = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = silent.local_addr()?.port();
    follower.config.conninfo = format!("host=127.0.0.1 port={port} user=postgres connect_timeout=120").parse()?;
    follower.resume(follower.start_lsn)?;
    follower.wait_for_state("the attempt", |state| matches!(state, ReceiverState::Connecting))?;
    assert!(follower.stop()? < PROMPT);

    follower.config.conninfo = "host=127.0.0.1 port=1 user=postgres".parse()?;
    follower.resume(follower.start_lsn)?;
    follower.wait_for_state("the pause", |state| matches!(state, ReceiverState::Waiting))?;
    assert!(follower.stop()? < PROMPT);

    follower.config.conninfo = server.conninfo().parse()?;
    follower.resume(follower.start_lsn)?;
    follower.wait_for_state("streaming", |state| matches!(state, ReceiverState::Streaming))?;
    assert!(follower.stop()? < PROMPT);
    Ok(())
}

#[test]
fn a_slow_sink_shows_as_lag_and_not_as_memory() -> Result<()> {
    let dir = TestDir::new("stream-slow")?;
    let server = Postgres::builder(PgVersion::V15).start(&dir)?;
    let follower = Follower::start(&dir, &server, &server.conninfo())?;
    follower.catch_up(&server)?;
    follower.seen.held.store(true, std::sync::atomic::Ordering::SeqCst);
    let before = follower.status()?.received_bytes;
    for _ in 0..120 {
        server.execute("SELECT pg_logical_emit_message(false, 'test', repeat('x', 1000000))")?;
    }
    let lsn = flush_lsn(&server)?;
    let lag = "SELECT (pg_current_wal_lsn() - sent_lsn)::text FROM pg_stat_replication";
    std::thread::sleep(Duration::from_secs(2));
    let received = follower.status()?.received_bytes - before;
    assert!(received < 40 << 20, "{received} bytes taken in although nobody ingests them");
    let unsent: u64 = server.query_text(lag)?.parse()?;
    assert!(unsent > 50 << 20, "{unsent}");
    follower.seen.held.store(false, std::sync::atomic::Ordering::SeqCst);
    follower.catch_up(&server)?;
    assert!(follower.seen.last_record_lsn() >= lsn);
    follower.compare(&server, follower.start_lsn, lsn)?;
    assert!(Lsn::ZERO < lsn);
    Ok(())
}
