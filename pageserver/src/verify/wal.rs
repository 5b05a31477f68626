//! Every record of a timeline's WAL on disk, from the oldest file to the end: its checksum, its form, and that it leads to where the store is.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use postgres_ffi::Lsn;
use postgres_ffi::wal::{DecodedRecord, WalStreamDecoder};

use super::finding::advice;
use super::job::{Job, VerifyError};
use super::{Finding, Part, name_of};
use crate::timeline::Timeline;
use crate::wal::{SegmentFile, WalLayout};

/// How much is read from a file at once.
const READ_BYTES: usize = 1 << 20;

/// Checks the WAL of `timeline`.
pub(super) fn check(job: &mut Job<'_>, timeline: &Arc<Timeline>) -> Result<(), VerifyError> {
    check_and_list(job, timeline, &mut Vec::new())
}

/// Checks the WAL of `timeline`; the numbers of segments that are damaged or missing, in order, go to `damaged`.
pub(super) fn check_and_list(
    job: &mut Job<'_>,
    timeline: &Arc<Timeline>,
    damaged: &mut Vec<u64>,
) -> Result<(), VerifyError> {
    if timeline.is_damaged() {
        return Ok(()); // Nobody knows what it must lead to.
    }
    let layout = job.repository.wal_layout(timeline);
    // First: what is written from now on is not looked at. Everything up to here is durable.
    let end_lsn = timeline.wal_end_lsn();
    let segments = match layout.segment_files() {
        Ok(segments) => segments,
        Err(error) => {
            let what = crate::replication::one_line(&error);
            return job.found(&of_files(finding(timeline, None, "the directory".to_owned(), &layout.directory, what)));
        }
    };
    job.begin("WAL", Some(segments.len() as u64 * u64::from(layout.segment_bytes)))?;
    check_histories(job, timeline, &layout)?;
    let mut walk = Walk {
        job,
        timeline,
        layout: &layout,
        segments: &segments,
        end_lsn,
        decoder: None,
        reached_lsn: None,
        damaged,
    };
    for (index, segment) in segments.iter().enumerate() {
        if let Some(before) = index.checked_sub(1).map(|before| &segments[before])
            && before.segment_no + 1 != segment.segment_no
        {
            walk.missing(before, segment)?;
        }
        walk.segment(segment)?;
    }
    walk.end()
}

fn check_histories(job: &mut Job<'_>, timeline: &Arc<Timeline>, layout: &WalLayout) -> Result<(), VerifyError> {
    for timeline_id in layout.history_files().unwrap_or_default() {
        if let Err(error) = layout.history(timeline_id) {
            let object = format!("history of PostgreSQL timeline {timeline_id}");
            let what = crate::replication::one_line(&error);
            job.found(&of_files(finding(timeline, None, object, &layout.directory, what)))?;
        }
    }
    Ok(())
}

struct Walk<'j, 'a, 't> {
    job: &'j mut Job<'a>,
    timeline: &'t Arc<Timeline>,
    layout: &'t WalLayout,
    segments: &'t [SegmentFile],
    end_lsn: Lsn,
    /// `None`: begins anew with the next segment.
    decoder: Option<WalStreamDecoder>,
    /// End of the last record that was read without a break since; `None` behind damage.
    reached_lsn: Option<Lsn>,
    damaged: &'t mut Vec<u64>,
}

impl Walk<'_, '_, '_> {
    fn segment(&mut self, segment: &SegmentFile) -> Result<(), VerifyError> {
        if segment.start_lsn >= self.end_lsn {
            return Ok(()); // Being written, nothing of it counts yet.
        }
        let file = match File::open(&segment.path) {
            Ok(file) => file,
            // The receiver removes old files.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.decoder = None;
                return Ok(());
            }
            Err(error) => return self.wrong(segment, segment.start_lsn, format!("cannot be opened: {error}")),
        };
        self.job.counts.wal_segments += 1;
        let segment_bytes = u64::from(self.layout.segment_bytes);
        let wanted = segment_bytes.min(self.end_lsn.saturating_sub(segment.start_lsn));
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        if length != segment_bytes {
            self.wrong(segment, segment.start_lsn, format!("its length is {length}, not {segment_bytes}"))?;
        }
        let mut offset = 0;
        while offset < wanted {
            let mut piece = vec![0; READ_BYTES.min(usize::try_from(wanted - offset).unwrap_or(READ_BYTES))];
            if let Err(error) = file.read_exact_at(&mut piece, offset) {
                return self.wrong(segment, segment.start_lsn, format!("cannot be read at offset {offset}: {error}"));
            }
            offset += piece.len() as u64;
            self.job.took(piece.len() as u64)?;
            if !self.feed(segment, piece.into())? {
                break; // The rest of a segment cannot be read without what was before.
            }
        }
        // Best effort: it only keeps the page cache as it was.
        let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        Ok(())
    }

    /// False: something is wrong with a record.
    fn feed(&mut self, segment: &SegmentFile, piece: Bytes) -> Result<bool, VerifyError> {
        let layout = self.layout;
        let decoder = self.decoder.get_or_insert_with(|| {
            WalStreamDecoder::new_at_page(layout.version, segment.start_lsn, layout.segment_bytes)
                .with_system_id(layout.system_id)
        });
        decoder.feed(piece);
        loop {
            match decoder.next_record() {
                Ok(Some((start_lsn, end_lsn, raw))) => {
                    self.job.counts.wal_records += 1;
                    self.reached_lsn = Some(end_lsn);
                    if let Err(error) = DecodedRecord::decode(layout.version, start_lsn, end_lsn, raw) {
                        let what = format!("a record with a right checksum does not decode: {error}");
                        self.wrong(segment, start_lsn, what)?;
                        return Ok(false);
                    }
                }
                Ok(None) => return Ok(true),
                Err(error) => {
                    let lsn = error.record_lsn;
                    self.wrong(
                        segment,
                        lsn,
                        format!("no record can be read: {}", crate::replication::one_line(&error)),
                    )?;
                    return Ok(false);
                }
            }
        }
    }

    fn missing(&mut self, before: &SegmentFile, next: &SegmentFile) -> Result<(), VerifyError> {
        let lsn = before.start_lsn.checked_add(self.layout.segment_bytes.into()).unwrap_or(Lsn::MAX);
        self.decoder = None;
        self.reached_lsn = None;
        self.damaged.extend(before.segment_no + 1..next.segment_no);
        let object = format!("{} segments", next.segment_no - before.segment_no - 1);
        let what = "missing between others".to_owned();
        self.job.found(&finding(self.timeline, Some(lsn), object, &self.layout.directory, what))
    }

    /// Nothing of the segment leads on.
    fn wrong(&mut self, segment: &SegmentFile, lsn: Lsn, what: String) -> Result<(), VerifyError> {
        self.decoder = None;
        self.reached_lsn = None;
        // A record that goes over a segment's end is found wrong in the next one.
        let file = self.segments.iter().rev().find(|file| file.start_lsn <= lsn).unwrap_or(segment);
        self.damaged.extend(file.segment_no..=segment.segment_no);
        self.damaged.dedup();
        let object = format!("record at {lsn}");
        self.job.found(&finding(self.timeline, Some(lsn), object, &file.path, what))
    }

    /// Does it lead to where the store is?
    fn end(self) -> Result<(), VerifyError> {
        let branch_lsn = self.timeline.metadata().ancestor.as_ref().map(|ancestor| ancestor.lsn);
        let durable_lsn = self.timeline.own_durable_lsn().max(branch_lsn);
        let leads_on = match self.reached_lsn {
            Some(reached_lsn) => reached_lsn >= self.end_lsn.min(self.timeline.last_record_lsn()),
            None => !self.segments.is_empty() || Some(self.timeline.last_record_lsn()) <= durable_lsn,
        };
        if leads_on {
            return Ok(());
        }
        let reached = self.reached_lsn.map_or_else(|| "nothing".to_owned(), |lsn| lsn.to_string());
        let what = format!(
            "it ends before what was ingested: a crash would lose it. reached=`{reached}`, last_record_lsn=`{}`",
            self.timeline.last_record_lsn()
        );
        let object = "the end".to_owned();
        self.job.found(&of_files(finding(self.timeline, self.reached_lsn, object, &self.layout.directory, what)))
    }
}

/// Of no segment that a primary could send again.
fn of_files(finding: Finding) -> Finding {
    Finding { what_to_do: advice::WAL_FILES, ..finding }
}

fn finding(timeline: &Arc<Timeline>, lsn: Option<Lsn>, object: String, file: &Path, what: String) -> Finding {
    let file = Some(PathBuf::from(file));
    Finding { timeline: Some(name_of(timeline)), part: Part::Wal, object, lsn, file, what, what_to_do: advice::WAL }
}
