//! Visibility map bits that heap records clear: not named (all versions), named (late minor releases).

use postgres_ffi::page::ZERO_PAGE;
use postgres_ffi::records::heap::{heap_operation, heap2_operation};
use postgres_ffi::wal::rmgr;
use postgres_ffi::{ForkNumber, PgVersion};

use super::rig::*;

/// Heap blocks on one page of the map.
const PER_MAP_PAGE: u32 = 32_672;

fn insert(block_no: u32, flags: u8) -> Rec {
    rec(rmgr::HEAP, heap_operation::INSERT, 1000, Body::default().u16(1).u8(flags)).block(block(0, block_no))
}

fn update(flags: u8) -> Rec {
    let body = Body::default().u32(1000).u16(1).u8(0).u8(flags).u32(0).u16(2);
    rec(rmgr::HEAP, heap_operation::UPDATE, 1000, body)
}

/// A relation with `blocks` heap blocks and a map that speaks for them.
fn rig_with(version: PgVersion, blocks: u32) -> Rig {
    let mut rig = Rig::new(version);
    rig.ingest(&insert(blocks - 1, 0));
    let mut map_page = ZERO_PAGE;
    map_page[14] = 0x20;
    let image = rec(rmgr::XLOG, postgres_ffi::records::xlog::operation::FPI, 0, Body::default());
    let last_map_page = (blocks - 1) / PER_MAP_PAGE;
    rig.ingest(&image.block(block(0, last_map_page).fork(ForkNumber::Vm).image(true, &map_page)));
    rig
}

fn clears(puts: &[String]) -> Vec<&str> {
    puts.iter().filter_map(|put| put.strip_prefix("block 1663/5/16384 vm ")).collect()
}

fn clear(page: u32, guarded: bool, bits: u8, indexes: &str) -> String {
    format!("{page} Delta VisibilityMapClear {{ lsn_guarded: {guarded}, bits: {bits}, indexes: [{indexes}] }}")
}

fn index(value: u16) -> String {
    format!("{:?}", crate::delta::Index::new(value))
}

#[test]
fn unnamed_bits_go_by_flag() {
    let mut rig = rig_with(PgVersion::V15, 10);
    assert_eq!(rig.shown(&insert(3, 0)), ["block 1663/5/16384 main 3 Delta record"]);
    let puts = rig.shown(&insert(3, 1));
    assert_eq!(clears(&puts), [clear(0, false, 3, &index(3))]);
    let lock = Body::default().u32(1000).u16(1).u8(0).u8(1);
    let puts = rig.shown(&rec(rmgr::HEAP2, heap2_operation::LOCK_UPDATED, 1000, lock).block(block(0, 4)));
    assert_eq!(clears(&puts), [clear(0, false, 2, &index(4))]);
}

#[test]
fn an_update_clears_both_blocks_in_one_version_per_map_page() {
    let mut rig = rig_with(PgVersion::V14, PER_MAP_PAGE + 10);
    let puts = rig.shown(&update(3).block(block(0, 7)).block(block(1, 2)));
    assert_eq!(clears(&puts), [clear(0, false, 3, &format!("{}, {}", index(7), index(2)))]);
    let puts = rig.shown(&update(3).block(block(0, PER_MAP_PAGE + 1)).block(block(1, 2)));
    assert_eq!(clears(&puts), [clear(0, false, 3, &index(2)), clear(1, false, 3, &index(1))]);
    // Within one block, and the old one alone.
    assert_eq!(clears(&rig.shown(&update(3).block(block(0, 7)))), [clear(0, false, 3, &index(7))]);
    assert_eq!(clears(&rig.shown(&update(1).block(block(0, 7)).block(block(1, 2)))), [clear(0, false, 3, &index(2))]);
}

#[test]
fn a_named_map_page_is_guarded_by_its_lsn() {
    let mut rig = rig_with(PgVersion::V17, PER_MAP_PAGE + 10);
    let map = |id, block_no| BlockRef { data: Vec::new(), ..block(id, block_no).fork(ForkNumber::Vm) };
    let puts = rig.shown(&insert(3, 1).block(map(1, 0)));
    assert_eq!(clears(&puts), [clear(0, true, 3, &index(3))]);
    // Both blocks' bits on the page named for the new one.
    let puts = rig.shown(&update(3).block(block(0, 7)).block(block(1, 2)).block(map(2, 0)));
    assert_eq!(clears(&puts), [clear(0, true, 3, &format!("{}, {}", index(7), index(2)))]);
    // The old block's bits stand on another page that is not named: they were not set.
    let puts = rig.shown(&update(3).block(block(0, PER_MAP_PAGE + 1)).block(block(1, 2)).block(map(2, 1)));
    assert_eq!(clears(&puts), [clear(1, true, 3, &index(1))]);
    let puts =
        rig.shown(&update(3).block(block(0, PER_MAP_PAGE + 1)).block(block(1, 2)).block(map(2, 1)).block(map(3, 0)));
    assert_eq!(clears(&puts), [clear(0, true, 3, &index(2)), clear(1, true, 3, &index(1))]);
    let puts = rig.shown(&update(3).block(block(0, PER_MAP_PAGE + 1)).block(block(1, 2)).block(map(3, 0)));
    assert_eq!(clears(&puts), [clear(0, true, 3, &index(2))]);
}

#[test]
fn a_named_map_page_with_an_image_is_the_image() {
    let mut rig = rig_with(PgVersion::V18, 10);
    let mut page = ZERO_PAGE;
    page[14] = 0x20;
    let puts = rig.shown(&insert(3, 1).block(block(1, 0).fork(ForkNumber::Vm).image(true, &page)));
    assert_eq!(clears(&puts), ["0 Image page"]);
}

#[test]
fn a_missing_map_is_made() {
    let mut rig = Rig::new(PgVersion::V15);
    let puts = rig.shown(&insert(PER_MAP_PAGE, 1));
    let expect = clear(1, false, 3, &index(0)).replace("Delta", "InitDelta");
    assert_eq!(clears(&puts), ["0 Image", &expect]);
    assert!(puts.contains(&"size 1663/5/16384 vm Image 2".to_owned()));
    // The old row's page of the map is in front of the new one's.
    let mut rig = Rig::new(PgVersion::V15);
    let puts = rig.shown(&update(3).block(block(0, PER_MAP_PAGE + 1)).block(block(1, 2)));
    let made = |page, heap_block| clear(page, false, 3, &index(heap_block)).replace("Delta", "InitDelta");
    assert_eq!(clears(&puts), [made(0, 2), made(1, 1)]);
}

/// Heap2 VISIBLE: block 0 is the map's page, block 1 the heap's.
fn visible() -> Rec {
    let map_page = block(0, 0).fork(ForkNumber::Vm);
    rec(rmgr::HEAP2, heap2_operation::VISIBLE, 0, Body::default().u32(0).u8(3)).block(map_page).block(block(1, 3))
}

#[test]
fn heap_page_is_stamped_as_visible_only_while_hint_bits_are_logged() {
    use postgres_ffi::records::xlog::{WAL_LEVEL_REPLICA, operation::PARAMETER_CHANGE};
    let parameters = |wal_log_hints: bool| {
        let body = Body::default().u32(100).u32(8).u32(10).u32(5).u32(64).u32(WAL_LEVEL_REPLICA as u32);
        rec(rmgr::XLOG, PARAMETER_CHANGE, 0, body.u8(wal_log_hints.into()).u8(0))
    };
    let map = "block 1663/5/16384 vm 0 Delta record";
    let unstamped = ["block 1663/5/16384 main 3 Delta HeapAllVisible", map];
    let mut rig = rig_with(PgVersion::V17, 10);
    assert_eq!(sorted(rig.shown(&visible())), unstamped);
    rig.ingest(&parameters(true));
    assert_eq!(sorted(rig.shown(&visible())), ["block 1663/5/16384 main 3 Delta record", map]);
    rig.ingest(&parameters(false));
    assert_eq!(sorted(rig.shown(&visible())), unstamped);
}

fn sorted(mut puts: Vec<String>) -> Vec<String> {
    puts.sort();
    puts
}
