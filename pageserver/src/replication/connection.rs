//! From a connection string to a connection that takes commands: TLS request, startup, login, the server's parameters.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use postgres_ffi::PgVersion;
use postgres_protocol::message::frontend;

use super::auth::{Credentials, authenticate};
use super::channel_binding::tls_server_end_point;
use super::conninfo::{ConnInfo, HostAddress, SslMode};
use super::error::{ReplicationError, ServerError, protocol};
use super::frames::{BODY_BYTES_MAX, Body, Frames};
use super::socket::{Interrupt, Socket, Transport};
use super::tls;

/// Parameters that a server reports at the start; PostgreSQL 18 has about fifteen.
const PARAMETERS_MAX: usize = 256;
/// SQLSTATE class of a refused login: what `sslmode=prefer` takes as a reason to try without TLS, as libpq does.
const SQLSTATE_INVALID_AUTHORIZATION: &str = "28000";

/// What the connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Physical replication: the commands of this module.
    Replication,
    /// Ordinary SQL, to ask what a replication connection cannot be asked.
    Sql,
}

/// A connection that is logged in and idle.
pub struct Connection {
    pub(super) frames: Frames,
    address: String,
    version: PgVersion,
    parameters: BTreeMap<String, String>,
    /// Bound on waiting for an answer.
    pub(super) answer_timeout: Duration,
}

impl Connection {
    /// Connects to the first host of `conninfo` that takes us. Errors are those of the last host tried.
    pub fn connect(conninfo: &ConnInfo, mode: Mode) -> Result<Self, ReplicationError> {
        let mut last = ReplicationError::Closed;
        for host in &conninfo.hosts {
            match Self::connect_host(conninfo, host, mode) {
                Ok(connection) => return Ok(connection),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn connect_host(conninfo: &ConnInfo, host: &HostAddress, mode: Mode) -> Result<Self, ReplicationError> {
        let tls = conninfo.ssl_mode != SslMode::Disable && matches!(host, HostAddress::Tcp { .. });
        if !tls {
            return Self::log_in(
                conninfo,
                host,
                mode,
                Transport::Plain(Socket::connect(host, conninfo.connect_timeout)?),
            );
        }
        let attempt = request_tls(conninfo, host).and_then(|transport| Self::log_in(conninfo, host, mode, transport));
        match attempt {
            Err(error) if conninfo.ssl_mode == SslMode::Prefer && worth_trying_plain(&error) => {
                let socket = Socket::connect(host, conninfo.connect_timeout)?;
                Self::log_in(conninfo, host, mode, Transport::Plain(socket))
            }
            outcome => outcome,
        }
    }

    fn log_in(
        conninfo: &ConnInfo,
        host: &HostAddress,
        mode: Mode,
        transport: Transport,
    ) -> Result<Self, ReplicationError> {
        let database = match mode {
            Mode::Replication => "replication",
            Mode::Sql => conninfo.dbname.as_deref().unwrap_or("postgres"),
        };
        let credentials = Credentials {
            user: &conninfo.user,
            password: conninfo.password_for(host, database)?,
            channel_binding: conninfo.channel_binding,
            tls_server_end_point: server_certificate_binding(&transport),
        };
        let mut parameters = vec![
            ("user", conninfo.user.as_str()),
            ("application_name", conninfo.application_name()),
            ("client_encoding", "UTF8"),
        ];
        match mode {
            Mode::Replication => parameters.push(("replication", "true")),
            Mode::Sql => parameters.push(("database", database)),
        }
        let mut startup = BytesMut::new();
        frontend::startup_message(parameters, &mut startup)?;
        let mut frames = Frames::new(transport, conninfo.connect_timeout);
        frames.limit(Some(conninfo.connect_timeout));
        frames.send(&startup)?;
        authenticate(&mut frames, &credentials)?;
        let parameters = read_parameters(&mut frames)?;
        frames.set_body_bytes_max(BODY_BYTES_MAX);
        frames.limit(None);
        let version = server_version(&parameters)?;
        if conninfo.primary_only && parameters.get("in_hot_standby").is_some_and(|value| value == "on") {
            return Err(ReplicationError::NotPrimary { address: host.to_string() });
        }
        let answer_timeout = conninfo.connect_timeout.max(Duration::from_secs(30));
        frames.set_timeouts(answer_timeout, answer_timeout)?;
        Ok(Connection { frames, address: host.to_string(), version, parameters, answer_timeout })
    }

    /// Host and port, or the socket's directory and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The server's major version.
    pub fn version(&self) -> PgVersion {
        self.version
    }

    /// A parameter that the server reported at login, such as `server_version`.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// A handle that ends this connection from another thread.
    pub fn interrupt_handle(&self) -> Result<Interrupt, ReplicationError> {
        self.frames.interrupt()
    }
}

fn worth_trying_plain(error: &ReplicationError) -> bool {
    matches!(error, ReplicationError::Tls { .. }) || error.sqlstate() == Some(SQLSTATE_INVALID_AUTHORIZATION)
}

/// Asks the server for TLS before anything else is said. PG: doc/src/sgml/protocol.sgml, "SSL Session Encryption".
fn request_tls(conninfo: &ConnInfo, host: &HostAddress) -> Result<Transport, ReplicationError> {
    let mut socket = Socket::connect(host, conninfo.connect_timeout)?;
    socket.set_deadline(Instant::now().checked_add(conninfo.connect_timeout));
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    socket.write_all(&request)?;
    // Exactly one byte: more would be text that somebody slipped in before the encryption began.
    let mut answer = [0];
    socket.read_exact(&mut answer).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => ReplicationError::Closed,
        _ => error.into(),
    })?;
    match answer {
        [b'S'] => Ok(Transport::Tls(tls::connect(conninfo, host, socket)?)),
        [b'N'] if conninfo.ssl_mode == SslMode::Prefer => Ok(Transport::Plain(socket)),
        [b'N'] => Err(ReplicationError::TlsRefused { address: host.to_string() }),
        [other] => Err(protocol(format!("{:?} as answer to the request for TLS", char::from(other)))),
    }
}

fn server_certificate_binding(transport: &Transport) -> Option<Vec<u8>> {
    match transport {
        Transport::Plain(_) => None,
        Transport::Tls(stream) => tls_server_end_point(stream.conn.peer_certificates()?.first()?),
    }
}

/// What comes between the login and the first ReadyForQuery.
fn read_parameters(frames: &mut Frames) -> Result<BTreeMap<String, String>, ReplicationError> {
    let mut parameters = BTreeMap::new();
    loop {
        let frame = frames.next()?;
        match frame.tag {
            b'S' if parameters.len() < PARAMETERS_MAX => {
                let mut body = Body(&frame.body);
                parameters.insert(body.text()?.to_owned(), body.text()?.to_owned());
            }
            b'S' => return Err(protocol("too many parameters")),
            // BackendKeyData, NoticeResponse
            b'K' | b'N' => {}
            b'Z' => return Ok(parameters),
            b'E' => return Err(ReplicationError::Server(Box::new(ServerError::parse(&frame.body)))),
            tag => return Err(protocol(format!("message {:?} after the login", char::from(tag)))),
        }
    }
}

fn server_version(parameters: &BTreeMap<String, String>) -> Result<PgVersion, ReplicationError> {
    let text = parameters.get("server_version").ok_or_else(|| protocol("the server did not say its version"))?;
    let digits = text.find(|c: char| !c.is_ascii_digit()).map_or(text.as_str(), |end| &text[..end]);
    Ok(digits.parse()?)
}
