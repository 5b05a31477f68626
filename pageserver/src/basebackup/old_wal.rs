//! The WAL in front of an LSN, as far as it is on our disk: where the record ends that the LSN lies in, where the last one starts, and the segment's bytes.
//!
//! - The WAL is decoded from a segment's beginning up to the LSN: what is sent was checked, record by record.
//! - The file is held open: the receiver may remove it while a backup is being sent.

use std::io;

use bytes::Bytes;
use postgres_ffi::start::{Filler, WalPlace};
use postgres_ffi::{Lsn, TimeLineId};

use super::BackupError;
use crate::wal::{RecordAt, WalFileError, WalLayout, WalReader};

/// WAL that is read at once.
const READ_BYTES: usize = 1 << 20;

/// The record end that a backup is as of.
pub struct RecordEnd {
    /// There.
    pub lsn: Lsn,
    /// The WAL in front of it. `None`: it is gone, and the LSN is one where a record could end.
    pub old_wal: Option<OldWal>,
}

/// A segment's bytes in front of a record's end.
pub struct OldWal {
    reader: WalReader,
    end_lsn: Lsn,
    last_record: Lsn,
}

impl OldWal {
    /// Where the last record starts.
    pub fn last_record(&self) -> Lsn {
        self.last_record
    }

    /// Reads the segment of the end from its beginning up to the end.
    pub(super) fn into_segment_front(self, place: WalPlace) -> SegmentFront {
        SegmentFront { next_lsn: place.segment_start(self.end_lsn), old_wal: self, piece: Bytes::new() }
    }
}

/// The bytes of a segment up to an LSN.
pub(super) struct SegmentFront {
    old_wal: OldWal,
    next_lsn: Lsn,
    piece: Bytes,
}

impl io::Read for SegmentFront {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() && self.next_lsn < self.old_wal.end_lsn {
            let read = self.old_wal.reader.read(self.next_lsn, self.old_wal.end_lsn, READ_BYTES);
            self.piece = read.map_err(|error| io::Error::other(BackupError::from(error)))?;
            self.next_lsn = Lsn::new(self.next_lsn.as_u64() + self.piece.len() as u64);
            if self.piece.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let length = buffer.len().min(self.piece.len());
        buffer[..length].copy_from_slice(&self.piece.split_to(length));
        Ok(length)
    }
}

/// The end of the record in which `request_lsn` lies, or at which it stands. `None`: the WAL around it is not there, or does not hold together.
/// Requires: `request_lsn` is not above the end of the last whole record.
pub(super) fn find(layout: &WalLayout, request_lsn: Lsn) -> Result<Option<RecordEnd>, BackupError> {
    let (record_lsn, end_lsn) = match layout.record_at(request_lsn)? {
        Some(RecordAt::End { record_lsn }) => (record_lsn, request_lsn),
        Some(RecordAt::Inside { record_lsn, end_lsn } | RecordAt::Between { record_lsn, end_lsn }) => {
            (record_lsn, end_lsn)
        }
        None => return Ok(None),
    };
    let mut reader = WalReader::new(layout.clone());
    let segment_start = layout.segment_start(end_lsn);
    if segment_start < end_lsn {
        // Opens the file, which stays open. It may have gone this moment, or the record began in a segment before it.
        match reader.read(segment_start, end_lsn, 1) {
            Err(WalFileError::Missing { .. }) => return Ok(None),
            read => read?,
        };
    }
    Ok(Some(RecordEnd { lsn: end_lsn, old_wal: Some(OldWal { reader, end_lsn, last_record: record_lsn }) }))
}

/// Filler for the segment of `end_lsn`.
pub(super) fn filler(place: WalPlace, timeline_id: TimeLineId, end_lsn: Lsn) -> FillerFront {
    FillerFront { filler: Filler::new(place, timeline_id, end_lsn), piece: Vec::new(), taken: 0 }
}

/// The bytes of a segment up to an LSN, made up.
pub(super) struct FillerFront {
    filler: Filler,
    piece: Vec<u8>,
    taken: usize,
}

impl FillerFront {
    /// Where the last record starts.
    pub(super) fn last_record_of_all(mut self) -> Option<Lsn> {
        self.filler.by_ref().for_each(drop);
        self.filler.last_record()
    }
}

impl io::Read for FillerFront {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.piece.len() {
            self.piece = self.filler.next().unwrap_or_default();
            self.taken = 0;
        }
        let length = buffer.len().min(self.piece.len() - self.taken);
        buffer[..length].copy_from_slice(&self.piece[self.taken..self.taken + length]);
        self.taken += length;
        Ok(length)
    }
}
