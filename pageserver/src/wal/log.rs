//! Writes WAL into segment files and makes it durable.
//!
//! - Bytes go on where the last ones ended, or they are refused.
//! - [`WalLog::flush`] is the only moment at which bytes become durable, but for full segments, which are flushed before the next is begun.
//! - One writer per directory.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use postgres_ffi::{Lsn, TimeLineId};

use super::error::{WalFileError, io_error};
use super::layout::{Segment, WalLayout};
use super::record_ends::RecordEnds;
use crate::failpoint::Failpoint;

/// Pieces of WAL are gathered into one write up to this size.
const GATHER_BYTES_MAX: usize = 256 * 1024;
/// A piece at least this long is written on its own, without being copied.
const ALONE_BYTES_MIN: usize = 16 * 1024;

/// The writer of one timeline's WAL.
#[derive(Debug)]
pub struct WalLog {
    layout: WalLayout,
    timeline_id: TimeLineId,
    /// Where it began when it was created or opened.
    begin_lsn: Lsn,
    /// The segment that `written_lsn` lies in, once something was written to it.
    open: Option<(Segment, File)>,
    written_lsn: Lsn,
    flushed_lsn: Lsn,
    ends: RecordEnds,
    /// End of the last whole record that was written, `None` before the first.
    record_end_lsn: Option<Lsn>,
    /// The same of what is durable.
    flushed_record_end_lsn: Option<Lsn>,
    gathered: Vec<u8>,
    poison: Option<String>,
}

impl WalLog {
    /// Starts a log at `start_lsn`, the beginning of a segment, on PostgreSQL timeline `timeline_id`. The directory is made if it is not there; segments
    /// from `start_lsn` on are removed.
    pub fn create(layout: WalLayout, timeline_id: TimeLineId, start_lsn: Lsn) -> Result<Self, WalFileError> {
        assert!(layout.segment_offset(start_lsn) == 0, "a log starts with a segment");
        fs::create_dir_all(&layout.directory).map_err(io_error("create", &layout.directory))?;
        layout.remove_temporary_files()?;
        let first = layout.segment_no(start_lsn);
        for segment in layout.segments()?.into_iter().filter(|segment| first <= segment.segment_no) {
            layout.remove_segment(segment)?;
        }
        layout.sync_directory()?;
        Ok(Self::at(layout, timeline_id, start_lsn, None))
    }

    /// The log whose files end, durably, at `end_lsn`; with the end of the last whole record if that is there.
    pub(super) fn at(layout: WalLayout, timeline_id: TimeLineId, end_lsn: Lsn, record_end_lsn: Option<Lsn>) -> Self {
        WalLog {
            timeline_id,
            begin_lsn: end_lsn,
            open: None,
            written_lsn: end_lsn,
            flushed_lsn: end_lsn,
            ends: RecordEnds::new(end_lsn, layout.segment_bytes),
            record_end_lsn,
            flushed_record_end_lsn: record_end_lsn,
            gathered: Vec::new(),
            poison: None,
            layout,
        }
    }

    /// Where the files are.
    pub fn layout(&self) -> &WalLayout {
        &self.layout
    }

    /// The PostgreSQL timeline that is being written.
    pub fn timeline_id(&self) -> TimeLineId {
        self.timeline_id
    }

    /// End of what was written.
    pub fn written_lsn(&self) -> Lsn {
        self.written_lsn
    }

    /// End of what is durable, whole record or not.
    pub fn flushed_lsn(&self) -> Lsn {
        self.flushed_lsn
    }

    /// End of the last whole record that is durable: what counts after a restart. `None` before the first.
    pub fn flushed_record_end_lsn(&self) -> Option<Lsn> {
        self.flushed_record_end_lsn
    }

    /// Writes pieces that follow each other, the first at `start_lsn`. Not durable before [`WalLog::flush`].
    pub fn append(&mut self, start_lsn: Lsn, pieces: &[Bytes]) -> Result<(), WalFileError> {
        self.check_poison()?;
        if start_lsn != self.written_lsn {
            return Err(WalFileError::NotContiguous { written_lsn: self.written_lsn, start_lsn });
        }
        let mut gathered = std::mem::take(&mut self.gathered);
        let outcome = self.write_pieces(pieces, &mut gathered);
        self.gathered = gathered;
        self.poison_on_error(outcome)
    }

    fn write_pieces(&mut self, pieces: &[Bytes], gathered: &mut Vec<u8>) -> Result<(), WalFileError> {
        gathered.clear();
        for piece in pieces {
            if gathered.len() + piece.len() > GATHER_BYTES_MAX || piece.len() >= ALONE_BYTES_MIN {
                self.write(gathered)?;
                gathered.clear();
            }
            if piece.len() >= ALONE_BYTES_MIN {
                self.write(piece)?;
            } else {
                gathered.extend_from_slice(piece);
            }
        }
        self.write(gathered)
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), WalFileError> {
        while !bytes.is_empty() {
            let offset = self.layout.segment_offset(self.written_lsn);
            let room = u64::from(self.layout.segment_bytes) - offset;
            let (here, later) = bytes.split_at(bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
            let (segment, file) = self.current_segment()?;
            Failpoint::WalBeforeWrite.pass();
            file.write_all_at(here, offset).map_err(io_error("write", &self.layout.segment_path(segment)))?;
            Failpoint::WalWritten.pass();
            self.ends.follow(here);
            self.record_end_lsn = self.ends.record_end().or(self.record_end_lsn);
            self.written_lsn = Lsn::new(self.written_lsn.as_u64() + here.len() as u64);
            bytes = later;
        }
        Ok(())
    }

    /// The file that holds `written_lsn`. A new one only after the one before is durable.
    fn current_segment(&mut self) -> Result<(Segment, &File), WalFileError> {
        let segment = Segment { segment_no: self.layout.segment_no(self.written_lsn), timeline_id: self.timeline_id };
        if self.open.as_ref().is_none_or(|(open, _)| *open != segment) {
            self.sync()?;
            let is_new = self.layout.segment_offset(self.written_lsn) == 0;
            let file = if is_new { self.layout.create_segment(segment)? } else { self.layout.open_segment(segment)? };
            self.open = Some((segment, file));
        }
        match &self.open {
            Some((segment, file)) => Ok((*segment, file)),
            None => unreachable!("opened above"),
        }
    }

    /// Makes everything that was written durable. The new [`WalLog::flushed_lsn`].
    pub fn flush(&mut self) -> Result<Lsn, WalFileError> {
        self.check_poison()?;
        let outcome = self.sync();
        self.poison_on_error(outcome)?;
        Ok(self.flushed_lsn)
    }

    fn sync(&mut self) -> Result<(), WalFileError> {
        if self.flushed_lsn == self.written_lsn {
            return Ok(());
        }
        if let Some((segment, file)) = &self.open {
            // The length does not change and blocks are reserved, so data and extent states are all there is to write.
            file.sync_data().map_err(io_error("fsync", &self.layout.segment_path(*segment)))?;
            Failpoint::WalSynced.pass();
        }
        self.flushed_lsn = self.written_lsn;
        self.flushed_record_end_lsn = self.record_end_lsn;
        Ok(())
    }

    /// Forgets what was written behind the last whole record, on disk too. Where the log ends then.
    pub fn rewind_to_record_end(&mut self) -> Result<Lsn, WalFileError> {
        self.flush()?;
        // Before the first whole record everything is of one that began elsewhere, or goes on for segments: all of it comes again.
        let end_lsn = self.record_end_lsn.unwrap_or(self.begin_lsn);
        if end_lsn != self.written_lsn {
            self.open = None;
            let outcome = cut(&self.layout, self.timeline_id, end_lsn);
            self.poison_on_error(outcome)?;
        }
        self.written_lsn = end_lsn;
        self.flushed_lsn = end_lsn;
        self.ends = RecordEnds::new(end_lsn, self.layout.segment_bytes);
        Ok(end_lsn)
    }

    /// Goes on with a new PostgreSQL timeline that begins exactly where the log ends. Its first segment starts with the
    /// bytes in front of the switch, as PostgreSQL does it.
    pub fn switch_timeline(
        &mut self,
        timeline_id: TimeLineId,
        switch_lsn: Lsn,
        history: &[u8],
    ) -> Result<(), WalFileError> {
        self.flush()?;
        if switch_lsn != self.written_lsn || timeline_id <= self.timeline_id {
            let written_lsn = self.written_lsn;
            return Err(WalFileError::SwitchElsewhere { timeline_id, switch_lsn, written_lsn });
        }
        self.open = None;
        self.layout.write_history(timeline_id, history)?;
        let offset = self.layout.segment_offset(switch_lsn);
        if offset > 0 {
            let segment_no = self.layout.segment_no(switch_lsn);
            let old = self.layout.open_segment(Segment { segment_no, timeline_id: self.timeline_id })?;
            let new = self.layout.segment_path(Segment { segment_no, timeline_id });
            let layout = &self.layout;
            layout.write_durably(&new, |file| {
                layout.fill_with_zeroes(file)?;
                io::copy(&mut io::Read::take(&old, offset), file).map(drop)
            })?;
        }
        self.timeline_id = timeline_id;
        if self.record_end_lsn.is_none() {
            // What came before is of the older one: a server on the new one has this segment, and perhaps no other.
            self.begin_lsn = self.layout.segment_start(switch_lsn);
        }
        Ok(())
    }

    /// Goes back to the PostgreSQL timeline before the current one if no record was written on the current one: a server that left the older
    /// one at the same place can be followed then. True: it did.
    pub fn leave_empty_timeline(&mut self) -> Result<bool, WalFileError> {
        let history = self.layout.history(self.timeline_id)?;
        let Some((older, left_lsn)) = history.and_then(|history| history.ancestors().last().copied()) else {
            return Ok(false);
        };
        let before_switch = Segment {
            segment_no: self.layout.segment_no(Lsn::new(left_lsn.as_u64().saturating_sub(1))),
            timeline_id: older,
        };
        if self.record_end_lsn != Some(left_lsn) || !self.layout.segment_path(before_switch).exists() {
            return Ok(false);
        }
        self.rewind_to_record_end()?;
        self.open = None;
        let outcome = self.layout.remove_timeline(self.timeline_id);
        self.poison_on_error(outcome)?;
        self.timeline_id = older;
        Ok(true)
    }

    /// The first position that is there. `None`: there is no file.
    pub fn oldest_lsn(&self) -> Result<Option<Lsn>, WalFileError> {
        Ok(self.layout.segments()?.first().map(|segment| self.layout.start_of(segment.segment_no)))
    }

    /// Removes segments that lie wholly below `keep_lsn`, oldest first, but never the last one. How many.
    pub fn remove_below(&mut self, keep_lsn: Lsn) -> Result<usize, WalFileError> {
        let keep_segment_no = self.layout.segment_no(keep_lsn.min(self.written_lsn));
        let segments = self.layout.segments()?;
        let last = segments.last().map_or(0, |segment| segment.segment_no);
        let old = segments.into_iter().filter(|segment| segment.segment_no < keep_segment_no.min(last));
        let mut removed = 0;
        for segment in old {
            self.layout.remove_segment(segment)?;
            removed += 1;
        }
        if removed > 0 {
            self.layout.sync_directory()?;
        }
        Ok(removed)
    }

    fn check_poison(&self) -> Result<(), WalFileError> {
        match &self.poison {
            None => Ok(()),
            Some(first_error) => Err(WalFileError::Poisoned { first_error: first_error.clone() }),
        }
    }

    fn poison_on_error<T>(&mut self, outcome: Result<T, WalFileError>) -> Result<T, WalFileError> {
        if let Err(error) = &outcome {
            self.poison.get_or_insert_with(|| crate::replication::one_line(error));
        }
        outcome
    }
}

/// Zeroes everything behind `end_lsn`, durably: the rest of its segment, and all later segments.
pub(super) fn cut(layout: &WalLayout, timeline_id: TimeLineId, end_lsn: Lsn) -> Result<(), WalFileError> {
    let end_segment_no = layout.segment_no(end_lsn);
    let offset = layout.segment_offset(end_lsn);
    Failpoint::WalBeforeCut.pass();
    // Newest first: a crash in between leaves no hole.
    for segment in layout.segments()?.into_iter().rev() {
        if end_segment_no < segment.segment_no || (segment.segment_no == end_segment_no && offset == 0) {
            layout.remove_segment(segment)?;
            layout.sync_directory()?;
        }
    }
    if offset > 0 {
        let segment = Segment { segment_no: end_segment_no, timeline_id };
        let path = layout.segment_path(segment);
        let file = layout.open_segment(segment)?;
        file.set_len(offset)
            .and_then(|()| layout.fill_with_zeroes(&file))
            .and_then(|()| file.sync_all())
            .map_err(io_error("cut", &path))?;
    }
    Failpoint::WalCut.pass();
    Ok(())
}
