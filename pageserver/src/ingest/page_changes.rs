//! What a record does to which page: the one answer for ingest, which stores it, and for the check of redo, which applies it at once.
//!
//! - Every block reference becomes the image if redo applies it, else the record cut down for the block. Heap records that clear bits of
//!   the visibility map become deltas of ours for the map's pages, whether those are named in the record or not.
//! - **Never:** what comes of a record depends on anything but the record and what is known of the cluster as of the record.

use keyenc::Key;
use postgres_ffi::page::{page_is_new, set_page_lsn};
use postgres_ffi::records::heap::{self, VmClear};
use postgres_ffi::records::xlog::operation;
use postgres_ffi::wal::{
    BlockImage, DecodedBlock, DecodedRecord, rmgr, trim::redo_goes_on_after_image, trim::trim_for_block,
};
use postgres_ffi::{BlockNumber, ForkNumber, RelTag};
use smallvec::SmallVec;

use super::IngestError;
use crate::delta::{Delta, Index, POSTGRES_TAG, visibility_map};

/// A page and what becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageChange<'a> {
    /// The relation.
    pub rel: RelTag,
    /// The fork.
    pub fork: ForkNumber,
    /// The block.
    pub block_no: BlockNumber,
    /// The block's number within the record; `None` when the record does not name the page.
    pub block_id: Option<u8>,
    /// What is stored.
    pub content: PageContent<'a>,
}

impl PageChange<'_> {
    /// The page's key.
    pub fn key(&self) -> Key {
        Key::block(self.rel, self.fork, self.block_no)
    }
}

/// What is stored of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageContent<'a> {
    /// The page itself, stamped: 8,192 bytes, or none for a page of zeroes.
    Image(&'a [u8]),
    /// A delta's value, tag first.
    Delta {
        /// What was there before does not count.
        starts_anew: bool,
        /// The bytes.
        value: &'a [u8],
    },
}

/// Calls `each` with every page that a record of a resource manager with pages changes: by ascending block number those it names, then those it does
/// not. `value` is room for the bytes, so that nothing is allocated for most records.
///
/// By number, because of two pages that are new the lower one must come first. Otherwise the higher one would leave a page of zeroes in its
/// place, at the same LSN (SP-GiST picksplit names its blocks in any order).
///
/// Errors: the record lacks what it must have, or `each` failed.
pub fn page_changes(
    record: &DecodedRecord,
    hint_bits_logged: bool,
    value: &mut Vec<u8>,
    each: &mut impl FnMut(PageChange<'_>) -> Result<(), IngestError>,
) -> Result<(), IngestError> {
    let vm_clear = VmClear::of_record(record.rmid, record.info, record.main_data());
    let vm_clear = vm_clear.map_err(|source| IngestError::body(record, source))?;
    let mut blocks: SmallVec<[&DecodedBlock; 4]> = record.blocks.iter().collect();
    blocks.sort_by_key(|block| block.block_no);
    let mut map_page_named = false;
    for block in blocks {
        let image = block.image.as_ref().filter(|image| image.apply);
        let clears_here = vm_clear.filter(|clear| is_map_page_of(clear, block));
        map_page_named |= clears_here.is_some();
        let content = match (image, clears_here) {
            (Some(image), _) if !redo_goes_on_after_image(record, block.block_id) => {
                image_content(record, block, image, value)?
            }
            (None, Some(clear)) => {
                let indexes = named_map_indexes(record, block, &clear)?;
                put_map_clear(true, clear.bits, &indexes, value)
            }
            (None, None) if record.rmid == rmgr::XLOG => match record.operation() {
                // Without an image it only tells of a hint bit. PG: xlog.c, xlog_redo.
                operation::FPI_FOR_HINT if block.image.is_none() => continue,
                _ => return Err(image_missing(record, block)),
            },
            // Where hint bits are not logged, redo sets the heap page's flag and does not stamp it.
            (None, None) if !hint_bits_logged && is_made_visible(record, block) => {
                value.clear();
                Delta::HeapAllVisible.encode(value);
                PageContent::Delta { starts_anew: false, value }
            }
            _ => {
                value.clear();
                value.push(POSTGRES_TAG);
                trim_for_block(record, block.block_id, value);
                PageContent::Delta { starts_anew: block.will_init || image.is_some(), value }
            }
        };
        let DecodedBlock { rel, fork, block_no, block_id, .. } = *block;
        each(PageChange { rel, fork, block_no, block_id: Some(block_id), content })?;
    }
    match vm_clear {
        Some(clear) if !map_page_named => unnamed_map_changes(record, &clear, value, each),
        _ => Ok(()),
    }
}

/// The block is the page of the map that the record clears bits on. PG 18.6: heapam_xlog.c, heap_xlog_vm_clear, heap_xlog_update.
fn is_map_page_of(clear: &VmClear, block: &DecodedBlock) -> bool {
    block.fork == ForkNumber::Vm && clear.vm_block_ids().contains(&block.block_id)
}

fn is_made_visible(record: &DecodedRecord, block: &DecodedBlock) -> bool {
    heap::visible_heap_block(record).is_some_and(|heap_block| heap_block.block_id == block.block_id)
}

/// Restores an image and stamps it. PG: xlogutils.c, XLogReadBufferForRedoExtended.
fn image_content<'a>(
    record: &DecodedRecord,
    block: &DecodedBlock,
    image: &BlockImage,
    value: &'a mut Vec<u8>,
) -> Result<PageContent<'a>, IngestError> {
    let mut page = record.restore_image(image).map_err(|source| IngestError::Image {
        record_start_lsn: record.start_lsn,
        block_id: block.block_id,
        source,
    })?;
    value.clear();
    // An LSN on a page that was never initialised would make it look damaged.
    if !page_is_new(&page) {
        set_page_lsn(&mut page, record.end_lsn);
    }
    if page.iter().any(|byte| *byte != 0) {
        value.extend_from_slice(&page[..]);
    }
    Ok(PageContent::Image(value))
}

fn named_map_indexes(
    record: &DecodedRecord,
    map_block: &DecodedBlock,
    clear: &VmClear,
) -> Result<SmallVec<[Index; 2]>, IngestError> {
    // An update's old block counts on the page named for the new one too, if its bits stand there.
    let is_for_new = map_block.block_id == clear.vm_block_ids()[0];
    let heap_blocks = cleared_heap_blocks(record, clear, is_for_new && clear.new_block)?;
    let places = heap_blocks.iter().map(|heap_block| visibility_map::place(*heap_block));
    Ok(places.filter(|(page, _)| *page == map_block.block_no).map(|(_, index)| Index::new(index)).collect())
}

fn unnamed_map_changes(
    record: &DecodedRecord,
    clear: &VmClear,
    value: &mut Vec<u8>,
    each: &mut impl FnMut(PageChange<'_>) -> Result<(), IngestError>,
) -> Result<(), IngestError> {
    let rel = heap_block(record, 0)?.rel;
    let heap_blocks = cleared_heap_blocks(record, clear, clear.new_block)?;
    let mut places: SmallVec<[_; 2]> = heap_blocks.iter().map(|block| visibility_map::place(*block)).collect();
    places.sort_by_key(|(map_page, _)| *map_page); // As everywhere: a page behind the end makes those in front of it.
    for (nth, (map_page, _)) in places.iter().enumerate() {
        if places[..nth].iter().any(|(earlier, _)| earlier == map_page) {
            continue; // One version per page and LSN: it went with the earlier one.
        }
        let on_page = places.iter().filter(|(page, _)| page == map_page);
        let indexes: SmallVec<[Index; 2]> = on_page.map(|(_, index)| Index::new(*index)).collect();
        let content = put_map_clear(false, clear.bits, &indexes, value);
        each(PageChange { rel, fork: ForkNumber::Vm, block_no: *map_page, block_id: None, content })?;
    }
    Ok(())
}

fn put_map_clear<'a>(lsn_guarded: bool, bits: u8, indexes: &[Index], value: &'a mut Vec<u8>) -> PageContent<'a> {
    value.clear();
    Delta::VisibilityMapClear { lsn_guarded, bits, indexes }.encode(value);
    PageContent::Delta { starts_anew: false, value }
}

/// The heap blocks that lose bits, at most two. `with_new`: the block with id 0 is among them.
fn cleared_heap_blocks(
    record: &DecodedRecord,
    clear: &VmClear,
    with_new: bool,
) -> Result<SmallVec<[BlockNumber; 2]>, IngestError> {
    let mut heap_blocks = SmallVec::new();
    let new_block = heap_block(record, 0)?;
    if with_new {
        heap_blocks.push(new_block.block_no);
    }
    if clear.old_block {
        let old_block = record.block(1).unwrap_or(new_block).block_no;
        if !heap_blocks.contains(&old_block) {
            heap_blocks.push(old_block);
        }
    }
    Ok(heap_blocks)
}

fn heap_block(record: &DecodedRecord, block_id: u8) -> Result<&DecodedBlock, IngestError> {
    let missing = IngestError::BlockMissing { record_start_lsn: record.start_lsn, block_id };
    record.block(block_id).ok_or(missing)
}

fn image_missing(record: &DecodedRecord, block: &DecodedBlock) -> IngestError {
    IngestError::ImageMissing { record_start_lsn: record.start_lsn, block_id: block.block_id }
}
