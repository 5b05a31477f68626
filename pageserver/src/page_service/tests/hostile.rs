//! Clients that mean harm, or are slow, or go away: each harms only itself.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use postgres_ffi::{ForkNumber, Lsn};

use super::toy::{self, REL, page_of};
use super::{Fixture, message, read_message, read_to_end, read_until_ready, sqlstate, tags};
use crate::client::{Client, ClientError, ReadAt};
use crate::page_service::pagestream::wire::{Body, Header, Request, Version};

const STARTUP: &[u8] = b"\0\0\0\x12\0\x03\0\0user\0joe\0\0";

/// The server still serves somebody else.
fn check_alive(fixture: &Fixture) {
    assert_eq!(fixture.client().query_one("select 1").expect("alive").rows.len(), 1);
}

/// Sends `bytes` as the first thing; the answer must be a FATAL error with this SQLSTATE and then the end.
fn check_refused(fixture: &Fixture, bytes: &[u8], expect: &str) {
    let mut socket = fixture.socket();
    socket.write_all(bytes).expect("writes");
    let answer = read_to_end(&mut socket);
    assert_eq!(answer.first(), Some(&b'E'), "{}", bytes.escape_ascii());
    assert_eq!(sqlstate(&answer[5..]), expect, "{}", bytes.escape_ascii());
}

#[test]
fn garbage_on_the_port() {
    let fixture = Fixture::new();
    check_refused(&fixture, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "08P01");
    check_refused(&fixture, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello", "08P01");
    check_refused(&fixture, b"\0\0\0\x04", "08P01");
    check_refused(&fixture, b"\xff\xff\xff\xff", "08P01");
    check_refused(&fixture, b"\0\0\0\x08\0\x02\0\0", "0A000");
    check_refused(&fixture, b"\0\0\0\x09\0\x03\0\0\0", "28000");
    check_refused(&fixture, b"\0\0\0\x0e\0\x03\0\0user\0\0", "08P01");
    let ssl = b"\0\0\0\x08\x04\xd2\x16\x2f";
    let mut socket = fixture.socket();
    socket.write_all(&[&ssl[..], &ssl[..], &ssl[..], &ssl[..]].concat()).expect("writes");
    let answer = read_to_end(&mut socket);
    assert_eq!(&answer[..3], b"NNN");
    assert_eq!(sqlstate(&answer[8..]), "08P01");
    check_alive(&fixture);
}

#[test]
fn negotiation_before_startup() {
    let fixture = Fixture::new();
    let mut socket = fixture.socket();
    socket.write_all(b"\0\0\0\x08\x04\xd2\x16\x30\0\0\0\x08\x04\xd2\x16\x2f").expect("writes");
    let mut answer = [0; 2];
    socket.read_exact(&mut answer).expect("answers");
    assert_eq!(&answer, b"NN");
    socket.write_all(STARTUP).expect("writes");
    let messages = read_until_ready(&mut socket);
    assert!(tags(&messages).starts_with("RS"), "{}", tags(&messages));
    assert!(tags(&messages).ends_with("SKZ"));
}

#[test]
fn newer_protocols_are_negotiated_down() {
    let fixture = Fixture::new();
    for (asked, expect_version, key_len) in [
        (0x0003_0000_u32, None, 4),
        (0x0003_0001, Some(0x0003_0000_u32), 4),
        (0x0003_0002, None, 32),
        (0x0003_270F, Some(0x0003_0002), 32),
    ] {
        let mut packet = STARTUP.to_vec();
        packet[4..8].copy_from_slice(&asked.to_be_bytes());
        let mut socket = fixture.socket();
        socket.write_all(&packet).expect("writes");
        let messages = read_until_ready(&mut socket);
        let negotiated = messages.iter().find(|(tag, _)| *tag == b'v').map(|(_, payload)| payload.clone());
        let expect = expect_version.map(|version| [version.to_be_bytes(), [0; 4]].concat());
        assert_eq!(negotiated, expect, "{asked:#x}");
        let key = messages.iter().find(|(tag, _)| *tag == b'K').expect("a key");
        assert_eq!(key.1.len(), 4 + key_len);
    }
}

#[test]
fn oversized_and_malformed_messages_end_the_connection() {
    let fixture = Fixture::new();
    for (bytes, expect) in [
        (&b"Q\x7f\xff\xff\xff"[..], "08P01"),
        (b"Q\0\0\0\x03", "08P01"),
        (b"?\0\0\0\x04", "08P01"),
        (b"Q\0\0\0\x08abc\0d", "08P01"), // The d begins a message that never ends: but Q itself is fine, so 42601 comes first.
        (b"B\0\0\0\x05\0", "08P01"),
        (b"p\0\0\0\x05\0", "08P01"),
    ] {
        let mut socket = fixture.session();
        socket.write_all(bytes).expect("writes");
        socket.shutdown(std::net::Shutdown::Write).expect("half closes");
        let answer = read_to_end(&mut socket);
        let first = sqlstate(&answer[5..]);
        let ok = first == expect || (bytes[4] == 8 && first == "42601");
        assert!(ok, "{} {first}", bytes.escape_ascii());
    }
    check_alive(&fixture);
}

#[test]
fn malformed_page_requests_end_the_connection_after_what_was_asked_before() {
    let fixture = Fixture::new();
    for bad in [&[2_u8; 41][..], &[2; 43], &[9; 42], &[], &[0; 38 + 1]] {
        let mut socket = fixture.session();
        socket.write_all(&message(b'Q', b"pagestream_v3 main\0")).expect("writes");
        assert_eq!(read_message(&mut socket).0, b'W');
        let mut out = Vec::new();
        let header = Header { request_id: 1, request_lsn: Lsn::MAX, not_modified_since: Lsn::ZERO };
        for block_no in 0..3 {
            Request { header, body: Body::get_page(REL, ForkNumber::Main, block_no) }
                .encode_frame(Version::V3, &mut out);
        }
        out.extend_from_slice(&message(b'd', bad));
        socket.write_all(&out).expect("writes");
        for _ in 0..3 {
            assert_eq!(read_message(&mut socket).0, b'd');
        }
        let (tag, payload) = read_message(&mut socket);
        assert_eq!((tag, sqlstate(&payload)), (b'E', "08P01".to_owned()));
        assert!(read_to_end(&mut socket).is_empty());
    }
    let mut socket = fixture.session();
    socket.write_all(&message(b'Q', b"pagestream_v3 main\0")).expect("writes");
    assert_eq!(read_message(&mut socket).0, b'W');
    socket.write_all(b"d\0\x02\0\0").expect("writes");
    assert_eq!(read_message(&mut socket).0, b'E');
}

#[test]
fn one_byte_at_a_time() {
    let fixture = Fixture::new();
    let mut socket = fixture.socket();
    socket.set_nodelay(true).expect("sets");
    let mut bytes = STARTUP.to_vec();
    bytes.extend(message(b'Q', b"pagestream_v3 main\0"));
    let header = Header { request_id: 1, request_lsn: Lsn::MAX, not_modified_since: Lsn::ZERO };
    Request { header, body: Body::get_page(REL, ForkNumber::Main, 9) }.encode_frame(Version::V3, &mut bytes);
    bytes.extend(message(b'c', b""));
    for byte in bytes {
        socket.write_all(&[byte]).expect("writes");
    }
    read_until_ready(&mut socket);
    assert_eq!(read_message(&mut socket).0, b'W');
    let (tag, payload) = read_message(&mut socket);
    assert_eq!(tag, b'd');
    assert!(payload[42..] == page_of(9, toy::LAST_RECORD));
    assert_eq!(tags(&read_until_ready(&mut socket)), "cCZ");
}

#[test]
fn silence_is_ended() {
    let fixture = Fixture::with(|config| {
        config.idle_timeout = Duration::from_secs(1);
        config.startup_timeout = Duration::from_secs(1);
    });
    let half = |bytes: &[u8]| {
        let mut socket = fixture.session();
        socket.write_all(bytes).expect("writes");
        socket
    };
    let mut stream = half(&message(b'Q', b"pagestream_v3 main\0"));
    assert_eq!(read_message(&mut stream).0, b'W');
    for mut socket in [half(b""), half(b"Q\0\0\0\x20sel"), half(b"Q\0"), stream] {
        let answer = read_to_end(&mut socket);
        assert_eq!(sqlstate(&answer[5..]), "57P05");
    }
    for start in [&b""[..], b"\0\0", b"\0\0\0\x12\0\x03\0\0use"] {
        let mut socket = fixture.socket();
        socket.write_all(start).expect("writes");
        let answer = read_to_end(&mut socket);
        assert_eq!(sqlstate(&answer[5..]), "08P01", "{}", start.escape_ascii());
    }
    wait_until(|| fixture.service.connection_count() == 0);
}

fn wait_until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "it never came");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn connections_beyond_the_limit_are_told_so() {
    let fixture = Fixture::with(|config| config.connections_max = 3);
    let clients: Vec<Client> = (0..3).map(|_| fixture.client()).collect();
    let refused = |fixture: &Fixture| match Client::connect(&fixture.config()) {
        Err(ClientError::Server(error)) => {
            assert_eq!((&error.severity[..], &error.sqlstate[..]), ("FATAL", "53300"));
            assert!(error.hint.is_some());
        }
        other => panic!("{other:?}"),
    };
    refused(&fixture);
    // One that says nothing takes no place from those that are served, nor the words from others.
    let silent: Vec<TcpStream> = (0..10).map(|_| fixture.socket()).collect();
    refused(&fixture);
    assert!(fixture.service.counters().refused_total.load(Ordering::Relaxed) >= 2);
    drop((clients, silent));
    wait_until(|| fixture.service.connection_count() == 0);
    check_alive(&fixture);
}

#[test]
fn far_too_many_connections_are_closed_without_a_word() {
    let fixture = Fixture::with(|config| config.connections_max = 1);
    let sockets: Vec<TcpStream> = (0..60).map(|_| fixture.socket()).collect();
    wait_until(|| fixture.service.counters().connections_total.load(Ordering::Relaxed) == 60);
    assert!(fixture.service.connection_count() <= 33);
    let mut last = sockets.last().expect("sixty");
    assert_eq!(last.read(&mut [0; 16]).unwrap_or(0), 0);
    drop(sockets);
    wait_until(|| fixture.service.connection_count() == 0);
    check_alive(&fixture);
}

#[test]
fn a_shutdown_tells_idle_clients_and_ends_waiting_ones() {
    let fixture = Fixture::with(|config| {
        config.wait_lsn_timeout = Duration::from_secs(120);
        config.shutdown_grace = Duration::from_secs(120);
    });
    let mut idle = fixture.session();
    let mut waiting = fixture.session();
    waiting.write_all(&message(b'Q', b"pagestream_v3 main\0")).expect("writes");
    assert_eq!(read_message(&mut waiting).0, b'W');
    let mut out = Vec::new();
    let future = Lsn::new(toy::LAST_RECORD + 1);
    let header = Header { request_id: 1, request_lsn: future, not_modified_since: future };
    Request { header, body: Body::get_page(REL, ForkNumber::Main, 0) }.encode_frame(Version::V3, &mut out);
    waiting.write_all(&out).expect("writes");
    std::thread::sleep(Duration::from_millis(50));
    let started = Instant::now();
    fixture.service.shutdown();
    assert!(started.elapsed() < Duration::from_secs(60), "nobody is waited for: {:?}", started.elapsed());
    for socket in [&mut idle, &mut waiting] {
        let answer = read_to_end(socket);
        assert_eq!(sqlstate(&answer[5..]), "57P01");
    }
}

#[test]
fn a_cancel_request_ends_a_wait_and_a_wrong_one_does_nothing() {
    let fixture = Fixture::new();
    let client = fixture.client();
    let token = client.cancel_token();
    let wrong = {
        let mut packet = b"\0\0\0\x10\x04\xd2\x16\x2e".to_vec();
        packet.extend_from_slice(&client.connection_id().to_be_bytes());
        packet.extend_from_slice(b"abcd");
        packet
    };
    let mut stream = crate::client::PageStream::start(client, Version::V3, None, "main").expect("starts");
    let future = ReadAt::lsn(Lsn::new(toy::LAST_RECORD + 1));
    let request = stream.request(future, Body::get_page(REL, ForkNumber::Main, 0));
    stream.send(request);
    stream.flush().expect("sent");
    let mut socket = fixture.socket();
    socket.write_all(&wrong).expect("writes");
    assert!(read_to_end(&mut socket).is_empty(), "a cancel request gets no answer");
    std::thread::sleep(Duration::from_millis(400));
    assert!(stream.receive_if_there().expect("still waits").is_none());
    token.cancel().expect("sent");
    match stream.receive() {
        Err(ClientError::Server(error)) => assert_eq!(error.sqlstate, "57014"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_client_that_leaves_while_it_waits_frees_its_thread() {
    let fixture = Fixture::new();
    let mut stream = fixture.stream(Version::V3);
    let future = ReadAt::lsn(Lsn::new(toy::LAST_RECORD + 1));
    let request = stream.request(future, Body::get_page(REL, ForkNumber::Main, 0));
    stream.send(request);
    stream.flush().expect("sent");
    std::thread::sleep(Duration::from_millis(50));
    stream.abandon();
    wait_until(|| fixture.service.connection_count() == 0);
}

#[test]
fn a_client_that_never_reads_is_ended_and_harms_nobody() {
    let fixture = Fixture::with(|config| config.write_timeout = Duration::from_millis(300));
    let mut greedy = fixture.session();
    greedy.write_all(&message(b'Q', b"pagestream_v3 main\0")).expect("writes");
    assert_eq!(read_message(&mut greedy).0, b'W');
    let header = Header { request_id: 1, request_lsn: Lsn::MAX, not_modified_since: Lsn::ZERO };
    let mut out = Vec::new();
    for i in 0..5_000 {
        Request { header, body: Body::get_page(REL, ForkNumber::Main, i % 600) }.encode_frame(Version::V3, &mut out);
    }
    greedy.set_write_timeout(Some(Duration::from_secs(10))).expect("sets");
    let _ = greedy.write_all(&out); // 40 MB of answers that nobody takes.
    let page = fixture.stream(Version::V3).get_page(REL, ForkNumber::Main, 1, ReadAt::NEWEST).expect("served");
    assert!(page[..] == page_of(1, toy::LAST_RECORD)[..]);
    wait_until(|| fixture.service.connection_count() == 0);
}

#[test]
fn statements_are_bounded() {
    let fixture = Fixture::new();
    let mut socket = fixture.session();
    let mut out = Vec::new();
    for i in 0..2_001 {
        out.extend(message(b'P', format!("s{i}\0help\0\0\0").as_bytes()));
    }
    out.extend(message(b'S', b""));
    socket.write_all(&out).expect("writes");
    let messages = read_until_ready(&mut socket);
    let (last, parsed) = messages.split_last().map(|(_, rest)| rest.split_last().expect("an error")).expect("Z");
    assert_eq!(parsed.len(), 2_000);
    assert_eq!(sqlstate(&last.1), "53400");

    // In bytes, too, whatever they stand in.
    let mut socket = fixture.session();
    let long = "x".repeat(1 << 19);
    let mut out = message(b'Q', b"begin\0");
    for i in 0..80 {
        out.extend(message(b'P', format!("s{i}\0select '{long}'\0\0\0").as_bytes()));
        out.extend(message(b'B', format!("{i}{long}\0s{i}\0\0\0\0\0\0\0").as_bytes()));
    }
    out.extend(message(b'S', b""));
    socket.write_all(&out).expect("writes");
    assert_eq!(tags(&read_until_ready(&mut socket)), "CZ");
    let messages = read_until_ready(&mut socket);
    let (last, made) = messages.split_last().map(|(_, rest)| rest.split_last().expect("an error")).expect("Z");
    assert!((80..86).contains(&made.len()), "{}", made.len());
    assert_eq!(sqlstate(&last.1), "53400");
}
