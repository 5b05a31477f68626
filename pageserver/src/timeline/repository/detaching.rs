//! A branch is detached: what it reads from its ancestors becomes images of its own, then it needs them no more.
//!
//! - The images stand at the branch LSN, where every read of an ancestor's version ends up. While they are written both the images and the
//!   ancestors' versions answer, and say the same; reads and ingest go on.
//! - Only when all images are durable the metadata forgets the ancestor, in one step. Whatever happens before, the branch is as it was; detached
//!   again, it starts over.
//! - From then on nothing below the branch LSN can be read on the branch and on those that left it.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyenc::{Key, Object};
use postgres_ffi::rel::SLRU_PAGES_PER_SEGMENT;
use postgres_ffi::{BLCKSZ, Lsn, SlruKind};
use tracing::info;

use super::branch_error::BranchError;
use super::branching::Changed;
use super::busy::{Busy, BusyGuard};
use super::{Repository, RepositoryError};
use crate::failpoint::Failpoint;
use crate::store::ImageSet;
use crate::timeline::Timeline;
use crate::timeline::lineage::Lineage;
use crate::timeline::metadata::Imported;

/// Pages that are made together, in walredo threads at the same time.
const PAGES_AT_ONCE: u32 = 256;
/// Images that become part of the store together: what a crash may cost, and what lies on disk unused meanwhile.
const SET_BYTES: u64 = 1 << 30;
/// How often somebody hears of it.
const REPORT_INTERVAL: Duration = Duration::from_millis(500);

/// Bytes that were copied, and bytes there are. Breaks: stop.
pub type OnDetached<'a> = dyn FnMut(u64, u64) -> ControlFlow<()> + 'a;

impl Repository {
    /// Makes the branch `name` a timeline without an ancestor. Takes as long as its size asks for; `on_progress` is told and can stop it.
    ///
    /// Errors: [`BranchError::NotABranch`], [`BranchError::Busy`], [`BranchError::Leased`] for a lease below the branch LSN,
    /// [`BranchError::Cancelled`]; a page cannot be made; the disk. Then it still is a branch.
    pub fn detach_branch(&self, name: &str, on_progress: &mut OnDetached<'_>) -> Result<Changed, RepositoryError> {
        let begun = Instant::now();
        let (timeline, branch_lsn, _busy) = self.begin_detach(name)?;
        if timeline.store.watermark().is_none() {
            timeline.publish_at(branch_lsn)?; // Before its first version, so that whoever deletes it knows of them.
            Failpoint::DetachPublished.pass();
        }
        let bytes = Copy::new(&timeline, branch_lsn, on_progress)?.run()?;
        Failpoint::DetachImagesDurable.pass();
        self.end_detach(&timeline, branch_lsn)?;
        let seconds = begun.elapsed().as_secs_f64();
        info!(branch = %timeline.metadata().name, %branch_lsn, bytes, seconds, "branch detached");
        let notice = format!("{} MiB copied in {seconds:.1} s; readable from {branch_lsn} on", bytes >> 20);
        Ok(Changed { timeline, notices: vec![notice] })
    }

    pub(super) fn begin_detach(&self, name: &str) -> Result<(Arc<Timeline>, Lsn, BusyGuard), RepositoryError> {
        let _changes = self.changes.lock();
        let timeline = self.timeline_named(name)?;
        timeline.check_here()?;
        let metadata = timeline.metadata();
        let busy = self.begin_busy(&timeline, Busy::Detached)?;
        let not_a_branch = || BranchError::NotABranch { timeline: metadata.name.clone() };
        let (_, branch_lsn) = timeline.nearest_ancestor().ok_or_else(not_a_branch)?;
        self.check_no_lease_below(&timeline, branch_lsn)?;
        Ok((timeline, branch_lsn, busy))
    }

    fn end_detach(&self, timeline: &Arc<Timeline>, branch_lsn: Lsn) -> Result<(), RepositoryError> {
        let _changes = self.changes.lock();
        self.check_no_lease_below(timeline, branch_lsn)?;
        self.write_history_before(timeline, branch_lsn)?;
        Failpoint::DetachHistoryWritten.pass();
        self.change_metadata(timeline, |metadata| {
            metadata.ancestor = None;
            metadata.imported = Some(Imported::at(branch_lsn, branch_lsn));
        })?;
        Failpoint::DetachMetadataSaved.pass();
        timeline.set_lineage(Lineage::new(&timeline.metadata(), Vec::new()));
        // Those that left it read no further than it, and it has all that they find below the branch LSN.
        for descendant in self.timelines() {
            let lineage = descendant.lineage();
            let at = lineage.ancestors.iter().position(|(ancestor, _)| Arc::ptr_eq(ancestor, timeline));
            if let Some(at) = at {
                let ancestors = lineage.ancestors[..=at].to_vec();
                descendant.set_lineage(Lineage::new(&descendant.metadata(), ancestors));
            }
        }
        Ok(())
    }

    /// Errors: somebody leased an LSN that could not be read any more, on the branch or on those that left it.
    fn check_no_lease_below(&self, timeline: &Arc<Timeline>, branch_lsn: Lsn) -> Result<(), BranchError> {
        for other in self.timelines() {
            let reads_through = other.lineage().ancestors.iter().any(|(ancestor, _)| Arc::ptr_eq(ancestor, timeline));
            if reads_through || Arc::ptr_eq(&other, timeline) {
                let metadata = other.metadata();
                let leases = self.leases.ids_below(metadata.timeline_id, branch_lsn);
                if !leases.is_empty() {
                    return Err(BranchError::Leased { timeline: metadata.name.clone(), leases });
                }
            }
        }
        Ok(())
    }
}

/// One detach on its way.
pub(super) struct Copy<'a, 'p> {
    timeline: &'a Timeline,
    /// What the branch reads at the branch LSN, it reads here; on the branch itself that may lie below the horizon.
    ancestor: Arc<Timeline>,
    branch_lsn: Lsn,
    images: ImageSet<'a>,
    set_bytes: u64,
    bytes_done: u64,
    bytes_total: u64,
    on_progress: &'a mut OnDetached<'p>,
    reported: Instant,
}

impl<'a, 'p> Copy<'a, 'p> {
    pub fn new(
        timeline: &'a Timeline,
        branch_lsn: Lsn,
        on_progress: &'a mut OnDetached<'p>,
    ) -> Result<Self, RepositoryError> {
        let not_a_branch = || BranchError::NotABranch { timeline: timeline.metadata().name.clone() };
        let (ancestor, _) = timeline.nearest_ancestor().ok_or_else(not_a_branch)?;
        let images = timeline.store.begin_images(branch_lsn);
        let reported = Instant::now();
        Ok(Copy {
            timeline,
            ancestor,
            branch_lsn,
            images,
            set_bytes: 0,
            bytes_done: 0,
            bytes_total: 0,
            on_progress,
            reported,
        })
    }

    /// Copies everything. Returns the bytes of pages. Key order is: objects, pages of SLRUs between them, blocks.
    pub fn run(mut self) -> Result<u64, RepositoryError> {
        let segments = self.slru_segments()?;
        let relations = self.ancestor.all_relations(self.branch_lsn)?;
        let blocks: u64 = relations.iter().map(|(.., blocks)| u64::from(*blocks)).sum();
        let slru_pages: u64 = segments.iter().map(|(.., pages)| u64::from(*pages)).sum();
        self.bytes_total = (blocks + slru_pages) * BLCKSZ as u64;
        let [before_slru_pages, behind_slru_pages] = Key::objects_that_are_no_pages();
        self.copy_objects(before_slru_pages)?;
        for (kind, segment_no, page_count) in segments {
            let first = segment_no * SLRU_PAGES_PER_SEGMENT;
            self.copy_pages(page_count, |index| Object::SlruPage { kind, page_no: first + index }.into())?;
        }
        self.copy_objects(behind_slru_pages)?;
        for (rel, fork, block_count) in relations {
            self.copy_pages(block_count, |block_no| Key::block(rel, fork, block_no))?;
        }
        self.images.finish()?;
        Ok(self.bytes_done)
    }

    /// In key order. Pages behind a segment's 32 are nobody's.
    fn slru_segments(&self) -> Result<Vec<(SlruKind, u32, u32)>, RepositoryError> {
        let mut all = Vec::new();
        for (object, _) in self
            .ancestor
            .objects_of_class(Object::SlruSegment { kind: SlruKind::Clog, segment_no: 0 }, self.branch_lsn)?
        {
            if let Object::SlruSegment { kind, segment_no } = object {
                let page_count = self.ancestor.slru_segment_pages(kind, segment_no, self.branch_lsn)?.unwrap_or(0);
                all.push((kind, segment_no, page_count.min(SLRU_PAGES_PER_SEGMENT)));
            }
        }
        Ok(all)
    }

    fn copy_objects(&mut self, (first, last): (Key, Key)) -> Result<(), RepositoryError> {
        for (key, value) in self.ancestor.objects_between(&first, &last, self.branch_lsn)? {
            self.images.put(key, &value)?;
        }
        Ok(())
    }

    fn copy_pages(&mut self, page_count: u32, key_of: impl Fn(u32) -> Key) -> Result<(), RepositoryError> {
        let mut next = 0;
        while next < page_count {
            let end = page_count.min(next.saturating_add(PAGES_AT_ONCE));
            let keys: Vec<Key> = (next..end).map(&key_of).collect();
            for (key, page) in keys.iter().zip(self.ancestor.pages_uncached(&keys, self.branch_lsn)?) {
                let is_zero = page.iter().all(|byte| *byte == 0);
                self.images.put(*key, if is_zero { &[] } else { &page })?;
            }
            self.copied(u64::from(end - next) * BLCKSZ as u64)?;
            next = end;
        }
        Ok(())
    }

    fn copied(&mut self, bytes: u64) -> Result<(), RepositoryError> {
        self.bytes_done += bytes;
        self.set_bytes += bytes;
        if self.set_bytes >= SET_BYTES {
            let next = self.timeline.store.begin_images(self.branch_lsn);
            std::mem::replace(&mut self.images, next).finish()?;
            self.set_bytes = 0;
        }
        if self.reported.elapsed() >= REPORT_INTERVAL {
            self.reported = Instant::now();
            if (self.on_progress)(self.bytes_done, self.bytes_total).is_break() {
                return Err(BranchError::Cancelled { timeline: self.timeline.metadata().name.clone() }.into());
            }
        }
        Ok(())
    }
}
