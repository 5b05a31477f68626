//! Reads that go on in ancestors: which versions of which timelines an object is made of.
//!
//! - **Never:** an answer from a timeline that was deleted or reset while it was read. Whoever takes versions away marks the timeline first
//!   ([`Timeline::mark_gone`]); whoever reads looks at the mark last.
//! - **Never:** an answer above what the ancestors have. A branch is made at once, without waiting for its ancestor's newest records to be durable in the
//!   store; they are in its WAL. After a crash they come again, and until then the branch can be read up to where they are.
//! - **Never:** an answer from a history of which a part was removed meanwhile. Whoever reads looks at the horizons last ([`super::gc`]).
//! - A lineage is taken once and kept for a read. It changes when a timeline is detached; then the read is done again with the new one.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use keyenc::Key;
use postgres_ffi::Lsn;

use super::{ReadError, Timeline, TimelineMetadata};
use crate::seq_wait::WaitError;
use crate::store::{Gathered, StoreError};

/// Where the versions stand that a timeline has not itself.
pub(super) struct Lineage {
    /// Nearest first, each with the LSN up to which its versions are ours too.
    pub ancestors: Vec<(Arc<Timeline>, Lsn)>,
    /// Below it there are no versions: what an import or a detached branch begins with.
    pub floor_lsn: Lsn,
}

impl Lineage {
    /// The lineage of the timeline with `metadata`, whose ancestors are `ancestors`.
    pub fn new(metadata: &TimelineMetadata, ancestors: Vec<(Arc<Timeline>, Lsn)>) -> Self {
        // Of the root itself: the lineages between may be about to change with this one.
        let imported_of_root = match ancestors.last() {
            Some((root, _)) => root.metadata().imported.clone(),
            None => metadata.imported.clone(),
        };
        let floor_lsn = imported_of_root.map_or(Lsn::ZERO, |imported| imported.start_lsn);
        Lineage { ancestors, floor_lsn }
    }

    /// The ancestors that have not come again to where they were left.
    fn missing(&self) -> impl Iterator<Item = &(Arc<Timeline>, Lsn)> {
        self.ancestors.iter().filter(|(ancestor, branch_lsn)| ancestor.last_record.current() < *branch_lsn)
    }

    /// One that has not come to `lsn`, or to where it was left if that is below.
    fn missing_below(&self, lsn: Lsn) -> Option<&(Arc<Timeline>, Lsn)> {
        self.missing().find(|(ancestor, _)| ancestor.last_record.current() < lsn)
    }

    /// The lineage of a branch that leaves `ancestor` at `branch_lsn`.
    pub fn ancestors_of_branch(ancestor: &Arc<Timeline>, branch_lsn: Lsn) -> Vec<(Arc<Timeline>, Lsn)> {
        let lineage = ancestor.lineage();
        let older = lineage.ancestors.iter().map(|(timeline, lsn)| (Arc::clone(timeline), (*lsn).min(branch_lsn)));
        std::iter::once((Arc::clone(ancestor), branch_lsn)).chain(older).collect()
    }
}

impl Timeline {
    pub(super) fn lineage(&self) -> Arc<Lineage> {
        Arc::clone(&self.lineage.read())
    }

    /// Requires: what the new lineage lacks are versions of this timeline by now, or of one that the new lineage has.
    pub(super) fn set_lineage(&self, lineage: Lineage) {
        // First: whoever sees the new lineage sees that it is one.
        self.lineage_no.fetch_add(1, Ordering::SeqCst);
        *self.lineage.write() = Arc::new(lineage);
    }

    /// True when every ancestor has come to where this timeline left it; then it stays so.
    pub(super) fn inherits_all(&self) -> bool {
        if self.inherits_all.load(Ordering::Acquire) {
            return true;
        }
        let inherits_all = self.lineage().missing().next().is_none();
        if inherits_all {
            self.inherits_all.store(true, Ordering::Release);
        }
        inherits_all
    }

    /// Up to here the ancestors have everything; [`Lsn::MAX`] when they have all that is ours.
    pub(super) fn inherited_lsn(&self) -> Lsn {
        let lineage = self.lineage();
        lineage.missing().map(|(ancestor, _)| ancestor.last_record.current()).min().unwrap_or(Lsn::MAX)
    }

    /// Up to here everything that is ours is durable with the ancestors. `None`: all of it.
    pub(super) fn inherited_durable_lsn(&self) -> Option<Lsn> {
        let watermark = |(ancestor, branch_lsn): &(Arc<Timeline>, Lsn)| {
            // One that nothing was written to has nothing of its own.
            let watermark_lsn = ancestor.store.watermark()?.last_record_lsn;
            (watermark_lsn < *branch_lsn).then_some(watermark_lsn)
        };
        self.lineage().ancestors.iter().filter_map(watermark).min()
    }

    /// Returns when the ancestors have everything at or below `lsn` that is ours.
    pub(super) fn wait_for_ancestors(&self, lsn: Lsn, timeout: impl Fn() -> Duration) -> Result<(), WaitError<Lsn>> {
        if self.inherits_all() {
            return Ok(());
        }
        let wait = |(ancestor, branch_lsn): &(Arc<Timeline>, Lsn)| {
            ancestor.last_record.wait_for(lsn.min(*branch_lsn), timeout()).map(drop)
        };
        self.lineage().ancestors.iter().try_for_each(wait)
    }

    /// To be called before versions of this timeline are taken away. Reads that are under way fail.
    pub(super) fn mark_gone(&self) {
        self.gone.store(true, Ordering::SeqCst);
        self.last_record.shutdown();
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }

    /// True when it could not be opened.
    pub(crate) fn is_damaged(&self) -> bool {
        self.damage.is_some()
    }

    /// Errors: [`ReadError::Gone`], [`ReadError::Unopened`].
    pub(crate) fn check_here(&self) -> Result<(), ReadError> {
        let timeline = || self.metadata().name.clone();
        if self.is_gone() {
            return Err(ReadError::Gone { timeline: timeline() });
        }
        match &self.damage {
            Some(reason) => Err(ReadError::Unopened { timeline: timeline(), reason: Arc::clone(reason) }),
            None => Ok(()),
        }
    }

    /// The versions that the object at `request_lsn` is made of, from this timeline and its ancestors, newest first.
    pub(super) fn gather(&self, key: &Key, request_lsn: Lsn) -> Result<Gathered, ReadError> {
        self.gather_with(key, request_lsn, |found| self.store.gather(key, request_lsn, found))
    }

    /// As [`Timeline::gather`]; what is read from the store's files leaves its cache as it is.
    pub(super) fn gather_cold(&self, key: &Key, request_lsn: Lsn) -> Result<Gathered, ReadError> {
        self.gather_into(&Gathered::cold(), key, request_lsn, |found| self.store.gather(key, request_lsn, found))
    }

    /// As [`Timeline::gather`]; `gather_own` gives this timeline's own versions, true if they are enough.
    pub(super) fn gather_with(
        &self,
        key: &Key,
        request_lsn: Lsn,
        gather_own: impl Fn(&mut Gathered) -> Result<bool, StoreError>,
    ) -> Result<Gathered, ReadError> {
        self.gather_into(&Gathered::default(), key, request_lsn, gather_own)
    }

    fn gather_into(
        &self,
        nothing: &Gathered,
        key: &Key,
        request_lsn: Lsn,
        gather_own: impl Fn(&mut Gathered) -> Result<bool, StoreError>,
    ) -> Result<Gathered, ReadError> {
        loop {
            // A detach may make own versions of inherited ones after we have looked, and take the ancestors away before we come to them.
            let lineage_no = self.lineage_no.load(Ordering::SeqCst);
            let mut found = nothing.clone();
            if gather_own(&mut found)? {
                self.check_here()?;
                self.check_retained(request_lsn)?;
                return Ok(found);
            }
            let all = self.gather_inherited(key, request_lsn, &found);
            if self.lineage_no.load(Ordering::SeqCst) == lineage_no {
                return all;
            }
        }
    }

    /// `own`, which are all of this timeline's versions, with what the ancestors have below them.
    fn gather_inherited(&self, key: &Key, request_lsn: Lsn, own: &Gathered) -> Result<Gathered, ReadError> {
        self.through_ancestors(request_lsn, |ancestors| {
            let mut found = own.clone();
            for (ancestor, branch_lsn) in ancestors {
                if ancestor.store.gather(key, request_lsn.min(*branch_lsn), &mut found)? {
                    break;
                }
            }
            Ok(found)
        })
    }

    /// What `read` makes of this timeline and its ancestors as they stand: read again if one of them goes meanwhile. `read` looks at this timeline's
    /// versions itself: those that it knows from before may be too few for the ancestors that it is given.
    pub(super) fn through_ancestors<T>(
        &self,
        request_lsn: Lsn,
        read: impl Fn(&[(Arc<Timeline>, Lsn)]) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        let answer = self.through_ancestors_as_stored(request_lsn, read)?;
        self.check_retained(request_lsn)?;
        Ok(answer)
    }

    /// As [`Timeline::through_ancestors`], whatever was given up of the history at `request_lsn`: for what is no read as of an LSN.
    pub(super) fn through_ancestors_as_stored<T>(
        &self,
        request_lsn: Lsn,
        read: impl Fn(&[(Arc<Timeline>, Lsn)]) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        loop {
            let lineage = self.lineage();
            if request_lsn < lineage.floor_lsn {
                return Err(ReadError::BelowFirstReadable { request_lsn, first_readable_lsn: lineage.floor_lsn });
            }
            if !self.inherits_all()
                && let Some((ancestor, _)) = lineage.missing_below(request_lsn)
            {
                let last_record_lsn = ancestor.last_record.current();
                return Err(ReadError::NotYet { request_lsn, last_record_lsn });
            }
            let answer = read(&lineage.ancestors);
            self.check_here()?;
            // An ancestor keeps what is ours for as long as it is one.
            if !Arc::ptr_eq(&lineage, &self.lineage()) {
                continue;
            }
            if let Some((gone, _)) = lineage.ancestors.iter().find(|(ancestor, _)| ancestor.is_gone()) {
                gone.check_here()?;
            }
            return answer;
        }
    }

    /// To be called when all was read that an answer is made of. Errors: [`ReadError::BelowFirstReadable`] when the history at `request_lsn`
    /// was given up, before or meanwhile.
    pub(super) fn check_retained(&self, request_lsn: Lsn) -> Result<(), ReadError> {
        if self.is_retained(request_lsn) {
            return Ok(());
        }
        let first_readable_lsn = self.first_readable_lsn().unwrap_or(Lsn::MAX);
        Err(ReadError::BelowFirstReadable { request_lsn, first_readable_lsn })
    }

    /// False when the history at `lsn` was given up: here, or in an ancestor that would have to show it.
    pub(super) fn is_retained(&self, lsn: Lsn) -> bool {
        let keeps = |(ancestor, branch_lsn): &(Arc<Timeline>, Lsn)| *branch_lsn <= lsn || ancestor.horizon.keeps(lsn);
        self.horizon.keeps(lsn) && self.lineage().ancestors.iter().all(keeps)
    }

    /// True when `lsn` can be read although it is below the first readable one: a lease or a branch keeps it. Requires: it is below.
    pub fn is_pinned(&self, lsn: Lsn) -> bool {
        let lineage = self.lineage();
        let root = lineage.ancestors.last().map_or_else(|| self.metadata(), |(root, _)| root.metadata());
        let begins_at = root.imported.as_ref().map_or(Lsn::MAX, |imported| imported.first_readable_lsn);
        begins_at <= lsn && self.is_retained(lsn)
    }

    /// Errors: [`ReadError::BelowFirstReadable`] for an LSN below the first readable one that is not pinned.
    pub(super) fn check_in_history(&self, lsn: Lsn) -> Result<(), ReadError> {
        match self.first_readable_lsn() {
            Some(first_readable_lsn) if first_readable_lsn <= lsn => Ok(()),
            Some(_) if self.is_pinned(lsn) => Ok(()),
            first => {
                let first_readable_lsn = first.unwrap_or(Lsn::MAX);
                Err(ReadError::BelowFirstReadable { request_lsn: lsn, first_readable_lsn })
            }
        }
    }

    /// The timeline that this one left, and where; `None` for an imported or detached one.
    pub fn nearest_ancestor(&self) -> Option<(Arc<Timeline>, Lsn)> {
        self.lineage().ancestors.first().cloned()
    }

    /// False for a version that stands in an ancestor.
    pub(super) fn is_own_version(&self, version_lsn: Lsn) -> bool {
        self.lineage().ancestors.first().is_none_or(|(_, branch_lsn)| version_lsn > *branch_lsn)
    }

    /// Caches a page back into the timeline that has its version: what a branch reads of an ancestor is of use to all that read it there.
    pub(super) fn cache_back(&self, key: Key, version_lsn: Lsn, page: Bytes) {
        let lineage = self.lineage();
        let mut owner = self;
        for (ancestor, branch_lsn) in &lineage.ancestors {
            if version_lsn > *branch_lsn {
                break;
            }
            owner = ancestor;
        }
        owner.store.cache_back(key, version_lsn, page);
    }

    /// True if no version of `key` lies above `after` and at or below `through`, as far as memory can tell. Below the branch LSN it
    /// cannot: there the versions are an ancestor's.
    pub(super) fn is_unchanged(&self, key: &Key, after: Lsn, through: Lsn) -> bool {
        let is_own = self.lineage().ancestors.first().is_none_or(|(_, branch_lsn)| after >= *branch_lsn);
        is_own && self.store.is_unchanged(key, after, through)
    }
}
