//! The socket of one connection and what is buffered on both sides of it.
//!
//! - Output gathers in [`Output`]: small messages are copied, pages are only referred to, and one vectored write sends all of it.
//! - Nothing blocks on reading while output waits: [`Wire::frame`] flushes first, so nobody can forget it and deadlock with a client.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use postgres_ffi::BLCKSZ;
use postgres_ffi::page::ZERO_PAGE;
use smallvec::SmallVec;

use super::error::{End, Failure, PgError, sqlstate};
use super::frame::{Frame, FrameError, FrameReader};
use super::server::Control;

/// Longest message outside pagestream: a command is a line of text.
pub const MESSAGE_LENGTH_MAX: usize = 1024 * 1024;
/// Rows are sent when this much has gathered.
const OUTPUT_FLUSH_BYTES: usize = 64 * 1024;
/// An output buffer that grew beyond this for one message is given back.
const OUTPUT_KEPT_BYTES_MAX: usize = 256 * 1024;
/// After a farewell we read on for a moment, else the kernel answers unread bytes with a reset, which can overtake our last words.
const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES_MAX: usize = 1024 * 1024;

/// What will be written: bytes of ours, and pages that lie elsewhere.
#[derive(Debug, Default)]
pub struct Output {
    bytes: Vec<u8>,
    /// Each page goes out before `bytes[at]`. Empty means a page of zeroes.
    pages: Vec<(usize, Bytes)>,
}

impl Output {
    /// Where messages are appended.
    pub fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Appends a page without copying it: 8,192 bytes, or none for a page of zeroes.
    pub fn page(&mut self, page: Bytes) {
        assert!(page.is_empty() || page.len() == BLCKSZ);
        self.pages.push((self.bytes.len(), page));
    }

    /// True when there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.pages.is_empty()
    }

    /// Forgets what was appended.
    pub fn clear(&mut self) {
        self.pages.clear();
        self.bytes.clear();
        if self.bytes.capacity() > OUTPUT_KEPT_BYTES_MAX {
            self.bytes = Vec::new();
        }
    }

    /// Writes everything, with one call when the socket takes it all, and forgets it.
    pub fn write_to(&mut self, sink: &mut impl Write) -> io::Result<()> {
        let result = if self.pages.is_empty() { sink.write_all(&self.bytes) } else { self.write_pieces(sink) };
        self.clear();
        result
    }

    fn write_pieces(&self, sink: &mut impl Write) -> io::Result<()> {
        let mut slices: SmallVec<[IoSlice<'_>; 96]> = SmallVec::new();
        let mut start = 0;
        for (at, page) in &self.pages {
            slices.push(IoSlice::new(&self.bytes[start..*at]));
            slices.push(IoSlice::new(if page.is_empty() { &ZERO_PAGE } else { page }));
            start = *at;
        }
        slices.push(IoSlice::new(&self.bytes[start..]));
        let mut left = &mut slices[..];
        // Leading empty slices would make `write_vectored` look like a closed socket.
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            match sink.write_vectored(left) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut left, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// One connection's socket with its buffers.
pub struct Wire {
    stream: Arc<TcpStream>,
    reader: FrameReader,
    /// What will be written by the next flush.
    pub out: Output,
    control: Arc<Control>,
    shutting_down: Arc<AtomicBool>,
}

impl Wire {
    /// A connection over `stream`; `shutting_down` is the server's flag.
    pub fn new(stream: Arc<TcpStream>, control: Arc<Control>, shutting_down: Arc<AtomicBool>) -> Self {
        Wire { stream, reader: FrameReader::new(MESSAGE_LENGTH_MAX), out: Output::default(), control, shutting_down }
    }

    /// The next message. Writes what waits, then blocks.
    /// Ends: closed, idle for too long, server going down, no message at all.
    pub fn frame(&mut self) -> Result<Frame, End> {
        loop {
            if let Some(frame) = self.frame_if_there()? {
                return Ok(frame);
            }
            self.flush()?;
            self.fill()?;
        }
    }

    /// The next message if it has been read already.
    pub fn frame_if_there(&mut self) -> Result<Option<Frame>, End> {
        self.reader.next_frame().map_err(refused)
    }

    /// Type and payload of the next message if it has been read already; it stays.
    pub fn peek_frame(&self) -> Result<Option<(u8, &[u8])>, End> {
        self.reader.peek_frame().map_err(refused)
    }

    /// Payload of the message that `frame` gave last.
    pub fn payload(&self, frame: &Frame) -> &[u8] {
        self.reader.payload(frame)
    }

    /// Takes messages of up to `length_max` bytes from now on.
    pub fn set_length_max(&mut self, length_max: usize) {
        self.reader.set_length_max(length_max);
    }

    /// Writes what waits.
    pub fn flush(&mut self) -> Result<(), End> {
        if self.out.is_empty() {
            return Ok(());
        }
        self.out.write_to(&mut &*self.stream).map_err(End::Broken)
    }

    /// Writes what waits once it is worth a system call.
    pub fn flush_if_much(&mut self) -> Result<(), End> {
        let waiting = self.out.bytes.len() + self.out.pages.len() * BLCKSZ;
        if waiting < OUTPUT_FLUSH_BYTES { Ok(()) } else { self.flush() }
    }

    /// Exactly `count` bytes before the first message, by `deadline`.
    pub fn first_bytes(&mut self, count: usize, deadline: Instant) -> Result<&[u8], End> {
        while self.reader.unread().len() < count {
            self.flush()?;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(End::Fatal(PgError::new(sqlstate::PROTOCOL_VIOLATION, "startup took too long")));
            }
            self.stream.set_read_timeout(Some(left)).map_err(End::Broken)?;
            match self.fill() {
                Err(End::Fatal(error)) if error.sqlstate == sqlstate::IDLE_SESSION_TIMEOUT => {}
                other => other?,
            }
        }
        Ok(&self.reader.unread()[..count])
    }

    /// Takes bytes that [`Wire::first_bytes`] gave.
    pub fn consume(&mut self, count: usize) {
        self.reader.consume(count);
    }

    /// True when no byte of the client waits to be looked at.
    pub fn nothing_unread(&self) -> bool {
        self.reader.is_empty()
    }

    /// From now on a client that is silent, or that does not take what we send, for longer is disconnected.
    pub fn set_idle_timeout(&self, idle_timeout: Duration) -> Result<(), End> {
        self.stream.set_read_timeout(Some(idle_timeout)).map_err(End::Broken)
    }

    /// Forgets a cancel request that came for an earlier command.
    pub fn begin_cancellable(&self) {
        self.control.cancelled.store(false, Ordering::Relaxed);
    }

    /// Why the work at hand should stop, if it should: server going down, cancel request, client gone.
    pub fn check_interrupts(&self) -> Result<(), Failure> {
        if self.shutting_down.load(Ordering::Relaxed) {
            return Err(End::shutdown().into());
        }
        if self.control.cancelled.swap(false, Ordering::Relaxed) {
            return Err(PgError::new(sqlstate::QUERY_CANCELED, "canceling statement due to user request").into());
        }
        Ok(())
    }

    /// [`Wire::check_interrupts`], and whether the client is still there: a few system calls more. A client that closed with requests
    /// of its own unread is not noticed before those are.
    pub fn check_interrupts_and_client(&self) -> Result<(), Failure> {
        self.check_interrupts()?;
        self.stream.set_nonblocking(true).map_err(End::Broken)?;
        let peeked = self.stream.peek(&mut [0]);
        self.stream.set_nonblocking(false).map_err(End::Broken)?;
        match peeked {
            Ok(0) if !self.shutting_down.load(Ordering::Relaxed) => {
                Err(End::Broken(io::ErrorKind::UnexpectedEof.into()).into())
            }
            Err(error) if !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Err(End::Broken(error).into())
            }
            _ => Ok(()),
        }
    }

    /// Sends the last words, then closes in a way that lets them arrive.
    pub fn close(mut self) {
        if self.flush().is_err() || self.stream.shutdown(Shutdown::Write).is_err() {
            return;
        }
        let deadline = Instant::now() + LINGER;
        let mut drained = 0;
        let mut sink = [0; 4096];
        while drained < LINGER_BYTES_MAX {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.stream.set_read_timeout(Some(left)).is_err() {
                return;
            }
            match (&*self.stream).read(&mut sink) {
                Ok(0) | Err(_) => return,
                Ok(read) => drained += read,
            }
        }
    }

    fn fill(&mut self) -> Result<(), End> {
        loop {
            match self.reader.fill(&mut &*self.stream) {
                // A shutdown of the server closes our reading side to wake us.
                Ok(0) if self.shutting_down.load(Ordering::Relaxed) => return Err(End::shutdown()),
                Ok(0) if self.reader.is_empty() => return Err(End::Client),
                Ok(0) => return Err(End::Broken(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Err(End::Fatal(PgError::new(
                        sqlstate::IDLE_SESSION_TIMEOUT,
                        "terminating connection due to idle-session timeout",
                    )));
                }
                Err(error) => return Err(End::Broken(error)),
            }
        }
    }
}

fn refused(error: FrameError) -> End {
    End::protocol(error.to_string())
}

#[cfg(test)]
mod tests {
    //! Goal: pieces arrive in order whatever the socket takes at once. Method: a sink that takes few bytes per call.
    use super::*;

    struct Stingy(Vec<u8>, usize);
    impl Write for Stingy {
        fn write(&mut self, from: &[u8]) -> io::Result<usize> {
            let count = from.len().min(self.1);
            self.0.extend_from_slice(&from[..count]);
            Ok(count)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn pieces_arrive_in_order() {
        for step in [1, 100, 8_191, 8_192, 8_193, usize::MAX] {
            let mut out = Output::default();
            let mut expect = Vec::new();
            out.page(Bytes::from(vec![1; BLCKSZ]));
            expect.extend_from_slice(&[1; BLCKSZ]);
            for i in 0..40_u8 {
                out.bytes().extend_from_slice(&[i; 3]);
                out.page(if i % 3 == 0 { Bytes::new() } else { Bytes::from(vec![i; BLCKSZ]) });
                expect.extend_from_slice(&[i; 3]);
                expect.extend_from_slice(&[if i % 3 == 0 { 0 } else { i }; BLCKSZ]);
            }
            out.bytes().push(9);
            expect.push(9);
            let mut sink = Stingy(Vec::new(), step);
            out.write_to(&mut sink).expect("takes all");
            assert!(sink.0 == expect, "step {step}");
            assert!(out.is_empty());
        }
    }
}
