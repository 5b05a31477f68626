//! Goal: what WAL of our servers does not show of Heap and Heap2: broken records and pages, references to the visibility map's page, tuples of
//! before 9.0. That pages come out as PostgreSQL's is shown elsewhere, by WAL that brings each page as it must become.
//!
//! Method: records by hand on a page of three tuples; random bodies on that page with random bytes.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::mask::heap::{T_FIELD3, T_INFOMASK, T_XMAX};
use crate::page::edit::init_page;
use crate::page::layout::item;
use crate::page::{BLCKSZ, PAGE_HEADER_LEN, Page, page_lsn};
use crate::records::heap::{heap_operation as heap, heap2_operation as heap2};
use crate::redo::{ClusterFacts, PageAddress, RedoError, redo};
use crate::wal::checks::arbitrary;
use crate::wal::checks::build::{BlockBuilder, RecordBuilder};
use crate::wal::{DecodedRecord, rmgr};
use crate::{BlockNumber, ForkNumber, Lsn, PgVersion, RelTag};

const REL: RelTag = RelTag { spc_oid: 1663, db_oid: 5, rel_number: 16384 };
const OLD_LSN: Lsn = Lsn::new(0x100);
const LSN: Lsn = Lsn::new(0x200);

fn block(block_id: u8, block_no: BlockNumber, data: &[u8]) -> BlockBuilder {
    let (will_init, image, data) = (false, None, data.to_vec());
    BlockBuilder { block_id, rel: REL, fork: ForkNumber::Main, block_no, will_init, image, data }
}

fn map_block(block_id: u8, block_no: BlockNumber) -> BlockBuilder {
    BlockBuilder { fork: ForkNumber::Vm, ..block(block_id, block_no, &[]) }
}

fn record(rmid: u8, info: u8, main_data: &[u8], blocks: Vec<BlockBuilder>) -> RecordBuilder {
    RecordBuilder { xid: 700, rmid, info, blocks, main_data: main_data.to_vec(), ..RecordBuilder::default() }
}

/// Redo of the record's block `nth` on `page`.
fn apply(
    version: PgVersion,
    end_lsn: Lsn,
    record: &RecordBuilder,
    nth: usize,
    page: &mut Page,
) -> Result<(), RedoError> {
    let raw = Bytes::from(record.build(version, Lsn::new(8)));
    let decoded = DecodedRecord::decode(version, Lsn::new(0x28), end_lsn, raw).expect("a good record");
    let BlockBuilder { rel, fork, block_no, .. } = record.blocks[nth];
    let facts = ClusterFacts { version, hint_bits_logged: true };
    redo(page, PageAddress { rel, fork, block_no }, &decoded, facts)
}

/// xl_heap_header (a tuple of one column, header of 24 bytes), the byte up to the values, the values.
const TUPLE: [u8; 14] = [1, 0, 2, 8, 24, 0, 1, 2, 3, 4, 5, 6, 7, 8];

/// Block 7: three tuples of 8 bytes.
fn page() -> Page {
    let mut page = [0; BLCKSZ];
    init_page(&mut page, 0);
    for offset_no in 1..4 {
        let insert = record(rmgr::HEAP, heap::INSERT, &[offset_no, 0, 0], vec![block(0, 7, &TUPLE)]);
        apply(PgVersion::V18, OLD_LSN, &insert, 0, &mut page).expect("inserted");
        crate::page::set_page_lsn(&mut page, Lsn::new(0x80));
    }
    page
}

fn is_refused(version: PgVersion, record: &RecordBuilder) -> bool {
    apply(version, LSN, record, 0, &mut page()).is_err()
}

/// Resource manager, operation, version, main data, data of block 0.
type Body = (u8, u8, PgVersion, Vec<u8>, Vec<u8>);

/// One record of each operation that fits the page, with nothing in it that is not needed.
fn good_records() -> Vec<Body> {
    let of_xmax = [9, 0, 0, 0, 2, 0, 0x10, 0];
    let update = [9, 0, 0, 0, 2, 0, 0x10, 0x60, 0, 0, 0, 0, 4, 0];
    let shared_ends = [2, 0, 3, 0, 1, 0, 2, 8, 24, 0, 9, 9, 9];
    let (v14, v16, v18) = (PgVersion::V14, PgVersion::V16, PgVersion::V18);
    let plans = [9, 0, 0, 0, 1, 0, 2, 0x0B, 0, 0, 2, 0];
    let all_lists = [&[1, 0, 0, 0][..], &plans, &[1, 0, 1, 0, 2, 0, 1, 0, 3, 0], &[2, 0, 2, 0]].concat();
    let multi = [&[9, 0][..], &TUPLE].concat();
    vec![
        (rmgr::HEAP, heap::INSERT, v14, vec![4, 0, 0], TUPLE.to_vec()),
        (rmgr::HEAP, heap::DELETE, v14, of_xmax.to_vec(), vec![]),
        (rmgr::HEAP, heap::HOT_UPDATE, v14, update.to_vec(), shared_ends.to_vec()),
        (rmgr::HEAP, heap::CONFIRM, v14, vec![2, 0], vec![]),
        (rmgr::HEAP, heap::LOCK, v14, of_xmax.to_vec(), vec![]),
        (rmgr::HEAP, heap::INPLACE, v14, vec![2, 0], vec![9; 8]),
        (rmgr::HEAP2, heap2::PRUNE, v14, vec![0, 0, 0, 0, 1, 0, 0, 0], vec![1, 0, 2, 0]),
        (rmgr::HEAP2, heap2::VACUUM, v14, vec![1, 0], vec![3, 0]),
        (rmgr::HEAP2, heap2::FREEZE_PAGE, v14, vec![0, 0, 0, 0, 1, 0], vec![0, 0, 0, 0, 2, 0, 1, 0, 2, 0x0B, 0, 0]),
        (rmgr::HEAP2, heap2::FREEZE_PAGE, v16, vec![0, 0, 0, 0, 1, 0], [&plans[..], &[1, 0, 3, 0]].concat()),
        (rmgr::HEAP2, heap2::PRUNE_VACUUM_SCAN, v18, vec![1, 0x74], all_lists),
        (rmgr::HEAP2, heap2::MULTI_INSERT, v14, vec![0, 0, 1, 0, 4, 0], multi),
        (rmgr::HEAP2, heap2::LOCK_UPDATED, v14, of_xmax.to_vec(), vec![]),
    ]
}

#[test]
fn records_cut_anywhere_are_refused() {
    for (rmid, info, version, main_data, data) in good_records() {
        let whole = record(rmid, info, &main_data, vec![block(0, 7, &data)]);
        let mut after = page();
        assert_eq!(apply(version, LSN, &whole, 0, &mut after), Ok(()), "{rmid} {info:#x} {version}");
        assert_eq!(page_lsn(&after), Some(LSN));
        for cut in 0..main_data.len() {
            let cut = record(rmid, info, &main_data[..cut], vec![block(0, 7, &data)]);
            assert!(is_refused(version, &cut), "{rmid} {info:#x} {version}");
        }
        for cut in 0..data.len() {
            // With fewer values these are new tuples as well, if the header is whole.
            let header_end = match (rmid, info) {
                (rmgr::HEAP, heap::INSERT) => 6,
                (rmgr::HEAP, heap::HOT_UPDATE) => 10,
                _ => usize::MAX,
            };
            let cut_record = record(rmid, info, &main_data, vec![block(0, 7, &data[..cut])]);
            assert_eq!(is_refused(version, &cut_record), cut < header_end, "{rmid} {info:#x} {version} {cut}");
        }
    }
}

#[test]
fn offset_numbers_that_are_not_there_are_refused() {
    for offset_no in [0, 4, 5, 292, 2043, 0xFFFF_u16] {
        let [low, high] = offset_no.to_le_bytes();
        for info in [heap::DELETE, heap::LOCK] {
            let body = [9, 0, 0, 0, low, high, 0x10, 0];
            assert!(is_refused(PgVersion::V15, &record(rmgr::HEAP, info, &body, vec![block(0, 7, &[])])));
        }
        let prune = record(rmgr::HEAP2, heap2::PRUNE, &[0; 8], vec![block(0, 7, &[low, high])]);
        assert!(is_refused(PgVersion::V15, &prune));
        let insert = record(rmgr::HEAP, heap::INSERT, &[low, high, 0], vec![block(0, 7, &TUPLE)]);
        assert_eq!(is_refused(PgVersion::V15, &insert), offset_no != 4);
    }
}

#[test]
fn line_pointers_that_lead_nowhere_are_refused() {
    // Offset, flags, length: into the line pointers, into the unused space, beyond the page, a tuple too short, a dead one.
    for (offset, flags, len) in [(24, 1, 32), (4000, 1, 32), (8184, 1, 32), (8160, 1, 22), (8128, 3, 32)] {
        let mut page = page();
        let word: u32 = offset | flags << 15 | len << 17;
        page[PAGE_HEADER_LEN + 4..PAGE_HEADER_LEN + 8].copy_from_slice(&word.to_le_bytes());
        let confirm = record(rmgr::HEAP, heap::CONFIRM, &[2, 0], vec![block(0, 7, &[])]);
        assert!(apply(PgVersion::V15, LSN, &confirm, 0, &mut page).is_err(), "{offset} {flags} {len}");
    }
}

#[test]
fn what_is_shared_must_be_on_the_same_page_and_there() {
    let body = [9, 0, 0, 0, 2, 0, 0, 0x60, 0, 0, 0, 0, 4, 0];
    let update = |prefix_len, suffix_len, blocks: Vec<BlockBuilder>| {
        let data = [prefix_len, 0, suffix_len, 0, 1, 0, 2, 8, 24, 0];
        let blocks = [vec![block(0, 7, &data)], blocks].concat();
        is_refused(PgVersion::V17, &record(rmgr::HEAP, heap::UPDATE, &body, blocks))
    };
    assert!(!update(8, 8, vec![]));
    assert!(update(9, 0, vec![]));
    assert!(update(0, 9, vec![]));
    assert!(update(1, 0, vec![block(1, 8, &[])]));
    assert!(!update(0, 0, vec![block(1, 8, &[])]));
}

#[test]
fn initialising_must_be_told_twice() {
    let refused = |info, will_init| {
        let block = BlockBuilder { will_init, ..block(0, 7, &TUPLE) };
        is_refused(PgVersion::V16, &record(rmgr::HEAP, info, &[1, 0, 0], vec![block]))
    };
    assert!(!refused(heap::INSERT | 0x80, true));
    assert!(refused(heap::INSERT | 0x80, false));
    assert!(refused(heap::INSERT, true));
}

#[test]
fn vacuum_full_of_before_9_0_is_frozen() {
    for (flags, field3) in [(0x02, [2, 0, 0, 0]), (0x04, [0; 4]), (0, [7; 4])] {
        let mut page = page();
        let start = item(&page, 2).expect("an item").offset;
        page[start + T_FIELD3..][..4].fill(7);
        let data = [5, 0, 0, 0, 2, 0, 1, 0, 2, 0x0B, flags, 0];
        let freeze = record(rmgr::HEAP2, heap2::FREEZE_PAGE, &[0, 0, 0, 0, 1, 0], vec![block(0, 7, &data)]);
        apply(PgVersion::V15, LSN, &freeze, 0, &mut page).expect("frozen");
        assert_eq!(page[start + T_FIELD3..][..4], field3);
        assert_eq!((page[start + T_XMAX], page[start + T_INFOMASK + 1]), (5, 0x0B));
    }
}

/// A map page that says all of blocks 0 to 15 (or of as many from the first that it speaks for), after the record; and whether it is stamped.
fn map_after(record: &RecordBuilder, nth: usize) -> Result<([u8; 4], bool), RedoError> {
    let mut page = [0; BLCKSZ];
    init_page(&mut page, 0);
    page[PAGE_HEADER_LEN..][..4].fill(0xFF);
    apply(PgVersion::V18, LSN, record, nth, &mut page)?;
    let bits = [0, 1, 2, 3].map(|at| page[PAGE_HEADER_LEN + at]);
    Ok((bits, page_lsn(&page) == Some(LSN)))
}

#[test]
fn a_map_page_that_is_named_loses_bits() {
    let delete = |heap_block, map_page, flags| {
        let blocks = vec![block(0, heap_block, &[]), map_block(1, map_page)];
        map_after(&record(rmgr::HEAP, heap::DELETE, &[9, 0, 0, 0, 2, 0, 0x10, flags], blocks), 1)
    };
    assert_eq!(delete(5, 0, 1), Ok(([0xFF, 0xF3, 0xFF, 0xFF], true)));
    assert_eq!(delete(32_672, 1, 1), Ok(([0xFC, 0xFF, 0xFF, 0xFF], true)));
    assert_eq!(delete(20, 0, 1), Ok(([0xFF; 4], false)), "nothing to clear, no stamp");
    assert!(delete(5, 1, 1).is_err(), "the map page of other blocks");
    assert!(delete(5, 0, 0).is_err(), "the record says that it clears nothing");
    let lock_blocks = || vec![block(0, 5, &[]), map_block(1, 0)];
    let body = [9, 0, 0, 0, 2, 0, 0x10, 1];
    for (rmid, info) in [(rmgr::HEAP, heap::LOCK), (rmgr::HEAP2, heap2::LOCK_UPDATED)] {
        assert_eq!(map_after(&record(rmid, info, &body, lock_blocks()), 1), Ok(([0xFF, 0xF7, 0xFF, 0xFF], true)));
    }
}

#[test]
fn the_map_pages_of_an_update_lose_bits() {
    let update = |flags, new_block, old_block: Option<BlockNumber>, map_block| {
        let body = [9, 0, 0, 0, 2, 0, 0, flags, 0, 0, 0, 0, 4, 0];
        let old_block = old_block.map(|block_no| block(1, block_no, &[]));
        let blocks: Vec<_> =
            [Some(block(0, new_block, &TUPLE)), old_block, Some(map_block)].into_iter().flatten().collect();
        let last = blocks.len() - 1;
        map_after(&record(rmgr::HEAP, heap::UPDATE, &body, blocks), last)
    };
    assert_eq!(update(2, 5, Some(9), map_block(2, 0)), Ok(([0xFF, 0xF3, 0xFF, 0xFF], true)));
    assert_eq!(update(3, 5, Some(9), map_block(2, 0)), Ok(([0xFF, 0xF3, 0xF3, 0xFF], true)), "both on one map page");
    assert_eq!(update(3, 5, Some(40_000), map_block(2, 0)), Ok(([0xFF, 0xF3, 0xFF, 0xFF], true)));
    assert_eq!(update(1, 5, Some(9), map_block(3, 0)), Ok(([0xFF, 0xFF, 0xF3, 0xFF], true)));
    assert_eq!(update(1, 5, None, map_block(3, 0)), Ok(([0xFF, 0xF3, 0xFF, 0xFF], true)), "old and new block are one");
    assert!(update(1, 5, Some(40_000), map_block(3, 0)).is_err());
    assert!(update(1, 5, Some(9), map_block(2, 0)).is_err());
    assert!(update(2, 5, Some(9), map_block(3, 0)).is_err());
}

#[test]
fn a_map_that_was_never_written_is_initialised_and_stamped_only_for_news() {
    let visible = record(rmgr::HEAP2, heap2::VISIBLE, &[0, 0, 0, 0, 3], vec![map_block(0, 0), block(1, 2, &[])]);
    let mut page = [0; BLCKSZ];
    apply(PgVersion::V14, LSN, &visible, 0, &mut page).expect("set");
    assert_eq!((page[PAGE_HEADER_LEN], page_lsn(&page)), (0x30, Some(LSN)));
    apply(PgVersion::V14, Lsn::new(0x300), &visible, 0, &mut page).expect("nothing new");
    assert_eq!((page[PAGE_HEADER_LEN], page_lsn(&page)), (0x30, Some(LSN)));
}

/// Mostly small numbers, so that counts and offset numbers are near to what is there.
fn bytes(len_max: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(prop_oneof![5 => 0..5_u8, 1 => any::<u8>()], 0..len_max)
}

proptest! {
    #[test]
    fn nothing_panics(
        (version, rmid, info) in (arbitrary::version(), prop_oneof![Just(rmgr::HEAP), Just(rmgr::HEAP2)], any::<u8>()),
        (main_data, data, with_old) in (bytes(24), bytes(60), any::<bool>()),
        (nth, will_init) in (0..3_usize, any::<bool>()),
        damage in vec((prop_oneof![0..60_usize, 8000..BLCKSZ, 0..BLCKSZ], any::<u8>()), 0..6),
    ) {
        let old_block = if with_old { block(1, 8, &[]) } else { map_block(1, 0) };
        let blocks = vec![BlockBuilder { will_init, ..block(0, 7, &data) }, old_block, map_block(2, 0)];
        let mut page = page();
        for (at, value) in damage {
            page[at] = value;
        }
        let _ = apply(version, Lsn::new(u64::MAX - 1), &record(rmid, info, &main_data, blocks), nth, &mut page);
    }
}
