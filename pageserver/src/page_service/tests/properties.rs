//! The fuzz targets' functions over a short deterministic run: no input makes them panic. `pageserver/fuzz/` runs the same for hours.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::page_service::fuzzing;
use crate::page_service::pagestream::wire::{Body, Header, Request, Version};
use postgres_ffi::{Lsn, RelTag};

const CASES: u32 = 2_000;

fn run<S: Strategy>(strategy: S, check: impl Fn(S::Value)) {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new_with_rng(config, rng).run(&strategy, |value| {
        check(value);
        Ok(())
    });
    outcome.expect("no panic");
}

/// Bytes that are often nearly right: frames with plausible types and lengths.
fn nearly_frames() -> impl Strategy<Value = Vec<u8>> {
    let tag = prop_oneof![Just(b'd'), prop::sample::select(b"QPBDECSHXcfF".to_vec()), any::<u8>()];
    let payload = prop::collection::vec(any::<u8>(), 0..60);
    let frame = (tag, payload, -1_i64..2).prop_map(|(tag, payload, off_by)| {
        let length = u32::try_from((payload.len() as i64 + 4 + off_by).max(0)).expect("small");
        [&[tag][..], &length.to_be_bytes(), &payload].concat()
    });
    prop::collection::vec(frame, 0..6).prop_map(|frames| frames.concat())
}

fn any_request() -> impl Strategy<Value = Request> {
    let rel = (any::<u32>(), any::<u32>(), any::<u32>()).prop_map(|(spc_oid, db_oid, rel_number)| RelTag {
        spc_oid,
        db_oid,
        rel_number,
    });
    let body = (0..5_u8, rel, any::<u8>(), any::<u32>()).prop_map(|(which, rel, small, large)| match which {
        0 => Body::Exists { rel, fork: small },
        1 => Body::Nblocks { rel, fork: small },
        2 => Body::GetPage { rel, fork: small, block_no: large },
        3 => Body::DbSize { db_oid: large },
        _ => Body::SlruSegment { kind: small, segment_no: large },
    });
    (any::<u64>(), any::<u64>(), any::<u64>(), body).prop_map(|(request_id, request, since, body)| Request {
        header: Header { request_id, request_lsn: Lsn::new(request), not_modified_since: Lsn::new(since) },
        body,
    })
}

#[test]
fn frames() {
    run(prop::collection::vec(any::<u8>(), 0..200), |bytes| fuzzing::frames(&bytes));
    run(nearly_frames(), |bytes| fuzzing::frames(&bytes));
}

#[test]
fn requests_round_trip() {
    run(any_request(), |request| {
        let mut encoded = Vec::new();
        request.encode(Version::V3, &mut encoded);
        assert_eq!(Request::parse(Version::V3, &encoded), Ok(request));
        fuzzing::page_stream(&encoded);
    });
}

#[test]
fn startup_packets() {
    let options =
        prop::collection::vec(prop_oneof![Just(0_u8), prop::sample::select(b"user_pq_.".to_vec()), any::<u8>()], 0..60);
    let code = prop_oneof![Just(0x0003_0000_u32), Just(0x0003_0002), 80_877_100..80_877_110_u32, any::<u32>()];
    run((options, code), |(options, code)| {
        let length = u32::try_from(options.len() + 8).expect("small");
        fuzzing::startup_packet(&[&length.to_be_bytes()[..], &code.to_be_bytes(), &options].concat());
    });
    run(prop::collection::vec(any::<u8>(), 0..40), |bytes| fuzzing::startup_packet(&bytes));
}

#[test]
fn commands() {
    run("\\PC{0,60}", |text: String| fuzzing::command(&text));
    let word = prop::sample::select(vec![
        "page",
        "get",
        "history",
        "show",
        "timeline",
        "timelines",
        "lag",
        "sizes",
        "size",
        "pins",
        "at",
        "from",
        "to",
        "in",
        "list",
        "relation",
        "import",
        "main",
        "'text'",
        "\"name\"",
        "'",
        "\"",
        "/*",
        "*/",
        "--",
        ";",
        "$1",
        "0/16B5A50",
        "1663/5/16384/main/0",
        "pg_xact/7",
        "select",
        "version",
        "(",
        ")",
        "1",
        "deallocate",
        "all",
        "pagestream_v3",
    ]);
    run(prop::collection::vec(word, 0..10), |words| fuzzing::command(&words.join(" ")));
    run("[0-9a-z/+_-]{0,40}", |text: String| fuzzing::command(&text));
}
