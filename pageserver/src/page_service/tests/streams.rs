//! Page streams: values, LSN rules, errors in the stream, order, batches, endings.

use std::io::{Read, Write};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use postgres_ffi::{BLCKSZ, ForkNumber, Lsn, RelTag, SlruKind};

use super::toy::{self, ID, REL, TENANT, block_count, page_of};
use super::{Fixture, message, read_message, read_until_ready, sqlstate, tags};
use crate::client::{ClientError, PageStream, ReadAt};
use crate::page_service::pagestream::wire::{Answer, Body, Header, Request, Version};

fn at(lsn: u64) -> ReadAt {
    ReadAt::lsn(Lsn::new(lsn))
}

fn refused(result: Result<impl std::fmt::Debug, ClientError>) -> String {
    match result {
        Err(ClientError::Request { text }) => text,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn every_question_gets_its_answer() {
    let fixture = Fixture::new();
    for version in [Version::V2, Version::V3] {
        let mut stream = fixture.stream(version);
        for lsn in [toy::FIRST_READABLE, toy::GROWN_AT - 1, toy::GROWN_AT, toy::LAST_RECORD] {
            for block_no in [0, 1, 7, toy::ZERO_BLOCK, 499, 500, 999, 1_000, u32::MAX] {
                let page = stream.get_page(REL, ForkNumber::Main, block_no, at(lsn)).expect("a page");
                assert!(page[..] == page_of(block_no, lsn)[..], "{version:?} block {block_no} at {lsn:#x}");
            }
            assert_eq!(stream.nblocks(REL, ForkNumber::Main, at(lsn)).expect("answered"), block_count(lsn));
            let blocks = i64::from(block_count(lsn)) + 1;
            assert_eq!(stream.db_size(5, at(lsn)).expect("answered"), blocks * BLCKSZ as i64);
        }
        let newest = ReadAt::NEWEST;
        assert!(stream.exists(REL, ForkNumber::Main, newest).expect("answered"));
        assert!(!stream.exists(REL, ForkNumber::Init, newest).expect("answered"));
        assert!(!stream.exists(RelTag { rel_number: 1, ..REL }, ForkNumber::Main, newest).expect("answered"));
        assert_eq!(stream.nblocks(REL, ForkNumber::Vm, newest).expect("maps that are not there are empty"), 0);
        assert_eq!(stream.db_size(6, newest).expect("answered"), 0);
        let segment = stream.slru_segment(SlruKind::Clog, 2, newest).expect("answered");
        let expect: Vec<u8> = (64..67).flat_map(|page_no| page_of(page_no, toy::LAST_RECORD)).collect();
        assert!(segment == expect);
        stream.finish().expect("ends").query_one("select 1").expect("takes commands again");
    }
}

#[test]
fn refusals_are_told_in_the_stream_which_goes_on() {
    let fixture = Fixture::new();
    for version in [Version::V2, Version::V3] {
        let mut stream = fixture.stream(version);
        let page =
            |stream: &mut PageStream, block_no, lsns| refused(stream.get_page(REL, ForkNumber::Main, block_no, lsns));
        let gone = "Bad request: tried to request a page version that was garbage collected. requested at 0/FFF gc cutoff 0/1000";
        assert_eq!(page(&mut stream, 0, at(0xFFF)), gone);
        assert_eq!(page(&mut stream, 0, at(0)), "Bad request: invalid LSN(0) in request");
        let reversed = ReadAt { request_lsn: Lsn::new(0x1000), not_modified_since: Lsn::new(0x1001) };
        assert!(page(&mut stream, 0, reversed).starts_with("Bad request: "));
        assert!(page(&mut stream, toy::CORRUPT_BLOCK, at(0x3000)).starts_with("Read error: checksum does not match"));
        let other = RelTag { rel_number: 1, ..REL };
        assert!(refused(stream.get_page(other, ForkNumber::Main, 0, at(0x3000))).starts_with("Not found: "));
        assert!(refused(stream.nblocks(other, ForkNumber::Main, at(0x3000))).starts_with("Not found: "));
        let none = RelTag { rel_number: 0, ..REL };
        assert!(refused(stream.exists(none, ForkNumber::Main, at(0x3000))).starts_with("Bad request: "));
        assert!(refused(stream.slru_segment(SlruKind::Clog, 0, at(0x3000))).starts_with("Not found: "));
        let no_fork = Body::GetPage { rel: REL, fork: 4, block_no: 0 };
        assert!(refused(stream.ask(at(0x3000), no_fork)).starts_with("Bad request: "));
        let no_slru = Body::SlruSegment { kind: 9, segment_no: 0 };
        assert!(refused(stream.ask(at(0x3000), no_slru)).starts_with("Bad request: "));
        let too_far = Body::SlruSegment { kind: 0, segment_no: u32::MAX };
        assert!(refused(stream.ask(at(0x3000), too_far)).starts_with("Bad request: "));
        let leased = stream.get_page(REL, ForkNumber::Main, 7, at(toy::LEASED)).expect("a lease keeps it");
        assert!(leased[..] == page_of(7, toy::LEASED)[..]);
    }
}

#[test]
fn a_server_that_moved_ends_the_connection() {
    let fixture = Fixture::new();
    let mut stream = fixture.stream(Version::V3);
    let error = stream.get_page(REL, ForkNumber::Main, toy::UNAVAILABLE_BLOCK, ReadAt::NEWEST).expect_err("fatal");
    let ClientError::Server(error) = error else { panic!("{error:?}") };
    assert_eq!((&error.severity[..], &error.sqlstate[..], &error.message[..]), ("FATAL", "08006", "reconnect"));
    fixture.toy.shutting_down.store(true, Ordering::SeqCst);
    let mut stream = fixture.stream(Version::V3);
    let error = stream.get_page(REL, ForkNumber::Main, 1, ReadAt::NEWEST).expect_err("fatal");
    let ClientError::Server(error) = error else { panic!("{error:?}") };
    assert_eq!((&error.sqlstate[..], &error.message[..]), ("57P01", "shutdown"));
}

#[test]
fn waits_for_an_lsn_and_sends_what_is_ready_before_it_waits() {
    let fixture = Fixture::new();
    let mut stream = fixture.stream(Version::V3);
    let future = toy::LAST_RECORD + 0x1000;
    for (block_no, lsn) in [(1, toy::LAST_RECORD), (2, toy::LAST_RECORD), (3, future), (4, toy::LAST_RECORD)] {
        let request = stream.request(at(lsn), Body::get_page(REL, ForkNumber::Main, block_no));
        stream.send(request);
    }
    for block_no in [1, 2] {
        let (request, answer) = stream.receive().expect("before the wait ends");
        assert_eq!(request.body, Body::get_page(REL, ForkNumber::Main, block_no));
        assert!(answer == Answer::Page(page_of(block_no, toy::LAST_RECORD)[..].try_into().expect("a page")));
    }
    assert!(stream.receive_if_there().expect("no error").is_none());
    fixture.toy.advance(future);
    for block_no in [3, 4] {
        assert_eq!(stream.receive().expect("after it").0.body, Body::get_page(REL, ForkNumber::Main, block_no));
    }
}

#[test]
fn a_wait_ends_with_an_error_in_the_stream() {
    let fixture = Fixture::with(|config| config.wait_lsn_timeout = Duration::from_millis(300));
    let mut stream = fixture.stream(Version::V3);
    let started = Instant::now();
    let text = refused(stream.get_page(REL, ForkNumber::Main, 1, at(toy::LAST_RECORD + 1)));
    assert!(text.starts_with("LSN timeout: "), "{text}");
    assert!(started.elapsed() >= Duration::from_millis(300));
    // A request LSN in the future alone waits for nothing.
    let lsns = ReadAt { request_lsn: Lsn::new(toy::LAST_RECORD + 1), not_modified_since: Lsn::new(toy::LAST_RECORD) };
    stream.get_page(REL, ForkNumber::Main, 1, lsns).expect("at once");
}

#[test]
fn a_thousand_pipelined_requests_are_answered_in_order_and_in_batches() {
    let fixture = Fixture::new();
    for version in [Version::V2, Version::V3] {
        fixture.toy.batches.lock().clear();
        let mut socket = fixture.session();
        socket
            .write_all(&message(
                b'Q',
                format!("pagestream_v{} main\0", if version == Version::V2 { 2 } else { 3 }).as_bytes(),
            ))
            .expect("writes");
        assert_eq!(read_message(&mut socket), (b'W', vec![0, 0, 0]));
        let mut out = Vec::new();
        for i in 0..1_000_u32 {
            // Every hundredth request is another one: it breaks the batch and keeps its place.
            let body = if i % 100 == 50 {
                Body::Nblocks { rel: REL, fork: 0 }
            } else {
                Body::get_page(REL, ForkNumber::Main, i)
            };
            let header = Header {
                request_id: if version == Version::V3 { u64::from(i) } else { 0 },
                request_lsn: Lsn::MAX,
                not_modified_since: Lsn::ZERO,
            };
            Request { header, body }.encode_frame(version, &mut out);
        }
        let writer = {
            let mut socket = socket.try_clone().expect("clones");
            std::thread::spawn(move || socket.write_all(&out).expect("writes"))
        };
        for i in 0..1_000_u32 {
            let (tag, payload) = read_message(&mut socket);
            assert_eq!(tag, b'd');
            let response = crate::page_service::pagestream::wire::Response::parse(version, &payload).expect("parses");
            match response.answer {
                Answer::Page(page) => assert!(page[..] == page_of(i, toy::LAST_RECORD)[..], "block {i}"),
                Answer::Error(_) => assert!([toy::CORRUPT_BLOCK].contains(&i), "block {i}"),
                Answer::Nblocks(1_000) => assert_eq!(i % 100, 50),
                other => panic!("{other:?}"),
            }
            if i == toy::UNAVAILABLE_BLOCK - 1 {
                break; // The next one ends the connection, tested elsewhere.
            }
        }
        drop(socket);
        writer.join().expect("writes all or finds the socket closed");
        let batches = fixture.toy.batches.lock();
        assert!(batches.iter().all(|size| *size <= 32));
        assert!(batches.contains(&32), "{batches:?}");
    }
}

/// A page stream on a bare socket with one answered request.
fn raw_stream(fixture: &Fixture, start: &[u8]) -> std::net::TcpStream {
    let mut socket = fixture.session();
    socket.write_all(start).expect("writes");
    while read_message(&mut socket).0 != b'W' {}
    let mut out = Vec::new();
    let header = Header { request_id: 7, request_lsn: Lsn::MAX, not_modified_since: Lsn::ZERO };
    Request { header, body: Body::get_page(REL, ForkNumber::Main, 1) }.encode_frame(Version::V3, &mut out);
    socket.write_all(&out).expect("writes");
    let (tag, payload) = read_message(&mut socket);
    assert_eq!((tag, payload.len()), (b'd', 1 + 24 + 17 + BLCKSZ));
    socket
}

#[test]
fn endings_of_a_simple_query() {
    let fixture = Fixture::new();
    let start = message(b'Q', format!("pagestream_v3 {TENANT} {ID}\0").as_bytes());
    let select = message(b'Q', b"select 1\0");

    let mut socket = raw_stream(&fixture, &start);
    socket.write_all(&[message(b'c', b""), select.clone()].concat()).expect("writes");
    assert_eq!(tags(&read_until_ready(&mut socket)), "cCZ");
    assert_eq!(tags(&read_until_ready(&mut socket)), "TDCZ");

    let mut socket = raw_stream(&fixture, &start);
    // Behind a CopyFail: requests that were under way, and the Sync of a client that does not know which protocol started the copy.
    let late = message(b'd', &[2; 42]);
    socket.write_all(&[message(b'f', b"enough\0"), late, message(b'S', b""), select.clone()].concat()).expect("writes");
    let messages = read_until_ready(&mut socket);
    assert_eq!(tags(&messages), "EZ");
    assert_eq!(sqlstate(&messages[0].1), "57014");
    assert_eq!(tags(&read_until_ready(&mut socket)), "Z");
    assert_eq!(tags(&read_until_ready(&mut socket)), "TDCZ");

    let mut socket = raw_stream(&fixture, &start);
    socket.write_all(&[message(b'H', b""), message(b'S', b""), select].concat()).expect("writes");
    assert_eq!(tags(&read_until_ready(&mut socket)), "CZ");
    assert_eq!(tags(&read_until_ready(&mut socket)), "TDCZ");

    let mut socket = raw_stream(&fixture, &start);
    socket.write_all(&message(b'X', b"")).expect("writes");
    assert_eq!(socket.read(&mut [0]).expect("an orderly end"), 0);

    let mut socket = raw_stream(&fixture, &start);
    socket.write_all(&message(b'Q', b"select 1\0")).expect("writes");
    let (tag, payload) = read_message(&mut socket);
    assert_eq!((tag, sqlstate(&payload)), (b'E', "08P01".to_owned()));
}

#[test]
fn endings_of_the_extended_protocol() {
    let fixture = Fixture::new();
    let start = [
        message(b'P', b"\0pagestream_v3 main\0\0\0"),
        message(b'D', b"S\0"),
        message(b'B', b"\0\0\0\0\0\0\0\0"),
        message(b'E', b"\0\0\0\0\0"),
    ]
    .concat();
    let mut socket = raw_stream(&fixture, &start);
    socket.write_all(&[message(b'c', b""), message(b'S', b"")].concat()).expect("writes");
    assert_eq!(tags(&read_until_ready(&mut socket)), "cCZ");

    let mut socket = raw_stream(&fixture, &start);
    socket.write_all(&[message(b'f', b"enough\0"), message(b'S', b"")].concat()).expect("writes");
    assert_eq!(tags(&read_until_ready(&mut socket)), "EZ");

    // With a Sync right behind Execute, as libpq sends it; the second one is the end's.
    let mut socket = raw_stream(&fixture, &[&start[..], &message(b'S', b"")].concat());
    socket.write_all(&[message(b'c', b""), message(b'S', b"")].concat()).expect("writes");
    assert_eq!(tags(&read_until_ready(&mut socket)), "cCZ");
}

#[test]
fn many_pages_in_a_window() {
    let fixture = Fixture::new();
    let mut stream = fixture.stream(Version::V3);
    let blocks = (0..600).map(|block_no| (REL, ForkNumber::Main, block_no));
    let mut next = 0;
    stream
        .get_pages(blocks, ReadAt::NEWEST, |request, page| {
            assert_eq!(request.body, Body::get_page(REL, ForkNumber::Main, next));
            assert!(page.expect("a page")[..] == page_of(next, toy::LAST_RECORD)[..]);
            next += 1;
        })
        .expect("all of them");
    assert_eq!(next, 600);
}

#[test]
fn unknown_timelines_are_refused_before_the_stream() {
    let fixture = Fixture::new();
    for (tenant, timeline) in [(None, "nowhere"), (Some("other"), "main")] {
        let error = PageStream::start(fixture.client(), Version::V3, tenant, timeline).expect_err("refused");
        let ClientError::Server(error) = error else { panic!("{error:?}") };
        assert_eq!((&error.severity[..], &error.sqlstate[..]), ("ERROR", "42704"));
    }
}
