//! The timelines of a data directory whose server does not run, as their files tell.

use std::path::{Path, PathBuf};

use super::left_slots::LeftSlots;
use super::marks::{DELETING, is_left_over, set_mark, to_be_taken_away};
use super::{RepositoryError, TIMELINES_DIR, pg_history};
use crate::config::Config;
use crate::store::StoreConfig;
use crate::timeline::metadata::TimelineMetadata;
use crate::wal::WalLayout;

/// A timeline whose server does not run.
#[derive(Clone, Debug)]
pub struct StoppedTimeline {
    /// What its file tells.
    pub metadata: TimelineMetadata,
    dir: PathBuf,
}

impl StoppedTimeline {
    /// Those of `data_dir`, without those that an interrupted import or deletion has left: the next start takes these away. Ordered by number.
    /// Errors: a directory or a timeline's file cannot be read.
    pub fn all(data_dir: &Path) -> Result<Vec<Self>, RepositoryError> {
        let timelines_dir = data_dir.join(TIMELINES_DIR);
        let io = |source| RepositoryError::Io { doing: "list the timelines", path: timelines_dir.clone(), source };
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&timelines_dir).map_err(io)? {
            let entry = entry.map_err(io)?;
            let dir = entry.path();
            if !is_left_over(&entry.file_name()) && to_be_taken_away(&dir).is_none() {
                found.push(StoppedTimeline { metadata: TimelineMetadata::load_either(&dir)?, dir });
            }
        }
        found.sort_by_key(|timeline| timeline.metadata.timeline_no);
        Ok(found)
    }

    /// Where its WAL files are, and what they must be.
    pub fn wal_layout(&self) -> WalLayout {
        pg_history::wal_layout_in(&self.dir, &self.metadata)
    }

    /// Marks it, durably: the next start takes away what is left of it, and drops its slot at the primary. Errors: mark or list of slots cannot be written.
    pub fn give_up(&self) -> Result<(), RepositoryError> {
        if let (Some(primary), Some(data_dir)) = (&self.metadata.primary, self.dir.parent().and_then(Path::parent)) {
            LeftSlots::load(data_dir)?.add(primary)?;
        }
        set_mark(&self.dir, DELETING, self.metadata.timeline_no)
    }
}

/// The store of a data directory: where it is, and how it is opened.
pub fn store_of(data_dir: &Path, config: &Config) -> (PathBuf, StoreConfig) {
    (data_dir.join("store"), super::store_config(config))
}
