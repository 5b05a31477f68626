//! SP-GiST.
//!
//! Tuples keep their offset numbers, for others point to them: one that goes leaves a dead tuple in its place (a redirect to where it went, a "dead"
//! one while a parent still points there, or a placeholder, which the next tuple may replace). The special area counts redirects and placeholders.
//!
//! Everything stands in main data, in one body for all blocks of the record. A page is made anew (WILL_INIT) when the body has a flag for it.
//!
//! In reading order: operations (here), record bodies ([`record`]), what is done to a page ([`page`]).
//!
//! PG 14-18: src/backend/access/spgist/spgxlog.c (spg_redo), src/include/access/spgxlog.h, src/include/access/spgist_private.h.

mod page;
mod record;

use self::page::{LEAF, State};
use self::record::{AddLeaf, AddNode, MoveLeafs, PickSplit, SplitTuple, VacuumLeaf, VacuumRedirect, VacuumRoot};
use super::{Change, RedoError, Stamp, page_error};
use crate::page::layout::Header;
use crate::page::{Page, edit};

const ADD_LEAF: u8 = 0x10;
const MOVE_LEAFS: u8 = 0x20;
const ADD_NODE: u8 = 0x30;
const SPLIT_TUPLE: u8 = 0x40;
const PICKSPLIT: u8 = 0x50;
const VACUUM_LEAF: u8 = 0x60;
const VACUUM_ROOT: u8 = 0x70;
const VACUUM_REDIRECT: u8 = 0x80;

pub(super) fn redo(change: &Change<'_>, page: &mut Page) -> Result<Stamp, RedoError> {
    match (change.operation(), change.block_id()) {
        (ADD_LEAF, 0) => add_leaf(change, page)?,
        (ADD_LEAF, 1) => add_leaf_link(change, page)?,
        (MOVE_LEAFS, 0) => move_leafs_away(change, page)?,
        (MOVE_LEAFS, 1) => move_leafs_here(change, page)?,
        (MOVE_LEAFS, 2) => move_leafs_link(change, page)?,
        (ADD_NODE, 0) => add_node_old(change, page)?,
        (ADD_NODE, 1) => add_node_new(change, page)?,
        (ADD_NODE, 2) => add_node_link(change, page)?,
        (SPLIT_TUPLE, 0) => split_tuple(change, page)?,
        (SPLIT_TUPLE, 1) => split_tuple_postfix(change, page)?,
        (PICKSPLIT, 0) => pick_split_source(change, page)?,
        (PICKSPLIT, 1) => pick_split_destination(change, page)?,
        (PICKSPLIT, 2) => pick_split_inner(change, page)?,
        (PICKSPLIT, 3) => pick_split_link(change, page)?,
        (VACUUM_LEAF, 0) => vacuum_leaf(change, page)?,
        (VACUUM_ROOT, 0) => vacuum_root(change, page)?,
        (VACUUM_REDIRECT, 0) => vacuum_redirect(change, page)?,
        _ => return Err(change.unknown_operation()),
    }
    Ok(Stamp::Record)
}

/// Makes the page anew if `new_page` gives its flags; the block must be marked accordingly. PG 14-18: spgutils.c, SpGistInitBuffer.
fn begin(change: &Change<'_>, page: &mut Page, new_page: Option<u16>) -> Result<(), RedoError> {
    match (new_page, change.block.will_init) {
        (Some(flags), true) => page::init(page, flags),
        (None, false) => page::check_special(page)?,
        _ => return Err(change.unknown_operation()),
    }
    Ok(())
}

/// A leaf tuple comes. PG 14-18: spgRedoAddLeaf.
fn add_leaf(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let body = AddLeaf::parse(change.main_data())?;
    begin(change, page, body.new_page.then_some(LEAF | body.nulls_flag))?;
    if body.offset_no == body.head_offset_no {
        return page::replace(page, body.leaf, body.offset_no); // The head was dead.
    }
    page::add_or_replace_placeholder(page, body.leaf, body.offset_no)?;
    if body.head_offset_no == 0 {
        return Ok(());
    }
    // It becomes the second in the chain: the head's link is its link already.
    let next = page::next_in_chain(page, body.head_offset_no)?;
    if next != page::next_of(body.leaf) {
        return Err(page_error("new leaf does not go on where the head of its chain does", next));
    }
    page::set_next_in_chain(page, body.head_offset_no, body.offset_no)
}

fn add_leaf_link(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let body = AddLeaf::parse(change.main_data())?;
    if body.parent.offset_no == 0 {
        return Err(change.unknown_operation());
    }
    begin(change, page, None)?;
    page::set_link(page, body.parent, change.block_no_of(0)?, body.offset_no)
}

/// A chain of leaf tuples leaves for another page, to be with a new one. PG 14-18: spgRedoMoveLeafs.
fn move_leafs_away(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let body = MoveLeafs::parse(change.main_data())?;
    begin(change, page, None)?;
    let redirect = page::redirect(change.block_no_of(1)?, body.head_offset_no()?, body.state);
    page::replace_by_dead(page, body.deleted, &redirect, &page::dead_tuple(State::Placeholder))
}

fn move_leafs_here(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let mut body = MoveLeafs::parse(change.main_data())?;
    begin(change, page, body.new_page.then_some(LEAF | body.nulls_flag))?;
    for offset_no in body.inserted.iter() {
        page::add_or_replace_placeholder(page, record::leaf_tuple(&mut body.leafs)?, offset_no)?;
    }
    Ok(())
}

fn move_leafs_link(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let body = MoveLeafs::parse(change.main_data())?;
    begin(change, page, None)?;
    page::set_link(page, body.parent, change.block_no_of(1)?, body.head_offset_no()?)
}

/// An inner tuple gets one more node, in place or, when it no longer fits there, elsewhere (block 1). PG 14-18: spgRedoAddNode.
fn add_node_old(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let body = AddNode::parse(change.main_data())?;
    begin(change, page, None)?;
    let is_in_place = change.record.block(1).is_none();
    if is_in_place != (body.parent_block_id == AddNode::NO_PARENT) {
        return Err(change.unknown_operation());
    }
    if is_in_place {
        return page::replace(page, body.inner, body.offset_no);
    }
    let redirect = page::redirect(change.block_no_of(1)?, body.new_offset_no, body.state);
    page::replace(page, &redirect, body.offset_no)?;
    page::count_dead(page, &redirect)?;
    add_node_link_if_here(change, page, &body)
}

fn add_node_new(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let body = AddNode::parse(change.main_data())?;
    begin(change, page, body.new_page.then_some(0))?;
    page::add_or_replace_placeholder(page, body.inner, body.new_offset_no)?;
    add_node_link_if_here(change, page, &body)
}

fn add_node_link(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let body = AddNode::parse(change.main_data())?;
    begin(change, page, None)?;
    if body.parent_block_id != 2 {
        return Err(change.unknown_operation());
    }
    add_node_link_if_here(change, page, &body)
}

fn add_node_link_if_here(change: &Change<'_>, page: &mut Page, body: &AddNode<'_>) -> Result<(), RedoError> {
    if body.parent_block_id != change.block_id() {
        return Ok(());
    }
    page::set_link(page, body.parent, change.block_no_of(1)?, body.new_offset_no)
}

/// An inner tuple becomes two, one below the other. PG 14-18: spgRedoSplitTuple.
fn split_tuple(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let body = SplitTuple::parse(change.main_data())?;
    begin(change, page, None)?;
    page::replace(page, body.prefix, body.prefix_offset_no)?;
    if body.is_same_page {
        page::add_or_replace_placeholder(page, body.postfix, body.postfix_offset_no)?;
    }
    Ok(())
}

fn split_tuple_postfix(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let body = SplitTuple::parse(change.main_data())?;
    if body.is_same_page {
        return Err(change.unknown_operation());
    }
    begin(change, page, body.new_page.then_some(0))?;
    page::add_or_replace_placeholder(page, body.postfix, body.postfix_offset_no)
}

/// A chain of leaf tuples becomes an inner tuple (block 2) and chains below it. PG 14-18: spgRedoPickSplit.
///
/// The root has no source: it becomes the inner page.
fn pick_split_source(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let body = PickSplit::parse(change.main_data())?;
    if body.is_root_split {
        return Err(change.unknown_operation());
    }
    begin(change, page, body.new_source.then_some(LEAF | body.nulls_flag))?;
    if !body.new_source {
        let redirect = page::redirect(change.block_no_of(2)?, body.inner_offset_no, body.state);
        page::replace_by_dead(page, body.deleted, &redirect, &page::dead_tuple(State::Placeholder))?;
    }
    pick_split_leafs(page, body, |selector| selector == 0)
}

fn pick_split_destination(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let body = PickSplit::parse(change.main_data())?;
    begin(change, page, body.new_destination.then_some(LEAF | body.nulls_flag))?;
    pick_split_leafs(page, body, |selector| selector != 0)
}

fn pick_split_leafs(page: &mut Page, mut body: PickSplit<'_>, is_here: fn(u8) -> bool) -> Result<(), RedoError> {
    for (offset_no, selector) in body.inserted.iter().zip(body.selectors) {
        let leaf = record::leaf_tuple(&mut body.leafs)?;
        if is_here(*selector) {
            page::add_or_replace_placeholder(page, leaf, offset_no)?;
        }
    }
    Ok(())
}

fn pick_split_inner(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let body = PickSplit::parse(change.main_data())?;
    begin(change, page, body.new_inner.then_some(body.nulls_flag))?;
    page::add_or_replace_placeholder(page, body.inner, body.inner_offset_no)?;
    if body.inner_is_parent {
        page::set_link(page, body.parent, change.block.block_no, body.inner_offset_no)?;
    }
    Ok(())
}

fn pick_split_link(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let body = PickSplit::parse(change.main_data())?;
    begin(change, page, None)?;
    page::set_link(page, body.parent, change.block_no_of(2)?, body.inner_offset_no)
}

/// Tuples go for good, or move to where their chain's head was, for parents point there. PG 14-18: spgRedoVacuumLeaf.
fn vacuum_leaf(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let body = VacuumLeaf::parse(change.main_data())?;
    begin(change, page, None)?;
    let (dead, placeholder) = (page::dead_tuple(State::Dead), page::dead_tuple(State::Placeholder));
    page::replace_by_dead(page, body.dead, &dead, &dead)?;
    page::replace_by_dead(page, body.placeholders, &placeholder, &placeholder)?;
    for (from, to) in body.moved_from.iter().zip(body.moved_to.iter()) {
        page::swap_items(page, from, to)?;
    }
    page::replace_by_dead(page, body.moved_from, &placeholder, &placeholder)?;
    for (offset_no, next) in body.chained.iter().zip(body.chained_next.iter()) {
        page::set_next_in_chain(page, offset_no, next)?;
    }
    Ok(())
}

/// The root while it is a leaf: nothing points to its tuples. PG 14-18: spgRedoVacuumRoot.
fn vacuum_root(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let body = VacuumRoot::parse(change.main_data())?;
    begin(change, page, None)?;
    Ok(edit::delete_items(page, body.deleted.iter())?)
}

/// Redirects that nobody follows any more become placeholders; placeholders at the end go. PG 14-18: spgRedoVacuumRedirect.
fn vacuum_redirect(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let body = VacuumRedirect::parse(change.main_data(), change.version())?;
    begin(change, page, None)?;
    for offset_no in body.redirects.iter() {
        page::redirect_to_placeholder(page, offset_no)?;
    }
    if body.first_placeholder == 0 {
        return Ok(());
    }
    let last = Header::read(page).item_count();
    if body.first_placeholder > last + 1 {
        return Err(page_error("first placeholder lies behind the last tuple", body.first_placeholder));
    }
    let gone = body.first_placeholder..=last;
    page::uncount_placeholders(page, gone.len())?;
    Ok(edit::delete_items(page, gone)?)
}

#[cfg(test)]
mod tests;
