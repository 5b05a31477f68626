//! Generic records of extensions: pieces of bytes at their places.
//!
//! PG 14-18: src/backend/access/transam/generic_xlog.c (generic_redo, applyPageRedo).

use super::{Change, RedoError, Stamp, page_error};
use crate::page::Page;
use crate::page::layout::Header;
use crate::records::fields::Fields;

pub(super) fn redo(change: &Change<'_>, page: &mut Page) -> Result<Stamp, RedoError> {
    if change.operation() != 0 {
        return Err(change.unknown_operation());
    }
    let mut fields = Fields::new("generic delta", change.block_data());
    while !fields.rest().is_empty() {
        let (offset, len) = (usize::from(fields.u16()?), usize::from(fields.u16()?));
        let piece = fields.take(len)?;
        let place =
            page.get_mut(offset..offset + len).ok_or_else(|| page_error("piece reaches beyond the page", offset))?;
        place.copy_from_slice(piece);
    }
    // Nothing is logged of the space between line pointers and tuples; who wrote the record zeroed it.
    let header = Header::read(page);
    let hole = page.get_mut(header.lower..header.upper);
    hole.ok_or_else(|| page_error("unused space of the page makes no sense", header.lower))?.fill(0);
    Ok(Stamp::Record)
}
