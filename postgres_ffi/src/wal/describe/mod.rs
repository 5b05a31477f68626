//! A WAL record in words: what pg_waldump of the same version prints behind `desc:`.
//!
//! - Every record gets a description: an operation without a name is `UNKNOWN (xx)`, a body that cannot be read says so and why.
//! - Words, order and punctuation are those of the record's own version: 16 rewrote heap and B-tree, 17 added logged parameters.
//! - Times are in UTC. pg_waldump prints local time in the same form, pg_walinspect drops trailing zeroes and writes `+00`.
//! - Block references are not part of it, and neither is what a record does to a page.
//!
//! PG 15, 17, 18: src/backend/access/rmgrdesc. 16: what its server printed for recorded WAL. 14 is taken to print what 15 prints; nothing
//! that it printed was at hand to compare with.

mod names;

mod body;
mod time;

mod brin;
pub(crate) mod btree;
mod files;
mod gin;
mod gist;
pub(crate) mod hash;
mod heap;
mod logical;
mod slru;
mod spgist;
mod standby;
mod xact;
mod xlog;

use std::borrow::Cow;
use std::fmt;

use super::{DecodedRecord, rmgr};
use crate::PgVersion;
use body::Text;

pub use names::operation_name;

/// A record in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Operation: `INSERT+INIT`, `UNKNOWN (f0)`.
    pub operation: Cow<'static, str>,
    /// Numbers of the body, empty for records that have none to tell.
    pub detail: String,
}

impl fmt::Display for Description {
    /// As pg_waldump: the operation, a space, the detail.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.operation, self.detail)
    }
}

/// What pg_waldump of `version` says of the record. The length is bounded by the record's.
pub fn describe(record: &DecodedRecord, version: PgVersion) -> Description {
    let operation = match operation_name(version, record.rmid, record.operation()) {
        Some(name) => Cow::Borrowed(name),
        None => Cow::Owned(format!("UNKNOWN ({:x})", record.operation())),
    };
    let detail = detail(record, version).unwrap_or_else(|error| format!("does not decode: {error}"));
    Description { operation, detail }
}

fn detail(record: &DecodedRecord, version: PgVersion) -> Text {
    match record.rmid {
        rmgr::XLOG => xlog::describe(record, version),
        rmgr::XACT => xact::describe(record, version),
        rmgr::SMGR => files::storage(record, version),
        rmgr::CLOG => slru::clog(record, version),
        rmgr::DBASE => files::database(record, version),
        rmgr::TBLSPC => files::tablespace(record),
        rmgr::MULTIXACT => slru::multixact(record, version),
        rmgr::RELMAP => files::relation_map(record, version),
        rmgr::STANDBY => standby::describe(record, version),
        rmgr::HEAP2 => heap::heap2(record, version),
        rmgr::HEAP => heap::heap(record, version),
        rmgr::BTREE => btree::describe(record, version),
        rmgr::HASH => hash::describe(record, version),
        rmgr::GIN => gin::describe(record),
        rmgr::GIST => gist::describe(record, version),
        rmgr::SEQ => files::sequence(record),
        rmgr::SPGIST => spgist::describe(record, version),
        rmgr::BRIN => brin::describe(record),
        rmgr::COMMIT_TS => slru::commit_ts(record, version),
        rmgr::REPLORIGIN => logical::origin(record),
        rmgr::GENERIC => logical::generic(record),
        rmgr::LOGICALMSG => logical::message(record),
        rmid => Ok(format!("rmid: {rmid}")),
    }
}

#[cfg(test)]
mod tests;
