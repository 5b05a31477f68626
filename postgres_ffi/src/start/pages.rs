//! WAL pages around records. PG 15, 18: src/backend/access/transam/xlog.c, CopyXLogRecordToWAL, AdvanceXLInsertBuffer.

use crate::wal::page_header::{FIRST_IS_CONTRECORD, LONG_HEADER, LONG_HEADER_LEN, SHORT_HEADER_LEN, WAL_PAGE_BYTES};
use crate::{Lsn, PgVersion, TimeLineId};

const PAGE_BYTES: u64 = WAL_PAGE_BYTES as u64;

/// What all WAL of a cluster has in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalPlace {
    /// Major version.
    pub version: PgVersion,
    /// The cluster's system identifier.
    pub system_id: u64,
    /// Its WAL segment size in bytes.
    pub segment_bytes: u32,
}

impl WalPlace {
    /// Where the segment that holds `lsn` begins.
    pub fn segment_start(&self, lsn: Lsn) -> Lsn {
        Lsn::new(lsn.as_u64() - lsn.segment_offset(self.segment_bytes.into()))
    }

    /// Length of the header of the page that begins at `page_lsn`.
    pub fn header_len(&self, page_lsn: Lsn) -> usize {
        if page_lsn.segment_offset(self.segment_bytes.into()) == 0 { LONG_HEADER_LEN } else { SHORT_HEADER_LEN }
    }

    /// Where a record that ends at or before `lsn` can end: `lsn` aligned down, and never within or right behind a page header.
    pub fn record_end_at_or_before(&self, lsn: Lsn) -> Lsn {
        let aligned = lsn.as_u64() / crate::lsn::MAXALIGN * crate::lsn::MAXALIGN;
        let page_lsn = Lsn::new(aligned / PAGE_BYTES * PAGE_BYTES);
        if aligned - page_lsn.as_u64() <= self.header_len(page_lsn) as u64 { page_lsn } else { Lsn::new(aligned) }
    }

    /// Where the record behind one that ends at `end_lsn` starts: there, or behind the header of the page that begins there.
    pub fn next_record_start(&self, end_lsn: Lsn) -> Lsn {
        let header_len = if end_lsn.as_u64().is_multiple_of(PAGE_BYTES) { self.header_len(end_lsn) } else { 0 };
        Lsn::new(end_lsn.as_u64() + header_len as u64)
    }
}

/// Lays records out on pages, from a position on.
#[derive(Clone, Debug)]
pub(super) struct PageWriter {
    place: WalPlace,
    timeline_id: TimeLineId,
    position: u64,
    bytes: Vec<u8>,
}

impl PageWriter {
    /// Writes from `start_lsn` on, where a record may start or a page begins. Page headers name `timeline_id`.
    pub(super) fn new(place: WalPlace, timeline_id: TimeLineId, start_lsn: Lsn) -> Self {
        PageWriter { place, timeline_id, position: start_lsn.as_u64(), bytes: Vec::new() }
    }

    /// Position of the next byte.
    pub(super) fn position(&self) -> Lsn {
        Lsn::new(self.position)
    }

    /// What was written since the last call.
    pub(super) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }

    /// Writes a whole record; where it starts.
    pub(super) fn append(&mut self, record: &[u8]) -> Lsn {
        if self.position.is_multiple_of(PAGE_BYTES) {
            self.put_header(0, 0);
        }
        let start_lsn = self.position();
        self.put_content(record);
        start_lsn
    }

    /// Writes the last bytes of a record that began before; zeroes. Requires: a page begins here.
    pub(super) fn append_tail(&mut self, length: usize) {
        self.put_header(FIRST_IS_CONTRECORD, length as u32);
        self.put_content(&vec![0; length]);
    }

    fn put_content(&mut self, mut rest: &[u8]) {
        loop {
            let room = PAGE_BYTES - self.position % PAGE_BYTES;
            let (here, later) = rest.split_at(rest.len().min(room as usize));
            self.put(here);
            rest = later;
            if rest.is_empty() {
                break;
            }
            self.put_header(FIRST_IS_CONTRECORD, rest.len() as u32);
        }
        let padding = self.position().align_up().saturating_sub(self.position());
        self.put(&[0; 8][..padding as usize]);
    }

    fn put_header(&mut self, flags: u16, rem_len: u32) {
        let page_lsn = self.position();
        let is_long = self.place.header_len(page_lsn) == LONG_HEADER_LEN;
        let flags = flags | if is_long { LONG_HEADER } else { 0 };
        self.put(&self.place.version.xlog_page_magic().to_le_bytes());
        self.put(&flags.to_le_bytes());
        self.put(&self.timeline_id.to_le_bytes());
        self.put(&page_lsn.as_u64().to_le_bytes());
        self.put(&rem_len.to_le_bytes());
        self.put(&[0; 4]);
        if is_long {
            self.put(&self.place.system_id.to_le_bytes());
            self.put(&self.place.segment_bytes.to_le_bytes());
            self.put(&(WAL_PAGE_BYTES as u32).to_le_bytes());
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.position += bytes.len() as u64;
    }
}
