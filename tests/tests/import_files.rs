//! Goal: a cluster comes from its files whole and goes on as if it had been followed all along: of a stopped server, of one that was killed under
//! load, of base backups in every form that `pg_basebackup` writes; and what is not whole is refused with the name of what is missing.
//! Method: real servers with all that a cluster can consist of, writing while they are copied or killed. After an import the timeline follows the
//! server, which writes more and is stopped; then every page is compared with its directory. A crashed directory is compared at the crash's end too.
//!
//! `pg_basebackup` of Debian 12 takes backups of 15 alone; of 17 they are taken by hand and packed with `tar`.

#![allow(clippy::unwrap_used, reason = "a test; helpers of tests as well")]

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use postgres::Client;
use postgres::error::SqlState;
use postgres_ffi::{Lsn, PgVersion};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde_json::Value;
use tests::process::{run, server_command};
use tests::standby::{Tablespaces, base_backup, copy_wal, start_standby};
use tests::workload::tpcb;
use tests::{PageServer, Postgres, Stop, TestDir, wait_until};

const LIMIT: Duration = Duration::from_secs(120);

/// A server with everything that a cluster can consist of; its tablespace in the data directory, where it can be copied with it.
fn start_server(version: PgVersion, dir: &TestDir) -> Postgres {
    start_server_with_tablespace(version, dir, Path::new(""))
}

/// The same with a tablespace in `location`. (`pg_basebackup` leaves those in the data directory out of its archives.)
fn start_server_with_tablespace(version: PgVersion, dir: &TestDir, location: &Path) -> Postgres {
    let builder =
        Postgres::builder(version).checksums(true).setting("max_wal_size", "64MB").setting("autovacuum_naptime", "1s");
    let server = builder.start(dir).unwrap();
    tpcb::init(&mut server.connect().unwrap(), 1).unwrap();
    server.execute("CREATE UNLOGGED TABLE unlogged AS SELECT generate_series(1, 1000) n").unwrap();
    server.connect().unwrap().batch_execute("CREATE DATABASE another").unwrap();
    let tablespace = format!("CREATE TABLESPACE elsewhere LOCATION '{}'", location.display());
    server.connect().unwrap().batch_execute(&tablespace).unwrap();
    server.execute("CREATE TABLE far_away TABLESPACE elsewhere AS SELECT generate_series(1, 5000) n").unwrap();
    server.execute("BEGIN; INSERT INTO pgbench_history (tid) VALUES (1); PREPARE TRANSACTION 'prepared'").unwrap();
    server
        .execute("SELECT pg_replication_origin_create('origin'), pg_replication_origin_advance('origin', '0/ABCD')")
        .unwrap();
    server
}

/// Changes that go on, beside small ones: relations come, go, shrink and move, transactions are prepared, databases made.
fn change_much(client: &mut Client, seed: u32, round: u32) -> Result<(), postgres::Error> {
    let name = format!("t{seed}_{round}");
    client.batch_execute(&format!(
        "CREATE TABLE {name} (n int PRIMARY KEY, filler text);
         INSERT INTO {name} SELECT n, repeat('x', 300) FROM generate_series(1, 3000) n"
    ))?;
    client.batch_execute(&format!("CREATE UNLOGGED TABLE u{name} AS SELECT 1 n"))?;
    client.batch_execute(&format!(
        "BEGIN; UPDATE {name} SET filler = 'y' WHERE n % 7 = 0; PREPARE TRANSACTION '{name}'"
    ))?;
    client.batch_execute(&format!("DELETE FROM {name} WHERE n % 7 > 0 AND n > 1000"))?;
    client
        .batch_execute(&format!("{} PREPARED '{name}'", if round.is_multiple_of(2) { "COMMIT" } else { "ROLLBACK" }))?;
    client.batch_execute(&format!("VACUUM {name}"))?;
    match round % 4 {
        0 => client.batch_execute(&format!("DROP TABLE {name}, u{name}")),
        1 => client.batch_execute(&format!("TRUNCATE {name}")),
        2 => client
            .batch_execute(&format!("ALTER TABLE {name} SET TABLESPACE elsewhere"))
            .and_then(|()| client.batch_execute(&format!("VACUUM FULL {name}"))),
        _ => [format!("CREATE DATABASE d{name}"), "CHECKPOINT".to_owned(), format!("DROP DATABASE d{name}")]
            .iter()
            .try_for_each(|statement| client.batch_execute(statement)),
    }
}

/// Sessions that write to a server until they are told to end, or the server goes away.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Under way when it returns.
    fn start(server: &Postgres, seed: u32) -> Self {
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (mut small, mut large) = (server.connect().unwrap(), server.connect().unwrap());
        let (stopping, mut rng) = (Arc::clone(&stop), SmallRng::seed_from_u64(seed.into()));
        let transactions = std::thread::spawn(move || {
            while !stopping.load(Ordering::SeqCst) && tpcb::transaction(&mut small, &mut rng, 1).is_ok() {}
        });
        let (stopping, done) = (Arc::clone(&stop), Arc::clone(&rounds));
        let changes = std::thread::spawn(move || {
            for round in 0.. {
                if stopping.load(Ordering::SeqCst) {
                    return;
                }
                if let Err(error) = change_much(&mut large, seed, round) {
                    // The server went away; anything that it says is a fault of this test.
                    assert!(
                        error.as_db_error().is_none_or(|error| *error.code() == SqlState::CRASH_SHUTDOWN),
                        "{error}"
                    );
                    return;
                }
                done.store(round + 1, Ordering::SeqCst);
            }
        });
        wait_until("some load", LIMIT, || Ok(rounds.load(Ordering::SeqCst) >= 4)).unwrap();
        Load { stop, threads: vec![transactions, changes] }
    }

    fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

fn import(pageserver: &PageServer, name: &str, option: &str, path: &Path) -> Value {
    let path = path.to_str().unwrap();
    let row = pageserver.pagectl().unwrap().run(&["import", name, option, path, "--json"]).unwrap();
    let row: Value = serde_json::from_str(&row).unwrap();
    assert_eq!((row["name"].as_str(), row["state"].as_str()), (Some(name), Some("active")), "{row}");
    row
}

fn refused(pageserver: &PageServer, option: &str, path: &Path) -> String {
    let outcome =
        pageserver.pagectl().unwrap().outcome(&["import", "refused", option, path.to_str().unwrap()]).unwrap();
    assert_eq!(outcome.exit_code, 2, "{}{}", outcome.stdout, outcome.stderr);
    // Nothing stays.
    assert_eq!(pageserver.query("SHOW TIMELINES").unwrap(), Vec::<Vec<String>>::new());
    assert_eq!(fs::read_dir(pageserver.data_dir().join("timelines")).unwrap().count(), 0, "{}", outcome.stderr);
    outcome.stderr
}

/// The report of every page and file of the stopped server, against the timeline.
fn report(pageserver: &PageServer, timeline: &str, server: &Postgres, lsn: Option<Lsn>) -> Value {
    let data_dir = server.data_dir().to_str().unwrap();
    let lsn = lsn.map(|lsn| lsn.to_string());
    let mut arguments =
        vec!["--json", "compare", "--timeline", timeline, "--datadir", data_dir, "--mismatches", "10000"];
    arguments.extend(lsn.iter().flat_map(|lsn| ["--lsn", lsn.as_str()]));
    let outcome = pageserver.pagectl().unwrap().outcome(&arguments).unwrap();
    assert!(outcome.exit_code <= 1, "{timeline}: {}{}", outcome.stdout, outcome.stderr);
    serde_json::from_str(outcome.stdout.trim()).unwrap()
}

/// How many pages and files were compared; none differs.
///
/// One thing may be there that the server has not: an empty file of a relation that was dropped. A commit drops the file a moment after its record; when
/// the backup's checkpoint begins in between, the record is not in the backup's WAL, and the file, cut to nothing, stays until the checkpoint after
/// that one (PG: md.c, mdunlink; sync.c, SyncPostCheckpoint). A stock server that starts from the backup keeps it for ever.
fn compare(pageserver: &PageServer, timeline: &str, server: &Postgres) -> u64 {
    let report = report(pageserver, timeline, server, None);
    let different = report["first_mismatches"].as_array().unwrap();
    assert_eq!(report["mismatches"].as_u64().unwrap(), different.len() as u64, "{report}");
    let is_left_over = |mismatch: &&Value| {
        let is_main = mismatch["what"].as_str().is_some_and(|what| what.ends_with(" main"));
        mismatch["kind"] == "relations" && mismatch["detail"] == "not in the directory, 0 blocks" && is_main
    };
    assert_eq!(different.iter().find(|mismatch| !is_left_over(mismatch)), None);
    report["compared"].as_u64().unwrap()
}

/// The same at the crash's end, of a server that did nothing but recover and stop: its checkpoint alone is another, and where it set hint bits
/// since, it stamped the page with the record of its whole image.
fn compare_at_crash(pageserver: &PageServer, timeline: &str, server: &Postgres, crash_lsn: Lsn) -> u64 {
    let report = report(pageserver, timeline, server, Some(crash_lsn));
    let different = report["first_mismatches"].as_array().unwrap();
    assert_eq!(report["mismatches"].as_u64().unwrap(), different.len() as u64, "{report}");
    let wrong = different.iter().find(|mismatch| {
        let is_stamp = mismatch["detail"].as_str().is_some_and(|detail| detail.starts_with("only the lsn differs"));
        mismatch["kind"] != "checkpoint fields" && !is_stamp
    });
    assert_eq!(wrong, None);
    report["compared"].as_u64().unwrap()
}

/// The killed server recovers by itself and is stopped; then [`compare_at_crash`].
fn recover_and_compare(pageserver: &PageServer, timeline: &str, server: &mut Postgres, crash_lsn: Lsn) -> u64 {
    server.set("autovacuum", "off").unwrap();
    server.start().unwrap();
    server.stop(Stop::Fast).unwrap();
    compare_at_crash(pageserver, timeline, server, crash_lsn)
}

/// The timelines follow the running server, which writes on and is stopped; then they are the same to the last page.
fn follow_and_compare(pageserver: &mut PageServer, timelines: &[&str], server: &mut Postgres, seed: u32) {
    pageserver.expect_in_log("connection to the primary"); // It goes away.
    for timeline in timelines {
        let conninfo = server.conninfo().replace('\'', "''");
        pageserver.query(&format!("TIMELINE FOLLOW {timeline} FROM '{conninfo}'")).unwrap();
    }
    Load::start(server, seed).end();
    let end_lsn = server.current_lsn().unwrap();
    for timeline in timelines {
        wait_until("the timeline to follow", LIMIT, || {
            Ok(pageserver.timeline(timeline, "last_record_lsn")?.parse::<Lsn>()? >= end_lsn)
        })
        .unwrap();
    }
    server.stop(Stop::Fast).unwrap();
    for timeline in timelines {
        let compared = compare(pageserver, timeline, server);
        println!("PostgreSQL {}, {timeline}: {compared} pages and files compared", server.version());
        assert!(compared > 3000, "{compared}");
    }
}

fn stopped_cleanly(version: PgVersion) {
    let dir = TestDir::new("import-stopped").unwrap();
    let mut server = start_server(version, &dir);
    Load::start(&server, 1).end();
    server.stop(Stop::Fast).unwrap();
    let mut pageserver = PageServer::builder().start(&dir).unwrap();
    let row = import(&pageserver, "stopped", "--directory", server.data_dir());
    assert_eq!(row["first_readable_lsn"], row["last_record_lsn"]);
    assert!(compare(&pageserver, "stopped", &server) > 3000);
    // Its main fork would be of another moment; PostgreSQL makes it anew.
    let unlogged = pageserver.query("RELATION LIST stopped").unwrap();
    let init: Vec<&Vec<String>> = unlogged.iter().filter(|row| row[1] == "init").collect();
    assert!(!init.is_empty());
    assert!(init.iter().all(|init| !unlogged.iter().any(|row| row[0] == init[0] && row[1] == "main")), "{init:?}");
    server.start().unwrap();
    follow_and_compare(&mut pageserver, &["stopped"], &mut server, 2);
}

#[test]
fn a_stopped_directory_comes_whole_and_goes_on() {
    tests::versions().into_iter().for_each(stopped_cleanly);
}

fn killed_under_load(version: PgVersion) {
    let dir = TestDir::new("import-killed").unwrap();
    let mut server = start_server(version, &dir);
    let mut pageserver = PageServer::builder().start(&dir).unwrap();
    for round in 0..2 {
        let load = Load::start(&server, 10 + round);
        server.kill().unwrap();
        load.end();
        let name = format!("killed{round}");
        let row = import(&pageserver, &name, "--directory", server.data_dir());
        assert_eq!(row["first_readable_lsn"], row["last_record_lsn"]);
        let crash_lsn: Lsn = row["last_record_lsn"].as_str().unwrap().parse().unwrap();

        // PostgreSQL's own recovery ends where ours does, with the same pages.
        let compared = recover_and_compare(&pageserver, &name, &mut server, crash_lsn);
        println!("PostgreSQL {version}, killed, at {crash_lsn}: {compared} pages and files compared");
        assert!(compared > 3000, "{compared}");
        server.set("autovacuum", "on").unwrap();
        server.start().unwrap();
        // At once: files without WAL that the next crash may leave behind are not the timeline's.
        follow_and_compare(&mut pageserver, &[&name], &mut server, 20 + round);
        server.start().unwrap();
    }
}

#[test]
fn a_killed_server_s_directory_recovers_here_as_it_does_there() {
    tests::versions().into_iter().for_each(killed_under_load);
}

fn standby_s_directories(version: PgVersion) {
    let dir = TestDir::new("import-standby").unwrap();
    let mut primary = start_server(version, &dir);
    let mut standby = start_standby(&primary).unwrap();
    let mut pageserver = PageServer::builder().start(&dir).unwrap();
    // Restored from a backup a moment ago; stopped and killed while it replays.
    let load = Load::start(&primary, 50);
    standby.stop(Stop::Fast).unwrap();
    import(&pageserver, "stopped", "--directory", standby.data_dir());
    standby.start().unwrap();
    let replayed_lsn = standby.current_lsn().unwrap();
    wait_until("the standby to replay", LIMIT, || Ok(standby.current_lsn()? > replayed_lsn)).unwrap();
    standby.kill().unwrap();
    import(&pageserver, "killed", "--directory", standby.data_dir());
    load.end();

    // A primary of its own now, that was killed before it wrote a checkpoint of its own.
    standby.set("autovacuum", "off").unwrap();
    standby.start().unwrap();
    standby.promote().unwrap();
    standby.execute("CREATE TABLE promoted AS SELECT generate_series(1, 1000) n").unwrap();
    standby.kill().unwrap();
    let row = import(&pageserver, "promoted", "--directory", standby.data_dir());
    let crash_lsn: Lsn = row["last_record_lsn"].as_str().unwrap().parse().unwrap();
    standby.start().unwrap();
    standby.stop(Stop::Fast).unwrap();
    assert!(compare_at_crash(&pageserver, "promoted", &standby, crash_lsn) > 3000);
    standby.start().unwrap();
    follow_and_compare(&mut pageserver, &["promoted"], &mut standby, 51);
    follow_and_compare(&mut pageserver, &["stopped", "killed"], &mut primary, 52);
}

#[test]
fn a_standby_s_directory_comes_whole_and_goes_on() {
    tests::versions().into_iter().for_each(standby_s_directories);
}

#[test]
fn a_running_primary_is_imported_with_the_same_command() {
    let dir = TestDir::new("import-primary").unwrap();
    let mut server = start_server(PgVersion::V15, &dir);
    let mut pageserver = PageServer::builder().start(&dir).unwrap();
    let row =
        pageserver.pagectl().unwrap().run(&["import", "main", "--primary", &server.conninfo(), "--json"]).unwrap();
    let row: Value = serde_json::from_str(&row).unwrap();
    assert_eq!((row["name"].as_str(), row["state"].as_str()), (Some("main"), Some("active")), "{row}");
    pageserver.expect_in_log("connection to the primary");
    server.stop(Stop::Fast).unwrap();
    assert!(compare(&pageserver, "main", &server) > 3000);
    for wrong in [&["import", "x"][..], &["import", "x", "--tar", "a", "--directory", "b"]] {
        assert_eq!(pageserver.pagectl().unwrap().outcome(wrong).unwrap().exit_code, 2);
    }
}

/// Runs `pg_basebackup` of the server into a new directory, under load.
fn pg_basebackup(server: &Postgres, dir: &TestDir, name: &str, options: &[&str]) -> PathBuf {
    let target = dir.create_subdir(name).unwrap().join("backup");
    let load = Load::start(server, name.bytes().map(u32::from).sum());
    let mut command = server_command(&server.bin_dir().join("pg_basebackup"), dir.path()).unwrap();
    command
        .args(["--checkpoint", "fast", "--no-sync", "--dbname", &server.conninfo(), "--pgdata"])
        .arg(&target)
        .args(options);
    run(&mut command).unwrap();
    load.end();
    target
}

#[test]
fn base_backups_of_every_form_come_whole_and_go_on() {
    let dir = TestDir::new("import-basebackups").unwrap();
    let location = dir.create_subdir("tablespace").unwrap();
    let mut server = start_server_with_tablespace(PgVersion::V15, &dir, &location);
    let mut pageserver = PageServer::builder().start(&dir).unwrap();
    let copy = dir.create_subdir("tablespace-copy").unwrap();
    let mapping = format!("--tablespace-mapping={}={}", location.display(), copy.display());
    let forms: [(&str, &[&str]); 4] = [
        ("fetch", &["--format=tar", "--wal-method=fetch"]),
        ("stream", &["--format=tar", "--wal-method=stream", "--gzip"]),
        ("zstd", &["--format=tar", "--wal-method=fetch", "--compress=zstd"]),
        ("plain", &["--format=plain", "--wal-method=stream", &mapping]),
    ];
    for (name, options) in forms {
        let backup = pg_basebackup(&server, &dir, name, options);
        let row = match name {
            "plain" => import(&pageserver, name, "--directory", &backup),
            // The directory, or the file in it.
            "fetch" => import(&pageserver, name, "--tar", &backup.join("base.tar")),
            _ => import(&pageserver, name, "--tar", &backup),
        };
        let lsn = |column: &str| row[column].as_str().unwrap().parse::<Lsn>().unwrap();
        assert!(lsn("first_readable_lsn") <= lsn("last_record_lsn"));
        // Nothing is left of what was unpacked on the way.
        let id = row["id"].as_str().unwrap();
        let files = fs::read_dir(pageserver.data_dir().join("timelines").join(id)).unwrap();
        let mut names: Vec<_> = files.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["timeline.json", "timeline.json.copy", "wal"]);
    }
    // What was imported is durable: nobody would ingest it again.
    let before = pageserver.query("SHOW TIMELINES").unwrap();
    pageserver.kill().unwrap();
    pageserver.start().unwrap();
    assert_eq!(pageserver.query("SHOW TIMELINES").unwrap(), before);
    follow_and_compare(&mut pageserver, &forms.map(|(name, _)| name), &mut server, 30);
}

/// A base backup taken by hand, as an archiving tool does it: files, label, and the WAL that was written meanwhile.
fn backup_by_hand(server: &Postgres, dir: &TestDir, name: &str) -> PathBuf {
    let load = Load::start(server, name.bytes().map(u32::from).sum());
    let backup = dir.create_subdir(name).unwrap().join("data");
    base_backup(server, &backup, Tablespaces::InPlace).unwrap();
    load.end();
    copy_wal(server, &backup).unwrap();
    give_to_server_user(&backup);
    backup
}

fn give_to_server_user(path: &Path) {
    run(Command::new("chmod").args(["--recursive", "a+rX"]).arg(path)).unwrap();
}

/// `base.tar` of a directory, in a directory of its own.
fn pack(dir: &TestDir, name: &str, data_dir: &Path) -> PathBuf {
    let target = dir.create_subdir(name).unwrap();
    run(Command::new("tar")
        .arg("--create")
        .arg("--file")
        .arg(target.join("base.tar"))
        .arg("--directory")
        .arg(data_dir)
        .arg("."))
    .unwrap();
    give_to_server_user(&target);
    target
}

#[test]
fn a_backup_of_17_comes_whole_as_a_directory_and_as_an_archive() {
    let dir = TestDir::new("import-backup-17").unwrap();
    let mut server = start_server(PgVersion::V17, &dir);
    let mut pageserver = PageServer::builder().start(&dir).unwrap();
    let backup = backup_by_hand(&server, &dir, "by-hand");
    let directory = import(&pageserver, "directory", "--directory", &backup);
    let tar = import(&pageserver, "tar", "--tar", &pack(&dir, "packed", &backup));
    for column in ["first_readable_lsn", "last_record_lsn"] {
        assert_eq!(directory[column], tar[column]);
    }
    follow_and_compare(&mut pageserver, &["directory", "tar"], &mut server, 40);
}

#[test]
fn a_data_directory_is_imported_by_init() {
    let dir = TestDir::new("import-init").unwrap();
    let mut server = start_server(PgVersion::V17, &dir);
    server.kill().unwrap();
    let pageserver = PageServer::builder().import_directory(server.data_dir()).start(&dir).unwrap();
    let lsn: Lsn = pageserver.timeline("main", "last_record_lsn").unwrap().parse().unwrap();
    assert!(recover_and_compare(&pageserver, "main", &mut server, lsn) > 3000);
}

#[test]
fn a_file_that_a_crashed_directory_lacks_is_of_a_relation_that_is_dropped_or_the_import_is_refused() {
    for is_dropped in [false, true] {
        let dir = TestDir::new("import-missing").unwrap();
        let mut server = Postgres::builder(PgVersion::V15).start(&dir).unwrap();
        let mut pageserver = PageServer::builder().start(&dir).unwrap();
        pageserver.expect_in_log("ingest stopped");
        server.execute("CREATE TABLE t AS SELECT 1 AS n").unwrap();
        let path = server.data_dir().join(server.query_text("SELECT pg_relation_filepath('t')").unwrap());
        server.execute("CHECKPOINT").unwrap();
        if is_dropped {
            server.execute("DROP TABLE t").unwrap();
        }
        server.execute("CREATE TABLE later AS SELECT 1 AS n").unwrap();
        server.kill().unwrap();
        // As if it had three files, and the second one was lost, or removed by the drop that did not come to the third.
        fs::write(path.with_extension("2"), [0; 8192]).unwrap();
        if is_dropped {
            // And what an earlier one has left for ever: the server crashed between the second file and the third.
            fs::write(path.with_file_name("99999.2"), [0; 8192]).unwrap();
            import(&pageserver, "main", "--directory", server.data_dir());
            assert_eq!(pageserver.pagectl().unwrap().run(&["verify"]).unwrap(), "nothing is wrong\n");
        } else {
            let error = refused(&pageserver, "--directory", server.data_dir());
            assert!(error.contains("lacked a file,") && error.contains("segment_no=`1`"), "{error}");
        }
    }
}

/// Later files without the first one, which was made behind the place up to which the directory had been listed.
#[test]
fn a_table_that_came_while_its_directory_was_listed_is_in_the_wal() {
    let dir = TestDir::new("import-late").unwrap();
    let mut server = Postgres::builder(PgVersion::V15).start(&dir).unwrap();
    let pageserver = PageServer::builder().start(&dir).unwrap();
    server.execute("CHECKPOINT").unwrap();
    server.execute("CREATE TABLE late AS SELECT generate_series(1, 100000) AS n").unwrap();
    let path = server.data_dir().join(server.query_text("SELECT pg_relation_filepath('late')").unwrap());
    server.kill().unwrap();
    let copy = dir.create_subdir("copy").unwrap();
    run(Command::new("cp").arg("-a").arg(server.data_dir()).arg(&copy)).unwrap();
    let copied = copy.join(server.data_dir().file_name().unwrap());
    let copied_path = copied.join(path.strip_prefix(server.data_dir()).unwrap());
    assert!(copied_path.exists(), "{}", copied_path.display());
    fs::remove_file(&copied_path).unwrap();
    fs::write(copied_path.with_extension("1"), [0; 8192]).unwrap();
    import(&pageserver, "main", "--directory", &copied);
    assert_eq!(pageserver.pagectl().unwrap().run(&["verify"]).unwrap(), "nothing is wrong\n");
    let lsn: Lsn = pageserver.timeline("main", "last_record_lsn").unwrap().parse().unwrap();
    assert!(recover_and_compare(&pageserver, "main", &mut server, lsn) > 400);
}

#[test]
fn a_prepared_transaction_whose_end_is_known_is_none() {
    let dir = TestDir::new("import-prepared").unwrap();
    let mut server = Postgres::builder(PgVersion::V15).start(&dir).unwrap();
    let pageserver = PageServer::builder().start(&dir).unwrap();
    server.execute("CREATE TABLE t (n int)").unwrap();
    for name in ["ended", "open"] {
        server.execute(&format!("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION '{name}'")).unwrap();
    }
    server.execute("CHECKPOINT").unwrap();
    // Whoever ends a transaction waits for a standby that never comes, and has its file still.
    server.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'").unwrap();
    server.execute("SELECT pg_reload_conf()").unwrap();
    let mut waiting = server.connect().unwrap();
    let ending = std::thread::spawn(move || waiting.batch_execute("COMMIT PREPARED 'ended'"));
    wait_until("the end to be written", LIMIT, || {
        Ok(server.query_text("SELECT count(*)::text FROM pg_stat_activity WHERE wait_event = 'SyncRep'")? == "1")
    })
    .unwrap();
    server.execute("CHECKPOINT").unwrap();
    server.kill().unwrap();
    assert!(ending.join().unwrap().is_err());
    assert_eq!(fs::read_dir(server.data_dir().join("pg_twophase")).unwrap().count(), 2);
    import(&pageserver, "main", "--directory", server.data_dir());

    let archive = dir.path().join("backup.tar");
    pageserver.pagectl().unwrap().run(&["basebackup", "main", "--output", archive.to_str().unwrap()]).unwrap();
    let mut clone = tests::backup_server::unpacked(&dir, PgVersion::V15, fs::File::open(&archive).unwrap()).unwrap();
    assert_eq!(fs::read_dir(clone.data_dir().join("pg_twophase")).unwrap().count(), 1);
    clone.start().unwrap();
    assert_eq!(clone.query_text("SELECT string_agg(gid, ',') FROM pg_prepared_xacts").unwrap(), "open");
    assert_eq!(clone.query_text("SELECT count(*)::text FROM t").unwrap(), "1");
    clone.stop(Stop::Fast).unwrap();
}

#[test]
fn a_block_far_behind_what_is_there_is_of_a_table_that_is_dropped_or_the_import_is_refused() {
    for is_dropped in [false, true] {
        let dir = TestDir::new("import-gap").unwrap();
        let mut server = Postgres::builder(PgVersion::V15).start(&dir).unwrap();
        let mut pageserver = PageServer::builder().start(&dir).unwrap();
        pageserver.expect_in_log("ingest stopped");
        server.execute("CREATE TABLE t AS SELECT 1 AS n").unwrap();
        let path = server.data_dir().join(server.query_text("SELECT pg_relation_filepath('t')").unwrap());
        server.stop(Stop::Fast).unwrap();
        let owner = fs::metadata(&path).unwrap();
        // The files of a table of 129 GiB, most of it new pages that take no space.
        let segments: Vec<_> = std::iter::once(path.clone())
            .chain((1..129).map(|segment_no| path.with_extension(segment_no.to_string())))
            .collect();
        for segment in &segments {
            let file = fs::OpenOptions::new().create(true).append(true).open(segment).unwrap();
            file.set_len(1 << 30).unwrap();
            chown(segment, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
        server.start().unwrap();
        server.execute("INSERT INTO t VALUES (2)").unwrap();
        assert_eq!(server.query_text("SELECT ctid FROM t WHERE ctid = '(16908287,1)'").unwrap(), "(16908287,1)");
        if is_dropped {
            server.execute("DROP TABLE t").unwrap();
        }
        server.kill().unwrap();
        // As a backup has them that comes to them later.
        segments.iter().filter(|segment| segment.exists()).for_each(|segment| fs::remove_file(segment).unwrap());
        if is_dropped {
            import(&pageserver, "main", "--directory", server.data_dir());
            assert_eq!(pageserver.pagectl().unwrap().run(&["verify"]).unwrap(), "nothing is wrong\n");
        } else {
            let error = refused(&pageserver, "--directory", server.data_dir());
            assert!(error.contains("blocks of it, of a relation") && error.contains("segment_no=`0`"), "{error}");
        }
    }
}

#[test]
fn what_is_not_whole_is_refused_by_name() {
    let dir = TestDir::new("import-refused").unwrap();
    let location = dir.create_subdir("tablespace").unwrap();
    let mut server = start_server_with_tablespace(PgVersion::V15, &dir, &location);
    let pageserver = PageServer::builder().start(&dir).unwrap();
    let check = |option: &str, path: &Path, expected: &[&str]| {
        let error = refused(&pageserver, option, path);
        assert!(expected.iter().all(|expected| error.contains(expected)), "{error}\nlacks {expected:?}");
    };

    // Not a cluster at all.
    check("--directory", &dir.path().join("nowhere"), &["this is no directory", "nowhere"]);
    check("--directory", dir.path(), &["this is no data directory", "PG_VERSION"]);
    check("--tar", dir.path(), &["no base.tar"]);
    check("--tar", &dir.path().join("nowhere"), &["there is no such file"]);
    let pg_version = server.data_dir().join("PG_VERSION");
    check("--tar", &pg_version, &["archive", "PG_VERSION"]);

    // A running server, and one that runs without its file.
    let running =
        format!("pid=`{}`", server.query_text("SELECT split_part(pg_read_file('postmaster.pid'), E'\n', 1)").unwrap());
    check("--directory", server.data_dir(), &["a server runs on this data directory", &running]);
    let (pid_file, hidden) = (server.data_dir().join("postmaster.pid"), server.data_dir().join("hidden"));
    fs::rename(&pid_file, &hidden).unwrap();
    check("--directory", server.data_dir(), &["a server runs on this data directory"]);
    fs::rename(&hidden, &pid_file).unwrap();

    let backup = pg_basebackup(&server, &dir, "backup", &["--format=tar", "--wal-method=stream"]);
    check_archives(&dir, &backup, &check);
    server.execute("SELECT pg_switch_wal()").unwrap();
    server.execute("CREATE TABLE behind AS SELECT generate_series(1, 100000) n").unwrap();
    server.execute("SELECT pg_switch_wal()").unwrap();
    server.execute("CREATE TABLE far_behind AS SELECT 1").unwrap();
    server.kill().unwrap();
    check_directories(&server, &check);
}

type Check<'a> = dyn Fn(&str, &Path, &[&str]) + 'a;

/// Archives of one backup, each time with one thing wrong.
fn check_archives(dir: &TestDir, backup: &Path, check: &Check<'_>) {
    let broken = dir.create_subdir("broken").unwrap();
    let restore = || {
        for entry in fs::read_dir(backup).unwrap() {
            let entry = entry.unwrap();
            let target = broken.join(entry.file_name());
            fs::copy(entry.path(), &target).unwrap();
        }
        give_to_server_user(&broken);
    };
    restore();
    let tablespace = fs::read_dir(&broken).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let tablespace = tablespace.into_iter().find(|name| name.starts_with(|c: char| c.is_ascii_digit())).unwrap();

    for name in ["base.tar", "pg_wal.tar", tablespace.as_str()] {
        let file = broken.join(name);
        let length = fs::metadata(&file).unwrap().len();
        for left in [length - 1, length - 1024, length / 2, 1000] {
            fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(left).unwrap();
            check("--tar", &broken, &[""]); // Where the cut lies decides what it looks like; what counts is that nothing stays.
        }
        restore();
    }
    fs::remove_file(broken.join(&tablespace)).unwrap();
    check("--tar", &broken, &["a tablespace is missing", &tablespace]);
    restore();
    // The first segment that the label names.
    fs::remove_file(broken.join("pg_wal.tar")).unwrap();
    let label = run(Command::new("tar")
        .arg("--extract")
        .arg("--to-stdout")
        .arg("--file")
        .arg(broken.join("base.tar"))
        .arg("backup_label"));
    let label = label.unwrap();
    let segment = label.split("(file ").nth(1).unwrap().split(')').next().unwrap();
    check("--tar", &broken, &["WAL is missing", "the record that ends the backup", segment]);
    restore();
    // Without a label it is a directory that somebody packed while it was written.
    leave_out(&broken.join("base.tar"), "backup_label");
    check("--tar", &broken, &["this is no base backup", "backup_label"]);
}

/// Packs the archive anew without one file.
fn leave_out(path: &Path, name: &str) {
    let mut archive = tar::Archive::new(fs::File::open(path).unwrap());
    let packed = path.with_extension("new");
    let mut builder = tar::Builder::new(fs::File::create(&packed).unwrap());
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.path().unwrap() != Path::new(name) {
            let header = entry.header().clone();
            builder.append(&header, &mut entry).unwrap();
        }
    }
    builder.into_inner().unwrap();
    fs::rename(packed, path).unwrap();
}

/// A crashed directory, each time with one thing wrong.
fn check_directories(server: &Postgres, check: &Check<'_>) {
    let data_dir = server.data_dir();
    let write = |name: &str, content: &[u8]| {
        let path = data_dir.join(name);
        let before = fs::read(&path).unwrap();
        fs::write(&path, content).unwrap();
        before
    };
    let version = write("PG_VERSION", b"13\n");
    check("--directory", data_dir, &["the cluster cannot be served", "13"]);
    write("PG_VERSION", b"17\n");
    check("--directory", data_dir, &["control file is not of the expected version"]);
    write("PG_VERSION", &version);

    let mut damaged = fs::read(data_dir.join("global/pg_control")).unwrap();
    damaged[40] ^= 1;
    let control = write("global/pg_control", &damaged);
    check("--directory", data_dir, &["control file has a wrong checksum"]);
    write("global/pg_control", &control);

    let mut segments: Vec<String> = fs::read_dir(data_dir.join("pg_wal"))
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter(|name| name.len() == 24)
        .collect();
    segments.sort();
    // The checkpoint is in one of the first, the end in one of the last: there are at least two switches behind it.
    let redo = server_redo_segment(server);
    let at = segments.iter().position(|name| *name == redo).unwrap();
    let (first, middle) = (&segments[at], &segments[at + 1]);
    let wal = |name: &str| data_dir.join("pg_wal").join(name);
    fs::rename(wal(middle), wal("away")).unwrap();
    check("--directory", data_dir, &["WAL has a hole", middle]);
    fs::rename(wal("away"), wal(middle)).unwrap();
    fs::rename(wal(first), wal("away")).unwrap();
    check("--directory", data_dir, &["WAL", first]);
    fs::rename(wal("away"), wal(first)).unwrap();
    let mut bytes = fs::read(wal(middle)).unwrap();
    bytes[100..200].fill(0xAA);
    let whole = write(&format!("pg_wal/{middle}"), &bytes);
    check("--directory", data_dir, &["a WAL segment is damaged", middle]);
    write(&format!("pg_wal/{middle}"), &whole);

    let base = data_dir.join("base/1/1259");
    let relation = fs::read(&base).unwrap();
    fs::write(data_dir.join("base/1/PG_VERSION"), b"14\n").unwrap();
    check("--directory", data_dir, &["another version", "base/1/PG_VERSION"]);
    fs::write(data_dir.join("base/1/PG_VERSION"), &version).unwrap();
    assert_eq!(fs::read(&base).unwrap(), relation);
}

/// The segment of the redo point of a stopped or crashed server.
fn server_redo_segment(server: &Postgres) -> String {
    let program = server.bin_dir().join("pg_controldata");
    let text = run(server_command(&program, server.data_dir()).unwrap().arg(server.data_dir())).unwrap();
    let line = text.lines().find(|line| line.starts_with("Latest checkpoint's REDO WAL file:")).unwrap();
    line.rsplit(' ').next().unwrap().to_owned()
}
