//! Changes to a page where redo looks at it.
//!
//! PG 14-18: src/include/storage/bufpage.h (PageHeaderData), itemid.h (ItemIdData).

use std::ops::Range;

use postgres_ffi::page::{BLCKSZ, Page};
use rand::Rng;
use rand::rngs::SmallRng;

use super::mutate_in_place;

/// Behind `pd_lsn` and `pd_checksum`.
const PD_FLAGS_AT: usize = 10;
const PD_LOWER_AT: usize = 12;
const PD_SPECIAL_AT: usize = 16;
const LINE_POINTERS_AT: usize = 24;
const LINE_POINTER_LEN: usize = 4;
/// Of a tuple: longer than the head of any, so that the first of what it holds is in reach.
const TUPLE_HEAD_LEN: usize = 40;

/// Changes some bytes of one of the page's areas.
pub(super) fn mutate(page: &mut Page, numbers: &mut SmallRng) {
    let lower = u16_at(page, PD_LOWER_AT).clamp(LINE_POINTERS_AT, BLCKSZ);
    let special = u16_at(page, PD_SPECIAL_AT).clamp(LINE_POINTERS_AT, BLCKSZ);
    let area = match numbers.random_range(0..8) {
        0 => PD_FLAGS_AT..LINE_POINTERS_AT,
        1 => LINE_POINTERS_AT..lower, // What stands here in pages without line pointers is read as well.
        2 => special..BLCKSZ,
        3 | 4 => line_pointer(lower, numbers),
        5 | 6 => tuple_head(page, lower, numbers),
        _ => 0..BLCKSZ,
    };
    mutate_in_place(&mut page[area]);
}

fn line_pointer(lower: usize, numbers: &mut SmallRng) -> Range<usize> {
    let count = (lower - LINE_POINTERS_AT) / LINE_POINTER_LEN;
    let start = LINE_POINTERS_AT + LINE_POINTER_LEN * numbers.random_range(0..count.max(1));
    start..start + LINE_POINTER_LEN
}

/// The head of the tuple that one of the line pointers points to.
fn tuple_head(page: &Page, lower: usize, numbers: &mut SmallRng) -> Range<usize> {
    let start = u16_at(page, line_pointer(lower, numbers).start) & 0x7FFF; // lp_off: the lower 15 bits
    let start = start.min(BLCKSZ);
    start..(start + TUPLE_HEAD_LEN).min(BLCKSZ)
}

/// `at`: not the page's last byte.
fn u16_at(page: &Page, at: usize) -> usize {
    usize::from(u16::from_le_bytes([page[at], page[at + 1]]))
}
