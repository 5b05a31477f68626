//! PostgreSQL's formats, versions 14 to 18, as plain functions over bytes.
//!
//! - Never does I/O, starts a thread or reads a clock: what comes in is bytes, what goes out is values or bytes.
//! - Never panics on input: whatever is read from WAL or a file is checked and refused with a typed error.
//! - PostgreSQL's "0 means none" becomes `Option` here and nowhere else.
//!
//! In reading order: addresses ([`lsn`], [`rel`], [`version`]), pages ([`page`]), the log ([`wal`], [`records`]),
//! files ([`control_file`], [`checkpoint`], [`relation_map`], [`slru`], [`authid`]), the start of a server at any LSN ([`start`]), redo of single pages ([`redo`]),
//! what may differ ([`mask`]), what a person reads ([`inspect`]).

pub mod lsn;
pub mod rel;
pub mod version;

pub mod page;

pub mod wal;

pub mod records;

pub mod checkpoint;
pub mod control_file;
pub mod relation_map;
pub mod slru;

pub mod authid;

pub mod start;

pub mod redo;

pub mod mask;

pub mod inspect;

pub use lsn::Lsn;
pub use page::BLCKSZ;
pub use rel::{BlockNumber, ForkNumber, Oid, RelTag, SlruKind};
pub use version::PgVersion;

/// Transaction id as it stands in tuples and WAL, 32 bits, modulo arithmetic. PG: src/include/c.h, TransactionId.
pub type TransactionId = u32;
/// Multixact id, 32 bits. PG: src/include/c.h, MultiXactId.
pub type MultiXactId = u32;
/// Position in the multixact members area. PG: src/include/c.h, MultiXactOffset (32 bits up to 18).
pub type MultiXactOffset = u32;
/// PostgreSQL timeline id (the number in WAL file names), not our 128-bit timeline.
pub type TimeLineId = u32;
/// Microseconds since 2000-01-01 00:00 UTC. PG: src/include/datatype/timestamp.h, TimestampTz.
pub type TimestampTz = i64;
