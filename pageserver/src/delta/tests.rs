//! Goal: what a delta's bytes are never changes, and applying gives what a plain model gives.
//! Method: golden bytes per tag, round trips, cut and mutated bytes, random runs against maps of ids.

use std::collections::BTreeMap;

use postgres_ffi::Lsn;
use postgres_ffi::page::{BLCKSZ, Page, ZERO_PAGE, page_lsn, set_page_lsn};
use postgres_ffi::slru::{self, XidStatus};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;

fn indexes_of(values: &[u16]) -> Vec<Index> {
    values.iter().map(|value| Index::new(*value)).collect()
}

fn check_golden(delta: Delta<'_>, expect: &str) {
    let mut bytes = Vec::new();
    delta.encode(&mut bytes);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, expect.replace(' ', ""), "{delta:?}");
    assert_eq!(Delta::decode(&bytes), Ok(delta));
    for cut in 0..bytes.len() {
        let _ = Delta::decode(&bytes[..cut]); // An error or a shorter list, never a panic.
    }
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut mutated = bytes.clone();
            mutated[at] ^= 1 << bit;
            if let Ok(delta) = Delta::decode(&mutated) {
                let _ = apply(&delta, &mut ZERO_PAGE.clone(), Lsn::new(8));
            }
        }
    }
}

#[test]
fn golden_bytes() {
    check_golden(Delta::Postgres(&[1, 2, 3]), "00 010203");
    let indexes = indexes_of(&[5, 32_767]);
    check_golden(Delta::ClogStatus { status: XidStatus::Committed, indexes: &indexes }, "01 01 0005 7fff");
    check_golden(Delta::MultiOffsets(&[OffsetEntry::new(2_047, 0x01020304)]), "02 07ff 01020304");
    let members = [MemberEntry::new(700, 5), MemberEntry::new(701, 0)];
    check_golden(Delta::MultiMembers { first_index: 1_634, members: &members }, "03 0662 05000002bc 00000002bd");
    let indexes = indexes_of(&[818]);
    check_golden(Delta::CommitTs { time: -2, origin_id: 7, indexes: &indexes }, "04 fffffffffffffffe 0007 0332");
    let indexes = indexes_of(&[0, 32_671]);
    check_golden(Delta::VisibilityMapClear { lsn_guarded: false, bits: 3, indexes: &indexes }, "05 03 0000 7f9f");
    check_golden(Delta::VisibilityMapClear { lsn_guarded: true, bits: 2, indexes: &indexes[..1] }, "05 82 0000");
    check_golden(Delta::VisibilityMapTruncate { first_index: 32_671 }, "06 7f9f");
    check_golden(Delta::FreeSpaceMapTruncate { first_slot: 4_068 }, "07 0fe4");
    check_golden(Delta::HeapAllVisible, "08");
}

#[test]
fn out_of_range_is_refused() {
    for bytes in [
        &[1, 1, 0x80, 0x00][..],         // CLOG index 32768
        &[1, 4, 0, 0],                   // no such status
        &[1, 1, 0],                      // half an index
        &[2, 8, 0, 0, 0, 0, 0],          // offsets index 2048
        &[3, 6, 0x64, 0, 0, 0, 0, 1],    // member 1636
        &[3, 0, 0],                      // no member
        &[4, 0, 0, 0, 0, 0, 0, 0, 0, 0], // origin cut
        &[5, 0, 0, 0],                   // no bits
        &[5, 4, 0, 0],                   // a bit that does not exist
        &[5, 3, 0x7F, 0xA0],             // heap block 32672
        &[6, 0x7F, 0xA0],
        &[7, 0x0F, 0xE5],
        &[8, 0],
        &[9],
        &[],
    ] {
        assert!(Delta::decode(bytes).is_err(), "{bytes:02x?}");
    }
}

fn applied(delta: &Delta<'_>, page: &Page, lsn: u64) -> Box<Page> {
    let mut page = Box::new(*page);
    apply(delta, &mut page, Lsn::new(lsn)).unwrap();
    let once = page.clone();
    apply(delta, &mut page, Lsn::new(lsn)).unwrap();
    assert_eq!(page, once, "applying twice is the same as once");
    page
}

#[test]
fn clog_follows_a_model() {
    let mut rng = SmallRng::seed_from_u64(42);
    let mut page = Box::new(ZERO_PAGE);
    let mut model = BTreeMap::new();
    for _ in 0..300 {
        let status = XidStatus::from_number(rng.random_range(0..4)).unwrap();
        let indexes: Vec<Index> =
            (0..rng.random_range(1..50)).map(|_| Index::new(rng.random_range(0..32_768))).collect();
        page = applied(&Delta::ClogStatus { status, indexes: &indexes }, &page, 1);
        model.extend(indexes.iter().map(|index| (index.get(), status)));
        for (index, status) in &model {
            assert_eq!(slru::clog_status(&page, *index), *status);
        }
    }
    let untouched = (0..32_768u16).filter(|index| !model.contains_key(index));
    assert!(untouched.map(|index| slru::clog_status(&page, index)).all(|status| status == XidStatus::InProgress));
}

#[test]
fn multixacts_and_commit_timestamps_follow_a_model() {
    let mut rng = SmallRng::seed_from_u64(43);
    let (mut members_page, mut members_model) = (Box::new(ZERO_PAGE), BTreeMap::new());
    let (mut ts_page, mut ts_model) = (Box::new(ZERO_PAGE), BTreeMap::new());
    for _ in 0..300 {
        let first_index = rng.random_range(0..1_600);
        let members: Vec<MemberEntry> =
            (0..rng.random_range(1..36)).map(|_| MemberEntry::new(rng.random(), rng.random_range(0..6))).collect();
        members_page = applied(&Delta::MultiMembers { first_index, members: &members }, &members_page, 1);
        members_model.extend((first_index..).zip(&members).map(|(index, m)| (index, (m.xid.get(), m.status))));
        for (index, member) in &members_model {
            assert_eq!(slru::multi_member(&members_page, *index), *member);
        }
        let (time, origin_id, index) = (rng.random(), rng.random(), rng.random_range(0..819));
        ts_page = applied(&Delta::CommitTs { time, origin_id, indexes: &indexes_of(&[index]) }, &ts_page, 1);
        ts_model.insert(index, (time, origin_id));
        for (index, entry) in &ts_model {
            assert_eq!(slru::commit_ts(&ts_page, *index), *entry);
        }
    }
}

#[test]
fn slru_pages_keep_no_lsn() {
    let page =
        applied(&Delta::ClogStatus { status: XidStatus::Aborted, indexes: &indexes_of(&[100]) }, &ZERO_PAGE, 0x99);
    assert_eq!(page_lsn(&page), None);
}

/// A map's page with every bit set and this LSN.
fn full_map(lsn: u64) -> Page {
    let clear = Delta::VisibilityMapClear { lsn_guarded: false, bits: 3, indexes: &[] };
    let mut page = *applied(&clear, &ZERO_PAGE, 1);
    page[24..].fill(0xFF);
    set_page_lsn(&mut page, Lsn::new(lsn));
    page
}

#[test]
fn clearing_bits_initialises_a_new_page_and_stamps_nothing() {
    let clear = Delta::VisibilityMapClear { lsn_guarded: false, bits: 3, indexes: &indexes_of(&[0]) };
    let page = applied(&clear, &ZERO_PAGE, 0x50);
    // lsn, checksum, flags 0; lower 24, upper and special 8192, size and version 0x2004
    assert_eq!(page[..24], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 24, 0, 0, 0x20, 0, 0x20, 4, 0x20, 0, 0, 0, 0]);
    assert!(page[24..].iter().all(|byte| *byte == 0));
    // Not guarded: also a page with a higher LSN is changed, and keeps its LSN.
    let page = applied(
        &Delta::VisibilityMapClear { lsn_guarded: false, bits: 2, indexes: &indexes_of(&[5]) },
        &full_map(0x90),
        0x50,
    );
    assert_eq!((page[25], page_lsn(&page)), (0b1111_0111, Some(Lsn::new(0x90))));
}

#[test]
fn guarded_clear_looks_at_the_lsn_and_stamps_it() {
    let indexes = indexes_of(&[1, 4]);
    let clear = Delta::VisibilityMapClear { lsn_guarded: true, bits: 3, indexes: &indexes };
    assert_eq!(*applied(&clear, &full_map(0x50), 0x50), full_map(0x50));
    let page = applied(&clear, &full_map(0x48), 0x50);
    assert_eq!((page[24], page[25], page_lsn(&page)), (0b1111_0011, 0b1111_1100, Some(Lsn::new(0x50))));
    // Nothing to clear: no stamp.
    let mut empty = full_map(0x48);
    empty[24..].fill(0);
    assert_eq!(*applied(&clear, &empty, 0x50), empty);
    assert_eq!(apply(&clear, &mut ZERO_PAGE.clone(), Lsn::new(0x50)), Err(DeltaError::PageIsNew));
}

#[test]
fn truncating_the_map_keeps_bits_in_front() {
    let page = applied(&Delta::VisibilityMapTruncate { first_index: 6 }, &full_map(0x48), 0x50);
    assert_eq!((page[24], page[25], page_lsn(&page)), (0xFF, 0b0000_1111, Some(Lsn::new(0x48))));
    assert!(page[26..].iter().all(|byte| *byte == 0));
    let page = applied(&Delta::VisibilityMapTruncate { first_index: 32_671 }, &full_map(0x48), 0x50);
    assert_eq!(page[BLCKSZ - 2..], [0xFF, 0b0011_1111]);
}

#[test]
fn records_are_not_applied_here() {
    assert_eq!(apply(&Delta::Postgres(&[]), &mut ZERO_PAGE.clone(), Lsn::new(1)), Err(DeltaError::NotOurs));
}

#[test]
fn heap_page_becomes_all_visible_and_keeps_its_lsn() {
    const FLAGS: usize = 10;
    let mut page = ZERO_PAGE;
    assert_eq!(apply(&Delta::HeapAllVisible, &mut page, Lsn::new(8)), Err(DeltaError::PageIsNew));
    page[14] = 0x20; // Initialised.
    set_page_lsn(&mut page, Lsn::new(16));
    let newer_than_record = page;
    apply(&Delta::HeapAllVisible, &mut page, Lsn::new(16)).unwrap();
    assert_eq!(page, newer_than_record);
    apply(&Delta::HeapAllVisible, &mut page, Lsn::new(24)).unwrap();
    assert_eq!((page[FLAGS], page_lsn(&page)), (4, Some(Lsn::new(16))));
}
