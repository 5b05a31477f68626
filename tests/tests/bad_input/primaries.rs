//! The primary is not what it was: another cluster answers, the connection ends at a bad moment, or the WAL that comes next is gone.

use std::process::Command;

use anyhow::{Result, ensure};
use postgres_ffi::PgVersion;
use tests::{CutProxy, PageServer, Postgres, Stop, TestDir, wait_until};

use super::rig::{LIMIT, Rig, small_primary};

#[test]
fn nothing_of_another_cluster_is_taken() -> Result<()> {
    let dir = TestDir::new("other-cluster")?;
    let primary = small_primary().start(&dir)?;
    let other = small_primary().start(&dir)?;
    let proxy = CutProxy::start(primary.port())?;
    let mut pageserver = PageServer::builder().start(&dir)?;
    pageserver.expect_in_log("connection to the primary");
    pageserver.import("main", &primary.conninfo_through(proxy.port()))?;
    let mut rig = Rig { pageserver, primary, dir };
    rig.primary.execute("CREATE TABLE t AS SELECT i, md5(i::text) AS v FROM generate_series(1, 5000) i")?;
    let before_lsn = rig.catch_up()?;
    let (table, _) = rig.table()?;
    let before = rig.page(&format!("{table}/main/7"), before_lsn)?;

    // Its WAL is further on than ours, so that positions alone would not tell.
    other.execute("CREATE TABLE t AS SELECT i, md5(i::text) AS v FROM generate_series(1, 50000) i")?;
    proxy.set_upstream(other.port());
    proxy.cut_now();
    rig.wait_for("last_error", "the server is of another cluster")?;
    assert!(rig.last_record_lsn()? >= before_lsn);
    assert!(rig.last_record_lsn()? < other.current_lsn()?);
    assert_eq!(rig.page(&format!("{table}/main/7"), before_lsn)?, before);

    // The right one is back.
    proxy.set_upstream(rig.primary.port());
    rig.pageserver.stop()?;
    rig.pageserver.start()?;
    rig.write()?;
    rig.stop_and_compare()
}

#[test]
fn checksums_that_are_switched_beside_the_wal_are_noticed() -> Result<()> {
    let mut rig = Rig::start("checksums-switched", small_primary(), PageServer::builder())?;
    let switch = |rig: &Rig, how: &str| -> Result<()> {
        let mut pg_checksums = Command::new(rig.primary.bin_dir().join("pg_checksums"));
        let done = pg_checksums.arg(how).arg("-D").arg(rig.primary.data_dir()).output()?;
        ensure!(done.status.success(), "{done:?}");
        Ok(())
    };
    rig.primary.stop(Stop::Fast)?;
    switch(&rig, "--disable")?;
    rig.primary.start()?;
    rig.wait_for("last_error", "data checksums of the primary were switched off")?;
    rig.primary.execute("SELECT pg_logical_emit_message(false, 'test', 'of no page')")?;
    let primary_lsn = rig.primary.current_lsn()?;
    assert!(rig.last_record_lsn()? < primary_lsn, "nothing of it came");
    // Switched back before any page was written, it goes on.
    rig.primary.stop(Stop::Fast)?;
    switch(&rig, "--enable")?;
    rig.primary.start()?;
    rig.pageserver.stop()?; // It would try again within half a minute.
    rig.pageserver.start()?;
    rig.write()?;
    rig.stop_and_compare()
}

/// `pg_switch_wal` leaves the rest of a segment unused, and the connection may end in that rest: the record ends with the segment for whoever reads
/// it, and before it for whoever counts bytes. The receiver once panicked there, and nothing came any more until a restart.
#[test]
fn a_connection_that_ends_behind_a_segment_switch_goes_on() -> Result<()> {
    let dir = TestDir::new("switch-cut")?;
    let primary = Postgres::builder(PgVersion::V17).start(&dir)?; // 16 MB segments.
    let proxy = CutProxy::start(primary.port())?;
    let mut pageserver = PageServer::builder().start(&dir)?;
    pageserver.expect_in_log("connection to the primary");
    pageserver.import("main", &primary.conninfo_through(proxy.port()))?;
    let mut rig = Rig { pageserver, primary, dir };
    rig.primary.execute("CREATE TABLE t AS SELECT i, md5(i::text) AS v FROM generate_series(1, 100) i")?;
    for (round, bytes) in [10_000, 1_000_000, 5_000_000, 9_000_001, 12_345_678].into_iter().enumerate() {
        rig.write()?;
        rig.catch_up()?;
        proxy.cut_after(bytes);
        rig.primary.execute("SELECT pg_switch_wal()")?;
        wait_until("the cut", LIMIT, || Ok(proxy.cuts() > round as u64))?;
        rig.write()?;
        rig.catch_up()?;
    }
    rig.stop_and_compare()
}

/// CREATE DATABASE by files takes pages of the template while it is ingested. A redo process that was killed just then once stopped the
/// timeline until a restart.
#[test]
fn ingest_waits_for_a_redo_process_that_cannot_start() -> Result<()> {
    let mut rig =
        Rig::start("no-redo", small_primary(), PageServer::builder().config("[redo]\nengine = \"postgres\"")?)?;
    for expected in ["redo process", "walredo"] {
        rig.pageserver.expect_in_log(expected);
    }
    let extensions = rig.dir.path().join("redo_extension");
    let elsewhere = rig.dir.path().join("elsewhere");
    std::fs::rename(&extensions, &elsewhere)?;
    rig.pageserver.kill_redo_process()?;
    rig.primary.connect()?.batch_execute("CREATE DATABASE copied TEMPLATE postgres STRATEGY file_copy")?;
    wait_until("the log to say so", LIMIT, || {
        Ok(std::fs::read_to_string(rig.pageserver.log_path())?.contains("ingest waits for a redo process"))
    })?;
    assert!(rig.last_record_lsn()? < rig.primary.current_lsn()?);
    assert_eq!(rig.pageserver.timeline("main", "state")?, "active");
    std::fs::rename(&elsewhere, &extensions)?;
    rig.stop_and_compare()
}

#[test]
fn wal_that_was_removed_is_named_and_reads_go_on() -> Result<()> {
    let primary = small_primary().setting("wal_keep_size", "0").setting("max_wal_size", "2MB");
    let mut rig = Rig::start("wal-gone", primary.setting("min_wal_size", "2MB"), PageServer::builder())?;
    let before_lsn = rig.catch_up()?;
    let (table, _) = rig.table()?;
    let before = rig.page(&format!("{table}/main/7"), before_lsn)?;
    rig.pageserver.stop()?;
    let active = "SELECT count(*) FROM pg_replication_slots WHERE active";
    wait_until("the primary to notice", LIMIT, || Ok(rig.primary.query_text(active)? == "0"))?;
    rig.primary.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")?;
    for _ in 0..5 {
        rig.write()?;
        rig.primary.execute("SELECT pg_switch_wal()")?;
    }
    rig.primary.execute("CHECKPOINT")?;
    rig.primary.execute("SELECT pg_switch_wal(); CHECKPOINT")?;

    rig.pageserver.start()?;
    rig.wait_for("receiver", "wal removed")?;
    rig.wait_for("last_error", "import it anew")?;
    assert_eq!(rig.page(&format!("{table}/main/7"), before_lsn)?, before);
    assert!(rig.last_record_lsn()? < rig.primary.current_lsn()?, "nothing was skipped");
    // As it says.
    rig.pageserver.import("anew", &rig.primary.conninfo())?;
    assert_eq!(rig.pageserver.timeline("anew", "state")?, "active");
    Ok(())
}
