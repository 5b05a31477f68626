//! Bytes of any length, piece by piece over COPY OUT.
//!
//! - A cancel request, a client that went away and a shutdown end it at the next piece.

use std::io::{self, Write};

use super::error::Failure;
use super::message;
use super::transport::Wire;

/// The most that one CopyData carries.
const PIECE_BYTES_MAX: usize = 64 * 1024;

/// Writes CopyData. Whoever makes one sends CopyOutResponse before the first byte, and CopyDone behind the last.
pub(super) struct CopyOut<'a> {
    pub(super) wire: &'a mut Wire,
    /// Why nothing more can be sent.
    stopped_by: Option<Failure>,
}

impl<'a> CopyOut<'a> {
    pub(super) fn new(wire: &'a mut Wire) -> Self {
        CopyOut { wire, stopped_by: None }
    }

    /// Why a write failed, once.
    pub(super) fn stopped_by(&mut self) -> Option<Failure> {
        self.stopped_by.take()
    }

    /// Keeps the failure; the writer above learns only that it must stop.
    pub(super) fn stopped(&mut self, outcome: Result<(), Failure>) -> io::Result<()> {
        outcome.map_err(|failure| {
            self.stopped_by = Some(failure);
            io::Error::other("the copy was stopped")
        })
    }
}

impl Write for CopyOut<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(PIECE_BYTES_MAX)];
        message::message(self.wire.out.bytes(), b'd', |out| out.extend_from_slice(piece));
        let sent = self.wire.check_interrupts().and_then(|()| Ok(self.wire.flush_if_much()?));
        self.stopped(sent)?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.wire.flush().map_err(Failure::from);
        self.stopped(flushed)
    }
}
