//! Goal: a timeline becomes readable when each block that its backup lacked stands on something, and stops else. Method: WAL made here, in one piece and with a restart
//! in the middle. With servers: `tests/tests/import_files.rs`.

use postgres_ffi::records::{smgr, xact};
use postgres_ffi::wal::checks::build::{BlockBuilder, RecordBuilder};
use postgres_ffi::wal::checks::layout::WalWriter;
use postgres_ffi::wal::rmgr;
use postgres_ffi::{BlockNumber, ForkNumber};

use super::super::*;
use super::rig::*;
use crate::import::MissingSegment;
use crate::ingest::GAP_BLOCKS_MAX;
use crate::timeline::{TimelineIngest, TimelineState};

const SEGMENT_BYTES: u32 = 1 << 20;
/// The last block of a file.
const FAR_BLOCK: BlockNumber = GAP_BLOCKS_MAX + 131_071;

/// A record that makes a block anew.
fn init(block_no: BlockNumber) -> RecordBuilder {
    let fork = ForkNumber::Main;
    let block = BlockBuilder { block_id: 0, rel: rel(0), fork, block_no, will_init: true, image: None, data: vec![1] };
    RecordBuilder { rmid: rmgr::BTREE, blocks: vec![block], main_data: vec![0, 0], ..RecordBuilder::default() }
}

/// Cuts it to so many blocks.
fn truncate(block_count: BlockNumber) -> RecordBuilder {
    let rel = rel(0);
    let fields = [block_count, rel.spc_oid, rel.db_oid, rel.rel_number, 7];
    let main_data = fields.iter().flat_map(|field| field.to_le_bytes()).collect();
    RecordBuilder { rmid: rmgr::SMGR, info: smgr::TRUNCATE, main_data, ..RecordBuilder::default() }
}

fn relation_bytes() -> impl Iterator<Item = u8> {
    let rel = rel(0);
    [rel.spc_oid, rel.db_oid, rel.rel_number].into_iter().flat_map(u32::to_le_bytes)
}

/// Makes it, without blocks.
fn create() -> RecordBuilder {
    let main_data = relation_bytes().chain(0_u32.to_le_bytes()).collect();
    RecordBuilder { rmid: rmgr::SMGR, info: smgr::CREATE, main_data, ..RecordBuilder::default() }
}

/// A transaction that has dropped it is committed.
fn dropped() -> RecordBuilder {
    let has_relations = 1_u32 << 2;
    let main_data = 7_u64.to_le_bytes().into_iter();
    let main_data = main_data.chain(has_relations.to_le_bytes()).chain(1_u32.to_le_bytes()).chain(relation_bytes());
    let info = xact::COMMIT | xact::HAS_INFO;
    RecordBuilder { xid: 1000, rmid: rmgr::XACT, info, main_data: main_data.collect(), ..RecordBuilder::default() }
}

/// The state after WAL with these records, the last of which ends the backup. `restart`: ingest begins anew behind the first one.
fn state_after(records: &[RecordBuilder], missing: &[MissingSegment], restart: bool) -> TimelineState {
    let dir = tempfile::tempdir().unwrap();
    let repository = open(&dir);
    let mut writer = WalWriter::new(VERSION, START_LSN, SEGMENT_BYTES);
    let ends: Vec<Lsn> = records.iter().map(|record| writer.append(record).1).collect();
    let wal = writer.into_bytes();
    let timeline = import_backup(&repository, "main", *ends.last().unwrap(), missing);
    let mut ingest = TimelineIngest::new(Arc::clone(&timeline)).unwrap();
    let mut rest = &wal[..];
    if restart {
        let (first, behind) = wal.split_at(ends[0].saturating_sub(START_LSN) as usize);
        ingest.feed(first.to_vec().into()).unwrap();
        ingest = TimelineIngest::new(Arc::clone(&timeline)).unwrap();
        rest = behind;
    }
    let fed = ingest.feed(rest.to_vec().into());
    assert_eq!(fed.is_err(), matches!(timeline.state(), TimelineState::Stopped { .. }), "{fed:?}");
    timeline.state()
}

fn is_refused(state: &TimelineState) -> bool {
    matches!(state, TimelineState::Stopped { reason, .. } if reason.contains("the backup lacked"))
}

#[test]
fn a_gap_that_is_left_is_cut_away_or_the_timeline_stops() {
    for restart in [false, true] {
        let left = [init(FAR_BLOCK), init(FAR_BLOCK)];
        assert!(is_refused(&state_after(&left, &[], restart)));
        let cut = [init(FAR_BLOCK), truncate(0)];
        assert_eq!(state_after(&cut, &[], restart), TimelineState::Active);
        let cut_and_made_anew = [init(FAR_BLOCK), truncate(0), init(0), init(1)];
        assert_eq!(state_after(&cut_and_made_anew, &[], restart), TimelineState::Active);
    }
    // What is left of it has nothing to stand on.
    assert!(is_refused(&state_after(&[init(FAR_BLOCK), truncate(10)], &[], false)));
}

#[test]
fn a_relation_without_its_first_file_is_gone_or_made_by_the_wal() {
    let missing = [MissingSegment { rel: rel(0), fork: ForkNumber::Main, segment_no: 0 }];
    let state = |records: &[RecordBuilder], restart| state_after(records, &missing, restart);
    for restart in [false, true] {
        // WAL that changes it is not all of it.
        for records in [&[init(0), init(1)][..], &[init(5), init(6)], &[truncate(3), init(0)]] {
            assert!(is_refused(&state(records, restart)));
        }
        let drop = [init(0), dropped()];
        assert_eq!(state(&drop, restart), TimelineState::Active);
        // What has made it is not known any more after a restart.
        assert_eq!(is_refused(&state(&[create(), init(0), init(1)], restart)), restart);
        assert_eq!(state(&[init(7), create(), init(0)], restart), TimelineState::Active);
    }
}
