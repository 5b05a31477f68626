//! Full-page images, and the records that only tell of them.
//!
//! PG 14-18: src/backend/access/transam/xlog.c, xlog_redo (XLOG_FPI, XLOG_FPI_FOR_HINT).

use super::{Change, RedoError, Stamp};

/// PG 14-18: src/include/catalog/pg_control.h.
const FPI_FOR_HINT: u8 = 0xA0;

/// Images have been put in place before this is asked; a record for a hint bit may come without one, and then changes nothing.
pub(super) fn redo(change: &Change<'_>) -> Result<Stamp, RedoError> {
    match change.operation() {
        FPI_FOR_HINT => Ok(Stamp::Keep),
        _ => Err(change.unknown_operation()),
    }
}
