//! What can go wrong between us and a primary.

use std::fmt;
use std::io;
use std::time::Duration;

use postgres_ffi::version::UnsupportedVersion;

use super::conninfo::ConnInfoError;

/// Longest text of a server's error that we keep, per field.
const SERVER_TEXT_BYTES_MAX: usize = 2000;

/// An error or a notice as the server sent it. PG: src/include/postgres_ext.h, PG_DIAG_*.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerError {
    /// `ERROR`, `FATAL` or `PANIC`, not translated.
    pub severity: String,
    /// Five characters; the closed list stands in PostgreSQL's documentation, appendix A.
    pub sqlstate: String,
    /// The primary message, in the server's language.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What might help.
    pub hint: Option<String>,
}

/// The slot or another object exists already.
pub(crate) const SQLSTATE_DUPLICATE_OBJECT: &str = "42710";
/// No slot of this name, among others.
pub(crate) const SQLSTATE_UNDEFINED_OBJECT: &str = "42704";
/// The WAL segment asked for has been removed; a history file does not exist.
pub(crate) const SQLSTATE_UNDEFINED_FILE: &str = "58P01";
/// A slot that was invalidated, among others.
pub(crate) const SQLSTATE_NOT_IN_PREREQUISITE_STATE: &str = "55000";
/// No connection left, also for `max_wal_senders = 0`.
pub(crate) const SQLSTATE_TOO_MANY_CONNECTIONS: &str = "53300";

impl ServerError {
    /// Of the body of an ErrorResponse or NoticeResponse: fields of one type byte and a zero-terminated text, then a zero byte.
    /// A malformed tail loses the rest of the text, not the error.
    pub(super) fn parse(mut body: &[u8]) -> Self {
        let mut error = ServerError {
            severity: String::new(),
            sqlstate: String::new(),
            message: String::new(),
            detail: None,
            hint: None,
        };
        while let Some((field_type @ 1.., rest)) = body.split_first() {
            let Some(end) = rest.iter().position(|byte| *byte == 0) else { break };
            let text = String::from_utf8_lossy(&rest[..end.min(SERVER_TEXT_BYTES_MAX)]).into_owned();
            match field_type {
                b'V' => error.severity = text,
                b'S' if error.severity.is_empty() => error.severity = text,
                b'C' => error.sqlstate = text,
                b'M' => error.message = text,
                b'D' => error.detail = Some(text),
                b'H' => error.hint = Some(text),
                _ => {}
            }
            body = &rest[end + 1..];
        }
        error
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} (SQLSTATE {})", self.severity, self.message, self.sqlstate)?;
        for more in [&self.detail, &self.hint].into_iter().flatten() {
            write!(f, " {more}")?;
        }
        Ok(())
    }
}

/// Errors of a replication connection. After any of them but `Server` with severity `ERROR` the connection is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum ReplicationError {
    /// The connection string is wrong.
    #[error(transparent)]
    ConnInfo(#[from] ConnInfoError),
    /// The host name has no address.
    #[error("cannot resolve host. host=`{host}`")]
    Resolve {
        /// As given in the connection string.
        host: String,
        /// What the resolver said.
        #[source]
        source: io::Error,
    },
    /// Nobody listens there, or we cannot get there.
    #[error("cannot connect. address=`{address}`")]
    Connect {
        /// Host and port, or the path of the socket.
        address: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// `sslmode` demands TLS and the server does not speak it.
    #[error("the server does not support TLS, but sslmode requires it. address=`{address}`")]
    TlsRefused {
        /// Host and port.
        address: String,
    },
    /// The handshake failed: certificate not trusted, wrong name, no common version.
    #[error("TLS handshake failed. address=`{address}`, reason=`{reason}`")]
    Tls {
        /// Host and port.
        address: String,
        /// What rustls said.
        reason: String,
    },
    /// Certificates or keys on our side cannot be used.
    #[error("cannot use certificate file. path=`{path}`, reason=`{reason}`")]
    Certificate {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The server asks for a password and there is none, neither in the connection string nor in the password file.
    #[error("the server asks for a password and none is configured. user=`{user}`")]
    PasswordMissing {
        /// The user we log in as.
        user: String,
    },
    /// The server wants a kind of authentication that we do not speak.
    #[error("authentication method is not supported. method=`{method}`")]
    AuthenticationMethod {
        /// Its name.
        method: String,
    },
    /// SCRAM failed on our side: the server did not prove that it knows the password.
    #[error("SCRAM authentication failed: {reason}")]
    Scram {
        /// What is wrong.
        reason: String,
    },
    /// `target_session_attrs` asks for a primary and no host is one.
    #[error("the server is in recovery, but target_session_attrs asks for a primary. address=`{address}`")]
    NotPrimary {
        /// The last host tried.
        address: String,
    },
    /// The server's version is not one of 14 to 18.
    #[error(transparent)]
    Version(#[from] UnsupportedVersion),
    /// The server reported an error.
    #[error("{0}")]
    Server(Box<ServerError>),
    /// The socket failed.
    #[error("connection lost")]
    Io(#[from] io::Error),
    /// The server closed the connection.
    #[error("the server closed the connection")]
    Closed,
    /// Nothing came for too long.
    #[error("the server did not answer in time. timeout=`{timeout:?}`")]
    Timeout {
        /// How long we waited.
        timeout: Duration,
    },
    /// A message is longer than any that this place of the protocol can have.
    #[error("message is too long. length=`{length}`, length_max=`{length_max}`")]
    FrameTooLong {
        /// Its length.
        length: usize,
        /// The bound.
        length_max: usize,
    },
    /// The server said something that the protocol does not allow here.
    #[error("unexpected message of the server: {0}")]
    Protocol(String),
}

impl ReplicationError {
    /// The SQLSTATE, when the server reported the error.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Server(error) => Some(&error.sqlstate),
            _ => None,
        }
    }

    /// True when trying again cannot help before a person has changed something: password, certificate, version.
    pub fn needs_a_person(&self) -> bool {
        match self {
            Self::ConnInfo(_)
            | Self::TlsRefused { .. }
            | Self::Tls { .. }
            | Self::Certificate { .. }
            | Self::PasswordMissing { .. }
            | Self::AuthenticationMethod { .. }
            | Self::Scram { .. }
            | Self::Version(_) => true,
            // Class 28: invalid authorization specification.
            Self::Server(error) => error.sqlstate.starts_with("28"),
            _ => false,
        }
    }
}

pub(super) fn protocol(what: impl Into<String>) -> ReplicationError {
    ReplicationError::Protocol(what.into())
}

/// The error and everything beneath it, in one line: what a status shows.
pub fn one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
