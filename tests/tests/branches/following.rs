//! Who follows whom: clones of branches, one after the other and two at once, resets, slots.

use anyhow::Result;
use postgres_ffi::{Lsn, PgVersion};
use tests::{Compute, Computes, wait_until};

use super::rig::{LIMIT, Rig};

/// Waits until the branch has all WAL of the compute.
fn catch_up(rig: &Rig, branch: &str, compute: &Compute) -> Result<Lsn> {
    compute.execute("SELECT pg_logical_emit_message(true, 'test', 'flush')")?;
    let lsn: Lsn = compute.query_text("SELECT pg_current_wal_flush_lsn()")?.parse()?;
    wait_until("the branch to catch up", LIMIT, || Ok(rig.lsn_of(branch, "last_record_lsn")? >= lsn))?;
    Ok(lsn)
}

fn slots(compute: &Compute) -> Result<String> {
    compute.query_text("SELECT count(*) FROM pg_replication_slots")
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
    let computes = Computes::new(&rig.server)?;
    let one = computes.create("one", "dev", &["--asynchronous", "--no-sync"])?;
    let (_, notices) = rig.change("TIMELINE UNFOLLOW dev")?;
    assert!(notices[0].contains("dropped"), "{notices:?}");
    assert_eq!(slots(&one)?, "0");
    assert_eq!(rig.server.timeline("dev", "receiver")?, "");
    rig.change("BRANCH RESET dev")?;
    assert_eq!(rig.lsn_of("dev", "last_record_lsn")? >= branch_lsn, true);
    rig.change(&format!("BRANCH RESET dev AT '{branch_lsn}'"))?;

    // Two clones of one place; the page server follows one, then the other, as long as neither has written to the branch.
    let two = computes.create("two", "dev", &["--asynchronous", "--no-sync"])?;
    two.execute("INSERT INTO t VALUES (2)")?;
    let two_lsn = catch_up(&rig, "dev", &two)?;
    assert!(rig.server.timeline("dev", "receiver")? == "streaming");
    one.execute("INSERT INTO t VALUES (1)")?;
    let conninfo = one.conninfo().replace('\'', "''");
    let (row, notices) = rig.change(&format!("TIMELINE FOLLOW dev FROM '{conninfo}'"))?;
    assert_eq!(row[0], "dev");
    assert!(notices[0].contains("stays"), "{notices:?}");
    wait_until("the refusal", LIMIT, || Ok(rig.server.timeline("dev", "receiver")? == "diverged"))?;
    let error = rig.server.timeline("dev", "last_error")?;
    assert!(error.contains("timeline"), "{error}");
    assert!(rig.lsn_of("dev", "last_record_lsn")? >= two_lsn, "nothing of the other clone came in, nothing went");

    // Thrown away and begun anew, the other clone is as good as the first.
    rig.change(&format!("BRANCH RESET dev AT '{branch_lsn}'"))?;
    assert_eq!(rig.lsn_of("dev", "last_record_lsn")?, branch_lsn);
    rig.change(&format!("TIMELINE FOLLOW dev FROM '{conninfo}'"))?;
    let one_lsn = catch_up(&rig, "dev", &one)?;
    rig.server.kill()?;
    rig.server.start()?;
    catch_up(&rig, "dev", &one)?;
    let check = computes.create("check", "dev", &["--lsn", &one_lsn.to_string(), "--no-sync"])?;
    assert_eq!(check.query_text("SELECT sum(n) FROM t")?, "2", "the rows of the ancestor and of the first clone");
    let (_, notices) = rig.change("TIMELINE UNFOLLOW check")?;
    assert!(notices[0].contains("dropped"), "{notices:?}");
    Ok(())
}

#[test]
fn a_slot_at_a_primary_that_is_gone_is_told() -> Result<()> {
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
    rig.check_same("later", "main", last)
}
