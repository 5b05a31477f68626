//! Redo against real PostgreSQL servers.
//!
//! Method: a cluster is made with `initdb` and filled in single-user mode (no port, no client); its WAL is decoded as the
//! page server decodes it, cut down per block as the store holds it, and given to the engine; what comes back must be the
//! page that PostgreSQL itself has.

#![allow(clippy::unwrap_used)] // In a test, what goes wrong while it is set up is a failure of the test.

mod changed_cases;
mod cluster;
mod redo_consistency;
mod redo_engine;
mod redo_pool;
