//! What tools and tests use to talk to a page server: commands with their rows, page streams with requests in flight.
//!
//! ```no_run
//! use pageserver::client::{Client, ClientConfig, PageStream};
//! use pageserver::page_service::pagestream::wire::Version;
//! # fn main() -> Result<(), pageserver::client::ClientError> {
//! let mut client = Client::connect(&ClientConfig::new("127.0.0.1:6400"))?;
//! for row in &client.query_one("SHOW TIMELINES")?.rows {
//!     println!("{:?}", row.get(0));
//! }
//! let mut pages = PageStream::start(client, Version::V3, None, "main")?;
//! # Ok(())
//! # }
//! ```
//!
//! - Blocking; one thread per client.
//! - Trusts the server no more than the server trusts it: lengths are bounded, and a page stream checks that each answer echoes its question.
//! - No TLS and no passwords yet: the server has neither.

mod connection;
mod copy_out;
mod error;
mod stream;

pub use connection::{CancelToken, Client, ClientConfig, ImportProgress, ResultSet, Row, quote};
pub use copy_out::CopyOut;
pub use error::{ClientError, ServerError};
pub use stream::{PageStream, ReadAt};
