//! Drops at commit, prepared transactions, replication origins.

use keyenc::{Kind, Object};
use postgres_ffi::checkpoint::Checkpoint;
use postgres_ffi::records::{replorigin, smgr, xact};
use postgres_ffi::wal::rmgr;
use postgres_ffi::{Lsn, PgVersion};

use super::rig::*;
use crate::ingest::OriginProgress;

#[test]
fn dropped_relations_lose_all_forks() {
    for (info, version) in [(xact::COMMIT, PgVersion::V14), (xact::ABORT, PgVersion::V17)] {
        let mut rig = Rig::new(version);
        for fork in [0, 2] {
            rig.ingest(&rec(rmgr::SMGR, smgr::CREATE, 1000, Body::default().rel(REL).u32(fork)));
        }
        let drop = rec(rmgr::XACT, info | xact::HAS_INFO, 1000, Body::default().u64(1).u32(4).u32(1).rel(REL));
        let puts = rig.shown(&drop);
        let gone: Vec<_> = puts.iter().filter(|put| put.starts_with("size")).collect();
        assert_eq!(gone, ["size 1663/5/16384 main Tombstone", "size 1663/5/16384 vm Tombstone"]);
        assert!(!rig.shown(&drop).iter().any(|put| put.starts_with("size")), "gone once");
        // The number may be used again: from nothing.
        let create = rec(rmgr::SMGR, smgr::CREATE, 1000, Body::default().rel(REL).u32(0));
        assert_eq!(rig.shown(&create), ["size 1663/5/16384 main Image 0"]);
    }
}

fn prepare(version: PgVersion, xid: u32) -> Vec<u8> {
    let mut body = Body::default().u32(xact::TWOPHASE_MAGIC).u32(0).u32(xid).u32(5).u64(99).u32(10).u32(1);
    for _ in 0..if version >= PgVersion::V15 { 5 } else { 3 } {
        body = body.u32(0);
    }
    let mut body = body.u16(0).u16(4).u64(0x500).u64(0x33).bytes(b"gid\0\0\0\0\0").u32(xid + 1).u32(0).0;
    let total_len = body.len() as u32 + 4;
    body[4..8].copy_from_slice(&total_len.to_le_bytes());
    body
}

#[test]
fn prepared_transactions_have_a_file_until_they_end() {
    for version in PgVersion::ALL {
        let mut rig = Rig::with(version, Checkpoint { next_xid: (3 << 32) | 1000, ..start_checkpoint() });
        let body = prepare(version, 2000);
        let puts = rig.ingest(&rec(rmgr::XACT, xact::PREPARE, 2000, Body(body.clone())).origin(4));
        let object = Object::TwoPhase { xid: (3 << 32) | 2000 };
        assert_eq!(puts[0], (object, Kind::Image, [&body[..], &crc32c_of(&body)].concat()));
        let progress = OriginProgress { remote_lsn: Lsn::new(0x500), local_lsn: rig.lsn() };
        assert_eq!(puts[1], (Object::ReplicationOrigin { origin_id: 4 }, Kind::Image, progress.encode().to_vec()));
        assert_eq!(rig.ingest.checkpoint().next_xid, (3 << 32) | 2002);
        // Its end comes in a record of another transaction, or of none.
        let commit = Body::default().u64(1).u32(0x10).u32(2000);
        let puts = rig.ingest(&rec(rmgr::XACT, xact::COMMIT_PREPARED | xact::HAS_INFO, 0, commit));
        assert!(puts.contains(&(object, Kind::Tombstone, Vec::new())), "{version}");
        assert!(puts.iter().any(|(object, _, _)| matches!(object, Object::SlruPage { .. })));
    }
}

/// CRC-32C bit by bit: the file's sum, not taken from the code under test.
fn crc32c_of(bytes: &[u8]) -> [u8; 4] {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
        }
    }
    (!crc).to_le_bytes()
}

#[test]
fn origins_move_forward_unless_forced() {
    let mut rig = Rig::new(PgVersion::V15);
    let set = |remote: u64, force: u8| {
        rec(rmgr::REPLORIGIN, replorigin::SET, 0, Body::default().u64(remote).u16(4).u8(force).bytes(&[0; 5]))
    };
    let remote_after = |rig: &mut Rig, record: &Rec| {
        let puts = rig.ingest(record);
        let origin = puts.iter().find(|(object, _, _)| *object == Object::ReplicationOrigin { origin_id: 4 });
        origin.map(|(_, _, value)| OriginProgress::decode(value).unwrap().remote_lsn.as_u64())
    };
    assert_eq!(remote_after(&mut rig, &set(0x700, 0)), Some(0x700));
    assert_eq!(remote_after(&mut rig, &set(0x600, 0)), Some(0x700));
    assert_eq!(remote_after(&mut rig, &set(0x600, 1)), Some(0x600));
    let commit = Body::default().u64(1).u32(0x20).u64(0x900).u64(55);
    let commit = rec(rmgr::XACT, xact::COMMIT | xact::HAS_INFO, 1000, commit).origin(4);
    assert_eq!(remote_after(&mut rig, &commit), Some(0x900));
    let drop = rec(rmgr::REPLORIGIN, replorigin::DROP, 0, Body::default().u16(4));
    assert_eq!(rig.shown(&drop), ["ReplicationOrigin { origin_id: 4 } Tombstone"]);
    assert!(rig.ingest(&drop).is_empty());
}
