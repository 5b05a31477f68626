//! Real pages of a primary and its standby must be equal after masking, changed ones must not be, and no bytes make a mask panic.

use byteorder::{ByteOrder, LittleEndian};
use proptest::prelude::*;

use super::fixtures::{FIXTURES, fixture};
use super::*;
use crate::Lsn;
use crate::page::{ZERO_PAGE, set_page_lsn};

/// Offset of the first tuple with storage.
fn first_tuple(page: &Page) -> usize {
    items(page).find_map(|item| item.range()).expect("a tuple").start
}

#[test]
fn pages_of_each_kind_are_told_apart() {
    for fixture in &FIXTURES {
        let expected = match fixture.name.split('-').next() {
            Some("heap") => PageKind::Heap,
            Some("btree") => PageKind::Btree,
            Some("hash") => PageKind::Hash,
            Some("gist") => PageKind::Gist,
            Some("gin") => PageKind::Gin,
            Some("spgist") => PageKind::Spgist,
            Some("brin") => PageKind::Brin,
            Some("sequence") => PageKind::Sequence,
            Some("vm") => PageKind::VisibilityMap,
            Some("fsm") => PageKind::FreeSpaceMap,
            other => panic!("{other:?}"),
        };
        let found = classify(&fixture.primary(), fixture.fork(), fixture.block_no);
        assert_eq!(found, expected, "{} {}", fixture.major, fixture.name);
    }
    assert_eq!(classify(&ZERO_PAGE, ForkNumber::Main, 0), PageKind::New);
}

#[test]
fn primary_and_standby_agree_after_masking() {
    for fixture in FIXTURES.iter().filter(|fixture| !matches!(fixture.name, "vm" | "fsm")) {
        let (primary, standby) = (fixture.primary(), fixture.standby());
        let comparison = compare_pages(&standby, &primary, fixture.fork(), fixture.block_no);
        let expected = if primary == standby { Equality::Equal } else { Equality::EqualMasked };
        assert_eq!(comparison.equality, expected, "{} {}", fixture.major, fixture.name);
        assert!(!comparison.is_mismatch(), "{} {}", fixture.major, fixture.name);
    }
}

/// PostgreSQL's masks are meant for the moment of a record, so what a primary writes later without WAL shows: sequences, last-used pages.
#[test]
fn postgresqls_own_masks_hide_hints_too() {
    let hidden = FIXTURES.iter().filter(|f| !matches!(f.name, "vm" | "fsm" | "sequence" | "spgist-meta"));
    for fixture in hidden {
        let (primary, standby) = (fixture.primary(), fixture.standby());
        let kind = classify(&primary, fixture.fork(), fixture.block_no);
        let equality = equal_after_masking(&standby, &primary, kind, fixture.block_no);
        assert!(!matches!(equality, Equality::Different { .. }), "{} {} {equality:?}", fixture.major, fixture.name);
    }
}

#[test]
fn every_byte_of_a_tuple_counts() {
    let heap = fixture("heap");
    let (primary, standby) = (heap.primary(), heap.standby());
    let tuple = items(&primary).find_map(|item| item.range()).expect("a tuple");
    let hidden = [heap::T_FIELD3..heap::T_CTID, heap::T_INFOMASK..heap::T_INFOMASK + 2];
    for offset in tuple.clone() {
        let mut changed = standby;
        changed[offset] ^= 0x10;
        let comparison = compare_pages(&changed, &primary, ForkNumber::Main, heap.block_no);
        if hidden.iter().any(|range| range.contains(&(offset - tuple.start))) {
            continue;
        }
        assert_eq!(comparison.equality, Equality::Different { first_offset: offset });
    }
}

#[test]
fn hint_bits_do_not_count_but_lock_bits_do() {
    let heap = fixture("heap");
    let page = heap.primary();
    let infomask_at = first_tuple(&page) + heap::T_INFOMASK;
    let with = |bits: u16| {
        let mut page = page;
        let infomask = LittleEndian::read_u16(&page[infomask_at..]) & !0x0300;
        LittleEndian::write_u16(&mut page[infomask_at..infomask_at + 2], infomask ^ bits);
        page
    };
    let equality = |bits| compare_pages(&with(bits), &with(0), ForkNumber::Main, heap.block_no).equality;
    for hint in [0x0100, 0x0200, 0x0400, 0x0800] {
        assert_eq!(equality(hint), Equality::EqualMasked, "{hint:#06x}");
    }
    for lock in [0x0010, 0x0040, 0x0080, 0x1000, 0x2000] {
        assert_eq!(
            equality(lock),
            Equality::Different { first_offset: infomask_at & !1 | usize::from(lock > 0xFF) },
            "{lock:#06x}"
        );
        let replayed = equal_after_masking(&with(lock), &with(0), PageKind::Heap, heap.block_no);
        assert_eq!(replayed, Equality::EqualMasked, "{lock:#06x}");
    }
    // Freezing is logged.
    assert!(matches!(equality(0x0300), Equality::Different { .. }));
}

#[test]
fn a_wrong_stamp_or_visibility_bit_is_a_mismatch() {
    let heap = fixture("heap");
    let page = heap.primary();
    let mut stamped = page;
    set_page_lsn(&mut stamped, Lsn::new(42));
    let comparison = compare_pages(&stamped, &page, ForkNumber::Main, heap.block_no);
    assert!(comparison.lsn_differs && comparison.is_mismatch());
    assert_eq!(comparison.equality, Equality::EqualMasked);

    let mut visible = page;
    visible[PD_FLAGS] ^= PD_ALL_VISIBLE as u8;
    let comparison = compare_pages(&visible, &page, ForkNumber::Main, heap.block_no);
    assert_eq!(comparison.equality, Equality::Different { first_offset: PD_FLAGS });
}

#[test]
fn stamps_that_the_disk_lost_do_not_count() {
    let gist = fixture("gist");
    let (ours, mut on_disk) = (gist.primary(), gist.primary());
    set_page_lsn(&mut on_disk, Lsn::new(1));
    assert!(!compare_pages(&ours, &on_disk, ForkNumber::Main, gist.block_no).is_mismatch());
    let btree = fixture("btree-meta");
    let (ours, mut on_disk) = (btree.primary(), btree.primary());
    set_page_lsn(&mut on_disk, Lsn::ZERO);
    assert!(!compare_pages(&ours, &on_disk, ForkNumber::Init, 0).is_mismatch());
    assert!(compare_pages(&ours, &on_disk, ForkNumber::Main, 0).is_mismatch());
}

#[test]
fn a_sequence_may_be_behind_its_wal_but_not_elsewhere() {
    let sequence = fixture("sequence");
    let (on_disk, logged) = (sequence.primary(), sequence.standby());
    let data = sequence::data_range(&logged).expect("sequence data");
    let equality = |ours: &Page, disk: &Page| compare_pages(ours, disk, ForkNumber::Main, 0).equality;
    assert_eq!(equality(&logged, &on_disk), Equality::EqualMasked);

    let disk_count = LittleEndian::read_i64(&on_disk[data.start + 8..]);
    assert!(disk_count > 1, "the fixture covers values in advance");
    let mut off_by_one = logged;
    off_by_one[data.start] ^= 1;
    assert!(matches!(equality(&off_by_one, &on_disk), Equality::Different { .. }));
    let mut not_called = logged;
    not_called[data.start + 16] = 0;
    assert!(matches!(equality(&not_called, &on_disk), Equality::Different { .. }));
    // With nothing covered in advance the values are the same.
    let mut used_up = on_disk;
    used_up[data.start + 8..data.start + 16].fill(0);
    assert!(matches!(equality(&logged, &used_up), Equality::Different { .. }));
}

#[test]
fn every_bit_of_a_visibility_map_counts() {
    let page = fixture("vm").primary();
    assert_eq!(compare_pages(&page, &page, ForkNumber::Vm, 0).equality, Equality::Equal);
    for offset in PAGE_HEADER_LEN..BLCKSZ {
        let mut changed = page;
        changed[offset] ^= 1;
        let equality = compare_pages(&changed, &page, ForkNumber::Vm, 0).equality;
        assert_eq!(equality, Equality::Different { first_offset: offset });
    }
}

#[test]
fn an_empty_visibility_map_is_zeroes_or_initialised() {
    let mut initialised = ZERO_PAGE;
    visibility_map::initialise_if_new(&mut initialised);
    let comparison = compare_pages(&ZERO_PAGE, &initialised, ForkNumber::Vm, 0);
    assert!(!comparison.is_mismatch(), "{comparison:?}");
    initialised[PAGE_HEADER_LEN] = 1;
    assert!(compare_pages(&ZERO_PAGE, &initialised, ForkNumber::Vm, 0).is_mismatch());
}

#[test]
fn an_empty_heap_page_without_wal_says_as_much_as_zeroes() {
    let mut empty = ZERO_PAGE;
    visibility_map::initialise_if_new(&mut empty); // The same header.
    assert!(!compare_pages(&ZERO_PAGE, &empty, ForkNumber::Main, 7).is_mismatch());
    let mut stamped = empty;
    set_page_lsn(&mut stamped, Lsn::new(8));
    assert!(compare_pages(&ZERO_PAGE, &stamped, ForkNumber::Main, 7).is_mismatch());
    empty[BLCKSZ - 1] = 1;
    assert!(compare_pages(&ZERO_PAGE, &empty, ForkNumber::Main, 7).is_mismatch());
}

#[test]
fn masks_are_idempotent() {
    for fixture in &FIXTURES {
        let page = fixture.primary();
        let kind = classify(&page, fixture.fork(), fixture.block_no);
        for mask in [mask_page, mask_unlogged] {
            let mut once = page;
            mask(&mut once, kind, fixture.block_no);
            let mut twice = once;
            mask(&mut twice, kind, fixture.block_no);
            assert_eq!(once, twice, "{} {}", fixture.major, fixture.name);
        }
    }
}

proptest! {
    /// Whatever the bytes, as whatever kind of page: no panic.
    #[test]
    fn damaged_pages_never_panic(
        fixture_no in 0..FIXTURES.len(),
        damage in prop::collection::vec((0..BLCKSZ, any::<u8>()), 0..20),
        header in prop::array::uniform16(any::<u8>()),
        with_header: bool,
    ) {
        let mut page = FIXTURES[fixture_no].primary();
        for (offset, value) in damage {
            page[offset] = value;
        }
        if with_header {
            page[8..PAGE_HEADER_LEN].copy_from_slice(&header);
        }
        for fork in ForkNumber::ALL {
            classify(&page, fork, 0);
            compare_pages(&page, &FIXTURES[fixture_no].standby(), fork, 0);
            compare_pages(&FIXTURES[fixture_no].standby(), &page, fork, 0);
        }
        for kind in ALL_KINDS {
            mask_page(&mut page.clone(), kind, 3);
            mask_unlogged(&mut page.clone(), kind, 3);
        }
    }
}

const ALL_KINDS: [PageKind; 12] = [
    PageKind::New,
    PageKind::Heap,
    PageKind::Btree,
    PageKind::Hash,
    PageKind::Gist,
    PageKind::Gin,
    PageKind::Spgist,
    PageKind::Brin,
    PageKind::Sequence,
    PageKind::VisibilityMap,
    PageKind::FreeSpaceMap,
    PageKind::Generic,
];
