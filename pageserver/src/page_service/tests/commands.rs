//! Commands over our own client: rows, notices, errors, several at once, cancel.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use postgres_ffi::{BLCKSZ, Lsn};

use super::Fixture;
use super::toy::{self, ID, page_of};
use crate::client::{ClientError, ImportProgress, ResultSet};
use crate::import::ClusterFiles;

/// Rows as text, columns separated by `|`, NULL as nothing.
fn rows(result: &ResultSet) -> Vec<String> {
    let show = |value: &Option<String>| value.clone().unwrap_or_default();
    result.rows.iter().map(|row| row.values().iter().map(show).collect::<Vec<_>>().join("|")).collect()
}

fn check(command: &str, columns: &str, expect: &[&str]) {
    let result = Fixture::new().client().query_one(command).expect(command);
    assert_eq!(result.columns.join("|"), columns, "{command}");
    assert_eq!(rows(&result), expect, "{command}");
    assert_eq!(result.tag, format!("SELECT {}", expect.len()), "{command}");
}

#[test]
fn rows_of_commands() {
    check(
        "SHOW TIMELINES",
        "name|state|pg_version|ancestor|ancestor_lsn|first_readable_lsn|last_record_lsn|tenant|id",
        &[&format!("main|active|15|||0/1000|0/3000|{}|{ID}", toy::TENANT)],
    );
    check("show last_record_lsn", "timeline|last_record_lsn", &["main|0/3000"]);
    check("show last_record_lsn main", "timeline|last_record_lsn", &["main|0/3000"]);
    check(
        "show lag",
        "timeline|state|source_end_lsn|received_lsn|last_record_lsn|durable_lsn|lag_bytes",
        &["main|active|0/3100|0/3000|0/3000|0/2000|256"],
    );
    let columns = "timeline|lsn|tablespace|database|relations|blocks|bytes";
    check("show sizes", columns, &["main|0/3000|1663|5|1|1001|8200192", "main|0/3000|1664|0|0|0|0"]);
    check("show sizes main at 0/1000", columns, &["main|0/1000|1663|5|1|501|4104192", "main|0/1000|1664|0|0|0|0"]);
    let columns = "timeline|lsn|commit_time";
    check("show lsn main at time '2000-01-01 00:00:02'", columns, &["main|0/2000|2000-01-01T00:00:02.000000Z"]);
    check("show lsn main at time '2000-01-01T01:00:01+01'", columns, &["main|0/1000|2000-01-01T00:00:01.000000Z"]);
    check("show time main at 0/2FFF", columns, &["main|0/2FFF|2000-01-01T00:00:02.000000Z"]);
    check("store stats", "name|value", &["files|3", "bytes|4711"]);
    check("show redo", "name|value", &["engine|native"]);
    check("database list main", "tablespace|database", &["1663|5"]);
    check("relation list main", "relation|fork|blocks", &["1663/5/16384|main|1000", "1663/5/16384|vm|1"]);
    check("relation list main in 1663/6", "relation|fork|blocks", &[]);
    check("slru list main", "slru|segment|pages", &["pg_xact|2|3"]);
    let removed = "timeline|class|versions|bytes|images|image_bytes";
    check("gc plan main", removed, &[r#"Run { timeline: Some("main"), dry_run: true }|||||"#]);
    let sizes = "timeline|lsn|logical_bytes|slru_bytes|history_bytes|uncompressed_bytes|memory_bytes|wal_bytes|wal_history_bytes|own_bytes|pinned_by|pins|pinned_bytes";
    let shown = r#"SizeCommand { timeline: Some("main"), at: None, pins: true }||||||||||||"#;
    check("size main pins", sizes, &[shown]);
    check("select 'it''s'", "?column?", &["it's"]);
    check("select pg_is_in_recovery()", "pg_is_in_recovery", &["f"]);
    check("show server_encoding", "setting", &["UTF8"]);
}

#[test]
fn whole_objects_as_of_an_lsn() {
    let columns = "class|address|bytes|value";
    let all = [
        r"control_file||7|\x636f6e74726f6c",
        r"checkpoint||10|\x636865636b706f696e74",
        r"database|1663/5|1|\x01",
        r"relation_map|1663/5|3|\x6d6170",
        r"two_phase|4294967303|8|\x7072657061726564",
        r"replication_origin|3|0|\x",
    ];
    check("object list main", columns, &all);
    check("object list main class two_phase", columns, &all[4..5]);
    check("object list main class two_phase at 0/2000", columns, &all[4..5]);
    check("object list main class two_phase at 0/1FFF", columns, &[]);
    check("object list main class relation_map at 0/1000", columns, &all[3..4]);
}

#[test]
fn one_timeline_as_name_and_value() {
    let result = Fixture::new().client().query_one(&format!("show timeline '{ID}'")).expect("rows");
    let rows = rows(&result);
    for row in ["name|main", "state|active", "lag_bytes|256", "ancestor|", "durable_lsn|0/2000", "receiver|streaming"] {
        assert!(rows.contains(&row.to_owned()), "{row} in {rows:?}");
    }
}

#[test]
fn help_lists_what_the_parser_knows_and_status_tells_the_process() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    assert!(rows(&client.query_one("help").expect("rows")).iter().any(|row| row.starts_with("PAGE GET")));
    let status = client.query_one("show status").expect("rows");
    assert!(rows(&status).contains(&format!("process_id|{}", std::process::id())));
    assert!(rows(&status).contains(&"connections|1".to_owned()));
}

#[test]
fn pages_and_their_history() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let result = client.query_one("page get main 1663/5/16384/main/7 at 0/1FFF").expect("a row");
    assert_eq!(result.rows[0].get_lsn(0), Some(Lsn::new(0x1FFF)));
    assert_eq!(result.rows[0].get(1), Some("500"));
    assert!(result.rows[0].get_bytes(2).expect("bytes") == page_of(7, 0x1FFF));
    // A page of zeroes and a block that is not there are told apart.
    let zero = client.query_one("page get main 1663/5/16384/main/13").expect("a row");
    assert!(zero.rows[0].get_bytes(2).expect("bytes") == [0; BLCKSZ][..]);
    let beyond = client.query_one("page get main 1663/5/16384/main/1000").expect("a row");
    assert_eq!((beyond.rows[0].get(1), beyond.rows[0].get(2)), (Some("1000"), None));
    let clog = client.query_one("page get main pg_xact/64").expect("a row");
    assert_eq!(clog.rows[0].get(1), None);
    assert!(clog.rows[0].get_bytes(2).expect("bytes") == page_of(64, toy::LAST_RECORD));

    let history = client.query_one("page history main 1663/5/16384/main/7").expect("rows");
    let kinds: Vec<_> = history.rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    let newest = (Some("0/3000"), Some("delta"), Some("7"));
    let oldest = (Some("0/2000"), Some("image"), Some("8192"));
    assert_eq!(kinds, [newest, oldest]);
    let to = client.query_one("page history main 1663/5/16384/main/7 to 0/2FFF").expect("rows");
    assert_eq!(to.rows.len(), 1);
    let from = client.query_one("page history main 1663/5/16384/main/7 from 0/2001 to 0/3000").expect("rows");
    assert_eq!(from.rows.len(), 1);
}

#[test]
fn errors_leave_the_connection_usable() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    for (command, sqlstate) in [
        ("bogus", "42601"),
        ("show timeline nowhere", "42704"),
        ("page get main 1663/5/99/main/0", "42704"),
        ("page get main 1663/5/16384/main/0 at 0/3001", "55000"),
        ("page get main 1663/5/16384/main/0 at 0/FFF", "22023"),
        ("page get main 1663/5/16384/main/666", "XX001"),
        ("show time main", "42704"),
        ("show time main at 0/3001", "55000"),
        ("show lsn main at time '1999-12-31'", "22023"),
        ("show lsn nowhere at time '2026-11-25'", "42704"),
        ("object list nowhere", "42704"),
        ("object list main at 0/3001", "55000"),
        ("object list main class checkpoint at 0/FFF", "22023"),
        ("object list main class pages", "22023"),
        ("select * from pg_class", "0A000"),
        ("lease lsn a b 0/1", "42601"),
        ("lease end 8", "42704"),
        ("show sizes; help 'x", "42601"),
    ] {
        match client.query(command).expect_err(command) {
            ClientError::Server(error) => {
                assert_eq!((&error.sqlstate[..], &error.severity[..]), (sqlstate, "ERROR"), "{error}")
            }
            other => panic!("{command}: {other}"),
        }
        assert_eq!(client.query_one("select 1").expect("usable").rows[0].get(0), Some("1"));
    }
}

#[test]
fn several_commands_at_once() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let results = client.query("set a = b; select 1;; show lag ; begin").expect("all of them");
    let tags: Vec<&str> = results.iter().map(|result| &result.tag[..]).collect();
    assert_eq!(tags, ["SET", "SELECT 1", "SELECT 1", "BEGIN"]);
    assert_eq!(client.query("").expect("the empty query"), [ResultSet::default()]);
    // The first error stops the rest.
    assert!(client.query("select 1; show timeline nowhere; select 2").is_err());
}

#[test]
fn changes_of_timelines_give_the_timeline_and_tell_what_happened() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    for command in ["branch create b from main at 0/10", "branch reset b", "timeline unfollow b"] {
        let mut notices = Vec::new();
        let results =
            client.query_with_notices(command, &mut |notice| notices.push(notice.to_string())).expect(command);
        let columns = "name|state|pg_version|ancestor|ancestor_lsn|first_readable_lsn|last_record_lsn|tenant|id";
        assert_eq!(results[0].columns.join("|"), columns);
        assert!(rows(&results[0])[0].starts_with("main|active|15|"));
        assert!(notices.len() == 2 && notices[0].contains("toy: 1 bytes"), "{notices:?}");
    }
}

#[test]
fn findings_and_repairs_are_rows() {
    let fixture = Fixture::new();
    let check = |command: &str, columns: &str, expect: &[&str]| {
        let results = fixture.client().query(command).expect(command);
        assert_eq!(
            (results[0].columns.join("|").as_str(), rows(&results[0])),
            (columns, expect.iter().map(|row| (*row).to_owned()).collect()),
            "{command}"
        );
    };
    let columns = "timeline|part|object|lsn|file|what|what_to_do";
    let file = "wal/000000010000000000000000";
    check("verify", columns, &[&format!("|wal|record at 0/28|0/28|{file}|None|nothing")]);
    check("verify main rate 2", columns, &[&format!("main|wal|record at 0/28|0/28|{file}|Some(2097152)|nothing")]);
    let columns = "timeline|part|object|file|outcome|what";
    check("repair", columns, &["|wal|segment||repaired|toy"]);
    check("repair main dry run", columns, &["main|wal|segment||would be repaired|toy"]);
}

#[test]
fn leases_are_rows() {
    let columns = "lease|timeline|lsn|valid_until";
    check("lease main at 0/2000 for 60", columns, &["7|main|0/2000|1970-01-01T00:01:00.000000Z"]);
    check("lease list", columns, &[]);
}

#[test]
fn import_tells_its_progress() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let mut seen = Vec::new();
    let conninfo = "host=/tmp user='o''neill'";
    let result = client
        .import("it's new", conninfo, &mut |progress| seen.push((progress.bytes_done, progress.bytes_total)))
        .expect("imported");
    assert_eq!(seen, [(5, Some(10)), (10, Some(10))]);
    assert_eq!(result.rows[0].get(0), Some("it's new"));
}

#[test]
fn files_are_imported_by_their_path() {
    let mut seen = Vec::new();
    let files = ClusterFiles::Directory("/srv/o'neill".into());
    let mut on_progress = |progress: &ImportProgress| seen.push((progress.phase.clone(), progress.bytes_done));
    let result = Fixture::new().client().import_files("new", &files, &mut on_progress).expect("imported");
    assert_eq!(seen, [("files".to_owned(), 7)]);
    assert_eq!(result.rows[0].get(0), Some("new"));
}

#[test]
fn an_import_is_cancelled_by_a_cancel_request_and_by_a_client_that_goes() {
    let fixture = Fixture::new();
    fixture.toy.slow_import.store(true, Ordering::SeqCst);
    let command = "import x from 'host=/tmp user=''o''''neill'''";
    let mut client = fixture.client();
    let token = client.cancel_token();
    let mut cancelled = false;
    let error = client
        .query_with_notices(command, &mut |_| {
            if !std::mem::replace(&mut cancelled, true) {
                token.cancel().expect("sent");
            }
        })
        .expect_err("cancelled");
    let ClientError::Server(error) = error else { panic!("{error:?}") };
    assert_eq!(error.sqlstate, "57014");
    assert_eq!(client.query_one("select 1").expect("usable").tag, "SELECT 1");

    fixture.client().send_and_leave(command);
    let deadline = Instant::now() + Duration::from_secs(20);
    while fixture.toy.imports_cancelled.load(Ordering::SeqCst) < 2 {
        assert!(Instant::now() < deadline, "the import goes on without a client");
        std::thread::sleep(Duration::from_millis(10));
    }
}
