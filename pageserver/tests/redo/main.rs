//! Redo against real PostgreSQL servers.
//!
//! Method: a cluster is made with `initdb` and filled in single-user mode (no port, no client); its WAL is decoded as the
//! page server decodes it, cut down per block as the store holds it, and given to the engine; what comes back must be the
//! page that PostgreSQL itself has.

mod cluster;
mod redo_engine;
mod redo_pool;
