//! A standby that begins with pages as of an LSN: it replays from the last checkpoint before, and is consistent at that LSN.
//!
//! Nothing is made up: replay over pages that are newer than a record is what a standby does that was stopped in the middle. `backup_label` is that of a backup
//! taken from a standby, whose end is the control file's `minRecoveryPoint`.
//!
//! PG 15, 18: src/backend/access/transam/xlogrecovery.c (read_backup_label, InitWalRecovery).

use crate::checkpoint::CHECKPOINT_LEN;
use crate::control_file::{ControlFile, DbState};
use crate::{Lsn, TimeLineId};

/// Where the label stands.
pub const LABEL_PATH: &str = "backup_label";
/// Makes the server a standby.
pub const SIGNAL_PATH: &str = "standby.signal";

/// Where a standby begins, and where it is consistent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StandbyStart {
    /// Start of the last checkpoint's record.
    pub checkpoint_lsn: Lsn,
    /// Where that checkpoint's redo begins.
    pub redo_lsn: Lsn,
    /// Its data, as its record has it.
    pub checkpoint: [u8; CHECKPOINT_LEN],
    /// Pages are as of here.
    pub end_lsn: Lsn,
    /// The PostgreSQL timeline of all of it.
    pub timeline_id: TimeLineId,
    /// When, in seconds since 1970.
    pub time: i64,
}

impl StandbyStart {
    /// The control file `before` as it must be for a standby to begin here.
    pub fn control_file(&self, before: &ControlFile) -> ControlFile {
        ControlFile {
            state: DbState::InArchiveRecovery,
            time: self.time,
            checkpoint_lsn: self.checkpoint_lsn,
            checkpoint_copy: self.checkpoint,
            min_recovery_lsn: Some(self.end_lsn),
            min_recovery_tli: self.timeline_id,
            backup_start_lsn: None,
            backup_end_lsn: None,
            backup_end_required: false,
            ..before.clone()
        }
    }

    /// `backup_label`. `redo_file_name`: the segment that holds the redo position.
    pub fn label(&self, redo_file_name: &str) -> String {
        let StandbyStart { checkpoint_lsn, redo_lsn, timeline_id, .. } = self;
        format!(
            "START WAL LOCATION: {redo_lsn} (file {redo_file_name})\n\
             CHECKPOINT LOCATION: {checkpoint_lsn}\n\
             BACKUP METHOD: streamed\n\
             BACKUP FROM: standby\n\
             LABEL: page server\n\
             START TIMELINE: {timeline_id}\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_and_control_file_say_the_same() {
        let start = StandbyStart {
            checkpoint_lsn: Lsn::new(0x200_0060),
            redo_lsn: Lsn::new(0x200_0028),
            checkpoint: [7; CHECKPOINT_LEN],
            end_lsn: Lsn::new(0x300_0000),
            timeline_id: 3,
            time: 1_700_000_000,
        };
        let before =
            ControlFile::decode(include_bytes!("../../tests/data/control/pg_control.15")).expect("a real file");
        let control = start.control_file(&before);
        assert_eq!(ControlFile::decode(&control.encode()), Ok(control.clone()));
        assert_eq!((control.state, control.min_recovery_tli), (DbState::InArchiveRecovery, 3));
        assert_eq!(control.min_recovery_lsn, Some(Lsn::new(0x300_0000)));
        let label = start.label("000000030000000000000002");
        assert!(label.starts_with("START WAL LOCATION: 0/2000028 (file 000000030000000000000002)\n"), "{label}");
        assert!(label.ends_with("\nSTART TIMELINE: 3\n"), "{label}");
    }
}
