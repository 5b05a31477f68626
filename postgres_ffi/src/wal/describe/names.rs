//! Names of operations, as pg_waldump prints them.
//!
//! PG 15, 17, 18: src/backend/access/rmgrdesc, the functions `*_identify`. 14 has fewer Database operations, 16 the Heap2 operations of 15.

use crate::PgVersion;
use crate::wal::rmgr;

/// The bit that says "on a new page" for some operations. PG: XLOG_HEAP_INIT_PAGE, XLOG_BRIN_INIT_PAGE.
const INIT_PAGE: u8 = 0x80;

type Names = &'static [(u8, &'static str)];

const XLOG: Names = &[
    (0x00, "CHECKPOINT_SHUTDOWN"),
    (0x10, "CHECKPOINT_ONLINE"),
    (0x20, "NOOP"),
    (0x30, "NEXTOID"),
    (0x40, "SWITCH"),
    (0x50, "BACKUP_END"),
    (0x60, "PARAMETER_CHANGE"),
    (0x70, "RESTORE_POINT"),
    (0x80, "FPW_CHANGE"),
    (0x90, "END_OF_RECOVERY"),
    (0xA0, "FPI_FOR_HINT"),
    (0xB0, "FPI"),
    (0xD0, "OVERWRITE_CONTRECORD"),
];
const XLOG_FROM_17: Names = &[(0xE0, "CHECKPOINT_REDO")];
const XACT: Names = &[
    (0x00, "COMMIT"),
    (0x10, "PREPARE"),
    (0x20, "ABORT"),
    (0x30, "COMMIT_PREPARED"),
    (0x40, "ABORT_PREPARED"),
    (0x50, "ASSIGNMENT"),
    (0x60, "INVALIDATION"),
];
const SMGR: Names = &[(0x10, "CREATE"), (0x20, "TRUNCATE")];
const SLRU: Names = &[(0x00, "ZEROPAGE"), (0x10, "TRUNCATE")];
const DBASE_14: Names = &[(0x00, "CREATE"), (0x10, "DROP")];
const DBASE: Names = &[(0x00, "CREATE_FILE_COPY"), (0x10, "CREATE_WAL_LOG"), (0x20, "DROP")];
const TBLSPC: Names = &[(0x00, "CREATE"), (0x10, "DROP")];
const MULTIXACT: Names =
    &[(0x00, "ZERO_OFF_PAGE"), (0x10, "ZERO_MEM_PAGE"), (0x20, "CREATE_ID"), (0x30, "TRUNCATE_ID")];
const RELMAP: Names = &[(0x00, "UPDATE")];
const STANDBY: Names = &[(0x00, "LOCK"), (0x10, "RUNNING_XACTS"), (0x20, "INVALIDATIONS")];
const HEAP2_TO_16: Names = &[(0x10, "PRUNE"), (0x20, "VACUUM"), (0x30, "FREEZE_PAGE")];
const HEAP2_FROM_17: Names = &[(0x10, "PRUNE_ON_ACCESS"), (0x20, "PRUNE_VACUUM_SCAN"), (0x30, "PRUNE_VACUUM_CLEANUP")];
const HEAP2: Names = &[
    (0x00, "REWRITE"),
    (0x40, "VISIBLE"),
    (0x50, "MULTI_INSERT"),
    (0xD0, "MULTI_INSERT+INIT"),
    (0x60, "LOCK_UPDATED"),
    (0x70, "NEW_CID"),
];
const HEAP: Names = &[
    (0x00, "INSERT"),
    (INIT_PAGE, "INSERT+INIT"),
    (0x10, "DELETE"),
    (0x20, "UPDATE"),
    (0x20 | INIT_PAGE, "UPDATE+INIT"),
    (0x30, "TRUNCATE"),
    (0x40, "HOT_UPDATE"),
    (0x40 | INIT_PAGE, "HOT_UPDATE+INIT"),
    (0x50, "HEAP_CONFIRM"),
    (0x60, "LOCK"),
    (0x70, "INPLACE"),
];
const BTREE: Names = &[
    (0x00, "INSERT_LEAF"),
    (0x10, "INSERT_UPPER"),
    (0x20, "INSERT_META"),
    (0x30, "SPLIT_L"),
    (0x40, "SPLIT_R"),
    (0x50, "INSERT_POST"),
    (0x60, "DEDUP"),
    (0x70, "DELETE"),
    (0x80, "UNLINK_PAGE"),
    (0x90, "UNLINK_PAGE_META"),
    (0xA0, "NEWROOT"),
    (0xB0, "MARK_PAGE_HALFDEAD"),
    (0xC0, "VACUUM"),
    (0xD0, "REUSE_PAGE"),
    (0xE0, "META_CLEANUP"),
];
const HASH: Names = &[
    (0x00, "INIT_META_PAGE"),
    (0x10, "INIT_BITMAP_PAGE"),
    (0x20, "INSERT"),
    (0x30, "ADD_OVFL_PAGE"),
    (0x40, "SPLIT_ALLOCATE_PAGE"),
    (0x50, "SPLIT_PAGE"),
    (0x60, "SPLIT_COMPLETE"),
    (0x70, "MOVE_PAGE_CONTENTS"),
    (0x80, "SQUEEZE_PAGE"),
    (0x90, "DELETE"),
    (0xA0, "SPLIT_CLEANUP"),
    (0xB0, "UPDATE_META_PAGE"),
    (0xC0, "VACUUM_ONE_PAGE"),
];
const GIN: Names = &[
    (0x10, "CREATE_PTREE"),
    (0x20, "INSERT"),
    (0x30, "SPLIT"),
    (0x40, "VACUUM_PAGE"),
    (0x50, "DELETE_PAGE"),
    (0x60, "UPDATE_META_PAGE"),
    (0x70, "INSERT_LISTPAGE"),
    (0x80, "DELETE_LISTPAGE"),
    (0x90, "VACUUM_DATA_LEAF_PAGE"),
];
const GIST: Names = &[
    (0x00, "PAGE_UPDATE"),
    (0x10, "DELETE"),
    (0x20, "PAGE_REUSE"),
    (0x30, "PAGE_SPLIT"),
    (0x60, "PAGE_DELETE"),
    (0x70, "ASSIGN_LSN"),
];
const SEQ: Names = &[(0x00, "LOG")];
const SPGIST: Names = &[
    (0x10, "ADD_LEAF"),
    (0x20, "MOVE_LEAFS"),
    (0x30, "ADD_NODE"),
    (0x40, "SPLIT_TUPLE"),
    (0x50, "PICKSPLIT"),
    (0x60, "VACUUM_LEAF"),
    (0x70, "VACUUM_ROOT"),
    (0x80, "VACUUM_REDIRECT"),
];
const BRIN: Names = &[
    (0x00, "CREATE_INDEX"),
    (0x10, "INSERT"),
    (0x10 | INIT_PAGE, "INSERT+INIT"),
    (0x20, "UPDATE"),
    (0x20 | INIT_PAGE, "UPDATE+INIT"),
    (0x30, "SAMEPAGE_UPDATE"),
    (0x40, "REVMAP_EXTEND"),
    (0x50, "DESUMMARIZE"),
];
const REPLORIGIN: Names = &[(0x00, "SET"), (0x10, "DROP")];
const LOGICALMSG: Names = &[(0x00, "MESSAGE")];

/// The name of a record's operation; `operation` is the upper half of `info`. `None` when that version has no such operation.
pub fn operation_name(version: PgVersion, rmid: u8, operation: u8) -> Option<&'static str> {
    let operation = match rmid {
        // A commit or abort with a body that says what it has: the bit is no part of the operation. PG: xact.h, XLOG_XACT_OPMASK.
        rmgr::XACT => operation & 0x70,
        // It has no operations, so no number is wrong.
        rmgr::GENERIC => return Some("Generic"),
        _ => operation,
    };
    let names = [names(rmid), names_of_version(version, rmid)];
    names.into_iter().flatten().find(|(number, _)| *number == operation).map(|(_, name)| *name)
}

/// The operations that are the same in all versions.
fn names(rmid: u8) -> Names {
    match rmid {
        rmgr::XLOG => XLOG,
        rmgr::XACT => XACT,
        rmgr::SMGR => SMGR,
        rmgr::CLOG | rmgr::COMMIT_TS => SLRU,
        rmgr::TBLSPC => TBLSPC,
        rmgr::MULTIXACT => MULTIXACT,
        rmgr::RELMAP => RELMAP,
        rmgr::STANDBY => STANDBY,
        rmgr::HEAP2 => HEAP2,
        rmgr::HEAP => HEAP,
        rmgr::BTREE => BTREE,
        rmgr::HASH => HASH,
        rmgr::GIN => GIN,
        rmgr::GIST => GIST,
        rmgr::SEQ => SEQ,
        rmgr::SPGIST => SPGIST,
        rmgr::BRIN => BRIN,
        rmgr::REPLORIGIN => REPLORIGIN,
        rmgr::LOGICALMSG => LOGICALMSG,
        _ => &[],
    }
}

/// Those that came, went or got other numbers.
fn names_of_version(version: PgVersion, rmid: u8) -> Names {
    match rmid {
        rmgr::XLOG if version >= PgVersion::V17 => XLOG_FROM_17,
        rmgr::DBASE if version < PgVersion::V15 => DBASE_14,
        rmgr::DBASE => DBASE,
        rmgr::HEAP2 if version < PgVersion::V17 => HEAP2_TO_16,
        rmgr::HEAP2 => HEAP2_FROM_17,
        _ => &[],
    }
}
