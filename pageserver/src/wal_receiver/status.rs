//! What a receiver shows of itself.

use std::time::SystemTime;

use postgres_ffi::{Lsn, TimeLineId};
use serde::Serialize;

use super::error::Divergence;

/// What a receiver is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum ReceiverState {
    /// Ingests WAL that is in its own files already.
    CatchingUp,
    /// Connects, logs in, checks.
    Connecting,
    /// WAL flows.
    Streaming,
    /// The last connection ended; tries again soon. See [`ReceiverStatus::last_error`].
    Waiting,
    /// The primary's history leaves ours before our last record: it is not the continuation of what we hold. Tries again from time to time,
    /// in case another server answers.
    Diverged {
        /// Where the histories part.
        divergence: Divergence,
    },
    /// The primary does not have the WAL any more that comes next. Way out: import it anew, or restore the WAL files on the primary.
    WalRemoved {
        /// What is missing.
        next_lsn: Lsn,
        /// What the primary said.
        reason: String,
    },
    /// Disk or ingest failed; nothing more comes in until the timeline is opened again.
    Failed {
        /// What happened.
        reason: String,
    },
    /// It was told to stop.
    Stopped,
}

impl ReceiverState {
    /// One or two words for tables.
    pub fn name(&self) -> &'static str {
        match self {
            Self::CatchingUp => "catching up",
            Self::Connecting => "connecting",
            Self::Streaming => "streaming",
            Self::Waiting => "waiting",
            Self::Diverged { .. } => "diverged",
            Self::WalRemoved { .. } => "wal removed",
            Self::Failed { .. } => "failed",
            Self::Stopped => "stopped",
        }
    }
}

/// WAL that stays on our disk behind what is needed anyway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct KeptWal {
    /// From here on, in whole segments.
    pub from_lsn: Lsn,
    /// Who needs it from there on.
    pub needed_by: &'static str,
}

/// Everything a person may want to know about a receiver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReceiverStatus {
    /// What it is doing.
    #[serde(flatten)]
    pub state: ReceiverState,
    /// The primary: user, hosts and ports, no password.
    pub primary: String,
    /// The slot on the primary.
    pub slot: Option<String>,
    /// PostgreSQL timeline that is streamed.
    pub pg_timeline_id: TimeLineId,
    /// The last error, kept until WAL flows again.
    pub last_error: Option<String>,
    /// Connections that ended since the start.
    pub reconnect_count: u64,
    /// End of the WAL that is in our files.
    pub received_lsn: Option<Lsn>,
    /// End of the last whole record that is fsynced.
    pub flushed_lsn: Option<Lsn>,
    /// End of the last record that is ingested.
    pub last_record_lsn: Lsn,
    /// End of the primary's WAL, as it last told.
    pub primary_lsn: Option<Lsn>,
    /// When it last said something.
    pub last_message_time: Option<SystemTime>,
    /// Bytes of WAL received since the start.
    pub received_bytes: u64,
    /// Writes to disk that were made durable since the start.
    pub flush_count: u64,
    /// The oldest WAL that is in our files, as of the last segment.
    pub oldest_wal_lsn: Option<Lsn>,
    /// Why it stays, as of the last segment. `None`: nobody was asked yet, or all stays.
    pub wal_needed_by: Option<&'static str>,
}

impl ReceiverStatus {
    /// Bytes of WAL that the primary has and we cannot read yet.
    pub fn lag_bytes(&self) -> Option<u64> {
        self.primary_lsn.map(|primary_lsn| primary_lsn.saturating_sub(self.last_record_lsn))
    }
}
