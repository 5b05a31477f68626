//! GIN.
//!
//! PG 14-18: src/backend/access/gin/ginxlog.c (gin_redo), src/include/access/ginxlog.h.

use super::{Change, RedoError, Stamp};
use crate::page::Page;

pub(super) fn redo(change: &Change<'_>, _page: &mut Page) -> Result<Stamp, RedoError> {
    Err(change.unknown_operation())
}
