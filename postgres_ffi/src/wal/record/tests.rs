//! Goal: the decoder reads exactly what the format says and refuses everything else without a panic.
//! Method: one record written by hand, records from a builder, each field broken once, bytes flipped and cut everywhere.

use proptest::prelude::*;

use super::super::checks::arbitrary;
use super::super::checks::build::{BlockBuilder, ImageBuilder, RecordBuilder};
use super::super::checks::{check_decoded, check_record};
use super::*;

const REL: RelTag = RelTag { spc_oid: 1663, db_oid: 5, rel_number: 16384 };

fn decode(version: PgVersion, raw: Vec<u8>) -> Result<DecodedRecord, DecodeError> {
    DecodedRecord::decode(version, Lsn::new(0x28), Lsn::new(0x100), Bytes::from(raw))
}

fn block(block_id: u8) -> BlockBuilder {
    BlockBuilder {
        block_id,
        rel: REL,
        fork: ForkNumber::Main,
        block_no: 9,
        will_init: false,
        image: None,
        data: Vec::new(),
    }
}

fn with_image(image: ImageBuilder) -> RecordBuilder {
    RecordBuilder { blocks: vec![BlockBuilder { image: Some(image), ..block(0) }], ..RecordBuilder::default() }
}

/// A heap insert with two bytes of block data and three of main data.
const BY_HAND: [u8; 51] = [
    0x33, 0, 0, 0, // xl_tot_len 51
    0xE8, 3, 0, 0, // xl_xid 1000
    0x28, 0, 0, 1, 0, 0, 0, 0, // xl_prev 0/1000028
    0x80, 10, 0, 0, // INSERT+INIT of Heap, padding
    0xAE, 0x3C, 0x3A, 0x84, // xl_crc, see `the_crc_is_that_of_the_standard`
    0, 0x60, 2, 0, // block 0, main fork, HAS_DATA and WILL_INIT, 2 bytes
    0x7F, 6, 0, 0, 5, 0, 0, 0, 0, 0x40, 0, 0, // 1663/5/16384
    7, 0, 0, 0, // block 7
    255, 3, // main data, 3 bytes
    0xAA, 0xBB, // data of block 0
    1, 2, 3, // main data
];

#[test]
fn a_record_written_by_hand_reads_as_written() {
    let record = decode(PgVersion::V15, BY_HAND.to_vec()).expect("a good record");
    assert_eq!((record.xid, record.prev_lsn, record.rmid, record.info), (1000, Lsn::new(0x0100_0028), 10, 0x80));
    assert_eq!((record.origin_id, record.top_xid, record.operation()), (None, None, 0x80));
    let [block] = &record.blocks[..] else { panic!("one block") };
    assert_eq!((block.block_id, block.rel, block.fork, block.block_no), (0, REL, ForkNumber::Main, 7));
    assert!(block.will_init && block.has_data && block.image.is_none());
    assert_eq!(record.block_data(block), [0xAA, 0xBB]);
    assert_eq!(record.main_data(), [1, 2, 3]);
}

#[test]
fn the_crc_is_that_of_the_standard() {
    let mut expected = BY_HAND;
    super::super::checks::build::put_crc(&mut expected);
    assert_eq!(compute_crc(&BY_HAND).map(u32::to_le_bytes).as_ref(), expected[20..24].first_chunk());
    assert!(crc_is_right(&expected));
    for at in 0..expected.len() {
        let mut broken = expected;
        broken[at] ^= 1;
        assert!(!crc_is_right(&broken), "byte {at}");
    }
    assert!(!crc_is_right(&expected[..23]));
}

#[test]
fn the_same_relation_is_taken_from_the_block_before() {
    let other = RelTag { rel_number: 1, ..REL };
    let blocks =
        vec![block(0), block(2), BlockBuilder { rel: other, ..block(3) }, BlockBuilder { rel: other, ..block(32) }];
    let builder = RecordBuilder { blocks, ..RecordBuilder::default() };
    let record = decode(PgVersion::V17, builder.build(PgVersion::V17, Lsn::ZERO)).expect("a good record");
    let rels: Vec<_> = record.blocks.iter().map(|block| (block.block_id, block.rel)).collect();
    assert_eq!(rels, [(0, REL), (2, REL), (3, other), (32, other)]);
    assert_eq!(record.block(3).map(|block| block.block_no), Some(9));
    assert_eq!(record.block(1), None);
}

#[test]
fn image_flags_differ_between_14_and_15() {
    let image = ImageBuilder { bytes: vec![1; 100], hole_offset: 30, hole_len: 500, compression: None, apply: true };
    let compressed = ImageBuilder { compression: Some(Compression::Pglz), ..image.clone() };
    let plain = ImageBuilder { bytes: vec![1; BLCKSZ - 500], ..image };
    for version in PgVersion::ALL {
        for builder in [&compressed, &plain] {
            for apply in [true, false] {
                let builder = ImageBuilder { apply, ..builder.clone() };
                let raw = with_image(builder.clone()).build(version, Lsn::ZERO);
                let record = decode(version, raw).expect("a good record");
                let image = record.blocks[0].image.as_ref().expect("with an image");
                assert_eq!((image.apply, image.compression), (apply, builder.compression), "{version}");
                assert_eq!((image.hole_offset, image.hole_len), (30, 500));
                assert_eq!(record.image_bytes(image), builder.bytes);
            }
        }
    }
    // 0x04 is pglz since 15 and "apply" in 14; 0x08 and 0x10 are nothing in 14.
    assert_eq!(image_flags(PgVersion::V14, 0x05), Some((true, None)));
    assert_eq!(image_flags(PgVersion::V15, 0x05), Some((false, Some(Compression::Pglz))));
    assert_eq!(image_flags(PgVersion::V14, 0x08), None);
    assert_eq!(image_flags(PgVersion::V15, 0x0A), Some((true, Some(Compression::Lz4))));
    assert_eq!(image_flags(PgVersion::V18, 0x12), Some((true, Some(Compression::Zstd))));
    assert_eq!(image_flags(PgVersion::V18, 0x0C), None);
    assert_eq!(image_flags(PgVersion::V18, 0x20), None);
}

#[test]
fn images_that_do_not_fit_a_page_are_refused() {
    let good = ImageBuilder { bytes: vec![1; 8000], hole_offset: 100, hole_len: 192, compression: None, apply: true };
    let pglz = Some(Compression::Pglz);
    let cases = [
        ("length and hole do not make a page", ImageBuilder { hole_offset: 8001, ..good.clone() }),
        ("hole at 0", ImageBuilder { hole_offset: 0, ..good.clone() }),
        ("no hole but an offset", ImageBuilder { bytes: vec![1; BLCKSZ], hole_len: 0, ..good.clone() }),
        ("no hole and too short", ImageBuilder { hole_offset: 0, hole_len: 0, ..good.clone() }),
        ("longer than a page", ImageBuilder { bytes: vec![1; BLCKSZ + 1], ..good.clone() }),
        ("empty", ImageBuilder { bytes: Vec::new(), compression: pglz, ..good.clone() }),
        ("compressed to a page", ImageBuilder { bytes: vec![1; BLCKSZ], compression: pglz, ..good.clone() }),
        ("compressed, hole too long", ImageBuilder { hole_len: 8100, compression: pglz, ..good.clone() }),
    ];
    for version in PgVersion::ALL {
        assert!(decode(version, with_image(good.clone()).build(version, Lsn::ZERO)).is_ok());
        for (what, image) in &cases {
            let result = decode(version, with_image(image.clone()).build(version, Lsn::ZERO));
            assert!(matches!(result, Err(DecodeError::ImageHeader { .. })), "{version} {what}: {result:?}");
        }
    }
}

#[test]
fn each_broken_header_has_its_own_error() {
    let broken = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut raw = BY_HAND.to_vec();
        change(&mut raw);
        let len = raw.len() as u32;
        raw[..4].copy_from_slice(&len.to_le_bytes());
        decode(PgVersion::V16, raw).expect_err("must be refused")
    };
    let set = |at: usize, value: u8| move |raw: &mut Vec<u8>| raw[at] = value;
    assert_eq!(broken(&set(24, 33)), DecodeError::UnknownHeader { header_id: 33 });
    assert_eq!(broken(&set(24, 251)), DecodeError::UnknownHeader { header_id: 251 });
    assert_eq!(broken(&set(25, 0x64)), DecodeError::UnknownFork { block_id: 0, fork: 4 });
    assert_eq!(broken(&set(25, 0x40)), DecodeError::DataFlag { block_id: 0, has_data: false, len: 2 });
    assert_eq!(broken(&set(26, 0)), DecodeError::DataFlag { block_id: 0, has_data: true, len: 0 });
    assert_eq!(broken(&set(25, 0xE0)), DecodeError::NoRelation { block_id: 0 });
    assert_eq!(broken(&set(45, 4)), DecodeError::PayloadLen { claimed: 6, present: 5 });
    assert_eq!(broken(&set(45, 2)), DecodeError::PayloadLen { claimed: 4, present: 5 });
    assert_eq!(broken(&|raw| raw[40..44].fill(0xFF)), DecodeError::InvalidBlockNumber { block_id: 0 });
    assert_eq!(broken(&|raw| raw.truncate(30)), DecodeError::HeaderCut { header_id: 0 });
    assert_eq!(broken(&|raw| raw.truncate(25)), DecodeError::HeaderCut { header_id: 0 });
    let twice = RecordBuilder { blocks: vec![block(1), block(1)], ..RecordBuilder::default() };
    let raw = twice.build(PgVersion::V16, Lsn::ZERO);
    assert_eq!(decode(PgVersion::V16, raw).expect_err("refused"), DecodeError::BlockOrder { block_id: 1 });
}

#[test]
fn the_length_must_be_that_of_the_bytes() {
    assert_eq!(decode(PgVersion::V14, vec![0; 23]).expect_err("refused"), DecodeError::Short { len: 23 });
    let mut longer = BY_HAND.to_vec();
    longer.push(0);
    assert_eq!(decode(PgVersion::V14, longer).expect_err("refused"), DecodeError::TotalLen { total_len: 51, len: 52 });
}

#[test]
fn a_main_data_length_beyond_four_gigabytes_does_not_overflow() {
    let mut raw =
        RecordBuilder { main_data: vec![7; 300], ..RecordBuilder::default() }.build(PgVersion::V15, Lsn::ZERO);
    raw[25..29].fill(0xFF);
    assert_eq!(
        decode(PgVersion::V15, raw).expect_err("refused"),
        DecodeError::PayloadLen { claimed: u64::from(u32::MAX), present: 300 }
    );
}

#[test]
fn a_record_without_anything_is_one() {
    // XLOG SWITCH is such.
    let raw = RecordBuilder::default().build(PgVersion::V15, Lsn::ZERO);
    assert_eq!(raw.len(), RECORD_HEADER_LEN);
    let record = decode(PgVersion::V15, raw).expect("a good record");
    assert!(record.blocks.is_empty() && record.main_data().is_empty());
}

proptest! {
    #[test]
    fn what_is_built_comes_back(version in arbitrary::version(), builder in arbitrary::record()) {
        let raw = builder.build(version, Lsn::new(77));
        prop_assert!(crc_is_right(&raw));
        let record = decode(version, raw).expect("a good record");
        check_decoded(version, &record);
        prop_assert_eq!((record.xid, record.rmid, record.info, record.prev_lsn), (builder.xid, builder.rmid, builder.info, Lsn::new(77)));
        prop_assert_eq!((record.origin_id, record.top_xid), (builder.origin_id, builder.top_xid));
        prop_assert_eq!(record.main_data(), &builder.main_data[..]);
        prop_assert_eq!(record.blocks.len(), builder.blocks.len());
        for (block, built) in record.blocks.iter().zip(&builder.blocks) {
            prop_assert_eq!((block.block_id, block.rel, block.fork), (built.block_id, built.rel, built.fork));
            prop_assert_eq!((block.block_no, block.will_init), (built.block_no, built.will_init));
            prop_assert_eq!(record.block_data(block), &built.data[..]);
            prop_assert_eq!(block.image.is_some(), built.image.is_some());
            if let (Some(image), Some(built)) = (&block.image, &built.image) {
                prop_assert_eq!(record.image_bytes(image), &built.bytes[..]);
                prop_assert_eq!((image.hole_offset, image.hole_len), (built.hole_offset, built.hole_len));
                prop_assert_eq!((image.compression, image.apply), (built.compression, built.apply));
            }
        }
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(data in proptest::collection::vec(any::<u8>(), 0..400)) {
        check_record(&data);
    }

    #[test]
    fn a_changed_record_is_decoded_or_refused(
        version in arbitrary::version(),
        builder in arbitrary::record(),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut raw = builder.build(version, Lsn::ZERO);
        let headers_end = raw.len().min(200);
        for (at, value) in changes {
            raw[at.index(headers_end)] = value;
        }
        if let Ok(record) = decode(version, raw) {
            check_decoded(version, &record);
        }
    }
}
