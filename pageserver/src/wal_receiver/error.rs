//! Why a connection of a receiver ended.

use postgres_ffi::{Lsn, PgVersion, TimeLineId};
use serde::Serialize;

use super::SinkError;
use crate::replication::{ReplicationError, one_line};
use crate::wal::WalFileError;
use crate::wal::history::HistoryError;

/// Where the primary's history and ours part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, thiserror::Error)]
pub enum Divergence {
    /// The primary left our timeline before our last record: it never had that record.
    #[error(
        "the primary left timeline {timeline_id} at {switch_lsn}, our last record on it ends at {last_record_lsn}: its history is not ours"
    )]
    LeftEarlier {
        /// Our PostgreSQL timeline.
        timeline_id: TimeLineId,
        /// Where the primary left it.
        switch_lsn: Lsn,
        /// Where our last record ends.
        last_record_lsn: Lsn,
    },
    /// The primary is a clone that began behind our last record: what stands in its WAL before is not known to be WAL.
    #[error(
        "the primary is a clone that began at {began_lsn}, behind our last record, which ends at {last_record_lsn}: it does not have what lies between. Reset the branch to {began_lsn}, or make a new clone"
    )]
    BeganLater {
        /// Where the clone began.
        began_lsn: Lsn,
        /// Where our last record ends.
        last_record_lsn: Lsn,
    },
    /// The primary never was on our timeline, or came to it elsewhere.
    #[error(
        "the primary's timeline {primary_timeline_id} does not descend from our timeline {timeline_id}, where our last record ends at {last_record_lsn}"
    )]
    NotAnAncestor {
        /// Our PostgreSQL timeline.
        timeline_id: TimeLineId,
        /// The primary's.
        primary_timeline_id: TimeLineId,
        /// Where our last record ends.
        last_record_lsn: Lsn,
    },
    /// The primary has less WAL than we on the same timeline: it was set back, or is a standby that lags behind.
    #[error("the primary's WAL ends at {primary_lsn}, before our last record, which ends at {last_record_lsn}")]
    Behind {
        /// Where the primary's WAL ends.
        primary_lsn: Lsn,
        /// Where our last record ends.
        last_record_lsn: Lsn,
    },
}

/// A connection of a receiver ended.
#[derive(Debug, thiserror::Error)]
pub enum ReceiverError {
    /// The connection, the login or the protocol failed.
    #[error(transparent)]
    Replication(#[from] ReplicationError),
    /// The primary refused the connection, and this is why.
    #[error("{explanation}")]
    Explained {
        /// For people.
        explanation: String,
        /// What the primary said.
        #[source]
        source: ReplicationError,
    },
    /// The primary logs too little.
    #[error(
        "the primary runs with wal_level={wal_level}; it must be replica or logical, with minimal pages change without WAL"
    )]
    WalLevel {
        /// What it is.
        wal_level: String,
    },
    /// The server at this address is of another cluster.
    #[error("the server is of another cluster. system_id=`{found}`, expected=`{expected}`")]
    OtherCluster {
        /// Its system identifier.
        found: u64,
        /// Ours.
        expected: u64,
    },
    /// The server is of another major version.
    #[error("the server is PostgreSQL {found}, the timeline is of PostgreSQL {expected}")]
    OtherVersion {
        /// Its version.
        found: PgVersion,
        /// Ours.
        expected: PgVersion,
    },
    /// The primary's data checksums are not what they were.
    #[error(
        "data checksums of the primary were switched {} by pg_checksums, of which the WAL says nothing: switch them back before anything is written, or import the primary anew", if *found { "on" } else { "off" }
    )]
    DataChecksums {
        /// What they are now.
        found: bool,
    },
    /// The primary is not the continuation of what we hold.
    #[error(transparent)]
    Diverged(Divergence),
    /// A history file of the primary makes no sense.
    #[error("bad timeline history from the primary")]
    History(#[from] HistoryError),
    /// The primary does not have the WAL any more that comes next.
    #[error(
        "the primary does not have the WAL any more that comes next; import it anew. next_lsn=`{next_lsn}`, reason=`{reason}`"
    )]
    WalRemoved {
        /// What is missing.
        next_lsn: Lsn,
        /// What the primary said.
        reason: String,
    },
    /// WAL came that does not go on where the last ended.
    #[error("the primary sent WAL out of order. expected_lsn=`{expected_lsn}`, start_lsn=`{start_lsn}`")]
    OutOfOrder {
        /// What we expected.
        expected_lsn: Lsn,
        /// What came.
        start_lsn: Lsn,
    },
    /// Our files failed. The receiver ends.
    #[error(transparent)]
    WalFile(#[from] WalFileError),
    /// Ingest failed. The receiver ends.
    #[error("ingest failed: {}", one_line(.0.as_ref()))]
    Sink(SinkError),
    /// Ingest of WAL from our own files failed: those are damaged, or ingest has a fault. The receiver ends.
    #[error("ingest of WAL on disk failed at {place}: {}", one_line(.source_of_failure.as_ref()))]
    SinkFromDisk {
        /// File and offset of the record at which it ended.
        place: String,
        /// What the sink said.
        source_of_failure: SinkError,
    },
    /// The receiver is to stop.
    #[error("stopped")]
    Stopped,
}

impl ReceiverError {
    /// True when connecting again cannot help: the fault is on our side.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::WalFile(_) | Self::Sink(_) | Self::SinkFromDisk { .. } | Self::Stopped)
    }

    /// True when somebody has to change something before it can work again, so that there is no hurry.
    pub(super) fn needs_a_person(&self) -> bool {
        match self {
            Self::Replication(error) => error.needs_a_person(),
            // A standby that lags behind comes closer by itself.
            Self::Diverged(Divergence::Behind { .. }) => false,
            Self::Explained { .. }
            | Self::WalLevel { .. }
            | Self::OtherCluster { .. }
            | Self::OtherVersion { .. }
            | Self::DataChecksums { .. }
            | Self::Diverged(_)
            | Self::WalRemoved { .. } => true,
            _ => false,
        }
    }
}
