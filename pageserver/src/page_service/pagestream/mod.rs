//! Page streams: requests and responses within CopyData, version 2 and 3.
//!
//! [`wire`] has the bytes, [`lsn`] what the two LSNs of a request ask for, `serve` the loop.

pub mod lsn;
mod serve;
pub mod wire;

pub(super) use serve::serve;
