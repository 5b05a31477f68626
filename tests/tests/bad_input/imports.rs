//! Imports that cannot be: an error with the reason, and nothing left behind.

use std::io::{Read, Write};
use std::net::TcpListener;

use anyhow::{Context, Result, ensure};
use tests::{CutProxy, PageServer, Postgres, TestDir};

use super::rig::small_primary;

/// The error of an import.
fn refused(server: &PageServer, conninfo: &str) -> Result<String> {
    let error = server.import("main", conninfo).err().context("it was imported")?;
    ensure!(server.query("SHOW TIMELINES")?.is_empty(), "a timeline is left: {error:#}");
    let left = std::fs::read_dir(server.data_dir().join("timelines"))?.count();
    ensure!(left == 0, "{left} directories are left: {error:#}");
    // Debug: the whole error that the server sent.
    Ok(format!("{error:?}"))
}

/// Somebody who answers a login with `answer`, and then closes.
fn answer_with(answer: Vec<u8>) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        // The page server asks as often as it likes; it ends with the test.
        while let Ok((mut socket, _)) = listener.accept() {
            let _ = socket.read(&mut [0; 4096]);
            let _ = socket.write_all(&answer);
            let _ = socket.read(&mut [0; 4096]);
        }
    });
    Ok(format!("host=127.0.0.1 port={port} user=postgres sslmode=disable connect_timeout=2"))
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
}

/// Login without a password at a server of this version.
fn login(version: &str) -> Vec<u8> {
    let parameter = [b"server_version\0", version.as_bytes(), b"\0"].concat();
    [message(b'R', &[0; 4]), message(b'S', &parameter), message(b'K', &[0; 8]), message(b'Z', b"I")].concat()
}

#[test]
fn servers_that_cannot_be_imported_are_refused_with_the_reason() -> Result<()> {
    let dir = TestDir::new("bad-import")?;
    let mut server = PageServer::builder().start(&dir)?;
    server.expect_in_log("took away a timeline whose import did not finish");
    for (answer, reason) in [
        (login("13.20"), "unsupported PostgreSQL major version, expected 14 to 18. value=`13`"),
        (login("19.1"), "unsupported PostgreSQL major version, expected 14 to 18. value=`19`"),
        (login("9.6.1"), "unsupported PostgreSQL major version"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), "too long"),
        (vec![b'R', 0xFF, 0xFF, 0xFF, 0xFF], "too long"),
        (login("15.1").into_iter().chain([0xFF; 64]).collect(), "too long"),
        (Vec::new(), "did not answer in time"),
    ] {
        let error = refused(&server, &answer_with(answer)?)?;
        assert!(error.contains(reason), "`{reason}`: {error}");
    }
    let minimal = Postgres::builder(postgres_ffi::PgVersion::V17).wal_level("minimal").setting("max_wal_senders", "0");
    let minimal = minimal.start(&dir)?;
    let error = refused(&server, &minimal.conninfo())?;
    assert!(error.contains("wal_level") && error.contains("minimal"), "{error}");
    let error = refused(&server, "host=127.0.0.1 port=1 user=postgres")?;
    assert!(error.contains("refused"), "{error}");
    let error = refused(&server, "host=127.0.0.1 no_such_word=1")?;
    assert!(error.contains("no_such_word"), "{error}");
    server.stop()?;
    server.start()?;
    assert!(server.query("SHOW TIMELINES")?.is_empty());
    Ok(())
}

#[test]
fn a_truncated_backup_leaves_nothing_and_can_be_repeated() -> Result<()> {
    let dir = TestDir::new("cut-import")?;
    let primary = small_primary().start(&dir)?;
    let proxy = CutProxy::start(primary.port())?;
    let mut server = PageServer::builder().start(&dir)?;
    server.expect_in_log("took away a timeline whose import did not finish");
    let slots = || primary.query_text("SELECT count(*) FROM pg_replication_slots");
    // In the login, in the first archive, in the middle, near the end.
    for bytes in [300, 100_000, 9_000_001, 20_000_000] {
        proxy.cut_after(bytes);
        let error = refused(&server, &primary.conninfo_through(proxy.port()))?;
        assert!(error.contains("clos") || error.contains("whole") || error.contains("reset"), "{bytes}: {error}");
        assert_eq!(slots()?, "0", "after {bytes} bytes: {error}");
    }
    proxy.cut_no_more();
    server.expect_in_log("connection to the primary"); // The proxy goes before the server.
    server.import("main", &primary.conninfo_through(proxy.port()))?;
    assert_eq!(server.timeline("main", "state")?, "active");
    // The name is taken now, and the timeline that has it is left alone.
    let error = format!("{:?}", server.import("main", &primary.conninfo()).err().context("imported twice")?);
    assert!(error.contains("a timeline of this name exists"), "{error}");
    assert_eq!(server.timeline("main", "state")?, "active");
    assert_eq!(slots()?, "1");
    Ok(())
}
