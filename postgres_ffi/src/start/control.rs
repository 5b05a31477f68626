//! `pg_control` of a cluster that starts at a made-up checkpoint. PG 15, 18: src/include/catalog/pg_control.h, ControlFileData.

use super::Start;
use crate::control_file::{ControlFile, DbState};

/// First of the LSNs that unlogged relations get. PG: src/include/access/xlogdefs.h, FirstNormalUnloggedLSN.
const FIRST_UNLOGGED_LSN: u64 = 1000;

/// The control file `before` as it must be for a server to begin at `start`: not shut down, and nothing to be replayed.
///
/// *In production* and not *shut down*: the server then takes the way of a crash recovery and makes unlogged relations from their init forks.
pub fn control_file(before: &ControlFile, start: &Start) -> ControlFile {
    ControlFile {
        state: DbState::InProduction,
        time: start.point.time,
        checkpoint_lsn: start.record_lsn,
        checkpoint_copy: start.checkpoint.encode(before.version),
        unlogged_lsn: FIRST_UNLOGGED_LSN,
        min_recovery_lsn: None,
        min_recovery_tli: 0,
        backup_start_lsn: None,
        backup_end_lsn: None,
        backup_end_required: false,
        ..before.clone()
    }
}
