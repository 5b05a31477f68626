//! Cuts what a socket gives into libpq messages: `type u8 | length i32 (counts itself) | payload`.
//!
//! - One read takes all that is there; messages are then handed out of the buffer without a copy and without another system call.
//! - A message longer than the limit is refused when its header is seen, before a byte of it is stored: the buffer never outgrows the limit.
//! - Works on bytes only; the socket stays with the caller.

use std::io::{self, Read};
use std::ops::Range;

/// Bytes of a message before its payload.
pub const HEADER_LEN: usize = 5;
/// What one read asks for at least. Enough for 32 pipelined GetPage requests (47 bytes each) with room to spare.
const READ_BYTES: usize = 8 * 1024;
/// A buffer that grew beyond so many reads for a long message is given back when it is empty.
const KEPT_READS_MAX: usize = 8;

/// A whole message in the buffer. The payload is read with [`FrameReader::payload`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The message type.
    pub tag: u8,
    payload: Range<usize>,
}

/// The header of a message cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length does not even count itself.
    #[error("message length is below 4. type=`{tag:#04x}`, length=`{length}`")]
    TooShort {
        /// Message type.
        tag: u8,
        /// The length it claims.
        length: u32,
    },
    /// Longer than we take.
    #[error("message is too long. type=`{tag:#04x}`, length=`{length}`, length_max=`{length_max}`")]
    TooLong {
        /// Message type.
        tag: u8,
        /// The length it claims.
        length: u32,
        /// The most we take.
        length_max: usize,
    },
}

/// Buffer between a socket and its messages.
#[derive(Debug)]
pub struct FrameReader {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    length_max: usize,
    read_bytes: usize,
}

impl FrameReader {
    /// A reader that takes messages of up to `length_max` bytes (the length field's value).
    pub fn new(length_max: usize) -> Self {
        Self::with_read_bytes(length_max, READ_BYTES)
    }

    /// The same, each read asking for `read_bytes` at least: more for a client, whose messages are pages.
    pub fn with_read_bytes(length_max: usize, read_bytes: usize) -> Self {
        assert!(HEADER_LEN < read_bytes);
        FrameReader { buffer: vec![0; read_bytes], start: 0, end: 0, length_max, read_bytes }
    }

    /// From now on messages of up to `length_max` bytes.
    pub fn set_length_max(&mut self, length_max: usize) {
        self.length_max = length_max;
    }

    /// True when no byte waits to be taken.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The bytes that were read and not taken yet.
    pub fn unread(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Takes `count` bytes off the front, which must be there.
    pub fn consume(&mut self, count: usize) {
        assert!(count <= self.end - self.start);
        self.start += count;
    }

    /// Takes the next whole message, if it is in the buffer. Its payload stays readable until the next `fill`.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some((tag, total)) = self.peek_header()? else { return Ok(None) };
        if self.end - self.start < total {
            return Ok(None);
        }
        let payload = self.start + HEADER_LEN..self.start + total;
        self.start += total;
        Ok(Some(Frame { tag, payload }))
    }

    /// Type and payload of the next whole message, without taking it. `consume` its payload length + [`HEADER_LEN`] to take it.
    pub fn peek_frame(&self) -> Result<Option<(u8, &[u8])>, FrameError> {
        let Some((tag, total)) = self.peek_header()? else { return Ok(None) };
        Ok(self.unread().get(HEADER_LEN..total).map(|payload| (tag, payload)))
    }

    /// The payload of a message that was taken after the last `fill`.
    pub fn payload(&self, frame: &Frame) -> &[u8] {
        &self.buffer[frame.payload.clone()]
    }

    /// Reads once from `source`, as much as it has and the buffer holds. Returns the bytes read, 0 at the end of the stream.
    pub fn fill(&mut self, source: &mut impl Read) -> io::Result<usize> {
        self.make_room();
        let read = source.read(&mut self.buffer[self.end..])?;
        self.end += read;
        Ok(read)
    }

    fn peek_header(&self) -> Result<Option<(u8, usize)>, FrameError> {
        let Some(&[tag, a, b, c, d]) = self.unread().first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let length = u32::from_be_bytes([a, b, c, d]);
        if length < 4 {
            return Err(FrameError::TooShort { tag, length });
        }
        match usize::try_from(length) {
            Ok(counted) if counted <= self.length_max => Ok(Some((tag, counted + 1))),
            _ => Err(FrameError::TooLong { tag, length, length_max: self.length_max }),
        }
    }

    /// Room for at least the rest of the message that has begun, and for one more read.
    fn make_room(&mut self) {
        if self.is_empty() {
            self.start = 0;
            self.end = 0;
            if self.buffer.len() > self.read_bytes * KEPT_READS_MAX {
                self.buffer = vec![0; self.read_bytes];
            }
            return;
        }
        let begun = self.peek_header().ok().flatten().map_or(HEADER_LEN, |(_, total)| total);
        let wanted = begun.max(self.read_bytes);
        if self.buffer.len() - self.start < wanted {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            if self.buffer.len() < wanted {
                self.buffer.resize(wanted, 0);
            }
        }
        // Full although nobody has taken the messages that are there: room for one more read, lest a read of 0 bytes looks like the end.
        if self.end == self.buffer.len() {
            self.buffer.resize(self.buffer.len() + self.read_bytes, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: the same messages come out however the stream is cut. Method: cut a known stream at every size.
    use super::*;

    /// Gives at most `step` bytes per read.
    struct Drip<'a>(&'a [u8], usize);
    impl Read for Drip<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(into.len()).min(self.0.len());
            into[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    fn message(tag: u8, length: usize) -> Vec<u8> {
        let mut bytes = vec![tag];
        bytes.extend_from_slice(&u32::try_from(length + 4).expect("small").to_be_bytes());
        bytes.extend((0..length).map(|i| (i % 251) as u8));
        bytes
    }

    #[test]
    fn messages_come_out_whole_however_the_stream_is_cut() {
        let lengths = [0, 1, 42, 42, 8_191, 8_192, 70_000, 3, 0, 20_000, 42];
        let stream: Vec<u8> = lengths.iter().flat_map(|length| message(b'd', *length)).collect();
        for step in [1, 2, 7, 4_096, 8_192, 100_000, usize::MAX] {
            let mut source = Drip(&stream, step);
            let mut reader = FrameReader::new(80_000);
            let mut seen = Vec::new();
            loop {
                while let Some(frame) = reader.next_frame().expect("well formed") {
                    assert!(reader.payload(&frame).iter().enumerate().all(|(i, byte)| *byte == (i % 251) as u8));
                    seen.push(reader.payload(&frame).len());
                }
                if reader.fill(&mut source).expect("no I/O error") == 0 {
                    break;
                }
            }
            assert_eq!(seen, lengths, "step {step}");
            assert!(reader.is_empty());
        }
    }

    #[test]
    fn refuses_lengths_before_it_stores_them() {
        for (length, expect_short) in [(0_u32, true), (3, true), (101, false), (u32::MAX, false)] {
            let mut bytes = vec![b'Q'];
            bytes.extend_from_slice(&length.to_be_bytes());
            let mut reader = FrameReader::new(100);
            reader.fill(&mut &bytes[..]).expect("no I/O error");
            let error = reader.next_frame().expect_err("refused");
            assert_eq!(matches!(error, FrameError::TooShort { .. }), expect_short, "{error}");
            assert!(reader.buffer.len() <= READ_BYTES);
        }
    }

    #[test]
    fn a_long_buffer_is_given_back() {
        let stream = message(b'd', 200_000);
        let mut reader = FrameReader::new(1 << 20);
        let mut source = &stream[..];
        while reader.next_frame().expect("well formed").is_none() {
            reader.fill(&mut source).expect("no I/O error");
        }
        reader.fill(&mut source).expect("end");
        assert_eq!(reader.buffer.len(), READ_BYTES);
    }
}
