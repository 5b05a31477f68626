//! The messages of pagestream versions 2 and 3, to bytes and back. They travel as payloads of CopyData. All integers big-endian.
//!
//! ```text
//! request v2   tag u8 |              request_lsn u64 | not_modified_since u64 | body
//! request v3   tag u8 | reqid u64  | request_lsn u64 | not_modified_since u64 | body
//! response v2  tag u8 |                                                         answer
//! response v3  tag u8 | reqid u64  | request_lsn u64 | not_modified_since u64 | body of the request | answer
//! error v3     tag u8 | reqid u64  | request_lsn u64 | not_modified_since u64 | text NUL
//!
//!              tag  body of the request                             tag  answer
//! exists         0  spc u32, db u32, rel u32, fork u8               100  u8: 0 or 1
//! nblocks        1  spc u32, db u32, rel u32, fork u8               101  u32
//! getpage        2  spc u32, db u32, rel u32, fork u8, block u32    102  8,192 bytes
//! error                                                             103  text NUL
//! dbsize         3  db u32                                          104  i64, bytes
//! slru segment   4  kind u8, segment u32                            105  pages u32, pages * 8,192 bytes
//! ```
//!
//! - Version 3 echoes the request, so that a client sees at once when it reads the answer to another question.
//! - Parsing takes exactly these lengths; a byte more or less is malformed.

use postgres_ffi::page::{Page, ZERO_PAGE};
use postgres_ffi::{BLCKSZ, BlockNumber, ForkNumber, Lsn, Oid, RelTag, SlruKind};

/// Bytes of a GetPage request of version 3, the frequent one.
pub const GET_PAGE_REQUEST_LEN_V3: usize = 1 + 24 + 17;
/// Bytes of a GetPage response of version 3 before the page.
pub const GET_PAGE_RESPONSE_HEAD_LEN_V3: usize = 1 + 24 + 17;
/// Longest request there is.
pub const REQUEST_LEN_MAX: usize = GET_PAGE_REQUEST_LEN_V3;

const EXISTS: u8 = 0;
const NBLOCKS: u8 = 1;
const GET_PAGE: u8 = 2;
const DB_SIZE: u8 = 3;
const SLRU_SEGMENT: u8 = 4;
const EXISTS_RESPONSE: u8 = 100;
const NBLOCKS_RESPONSE: u8 = 101;
const GET_PAGE_RESPONSE: u8 = 102;
const ERROR_RESPONSE: u8 = 103;
const DB_SIZE_RESPONSE: u8 = 104;
const SLRU_SEGMENT_RESPONSE: u8 = 105;

/// Version of the messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// No request ids, nothing echoed.
    V2,
    /// The request is echoed.
    V3,
}

/// What every request begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// The client's own number; not on the wire in version 2, where it is 0. Need not be unique.
    pub request_id: u64,
    /// Read as of this LSN; `Lsn::MAX`: the newest there is.
    pub request_lsn: Lsn,
    /// The client knows that the object has not changed after this LSN: how far the server must have got.
    pub not_modified_since: Lsn,
}

/// A question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// Does the relation fork exist?
    Exists {
        /// The relation.
        rel: RelTag,
        /// Fork number as it came; 0 to 3 are forks.
        fork: u8,
    },
    /// How many blocks has the relation fork?
    Nblocks {
        /// The relation.
        rel: RelTag,
        /// Fork number as it came.
        fork: u8,
    },
    /// One page.
    GetPage {
        /// The relation.
        rel: RelTag,
        /// Fork number as it came.
        fork: u8,
        /// The block.
        block_no: BlockNumber,
    },
    /// Bytes of a database in the default tablespace.
    DbSize {
        /// The database.
        db_oid: Oid,
    },
    /// A whole SLRU segment.
    SlruSegment {
        /// SLRU number as it came; 0 clog, 1 multixact members, 2 multixact offsets, 3 (ours) commit timestamps.
        kind: u8,
        /// The segment.
        segment_no: u32,
    },
}

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Id and LSNs.
    pub header: Header,
    /// The question.
    pub body: Body,
}

/// The bytes are no message of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// No message has this tag.
    #[error("unknown pagestream message. tag=`{tag}`")]
    Tag {
        /// The tag found.
        tag: u8,
    },
    /// Too short or too long for its tag.
    #[error("pagestream message has the wrong length. length=`{length}`")]
    Length {
        /// Its length.
        length: usize,
    },
    /// A text that does not end in NUL or is not UTF-8, a boolean that is neither 0 nor 1.
    #[error("pagestream message has an impossible value. tag=`{tag}`")]
    Value {
        /// The message.
        tag: u8,
    },
}

/// Takes integers off the front. Missing bytes show in `short`, checked once at the end: no branch per field on the hot path.
struct Fields<'a> {
    rest: &'a [u8],
    short: bool,
}

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.rest.split_first_chunk::<N>() {
            Some((head, rest)) => {
                self.rest = rest;
                *head
            }
            None => {
                self.short = true;
                [0; N]
            }
        }
    }

    fn u8(&mut self) -> u8 {
        let [byte] = self.take();
        byte
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take())
    }

    fn rel(&mut self) -> (RelTag, u8) {
        let rel = RelTag { spc_oid: self.u32(), db_oid: self.u32(), rel_number: self.u32() };
        (rel, self.u8())
    }

    fn header(&mut self, version: Version) -> Header {
        Header {
            request_id: if version == Version::V3 { self.u64() } else { 0 },
            request_lsn: Lsn::new(self.u64()),
            not_modified_since: Lsn::new(self.u64()),
        }
    }

    fn body(&mut self, request_tag: u8) -> Result<Body, WireError> {
        Ok(match request_tag {
            EXISTS => {
                let (rel, fork) = self.rel();
                Body::Exists { rel, fork }
            }
            NBLOCKS => {
                let (rel, fork) = self.rel();
                Body::Nblocks { rel, fork }
            }
            GET_PAGE => {
                let (rel, fork) = self.rel();
                Body::GetPage { rel, fork, block_no: self.u32() }
            }
            DB_SIZE => Body::DbSize { db_oid: self.u32() },
            SLRU_SEGMENT => Body::SlruSegment { kind: self.u8(), segment_no: self.u32() },
            tag => return Err(WireError::Tag { tag }),
        })
    }
}

impl Request {
    /// The request that `message` (payload of one CopyData) is. Fork and SLRU numbers are not judged here: those are answered in the stream.
    pub fn parse(version: Version, message: &[u8]) -> Result<Self, WireError> {
        let length = message.len();
        let mut fields = Fields { rest: message, short: false };
        let tag = fields.u8();
        let header = fields.header(version);
        let body = fields.body(tag)?;
        if fields.short || !fields.rest.is_empty() {
            return Err(WireError::Length { length });
        }
        Ok(Request { header, body })
    }

    /// Appends the message, without CopyData around it.
    pub fn encode(&self, version: Version, out: &mut Vec<u8>) {
        out.push(self.body.request_tag());
        put_header(version, &self.header, out);
        self.body.put(out);
    }

    /// Appends the message within CopyData.
    pub fn encode_frame(&self, version: Version, out: &mut Vec<u8>) {
        let start = begin_frame(out);
        self.encode(version, out);
        end_frame(out, start, 0);
    }
}

impl Body {
    fn request_tag(&self) -> u8 {
        match self {
            Body::Exists { .. } => EXISTS,
            Body::Nblocks { .. } => NBLOCKS,
            Body::GetPage { .. } => GET_PAGE,
            Body::DbSize { .. } => DB_SIZE,
            Body::SlruSegment { .. } => SLRU_SEGMENT,
        }
    }

    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Body::Exists { rel, fork } | Body::Nblocks { rel, fork } => put_rel(*rel, *fork, out),
            Body::GetPage { rel, fork, block_no } => {
                put_rel(*rel, *fork, out);
                out.extend_from_slice(&block_no.to_be_bytes());
            }
            Body::DbSize { db_oid } => out.extend_from_slice(&db_oid.to_be_bytes()),
            Body::SlruSegment { kind, segment_no } => {
                out.push(*kind);
                out.extend_from_slice(&segment_no.to_be_bytes());
            }
        }
    }

    /// A question about one block, for callers that have a fork rather than a number.
    pub fn get_page(rel: RelTag, fork: ForkNumber, block_no: BlockNumber) -> Self {
        Body::GetPage { rel, fork: fork as u8, block_no }
    }

    /// A question about one segment.
    pub fn slru_segment(kind: SlruKind, segment_no: u32) -> Self {
        Body::SlruSegment { kind: kind as u8, segment_no }
    }
}

fn put_rel(rel: RelTag, fork: u8, out: &mut Vec<u8>) {
    let mut bytes = [0; 13];
    bytes[0..4].copy_from_slice(&rel.spc_oid.to_be_bytes());
    bytes[4..8].copy_from_slice(&rel.db_oid.to_be_bytes());
    bytes[8..12].copy_from_slice(&rel.rel_number.to_be_bytes());
    bytes[12] = fork;
    out.extend_from_slice(&bytes);
}

fn put_header(version: Version, header: &Header, out: &mut Vec<u8>) {
    if version == Version::V3 {
        out.extend_from_slice(&header.request_id.to_be_bytes());
    }
    out.extend_from_slice(&header.request_lsn.as_u64().to_be_bytes());
    out.extend_from_slice(&header.not_modified_since.as_u64().to_be_bytes());
}

/// Starts a CopyData message; [`end_frame`] sets its length.
fn begin_frame(out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.extend_from_slice(&[b'd', 0, 0, 0, 0]);
    start
}

/// Sets the length of the CopyData that began at `start`; `follows` bytes of it are sent from elsewhere.
fn end_frame(out: &mut [u8], start: usize, follows: usize) {
    let length = u32::try_from(out.len() - start - 1 + follows).unwrap_or(u32::MAX);
    assert!(length <= 0x7FFF_FFFF); // A segment of 32 pages is the longest.
    out[start + 1..start + 5].copy_from_slice(&length.to_be_bytes());
}

/// Appends a response within CopyData: tag, what version 3 echoes, then what `answer` appends. `follows`: bytes that the caller sends after it.
fn put_response(
    version: Version,
    tag: u8,
    request: &Request,
    out: &mut Vec<u8>,
    follows: usize,
    answer: impl FnOnce(&mut Vec<u8>),
) {
    let start = begin_frame(out);
    out.push(tag);
    if version == Version::V3 {
        put_header(version, &request.header, out);
        if tag != ERROR_RESPONSE {
            request.body.put(out);
        }
    }
    answer(out);
    end_frame(out, start, follows);
}

/// Appends the answer to Exists.
pub fn exists_response(version: Version, request: &Request, exists: bool, out: &mut Vec<u8>) {
    put_response(version, EXISTS_RESPONSE, request, out, 0, |out| out.push(u8::from(exists)));
}

/// Appends the answer to Nblocks.
pub fn nblocks_response(version: Version, request: &Request, block_count: u32, out: &mut Vec<u8>) {
    put_response(version, NBLOCKS_RESPONSE, request, out, 0, |out| out.extend_from_slice(&block_count.to_be_bytes()));
}

/// Appends the answer to GetPage up to the page; the caller sends the 8,192 bytes of the page right behind it.
pub fn get_page_response_head(version: Version, request: &Request, out: &mut Vec<u8>) {
    put_response(version, GET_PAGE_RESPONSE, request, out, BLCKSZ, |_| {});
}

/// Appends the answer to GetPage.
pub fn get_page_response(version: Version, request: &Request, page: &Page, out: &mut Vec<u8>) {
    get_page_response_head(version, request, out);
    out.extend_from_slice(page);
}

/// Appends the answer to DbSize, in bytes.
pub fn db_size_response(version: Version, request: &Request, size_bytes: i64, out: &mut Vec<u8>) {
    put_response(version, DB_SIZE_RESPONSE, request, out, 0, |out| out.extend_from_slice(&size_bytes.to_be_bytes()));
}

/// Appends the answer to SlruSegment up to its pages; the caller sends `page_count` pages right behind it.
pub fn slru_segment_response_head(version: Version, request: &Request, page_count: u32, out: &mut Vec<u8>) {
    let follows = page_count as usize * BLCKSZ;
    put_response(version, SLRU_SEGMENT_RESPONSE, request, out, follows, |out| {
        out.extend_from_slice(&page_count.to_be_bytes());
    });
}

/// Appends an error for this request; the stream goes on.
pub fn error_response(version: Version, request: &Request, text: &str, out: &mut Vec<u8>) {
    put_response(version, ERROR_RESPONSE, request, out, 0, |out| crate::page_service::message::put_cstring(out, text));
}

/// An answer, borrowed from the message it came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer<'a> {
    /// Exists.
    Exists(bool),
    /// Nblocks.
    Nblocks(u32),
    /// GetPage.
    Page(&'a Page),
    /// DbSize, bytes.
    DbSize(i64),
    /// SlruSegment: whole pages, one behind the other.
    SlruSegment(&'a [u8]),
    /// The request failed.
    Error(&'a str),
}

/// A response, as a client sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response<'a> {
    /// Id and LSNs of the request; `None` in version 2.
    pub header: Option<Header>,
    /// The question; `None` in version 2 and for errors.
    pub body: Option<Body>,
    /// The answer.
    pub answer: Answer<'a>,
}

impl<'a> Response<'a> {
    /// The response that `message` (payload of one CopyData) is.
    pub fn parse(version: Version, message: &'a [u8]) -> Result<Self, WireError> {
        let length = message.len();
        let mut fields = Fields { rest: message, short: false };
        let tag = fields.u8();
        let request_tag = match tag {
            EXISTS_RESPONSE => Some(EXISTS),
            NBLOCKS_RESPONSE => Some(NBLOCKS),
            GET_PAGE_RESPONSE => Some(GET_PAGE),
            DB_SIZE_RESPONSE => Some(DB_SIZE),
            SLRU_SEGMENT_RESPONSE => Some(SLRU_SEGMENT),
            ERROR_RESPONSE => None,
            tag => return Err(WireError::Tag { tag }),
        };
        let header = (version == Version::V3).then(|| fields.header(version));
        let body = match request_tag {
            Some(request_tag) if version == Version::V3 => Some(fields.body(request_tag)?),
            _ => None,
        };
        if fields.short {
            return Err(WireError::Length { length });
        }
        let answer = Answer::parse(tag, length, &mut fields)?;
        if fields.short || !fields.rest.is_empty() {
            return Err(WireError::Length { length });
        }
        Ok(Response { header, body, answer })
    }
}

impl<'a> Answer<'a> {
    fn parse(tag: u8, length: usize, fields: &mut Fields<'a>) -> Result<Self, WireError> {
        Ok(match tag {
            EXISTS_RESPONSE => match fields.u8() {
                0 => Answer::Exists(false),
                1 => Answer::Exists(true),
                _ => return Err(WireError::Value { tag }),
            },
            NBLOCKS_RESPONSE => Answer::Nblocks(fields.u32()),
            GET_PAGE_RESPONSE => {
                let page = fields.rest.try_into().map_err(|_| WireError::Length { length })?;
                fields.rest = &[];
                Answer::Page(page)
            }
            DB_SIZE_RESPONSE => Answer::DbSize(i64::from_be_bytes(fields.take())),
            SLRU_SEGMENT_RESPONSE => {
                let page_count = fields.u32();
                let pages = std::mem::take(&mut fields.rest);
                if u64::from(page_count) * BLCKSZ as u64 != pages.len() as u64 {
                    return Err(WireError::Length { length });
                }
                Answer::SlruSegment(pages)
            }
            _ => {
                let text = std::mem::take(&mut fields.rest);
                let text = text.strip_suffix(&[0]).ok_or(WireError::Value { tag })?;
                Answer::Error(std::str::from_utf8(text).map_err(|_| WireError::Value { tag })?)
            }
        })
    }
}

/// The page of zeroes that blocks past the end read as.
pub fn zero_page() -> &'static Page {
    &ZERO_PAGE
}

const _: () = assert!(GET_PAGE_REQUEST_LEN_V3 == 42); // As the reference system has it.

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
