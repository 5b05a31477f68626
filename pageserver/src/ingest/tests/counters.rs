//! Checkpoint data: when it is put and what it says.

use keyenc::{Key, Kind, Object};
use postgres_ffi::PgVersion;
use postgres_ffi::checkpoint::Checkpoint;
use postgres_ffi::records::{standby, xact, xlog};
use postgres_ffi::wal::rmgr;

use super::rig::*;

/// The checkpoint data that this record put.
fn put(rig: &mut Rig, rec: &Rec) -> Option<Checkpoint> {
    let puts = rig.ingest_all(rec);
    let value = puts.iter().find(|(object, _, _)| *object == Object::Checkpoint).map(|(_, _, value)| value.clone());
    value.map(|value| Checkpoint::decode(rig.version, &value).unwrap())
}

fn commit(xid: u32) -> Rec {
    rec(rmgr::XACT, xact::COMMIT, xid, Body::default().u64(1))
}

#[test]
fn next_xid_is_stored_in_steps() {
    let mut rig = Rig::new(PgVersion::V15);
    assert_eq!(put(&mut rig, &commit(999)), None);
    assert_eq!(put(&mut rig, &commit(1000)).unwrap().next_xid, 1024);
    assert_eq!(put(&mut rig, &commit(1023)), None);
    assert_eq!(rig.ingest.checkpoint().next_xid, 1024);
    assert_eq!(put(&mut rig, &commit(1024)).unwrap().next_xid, 2048);
    assert_eq!(put(&mut rig, &commit(5000)).unwrap().next_xid, 5120);
    let (lsn, timeline) = (rig.lsn(), rig.timeline);
    let mut rig = Rig::over(PgVersion::V15, timeline, lsn);
    assert_eq!(put(&mut rig, &commit(5119)), None);
    assert_eq!(put(&mut rig, &commit(5120)).unwrap().next_xid, 6144);
}

#[test]
fn a_record_with_an_xid_of_any_kind_counts() {
    let mut rig = Rig::new(PgVersion::V15);
    let insert = rec(rmgr::BTREE, 0, 3000, Body::default().u16(1)).block(block(0, 0).init());
    assert_eq!(put(&mut rig, &insert).unwrap().next_xid, 3072);
    let running = Body::default().u32(0).u32(0).u32(0).u32(4000).u32(3999).u32(3998);
    assert_eq!(put(&mut rig, &rec(rmgr::STANDBY, standby::RUNNING_XACTS, 0, running)).unwrap().next_xid, 4096);
    assert_eq!(rig.ingest.checkpoint().next_xid, 4000);
    let assignment = Body::default().u32(4500).u32(2).u32(4501).u32(4502);
    assert_eq!(put(&mut rig, &rec(rmgr::XACT, xact::ASSIGNMENT, 4500, assignment)).unwrap().next_xid, 5120);
    assert_eq!(rig.ingest.checkpoint().next_xid, 4503);
}

fn checkpoint(rig: &Rig, info: u8, value: Checkpoint) -> Rec {
    rec(rmgr::XLOG, info, 0, Body(value.encode(rig.version).to_vec()))
}

#[test]
fn a_shutdown_checkpoint_is_stored_exactly() {
    for version in PgVersion::ALL {
        let mut rig = Rig::new(version);
        put(&mut rig, &commit(1500));
        let wal_level = if version >= PgVersion::V17 { 1 } else { 0 };
        let value = Checkpoint { redo: 0x9000, next_xid: 1501, next_oid: 7, wal_level, ..start_checkpoint() };
        let record = checkpoint(&rig, xlog::operation::CHECKPOINT_SHUTDOWN, value);
        assert_eq!(put(&mut rig, &record), Some(value));
        assert_eq!(put(&mut rig, &commit(1501)).unwrap(), Checkpoint { next_xid: 2048, ..value });
    }
}

#[test]
fn an_online_checkpoint_never_sets_counters_back() {
    let mut rig = Rig::new(PgVersion::V16);
    put(&mut rig, &commit(1500));
    let value = Checkpoint { redo: 0x9000, next_xid: 1400, next_oid: 7, oldest_xid: 740, ..start_checkpoint() };
    let record = checkpoint(&rig, xlog::operation::CHECKPOINT_ONLINE, value);
    let stored = put(&mut rig, &record).unwrap();
    assert_eq!((stored.redo, stored.next_xid, stored.next_oid, stored.oldest_xid), (0x9000, 2048, 16500, 740));
}

#[test]
fn next_oid_timeline_and_page_writes() {
    let mut rig = Rig::new(PgVersion::V15);
    let next_oid = rec(rmgr::XLOG, xlog::operation::NEXTOID, 0, Body::default().u32(24_691));
    assert_eq!(put(&mut rig, &next_oid).unwrap().next_oid, 24_691);
    let fpw = rec(rmgr::XLOG, xlog::operation::FPW_CHANGE, 0, Body::default().u8(0));
    assert!(!put(&mut rig, &fpw).unwrap().full_page_writes);
    let end = rec(rmgr::XLOG, xlog::operation::END_OF_RECOVERY, 0, Body::default().u64(5).u32(2).u32(1));
    let stored = put(&mut rig, &end).unwrap();
    assert_eq!((stored.this_tli, stored.prev_tli), (2, 1));
}

#[test]
fn parameters_go_into_the_control_file() {
    let mut rig = Rig::new(PgVersion::V18);
    let change = |connections: u32| {
        let body = Body::default().u32(connections).u32(8).u32(10).u32(3).u32(64).u32(2).u8(1).u8(0);
        rec(rmgr::XLOG, xlog::operation::PARAMETER_CHANGE, 0, body)
    };
    // Twice in one batch: the second builds on the first.
    rig.try_ingest(&change(50)).unwrap();
    rig.try_ingest(&change(60)).unwrap();
    rig.commit();
    let (kind, file) = rig.timeline.newest(&Key::from(Object::ControlFile), rig.lsn()).unwrap();
    assert_eq!((kind, file[180], file[192], file[172], file[176]), (Kind::Image, 60, 3, 2, 1));
}
