//! A replication slot is dropped at its primary. Which ones, and when: [`super::left_slots`].

use std::thread;
use std::time::{Duration, Instant};

use crate::replication::{ConnInfo, Connection, Mode, ReplicationError};
use crate::timeline::metadata::Primary;

/// PG 15: src/backend/utils/errcodes.txt, object_in_use: the server has not noticed yet that our connection has ended.
const SQLSTATE_OBJECT_IN_USE: &str = "55006";
/// PG 15: src/backend/utils/errcodes.txt, undefined_object.
const SQLSTATE_UNDEFINED_OBJECT: &str = "42704";
/// How long a slot that is in use is waited for.
const IN_USE_TIMEOUT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);

/// A slot is not there any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dropped {
    /// It was.
    Now,
    /// It was not there to begin with.
    Before,
}

/// Drops the slot at the primary. Errors: the primary cannot be reached, or does not let us.
pub(super) fn try_drop(primary: &Primary) -> Result<Dropped, ReplicationError> {
    let conninfo: ConnInfo = primary.conninfo.parse()?;
    let mut connection = Connection::connect(&conninfo, Mode::Replication)?;
    let deadline = Instant::now() + IN_USE_TIMEOUT;
    loop {
        match connection.drop_slot(&primary.slot) {
            Ok(()) => return Ok(Dropped::Now),
            Err(error) if error.sqlstate() == Some(SQLSTATE_UNDEFINED_OBJECT) => return Ok(Dropped::Before),
            Err(error) if error.sqlstate() == Some(SQLSTATE_OBJECT_IN_USE) && Instant::now() < deadline => {
                thread::sleep(PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
}
