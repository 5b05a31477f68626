//! Goal: what real WAL does not show. The image of a split's left half is not the whole truth; input that makes no sense is refused, without a panic.
//! Method: records of one block, built byte by byte; random bodies on pages damaged at random.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::page::layout::item_id_at;
use crate::page::page_lsn;
use crate::redo::{ClusterFacts, PageAddress};
use crate::wal::DecodedRecord;
use crate::wal::checks::arbitrary;
use crate::wal::checks::build::{BlockBuilder, ImageBuilder, RecordBuilder};
use crate::wal::rmgr;
use crate::{ForkNumber, Lsn, RelTag};

const REL: RelTag = RelTag { spc_oid: 1663, db_oid: 5, rel_number: 16384 };
const END_LSN: Lsn = Lsn::new(0x7_0000_0100);

fn block(block_id: u8, data: Vec<u8>) -> BlockBuilder {
    let block_no = 10 + u32::from(block_id);
    BlockBuilder { block_id, rel: REL, fork: ForkNumber::Main, block_no, will_init: false, image: None, data }
}

/// Redo of the last of `blocks`.
fn apply(
    version: PgVersion,
    info: u8,
    blocks: Vec<BlockBuilder>,
    main_data: Vec<u8>,
    page: &mut Page,
) -> Result<(), RedoError> {
    let address = PageAddress { rel: REL, fork: ForkNumber::Main, block_no: blocks.last().expect("a block").block_no };
    let raw = RecordBuilder { rmid: rmgr::GIST, info, blocks, main_data, ..RecordBuilder::default() };
    let raw = Bytes::from(raw.build(version, Lsn::new(8)));
    let record = DecodedRecord::decode(version, Lsn::new(0x28), END_LSN, raw).expect("a good record");
    crate::redo::redo(page, address, &record, ClusterFacts { version, hint_bits_logged: true })
}

fn tuple(len: u16) -> Vec<u8> {
    let mut tuple = vec![7; len.into()];
    LittleEndian::write_u16(&mut tuple[index_tuple::INFO_AT..], len);
    tuple
}

/// A leaf with three tuples.
fn leaf() -> Box<Page> {
    let mut page = Box::new([0; BLCKSZ]);
    init_page(&mut page, GIST_LEAF | GIST_FOLLOW_RIGHT, 33);
    for offset_no in 1..=3 {
        edit::add_item(&mut page, &tuple(16 * offset_no), offset_no, Placement::Insert).expect("fits");
    }
    page
}

#[test]
fn split_is_completed_on_top_of_the_image() {
    for (info, block_id) in [(PAGE_UPDATE, 1), (PAGE_SPLIT, 0)] {
        let image =
            ImageBuilder { bytes: leaf().to_vec(), hole_offset: 0, hole_len: 0, compression: None, apply: true };
        let blocks = vec![BlockBuilder { image: Some(image), ..block(block_id, vec![]) }];
        let mut page = leaf();
        // Newer than the record: an image goes in its place all the same.
        crate::page::set_page_lsn(&mut page, Lsn::new(u64::MAX));
        apply(PgVersion::V16, info, blocks, vec![0; 24], &mut page).expect("applies");
        assert_eq!(page_lsn(&page), Some(END_LSN));
        assert_eq!(page[GIST_NSN_AT..][..8], [7, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(flags(&page), GIST_LEAF);
    }
}

#[test]
fn tuples_must_be_as_many_as_the_record_says() {
    let update = |counts: [u8; 4], data: Vec<u8>| {
        apply(PgVersion::V16, PAGE_UPDATE, vec![block(0, data)], counts.to_vec(), &mut leaf())
    };
    assert_eq!(update([0, 0, 2, 0], [tuple(16), tuple(24)].concat()), Ok(()));
    assert!(update([0, 0, 1, 0], [tuple(16), tuple(24)].concat()).is_err());
    assert!(update([0, 0, 3, 0], [tuple(16), tuple(24)].concat()).is_err());
    assert_eq!(update([1, 0, 1, 0], [vec![2, 0], tuple(40)].concat()), Ok(()));
    assert!(update([1, 0, 1, 0], [vec![2, 0], tuple(40), tuple(8)].concat()).is_err());
    assert!(update([1, 0, 1, 0], [vec![4, 0], tuple(40)].concat()).is_err());
    assert!(update([9, 0, 0, 0], vec![1, 0, 2, 0]).is_err());
}

#[test]
fn page_that_is_not_empty_is_not_deleted() {
    assert!(apply(PgVersion::V16, PAGE_DELETE, vec![block(0, vec![])], vec![1; 10], &mut leaf()).is_err());
}

#[test]
fn page_of_another_kind_is_refused() {
    let mut page = leaf();
    page[crate::page::PD_SPECIAL] = 0;
    assert!(apply(PgVersion::V16, PAGE_UPDATE, vec![block(1, vec![])], vec![0; 4], &mut page).is_err());
}

#[test]
fn overwriting_survives_a_line_pointer_that_is_garbage() {
    let mut page = leaf();
    edit::put_item_id(&mut page, 3, 1, crate::page::layout::ItemFlags::Normal, 1);
    let data = [vec![2, 0], tuple(1000)].concat();
    assert_eq!(apply(PgVersion::V16, PAGE_UPDATE, vec![block(0, data)], vec![1, 0, 1, 0], &mut page), Ok(()));
}

proptest! {
    #[test]
    fn no_input_makes_a_panic(
        version in arbitrary::version(),
        (info, block_id) in proptest::sample::select(vec![(0, 0), (0, 1), (0x10, 0), (0x30, 0), (0x30, 1), (0x30, 2), (0x60, 0), (0x60, 1)]),
        (main_data, data) in (bytes(), bytes()),
        damage in proptest::collection::vec((0..item_id_at(4) + 16, any::<u16>()), 0..4),
    ) {
        let mut page = leaf();
        for (at, word) in damage {
            let at = if at < item_id_at(4) { at } else { BLCKSZ - 2 - (at - item_id_at(4)) };
            LittleEndian::write_u16(&mut page[at..], word);
        }
        let will_init = info == PAGE_SPLIT && block_id > 0;
        let mut blocks = if block_id > 1 { vec![block(1, vec![])] } else { vec![] };
        blocks.push(BlockBuilder { will_init, ..block(block_id, data) });
        let _ = apply(version, info, blocks, main_data, &mut page);
    }
}

/// Bytes that are small numbers mostly.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(prop_oneof![3 => Just(0_u8), 3 => 0_u8..5, 1 => any::<u8>()], 0..120)
}
