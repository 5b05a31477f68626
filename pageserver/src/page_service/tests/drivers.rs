//! Clients that we did not write: `psql` and the `postgres` crate (extended protocol, binary results).

use std::process::{Command, Output};
use std::time::Duration;

use postgres::{Config, NoTls, SimpleQueryMessage};

use super::Fixture;
use super::toy::{self, page_of};
use crate::page_service::command::parse::FORMS;

fn psql(fixture: &Fixture, args: &[&str]) -> Option<Output> {
    let port = fixture.service.local_addr().port().to_string();
    let output = Command::new("psql")
        .args(["-X", "-h", "127.0.0.1", "-U", "joe", "-d", "any", "-p", &port])
        .args(args)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .output();
    match output {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("psql is not installed: this test shows nothing");
            None
        }
        Err(error) => panic!("psql: {error}"),
    }
}

fn check_psql(args: &[&str], expect_stdout: &str, expect_stderr: &str) {
    let fixture = Fixture::new();
    let Some(output) = psql(&fixture, args) else { return };
    assert_eq!(String::from_utf8_lossy(&output.stdout), expect_stdout, "{args:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), expect_stderr, "{args:?}");
}

#[test]
fn psql_shows_tables() {
    check_psql(
        &["-c", "show last_record_lsn"],
        " timeline | last_record_lsn \n----------+-----------------\n main     | 0/3000\n(1 row)\n\n",
        "",
    );
    check_psql(
        &["-At", "-c", "show lag; select 1", "-c", "database list main"],
        "main|active|0/3100|0/3000|0/3000|0/2000|256\n1\n1663|5\n",
        "",
    );
    check_psql(&["-At", "-c", "SET a = 1; BEGIN"], "SET\nBEGIN\n", "");
    check_psql(&["-At", "-c", "/* who */ select version() -- what"], "PostgreSQL 15.0 (pageserver 0.1.0)\n", "");
    check_psql(&["-At", "-c", ""], "", "");
}

#[test]
fn psql_shows_errors_with_hints_and_notices() {
    check_psql(
        &["-At", "-c", "select * from t"],
        "",
        "ERROR:  this is a page server: it has pages, not tables to query\nHINT:  HELP lists the commands. To query the data, start a PostgreSQL on a branch.\n",
    );
    check_psql(
        &["-qAt", "-c", "import y from 'host=/tmp user=''o''''neill'''"],
        &format!("y|active|15|||0/1000|0/3000|{}|{}\n", toy::TENANT, toy::ID),
        "NOTICE:  base backup: 5 of 10 bytes\nNOTICE:  base backup: 10 of 10 bytes\n",
    );
}

#[test]
fn psql_describes_statements_and_shows_pages() {
    let fixture = Fixture::new();
    let Some(output) = psql(&fixture, &["-At", "-c", "page get main 1663/5/16384/main/3"]) else { return };
    let hex: String = page_of(3, toy::LAST_RECORD).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("0/3000|1000|\\x{hex}\n"));
    // \gdesc uses Parse and Describe without running.
    let Some(output) = psql(&fixture, &["-At", "-c", "show lag \\gdesc"]) else { return };
    let _ = output; // \gdesc asks the catalog for type names next, which we do not have: only must not hang or crash.
    assert_eq!(fixture.service.counters().refused_total.load(std::sync::atomic::Ordering::Relaxed), 0);
}

fn connect(fixture: &Fixture) -> postgres::Client {
    Config::new()
        .host("127.0.0.1")
        .port(fixture.service.local_addr().port())
        .user("joe")
        .connect_timeout(Duration::from_secs(10))
        .connect(NoTls)
        .expect("connects")
}

#[test]
fn the_postgres_crate_reads_binary_results() {
    let fixture = Fixture::new();
    let mut client = connect(&fixture);
    let row = client.query_one("page get main 1663/5/16384/main/5", &[]).expect("a row");
    assert_eq!(row.get::<_, &str>("lsn"), "0/3000");
    assert_eq!(row.get::<_, i64>("blocks"), 1_000);
    assert!(row.get::<_, &[u8]>("page") == page_of(5, toy::LAST_RECORD));
    let row = client.query_one("select pg_is_in_recovery()", &[]).expect("a row");
    assert!(!row.get::<_, bool>(0));
    let row = client.query_one("show timelines", &[]).expect("a row");
    assert_eq!(row.get::<_, Option<&str>>("ancestor"), None);
    assert_eq!(row.get::<_, i64>("pg_version"), 15);
    let statement = client.prepare("relation list main").expect("prepares");
    for _ in 0..3 {
        assert_eq!(client.query(&statement, &[]).expect("rows").len(), 2);
    }
    assert_eq!(client.execute("set x = 1", &[]).expect("no rows"), 0);
}

#[test]
fn the_postgres_crate_takes_rows_in_portions() {
    let fixture = Fixture::new();
    let mut client = connect(&fixture);
    let mut transaction = client.transaction().expect("begins");
    let portal = transaction.bind("help", &[]).expect("binds");
    let row_count = FORMS.len();
    let mut expected: Vec<usize> = (0..row_count).step_by(5).map(|start| 5.min(row_count - start)).collect();
    expected.extend([0, 0]);
    let portion = || transaction.query_portal(&portal, 5).expect("a portion").len();
    let portions: Vec<usize> = std::iter::repeat_with(portion).take(expected.len()).collect();
    assert_eq!(portions, expected);
    transaction.commit().expect("ends");
    // Without a transaction a portal lives until Sync, as in PostgreSQL.
    assert_eq!(client.query("help", &[]).expect("rows").len(), row_count);
}

#[test]
fn the_postgres_crate_sees_errors_and_goes_on() {
    let fixture = Fixture::new();
    let mut client = connect(&fixture);
    for (command, sqlstate) in
        [("bogus", "42601"), ("show timeline nowhere", "42704"), ("help; help", "42601"), ("help $1", "0A000")]
    {
        let error = client.query(command, &[]).expect_err(command);
        assert_eq!(error.code().map(|code| code.code()), Some(sqlstate), "{error:?}");
        let messages = client.simple_query("select 1; select 2").expect("usable");
        let rows = messages.iter().filter(|message| matches!(message, SimpleQueryMessage::Row(_))).count();
        assert_eq!(rows, 2);
    }
    assert!(client.query("", &[]).expect("the empty query").is_empty());
}

#[test]
fn the_postgres_crate_cancels() {
    let fixture = Fixture::new();
    fixture.toy.slow_import.store(true, std::sync::atomic::Ordering::SeqCst);
    let mut client = connect(&fixture);
    let token = client.cancel_token();
    let toy = fixture.toy.clone();
    let canceller = std::thread::spawn(move || {
        while toy.imports_begun.load(std::sync::atomic::Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        token.cancel_query(NoTls).expect("sent");
    });
    let error = client.simple_query("import x from 'host=/tmp user=''o''''neill'''").expect_err("cancelled");
    assert_eq!(error.code().map(|code| code.code()), Some("57014"));
    canceller.join().expect("cancelled");
}
