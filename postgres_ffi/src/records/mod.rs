//! Bodies of the records that change more than the blocks they reference.
//!
//! - One module per resource manager (or a few small ones together), in the order of `rmgrlist.h`. Each parser takes the main data of a
//!   record (and its info byte where the layout hangs on it) and gives a value that borrows from it.
//! - Nothing here panics on input, and a count is checked against the bytes that are there before anything is sized by it.
//! - Layouts are those of little-endian 64-bit PostgreSQL 14 to 18; where versions differ, the parser takes a [`crate::PgVersion`].
//! - Deliberately not here: what redo does with pages (`pageserver::redo`), and text for people (`wal::describe`).

pub(crate) mod fields;

pub mod xlog;

pub mod xact;

pub mod smgr;

pub mod slru;

pub mod dbase;

pub mod multixact;

pub mod relmap;

pub mod standby;

pub mod heap;

pub mod replorigin;

pub use fields::{Ids, RecordError, Rels};

/// Bits of `info` that name the operation for resource managers that use all four. PG: xlogrecord.h, XLR_INFO_MASK is the rest.
pub const OPERATION_MASK: u8 = 0xF0;
