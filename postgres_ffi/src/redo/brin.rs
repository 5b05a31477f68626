//! BRIN.
//!
//! PG 14-18: src/backend/access/brin/brin_xlog.c (brin_redo), src/include/access/brin_xlog.h.

use super::{Change, RedoError, Stamp};
use crate::page::Page;

pub(super) fn redo(change: &Change<'_>, _page: &mut Page) -> Result<Stamp, RedoError> {
    Err(change.unknown_operation())
}
