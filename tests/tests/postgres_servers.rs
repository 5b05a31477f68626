//! The harness itself, on real servers: what the other tests rely on when they crash, restart and promote.

#![allow(clippy::unwrap_used, reason = "a test; helpers of tests as well")]

use std::time::Duration;

use postgres_ffi::PgVersion;
use tests::{Auth, Postgres, Stop, TestDir, standby, wait_until};

#[test]
fn every_version_starts_with_the_settings_it_was_given() {
    for version in PgVersion::ALL {
        let dir = TestDir::new("settings").unwrap();
        let server = Postgres::builder(version)
            .checksums(version != PgVersion::V18)
            .wal_segment_mb(4)
            .auth(Auth::Scram)
            .setting("work_mem", "5MB")
            .start(&dir)
            .unwrap();
        let show = |name: &str| server.query_text(&format!("SHOW {name}")).unwrap();
        assert_eq!(show("server_version_num").parse::<u32>().unwrap() / 10_000, version.major());
        assert_eq!(show("data_checksums"), if version == PgVersion::V18 { "off" } else { "on" });
        assert_eq!(show("wal_segment_size"), "4MB");
        assert_eq!(show("work_mem"), "5MB");
        assert!(
            server
                .query_text("SELECT rolpassword FROM pg_authid WHERE rolname = 'postgres'")
                .unwrap()
                .starts_with("SCRAM-SHA-256")
        );
    }
}

#[test]
fn a_killed_server_recovers_what_was_committed() {
    let dir = TestDir::new("kill").unwrap();
    let mut server = Postgres::builder(PgVersion::V15).start(&dir).unwrap();
    server.execute("CREATE TABLE t AS SELECT 42 AS answer").unwrap();
    server.kill().unwrap();
    assert!(server.connect().is_err());
    server.start().unwrap();
    assert_eq!(server.query_text("SELECT answer FROM t").unwrap(), "42");
    server.restart(Stop::Immediate).unwrap();
    server.restart(Stop::Fast).unwrap();
    assert_eq!(server.query_text("SELECT answer FROM t").unwrap(), "42");
}

#[test]
fn a_standby_follows_and_takes_over() {
    for version in PgVersion::ALL {
        let dir = TestDir::new("standby").unwrap();
        let mut primary = Postgres::builder(version).start(&dir).unwrap();
        primary.execute("CREATE TABLE t AS SELECT 1 AS n").unwrap();
        let mut standby = standby::start_standby(&primary).unwrap();
        primary.execute("INSERT INTO t VALUES (2)").unwrap();
        wait_until("the second row", Duration::from_secs(30), || {
            Ok(standby.query_text("SELECT count(*) FROM t")? == "2")
        })
        .unwrap();
        primary.stop(Stop::Fast).unwrap();
        standby.promote().unwrap();
        standby.execute("INSERT INTO t VALUES (3)").unwrap();
        let sql = "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)";
        assert_eq!(standby.query_text(sql).unwrap(), "00000002");
    }
}
