//! Which PostgreSQL timeline a timeline's WAL is on at an LSN, and how it came there.

use std::path::Path;

use bytes::Bytes;
use postgres_ffi::{Lsn, TimeLineId};

use super::{Repository, RepositoryError};
use crate::timeline::{Timeline, TimelineMetadata};
use crate::wal::history::{TimelineHistory, lines_before};
use crate::wal::{WalFileError, WalLayout};

/// PostgreSQL's own view of the history at an LSN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PgHistory {
    /// The PostgreSQL timeline that the WAL which ends there is on. A record that ends where a timeline was left is on that timeline.
    pub timeline_id: TimeLineId,
    /// The lines of that timeline's history file: one per timeline that it came through. Empty for timeline 1, and where it is not known.
    pub content: Bytes,
}

impl Repository {
    /// The PostgreSQL timeline of `timeline` at `lsn`, with its history. Errors: a history file is damaged, or cannot be read.
    pub fn pg_history_at(&self, timeline: &Timeline, lsn: Lsn) -> Result<PgHistory, RepositoryError> {
        let ancestor = timeline.nearest_ancestor();
        if let Some((ancestor, branch_lsn)) = &ancestor
            && lsn <= *branch_lsn
        {
            return self.pg_history_at(ancestor, lsn);
        }
        let layout = self.wal_layout(timeline);
        let began_on = timeline.metadata().cluster.pg_timeline_id;
        let newest = layout.newest_timeline_id()?.unwrap_or(began_on).max(began_on);
        if let Some((history, content)) = layout.history_file(newest)? {
            let timeline_id = history.timeline_at(newest, lsn);
            return Ok(PgHistory { timeline_id, content: Bytes::copy_from_slice(lines_before(&content, timeline_id)) });
        }
        // No history file of its own: it still is on the timeline that it began on, or on one that has none.
        match &ancestor {
            Some((ancestor, branch_lsn)) if newest == began_on => self.pg_history_at(ancestor, *branch_lsn),
            _ => Ok(PgHistory { timeline_id: newest, content: Bytes::new() }),
        }
    }

    /// PostgreSQL timelines through which the WAL of `timeline` has come up to its last record, for people and tools: `1@0/3000148 4096`. Errors: as [`Repository::pg_history_at`].
    pub fn pg_timelines_of(&self, timeline: &Timeline) -> Result<String, RepositoryError> {
        let PgHistory { timeline_id, content } = self.pg_history_at(timeline, timeline.last_record_lsn())?;
        let history = TimelineHistory::parse(timeline_id, &content);
        let history =
            history.map_err(|source| WalFileError::History { path: self.wal_layout(timeline).directory, source })?;
        let left = history.ancestors().iter().map(|(ancestor, left_lsn)| format!("{ancestor}@{left_lsn}"));
        Ok(left.chain([timeline_id.to_string()]).collect::<Vec<_>>().join(" "))
    }

    /// Where the timeline's WAL files are, and what they must be.
    pub fn wal_layout(&self, timeline: &Timeline) -> WalLayout {
        let metadata = timeline.metadata();
        wal_layout_in(&self.timeline_dir(metadata.timeline_id), &metadata)
    }
}

/// The same by a timeline's directory and what its file tells.
pub(super) fn wal_layout_in(dir: &Path, metadata: &TimelineMetadata) -> WalLayout {
    WalLayout {
        directory: dir.join("wal"),
        version: metadata.cluster.pg_version,
        segment_bytes: metadata.cluster.wal_segment_bytes,
        system_id: metadata.cluster.system_identifier,
    }
}
