//! Timelines are deleted, renamed, and reset to another branch point.
//!
//! - What others read through is not touched: they are named instead.
//! - A mark on disk comes first; a crash at any point is gone on with at the next start (see [`super::marks`]).
//! - Readers that hold the timeline are told before the first version goes.

use std::path::Path;
use std::sync::Arc;

use tracing::info;

use super::branch_error::BranchError;
use super::branching::{BranchPoint, Changed};
use super::marks::{DELETING, RESETTING, clear_mark, read_mark, set_mark};
use super::{Repository, RepositoryError};
use crate::failpoint::Failpoint;
use crate::timeline::metadata::{Ancestor, TimelineMetadata};
use crate::timeline::{TenantId, Timeline, TimelineId};

/// What is told of versions that could not be deleted.
const VERSIONS_STAY: &str =
    "what it had stays in a damaged file of the store, where nobody reads it; `pageserver mend` leaves it out";

impl Repository {
    /// Deletes the timeline `name` with everything that only it has. The slot at its primary is dropped as far as the primary lets us.
    ///
    /// Errors: [`BranchError::HasBranches`], [`BranchError::Leased`], [`BranchError::Busy`]; no such timeline; the disk.
    pub fn delete_timeline(&self, name: &str) -> Result<Changed, RepositoryError> {
        let changes = self.changes.lock();
        let timeline = self.timeline_named(name)?;
        self.check_unused(&timeline)?;
        let metadata = timeline.metadata();
        let dir = self.timeline_dir(metadata.timeline_id);
        // As long as the timeline names it nobody else has it for long. An import that has just ended may have kept it: it is listed after that.
        let slot = metadata.primary.as_ref().map(|primary| self.left_slots.take(primary));
        metadata.primary.iter().try_for_each(|primary| self.left_slots.add(primary))?;
        set_mark(&dir, DELETING, metadata.timeline_no)?;
        Failpoint::DeleteMarked.pass();
        timeline.end_receiver();
        timeline.mark_gone();
        self.timelines.write().remove(&metadata.timeline_id);
        let mut notices = Vec::new();
        if !self.take_away(&dir, DELETING)? {
            notices.push(VERSIONS_STAY.to_owned());
        }
        self.forget_tenant_without_timelines(&metadata)?;
        Failpoint::DeleteDone.pass();
        info!(timeline = %metadata.name, timeline_id = %metadata.timeline_id, "timeline deleted");
        drop(changes); // Its primary may take its time.
        notices.extend(slot.map(|slot| slot.drop_slot()));
        Failpoint::DeleteSlotDropped.pass();
        Ok(Changed { timeline, notices })
    }

    /// Calls the timeline `name` `new_name` from now on. Errors: the new name is taken or none; no such timeline; the disk.
    pub fn rename_timeline(&self, name: &str, new_name: &str) -> Result<Changed, RepositoryError> {
        let new_name = self.reserve_name(new_name)?;
        let _changes = self.changes.lock();
        let timeline = self.timeline_named(name)?;
        self.change_metadata(&timeline, |metadata| metadata.name = new_name.as_str().to_owned())?;
        Failpoint::RenameSaved.pass();
        info!(from = name, to = new_name.as_str(), "timeline renamed");
        Ok(Changed { timeline, notices: Vec::new() })
    }

    /// Throws away what the branch `name` has itself and lets it begin anew at `point` of its ancestor. It follows nobody then.
    ///
    /// Errors: as [`Repository::delete_timeline`] and [`Repository::create_branch`]; [`BranchError::NotABranch`].
    pub fn reset_branch(&self, name: &str, point: BranchPoint) -> Result<Changed, RepositoryError> {
        let changes = self.changes.lock();
        let timeline = self.timeline_named(name)?;
        let metadata = timeline.metadata();
        let not_a_branch = || BranchError::NotABranch { timeline: metadata.name.clone() };
        let (ancestor, _) = timeline.nearest_ancestor().ok_or_else(not_a_branch)?;
        self.check_unused(&timeline)?;
        let found = self.find_branch_point(&ancestor, point)?;
        let mut new = (*metadata).clone();
        new.timeline_no = self.next_timeline_no();
        new.ancestor = Some(Ancestor { timeline_id: found.ancestor.metadata().timeline_id, lsn: found.branch_lsn });
        new.cluster = self.cluster_facts_at(&found)?;
        new.primary = None;
        new.gc = None;
        let dir = self.timeline_dir(metadata.timeline_id);
        let slot = metadata.primary.as_ref().map(|primary| self.left_slots.take(primary));
        metadata.primary.iter().try_for_each(|primary| self.left_slots.add(primary))?;
        // Of a reset that failed. One that could not be taken back either may stand on disk: its mark says what ours would, and stays.
        let marked_no = if dir.join(RESETTING).exists() { read_mark(&dir, RESETTING)? } else { None };
        if marked_no.is_some_and(|old_no| old_no != metadata.timeline_no()) {
            self.finish_reset(&dir, &metadata)?;
        }
        if marked_no != Some(metadata.timeline_no()) {
            set_mark(&dir, RESETTING, metadata.timeline_no)?;
        }
        Failpoint::ResetMarked.pass();
        timeline.end_receiver();
        if let Err(error) = new.save(&dir) {
            drop(slot); // It stays.
            return Err(self.take_back_reset(&timeline, error.into()));
        }
        Failpoint::ResetMetadataSaved.pass();
        let mut notices = found.notices;
        timeline.mark_gone();
        let opened =
            self.finish_reset(&dir, &new).and_then(|all_gone| Ok((all_gone, self.open_timeline(new.clone())?)));
        let (all_gone, timeline) = opened.or_else(|error| Err(self.show_unopened(new, error)?))?;
        if !all_gone {
            notices.push(VERSIONS_STAY.to_owned());
        }
        Failpoint::ResetDone.pass();
        info!(branch = name, branch_lsn = %found.branch_lsn, "branch reset");
        drop(changes); // Its primary may take its time.
        notices.extend(slot.map(|slot| slot.drop_slot()));
        Failpoint::ResetSlotDropped.pass();
        Ok(Changed { timeline, notices })
    }

    /// After a reset whose metadata could not be saved: as before it, on disk too; `error` comes back. If that cannot be written either, nothing comes in any more: the next start may
    /// find the branch reset.
    fn take_back_reset(&self, timeline: &Arc<Timeline>, error: RepositoryError) -> RepositoryError {
        timeline.begin_again();
        match self.change_metadata(timeline, |_| {}) {
            Ok(()) => self.follow_again(timeline),
            Err(error) => timeline.stop(&error),
        }
        error
    }

    /// Takes away what a reset has left of the branch that was, or the mark of a reset that did not happen.
    /// False: versions of it stay, see [`Repository::take_away_or_leave`].
    pub(super) fn finish_reset(&self, dir: &Path, metadata: &TimelineMetadata) -> Result<bool, RepositoryError> {
        let mut all_gone = true;
        if let Some(old_no) = read_mark(dir, RESETTING)?
            && old_no != metadata.timeline_no()
        {
            let wal_dir = dir.join("wal");
            std::fs::remove_dir_all(&wal_dir)
                .or_else(|error| if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
                .and_then(|()| std::fs::create_dir(&wal_dir))
                .map_err(|source| RepositoryError::Io { doing: "empty the WAL of a branch", path: wal_dir, source })?;
            Failpoint::ResetWalEmptied.pass();
            all_gone = self.take_away_or_leave(old_no, false)?;
            Failpoint::ResetVersionsGone.pass();
        }
        clear_mark(dir, RESETTING)?;
        Ok(all_gone)
    }

    /// Refuses to take away what somebody else needs. Requires: `changes` is locked.
    pub(super) fn check_unused(&self, timeline: &Timeline) -> Result<(), RepositoryError> {
        let metadata = timeline.metadata();
        let name = || metadata.name.clone();
        self.check_not_busy(&metadata)?;
        let branches = self.branches_of(metadata.timeline_id);
        if !branches.is_empty() {
            return Err(BranchError::HasBranches { timeline: name(), branches }.into());
        }
        let leases = self.leases.ids_of(metadata.timeline_id);
        if !leases.is_empty() {
            return Err(BranchError::Leased { timeline: name(), leases }.into());
        }
        Ok(())
    }

    /// Names of the timelines that branch off directly, in order.
    fn branches_of(&self, timeline_id: TimelineId) -> Vec<String> {
        let branches_off = |timeline: &Arc<Timeline>| {
            let metadata = timeline.metadata();
            let is_one = metadata.ancestor.as_ref().is_some_and(|ancestor| ancestor.timeline_id == timeline_id);
            is_one.then(|| metadata.name.clone())
        };
        self.timelines().iter().filter_map(branches_off).collect()
    }

    /// Nothing of a tenant is kept when its last timeline is gone.
    fn forget_tenant_without_timelines(&self, metadata: &TimelineMetadata) -> Result<(), RepositoryError> {
        let tenant_id = metadata.tenant_id;
        if self.timelines().iter().any(|timeline| timeline.metadata().tenant_id == tenant_id) {
            return Ok(());
        }
        self.redo.lock().remove(&tenant_id);
        self.remove_tenant_dir(tenant_id)
    }

    /// At the start: what a crash, or a timeline that was given up, has left of tenants that have none.
    pub(super) fn forget_tenants_but_of(&self, timelines: &[TimelineMetadata]) -> Result<(), RepositoryError> {
        let entries = match std::fs::read_dir(&self.tenants_dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            entries => entries,
        };
        let io = |source| RepositoryError::Io { doing: "list the tenants", path: self.tenants_dir.clone(), source };
        for entry in entries.map_err(io)? {
            let name = entry.map_err(io)?.file_name();
            // What has another name is not ours.
            let Some(tenant_id) = name.to_str().and_then(|name| name.parse::<TenantId>().ok()) else { continue };
            if !timelines.iter().any(|metadata| metadata.tenant_id == tenant_id) {
                self.remove_tenant_dir(tenant_id)?;
            }
        }
        Ok(())
    }

    fn remove_tenant_dir(&self, tenant_id: TenantId) -> Result<(), RepositoryError> {
        let dir = self.tenant_dir(tenant_id);
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(RepositoryError::Io { doing: "remove a tenant's directory", path: dir, source: error })
            }
            _ => {
                Failpoint::TenantRemoved.pass();
                Ok(())
            }
        }
    }
}
