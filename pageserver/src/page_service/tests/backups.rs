//! Goal: a backup's bytes come whole and in order, or the client learns why not and may go on. Method: our client, and a bare socket to see the messages.

use std::io::{Read, Write};
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::toy::{GROWN_AT, LAST_RECORD, backup_bytes};
use super::{Fixture, message, read_until_ready, sqlstate, tags};
use crate::client::ClientError;
use crate::page_service::basebackup::BackupBegin;
use postgres_ffi::Lsn;

#[test]
fn a_backup_comes_whole() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    for _ in 0..2 {
        let mut backup = client.copy_out("BASEBACKUP main").expect("begins");
        let begin: BackupBegin = backup.notices()[0].parse().expect("says what it is");
        assert_eq!(begin.branch_lsn, Lsn::new(LAST_RECORD));
        let mut bytes = Vec::new();
        backup.read_to_end(&mut bytes).expect("comes");
        assert!(bytes == backup_bytes());
        assert_eq!(backup.read(&mut [0; 8]).expect("stays at its end"), 0);
    }
    assert_eq!(client.query_one("show timelines").expect("goes on").rows.len(), 1);
}

#[test]
fn messages_are_those_of_a_copy() {
    let fixture = Fixture::new();
    let mut session = fixture.session();
    session.write_all(&message(b'Q', b"basebackup main 0/3000; show status\0")).expect("writes");
    let messages = read_until_ready(&mut session);
    let shape: String = tags(&messages).replace("dd", "d").replace("dd", "d").replace("dd", "d");
    assert!(shape.starts_with("NHdcCT"), "{shape}");
    // The extended protocol: no rows are described.
    for part in [
        message(b'P', b"\0basebackup main\0\0\0"),
        message(b'B', b"\0\0\0\0\0\0\0\0"),
        message(b'D', b"P\0"),
        message(b'E', b"\0\0\0\0\0"),
        message(b'S', b""),
    ] {
        session.write_all(&part).expect("writes");
    }
    let shape = tags(&read_until_ready(&mut session));
    assert!(shape.starts_with("12nNHd") && shape.ends_with("dcCZ"), "{shape}");
}

#[test]
fn refusals_and_errors_in_the_middle_leave_the_connection() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let refused = |error: ClientError| match error {
        ClientError::Server(error) => error.sqlstate,
        error => panic!("{error:?}"),
    };
    assert_eq!(refused(client.copy_out("BASEBACKUP other").expect_err("no such timeline")), "42704");
    assert_eq!(refused(client.copy_out("BASEBACKUP main 0/10").expect_err("too old")), "22023");
    assert!(matches!(client.copy_out("show status"), Err(ClientError::Unexpected { .. })));

    let mut client = fixture.client();
    let mut backup = client.copy_out(&format!("BASEBACKUP main {}", Lsn::new(GROWN_AT))).expect("begins");
    let mut bytes = Vec::new();
    let error = backup.read_to_end(&mut bytes).expect_err("ends in the middle");
    assert!(error.to_string().contains("the backup ends here"), "{error}");
    assert!(bytes.len() < backup_bytes().len() && backup_bytes().starts_with(&bytes));
    assert_eq!(client.query_one("show timelines").expect("goes on").rows.len(), 1);

    let mut session = fixture.session();
    session.write_all(&message(b'Q', format!("basebackup main {}\0", Lsn::new(GROWN_AT)).as_bytes())).expect("writes");
    let messages = read_until_ready(&mut session);
    assert!(!tags(&messages).contains('c'), "no CopyDone after an error");
    let error = messages.iter().find(|(tag, _)| *tag == b'E').expect("an error");
    assert_eq!(sqlstate(&error.1), "XX001");
}

#[test]
fn a_wal_file_is_sent_whole_or_not_at_all() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let mut bytes = Vec::new();
    client.copy_out("WAL GET main whole").expect("begins").read_to_end(&mut bytes).expect("comes");
    assert!(bytes == backup_bytes());
    let error = client.copy_out("WAL GET main other").expect_err("is not there");
    assert!(error.to_string().contains("58P01"), "{error}");
    for (file, expected) in [("broken", "the disk is broken"), ("cut", "it has become shorter")] {
        let mut bytes = client.copy_out(&format!("WAL GET main {file}")).expect("begins");
        let error = bytes.read_to_end(&mut Vec::new()).expect_err("ends in the middle");
        assert!(error.to_string().contains(expected), "{error}");
    }
    assert_eq!(client.query_one("show timelines").expect("goes on").rows.len(), 1);
}

#[test]
fn a_backup_waits_for_its_lsn() {
    let fixture = Fixture::new();
    let toy = fixture.toy.clone();
    let waiter = std::thread::spawn({
        let mut client = fixture.client();
        move || {
            let mut bytes = Vec::new();
            client.copy_out("BASEBACKUP main 0/4000").expect("begins").read_to_end(&mut bytes).expect("comes");
            bytes
        }
    });
    std::thread::sleep(Duration::from_millis(300));
    assert!(!waiter.is_finished());
    toy.advance(0x4000);
    assert!(waiter.join().expect("ends") == backup_bytes());
    let impatient = Fixture::with(|config| config.wait_lsn_timeout = Duration::from_millis(300));
    let error = impatient.client().copy_out("BASEBACKUP main 0/4000").expect_err("does not come");
    assert!(error.to_string().contains("55000"), "{error}");
}

#[test]
fn a_backup_is_cancelled_and_ends_with_its_client() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let token = client.cancel_token();
    let mut backup = client.copy_out("BASEBACKUP main --gzip").expect("begins");
    token.cancel().expect("cancels");
    let error = std::io::copy(&mut backup, &mut std::io::sink()).expect_err("ends");
    assert!(error.to_string().contains("57014"), "{error}");
    assert_eq!(client.query_one("show timelines").expect("goes on").rows.len(), 1);

    client.send_and_leave("BASEBACKUP main --gzip");
    let pieces = || fixture.toy.backup_pieces.load(Ordering::SeqCst);
    let mut before = pieces();
    for _ in 0..200 {
        std::thread::sleep(Duration::from_millis(50));
        let now = pieces();
        if now == before {
            return;
        }
        before = now;
    }
    panic!("the backup goes on without its client");
}
