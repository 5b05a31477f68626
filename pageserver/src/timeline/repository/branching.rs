//! A branch is made: metadata alone, whatever the size of what it shows.
//!
//! - Nothing is waited for: what the ancestor has in memory only is in its WAL, and comes again after a crash (see [`crate::timeline::lineage`]).
//! - The directory is made under another name and renamed when it is whole: a crash leaves nothing or a whole branch.
//! - A branch of an LSN that its timeline shares with an ancestor is a branch of that ancestor: it needs nothing of the timeline between.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use postgres_ffi::Lsn;
use tracing::{info, warn};

use super::branch_error::BranchError;
use super::names::ReservedName;
use super::{Repository, RepositoryError, create_dir};
use crate::basebackup::wal_place;
use crate::failpoint::Failpoint;
use crate::timeline::metadata::{Ancestor, ClusterFacts, TimelineMetadata};
use crate::timeline::{LsnAtTime, ReadError, Timeline, TimelineId, TimelineState};
use crate::wal::RecordAt;
use crate::wall_time::TimeSpec;

/// Directories of branches and imports that are being made begin with this; no timeline id does. What a crash leaves of them is removed at the start.
pub(super) const NEW_DIR_PREFIX: &str = "new-";

/// Where a branch is to leave its ancestor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BranchPoint {
    /// At the last record that can be read.
    Last,
    /// At this LSN, which need not be the end of a record.
    Lsn(Lsn),
    /// Where it was at this time: see [`Timeline::lsn_at_time`].
    Time(TimeSpec),
}

/// A timeline that was made or changed, with what a person should hear about it.
pub struct Changed {
    /// As it is now.
    pub timeline: Arc<Timeline>,
    /// One sentence each.
    pub notices: Vec<String>,
}

/// A branch point that was found: the timeline that has the versions, and the end of a record there.
#[derive(Clone)]
pub(super) struct Found {
    pub ancestor: Arc<Timeline>,
    pub branch_lsn: Lsn,
    pub notices: Vec<String>,
}

/// The end of a record that shows the pages as of `lsn`, which is pinned below the horizon: the WAL there is gone, and so are the LSNs around it.
fn pinned_record_end(timeline: &Timeline, lsn: Lsn) -> (Lsn, Option<&'static str>) {
    let aligned_lsn = wal_place(&timeline.metadata().cluster).record_end_at_or_before(lsn);
    match timeline.is_pinned(aligned_lsn) {
        true if aligned_lsn != lsn => (aligned_lsn, Some("aligned down, the WAL there is not on disk any more")),
        _ => (lsn, None),
    }
}

impl Repository {
    /// Makes branch `name` of the timeline named `timeline`. Takes the same time whatever the size of the cluster, and whatever is being written.
    ///
    /// Errors: [`BranchError`]; the name is taken or none; there is no such timeline; the disk.
    pub fn create_branch(&self, name: &str, timeline: &str, point: BranchPoint) -> Result<Changed, RepositoryError> {
        let name = self.reserve_name(name)?;
        let asked = self.timeline_named(timeline)?;
        let found = self.find_branch_point(&asked, point)?;
        let _changes = self.changes.lock();
        self.check_still_there(&found)?;
        let timeline = self.create_branch_at(&name, &found)?;
        Failpoint::BranchOpened.pass();
        info!(branch = %name.as_str(), ancestor = %found.ancestor.metadata().name, branch_lsn = %found.branch_lsn, "branch created");
        Ok(Changed { timeline, notices: found.notices })
    }

    /// The timeline that holds the versions of `asked` at `point`, and the LSN that is taken.
    pub(super) fn find_branch_point(
        &self,
        asked: &Arc<Timeline>,
        point: BranchPoint,
    ) -> Result<Found, RepositoryError> {
        asked.check_here()?;
        let timeline = || asked.metadata().name.clone();
        if let state @ (TimelineState::Importing | TimelineState::CatchingUp) = asked.state() {
            return Err(BranchError::NotReadableYet { timeline: timeline(), state: state.name() }.into());
        }
        let last_record_lsn = asked.last_record_lsn();
        let mut notices = Vec::new();
        let asked_lsn = match point {
            BranchPoint::Last => last_record_lsn,
            BranchPoint::Lsn(lsn) => lsn,
            BranchPoint::Time(time) => {
                let time = time.resolve(SystemTime::now());
                let LsnAtTime { lsn, commit_time } = asked.lsn_at_time(time)?;
                notices.push(format!("at {time} `{}` was at {lsn}, its last commit at {commit_time}", timeline()));
                lsn
            }
        };
        if last_record_lsn < asked_lsn {
            let timeline = timeline();
            return Err(BranchError::LsnNotYet { branch_lsn: asked_lsn, last_record_lsn, timeline }.into());
        }
        self.check_branch_lsn(asked, asked_lsn)?;
        let mut ancestor = Arc::clone(asked);
        while let Some((older, branch_lsn)) = ancestor.nearest_ancestor()
            && asked_lsn < branch_lsn
        {
            ancestor = older;
        }
        if !Arc::ptr_eq(&ancestor, asked) {
            notices.push(format!(
                "at {asked_lsn} `{}` still is `{}`: the new branch is one of `{}`",
                timeline(),
                ancestor.metadata().name,
                ancestor.metadata().name
            ));
        }
        let (branch_lsn, why) = match asked.first_readable_lsn() {
            Some(first_readable_lsn) if first_readable_lsn <= asked_lsn => {
                self.record_end_at(&ancestor, asked_lsn, first_readable_lsn)
            }
            _ => pinned_record_end(&ancestor, asked_lsn),
        };
        notices.extend(why.map(|why| format!("branch LSN {branch_lsn}, not {asked_lsn}: {why}")));
        Ok(Found { ancestor, branch_lsn, notices })
    }

    /// The end of a record that shows the pages as of `lsn`, and why it is another one than `lsn`. Requires: `lsn` can be read on `timeline`, and
    /// is not below its branch LSN.
    fn record_end_at(&self, timeline: &Timeline, lsn: Lsn, first_readable_lsn: Lsn) -> (Lsn, Option<&'static str>) {
        let begins_at = timeline.nearest_ancestor().map(|(_, branch_lsn)| branch_lsn);
        if lsn == timeline.last_record_lsn() || Some(lsn) == begins_at {
            return (lsn, None);
        }
        let at = self.wal_layout(timeline).record_at(lsn).unwrap_or_else(|error| {
            warn!(timeline = %timeline.metadata().name, %lsn, %error, "the WAL does not tell where a record ends");
            None
        });
        match at {
            Some(RecordAt::End { .. }) => (lsn, None),
            Some(RecordAt::Inside { end_lsn, .. }) if end_lsn <= timeline.last_record_lsn() => {
                (end_lsn, Some("the end of the record that this LSN lies in"))
            }
            Some(RecordAt::Between { end_lsn, .. }) if first_readable_lsn <= end_lsn && begins_at <= Some(end_lsn) => {
                (end_lsn, Some("the end of the last record before it"))
            }
            // A server that starts from a branch of this LSN starts where a record can end.
            _ => {
                let aligned_lsn = wal_place(&timeline.metadata().cluster).record_end_at_or_before(lsn);
                // What can be read, and what is this timeline's, may begin behind a page header.
                match aligned_lsn.max(first_readable_lsn).max(begins_at.unwrap_or(Lsn::ZERO)) {
                    taken_lsn if taken_lsn == lsn => (lsn, None),
                    taken_lsn => (taken_lsn, Some("aligned down, the WAL there is not on disk any more")),
                }
            }
        }
    }

    /// Nothing may have happened to the ancestor since the point was found. Requires: `changes` is locked.
    pub(super) fn check_still_there(&self, found: &Found) -> Result<(), RepositoryError> {
        found.ancestor.check_here()?;
        self.check_branch_lsn(&found.ancestor, found.branch_lsn)
    }

    /// Errors: [`BranchError::LsnTooLow`].
    fn check_branch_lsn(&self, timeline: &Timeline, branch_lsn: Lsn) -> Result<(), RepositoryError> {
        match timeline.check_in_history(branch_lsn) {
            Err(ReadError::BelowFirstReadable { first_readable_lsn, .. }) => {
                let timeline = timeline.metadata().name.clone();
                Err(BranchError::LsnTooLow { branch_lsn, first_readable_lsn, timeline }.into())
            }
            other => Ok(other?),
        }
    }

    fn create_branch_at(&self, name: &ReservedName, found: &Found) -> Result<Arc<Timeline>, RepositoryError> {
        let ancestor = found.ancestor.metadata();
        let timeline_id = TimelineId::generate();
        let metadata = TimelineMetadata {
            format: TimelineMetadata::format(),
            tenant_id: ancestor.tenant_id,
            timeline_id,
            timeline_no: self.next_timeline_no(),
            name: name.as_str().to_owned(),
            ancestor: Some(Ancestor { timeline_id: ancestor.timeline_id, lsn: found.branch_lsn }),
            cluster: self.cluster_facts_at(found)?,
            imported: None,
            primary: None,
            retention: None,
            gc: None,
        };
        let new_dir = self.timelines_dir.join(format!("{NEW_DIR_PREFIX}{timeline_id}"));
        create_dir(&new_dir.join("wal"))?;
        Failpoint::BranchDirMade.pass();
        let made = metadata
            .save(&new_dir)
            .map_err(RepositoryError::from)
            .and_then(|()| self.make_visible(&new_dir, timeline_id))
            .and_then(|()| self.open_timeline(metadata));
        if made.is_err() {
            // If this fails too, the next start does it, or finds a whole branch.
            let _ = self.remove_timeline_dir(&self.timeline_dir(timeline_id));
            let _ = std::fs::remove_dir_all(&new_dir);
        }
        made
    }

    /// The ancestor's, with the PostgreSQL timeline that it was on at the branch LSN.
    pub(super) fn cluster_facts_at(&self, found: &Found) -> Result<ClusterFacts, RepositoryError> {
        let pg_timeline_id = self.pg_history_at(&found.ancestor, found.branch_lsn)?.timeline_id;
        Ok(ClusterFacts { pg_timeline_id, ..found.ancestor.metadata().cluster.clone() })
    }

    /// Gives a timeline's directory its name, durably, once it is whole.
    pub(super) fn make_visible(&self, new_dir: &Path, timeline_id: TimelineId) -> Result<(), RepositoryError> {
        let dir = self.timeline_dir(timeline_id);
        let rename = || {
            Failpoint::BranchBeforeRename.pass();
            std::fs::rename(new_dir, &dir)?;
            Failpoint::BranchRenamed.pass();
            File::open(&self.timelines_dir)?.sync_all()?;
            Failpoint::BranchDurable.pass();
            Ok(())
        };
        rename().map_err(|source| RepositoryError::Io {
            doing: "make a timeline's directory",
            path: dir.clone(),
            source,
        })
    }

    /// A number that no timeline had since the server was started, and of which the store had nothing then.
    pub(super) fn next_timeline_no(&self) -> u32 {
        let mut timeline_no_max = self.timeline_no_max.lock();
        *timeline_no_max += 1;
        *timeline_no_max
    }
}
