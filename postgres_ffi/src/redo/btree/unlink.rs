//! Pages that are deleted, in two steps: the parent lets go of a leaf (or of the topmost page above it that has no other child), then, page by page,
//! the siblings do.
//!
//! PG 14-18: src/backend/access/nbtree/nbtxlog.c (btree_xlog_mark_page_halfdead, btree_xlog_unlink_page), src/include/access/nbtree.h
//! (BTPageSetDeleted, BTreeTupleSetTopParent).

use byteorder::{ByteOrder, LittleEndian};

use super::{BTP_DELETED, BTP_HALF_DEAD, BTP_HAS_FULLXID, BTP_LEAF, NO_SIBLING, Special, init_page, push, tuple_range};
use crate::BlockNumber;
use crate::inspect::index::ALT_TID;
use crate::page::edit;
use crate::page::{PAGE_HEADER_LEN, PD_LOWER, Page};
use crate::records::RecordError;
use crate::records::fields::Fields;
use crate::redo::index_tuple::{HEADER_LEN, INFO_AT};
use crate::redo::{Change, RedoError, page_error};

/// A child's block number in a tuple, or what stands in its place: high half u16, low half u16. PG: block.h, BlockIdData.
const BLOCK_ID_LEN: usize = 4;
/// sizeof(BTDeletedPageData): the transaction id after which the page may be used again.
const DELETED_LEN: usize = 8;

/// The leaf: only its links stay, and which page above it goes first.
pub(super) fn leaf_half_dead(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let mut fields = Fields::new("xl_btree_mark_page_halfdead", change.main_data());
    let _item_of_parent = fields.u32()?; // u16 and padding.
    let _leaf = fields.u32()?;
    let (prev, next, top_parent) = (fields.u32()?, fields.u32()?, fields.u32()?);
    make_half_dead(page, prev, next, top_parent)
}

/// The page above all that go: the downlink to them becomes one to the next child, whose own item goes. So the key stays that parted what goes
/// from what was before it.
pub(super) fn parent(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let offset_no = Fields::new("xl_btree_mark_page_halfdead", change.main_data()).u16()?;
    let next_no = offset_no.saturating_add(1);
    let (kept, deleted) = (tuple_range(page, offset_no)?, tuple_range(page, next_no)?);
    page.copy_within(deleted.start..deleted.start + BLOCK_ID_LEN, kept.start);
    Ok(edit::delete_item(page, next_no)?)
}

/// xl_btree_unlink_page.
struct Unlink {
    left: BlockNumber,
    right: BlockNumber,
    level: u32,
    safe_xid: u64,
    leaf_left: BlockNumber,
    leaf_right: BlockNumber,
    /// Which page above the leaf goes next.
    leaf_top_parent: BlockNumber,
}

impl Unlink {
    fn read(change: &Change<'_>) -> Result<Self, RecordError> {
        let mut fields = Fields::new("xl_btree_unlink_page", change.main_data());
        let (left, right, level) = (fields.u32()?, fields.u32()?, fields.u32()?);
        fields.align(8);
        Ok(Unlink {
            left,
            right,
            level,
            safe_xid: fields.u64()?,
            leaf_left: fields.u32()?,
            leaf_right: fields.u32()?,
            leaf_top_parent: fields.u32()?,
        })
    }
}

/// The page that goes: only its links stay, and when it may be used again.
pub(super) fn target(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let unlink = Unlink::read(change)?;
    let leaf_flag = if unlink.level == 0 { BTP_LEAF } else { 0 };
    let flags = BTP_DELETED | BTP_HAS_FULLXID | leaf_flag;
    init_page(page, Special { prev: unlink.left, next: unlink.right, level: unlink.level, flags, cycle_id: 0 });
    LittleEndian::write_u64(&mut page[PAGE_HEADER_LEN..], unlink.safe_xid);
    LittleEndian::write_u16(&mut page[PD_LOWER..], (PAGE_HEADER_LEN + DELETED_LEN) as u16);
    Ok(())
}

pub(super) fn left_sibling(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let unlink = Unlink::read(change)?;
    if unlink.left == NO_SIBLING {
        return Err(change.unknown_operation());
    }
    let mut special = Special::read(page)?;
    special.next = unlink.right;
    special.write(page);
    Ok(())
}

pub(super) fn right_sibling(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let unlink = Unlink::read(change)?;
    let mut special = Special::read(page)?;
    special.prev = unlink.left;
    special.write(page);
    Ok(())
}

/// The leaf under an inner page that goes: made anew with what goes next.
pub(super) fn leaf_below(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let unlink = Unlink::read(change)?;
    if unlink.level == 0 {
        return Err(page_error("a leaf is not below itself, block", change.block.block_no));
    }
    make_half_dead(page, unlink.leaf_left, unlink.leaf_right, unlink.leaf_top_parent)
}

/// A leaf with nothing but a high key without columns, whose downlink is `top_parent`.
fn make_half_dead(
    page: &mut Page,
    prev: BlockNumber,
    next: BlockNumber,
    top_parent: BlockNumber,
) -> Result<(), RedoError> {
    init_page(page, Special { prev, next, flags: BTP_HALF_DEAD | BTP_LEAF, ..Special::default() });
    let mut high_key = [0; HEADER_LEN];
    LittleEndian::write_u16(&mut high_key[0..], (top_parent >> 16) as u16);
    LittleEndian::write_u16(&mut high_key[2..], (top_parent & 0xFFFF) as u16);
    LittleEndian::write_u16(&mut high_key[INFO_AT..], HEADER_LEN as u16 | ALT_TID);
    push(page, &high_key)
}
