//! Replication slots at primaries that are not followed any more: one that stays keeps the primary's WAL for ever.

use std::thread;
use std::time::{Duration, Instant};

use tracing::warn;

use crate::replication::{ConnInfo, Connection, Mode, ReplicationError, one_line};
use crate::timeline::metadata::Primary;

/// PG 15: src/backend/utils/errcodes.txt, object_in_use: the server has not noticed yet that our connection has ended.
const SQLSTATE_OBJECT_IN_USE: &str = "55006";
/// PG 15: src/backend/utils/errcodes.txt, undefined_object.
const SQLSTATE_UNDEFINED_OBJECT: &str = "42704";
/// How long a slot that is in use is waited for.
const IN_USE_TIMEOUT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);

/// Drops the slot at the primary if that can be done. What came of it, for people.
pub(super) fn drop_slot(primary: &Primary) -> String {
    let (slot, server) = (&primary.slot, primary.server());
    match try_drop(primary) {
        Ok(true) => format!("slot `{slot}` dropped at {server}"),
        Ok(false) => format!("slot `{slot}` is not at {server}"),
        Err(error) => {
            let reason = one_line(&error);
            warn!(slot, %server, reason, "a replication slot stays");
            format!("slot `{slot}` stays at {server} and keeps WAL there, drop it by hand: {reason}")
        }
    }
}

/// True: it was there.
fn try_drop(primary: &Primary) -> Result<bool, ReplicationError> {
    let conninfo: ConnInfo = primary.conninfo.parse()?;
    let mut connection = Connection::connect(&conninfo, Mode::Replication)?;
    let deadline = Instant::now() + IN_USE_TIMEOUT;
    loop {
        match connection.drop_slot(&primary.slot) {
            Ok(()) => return Ok(true),
            Err(error) if error.sqlstate() == Some(SQLSTATE_UNDEFINED_OBJECT) => return Ok(false),
            Err(error) if error.sqlstate() == Some(SQLSTATE_OBJECT_IN_USE) && Instant::now() < deadline => {
                thread::sleep(PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
}
