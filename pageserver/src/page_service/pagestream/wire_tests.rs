//! Goal: the bytes are those of the reference system. Method: every message of both versions as golden bytes written by hand from
//! the protocol's description, parsed and encoded; then every wrong length.
use super::*;

const REL: RelTag = RelTag { spc_oid: 0x67F, db_oid: 5, rel_number: 0x4001 };
const HEADER: Header =
    Header { request_id: 0x0102, request_lsn: Lsn::MAX, not_modified_since: Lsn::new(0x0000_0001_016B_5A50) };

const ID: &str = "0000000000000102";
const LSNS: &str = "ffffffffffffffff00000001016b5a50";
const REL_HEX: &str = "0000067f0000000500004001";

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|byte| *byte != b' ').collect();
    assert!(digits.len().is_multiple_of(2));
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hex");
    digits.chunks(2).map(pair).collect()
}

/// A question, its tag and its body in hexadecimal.
fn questions() -> Vec<(Body, &'static str, String)> {
    vec![
        (Body::Exists { rel: REL, fork: 0 }, "00", format!("{REL_HEX}00")),
        (Body::Nblocks { rel: REL, fork: 2 }, "01", format!("{REL_HEX}02")),
        (Body::GetPage { rel: REL, fork: 1, block_no: 0x01020304 }, "02", format!("{REL_HEX}0101020304")),
        (Body::DbSize { db_oid: 5 }, "03", "00000005".into()),
        (Body::SlruSegment { kind: 2, segment_no: 0x11 }, "04", "0200000011".into()),
    ]
}

#[test]
fn golden_requests() {
    let lengths = [(30, 38), (30, 38), (34, 42), (21, 29), (22, 30)];
    for ((body, tag, rest), (length_v2, length_v3)) in questions().into_iter().zip(lengths) {
        let v2 = bytes(&format!("{tag}{LSNS}{rest}"));
        let v3 = bytes(&format!("{tag}{ID}{LSNS}{rest}"));
        assert_eq!((v2.len(), v3.len()), (length_v2, length_v3));
        for (version, golden) in [(Version::V2, v2), (Version::V3, v3)] {
            let request_id = if version == Version::V3 { HEADER.request_id } else { 0 };
            let request = Request { header: Header { request_id, ..HEADER }, body };
            assert_eq!(Request::parse(version, &golden), Ok(request));
            let mut encoded = Vec::new();
            request.encode_frame(version, &mut encoded);
            let frame_length = u32::try_from(golden.len() + 4).expect("small").to_be_bytes();
            assert_eq!(encoded, [&b"d"[..], &frame_length, &golden].concat());
        }
    }
}

#[test]
fn wrong_lengths_and_tags_are_refused() {
    for (body, ..) in questions() {
        for version in [Version::V2, Version::V3] {
            let mut message = Vec::new();
            Request { header: HEADER, body }.encode(version, &mut message);
            for length in 0..message.len() {
                let cut = Request::parse(version, &message[..length]);
                assert_eq!(cut, Err(WireError::Length { length }));
            }
            message.push(0);
            assert_eq!(Request::parse(version, &message), Err(WireError::Length { length: message.len() }));
            message[0] = 5;
            assert_eq!(Request::parse(version, &message), Err(WireError::Tag { tag: 5 }));
        }
    }
}

type Encode = fn(Version, &Request, &mut Vec<u8>);

/// Encoder of a response, its tag, the question that it echoes, its answer in hexadecimal.
fn responses() -> Vec<(Encode, &'static str, usize, String)> {
    let page: Encode = |version, request, out| get_page_response(version, request, &[0xAB; BLCKSZ], out);
    let segment: Encode = |version, request, out| {
        slru_segment_response_head(version, request, 2, out);
        out.extend_from_slice(&[0xCD; 2 * BLCKSZ]);
    };
    vec![
        (|version, request, out| exists_response(version, request, true, out), "64", 0, "01".into()),
        (|version, request, out| nblocks_response(version, request, 0x0A0B, out), "65", 1, "00000a0b".into()),
        (page, "66", 2, "ab".repeat(BLCKSZ)),
        (|version, request, out| db_size_response(version, request, 0x0A0B, out), "68", 3, "0000000000000a0b".into()),
        (segment, "69", 4, format!("00000002{}", "cd".repeat(2 * BLCKSZ))),
    ]
}

#[test]
fn golden_responses() {
    let questions = questions();
    for (encode, tag, question, answer) in responses() {
        let (body, _, echo) = &questions[question];
        let request = Request { header: HEADER, body: *body };
        let v2 = bytes(&format!("{tag}{answer}"));
        let v3 = bytes(&format!("{tag}{ID}{LSNS}{echo}{answer}"));
        for (version, golden) in [(Version::V2, v2), (Version::V3, v3)] {
            let mut frame = Vec::new();
            encode(version, &request, &mut frame);
            let frame_length = u32::try_from(golden.len() + 4).expect("small").to_be_bytes();
            assert!(frame == [&b"d"[..], &frame_length, &golden].concat(), "{version:?} {tag}");
            let parsed = Response::parse(version, &golden).expect("golden");
            assert_eq!(parsed.header, (version == Version::V3).then_some(HEADER));
            assert_eq!(parsed.body, (version == Version::V3).then_some(*body));
            for length in 0..golden.len() {
                assert!(Response::parse(version, &golden[..length]).is_err(), "{version:?} {tag} {length}");
            }
        }
    }
}

#[test]
fn golden_errors() {
    let request = Request { header: HEADER, body: questions()[2].0 };
    for (version, golden) in [(Version::V2, "67 6e6f 00".to_owned()), (Version::V3, format!("67 {ID} {LSNS} 6e6f 00"))]
    {
        let golden = bytes(&golden);
        let mut frame = Vec::new();
        error_response(version, &request, "no", &mut frame);
        assert_eq!(frame[5..], golden);
        let parsed = Response::parse(version, &golden).expect("golden");
        assert_eq!(parsed.answer, Answer::Error("no"));
        assert_eq!(parsed.body, None);
    }
    let mut frame = Vec::new();
    error_response(Version::V2, &request, "a\0b", &mut frame);
    assert_eq!(Response::parse(Version::V2, &frame[5..]).expect("no NUL within").answer, Answer::Error("a b"));
}
