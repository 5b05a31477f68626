//! WAL that real servers of versions 14 to 18 wrote, read and compared with what PostgreSQL's own tools say of it.
//!
//! What is recorded and how: `tests/data/wal/README.md`. These tests need no server.

mod agree;
mod cut;
mod describe;
mod fixture;
mod mutate;
