//! The log's own records: page images, counters, parameters. PG: src/backend/access/transam/xlog.c, xlog_redo.

use keyenc::{Kind, Object};
use postgres_ffi::checkpoint::{Checkpoint, NEXT_XID_STEP};
use postgres_ffi::records::xlog::{self, EndOfRecovery, ParameterChange, operation};
use postgres_ffi::slru::{FIRST_NORMAL_XID, commit_ts_place};
use postgres_ffi::{Lsn, PgVersion, SlruKind};

use super::step::Step;
use super::{IngestError, WalIngest};

impl WalIngest {
    pub(super) fn ingest_xlog(&mut self, step: &mut Step<'_>) -> Result<(), IngestError> {
        match step.record.operation() {
            operation::FPI | operation::FPI_FOR_HINT => self.ingest_blocks(step),
            _ => self.ingest_xlog_without_blocks(step.without_blocks()?),
        }
    }

    fn ingest_xlog_without_blocks(&mut self, step: &mut Step<'_>) -> Result<(), IngestError> {
        let main_data = step.record.main_data();
        match step.record.operation() {
            operation::CHECKPOINT_SHUTDOWN => {
                self.checkpoint.redo_shutdown(&self.parse_checkpoint(step)?);
                // Nothing runs: the counters are exact, and what follows starts from them.
                self.stored_next_xid = self.checkpoint.next_xid;
                self.is_next_xid_rounded = false;
                self.checkpoint_changed = true;
            }
            operation::CHECKPOINT_ONLINE => {
                self.checkpoint.redo_online(&self.parse_checkpoint(step)?);
                self.checkpoint_changed = true;
            }
            operation::NEXTOID => {
                self.checkpoint.next_oid = xlog::parse_next_oid(main_data).map_err(|source| step.bad_body(source))?;
                self.checkpoint_changed = true;
            }
            operation::FPW_CHANGE => {
                let full_page_writes = xlog::parse_fpw_change(main_data).map_err(|source| step.bad_body(source))?;
                self.checkpoint.full_page_writes = full_page_writes;
                self.checkpoint_changed = true;
            }
            operation::END_OF_RECOVERY => {
                let end = EndOfRecovery::parse(main_data).map_err(|source| step.bad_body(source))?;
                check_wal_level(step, end.wal_level.unwrap_or(xlog::WAL_LEVEL_REPLICA))?;
                (self.checkpoint.this_tli, self.checkpoint.prev_tli) = (end.this_tli, end.prev_tli);
                self.checkpoint_changed = true;
            }
            operation::PARAMETER_CHANGE => {
                let change = ParameterChange::parse(main_data).map_err(|source| step.bad_body(source))?;
                self.change_parameters(step, &change)?;
            }
            // No server writes a record that nothing is in front of.
            operation::NOOP if step.record.prev_lsn == Lsn::ZERO => {
                return Err(IngestError::Filler { record_start_lsn: step.record.start_lsn });
            }
            operation::NOOP
            | operation::SWITCH
            | operation::BACKUP_END
            | operation::RESTORE_POINT
            | operation::OVERWRITE_CONTRECORD => {}
            operation::CHECKPOINT_REDO if self.version >= PgVersion::V17 => {}
            _ => return Err(step.unknown_operation()),
        }
        Ok(())
    }

    fn parse_checkpoint(&self, step: &Step<'_>) -> Result<Checkpoint, IngestError> {
        let decoded = Checkpoint::decode(self.version, step.record.main_data());
        decoded.map_err(|source| IngestError::Checkpoint { record_start_lsn: step.record.start_lsn, source })
    }

    fn change_parameters(&mut self, step: &mut Step<'_>, change: &ParameterChange) -> Result<(), IngestError> {
        let record_start_lsn = step.record.start_lsn;
        check_wal_level(step, change.wal_level)?;
        step.commit()?; // An earlier change may still be in the batch.
        let file = step.object(Object::ControlFile)?.ok_or(IngestError::Missing { what: "control file" })?;
        let mut file = file.to_vec();
        let changed = change.apply_to_control_file(self.version, &mut file);
        changed.map_err(|source| IngestError::ControlFile { record_start_lsn, source })?;
        step.put(Object::ControlFile, Kind::Image, &file);
        self.hint_bits_logged = hint_bits_logged(&file, step.lsn())?;
        match (self.track_commit_timestamp, change.track_commit_timestamp) {
            (false, true) => self.activate_commit_ts(step)?,
            // A server that crashed before its first checkpoint with the setting: its control file, which came with an import, has it already.
            (true, true) if self.checkpoint.oldest_commit_ts_xid == 0 => self.activate_commit_ts(step)?,
            (true, false) => self.deactivate_commit_ts(step)?,
            _ => {}
        }
        self.track_commit_timestamp = change.track_commit_timestamp;
        Ok(())
    }

    /// PG: commit_ts.c, ActivateCommitTs.
    fn activate_commit_ts(&mut self, step: &mut Step<'_>) -> Result<(), IngestError> {
        let next_xid = self.checkpoint.next_xid_low();
        let mut first_xid = next_xid;
        if self.checkpoint.oldest_commit_ts_xid == 0 {
            if self.is_next_xid_rounded {
                // What comes next may be lower; where nothing comes, zeroes say that there is no timestamp.
                first_xid = next_xid.saturating_sub(NEXT_XID_STEP as u32 - 1).max(FIRST_NORMAL_XID);
            }
            self.checkpoint.oldest_commit_ts_xid = first_xid;
            self.checkpoint.newest_commit_ts_xid = next_xid;
            self.checkpoint_changed = true;
        }
        for page_no in commit_ts_place(first_xid).0..=commit_ts_place(next_xid).0 {
            if !self.slru_page_exists(step, SlruKind::CommitTs, page_no)? {
                self.zero_slru_page(step, SlruKind::CommitTs, page_no)?;
            }
        }
        Ok(())
    }

    /// PG: commit_ts.c, DeactivateCommitTs: all files go.
    fn deactivate_commit_ts(&mut self, step: &mut Step<'_>) -> Result<(), IngestError> {
        self.checkpoint.oldest_commit_ts_xid = 0;
        self.checkpoint.newest_commit_ts_xid = 0;
        self.checkpoint_changed = true;
        let segments = self.existing_segments(step, SlruKind::CommitTs)?;
        segments.into_iter().try_for_each(|segment_no| self.remove_segment(step, SlruKind::CommitTs, segment_no))
    }
}

fn check_wal_level(step: &Step<'_>, wal_level: i32) -> Result<(), IngestError> {
    if wal_level >= xlog::WAL_LEVEL_REPLICA {
        return Ok(());
    }
    Err(IngestError::WalLevelMinimal { record_start_lsn: step.record.start_lsn, wal_level })
}

/// Whether the cluster of a control file that the timeline holds logs hint bits. PG: xlog.h, XLogHintBitIsNeeded.
pub(super) fn hint_bits_logged(control_file: &[u8], lsn: Lsn) -> Result<bool, IngestError> {
    xlog::control_file_hint_bits_logged(control_file)
        .map_err(|source| IngestError::ControlFile { record_start_lsn: lsn, source })
}

/// `track_commit_timestamp` of a control file that the timeline holds.
pub(super) fn track_commit_timestamp(control_file: &[u8], lsn: Lsn) -> Result<bool, IngestError> {
    xlog::control_file_track_commit_timestamp(control_file)
        .map_err(|source| IngestError::ControlFile { record_start_lsn: lsn, source })
}
