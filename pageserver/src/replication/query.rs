//! Commands that answer with rows, and the pieces from which longer conversations are made.

use bytes::{Bytes, BytesMut};
use postgres_ffi::Lsn;
use postgres_protocol::message::frontend;

use super::connection::Connection;
use super::error::{ReplicationError, ServerError, protocol};
use super::frames::{Body, Frame};

/// No command of ours answers with more. The list of tablespaces is the longest.
const ROWS_MAX: usize = 100_000;

/// Nor with more bytes.
const ROWS_BYTES_MAX: usize = 32 << 20;

/// One row: texts, `None` for NULL.
pub(super) struct Row(Vec<Option<Bytes>>);

impl Row {
    pub(super) fn parse(body: &Bytes) -> Result<Self, ReplicationError> {
        let mut fields = Body(body);
        let count = fields.u16()?;
        let mut values = Vec::new();
        for _ in 0..count {
            values.push(match usize::try_from(fields.i32()?) {
                Ok(length) => Some(body.slice_ref(fields.bytes(length)?)),
                Err(_) => None,
            });
        }
        Ok(Row(values))
    }

    /// The bytes of a column; `None` for NULL and for a column that is not there.
    pub(super) fn bytes(&self, column: usize) -> Option<&Bytes> {
        self.0.get(column).and_then(Option::as_ref)
    }

    pub(super) fn text(&self, column: usize) -> Option<&str> {
        self.bytes(column).and_then(|bytes| std::str::from_utf8(bytes).ok())
    }

    /// A column that must be there and be a `T`.
    pub(super) fn parsed<T: std::str::FromStr>(&self, column: usize, what: &str) -> Result<T, ReplicationError> {
        self.text(column)
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| protocol(format!("the answer has no {what} in column {column}")))
    }

    pub(super) fn lsn(&self, column: usize) -> Result<Lsn, ReplicationError> {
        self.parsed(column, "LSN")
    }
}

/// The rows of an answer, no more than there can be.
#[derive(Default)]
struct Rows {
    rows: Vec<Row>,
    bytes: usize,
}

impl Rows {
    fn push(&mut self, body: &Bytes) -> Result<(), ReplicationError> {
        self.bytes += body.len();
        if self.rows.len() == ROWS_MAX || self.bytes > ROWS_BYTES_MAX {
            return Err(protocol("too many rows"));
        }
        self.rows.push(Row::parse(body)?);
        Ok(())
    }
}

impl Connection {
    pub(super) fn send_query(&mut self, sql: &str) -> Result<(), ReplicationError> {
        let mut message = BytesMut::new();
        frontend::query(sql, &mut message)?;
        self.frames.send(&message)
    }

    /// The next message that is not a notice or a changed parameter; an error of the server is ours.
    pub(super) fn next_message(&mut self) -> Result<Frame, ReplicationError> {
        loop {
            let frame = self.frames.next()?;
            match frame.tag {
                b'N' => {
                    let notice = ServerError::parse(&frame.body);
                    tracing::debug!(address = self.address(), %notice, "notice of the primary");
                }
                b'S' => {}
                b'E' => return Err(self.server_error(&frame)),
                _ => return Ok(frame),
            }
        }
    }

    /// The error that `frame` carries. If the connection survives it, it is idle again afterwards.
    fn server_error(&mut self, frame: &Frame) -> ReplicationError {
        let error = ServerError::parse(&frame.body);
        if error.severity == "ERROR" {
            // Whatever goes wrong here shows at the next command; the server's error is what matters now.
            while self.frames.next().is_ok_and(|frame| frame.tag != b'Z') {}
        }
        ReplicationError::Server(Box::new(error))
    }

    /// All rows of all result sets of `sql`, which is answered at once.
    pub(super) fn query(&mut self, sql: &str) -> Result<Vec<Row>, ReplicationError> {
        self.frames.limit(Some(self.answer_timeout));
        let rows = self.send_query(sql).and_then(|()| self.rows());
        self.frames.limit(None);
        rows
    }

    fn rows(&mut self) -> Result<Vec<Row>, ReplicationError> {
        let mut rows = Rows::default();
        loop {
            let frame = self.next_message()?;
            match frame.tag {
                b'D' => rows.push(&frame.body)?,
                // RowDescription, CommandComplete, EmptyQueryResponse
                b'T' | b'C' | b'I' => {}
                b'Z' => return Ok(rows.rows),
                tag => return Err(protocol(format!("message {:?} as answer to a command", char::from(tag)))),
            }
        }
    }

    pub(super) fn query_one(&mut self, sql: &str) -> Result<Row, ReplicationError> {
        self.query(sql)?.into_iter().next().ok_or_else(|| protocol("the answer has no row"))
    }

    /// The rows of one result set, up to its CommandComplete.
    pub(super) fn result_set(&mut self) -> Result<Vec<Row>, ReplicationError> {
        let mut rows = Rows::default();
        loop {
            let frame = self.next_message()?;
            match frame.tag {
                b'T' => {}
                b'D' => rows.push(&frame.body)?,
                b'C' => return Ok(rows.rows),
                tag => return Err(protocol(format!("message {:?} in a result set", char::from(tag)))),
            }
        }
    }

    /// Reads to the end of the answer.
    pub(super) fn until_ready(&mut self) -> Result<(), ReplicationError> {
        loop {
            match self.next_message()?.tag {
                b'Z' => return Ok(()),
                b'C' | b'T' | b'D' => {}
                tag => return Err(protocol(format!("message {:?} instead of the end of an answer", char::from(tag)))),
            }
        }
    }
}
