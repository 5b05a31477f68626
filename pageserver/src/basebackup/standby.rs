//! WAL for a standby: from the redo position of the last checkpoint up to the LSN of the backup, out of our own files.
//!
//! - Decoded once from end to end: what is sent holds together, and the checkpoint's record is found on the way.
//! - The files are held open: the receiver may remove them while the backup is being sent.

use std::io::{self, Read};

use bytes::Bytes;
use postgres_ffi::checkpoint::{CHECKPOINT_LEN, Checkpoint};
use postgres_ffi::records::dbase;
use postgres_ffi::records::xlog::operation;
use postgres_ffi::start::WalPlace;
use postgres_ffi::start::standby::StandbyStart;
use postgres_ffi::wal::{DecodedRecord, WalStreamDecoder, rmgr};
use postgres_ffi::{Lsn, Oid};

use super::BackupError;
use crate::timeline::PgHistory;
use crate::wal::names::segment_file_name;
use crate::wal::{WalFileError, WalLayout, WalReader};

/// WAL that is read at once.
const READ_BYTES: usize = 1 << 20;

/// A standby's start, with the WAL that it needs.
pub(super) struct StandbyWal {
    pub(super) start: StandbyStart,
    pub(super) history: PgHistory,
    segments: Vec<Segment>,
}

/// A file of WAL as it is sent: up to the end of what is needed, zeroes behind.
struct Segment {
    reader: WalReader,
    start_lsn: Lsn,
    end_lsn: Lsn,
}

impl StandbyWal {
    /// Names of files within `pg_wal`, with what gives their bytes.
    pub(super) fn files(&mut self, place: WalPlace) -> impl Iterator<Item = (String, impl Read + use<'_>)> {
        let timeline_id = self.start.timeline_id;
        self.segments.iter_mut().map(move |segment| {
            let segment_no = segment.start_lsn.segment_no(place.segment_bytes.into());
            let next_lsn = segment.start_lsn;
            let bytes = SegmentBytes { segment, next_lsn, piece: Bytes::new() };
            (segment_file_name(timeline_id, segment_no, place.segment_bytes), bytes.chain(io::repeat(0)))
        })
    }

    /// How many files there are.
    pub(super) fn segment_count(&self) -> u64 {
        self.segments.len() as u64
    }
}

struct SegmentBytes<'a> {
    segment: &'a mut Segment,
    next_lsn: Lsn,
    piece: Bytes,
}

impl Read for SegmentBytes<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() && self.next_lsn < self.segment.end_lsn {
            let read = self.segment.reader.read(self.next_lsn, self.segment.end_lsn, READ_BYTES);
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

/// The WAL of a standby as of `end_lsn`, whose last checkpoint began its redo at `redo_lsn`, in the first of `layouts` that has all of it.
/// Errors: none has.
pub(super) fn find(
    layouts: &[WalLayout],
    place: WalPlace,
    history: PgHistory,
    redo_lsn: Lsn,
    end_lsn: Lsn,
    time: i64,
) -> Result<StandbyWal, BackupError> {
    for layout in layouts {
        let found = match last_checkpoint(layout, place, redo_lsn, end_lsn) {
            Err(BackupError::Wal(WalFileError::Missing { .. })) => None,
            found => found?,
        };
        let Some((checkpoint_lsn, checkpoint)) = found else { continue };
        let timeline_id = history.timeline_id;
        let start = StandbyStart { checkpoint_lsn, redo_lsn, checkpoint, end_lsn, timeline_id, time };
        return Ok(StandbyWal { start, history, segments: open_segments(layout, redo_lsn, end_lsn)? });
    }
    Err(BackupError::StandbyWalGone { redo_lsn, branch_lsn: end_lsn })
}

/// Start and data of the last checkpoint record between the two positions, at both of which records begin or end. `None`: the WAL there does not
/// hold together, or the checkpoint in it has another redo position. Errors: also for what a standby must not replay.
fn last_checkpoint(
    layout: &WalLayout,
    place: WalPlace,
    redo_lsn: Lsn,
    end_lsn: Lsn,
) -> Result<Option<(Lsn, [u8; CHECKPOINT_LEN])>, BackupError> {
    let mut decoder =
        WalStreamDecoder::new(place.version, redo_lsn, place.segment_bytes).with_system_id(place.system_id);
    let mut reader = WalReader::new(layout.clone());
    let mut next_lsn = redo_lsn;
    let (mut found, mut made) = (None, None);
    while next_lsn < end_lsn {
        let bytes = reader.read(next_lsn, end_lsn, READ_BYTES)?;
        next_lsn = Lsn::new(next_lsn.as_u64() + bytes.len() as u64);
        decoder.feed(bytes);
        loop {
            match decoder.next_record() {
                Ok(Some((record_lsn, record_end_lsn, raw))) => {
                    let record = DecodedRecord::decode(place.version, record_lsn, record_end_lsn, raw);
                    let Ok(record) = record else { return Ok(None) };
                    made = made_tablespace(&record).map(|location| (record_lsn, location)).or(made);
                    found = checkpoint_of(&record).map(|data| (record_lsn, data)).or(found);
                }
                Ok(None) => break,
                Err(_) => return Ok(None),
            }
        }
    }
    let is_whole = decoder.last_record_end() == end_lsn;
    let has_redo = |data: &[u8]| Checkpoint::decode(place.version, data).is_ok_and(|c| c.redo == redo_lsn.as_u64());
    let found = found.filter(|(_, data)| is_whole && has_redo(data));
    match made.filter(|_| found.is_some()) {
        Some((record_lsn, location)) => Err(BackupError::StandbyTablespace { record_lsn, location }),
        None => Ok(found),
    }
}

/// Where the primary has the tablespace that the record makes. `None`: it makes none, or one in the data directory.
/// PG 14-18: src/include/commands/tablespace.h, xl_tblspc_create_rec: the path ends with a zero.
fn made_tablespace(record: &DecodedRecord) -> Option<String> {
    if (record.rmid, record.operation()) != (rmgr::TBLSPC, dbase::TABLESPACE_CREATE) {
        return None;
    }
    let path = record.main_data().get(size_of::<Oid>()..)?.split(|byte| *byte == 0).next()?;
    (!path.is_empty()).then(|| String::from_utf8_lossy(path).into_owned())
}

fn checkpoint_of(record: &DecodedRecord) -> Option<[u8; CHECKPOINT_LEN]> {
    let is_checkpoint = record.rmid == rmgr::XLOG
        && matches!(record.operation(), operation::CHECKPOINT_SHUTDOWN | operation::CHECKPOINT_ONLINE);
    if is_checkpoint { record.main_data().first_chunk().copied() } else { None }
}

fn open_segments(layout: &WalLayout, redo_lsn: Lsn, end_lsn: Lsn) -> Result<Vec<Segment>, WalFileError> {
    let mut segments = Vec::new();
    let mut start_lsn = layout.segment_start(redo_lsn);
    while start_lsn < end_lsn {
        let next_lsn = Lsn::new(start_lsn.as_u64() + u64::from(layout.segment_bytes));
        let mut reader = WalReader::new(layout.clone());
        // Opens the file, which stays open.
        reader.read(start_lsn, end_lsn, 1)?;
        segments.push(Segment { reader, start_lsn, end_lsn: next_lsn.min(end_lsn) });
        start_lsn = next_lsn;
    }
    Ok(segments)
}
