//! Blocks, sizes, creation, truncation, drops.

use keyenc::Key;
use postgres_ffi::page::{Page, ZERO_PAGE, page_lsn, set_page_lsn};
use postgres_ffi::records::{smgr, xlog};
use postgres_ffi::wal::rmgr;
use postgres_ffi::{ForkNumber, Lsn, PgVersion};

use super::rig::*;

fn btree(block: BlockRef) -> Rec {
    rec(rmgr::BTREE, 0x00, 1000, Body::default().u16(1)).block(block)
}

fn used_page() -> Page {
    let mut page = ZERO_PAGE;
    page[14] = 0x10; // pd_upper
    page
}

#[test]
fn first_touch_creates_relation_and_directory() {
    let mut rig = Rig::new(PgVersion::V15);
    let expect =
        ["database 1663/5 Image", "size 1663/5/16384 main Image 1", "block 1663/5/16384 main 0 InitDelta record"];
    assert_eq!(rig.shown(&btree(block(0, 0).init())), expect);
    assert_eq!(rig.shown(&btree(block(0, 0))), ["block 1663/5/16384 main 0 Delta record"]);
    assert_eq!(rig.shown(&btree(block(0, 0).init())), ["block 1663/5/16384 main 0 InitDelta record"]);
}

#[test]
fn blocks_between_the_end_and_the_touched_one_are_zeroes() {
    let mut rig = Rig::new(PgVersion::V15);
    rig.ingest(&btree(block(0, 0).init()));
    let expect = [
        "size 1663/5/16384 main Image 4",
        "block 1663/5/16384 main 1 Image",
        "block 1663/5/16384 main 2 Image",
        "block 1663/5/16384 main 3 InitDelta record",
    ];
    assert_eq!(rig.shown(&btree(block(0, 3))), expect);
}

#[test]
fn new_blocks_of_one_record_are_no_gap_in_whatever_order_it_names_them() {
    let mut rig = Rig::new(PgVersion::V15);
    rig.ingest(&btree(block(0, 0).init()));
    let expect = [
        "size 1663/5/16384 main Image 4",
        "block 1663/5/16384 main 1 Image",
        "block 1663/5/16384 main 2 InitDelta record",
        "block 1663/5/16384 main 3 InitDelta record",
    ];
    let mut shown = rig.shown(&btree(block(0, 3).init()).block(block(1, 2).init()));
    shown.retain(|put| !put.ends_with("Image 3")); // The size on the way there, at the same LSN.
    shown.sort_by_key(|put| !put.starts_with("size"));
    assert_eq!(shown, expect);
}

#[test]
fn images_are_restored_and_stamped() {
    for version in PgVersion::ALL {
        let mut rig = Rig::new(version);
        let mut page = used_page();
        set_page_lsn(&mut page, Lsn::new(0x10));
        rig.ingest(&btree(block(0, 0).image(true, &page)));
        let key = Key::block(REL, ForkNumber::Main, 0);
        let stored = rig.timeline.page(&key, rig.lsn()).unwrap();
        assert_eq!(page_lsn(&stored), Some(rig.lsn()));
        assert_eq!(stored[8..], page[8..]);
        // An image that is there to compare with is not the page.
        assert_eq!(
            rig.shown(&btree(block(0, 0).image(false, &page))),
            ["block 1663/5/16384 main 0 Delta record"],
            "{version}"
        );
    }
}

#[test]
fn an_image_of_a_new_page_gets_no_lsn() {
    let mut rig = Rig::new(PgVersion::V17);
    let puts = rig.shown(&btree(block(0, 0).image(true, &ZERO_PAGE)));
    assert_eq!(puts[2], "block 1663/5/16384 main 0 Image");
}

#[test]
fn full_page_image_records() {
    use xlog::operation::{FPI, FPI_FOR_HINT};
    let mut rig = Rig::new(PgVersion::V16);
    let image = |info| rec(rmgr::XLOG, info, 0, Body::default()).block(block(0, 0).image(true, &used_page()));
    assert_eq!(rig.shown(&image(FPI)).last().unwrap(), "block 1663/5/16384 main 0 Image page");
    assert_eq!(rig.shown(&image(FPI_FOR_HINT)), ["block 1663/5/16384 main 0 Image page"]);
    // Written with full_page_writes off: it says nothing, not even that the block exists.
    let bare = |info| rec(rmgr::XLOG, info, 0, Body::default()).block(block(0, 9));
    assert!(rig.ingest(&bare(FPI_FOR_HINT)).is_empty());
    assert!(rig.try_ingest(&bare(FPI)).is_err());
}

fn create(fork: u32) -> Rec {
    rec(rmgr::SMGR, smgr::CREATE, 1000, Body::default().rel(REL).u32(fork))
}

fn truncate(block_count: u32, flags: u32) -> Rec {
    rec(rmgr::SMGR, smgr::TRUNCATE, 1000, Body::default().u32(block_count).rel(REL).u32(flags))
}

#[test]
fn create_leaves_an_existing_fork_alone() {
    let mut rig = Rig::new(PgVersion::V14);
    assert_eq!(rig.shown(&create(0)), ["database 1663/5 Image", "size 1663/5/16384 main Image 0"]);
    rig.ingest(&btree(block(0, 4).init()));
    assert!(rig.ingest(&create(0)).is_empty());
    assert_eq!(rig.shown(&create(3)), ["size 1663/5/16384 init Image 0"]);
}

#[test]
fn truncation_cuts_and_what_grows_again_is_new() {
    let mut rig = Rig::new(PgVersion::V15);
    rig.ingest(&btree(block(0, 9).init()));
    assert_eq!(rig.shown(&truncate(5, 1)), ["size 1663/5/16384 main Image 5"]);
    assert!(rig.ingest(&truncate(7, 1)).is_empty(), "a fork is never made longer by a truncation");
    let expect = [
        "size 1663/5/16384 main Image 8",
        "block 1663/5/16384 main 5 Image",
        "block 1663/5/16384 main 6 Image",
        "block 1663/5/16384 main 7 InitDelta record",
    ];
    assert_eq!(rig.shown(&btree(block(0, 7))), expect);
}

#[test]
fn truncation_cuts_the_maps_with_it() {
    let mut rig = Rig::new(PgVersion::V15);
    rig.ingest(&btree(block(0, 40_000).init()));
    for (fork, last) in [(ForkNumber::Vm, 1), (ForkNumber::Fsm, 11)] {
        let image = rec(rmgr::XLOG, xlog::operation::FPI, 0, Body::default());
        rig.ingest(&image.block(block(0, last).fork(fork).image(true, &used_page())));
    }
    let expect = [
        "size 1663/5/16384 main Image 10",
        "size 1663/5/16384 fsm Image 3",
        "size 1663/5/16384 vm Image 1",
        "block 1663/5/16384 fsm 0 Delta FreeSpaceMapTruncate { first_slot: 1 }",
        "block 1663/5/16384 fsm 1 Delta FreeSpaceMapTruncate { first_slot: 1 }",
        "block 1663/5/16384 fsm 2 Delta FreeSpaceMapTruncate { first_slot: 10 }",
        "block 1663/5/16384 vm 0 Delta VisibilityMapTruncate { first_index: 10 }",
    ];
    assert_eq!(rig.shown(&truncate(10, 7)), expect);
    // To nothing: the first pages of the free space map's upper levels stay.
    let expect = [
        "size 1663/5/16384 main Image 0",
        "size 1663/5/16384 fsm Image 2",
        "size 1663/5/16384 vm Image 0",
        "block 1663/5/16384 fsm 0 Delta FreeSpaceMapTruncate { first_slot: 0 }",
        "block 1663/5/16384 fsm 1 Delta FreeSpaceMapTruncate { first_slot: 0 }",
    ];
    assert_eq!(rig.shown(&truncate(0, 7)), expect);
    assert!(rig.ingest(&truncate(0, 7)).is_empty());
}

#[test]
fn truncation_of_an_unknown_relation_creates_it() {
    let mut rig = Rig::new(PgVersion::V18);
    assert_eq!(rig.shown(&truncate(3, 7)), ["database 1663/5 Image", "size 1663/5/16384 main Image 0"]);
}

#[test]
fn shared_relations_have_no_database_directory() {
    let mut rig = Rig::new(PgVersion::V15);
    let shared = postgres_ffi::RelTag { spc_oid: 1664, db_oid: 0, rel_number: 1262 };
    let expect = ["size 1664/0/1262 main Image 1", "block 1664/0/1262 main 0 InitDelta record"];
    assert_eq!(rig.shown(&btree(block(0, 0).of(shared).init())), expect);
}

#[test]
fn a_long_gap_leaves_in_parts_that_move_no_watermark() {
    let mut rig = Rig::new(PgVersion::V15);
    rig.ingest(&btree(block(0, 0).init()));
    let before = rig.lsn();
    let commits = rig.timeline.commits.get();
    rig.try_ingest(&btree(block(0, 200_000).init())).unwrap();
    assert_eq!(rig.timeline.commits.get() - commits, 3);
    assert_eq!(rig.timeline.watermark.get(), before);
    rig.commit();
    assert_eq!(rig.timeline.watermark.get(), rig.lsn());
    assert_eq!(rig.timeline.page(&Key::block(REL, ForkNumber::Main, 123_456), rig.lsn()), Some(ZERO_PAGE));
}
