//! Why a call on a page server failed.

use std::io;

use crate::page_service::frame::FrameError;
use crate::page_service::pagestream::wire::WireError;

/// An ErrorResponse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{severity}: {message} (SQLSTATE {sqlstate})")]
pub struct ServerError {
    /// `ERROR`: the command failed. `FATAL`: the connection is gone, too.
    pub severity: String,
    /// Five characters.
    pub sqlstate: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// Why a call failed. After anything but [`ClientError::Server`] (without FATAL) and [`ClientError::Request`] the connection is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address names no host.
    #[error("no such address. address=`{address}`")]
    Address {
        /// As given.
        address: String,
    },
    /// The socket failed, or the server closed it.
    #[error("connection to the page server failed")]
    Io(#[from] io::Error),
    /// The server refused.
    #[error(transparent)]
    Server(ServerError),
    /// The server answered one request of a page stream with an error; the stream goes on.
    #[error("page request failed: {text}")]
    Request {
        /// The server's text.
        text: String,
    },
    /// The server wants a kind of authentication that we do not have.
    #[error("the server asks for authentication that is not supported. method=`{method}`")]
    Authentication {
        /// Number of the method. PG 15: src/include/libpq/pqcomm.h, AUTH_REQ_*.
        method: u32,
    },
    /// A message that cannot be.
    #[error("the server sent a message that cannot be")]
    Frame(#[from] FrameError),
    /// A message of a page stream that cannot be.
    #[error("the server sent a page stream message that cannot be")]
    Wire(#[from] WireError),
    /// A message that does not belong here.
    #[error("unexpected message from the server. type=`{}`, while=`{doing}`", tag.escape_ascii())]
    Unexpected {
        /// Its type.
        tag: u8,
        /// What we were waiting for.
        doing: &'static str,
    },
    /// The answer to another question: the stream cannot be trusted any more.
    #[error("the server answered another request than the one that is next. expected=`{expected}`, got=`{got}`")]
    Mismatch {
        /// The request that is next.
        expected: String,
        /// What came.
        got: String,
    },
    /// A result that is not of the form that the command gives.
    #[error("the result has another form than expected. command=`{command}`")]
    Result {
        /// The command, without its arguments.
        command: &'static str,
    },
}
