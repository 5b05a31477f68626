//! Goal: what waits is bounded, in order, and each timeline gets its turn; a flush is enough for long chains to become short, on branches
//! for their own versions alone. Method: plain cases; a real store with chains of our own deltas, which need no engine.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keyenc::Kind;
use postgres_ffi::slru::{XidStatus, clog_status};
use postgres_ffi::{ForkNumber, PgVersion, RelTag, SlruKind};

use super::*;
use crate::config::Config;
use crate::delta::{Delta, Index};
use crate::redo::{NoEngine, RedoConfig, RedoStats, WalRedo};
use crate::store::{Batch, Gathered, Store, StoreConfig};
use crate::timeline::lineage::Lineage;
use crate::timeline::metadata::{Ancestor, ClusterFacts, Imported};
use crate::timeline::version_cache::VersionCache;
use crate::timeline::{TenantId, TimelineId, TimelineMetadata};

fn key(block_no: u32) -> Key {
    Key::block(RelTag { spc_oid: 1663, db_oid: 5, rel_number: 16384 }, ForkNumber::Main, block_no)
}

fn chains(block_nos: std::ops::Range<u32>) -> Vec<LongChain> {
    block_nos.map(|block_no| LongChain { key: key(block_no), delta_count: 50 }).collect()
}

#[test]
fn the_oldest_are_dropped_and_none_waits_twice() {
    let mut waiting = Waiting::default();
    let (no, max) = (TimelineNo(1), WAITING_MAX as u32);
    assert_eq!(waiting.push(no, &chains(0..max)), 0);
    assert_eq!(waiting.push(no, &chains(5..10)), 0);
    assert_eq!(waiting.push(no, &chains(max..max + 3)), 3);
    let left: Vec<Key> = std::iter::from_fn(|| waiting.pop(no)).collect();
    assert_eq!(left, (3..max + 3).map(key).collect::<Vec<_>>());
    assert!(waiting.keys.is_empty());
}

#[test]
fn timelines_take_turns() {
    let mut waiting = Waiting::default();
    for no in [1, 2, 3] {
        waiting.push(TimelineNo(no), &chains(0..2));
    }
    let mut served = Vec::new();
    while let Some(no) = waiting.timelines_in_turn().first().copied() {
        waiting.pop(no);
        served.push(no.0);
    }
    assert_eq!(served, [1, 2, 3, 1, 2, 3]);
}

const DELTAS_MIN: u32 = 10;

/// CLOG pages: a segment's worth of them can be read.
pub(in crate::timeline) fn clog(page_no: u32) -> Key {
    Object::SlruPage { kind: SlruKind::Clog, page_no }.into()
}

pub(in crate::timeline) struct Rig {
    pub store: Arc<Store>,
    pub redo: Arc<WalRedo>,
    pub backlog: Backlog,
    config: Config,
    dir: Arc<tempfile::TempDir>,
}

impl Rig {
    fn new() -> Self {
        let mut config = Config::default();
        config.redo.backlog_records_min = DELTAS_MIN;
        config.redo.chain_records_max = 0;
        Self::open(Arc::new(tempfile::tempdir().unwrap()), config)
    }

    /// With a bound on chains, and no backlog.
    pub fn bounded(chain_records_max: u32) -> Self {
        let mut config = Config::default();
        config.redo.backlog_records_min = 0;
        config.redo.chain_records_max = chain_records_max;
        Self::open(Arc::new(tempfile::tempdir().unwrap()), config)
    }

    /// What is left when a server ends and starts again. Requires: nobody holds a timeline.
    pub fn reopened(self) -> Self {
        let (dir, config) = (Arc::clone(&self.dir), self.config.clone());
        self.backlog.stop();
        drop(self);
        Self::open(dir, config)
    }

    fn open(dir: Arc<tempfile::TempDir>, config: Config) -> Self {
        let store_config = StoreConfig {
            long_chain_deltas_min: config.redo.backlog_records_min,
            chain_weight_max: config.redo.chain_records_max,
            ..StoreConfig::default()
        };
        let store = Store::open(dir.path(), &store_config).unwrap();
        let redo_config = RedoConfig { threads: 1, backlog_len: 2, ..RedoConfig::default() };
        Rig {
            redo: WalRedo::start(&redo_config, Arc::new(NoEngine)),
            backlog: Backlog::start(store.long_chains()).unwrap(),
            store,
            config,
            dir,
        }
    }

    /// Timeline `no`, at LSN 8 with one CLOG segment if it is not a branch.
    pub fn timeline(&self, no: u32, ancestor: Option<(&Arc<Timeline>, Lsn)>) -> Arc<Timeline> {
        let metadata = TimelineMetadata {
            format: TimelineMetadata::format(),
            tenant_id: TenantId::generate(),
            timeline_id: TimelineId::generate(),
            timeline_no: no,
            name: no.to_string(),
            ancestor: ancestor.map(|(timeline, lsn)| Ancestor { timeline_id: timeline.metadata().timeline_id, lsn }),
            cluster: ClusterFacts {
                pg_version: PgVersion::V17,
                system_identifier: 1,
                wal_segment_bytes: 16 << 20,
                data_checksums: false,
                pg_timeline_id: 1,
            },
            imported: ancestor.is_none().then_some(Imported::at(Lsn::new(8), Lsn::new(8))),
            primary: None,
            retention: None,
            gc: None,
        };
        let store = self.store.timeline(TimelineNo(no)).unwrap();
        let ancestors = ancestor.map_or_else(Vec::new, |(timeline, lsn)| Lineage::ancestors_of_branch(timeline, lsn));
        let cache = Arc::new(VersionCache::new(1 << 20));
        let timeline = Timeline::new(metadata, store, ancestors, Arc::clone(&self.redo), cache, &self.config);
        let timeline = timeline.bounded_by(self.backlog.heavy());
        if timeline.last_record_lsn() == Lsn::ZERO {
            let mut batch = Batch::new();
            let segment = Object::SlruSegment { kind: SlruKind::Clog, segment_no: 0 };
            batch.put(segment.into(), Lsn::new(8), Kind::Image, &32_u32.to_be_bytes());
            for page_no in 0..32 {
                batch.put(clog(page_no), Lsn::new(8), Kind::Image, b"");
            }
            timeline.store.put(&batch, Lsn::new(8)).unwrap();
            timeline.last_record.advance(Lsn::new(8));
            timeline.is_catching_up.store(false, Ordering::Relaxed);
        }
        let timeline = Arc::new(timeline);
        self.backlog.add_timeline(&timeline);
        timeline
    }

    pub fn wait_for(&self, done: impl Fn(&RedoStats) -> bool) -> RedoStats {
        loop {
            let stats = self.redo.stats();
            if done(&stats) {
                return stats;
            }
            std::thread::sleep(Duration::from_millis(1)); // Until it comes: the test has no limit of its own.
        }
    }
}

/// Commits transactions 0 to `count` of the CLOG page, one record each.
pub(in crate::timeline) fn commit(timeline: &Timeline, page_no: u32, count: u16) {
    let mut lsn = timeline.last_record_lsn();
    let mut batch = Batch::new();
    for index in 0..count {
        lsn = lsn.checked_add(8).unwrap();
        let mut value = Vec::new();
        Delta::ClogStatus { status: XidStatus::Committed, indexes: &[Index::new(index)] }.encode(&mut value);
        batch.put(clog(page_no), lsn, Kind::Delta, &value);
    }
    timeline.store.put(&batch, lsn).unwrap();
    timeline.last_record.advance(lsn);
}

fn delta_count(timeline: &Timeline, page_no: u32) -> usize {
    timeline.gather(&clog(page_no), timeline.last_record_lsn()).unwrap().delta_count()
}

fn committed_count(timeline: &Timeline, page_no: u32) -> usize {
    let page = timeline.get_page_at_lsn(clog(page_no), timeline.last_record_lsn()).unwrap();
    let page = page[..].try_into().unwrap();
    (0..1000).filter(|index| clog_status(page, *index) == XidStatus::Committed).count()
}

#[test]
fn a_flush_is_enough_for_long_chains_to_become_short() {
    let rig = Rig::new();
    let timeline = rig.timeline(1, None);
    for page_no in 0..20 {
        commit(&timeline, page_no, 100);
    }
    commit(&timeline, 20, DELTAS_MIN as u16 - 1);
    timeline.store.flush(true).unwrap();
    let stats = rig.wait_for(|stats| stats.backlog_made >= 20);
    assert_eq!((stats.backlog_accepted, stats.backlog_failed, stats.backlog_dropped), (20, 0, 0));
    assert_eq!(delta_count(&timeline, 0), 100, "not written yet");
    commit(&timeline, 3, 2);
    // The last page is counted as made just before it is cached back.
    rig.backlog.stop();
    while rig.store.stats().cached_back_pages < 20 {
        commit(&timeline, 21, 1);
        timeline.store.flush(true).unwrap();
    }
    let found: Vec<usize> = [0, 3, 19, 20].map(|page_no| delta_count(&timeline, page_no)).into();
    assert_eq!(found, [0, 2, 0, usize::from(DELTAS_MIN as u16 - 1)]);
    for (page_no, committed) in [(0, 100), (3, 100), (19, 100), (20, 9), (22, 0)] {
        assert_eq!(committed_count(&timeline, page_no), committed, "page {page_no}");
    }
    let read_chains: Vec<_> = rig.redo.stats().read_chains().filter(|(_, count)| *count > 0).collect();
    assert_eq!(read_chains, [("up_to_0".into(), 3), ("up_to_2".into(), 1), ("up_to_16".into(), 1)]);
}

#[test]
fn a_branch_keeps_what_it_made_of_its_own_versions_alone() {
    let rig = Rig::new();
    let parent = rig.timeline(1, None);
    commit(&parent, 0, 50);
    let branch_lsn = parent.last_record_lsn();
    let branch = rig.timeline(2, Some((&parent, branch_lsn)));
    commit(&branch, 1, 1);
    branch.store.flush(true).unwrap();
    assert!(branch.long_chain(&clog(0)).unwrap().is_none(), "all versions are the parent's");
    commit(&branch, 0, 60);
    branch.store.flush(true).unwrap();
    commit(&branch, 0, 3); // Not durable yet.
    let branch_durable_lsn = branch.durable_lsn().unwrap();
    let chain = branch.long_chain(&clog(0)).unwrap().unwrap();
    assert_eq!((chain.timeline, chain.deltas.len(), chain.version_lsn), (TimelineNo(2), 110, branch_durable_lsn));
    parent.store.flush(true).unwrap();
    assert_eq!(parent.long_chain(&clog(0)).unwrap().unwrap().deltas.len(), 50);
}

#[test]
fn nothing_is_made_of_what_is_gone_short_or_not_readable_yet() {
    let rig = Rig::new();
    let timeline = rig.timeline(1, None);
    commit(&timeline, 1, 50);
    assert!(timeline.long_chain(&clog(1)).unwrap().is_none(), "nothing is durable");
    timeline.store.flush(true).unwrap();
    assert!(timeline.long_chain(&clog(1)).unwrap().is_some());
    let set_first_readable = |lsn| {
        let metadata = not_readable_below(&timeline, lsn);
        *timeline.metadata.write() = metadata;
    };
    set_first_readable(Lsn::MAX);
    assert!(timeline.long_chain(&clog(1)).unwrap().is_none(), "still catching up");
    set_first_readable(Lsn::new(8));
    assert!(timeline.long_chain(&clog(2)).unwrap().is_none(), "an image alone");
    assert!(timeline.long_chain(&clog(99)).unwrap().is_none(), "no such segment");
    assert!(timeline.long_chain(&key(1)).unwrap().is_none(), "no such relation");
    assert!(timeline.long_chain(&Object::Checkpoint.into()).unwrap().is_none(), "no page");
    let mut batch = Batch::new();
    let (segment, gone_lsn) = (Object::SlruSegment { kind: SlruKind::Clog, segment_no: 0 }, Lsn::new(100_000));
    batch.put(segment.into(), gone_lsn, Kind::Tombstone, b"");
    timeline.store.put(&batch, gone_lsn).unwrap();
    timeline.last_record.advance(gone_lsn);
    timeline.store.flush(true).unwrap();
    assert!(timeline.long_chain(&clog(1)).unwrap().is_none(), "its segment is gone");
}

#[test]
fn ends_though_chains_wait() {
    let rig = Rig::new();
    let timeline = rig.timeline(1, None);
    let started = Arc::new(AtomicBool::new(false));
    // Holds up the only walredo thread until the end.
    let (release, released) = bounded::<()>(0);
    let seen = Arc::clone(&started);
    let chain = || Chain { deltas: Vec::new(), base: None, ..chain_of(&timeline) };
    let hold_up = move |_| {
        seen.store(true, Ordering::Relaxed);
        let _ = released.recv();
    };
    assert!(rig.redo.offer_backlog(chain(), Box::new(hold_up)));
    while !started.load(Ordering::Relaxed) {
        std::thread::yield_now();
    }
    for page_no in 0..30 {
        commit(&timeline, page_no, 100);
    }
    timeline.store.flush(true).unwrap();
    rig.wait_for(|stats| stats.backlog_len == 2);
    rig.backlog.stop();
    drop(release);
    let stats = rig.wait_for(|stats| stats.backlog_made == 3);
    assert_eq!(stats.backlog_accepted, 3);
}

fn not_readable_below(timeline: &Timeline, first_readable_lsn: Lsn) -> Arc<TimelineMetadata> {
    let mut metadata = (*timeline.metadata()).clone();
    metadata.imported = Some(Imported::at(Lsn::new(8), first_readable_lsn));
    Arc::new(metadata)
}

fn chain_of(timeline: &Timeline) -> Chain {
    let found = Gathered::default();
    timeline.chain(&clog(0), found).unwrap()
}
