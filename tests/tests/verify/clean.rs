//! A sound server has nothing to complain about, whatever was done with it.

use anyhow::Result;
use tests::{PageServer, Stop};

use super::files::{assert_clean, verify};
use super::rig::{Rig, small_primary};

/// Small layers, so that much is in files, and long chains.
const CONFIG: &str = "page_cache_mib = 4\n[store]\nlayer_mib = 2\nflush_interval_seconds = 1\n[wal]\nkeep_mib = 8";

#[test]
fn a_busy_server_with_branches_and_leases_has_nothing_wrong() -> Result<()> {
    let mut rig = Rig::start("verify-clean", small_primary(), PageServer::builder().config(CONFIG)?)?;
    let pagectl = rig.pageserver.pagectl()?;
    for sql in [
        "CREATE TABLE u (i int PRIMARY KEY, v text) WITH (fillfactor = 50); CREATE INDEX ON u USING gin (to_tsvector('simple', v))",
        "INSERT INTO u SELECT i, md5(i::text) FROM generate_series(1, 20000) i",
        "UPDATE u SET v = md5(v) WHERE i % 3 = 0",
        "DELETE FROM u WHERE i > 10000",
        "VACUUM u",
        "CREATE TABLE gone AS SELECT * FROM u; DROP TABLE gone",
        "CREATE TABLE cut AS SELECT * FROM u; TRUNCATE cut; INSERT INTO cut SELECT * FROM u LIMIT 50",
        "CREATE DATABASE other; ",
        "BEGIN; LOCK TABLE t; SELECT * FROM t WHERE i < 5 FOR UPDATE; COMMIT",
    ] {
        rig.primary.execute(sql)?;
    }
    let branch_lsn = rig.catch_up()?;
    pagectl.run(&["branch", "create", "old", "--from", "main", "--lsn", &branch_lsn.to_string()])?;
    pagectl.run(&["branch", "create", "free", "--from", "main", "--lsn", &branch_lsn.to_string()])?;
    rig.write()?;
    let leased_lsn = rig.catch_up()?;
    pagectl.run(&["lease", "create", "main", "--lsn", &leased_lsn.to_string()])?;
    for _ in 0..4 {
        rig.write()?;
    }
    pagectl.run(&["branch", "detach", "free"])?;
    rig.catch_up()?;
    assert_clean(&rig.pageserver);

    // Slower, one timeline, as JSON.
    let outcome = pagectl.outcome(&["verify", "--timeline", "main", "--rate", "1000", "--json"])?;
    assert_eq!((outcome.exit_code, outcome.stdout.as_str()), (0, ""), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("found 0") && !outcome.stderr.contains("and 0 versions"), "{}", outcome.stderr);
    let outcome = pagectl.outcome(&["verify", "--timeline", "nowhere"])?;
    assert_eq!(outcome.exit_code, 2, "{}", outcome.stderr);

    // Everything in files, and again after a kill, when much comes from WAL.
    rig.write()?;
    rig.catch_up()?;
    rig.pageserver.kill()?;
    rig.pageserver.start()?;
    rig.catch_up()?;
    assert_clean(&rig.pageserver);
    rig.primary.stop(Stop::Fast)?;
    rig.pageserver.stop()?;
    rig.pageserver.start()?;
    assert_clean(&rig.pageserver);
    let checked = verify(&rig.pageserver)?.stderr;
    assert!(
        checked.contains("checked") && !checked.contains(" 0 pages") && !checked.contains(" 0 records"),
        "{checked}"
    );
    rig.pageserver.stop()
}
