//! Where the record ends that a position lies in.
//!
//! - Reads segment files from their beginning: the first record that starts in a segment is found without knowing what came before.
//! - Only tells what the files prove. Behind the position nothing but the record that holds it is read.

use postgres_ffi::Lsn;
use postgres_ffi::wal::WalStreamDecoder;

use super::error::WalFileError;
use super::layout::{Segment, WalLayout};
use super::recover::{Pieces, newest_of_each_number};

/// What lies at a position of the WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordAt {
    /// A record ends exactly there.
    End {
        /// Its start.
        record_lsn: Lsn,
    },
    /// It is inside of a record, which ends here.
    Inside {
        /// Its start.
        record_lsn: Lsn,
        /// Its end.
        end_lsn: Lsn,
    },
    /// It is behind a record's end and before the next one's first byte: in a page header or in front of it.
    Between {
        /// The start of the record before.
        record_lsn: Lsn,
        /// Its end.
        end_lsn: Lsn,
    },
}

impl WalLayout {
    /// What lies at `lsn`. `None`: the files do not tell. Requires: `lsn` is not above the end of the last whole record.
    /// Errors: a file cannot be read.
    pub fn record_at(&self, lsn: Lsn) -> Result<Option<RecordAt>, WalFileError> {
        let mut segments = match self.directory.exists() {
            true => newest_of_each_number(self.segments()?),
            false => Vec::new(),
        };
        // A record that ends with a segment lies in that one.
        let last_segment_no = self.segment_no(Lsn::new(lsn.as_u64().saturating_sub(1)));
        // The record that holds the position may reach into the next one, and further.
        let Some(mut first) = segments.iter().position(|segment| segment.segment_no == last_segment_no) else {
            return Ok(None);
        };
        drop_behind_a_hole(&mut segments, first);
        loop {
            if let Some(found) = self.find(&segments[first..], lsn)? {
                return Ok(Some(found));
            }
            // No record starts in front of the position here: it is in one that began earlier.
            match first.checked_sub(1) {
                Some(before) if segments[before].segment_no + 1 == segments[first].segment_no => first = before,
                _ => return Ok(None),
            }
        }
    }

    fn find(&self, segments: &[Segment], lsn: Lsn) -> Result<Option<RecordAt>, WalFileError> {
        let start_lsn = self.start_of(segments[0].segment_no);
        let decoder = WalStreamDecoder::new_at_page(self.version, start_lsn, self.segment_bytes);
        let mut decoder = decoder.with_system_id(self.system_id);
        let mut before = None;
        for piece in segments.iter().flat_map(|segment| Pieces::open(self, *segment)) {
            decoder.feed(piece?);
            loop {
                match decoder.next_record() {
                    Ok(Some((record_lsn, end_lsn, _))) if end_lsn < lsn => before = Some((record_lsn, end_lsn)),
                    Ok(Some((record_lsn, end_lsn, _))) if end_lsn == lsn => {
                        return Ok(Some(RecordAt::End { record_lsn }));
                    }
                    Ok(Some((record_lsn, end_lsn, _))) if record_lsn < lsn => {
                        return Ok(Some(RecordAt::Inside { record_lsn, end_lsn }));
                    }
                    Ok(Some(_)) => {
                        return Ok(before.map(|(record_lsn, end_lsn)| RecordAt::Between { record_lsn, end_lsn }));
                    }
                    Ok(None) => break,
                    // Damaged, or the end: whoever reads WAL for its records tells that.
                    Err(_) => return Ok(None),
                }
            }
        }
        Ok(None)
    }
}

fn drop_behind_a_hole(segments: &mut Vec<Segment>, first: usize) {
    let follows = |pair: &[Segment]| pair[0].segment_no + 1 == pair[1].segment_no;
    let whole = segments[first..].windows(2).take_while(|pair| follows(pair)).count();
    segments.truncate(first + whole + 1);
}

#[cfg(test)]
mod tests {
    //! Goal: every position of a log is told as the decoder sees it from the beginning. Method: random logs, positions around every record's
    //! ends and at every page, with and without the first files.

    use super::*;
    use crate::wal::tests::{SEGMENT_BYTES, layout, written_log};

    #[test]
    fn every_position_is_told_as_the_decoder_sees_it() {
        let directory = tempfile::tempdir().unwrap();
        let layout = layout(&directory);
        let (mut log, start_lsn, wal, records) = written_log(&layout, 11, 300);
        let mut kinds = [0; 3];
        let mut check = |lsn: Lsn| {
            let index = records.partition_point(|(_, end_lsn)| *end_lsn < lsn);
            let Some((record_lsn, end_lsn)) = records.get(index).copied() else { return };
            let expect = match index.checked_sub(1) {
                _ if end_lsn == lsn => Some(RecordAt::End { record_lsn }),
                _ if record_lsn < lsn => Some(RecordAt::Inside { record_lsn, end_lsn }),
                Some(before) => {
                    let (record_lsn, end_lsn) = records[before];
                    Some(RecordAt::Between { record_lsn, end_lsn })
                }
                None => None,
            };
            assert_eq!(layout.record_at(lsn).unwrap(), expect, "{lsn}");
            match expect {
                Some(RecordAt::End { .. }) => kinds[0] += 1,
                Some(RecordAt::Inside { .. }) => kinds[1] += 1,
                Some(RecordAt::Between { .. }) => kinds[2] += 1,
                None => {}
            }
        };
        for (record_lsn, end_lsn) in records.iter().step_by(7) {
            for lsn in [record_lsn.as_u64(), record_lsn.as_u64() + 5, end_lsn.as_u64() - 3, end_lsn.as_u64()] {
                check(Lsn::new(lsn));
            }
        }
        for page in (0..wal.len() as u64 / 8192).step_by(11) {
            for offset in [0, 8, 24, 40] {
                check(Lsn::new(start_lsn.as_u64() + page * 8192 + offset));
            }
        }
        // Behind a segment switch a page header lies between two records.
        for pair in records.windows(2).filter(|pair| pair[0].1 != pair[1].0) {
            for lsn in [pair[0].1.as_u64() + 1, pair[1].0.as_u64()] {
                check(Lsn::new(lsn));
            }
        }
        assert!(kinds[0] > 50 && kinds[1] > 50 && kinds[2] > 3, "{kinds:?}");

        // Without the first file nothing is told of it, and of what goes on from it.
        let (last_record_lsn, last_end_lsn) = *records.last().unwrap();
        let second_lsn = Lsn::new(start_lsn.as_u64() + u64::from(SEGMENT_BYTES));
        assert!(log.remove_below(second_lsn).unwrap() > 0);
        assert_eq!(layout.record_at(records[3].1).unwrap(), None);
        assert_eq!(layout.record_at(last_end_lsn).unwrap(), Some(RecordAt::End { record_lsn: last_record_lsn }));
        let continued = records.iter().find(|(start_lsn, end_lsn)| *start_lsn < second_lsn && second_lsn < *end_lsn);
        if let Some((_, end_lsn)) = continued {
            assert_eq!(layout.record_at(Lsn::new(end_lsn.as_u64() - 8)).unwrap(), None);
        }
        assert_eq!(layout.record_at(Lsn::new(1 << 40)).unwrap(), None);
    }
}
