//! One pass over the versions of a timeline in RocksDB, in key order, a range of objects at a time.
//!
//! - Horizon and pins are fixed before it begins, and durable.
//! - What it knows of ancestors belongs to one lineage: a range during which that changed (a detach) is done again.
//! - Ranges end between objects: an object is seen as it was before its range, or as it is behind it.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use keyenc::{Key, KeyError, Object};
use parking_lot::Mutex;
use postgres_ffi::Lsn;
use postgres_ffi::rel::SLRU_PAGES_PER_SEGMENT;
use tracing::warn;

use super::counts::{GcCounts, class_name};
use super::decision::{Change, Decision, Judge, KEY_BYTES, Version};
use super::pace::Pace;
use crate::store::{Gathered, StoreError, StoredVersion, SweepSet};
use crate::timeline::lineage::Lineage;
use crate::timeline::{ReadError, Timeline};

/// A range ends behind the object with which it has seen so many bytes of versions: what a crash may cost, and how long an iterator keeps old files.
/// Small in unit tests, so that there are several.
const RANGE_BYTES: u64 = if cfg!(test) { 64 << 10 } else { 64 << 20 };
/// Removed bytes after which compaction takes them, at the latest. A range alone would have files merged that the next one touches, too.
const COMPACT_BYTES: u64 = 256 << 20;
/// Only the newest watermark says anything.
const WATERMARK_PINS: &[Lsn] = &[Lsn::MAX];

/// A pass did not come to its end. What it did stays done.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    /// Somebody stopped it, or the server is shutting down.
    #[error("garbage collection was stopped; what it has removed stays removed")]
    Stopped,
    /// It is at work already.
    #[error("garbage collection is at work with another timeline; try again when that is through")]
    Busy,
    /// A version has a key that nobody writes.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The timeline cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The store cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How far a pass is, for who looks at it.
#[derive(Default)]
pub(in crate::timeline) struct PassProgress {
    inner: Mutex<(Option<Key>, GcCounts)>,
}

impl PassProgress {
    /// Everything before this key is done, and what came of it.
    pub fn get(&self) -> (Option<Key>, GcCounts) {
        self.inner.lock().clone()
    }

    fn add(&self, next: Option<Key>, counts: &GcCounts) {
        let mut inner = self.inner.lock();
        inner.0 = next.or(inner.0);
        inner.1.add(counts);
    }
}

/// A pass.
pub(in crate::timeline) struct Pass<'a, 'p> {
    pub timeline: &'a Timeline,
    /// Ascending, the horizon last.
    pub pins: &'a [Lsn],
    /// Nothing is written, only counted.
    pub dry_run: bool,
    pub pace: &'a mut Pace<'p>,
    pub progress: &'a PassProgress,
}

impl Pass<'_, '_> {
    /// Runs it to its end. What it did is in the progress, whatever the outcome.
    pub fn run(mut self) -> Result<(), GcError> {
        let mut from = Key::from(Object::Watermark);
        let mut uncompacted_bytes = 0;
        loop {
            let (next, counts) = self.sweep_range(&from)?;
            uncompacted_bytes += counts.total().bytes;
            self.progress.add(next, &counts);
            if self.pace.take(counts.written_bytes).is_break() {
                return Err(GcError::Stopped);
            }
            let is_last = next.is_none();
            if !self.dry_run && uncompacted_bytes > 0 && (is_last || uncompacted_bytes >= COMPACT_BYTES) {
                uncompacted_bytes = 0;
                self.compact()?;
            }
            match next {
                Some(next) => from = next,
                None => return Ok(()),
            }
        }
    }

    /// Sweeps from `from` on. Where the next range begins, `None` behind the last one, and what came of it.
    fn sweep_range(&mut self, from: &Key) -> Result<(Option<Key>, GcCounts), GcError> {
        loop {
            // First the lineage, then (inside) the iterator: see below.
            let lineage_no = self.timeline.lineage_no.load(Ordering::SeqCst);
            let mut range = Range::new(self.timeline, self.pins, self.dry_run);
            let next = range.walk(from, self.pace)?;
            self.timeline.check_here()?;
            // What an ancestor showed may have become versions of the timeline's own, which the walk may not have seen.
            if self.timeline.lineage_no.load(Ordering::SeqCst) != lineage_no {
                continue;
            }
            return Ok((next, range.finish()?));
        }
    }

    fn compact(&mut self) -> Result<(), GcError> {
        let (pace, mut paid) = (&mut *self.pace, 0);
        let mut is_stopped = false;
        let compacted_bytes = self.timeline.store.compact_removed(&mut |written| {
            is_stopped = pace.take(written - paid).is_break();
            paid = written;
            is_stopped
        });
        self.progress.add(None, &GcCounts { compacted_bytes, ..GcCounts::default() });
        if is_stopped { Err(GcError::Stopped) } else { Ok(()) }
    }
}

/// Objects that are decided about together.
struct Range<'a> {
    timeline: &'a Timeline,
    pins: &'a [Lsn],
    lineage: Arc<Lineage>,
    /// `None`: only counts.
    set: Option<SweepSet<'a>>,
    /// Of the object that is being decided about.
    key: Key,
    object: Object,
    /// An image that stands behind what goes at or below its LSN.
    image: Option<(Lsn, Bytes)>,
    sizes: Sizes,
    counts: GcCounts,
}

impl<'a> Range<'a> {
    fn new(timeline: &'a Timeline, pins: &'a [Lsn], dry_run: bool) -> Self {
        Range {
            timeline,
            pins,
            lineage: timeline.lineage(),
            set: (!dry_run).then(|| timeline.store.begin_sweep()),
            key: Key::from(Object::Watermark),
            object: Object::Watermark,
            image: None,
            sizes: Sizes::default(),
            counts: GcCounts::default(),
        }
    }

    /// Decides about every object from `from` on, to the range's end. Returns the first one behind it.
    fn walk(&mut self, from: &Key, pace: &mut Pace<'_>) -> Result<Option<Key>, GcError> {
        let timeline = self.timeline;
        let mut decision: Option<Decision<'a>> = None;
        let mut next = None;
        timeline.store.walk_durable(from, &mut |version: &StoredVersion| {
            if decision.is_none() || version.key != self.key {
                if let Some(decided) = decision.take() {
                    decided.finish(self)?;
                    self.end_object()?;
                }
                if self.counts.walked_bytes >= RANGE_BYTES {
                    next = Some(version.key);
                    return Ok(ControlFlow::Break(()));
                }
                decision = Some(self.begin_object(version.key)?);
            }
            let bytes = KEY_BYTES + version.value_bytes;
            self.counts.walked_bytes += bytes;
            if pace.take(bytes).is_break() {
                return Err(GcError::Stopped);
            }
            let version = Version { lsn: version.lsn, kind: version.kind, value_bytes: version.value_bytes };
            if let Some(decision) = &mut decision {
                decision.push(version, self)?;
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if let Some(decided) = decision {
            decided.finish(self)?;
            self.end_object()?;
        }
        Ok(next)
    }

    fn begin_object(&mut self, key: Key) -> Result<Decision<'a>, GcError> {
        (self.key, self.object) = (key, key.object()?);
        Ok(Decision::new(if self.object == Object::Watermark { WATERMARK_PINS } else { self.pins }))
    }

    fn end_object(&mut self) -> Result<(), GcError> {
        self.put_image_before(Lsn::MAX)
    }

    /// Writes the image that waits, if it stands below what comes at `lsn`.
    fn put_image_before(&mut self, lsn: Lsn) -> Result<(), GcError> {
        if self.image.as_ref().is_none_or(|(image_lsn, _)| lsn <= *image_lsn) {
            return Ok(());
        }
        if let (Some((image_lsn, page)), Some(set)) = (self.image.take(), &mut self.set) {
            let is_zero = page.iter().all(|byte| *byte == 0);
            set.put_image(&self.key, image_lsn, if is_zero { &[] } else { &page })?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<GcCounts, GcError> {
        if let Some(set) = self.set.take().filter(|set| !set.is_empty()) {
            self.counts.written_bytes += set.finish()?;
        }
        Ok(self.counts)
    }

    /// The page at a pin; `None` where it cannot be made.
    fn page_at(&self, pin_lsn: Lsn) -> Result<Option<Bytes>, GcError> {
        match self.timeline.pages_uncached(&[self.key], pin_lsn) {
            Ok(pages) => Ok(pages.into_iter().next()),
            Err(error @ (ReadError::Redo { .. } | ReadError::Damaged { .. } | ReadError::BaseMissing { .. })) => {
                warn!(key = %self.key, %pin_lsn, %error, "a chain stays, since its page cannot be made");
                Ok(None)
            }
            Err(error) if error.is_lost() => Ok(None), // Told when it was taken out.
            Err(error) => Err(error.into()),
        }
    }
}

impl Judge for Range<'_> {
    type Error = GcError;

    /// Pages behind the end of their fork or segment, or of one that does not exist, read as zeroes or not at all; when they come again, ingest begins
    /// them anew with a page of zeroes, an image or an init delta.
    fn is_shown(&mut self, pin_lsn: Lsn) -> Result<bool, GcError> {
        let (sized, index) = match self.object {
            Object::RelationBlock { rel, fork, block_no } => (Object::RelationSize { rel, fork }, block_no),
            Object::SlruPage { kind, page_no } => {
                let segment_no = page_no / SLRU_PAGES_PER_SEGMENT;
                (Object::SlruSegment { kind, segment_no }, page_no % SLRU_PAGES_PER_SEGMENT)
            }
            _ => return Ok(true),
        };
        match self.sizes.at(self.timeline, sized, pin_lsn) {
            Ok(count) => Ok(count.is_some_and(|count| index < count)),
            Err(GcError::Read(error)) if error.is_lost() => Ok(true), // Nobody knows; it may be.
            Err(error) => Err(error),
        }
    }

    fn is_inherited(&mut self) -> Result<bool, GcError> {
        // Without the tombstone nobody could tell it from one that is lost.
        if self.timeline.store.lost().may_hide(&self.key, None) {
            return Ok(true);
        }
        let mut found = Gathered::default();
        for (ancestor, branch_lsn) in &self.lineage.ancestors {
            match ancestor.store.gather(&self.key, *branch_lsn, &mut found) {
                Ok(is_ended) if is_ended || !found.versions.is_empty() => break,
                Ok(_) => {}
                Err(StoreError::Lost { .. }) => return Ok(true), // Nobody knows; it may be.
                Err(error) => return Err(error.into()),
            }
        }
        Ok(found.versions.first().is_some_and(|(_, kind, _)| *kind != keyenc::Kind::Tombstone))
    }

    fn change(&mut self, change: Change) -> Result<bool, GcError> {
        let class = class_name(&self.object);
        match change {
            Change::Remove(version) => {
                self.put_image_before(version.lsn)?;
                if let Some(set) = &mut self.set {
                    set.remove(&self.key, version.lsn, version.kind)?;
                }
                self.counts.count_removed(class, &version);
            }
            Change::MakeImage { version_lsn, pin_lsn } => {
                self.put_image_before(version_lsn)?;
                if self.set.is_some() {
                    let Some(page) = self.page_at(pin_lsn)? else {
                        self.counts.images_failed += 1;
                        return Ok(false);
                    };
                    self.image = Some((version_lsn, page));
                }
                self.counts.count_image(class);
            }
        }
        Ok(true)
    }
}

/// How long a fork or segment is at the pins that were asked for: neighbours ask for the same.
#[derive(Default)]
struct Sizes {
    sized: Option<Object>,
    at: Vec<(Lsn, Option<u32>)>,
}

impl Sizes {
    fn at(&mut self, timeline: &Timeline, sized: Object, lsn: Lsn) -> Result<Option<u32>, GcError> {
        if self.sized != Some(sized) {
            self.sized = Some(sized);
            self.at.clear();
        }
        match self.at.binary_search_by_key(&lsn, |(known_lsn, _)| *known_lsn) {
            Ok(known) => Ok(self.at[known].1),
            Err(place) => {
                let count = timeline.count_object(sized, lsn)?;
                self.at.insert(place, (lsn, count));
                Ok(count)
            }
        }
    }
}
