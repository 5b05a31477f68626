//! Block references to versions: images, cut-down records, and visibility map bits that heap records clear.

use keyenc::{Key, Kind};
use postgres_ffi::page::{page_is_new, set_page_lsn};
use postgres_ffi::records::heap::{self, VmClear};
use postgres_ffi::wal::{
    BlockImage, DecodedBlock, DecodedRecord, rmgr, trim::redo_goes_on_after_image, trim::trim_for_block,
};
use postgres_ffi::{BlockNumber, ForkNumber, RelTag};
use smallvec::SmallVec;

use super::step::Step;
use super::{IngestError, WalIngest};
use crate::delta::{Delta, Index, POSTGRES_TAG, visibility_map};

/// The heap block of Heap2 VISIBLE; block 0 is the map's. PG 14-18: heapam_xlog.h, xl_heap_visible.
const VISIBLE_HEAP_BLOCK: u8 = 1;

impl WalIngest {
    /// Every block of the record.
    pub(super) fn ingest_blocks(&mut self, step: &mut Step<'_>) -> Result<(), IngestError> {
        for block in ascending(&step.record.blocks) {
            self.ingest_block(step, block)?;
        }
        Ok(())
    }

    /// Every block of a heap record, and the map bits that it clears.
    ///
    /// The map's page is named in the record or it is not (see `records::heap`); either way the change is a delta of ours, so that redo
    /// depends on no minor release of a redo process. PG 18.6: heapam_xlog.c, heap_xlog_vm_clear, heap_xlog_update.
    pub(super) fn ingest_heap_blocks(
        &mut self,
        step: &mut Step<'_>,
        vm_clear: Option<VmClear>,
    ) -> Result<(), IngestError> {
        let Some(vm_clear) = vm_clear else {
            return match self.hint_bits_logged {
                false if is_visible(step.record) => self.ingest_visible_unstamped(step),
                _ => self.ingest_blocks(step),
            };
        };
        let mut map_page_named = false;
        for block in ascending(&step.record.blocks) {
            let is_map_page = block.fork == ForkNumber::Vm && vm_clear.vm_block_ids().contains(&block.block_id);
            map_page_named |= is_map_page;
            let has_image = block.image.as_ref().is_some_and(|image| image.apply);
            if is_map_page && !has_image {
                self.clear_named_map_page(step, block, &vm_clear)?;
            } else {
                self.ingest_block(step, block)?;
            }
        }
        if map_page_named { Ok(()) } else { self.clear_unnamed_map_pages(step, &vm_clear) }
    }

    /// Heap2 VISIBLE in a cluster that logs no hint bits: redo sets the heap page's flag and does not stamp the page.
    fn ingest_visible_unstamped(&mut self, step: &mut Step<'_>) -> Result<(), IngestError> {
        for block in ascending(&step.record.blocks) {
            let has_image = block.image.as_ref().is_some_and(|image| image.apply);
            if block.block_id != VISIBLE_HEAP_BLOCK || has_image {
                self.ingest_block(step, block)?;
                continue;
            }
            let existed = self.touch_block(step, block.rel, block.fork, block.block_no)?;
            let kind = if existed { Kind::Delta } else { Kind::InitDelta };
            self.value.clear();
            Delta::HeapAllVisible.encode(&mut self.value);
            step.batch.put(Key::block(block.rel, block.fork, block.block_no), step.lsn(), kind, &self.value);
        }
        Ok(())
    }

    #[inline]
    fn ingest_block(&mut self, step: &mut Step<'_>, block: &DecodedBlock) -> Result<(), IngestError> {
        let existed = self.touch_block(step, block.rel, block.fork, block.block_no)?;
        let applied_image = block.image.as_ref().filter(|image| image.apply);
        if let Some(image) = applied_image
            && !redo_goes_on_after_image(step.record, block.block_id)
        {
            return put_image(step, block, image);
        }
        let starts_anew = block.will_init || !existed || applied_image.is_some();
        let kind = if starts_anew { Kind::InitDelta } else { Kind::Delta };
        self.value.clear();
        self.value.push(POSTGRES_TAG);
        trim_for_block(step.record, block.block_id, &mut self.value);
        step.batch.put(Key::block(block.rel, block.fork, block.block_no), step.lsn(), kind, &self.value);
        Ok(())
    }

    /// Images of XLOG_FPI and XLOG_FPI_FOR_HINT. `all_have_images`: XLOG_FPI; the other may leave them out, and then says nothing.
    /// PG: xlog.c, xlog_redo.
    pub(super) fn ingest_images(&mut self, step: &mut Step<'_>, all_have_images: bool) -> Result<(), IngestError> {
        for block in ascending(&step.record.blocks) {
            match block.image.as_ref() {
                Some(image) if image.apply => {
                    self.touch_block(step, block.rel, block.fork, block.block_no)?;
                    put_image(step, block, image)?;
                }
                None if !all_have_images => {}
                _ => {
                    return Err(IngestError::ImageMissing {
                        record_start_lsn: step.record.start_lsn,
                        block_id: block.block_id,
                    });
                }
            }
        }
        Ok(())
    }

    fn clear_named_map_page(
        &mut self,
        step: &mut Step<'_>,
        map_block: &DecodedBlock,
        vm_clear: &VmClear,
    ) -> Result<(), IngestError> {
        // An update's old block counts on the page named for the new one too, if its bits stand there.
        let is_for_new = map_block.block_id == vm_clear.vm_block_ids()[0];
        let heap_blocks = cleared_heap_blocks(step, vm_clear, is_for_new && vm_clear.new_block)?;
        let places = heap_blocks.iter().map(|heap_block| visibility_map::place(*heap_block));
        let indexes: SmallVec<[Index; 2]> = places
            .filter(|(map_page, _)| *map_page == map_block.block_no)
            .map(|(_, index)| Index::new(index))
            .collect();
        self.put_map_clear(step, map_block.rel, map_block.block_no, true, vm_clear.bits, &indexes)
    }

    fn clear_unnamed_map_pages(&mut self, step: &mut Step<'_>, vm_clear: &VmClear) -> Result<(), IngestError> {
        let rel = heap_block(step, 0)?.rel;
        let heap_blocks = cleared_heap_blocks(step, vm_clear, vm_clear.new_block)?;
        let places: SmallVec<[_; 2]> = heap_blocks.iter().map(|block| visibility_map::place(*block)).collect();
        for (nth, (map_page, _)) in places.iter().enumerate() {
            if places[..nth].iter().any(|(earlier, _)| earlier == map_page) {
                continue; // One version per page and LSN: it went with the earlier one.
            }
            let on_page = places.iter().filter(|(page, _)| page == map_page);
            let indexes: SmallVec<[Index; 2]> = on_page.map(|(_, index)| Index::new(*index)).collect();
            self.put_map_clear(step, rel, *map_page, false, vm_clear.bits, &indexes)?;
        }
        Ok(())
    }

    fn put_map_clear(
        &mut self,
        step: &mut Step<'_>,
        rel: RelTag,
        map_page: BlockNumber,
        lsn_guarded: bool,
        bits: u8,
        indexes: &[Index],
    ) -> Result<(), IngestError> {
        // Redo creates a map or page that is not there (visibilitymap_pin), and so does the primary before it clears.
        let existed = self.touch_block(step, rel, ForkNumber::Vm, map_page)?;
        let kind = if existed { Kind::Delta } else { Kind::InitDelta };
        self.value.clear();
        Delta::VisibilityMapClear { lsn_guarded, bits, indexes }.encode(&mut self.value);
        step.batch.put(Key::block(rel, ForkNumber::Vm, map_page), step.lsn(), kind, &self.value);
        Ok(())
    }
}

fn is_visible(record: &DecodedRecord) -> bool {
    record.rmid == rmgr::HEAP2 && record.operation() & heap::OPERATION_MASK == heap::heap2_operation::VISIBLE
}

/// The blocks by number: of two that are new, the lower one must come first. Otherwise the higher one would leave a page of zeroes in its place,
/// at the same LSN (SP-GiST picksplit names its blocks in any order).
#[inline]
fn ascending(blocks: &[DecodedBlock]) -> SmallVec<[&DecodedBlock; 4]> {
    let mut ordered: SmallVec<[&DecodedBlock; 4]> = blocks.iter().collect();
    ordered.sort_by_key(|block| block.block_no);
    ordered
}

/// The heap blocks that lose bits, at most two. `with_new`: the block with id 0 is among them.
fn cleared_heap_blocks(
    step: &Step<'_>,
    vm_clear: &VmClear,
    with_new: bool,
) -> Result<SmallVec<[BlockNumber; 2]>, IngestError> {
    let mut heap_blocks = SmallVec::new();
    let new_block = heap_block(step, 0)?;
    if with_new {
        heap_blocks.push(new_block.block_no);
    }
    if vm_clear.old_block {
        let old_block = step.record.block(1).unwrap_or(new_block).block_no;
        if !heap_blocks.contains(&old_block) {
            heap_blocks.push(old_block);
        }
    }
    Ok(heap_blocks)
}

fn heap_block<'a>(step: &Step<'a>, block_id: u8) -> Result<&'a DecodedBlock, IngestError> {
    let missing = IngestError::BlockMissing { record_start_lsn: step.record.start_lsn, block_id };
    step.record.block(block_id).ok_or(missing)
}

/// Restores an image and stamps it. PG: xlogutils.c, XLogReadBufferForRedoExtended.
fn put_image(step: &mut Step<'_>, block: &DecodedBlock, image: &BlockImage) -> Result<(), IngestError> {
    let restored = step.record.restore_image(image);
    let mut page = restored.map_err(|source| IngestError::Image {
        record_start_lsn: step.record.start_lsn,
        block_id: block.block_id,
        source,
    })?;
    let key = Key::block(block.rel, block.fork, block.block_no);
    if page_is_new(&page) {
        // An LSN on a page that was never initialised would make it look damaged.
        step.put_page(key, &page[..]);
    } else {
        set_page_lsn(&mut page, step.lsn());
        step.batch.put(key, step.lsn(), Kind::Image, &page[..]);
    }
    Ok(())
}
