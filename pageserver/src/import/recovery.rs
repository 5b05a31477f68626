//! What a cluster's files need of WAL before they are right, as PostgreSQL's recovery decides it.
//!
//! - Cleanly stopped: nothing. Crashed: all WAL there is, from the redo point of the last checkpoint on. A base backup, and a standby: from
//!   its redo point to where it ends, which a record or the control file says.
//! - PG 14-18: src/backend/access/transam/xlogrecovery.c (14: xlog.c), InitWalRecovery, CheckRecoveryConsistency.

use postgres_ffi::checkpoint::Checkpoint;
use postgres_ffi::control_file::{ControlFile, DbState};
use postgres_ffi::{Lsn, TimeLineId};

use super::ImportError;
use super::backup_label::BackupLabel;

/// The WAL that is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Recovery {
    /// Redo point: the files enter at this LSN, and WAL from here on is ingested over them.
    pub start_lsn: Lsn,
    /// The newest PostgreSQL timeline that WAL is taken from.
    pub timeline_id: TimeLineId,
    /// What must have come before the cluster is whole.
    pub whole: Whole,
}

/// When a cluster is whole. All of it must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Whole {
    /// The record that starts here has come: the checkpoint itself.
    pub checkpoint_lsn: Lsn,
    /// WAL has come up to here: a standby's files may be as new.
    pub min_recovery_lsn: Option<Lsn>,
    /// The record has come that ends the backup which began here.
    pub backup_start_lsn: Option<Lsn>,
    /// Whole only at the end of all WAL there is: files may be as new as that.
    pub at_end_of_wal: bool,
}

/// What the cluster needs; `None` for one that was cleanly stopped. Errors: the control file is damaged, or contradicts the label.
pub(super) fn recovery_of(
    control_file: &ControlFile,
    label: Option<&BackupLabel>,
) -> Result<Option<Recovery>, ImportError> {
    match label {
        Some(label) => recovery_of_backup(control_file, label).map(Some),
        None if control_file.state == DbState::ShutDown => Ok(None),
        None => recovery_of_directory(control_file).map(Some),
    }
}

/// What a base backup needs.
pub(super) fn recovery_of_backup(control_file: &ControlFile, label: &BackupLabel) -> Result<Recovery, ImportError> {
    // A standby's backup carries its state; anything else was put together by hand. PG: "unexpected state" in InitWalRecovery.
    let was_standby = matches!(control_file.state, DbState::InArchiveRecovery | DbState::ShutDownInRecovery);
    if label.from_standby && (!was_standby || control_file.min_recovery_lsn.is_none()) {
        let reason = "the label says that it is of a standby, the control file that it is not";
        return Err(ImportError::FileDamaged { file: "backup_label".to_owned(), reason });
    }
    let ends_with_record = label.is_streamed && !label.from_standby;
    Ok(Recovery {
        start_lsn: label.start_lsn,
        timeline_id: label.timeline_id.max(control_file.min_recovery_tli),
        whole: Whole {
            checkpoint_lsn: label.checkpoint_lsn,
            min_recovery_lsn: control_file.min_recovery_lsn,
            backup_start_lsn: ends_with_record.then_some(label.start_lsn),
            at_end_of_wal: false,
        },
    })
}

fn recovery_of_directory(control_file: &ControlFile) -> Result<Recovery, ImportError> {
    let checkpoint = Checkpoint::decode(control_file.version, &control_file.checkpoint_copy).ok();
    let redo_lsn = checkpoint.and_then(|checkpoint| Lsn::from_pg(checkpoint.redo));
    let (Some(checkpoint), Some(start_lsn)) = (checkpoint, redo_lsn) else {
        let reason = "no checkpoint in it";
        return Err(ImportError::FileDamaged { file: "global/pg_control".to_owned(), reason });
    };
    let is_standby = matches!(control_file.state, DbState::InArchiveRecovery | DbState::ShutDownInRecovery);
    // A backup whose recovery had begun when the server ended.
    let backup_start_lsn = control_file.backup_start_lsn.filter(|_| control_file.backup_end_required);
    Ok(Recovery {
        start_lsn,
        timeline_id: checkpoint.this_tli.max(control_file.min_recovery_tli),
        whole: Whole {
            checkpoint_lsn: control_file.checkpoint_lsn,
            min_recovery_lsn: control_file.min_recovery_lsn.max(control_file.backup_end_lsn),
            backup_start_lsn,
            // A standby writes down how new its files may be before it writes them; a primary does not.
            at_end_of_wal: !is_standby,
        },
    })
}

#[cfg(test)]
mod tests {
    //! Goal: each state of a cluster needs what PostgreSQL's recovery would want. Method: one control file per state.

    use postgres_ffi::PgVersion;

    use super::*;

    fn control_file(state: DbState) -> ControlFile {
        let real = include_bytes!("../../../postgres_ffi/tests/data/control/pg_control.17");
        let real = ControlFile::decode(real).unwrap();
        let checkpoint = Checkpoint::decode(PgVersion::V17, &real.checkpoint_copy).unwrap();
        let checkpoint = Checkpoint { redo: 0x200_0028, this_tli: 2, prev_tli: 2, ..checkpoint };
        let checkpoint_copy = checkpoint.encode(PgVersion::V17);
        ControlFile { state, checkpoint_lsn: Lsn::new(0x200_0060), checkpoint_copy, ..real }
    }

    const LABEL: BackupLabel = BackupLabel {
        start_lsn: Lsn::new(0x100_0028),
        checkpoint_lsn: Lsn::new(0x100_0060),
        timeline_id: 1,
        is_streamed: true,
        from_standby: false,
    };

    #[test]
    fn a_cleanly_stopped_cluster_needs_nothing() {
        assert_eq!(recovery_of(&control_file(DbState::ShutDown), None).unwrap(), None);
    }

    #[test]
    fn a_crashed_one_needs_all_wal_there_is() {
        for state in [DbState::InProduction, DbState::ShuttingDown, DbState::InCrashRecovery, DbState::Startup] {
            let recovery = recovery_of(&control_file(state), None).unwrap().unwrap();
            assert_eq!((recovery.start_lsn, recovery.timeline_id), (Lsn::new(0x200_0028), 2));
            assert!(recovery.whole.at_end_of_wal && recovery.whole.backup_start_lsn.is_none());
        }
        // Promoted a moment ago.
        let promoted = ControlFile {
            min_recovery_lsn: Some(Lsn::new(0x300_0000)),
            min_recovery_tli: 3,
            ..control_file(DbState::InProduction)
        };
        assert_eq!(recovery_of(&promoted, None).unwrap().unwrap().timeline_id, 3);
    }

    #[test]
    fn a_standby_says_how_new_its_files_may_be() {
        for state in [DbState::InArchiveRecovery, DbState::ShutDownInRecovery] {
            let standby = ControlFile { min_recovery_lsn: Some(Lsn::new(0x300_0000)), ..control_file(state) };
            let whole = recovery_of(&standby, None).unwrap().unwrap().whole;
            assert_eq!((whole.min_recovery_lsn, whole.at_end_of_wal), (Some(Lsn::new(0x300_0000)), false));
            let restored =
                ControlFile { backup_start_lsn: Some(Lsn::new(0x100_0028)), backup_end_required: true, ..standby };
            let whole = recovery_of(&restored, None).unwrap().unwrap().whole;
            assert_eq!(whole.backup_start_lsn, Some(Lsn::new(0x100_0028)));
        }
    }

    #[test]
    fn a_backup_ends_where_its_label_or_the_standby_says() {
        let control = control_file(DbState::InProduction);
        let recovery = recovery_of(&control, Some(&LABEL)).unwrap().unwrap();
        assert_eq!((recovery.start_lsn, recovery.timeline_id), (LABEL.start_lsn, 1));
        assert_eq!(recovery.whole.backup_start_lsn, Some(LABEL.start_lsn));
        // Cleanly stopped or not does not count: the files are the backup's.
        assert!(recovery_of(&control_file(DbState::ShutDown), Some(&LABEL)).unwrap().is_some());
        let label = BackupLabel { from_standby: true, ..LABEL };
        assert!(matches!(recovery_of(&control, Some(&label)), Err(ImportError::FileDamaged { .. })));
        let standby =
            ControlFile { min_recovery_lsn: Some(Lsn::new(0x300_0000)), ..control_file(DbState::InArchiveRecovery) };
        let whole = recovery_of(&standby, Some(&label)).unwrap().unwrap().whole;
        assert_eq!((whole.backup_start_lsn, whole.min_recovery_lsn), (None, Some(Lsn::new(0x300_0000))));
    }
}
