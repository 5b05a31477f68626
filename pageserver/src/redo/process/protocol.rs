//! Frames on the pipes to a redo process.
//!
//! The layout stands in `pageserver/redo_extension/redo.h`, beside the other implementation. Whatever the process sends
//! is checked: it may have been taken over by the WAL that it was given.

use byteorder::{ByteOrder, LittleEndian};
use postgres_ffi::page::Page;
use postgres_ffi::{BLCKSZ, PgVersion};

use crate::redo::EngineRequest;

/// Version of the frames; the process says the same in its hello.
pub const PROTOCOL_VERSION: u16 = 1;
/// Bytes of the hello.
pub const HELLO_LEN: usize = 32;
/// Bytes of the header of a request or reply.
pub const FRAME_HEADER_LEN: usize = 16;
/// The longest body of a request. Longer chains are cut; only a single record can be too long.
pub const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The longest text of an error.
pub const TEXT_BYTES_MAX: usize = 1024;

const HELLO_MAGIC: &[u8; 8] = b"PGREDO\r\n";
const REQUEST_MARK: u16 = 0x5152;
const REPLY_MARK: u16 = 0x5041;
const REQUEST_TYPE_REDO: u16 = 1;
const REQUEST_HAS_BASE: u8 = 1;
const REQUEST_HEAD_LEN: usize = 24;
const RECORD_HEAD_LEN: usize = 16;
/// Where the request id stands in a frame header.
const ID_OFFSET: usize = 8;

/// What the process sent is not what this protocol allows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The first bytes are not a hello.
    #[error("no hello. bytes=`{bytes:02x?}`")]
    NoHello {
        /// What came instead.
        bytes: Vec<u8>,
    },
    /// The process speaks another version of the protocol.
    #[error("other protocol version. theirs=`{theirs}`, ours=`{PROTOCOL_VERSION}`")]
    Version {
        /// What it speaks.
        theirs: u16,
    },
    /// The process is another PostgreSQL than the cluster's.
    #[error("process is of another major version. theirs=`{theirs}`, cluster=`{cluster}`")]
    MajorVersion {
        /// The process's.
        theirs: u16,
        /// The cluster's.
        cluster: PgVersion,
    },
    /// Pages of another size, or less room for requests than we count on.
    #[error("process has other limits. page_size=`{page_size}`, body_bytes_max=`{body_bytes_max}`")]
    Limits {
        /// Its page size.
        page_size: u32,
        /// Its longest request.
        body_bytes_max: u32,
    },
    /// A frame that is no reply.
    #[error("not a reply. mark=`{mark:#06x}`, status=`{status}`, body_len=`{body_len}`")]
    NotAReply {
        /// Mark found.
        mark: u16,
        /// Status found.
        status: u16,
        /// Length found.
        body_len: u32,
    },
    /// A reply to something that was not asked, or out of order.
    #[error("reply to another request. id=`{id}`, expected=`{expected:?}`")]
    UnexpectedReply {
        /// Its id.
        id: u64,
        /// The oldest request that waits.
        expected: Option<u64>,
    },
}

/// What a process says of itself when it is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// PG_VERSION_NUM of the headers that the extension was built with, such as 150020.
    pub pg_version_num: u32,
    /// The cluster has data checksums.
    pub data_checksums: bool,
    /// `wal_log_hints` is on.
    pub wal_log_hints: bool,
}

impl Hello {
    /// Checks that the process is one that we can use for a cluster of `version`.
    pub fn parse(bytes: &[u8; HELLO_LEN], version: PgVersion) -> Result<Self, ProtocolError> {
        if &bytes[..8] != HELLO_MAGIC {
            return Err(ProtocolError::NoHello { bytes: bytes.to_vec() });
        }
        let protocol = LittleEndian::read_u16(&bytes[8..]);
        if protocol != PROTOCOL_VERSION {
            return Err(ProtocolError::Version { theirs: protocol });
        }
        let major = LittleEndian::read_u16(&bytes[10..]);
        if u32::from(major) != version.major() {
            return Err(ProtocolError::MajorVersion { theirs: major, cluster: version });
        }
        let page_size = LittleEndian::read_u32(&bytes[16..]);
        let body_bytes_max = LittleEndian::read_u32(&bytes[20..]);
        if page_size as usize != BLCKSZ || (body_bytes_max as usize) < BODY_BYTES_MAX {
            return Err(ProtocolError::Limits { page_size, body_bytes_max });
        }
        let flags = LittleEndian::read_u32(&bytes[24..]);
        Ok(Hello {
            pg_version_num: LittleEndian::read_u32(&bytes[12..]),
            data_checksums: flags & 1 != 0,
            wal_log_hints: flags & 2 != 0,
        })
    }
}

/// Bytes that a request takes on the wire, header included.
pub fn request_len(request: &EngineRequest) -> usize {
    let base = request.base.as_ref().map_or(0, |_| BLCKSZ);
    let records: usize = request.records.iter().map(|(_, record)| record_len(record.len())).sum();
    FRAME_HEADER_LEN + REQUEST_HEAD_LEN + base + records
}

/// Bytes that a record of `len` bytes takes within a request.
pub fn record_len(len: usize) -> usize {
    RECORD_HEAD_LEN + len.next_multiple_of(8)
}

/// Bytes that a request takes on the wire without any record.
pub fn empty_request_len() -> usize {
    FRAME_HEADER_LEN + REQUEST_HEAD_LEN + BLCKSZ
}

/// Appends the frame of `request` with id 0; [`set_id`] gives it one.
///
/// Requires: the base, if any, has 8,192 bytes, and [`request_len`] is at most [`BODY_BYTES_MAX`].
pub fn put_request(request: &EngineRequest, out: &mut Vec<u8>) {
    let body_len = request_len(request) - FRAME_HEADER_LEN;
    assert!(body_len <= BODY_BYTES_MAX);
    let mut head = [0; FRAME_HEADER_LEN + REQUEST_HEAD_LEN];
    LittleEndian::write_u16(&mut head[0..], REQUEST_MARK);
    LittleEndian::write_u16(&mut head[2..], REQUEST_TYPE_REDO);
    LittleEndian::write_u32(&mut head[4..], body_len as u32);
    let body = &mut head[FRAME_HEADER_LEN..];
    LittleEndian::write_u32(&mut body[0..], request.rel.spc_oid);
    LittleEndian::write_u32(&mut body[4..], request.rel.db_oid);
    LittleEndian::write_u32(&mut body[8..], request.rel.rel_number);
    LittleEndian::write_u32(&mut body[12..], request.block_no);
    body[16] = request.fork as u8;
    body[17] = if request.base.is_some() { REQUEST_HAS_BASE } else { 0 };
    // Fits: each record takes at least 16 of the bytes counted above.
    LittleEndian::write_u32(&mut body[20..], request.records.len() as u32);
    out.extend_from_slice(&head);
    if let Some(base) = &request.base {
        assert!(base.len() == BLCKSZ);
        out.extend_from_slice(base);
    }
    for (end_lsn, record) in &request.records {
        let mut head = [0; RECORD_HEAD_LEN];
        LittleEndian::write_u64(&mut head[0..], end_lsn.as_u64());
        LittleEndian::write_u32(&mut head[8..], record.len() as u32);
        out.extend_from_slice(&head);
        out.extend_from_slice(record);
        out.resize(out.len().next_multiple_of(8), 0);
    }
}

/// Gives the frame that starts at `frame[0]` its id.
pub fn set_id(frame: &mut [u8], id: u64) {
    LittleEndian::write_u64(&mut frame[ID_OFFSET..], id);
}

/// What a request came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The page.
    Page(Box<Page>),
    /// The records do not apply. `panicked`: PostgreSQL wanted to end because of them.
    Refused {
        /// PostgreSQL's words.
        message: String,
        /// It was a PANIC.
        panicked: bool,
    },
}

/// The first reply in `bytes`: its id, the reply, its length. `None`: not all of it is there yet.
pub fn parse_reply(bytes: &[u8]) -> Result<Option<(u64, Reply, usize)>, ProtocolError> {
    let Some((header, rest)) = bytes.split_first_chunk::<FRAME_HEADER_LEN>() else { return Ok(None) };
    let mark = LittleEndian::read_u16(&header[0..]);
    let status = LittleEndian::read_u16(&header[2..]);
    let body_len = LittleEndian::read_u32(&header[4..]);
    let is_page = status == 0 && body_len as usize == BLCKSZ;
    let is_text = (status == 1 || status == 2) && body_len as usize <= TEXT_BYTES_MAX;
    if mark != REPLY_MARK || !(is_page || is_text) {
        return Err(ProtocolError::NotAReply { mark, status, body_len });
    }
    let Some(body) = rest.get(..body_len as usize) else { return Ok(None) };
    let reply = match Box::<Page>::try_from(body.to_vec().into_boxed_slice()) {
        Ok(page) => Reply::Page(page),
        Err(text) => Reply::Refused { message: readable(&text), panicked: status == 2 },
    };
    let id = LittleEndian::read_u64(&header[ID_OFFSET..]);
    Ok(Some((id, reply, FRAME_HEADER_LEN + body.len())))
}

/// Text from the process as it may stand in a log: one line, no control characters.
pub fn readable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

const _: () = assert!(TEXT_BYTES_MAX < BLCKSZ);

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use postgres_ffi::{ForkNumber, Lsn, RelTag};

    use super::*;

    #[test]
    fn request_frame_is_as_the_extension_reads_it() {
        let request = EngineRequest {
            rel: RelTag { spc_oid: 1663, db_oid: 5, rel_number: 16384 },
            fork: ForkNumber::Vm,
            block_no: 7,
            base: None,
            records: vec![(Lsn::new(0x1122), Bytes::from_static(&[9; 3]))],
        };
        let mut frame = Vec::new();
        put_request(&request, &mut frame);
        set_id(&mut frame, 258);
        assert_eq!(frame.len(), request_len(&request));
        let expected = [
            &[0x52, 0x51, 1, 0, 48, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0][..],
            &[0x7f, 6, 0, 0, 5, 0, 0, 0, 0, 0x40, 0, 0, 7, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0],
            &[0x22, 0x11, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0],
            &[9, 9, 9, 0, 0, 0, 0, 0],
        ]
        .concat();
        assert_eq!(frame, expected);
    }

    #[test]
    fn reply_is_taken_when_it_is_whole_and_refused_when_it_is_none() {
        let mut frame = vec![0x41, 0x50, 1, 0, 8, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0];
        frame.extend_from_slice(b"no\x07way ");
        for len in 0..frame.len() {
            assert_eq!(parse_reply(&frame[..len]), Ok(None), "{len}");
        }
        let refused = Reply::Refused { message: "no way".into(), panicked: false };
        assert_eq!(parse_reply(&frame[..23]), Ok(None));
        frame.push(b' ');
        assert_eq!(parse_reply(&frame), Ok(Some((5, refused, 24))));
        for (at, value) in [(0, 0), (2, 0), (2, 3), (5, 0xff), (6, 1)] {
            let mut bad = frame.clone();
            bad[at] = value;
            assert!(matches!(parse_reply(&bad), Err(ProtocolError::NotAReply { .. })), "{at}");
        }
    }

    #[test]
    fn hello_of_another_version_is_refused() {
        let mut hello = [0; HELLO_LEN];
        hello[..8].copy_from_slice(b"PGREDO\r\n");
        LittleEndian::write_u16(&mut hello[8..], 1);
        LittleEndian::write_u16(&mut hello[10..], 15);
        LittleEndian::write_u32(&mut hello[12..], 150020);
        LittleEndian::write_u32(&mut hello[16..], 8192);
        LittleEndian::write_u32(&mut hello[20..], 64 * 1024 * 1024);
        LittleEndian::write_u32(&mut hello[24..], 1);
        let good = Hello { pg_version_num: 150020, data_checksums: true, wal_log_hints: false };
        assert_eq!(Hello::parse(&hello, PgVersion::V15), Ok(good));
        assert!(matches!(Hello::parse(&hello, PgVersion::V16), Err(ProtocolError::MajorVersion { .. })));
        // Magic, protocol, page size, longest body.
        for at in [0, 8, 17, 23] {
            let mut bad = hello;
            bad[at] = 3;
            assert!(Hello::parse(&bad, PgVersion::V15).is_err(), "{at}");
        }
    }
}
