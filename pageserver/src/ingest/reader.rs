//! What ingest needs of the timeline that it writes to.

use std::ops::ControlFlow;

use bytes::Bytes;
use keyenc::Key;
use postgres_ffi::Lsn;

use super::StateError;
use crate::store::Batch;

/// Reads of a timeline at an LSN, through its ancestors, and the way to make a batch readable early.
///
/// All reads: the newest version at or below `request_lsn`; deleted counts as not there; versions above `request_lsn` (a record that was
/// ingested in part before a crash) are not seen. Nobody waits for WAL in here: `request_lsn` is the end of the last whole record.
pub trait TimelineReader {
    /// The value of an object that is stored whole (not a page), `None` if there is none.
    fn object(&self, key: &Key, request_lsn: Lsn) -> Result<Option<Bytes>, StateError>;

    /// Each object in `first..=last` that exists, in key order, until `each` breaks.
    fn scan(
        &self,
        first: &Key,
        last: &Key,
        request_lsn: Lsn,
        each: &mut dyn FnMut(Key, Bytes) -> ControlFlow<()>,
    ) -> Result<(), StateError>;

    /// The pages, materialised, 8,192 bytes each, in the order of `keys`.
    fn pages(&self, keys: &[Key], request_lsn: Lsn) -> Result<Vec<Bytes>, StateError>;

    /// Makes the batch readable and clears it.
    ///
    /// `last_record_lsn` is the end of the last *whole* record. The batch may hold versions above it, of the record that is being ingested:
    /// they must not move any watermark, so that this record is ingested again after a crash. All versions of one key at one LSN are in one batch.
    fn commit(&self, batch: &mut Batch, last_record_lsn: Lsn) -> Result<(), StateError>;
}
