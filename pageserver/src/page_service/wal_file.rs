//! `WAL GET`: a file of WAL over COPY OUT.

use std::io;

use super::copy_out::CopyOut;
use super::error::Failure;
use super::message;
use super::server::Shared;
use super::transport::Wire;
use crate::page_service::backend::{BackendError, BackendErrorKind};

/// Sends the file. Errors: there is none; or ended in the middle (the client has CopyData then, and no CopyDone).
pub(super) fn serve(wire: &mut Wire, shared: &Shared, timeline: &str, file: &str) -> Result<(), Failure> {
    let (length, mut bytes) = shared.repository.wal_file(timeline, file)?;
    message::copy_out_response(wire.out.bytes());
    let mut sink = CopyOut::new(wire);
    let outcome = io::copy(&mut bytes, &mut sink);
    if let Some(failure) = sink.stopped_by() {
        return Err(failure);
    }
    let broken = |why: String| {
        BackendError::new(BackendErrorKind::Unavailable, format!("cannot read the WAL file: {why}. file=`{file}`"))
    };
    let sent = outcome.map_err(|error| broken(error.to_string()))?;
    if sent != length {
        return Err(broken(format!("it has become shorter. length=`{length}`, read=`{sent}`")).into());
    }
    message::bare(wire.out.bytes(), b'c');
    Ok(())
}
