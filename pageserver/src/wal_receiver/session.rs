//! One connection to the primary: checks, slot, WAL until something ends it.

use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use postgres_ffi::{Lsn, TimeLineId};

use super::checks::{check_data_checksums, check_history, check_identity, check_wal_level, fetch_history};
use super::error::ReceiverError;
use super::receiver::Shared;
use super::{KeptWal, ReceiverConfig, ReceiverState, WalSink};
use crate::replication::error::{
    SQLSTATE_NOT_IN_PREREQUISITE_STATE, SQLSTATE_UNDEFINED_FILE, SQLSTATE_UNDEFINED_OBJECT,
};
use crate::replication::{Connection, ReplicationError, Started, Status, WalEvent, WalStream};
use crate::wal::{WalLog, WalReader};

/// WAL read from our own files at once.
const CATCH_UP_BYTES: usize = 1024 * 1024;
/// WAL that is written and made durable together, at most about this.
const GROUP_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What the thread owns while it runs.
pub(super) struct Session<'a> {
    pub(super) config: &'a ReceiverConfig,
    pub(super) shared: &'a Shared,
    pub(super) sink: &'a mut dyn WalSink,
    pub(super) log: &'a mut WalLog,
    pub(super) apply_lsn: Lsn,
    /// Bytes below are in the sink already. Ahead of the log's end behind a segment switch: the sink's record ends with the segment then,
    /// of which the log may still lack the unused rest.
    pub(super) wanted_lsn: Lsn,
    /// Segment in which old files were last looked for.
    pub(super) tidied_segment_start: Option<Lsn>,
}

impl Session<'_> {
    /// Ingests what is durable in our files and not in the sink.
    pub(super) fn catch_up(&mut self) -> Result<(), ReceiverError> {
        self.apply_lsn = self.sink.last_record_lsn();
        self.wanted_lsn = self.apply_lsn;
        let Some(end_lsn) = self.log.flushed_record_end_lsn() else { return Ok(()) };
        let mut reader = WalReader::new(self.log.layout().clone());
        let mut next_lsn = self.apply_lsn;
        if next_lsn < end_lsn {
            self.shared.set_state(ReceiverState::CatchingUp);
            tracing::info!(from_lsn = %next_lsn, to_lsn = %end_lsn, "ingesting WAL that is on disk");
        }
        while next_lsn < end_lsn {
            self.shared.check_stop()?;
            let bytes = reader.read(next_lsn, end_lsn, CATCH_UP_BYTES)?;
            let start_lsn = next_lsn;
            next_lsn = Lsn::new(next_lsn.as_u64() + bytes.len() as u64);
            self.ingest(start_lsn, bytes).map_err(|error| match error {
                ReceiverError::Sink(source_of_failure) => {
                    let place = self.log.layout().describe(self.sink.last_record_lsn());
                    ReceiverError::SinkFromDisk { place, source_of_failure }
                }
                other => other,
            })?;
        }
        self.wanted_lsn = next_lsn;
        if self.apply_lsn < end_lsn {
            let place = self.log.layout().describe(self.apply_lsn);
            tracing::warn!(apply_lsn = %self.apply_lsn, %end_lsn, place, "WAL on disk ended early for ingest");
        }
        Ok(())
    }

    fn ingest(&mut self, start_lsn: Lsn, bytes: Bytes) -> Result<(), ReceiverError> {
        self.apply_lsn = self.sink.ingest(start_lsn, bytes).map_err(ReceiverError::Sink)?;
        self.shared.update(|status| status.last_record_lsn = self.apply_lsn);
        Ok(())
    }

    /// Streams until the connection ends. Never returns without an error.
    pub(super) fn run(&mut self, mut connection: Connection) -> Result<std::convert::Infallible, ReceiverError> {
        if self.log.leave_empty_timeline()? {
            tracing::info!(
                timeline_id = self.log.timeline_id(),
                "no record came on the newer timeline; back on this one"
            );
        }
        self.check_primary(&mut connection)?;
        self.ensure_slot(&mut connection)?;
        loop {
            let start_lsn = self.log.rewind_to_record_end()?;
            self.sink.restart().map_err(ReceiverError::Sink)?;
            // The last connection may have ended between the fsync and the ingest of a group.
            self.catch_up()?;
            let timeline_id = self.log.timeline_id();
            let started = connection
                .start_replication(self.config.slot.as_deref(), start_lsn, timeline_id)
                .map_err(|error| self.explain(error, start_lsn))?;
            let next = match started {
                Started::Streaming(stream) => {
                    // Even removed WAL is only told once the stream has begun.
                    let (idle, next) = self.stream(stream).map_err(|error| match error {
                        ReceiverError::Replication(error) => self.explain(error, self.log.written_lsn()),
                        other => other,
                    })?;
                    connection = idle;
                    next
                }
                Started::TimelineEnded { connection: idle, next } => {
                    connection = idle;
                    next
                }
            };
            self.switch_timeline(&mut connection, next)?;
        }
    }

    fn check_primary(&mut self, connection: &mut Connection) -> Result<(), ReceiverError> {
        let layout = self.log.layout().clone();
        let identity = check_identity(connection, layout.system_id, layout.version)?;
        check_wal_level(connection)?;
        if let Some(expected) = self.config.data_checksums {
            check_data_checksums(connection, expected)?;
        }
        let timeline_id = self.log.timeline_id();
        let primary = fetch_history(connection, identity.timeline_id)?;
        let ours = layout.history(timeline_id)?;
        let last_record_lsn = self.log.flushed_record_end_lsn().unwrap_or(Lsn::ZERO).max(self.sink.last_record_lsn());
        check_history(&primary, identity.flush_lsn, timeline_id, ours.as_ref(), last_record_lsn)
            .map_err(ReceiverError::Diverged)?;
        if ours.is_none() && primary.timeline_id == timeline_id && !primary.content.is_empty() {
            // Imported from a primary that was promoted before: from now on its history is ours.
            layout.write_history(timeline_id, &primary.content)?;
        }
        self.shared.update(|status| status.primary_lsn = Some(identity.flush_lsn));
        Ok(())
    }

    /// Makes the slot if it is not there. Whether the WAL we need is still there shows when the stream starts.
    fn ensure_slot(&mut self, connection: &mut Connection) -> Result<(), ReceiverError> {
        let Some(slot) = &self.config.slot else { return Ok(()) };
        // Asking first keeps an error message per connection out of the primary's log. A 14 cannot be asked.
        if connection.read_slot(slot)?.is_none() && connection.create_physical_slot(slot)? {
            tracing::info!(slot, primary = %self.config.conninfo, "replication slot created");
        }
        Ok(())
    }

    fn explain(&self, error: ReplicationError, next_lsn: Lsn) -> ReceiverError {
        match error.sqlstate() {
            // Removed WAL; a slot that let go of it.
            Some(SQLSTATE_UNDEFINED_FILE | SQLSTATE_NOT_IN_PREREQUISITE_STATE) => {
                ReceiverError::WalRemoved { next_lsn, reason: error.to_string() }
            }
            Some(SQLSTATE_UNDEFINED_OBJECT) => {
                ReceiverError::Explained { explanation: "the replication slot vanished".into(), source: error }
            }
            _ => error.into(),
        }
    }

    /// Receives until the server's timeline ends: the idle connection, and how it goes on.
    fn stream(&mut self, mut stream: WalStream) -> Result<(Connection, Option<(TimeLineId, Lsn)>), ReceiverError> {
        self.shared.set_interrupt(stream.interrupt_handle()?)?;
        let timeline_id = self.log.timeline_id();
        tracing::info!(primary = %self.config.conninfo, start_lsn = %self.log.written_lsn(), timeline_id, "streaming WAL");
        self.shared.update(|status| {
            status.state = ReceiverState::Streaming;
            status.pg_timeline_id = timeline_id;
            status.last_error = None;
        });
        let mut feedback = Feedback::new(self.config.status_interval, self.config.receive_timeout);
        feedback.send(&mut stream, self.status(), false)?;
        let mut pieces: Vec<Bytes> = Vec::new();
        loop {
            self.shared.check_stop()?;
            let mut event = Some(stream.next(feedback.wait())?);
            let mut group_bytes = 0;
            let group_start_lsn = self.log.written_lsn();
            let mut ended = None;
            let mut reply = false;
            let mut told_lsn = None;
            if matches!(event, Some(WalEvent::Idle)) {
                feedback.idle(&mut stream, self.status())?;
                continue;
            }
            feedback.heard();
            // Everything that the last read of the socket brought.
            while let Some(this) = event.take() {
                match this {
                    WalEvent::Data { start_lsn, primary_lsn, bytes, .. } => {
                        let expected_lsn = Lsn::new(group_start_lsn.as_u64() + group_bytes as u64);
                        if start_lsn != expected_lsn {
                            return Err(ReceiverError::OutOfOrder { expected_lsn, start_lsn });
                        }
                        if !bytes.is_empty() {
                            group_bytes += bytes.len();
                            pieces.push(bytes);
                        }
                        told_lsn = Some(primary_lsn);
                    }
                    WalEvent::Keepalive { primary_lsn, reply_requested, .. } => {
                        reply |= reply_requested;
                        told_lsn = Some(primary_lsn);
                    }
                    WalEvent::TimelineEnd { next } => {
                        ended = Some(next);
                        break;
                    }
                    WalEvent::Idle => {}
                }
                if group_bytes < GROUP_BYTES_MAX {
                    event = stream.next_buffered()?;
                }
            }
            self.heard(told_lsn);
            if group_bytes > 0 {
                self.log.append(group_start_lsn, &pieces)?;
                self.log.flush()?;
                self.flushed(group_bytes);
                let mut told = Ok(());
                if ended.is_none() {
                    told = feedback.send(&mut stream, self.status(), false);
                    reply = false;
                }
                // Even if the connection has just ended: the next one goes on behind what the log has.
                self.ingest_group(group_start_lsn, pieces.drain(..))?;
                self.remove_old_files()?;
                told?;
            }
            if let Some(next) = ended {
                return Ok((stream.into_connection(), next));
            }
            if reply || feedback.is_due(self.status()) {
                feedback.send(&mut stream, self.status(), false)?;
            }
        }
    }

    fn heard(&self, primary_lsn: Option<Lsn>) {
        self.shared.update(|status| {
            status.primary_lsn = primary_lsn.or(status.primary_lsn);
            status.last_message_time = Some(SystemTime::now());
        });
    }

    fn flushed(&mut self, group_bytes: usize) {
        self.shared.update(|status| {
            status.received_lsn = Some(self.log.written_lsn());
            status.flushed_lsn = self.log.flushed_record_end_lsn();
            status.received_bytes += group_bytes as u64;
            status.flush_count += 1;
        });
        if let Some(flushed_lsn) = self.log.flushed_record_end_lsn() {
            self.sink.durable(flushed_lsn);
        }
    }

    /// Removes WAL files that nobody needs, once per segment.
    fn remove_old_files(&mut self) -> Result<(), ReceiverError> {
        let segment_start = Some(self.log.layout().segment_start(self.log.written_lsn()));
        if self.tidied_segment_start == segment_start {
            return Ok(());
        }
        self.tidied_segment_start = segment_start;
        let kept = self.sink.kept();
        if let Some(KeptWal { from_lsn, needed_by }) = kept {
            // Never what the sink has still to ingest.
            let removed = self.log.remove_below(from_lsn.min(self.apply_lsn))?;
            if removed > 0 {
                tracing::debug!(removed, %from_lsn, needed_by, "old WAL files removed");
            }
        }
        let oldest_lsn = self.log.oldest_lsn()?;
        self.shared.update(|status| {
            status.oldest_wal_lsn = oldest_lsn;
            status.wal_needed_by = kept.map(|kept| kept.needed_by);
        });
        Ok(())
    }

    /// Gives the group to the sink, without what it has: the first segment is streamed from its beginning, a switched one from the switch on.
    fn ingest_group(&mut self, mut start_lsn: Lsn, pieces: impl Iterator<Item = Bytes>) -> Result<(), ReceiverError> {
        for mut bytes in pieces {
            let end_lsn = Lsn::new(start_lsn.as_u64() + bytes.len() as u64);
            let known = self.wanted_lsn.saturating_sub(start_lsn).min(bytes.len() as u64);
            let bytes = bytes.split_off(known as usize);
            if !bytes.is_empty() {
                self.ingest(Lsn::new(start_lsn.as_u64() + known), bytes)?;
            }
            start_lsn = end_lsn;
        }
        Ok(())
    }

    fn status(&self) -> Status {
        let flush_lsn = self.log.flushed_record_end_lsn().unwrap_or(Lsn::ZERO);
        Status { write_lsn: self.log.written_lsn(), flush_lsn, apply_lsn: self.apply_lsn.min(flush_lsn) }
    }

    /// Goes on with the timeline that the primary names, if our log ends where that one begins. If the primary had sent more of the old timeline than
    /// the new one contains, the loop rewinds and comes here again.
    fn switch_timeline(
        &mut self,
        connection: &mut Connection,
        next: Option<(TimeLineId, Lsn)>,
    ) -> Result<(), ReceiverError> {
        // A primary that ended the stream without a next timeline is shutting down.
        let (next_timeline_id, switch_lsn) = next.ok_or(ReplicationError::Closed)?;
        let timeline_id = self.log.timeline_id();
        let last_record_lsn = self.log.flushed_record_end_lsn().unwrap_or(Lsn::ZERO);
        if switch_lsn < last_record_lsn {
            return Err(ReceiverError::Diverged(super::Divergence::LeftEarlier {
                timeline_id,
                switch_lsn,
                last_record_lsn,
            }));
        }
        if self.log.written_lsn() != switch_lsn {
            if self.log.written_lsn() < switch_lsn {
                return Err(ReceiverError::OutOfOrder { expected_lsn: self.log.written_lsn(), start_lsn: switch_lsn });
            }
            return Ok(());
        }
        let history = fetch_history(connection, next_timeline_id)?;
        self.log.switch_timeline(next_timeline_id, switch_lsn, &history.content)?;
        tracing::info!(timeline_id, next_timeline_id, %switch_lsn, "following the primary to its new timeline");
        Ok(())
    }
}

/// When to talk to the primary, and when to give it up.
struct Feedback {
    status_interval: Duration,
    receive_timeout: Duration,
    last_sent: Instant,
    last_status: Option<Status>,
    last_heard: Instant,
    pinged: bool,
}

impl Feedback {
    fn new(status_interval: Duration, receive_timeout: Duration) -> Self {
        let now = Instant::now();
        Feedback { status_interval, receive_timeout, last_sent: now, last_status: None, last_heard: now, pinged: false }
    }

    /// How long to wait for the primary before [`Feedback::idle`] has something to do.
    fn wait(&self) -> Duration {
        let status = self.status_interval.saturating_sub(self.last_sent.elapsed());
        let ping = if self.pinged { self.receive_timeout } else { self.receive_timeout / 2 };
        status.min(ping.saturating_sub(self.last_heard.elapsed()))
    }

    fn heard(&mut self) {
        self.last_heard = Instant::now();
        self.pinged = false;
    }

    /// The status changed since it was last sent, or the interval is over.
    fn is_due(&self, status: Status) -> bool {
        self.last_status != Some(status) || self.status_interval <= self.last_sent.elapsed()
    }

    fn send(&mut self, stream: &mut WalStream, status: Status, ping: bool) -> Result<(), ReplicationError> {
        stream.send_status(&status, ping)?;
        self.last_sent = Instant::now();
        self.last_status = Some(status);
        Ok(())
    }

    /// Nothing came: a status now and then, a question after half the timeout, the end after all of it.
    fn idle(&mut self, stream: &mut WalStream, status: Status) -> Result<(), ReplicationError> {
        let silent = self.last_heard.elapsed();
        if self.receive_timeout <= silent {
            return Err(ReplicationError::Timeout { timeout: self.receive_timeout });
        }
        let ping = self.receive_timeout / 2 <= silent && !self.pinged;
        if ping || self.is_due(status) {
            self.send(stream, status, ping)?;
            self.pinged |= ping;
        }
        Ok(())
    }
}
