//! Where a stretch of the log ends: behind its last whole record.
//!
//! - Pure: takes bytes, for example the segments on disk after a crash, and says up to where they can be believed.
//! - **Never** tells an end beyond a record that is not whole, or short of one that is (tests cut a log at every byte).

use bytes::Bytes;

use super::stream::{WalError, WalStreamDecoder};
use crate::Lsn;

/// The end of a stretch of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalEnd {
    /// Where the last whole record ends and the next may be written. The decoder's start when there is no whole record.
    pub end_lsn: Lsn,
    /// Where that record starts, `None` when there is none; the decoder's record before if it was told one.
    pub last_record_lsn: Option<Lsn>,
    /// How many records there are.
    pub record_count: u64,
    /// What stands behind the last record. `None`: the bytes ran out first.
    pub stopped_by: Option<WalError>,
}

/// Reads `pieces`, which follow each other from where `decoder` starts, to the last whole record.
///
/// Whether [`WalEnd::stopped_by`] is an end or a refusal is for the caller to see from its kind.
pub fn find_end(mut decoder: WalStreamDecoder, pieces: impl IntoIterator<Item = Bytes>) -> WalEnd {
    let mut record_count = 0;
    let mut stopped_by = None;
    'reading: for piece in pieces {
        decoder.feed(piece);
        loop {
            match decoder.next_record() {
                Ok(Some(_)) => record_count += 1,
                Ok(None) => break,
                Err(error) => {
                    stopped_by = Some(error);
                    break 'reading;
                }
            }
        }
    }
    WalEnd {
        end_lsn: decoder.last_record_end(),
        last_record_lsn: decoder.last_record_start(),
        record_count,
        stopped_by,
    }
}
