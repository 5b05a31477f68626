//! What is not understood is an error, in every version; hostile bodies never panic.

use postgres_ffi::records::{smgr, xact, xlog};
use postgres_ffi::wal::{record, rmgr};
use postgres_ffi::{Lsn, PgVersion};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::rig::*;
use crate::ingest::IngestError;
use crate::store::Batch;

fn refused(version: PgVersion, rec: &Rec) -> IngestError {
    Rig::new(version).try_ingest(rec).expect_err("refused")
}

#[test]
fn unknown_operations() {
    for version in PgVersion::ALL {
        for (rmid, info) in [
            (rmgr::XLOG, 0xC0),
            (rmgr::XLOG, 0xF0),
            (rmgr::XACT, 0x70),
            (rmgr::SMGR, 0x00),
            (rmgr::SMGR, 0x30),
            (rmgr::CLOG, 0x20),
            (rmgr::DBASE, 0x30),
            (rmgr::TBLSPC, 0x20),
            (rmgr::MULTIXACT, 0x40),
            (rmgr::RELMAP, 0x10),
            (rmgr::STANDBY, 0x30),
            (rmgr::COMMIT_TS, 0x20),
            (rmgr::REPLORIGIN, 0x20),
            (rmgr::LOGICALMSG, 0x10),
        ] {
            let error = refused(version, &rec(rmid, info, 0, Body::default().u64(0).u64(0)));
            assert!(matches!(error, IngestError::UnknownOperation { .. }), "{version} {rmid} {info:#x}: {error}");
        }
    }
    let redo = rec(rmgr::XLOG, xlog::operation::CHECKPOINT_REDO, 0, Body::default().u32(1));
    assert!(matches!(refused(PgVersion::V16, &redo), IngestError::UnknownOperation { .. }));
    assert!(Rig::new(PgVersion::V17).try_ingest(&redo).is_ok());
}

#[test]
fn resource_managers() {
    let touch = |rmid| rec(rmid, 0, 0, Body::default()).block(block(0, 0).init());
    for version in PgVersion::ALL {
        let error = refused(version, &touch(22));
        assert!(matches!(error, IngestError::UnknownResourceManager { rmid: 22, .. }), "{error}");
    }
    assert!(matches!(refused(PgVersion::V14, &touch(128)), IngestError::UnknownResourceManager { .. }));
    let mut rig = Rig::new(PgVersion::V15);
    assert_eq!(rig.shown(&touch(128)).last().unwrap(), "block 1663/5/16384 main 0 InitDelta record");
    // An extension that says that it changes files in ways nobody can know.
    let error = refused(PgVersion::V15, &rec(128, record::SPECIAL_REL_UPDATE, 0, Body::default()));
    assert!(matches!(error, IngestError::UnknownOperation { .. }));
}

#[test]
fn blocks_where_none_can_be() {
    for (rmid, info) in
        [(rmgr::XACT, 0), (rmgr::XLOG, xlog::operation::NEXTOID), (rmgr::SMGR, smgr::CREATE), (rmgr::LOGICALMSG, 0)]
    {
        let error = refused(PgVersion::V15, &rec(rmid, info, 1000, Body::default().u64(1)).block(block(0, 0)));
        assert!(matches!(error, IngestError::UnexpectedBlocks { .. }), "{error}");
    }
}

#[test]
fn what_cannot_be() {
    let minimal = Body::default().u32(100).u32(8).u32(10).u32(0).u32(64).u32(0).u8(0).u8(0);
    let error = refused(PgVersion::V15, &rec(rmgr::XLOG, xlog::operation::PARAMETER_CHANGE, 0, minimal));
    assert!(matches!(error, IngestError::WalLevelMinimal { wal_level: 0, .. }));
    let error = refused(PgVersion::V15, &rec(rmgr::XACT, xact::COMMIT, 0, Body::default().u64(1)));
    assert!(matches!(error, IngestError::Body { .. }));
    let error = refused(PgVersion::V15, &rec(rmgr::XACT, xact::COMMIT, 1000, Body::default().u32(1)));
    assert!(matches!(error, IngestError::Body { record_start_lsn, .. } if record_start_lsn == START_LSN));
    let filler = rec(rmgr::XLOG, xlog::operation::NOOP, 0, Body::default().u64(0));
    assert!(matches!(refused(PgVersion::V15, &filler), IngestError::Filler { .. }));
    let far = rec(rmgr::BTREE, 0, 0, Body::default()).block(block(0, u32::MAX - 1));
    assert!(matches!(refused(PgVersion::V15, &far), IngestError::GapTooLarge { .. }));
    let same = rec(rmgr::DBASE, 0, 0, Body::default().u32(9).u32(1).u32(9).u32(1));
    assert!(matches!(refused(PgVersion::V15, &same), IngestError::Body { .. }));
}

#[test]
fn a_record_a_second_time() {
    let mut rig = Rig::new(PgVersion::V15);
    let raw = rec(rmgr::XLOG, xlog::operation::NOOP, 0, Body::default()).raw(PgVersion::V15);
    let record = postgres_ffi::wal::DecodedRecord::decode(PgVersion::V15, Lsn::new(8), START_LSN, raw).unwrap();
    let error = rig.ingest.ingest_record(&record, &mut Batch::new(), &rig.timeline).unwrap_err();
    assert!(matches!(error, IngestError::OutOfOrder { .. }));
}

#[test]
fn hostile_bodies_never_panic() {
    let mut rng = SmallRng::seed_from_u64(7);
    let (mut taken, mut refused) = (0, 0);
    for round in 0..20_000 {
        let version = PgVersion::ALL[round % PgVersion::ALL.len()];
        let len = rng.random_range(0..90);
        // Small numbers, so that counts and ids are sometimes right.
        let mut byte = || {
            let highest = if rng.random_bool(0.9) { 8 } else { 255 };
            if rng.random_bool(0.6) { 0 } else { rng.random_range(0..=highest) }
        };
        let main: Vec<u8> = (0..len).map(|_| byte()).collect();
        let mut hostile =
            rec(rng.random_range(0..22), rng.random::<u8>() & 0xF0, rng.random_range(0..2000), Body(main));
        for id in 0..rng.random_range(0..3) {
            let fork = postgres_ffi::ForkNumber::ALL[rng.random_range(0..4)];
            hostile = hostile.block(block(id, rng.random_range(0..50)).fork(fork));
        }
        match Rig::new(version).try_ingest(&hostile) {
            Ok(_) => taken += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(taken > 1_000 && refused > 1_000, "taken {taken}, refused {refused}");
}
