//! Who follows whom: clones of branches, one after the other and two at once, resets, slots.

use std::fs::File;
use std::time::Duration;

use anyhow::{Context, Result};
use postgres_ffi::{Lsn, PgVersion};
use tests::backup_server::unpacked;
use tests::standby::start_standby;
use tests::{Postgres, Stop, wait_until};

use super::rig::{LIMIT, Rig};

/// A stock server on a base backup of `branch` at its last record. The page server does not follow it.
fn clone_of(rig: &Rig, branch: &str, name: &str) -> Result<Postgres> {
    let path = rig.dir.path().join(format!("{name}.tar"));
    let output = path.to_str().context("a path in UTF-8")?;
    rig.server.pagectl()?.run(&["basebackup", branch, "--output", output])?;
    let mut clone = unpacked(&rig.dir, rig.primary.version(), File::open(&path)?)?;
    clone.start()?;
    Ok(clone)
}

/// The page server follows `clone` from now on; what it tells.
fn follow(rig: &Rig, branch: &str, clone: &Postgres) -> Result<Vec<String>> {
    let (row, notices) =
        rig.change(&format!("TIMELINE FOLLOW {branch} FROM '{}'", clone.conninfo().replace('\'', "''")))?;
    assert_eq!(row[0], branch);
    Ok(notices)
}

/// Waits until the branch has all WAL of the clone.
fn catch_up(rig: &Rig, branch: &str, clone: &Postgres) -> Result<Lsn> {
    clone.execute("SELECT txid_current(); SELECT pg_logical_emit_message(true, 'test', 'flush')")?;
    let lsn: Lsn = clone.query_text("SELECT pg_current_wal_flush_lsn()")?.parse()?;
    let caught_up = wait_until("the branch to catch up", LIMIT, || Ok(rig.lsn_of(branch, "last_record_lsn")? >= lsn));
    caught_up.with_context(|| format!("{:?}", rig.server.query(&format!("SHOW TIMELINE {branch}"))))?;
    Ok(lsn)
}

fn slots(clone: &Postgres) -> Result<String> {
    clone.query_text("SELECT count(*) FROM pg_replication_slots")
}

#[test]
fn the_first_clone_that_writes_is_the_branch_and_a_reset_begins_anew() -> Result<()> {
    let mut rig = Rig::start("branch-follow", PgVersion::V15)?;
    for text in ["diverged", "its history is not ours", "does not descend"] {
        rig.server.expect_in_log(text);
    }
    rig.primary.execute("CREATE TABLE t AS SELECT 1 AS n")?;
    rig.catch_up()?;
    rig.change("BRANCH CREATE dev FROM main")?;
    let branch_lsn = rig.lsn_of("dev", "last_record_lsn")?;
    let one = clone_of(&rig, "dev", "one")?;
    let two = clone_of(&rig, "dev", "two")?;

    // Two clones of one place: the first that is followed is the branch.
    assert!(follow(&rig, "dev", &two)?.is_empty());
    two.execute("INSERT INTO t VALUES (2)")?;
    let two_lsn = catch_up(&rig, "dev", &two)?;
    assert_eq!((rig.server.timeline("dev", "receiver")?.as_str(), slots(&two)?.as_str()), ("streaming", "1"));
    one.execute("INSERT INTO t VALUES (4)")?;
    let notices = follow(&rig, "dev", &one)?;
    assert!(notices[0].contains("stays"), "{notices:?}");
    wait_until("the refusal", LIMIT, || Ok(rig.server.timeline("dev", "receiver")? == "diverged"))?;
    let error = rig.server.timeline("dev", "last_error")?;
    assert!(error.contains("timeline 4098") || error.contains("timeline 4097"), "{error}");
    assert!(rig.lsn_of("dev", "last_record_lsn")? >= two_lsn, "nothing came of the other clone, nothing went");
    // Back to the right one, which has its slot still.
    follow(&rig, "dev", &two)?;
    two.execute("INSERT INTO t VALUES (8)")?;
    let two_lsn = catch_up(&rig, "dev", &two)?;
    let third = clone_of(&rig, "dev", "third")?;
    assert_eq!(third.query_text("SELECT sum(n) FROM t")?, "11");

    // Thrown away and begun anew, the other clone is as good as the first.
    let (_, notices) = rig.change(&format!("BRANCH RESET dev AT '{branch_lsn}'"))?;
    assert!(notices.iter().any(|notice| notice.contains("dropped")), "{notices:?}");
    assert_eq!(slots(&two)?, "0");
    assert_eq!(rig.lsn_of("dev", "last_record_lsn")?, branch_lsn);
    assert_eq!(rig.server.timeline("dev", "receiver")?, "");
    let (sqlstate, _) = rig.refusal(&format!("RELATION LIST dev AT '{two_lsn}'"))?;
    assert_eq!(sqlstate, "55000");
    follow(&rig, "dev", &one)?;
    catch_up(&rig, "dev", &one)?;
    rig.server.kill()?;
    rig.server.start()?;
    one.execute("INSERT INTO t VALUES (16)")?;
    catch_up(&rig, "dev", &one)?;
    let fourth = clone_of(&rig, "dev", "fourth")?;
    assert_eq!(fourth.query_text("SELECT sum(n) FROM t")?, "21");

    // A restart of the page server between the base backup and the first record; then none follows any more.
    let (_, notices) = rig.change("TIMELINE UNFOLLOW dev KEEP SLOT")?;
    assert!(notices.is_empty(), "{notices:?}");
    rig.server.kill()?;
    rig.server.start()?;
    assert_eq!((slots(&one)?.as_str(), rig.server.timeline("dev", "receiver")?.as_str()), ("1", ""));
    follow(&rig, "dev", &one)?;
    catch_up(&rig, "dev", &one)?;
    let (_, notices) = rig.change("TIMELINE UNFOLLOW dev")?;
    assert!(notices[0].contains("dropped"), "{notices:?}");
    assert_eq!((slots(&one)?.as_str(), rig.server.timeline("dev", "receiver")?.as_str()), ("0", ""));
    let (_, notices) = rig.change("TIMELINE UNFOLLOW dev")?;
    assert!(notices[0].contains("nobody"), "{notices:?}");
    Ok(())
}

#[test]
fn a_branch_of_a_branch_of_a_promoted_primary_knows_its_history() -> Result<()> {
    let mut rig = Rig::start("branch-history", PgVersion::V15)?;
    rig.catch_up()?;
    // The clone of a clone of a clone: three switches in the newest history.
    let mut servers = Vec::new();
    let mut from = "main".to_owned();
    for level in 1..=3 {
        let branch = format!("level{level}");
        rig.change(&format!("BRANCH CREATE {branch} FROM {from}"))?;
        let clone = clone_of(&rig, &branch, &branch)?;
        follow(&rig, &branch, &clone)?;
        clone.execute(&format!("CREATE TABLE t{level} AS SELECT generate_series(1, {level}000) AS n"))?;
        catch_up(&rig, &branch, &clone)?;
        servers.push(clone);
        from = branch;
    }
    rig.server.kill()?;
    rig.server.start()?;
    for (index, clone) in servers.iter().enumerate() {
        let timeline_id: u32 = clone.query_text("SELECT timeline_id FROM pg_control_checkpoint()")?.parse()?;
        let name = format!("pg_wal/{timeline_id:08X}.history");
        let history = std::fs::read_to_string(clone.data_dir().join(name))?;
        assert_eq!(history.lines().count(), index + 1, "{history}");
        clone.execute(&format!("INSERT INTO t{} SELECT 1", index + 1))?;
        catch_up(&rig, &format!("level{}", index + 1), clone)?;
    }
    // Detached, the last one goes on, and so does a clone of it.
    rig.change("BRANCH DETACH level3")?;
    for gone in ["level2", "level1", "main"] {
        rig.change(&format!("TIMELINE DELETE {gone}"))?;
    }
    servers[2].execute("INSERT INTO t3 SELECT 1")?;
    catch_up(&rig, "level3", &servers[2])?;
    servers[2].stop(Stop::Fast)?;
    let last = clone_of(&rig, "level3", "last")?;
    assert_eq!(last.query_text("SELECT count(*) FROM t3")?, "3002");
    follow(&rig, "level3", &last)?;
    last.execute("INSERT INTO t3 SELECT 1")?;
    catch_up(&rig, "level3", &last)?;
    Ok(())
}

#[test]
fn wal_files_that_are_lost_after_a_promotion_come_again() -> Result<()> {
    let mut rig = Rig::start("branch-lost-wal", PgVersion::V15)?;
    rig.catch_up()?;
    let mut promoted = start_standby(&rig.primary)?;
    let lsn = rig.catch_up()?;
    wait_until("the standby", LIMIT, || Ok(promoted.current_lsn()? >= lsn))?;
    rig.primary.stop(Stop::Fast)?;
    promoted.promote()?;
    follow(&rig, "main", &promoted)?;
    promoted.execute("CREATE TABLE after AS SELECT generate_series(1, 1000) AS n")?;
    catch_up(&rig, "main", &promoted)?;
    rig.server.stop()?; // Everything is in the store.
    for entry in std::fs::read_dir(rig.server.data_dir().join("timelines"))? {
        std::fs::remove_dir_all(entry?.path().join("wal"))?;
    }
    rig.server.start()?;
    promoted.execute("INSERT INTO after SELECT generate_series(1, 1000)")?;
    catch_up(&rig, "main", &promoted)?;
    let clone = clone_of(&rig, "main", "clone")?;
    assert_eq!(clone.query_text("SELECT count(*) FROM after")?, "2000");
    Ok(())
}

#[test]
fn a_slot_at_a_primary_that_is_gone_is_told_and_goes_when_the_primary_is_back() -> Result<()> {
    let mut rig = Rig::start("branch-slots", PgVersion::V15)?;
    rig.catch_up()?;
    rig.change("BRANCH CREATE dev FROM main")?;
    rig.primary.kill()?;
    let (_, notices) = rig.change("TIMELINE UNFOLLOW main")?;
    assert!(notices[0].contains("stays at") && notices[0].contains("pageserver_"), "{notices:?}");
    // All that it was told is here, and can be branched from.
    let last = rig.lsn_of("main", "last_record_lsn")?;
    rig.server.kill()?;
    rig.server.start()?;
    assert_eq!(rig.lsn_of("main", "last_record_lsn")?, last);
    rig.change("BRANCH CREATE later FROM main")?;
    rig.check_same("later", "main", last)?;
    rig.primary.start()?;
    let slots = "SELECT count(*) FROM pg_replication_slots";
    wait_until("the slot to go", LIMIT, || Ok(rig.primary.query_text(slots)? == "0"))?;
    let list = rig.server.data_dir().join("slots.json");
    wait_until("the list to be empty", LIMIT, || Ok(!std::fs::read_to_string(&list)?.contains("pageserver_")))?;
    // One that is followed again is not dropped.
    follow(&rig, "main", &rig.primary)?;
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(rig.primary.query_text(slots)?, "1");
    Ok(())
}
