//! WAL that comes with a cluster's files: found, proven and taken into the timeline's own directory.
//!
//! - Each segment is the one file of the PostgreSQL timeline that the history names for it; a switch in the middle of a segment makes it the newer one's.
//! - Every record from the redo point on is decoded before anything is ingested: what the cluster needs must be there, else nothing is imported.
//! - WAL that ends is told from WAL with a hole or damage in it: behind those there are segments that carry their own addresses. A segment that
//!   was only made to be used later does not, and PostgreSQL begins no segment before the one in front is whole and on disk.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use postgres_ffi::records::xlog::operation::BACKUP_END;
use postgres_ffi::wal::page_header::{LONG_HEADER_LEN, PageHeader, WAL_PAGE_BYTES};
use postgres_ffi::wal::record::RMGR_INFO_MASK;
use postgres_ffi::wal::stream::WalErrorReason;
use postgres_ffi::wal::{DecodedRecord, WalError, WalErrorKind, WalStreamDecoder, rmgr};
use postgres_ffi::{Lsn, TimeLineId};

use super::ImportError;
use super::recovery::{Recovery, Whole};
use crate::wal::WalLayout;
use crate::wal::history::TimelineHistory;
use crate::wal::names::{history_file_name, parse_history_file_name, parse_segment_file_name, segment_file_name};

/// WAL copied and decoded at once.
const PIECE_BYTES: usize = 1 << 20;

/// Where the WAL that was taken leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WalTaken {
    /// The cluster is whole from here on.
    pub whole_lsn: Lsn,
    /// End of the last whole record.
    pub end_lsn: Lsn,
    /// The PostgreSQL timeline of that record.
    pub timeline_id: TimeLineId,
}

/// True for the name of a WAL segment or of a timeline's history.
pub(super) fn is_wal_file(name: &str) -> bool {
    // Of any segment size: the smallest has the most segments in 4 GiB.
    const SEGMENT_BYTES_MIN: u32 = postgres_ffi::wal::page_header::SEGMENT_BYTES_MIN;
    parse_segment_file_name(name, SEGMENT_BYTES_MIN).is_some() || parse_history_file_name(name).is_some()
}

/// Takes from `source` what `recovery` needs and what follows it, to the last whole record, into the directory of `layout`; durable then.
/// Errors: a segment is missing or damaged before the cluster is whole, or the WAL is of another cluster.
pub(super) fn take_wal(source: &Path, recovery: &Recovery, layout: &WalLayout) -> Result<WalTaken, ImportError> {
    let mut taking = Taking::new(source, recovery, layout)?;
    let mut segment_no = recovery.start_lsn.segment_no(layout.segment_bytes.into());
    loop {
        match taking.take_segment(segment_no)? {
            None => segment_no += 1,
            Some(ended) => return taking.finish(segment_no, ended),
        }
    }
}

/// Takes the segment that holds `lsn`, and the one that holds `end_lsn`, unproven: the bytes in front of where WAL will go on.
pub(super) fn take_segments(
    source: &Path,
    timeline_id: TimeLineId,
    lsn: Lsn,
    end_lsn: Lsn,
    layout: &WalLayout,
) -> Result<(), ImportError> {
    let segment_bytes = layout.segment_bytes;
    let last = Lsn::new(end_lsn.as_u64().saturating_sub(1)).segment_no(segment_bytes.into());
    for segment_no in lsn.segment_no(segment_bytes.into())..=last {
        let name = segment_file_name(timeline_id, segment_no, segment_bytes);
        let (from, to) = (source.join(&name), layout.directory.join(&name));
        copy_durably(&from, &to)?;
    }
    take_history(source, timeline_id, layout)?;
    sync_dir(&layout.directory)
}

/// Why no more WAL is taken.
enum Ended {
    /// The file is not there.
    Missing { segment: String },
    /// There is no record any more; or what stands there is none.
    NoRecord { segment: String, reason: String },
}

struct Taking<'a> {
    source: &'a Path,
    layout: &'a WalLayout,
    whole: Whole,
    /// Newest timeline, and where the ones before it were left.
    timeline_id: TimeLineId,
    history: TimelineHistory,
    decoder: WalStreamDecoder,
    backup_ended: bool,
    whole_lsn: Option<Lsn>,
}

impl<'a> Taking<'a> {
    fn new(source: &'a Path, recovery: &Recovery, layout: &'a WalLayout) -> Result<Self, ImportError> {
        let decoder = WalStreamDecoder::new(layout.version, recovery.start_lsn, layout.segment_bytes);
        Ok(Taking {
            source,
            layout,
            whole: recovery.whole,
            timeline_id: recovery.timeline_id,
            history: take_history(source, recovery.timeline_id, layout)?,
            decoder: decoder.with_system_id(layout.system_id),
            backup_ended: recovery.whole.backup_start_lsn.is_none(),
            whole_lsn: None,
        })
    }

    /// Copies and decodes one segment. `Some`: nothing follows.
    fn take_segment(&mut self, segment_no: u64) -> Result<Option<Ended>, ImportError> {
        let segment_bytes = self.layout.segment_bytes;
        let timeline_id = self.timeline_of(segment_no);
        let segment = segment_file_name(timeline_id, segment_no, segment_bytes);
        let path = self.source.join(&segment);
        let mut from = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(Ended::Missing { segment })),
            opened => opened.map_err(io_error(&path))?,
        };
        let length = from.metadata().map_err(io_error(&path))?.len();
        if u64::from(segment_bytes) < length {
            return Err(ImportError::FileDamaged { file: segment, reason: "longer than a WAL segment" });
        }
        let to_path = self.layout.directory.join(&segment);
        let mut to = File::create(&to_path).map_err(io_error(&to_path))?;
        let outcome = self.copy_and_decode(&mut from, &path, &mut to, &to_path);
        to.sync_all().map_err(io_error(&to_path))?;
        if let Some(reason) = outcome? {
            return Ok(Some(Ended::NoRecord { segment, reason }));
        }
        let is_cut = length < u64::from(segment_bytes);
        Ok(is_cut.then(|| Ended::NoRecord { segment, reason: format!("the file has only {length} bytes") }))
    }

    /// The reason why there is no record any more, if so. All of the segment is copied.
    fn copy_and_decode(
        &mut self,
        from: &mut File,
        from_path: &Path,
        to: &mut File,
        to_path: &Path,
    ) -> Result<Option<String>, ImportError> {
        // What lies in front of the redo point is copied and not decoded.
        let mut skip = self.decoder.fed_until().segment_offset(self.layout.segment_bytes.into());
        let mut stopped = None;
        loop {
            let mut piece = Vec::with_capacity(PIECE_BYTES);
            let read =
                Read::take(&mut *from, PIECE_BYTES as u64).read_to_end(&mut piece).map_err(io_error(from_path))?;
            if read == 0 {
                return Ok(stopped);
            }
            to.write_all(&piece).map_err(io_error(to_path))?;
            let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(piece.len());
            skip -= skipped as u64;
            if stopped.is_none() {
                self.decoder.feed(Bytes::from(piece).slice(skipped..));
                stopped = self.decode(from_path)?;
            }
        }
    }

    fn decode(&mut self, path: &Path) -> Result<Option<String>, ImportError> {
        loop {
            match self.decoder.next_record() {
                Ok(Some((start_lsn, end_lsn, raw))) => self.see(start_lsn, end_lsn, raw),
                Ok(None) => return Ok(None),
                Err(error) if error.kind() == WalErrorKind::EndOfWal || self.is_torn_header(path, &error)? => {
                    return Ok(Some(crate::replication::one_line(&error)));
                }
                Err(error) => return Err(ImportError::Wal { source: Box::new(error) }),
            }
        }
    }

    /// A page header that was being written when the machine stopped looks like one of another cluster, but nothing stands behind it.
    fn is_torn_header(&self, path: &Path, error: &WalError) -> Result<bool, ImportError> {
        let WalErrorReason::Page { page_lsn, .. } = &error.reason else { return Ok(false) };
        let offset = page_lsn.segment_offset(self.layout.segment_bytes.into()) + LONG_HEADER_LEN as u64;
        let mut content = Vec::new();
        let mut file = File::open(path).map_err(io_error(path))?;
        file.seek(SeekFrom::Start(offset)).map_err(io_error(path))?;
        let content_len = (WAL_PAGE_BYTES - LONG_HEADER_LEN) as u64;
        file.take(content_len).read_to_end(&mut content).map_err(io_error(path))?;
        Ok(content.iter().all(|byte| *byte == 0))
    }

    /// A whole record: does it make the cluster whole?
    fn see(&mut self, start_lsn: Lsn, end_lsn: Lsn, raw: Bytes) {
        let is_backup_end = raw[17] == rmgr::XLOG && raw[16] & RMGR_INFO_MASK == BACKUP_END;
        if is_backup_end && let Ok(record) = DecodedRecord::decode(self.layout.version, start_lsn, end_lsn, raw) {
            let began_at = record.main_data().try_into().map(|bytes| Lsn::new(u64::from_le_bytes(bytes))).ok();
            self.backup_ended |= began_at == self.whole.backup_start_lsn;
        }
        let is_whole = self.backup_ended
            && self.whole.checkpoint_lsn < end_lsn
            && self.whole.min_recovery_lsn.is_none_or(|min_recovery_lsn| min_recovery_lsn <= end_lsn);
        if is_whole && (self.whole_lsn.is_none() || self.whole.at_end_of_wal) {
            self.whole_lsn = Some(end_lsn);
        }
    }

    /// The PostgreSQL timeline whose file holds the segment: that of its last byte.
    fn timeline_of(&self, segment_no: u64) -> TimeLineId {
        let segment_bytes = u64::from(self.layout.segment_bytes);
        let end_lsn = Lsn::new(segment_no.saturating_add(1).saturating_mul(segment_bytes));
        self.history.timeline_at(self.timeline_id, end_lsn)
    }

    /// Judges the end. `segment_no` is where WAL was looked for last.
    fn finish(self, segment_no: u64, ended: Ended) -> Result<WalTaken, ImportError> {
        let end_lsn = self.decoder.last_record_end();
        if let Some(later) = self.written_segment_behind(segment_no)? {
            return Err(match ended {
                Ended::Missing { segment } => ImportError::WalHole { segment, later },
                Ended::NoRecord { segment, reason } => ImportError::WalDamaged { segment, reason, end_lsn, later },
            });
        }
        let needed = || match self.whole {
            _ if !self.backup_ended => "the record that ends the backup".to_owned(),
            Whole { checkpoint_lsn, .. } if end_lsn <= checkpoint_lsn => format!("the checkpoint at {checkpoint_lsn}"),
            Whole { min_recovery_lsn, .. } => format!("WAL up to {}", min_recovery_lsn.unwrap_or(end_lsn)),
        };
        let Some(whole_lsn) = self.whole_lsn else {
            let needed = needed();
            return Err(match ended {
                Ended::Missing { segment } => ImportError::WalMissing { segment, end_lsn, needed },
                Ended::NoRecord { segment, reason } => ImportError::WalEndsEarly { segment, end_lsn, needed, reason },
            });
        };
        sync_dir(&self.layout.directory)?;
        let timeline_id = self.history.timeline_at(self.timeline_id, end_lsn);
        Ok(WalTaken { whole_lsn, end_lsn, timeline_id })
    }

    /// The name of the first segment behind `end_segment_no` that was written as what its name says.
    fn written_segment_behind(&self, end_segment_no: u64) -> Result<Option<String>, ImportError> {
        let segment_bytes = self.layout.segment_bytes;
        let mut written = Vec::new();
        for entry in fs::read_dir(self.source).map_err(io_error(self.source))? {
            let Ok(name) = entry.map_err(io_error(self.source))?.file_name().into_string() else { continue };
            let Some((timeline_id, segment_no)) = parse_segment_file_name(&name, segment_bytes) else { continue };
            if end_segment_no < segment_no && timeline_id == self.timeline_of(segment_no) {
                let start_lsn = Lsn::new(segment_no.saturating_mul(segment_bytes.into()));
                if self.carries_address(&self.source.join(&name), start_lsn)? {
                    written.push(name);
                }
            }
        }
        Ok(written.into_iter().min())
    }

    fn carries_address(&self, path: &Path, start_lsn: Lsn) -> Result<bool, ImportError> {
        let mut head = Vec::new();
        let file = File::open(path).map_err(io_error(path))?;
        file.take(LONG_HEADER_LEN as u64).read_to_end(&mut head).map_err(io_error(path))?;
        let header = PageHeader::parse(&head);
        Ok(header.is_some_and(|header| {
            header.page_lsn == start_lsn && header.long.is_some_and(|long| long.system_id == self.layout.system_id)
        }))
    }
}

/// The history of `timeline_id`; its file is taken too. A timeline without one came from nowhere.
fn take_history(source: &Path, timeline_id: TimeLineId, layout: &WalLayout) -> Result<TimelineHistory, ImportError> {
    let from = WalLayout { directory: source.to_owned(), ..layout.clone() };
    let Some((history, content)) = from.history_file(timeline_id)? else { return Ok(TimelineHistory::default()) };
    if source.join(history_file_name(timeline_id)) != layout.directory.join(history_file_name(timeline_id)) {
        layout.write_history(timeline_id, &content)?;
    }
    Ok(history)
}

fn copy_durably(from: &Path, to: &Path) -> Result<(), ImportError> {
    let mut reader = File::open(from).map_err(io_error(from))?;
    let mut writer = File::create(to).map_err(io_error(to))?;
    io::copy(&mut reader, &mut writer).map_err(io_error(from))?;
    writer.sync_all().map_err(io_error(to))
}

fn sync_dir(dir: &Path) -> Result<(), ImportError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error(dir))
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> ImportError + use<> {
    let path: PathBuf = path.to_owned();
    move |source| ImportError::Io { path, source }
}

#[cfg(test)]
mod tests;
