//! What stands in a segment in front of a record whose predecessors are gone: records that say nothing.
//!
//! - A reader that begins with the segment goes through them and comes to the record; redo does nothing for XLOG_NOOP
//!   (PG 14-18: src/backend/access/transam/xlog.c, xlog_redo).
//! - No record fits in 8 or 16 bytes. Such a gap is filled as the tail of a record that began in the segment before, which every reader skips.
//! - No filler record is longer than [`RECORD_BYTES_MAX`]: readers hold a whole record in memory, and segments have up to 1 GiB.

use super::pages::{PageWriter, WalPlace};
use super::record::{main_data_len, xlog_record};
use crate::records::xlog::operation;
use crate::wal::page_header::{LONG_HEADER_LEN, SHORT_HEADER_LEN, WAL_PAGE_BYTES};
use crate::wal::record::RECORD_HEADER_LEN;
use crate::{Lsn, TimeLineId};

/// The longest filler record.
pub const RECORD_BYTES_MAX: u64 = 1 << 20;
const _: () = assert!(RECORD_BYTES_MAX.is_multiple_of(8));

const PAGE_BYTES: u64 = WAL_PAGE_BYTES as u64;
const SHORT_HEADER_BYTES: u64 = SHORT_HEADER_LEN as u64;
const LONG_HEADER_BYTES: u64 = LONG_HEADER_LEN as u64;
const RECORD_BYTES_MIN: u64 = RECORD_HEADER_LEN as u64;

/// The bytes of a segment from its beginning up to a record's end, in pieces of about [`RECORD_BYTES_MAX`].
#[derive(Clone, Debug)]
pub struct Filler {
    writer: PageWriter,
    /// Bytes that are no page headers and still to come.
    content_left: u64,
    last_record: Option<Lsn>,
}

impl Filler {
    /// Fills the segment that `end_lsn` lies in up to there; page headers name `timeline_id`. Nothing if a segment begins at `end_lsn`.
    /// Requires: a record can end at `end_lsn`, see [`WalPlace::record_end_at_or_before`].
    pub fn new(place: WalPlace, timeline_id: TimeLineId, end_lsn: Lsn) -> Self {
        assert!(place.record_end_at_or_before(end_lsn) == end_lsn, "a record can end at the end of the filler");
        let segment_start = place.segment_start(end_lsn);
        Filler {
            writer: PageWriter::new(place, timeline_id, segment_start),
            content_left: content_between(end_lsn.saturating_sub(segment_start)),
            last_record: None,
        }
    }

    /// Where the last record starts of those that came; [`None`] if none did: what follows then has no record before it.
    pub fn last_record(&self) -> Option<Lsn> {
        self.last_record
    }
}

impl Iterator for Filler {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        match self.content_left {
            0 => return None,
            // Only at the beginning: never is so little left behind a record.
            tail if tail < RECORD_BYTES_MIN => {
                self.writer.append_tail(tail as usize);
                self.content_left = 0;
            }
            content => {
                let length = record_len(content);
                let data = vec![0; main_data_len(length as usize)];
                let start_lsn = self.writer.append(&xlog_record(operation::NOOP, self.last_record, &data));
                self.last_record = Some(start_lsn);
                self.content_left -= length;
            }
        }
        Some(self.writer.take())
    }
}

/// Length of the next record with `content` bytes to fill: never leaves less than a record behind.
fn record_len(content: u64) -> u64 {
    match content.saturating_sub(RECORD_BYTES_MAX) {
        0 => content,
        rest if rest < RECORD_BYTES_MIN => RECORD_BYTES_MAX - RECORD_BYTES_MIN,
        _ => RECORD_BYTES_MAX,
    }
}

/// Bytes of the first `length` of a segment that are no page headers.
fn content_between(length: u64) -> u64 {
    match length.div_ceil(PAGE_BYTES) {
        0 => 0,
        page_count => length - LONG_HEADER_BYTES - (page_count - 1) * SHORT_HEADER_BYTES,
    }
}
