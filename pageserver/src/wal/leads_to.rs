//! From where on the WAL that is there leads to a position without a gap.

use postgres_ffi::Lsn;
use postgres_ffi::wal::{DecodedRecord, WalStreamDecoder};

use super::error::WalFileError;
use super::layout::WalLayout;
use super::recover::{Pieces, newest_of_each_number};

impl WalLayout {
    /// The lowest end of a record, at or above `floor_lsn` and behind every record that `stays_behind` is true of, from which whole records with right checksums lead to the
    /// record that ends at `lsn`. `None`: none does.
    ///
    /// What cannot be read or does not follow costs what lies before it, no more. Errors: the directory cannot be read.
    pub fn oldest_leading_to(
        &self,
        lsn: Lsn,
        floor_lsn: Lsn,
        stays_behind: &dyn Fn(&DecodedRecord) -> bool,
    ) -> Result<Option<Lsn>, WalFileError> {
        if !self.directory.exists() {
            return Ok(None);
        }
        let mut decoder: Option<WalStreamDecoder> = None;
        let mut last_segment_no = None;
        let mut oldest = None;
        for segment in newest_of_each_number(self.segments()?) {
            let follows = last_segment_no.is_some_and(|last| last + 1 == segment.segment_no);
            last_segment_no = Some(segment.segment_no);
            if !follows || decoder.is_none() {
                oldest = None;
                let start_lsn = self.start_of(segment.segment_no);
                let new = WalStreamDecoder::new_at_page(self.version, start_lsn, self.segment_bytes);
                decoder = Some(new.with_system_id(self.system_id));
            }
            for piece in Pieces::open(self, segment) {
                let (Some(reading), Ok(piece)) = (&mut decoder, piece) else {
                    decoder = None;
                    break;
                };
                reading.feed(piece);
                let is_good = loop {
                    match reading.next_record() {
                        Ok(Some((start_lsn, end_lsn, raw))) if floor_lsn <= end_lsn && end_lsn <= lsn => {
                            match DecodedRecord::decode(self.version, start_lsn, end_lsn, raw) {
                                Ok(record) if stays_behind(&record) => oldest = None,
                                Ok(_) => {}
                                Err(_) => break false,
                            }
                            if end_lsn == lsn {
                                return Ok(oldest);
                            }
                            oldest = oldest.or(Some(end_lsn));
                        }
                        Ok(Some((_, end_lsn, _))) if end_lsn < floor_lsn => {}
                        Ok(Some(_)) => return Ok(None),
                        Ok(None) => break true,
                        Err(_) => break false,
                    }
                };
                if !is_good {
                    decoder = None;
                    break;
                }
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    //! Goal: where the files lead from is what is told. Method: a random log, whole, without its first file, with a byte changed, and with a file missing.

    use std::fs;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::wal::tests::{layout, written_log};

    #[test]
    fn damage_and_gaps_cost_what_lies_before_them() {
        let directory = tempfile::tempdir().unwrap();
        let layout = layout(&directory);
        let (_, _, _, records) = written_log(&layout, 12, 400);
        let last_lsn = records.last().unwrap().1;
        let middle_lsn = records[records.len() / 2].1;
        let from = |lsn, floor_lsn| layout.oldest_leading_to(lsn, floor_lsn, &|_| false).unwrap();
        assert_eq!(from(last_lsn, Lsn::ZERO), Some(records[0].1));
        assert_eq!(from(last_lsn, middle_lsn), Some(middle_lsn));
        assert_eq!(from(middle_lsn, Lsn::ZERO), Some(records[0].1));
        assert_eq!(from(records[0].1, Lsn::ZERO), None, "nothing leads to the first one");
        assert_eq!(from(last_lsn, last_lsn), None);
        let behind = |lsn| layout.oldest_leading_to(last_lsn, Lsn::ZERO, &|record| record.end_lsn == lsn).unwrap();
        assert_eq!(behind(middle_lsn), Some(middle_lsn));
        assert_eq!(behind(last_lsn), None);
        assert_eq!(from(Lsn::new(last_lsn.as_u64() - 1), Lsn::ZERO), None, "no record ends there");
        assert_eq!(from(Lsn::new(last_lsn.as_u64() + (1 << 40)), Lsn::ZERO), None);

        let files = layout.segment_files().unwrap();
        assert!(files.len() >= 4, "{files:?}");
        // The first record that begins in a file.
        let first_in =
            |segment_no: usize| records.iter().find(|(start, _)| files[segment_no].start_lsn <= *start).unwrap().1;
        let file = fs::File::options().read(true).write(true).open(&files[1].path).unwrap();
        let (start, end) = *records
            .iter()
            .find(|(start, end)| files[1].start_lsn.as_u64() + 9000 < start.as_u64() && *end < files[2].start_lsn)
            .unwrap();
        let offset = (start.as_u64() + end.as_u64()) / 2 - files[1].start_lsn.as_u64();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
        assert_eq!(from(last_lsn, Lsn::ZERO), Some(first_in(2)), "behind the damage");
        assert_eq!(from(end, Lsn::ZERO), None);
        file.write_all_at(&byte, offset).unwrap();
        assert_eq!(from(last_lsn, Lsn::ZERO), Some(records[0].1));
        fs::remove_file(&files[1].path).unwrap();
        assert_eq!(from(last_lsn, Lsn::ZERO), Some(first_in(2)), "behind the gap");
    }
}
