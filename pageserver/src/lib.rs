//! Versioned page storage for stock PostgreSQL: a primary's WAL in, any page as of any LSN out.
//!
//! In stack order; a module uses those above it, never those below. `docs/architecture.md` has the picture.

pub mod config;
pub mod pid_file;
pub mod seq_wait;
pub mod store;
pub mod delta;
pub mod redo;
pub mod timeline;
pub mod ingest;
pub mod wal;
pub mod replication;
pub mod wal_receiver;
pub mod import;
pub mod page_service;
pub mod client;
