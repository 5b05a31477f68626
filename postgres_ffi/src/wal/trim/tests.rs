//! Goal: a record cut down keeps all that redo of its target reads, and nothing else.
//! Method: each row of the module's table; random records against `checks::check_decoded`.

use bytes::Bytes;
use proptest::prelude::*;

use super::super::Compression;
use super::super::checks::arbitrary;
use super::super::checks::build::{BlockBuilder, ImageBuilder, RecordBuilder};
use super::super::checks::check_decoded;
use super::*;
use crate::{Lsn, PgVersion};

const REL: RelTag = RelTag { spc_oid: 1663, db_oid: 5, rel_number: 16384 };

/// A block whose data tells its id.
fn block(block_id: u8) -> BlockBuilder {
    BlockBuilder {
        block_id,
        rel: REL,
        fork: ForkNumber::Main,
        block_no: 100 + u32::from(block_id),
        will_init: false,
        image: None,
        data: vec![block_id + 1; 10],
    }
}

fn decode(version: PgVersion, raw: Vec<u8>) -> DecodedRecord {
    DecodedRecord::decode(version, Lsn::new(0x28), Lsn::new(0x100), Bytes::from(raw)).expect("a good record")
}

fn trimmed(version: PgVersion, builder: &RecordBuilder, block_id: u8) -> DecodedRecord {
    let record = decode(version, builder.build(version, Lsn::new(8)));
    let mut out = Vec::new();
    trim_for_block(&record, block_id, &mut out);
    decode(version, out)
}

/// The ids of the blocks that keep their data for `target`.
fn with_data(rmid: u8, info: u8, target: u8) -> Vec<u8> {
    let builder = RecordBuilder { rmid, info, blocks: (0..6).map(block).collect(), ..RecordBuilder::default() };
    let record = trimmed(PgVersion::V16, &builder, target);
    record.blocks.iter().filter(|block| block.has_data).map(|block| block.block_id).collect()
}

#[test]
fn only_the_target_keeps_its_data() {
    // Btree SPLIT_L, Heap UPDATE, Heap INSERT, Gin INSERT, Hash INSERT
    for (rmid, info) in [(rmgr::BTREE, 0x30), (rmgr::HEAP, 0x20), (rmgr::HEAP, 0), (rmgr::GIN, 0), (rmgr::HASH, 0x20)] {
        for target in 0..6 {
            assert_eq!(with_data(rmid, info, target), [target]);
        }
    }
}

#[test]
fn what_redo_reads_of_another_block_is_kept() {
    assert_eq!(with_data(rmgr::HEAP, 0x80, 1), [0, 1], "Heap INSERT+INIT");
    assert_eq!(with_data(rmgr::HEAP, 0xA0, 1), [0, 1], "Heap UPDATE+INIT");
    assert_eq!(with_data(rmgr::HEAP2, 0xD0, 1), [0, 1], "Heap2 MULTI_INSERT+INIT");
    assert_eq!(with_data(rmgr::BTREE, 0x20, 0), [0, 2], "Btree INSERT_META");
    assert_eq!(with_data(rmgr::BTREE, 0xA0, 0), [0, 2], "Btree NEWROOT");
    assert_eq!(with_data(rmgr::BTREE, 0x90, 1), [1, 4], "Btree UNLINK_PAGE_META");
    assert_eq!(with_data(rmgr::HASH, 0x30, 4), [0, 4], "Hash ADD_OVFL_PAGE");
    assert_eq!(with_data(rmgr::GIST, 0x30, 3), [0, 1, 2, 3, 4, 5], "Gist PAGE_SPLIT");
    assert_eq!(with_data(rmgr::BRIN, 0x90, 1), [0, 1], "BRIN INSERT+INIT");
    assert_eq!(with_data(rmgr::BRIN, 0xA0, 2), [0, 2], "BRIN UPDATE+INIT");
    assert_eq!(with_data(130, 0, 3), [0, 1, 2, 3, 4, 5], "an extension");
    // The flag bits of the lower half of info change nothing.
    assert_eq!(with_data(rmgr::HEAP, 0xA3, 1), [0, 1]);
}

fn image(apply: bool) -> Option<ImageBuilder> {
    Some(ImageBuilder {
        bytes: vec![3; 500],
        hole_offset: 90,
        hole_len: 900,
        compression: Some(Compression::Pglz),
        apply,
    })
}

#[test]
fn images_are_kept_only_where_redo_applies_them() {
    for version in PgVersion::ALL {
        let blocks = vec![
            BlockBuilder { image: image(true), ..block(0) },
            BlockBuilder { image: image(false), ..block(1) },
            BlockBuilder { image: image(true), ..block(2) },
        ];
        let builder = RecordBuilder { rmid: rmgr::HEAP, blocks, ..RecordBuilder::default() };
        let ids = |builder: &RecordBuilder, target| -> Vec<u8> {
            let record = trimmed(version, builder, target);
            record.blocks.iter().filter(|block| block.image.is_some()).map(|block| block.block_id).collect()
        };
        assert_eq!(ids(&builder, 0), [0]);
        assert!(ids(&builder, 1).is_empty());
        assert_eq!(ids(&builder, 2), [2]);
        let split = RecordBuilder { rmid: rmgr::GIN, info: 0x30, ..builder };
        assert_eq!(ids(&split, 3), [0, 2], "Gin SPLIT insists on the images of its pages");

        let record = trimmed(version, &split, 2);
        let kept = record.blocks[2].image.as_ref().expect("kept");
        assert_eq!(record.image_bytes(kept), [3; 500]);
        assert_eq!((kept.hole_offset, kept.hole_len, kept.apply), (90, 900, true));
    }
}

#[test]
fn origin_and_top_level_transaction_are_dropped() {
    let builder = RecordBuilder {
        rmid: rmgr::HEAP,
        xid: 77,
        origin_id: Some(3),
        top_xid: Some(70),
        blocks: vec![block(0)],
        main_data: vec![9; 300],
        ..RecordBuilder::default()
    };
    let record = trimmed(PgVersion::V17, &builder, 0);
    let plain = RecordBuilder { origin_id: None, top_xid: None, ..builder };
    let mut expected = plain.build(PgVersion::V17, Lsn::new(8));
    expected[20..24].fill(0);
    assert_eq!(record.raw, expected);
}

#[test]
fn a_record_of_one_block_is_the_same_but_for_the_crc() {
    let builder =
        RecordBuilder { rmid: rmgr::HEAP, blocks: vec![block(0)], main_data: vec![1], ..RecordBuilder::default() };
    let raw = builder.build(PgVersion::V18, Lsn::new(8));
    let record = decode(PgVersion::V18, raw.clone());
    let mut out = Vec::new();
    trim_for_block(&record, 0, &mut out);
    assert_eq!((&out[..20], &out[20..24], &out[24..]), (&raw[..20], &[0; 4][..], &raw[24..]));
}

#[test]
fn images_that_are_not_the_whole_truth() {
    let goes_on = |rmid, info, block_id| {
        let builder = RecordBuilder { rmid, info, blocks: (0..3).map(block).collect(), ..RecordBuilder::default() };
        redo_goes_on_after_image(&decode(PgVersion::V15, builder.build(PgVersion::V15, Lsn::new(8))), block_id)
    };
    assert!(goes_on(rmgr::GIST, 0x00, 1) && !goes_on(rmgr::GIST, 0x00, 0));
    assert!(goes_on(rmgr::GIST, 0x30, 0) && !goes_on(rmgr::GIST, 0x30, 1));
    assert!(goes_on(rmgr::HASH, 0x40, 0) && !goes_on(rmgr::HASH, 0x40, 1) && !goes_on(rmgr::HASH, 0x40, 2));
    assert!(goes_on(rmgr::HASH, 0x60, 0) && goes_on(rmgr::HASH, 0x60, 1));
    assert!(!goes_on(rmgr::HEAP, 0x00, 0) && !goes_on(rmgr::HASH, 0x50, 0));
}

proptest! {
    #[test]
    fn cut_down_it_is_still_a_record(version in arbitrary::version(), builder in arbitrary::record()) {
        let record = decode(version, builder.build(version, Lsn::new(8)));
        check_decoded(version, &record);
        let mut out = Vec::new();
        trim_for_block(&record, 200, &mut out);
        let references = decode(version, out);
        prop_assert_eq!(references.blocks.len(), record.blocks.len());
    }
}
