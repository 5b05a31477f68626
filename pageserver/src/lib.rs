//! Versioned page storage for stock PostgreSQL: a primary's WAL in, any page as of any LSN out.
//!
//! `docs/architecture.md` has the picture, and says who may use whom.

pub mod basebackup;
pub mod client;
pub mod config;
pub mod delta;
pub mod failpoint;
pub mod import;
pub mod ingest;
pub mod mend;
pub mod page_service;
pub mod pid_file;
pub mod redo;
pub mod redo_check;
pub mod replication;
mod sealed_file;
pub mod seq_wait;
pub mod store;
pub mod timeline;
pub mod verify;
pub mod wal;
pub mod wal_receiver;
pub mod wall_time;
