//! Opens a directory of WAL files after a clean end or a crash, and finds where the log ends.
//!
//! - Reads only the last segment, and the ones before it as long as no record starts in it: earlier segments were durable before it was begun. A record that runs into
//!   the last segment, with whole records behind it, is not looked at: if it is not right, ingest stops there and loses nothing.
//! - Behind the last whole record everything is zeroed, later files are removed, a copy of what has whole records there is kept; in front of it the last file is written and fsynced once more.
//! - A record that fails its checks although it lies wholly in durable segments is corruption and not an end: that is an error, and nothing is touched.
//! - Damage in the last segment in front of what is ingested is no end either, if the log goes on or ends where that ends: it is stepped over, and left to a check.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use postgres_ffi::wal::find_end::{WalEnd, find_end};
use postgres_ffi::wal::page_header::{LONG_HEADER_LEN, PageHeader, WAL_PAGE_BYTES};
use postgres_ffi::wal::stream::WalErrorReason;
use postgres_ffi::wal::{WalError, WalErrorKind, WalStreamDecoder};
use postgres_ffi::{Lsn, PgVersion, TimeLineId};

use super::error::{WalFileError, io_error};
use super::layout::{Segment, WalLayout};
use super::log::{WalLog, cut};

/// How much is read from a file at once.
const READ_BYTES: usize = 1024 * 1024;
/// Of the copy of a file that was cut although records stand behind the cut.
pub(super) const KEPT_EXTENSION: &str = "cut";
/// How much is read from a page on to find a whole record: more than one of 32 pages, of which bulk loads make many.
const RECORD_LOOK_BYTES: usize = 1024 * 1024;
/// On so many pages at most: one record that was not received to its end may take many.
const RECORD_LOOKS: u32 = 1000;

impl WalLog {
    /// Opens the log in `layout.directory`; records that end at or below `ingested_lsn` have been ingested. `None`: there is no whole record in it, so it can be
    /// created anew. Errors: the files are damaged, of another cluster, or cannot be read or written.
    pub fn open(layout: WalLayout, ingested_lsn: Lsn) -> Result<Option<Self>, WalFileError> {
        match fs::exists(&layout.directory) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) => return Err(io_error("look for", &layout.directory)(error)),
        }
        layout.remove_temporary_files()?;
        layout.sync_directory()?; // A file that was given its name right before a crash keeps it.
        let segments = newest_of_each_number(layout.segments()?);
        for segment in &segments {
            check_length(&layout, *segment)?;
        }
        let Some((end_lsn, timeline_id)) = end_of(&layout, &segments, ingested_lsn)? else { return Ok(None) };
        keep_what_follows(&layout, end_lsn)?;
        cut(&layout, timeline_id, end_lsn)?;
        write_again(&layout, &segments, end_lsn)?;
        tracing::info!(directory = %layout.directory.display(), %end_lsn, timeline_id, "WAL opened");
        Ok(Some(WalLog::at(layout, timeline_id, end_lsn, Some(end_lsn))))
    }
}

/// Where the log ends, and the PostgreSQL timeline of the file in which it does. `None`: no whole record leads there.
fn end_of(
    layout: &WalLayout,
    segments: &[Segment],
    ingested_lsn: Lsn,
) -> Result<Option<(Lsn, TimeLineId)>, WalFileError> {
    let mut found = None;
    // From the last segment back until one is found in which a record starts.
    for first in (0..segments.len()).rev() {
        if first + 1 < segments.len() && segments[first].segment_no + 1 != segments[first + 1].segment_no {
            break; // A hole: what lies before it does not lead to the end.
        }
        let start_lsn = layout.start_of(segments[first].segment_no);
        let (end, timeline_id) = scan(layout, &segments[first..], start_lsn, WalStreamDecoder::new_at_page)?;
        if let Some(error) = &end.stopped_by {
            check_is_an_end(layout, &segments[first..], error)?;
        }
        if end.record_count > 0 {
            found = Some((end, timeline_id));
            break;
        }
    }
    let (Some((end, timeline_id)), Some(last)) = (found, segments.last()) else { return Ok(None) };
    match end_behind_damage(layout, *last, end.end_lsn, ingested_lsn)? {
        Some(further_lsn) => {
            tracing::warn!(directory = %layout.directory.display(), damaged_lsn = %end.end_lsn, end_lsn = %further_lsn, "WAL that is ingested is damaged: stepped over; `pagectl repair` takes it from the primary again");
            Ok(Some((further_lsn, last.timeline_id)))
        }
        None => Ok(Some((end.end_lsn, timeline_id))),
    }
}

/// Where the log really ends if reading stopped at `stopped_lsn` for damage in the last segment, in front of `ingested_lsn`: what was ingested was durable here before. Either
/// whole records begin there, or the last one ends there. `None`: it is no such damage.
fn end_behind_damage(
    layout: &WalLayout,
    last: Segment,
    stopped_lsn: Lsn,
    ingested_lsn: Lsn,
) -> Result<Option<Lsn>, WalFileError> {
    if ingested_lsn <= stopped_lsn || ingested_lsn < layout.start_of(last.segment_no) {
        return Ok(None);
    }
    let (end, _) = scan(layout, &[last], ingested_lsn, WalStreamDecoder::new)?;
    if end.record_count > 0 {
        return Ok(Some(end.end_lsn));
    }
    let mut end_lsn = stopped_lsn;
    while end_lsn < ingested_lsn {
        let page_lsn = page_with_record_behind(layout, last, end_lsn)?;
        let Some(page_lsn) = page_lsn.filter(|page_lsn| *page_lsn < ingested_lsn) else { return Ok(None) };
        let (end, _) = scan(layout, &[last], page_lsn, WalStreamDecoder::new_at_page)?;
        end_lsn = end.end_lsn.max(page_lsn);
    }
    Ok((end_lsn == ingested_lsn).then_some(end_lsn))
}

fn page_of(lsn: Lsn) -> Lsn {
    Lsn::new(lsn.as_u64() - lsn.as_u64() % WAL_PAGE_BYTES as u64)
}

/// Keeps a copy of each file that is to be cut although whole records stand behind the cut: then it may be damage that ends the log there, and not the last crash, and
/// what follows was perhaps told to the primary as durable. The primary sends it again if it is still there; if it is not, this is the only copy.
fn keep_what_follows(layout: &WalLayout, end_lsn: Lsn) -> Result<(), WalFileError> {
    let end_segment_no = layout.segment_no(end_lsn);
    for segment in layout.segments()?.into_iter().filter(|segment| end_segment_no <= segment.segment_no) {
        if page_with_record_behind(layout, segment, end_lsn)?.is_some() {
            let path = layout.segment_path(segment);
            let kept = path.with_extension(KEPT_EXTENSION);
            tracing::warn!(path = %path.display(), %end_lsn, kept = %kept.display(), "whole records stand behind the end of the WAL: the file is kept before it is cut");
            fs::copy(&path, &kept)
                .and_then(|_| File::open(&kept)?.sync_all())
                .map_err(io_error("keep a copy of", &path))?;
            layout.sync_directory()?;
        }
    }
    Ok(())
}

/// The first page behind that of `lsn` on which a record begins that is whole.
fn page_with_record_behind(layout: &WalLayout, segment: Segment, lsn: Lsn) -> Result<Option<Lsn>, WalFileError> {
    let start_lsn = layout.start_of(segment.segment_no);
    let next_page = page_of(lsn).checked_add(WAL_PAGE_BYTES as u64).unwrap_or(Lsn::MAX);
    let from_lsn = if lsn < start_lsn { start_lsn } else { next_page };
    let file = layout.open_segment(segment)?;
    let mut looks_left = RECORD_LOOKS;
    let mut piece_lsn = from_lsn;
    for piece in Pieces::open(layout, segment).starting_at(from_lsn) {
        let piece = piece?;
        for (page, page_lsn) in piece.chunks(WAL_PAGE_BYTES).zip((piece_lsn.as_u64()..).step_by(WAL_PAGE_BYTES)) {
            let page_lsn = Lsn::new(page_lsn);
            if PageHeader::parse(page).is_some_and(|header| header.page_lsn == page_lsn) {
                if has_record(layout, segment, &file, page_lsn)? {
                    return Ok(Some(page_lsn));
                }
                looks_left -= 1;
                if looks_left == 0 {
                    return Ok(None);
                }
            }
        }
        piece_lsn = piece_lsn.checked_add(piece.len() as u64).unwrap_or(Lsn::MAX);
    }
    Ok(None)
}

/// True if a record begins on the page and is whole.
fn has_record(layout: &WalLayout, segment: Segment, file: &File, page_lsn: Lsn) -> Result<bool, WalFileError> {
    let offset = layout.segment_offset(page_lsn);
    let left = u64::from(layout.segment_bytes) - offset;
    let mut bytes = vec![0; usize::try_from(left).unwrap_or(RECORD_LOOK_BYTES).min(RECORD_LOOK_BYTES)];
    read_full_at(file, &mut bytes, offset).map_err(io_error("read", &layout.segment_path(segment)))?;
    let mut decoder = WalStreamDecoder::new_at_page(layout.version, page_lsn, layout.segment_bytes);
    decoder.feed(bytes.into());
    Ok(matches!(decoder.next_record(), Ok(Some(_))))
}

/// Writes the last segment's bytes up to `end_lsn` over themselves and fsyncs them.
///
/// They may have been read from memory alone: after an fsync that failed the system takes pages for written that are not, and the next fsync
/// says that all is well (Linux; "fsyncgate"). Nobody knows here how the last process ended, so they are made dirty once more. Earlier segments were fsynced
/// before the next one was begun, or there would be none.
fn write_again(layout: &WalLayout, segments: &[Segment], end_lsn: Lsn) -> Result<(), WalFileError> {
    let last_segment_no = layout.segment_no(Lsn::new(end_lsn.as_u64().saturating_sub(1)));
    let Some(segment) = segments.iter().find(|segment| segment.segment_no == last_segment_no) else { return Ok(()) };
    let length = end_lsn.saturating_sub(layout.start_of(last_segment_no));
    let path = layout.segment_path(*segment);
    let file = layout.open_segment(*segment)?;
    let write = || {
        let mut offset = 0;
        let mut piece = vec![0; READ_BYTES];
        while offset < length {
            let piece = &mut piece[..usize::try_from(length - offset).unwrap_or(READ_BYTES).min(READ_BYTES)];
            file.read_exact_at(piece, offset)?;
            file.write_all_at(piece, offset)?;
            offset += piece.len() as u64;
        }
        file.sync_all()
    };
    write().map_err(io_error("write again", &path))
}

/// After a timeline switch two files can have one number; the newer timeline's has the older one's bytes in front.
pub(super) fn newest_of_each_number(segments: Vec<Segment>) -> Vec<Segment> {
    let mut newest: Vec<Segment> = Vec::with_capacity(segments.len());
    for segment in segments {
        match newest.last_mut() {
            Some(last) if last.segment_no == segment.segment_no => *last = segment,
            _ => newest.push(segment),
        }
    }
    newest
}

/// A shorter file is what a crash left of a new one; PostgreSQL's length is made again when it is cut.
fn check_length(layout: &WalLayout, segment: Segment) -> Result<(), WalFileError> {
    let path = layout.segment_path(segment);
    let length = fs::metadata(&path).map_err(io_error("look at", &path))?.len();
    let expected = layout.segment_bytes.into();
    if expected < length {
        return Err(WalFileError::Length { path, length, expected });
    }
    Ok(())
}

/// Reads the segments from `from_lsn` in the first of them on, with a decoder that begins there, to the last whole record; and the timeline of the file in which it ends.
fn scan(
    layout: &WalLayout,
    segments: &[Segment],
    from_lsn: Lsn,
    begin: fn(PgVersion, Lsn, u32) -> WalStreamDecoder,
) -> Result<(WalEnd, TimeLineId), WalFileError> {
    let decoder = begin(layout.version, from_lsn, layout.segment_bytes).with_system_id(layout.system_id);
    let mut failed = None;
    let pieces = segments.iter().flat_map(|segment| {
        let start_lsn = layout.start_of(segment.segment_no);
        Pieces::open(layout, *segment).starting_at(from_lsn.max(start_lsn))
    });
    let pieces = pieces.map_while(|piece| match piece {
        Ok(piece) => Some(piece),
        Err(error) => {
            failed = Some(error);
            None
        }
    });
    let end = find_end(decoder, pieces);
    if let Some(error) = failed {
        return Err(error);
    }
    let end_segment_no = layout.segment_no(end.end_lsn);
    let at_end = segments.iter().find(|segment| segment.segment_no == end_segment_no).or(segments.last());
    Ok((end, at_end.map_or(0, |segment| segment.timeline_id)))
}

/// Is it the end of the log that stopped the reading, or damage?
fn check_is_an_end(layout: &WalLayout, segments: &[Segment], error: &WalError) -> Result<(), WalFileError> {
    if let (WalErrorKind::Foreign, WalErrorReason::Page { page_lsn, .. }) = (error.kind(), &error.reason) {
        return check_is_torn_header(layout, segments, *page_lsn, error);
    }
    let lsn = error.record_lsn;
    let segment_no = layout.segment_no(lsn);
    let Some(index) = segments.iter().position(|segment| segment.segment_no == segment_no) else { return Ok(()) };
    if index + 1 == segments.len() {
        return Ok(());
    }
    // Not in the last segment. The record may still reach into it, and then it is torn.
    let offset = layout.segment_offset(lsn);
    let mut total_len = [0; 4];
    let path = layout.segment_path(segments[index]);
    let file = layout.open_segment(segments[index])?;
    file.read_exact_at(&mut total_len, offset).map_err(io_error("read", &path))?;
    let claimed_end = offset.saturating_add(u32::from_le_bytes(total_len).into());
    if u64::from(layout.segment_bytes) <= claimed_end {
        return Ok(());
    }
    Err(WalFileError::Corrupt { path, offset, lsn, source: Box::new(error.clone()) })
}

/// A header that was being written when the machine stopped looks like one of another cluster, but nothing stands behind it.
fn check_is_torn_header(
    layout: &WalLayout,
    segments: &[Segment],
    page_lsn: Lsn,
    error: &WalError,
) -> Result<(), WalFileError> {
    let segment_no = layout.segment_no(page_lsn);
    let Some(segment) = segments.iter().find(|segment| segment.segment_no == segment_no) else { return Ok(()) };
    let path = layout.segment_path(*segment);
    let mut content = [0; WAL_PAGE_BYTES - LONG_HEADER_LEN];
    let offset = layout.segment_offset(page_lsn) + LONG_HEADER_LEN as u64;
    let file = layout.open_segment(*segment)?;
    let is_last = segments.last() == Some(segment);
    // Shorter than a page is torn too.
    let is_read = file.read_exact_at(&mut content, offset).is_ok();
    if is_last && (!is_read || content.iter().all(|byte| *byte == 0)) {
        return Ok(());
    }
    Err(WalFileError::Foreign { path, source: Box::new(error.clone()) })
}

/// The bytes of one segment file in pieces, zeroes behind the end of a short one.
pub(super) struct Pieces<'a> {
    layout: &'a WalLayout,
    segment: Segment,
    file: Result<File, Option<WalFileError>>,
    offset: u64,
}

impl<'a> Pieces<'a> {
    pub(super) fn open(layout: &'a WalLayout, segment: Segment) -> Self {
        let file = layout.open_segment(segment).map_err(Some);
        Pieces { layout, segment, file, offset: 0 }
    }

    /// Those from `from_lsn` on; none if the segment ends there or before.
    fn starting_at(self, from_lsn: Lsn) -> Self {
        let offset = from_lsn.saturating_sub(self.layout.start_of(self.segment.segment_no));
        Pieces { offset, ..self }
    }
}

impl Iterator for Pieces<'_> {
    type Item = Result<Bytes, WalFileError>;

    fn next(&mut self) -> Option<Self::Item> {
        let file = match &mut self.file {
            Ok(file) => file,
            Err(error) => return error.take().map(Err),
        };
        let left = u64::from(self.layout.segment_bytes).saturating_sub(self.offset);
        let mut piece = vec![0; usize::try_from(left).unwrap_or(READ_BYTES).min(READ_BYTES)];
        if piece.is_empty() {
            return None;
        }
        match read_full_at(file, &mut piece, self.offset) {
            Ok(()) => {
                self.offset += piece.len() as u64;
                Some(Ok(Bytes::from(piece)))
            }
            Err(error) => Some(Err(io_error("read", &self.layout.segment_path(self.segment))(error))),
        }
    }
}

/// Reads until the buffer is full or the file ends.
fn read_full_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl WalLayout {
    /// Where a position lies: for messages about WAL that cannot be read.
    pub fn describe(&self, lsn: Lsn) -> String {
        let segments = self.segments().map(newest_of_each_number).unwrap_or_default();
        match segments.iter().find(|segment| segment.segment_no == self.segment_no(lsn)) {
            Some(segment) => {
                format!("{} at offset {}", self.segment_path(*segment).display(), self.segment_offset(lsn))
            }
            None => format!("no file in {}", self.directory.display()),
        }
    }
}
