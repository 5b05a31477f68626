//! Goal: what comparing with PostgreSQL's pages cannot show: bytes that make no sense, and what `wal_consistency_checking` masks.
//! Method: good records on one small leaf, then both mangled byte by byte.

use bytes::Bytes;

use super::*;
use crate::redo::{ClusterFacts, PageAddress};
use crate::wal::checks::build::{BlockBuilder, RecordBuilder};
use crate::wal::{DecodedRecord, rmgr};
use crate::{ForkNumber, Lsn, PgVersion, RelTag};

const REL: RelTag = RelTag { spc_oid: 1663, db_oid: 5, rel_number: 16384 };
const ADDRESS: PageAddress = PageAddress { rel: REL, fork: ForkNumber::Main, block_no: 10 };

/// Numbers of 16, 32 and 64 bits as they stand in a record.
macro_rules! bytes {
    ($($number:expr),*) => { [$(&$number.to_le_bytes()[..]),*].concat() };
}

/// A tuple with a key of 8 bytes and its row in block 1.
fn tuple(row: u16) -> Vec<u8> {
    bytes![0_u16, 1_u16, row, 16_u16, 77_u64]
}

/// A leaf: high key, two rows, a posting list of rows 10, 20 and 30, one row.
fn leaf() -> Page {
    let mut page = [0; BLCKSZ];
    init_page(&mut page, Special { next: 11, flags: BTP_LEAF | BTP_HAS_GARBAGE, cycle_id: 5, ..Special::default() });
    let mut list = [0; 40];
    posting::form(&mut list, &tuple(0), 3)
        .copy_from_slice(&bytes![0_u16, 1_u16, 10_u16, 0_u16, 1_u16, 20_u16, 0_u16, 1_u16, 30_u16]);
    for item in [&tuple(99)[..], &tuple(1), &tuple(2), &list, &tuple(40)] {
        push(&mut page, item).unwrap();
    }
    page
}

#[derive(Clone)]
struct Sample {
    operation: u8,
    block_id: u8,
    main_data: Vec<u8>,
    block_data: Vec<u8>,
}

fn sample(operation: u8, block_id: u8, main_data: Vec<u8>, block_data: Vec<u8>) -> Sample {
    Sample { operation, block_id, main_data, block_data }
}

/// Records that apply to [`leaf`].
fn good_samples() -> Vec<Sample> {
    let new = tuple(15);
    let posting_split = [bytes![1_u16], new.clone()].concat();
    let left_half = [new.clone(), tuple(50)].concat();
    let meta = bytes![4_u32, 3_u32, 1_u32, 3_u32, 1_u32, 0_u32, 1_u32];
    vec![
        sample(INSERT_LEAF, 0, bytes![5_u16], new),
        sample(INSERT_POST, 0, bytes![5_u16], posting_split),
        sample(SPLIT_L, 0, bytes![0_u32, 5_u16, 5_u16, 1_u16], left_half.clone()),
        sample(SPLIT_R, 1, bytes![0_u32, 5_u16, 5_u16, 0_u16], left_half),
        sample(DEDUP, 0, bytes![1_u16], bytes![3_u16, 3_u16]),
        sample(VACUUM, 0, bytes![1_u16, 1_u16], bytes![2_u16, 4_u16, 2_u16, 0_u16, 2_u16]),
        sample(VACUUM, 0, bytes![3_u16, 0_u16], bytes![2_u16, 3_u16, 4_u16]),
        sample(DELETE, 0, bytes![700_u32, 0_u16, 1_u16, 0_u8], bytes![4_u16, 1_u16, 1_u16]),
        sample(MARK_PAGE_HALFDEAD, 1, bytes![2_u16], vec![]),
        sample(UNLINK_PAGE, 0, bytes![1_u32, 2_u32, 0_u32, 0_u32, 9_u64, 0_u32, 0_u32, 0_u32], vec![]),
        sample(UNLINK_PAGE, 3, bytes![1_u32, 2_u32, 2_u32, 0_u32, 9_u64, 3_u32, 4_u32, 5_u32], vec![]),
        sample(NEWROOT, 0, bytes![10_u32, 1_u32], [tuple(2), tuple(1)].concat()),
        sample(META_CLEANUP, 0, vec![], meta),
    ]
}

fn apply(version: PgVersion, sample: &Sample, page: &mut Page) -> Result<(), RedoError> {
    let block = |block_id: u8| BlockBuilder {
        block_id,
        rel: REL,
        fork: ForkNumber::Main,
        // The metapage is block 0; beside the target, blocks 0 and 1 of the record are there to be linked to.
        block_no: match block_id == sample.block_id {
            true if sample.operation == META_CLEANUP => METAPAGE,
            true => ADDRESS.block_no,
            false => 20 + u32::from(block_id),
        },
        will_init: false,
        image: None,
        data: if block_id == sample.block_id { sample.block_data.clone() } else { Vec::new() },
    };
    let ids = (0..=sample.block_id.max(1)).filter(|id| *id < 2 || *id == sample.block_id);
    let builder = RecordBuilder {
        rmid: rmgr::BTREE,
        info: sample.operation,
        blocks: ids.map(block).collect(),
        main_data: sample.main_data.clone(),
        ..RecordBuilder::default()
    };
    let raw = Bytes::from(builder.build(version, Lsn::ZERO));
    let record = DecodedRecord::decode(version, Lsn::new(8), Lsn::new(0x100), raw).unwrap();
    let address =
        PageAddress { block_no: if sample.operation == META_CLEANUP { METAPAGE } else { ADDRESS.block_no }, ..ADDRESS };
    crate::redo::redo(page, address, &record, ClusterFacts { version, hint_bits_logged: true })
}

fn refuses(sample: Sample, what: &str) {
    assert!(apply(PgVersion::V18, &sample, &mut leaf()).is_err(), "{what}");
}

#[test]
fn good_samples_apply_and_shorter_ones_do_not() {
    for sample in good_samples() {
        let name = format!("operation {:#04x}, block {}", sample.operation, sample.block_id);
        apply(PgVersion::V16, &sample, &mut leaf()).unwrap_or_else(|err| panic!("{name}: {err}"));
        for len in 0..sample.main_data.len().min(4) {
            let main_data = sample.main_data[..len].to_vec();
            // All that a parent needs of the record is two bytes.
            if len < 2 || sample.operation != MARK_PAGE_HALFDEAD {
                refuses(Sample { main_data, ..sample.clone() }, &name);
            }
        }
        // The right page of a split may have no tuples, and two whole tuples without the second are one.
        for len in (1..sample.block_data.len()).filter(|len| *len != tuple(0).len()) {
            refuses(Sample { block_data: sample.block_data[..len].to_vec(), ..sample.clone() }, &name);
        }
    }
}

#[test]
fn mangled_bytes_never_panic() {
    for good in good_samples() {
        for value in [0x00, 0x01, 0x7F, 0x80, 0xFF] {
            for at in 0..good.main_data.len() + good.block_data.len() {
                let mut sample = good.clone();
                let place = sample.main_data.iter_mut().chain(&mut sample.block_data).nth(at);
                *place.unwrap() = value;
                let _ = apply(PgVersion::V18, &sample, &mut leaf());
            }
            // The header, the line pointers, then the tuples and the special area.
            for at in (10..60).chain(BLCKSZ - 140..BLCKSZ) {
                let mut page = leaf();
                page[at] = value;
                let _ = apply(PgVersion::V18, &good, &mut page);
            }
        }
    }
}

#[test]
fn rows_and_items_that_are_not_there_are_refused() {
    let vacuum = |data: Vec<u8>| sample(VACUUM, 0, bytes![0_u16, 1_u16], data);
    refuses(vacuum(bytes![4_u16, 2_u16, 2_u16, 0_u16]), "rows out of order");
    refuses(vacuum(bytes![4_u16, 1_u16, 3_u16]), "a row behind the last one");
    refuses(vacuum(bytes![4_u16, 3_u16, 0_u16, 1_u16, 2_u16]), "all rows");
    refuses(vacuum(bytes![4_u16, 0_u16]), "no row");
    refuses(vacuum(bytes![3_u16, 1_u16, 0_u16]), "not a posting list");
    refuses(vacuum(bytes![6_u16, 1_u16, 0_u16]), "no such item");
    let split =
        |offset_no: u16, place: u16| sample(INSERT_POST, 0, bytes![offset_no], [bytes![place], tuple(15)].concat());
    refuses(split(0, 1), "item 0");
    refuses(split(5, 0), "before the list");
    refuses(split(5, 3), "behind the list");
    refuses(split(4, 1), "not a posting list");
    refuses(sample(DEDUP, 0, bytes![1_u16], bytes![5_u16, 2_u16]), "an item behind the last one");
    refuses(sample(DEDUP, 0, bytes![1_u16], bytes![1_u16, 2_u16]), "the high key");
    refuses(sample(DEDUP, 0, bytes![2_u16], bytes![3_u16, 2_u16, 3_u16, 2_u16]), "the same item twice");
    refuses(sample(DEDUP, 0, bytes![1_u16], bytes![3_u16, u16::MAX]), "more items than there can be");
    let both = [tuple(15), tuple(50)].concat();
    refuses(sample(SPLIT_L, 0, bytes![0_u32, 4_u16, 5_u16, 0_u16], both), "the new tuple would be on the right page");
    refuses(sample(SPLIT_L, 3, bytes![0_u32, 5_u16, 5_u16, 0_u16], vec![]), "a leaf has no child");
    refuses(sample(INSERT_UPPER, 1, bytes![1_u16], vec![]), "no split to finish");
    refuses(sample(REUSE_PAGE, 0, vec![], vec![]), "not of a page");
}

/// `wal_consistency_checking` masks it, so no comparison of pages tells.
#[test]
fn vacuum_clears_the_cycle_id_from_18_on() {
    for version in PgVersion::ALL {
        let mut page = leaf();
        apply(version, &sample(VACUUM, 0, bytes![0_u16, 0_u16], vec![]), &mut page).unwrap();
        let special = Special::read(&page).unwrap();
        assert_eq!((special.flags, special.cycle_id), (BTP_LEAF, if version < PgVersion::V18 { 5 } else { 0 }));
    }
}
