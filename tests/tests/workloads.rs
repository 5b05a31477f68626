//! The workloads do what they are for: on every version, in an order of the day, every kind of WAL record that they promise occurs.
//!
//! Method: a server per version; all workloads in random order (the seed is printed), then the server's own count of records
//! by type (`pg_walinspect`, from 15) against the list below.

#![allow(clippy::unwrap_used, reason = "a test; helpers of tests as well")]

use std::collections::BTreeSet;

use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use postgres_ffi::PgVersion;
use tests::workload::{ALL, Outcome, Target};
use tests::{Postgres, Stop, TestDir};

/// Record types that must occur in 15 to 18. PG: the functions `*_identify` in src/backend/access/rmgrdesc.
#[rustfmt::skip]
const RECORD_TYPES: &[&str] = &[
    "XLOG/CHECKPOINT_ONLINE", "XLOG/NEXTOID", "XLOG/SWITCH", "XLOG/RESTORE_POINT", "XLOG/FPI", "Transaction/COMMIT",
    "Transaction/ABORT", "Transaction/PREPARE", "Transaction/COMMIT_PREPARED", "Transaction/ABORT_PREPARED",
    "Transaction/ASSIGNMENT", "Storage/CREATE", "Storage/TRUNCATE", "CLOG/ZEROPAGE", "CLOG/TRUNCATE",
    "Database/CREATE_WAL_LOG", "Database/CREATE_FILE_COPY", "Database/DROP", "Tablespace/CREATE", "Tablespace/DROP",
    "MultiXact/CREATE_ID", "MultiXact/ZERO_OFF_PAGE", "MultiXact/ZERO_MEM_PAGE", "MultiXact/TRUNCATE_ID",
    "RelMap/UPDATE", "Standby/LOCK", "Standby/RUNNING_XACTS", "Standby/INVALIDATIONS", "CommitTs/ZEROPAGE",
    "CommitTs/TRUNCATE", "ReplicationOrigin/SET", "ReplicationOrigin/DROP", "LogicalMessage/MESSAGE", "Heap/INSERT",
    "Heap/INSERT+INIT", "Heap/DELETE", "Heap/UPDATE", "Heap/UPDATE+INIT", "Heap/HOT_UPDATE", "Heap/HEAP_CONFIRM",
    "Heap/LOCK", "Heap/INPLACE", "Heap2/VISIBLE", "Heap2/MULTI_INSERT", "Heap2/MULTI_INSERT+INIT",
    "Heap2/LOCK_UPDATED", "Btree/INSERT_LEAF", "Btree/INSERT_UPPER", "Btree/SPLIT_L", "Btree/SPLIT_R",
    "Btree/INSERT_POST", "Btree/DEDUP", "Btree/DELETE", "Btree/UNLINK_PAGE", "Btree/UNLINK_PAGE_META",
    "Btree/NEWROOT", "Btree/MARK_PAGE_HALFDEAD", "Btree/VACUUM", "Btree/REUSE_PAGE", "Hash/INIT_META_PAGE",
    "Hash/INIT_BITMAP_PAGE", "Hash/INSERT", "Hash/ADD_OVFL_PAGE", "Hash/SPLIT_ALLOCATE_PAGE", "Hash/SPLIT_PAGE",
    "Hash/SPLIT_COMPLETE", "Hash/MOVE_PAGE_CONTENTS", "Hash/SQUEEZE_PAGE", "Hash/DELETE", "Hash/SPLIT_CLEANUP",
    "Hash/UPDATE_META_PAGE", "Hash/VACUUM_ONE_PAGE", "Gin/CREATE_PTREE", "Gin/INSERT", "Gin/SPLIT", "Gin/VACUUM_PAGE",
    "Gin/VACUUM_DATA_LEAF_PAGE", "Gin/DELETE_PAGE", "Gin/UPDATE_META_PAGE", "Gin/INSERT_LISTPAGE",
    "Gin/DELETE_LISTPAGE", "Gist/PAGE_UPDATE", "Gist/DELETE", "Gist/PAGE_REUSE", "Gist/PAGE_SPLIT",
    "Gist/PAGE_DELETE", "SPGist/ADD_LEAF", "SPGist/MOVE_LEAFS", "SPGist/ADD_NODE", "SPGist/SPLIT_TUPLE",
    "SPGist/PICKSPLIT", "SPGist/VACUUM_LEAF", "SPGist/VACUUM_ROOT", "SPGist/VACUUM_REDIRECT", "BRIN/CREATE_INDEX",
    "BRIN/INSERT", "BRIN/UPDATE", "BRIN/SAMEPAGE_UPDATE", "BRIN/REVMAP_EXTEND", "BRIN/DESUMMARIZE", "Sequence/LOG",
    "Generic/Generic",
];

/// Those of 15 and 16: 17 made one kind of record of them.
const RECORD_TYPES_TO_16: &[&str] = &["Heap2/PRUNE", "Heap2/VACUUM", "Heap2/FREEZE_PAGE"];
/// Those from 17 on.
const RECORD_TYPES_FROM_17: &[&str] =
    &["Heap2/PRUNE_ON_ACCESS", "Heap2/PRUNE_VACUUM_SCAN", "Heap2/PRUNE_VACUUM_CLEANUP"];

fn run_all(version: PgVersion) {
    let seed = rand::random::<u64>();
    println!("PostgreSQL {version}, seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let dir = TestDir::new("workloads").unwrap();
    // Its snapshots would keep index entries from being dead just when a workload has made them so.
    let builder = Postgres::builder(version).setting("wal_keep_size", "8GB").setting("autovacuum", "off");
    let mut server = builder.start(&dir).unwrap();
    let start_lsn = server.current_lsn().unwrap();
    let target = Target::new(&server);
    let mut workloads: Vec<_> = ALL.iter().collect();
    workloads.shuffle(&mut rng);
    for workload in workloads {
        match workload.run(&target, rng.random()).unwrap() {
            Outcome::Done => {}
            Outcome::Skipped(why) => println!("{} skipped: {why}", workload.name),
            Outcome::Stopped => panic!("nobody stopped {}", workload.name),
        }
    }
    server.execute("CHECKPOINT").unwrap();
    if version >= PgVersion::V15 {
        check_record_types(&server, &start_lsn.to_string());
    }
    server.stop(Stop::Fast).unwrap();
}

fn check_record_types(server: &Postgres, start_lsn: &str) {
    let mut client = server.connect().unwrap();
    client.batch_execute("CREATE EXTENSION pg_walinspect").unwrap();
    let sql = format!(
        "SELECT \"resource_manager/record_type\" FROM pg_get_wal_stats('{start_lsn}', pg_current_wal_flush_lsn(), true) WHERE count > 0"
    );
    let rows = client.query(&sql, &[]).unwrap();
    let found: BTreeSet<String> = rows.iter().map(|row| row.get(0)).collect();
    let of_version = if server.version() >= PgVersion::V17 { RECORD_TYPES_FROM_17 } else { RECORD_TYPES_TO_16 };
    let missing: Vec<_> = RECORD_TYPES.iter().chain(of_version).filter(|name| !found.contains(**name)).collect();
    assert!(missing.is_empty(), "PostgreSQL {}: no workload made {missing:?}; found {found:?}", server.version());
}

#[test]
fn all_workloads_on_14() {
    run_all(PgVersion::V14);
}

#[test]
fn all_workloads_on_15() {
    run_all(PgVersion::V15);
}

#[test]
fn all_workloads_on_16() {
    run_all(PgVersion::V16);
}

#[test]
fn all_workloads_on_17() {
    run_all(PgVersion::V17);
}

#[test]
fn all_workloads_on_18() {
    run_all(PgVersion::V18);
}
