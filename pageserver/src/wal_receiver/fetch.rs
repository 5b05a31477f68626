//! One segment from a primary again: for a file of ours that is damaged or missing.
//!
//! - **Never** from a primary that is not the continuation of what is here: its history is compared first.
//! - Written under another name, read through, fsynced and renamed: what is there is replaced whole or not at all.
//! - Without the slot: a segment in front of where the slot stands is asked for as well, and is there as long as the primary keeps it.

use std::io::Write;
use std::time::{Duration, Instant};

use postgres_ffi::Lsn;

use super::ReceiverError;
use super::checks::{check_history, check_identity, fetch_history};
use crate::replication::{ConnInfo, Connection, Mode, ReplicationError, Started, WalEvent, WalStream};
use crate::wal::{WalFileError, WalLayout, check_records};

/// How long the primary may say nothing while it has more to send.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// It may take this long, and longer by as much as a link takes that brings so many bytes in a second.
const TIME_MAX: Duration = Duration::from_secs(60);
const RATE_BYTES_MIN: u32 = 100_000;

/// Takes segment `segment_no` of the log in `layout` from the primary. One that the primary is still writing comes as far as it goes, zeroes behind it; but
/// never less than was here: up to `needed_lsn`, where `slot` stands at the primary, and to its end if a later segment is here.
///
/// Errors: the primary is another one, has another history or less WAL, or does not have it any more; what it sends is no WAL; our disk.
pub fn fetch_segment(
    conninfo: &ConnInfo,
    slot: &str,
    layout: &WalLayout,
    segment_no: u64,
    needed_lsn: Lsn,
) -> Result<(), ReceiverError> {
    let start_lsn = layout.segment_start_of(segment_no);
    let files = layout.segment_files()?;
    let Some(last) = files.last() else {
        return Err(WalFileError::Missing { lsn: start_lsn, directory: layout.directory.clone() }.into());
    };
    let mut connection = Connection::connect(conninfo, Mode::Replication)?;
    let identity = check_identity(&mut connection, layout.system_id, layout.version)?;
    // One that was made at a promoted server, before anything came from there, stands where nothing of ours is.
    let slot = connection.read_slot(slot)?.filter(|slot| slot.restart_timeline_id == Some(last.timeline_id));
    let told_lsn = slot.and_then(|slot| slot.restart_lsn);
    let needed_lsn = needed_lsn.max(told_lsn.unwrap_or(Lsn::ZERO));
    let primary = fetch_history(&mut connection, identity.timeline_id)?;
    let ours = layout.history(last.timeline_id)?;
    check_history(&primary, identity.flush_lsn, last.timeline_id, ours.as_ref(), needed_lsn)
        .map_err(ReceiverError::Diverged)?;
    let end_lsn = layout.segment_start_of(segment_no.saturating_add(1));
    let timeline_id = match files.iter().find(|file| file.segment_no == segment_no) {
        Some(file) => file.timeline_id,
        None => primary.history.timeline_at(primary.timeline_id, end_lsn).min(last.timeline_id),
    };
    let started =
        connection.start_replication(None, start_lsn, timeline_id).map_err(|error| removed(error, start_lsn))?;
    let Started::Streaming(mut stream) = started else {
        let reason = "the primary never wrote it on this PostgreSQL timeline".to_owned();
        return Err(ReceiverError::WalRemoved { next_lsn: start_lsn, reason });
    };
    let bytes = receive(&mut stream, start_lsn, identity.flush_lsn, layout.segment_bytes)?;
    let needed_lsn = if segment_no < last.segment_no { end_lsn } else { needed_lsn.min(end_lsn) };
    if (bytes.len() as u64) < needed_lsn.saturating_sub(start_lsn) {
        let reason = "the primary has less of this segment than we had".to_owned();
        return Err(ReceiverError::WalRemoved { next_lsn: start_lsn, reason });
    }
    check_records(layout, &layout.directory, start_lsn, &bytes[..])?;
    layout.replace_segment(segment_no, timeline_id, |file| file.write_all(&bytes))?;
    Ok(())
}

fn removed(error: ReplicationError, start_lsn: Lsn) -> ReceiverError {
    match error.sqlstate() {
        Some(crate::replication::error::SQLSTATE_UNDEFINED_FILE) => {
            ReceiverError::WalRemoved { next_lsn: start_lsn, reason: error.to_string() }
        }
        _ => error.into(),
    }
}

/// The bytes from `start_lsn` to the segment's end, or to `flush_lsn` if the primary has no more.
fn receive(
    stream: &mut WalStream,
    start_lsn: Lsn,
    flush_lsn: Lsn,
    segment_bytes: u32,
) -> Result<Vec<u8>, ReceiverError> {
    let wanted = u64::from(segment_bytes).min(flush_lsn.saturating_sub(start_lsn));
    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
    let mut received = Vec::with_capacity(wanted);
    let mut heard = Instant::now();
    let timeout = TIME_MAX + Duration::from_secs(1) * (segment_bytes / RATE_BYTES_MIN);
    let deadline = Instant::now() + timeout;
    while received.len() < wanted {
        if deadline <= Instant::now() {
            return Err(ReplicationError::Timeout { timeout }.into());
        }
        let event = stream.next(SILENCE_MAX).map_err(|error| removed(error, start_lsn))?;
        match event {
            WalEvent::Data { start_lsn: at_lsn, bytes, .. } => {
                let expected_lsn = Lsn::new(start_lsn.as_u64() + received.len() as u64);
                if at_lsn != expected_lsn {
                    return Err(ReceiverError::OutOfOrder { expected_lsn, start_lsn: at_lsn });
                }
                heard = Instant::now();
                received.extend_from_slice(&bytes[..bytes.len().min(wanted - received.len())]);
            }
            WalEvent::TimelineEnd { .. } => break,
            WalEvent::Keepalive { .. } | WalEvent::Idle if heard.elapsed() < SILENCE_MAX => {}
            WalEvent::Keepalive { .. } | WalEvent::Idle => {
                return Err(ReplicationError::Timeout { timeout: SILENCE_MAX }.into());
            }
        }
    }
    Ok(received)
}
