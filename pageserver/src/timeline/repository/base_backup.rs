//! Base backups of timelines: where their WAL lies, and which PostgreSQL timelines they leave and begin.

use std::sync::Arc;

use keyenc::Object;
use postgres_ffi::Lsn;
use postgres_ffi::checkpoint::Checkpoint;

use super::{PgHistory, Repository};
use crate::basebackup::{BackupError, BackupOptions, BaseBackup, Become, RecordEnd, wal_place};
use crate::timeline::Timeline;
use crate::wal::WalLayout;

impl Repository {
    /// A base backup of `timeline` as of `request_lsn`, looked over and ready to be sent. Takes a new PostgreSQL timeline id, unless it is for a standby.
    /// Errors: the LSN cannot be read; something that a server needs is not there.
    pub fn plan_base_backup(
        &self,
        timeline: Arc<Timeline>,
        request_lsn: Lsn,
        for_standby: bool,
        options: BackupOptions,
    ) -> Result<BaseBackup, BackupError> {
        timeline.check_readable(request_lsn)?;
        let layouts = self.wal_layouts(&timeline, request_lsn);
        let place = wal_place(&timeline.metadata().cluster);
        let mut end = RecordEnd::find(&layouts, place, request_lsn)?;
        if timeline.check_in_history(end.lsn).is_err() {
            // The record's end is given up already, but not what is pinned with the LSN; or it is aligned down from a first readable LSN that is no record's end.
            let lsn = Some(place.record_end_at_or_before(request_lsn));
            let lsn = lsn.filter(|lsn| timeline.check_in_history(*lsn).is_ok()).unwrap_or(request_lsn);
            end = RecordEnd { lsn, old_wal: None };
        }
        let history = self.pg_history_at(&timeline, end.lsn)?;
        let becomes = if for_standby {
            self.check_for_standby(&timeline, &history, end.lsn)?;
            Become::Standby { layouts }
        } else {
            Become::Clone { pg_timeline_id: self.next_pg_timeline_id(timeline.metadata().tenant_id)? }
        };
        BaseBackup::plan(timeline, end, history, becomes, options)
    }

    /// All since the last checkpoint must be readable, and its WAL on one PostgreSQL timeline: that of its files.
    fn check_for_standby(&self, timeline: &Timeline, history: &PgHistory, branch_lsn: Lsn) -> Result<(), BackupError> {
        let missing = BackupError::Missing { what: "checkpoint", request_lsn: branch_lsn };
        let counters = timeline.object(Object::Checkpoint, branch_lsn)?.ok_or(missing)?;
        let counters = Checkpoint::decode(timeline.metadata().cluster.pg_version, &counters)?;
        let redo_lsn = Lsn::new(counters.redo);
        let first_readable_lsn = timeline.first_readable_lsn().unwrap_or(Lsn::MAX);
        if redo_lsn < first_readable_lsn {
            return Err(BackupError::StandbyTooEarly { redo_lsn, first_readable_lsn });
        }
        // A record that ends at the redo position may be on the timeline before.
        let behind_redo = redo_lsn.checked_add(1).unwrap_or(redo_lsn);
        if self.pg_history_at(timeline, behind_redo)?.timeline_id != history.timeline_id {
            return Err(BackupError::StandbyAcrossSwitch { redo_lsn, branch_lsn });
        }
        Ok(())
    }

    /// Where WAL around `lsn` may lie: with the timeline whose history it is there, be it the timeline itself or one that it was branched off. At a branch LSN with both.
    /// Never with one that begins above: what a branch has in front of its own WAL may be filler, of which no record ends where one of the history does.
    pub(super) fn wal_layouts(&self, timeline: &Arc<Timeline>, lsn: Lsn) -> Vec<WalLayout> {
        let mut layouts = Vec::new();
        let mut owner = Arc::clone(timeline);
        loop {
            let ancestor = owner.nearest_ancestor();
            if ancestor.as_ref().is_none_or(|(_, branch_lsn)| *branch_lsn <= lsn) {
                layouts.push(self.wal_layout(&owner));
            }
            match ancestor {
                Some((ancestor, branch_lsn)) if lsn <= branch_lsn => owner = ancestor,
                _ => break,
            }
        }
        layouts.retain(|layout| layout.directory.is_dir());
        layouts.reverse(); // The one that had the record first.
        layouts
    }
}
