//! The short commands of the replication protocol. PG: doc/src/sgml/protocol.sgml, "Streaming Replication Protocol".

use bytes::Bytes;
use postgres_ffi::{Lsn, PgVersion, TimeLineId};

use super::connection::Connection;
use super::error::{ReplicationError, SQLSTATE_DUPLICATE_OBJECT, protocol};

/// Answer to IDENTIFY_SYSTEM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemIdentity {
    /// What `initdb` drew; the same for a primary and all its standbys.
    pub system_id: u64,
    /// The server's current PostgreSQL timeline.
    pub timeline_id: TimeLineId,
    /// End of the WAL that it has flushed.
    pub flush_lsn: Lsn,
}

/// Answer to READ_REPLICATION_SLOT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicationSlot {
    /// WAL from here on is kept for us. `None`: the slot keeps nothing yet, or nothing any more.
    pub restart_lsn: Option<Lsn>,
    /// PostgreSQL timeline of that position.
    pub restart_timeline_id: Option<TimeLineId>,
}

/// Answer to TIMELINE_HISTORY.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineHistoryFile {
    /// Such as `00000002.history`.
    pub name: String,
    /// The bytes of the file.
    pub content: Bytes,
}

/// Slot names are lower-case letters, digits and underscores, 1 to 63. PG: src/backend/replication/slot.c, ReplicationSlotValidateName.
fn checked_slot_name(name: &str) -> Result<&str, ReplicationError> {
    let right = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if (1..64).contains(&name.len()) && name.bytes().all(right) {
        return Ok(name);
    }
    Err(protocol(format!("`{}` is not the name of a replication slot", name.chars().take(64).collect::<String>())))
}

impl Connection {
    /// Who the server is and how far its WAL goes.
    pub fn identify_system(&mut self) -> Result<SystemIdentity, ReplicationError> {
        let row = self.query_one("IDENTIFY_SYSTEM")?;
        Ok(SystemIdentity {
            system_id: row.parsed(0, "system identifier")?,
            timeline_id: row.parsed(1, "timeline id")?,
            flush_lsn: row.lsn(2)?,
        })
    }

    /// The value of a setting, as SHOW prints it. `name` is one of ours, not input.
    pub fn show(&mut self, name: &'static str) -> Result<String, ReplicationError> {
        self.query_one(&format!("SHOW {name}"))?.parsed(0, "setting")
    }

    /// Makes a physical slot that keeps WAL from now on, or at least from the last checkpoint's redo point on. True when it is new.
    pub fn create_physical_slot(&mut self, name: &str) -> Result<bool, ReplicationError> {
        // The syntax without parentheses is the one that 14 knows, and all later versions still take it.
        let sql = format!("CREATE_REPLICATION_SLOT \"{}\" PHYSICAL RESERVE_WAL", checked_slot_name(name)?);
        match self.query(&sql) {
            Ok(_) => Ok(true),
            Err(error) if error.sqlstate() == Some(SQLSTATE_DUPLICATE_OBJECT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes a slot.
    pub fn drop_slot(&mut self, name: &str) -> Result<(), ReplicationError> {
        self.query(&format!("DROP_REPLICATION_SLOT \"{}\"", checked_slot_name(name)?)).map(|_| ())
    }

    /// The slot's state. `None`: there is no such slot, or the server is a 14, which cannot be asked.
    pub fn read_slot(&mut self, name: &str) -> Result<Option<ReplicationSlot>, ReplicationError> {
        if self.version() < PgVersion::V15 {
            return Ok(None);
        }
        let row = self.query_one(&format!("READ_REPLICATION_SLOT \"{}\"", checked_slot_name(name)?))?;
        if row.text(0).is_none() {
            return Ok(None);
        }
        let restart_lsn = row.text(1).map(|_| row.lsn(1)).transpose()?;
        let restart_timeline_id = row.text(2).map(|_| row.parsed(2, "timeline id")).transpose()?;
        Ok(Some(ReplicationSlot { restart_lsn, restart_timeline_id }))
    }

    /// The history file of a PostgreSQL timeline. Timeline 1 has none: that is an error of the server.
    pub fn timeline_history(&mut self, timeline_id: TimeLineId) -> Result<TimelineHistoryFile, ReplicationError> {
        let row = self.query_one(&format!("TIMELINE_HISTORY {timeline_id}"))?;
        let content = row.bytes(1).cloned().ok_or_else(|| protocol("a history file without content"))?;
        Ok(TimelineHistoryFile { name: row.parsed(0, "file name")?, content })
    }
}

pub(super) fn start_replication_sql(
    slot: Option<&str>,
    start_lsn: Lsn,
    timeline_id: TimeLineId,
) -> Result<String, ReplicationError> {
    let slot = match slot {
        Some(name) => format!("SLOT \"{}\" ", checked_slot_name(name)?),
        None => String::new(),
    };
    Ok(format!("START_REPLICATION {slot}PHYSICAL {start_lsn} TIMELINE {timeline_id}"))
}
