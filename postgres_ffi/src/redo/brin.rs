//! BRIN: regular pages with summaries, revmap pages that tell where the summary of a range is, the metapage.
//!
//! PG 14-18: src/backend/access/brin/brin_xlog.c (brin_redo), brin_pageops.c (brin_page_init, brin_metapage_init), brin_revmap.c
//! (brinSetHeapBlockItemptr); src/include/access/brin_xlog.h, brin_page.h. The same in all of them.

use byteorder::{ByteOrder, LittleEndian};

use super::index_tuple::TID_LEN;
use super::{Change, RedoError, Stamp, page_error};
use crate::BlockNumber;
use crate::mask::index::{BRIN_META, BRIN_REGULAR, BRIN_TYPE_AT};
use crate::page::edit::{self, Placement};
use crate::page::{BLCKSZ, PAGE_HEADER_LEN, PD_LOWER, Page, put_u16, put_u32};
use crate::records::fields::Fields;

const CREATE_INDEX: u8 = 0x00;
const INSERT: u8 = 0x10;
const UPDATE: u8 = 0x20;
const SAMEPAGE_UPDATE: u8 = 0x30;
const REVMAP_EXTEND: u8 = 0x40;
const DESUMMARIZE: u8 = 0x50;
/// PG: XLOG_BRIN_OPMASK.
const OPERATION_MASK: u8 = 0x70;
/// Block 0 is made anew. PG: XLOG_BRIN_INIT_PAGE.
const INIT_PAGE: u8 = 0x80;

/// BrinSpecialSpace.
const SPECIAL_LEN: usize = 8;
/// PG: BRIN_PAGETYPE_REVMAP; the other types are in `mask/index.rs`.
const BRIN_REVMAP: u16 = 0xF092;

/// BrinMetaPageData: magic u32@0, version u32@4, pages per range u32@8, last revmap page u32@12.
const META_MAGIC: u32 = 0xA810_9CFA;
const MAGIC_AT: usize = PAGE_HEADER_LEN;
const VERSION_AT: usize = PAGE_HEADER_LEN + 4;
const PAGES_PER_RANGE_AT: usize = PAGE_HEADER_LEN + 8;
const LAST_REVMAP_PAGE_AT: usize = PAGE_HEADER_LEN + 12;
const META_END: usize = PAGE_HEADER_LEN + 16;

/// Entries of a revmap page. PG: REVMAP_PAGE_MAXITEMS.
const TIDS_PER_PAGE: u32 = ((BLCKSZ - PAGE_HEADER_LEN - SPECIAL_LEN) / TID_LEN) as u32;

pub(super) fn redo(change: &Change<'_>, page: &mut Page) -> Result<Stamp, RedoError> {
    match (change.operation() & OPERATION_MASK, change.block_id()) {
        (CREATE_INDEX, 0) => init_metapage(change, page)?,
        (INSERT | UPDATE, 0) => insert(change, page)?,
        (INSERT | UPDATE, 1) => point_to_inserted(change, page)?,
        (UPDATE, 2) => edit::delete_item_keeping_numbers(page, Update::of(change)?.old_offset_no)?,
        (SAMEPAGE_UPDATE, 0) => overwrite(change, page)?,
        (REVMAP_EXTEND, 0) => set_last_revmap_page(change, page)?,
        (REVMAP_EXTEND, 1) => init_page(change, page, BRIN_REVMAP)?,
        (DESUMMARIZE, 0) => point_to_nothing(change, page)?,
        (DESUMMARIZE, 1) => edit::delete_item_keeping_numbers(page, Desummarize::of(change)?.offset_no)?,
        _ => return Err(change.unknown_operation()),
    }
    Ok(Stamp::Record)
}

/// xl_brin_createidx: pages per range u32, version u16.
fn init_metapage(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let mut fields = Fields::new("xl_brin_createidx", change.main_data());
    let (pages_per_range, version) = (fields.u32()?, fields.u16()?);
    init_page(change, page, BRIN_META)?;
    put_u32(page, MAGIC_AT, META_MAGIC);
    put_u32(page, VERSION_AT, version.into());
    put_u32(page, PAGES_PER_RANGE_AT, pages_per_range);
    // There is none yet. The first one will be block 1.
    put_u32(page, LAST_REVMAP_PAGE_AT, 0);
    put_u16(page, PD_LOWER, META_END as u16);
    Ok(())
}

/// xl_brin_insert.
struct Insert {
    heap_block_no: BlockNumber,
    pages_per_range: u32,
    offset_no: u16,
}

impl Insert {
    fn of(change: &Change<'_>) -> Result<Self, RedoError> {
        match change.operation() & OPERATION_MASK {
            UPDATE => Ok(Update::of(change)?.insert),
            _ => Self::read(&mut Fields::new("xl_brin_insert", change.main_data())),
        }
    }

    fn read(fields: &mut Fields<'_>) -> Result<Self, RedoError> {
        Ok(Insert { heap_block_no: fields.u32()?, pages_per_range: fields.u32()?, offset_no: fields.u16()? })
    }
}

/// xl_brin_update: an insertion on one page that makes up for a deletion on another.
struct Update {
    old_offset_no: u16,
    insert: Insert,
}

impl Update {
    fn of(change: &Change<'_>) -> Result<Self, RedoError> {
        let mut fields = Fields::new("xl_brin_update", change.main_data());
        let old_offset_no = fields.u16()?;
        fields.align(4);
        Ok(Update { old_offset_no, insert: Insert::read(&mut fields)? })
    }
}

/// Data of the block: the tuple, which starts with the range's first heap block.
fn insert(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let body = Insert::of(change)?;
    let tuple = change.block_data();
    let mut fields = Fields::new("BrinTuple", tuple);
    let block_no = fields.u32()?;
    if block_no != body.heap_block_no {
        return Err(fields.impossible("bt_blkno", block_no.into()).into());
    }
    if change.operation() & INIT_PAGE != 0 {
        init_page(change, page, BRIN_REGULAR)?;
    }
    edit::add_item(page, tuple, body.offset_no, Placement::Overwrite)?;
    Ok(())
}

/// Data of the block: the tuple.
fn overwrite(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let offset_no = Fields::new("xl_brin_samepage_update", change.main_data()).u16()?;
    edit::overwrite_item(page, offset_no, change.block_data())?;
    Ok(())
}

fn point_to_inserted(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let body = Insert::of(change)?;
    let tid = (change.block_no_of(0)?, body.offset_no);
    put_tid(page, body.pages_per_range, body.heap_block_no, tid)
}

/// xl_brin_desummarize.
struct Desummarize {
    pages_per_range: u32,
    heap_block_no: BlockNumber,
    offset_no: u16,
}

impl Desummarize {
    fn of(change: &Change<'_>) -> Result<Self, RedoError> {
        let mut fields = Fields::new("xl_brin_desummarize", change.main_data());
        Ok(Desummarize { pages_per_range: fields.u32()?, heap_block_no: fields.u32()?, offset_no: fields.u16()? })
    }
}

fn point_to_nothing(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let body = Desummarize::of(change)?;
    put_tid(page, body.pages_per_range, body.heap_block_no, (BlockNumber::MAX, 0))
}

/// Lets the revmap's entry for a heap block point to `tid`.
fn put_tid(
    page: &mut Page,
    pages_per_range: u32,
    heap_block_no: BlockNumber,
    (block_no, offset_no): (BlockNumber, u16),
) -> Result<(), RedoError> {
    let range = heap_block_no.checked_div(pages_per_range);
    let range = range.ok_or_else(|| page_error("ranges of no pages", pages_per_range))?;
    let at = PAGE_HEADER_LEN + (range % TIDS_PER_PAGE) as usize * TID_LEN;
    // An invalid one is invalid in both parts.
    let block_no = if offset_no == 0 { BlockNumber::MAX } else { block_no };
    put_u16(page, at, (block_no >> 16) as u16);
    put_u16(page, at + 2, (block_no & 0xFFFF) as u16);
    put_u16(page, at + 4, offset_no);
    Ok(())
}

/// xl_brin_revmap_extend: the new revmap page u32, which is block 1 as well.
fn set_last_revmap_page(change: &Change<'_>, page: &mut Page) -> Result<(), RedoError> {
    let mut fields = Fields::new("xl_brin_revmap_extend", change.main_data());
    let block_no = fields.u32()?;
    let last = LittleEndian::read_u32(&page[LAST_REVMAP_PAGE_AT..]);
    if block_no != change.block_no_of(1)? || block_no.checked_sub(1) != Some(last) {
        return Err(fields.impossible("targetBlk", block_no.into()).into());
    }
    put_u32(page, LAST_REVMAP_PAGE_AT, block_no);
    // Versions before 11 did not set it, and their pages live on in upgraded clusters.
    put_u16(page, PD_LOWER, META_END as u16);
    Ok(())
}

fn init_page(change: &Change<'_>, page: &mut Page, page_type: u16) -> Result<(), RedoError> {
    change.check_will_init()?;
    edit::init_page(page, SPECIAL_LEN);
    put_u16(page, BRIN_TYPE_AT, page_type);
    Ok(())
}

const _: () = assert!(TIDS_PER_PAGE == 1360);

#[cfg(test)]
mod tests {
    //! What WAL of a server does not show: bodies that do not fit together.

    use super::*;
    use crate::PgVersion;
    use crate::records::fields::Body;
    use crate::redo::made_up::{MadeUp, block_no_of, check_any_bodies, empty_page};
    use crate::wal::rmgr;

    #[test]
    fn any_bodies_are_applied_or_refused() {
        check_any_bodies(rmgr::BRIN, SPECIAL_LEN);
    }

    #[test]
    fn tuple_is_that_of_the_range() {
        let tuple_of = |heap_block_no: u32| Body::default().u32(heap_block_no).u32(5).0;
        let insert = Body::default().u32(64).u32(32).u16(1).0;
        for (operation, will_init, tuple, is_good) in [
            (INSERT | INIT_PAGE, true, tuple_of(64), true),
            (INSERT | INIT_PAGE, true, tuple_of(32), false),
            (INSERT | INIT_PAGE, true, vec![64, 0, 0], false),
            // PostgreSQL insists that flag and block agree.
            (INSERT | INIT_PAGE, false, tuple_of(64), false),
            (INSERT, true, tuple_of(64), false),
            (INSERT, false, tuple_of(64), true),
        ] {
            let blocks = &[(0, will_init, &tuple[..]), (1, false, &[][..])];
            let done = made_up(operation, &insert, blocks).redo(0, &mut empty_page(SPECIAL_LEN));
            assert_eq!(done.is_ok(), is_good, "{operation:#x} {will_init} {tuple:?}: {done:?}");
        }
    }

    #[test]
    fn revmap_entry_is_that_of_the_range() {
        let blocks = &[(0, false, &[0; 8][..]), (1, false, &[][..])];
        for (pages_per_range, heap_block_no, index) in
            [(32, 64, Some(2)), (1, 1359, Some(1359)), (1, 1360, Some(0)), (u32::MAX, u32::MAX, Some(1)), (0, 0, None)]
        {
            let page = &mut empty_page(SPECIAL_LEN);
            let insert = Body::default().u32(heap_block_no).u32(pages_per_range).u16(9).0;
            let done = made_up(INSERT, &insert, blocks).redo(1, page);
            assert_eq!(done.is_ok(), index.is_some(), "{pages_per_range} {heap_block_no}: {done:?}");
            if let Some(index) = index {
                assert_eq!(page[24 + 6 * index..][..6], [0, 0, block_no_of(0) as u8, 0, 9, 0]);
            }
        }
    }

    #[test]
    fn revmap_grows_by_one_page() {
        let blocks = &[(0, false, &[][..]), (1, true, &[][..])];
        for (block_no, last, is_good) in [(101, 100, true), (101, 101, false), (102, 101, false), (0, u32::MAX, false)]
        {
            let page = &mut empty_page(SPECIAL_LEN);
            put_u32(page, LAST_REVMAP_PAGE_AT, last);
            let done = made_up(REVMAP_EXTEND, &u32::to_le_bytes(block_no), blocks).redo(0, page);
            assert_eq!(done.is_ok(), is_good, "{block_no} {last}: {done:?}");
        }
    }

    fn made_up<'a>(operation: u8, main_data: &'a [u8], blocks: &'a [(u8, bool, &'a [u8])]) -> MadeUp<'a> {
        MadeUp { version: PgVersion::V17, rmid: rmgr::BRIN, operation, main_data, blocks }
    }
}
