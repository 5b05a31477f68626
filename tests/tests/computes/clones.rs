//! What a compute shows: its branch as of its LSN, and nothing that came later or elsewhere.

use std::fs;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use postgres_ffi::{Lsn, PgVersion};
use tests::{Computes, PageServer, Postgres, TestDir, wait_until};

use super::life::{LIMIT, rig};
use super::writers::{TABLE, Writer};

#[test]
fn a_clone_shows_its_moment_of_the_primary_and_writes_its_own_branch() -> Result<()> {
    for version in tests::versions() {
        let dir = TestDir::new("clone-moments")?;
        let primary = Postgres::builder(version).checksums(true).start(&dir)?;
        primary
            .execute("CREATE TABLE t AS SELECT i, 1 AS v FROM generate_series(1, 20000) i; CREATE INDEX ON t (i)")?;
        let mut server = PageServer::builder().start(&dir)?;
        server.import("main", &primary.conninfo())?;
        primary.execute("UPDATE t SET v = 2; CREATE TABLE gone AS SELECT 7 AS n")?;
        let before = primary.current_lsn()?;
        primary.execute("UPDATE t SET v = 3 WHERE i % 2 = 0; DROP TABLE gone")?;
        primary.execute("CREATE DATABASE later")?;
        let computes = Computes::new(&mut server)?;

        let sum = "SELECT sum(v) FROM t";
        let then = computes.create("then", "main", &["--lsn", &before.to_string(), "--no-sync"])?;
        assert_eq!(then.query_text(sum)?, "40000");
        assert_eq!(then.query_text("SELECT n FROM gone")?, "7");
        assert_eq!(then.query_text("SELECT count(*) FROM pg_database WHERE datname = 'later'")?, "0");
        assert_eq!(then.report["made_off"], "main");
        assert!(then.report["start_lsn"].as_str().unwrap_or_default().parse::<Lsn>()? <= before.align_up());

        wait_until("the page server", LIMIT, || {
            Ok(server.timeline("main", "last_record_lsn")?.parse::<Lsn>()? >= primary.current_lsn()?)
        })?;
        let now = computes.create("now", "main", &["--no-sync"])?; // `main` follows the primary, so this is a branch as well.
        assert_eq!(now.query_text(sum)?, "50000");
        assert_eq!(now.query_text("SELECT count(*) FROM pg_class WHERE relname = 'gone'")?, "0");
        assert_eq!(now.report["branch"], "now");

        // Everybody goes on by themselves.
        then.execute("UPDATE t SET v = 10 WHERE i = 1")?;
        now.execute("DELETE FROM t WHERE i > 10000; CREATE TABLE only_here (n int)")?;
        primary.execute("UPDATE t SET v = 3 WHERE i = 1")?;
        assert_eq!(then.query_text(sum)?, "40008");
        assert_eq!(now.query_text(sum)?, "25000");
        assert_eq!(primary.query_text(sum)?, "50001");

        // Thrown away, and there again.
        computes.destroy("now")?;
        let again = computes.create("again", "now", &["--no-sync"])?;
        assert_eq!(again.report["branch"], "now", "nobody follows there any more: no other branch is needed");
        assert_eq!(again.query_text(sum)?, "25000");
        assert_eq!(again.query_text("SELECT count(*) FROM only_here")?, "0");
    }
    Ok(())
}

#[test]
fn branches_of_branches_take_what_is_written_at_the_same_time() -> Result<()> {
    for version in tests::versions() {
        let dir = TestDir::new("clone-levels")?;
        let mut server = PageServer::builder().initdb(version).start(&dir)?;
        let computes = Computes::new(&mut server)?;
        // Without a primary: the first compute writes to `main` itself.
        let first = computes.create("first", "main", &["--no-sync"])?;
        assert_eq!((first.report["branch"].as_str(), first.report["made_off"].as_str()), (Some("main"), None));
        first.execute(TABLE)?;
        first.execute("INSERT INTO written VALUES ('nobody', 1)")?;
        let writers = ["first", "second", "third"].map(Writer::new);
        let found = std::thread::scope(|scope| -> Result<_> {
            scope.spawn(|| writers[0].run(&first));
            let levels = (|| {
                wait_until("rows on the first level", LIMIT, || Ok(writers[0].count() >= 50))?;
                let second = computes.create("second", "main", &["--no-sync"])?;
                let seen_by_second = second.query_text("SELECT count(*) FROM written WHERE writer = 'first'")?;
                Ok::<_, anyhow::Error>((second, seen_by_second))
            })();
            let (second, seen_by_second) = levels.inspect_err(|_| writers[0].stop.store(true, Ordering::SeqCst))?;
            scope.spawn({
                let second = second.clone();
                let writer = &writers[1];
                move || writer.run(&second)
            });
            let third = (|| {
                wait_until("rows on the second level", LIMIT, || Ok(writers[1].count() >= 50))?;
                computes.create("third", "second", &["--no-sync"])
            })();
            if let Ok(third) = &third {
                scope.spawn({
                    let third = third.clone();
                    let writer = &writers[2];
                    move || writer.run(&third)
                });
            }
            std::thread::sleep(Duration::from_secs(3));
            writers.iter().for_each(|writer| writer.stop.store(true, Ordering::SeqCst));
            Ok((second, third?, seen_by_second))
        })?;
        let (second, third, seen_by_second) = found;
        assert!(seen_by_second.parse::<i32>()? >= 50, "{seen_by_second}");

        // Each has its own rows and those that its ancestors had when it left them, in the running server and in a new one from its branch.
        let others =
            |level: &str, writer: &str| format!("SELECT count(*) FROM written WHERE writer {level} '{writer}'");
        assert_eq!(second.query_text(&others("=", "first"))?, seen_by_second);
        assert_eq!(first.query_text(&others("IN ('second', 'third') OR writer =", "x"))?, "0");
        assert_eq!(second.query_text(&others("=", "third"))?, "0");
        let of_second = third.query_text(&others("=", "second"))?;
        for (name, writer, compute) in [("first", 0, &first), ("second", 1, &second), ("third", 2, &third)] {
            writers[writer].check(compute)?;
            let rows = compute.query_text("SELECT count(*), sum(n), max(writer) FROM written")?;
            computes.destroy(name)?;
            let again = computes.create(
                &format!("{name}-again"),
                if name == "first" { "main" } else { name },
                &["--no-sync"],
            )?;
            assert_eq!(again.query_text("SELECT count(*), sum(n), max(writer) FROM written")?, rows, "{name}");
            writers[writer].check(&again)?;
            if name == "third" {
                assert_eq!(again.query_text(&others("=", "second"))?, of_second);
            }
        }
    }
    Ok(())
}

#[test]
fn a_clone_at_a_time_has_what_was_committed_until_then() -> Result<()> {
    let dir = TestDir::new("clone-time")?;
    let (_server, computes) = rig(&dir, PgVersion::V17)?;
    let first = computes.create("first", "main", &["--no-sync"])?;
    first.execute("CREATE TABLE t AS SELECT 1 AS n")?;
    let time = first.query_text("SELECT clock_timestamp()::text")?;
    std::thread::sleep(Duration::from_millis(50));
    first.execute("INSERT INTO t VALUES (2)")?;
    let then = computes.create("then", "main", &["--time", &time, "--no-sync"])?;
    assert_eq!((then.report["branch"].as_str(), then.report["made_off"].as_str()), (Some("then"), Some("main")));
    assert_eq!(then.query_text("SELECT sum(n) FROM t")?, "1");
    assert_eq!(first.query_text("SELECT sum(n) FROM t")?, "3");
    Ok(())
}

#[test]
fn tablespaces_come_along_beside_the_data_directory() -> Result<()> {
    for version in tests::versions() {
        let dir = TestDir::new("clone-tablespaces")?;
        let primary = Postgres::builder(version).wal_level("logical").start(&dir)?;
        let mut server = PageServer::builder().start(&dir)?;
        server.import("main", &primary.conninfo())?;
        let computes = Computes::new(&mut server)?;
        let outside = dir.create_subdir("outside")?;
        primary.execute(&format!("CREATE TABLESPACE outside LOCATION '{}'", outside.display()))?;
        primary.execute("CREATE TABLE t TABLESPACE outside AS SELECT generate_series(1, 10000) AS n")?;
        primary.execute("CREATE DATABASE app TABLESPACE outside")?;
        primary.execute("BEGIN; INSERT INTO t VALUES (0); PREPARE TRANSACTION 'waiting'")?;
        let lsn = primary.current_lsn()?.to_string();
        let compute = computes.create("dev", "main", &["--lsn", &lsn, "--no-sync"])?;
        let oid = compute.query_text("SELECT oid FROM pg_tablespace WHERE spcname = 'outside'")?;
        let beside = compute.root().join("tablespaces").join(&oid);
        assert_eq!(fs::read_link(compute.root().join("data/pg_tblspc").join(&oid))?, beside);
        assert_eq!(compute.query_text(&format!("SELECT pg_tablespace_location({oid})"))?, beside.display().to_string());
        assert_eq!(compute.query_text("SELECT count(*) FROM t")?, "10000");
        assert_eq!(compute.query_text("SHOW wal_level")?, "logical");
        compute.execute("COMMIT PREPARED 'waiting'")?;
        compute.execute("CREATE TABLE more TABLESPACE outside AS SELECT 1 AS n")?;
        computes.run(&["stop", "dev"])?;
        computes.run(&["start", "dev"])?;
        assert_eq!(compute.query_text("SELECT count(*) FROM t")?, "10001");
        computes.destroy("dev")?;
        let again = computes.create("again", "dev", &["--no-sync"])?;
        assert_eq!(again.query_text("SELECT count(*) FROM t, more")?, "10001");
        assert_eq!(primary.query_text("SELECT count(*) FROM t")?, "10000", "the primary's own files are its own");
    }
    Ok(())
}

#[test]
fn the_superuser_is_found_by_its_present_name() -> Result<()> {
    let dir = TestDir::new("clone-superuser")?;
    let primary = Postgres::builder(PgVersion::V15).start(&dir)?;
    primary.execute("CREATE ROLE helper SUPERUSER LOGIN")?;
    let mut server = PageServer::builder().start(&dir)?;
    server.import("main", &primary.conninfo())?;
    let computes = Computes::new(&mut server)?;
    let mut helper: postgres::Config = primary.conninfo().parse()?;
    helper.user("helper").dbname("postgres");
    let mut helper = helper.connect(postgres::NoTls)?;
    for (i, name) in ["o'hara", "Quoted \"name\"", "postgres"].into_iter().enumerate() {
        let old = helper.query_one("SELECT rolname::text FROM pg_roles WHERE oid = 10", &[])?.get::<_, String>(0);
        let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
        helper.batch_execute(&format!("ALTER ROLE {} RENAME TO {}", quoted(&old), quoted(name)))?;
        let rolled_back = format!("BEGIN; ALTER ROLE {} RENAME TO nobody; ROLLBACK", quoted(name));
        helper.batch_execute(&rolled_back)?;
        let lsn: String = helper.query_one("SELECT pg_current_wal_insert_lsn()::text", &[])?.get(0);
        let compute = computes.create(&format!("c{i}"), "main", &["--lsn", &lsn, "--no-sync"])?;
        assert_eq!(compute.report["role"], name);
        assert_eq!(compute.query_text("SELECT current_user")?, name);
    }
    Ok(())
}
