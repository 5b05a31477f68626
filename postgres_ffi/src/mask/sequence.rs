//! Sequences: the page on disk runs behind the WAL, on purpose.
//!
//! `nextval` logs the value that it will reach after 32 more calls and `log_cnt` 0, then leaves the value given out now, and how
//! many calls are still covered, on the page. So for a page of the primary and one made from WAL:
//! `logged value = value on disk + log_cnt on disk * increment`, and `log_cnt` of the logged page is 0. With `log_cnt` 0 on disk
//! both are equal. The increment is not on the page, so what can be checked is that some increment other than 0 fits.
//!
//! PG 15: src/backend/commands/sequence.c, nextval_internal; src/include/commands/sequence.h, FormData_pg_sequence_data:
//! last_value i64@0, log_cnt i64@8, is_called u8@16 of the tuple's data.

use std::ops::Range;

use byteorder::{ByteOrder, LittleEndian};

use super::heap::T_HOFF;
use crate::page::Page;
use crate::page::layout::{Item, items};

const DATA_LEN: usize = 17;
/// last_value and log_cnt.
const POSITION_LEN: usize = 16;

/// Where the sequence's data stands in its page; `None` when there is no such tuple.
pub(crate) fn data_range(page: &Page) -> Option<Range<usize>> {
    let tuple = items(page).next().as_ref().and_then(Item::range)?;
    let header_len = usize::from(*page.get(tuple.start + T_HOFF)?);
    let start = tuple.start + header_len;
    (start + DATA_LEN <= tuple.end).then_some(start..start + DATA_LEN)
}

/// Gives the logged page the value and the counter of the page on disk, if they are what this sequence may have come to. True: it did.
///
/// Requires: both are sequence pages.
pub(super) fn take_over_position(logged: &mut Page, on_disk: &Page) -> bool {
    let (Some(range), Some(disk_range)) = (data_range(logged), data_range(on_disk)) else { return false };
    if range != disk_range {
        return false;
    }
    let disk = &on_disk[disk_range];
    let (logged_value, logged_count) = position(&logged[range.clone()]);
    let (disk_value, disk_count) = position(disk);
    let distance = i128::from(logged_value) - i128::from(disk_value);
    let fits = logged_count == 0 && disk_count > 0 && distance != 0 && distance % i128::from(disk_count) == 0;
    if fits {
        logged[range.start..range.start + POSITION_LEN].copy_from_slice(&disk[..POSITION_LEN]);
    }
    fits
}

fn position(data: &[u8]) -> (i64, i64) {
    (LittleEndian::read_i64(data), LittleEndian::read_i64(&data[8..]))
}
