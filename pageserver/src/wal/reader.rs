//! Reads WAL back from the segment files, beside the writer.
//!
//! - Never reads beyond the limit that the caller gives: what lies behind may be half written.
//! - Of several files with one number the newest timeline's is read; it has the older one's bytes in front of the switch.

use std::fs::File;
use std::os::unix::fs::FileExt;

use bytes::{Bytes, BytesMut};
use postgres_ffi::Lsn;

use super::error::{WalFileError, io_error};
use super::layout::{Segment, WalLayout};

/// Reads one directory.
#[derive(Debug)]
pub struct WalReader {
    layout: WalLayout,
    open: Option<(Segment, File)>,
}

impl WalReader {
    /// Reads the files in `layout.directory`; opens nothing yet.
    pub fn new(layout: WalLayout) -> Self {
        WalReader { layout, open: None }
    }

    /// Bytes from `start_lsn` on, at most `length_max` and at most to `limit_lsn`, never across a segment's end; empty at the limit.
    ///
    /// Requires: `limit_lsn` is not above what the writer has written. Errors: `Missing` when no file holds `start_lsn`.
    pub fn read(&mut self, start_lsn: Lsn, limit_lsn: Lsn, length_max: usize) -> Result<Bytes, WalFileError> {
        let offset = self.layout.segment_offset(start_lsn);
        let length = (u64::from(self.layout.segment_bytes) - offset)
            .min(limit_lsn.saturating_sub(start_lsn))
            .min(length_max as u64);
        let mut bytes = BytesMut::zeroed(usize::try_from(length).unwrap_or(length_max));
        if !bytes.is_empty() {
            let path_of = |layout: &WalLayout, segment| layout.segment_path(segment);
            let (segment, file) = self.segment_of(start_lsn)?;
            let outcome = file.read_exact_at(&mut bytes, offset);
            outcome.map_err(io_error("read", &path_of(&self.layout, segment)))?;
        }
        Ok(bytes.freeze())
    }

    /// The first position that is there. `None`: there is no file.
    pub fn first_lsn(&self) -> Result<Option<Lsn>, WalFileError> {
        Ok(self.layout.segments()?.first().map(|segment| self.layout.start_of(segment.segment_no)))
    }

    fn segment_of(&mut self, lsn: Lsn) -> Result<(Segment, &File), WalFileError> {
        let segment_no = self.layout.segment_no(lsn);
        if self.open.as_ref().is_none_or(|(open, _)| open.segment_no != segment_no) {
            let candidates = self.layout.segments()?;
            let newest = candidates.into_iter().rev().find(|segment| segment.segment_no == segment_no);
            let missing = || WalFileError::Missing { lsn, directory: self.layout.directory.clone() };
            let segment = newest.ok_or_else(missing)?;
            self.open = Some((segment, self.layout.open_segment(segment)?));
        }
        match &self.open {
            Some((segment, file)) => Ok((*segment, file)),
            None => Err(WalFileError::Missing { lsn, directory: self.layout.directory.clone() }),
        }
    }
}
