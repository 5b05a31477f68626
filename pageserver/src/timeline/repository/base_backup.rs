//! Base backups of timelines: where their WAL lies, and which PostgreSQL timelines they leave and begin.

use std::sync::Arc;

use postgres_ffi::Lsn;
use postgres_ffi::start::WalPlace;

use super::Repository;
use crate::basebackup::{BackupError, BackupOptions, BaseBackup, PgTimelines, RecordEnd};
use crate::timeline::Timeline;
use crate::timeline::metadata::ClusterFacts;
use crate::wal::WalLayout;

impl Repository {
    /// A base backup of `timeline` as of `request_lsn`, looked over and ready to be sent. Takes a new PostgreSQL timeline id.
    /// Errors: the LSN cannot be read; something that a server needs is not there.
    pub fn plan_base_backup(
        &self,
        timeline: Arc<Timeline>,
        request_lsn: Lsn,
        options: BackupOptions,
    ) -> Result<BaseBackup, BackupError> {
        timeline.check_readable(request_lsn)?;
        let place = wal_place(&timeline.metadata().cluster);
        let mut end = RecordEnd::find(&self.wal_layouts(&timeline, request_lsn), place, request_lsn)?;
        if end.lsn < timeline.first_readable_lsn().unwrap_or(Lsn::MAX) {
            // Aligned down from a first readable LSN that is no record's end.
            end = RecordEnd { lsn: request_lsn, old_wal: None };
        }
        let pg_timelines = self.pg_timelines(&timeline, end.lsn)?;
        BaseBackup::plan(timeline, end, pg_timelines, options)
    }

    /// Where WAL around `lsn` may lie: with the timeline itself, or with those that it was branched off.
    fn wal_layouts(&self, timeline: &Arc<Timeline>, lsn: Lsn) -> Vec<WalLayout> {
        let mut layouts = vec![self.wal_layout(timeline)];
        let mut younger = Arc::clone(timeline);
        while let Some((ancestor, branch_lsn)) = younger.nearest_ancestor() {
            if lsn <= branch_lsn {
                layouts.push(self.wal_layout(&ancestor));
            }
            younger = ancestor;
        }
        layouts.retain(|layout| layout.directory.is_dir());
        layouts
    }

    fn pg_timelines(&self, timeline: &Timeline, branch_lsn: Lsn) -> Result<PgTimelines, BackupError> {
        let left = self.pg_history_at(timeline, branch_lsn)?;
        let begun = self.next_pg_timeline_id(timeline.metadata().tenant_id)?;
        Ok(PgTimelines { left: left.timeline_id, left_history: left.content.to_vec(), begun })
    }
}

/// Where WAL of a cluster stands.
pub(super) fn wal_place(cluster: &ClusterFacts) -> WalPlace {
    WalPlace {
        version: cluster.pg_version,
        system_id: cluster.system_identifier,
        segment_bytes: cluster.wal_segment_bytes,
    }
}
