//! The libpq server: commands for people, page streams for computes. `README.md` has the way of a request, `docs/protocol.md` every byte.
//!
//! - A thread per connection; a slow or hostile client harms only itself: frames, statements, rows in flight and time are bounded.
//! - No input makes it panic or allocate without a bound (fuzz targets and property tests over [`fuzzing`]).
//! - Knows nothing of how pages are stored: [`backend`] is all it needs.
//!
//! In reading order: what it serves ([`backend`], [`timeline_change`], [`lease`], [`gc`]), bytes in ([`frame`], [`startup`], [`frontend`]), bytes out ([`message`], [`error`]),
//! the socket (`transport`), threads ([`server`]), one client (`connection`, `extended`), [`command`]s, [`pagestream`]s, [`basebackup`]s.

pub mod backend;
pub mod gc;
pub mod lease;
mod repository_backend;
pub mod size;
pub mod timeline_change;

pub mod error;
pub mod frame;
pub mod frontend;
pub mod message;
pub mod startup;

pub mod server;
mod transport;

mod connection;
mod extended;

pub mod basebackup;
pub mod command;
mod copy_out;
pub mod pagestream;
mod wal_file;

pub mod fuzzing;

pub use server::{PageService, PageServiceConfig};

#[cfg(test)]
mod tests;
