//! Records that the recorded WAL does not have, made by hand from the structs in PostgreSQL's headers; the texts follow from its formats.
//! Then bodies cut at every byte: they say that they do not decode, and nothing panics.

use bytes::Bytes;

use super::*;
use crate::wal::checks::build::{BlockBuilder, RecordBuilder};
use crate::{ForkNumber, Lsn, RelTag};

const REL: RelTag = RelTag { spc_oid: 1663, db_oid: 5, rel_number: 16384 };

/// Resource manager, operation, main data, data of block 0.
type Parts<'a> = (u8, u8, &'a [u8], &'a [u8]);

fn record(version: PgVersion, (rmid, info, main_data, block_data): Parts<'_>) -> DecodedRecord {
    let block = BlockBuilder {
        block_id: 0,
        rel: REL,
        fork: ForkNumber::Main,
        block_no: 7,
        will_init: false,
        image: None,
        data: block_data.to_vec(),
    };
    let blocks = if block_data.is_empty() { Vec::new() } else { vec![block] };
    let builder = RecordBuilder { rmid, info, blocks, main_data: main_data.to_vec(), ..RecordBuilder::default() };
    let raw = Bytes::from(builder.build(version, Lsn::ZERO));
    DecodedRecord::decode(version, Lsn::new(8), Lsn::new(16), raw).unwrap()
}

fn check(versions: &[PgVersion], parts: Parts<'_>, expected: &str) {
    for version in versions {
        assert_eq!(describe(&record(*version, parts), *version).to_string(), expected, "{version}");
    }
}

const TO_15: &[PgVersion] = &[PgVersion::V14, PgVersion::V15];
const ONLY_16: &[PgVersion] = &[PgVersion::V16];
const FROM_16: &[PgVersion] = &[PgVersion::V16, PgVersion::V17, PgVersion::V18];
const FROM_17: &[PgVersion] = &[PgVersion::V17, PgVersion::V18];
const ALL: &[PgVersion] = &PgVersion::ALL;

/// Numbers of 16, 32 and 64 bits as they stand in a record.
macro_rules! bytes {
    ($($number:expr),*) => { &[$(&$number.to_le_bytes()[..]),*].concat()[..] };
}

#[test]
fn operations_without_a_name_are_unknown() {
    check(ALL, (rmgr::SEQ, 0x70, &[], &[]), "UNKNOWN (70) ");
    check(ALL, (200, 0x10, &[], &[]), "UNKNOWN (10) rmid: 200");
    check(&[PgVersion::V16], (rmgr::XLOG, 0xE0, bytes![1_u32], &[]), "UNKNOWN (e0) ");
    check(FROM_17, (rmgr::XLOG, 0xE0, bytes![1_u32], &[]), "CHECKPOINT_REDO wal_level replica");
    check(ALL, (rmgr::GENERIC, 0x30, &[], &[]), "Generic ");
    check(ALL, (rmgr::CLOG, 0x20, &[], &[]), "UNKNOWN (20) ");
}

#[test]
fn the_logs_own_records() {
    check(ALL, (rmgr::XLOG, 0x20, &[], &[]), "NOOP ");
    check(ALL, (rmgr::XLOG, 0x30, bytes![24576_u32], &[]), "NEXTOID 24576");
    check(ALL, (rmgr::XLOG, 0x50, bytes![0x1_0000_00F8_u64], &[]), "BACKUP_END 1/F8");
    let overwritten = bytes![0x0100_0028_u64, 1_500_000_i64];
    check(
        ALL,
        (rmgr::XLOG, 0xD0, overwritten, &[]),
        "OVERWRITE_CONTRECORD lsn 0/1000028; time 2000-01-01 00:00:01.500000 UTC",
    );
    let end = bytes![0_i64, 2_u32, 1_u32, 2_u32, 0_u32];
    check(
        TO_15,
        (rmgr::XLOG, 0x90, end, &[]),
        "END_OF_RECOVERY tli 2; prev tli 1; time 2000-01-01 00:00:00.000000 UTC",
    );
    check(
        FROM_17,
        (rmgr::XLOG, 0x90, end, &[]),
        "END_OF_RECOVERY tli 2; prev tli 1; time 2000-01-01 00:00:00.000000 UTC; wal_level logical",
    );
}

#[test]
fn truncated_slrus_and_databases() {
    check(TO_15, (rmgr::CLOG, 0x10, bytes![3_u32, 700_u32, 5_u32], &[]), "TRUNCATE page 3; oldestXact 700");
    check(FROM_17, (rmgr::CLOG, 0x10, bytes![3_u64, 700_u32, 5_u32], &[]), "TRUNCATE page 3; oldestXact 700");
    check(FROM_17, (rmgr::COMMIT_TS, 0x10, bytes![3_u64, 700_u32], &[]), "TRUNCATE pageno 3, oldestXid 700");
    let drop = bytes![9_u32, 2_u32, 1663_u32, 1700_u32];
    check(&[PgVersion::V14], (rmgr::DBASE, 0x10, drop, &[]), "DROP dir 1663/9 1700/9");
    check(FROM_16, (rmgr::DBASE, 0x20, drop, &[]), "DROP dir 1663/9 1700/9");
    check(FROM_16, (rmgr::DBASE, 0x10, bytes![9_u32, 1663_u32], &[]), "CREATE_WAL_LOG create dir 1663/9");
}

#[test]
fn paths_name_the_tablespaces_folder() {
    let truncate = bytes![3_u32, 1700_u32, 5_u32, 16384_u32, 7_u32];
    for (version, folder) in [
        (PgVersion::V14, "PG_14_202107181"),
        (PgVersion::V15, "PG_15_202209061"),
        (PgVersion::V16, "PG_16_202307071"),
        (PgVersion::V17, "PG_17_202406281"),
        (PgVersion::V18, "PG_18_202506291"),
    ] {
        let expected = format!("TRUNCATE pg_tblspc/1700/{folder}/5/16384 to 3 blocks flags 7");
        check(&[version], (rmgr::SMGR, 0x20, truncate, &[]), &expected);
    }
    check(ALL, (rmgr::SMGR, 0x10, bytes![1663_u32, 5_u32, 9_u32, 3_u32], &[]), "CREATE base/5/9_init");
    check(ALL, (rmgr::SMGR, 0x10, bytes![1664_u32, 0_u32, 9_u32, 2_u32], &[]), "CREATE global/9_vm");
}

#[test]
fn heap_records() {
    let lock = bytes![700_u32, 9_u16, 0x1F_u8, 1_u8];
    let bits = "IS_MULTI LOCK_ONLY EXCL_LOCK KEYSHR_LOCK KEYS_UPDATED ";
    check(TO_15, (rmgr::HEAP2, 0x60, lock, &[]), &format!("LOCK_UPDATED off 9: xmax 700: flags 0x01 {bits}"));
    check(TO_15, (rmgr::HEAP, 0x60, lock, &[]), &format!("LOCK off 9: xid 700: flags 0x01 {bits}"));
    let bits = "[IS_MULTI, LOCK_ONLY, EXCL_LOCK, KEYSHR_LOCK, KEYS_UPDATED]";
    let text = format!("xmax: 700, off: 9, infobits: {bits}, flags: 0x01");
    check(FROM_16, (rmgr::HEAP2, 0x60, lock, &[]), &format!("LOCK_UPDATED {text}"));
    check(FROM_16, (rmgr::HEAP, 0x10, lock, &[]), &format!("DELETE {text}"));
    check(ALL, (rmgr::HEAP2, 0x00, &[0; 48], &[]), "REWRITE ");

    let truncate = bytes![5_u32, 2_u32, 3_u32, 101_u32, 102_u32];
    check(TO_15, (rmgr::HEAP, 0x30, truncate, &[]), "TRUNCATE cascade restart_seqs nrelids 2 relids 101 102");
    let text = "TRUNCATE flags: [CASCADE, RESTART_SEQS], nrelids: 2, relids: [101, 102]";
    check(FROM_16, (rmgr::HEAP, 0x30, truncate, &[]), text);
}

#[test]
fn pruning_and_freezing_changed_in_16_and_17() {
    let prune = bytes![700_u32, 1_u16, 2_u16, 1_u8];
    let offsets = bytes![1_u16, 9_u16, 4_u16, 5_u16, 6_u16, 7_u16, 8_u16];
    check(TO_15, (rmgr::HEAP2, 0x10, prune, offsets), "PRUNE latestRemovedXid 700 nredirected 1 ndead 2");
    check(
        ONLY_16,
        (rmgr::HEAP2, 0x10, prune, offsets),
        "PRUNE snapshotConflictHorizon: 700, nredirected: 1, ndead: 2, nunused: 3, redirected: [1->9], dead: [4, 5], unused: [6, 7, 8]",
    );

    let plans = bytes![0_u32, 2_u16, 2816_u16, 0_u16, 2_u16, 5_u32, 3_u16, 11008_u16, 0_u16, 1_u16];
    let plan_text = "plans: [{ xmax: 0, infomask: 2816, infomask2: 2, ntuples: 2, offsets: [3, 4] }, \
                     { xmax: 5, infomask: 11008, infomask2: 3, ntuples: 1, offsets: [9] }]";
    let freeze = bytes![700_u32, 2_u16];
    let data = [plans, bytes![3_u16, 4_u16, 9_u16]].concat();
    check(TO_15, (rmgr::HEAP2, 0x30, freeze, &data), "FREEZE_PAGE cutoff xid 700 ntuples 2");
    let text = format!("FREEZE_PAGE snapshotConflictHorizon: 700, nplans: 2, {plan_text}");
    check(ONLY_16, (rmgr::HEAP2, 0x30, freeze, &data), &text);

    let counts_and_items = bytes![1_u16, 1_u16, 9_u16, 2_u16, 4_u16, 5_u16, 1_u16, 6_u16];
    let data = [bytes![2_u16, 0_u16], plans, counts_and_items, bytes![3_u16, 4_u16, 9_u16]].concat();
    let everything = bytes![0_u8, 0xFA_u8, 700_u32];
    let text = format!(
        "snapshotConflictHorizon: 700, isCatalogRel: T, nplans: 2, nredirected: 1, ndead: 2, nunused: 1, {plan_text}, \
         redirected: [1->9], dead: [4, 5], unused: [6]"
    );
    for (operation, name) in [(0x10, "PRUNE_ON_ACCESS"), (0x20, "PRUNE_VACUUM_SCAN"), (0x30, "PRUNE_VACUUM_CLEANUP")] {
        check(FROM_17, (rmgr::HEAP2, operation, everything, &data), &format!("{name} {text}"));
        check(FROM_17, (rmgr::HEAP2, operation, &[0, 0x80], &[]), &format!("{name} , isCatalogRel: F"));
    }
}

#[test]
fn btree_records() {
    let delete = bytes![700_u32, 2_u16, 2_u16, 1_u16];
    let data = bytes![4_u16, 5_u16, 6_u16, 7_u16, 1_u16, 0_u16, 2_u16, 1_u16, 3_u16];
    let lists = "deleted: [4, 5], updated: [{ off: 6, nptids: 1, ptids: [0] }, { off: 7, nptids: 2, ptids: [1, 3] }]";
    check(TO_15, (rmgr::BTREE, 0x70, delete, data), "DELETE latestRemovedXid 700; ndeleted 2; nupdated 2");
    let text = "DELETE snapshotConflictHorizon: 700, ndeleted: 2, nupdated: 2";
    check(ONLY_16, (rmgr::BTREE, 0x70, delete, data), &format!("{text}, {lists}"));
    check(FROM_17, (rmgr::BTREE, 0x70, delete, data), &format!("{text}, isCatalogRel: T, {lists}"));
    check(FROM_17, (rmgr::BTREE, 0x70, delete, &[]), &format!("{text}, isCatalogRel: T"));

    let reuse = bytes![1663_u32, 5_u32, 16384_u32, 3_u32, 0x2_0000_0005_u64, 1_u64];
    check(TO_15, (rmgr::BTREE, 0xD0, reuse, &[]), "REUSE_PAGE rel 1663/5/16384; latestRemovedXid 2:5");
    let text = "REUSE_PAGE rel: 1663/5/16384, snapshotConflictHorizon: 2:5";
    check(ONLY_16, (rmgr::BTREE, 0xD0, reuse, &[]), text);
    check(FROM_17, (rmgr::BTREE, 0xD0, reuse, &[]), &format!("{text}, isCatalogRel: T"));
}

#[test]
fn records_of_other_indexes() {
    let vacuum = (rmgr::HASH, 0xC0, bytes![700_u32, 3_u16, 1_u16], &[][..]);
    check(TO_15, (rmgr::HASH, 0xC0, bytes![700_u32, 3_i32], &[]), "VACUUM_ONE_PAGE ntuples 3, latestRemovedXid 700");
    check(ONLY_16, vacuum, "VACUUM_ONE_PAGE ntuples 3, snapshotConflictHorizon 700");
    check(FROM_17, vacuum, "VACUUM_ONE_PAGE ntuples 3, snapshotConflictHorizon 700, isCatalogRel T");

    let delete = (rmgr::GIST, 0x10, bytes![700_u32, 3_u16, 1_u16], &[][..]);
    check(TO_15, delete, "DELETE delete: latestRemovedXid 700, nitems: 3");
    check(ONLY_16, delete, "DELETE delete: snapshotConflictHorizon 700, nitems: 3");
    check(FROM_17, delete, "DELETE delete: snapshotConflictHorizon 700, nitems: 3, isCatalogRel T");
    let reuse = bytes![1663_u32, 5_u32, 16384_u32, 3_u32, 0x2_0000_0005_u64, 0_u64];
    let reuse = (rmgr::GIST, 0x20, reuse, &[][..]);
    check(TO_15, reuse, "PAGE_REUSE rel 1663/5/16384; blk 3; latestRemovedXid 2:5");
    check(ONLY_16, reuse, "PAGE_REUSE rel 1663/5/16384; blk 3; snapshotConflictHorizon 2:5");
    check(FROM_17, reuse, "PAGE_REUSE rel 1663/5/16384; blk 3; snapshotConflictHorizon 2:5, isCatalogRel F");

    let redirect = (rmgr::SPGIST, 0x80, bytes![2_u16, 4_u16, 700_u32, 1_u32], &[][..]);
    check(TO_15, redirect, "VACUUM_REDIRECT ntoplaceholder: 2, firstplaceholder: 4, newestredirectxid: 700");
    let text = "VACUUM_REDIRECT ntoplaceholder: 2, firstplaceholder: 4, snapshotConflictHorizon: 700";
    check(ONLY_16, redirect, text);
    check(FROM_17, redirect, &format!("{text}, isCatalogRel: T"));

    check(ALL, (rmgr::GIN, 0x50, &[0; 12], &[]), "DELETE_PAGE ");
    let actions = [
        &[5, 0, 0, 1, 1, 2][..],
        &[0, 0, 1, 0, 1, 0, 3, 0, 9, 9, 9, 0], // A posting list of three bytes and one of padding.
        &[2, 4, 2, 0],
        &[0; 12],
        &[3, 3, 0, 0, 1, 0, 1, 0, 0, 0],
        &[4, 9],
    ]
    .concat();
    let text =
        "VACUUM_DATA_LEAF_PAGE  5 segments: 0 (delete) 1 (insert) 2 (add 2 items) 3 (replace) 4 unknown action 9 ???";
    check(ALL, (rmgr::GIN, 0x90, &[], &actions), text);
}

#[test]
fn the_end_of_a_transaction_with_everything() {
    let bits: u32 = 1 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 29 | 1 << 30 | 1 << 31;
    let head = bytes![0_i64, bits, 5_u32, 1663_u32, 2_i32, 101_u32, 102_u32, 1_i32, 1663_u32, 5_u32, 16384_u32];
    let mut messages = 7_i32.to_le_bytes().to_vec();
    for id in [55_i8, -1, -2, -3, -4, -5, -6] {
        messages.extend([id.cast_unsigned(), 0, 0, 0, 5, 0, 0, 0, 77, 0, 0, 0, 0, 0, 0, 0]);
    }
    let body = [head, &messages].concat();
    let text = |relsync: &str| {
        format!(
            "COMMIT 2000-01-01 00:00:00.000000 UTC; rels: base/5/16384; subxacts: 101 102; \
             relcache init file inval dbid 5 tsid 1663; inval msgs: catcache 55 catalog 77 relcache 77 smgr relmap db 5 \
             snapshot 77 {relsync}; apply_feedback; sync"
        )
    };
    let parts = (rmgr::XACT, 0x80, &body[..], &[][..]);
    check(&[PgVersion::V14, PgVersion::V17], parts, &text("unrecognized id -6"));
    check(&[PgVersion::V18], parts, &text("relsync 77"));
}

#[test]
fn running_transactions_and_their_overflow() {
    let body = bytes![1_u32, 2_u32, 1_u32, 800_u32, 790_u32, 799_u32, 790_u32, 791_u32, 792_u32];
    let text = "RUNNING_XACTS nextXid 800 latestCompletedXid 799 oldestRunningXid 790; 1 xacts: 790; subxid ";
    check(TO_15, (rmgr::STANDBY, 0x10, body, &[]), &format!("{text}ovf"));
    check(FROM_16, (rmgr::STANDBY, 0x10, body, &[]), &format!("{text}overflowed; 2 subxacts: 791 792"));
}

#[test]
fn bodies_cut_short_do_not_decode() {
    let versions = PgVersion::ALL;
    for (rmid, info) in (0..=21).flat_map(|rmid| (0..16).map(move |operation| (rmid, operation << 4))) {
        for version in versions {
            let whole = describe(&record(version, (rmid, info, &[1; 80], &[1; 40])), version);
            assert!(!whole.operation.is_empty());
            let empty = describe(&record(version, (rmid, info, &[], &[])), version);
            let says_nothing = empty.detail.is_empty() || empty.detail.starts_with("does not decode: ");
            assert!(says_nothing, "{version} {rmid} {empty}");
        }
    }
    let body = bytes![1_u32, 2_u32, 1_u32, 800_u32, 790_u32, 799_u32, 790_u32];
    for len in 0..body.len() {
        let text = describe(&record(PgVersion::V15, (rmgr::STANDBY, 0x10, &body[..len], &[])), PgVersion::V15).detail;
        assert!(text.starts_with("does not decode: record body "), "{len} {text}");
    }
}
