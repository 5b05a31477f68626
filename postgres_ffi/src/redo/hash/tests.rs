//! What WAL of a server does not show: bodies and pages that do not fit together, and pages that only get locked.

use super::*;
use crate::page::page_lsn;
use crate::records::fields::Body;
use crate::redo::made_up::{END_LSN, MadeUp, PAGE_LSN, check_any_bodies, empty_page};
use crate::wal::rmgr::HASH;

const NO_DATA: &[u8] = &[];

#[test]
fn any_bodies_are_applied_or_refused() {
    check_any_bodies(HASH, SPECIAL_LEN);
}

#[test]
fn pages_of_other_indexes_are_refused() {
    let record = made_up(SPLIT_CLEANUP, NO_DATA, &[(0, false, NO_DATA)]);
    assert_eq!(record.redo(0, &mut empty_page(SPECIAL_LEN)), Ok(()));
    assert!(record.redo(0, &mut empty_page(8)).is_err());
}

#[test]
fn bits_beyond_the_bitmap_are_refused() {
    for (bit_no, is_good) in [(8 * 8152 - 1, true), (8 * 8152, false), (u32::MAX, false)] {
        let page = &mut empty_page(SPECIAL_LEN);
        let data = u32::to_le_bytes(bit_no);
        let blocks: &[(u8, bool, &[u8])] = &[(2, false, &data)];
        let done = made_up(ADD_OVFL_PAGE, &[0, 16, 0], blocks).redo(2, page);
        assert_eq!(done.is_ok(), is_good, "{bit_no}: {done:?}");
        assert_eq!(page[SPECIAL_AT - 1], if is_good { 0x80 } else { 0 });
    }
}

#[test]
fn page_that_only_gets_locked_is_stamped_up_to_16() {
    let only_locked = Body::default().u32(5).u32(NONE).u16(0).u8(1).u8(0).0;
    let written_to = Body::default().u32(5).u32(NONE).u16(0).u8(1).u8(1).0;
    for version in PgVersion::ALL {
        let lsn_after = |main_data: &[u8]| {
            let page = &mut empty_page(SPECIAL_LEN);
            let blocks = &[(1, false, NO_DATA)];
            let record = MadeUp { version, ..made_up(SQUEEZE_PAGE, main_data, blocks) };
            assert_eq!(record.redo(1, page), Ok(()));
            page_lsn(page)
        };
        let expected = if version <= PgVersion::V16 { END_LSN } else { PAGE_LSN };
        assert_eq!(lsn_after(&only_locked), Some(expected), "{version}");
        assert_eq!(lsn_after(&written_to), Some(END_LSN), "{version}");
    }
}

#[test]
fn moved_tuples_are_as_many_as_the_record_says() {
    let tuple = Body::default().u64(0).bytes(&[0; 8]).0;
    let with_len = |len: u16| [&tuple[..6], &len.to_le_bytes()[..], &tuple[8..]].concat();
    for (tuple_count, data, is_good) in [
        (1, Body::default().u16(1).bytes(&with_len(16)), true),
        // Stored with its padding.
        (1, Body::default().u16(1).bytes(&with_len(11)), true),
        (1, Body::default().u16(1).bytes(&with_len(17)), false),
        (1, Body::default().u16(1).bytes(&with_len(0)), false),
        (1, Body::default().u16(2).bytes(&with_len(16)), false),
        (1, Body::default().u16(1).bytes(&with_len(16)).bytes(&with_len(16)), false),
        (2, Body::default().u16(1).u16(2).bytes(&with_len(16)), false),
        (2, Body::default().u16(1), false),
        (0, Body::default().u16(1), true),
    ] {
        let main_data = Body::default().u16(tuple_count).u8(1).0;
        let record = MadeUp { blocks: &[(1, false, &data.0)], ..made_up(MOVE_PAGE_CONTENTS, &main_data, &[]) };
        let done = record.redo(1, &mut empty_page(SPECIAL_LEN));
        assert_eq!(done.is_ok(), is_good, "{tuple_count} {:?}: {done:?}", data.0);
    }
}

#[test]
fn blocks_made_anew_must_say_so() {
    let record = |will_init| {
        let blocks = &[(0, will_init, NO_DATA)];
        made_up(INIT_BITMAP_PAGE, &[0, 16], blocks).redo(0, &mut empty_page(SPECIAL_LEN))
    };
    assert_eq!(record(true), Ok(()));
    assert!(record(false).is_err());
}

fn made_up<'a>(operation: u8, main_data: &'a [u8], blocks: &'a [(u8, bool, &'a [u8])]) -> MadeUp<'a> {
    MadeUp { version: PgVersion::V15, rmid: HASH, operation, main_data, blocks }
}
