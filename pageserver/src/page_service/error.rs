//! Errors as the wire has them: SQLSTATE, message, hint; and the reasons why a connection ends.

use std::io;

use super::backend::{BackendError, BackendErrorKind};

/// The SQLSTATEs that we send. PG 15: src/backend/utils/errcodes.txt.
pub mod sqlstate {
    /// protocol_violation
    pub const PROTOCOL_VIOLATION: &str = "08P01";
    /// connection_failure
    pub const CONNECTION_FAILURE: &str = "08006";
    /// feature_not_supported
    pub const FEATURE_NOT_SUPPORTED: &str = "0A000";
    /// invalid_parameter_value
    pub const INVALID_PARAMETER_VALUE: &str = "22023";
    /// character_not_in_repertoire
    pub const CHARACTER_NOT_IN_REPERTOIRE: &str = "22021";
    /// invalid_sql_statement_name
    pub const INVALID_SQL_STATEMENT_NAME: &str = "26000";
    /// invalid_authorization_specification
    pub const INVALID_AUTHORIZATION: &str = "28000";
    /// invalid_cursor_name
    pub const INVALID_CURSOR_NAME: &str = "34000";
    /// syntax_error
    pub const SYNTAX_ERROR: &str = "42601";
    /// undefined_file
    pub const UNDEFINED_FILE: &str = "58P01";
    /// undefined_object
    pub const UNDEFINED_OBJECT: &str = "42704";
    /// duplicate_prepared_statement
    pub const DUPLICATE_PREPARED_STATEMENT: &str = "42P05";
    /// too_many_connections
    pub const TOO_MANY_CONNECTIONS: &str = "53300";
    /// configuration_limit_exceeded
    pub const CONFIGURATION_LIMIT_EXCEEDED: &str = "53400";
    /// object_not_in_prerequisite_state
    pub const OBJECT_NOT_IN_PREREQUISITE_STATE: &str = "55000";
    /// query_canceled
    pub const QUERY_CANCELED: &str = "57014";
    /// admin_shutdown
    pub const ADMIN_SHUTDOWN: &str = "57P01";
    /// idle_session_timeout
    pub const IDLE_SESSION_TIMEOUT: &str = "57P05";
    /// internal_error
    pub const INTERNAL_ERROR: &str = "XX000";
    /// data_corrupted
    pub const DATA_CORRUPTED: &str = "XX001";
}

/// An ErrorResponse in the making.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} (SQLSTATE {sqlstate})")]
pub struct PgError {
    /// One of [`sqlstate`].
    pub sqlstate: &'static str,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl PgError {
    /// An error without a hint.
    pub fn new(sqlstate: &'static str, message: impl Into<String>) -> Self {
        PgError { sqlstate, message: message.into(), hint: None }
    }

    /// The same with a hint.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl From<BackendError> for PgError {
    fn from(error: BackendError) -> Self {
        use BackendErrorKind as Kind;
        let sqlstate = match error.kind {
            Kind::NotFound => sqlstate::UNDEFINED_OBJECT,
            Kind::FileMissing => sqlstate::UNDEFINED_FILE,
            Kind::NotYet => sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE,
            Kind::InvalidRequest => sqlstate::INVALID_PARAMETER_VALUE,
            Kind::Corrupt => sqlstate::DATA_CORRUPTED,
            Kind::Unavailable => sqlstate::CONNECTION_FAILURE,
            Kind::ShuttingDown => sqlstate::ADMIN_SHUTDOWN,
            Kind::Cancelled => sqlstate::QUERY_CANCELED,
            Kind::Internal => sqlstate::INTERNAL_ERROR,
        };
        PgError::new(sqlstate, error.message)
    }
}

/// Why a connection ends.
#[derive(Debug)]
pub enum End {
    /// The client said goodbye, or closed between two messages.
    Client,
    /// The client closed in the middle of a message, or the socket failed. Nobody is there to be told.
    Broken(io::Error),
    /// FATAL: tell the client, then close.
    Fatal(PgError),
}

impl End {
    /// The server is shutting down. PG 15: src/backend/tcop/postgres.c, ProcessInterrupts.
    pub fn shutdown() -> Self {
        let error = PgError::new(sqlstate::ADMIN_SHUTDOWN, "shutdown"); // Clients of the reference system know this word.
        End::Fatal(error.with_hint("The page server is going down. Connect again once it is back."))
    }

    /// The client broke the protocol.
    pub fn protocol(message: impl Into<String>) -> Self {
        End::Fatal(PgError::new(sqlstate::PROTOCOL_VIOLATION, message))
    }
}

/// Why a command did not complete.
#[derive(Debug)]
pub enum Failure {
    /// ERROR: the command fails, the connection goes on.
    Error(PgError),
    /// The connection ends.
    End(End),
}

impl From<PgError> for Failure {
    fn from(error: PgError) -> Self {
        Failure::Error(error)
    }
}

impl From<End> for Failure {
    fn from(end: End) -> Self {
        Failure::End(end)
    }
}

impl From<BackendError> for Failure {
    fn from(error: BackendError) -> Self {
        match error.kind {
            BackendErrorKind::ShuttingDown => Failure::End(End::shutdown()),
            _ => Failure::Error(error.into()),
        }
    }
}
