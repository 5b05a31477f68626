//! Bodies of SP-GiST records. Tuples in them are not aligned.
//!
//! Layouts (little endian, padded as C pads): spgxlogState is xid u32@0, is-build u8@4, 8 bytes in all; the others stand beside their parsers.
//!
//! PG 14-18: src/include/access/spgxlog.h; only spgxlogVacuumRedirect changed in these versions.

use byteorder::{ByteOrder, LittleEndian};

use super::page::{self, NULLS};
use crate::records::RecordError;
use crate::records::fields::{Fields, OffsetNos};
use crate::{PgVersion, TransactionId};

/// What redirects of this record are made with.
#[derive(Clone, Copy)]
pub(super) struct RedirectState {
    pub xid: TransactionId,
    /// While an index is being built nobody is in it: placeholders do instead of redirects.
    pub is_build: bool,
}

/// Node `node_no` of inner tuple `offset_no`, which points to what the record is about.
#[derive(Clone, Copy)]
pub(super) struct ParentNode {
    pub offset_no: u16,
    pub node_no: u16,
}

/// new page u8@0, nulls u8@1, leaf's number u16@2, its head's number u16@4, parent u16@6, node u16@8. The leaf tuple follows.
pub(super) struct AddLeaf<'a> {
    pub new_page: bool,
    pub nulls_flag: u16,
    pub offset_no: u16,
    /// 0 when the leaf starts a chain.
    pub head_offset_no: u16,
    /// Number 0 when there is none.
    pub parent: ParentNode,
    pub leaf: &'a [u8],
}

impl<'a> AddLeaf<'a> {
    pub fn parse(main_data: &'a [u8]) -> Result<Self, RecordError> {
        let mut fields = Fields::new("spgxlogAddLeaf", main_data);
        Ok(AddLeaf {
            new_page: fields.flag()?,
            nulls_flag: nulls_flag(&mut fields)?,
            offset_no: fields.u16()?,
            head_offset_no: fields.u16()?,
            parent: parent_node(&mut fields)?,
            leaf: leaf_tuple(&mut fields)?,
        })
    }
}

/// moves u16@0, new page u8@2, replaces dead u8@3, nulls u8@4, parent u16@6, node u16@8, state@12, at 20: numbers deleted (as many as moves),
/// numbers inserted and as many leaf tuples (one more, or just one when a dead tuple is replaced).
pub(super) struct MoveLeafs<'a> {
    pub new_page: bool,
    pub nulls_flag: u16,
    pub parent: ParentNode,
    pub state: RedirectState,
    pub deleted: OffsetNos<'a>,
    pub inserted: OffsetNos<'a>,
    /// At the first leaf tuple.
    pub leafs: Fields<'a>,
}

impl<'a> MoveLeafs<'a> {
    pub fn parse(main_data: &'a [u8]) -> Result<Self, RecordError> {
        let mut fields = Fields::new("spgxlogMoveLeafs", main_data);
        let move_count = usize::from(fields.u16()?);
        let (new_page, replaces_dead) = (fields.flag()?, fields.flag()?);
        let nulls_flag = nulls_flag(&mut fields)?;
        fields.align(2);
        let parent = parent_node(&mut fields)?;
        let state = redirect_state(&mut fields)?;
        let deleted = fields.offset_nos(move_count)?;
        let inserted = fields.offset_nos(if replaces_dead { 1 } else { move_count + 1 })?;
        Ok(MoveLeafs { new_page, nulls_flag, parent, state, deleted, inserted, leafs: fields })
    }

    /// The head of the chain at its new place: the tuple inserted last.
    pub fn head_offset_no(&self) -> Result<u16, RecordError> {
        self.inserted.iter().next_back().ok_or_else(|| self.leafs.impossible("inserted", 0))
    }
}

/// old number u16@0, new number u16@2, new page u8@4, parent's block id i8@5, parent u16@6, node u16@8, state@12. The inner tuple follows at 20.
pub(super) struct AddNode<'a> {
    pub offset_no: u16,
    /// On block 1, if there is one.
    pub new_offset_no: u16,
    pub new_page: bool,
    /// [`Self::NO_PARENT`] when the parent stays as it is.
    pub parent_block_id: u8,
    pub parent: ParentNode,
    pub state: RedirectState,
    pub inner: &'a [u8],
}

impl<'a> AddNode<'a> {
    /// -1 of the record.
    pub const NO_PARENT: u8 = u8::MAX;

    pub fn parse(main_data: &'a [u8]) -> Result<Self, RecordError> {
        let mut fields = Fields::new("spgxlogAddNode", main_data);
        Ok(AddNode {
            offset_no: fields.u16()?,
            new_offset_no: fields.u16()?,
            new_page: fields.flag()?,
            parent_block_id: fields.u8()?,
            parent: parent_node(&mut fields)?,
            state: redirect_state(&mut fields)?,
            inner: inner_tuple(&mut fields)?,
        })
    }
}

/// prefix's number u16@0, postfix's number u16@2, new page u8@4, same page u8@5. Prefix and postfix tuple follow.
pub(super) struct SplitTuple<'a> {
    pub prefix_offset_no: u16,
    pub postfix_offset_no: u16,
    pub new_page: bool,
    pub is_same_page: bool,
    pub prefix: &'a [u8],
    pub postfix: &'a [u8],
}

impl<'a> SplitTuple<'a> {
    pub fn parse(main_data: &'a [u8]) -> Result<Self, RecordError> {
        let mut fields = Fields::new("spgxlogSplitTuple", main_data);
        Ok(SplitTuple {
            prefix_offset_no: fields.u16()?,
            postfix_offset_no: fields.u16()?,
            new_page: fields.flag()?,
            is_same_page: fields.flag()?,
            prefix: inner_tuple(&mut fields)?,
            postfix: inner_tuple(&mut fields)?,
        })
    }
}

/// root split u8@0, deletions u16@2, insertions u16@4, new source u8@6, new destination u8@7, inner tuple's number u16@8, new inner page u8@10,
/// nulls u8@11, inner page is parent u8@12, parent u16@14, node u16@16, state@20, at 28: numbers deleted, numbers inserted, a byte for each that
/// tells its page (0 the source), the inner tuple, the leaf tuples inserted.
pub(super) struct PickSplit<'a> {
    pub is_root_split: bool,
    pub new_source: bool,
    pub new_destination: bool,
    pub inner_offset_no: u16,
    pub new_inner: bool,
    pub nulls_flag: u16,
    pub inner_is_parent: bool,
    pub parent: ParentNode,
    pub state: RedirectState,
    pub deleted: OffsetNos<'a>,
    pub inserted: OffsetNos<'a>,
    pub selectors: &'a [u8],
    pub inner: &'a [u8],
    /// At the first leaf tuple.
    pub leafs: Fields<'a>,
}

impl<'a> PickSplit<'a> {
    pub fn parse(main_data: &'a [u8]) -> Result<Self, RecordError> {
        let mut fields = Fields::new("spgxlogPickSplit", main_data);
        let is_root_split = fields.flag()?;
        fields.align(2);
        let (delete_count, insert_count) = (usize::from(fields.u16()?), usize::from(fields.u16()?));
        let (new_source, new_destination) = (fields.flag()?, fields.flag()?);
        let inner_offset_no = fields.u16()?;
        let new_inner = fields.flag()?;
        let nulls_flag = nulls_flag(&mut fields)?;
        let inner_is_parent = fields.flag()?;
        fields.align(2);
        Ok(PickSplit {
            is_root_split,
            new_source,
            new_destination,
            inner_offset_no,
            new_inner,
            nulls_flag,
            inner_is_parent,
            parent: parent_node(&mut fields)?,
            state: redirect_state(&mut fields)?,
            deleted: fields.offset_nos(delete_count)?,
            inserted: fields.offset_nos(insert_count)?,
            selectors: fields.take(insert_count)?,
            inner: inner_tuple(&mut fields)?,
            leafs: fields,
        })
    }
}

/// dead u16@0, placeholders u16@2, moves u16@4, chains u16@6, state@8, at 16 the numbers: dead, placeholders, moved from, moved to, chained,
/// what these are chained to.
pub(super) struct VacuumLeaf<'a> {
    pub dead: OffsetNos<'a>,
    pub placeholders: OffsetNos<'a>,
    pub moved_from: OffsetNos<'a>,
    pub moved_to: OffsetNos<'a>,
    pub chained: OffsetNos<'a>,
    pub chained_next: OffsetNos<'a>,
}

impl<'a> VacuumLeaf<'a> {
    pub fn parse(main_data: &'a [u8]) -> Result<Self, RecordError> {
        let mut fields = Fields::new("spgxlogVacuumLeaf", main_data);
        let (dead_count, placeholder_count) = (usize::from(fields.u16()?), usize::from(fields.u16()?));
        let (move_count, chain_count) = (usize::from(fields.u16()?), usize::from(fields.u16()?));
        redirect_state(&mut fields)?;
        Ok(VacuumLeaf {
            dead: fields.offset_nos(dead_count)?,
            placeholders: fields.offset_nos(placeholder_count)?,
            moved_from: fields.offset_nos(move_count)?,
            moved_to: fields.offset_nos(move_count)?,
            chained: fields.offset_nos(chain_count)?,
            chained_next: fields.offset_nos(chain_count)?,
        })
    }
}

/// deletions u16@0, state@4, at 12 the numbers, which ascend.
pub(super) struct VacuumRoot<'a> {
    pub deleted: OffsetNos<'a>,
}

impl<'a> VacuumRoot<'a> {
    pub fn parse(main_data: &'a [u8]) -> Result<Self, RecordError> {
        let mut fields = Fields::new("spgxlogVacuumRoot", main_data);
        let count = usize::from(fields.u16()?);
        redirect_state(&mut fields)?;
        Ok(VacuumRoot { deleted: fields.offset_nos(count)? })
    }
}

/// redirects u16@0, first placeholder u16@2, xid u32@4, from 16 on catalog u8@8 and a byte of padding, then the numbers.
pub(super) struct VacuumRedirect<'a> {
    pub redirects: OffsetNos<'a>,
    /// It and all behind it go; 0 when none does.
    pub first_placeholder: u16,
}

impl<'a> VacuumRedirect<'a> {
    pub fn parse(main_data: &'a [u8], version: PgVersion) -> Result<Self, RecordError> {
        let mut fields = Fields::new("spgxlogVacuumRedirect", main_data);
        let count = usize::from(fields.u16()?);
        let first_placeholder = fields.u16()?;
        fields.u32()?;
        if version >= PgVersion::V16 {
            fields.u16()?;
        }
        Ok(VacuumRedirect { redirects: fields.offset_nos(count)?, first_placeholder })
    }
}

/// The next tuple of a body, a leaf tuple.
pub(super) fn leaf_tuple<'a>(fields: &mut Fields<'a>) -> Result<&'a [u8], RecordError> {
    let size = fields.rest().get(..4).map_or(0, page::leaf_size);
    tuple(fields, size)
}

/// The next tuple of a body, an inner tuple.
fn inner_tuple<'a>(fields: &mut Fields<'a>) -> Result<&'a [u8], RecordError> {
    let size = fields.rest().get(4..6).map_or(0, LittleEndian::read_u16);
    tuple(fields, size.into())
}

fn tuple<'a>(fields: &mut Fields<'a>, size: usize) -> Result<&'a [u8], RecordError> {
    if size < page::TUPLE_LEN_MIN { Err(fields.impossible("tuple's size", size as i64)) } else { fields.take(size) }
}

fn parent_node(fields: &mut Fields<'_>) -> Result<ParentNode, RecordError> {
    Ok(ParentNode { offset_no: fields.u16()?, node_no: fields.u16()? })
}

/// spgxlogState with the padding before and in it.
fn redirect_state(fields: &mut Fields<'_>) -> Result<RedirectState, RecordError> {
    fields.align(4);
    let state = RedirectState { xid: fields.u32()?, is_build: fields.flag()? };
    fields.align(4);
    Ok(state)
}

fn nulls_flag(fields: &mut Fields<'_>) -> Result<u16, RecordError> {
    Ok(if fields.flag()? { NULLS } else { 0 })
}
