//! Requests for what is not there, not yet there or not a request at all.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use pageserver::client::{Client, ClientConfig, PageStream, ReadAt};
use pageserver::page_service::pagestream::wire::Version;
use postgres_ffi::{ForkNumber, Lsn, RelTag};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tests::PageServer;

use super::rig::{Rig, small_primary};

const WAIT_SECONDS: u64 = 3;

fn stream(rig: &Rig, timeline: &str) -> Result<PageStream> {
    let client = Client::connect(&ClientConfig::new(format!("127.0.0.1:{}", rig.pageserver.port())))?;
    Ok(PageStream::start(client, Version::V3, None, timeline)?)
}

#[test]
fn every_lsn_that_cannot_be_read_is_refused_for_its_own_reason() -> Result<()> {
    let builder = PageServer::builder().config(&format!("wait_lsn_timeout_seconds = {WAIT_SECONDS}"))?;
    let mut rig = Rig::start("lsn", small_primary(), builder)?;
    let (table, _) = rig.table()?;
    let rel: RelTag = table.parse()?;
    let last_lsn = rig.last_record_lsn()?;
    let first_lsn: Lsn = rig.pageserver.timeline("main", "first_readable_lsn")?.parse()?;
    let mut pages = stream(&rig, "main")?;
    let mut error_at = |lsns: ReadAt| match pages.get_page(rel, ForkNumber::Main, 0, lsns) {
        Ok(_) => bail!("a page at {lsns:?}"),
        Err(error) => Ok(error.to_string()),
    };
    assert!(error_at(ReadAt::lsn(Lsn::ZERO))?.contains("invalid LSN(0)"));
    let below = Lsn::new(first_lsn.as_u64() - 8);
    let error = error_at(ReadAt::lsn(below))?;
    assert!(error.contains(&below.to_string()) && error.contains(&first_lsn.to_string()), "{error}");
    let swapped = ReadAt { request_lsn: first_lsn, not_modified_since: last_lsn };
    assert!(first_lsn < last_lsn && error_at(swapped)?.contains("Bad request"));

    // The future: waited for, then named.
    let future = Lsn::new(last_lsn.as_u64() + (1 << 30));
    let begun = Instant::now();
    let error = error_at(ReadAt::lsn(future))?;
    assert!(begun.elapsed() >= Duration::from_secs(WAIT_SECONDS), "{:?}", begun.elapsed());
    assert!(error.contains("LSN timeout") && error.contains(&future.to_string()), "{error}");
    assert!(error.contains("last_record_lsn"), "{error}");
    // The stream goes on.
    pages.get_page(rel, ForkNumber::Main, 0, ReadAt::lsn(last_lsn))?;
    // What arrives while it is waited for is answered.
    rig.pageserver.stop()?;
    rig.pageserver.set_config("wait_lsn_timeout_seconds = 120")?;
    rig.pageserver.start()?;
    let mut pages = stream(&rig, "main")?;
    let soon = Lsn::new(rig.primary.current_lsn()?.as_u64() + 8);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| pages.get_page(rel, ForkNumber::Main, 0, ReadAt::lsn(soon)).map(drop));
        rig.write()?;
        waiting.join().map_err(|_| anyhow::anyhow!("it panicked"))?.context("it arrived")
    })?;
    commands_refuse_the_same(&rig, &table, below, future)?;
    rig.stop_and_compare()
}

/// Commands do not wait.
fn commands_refuse_the_same(rig: &Rig, table: &str, below: Lsn, future: Lsn) -> Result<()> {
    let refused = |command: &str| match rig.pageserver.connect()?.simple_query(command) {
        Ok(_) => bail!("it was done: {command}"),
        Err(error) => {
            let error = error.as_db_error().context("an error of the server")?;
            Ok(format!("{} {}", error.code().code(), error.message()))
        }
    };
    for (command, expected) in [
        (format!("PAGE GET main '{table}/main/0' AT '0/0'"), "22023"),
        (format!("PAGE GET main '{table}/main/0' AT '{below}'"), "22023"),
        (format!("PAGE GET main '{table}/main/0' AT '{future}'"), "55000 this LSN has not arrived yet"),
        (format!("PAGE GET main '{table}/main/0' AT 'yesterday'"), "22023"),
        (format!("PAGE GET another '{table}/main/0'"), "42704"),
        ("PAGE GET main '1663/5/4294967295/main/0'".to_owned(), "42704"),
        ("PAGE GET main 'somewhere'".to_owned(), "22023"),
        ("SHOW TIMELINE 00112233445566778899aabbccddeeff".to_owned(), "42704"),
        ("PAGESTREAM_V3 another".to_owned(), "42704"),
        ("FROBNICATE".to_owned(), "42601"),
    ] {
        let error = refused(&command)?;
        assert!(error.starts_with(expected), "{command}: {error}");
    }
    assert!(format!("{:#}", stream(rig, "another").err().context("a stream")?).contains("another"));
    Ok(())
}

/// Sends `bytes`, says that this was all, and reads to the end. The server may be the first to hang up.
fn send(port: u16, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut socket = TcpStream::connect(("127.0.0.1", port))?;
    socket.set_read_timeout(Some(Duration::from_secs(30)))?;
    let _ = socket.write_all(bytes);
    let _ = socket.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    match socket.read_to_end(&mut answer) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => Err(error.into()),
        _ => Ok(answer),
    }
}

#[test]
fn garbage_and_frames_too_long_end_their_own_connection_alone() -> Result<()> {
    let mut rig = Rig::start("garbage", small_primary(), PageServer::builder())?;
    let port = rig.pageserver.port();
    let mut bystander = rig.pageserver.connect()?;
    let session = |bytes: &[u8]| [b"\0\0\0\x11\0\x03\0\0user\0me\0\0", bytes].concat();
    let page_stream = |bytes: &[u8]| session(&[b"Q\0\0\0\x17pagestream_v3 main\0", bytes].concat());
    for (bytes, expected) in [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), "08P01"),
        (b"\x7f\xff\xff\xff\0\x03\0\0".to_vec(), "08P01"),
        (session(b"Q\x7f\xff\xff\xff"), "08P01"),
        (session(b"Q\0\x20\0\0"), "08P01"),
        (session(b"?\0\0\0\x04"), "08P01"),
        (page_stream(b"d\0\x02\0\0"), "08P01"),
        (page_stream(b"d\0\0\0\x08\xff\xff\xff\xff"), "08P01"),
    ] {
        let answer = send(port, &bytes)?;
        let text = answer.escape_ascii().to_string();
        assert!(text.contains(expected), "{}: {text}", bytes.escape_ascii());
    }
    let seed = std::env::var("SEED").map_or(42, |seed| seed.parse().unwrap());
    println!("seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    for round in 0..300 {
        let mut noise = vec![0; rng.random_range(0..3000)];
        rng.fill(&mut noise[..]);
        let bytes = match round % 3 {
            0 => noise,
            1 => session(&noise),
            _ => page_stream(&noise),
        };
        send(port, &bytes)?;
    }
    assert!(!bystander.simple_query("SHOW TIMELINES")?.is_empty(), "others go on");
    rig.pageserver.check_alive()?;
    rig.stop_and_compare()
}
