//! `BASEBACKUP`: a backup's archive over COPY OUT.
//!
//! - Waits for an LSN that has not arrived, as reads in a page stream do.
//! - What is refused beforehand is an ordinary error. An error in the middle ends the COPY: an ErrorResponse instead of CopyDone.
//! - A cancel request, a client that went away and a shutdown end it at the next piece.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use postgres_ffi::{Lsn, TimeLineId};

use super::backend::{BackendError, BackendErrorKind, TimelineBackend};
use super::copy_out::CopyOut;
use super::error::Failure;
use super::message;
use super::server::Shared;
use super::transport::Wire;

/// While waiting for WAL, how often we look whether anybody still wants the backup.
const WAIT_SLICE: Duration = Duration::from_millis(200);

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupRequest {
    /// Only within this cluster.
    pub tenant: Option<String>,
    /// The timeline.
    pub timeline: String,
    /// As of; the last record without.
    pub request_lsn: Option<Lsn>,
    /// Compress the archive.
    pub gzip: bool,
    /// Without relation forks, but for init forks.
    pub no_data: bool,
    /// For a standby of who writes the timeline.
    pub standby: bool,
}

/// What is told before the first byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupBegin {
    /// The LSN taken: a record's end.
    pub branch_lsn: Lsn,
    /// The PostgreSQL timeline that a server begins; that a standby is on.
    pub pg_timeline_id: TimeLineId,
    /// Bytes of the archive before compression, about.
    pub bytes_estimated: u64,
}

impl std::fmt::Display for BackupBegin {
    /// The notice; `client::BackupBegin` reads it back.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let BackupBegin { branch_lsn, pg_timeline_id, bytes_estimated } = self;
        write!(f, "base backup as of {branch_lsn}, PostgreSQL timeline {pg_timeline_id}, about {bytes_estimated} bytes")
    }
}

impl std::str::FromStr for BackupBegin {
    type Err = NotABackupNotice;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let rest = text.strip_prefix("base backup as of ")?.strip_suffix(" bytes")?;
            let (branch_lsn, rest) = rest.split_once(", PostgreSQL timeline ")?;
            let (pg_timeline_id, bytes_estimated) = rest.split_once(", about ")?;
            Some(BackupBegin {
                branch_lsn: branch_lsn.parse().ok()?,
                pg_timeline_id: pg_timeline_id.parse().ok()?,
                bytes_estimated: bytes_estimated.parse().ok()?,
            })
        };
        parse().ok_or(NotABackupNotice)
    }
}

/// The text is not the notice that a backup begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the notice of a base backup")]
pub struct NotABackupNotice;

/// Takes a backup: first what it is, then its bytes.
pub trait BackupSink: Write {
    /// The backup was looked over and is about to be written.
    fn begin(&mut self, begin: &BackupBegin) -> io::Result<()>;
}

/// Sends the backup. Errors: refused, or ended in the middle (the client has CopyData then, and no CopyDone).
pub(super) fn serve(wire: &mut Wire, shared: &Shared, request: &BackupRequest) -> Result<(), Failure> {
    let timeline = shared.repository.timeline(request.tenant.as_deref(), &request.timeline)?;
    let request_lsn = request.request_lsn.unwrap_or_else(|| timeline.last_record_lsn());
    wait(wire, shared, &*timeline, request_lsn)?;
    let request = BackupRequest { request_lsn: Some(request_lsn), ..request.clone() };
    let mut sink = CopyOut::new(wire);
    let outcome = shared.repository.base_backup(&request, &mut sink);
    if let Some(failure) = sink.stopped_by() {
        return Err(failure);
    }
    outcome?;
    message::bare(wire.out.bytes(), b'c');
    Ok(())
}

fn wait(wire: &mut Wire, shared: &Shared, timeline: &dyn TimelineBackend, lsn: Lsn) -> Result<(), Failure> {
    let deadline = Instant::now() + shared.config.wait_lsn_timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match timeline.wait_lsn(lsn, left.min(WAIT_SLICE)) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind == BackendErrorKind::NotYet && left > WAIT_SLICE => {
                wire.check_interrupts_and_client()?;
            }
            Err(error) => return Err(BackendError::into(error)),
        }
    }
}

impl BackupSink for CopyOut<'_> {
    fn begin(&mut self, begin: &BackupBegin) -> io::Result<()> {
        message::notice(self.wire.out.bytes(), &begin.to_string());
        message::copy_out_response(self.wire.out.bytes());
        let flushed = self.wire.flush().map_err(Failure::from);
        self.stopped(flushed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_notice_is_read_back() {
        let begin = BackupBegin { branch_lsn: Lsn::new(0x300_0060), pg_timeline_id: 4096, bytes_estimated: 31_457_280 };
        let text = begin.to_string();
        assert_eq!(text, "base backup as of 0/3000060, PostgreSQL timeline 4096, about 31457280 bytes");
        assert_eq!(text.parse(), Ok(begin));
        for bad in ["", "base backup as of 0/1", "base backup as of x, PostgreSQL timeline 1, about 2 bytes"] {
            assert_eq!(bad.parse::<BackupBegin>(), Err(NotABackupNotice), "{bad}");
        }
    }
}
