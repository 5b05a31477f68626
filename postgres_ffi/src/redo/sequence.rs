//! Sequences: one page with one tuple, always made anew.
//!
//! PG 14-17: src/backend/commands/sequence.c (seq_redo), PG 18: the same; src/include/commands/sequence.h.

use super::{Change, RedoError, Stamp};
use crate::page::edit::{self, Placement};
use crate::page::{BLCKSZ, Page};
use crate::records::fields::Fields;

const LOG: u8 = 0x00;
/// xl_seq_rec: a RelFileNode / RelFileLocator. The tuple follows.
const HEAD_LEN: usize = 12;
/// PG: sequence.c, SEQ_MAGIC, the whole special area padded to 8 bytes.
const MAGIC: u32 = 0x1717;
const SPECIAL_LEN: usize = 8;

pub(super) fn redo(change: &Change<'_>, page: &mut Page) -> Result<Stamp, RedoError> {
    if (change.operation(), change.block_id()) != (LOG, 0) {
        return Err(change.unknown_operation());
    }
    let mut fields = Fields::new("xl_seq_rec", change.main_data());
    fields.take(HEAD_LEN)?;
    edit::init_page(page, SPECIAL_LEN);
    page[BLCKSZ - SPECIAL_LEN..][..4].copy_from_slice(&MAGIC.to_le_bytes());
    edit::add_item(page, fields.rest(), 1, Placement::Insert)?;
    Ok(Stamp::Record)
}
