//! The WAL in front of an LSN, as far as it is on our disk: where the record ends that the LSN lies in, where the last one starts, and the segment's bytes.
//!
//! - The WAL is decoded from a segment's beginning up to the LSN: what is sent was checked, record by record.
//! - The file is held open: the receiver may remove it while a backup is being sent.

use std::io;

use bytes::Bytes;
use postgres_ffi::start::{Filler, WalPlace};
use postgres_ffi::wal::WalStreamDecoder;
use postgres_ffi::wal::record::RECORD_LEN_MAX;
use postgres_ffi::{Lsn, TimeLineId};

use super::BackupError;
use crate::wal::{WalFileError, WalLayout, WalReader};

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
    pub fn last_record(&self) -> Option<Lsn> {
        Some(self.last_record)
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
pub(super) fn find(layout: &WalLayout, place: WalPlace, request_lsn: Lsn) -> Result<Option<RecordEnd>, BackupError> {
    let segment_bytes = u64::from(place.segment_bytes);
    // The record that ends with a segment lies in that one.
    let mut from_lsn = place.segment_start(Lsn::new(request_lsn.as_u64().saturating_sub(1)));
    let lowest = request_lsn.as_u64().saturating_sub(segment_bytes + u64::from(RECORD_LEN_MAX));
    loop {
        let mut walk = Walk::new(layout, place, from_lsn);
        match walk.to(request_lsn) {
            Ok(Some(end)) => return Ok(Some(end)),
            // The last record, or the one around the LSN, begins before this segment.
            Ok(None) if from_lsn.as_u64() > lowest.max(segment_bytes) => {
                from_lsn = Lsn::new(from_lsn.as_u64() - segment_bytes);
            }
            Ok(None) | Err(WalFileError::Missing { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Goes from record to record.
struct Walk<'a> {
    layout: &'a WalLayout,
    decoder: WalStreamDecoder,
    reader: WalReader,
    next_lsn: Lsn,
}

impl<'a> Walk<'a> {
    fn new(layout: &'a WalLayout, place: WalPlace, from_lsn: Lsn) -> Self {
        Walk {
            layout,
            decoder: WalStreamDecoder::new_at_page(place.version, from_lsn, place.segment_bytes)
                .with_system_id(place.system_id),
            reader: WalReader::new(layout.clone()),
            next_lsn: from_lsn,
        }
    }

    /// `None`: no record that ends at or before `request_lsn` starts here, or what is here is no WAL up to there.
    fn to(&mut self, request_lsn: Lsn) -> Result<Option<RecordEnd>, WalFileError> {
        let mut before: Option<(Lsn, Lsn)> = None;
        loop {
            let record = match self.decoder.next_record() {
                Ok(record) => record,
                // Behind the last record of a log come zeroes, or what was there before.
                Err(_) => return self.ended(before, request_lsn),
            };
            let Some((start_lsn, end_lsn, _)) = record else {
                match self.reader.read(self.next_lsn, Lsn::MAX, READ_BYTES) {
                    Ok(bytes) if !bytes.is_empty() => {
                        self.next_lsn = Lsn::new(self.next_lsn.as_u64() + bytes.len() as u64);
                        self.decoder.feed(bytes);
                        continue;
                    }
                    Ok(_) | Err(WalFileError::Missing { .. }) if before.is_some() => {
                        return self.ended(before, request_lsn);
                    }
                    Ok(_) => return Ok(None),
                    Err(error) => return Err(error),
                }
            };
            if request_lsn < end_lsn {
                return match before {
                    // In the gap between two records: the page header or padding.
                    Some((before_start, before_end)) if request_lsn <= start_lsn => {
                        self.found(before_start, before_end).map(Some)
                    }
                    _ if start_lsn < request_lsn => self.found(start_lsn, end_lsn).map(Some),
                    _ => Ok(None),
                };
            }
            before = Some((start_lsn, end_lsn));
            if end_lsn == request_lsn {
                return self.found(start_lsn, end_lsn).map(Some);
            }
        }
    }

    /// Nothing follows the record `before`: it is the last one if the LSN stands at its end.
    fn ended(&mut self, before: Option<(Lsn, Lsn)>, request_lsn: Lsn) -> Result<Option<RecordEnd>, WalFileError> {
        match before {
            Some((start_lsn, end_lsn)) if end_lsn == request_lsn => self.found(start_lsn, end_lsn).map(Some),
            _ => Ok(None),
        }
    }

    fn found(&mut self, last_record: Lsn, end_lsn: Lsn) -> Result<RecordEnd, WalFileError> {
        let mut reader = WalReader::new(self.layout.clone());
        let segment_start = self.layout.segment_start(end_lsn);
        if segment_start < end_lsn {
            // Opens the file, which stays open.
            reader.read(segment_start, end_lsn, 1)?;
        }
        Ok(RecordEnd { lsn: end_lsn, old_wal: Some(OldWal { reader, end_lsn, last_record }) })
    }
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
