//! Goal: what a running server's files lack because they are copied one after the other is made up for, and in a stopped one it is damage. Method: files that are
//! made here, into a store.

use std::io::repeat;

use keyenc::TimelineNo;

use super::*;
use crate::store::{Gathered, Store, StoreConfig};

const CONTROL_15: &[u8] = include_bytes!("../../../../postgres_ffi/tests/data/control/pg_control.15");
const LSN: Lsn = Lsn::new(0x100_0028);
const SEGMENT_BYTES: u64 = RELSEG_BLOCKS as u64 * BLCKSZ as u64;

struct Rig {
    store: Arc<TimelineStore>,
    _dir: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), &StoreConfig::default()).unwrap();
        Rig { store: store.timeline(TimelineNo(1)).unwrap(), _dir: dir }
    }

    fn value(&self, object: Object) -> Option<Vec<u8>> {
        let mut found = Gathered::default();
        self.store.gather(&object.into(), LSN, &mut found).unwrap();
        found.versions.first().map(|(_, _, value)| value.to_vec())
    }
}

fn put(sink: &mut ImportSink, path: &str, contents: &[u8]) {
    assert!(sink.file(path, contents.len() as u64, &mut &*contents).unwrap());
}

#[test]
fn a_segment_that_is_gone_while_a_later_one_is_there_is_of_a_relation_that_is_dropped() {
    let rel = RelTag { spc_oid: 1663, db_oid: 5, rel_number: 16_384 };
    for is_fuzzy in [true, false] {
        let rig = Rig::new();
        let mut sink = match is_fuzzy {
            true => ImportSink::fuzzy(Arc::clone(&rig.store), PgVersion::V15, LSN),
            false => ImportSink::new(Arc::clone(&rig.store), PgVersion::V15, LSN),
        };
        put(&mut sink, "global/pg_control", CONTROL_15);
        assert!(sink.file("base/5/16384", SEGMENT_BYTES, &mut repeat(0).take(SEGMENT_BYTES)).unwrap());
        put(&mut sink, "base/5/16384.2", &[7; 3 * BLCKSZ]);
        let finished = sink.finish();
        if !is_fuzzy {
            assert!(
                matches!(&finished, Err(ImportError::FileDamaged { file, reason: "not full" }) if file.contains("segment 1"))
            );
            continue;
        }
        let missing = MissingSegment { rel, fork: ForkNumber::Main, segment_no: 1 };
        assert_eq!(finished.unwrap().missing_segments, [missing]);
        let size = rig.value(Object::RelationSize { rel, fork: ForkNumber::Main });
        assert_eq!(size.as_deref(), Some(&(2 * RELSEG_BLOCKS + 3).to_be_bytes()[..]));
        for (block_count, expected) in [(0, 0), (RELSEG_BLOCKS, 0), (RELSEG_BLOCKS + 7, 7), (u32::MAX, RELSEG_BLOCKS)] {
            assert_eq!(missing.blocks_of(block_count).len(), expected as usize, "{block_count}");
        }
    }
}

#[test]
fn what_has_no_first_segment_is_no_relation_and_with_an_empty_one_it_has_no_blocks() {
    // Left by a drop that a crash cut off, and one that is under way.
    for (first, missing_no, size) in [(None, 0, None), (Some(&[][..]), 1, Some(vec![0; 4]))] {
        let rig = Rig::new();
        let rel = RelTag { spc_oid: 1663, db_oid: 5, rel_number: 99_999 };
        let mut sink = ImportSink::fuzzy(Arc::clone(&rig.store), PgVersion::V15, LSN);
        put(&mut sink, "global/pg_control", CONTROL_15);
        first.into_iter().for_each(|first| put(&mut sink, "base/5/99999", first));
        put(&mut sink, "base/5/99999.2", &[7; BLCKSZ]);
        let missing = MissingSegment { rel, fork: ForkNumber::Main, segment_no: missing_no };
        assert_eq!(sink.finish().unwrap().missing_segments, [missing]);
        assert_eq!(rig.value(Object::RelationSize { rel, fork: ForkNumber::Main }), size);
    }
}

/// What pg_upgrade leaves is not the cluster's; files that are must not be passed over.
#[test]
fn tablespaces_of_an_unreleased_server_are_refused_and_leftovers_are_not() {
    let released = ControlFile::decode(CONTROL_15).expect("a server's own");
    let unreleased = ControlFile { catalog_version_no: released.catalog_version_no + 1, ..released.clone() };
    let in_tablespace = format!("pg_tblspc/16400/PG_15_{}/5/16401", unreleased.catalog_version_no);
    for (control_file, is_own) in [(&unreleased, true), (&released, false)] {
        let rig = Rig::new();
        let mut sink = ImportSink::new(Arc::clone(&rig.store), PgVersion::V15, LSN);
        put(&mut sink, "global/pg_control", &control_file.encode());
        assert!(!sink.file(&in_tablespace, 0, &mut &[][..]).unwrap());
        let refused =
            matches!(sink.finish(), Err(ImportError::UnsupportedCluster { expected: "that of a release", .. }));
        assert_eq!(refused, is_own);
    }
}

#[test]
fn what_a_stopped_server_has_of_a_relation_without_its_first_file_is_nothing() {
    let rig = Rig::new();
    let rel = RelTag { spc_oid: 1663, db_oid: 5, rel_number: 99_999 };
    let mut sink = ImportSink::new(Arc::clone(&rig.store), PgVersion::V15, LSN);
    put(&mut sink, "global/pg_control", CONTROL_15);
    put(&mut sink, "base/5/99999.1", &[7; BLCKSZ]);
    assert_eq!(sink.finish().unwrap().missing_segments, []);
    assert_eq!(rig.value(Object::RelationSize { rel, fork: ForkNumber::Main }), None);
}

/// The file of a prepared transaction, as far as it is looked at.
fn two_phase_state(len: usize) -> Vec<u8> {
    let mut state = vec![0; len];
    state[..4].copy_from_slice(&TWOPHASE_MAGIC.to_le_bytes());
    state.extend(crc32c::crc32c(&state).to_le_bytes());
    state
}

#[test]
fn a_prepared_transaction_whose_end_is_known_is_none() {
    let rig = Rig::new();
    let mut sink = ImportSink::fuzzy(Arc::clone(&rig.store), PgVersion::V17, LSN);
    put(&mut sink, "global/pg_control", include_bytes!("../../../../postgres_ffi/tests/data/control/pg_control.17"));
    let mut page = Box::new(ZERO_PAGE);
    let statuses = [XidStatus::InProgress, XidStatus::Committed, XidStatus::Aborted, XidStatus::SubCommitted];
    for (xid, status) in (900..).zip(statuses) {
        put(&mut sink, &format!("pg_twophase/{xid:016X}"), &two_phase_state(100));
        postgres_ffi::slru::set_clog_status(&mut page, clog_place(xid).1, status);
    }
    put(&mut sink, "pg_twophase/0000000000100000", &two_phase_state(100)); // Its page is not there.
    put(&mut sink, "pg_xact/0000", &page[..]);
    sink.finish().unwrap();
    let is_kept = |xid| rig.value(Object::TwoPhase { xid }).is_some();
    assert_eq!([900, 901, 902, 903, 0x10_0000].map(is_kept), [true, false, false, true, true]);
}

#[test]
fn prepared_transactions_take_no_more_memory_than_they_may() {
    let rig = Rig::new();
    let mut sink = ImportSink::fuzzy(Arc::clone(&rig.store), PgVersion::V17, LSN);
    let state = two_phase_state(60 << 20);
    let refused = (1..10).find_map(|xid| {
        let taken = sink.file(&format!("pg_twophase/{xid:016X}"), state.len() as u64, &mut &state[..]);
        taken.err().map(|error| (xid, error))
    });
    assert!(matches!(refused, Some((5, ImportError::FileDamaged { .. }))), "{refused:?}");
}

#[test]
fn a_prepared_transaction_is_of_the_epoch_that_is_nearest() {
    let real = ControlFile::decode(CONTROL_15).unwrap();
    let checkpoint = Checkpoint::decode(PgVersion::V15, &real.checkpoint_copy).unwrap();
    for (next_xid, number, xid) in [
        (5 << 32 | 1000, 900, 5 << 32 | 900),
        // Written by a checkpoint that the control file does not have yet.
        (5 << 32 | 1000, 1100, 5 << 32 | 1100),
        (5 << 32 | 0xFFFF_FF00, 300, 6 << 32 | 300),
        (5 << 32 | 1000, 0xFFFF_FF00, 4 << 32 | 0xFFFF_FF00),
        (1000, 1100, 1100),
    ] {
        let rig = Rig::new();
        let sink = ImportSink::fuzzy(Arc::clone(&rig.store), PgVersion::V15, LSN);
        let checkpoint_copy = Checkpoint { next_xid, ..checkpoint }.encode(PgVersion::V15);
        let control_file = ControlFile { checkpoint_copy, ..real.clone() };
        assert_eq!(sink.full_xid(&control_file, number).unwrap(), xid, "{next_xid:x} {number:x}");
    }
}
