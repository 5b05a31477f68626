//! Sizes that are kept. That they are the sums of what is there is checked after every record of every test (`rig`); here: how they begin, end and mend.

use keyenc::{Kind, Object};
use postgres_ffi::records::{smgr, xlog};
use postgres_ffi::wal::rmgr;
use postgres_ffi::{ForkNumber, PgVersion, RelTag, SlruKind};

use super::rig::*;
use crate::ingest::KeptSize;

const DATABASE: Object = Object::DatabaseSize { spc_oid: 1663, db_oid: 5 };

fn touch(block_no: u32) -> Rec {
    touch_of(REL, ForkNumber::Main, block_no)
}

fn touch_of(rel: RelTag, fork: ForkNumber, block_no: u32) -> Rec {
    rec(rmgr::BTREE, 0x00, 1000, Body::default().u16(1)).block(block(0, block_no).of(rel).fork(fork).init())
}

fn truncate(block_count: u32) -> Rec {
    rec(rmgr::SMGR, smgr::TRUNCATE, 0, Body::default().u32(block_count).rel(REL).u32(1))
}

/// What the record puts of kept sizes.
fn kept(rig: &mut Rig, rec: &Rec) -> Vec<(Object, Kind, Option<KeptSize>)> {
    let puts = rig.ingest_all(rec).into_iter();
    let puts = puts.filter(|(object, ..)| matches!(object, Object::DatabaseSize { .. } | Object::SlruSize { .. }));
    puts.map(|(object, kind, value)| (object, kind, KeptSize::decode(&value))).collect()
}

fn image(blocks: u64, count: u64) -> Vec<(Object, Kind, Option<KeptSize>)> {
    vec![(DATABASE, Kind::Image, Some(KeptSize { blocks, count }))]
}

#[test]
fn golden_bytes() {
    let size = KeptSize { blocks: 0x0102_0304_0506_0708, count: 7 };
    assert_eq!(size.encode(), *b"\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0\0\0\0\x07");
    assert_eq!(KeptSize::decode(&size.encode()), Some(size));
    for length in [0, 1, 8, 15, 17, 32] {
        assert_eq!(KeptSize::decode(&vec![0; length]), None, "{length}");
    }
}

#[test]
fn a_version_stands_where_the_sum_changes_and_nowhere_else() {
    let mut rig = Rig::new(PgVersion::V15);
    assert_eq!(kept(&mut rig, &touch(0)), image(1, 1));
    assert_eq!(kept(&mut rig, &touch(0)), []);
    assert_eq!(kept(&mut rig, &touch(9)), image(10, 1));
    assert_eq!(kept(&mut rig, &touch_of(REL, ForkNumber::Vm, 0)), image(11, 1));
    assert_eq!(kept(&mut rig, &touch_of(RelTag { rel_number: 7, ..REL }, ForkNumber::Main, 1)), image(13, 2));
    assert_eq!(kept(&mut rig, &truncate(4)), image(7, 2));
    assert_eq!(kept(&mut rig, &truncate(4)), []);
    let other = touch_of(RelTag { spc_oid: 1664, db_oid: 0, rel_number: 7 }, ForkNumber::Main, 2);
    let shared = Object::DatabaseSize { spc_oid: 1664, db_oid: 0 };
    assert_eq!(kept(&mut rig, &other), [(shared, Kind::Image, Some(KeptSize { blocks: 3, count: 1 }))]);
}

#[test]
fn slrus_have_one_each() {
    let mut rig = Rig::new(PgVersion::V17);
    let zero = |page_no: u64| rec(rmgr::CLOG, 0x00, 0, Body::default().u64(page_no));
    let image = |blocks, count| {
        vec![(Object::SlruSize { kind: SlruKind::Clog }, Kind::Image, Some(KeptSize { blocks, count }))]
    };
    assert_eq!(kept(&mut rig, &zero(31)), image(32, 1));
    assert_eq!(kept(&mut rig, &zero(32)), image(33, 2));
    assert_eq!(kept(&mut rig, &zero(32)), []);
}

#[test]
fn a_timeline_without_kept_sizes_gets_them_when_a_database_changes() {
    let mut rig = Rig::new(PgVersion::V15);
    for (rel_number, size) in [(16384, 3_u32), (20000, 4)] {
        for fork in [ForkNumber::Main, ForkNumber::Fsm] {
            let rel = RelTag { rel_number, ..REL };
            rig.timeline.put(Object::RelationSize { rel, fork }, START_LSN, Kind::Image, &size.to_be_bytes());
        }
    }
    assert_eq!(kept(&mut rig, &touch(2)), []);
    assert_eq!(kept(&mut rig, &touch(3)), image(15, 2));
    assert_eq!(kept(&mut rig, &touch(4)), image(16, 2));
}

#[test]
fn nothing_is_no_object_and_a_database_may_come_again() {
    let mut rig = Rig::new(PgVersion::V15);
    rig.ingest(&touch(3));
    // One tablespace named twice: what it had is taken away once.
    let drop = rec(rmgr::DBASE, 0x20, 1000, Body::default().u32(5).u32(2).u32(1663).u32(1663));
    assert_eq!(kept(&mut rig, &drop), [(DATABASE, Kind::Tombstone, None)]);
    assert_eq!(kept(&mut rig, &touch(1)), image(2, 1));
}

#[test]
fn one_that_cannot_be_right_is_given_up_and_summed_up_anew() {
    let mut rig = Rig::new(PgVersion::V15);
    rig.ingest(&touch(9));
    let lsn = rig.lsn();
    let timeline = std::mem::take(&mut rig.timeline);
    timeline.put(DATABASE, lsn, Kind::Image, &KeptSize { blocks: 2, count: 1 }.encode());
    let mut rig = Rig::over(PgVersion::V15, timeline, lsn);
    assert_eq!(kept(&mut rig, &truncate(4)), [(DATABASE, Kind::Tombstone, None)]);
    assert_eq!(kept(&mut rig, &touch(4)), image(5, 1));
    assert_eq!(kept(&mut rig, &truncate(1)), image(1, 1));
}

#[test]
fn a_value_of_another_length_ends_ingest() {
    let mut rig = Rig::new(PgVersion::V15);
    rig.timeline.put(DATABASE, START_LSN, Kind::Image, b"short");
    let page = rec(rmgr::XLOG, xlog::operation::FPI, 0, Body::default());
    let page = page.block(block(0, 0).image(true, &postgres_ffi::page::ZERO_PAGE));
    assert!(matches!(rig.try_ingest(&page), Err(crate::ingest::IngestError::StoredValue { length: 5, .. })));
}
