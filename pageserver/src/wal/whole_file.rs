//! A file of a directory of WAL for whoever recovers from it (`restore_command`): whole, or not at all.
//!
//! - A segment is whole when its end has been received. One that was left in the middle, for a newer PostgreSQL timeline, never is: the newer one's file has its bytes.
//! - The file is held open: the receiver may remove it while it is being sent.

use std::fs::File;
use std::io::{self, Cursor, Read};

use postgres_ffi::{Lsn, TimeLineId};

use super::error::{WalFileError, io_error};
use super::layout::{Segment, WalLayout};
use super::names::{parse_history_file_name, parse_segment_file_name};
use super::recover::newest_of_each_number;

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

impl WalLayout {
    /// The bytes of the file, if it is here and whole. Requires: everything below `end_lsn` has been received.
    pub fn whole_file(&self, name: WalFileName, end_lsn: Lsn) -> Result<Option<Box<dyn Read + Send>>, WalFileError> {
        match name {
            WalFileName::Segment { timeline_id, segment_no } => {
                self.whole_segment(Segment { segment_no, timeline_id }, end_lsn)
            }
            WalFileName::History { timeline_id } => {
                let content = self.history_file(timeline_id)?.map(|(_, content)| Cursor::new(content));
                Ok(content.map(|content| Box::new(content) as Box<dyn Read + Send>))
            }
        }
    }

    fn whole_segment(&self, segment: Segment, end_lsn: Lsn) -> Result<Option<Box<dyn Read + Send>>, WalFileError> {
        let is_received = self.start_of(segment.segment_no.saturating_add(1)) <= end_lsn;
        if !is_received || !newest_of_each_number(self.segments()?).contains(&segment) {
            return Ok(None);
        }
        let path = self.segment_path(segment);
        match File::open(&path) {
            Ok(file) => Ok(Some(Box::new(file.take(self.segment_bytes.into())))),
            // It was removed just now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("open", &path)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use postgres_ffi::PgVersion;

    use super::*;
    use crate::wal::WalLog;

    const SEGMENT_BYTES: u32 = 1 << 20;

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
        let layout = WalLayout {
            directory: directory.path().join("wal"),
            version: PgVersion::V15,
            segment_bytes: SEGMENT_BYTES,
            system_id: 1,
        };
        let segment_bytes = u64::from(SEGMENT_BYTES);
        let mut log = WalLog::create(layout.clone(), 1, Lsn::new(segment_bytes)).unwrap();
        let written: Vec<u8> = (0..segment_bytes * 3 / 2).map(|at| (at % 251) as u8).collect();
        log.append(Lsn::new(segment_bytes), &[Bytes::from(written.clone())]).unwrap();
        log.flush().unwrap();
        let end_lsn = log.flushed_lsn();
        let bytes_of = |timeline_id, segment_no, end_lsn| {
            let file = layout.whole_file(WalFileName::Segment { timeline_id, segment_no }, end_lsn).unwrap();
            file.map(|mut file| {
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes).unwrap();
                bytes
            })
        };
        assert_eq!(bytes_of(1, 1, end_lsn).as_deref(), Some(&written[..SEGMENT_BYTES as usize]));
        assert_eq!(bytes_of(1, 1, Lsn::new(segment_bytes * 2 - 1)), None, "its end has not come");
        assert_eq!(bytes_of(1, 2, end_lsn), None, "half of it");
        assert_eq!((bytes_of(1, 0, end_lsn), bytes_of(2, 1, end_lsn)), (None, None), "never there");
        assert_eq!(bytes_of(1, u64::MAX, end_lsn), None);
        assert!(layout.whole_file(WalFileName::History { timeline_id: 2 }, end_lsn).unwrap().is_none());
        let history = b"1\t0/180000\tno recovery target specified\n";
        layout.write_history(2, history).unwrap();
        let mut sent = Vec::new();
        let file = layout.whole_file(WalFileName::History { timeline_id: 2 }, end_lsn).unwrap();
        file.unwrap().read_to_end(&mut sent).unwrap();
        assert_eq!(sent, history);
        // A newer PostgreSQL timeline has the segment too: the older one was left in the middle of it.
        layout.replace_segment(1, 2, |_| Ok(())).unwrap();
        assert_eq!(bytes_of(1, 1, end_lsn), None);
        assert_eq!(bytes_of(2, 1, end_lsn).map(|bytes| bytes.len()), Some(SEGMENT_BYTES as usize));
    }
}
