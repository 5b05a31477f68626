//! A page stream from the client's side: many requests in flight, answers in order, each checked against its question.

use std::collections::VecDeque;

use bytes::Bytes;
use postgres_ffi::page::Page;
use postgres_ffi::{BlockNumber, ForkNumber, Lsn, RelTag, SlruKind};

use super::connection::{Client, quote, server_error, unexpected};
use super::error::ClientError;
use crate::page_service::message;
use crate::page_service::pagestream::wire::{Answer, Body, Header, Request, Response, Version};

/// Requests in flight when many are sent at once: two batches of the server. Bounded, so that neither side can block the other.
const WINDOW: usize = 64;

/// A page stream.
#[derive(Debug)]
pub struct PageStream {
    client: Client,
    version: Version,
    in_flight: VecDeque<Request>,
    next_request_id: u64,
}

impl PageStream {
    /// Starts a page stream of `timeline` (name or id; within `tenant` if given) on a connection.
    /// Errors: what the server refuses (42704: no such timeline).
    pub fn start(
        mut client: Client,
        version: Version,
        tenant: Option<&str>,
        timeline: &str,
    ) -> Result<Self, ClientError> {
        let number = if version == Version::V2 { 2 } else { 3 };
        let tenant = tenant.map(|tenant| format!("{} ", quote(tenant))).unwrap_or_default();
        client.send_query(&format!("pagestream_v{number} {tenant}{}", quote(timeline)))?;
        loop {
            let frame = client.frame()?;
            match frame.tag {
                b'W' => break,
                b'E' => return Err(ClientError::Server(server_error(client.payload(&frame)))),
                b'N' | b'S' => {}
                _ => return Err(unexpected(&frame, "starting a page stream")),
            }
        }
        Ok(PageStream { client, version, in_flight: VecDeque::new(), next_request_id: 1 })
    }

    /// Queues a request. Nothing is sent before [`PageStream::flush`] or a receive. Returns how many are in flight with it; keep that
    /// below some hundreds: a server that cannot send its answers stops reading.
    pub fn send(&mut self, request: Request) -> usize {
        request.encode_frame(self.version, self.client.out());
        self.in_flight.push_back(request);
        self.in_flight.len()
    }

    /// A request with the next free id (version 2 has none: 0), as of `lsns`.
    pub fn request(&mut self, lsns: ReadAt, body: Body) -> Request {
        let request_id = if self.version == Version::V3 { self.next_request_id } else { 0 };
        self.next_request_id += 1;
        let ReadAt { request_lsn, not_modified_since } = lsns;
        Request { header: Header { request_id, request_lsn, not_modified_since }, body }
    }

    /// Sends what is queued.
    pub fn flush(&mut self) -> Result<(), ClientError> {
        self.client.flush()
    }

    /// Requests without an answer yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// The answer to the oldest request in flight, with that request. Sends what is queued, then blocks.
    /// An [`Answer::Error`] is no error here. Requires a request in flight.
    pub fn receive(&mut self) -> Result<(Request, Answer<'_>), ClientError> {
        assert!(!self.in_flight.is_empty());
        self.flush()?;
        let frame = self.client.frame()?;
        self.answer(&frame)
    }

    /// The same if it has been read already: never blocks, sends nothing.
    pub fn receive_if_there(&mut self) -> Result<Option<(Request, Answer<'_>)>, ClientError> {
        match self.client.frame_if_there()? {
            Some(frame) => self.answer(&frame).map(Some),
            None => Ok(None),
        }
    }

    fn answer(&mut self, frame: &crate::page_service::frame::Frame) -> Result<(Request, Answer<'_>), ClientError> {
        let payload = self.client.payload(frame);
        match frame.tag {
            b'd' => {}
            b'E' => return Err(ClientError::Server(server_error(payload))),
            _ => return Err(unexpected(frame, "reading a page stream")),
        }
        let response = Response::parse(self.version, payload)?;
        let Some(request) = self.in_flight.pop_front() else {
            return Err(ClientError::Mismatch { expected: "nothing".to_owned(), got: format!("{:?}", response.body) });
        };
        check_echo(&request, &response)?;
        Ok((request, response.answer))
    }

    /// One request, one answer. Requires that none is in flight. Errors: [`ClientError::Request`] when the server answers with one.
    pub fn ask(&mut self, lsns: ReadAt, body: Body) -> Result<Answer<'_>, ClientError> {
        assert!(self.in_flight.is_empty());
        let request = self.request(lsns, body);
        self.send(request);
        match self.receive()?.1 {
            Answer::Error(text) => Err(ClientError::Request { text: text.to_owned() }),
            answer => Ok(answer),
        }
    }

    /// One page.
    pub fn get_page(
        &mut self,
        rel: RelTag,
        fork: ForkNumber,
        block_no: BlockNumber,
        lsns: ReadAt,
    ) -> Result<Box<Page>, ClientError> {
        match self.ask(lsns, Body::get_page(rel, fork, block_no))? {
            Answer::Page(page) => Ok(Box::new(*page)),
            other => Err(wrong_answer("a page", &other)),
        }
    }

    /// Many pages, with a window of requests in flight; `each` gets them in order, an error text for those that failed.
    pub fn get_pages(
        &mut self,
        blocks: impl IntoIterator<Item = (RelTag, ForkNumber, BlockNumber)>,
        lsns: ReadAt,
        mut each: impl FnMut(&Request, Result<&Page, &str>),
    ) -> Result<(), ClientError> {
        let mut blocks = blocks.into_iter().fuse();
        loop {
            while self.in_flight.len() < WINDOW {
                let Some((rel, fork, block_no)) = blocks.next() else { break };
                let request = self.request(lsns, Body::get_page(rel, fork, block_no));
                self.send(request);
            }
            if self.in_flight.is_empty() {
                return Ok(());
            }
            let (request, answer) = self.receive()?;
            match answer {
                Answer::Page(page) => each(&request, Ok(page)),
                Answer::Error(text) => each(&request, Err(text)),
                other => return Err(wrong_answer("a page", &other)),
            }
            // Half of the window is refilled at once: fewer, larger writes.
            while self.in_flight.len() > WINDOW / 2 {
                match self.receive_if_there()? {
                    Some((request, Answer::Page(page))) => each(&request, Ok(page)),
                    Some((request, Answer::Error(text))) => each(&request, Err(text)),
                    Some((_, other)) => return Err(wrong_answer("a page", &other)),
                    None => break,
                }
            }
        }
    }

    /// Does the relation fork exist?
    pub fn exists(&mut self, rel: RelTag, fork: ForkNumber, lsns: ReadAt) -> Result<bool, ClientError> {
        match self.ask(lsns, Body::Exists { rel, fork: fork as u8 })? {
            Answer::Exists(exists) => Ok(exists),
            other => Err(wrong_answer("existence", &other)),
        }
    }

    /// Blocks of a relation fork.
    pub fn nblocks(&mut self, rel: RelTag, fork: ForkNumber, lsns: ReadAt) -> Result<BlockNumber, ClientError> {
        match self.ask(lsns, Body::Nblocks { rel, fork: fork as u8 })? {
            Answer::Nblocks(block_count) => Ok(block_count),
            other => Err(wrong_answer("a number of blocks", &other)),
        }
    }

    /// Bytes of a database in the default tablespace.
    pub fn db_size(&mut self, db_oid: u32, lsns: ReadAt) -> Result<i64, ClientError> {
        match self.ask(lsns, Body::DbSize { db_oid })? {
            Answer::DbSize(size_bytes) => Ok(size_bytes),
            other => Err(wrong_answer("a size", &other)),
        }
    }

    /// All pages of an SLRU segment.
    pub fn slru_segment(&mut self, kind: SlruKind, segment_no: u32, lsns: ReadAt) -> Result<Bytes, ClientError> {
        match self.ask(lsns, Body::slru_segment(kind, segment_no))? {
            Answer::SlruSegment(pages) => Ok(Bytes::copy_from_slice(pages)),
            other => Err(wrong_answer("an SLRU segment", &other)),
        }
    }

    /// Goes away without a word, as a client that crashes.
    #[cfg(test)]
    pub(crate) fn abandon(mut self) {
        self.client.leave();
    }

    /// Ends the stream; the connection takes commands again. Answers that are still in flight are thrown away.
    pub fn finish(mut self) -> Result<Client, ClientError> {
        message::bare(self.client.out(), b'c');
        self.flush()?;
        loop {
            let frame = self.client.frame()?;
            match frame.tag {
                b'd' | b'c' | b'C' | b'N' | b'S' => {}
                b'Z' => return Ok(self.client),
                b'E' => return Err(ClientError::Server(server_error(self.client.payload(&frame)))),
                _ => return Err(unexpected(&frame, "ending a page stream")),
            }
        }
    }
}

/// As of when to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadAt {
    /// Read as of this LSN.
    pub request_lsn: Lsn,
    /// The server must have got this far.
    pub not_modified_since: Lsn,
}

impl ReadAt {
    /// The newest that the server has, without waiting.
    pub const NEWEST: ReadAt = ReadAt { request_lsn: Lsn::MAX, not_modified_since: Lsn::ZERO };

    /// Exactly as of `lsn`, waiting for it if need be.
    pub const fn lsn(lsn: Lsn) -> Self {
        ReadAt { request_lsn: lsn, not_modified_since: lsn }
    }
}

fn wrong_answer(expected: &str, got: &Answer<'_>) -> ClientError {
    let got = match got {
        Answer::Exists(_) => "existence",
        Answer::Nblocks(_) => "a number of blocks",
        Answer::Page(_) => "a page",
        Answer::DbSize(_) => "a size",
        Answer::SlruSegment(_) => "an SLRU segment",
        Answer::Error(_) => "an error",
    };
    ClientError::Mismatch { expected: expected.to_owned(), got: got.to_owned() }
}

/// Version 3 echoes the request; version 2 at least answers in kind.
fn check_echo(request: &Request, response: &Response<'_>) -> Result<(), ClientError> {
    let same_header = response.header.is_none_or(|header| header == request.header);
    let same_body = response.body.is_none_or(|body| body == request.body);
    let in_kind = matches!(
        (&request.body, &response.answer),
        (_, Answer::Error(_))
            | (Body::Exists { .. }, Answer::Exists(_))
            | (Body::Nblocks { .. }, Answer::Nblocks(_))
            | (Body::GetPage { .. }, Answer::Page(_))
            | (Body::DbSize { .. }, Answer::DbSize(_))
            | (Body::SlruSegment { .. }, Answer::SlruSegment(_))
    );
    if same_header && same_body && in_kind {
        return Ok(());
    }
    let got = format!("{:?} {:?}", response.header, response.body);
    Err(ClientError::Mismatch { expected: format!("{request:?}"), got })
}
