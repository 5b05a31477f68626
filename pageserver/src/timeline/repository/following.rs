//! Imported timelines follow their primaries: for each a thread that streams WAL and feeds it to the timeline.
//!
//! Reported as flushed is what the store has durably: until then the primary keeps the WAL in our slot.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use postgres_ffi::Lsn;
use tracing::{info, warn};

use super::Repository;
use crate::replication::{
    ConnInfo, Connection, Mode, ReplicationError, Started, Status, WalEvent, WalStream, one_line,
};
use crate::timeline::{ReceiverPositions, Timeline, TimelineIngest, TimelineState};

const RETRY_DELAY: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(200);

impl Repository {
    /// Starts to follow the primary of every timeline that has one.
    pub fn follow_primaries(self: &Arc<Self>) {
        for timeline in self.timelines() {
            self.follow(&timeline);
        }
    }

    /// Starts to follow the timeline's primary, if it has one.
    pub(super) fn follow(&self, timeline: &Arc<Timeline>) {
        if timeline.metadata().primary.is_none() {
            return;
        }
        let timeline_id = timeline.metadata().timeline_id;
        let shutting_down = Arc::clone(&self.shutting_down);
        let timeline = Arc::clone(timeline);
        let thread: JoinHandle<()> = std::thread::spawn(move || {
            while !shutting_down.load(Ordering::Acquire) && !matches!(timeline.state(), TimelineState::Stopped { .. }) {
                if let Err(error) = stream(&timeline, &shutting_down) {
                    warn!(error = one_line(&*error), "stream ended");
                }
                std::thread::sleep(RETRY_DELAY);
            }
        });
        self.receivers.lock().insert(timeline_id, thread);
    }
}

fn stream(
    timeline: &Arc<Timeline>,
    shutting_down: &std::sync::atomic::AtomicBool,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let metadata = timeline.metadata();
    let Some(primary) = &metadata.primary else { return Ok(()) };
    let conninfo: ConnInfo = primary.conninfo.parse().map_err(ReplicationError::from)?;
    let connection = Connection::connect(&conninfo, Mode::Replication)?;
    let start_lsn = timeline.last_record_lsn();
    let mut ingest = TimelineIngest::new(Arc::clone(timeline))?;
    info!(%start_lsn, "streaming");
    let started = connection.start_replication(Some(&primary.slot), start_lsn, metadata.cluster.pg_timeline_id)?;
    let Started::Streaming(mut stream) = started else { return Ok(()) };
    let mut reported = Instant::now();
    while !shutting_down.load(Ordering::Acquire) {
        let mut primary_lsn = None;
        match stream.next(POLL)? {
            WalEvent::Data { bytes, primary_lsn: end, .. } => {
                ingest.feed(bytes)?;
                primary_lsn = Some(end);
            }
            WalEvent::Keepalive { primary_lsn: end, reply_requested, .. } => {
                primary_lsn = Some(end);
                if reply_requested {
                    report(&mut stream, timeline)?;
                }
            }
            WalEvent::Idle => {}
            WalEvent::TimelineEnd { .. } => return Ok(()),
        }
        if reported.elapsed() > Duration::from_secs(1) {
            report(&mut stream, timeline)?;
            reported = Instant::now();
        }
        if primary_lsn.is_some() {
            let flushed_lsn = timeline.last_record_lsn();
            *timeline.receiver.write() = Some(ReceiverPositions { flushed_lsn, primary_lsn });
        }
    }
    Ok(())
}

fn report(stream: &mut WalStream, timeline: &Timeline) -> Result<(), ReplicationError> {
    let flush_lsn = timeline.durable_lsn().unwrap_or(Lsn::ZERO);
    let status = Status { write_lsn: flush_lsn, flush_lsn, apply_lsn: timeline.last_record_lsn() };
    stream.send_status(&status, false)
}
