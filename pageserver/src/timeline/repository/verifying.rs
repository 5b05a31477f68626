//! What a check of everything asks of the repository: its files against what it knows, numbers on their way, LSNs that somebody reads at.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyenc::TimelineNo;
use postgres_ffi::Lsn;

use super::marks::{self, read_mark};
use super::{Repository, RepositoryError, tenants};
use crate::config::Config;
use crate::replication::one_line;
use crate::sealed_file::copy;
use crate::store::Store;
use crate::timeline::metadata::{METADATA_FILE_NAME, TimelineMetadata};
use crate::timeline::{Timeline, TimelineId};

/// One file that was looked at.
pub(crate) struct FileCheck {
    /// The name of the timeline that it is of.
    pub timeline: Option<String>,
    /// Below the data directory.
    pub path: PathBuf,
    /// What is wrong with it.
    pub wrong: Option<String>,
}

impl Repository {
    /// The store of all timelines.
    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Numbers whose versions come or go: imports, deletions and resets that are under way.
    pub(crate) fn numbers_in_transit(&self) -> Result<Vec<TimelineNo>, RepositoryError> {
        let mut numbers = Vec::new();
        for dir in self.dirs_of_timelines()? {
            for mark in [marks::IMPORTING, marks::DELETING, marks::RESETTING] {
                if dir.join(mark).exists() {
                    // Gone in this very moment is as good as not there.
                    numbers.extend(read_mark(&dir, mark).ok().flatten());
                }
            }
        }
        Ok(numbers)
    }

    /// LSNs of the timeline that are read at: the newest, those where branches leave it, those that are leased; newest first, each once.
    pub(crate) fn lsns_in_use(&self, timeline: &Arc<Timeline>) -> Vec<Lsn> {
        let leaves = |other: &Arc<Timeline>| match other.nearest_ancestor() {
            Some((ancestor, branch_lsn)) if Arc::ptr_eq(&ancestor, timeline) => Some(branch_lsn),
            _ => None,
        };
        let timelines = self.timelines();
        let branch_lsns = timelines.iter().filter_map(leaves);
        let leased_lsns = self.leases.lsns_of(timeline.metadata().timeline_id);
        let newest_lsn = timeline.last_record_lsn();
        let mut lsns: Vec<Lsn> = branch_lsns.chain(leased_lsns).filter(|lsn| *lsn < newest_lsn).collect();
        lsns.push(newest_lsn);
        lsns.sort_unstable();
        lsns.dedup();
        lsns.reverse();
        lsns
    }

    /// Reads the files of `timelines` and of the server again.
    pub(crate) fn check_files(&self, timelines: &[Arc<Timeline>]) -> Vec<FileCheck> {
        let _changes = self.changes.lock(); // Else a file could be newer than what is known.
        let data_dir = self.data_dir();
        let mut checks = vec![
            self.checked(None, &data_dir.join("pageserver.toml"), Config::load(&data_dir).map(drop).map_err(said)),
            self.checked(None, self.leases.path(), self.leases.check_file()),
            self.checked(None, self.left_slots.path(), self.left_slots.check_file()),
        ];
        let mut tenants: Vec<_> = timelines.iter().map(|timeline| timeline.metadata().tenant_id).collect();
        tenants.sort_unstable();
        tenants.dedup();
        for tenant_id in tenants {
            let dir = self.tenant_dir(tenant_id);
            let path = dir.join(tenants::FILE_NAME);
            let _no_id_is_given_out = self.pg_timeline_ids.lock();
            if path.exists() {
                let wrong = tenants::load(&dir).map_err(said).and_then(|_| copy::check(&path));
                checks.push(self.checked(None, &path, wrong));
            }
        }
        checks.extend(timelines.iter().map(|timeline| self.check_metadata(timeline)));
        checks.extend(self.check_dirs());
        checks
    }

    fn check_metadata(&self, timeline: &Arc<Timeline>) -> FileCheck {
        let known = timeline.metadata();
        let dir = self.timeline_dir(known.timeline_id);
        let path = dir.join(METADATA_FILE_NAME);
        let wrong = match TimelineMetadata::load(&dir) {
            Err(error) => Err(said(error)),
            Ok(loaded) if loaded.says_the_same(&known) => copy::check(&path),
            Ok(_) => Err("it says something else than the server knows".to_owned()),
        };
        self.checked(Some(known.name.clone()), &path, wrong)
    }

    /// Directories that belong to no timeline.
    fn check_dirs(&self) -> Vec<FileCheck> {
        let dirs = match self.dirs_of_timelines() {
            Ok(dirs) => dirs,
            Err(error) => return vec![self.checked(None, &self.timelines_dir, Err(said(error)))],
        };
        let is_known = |dir: &PathBuf| {
            let name = dir.file_name().unwrap_or_default();
            let is_in_transit = marks::is_left_over(name) || marks::to_be_taken_away(dir).is_some();
            let id = name.to_str().unwrap_or_default().parse::<TimelineId>();
            is_in_transit || id.is_ok_and(|id| self.timelines.read().contains_key(&id)) || !dir.exists()
        };
        let unknown = dirs.into_iter().filter(|dir| !is_known(dir));
        unknown.map(|dir| self.checked(None, &dir, Err("the server knows no timeline of it".to_owned()))).collect()
    }

    fn dirs_of_timelines(&self) -> Result<Vec<PathBuf>, RepositoryError> {
        let io = |source| RepositoryError::Io { doing: "list the timelines", path: self.timelines_dir.clone(), source };
        let entries = std::fs::read_dir(&self.timelines_dir).map_err(io)?;
        entries.map(|entry| entry.map(|entry| entry.path()).map_err(io)).collect()
    }

    fn checked(&self, timeline: Option<String>, path: &Path, outcome: Result<(), String>) -> FileCheck {
        let path = path.strip_prefix(self.data_dir()).unwrap_or(path).to_owned();
        FileCheck { timeline, path, wrong: outcome.err() }
    }

    /// Where everything is.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.timelines_dir.parent().unwrap_or(Path::new(".")).to_owned()
    }
}

fn said(error: impl std::error::Error) -> String {
    one_line(&error)
}
