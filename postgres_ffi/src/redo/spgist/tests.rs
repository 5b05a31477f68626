//! Goal: what real WAL does not show. Input that makes no sense is refused, without a panic; what builds of indexes would log, if they logged it so.
//! Method: records of one block, built byte by byte; random bodies on pages damaged at random.

use byteorder::{ByteOrder, LittleEndian};
use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::page::edit::Placement;
use crate::page::layout::{item, item_id_at};
use crate::page::{BLCKSZ, PD_SPECIAL};
use crate::redo::{ClusterFacts, PageAddress};
use crate::wal::DecodedRecord;
use crate::wal::checks::arbitrary;
use crate::wal::checks::build::{BlockBuilder, RecordBuilder};
use crate::wal::rmgr;
use crate::{ForkNumber, Lsn, PgVersion, RelTag};

const REL: RelTag = RelTag { spc_oid: 1663, db_oid: 5, rel_number: 16384 };

fn block(block_id: u8) -> BlockBuilder {
    let block_no = 10 + u32::from(block_id);
    BlockBuilder { block_id, rel: REL, fork: ForkNumber::Main, block_no, will_init: false, image: None, data: vec![] }
}

/// Redo of block `block_id` of a record with blocks up to 2 at least.
fn apply(version: PgVersion, info: u8, block_id: u8, main_data: &[u8], page: &mut Page) -> Result<(), RedoError> {
    let blocks = (0..=block_id.max(2)).map(block).collect();
    let raw = RecordBuilder { rmid: rmgr::SPGIST, info, blocks, main_data: main_data.to_vec(), ..Default::default() };
    let raw = Bytes::from(raw.build(version, Lsn::new(8)));
    let record = DecodedRecord::decode(version, Lsn::new(0x28), Lsn::new(0x100), raw).expect("a good record");
    let address = PageAddress { rel: REL, fork: ForkNumber::Main, block_no: block(block_id).block_no };
    crate::redo::redo(page, address, &record, ClusterFacts { version, hint_bits_logged: true })
}

fn leaf(next: u16) -> [u8; 24] {
    let mut leaf = [0; 24];
    LittleEndian::write_u32(&mut leaf, 24 << 2);
    LittleEndian::write_u16(&mut leaf[4..], next);
    leaf
}

/// An inner tuple with two nodes of 16 bytes and no prefix.
fn inner() -> [u8; 40] {
    let mut inner = [0; 40];
    LittleEndian::write_u32(&mut inner, 2 << 3);
    LittleEndian::write_u16(&mut inner[4..], 40);
    inner[8 + 6] = 16;
    inner[24 + 6] = 16;
    inner
}

/// A leaf, a redirect, a placeholder, an inner tuple, a dead tuple, counted rightly.
fn page() -> Box<Page> {
    let mut page = Box::new([0; BLCKSZ]);
    page::init(&mut page, LEAF);
    let state = record::RedirectState { xid: 700, is_build: false };
    let (redirect, placeholder) = (page::redirect(9, 8, state), page::dead_tuple(State::Placeholder));
    let tuples: [&[u8]; 5] = [&leaf(0), &redirect, &placeholder, &inner(), &page::dead_tuple(State::Dead)];
    for (offset_no, tuple) in (1..).zip(tuples) {
        edit::add_item(&mut page, tuple, offset_no, Placement::Insert).expect("fits");
    }
    page::count_dead(&mut page, &redirect).expect("counts");
    page::count_dead(&mut page, &placeholder).expect("counts");
    page
}

/// spgxlogAddLeaf and its leaf tuple.
fn add_leaf_body(offset_no: u8, head: u8, parent: u8, node: u8) -> Vec<u8> {
    [&[0, 0, offset_no, 0, head, 0, parent, 0, node, 0], &leaf(0)[..]].concat()
}

#[test]
fn tuple_goes_behind_the_last_or_over_a_placeholder_only() {
    let add = |offset_no, head| apply(PgVersion::V16, ADD_LEAF, 0, &add_leaf_body(offset_no, head, 0, 0), &mut page());
    assert_eq!(add(3, 0), Ok(()), "placeholder");
    assert_eq!(add(6, 1), Ok(()), "behind the last");
    assert_eq!(add(5, 5), Ok(()), "dead head");
    for offset_no in [0, 1, 2, 4, 5, 7] {
        assert!(add(offset_no, 0).is_err(), "{offset_no}");
    }
    for head in [2, 3, 4, 8] {
        assert!(add(6, head).is_err(), "{head}");
    }
}

#[test]
fn placeholders_that_are_not_counted_are_refused() {
    let mut page = page();
    page::uncount_placeholders(&mut page, 1).expect("there is one");
    assert!(apply(PgVersion::V16, ADD_LEAF, 0, &add_leaf_body(3, 0, 0, 0), &mut page).is_err());
}

#[test]
fn link_goes_to_a_node_that_exists() {
    let link = |parent, node| {
        let mut page = page();
        apply(PgVersion::V16, ADD_LEAF, 1, &add_leaf_body(3, 0, parent, node), &mut page).map(|()| page)
    };
    let page = link(4, 1).expect("there are two nodes");
    let tuple = item(&page, 4).and_then(|item| item.range()).expect("is there");
    assert_eq!(page[tuple][24..30], [0, 0, 10, 0, 3, 0]);
    assert!(link(4, 2).is_err());
    assert!(link(6, 0).is_err());
    assert!(link(0, 0).is_err());
}

#[test]
fn page_of_another_kind_is_refused() {
    let mut page = page();
    page[PD_SPECIAL] = 0;
    assert!(apply(PgVersion::V16, ADD_LEAF, 0, &add_leaf_body(3, 0, 0, 0), &mut page).is_err());
}

#[test]
fn page_is_made_anew_only_if_the_block_says_so() {
    let mut body = add_leaf_body(1, 0, 0, 0);
    body[0] = 1;
    assert!(apply(PgVersion::V16, ADD_LEAF, 0, &body, &mut page()).is_err());
}

#[test]
fn only_the_first_deleted_becomes_a_redirect() {
    // spgxlogMoveLeafs: two moves, replaces dead, xid 800; deletes 4 and 1, inserts 6.
    let mut body = vec![0; 20];
    (body[0], body[3]) = (2, 1);
    LittleEndian::write_u16(&mut body[12..], 800);
    body.extend([4, 0, 1, 0, 6, 0]);
    let states = |body: &[u8]| {
        let mut page = page();
        apply(PgVersion::V16, MOVE_LEAFS, 0, body, &mut page).expect("applies");
        [1, 4].map(|offset_no| page[item(&page, offset_no).and_then(|item| item.range()).expect("is there")].to_vec())
    };
    let placeholder = page::dead_tuple(State::Placeholder).to_vec();
    assert_eq!(states(&body), [placeholder.clone(), vec![65, 0, 0, 0, 0, 0, 0, 0, 11, 0, 6, 0, 32, 3, 0, 0]]);
    body[16] = 1; // While the index is being built.
    assert_eq!(states(&body), [placeholder.clone(), placeholder]);
}

proptest! {
    #[test]
    fn no_input_makes_a_panic(
        version in arbitrary::version(),
        (operation, block_id) in (1_u8..9, 0_u8..4),
        main_data in bytes(),
        tail in bytes(),
        damage in proptest::collection::vec((0..item_id_at(6) + 8, any::<u16>()), 0..3),
    ) {
        let mut page = page();
        for (at, word) in damage {
            let at = if at < item_id_at(6) { at } else { BLCKSZ - 2 - (at - item_id_at(6)) };
            LittleEndian::write_u16(&mut page[at..], word);
        }
        let main_data = [&main_data, &inner()[..], &leaf(0)[..], &tail].concat();
        let _ = apply(version, operation << 4, block_id, &main_data, &mut page);
    }
}

/// Bytes that are small numbers mostly.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(prop_oneof![4 => Just(0_u8), 3 => 0_u8..6, 1 => any::<u8>()], 0..50)
}
