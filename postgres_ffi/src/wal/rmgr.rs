//! Resource managers: who a record belongs to.
//!
//! The built-in numbers are the same in versions 14 to 18. PG: src/include/access/rmgrlist.h, src/include/access/rmgr.h.

use crate::PgVersion;

/// Pages of the log itself, checkpoints, full-page images.
pub const XLOG: u8 = 0;
/// Commits and aborts.
pub const XACT: u8 = 1;
/// Relation files: create, truncate.
pub const SMGR: u8 = 2;
/// Commit status pages.
pub const CLOG: u8 = 3;
/// Databases: create, drop.
pub const DBASE: u8 = 4;
/// Tablespaces: create, drop.
pub const TBLSPC: u8 = 5;
/// Multixacts.
pub const MULTIXACT: u8 = 6;
/// Relation maps.
pub const RELMAP: u8 = 7;
/// Locks and running transactions, for standbys.
pub const STANDBY: u8 = 8;
/// Heap, second set of operations.
pub const HEAP2: u8 = 9;
/// Heap.
pub const HEAP: u8 = 10;
/// B-tree.
pub const BTREE: u8 = 11;
/// Hash index.
pub const HASH: u8 = 12;
/// GIN.
pub const GIN: u8 = 13;
/// GiST.
pub const GIST: u8 = 14;
/// Sequences.
pub const SEQ: u8 = 15;
/// SP-GiST.
pub const SPGIST: u8 = 16;
/// BRIN.
pub const BRIN: u8 = 17;
/// Commit timestamps.
pub const COMMIT_TS: u8 = 18;
/// Replication origins.
pub const REPLORIGIN: u8 = 19;
/// Generic records of extensions: byte differences of pages.
pub const GENERIC: u8 = 20;
/// Logical decoding messages.
pub const LOGICALMSG: u8 = 21;

/// Names as pg_waldump prints them; the index is the number.
pub const BUILTIN_NAMES: [&str; 22] = [
    "XLOG",
    "Transaction",
    "Storage",
    "CLOG",
    "Database",
    "Tablespace",
    "MultiXact",
    "RelMap",
    "Standby",
    "Heap2",
    "Heap",
    "Btree",
    "Hash",
    "Gin",
    "Gist",
    "Sequence",
    "SPGist",
    "BRIN",
    "CommitTs",
    "ReplicationOrigin",
    "Generic",
    "LogicalMessage",
];

/// Numbers from here to 255 belong to extensions, from version 15. PG 15: src/include/access/rmgr.h, RM_MIN_CUSTOM_ID.
pub const MIN_CUSTOM_ID: u8 = 128;

/// The name of a built-in resource manager; `None` for those of extensions and for numbers that nobody has.
pub fn builtin_name(rmid: u8) -> Option<&'static str> {
    BUILTIN_NAMES.get(usize::from(rmid)).copied()
}

/// True when a record of `version` may carry this number. PG: RmgrIdIsValid (14: at most RM_MAX_ID).
pub fn is_valid(version: PgVersion, rmid: u8) -> bool {
    usize::from(rmid) < BUILTIN_NAMES.len() || (version >= PgVersion::V15 && rmid >= MIN_CUSTOM_ID)
}

const _: () = assert!(BUILTIN_NAMES.len() == LOGICALMSG as usize + 1);
