//! Imported timelines follow their primaries: each has a receiver that feeds it.

use std::sync::Arc;

use bytes::Bytes;
use postgres_ffi::Lsn;

use super::{Repository, RepositoryError};
use crate::replication::{ConnInfo, ReplicationError};
use crate::timeline::{Timeline, TimelineIngest, TimelineIngestError};
use crate::wal::WalLayout;
use crate::wal_receiver::{ReceiverConfig, SinkError, WalReceiver, WalSink};

impl Repository {
    /// Starts to follow the primary of every timeline that has one. Errors: the WAL files of a timeline cannot be used.
    pub fn follow_primaries(&self) -> Result<(), RepositoryError> {
        self.timelines().iter().try_for_each(|timeline| self.follow(timeline))
    }

    /// Starts to follow the timeline's primary, if it has one.
    pub(super) fn follow(&self, timeline: &Arc<Timeline>) -> Result<(), RepositoryError> {
        let metadata = timeline.metadata();
        let Some(primary) = &metadata.primary else { return Ok(()) };
        let conninfo: ConnInfo = primary.conninfo.parse().map_err(ReplicationError::from)?;
        let config = ReceiverConfig {
            conninfo,
            slot: Some(primary.slot.clone()),
            layout: WalLayout {
                directory: self.timeline_dir(metadata.timeline_id).join("wal"),
                version: metadata.cluster.pg_version,
                segment_bytes: metadata.cluster.wal_segment_bytes,
                system_id: metadata.cluster.system_identifier,
            },
            pg_timeline_id: metadata.cluster.pg_timeline_id,
            status_interval: std::time::Duration::from_secs(self.config.wal.status_interval_seconds),
            receive_timeout: RECEIVE_TIMEOUT,
        };
        let sink = TimelineSink::new(Arc::clone(timeline), self.config.wal.keep_mib << 20)?;
        let receiver = WalReceiver::start(config, Box::new(sink))?;
        *timeline.receiver.write() = Some(receiver);
        Ok(())
    }
}

/// Silence of the primary after which the connection counts as lost, as PostgreSQL's `wal_receiver_timeout`.
const RECEIVE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);

/// The end of the receiver's way: the timeline's ingest.
struct TimelineSink {
    timeline: Arc<Timeline>,
    ingest: TimelineIngest,
    /// WAL behind the watermark that stays on disk.
    keep_bytes: u64,
}

impl TimelineSink {
    fn new(timeline: Arc<Timeline>, keep_bytes: u64) -> Result<Self, TimelineIngestError> {
        let ingest = TimelineIngest::new(Arc::clone(&timeline))?;
        Ok(TimelineSink { timeline, ingest, keep_bytes })
    }
}

impl WalSink for TimelineSink {
    fn last_record_lsn(&self) -> Lsn {
        self.timeline.last_record_lsn()
    }

    fn restart(&mut self) -> Result<(), SinkError> {
        self.ingest = TimelineIngest::new(Arc::clone(&self.timeline))?;
        Ok(())
    }

    fn ingest(&mut self, start_lsn: Lsn, bytes: Bytes) -> Result<Lsn, SinkError> {
        assert!(start_lsn == self.ingest.fed_until(), "WAL comes without gaps");
        Ok(self.ingest.feed(bytes)?)
    }

    fn keep_lsn(&self) -> Option<Lsn> {
        let durable_lsn = self.timeline.durable_lsn()?;
        Some(Lsn::new(durable_lsn.saturating_sub(Lsn::new(self.keep_bytes))))
    }
}
