//! WAL bytes in, whole records out.
//!
//! - Takes the log in pieces of any size, from a known position on; pages, padding and the rest of a segment after a switch are taken out.
//! - A record comes out only when it is proven: page headers, length, link to the record before, CRC. After the first error nothing more comes.
//! - Where a record ends is told exactly as PostgreSQL does (EndRecPtr), because pages are stamped with it.
//! - A record that lies within one page and one piece is not copied.
//! - Memory: what was fed and not yet asked for, plus the arrived part of one record. A claimed length allocates nothing.
//!
//! PG 15, 17, 18: src/backend/access/transam/xlogreader.c, XLogDecodeNextRecord, XLogFindNextRecord, ValidXLogRecordHeader.

use bytes::Bytes;

use super::page_header::{ExpectedPage, PageHeader, PageHeaderError, WAL_PAGE_BYTES, is_segment_size};
use super::record::{DecodedRecord, RECORD_HEADER_LEN, RECORD_LEN_MAX, RecordHeader, crc_is_right};
use super::rmgr;
use super::stream_input::StreamInput;
use crate::{Lsn, PgVersion, TimeLineId};

const PAGE_BYTES: u64 = WAL_PAGE_BYTES as u64;
/// Reserved at once for a record that spans pages; more only as bytes arrive.
const ASSEMBLY_RESERVE_MAX: usize = 64 * 1024;
/// The rest of the segment is unused. PG: src/include/catalog/pg_control.h, XLOG_SWITCH.
const XLOG_SWITCH: u8 = 0x40;
/// Stands in place of the rest of a record that was never written. PG: pg_control.h, XLOG_OVERWRITE_CONTRECORD.
const XLOG_OVERWRITE_CONTRECORD: u8 = 0xD0;
/// Length of the fixed part of a record, as its length field counts.
const RECORD_LEN_MIN: u32 = RECORD_HEADER_LEN as u32;

/// Why the log cannot be read on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}. record_lsn=`{record_lsn}`")]
pub struct WalError {
    /// Start of the record that could not be read, or of the page before it if the page is not there.
    pub record_lsn: Lsn,
    /// What is wrong with it.
    #[source]
    pub reason: WalErrorReason,
}

/// What to do about a [`WalError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalErrorKind {
    /// The log is good up to [`WalStreamDecoder::last_record_end`] and there is no record behind it: PostgreSQL's recovery would stop
    /// here too. In a file: the end. In a stream from a server: start anew from there.
    EndOfWal,
    /// The log is of another cluster, version or build.
    Foreign,
    /// The position given by the caller is none where a record can start.
    InvalidStart,
}

/// What exactly is wrong where a record should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WalErrorReason {
    /// The position or the segment size given at the start is impossible.
    #[error("no record can start here")]
    InvalidStart,
    /// The log has reached the end of the 64-bit address space.
    #[error("log position overflows")]
    Overflow,
    /// The page header is wrong.
    #[error("bad WAL page. page_lsn=`{page_lsn}`")]
    Page {
        /// The page.
        page_lsn: Lsn,
        /// Why.
        #[source]
        source: PageHeaderError,
    },
    /// Zero where nothing was written; or shorter than a header or longer than any record.
    #[error("impossible record length. total_len=`{total_len}`")]
    Length {
        /// The claim.
        total_len: u32,
    },
    /// A resource manager that does not exist.
    #[error("unknown resource manager. rmid=`{rmid}`")]
    ResourceManager {
        /// Its number.
        rmid: u8,
    },
    /// The link to the record before does not lead there: an older record, left over from another use of the segment.
    #[error("wrong link to the record before. prev_lsn=`{prev_lsn}`")]
    PrevLink {
        /// The link.
        prev_lsn: Lsn,
    },
    /// The CRC is wrong: the record was not written whole.
    #[error("wrong record checksum")]
    Crc,
    /// A record should start on a page that says that it starts with the rest of one.
    #[error("page starts with the rest of a record that did not begin. page_lsn=`{page_lsn}`")]
    UnexpectedContinuation {
        /// The page.
        page_lsn: Lsn,
    },
    /// A record should go on on a page that does not say so.
    #[error("page does not continue the record. page_lsn=`{page_lsn}`")]
    NoContinuation {
        /// The page.
        page_lsn: Lsn,
    },
    /// The page continues a record of another length.
    #[error(
        "page continues a record of another length. page_lsn=`{page_lsn}`, rem_len=`{rem_len}`, expected=`{expected}`"
    )]
    ContinuationLength {
        /// The page.
        page_lsn: Lsn,
        /// What it says is still to come.
        rem_len: u32,
        /// What should be.
        expected: u32,
    },
    /// The record in place of an abandoned one does not name that one.
    #[error("record does not overwrite the abandoned one. abandoned_lsn=`{abandoned_lsn}`")]
    WrongOverwrite {
        /// Start of the abandoned record.
        abandoned_lsn: Lsn,
    },
}

impl WalError {
    /// What to do about it.
    pub fn kind(&self) -> WalErrorKind {
        match &self.reason {
            WalErrorReason::InvalidStart | WalErrorReason::Overflow => WalErrorKind::InvalidStart,
            WalErrorReason::Page { source, .. } if source.is_foreign() => WalErrorKind::Foreign,
            _ => WalErrorKind::EndOfWal,
        }
    }
}

/// Reads records out of a stream of WAL bytes. See the module for what it guarantees.
#[derive(Debug)]
pub struct WalStreamDecoder {
    version: PgVersion,
    segment_bytes: u32,
    system_id: Option<u64>,
    input: StreamInput,
    /// Position of the first byte of `input`, or of the first byte to be fed.
    next_lsn: Lsn,
    state: State,
    last_record: Option<Lsn>,
    last_record_end: Lsn,
    timeline_id: Option<TimeLineId>,
    /// A record that was given up, until the record in its place has come.
    abandoned: Option<Lsn>,
    failed: Option<WalError>,
}

#[derive(Debug)]
enum State {
    /// Next is a record, or a page header and a record.
    BetweenRecords,
    /// Next is more of this record: a page header, or the content of the page if the header is behind us.
    InRecord(Partial),
    /// Next is a page that may begin with the rest of a record that we do not want. How much of it, once a page has told.
    SkipContinuation(Option<u32>),
}

/// A record that goes over a page end.
#[derive(Debug)]
struct Partial {
    start_lsn: Lsn,
    total_len: u32,
    bytes: Vec<u8>,
    header_checked: bool,
}

impl WalStreamDecoder {
    /// Reads from the record that starts at `start_lsn`, which may also be the page boundary before it (an end LSN of PostgreSQL is).
    /// The first byte to feed is the one at `start_lsn`. `segment_bytes` is the cluster's WAL segment size.
    ///
    /// A position where no record can start, or an impossible segment size, is told by the first [`Self::next_record`].
    pub fn new(version: PgVersion, start_lsn: Lsn, segment_bytes: u32) -> Self {
        Self::with_state(version, start_lsn, segment_bytes, State::BetweenRecords)
    }

    /// Reads from the first record that starts on or after the page at `page_lsn` (a multiple of 8 KiB, as a segment's start is):
    /// the rest of a record from the pages before is skipped. The first byte to feed is the page's first.
    pub fn new_at_page(version: PgVersion, page_lsn: Lsn, segment_bytes: u32) -> Self {
        Self::with_state(version, page_lsn, segment_bytes, State::SkipContinuation(None))
    }

    fn with_state(version: PgVersion, start_lsn: Lsn, segment_bytes: u32, state: State) -> Self {
        let mut decoder = WalStreamDecoder {
            version,
            segment_bytes,
            system_id: None,
            input: StreamInput::default(),
            next_lsn: start_lsn,
            state,
            last_record: None,
            last_record_end: start_lsn,
            timeline_id: None,
            abandoned: None,
            failed: None,
        };
        if !decoder.start_is_possible() {
            decoder.failed = Some(WalError { record_lsn: start_lsn, reason: WalErrorReason::InvalidStart });
        }
        decoder
    }

    fn start_is_possible(&self) -> bool {
        if !is_segment_size(self.segment_bytes) || !self.next_lsn.is_aligned() {
            return false;
        }
        let page_offset = self.page_offset();
        let header_len = if self.next_lsn.segment_offset(u64::from(self.segment_bytes)) < PAGE_BYTES { 40 } else { 24 };
        match self.state {
            State::SkipContinuation(_) => page_offset == 0,
            _ => page_offset == 0 || page_offset >= header_len,
        }
    }

    /// Refuses WAL of any other cluster: long page headers must carry `system_id`.
    pub fn with_system_id(mut self, system_id: u64) -> Self {
        self.system_id = Some(system_id);
        self
    }

    /// The first record must link back to the one that starts at `record_lsn`; otherwise any link to before it will do, and an older
    /// record that was left at this very place when the segment was used again could pass.
    pub fn with_record_before(mut self, record_lsn: Lsn) -> Self {
        self.last_record = Some(record_lsn);
        self
    }

    /// Takes the next bytes of the log; they follow directly those fed before.
    pub fn feed(&mut self, bytes: Bytes) {
        if self.failed.is_none() {
            self.input.push(bytes);
        }
    }

    /// The next whole record: its start, its end (PostgreSQL's EndRecPtr), its bytes. `None`: feed more.
    ///
    /// Errors: there is no record here, see [`WalError::kind`]; every later call says the same.
    #[inline]
    pub fn next_record(&mut self) -> Result<Option<(Lsn, Lsn, Bytes)>, WalError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.read_on();
        if let Err(error) = &result {
            self.failed = Some(error.clone());
            self.input = StreamInput::default();
        }
        result
    }

    /// Where the last record that came out ends; the start position before the first one.
    pub fn last_record_end(&self) -> Lsn {
        self.last_record_end
    }

    /// Where the last record that came out starts; before the first one, what [`Self::with_record_before`] told.
    pub fn last_record_start(&self) -> Option<Lsn> {
        self.last_record
    }

    /// The PostgreSQL timeline in the last page header seen.
    pub fn timeline_id(&self) -> Option<TimeLineId> {
        self.timeline_id
    }

    /// Position of the byte after all that was fed, or [`Lsn::MAX`] should that not exist.
    pub fn fed_until(&self) -> Lsn {
        let ahead = self.input.owed();
        let unread = self.input.len() as u64;
        Lsn::new(self.next_lsn.as_u64().saturating_add(unread).saturating_sub(ahead))
    }

    fn read_on(&mut self) -> Result<Option<(Lsn, Lsn, Bytes)>, WalError> {
        loop {
            let step = match &self.state {
                State::BetweenRecords => self.start_record()?,
                State::InRecord(_) => self.continue_record()?,
                State::SkipContinuation(_) => self.skip_continuation()?,
            };
            match step {
                Step::Record(record) => return Ok(Some(record)),
                Step::NeedMore => return Ok(None),
                Step::Again => {}
            }
        }
    }

    /// At a record's start or the page header before it: takes the record if it lies in this page, or its first part.
    #[inline]
    fn start_record(&mut self) -> Result<Step, WalError> {
        if self.page_offset() == 0 {
            let Some(header) = self.page_header(self.next_lsn)? else { return Ok(Step::NeedMore) };
            if header.is_continued() {
                let page_lsn = header.page_lsn;
                return Err(self.error(self.next_lsn, WalErrorReason::UnexpectedContinuation { page_lsn }));
            }
        }
        let start_lsn = self.next_lsn;
        let room = WAL_PAGE_BYTES - self.page_offset() as usize;
        let mut scratch = [0; RECORD_HEADER_LEN];
        // Records are aligned, so the length never straddles a page end; the header may.
        let Some(head) = self.input.peek(room.min(RECORD_HEADER_LEN), &mut scratch) else {
            return self.too_early_for_header(start_lsn);
        };
        let total_len = check_total_len(head).map_err(|reason| self.error(start_lsn, reason))?;
        let header = RecordHeader::parse(head);
        if let Some(header) = &header {
            self.check_header(start_lsn, header)?;
        }
        if total_len as usize <= room {
            let Some(raw) = self.input.take(total_len as usize) else { return Ok(Step::NeedMore) };
            self.next_lsn = self.lsn_after(start_lsn, u64::from(total_len))?;
            return self.finish(start_lsn, raw);
        }
        let mut bytes = Vec::with_capacity(ASSEMBLY_RESERVE_MAX.min(total_len as usize));
        if !self.input.take_into(room, &mut bytes) {
            return Ok(Step::NeedMore);
        }
        self.next_lsn = self.lsn_after(start_lsn, room as u64)?;
        self.state = State::InRecord(Partial { start_lsn, total_len, bytes, header_checked: header.is_some() });
        Ok(Step::Again)
    }

    /// Even before the whole header is here its first four bytes can tell that there is no record: the end of a log is found with
    /// as few bytes as PostgreSQL needs.
    fn too_early_for_header(&self, start_lsn: Lsn) -> Result<Step, WalError> {
        let mut scratch = [0; 4];
        if let Some(head) = self.input.peek(4, &mut scratch) {
            check_total_len(head).map_err(|reason| self.error(start_lsn, reason))?;
        }
        Ok(Step::NeedMore)
    }

    /// Takes the next page's part of a record that began before.
    fn continue_record(&mut self) -> Result<Step, WalError> {
        let State::InRecord(partial) = &self.state else { return Ok(Step::Again) };
        let (start_lsn, total_len) = (partial.start_lsn, partial.total_len);
        let missing = total_len - partial.bytes.len() as u32;
        if self.page_offset() == 0 {
            let Some(header) = self.page_header(start_lsn)? else { return Ok(Step::NeedMore) };
            if header.is_overwrite() {
                return self.abandon(start_lsn, &header);
            }
            check_continuation(&header, missing).map_err(|reason| self.error(start_lsn, reason))?;
        }
        let part_len = (missing as usize).min(WAL_PAGE_BYTES - self.page_offset() as usize);
        let State::InRecord(partial) = &mut self.state else { return Ok(Step::Again) };
        if !self.input.take_into(part_len, &mut partial.bytes) {
            return Ok(Step::NeedMore);
        }
        self.next_lsn = self.lsn_after(self.next_lsn, part_len as u64)?;
        self.end_page_of_record()
    }

    /// After a page's part was added: checks the header as soon as it is whole, hands out the record when all of it is there.
    fn end_page_of_record(&mut self) -> Result<Step, WalError> {
        let State::InRecord(partial) = &mut self.state else { return Ok(Step::Again) };
        let start_lsn = partial.start_lsn;
        let unchecked = if partial.header_checked { None } else { RecordHeader::parse(&partial.bytes) };
        partial.header_checked = true; // One full page, or the rest of the record: the header is always whole now.
        let is_whole = partial.bytes.len() == partial.total_len as usize;
        let bytes = if is_whole { std::mem::take(&mut partial.bytes) } else { Vec::new() };
        if let Some(header) = unchecked {
            self.check_header(start_lsn, &header)?;
        }
        if !is_whole {
            return Ok(Step::Again);
        }
        self.state = State::BetweenRecords;
        self.finish(start_lsn, Bytes::from(bytes))
    }

    /// The server that wrote the record died before the rest; after its restart another record was put here.
    fn abandon(&mut self, start_lsn: Lsn, header: &PageHeader) -> Result<Step, WalError> {
        if header.is_continued() {
            let page_lsn = header.page_lsn;
            return Err(self.error(page_lsn, WalErrorReason::UnexpectedContinuation { page_lsn }));
        }
        self.abandoned = Some(start_lsn);
        self.state = State::BetweenRecords;
        Ok(Step::Again)
    }

    /// At a page start: passes over the rest of a record of which we do not have the beginning.
    fn skip_continuation(&mut self) -> Result<Step, WalError> {
        let State::SkipContinuation(expected) = self.state else { return Ok(Step::Again) };
        let page_lsn = self.next_lsn;
        let Some(header) = self.page_header(page_lsn)? else { return Ok(Step::NeedMore) };
        let begins_here = if expected.is_none() { !header.is_continued() } else { header.is_overwrite() };
        if begins_here {
            self.last_record_end = if expected.is_none() { page_lsn } else { self.last_record_end };
            self.state = State::BetweenRecords;
            return Ok(Step::Again);
        }
        check_continuation(&header, expected.unwrap_or(header.rem_len))
            .map_err(|reason| self.error(page_lsn, reason))?;
        let room = (WAL_PAGE_BYTES - header.header_len()) as u32;
        let part_len = header.rem_len.min(room);
        self.skip_to(self.lsn_after(self.next_lsn, u64::from(part_len))?.align_up());
        self.state = match header.rem_len - part_len {
            0 => State::BetweenRecords,
            rest => State::SkipContinuation(Some(rest)),
        };
        if matches!(self.state, State::BetweenRecords) {
            self.last_record_end = self.next_lsn;
        }
        Ok(Step::Again)
    }

    /// The record is whole, `next_lsn` is behind its last byte: checks it and moves on to where the next one may start.
    #[inline]
    fn finish(&mut self, start_lsn: Lsn, raw: Bytes) -> Result<Step, WalError> {
        if !crc_is_right(&raw) {
            return Err(self.error(start_lsn, WalErrorReason::Crc));
        }
        if self.abandoned.is_some() {
            self.check_overwrite(start_lsn, &raw)?;
        }
        let mut end_lsn = self.next_lsn.align_up();
        if raw.get(16).is_some_and(|info| info & 0xF0 == XLOG_SWITCH) && raw.get(17) == Some(&rmgr::XLOG) {
            let segment_end = end_lsn.as_u64().checked_next_multiple_of(u64::from(self.segment_bytes));
            end_lsn = Lsn::new(segment_end.ok_or_else(|| self.error(start_lsn, WalErrorReason::Overflow))?);
        }
        self.skip_to(end_lsn);
        self.last_record = Some(start_lsn);
        self.last_record_end = end_lsn;
        Ok(Step::Record((start_lsn, end_lsn, raw)))
    }

    /// The record in place of an abandoned one must be of that kind and name it. PG: xlogrecovery.c, VerifyOverwriteContrecord.
    fn check_overwrite(&mut self, start_lsn: Lsn, raw: &Bytes) -> Result<(), WalError> {
        let Some(abandoned_lsn) = self.abandoned.take() else { return Ok(()) };
        let names_it = DecodedRecord::decode(self.version, start_lsn, start_lsn, raw.clone()).is_ok_and(|record| {
            record.rmid == rmgr::XLOG
                && record.operation() == XLOG_OVERWRITE_CONTRECORD
                && record.main_data().first_chunk() == Some(&abandoned_lsn.as_u64().to_le_bytes())
        });
        if names_it { Ok(()) } else { Err(self.error(start_lsn, WalErrorReason::WrongOverwrite { abandoned_lsn })) }
    }

    /// Checks what a record's header says apart from the length. PG: ValidXLogRecordHeader.
    #[inline]
    fn check_header(&self, start_lsn: Lsn, header: &RecordHeader) -> Result<(), WalError> {
        if !rmgr::is_valid(self.version, header.rmid) {
            return Err(self.error(start_lsn, WalErrorReason::ResourceManager { rmid: header.rmid }));
        }
        let link_is_right = match self.last_record {
            Some(before) => header.prev_lsn == before,
            None => header.prev_lsn < start_lsn,
        };
        if !link_is_right {
            return Err(self.error(start_lsn, WalErrorReason::PrevLink { prev_lsn: header.prev_lsn }));
        }
        Ok(())
    }

    /// Reads and passes the page header at `next_lsn`. `None`: not all of it is here yet.
    fn page_header(&mut self, record_lsn: Lsn) -> Result<Option<PageHeader>, WalError> {
        let page_lsn = self.next_lsn;
        let mut scratch = [0; super::page_header::LONG_HEADER_LEN];
        let is_segment_start = page_lsn.segment_offset(u64::from(self.segment_bytes)) == 0;
        let len = if is_segment_start { scratch.len() } else { super::page_header::SHORT_HEADER_LEN };
        let Some(bytes) = self.input.peek(len, &mut scratch) else { return Ok(None) };
        let expected = ExpectedPage {
            version: self.version,
            page_lsn,
            segment_bytes: self.segment_bytes,
            system_id: self.system_id,
        };
        // A long header where a short one belongs does not parse from `len` bytes.
        let wrong_kind = || PageHeaderError::Info { info: super::page_header::LONG_HEADER };
        let checked = PageHeader::parse(bytes)
            .ok_or_else(wrong_kind)
            .and_then(|header| header.check(&expected).map(|()| header))
            .map_err(|source| self.error(record_lsn, WalErrorReason::Page { page_lsn, source }))?;
        self.timeline_id = Some(checked.timeline_id);
        self.skip_to(self.lsn_after(page_lsn, checked.header_len() as u64)?);
        Ok(Some(checked))
    }

    /// Bytes from here to `lsn` are of no interest, whether fed already or not.
    fn skip_to(&mut self, lsn: Lsn) {
        self.input.skip(lsn.saturating_sub(self.next_lsn));
        self.next_lsn = lsn;
    }

    fn page_offset(&self) -> u64 {
        self.next_lsn.as_u64() % PAGE_BYTES
    }

    fn lsn_after(&self, lsn: Lsn, len: u64) -> Result<Lsn, WalError> {
        // The last page of the address space is given up, so that nothing that is rounded up to a page can overflow.
        lsn.checked_add(len)
            .filter(|lsn| lsn.as_u64() < u64::MAX - PAGE_BYTES)
            .ok_or_else(|| self.error(lsn, WalErrorReason::Overflow))
    }

    #[cold]
    fn error(&self, record_lsn: Lsn, reason: WalErrorReason) -> WalError {
        WalError { record_lsn, reason }
    }
}

/// What one look at the input came to.
enum Step {
    Record((Lsn, Lsn, Bytes)),
    NeedMore,
    Again,
}

/// The length of the record that starts with `head`.
#[inline]
fn check_total_len(head: &[u8]) -> Result<u32, WalErrorReason> {
    let total_len = head.first_chunk().map_or(0, |len| u32::from_le_bytes(*len));
    if (RECORD_LEN_MIN..=RECORD_LEN_MAX).contains(&total_len) {
        Ok(total_len)
    } else {
        Err(WalErrorReason::Length { total_len })
    }
}

/// The page must continue a record of which `missing` bytes are to come.
fn check_continuation(header: &PageHeader, missing: u32) -> Result<(), WalErrorReason> {
    let (page_lsn, rem_len) = (header.page_lsn, header.rem_len);
    if !header.is_continued() {
        return Err(WalErrorReason::NoContinuation { page_lsn });
    }
    if rem_len == 0 || rem_len != missing {
        return Err(WalErrorReason::ContinuationLength { page_lsn, rem_len, expected: missing });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
