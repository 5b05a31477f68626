//! Full-page images, and the records that only tell of them.
//!
//! PG 14-18: src/backend/access/transam/xlog.c, xlog_redo (XLOG_FPI, XLOG_FPI_FOR_HINT).

use super::{Change, RedoError, Stamp};
use crate::records::xlog::operation;

/// Images have been put in place before this is asked; a record for a hint bit may come without one, and then changes nothing.
pub(super) fn redo(change: &Change<'_>) -> Result<Stamp, RedoError> {
    match change.operation() {
        operation::FPI_FOR_HINT => Ok(Stamp::Keep),
        _ => Err(change.unknown_operation()),
    }
}
