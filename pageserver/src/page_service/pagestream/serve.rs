//! The loop of one page stream: takes requests as they come, answers in order.
//!
//! - Consecutive GetPage requests that have been read already are answered as one batch, and everything that is ready goes out in one write.
//! - No allocation per request: requests, keys and the output live in buffers of the stream.
//! - Whatever has to wait for WAL first sends what is ready.
//! - Malformed messages end the connection (nobody can tell any more what the client believes); requests that cannot be answered get an
//!   error in the stream, which goes on.

use std::time::{Duration, Instant};

use bytes::Bytes;
use keyenc::{Key, Object};
use postgres_ffi::rel::{DEFAULTTABLESPACE_OID, SLRU_PAGES_PER_SEGMENT};
use postgres_ffi::{BLCKSZ, ForkNumber, Lsn, Oid, RelTag, SlruKind};

use super::lsn::{Decision, Standing, decide};
use super::wire::{self, Body, Header, Request, Version};
use crate::page_service::backend::{BackendError, BackendErrorKind, TimelineBackend};
use crate::page_service::error::{End, Failure, PgError, sqlstate};
use crate::page_service::frame::HEADER_LEN;
use crate::page_service::frontend::FrontendMessage;
use crate::page_service::message;
use crate::page_service::server::Shared;
use crate::page_service::transport::{MESSAGE_LENGTH_MAX, Wire};

/// GetPage requests answered at once: enough to hide the cost of system calls, few enough that the first does not wait long for the last.
const BATCH_REQUESTS_MAX: usize = 32;
/// Longest message within a stream: a request is 42 bytes, a reason to give up a line of text.
const STREAM_MESSAGE_LENGTH_MAX: usize = 64 * 1024;
/// While waiting for WAL, how often we look whether anybody still wants the answer.
const WAIT_SLICE: Duration = Duration::from_millis(200);

/// Serves a page stream on `wire` until the client ends it: with Sync too if `sync_ends` it, which it does not in the extended protocol, as in COPY: drivers send one right behind Execute.
/// Errors: CopyFail, cancel (the connection goes on); everything that ends the connection.
pub(in crate::page_service) fn serve(
    wire: &mut Wire,
    shared: &Shared,
    version: Version,
    timeline: &dyn TimelineBackend,
    sync_ends: bool,
) -> Result<(), Failure> {
    message::copy_both_response(wire.out.bytes());
    wire.flush()?;
    wire.set_length_max(STREAM_MESSAGE_LENGTH_MAX);
    let mut stream = Stream { wire, shared, version, timeline, sync_ends, requests: Vec::new(), reads: Vec::new() };
    let result = stream.run();
    wire.set_length_max(MESSAGE_LENGTH_MAX);
    result
}

struct Stream<'a> {
    wire: &'a mut Wire,
    shared: &'a Shared,
    version: Version,
    timeline: &'a dyn TimelineBackend,
    sync_ends: bool,
    /// The batch being gathered: requests, and what to read for each.
    requests: Vec<Request>,
    reads: Vec<(Key, Lsn)>,
}

/// Why one request is answered with an error; the stream goes on.
enum Refused {
    /// Its own fault.
    BadRequest(String),
    /// The backend's.
    Backend(BackendError),
}

impl From<BackendError> for Refused {
    fn from(error: BackendError) -> Self {
        Refused::Backend(error)
    }
}

impl Stream<'_> {
    fn run(&mut self) -> Result<(), Failure> {
        loop {
            let frame = self.wire.frame()?;
            let payload = self.wire.payload(&frame);
            match FrontendMessage::parse(frame.tag, payload).map_err(|error| End::protocol(error.to_string()))? {
                FrontendMessage::CopyData(bytes) => {
                    let request =
                        Request::parse(self.version, bytes).map_err(|error| End::protocol(error.to_string()))?;
                    self.wire.check_interrupts()?;
                    self.answer(request)?;
                }
                FrontendMessage::CopyDone => {
                    message::bare(self.wire.out.bytes(), b'c');
                    return Ok(());
                }
                FrontendMessage::CopyFail(reason) => {
                    let reason: String = reason.chars().take(256).collect();
                    return Err(PgError::new(
                        sqlstate::QUERY_CANCELED,
                        format!("page stream ended by the client: {reason}"),
                    )
                    .into());
                }
                FrontendMessage::Sync if self.sync_ends => return Ok(()),
                FrontendMessage::Sync => {}
                FrontendMessage::Flush => self.wire.flush()?,
                FrontendMessage::Terminate => return Err(End::Client.into()),
                _ => {
                    return Err(End::protocol(format!(
                        "unexpected message in a page stream. type=`{}`",
                        frame.tag.escape_ascii()
                    ))
                    .into());
                }
            }
        }
    }

    /// Answers `request`, and with it the GetPage requests right behind it that can be read without waiting.
    fn answer(&mut self, request: Request) -> Result<(), Failure> {
        let read_lsn = match self.read_lsn(&request.header)? {
            Ok(read_lsn) => read_lsn,
            Err(refused) => return self.refuse(&request, refused),
        };
        if let Body::GetPage { rel, fork, block_no } = request.body {
            match relation_fork(rel, fork) {
                Ok(fork) => return self.answer_batch(request, (Key::block(rel, fork, block_no), read_lsn)),
                Err(refused) => return self.refuse(&request, refused),
            }
        }
        match self.answer_one(&request, read_lsn) {
            Ok(()) => Ok(self.wire.flush_if_much()?),
            Err(refused) => self.refuse(&request, refused),
        }
    }

    fn answer_batch(&mut self, first: Request, read: (Key, Lsn)) -> Result<(), Failure> {
        self.requests.clear();
        self.reads.clear();
        self.requests.push(first);
        self.reads.push(read);
        self.gather()?;
        let pages = self.timeline.get_pages_at_lsn(&self.reads);
        assert!(pages.len() == self.reads.len());
        let counters = &self.shared.counters;
        counters.batches_total.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        counters.pages_total.fetch_add(pages.len() as u64, std::sync::atomic::Ordering::Relaxed);
        for (i, page) in pages.into_iter().enumerate() {
            let request = self.requests[i];
            match page.and_then(whole_page) {
                Ok(page) => {
                    wire::get_page_response_head(self.version, &request, self.wire.out.bytes());
                    self.wire.out.page(page);
                }
                Err(error) => self.refuse(&request, error.into())?,
            }
        }
        // All of the batch in one write; small answers before it have waited for this.
        Ok(self.wire.flush()?)
    }

    /// Takes further GetPage requests that have been read already, up to the first that is anything else, that cannot be read, or that must wait.
    fn gather(&mut self) -> Result<(), End> {
        let standing = self.standing();
        while self.requests.len() < BATCH_REQUESTS_MAX {
            let Some((b'd', payload)) = self.wire.peek_frame()? else { return Ok(()) };
            let Ok(request) = Request::parse(self.version, payload) else { return Ok(()) };
            let Body::GetPage { rel, fork, block_no } = request.body else { return Ok(()) };
            let Ok(fork) = relation_fork(rel, fork) else { return Ok(()) };
            let Decision::ReadAt(read_lsn) = decide(&request.header, standing, |lsn| self.timeline.is_leased(lsn))
            else {
                return Ok(());
            };
            let frame_len = HEADER_LEN + payload.len();
            self.wire.consume(frame_len);
            self.requests.push(request);
            self.reads.push((Key::block(rel, fork, block_no), read_lsn));
        }
        Ok(())
    }

    fn standing(&self) -> Standing {
        Standing {
            last_record_lsn: self.timeline.last_record_lsn(),
            first_readable_lsn: self.timeline.first_readable_lsn(),
        }
    }

    /// Where to read for a request, after waiting for it if need be.
    fn read_lsn(&mut self, header: &Header) -> Result<Result<Lsn, Refused>, Failure> {
        match decide(header, self.standing(), |lsn| self.timeline.is_leased(lsn)) {
            Decision::ReadAt(read_lsn) => Ok(Ok(read_lsn)),
            Decision::Refuse(refusal) => Ok(Err(Refused::BadRequest(refusal.to_string()))),
            Decision::WaitThenReadAt(read_lsn) => Ok(self.wait(read_lsn)?.map(|()| read_lsn).map_err(Refused::Backend)),
        }
    }

    fn wait(&mut self, lsn: Lsn) -> Result<Result<(), BackendError>, Failure> {
        self.wire.flush()?;
        let deadline = Instant::now() + self.shared.config.wait_lsn_timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.timeline.wait_lsn(lsn, left.min(WAIT_SLICE)) {
                Ok(last_record_lsn) => {
                    assert!(lsn <= last_record_lsn);
                    return Ok(Ok(()));
                }
                Err(error) if error.kind == BackendErrorKind::NotYet && left > WAIT_SLICE => {
                    self.wire.check_interrupts_and_client()?;
                }
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    fn answer_one(&mut self, request: &Request, read_lsn: Lsn) -> Result<(), Refused> {
        match request.body {
            Body::Exists { rel, fork } => {
                let size = self.timeline.relation_size(rel, relation_fork(rel, fork)?, read_lsn)?;
                wire::exists_response(self.version, request, size.is_some(), self.wire.out.bytes());
            }
            Body::Nblocks { rel, fork } => {
                let block_count = self.block_count(rel, relation_fork(rel, fork)?, read_lsn)?;
                wire::nblocks_response(self.version, request, block_count, self.wire.out.bytes());
            }
            Body::DbSize { db_oid } => {
                let size_bytes = self.database_size(db_oid, read_lsn)?;
                wire::db_size_response(self.version, request, size_bytes, self.wire.out.bytes());
            }
            Body::SlruSegment { kind, segment_no } => self.slru_segment(request, kind, segment_no, read_lsn)?,
            Body::GetPage { .. } => {
                return Err(Refused::BadRequest("a page outside of a batch".to_owned())); // `answer` never comes here with one.
            }
        }
        Ok(())
    }

    fn block_count(&self, rel: RelTag, fork: ForkNumber, read_lsn: Lsn) -> Result<u32, Refused> {
        match self.timeline.relation_size(rel, fork, read_lsn)? {
            Some(block_count) => Ok(block_count),
            // PostgreSQL asks for the size of maps that it has only just created and never extended.
            None if matches!(fork, ForkNumber::Fsm | ForkNumber::Vm) => Ok(0),
            None => {
                let message = format!("relation does not exist. relation=`{rel}`, fork=`{fork}`, lsn=`{read_lsn}`");
                Err(BackendError::not_found(message).into())
            }
        }
    }

    fn database_size(&self, db_oid: Oid, read_lsn: Lsn) -> Result<i64, Refused> {
        let size = self.timeline.database_size(DEFAULTTABLESPACE_OID, db_oid, read_lsn)?;
        Ok(i64::try_from(size.bytes()).unwrap_or(i64::MAX))
    }

    fn slru_segment(&mut self, request: &Request, kind: u8, segment_no: u32, read_lsn: Lsn) -> Result<(), Refused> {
        let kind =
            SlruKind::from_number(kind).ok_or_else(|| Refused::BadRequest(format!("unknown SLRU. kind=`{kind}`")))?;
        let first_page_no = segment_no
            .checked_mul(SLRU_PAGES_PER_SEGMENT)
            .ok_or_else(|| Refused::BadRequest(format!("no such SLRU segment. segment=`{segment_no}`")))?;
        let page_count = self.timeline.slru_segment_size(kind, segment_no, read_lsn)?.ok_or_else(|| {
            BackendError::not_found(format!(
                "SLRU segment does not exist. slru=`{kind}`, segment=`{segment_no}`, lsn=`{read_lsn}`"
            ))
        })?;
        if page_count > SLRU_PAGES_PER_SEGMENT {
            let message =
                format!("SLRU segment is too long. slru=`{kind}`, segment=`{segment_no}`, pages=`{page_count}`");
            return Err(BackendError::new(BackendErrorKind::Corrupt, message).into());
        }
        let page_nos = (0..page_count).filter_map(|i| first_page_no.checked_add(i));
        let reads: Vec<(Key, Lsn)> =
            page_nos.map(|page_no| (Key::from(Object::SlruPage { kind, page_no }), read_lsn)).collect();
        let pages = self.timeline.get_pages_at_lsn(&reads);
        let pages: Vec<Bytes> = pages.into_iter().map(|page| page.and_then(whole_page)).collect::<Result<_, _>>()?;
        // Only now: an error must not come in the middle of a response.
        wire::slru_segment_response_head(self.version, request, page_count, self.wire.out.bytes());
        assert!(pages.len() == page_count as usize);
        pages.into_iter().for_each(|page| self.wire.out.page(page));
        Ok(())
    }

    /// An error in the stream, or the end of the connection when the client had better go elsewhere.
    fn refuse(&mut self, request: &Request, refused: Refused) -> Result<(), Failure> {
        use BackendErrorKind as Kind;
        self.shared.counters.stream_errors_total.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let text = match refused {
            Refused::BadRequest(text) => format!("Bad request: {text}"),
            Refused::Backend(error) => match error.kind {
                Kind::ShuttingDown => return Err(End::shutdown().into()),
                Kind::Unavailable => {
                    let fatal = PgError::new(sqlstate::CONNECTION_FAILURE, "reconnect").with_hint(error.message);
                    return Err(End::Fatal(fatal).into());
                }
                Kind::NotFound | Kind::FileMissing => prefixed("Not found: ", &error.message),
                Kind::NotYet => prefixed("LSN timeout: ", &error.message),
                Kind::InvalidRequest => prefixed("Bad request: ", &error.message),
                Kind::Corrupt | Kind::Cancelled | Kind::Internal => {
                    tracing::error!(header = ?request.header, body = ?request.body, %error, "page request failed");
                    prefixed("Read error: ", &error.message)
                }
            },
        };
        wire::error_response(self.version, request, &text, self.wire.out.bytes());
        Ok(self.wire.flush_if_much()?)
    }
}

/// The prefix by which clients know what an error is; many errors begin with it by themselves.
fn prefixed(prefix: &str, message: &str) -> String {
    if message.starts_with(prefix) { message.to_owned() } else { format!("{prefix}{message}") }
}

/// The fork of a relation that can be asked for. Relation 0 and fork numbers beyond the last do not exist.
fn relation_fork(rel: RelTag, fork: u8) -> Result<ForkNumber, Refused> {
    if rel.rel_number == 0 {
        return Err(Refused::BadRequest("invalid relation number 0".to_owned()));
    }
    ForkNumber::from_number(fork).ok_or_else(|| Refused::BadRequest(format!("unknown fork. fork=`{fork}`")))
}

/// A page as the output takes it. Anything but 8,192 bytes or none is a fault behind the seam, told rather than sent.
fn whole_page(page: Bytes) -> Result<Bytes, BackendError> {
    if page.is_empty() || page.len() == BLCKSZ {
        return Ok(page);
    }
    let message = format!("the timeline gave a page of the wrong size. page_size_bytes=`{}`", page.len());
    Err(BackendError::new(BackendErrorKind::Internal, message))
}
