//! Goal: a database that was copied as files while a base backup was taken is right, or the import is refused.
//! Method: base backups by hand, so that what happens between their beginning and their first file is known. A stock server that recovers from the same
//! backup shows what the danger is.

#![allow(clippy::unwrap_used, reason = "a test; helpers of tests as well")]

use std::time::Duration;

use anyhow::Result;
use postgres_ffi::{Lsn, PgVersion};
use tests::standby::recovering;
use tests::{PageServer, Postgres, Stop, TestDir, versions, wait_until};

const LIMIT: Duration = Duration::from_secs(60);
const ROWS: u32 = 2000;

/// A primary with a database `template` that nobody uses.
fn start_primary(version: PgVersion, dir: &TestDir) -> Postgres {
    let builder = Postgres::builder(version).checksums(true).setting("autovacuum", "off");
    let primary = builder.setting("wal_keep_size", "1GB").start(dir).unwrap();
    primary.execute("CREATE DATABASE template").unwrap();
    let content = format!("CREATE TABLE t AS SELECT n, 'before' v FROM generate_series(1, {ROWS}) n; VACUUM FREEZE t");
    content.split("; ").for_each(|sql| primary.connect_to("template").unwrap().batch_execute(sql).unwrap());
    primary.execute("CHECKPOINT").unwrap();
    primary
}

fn copy_database(primary: &Postgres) -> Result<()> {
    let strategy = if primary.version() >= PgVersion::V15 { "STRATEGY file_copy" } else { "" };
    primary.execute(&format!("CREATE DATABASE copy TEMPLATE template {strategy}"))
}

/// Rows that the copy must not have.
fn rows_of_later(server: &Postgres) -> i64 {
    let sql = "SELECT count(*) FROM t WHERE v = 'later'";
    server.connect_to("copy").unwrap().query_one(sql, &[]).unwrap().get(0)
}

/// What `pagectl import` says of a directory; its exit code.
fn import(pageserver: &PageServer, name: &str, server: &Postgres) -> (i32, String) {
    let data_dir = server.data_dir().to_str().unwrap();
    let outcome = pageserver.pagectl().unwrap().outcome(&["import", name, "--directory", data_dir]).unwrap();
    (outcome.exit_code, outcome.stderr)
}

fn a_template_that_changed(version: PgVersion) {
    let dir = TestDir::new("copied-databases").unwrap();
    let primary = start_primary(version, &dir);
    let mut pageserver = PageServer::builder().start(&dir).unwrap();
    pageserver.expect_in_log("a database was copied as files");
    let mut backup = recovering(&primary, || {
        copy_database(&primary)?;
        primary.connect_to("template")?.batch_execute("UPDATE t SET v = 'later'")?;
        primary.execute("CHECKPOINT")
    })
    .unwrap();
    let (exit_code, stderr) = import(&pageserver, "refused", &backup);
    assert_eq!(exit_code, 2, "{stderr}");
    let oid =
        |name: &str| primary.query_text(&format!("SELECT oid FROM pg_database WHERE datname = '{name}'")).unwrap();
    for expected in [
        "a database was copied as files during the base backup",
        "import again",
        &format!("database=`{}`", oid("copy")),
        &format!("copied_from_database=`{}`", oid("template")),
    ] {
        assert!(stderr.contains(expected), "{expected}: {stderr}");
    }
    assert_eq!(pageserver.query("SHOW TIMELINES").unwrap(), Vec::<Vec<String>>::new());
    // The danger: PostgreSQL itself copies what came later.
    backup.start().unwrap();
    assert_eq!((rows_of_later(&primary), rows_of_later(&backup)), (0, ROWS.into()));

    // Once the copy is gone, the same is no danger.
    let backup = recovering(&primary, || {
        primary.execute("DROP DATABASE copy")?;
        copy_database(&primary)?;
        primary.connect_to("template")?.batch_execute("UPDATE t SET v = 'even later'")?;
        primary.execute("DROP DATABASE copy")
    })
    .unwrap();
    let (exit_code, stderr) = import(&pageserver, "gone", &backup);
    assert_eq!(exit_code, 0, "{stderr}");
}

#[test]
fn a_copy_of_a_template_that_changed_is_refused() {
    versions().into_iter().for_each(a_template_that_changed);
}

#[test]
fn a_copy_of_a_template_that_stays_is_right_to_the_last_page() {
    let dir = TestDir::new("copied-databases").unwrap();
    let mut primary = start_primary(PgVersion::V17, &dir);
    let mut pageserver = PageServer::builder().start(&dir).unwrap();
    pageserver.expect_in_log("connection to the primary"); // It goes away.
    let backup = recovering(&primary, || {
        copy_database(&primary)?;
        primary.connect_to("copy")?.batch_execute("UPDATE t SET v = 'of the copy'")?;
        Ok(())
    })
    .unwrap();
    let (exit_code, stderr) = import(&pageserver, "main", &backup);
    assert_eq!(exit_code, 0, "{stderr}");
    primary.connect_to("template").unwrap().batch_execute("UPDATE t SET v = 'later'").unwrap();
    let conninfo = primary.conninfo().replace('\'', "''");
    pageserver.query(&format!("TIMELINE FOLLOW main FROM '{conninfo}'")).unwrap();
    let end_lsn = primary.current_lsn().unwrap();
    wait_until("the timeline to follow", LIMIT, || {
        Ok(pageserver.timeline("main", "last_record_lsn")?.parse::<Lsn>()? >= end_lsn)
    })
    .unwrap();
    primary.stop(Stop::Fast).unwrap();
    let data_dir = primary.data_dir().to_str().unwrap();
    let outcome =
        pageserver.pagectl().unwrap().outcome(&["compare", "--timeline", "main", "--datadir", data_dir]).unwrap();
    assert_eq!(outcome.exit_code, 0, "{}{}", outcome.stdout, outcome.stderr);
}
