//! Heap, second set: pruning and freezing, visibility, many tuples at once.
//!
//! PG 14-18: src/backend/access/heap/heapam.c (heap2_redo; from 18: heapam_xlog.c), src/include/access/heapam_xlog.h.

use super::{Change, RedoError, Stamp};
use crate::page::Page;

pub(super) fn redo(change: &Change<'_>, _page: &mut Page) -> Result<Stamp, RedoError> {
    Err(change.unknown_operation())
}
