//! Messages of the libpq protocol: one type byte, a big-endian length that counts itself, a body.
//!
//! - A body is a slice of the block that the socket was read into: from the kernel to whoever uses it, bytes are copied once.
//! - A length above the bound is an error before anything is allocated for it.
//! - One read waits at most as long as the socket's read timeout; a conversation that is limited ends at its limit, however much comes.

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};

use super::error::{ReplicationError, protocol};
use super::socket::{Interrupt, Transport};

/// Type byte and length.
const HEADER_BYTES: usize = 5;
/// Blocks for ordinary conversation.
const SMALL_BLOCK_BYTES: usize = 16 * 1024;
/// A read this short is not worth a system call while the block has more to fill: the next block is begun instead.
const READ_BYTES_MIN: usize = 4 * 1024;
/// Before the login nothing long is expected. libpq's own bound is 30,000.
pub(super) const LOGIN_BODY_BYTES_MAX: usize = 32 * 1024;
/// PostgreSQL sends WAL in pieces of at most 128 KiB (src/backend/replication/walsender.c, MAX_SEND_SIZE), backups in pieces of 32 KiB;
/// the longest row is a timeline history file.
pub(super) const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// One message of the server.
pub(super) struct Frame {
    pub(super) tag: u8,
    pub(super) body: Bytes,
}

/// Reads frames from a socket and writes to it.
pub(super) struct Frames {
    transport: Transport,
    /// Zeroed once; the first `filled` bytes hold what has been read and not taken yet.
    block: BytesMut,
    filled: usize,
    block_bytes: usize,
    body_bytes_max: usize,
    read_timeout: Duration,
    /// When what goes on now must be over, and how long it was given.
    limit: Option<(Instant, Duration)>,
}

impl Frames {
    pub(super) fn new(transport: Transport, read_timeout: Duration) -> Self {
        Frames {
            transport,
            block: BytesMut::new(),
            filled: 0,
            block_bytes: SMALL_BLOCK_BYTES,
            body_bytes_max: LOGIN_BODY_BYTES_MAX,
            read_timeout,
            limit: None,
        }
    }

    /// From now on messages are read for as long as `time` altogether, and not with a read timeout for each: a server that goes on sending a little does not hold us
    /// for ever. `None`: no limit.
    pub(super) fn limit(&mut self, time: Option<Duration>) {
        self.limit = time.and_then(|time| Some((Instant::now().checked_add(time)?, time)));
        self.transport.set_deadline(self.limit.map(|(deadline, _)| deadline));
    }

    pub(super) fn set_body_bytes_max(&mut self, body_bytes_max: usize) {
        self.body_bytes_max = body_bytes_max;
    }

    /// How much one read of the socket may bring.
    pub(super) fn set_block_bytes(&mut self, block_bytes: usize) {
        self.block_bytes = block_bytes;
    }

    pub(super) fn set_timeouts(&mut self, read: Duration, write: Duration) -> Result<(), ReplicationError> {
        self.read_timeout = read;
        Ok(self.transport.set_timeouts(Some(read), Some(write))?)
    }

    pub(super) fn interrupt(&self) -> Result<Interrupt, ReplicationError> {
        Ok(self.transport.interrupt()?)
    }

    /// The next message. Errors: `Timeout` when the read timeout or the limit passes, `Closed` at the end of the stream.
    pub(super) fn next(&mut self) -> Result<Frame, ReplicationError> {
        loop {
            if let Some((_, timeout)) = self.limit.filter(|(deadline, _)| *deadline <= Instant::now()) {
                return Err(ReplicationError::Timeout { timeout });
            }
            if let Some(frame) = self.take()? {
                return Ok(frame);
            }
            if !self.fill()? {
                return Err(ReplicationError::Timeout { timeout: self.read_timeout });
            }
        }
    }

    /// The next message if it has been read already. Does not touch the socket.
    pub(super) fn take(&mut self) -> Result<Option<Frame>, ReplicationError> {
        let Some(length) = self.frame_length()? else { return Ok(None) };
        if self.filled < length {
            return Ok(None);
        }
        let mut body = self.block.split_to(length).freeze();
        self.filled -= length;
        let tag = body[0];
        body.advance(HEADER_BYTES);
        Ok(Some(Frame { tag, body }))
    }

    /// Length of the message that the block begins with, header included; `None` when not even the header is there.
    fn frame_length(&self) -> Result<Option<usize>, ReplicationError> {
        let Some([_, length @ ..]) = self.block[..self.filled].first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        let Some(body_length) = length.checked_sub(4) else {
            return Err(protocol("a message is shorter than its length"));
        };
        if body_length > self.body_bytes_max {
            return Err(ReplicationError::FrameTooLong { length: body_length, length_max: self.body_bytes_max });
        }
        Ok(Some(HEADER_BYTES + body_length))
    }

    /// Reads once. False when the read timeout has passed.
    pub(super) fn fill(&mut self) -> Result<bool, ReplicationError> {
        let wanted = self.frame_length()?.unwrap_or(HEADER_BYTES);
        if self.block.len() < wanted || self.block.len() - self.filled < READ_BYTES_MIN {
            // What has been taken from the old block keeps it alive; only the beginning of one message moves.
            let mut block = BytesMut::zeroed(self.block_bytes.max(wanted).max(self.filled + READ_BYTES_MIN));
            block[..self.filled].copy_from_slice(&self.block[..self.filled]);
            self.block = block;
        }
        loop {
            match self.transport.read(&mut self.block[self.filled..]) {
                Ok(0) => return Err(ReplicationError::Closed),
                Ok(length) => {
                    self.filled += length;
                    return Ok(true);
                }
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => return Ok(false),
                    // What a killed server or TLS without a goodbye looks like.
                    ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => return Err(ReplicationError::Closed),
                    _ => return Err(error.into()),
                },
            }
        }
    }

    /// Sends bytes that are whole messages.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<(), ReplicationError> {
        self.transport.write_all(bytes).and_then(|()| self.transport.flush()).map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => ReplicationError::Closed,
            _ => error.into(),
        })
    }
}

/// Takes the fields of a message's body apart. Every short read is an error.
pub(super) struct Body<'a>(pub(super) &'a [u8]);

impl<'a> Body<'a> {
    pub(super) fn bytes(&mut self, length: usize) -> Result<&'a [u8], ReplicationError> {
        let (bytes, rest) = self.0.split_at_checked(length).ok_or_else(|| protocol("a message is too short"))?;
        self.0 = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ReplicationError> {
        let (bytes, rest) = self.0.split_first_chunk::<N>().ok_or_else(|| protocol("a message is too short"))?;
        self.0 = rest;
        Ok(*bytes)
    }

    pub(super) fn u8(&mut self) -> Result<u8, ReplicationError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, ReplicationError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn i32(&mut self) -> Result<i32, ReplicationError> {
        self.array().map(i32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, ReplicationError> {
        self.array().map(u64::from_be_bytes)
    }

    /// A text that a zero byte ends.
    pub(super) fn text(&mut self) -> Result<&'a str, ReplicationError> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or_else(|| protocol("a text has no end"))?;
        let text = std::str::from_utf8(self.bytes(end)?).map_err(|_| protocol("a text is not UTF-8"))?;
        self.u8()?;
        Ok(text)
    }
}
