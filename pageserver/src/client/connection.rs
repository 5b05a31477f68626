//! A connection for commands: connect, send text, take rows and notices.

use std::fmt;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use bytes::Bytes;
use postgres_ffi::Lsn;

use super::error::{ClientError, ServerError};
use crate::import::ClusterFiles;
use crate::page_service::frame::{Frame, FrameReader};
use crate::page_service::message;

/// Longest message taken: a row with a page in hexadecimal is 16 KiB, an SLRU segment 256 KiB.
const MESSAGE_LENGTH_MAX: usize = 16 * 1024 * 1024;
/// A read asks for so much: 31 pages.
const READ_BYTES: usize = 256 * 1024;
const PROTOCOL_3_0: u32 = 3 << 16;
const CANCEL_REQUEST_CODE: u32 = 1234 << 16 | 5678;

/// Where and as whom to connect.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// `host:port`
    pub address: String,
    /// User name.
    pub user: String,
    /// What the server's log calls us.
    pub application_name: String,
    /// For the TCP connection.
    pub connect_timeout: Duration,
    /// For each message of the server; `None` waits for ever (an import may be silent for a while).
    pub read_timeout: Option<Duration>,
}

impl ClientConfig {
    /// As user `pageserver`, 10 s to connect, no limit for answers.
    pub fn new(address: impl Into<String>) -> Self {
        ClientConfig {
            address: address.into(),
            user: "pageserver".to_owned(),
            application_name: String::new(),
            connect_timeout: Duration::from_secs(10),
            read_timeout: None,
        }
    }
}

/// `text` as a single-quoted string of the command language.
pub fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A row: text values, `None` for NULL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    values: Vec<Option<String>>,
}

impl Row {
    /// The value of column `i`; `None` for NULL and beyond the last column.
    pub fn get(&self, i: usize) -> Option<&str> {
        self.values.get(i).and_then(Option::as_deref)
    }

    /// All values.
    pub fn values(&self) -> &[Option<String>] {
        &self.values
    }

    /// The bytes of a `bytea` column (`\x...`); `None` for NULL or anything else.
    pub fn get_bytes(&self, i: usize) -> Option<Bytes> {
        let digits = self.get(i)?.strip_prefix("\\x")?.as_bytes();
        let nibble = |digit: u8| (digit as char).to_digit(16).and_then(|value| u8::try_from(value).ok());
        let byte = |pair: &[u8]| match pair {
            [high, low] => Some(nibble(*high)? << 4 | nibble(*low)?),
            _ => None,
        };
        digits.chunks(2).map(byte).collect::<Option<Vec<u8>>>().map(Bytes::from)
    }

    /// The LSN in column `i`; `None` for NULL or anything else.
    pub fn get_lsn(&self, i: usize) -> Option<Lsn> {
        self.get(i)?.parse().ok()
    }
}

/// What one command gave.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResultSet {
    /// Names of the columns; none for a command without rows.
    pub columns: Vec<String>,
    /// OIDs of their types.
    pub types: Vec<u32>,
    /// The rows.
    pub rows: Vec<Row>,
    /// `SELECT 3`, `SET`, ...
    pub tag: String,
}

impl ResultSet {
    /// Number of the column with this name.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column == name)
    }
}

/// What the server tells while it imports: a notice of this form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportProgress {
    /// What is being done.
    pub phase: String,
    /// Bytes so far.
    pub bytes_done: u64,
    /// Bytes there are, as far as is known.
    pub bytes_total: Option<u64>,
}

impl ImportProgress {
    /// The progress that a notice tells; `None` for any other notice.
    pub fn parse(notice: &str) -> Option<Self> {
        let (phase, rest) = notice.rsplit_once(": ")?;
        let rest = rest.strip_suffix(" bytes")?;
        let (done, total) = match rest.split_once(" of ") {
            Some((done, total)) => (done, Some(total.parse().ok()?)),
            None => (rest, None),
        };
        Some(ImportProgress { phase: phase.to_owned(), bytes_done: done.parse().ok()?, bytes_total: total })
    }
}

/// What it takes to cancel what a connection is doing, from another thread.
#[derive(Clone)]
pub struct CancelToken {
    address: SocketAddr,
    connect_timeout: Duration,
    key: Vec<u8>,
}

impl fmt::Debug for CancelToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CancelToken({}, ..)", self.address)
    }
}

impl CancelToken {
    /// Asks the server to cancel. It does not say whether it did.
    pub fn cancel(&self) -> Result<(), ClientError> {
        let mut stream = TcpStream::connect_timeout(&self.address, self.connect_timeout)?;
        stream.write_all(&startup_packet(CANCEL_REQUEST_CODE, |out| out.extend_from_slice(&self.key)))?;
        // The server closes without an answer once it has read it.
        io::copy(&mut stream, &mut io::sink())?;
        Ok(())
    }
}

/// A connection to a page server.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    reader: FrameReader,
    out: Vec<u8>,
    cancel_token: CancelToken,
    connection_id: u32,
}

impl Client {
    /// Connects and starts a session. Errors: address, socket, and what the server refuses (53300 when it is full).
    pub fn connect(config: &ClientConfig) -> Result<Self, ClientError> {
        let (stream, address) = connect_tcp(config)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(config.read_timeout)?;
        let cancel_token = CancelToken { address, connect_timeout: config.connect_timeout, key: Vec::new() };
        let mut client = Client {
            stream,
            reader: FrameReader::with_read_bytes(MESSAGE_LENGTH_MAX, READ_BYTES),
            out: Vec::new(),
            cancel_token,
            connection_id: 0,
        };
        client.start(config)?;
        Ok(client)
    }

    fn start(&mut self, config: &ClientConfig) -> Result<(), ClientError> {
        self.out = startup_packet(PROTOCOL_3_0, |out| {
            for text in ["user", &config.user, "application_name", &config.application_name] {
                message::put_cstring(out, text);
            }
            out.push(0);
        });
        self.flush()?;
        loop {
            let frame = self.frame()?;
            let payload = self.reader.payload(&frame);
            match frame.tag {
                b'R' => match payload.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes)) {
                    Some(0) => {}
                    method => return Err(ClientError::Authentication { method: method.unwrap_or(u32::MAX) }),
                },
                b'K' => {
                    self.connection_id = payload.first_chunk::<4>().map_or(0, |bytes| u32::from_be_bytes(*bytes));
                    self.cancel_token.key = payload.to_vec();
                }
                b'S' | b'N' => {}
                b'Z' => return Ok(()),
                b'E' => return Err(ClientError::Server(server_error(payload))),
                tag => return Err(ClientError::Unexpected { tag, doing: "connecting" }),
            }
        }
    }

    /// Runs commands (several, separated by `;`, if you like) and returns what each gave. Notices are dropped.
    pub fn query(&mut self, commands: &str) -> Result<Vec<ResultSet>, ClientError> {
        self.query_with_notices(commands, &mut |_| {})
    }

    /// Runs one command.
    pub fn query_one(&mut self, command: &str) -> Result<ResultSet, ClientError> {
        Ok(self.query(command)?.pop().unwrap_or_default())
    }

    /// Runs commands; `on_notice` gets the text of each notice as it comes.
    pub fn query_with_notices(
        &mut self,
        commands: &str,
        on_notice: &mut dyn FnMut(&str),
    ) -> Result<Vec<ResultSet>, ClientError> {
        self.send_query(commands)?;
        let mut results = Vec::new();
        let mut result = ResultSet::default();
        let mut failed = None;
        loop {
            let frame = self.frame()?;
            let payload = self.reader.payload(&frame);
            match frame.tag {
                b'T' => (result.columns, result.types) = columns(payload),
                b'D' => result.rows.push(row(payload).ok_or(unexpected(&frame, "reading a row"))?),
                b'C' => {
                    result.tag = cstring(payload).0;
                    results.push(std::mem::take(&mut result));
                }
                b'I' => results.push(std::mem::take(&mut result)),
                b'N' => on_notice(&server_error(payload).message),
                b'S' => {}
                b'E' => {
                    let error = server_error(payload);
                    let fatal = error.severity == "FATAL";
                    failed = Some(ClientError::Server(error));
                    if fatal {
                        break;
                    }
                }
                b'Z' => break,
                _ => return Err(unexpected(&frame, "running a command")),
            }
        }
        failed.map_or(Ok(results), Err)
    }

    /// Makes timeline `name` from the running primary at `conninfo`. `on_progress` is called as it goes on.
    pub fn import(
        &mut self,
        name: &str,
        conninfo: &str,
        on_progress: &mut dyn FnMut(&ImportProgress),
    ) -> Result<ResultSet, ClientError> {
        self.run_import(&format!("IMPORT {} FROM {}", quote(name), quote(conninfo)), on_progress)
    }

    /// Makes timeline `name` from files on the server's machine. `on_progress` is called as it goes on.
    pub fn import_files(
        &mut self,
        name: &str,
        files: &ClusterFiles,
        on_progress: &mut dyn FnMut(&ImportProgress),
    ) -> Result<ResultSet, ClientError> {
        let kind = match files {
            ClusterFiles::Directory(_) => "DIRECTORY",
            ClusterFiles::Tar(_) => "TAR",
        };
        let path = quote(&files.path().to_string_lossy());
        self.run_import(&format!("IMPORT {} FROM {kind} {path}", quote(name)), on_progress)
    }

    fn run_import(
        &mut self,
        command: &str,
        on_progress: &mut dyn FnMut(&ImportProgress),
    ) -> Result<ResultSet, ClientError> {
        let mut on_notice = |notice: &str| {
            if let Some(progress) = ImportProgress::parse(notice) {
                on_progress(&progress);
            }
        };
        self.query_with_notices(command, &mut on_notice)?.pop().ok_or(ClientError::Result { command: "IMPORT" })
    }

    /// For cancelling from another thread what this connection does.
    pub fn cancel_token(&self) -> CancelToken {
        self.cancel_token.clone()
    }

    /// The server's number for this connection, as its log has it.
    pub fn connection_id(&self) -> u32 {
        self.connection_id
    }

    /// Sends a command and goes away without a word, as a client that crashes.
    #[cfg(test)]
    pub(crate) fn send_and_leave(&mut self, text: &str) {
        self.send_query(text).expect("sent");
        self.leave();
    }

    /// Closes without a word.
    #[cfg(test)]
    pub(crate) fn leave(&mut self) {
        self.stream.shutdown(std::net::Shutdown::Both).expect("closes");
    }

    /// Sends a simple query; the answer is the caller's to read.
    pub(super) fn send_query(&mut self, text: &str) -> Result<(), ClientError> {
        message::message(&mut self.out, b'Q', |out| message::put_cstring(out, text));
        self.flush()
    }

    /// Where messages are appended; [`Client::flush`] sends them.
    pub(super) fn out(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    pub(super) fn flush(&mut self) -> Result<(), ClientError> {
        let result = self.stream.write_all(&self.out);
        self.out.clear();
        Ok(result?)
    }

    /// The next message; blocks.
    pub(super) fn frame(&mut self) -> Result<Frame, ClientError> {
        loop {
            if let Some(frame) = self.frame_if_there()? {
                return Ok(frame);
            }
            match self.reader.fill(&mut self.stream) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error.into()),
                _ => {}
            }
        }
    }

    /// The next message if it has been read already.
    pub(super) fn frame_if_there(&mut self) -> Result<Option<Frame>, ClientError> {
        Ok(self.reader.next_frame()?)
    }

    pub(super) fn payload(&self, frame: &Frame) -> &[u8] {
        self.reader.payload(frame)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Politeness only; the server notices a closed socket as well.
        message::bare(&mut self.out, b'X');
        let _ = self.flush();
    }
}

fn connect_tcp(config: &ClientConfig) -> Result<(TcpStream, SocketAddr), ClientError> {
    let mut last = None;
    for address in config.address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, config.connect_timeout) {
            Ok(stream) => return Ok((stream, address)),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| ClientError::Address { address: config.address.clone() }, ClientError::Io))
}

fn startup_packet(code: u32, body: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = vec![0; 4];
    out.extend_from_slice(&code.to_be_bytes());
    body(&mut out);
    let length = u32::try_from(out.len()).unwrap_or(u32::MAX);
    out[..4].copy_from_slice(&length.to_be_bytes());
    out
}

pub(super) fn unexpected(frame: &Frame, doing: &'static str) -> ClientError {
    ClientError::Unexpected { tag: frame.tag, doing }
}

/// Text up to the NUL, and what follows it.
fn cstring(bytes: &[u8]) -> (String, &[u8]) {
    let len = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    (String::from_utf8_lossy(&bytes[..len]).into_owned(), bytes.get(len + 1..).unwrap_or(&[]))
}

/// ErrorResponse or NoticeResponse.
pub(super) fn server_error(mut payload: &[u8]) -> ServerError {
    let mut error =
        ServerError { severity: String::new(), sqlstate: String::new(), message: String::new(), hint: None };
    while let Some((field, rest)) = payload.split_first() {
        if *field == 0 {
            break;
        }
        let (value, rest) = cstring(rest);
        payload = rest;
        match field {
            b'V' => error.severity = value,
            b'C' => error.sqlstate = value,
            b'M' => error.message = value,
            b'H' => error.hint = Some(value),
            _ => {}
        }
    }
    error
}

/// Names of columns, and OIDs of their types.
fn columns(payload: &[u8]) -> (Vec<String>, Vec<u32>) {
    let mut rest = payload.get(2..).unwrap_or(&[]);
    let mut columns = Vec::new();
    while !rest.is_empty() {
        let (name, after) = cstring(rest);
        // Table, attribute, type, length, modifier, format.
        let type_oid = after.get(6..).and_then(|after| after.first_chunk()).map_or(0, |oid| u32::from_be_bytes(*oid));
        columns.push((name, type_oid));
        rest = after.get(18..).unwrap_or(&[]);
    }
    columns.into_iter().unzip()
}

fn row(payload: &[u8]) -> Option<Row> {
    let (count, mut rest) = payload.split_first_chunk::<2>()?;
    let mut values = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (len, after) = rest.split_first_chunk::<4>()?;
        rest = after;
        let value = match usize::try_from(i32::from_be_bytes(*len)) {
            Ok(len) => {
                let (value, after) = rest.split_at_checked(len)?;
                rest = after;
                Some(String::from_utf8_lossy(value).into_owned())
            }
            Err(_) => None,
        };
        values.push(value);
    }
    rest.is_empty().then_some(Row { values })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_whole_or_not_at_all() {
        let payload = b"\0\x03\0\0\0\x01x\xff\xff\xff\xff\0\0\0\x06\\xAb01";
        let read = row(payload).expect("well formed");
        assert_eq!(read.get(0), Some("x"));
        assert_eq!(read.get(1), None);
        assert_eq!(read.get_bytes(2), Some(Bytes::from_static(&[0xAB, 1])));
        assert_eq!(read.get_bytes(0), None);
        for length in 0..payload.len() {
            assert_eq!(row(&payload[..length]), None);
        }
    }

    #[test]
    fn progress_is_read_back() {
        let progress = |phase: &str, bytes_done, bytes_total| {
            Some(ImportProgress { phase: phase.to_owned(), bytes_done, bytes_total })
        };
        assert_eq!(ImportProgress::parse("base backup: 5 of 10 bytes"), progress("base backup", 5, Some(10)));
        assert_eq!(ImportProgress::parse("catching up: now: 7 bytes"), progress("catching up: now", 7, None));
        assert_eq!(ImportProgress::parse("something else"), None);
    }

    #[test]
    fn quoting_doubles_quotes() {
        assert_eq!(quote("it's"), "'it''s'");
    }
}
