//! Hash indexes.
//!
//! PG 14-18: src/backend/access/hash/hash_xlog.c (hash_redo), src/include/access/hash_xlog.h.

use super::{Change, RedoError, Stamp};
use crate::page::Page;

pub(super) fn redo(change: &Change<'_>, _page: &mut Page) -> Result<Stamp, RedoError> {
    Err(change.unknown_operation())
}
