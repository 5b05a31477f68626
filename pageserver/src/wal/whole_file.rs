//! A file of a directory of WAL for whoever recovers from it (`restore_command`): whole, or not at all.
//!
//! - A segment is whole when its end has been received. One that was left in the middle, for a newer PostgreSQL timeline, never is: the newer one's file has its bytes.
//! - Its records are checked before the first byte: a server that recovers takes a bad one for the end of all WAL.
//! - The file is held open: the receiver may remove it while it is being sent.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek};
use std::path::Path;

use bytes::Bytes;
use postgres_ffi::wal::WalStreamDecoder;
use postgres_ffi::{Lsn, TimeLineId};

use super::error::{WalFileError, io_error};
use super::layout::{SegmentFile, WalLayout};
use super::names::{parse_history_file_name, parse_segment_file_name};

/// What is read and checked at once.
const PIECE_BYTES: usize = 1 << 20;

/// A file of WAL, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalFileName {
    /// `TTTTTTTTHHHHHHHHLLLLLLLL`
    Segment {
        /// Its PostgreSQL timeline.
        timeline_id: TimeLineId,
        /// Counted in segments from the beginning of the WAL.
        segment_no: u64,
    },
    /// `TTTTTTTT.history`
    History {
        /// The PostgreSQL timeline whose history it is.
        timeline_id: TimeLineId,
    },
}

impl WalFileName {
    /// `None`: it is no name of either, for segments of that size.
    pub fn parse(name: &str, segment_bytes: u32) -> Option<Self> {
        let segment = parse_segment_file_name(name, segment_bytes);
        let segment = segment.map(|(timeline_id, segment_no)| WalFileName::Segment { timeline_id, segment_no });
        segment.or_else(|| parse_history_file_name(name).map(|timeline_id| WalFileName::History { timeline_id }))
    }
}

/// Where a file stands.
pub enum WholeFile {
    /// Here are its bytes.
    Whole {
        /// As many.
        length: u64,
        /// From the first to the last.
        bytes: Box<dyn Read + Send>,
    },
    /// It has been received, and nobody has ingested it yet since the server started.
    NotIngested,
    /// It is not here, or not to its end.
    Missing,
}

impl WalLayout {
    /// The file, if it is here and whole. Everything below `ingested_lsn` has been ingested. Errors: a segment's records are damaged; the disk.
    pub fn whole_file(&self, name: WalFileName, ingested_lsn: Lsn) -> Result<WholeFile, WalFileError> {
        match name {
            WalFileName::Segment { timeline_id, segment_no } => {
                self.whole_segment(timeline_id, segment_no, ingested_lsn)
            }
            WalFileName::History { timeline_id } => Ok(match self.history_file(timeline_id)? {
                Some((_, content)) => {
                    WholeFile::Whole { length: content.len() as u64, bytes: Box::new(Cursor::new(content)) }
                }
                None => WholeFile::Missing,
            }),
        }
    }

    fn whole_segment(
        &self,
        timeline_id: TimeLineId,
        segment_no: u64,
        ingested_lsn: Lsn,
    ) -> Result<WholeFile, WalFileError> {
        let files = self.segment_files()?;
        let is_it = |file: &&SegmentFile| (file.segment_no, file.timeline_id) == (segment_no, timeline_id);
        let Some(SegmentFile { start_lsn, path, .. }) = files.iter().find(is_it).cloned() else {
            return Ok(WholeFile::Missing);
        };
        let next_no = segment_no.saturating_add(1);
        if self.start_of(next_no) > ingested_lsn {
            let is_received = files.iter().any(|other| other.segment_no == next_no);
            return Ok(if is_received { WholeFile::NotIngested } else { WholeFile::Missing });
        }
        let mut file = match File::open(&path) {
            // It was removed just now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(WholeFile::Missing),
            file => file.map_err(io_error("open", &path))?,
        };
        let length = check_records(self, &path, start_lsn, &mut file)?;
        let expected = u64::from(self.segment_bytes);
        if length != expected {
            return Err(WalFileError::Length { path, length, expected });
        }
        file.rewind().map_err(io_error("read", &path))?;
        Ok(WholeFile::Whole { length, bytes: Box::new(file.take(length)) })
    }
}

/// Reads `bytes`, which lie from `start_lsn` on, to the end: every record in them is whole and right, but for the one that goes on behind them. How many there are.
pub(crate) fn check_records(
    layout: &WalLayout,
    path: &Path,
    start_lsn: Lsn,
    mut bytes: impl Read,
) -> Result<u64, WalFileError> {
    let mut decoder =
        WalStreamDecoder::new_at_page(layout.version, start_lsn, layout.segment_bytes).with_system_id(layout.system_id);
    let mut length = 0;
    loop {
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        let read = (&mut bytes).take(PIECE_BYTES as u64).read_to_end(&mut piece).map_err(io_error("read", path))?;
        if read == 0 {
            return Ok(length);
        }
        length += read as u64;
        decoder.feed(Bytes::from(piece));
        loop {
            match decoder.next_record() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(source) => {
                    let (offset, lsn) = (source.record_lsn.saturating_sub(start_lsn), source.record_lsn);
                    return Err(WalFileError::Corrupt { path: path.to_owned(), offset, lsn, source: Box::new(source) });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use std::io::Write;

    use crate::wal::WalLog;
    use crate::wal::tests::{SEGMENT_BYTES, layout, random_log};

    /// Behind the page's header, in that of the record.
    const IN_FIRST_RECORD: usize = 45;

    #[test]
    fn names_are_told_apart() {
        let name = |text: &str| WalFileName::parse(text, SEGMENT_BYTES);
        assert_eq!(name("00000002000000000000000A"), Some(WalFileName::Segment { timeline_id: 2, segment_no: 10 }));
        assert_eq!(name("00000002.history"), Some(WalFileName::History { timeline_id: 2 }));
        for bad in [
            "",
            "../00000002.history",
            "00000002000000000000000A.partial",
            "00000000.history",
            "00000002000000000000ffff",
        ] {
            assert_eq!(name(bad), None, "{bad}");
        }
    }

    #[test]
    fn only_what_was_received_to_its_end_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let layout = layout(&directory);
        let segment_bytes = layout.segment_bytes as usize;
        // Real records, up to the middle of the third segment.
        let (start_lsn, written) = random_log(7, 4000);
        let written = &written[..written.len().min(segment_bytes * 5 / 2)];
        assert!(written.len() > segment_bytes * 2, "{}", written.len());
        let mut log = WalLog::create(layout.clone(), 1, start_lsn).unwrap();
        log.append(start_lsn, &[Bytes::copy_from_slice(written)]).unwrap();
        log.flush().unwrap();
        let first_no = start_lsn.segment_no(segment_bytes as u64);
        let end_lsn = log.flushed_lsn();
        let find = |timeline_id, segment_no, ingested_lsn| {
            layout.whole_file(WalFileName::Segment { timeline_id, segment_no }, ingested_lsn)
        };
        let all = |file: WholeFile| match file {
            WholeFile::Whole { length, mut bytes } => {
                let mut all = Vec::new();
                bytes.read_to_end(&mut all).unwrap();
                assert_eq!(all.len() as u64, length);
                Some(all)
            }
            WholeFile::NotIngested | WholeFile::Missing => None,
        };
        assert!(all(find(1, first_no, end_lsn).unwrap()).unwrap() == written[..segment_bytes]);
        assert!(all(find(1, first_no + 1, end_lsn).unwrap()).unwrap() == written[segment_bytes..segment_bytes * 2]);
        let second_lsn = layout.segment_start_of(first_no + 1);
        assert!(matches!(find(1, first_no, Lsn::new(second_lsn.as_u64() - 1)), Ok(WholeFile::NotIngested)));
        assert!(matches!(find(1, first_no + 2, end_lsn), Ok(WholeFile::Missing)), "half of it");
        for (timeline_id, segment_no) in [(1, first_no - 1), (2, first_no), (1, u64::MAX)] {
            assert!(matches!(find(timeline_id, segment_no, end_lsn), Ok(WholeFile::Missing)), "never there");
        }

        let history = || layout.whole_file(WalFileName::History { timeline_id: 2 }, end_lsn).unwrap();
        assert!(matches!(history(), WholeFile::Missing));
        let content = b"1\t0/180000\tno recovery target specified\n";
        layout.write_history(2, content).unwrap();
        assert_eq!(all(history()).as_deref(), Some(&content[..]));

        // A flipped bit, and a file that ends in zeroes, as one that was left in the middle does.
        let first = &written[..segment_bytes];
        let mut flipped = first.to_vec();
        flipped[IN_FIRST_RECORD] ^= 1;
        let mut cut = first.to_vec();
        cut[IN_FIRST_RECORD..].fill(0);
        for damaged in [flipped, cut] {
            layout.replace_segment(first_no, 1, |file| file.write_all(&damaged)).unwrap();
            assert!(matches!(find(1, first_no, end_lsn), Err(WalFileError::Corrupt { .. })));
        }
        // A newer PostgreSQL timeline has the segment too: the older one was left in the middle of it.
        layout.replace_segment(first_no, 2, |file| file.write_all(&written[..segment_bytes])).unwrap();
        assert!(matches!(find(1, first_no, end_lsn), Ok(WholeFile::Missing)));
        assert!(all(find(2, first_no, end_lsn).unwrap()).is_some());
    }
}
