//! The start of a stock server at any LSN: the bytes that make a pile of pages as of that LSN a cluster.
//!
//! A server begins where `pg_control` says that its last checkpoint stands, and nobody made a checkpoint at that LSN. So one is made up: a
//! shutdown checkpoint exactly there, the first record of a new PostgreSQL timeline, as if a standby had been promoted at that LSN. The server finds
//! that it was not shut down, has nothing to replay, makes unlogged relations from their init forks, and is open.
//!
//! - Every page must be as of that LSN or older: a newer one asks for WAL that does not exist. The caller sees to that.
//! - The record's position is the LSN, or behind the page header if the LSN is a page's end. The history file says the LSN itself.
//! - What stands in front of it in the segment is the old timeline's WAL; where that is gone, records that say nothing ([`filler`]), so that a
//!   reader may begin with the segment.
//!
//! In reading order: records ([`record`]) on pages ([`pages`]), the checkpoint ([`checkpoint`]), what comes before it ([`filler`]), the files
//! beside the WAL ([`control`], [`history`], [`files`], [`origins`],
//! [`tablespaces`]). [`standby`] is another way to start, with nothing made up.

pub mod record;

pub mod pages;

pub mod checkpoint;

pub mod filler;

pub mod control;

pub mod history;

pub mod files;

pub mod origins;

pub mod tablespaces;

pub mod standby;

#[cfg(test)]
mod tests;

pub use checkpoint::{Start, StartError, StartPoint};
pub use filler::Filler;
pub use pages::WalPlace;
