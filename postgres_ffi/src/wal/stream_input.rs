//! The bytes that were fed to a [`super::stream::WalStreamDecoder`] and not yet read: pieces of any size that look like one.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

/// A queue of bytes. **Never:** an empty piece stands in it.
#[derive(Debug, Default)]
pub(super) struct StreamInput {
    front: Bytes,
    more: VecDeque<Bytes>,
    /// Bytes in `front` and `more`.
    len: usize,
    /// Bytes that were passed over before they came; while there are any, the queue is empty.
    owed: u64,
}

impl StreamInput {
    pub(super) fn push(&mut self, mut bytes: Bytes) {
        let skipped = self.owed.min(bytes.len() as u64);
        self.owed -= skipped;
        bytes.advance(skipped as usize);
        if bytes.is_empty() {
            return;
        }
        self.len += bytes.len();
        if self.front.is_empty() {
            self.front = bytes;
        } else {
            self.more.push_back(bytes);
        }
    }

    /// Bytes that can be read.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes passed over that are still to be fed.
    pub(super) fn owed(&self) -> u64 {
        self.owed
    }

    /// The first `len` bytes without taking them, `None` if there are fewer. `scratch` holds at least `len`.
    #[inline]
    pub(super) fn peek<'a>(&'a self, len: usize, scratch: &'a mut [u8]) -> Option<&'a [u8]> {
        if let Some(head) = self.front.get(..len) {
            return Some(head);
        }
        if self.len < len {
            return None;
        }
        let scratch = scratch.get_mut(..len)?;
        let mut filled = 0;
        for piece in std::iter::once(&self.front).chain(&self.more) {
            let part = piece.len().min(len - filled);
            scratch[filled..filled + part].copy_from_slice(&piece[..part]);
            filled += part;
            if filled == len {
                break;
            }
        }
        Some(scratch)
    }

    /// Takes the first `len` bytes, `None` (and nothing taken) if there are fewer. No copy if they lie in one piece.
    #[inline]
    pub(super) fn take(&mut self, len: usize) -> Option<Bytes> {
        if len <= self.front.len() {
            let taken = self.front.split_to(len);
            self.len -= len;
            self.refill_front();
            return Some(taken);
        }
        let mut bytes = Vec::new();
        self.take_into(len, &mut bytes).then(|| Bytes::from(bytes))
    }

    /// Appends the first `len` bytes to `out`. False, and nothing taken, if there are fewer.
    pub(super) fn take_into(&mut self, len: usize, out: &mut Vec<u8>) -> bool {
        if self.len < len {
            return false;
        }
        let mut missing = len;
        while missing > 0 {
            let part = self.front.len().min(missing);
            out.extend_from_slice(&self.front[..part]);
            self.drop_from_front(part);
            missing -= part;
        }
        true
    }

    /// Passes over `len` bytes, fed or not.
    #[inline]
    pub(super) fn skip(&mut self, len: u64) {
        let mut missing = len;
        while missing > 0 && self.len > 0 {
            let part = (self.front.len() as u64).min(missing);
            self.drop_from_front(part as usize);
            missing -= part;
        }
        self.owed += missing;
    }

    /// `len` is at most the length of `front`.
    fn drop_from_front(&mut self, len: usize) {
        self.front.advance(len);
        self.len -= len;
        self.refill_front();
    }

    #[inline]
    fn refill_front(&mut self) {
        if self.front.is_empty()
            && let Some(next) = self.more.pop_front()
        {
            self.front = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_read_as_one() {
        let mut input = StreamInput::default();
        let mut scratch = [0; 8];
        for piece in [&b"ab"[..], b"", b"c", b"defgh"] {
            input.push(Bytes::copy_from_slice(piece));
        }
        assert_eq!(input.len(), 8);
        assert_eq!(input.peek(4, &mut scratch), Some(&b"abcd"[..]));
        assert_eq!(input.peek(9, &mut scratch), None);
        assert_eq!(input.take(3), Some(Bytes::from_static(b"abc")));
        assert_eq!(input.take(6), None);
        assert_eq!(input.len(), 5);
        let mut out = Vec::new();
        assert!(input.take_into(2, &mut out));
        assert_eq!(out, b"de");
        input.skip(5);
        assert_eq!((input.len(), input.owed()), (0, 2));
        input.push(Bytes::from_static(b"xyz"));
        assert_eq!(input.take(1), Some(Bytes::from_static(b"z")));
    }
}
