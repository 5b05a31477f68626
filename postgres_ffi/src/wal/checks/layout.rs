//! Writes records as a server does: page headers in between, aligned, the rest of a segment after a switch.
//! PG: src/backend/access/transam/xlog.c, CopyXLogRecordToWAL, AdvanceXLInsertBuffer.

use bytes::Bytes;

use super::build::RecordBuilder;
use crate::{Lsn, PgVersion};

const PAGE_BYTES: u64 = 8192;

/// A log in memory from a position on.
#[derive(Clone, Debug)]
pub struct WalWriter {
    version: PgVersion,
    segment_bytes: u64,
    /// System identifier for long page headers.
    pub system_id: u64,
    start_lsn: Lsn,
    prev_lsn: Lsn,
    bytes: Vec<u8>,
}

impl WalWriter {
    /// Writes from `start_lsn` on, which is aligned. A page header comes first if it is at a page start.
    pub fn new(version: PgVersion, start_lsn: Lsn, segment_bytes: u32) -> Self {
        let segment_bytes = u64::from(segment_bytes);
        WalWriter { version, segment_bytes, system_id: 7, start_lsn, prev_lsn: Lsn::new(8), bytes: Vec::new() }
    }

    /// Position of the next byte.
    pub fn position(&self) -> Lsn {
        Lsn::new(self.start_lsn.as_u64() + self.bytes.len() as u64)
    }

    /// Where the last record starts.
    pub fn prev_lsn(&self) -> Lsn {
        self.prev_lsn
    }

    /// All that was written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Writes a record; what reading must give: start, end, bytes.
    pub fn append(&mut self, record: &RecordBuilder) -> (Lsn, Lsn, Bytes) {
        if self.position().as_u64().is_multiple_of(PAGE_BYTES) {
            self.put_page_header(0, 0);
        }
        let start_lsn = self.position();
        let raw = record.build(self.version, self.prev_lsn);
        let mut rest = &raw[..];
        loop {
            let room = PAGE_BYTES - self.position().as_u64() % PAGE_BYTES;
            let (here, later) = rest.split_at(rest.len().min(room as usize));
            self.bytes.extend(here);
            rest = later;
            if rest.is_empty() {
                break;
            }
            self.put_page_header(0x0001, rest.len() as u32);
        }
        self.pad_to(8);
        if record.rmid == 0 && record.info & 0xF0 == 0x40 {
            self.pad_to(self.segment_bytes);
        }
        self.prev_lsn = start_lsn;
        (start_lsn, self.position(), Bytes::from(raw))
    }

    /// Writes only the part of a record that fits on this page, as a server that dies in between; where it starts.
    pub fn append_torn(&mut self, record: &RecordBuilder) -> Lsn {
        let mut whole = self.clone();
        let (start_lsn, _, _) = whole.append(record);
        let page_end = start_lsn.as_u64() / PAGE_BYTES * PAGE_BYTES + PAGE_BYTES;
        whole.bytes.truncate((page_end - self.start_lsn.as_u64()) as usize);
        self.bytes = whole.bytes;
        start_lsn
    }

    /// Writes a page header here, with flags beside those that the position asks for.
    pub fn put_page_header(&mut self, flags: u16, rem_len: u32) {
        let page_lsn = self.position().as_u64();
        let is_long = page_lsn.is_multiple_of(self.segment_bytes);
        let flags = flags | if is_long { 0x0002 } else { 0 };
        self.bytes.extend(self.version.xlog_page_magic().to_le_bytes());
        self.bytes.extend(flags.to_le_bytes());
        self.bytes.extend(1_u32.to_le_bytes());
        self.bytes.extend(page_lsn.to_le_bytes());
        self.bytes.extend(rem_len.to_le_bytes());
        self.bytes.extend([0; 4]);
        if is_long {
            self.bytes.extend(self.system_id.to_le_bytes());
            self.bytes.extend((self.segment_bytes as u32).to_le_bytes());
            self.bytes.extend((PAGE_BYTES as u32).to_le_bytes());
        }
    }

    fn pad_to(&mut self, multiple: u64) {
        let missing = self.position().as_u64().next_multiple_of(multiple) - self.position().as_u64();
        self.bytes.resize(self.bytes.len() + missing as usize, 0);
    }
}
