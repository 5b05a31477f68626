//! Where whole records end in WAL that flows by, found from lengths alone.
//!
//! - What we report to a primary as durable is the end of the last whole record: it lets go of what lies before, and a record of
//!   which we hold only a part would be cut off at our next start.
//! - A few nanoseconds per record and no copy: no CRC, no links. Whether the records are right is found out by `ingest/`, which reads the same bytes.
//! - Bytes that are no WAL never panic; the end then just stays where it was.
//!
//! PG 15: src/include/access/xlogrecord.h (XLogRecord), xlog_internal.h (XLogPageHeaderData), src/backend/access/transam/xlogreader.c.

use postgres_ffi::Lsn;
use postgres_ffi::wal::page_header::{FIRST_IS_CONTRECORD, LONG_HEADER_LEN, SHORT_HEADER_LEN, WAL_PAGE_BYTES};
use postgres_ffi::wal::record::RECORD_LEN_MAX;

/// What we need of a record's header: the length (bytes 0-3), info (16) and resource manager (17).
const RECORD_HEAD_BYTES: usize = 18;
/// A record's whole header, the least length there is.
const RECORD_LEN_MIN: u32 = 24;
/// PG: src/include/access/rmgrlist.h, RM_XLOG_ID.
const RM_XLOG: u8 = 0;
/// PG: src/include/catalog/pg_control.h, XLOG_SWITCH: the rest of the segment is unused.
const XLOG_SWITCH: u8 = 0x40;
/// The upper four bits of the info byte are the resource manager's. PG: xlogrecord.h, XLR_RMGR_INFO_MASK.
const RMGR_INFO_MASK: u8 = 0xF0;

/// Follows the WAL and knows where the last whole record ended.
#[derive(Debug, Clone)]
pub struct RecordEnds {
    segment_bytes: u64,
    /// The next byte to come.
    next_lsn: Lsn,
    /// End of the last whole record, `None` before the first.
    record_end: Option<Lsn>,
    record: Record,
    /// Part of a page header that has come; a page header counts as read when its last byte has come.
    page_header: [u8; LONG_HEADER_LEN],
    page_header_len: usize,
    in_page_header: bool,
}

/// Where we are among the records, page headers left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Record {
    /// At the page where we started: it may begin with the rest of a record.
    Unknown,
    /// In the head of a record. It may lie across a page end, but never its first eight bytes.
    Head { bytes: [u8; RECORD_HEAD_BYTES], len: usize },
    /// Behind the head; bytes still to come.
    Body { rest: u32, is_switch: bool },
    /// Between the end of a record and the next aligned position.
    Padding { is_switch: bool },
    /// In the rest of a segment that holds no records; `switched` if a record said so.
    Unused { switched: bool },
    /// Something that is no WAL has come.
    Lost,
}

const NO_RECORD: Record = Record::Head { bytes: [0; RECORD_HEAD_BYTES], len: 0 };

impl RecordEnds {
    /// Follows WAL from `start_lsn` on, where a record or the page before it starts; at the start of a page (as of a segment) a record may also
    /// go on from before. `segment_bytes` is the cluster's WAL segment size.
    pub fn new(start_lsn: Lsn, segment_bytes: u32) -> Self {
        let mut ends = RecordEnds {
            segment_bytes: segment_bytes.into(),
            next_lsn: start_lsn,
            record_end: None,
            record: NO_RECORD,
            page_header: [0; LONG_HEADER_LEN],
            page_header_len: 0,
            in_page_header: false,
        };
        if ends.page_offset() == 0 {
            ends.in_page_header = true;
            ends.record = Record::Unknown;
        }
        ends
    }

    /// End of the last whole record as PostgreSQL counts it (aligned, never behind a page header); `None` before the first.
    pub fn record_end(&self) -> Option<Lsn> {
        self.record_end
    }

    /// Position of the next byte to come.
    pub fn next_lsn(&self) -> Lsn {
        self.next_lsn
    }

    /// Takes the next bytes.
    pub fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = bytes.len().min(WAL_PAGE_BYTES - self.page_offset());
            let taken =
                if self.in_page_header { self.take_page_header(bytes) } else { self.take_content(&bytes[..room]) };
            // Positions beyond 2^64 are refused where WAL comes in.
            self.next_lsn = self.next_lsn.checked_add(taken as u64).unwrap_or(Lsn::MAX);
            bytes = &bytes[taken..];
            self.settle();
        }
    }

    fn page_offset(&self) -> usize {
        (self.next_lsn.as_u64() % WAL_PAGE_BYTES as u64) as usize
    }

    fn take_page_header(&mut self, bytes: &[u8]) -> usize {
        let page_start = self.next_lsn.as_u64() - self.page_header_len as u64;
        let is_long = page_start.is_multiple_of(self.segment_bytes);
        let wanted = if is_long { LONG_HEADER_LEN } else { SHORT_HEADER_LEN };
        let taken = (wanted - self.page_header_len).min(bytes.len());
        self.page_header[self.page_header_len..self.page_header_len + taken].copy_from_slice(&bytes[..taken]);
        self.page_header_len += taken;
        if self.page_header_len == wanted {
            self.page_header_len = 0;
            self.in_page_header = false;
            self.page_header_read();
        }
        taken
    }

    /// Does the record go on on this page? If the page does not say so, the primary has crashed and given the record up.
    fn page_header_read(&mut self) {
        let info = u16::from_le_bytes([self.page_header[2], self.page_header[3]]);
        let rem_len = u32::from_le_bytes([
            self.page_header[16],
            self.page_header[17],
            self.page_header[18],
            self.page_header[19],
        ]);
        let goes_on = info & FIRST_IS_CONTRECORD != 0;
        let rest = match self.record {
            Record::Unknown => Some(rem_len),
            Record::Head { bytes, len: len @ 1.. } => Some(total_len(&bytes).saturating_sub(len as u32)),
            Record::Body { rest, .. } => Some(rest),
            _ => None,
        };
        self.record = match (self.record, rest) {
            (Record::Unknown, _) if goes_on => Record::Body { rest: rem_len, is_switch: false },
            (record, Some(rest)) if goes_on && rest == rem_len => record,
            (record @ (Record::Unused { .. } | Record::Lost), _) => record,
            _ if goes_on => Record::Lost,
            _ => NO_RECORD,
        };
    }

    /// Takes bytes of one page's content.
    fn take_content(&mut self, bytes: &[u8]) -> usize {
        match &mut self.record {
            Record::Head { bytes: head, len } => {
                let taken = (RECORD_HEAD_BYTES - *len).min(bytes.len());
                head[*len..*len + taken].copy_from_slice(&bytes[..taken]);
                *len += taken;
                if *len >= 4 && !(RECORD_LEN_MIN..=RECORD_LEN_MAX).contains(&total_len(head)) {
                    // Nothing was written here, or it is no record.
                    self.record = match total_len(head) {
                        0 => Record::Unused { switched: false },
                        _ => Record::Lost,
                    };
                } else if *len == RECORD_HEAD_BYTES {
                    let is_switch = head[17] == RM_XLOG && head[16] & RMGR_INFO_MASK == XLOG_SWITCH;
                    self.record = Record::Body { rest: total_len(head) - RECORD_HEAD_BYTES as u32, is_switch };
                }
                taken
            }
            Record::Body { rest, is_switch } => {
                let taken = (*rest as usize).min(bytes.len());
                *rest -= taken as u32;
                if *rest == 0 {
                    self.record = Record::Padding { is_switch: *is_switch };
                }
                taken
            }
            Record::Padding { .. } => {
                let padding = self.next_lsn.align_up().saturating_sub(self.next_lsn) as usize;
                padding.min(bytes.len())
            }
            Record::Unknown | Record::Unused { .. } | Record::Lost => bytes.len(),
        }
    }

    /// After bytes were taken: a record may have ended, a page or a segment may be full.
    fn settle(&mut self) {
        if let Record::Padding { is_switch } = self.record
            && self.next_lsn.is_aligned()
        {
            self.record_end = Some(self.next_lsn);
            self.record = if is_switch { Record::Unused { switched: true } } else { NO_RECORD };
        }
        if self.page_offset() != 0 || self.in_page_header {
            return;
        }
        self.in_page_header = true;
        if let Record::Unused { switched } = self.record
            && self.next_lsn.segment_offset(self.segment_bytes) == 0
        {
            if switched {
                self.record_end = Some(self.next_lsn);
            }
            self.record = NO_RECORD;
        }
    }
}

fn total_len(head: &[u8; RECORD_HEAD_BYTES]) -> u32 {
    u32::from_le_bytes([head[0], head[1], head[2], head[3]])
}

#[cfg(test)]
mod tests {
    //! Goal: the ends are those that the decoder finds, in pieces of any size, and no bytes panic.
    //! Method: a log built with records of many lengths and switches, cut at every kind of place, against `WalStreamDecoder`.

    use bytes::Bytes;
    use postgres_ffi::PgVersion;
    use postgres_ffi::wal::WalStreamDecoder;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::wal::tests::random_log;

    const SEGMENT_BYTES: u32 = 1024 * 1024;

    /// Every record end in `wal`, by the decoder.
    fn decoded_ends(start_lsn: Lsn, wal: &[u8]) -> Vec<Lsn> {
        let mut decoder = WalStreamDecoder::new(PgVersion::V15, start_lsn, SEGMENT_BYTES);
        decoder.feed(Bytes::copy_from_slice(wal));
        let mut ends = Vec::new();
        while let Ok(Some((_, end, _))) = decoder.next_record() {
            ends.push(end);
        }
        ends
    }

    #[test]
    fn agrees_with_the_decoder_at_every_cut() {
        let (start_lsn, wal) = random_log(7, 300);
        let ends = decoded_ends(start_lsn, &wal);
        assert!(ends.len() >= 300, "{}", ends.len());
        let mut rng = SmallRng::seed_from_u64(7);
        let mut follower = RecordEnds::new(start_lsn, SEGMENT_BYTES);
        let mut taken = 0;
        while taken < wal.len() {
            let piece = if rng.random_range(0..4) == 0 { rng.random_range(1..20) } else { rng.random_range(1..9000) };
            let piece = piece.min(wal.len() - taken);
            follower.follow(&wal[taken..taken + piece]);
            taken += piece;
            let here = start_lsn.checked_add(taken as u64).unwrap();
            assert_eq!(follower.next_lsn(), here);
            let expected = ends.iter().copied().rfind(|end| *end <= here);
            // After a switch the record's own end counts until the segment is full.
            let exact = follower.record_end() == expected;
            let in_switched_segment = matches!(follower.record, Record::Unused { switched: true });
            assert!(exact || in_switched_segment, "{:?} {expected:?} at {here}", follower.record_end());
        }
        assert_eq!(follower.record_end(), ends.last().copied());
    }

    #[test]
    fn a_start_in_the_middle_of_a_record_finds_the_next_end() {
        let (start_lsn, wal) = random_log(9, 300);
        let ends = decoded_ends(start_lsn, &wal);
        for page_lsn in (0..wal.len() as u64 / 8192).map(|page| Lsn::new((start_lsn.as_u64() / 8192 + 1 + page) * 8192))
        {
            let offset = page_lsn.saturating_sub(start_lsn) as usize;
            if offset >= wal.len() {
                break;
            }
            let mut follower = RecordEnds::new(page_lsn, SEGMENT_BYTES);
            follower.follow(&wal[offset..]);
            let Some(end) = follower.record_end() else { continue };
            assert!(ends.contains(&end), "{end} from {page_lsn}");
        }
    }

    #[test]
    fn noise_never_panics() {
        let mut rng = SmallRng::seed_from_u64(1);
        for _ in 0..2000 {
            let mut follower = RecordEnds::new(Lsn::new(rng.random_range(1..1 << 40)).align_up(), SEGMENT_BYTES);
            for _ in 0..rng.random_range(1..5) {
                let mut noise = vec![0; rng.random_range(1..20_000)];
                rng.fill(&mut noise[..]);
                if rng.random() {
                    noise.iter_mut().for_each(|byte| *byte &= 0x01);
                }
                follower.follow(&noise);
            }
        }
    }
}
