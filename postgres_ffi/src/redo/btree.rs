//! B-tree.
//!
//! PG 14-18: src/backend/access/nbtree/nbtxlog.c (btree_redo), src/include/access/nbtxlog.h.

use super::{Change, RedoError, Stamp};
use crate::page::Page;

pub(super) fn redo(change: &Change<'_>, _page: &mut Page) -> Result<Stamp, RedoError> {
    Err(change.unknown_operation())
}
