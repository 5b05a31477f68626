//! WAL as it flows: START_REPLICATION, its messages, our feedback.
//!
//! - WAL bytes are handed out as slices of what the socket was read into.
//! - [`WalStream::next`] waits at most the given time and then says [`WalEvent::Idle`], so that the caller keeps its own clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use postgres_ffi::{Lsn, TimeLineId, TimestampTz};
use postgres_protocol::message::frontend;

use super::commands::start_replication_sql;
use super::connection::Connection;
use super::error::{ReplicationError, ServerError, protocol};
use super::frames::{Body, Frame};
use super::socket::Interrupt;

/// What one read of the socket may bring, and so the largest piece that is made durable at once.
const STREAM_BLOCK_BYTES: usize = 4 * 1024 * 1024;
/// A status message that cannot be sent for this long means that the primary is gone or stuck.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// Seconds from 1970-01-01 to 2000-01-01. PG: src/include/datatype/timestamp.h, POSTGRES_EPOCH_JDATE.
const POSTGRES_EPOCH_SECONDS: i64 = 946_684_800;
/// Type byte, start, end, time. PG: doc/src/sgml/protocol.sgml, "XLogData".
const XLOG_DATA_HEADER_BYTES: usize = 25;

/// What the stream brings.
#[derive(Debug)]
pub enum WalEvent {
    /// WAL.
    Data {
        /// Position of the first byte.
        start_lsn: Lsn,
        /// End of the primary's WAL when it sent this.
        primary_lsn: Lsn,
        /// The primary's clock when it sent this.
        sent_at: TimestampTz,
        /// The WAL.
        bytes: Bytes,
    },
    /// A sign of life.
    Keepalive {
        /// End of the primary's WAL.
        primary_lsn: Lsn,
        /// The primary's clock.
        sent_at: TimestampTz,
        /// It wants our status now, or it will hang up.
        reply_requested: bool,
    },
    /// Nothing came in the given time.
    Idle,
    /// The server's timeline ends here: it has sent all WAL of the one that we asked for. `None`: it did not say how it goes on.
    TimelineEnd {
        /// The next timeline and where it begins.
        next: Option<(TimeLineId, Lsn)>,
    },
}

/// How far we are, as the primary shows it in `pg_stat_replication`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Received and written to our files.
    pub write_lsn: Lsn,
    /// Durable: what a synchronous commit waits for.
    pub flush_lsn: Lsn,
    /// Readable.
    pub apply_lsn: Lsn,
}

/// How START_REPLICATION began.
pub enum Started {
    /// WAL flows.
    Streaming(WalStream),
    /// The timeline asked for ended exactly at the position asked for: there is nothing to stream, the connection is idle again.
    TimelineEnded {
        /// The idle connection.
        connection: Connection,
        /// The next timeline and where it begins.
        next: Option<(TimeLineId, Lsn)>,
    },
}

/// A running stream.
pub struct WalStream {
    connection: Connection,
    timeout: Duration,
}

impl Connection {
    /// Starts streaming WAL of `timeline_id` from `start_lsn` on.
    pub fn start_replication(
        mut self,
        slot: Option<&str>,
        start_lsn: Lsn,
        timeline_id: TimeLineId,
    ) -> Result<Started, ReplicationError> {
        self.send_query(&start_replication_sql(slot, start_lsn, timeline_id)?)?;
        let frame = self.next_message()?;
        match frame.tag {
            // CopyBothResponse
            b'W' => {
                self.frames.set_block_bytes(STREAM_BLOCK_BYTES);
                Ok(Started::Streaming(WalStream { timeout: self.answer_timeout, connection: self }))
            }
            // Nothing to stream: the answer goes on with the result set that else follows the stream.
            b'T' => {
                let next = self.read_next_timeline()?;
                self.until_ready()?;
                Ok(Started::TimelineEnded { connection: self, next })
            }
            tag => Err(protocol(format!("message {:?} as answer to START_REPLICATION", char::from(tag)))),
        }
    }

    fn read_next_timeline(&mut self) -> Result<Option<(TimeLineId, Lsn)>, ReplicationError> {
        let rows = self.result_set()?;
        rows.first().map(|row| Ok((row.parsed(0, "timeline id")?, row.lsn(1)?))).transpose()
    }
}

impl WalStream {
    /// The next event, waiting for at most `timeout`. Errors end the stream: `Closed` also when the primary shuts down.
    pub fn next(&mut self, timeout: Duration) -> Result<WalEvent, ReplicationError> {
        loop {
            if let Some(event) = self.next_buffered()? {
                return Ok(event);
            }
            // A zero timeout would mean "for ever" to the socket.
            let timeout = timeout.max(Duration::from_millis(1));
            if timeout != self.timeout {
                self.connection.frames.set_timeouts(timeout, SEND_TIMEOUT)?;
                self.timeout = timeout;
            }
            if !self.connection.frames.fill()? {
                return Ok(WalEvent::Idle);
            }
        }
    }

    /// The next event out of what has been read already. Never waits, does not touch the socket.
    pub fn next_buffered(&mut self) -> Result<Option<WalEvent>, ReplicationError> {
        while let Some(frame) = self.connection.frames.take()? {
            if let Some(event) = self.event(frame)? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    fn event(&mut self, frame: Frame) -> Result<Option<WalEvent>, ReplicationError> {
        match frame.tag {
            b'd' => parse_copy_data(frame.body).map(Some),
            b'c' => self.finish().map(Some),
            // The server ends the command by itself when it shuts down, and then the connection.
            b'C' => Err(ReplicationError::Closed),
            b'E' => Err(ReplicationError::Server(Box::new(ServerError::parse(&frame.body)))),
            b'N' | b'S' => Ok(None),
            tag => Err(protocol(format!("message {:?} in the WAL stream", char::from(tag)))),
        }
    }

    /// The server has nothing more on this timeline: agree, and hear how it goes on.
    fn finish(&mut self) -> Result<WalEvent, ReplicationError> {
        let mut message = BytesMut::new();
        frontend::copy_done(&mut message);
        let answer_timeout = self.connection.answer_timeout;
        self.connection.frames.set_timeouts(answer_timeout, SEND_TIMEOUT)?;
        self.timeout = answer_timeout;
        self.connection.frames.send(&message)?;
        let frame = self.connection.next_message()?;
        let next = match frame.tag {
            b'T' => self.connection.read_next_timeline()?,
            b'C' => None,
            tag => return Err(protocol(format!("message {:?} after the WAL stream", char::from(tag)))),
        };
        self.connection.until_ready()?;
        Ok(WalEvent::TimelineEnd { next })
    }

    /// Tells the primary how far we are. With `reply_requested` it answers with a keepalive at once.
    pub fn send_status(&mut self, status: &Status, reply_requested: bool) -> Result<(), ReplicationError> {
        let mut body = BytesMut::with_capacity(40);
        body.put_u8(b'd');
        body.put_u32(4 + 34);
        // PG: doc/src/sgml/protocol.sgml, "Standby status update".
        body.put_u8(b'r');
        body.put_u64(status.write_lsn.as_u64());
        body.put_u64(status.flush_lsn.as_u64());
        body.put_u64(status.apply_lsn.as_u64());
        body.put_i64(now());
        body.put_u8(reply_requested.into());
        self.connection.frames.send(&body)
    }

    /// The idle connection again. Requires: the last event was `TimelineEnd`.
    pub fn into_connection(self) -> Connection {
        self.connection
    }

    /// A handle that ends the stream from another thread.
    pub fn interrupt_handle(&self) -> Result<Interrupt, ReplicationError> {
        self.connection.interrupt_handle()
    }
}

fn parse_copy_data(mut message: Bytes) -> Result<WalEvent, ReplicationError> {
    let mut body = Body(&message);
    match body.u8()? {
        b'w' => {
            let (start_lsn, primary_lsn) = (Lsn::new(body.u64()?), Lsn::new(body.u64()?));
            let sent_at = body.u64()? as TimestampTz;
            message.advance(XLOG_DATA_HEADER_BYTES);
            if start_lsn.checked_add(message.len() as u64).is_none() {
                return Err(protocol("WAL beyond the last possible position"));
            }
            Ok(WalEvent::Data { start_lsn, primary_lsn, sent_at, bytes: message })
        }
        b'k' => Ok(WalEvent::Keepalive {
            primary_lsn: Lsn::new(body.u64()?),
            sent_at: body.u64()? as TimestampTz,
            reply_requested: body.u8()? != 0,
        }),
        other => Err(protocol(format!("{:?} in the WAL stream", char::from(other)))),
    }
}

/// Microseconds since 2000-01-01, by our clock.
pub(crate) fn now() -> TimestampTz {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_1970.as_micros()).unwrap_or(i64::MAX).saturating_sub(POSTGRES_EPOCH_SECONDS * 1_000_000)
}

#[cfg(test)]
mod tests {
    //! Goal: bytes of the wire become the right events, broken ones errors. Method: hand-made messages, every truncation.

    use super::*;

    #[test]
    fn messages_are_read_and_truncations_refused() {
        let mut data = BytesMut::new();
        data.put_u8(b'w');
        data.put_u64(0x1000);
        data.put_u64(0x2000);
        data.put_i64(-5);
        data.put_slice(b"wal");
        for length in 0..XLOG_DATA_HEADER_BYTES {
            assert!(parse_copy_data(data.clone().freeze().slice(..length)).is_err());
        }
        let Ok(WalEvent::Data { start_lsn, primary_lsn, sent_at, bytes }) = parse_copy_data(data.freeze()) else {
            panic!()
        };
        assert_eq!(
            (start_lsn, primary_lsn, sent_at, &bytes[..]),
            (Lsn::new(0x1000), Lsn::new(0x2000), -5, &b"wal"[..])
        );

        let mut keepalive = BytesMut::new();
        keepalive.put_u8(b'k');
        keepalive.put_u64(0x2000);
        keepalive.put_i64(7);
        for length in 0..17 {
            assert!(parse_copy_data(keepalive.clone().freeze().slice(..length)).is_err());
        }
        keepalive.put_u8(1);
        let event = parse_copy_data(keepalive.freeze());
        assert!(matches!(event, Ok(WalEvent::Keepalive { reply_requested: true, sent_at: 7, .. })));
        assert!(parse_copy_data(Bytes::from_static(b"x")).is_err());
    }

    #[test]
    fn wal_beyond_the_last_position_is_refused() {
        let mut data = BytesMut::new();
        data.put_u8(b'w');
        data.put_u64(u64::MAX - 1);
        data.put_slice(&[0; 16]);
        data.put_slice(b"wal");
        assert!(parse_copy_data(data.freeze()).is_err());
    }
}
