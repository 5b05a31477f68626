//! Goal: the promises of the store one by one: order, watermarks, seeks, memory, deletion. Method: small cases on a real store.

use std::ops::ControlFlow;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use keyenc::Object;

use super::*;
use crate::store::Watermark;

const PAGE: &[u8] = &[7; 8192];

#[test]
fn gather_crosses_layers_and_rocksdb_with_one_seek() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let timeline = store.timeline(T1).expect("a timeline");
    timeline
        .put(&batch(&[(block(1), 8, Kind::Image, PAGE), (block(1), 16, Kind::Delta, b"a")]), Lsn::new(16))
        .expect("put");
    timeline.flush(true).expect("flush");
    timeline.put(&batch(&[(block(1), 24, Kind::Delta, b"b")]), Lsn::new(24)).expect("put");

    let seeks = |store: &Store| (store.stats().gather_seeks, store.stats().rocksdb_seeks);
    let before = seeks(&store);
    let expect = [(24, Kind::Delta, b"b".to_vec()), (16, Kind::Delta, b"a".to_vec()), (8, Kind::Image, PAGE.to_vec())];
    assert_eq!(gather(&timeline, &block(1), 100), Ok((expect.to_vec(), true)));
    assert_eq!(seeks(&store), (before.0 + 1, before.1 + 1));
    assert_eq!(gather(&timeline, &block(1), 23), Ok((expect[1..].to_vec(), true)));
    assert_eq!(gather(&timeline, &block(1), 7), Ok((vec![], false)));
    assert_eq!(gather(&timeline, &block(2), 100), Ok((vec![], false)));
    assert_eq!(seeks(&store), (before.0 + 4, before.1 + 4));

    timeline.put(&batch(&[(block(1), 32, Kind::InitDelta, b"c")]), Lsn::new(32)).expect("put");
    let before = seeks(&store);
    assert_eq!(gather(&timeline, &block(1), 32), Ok((vec![(32, Kind::InitDelta, b"c".to_vec())], true)));
    assert_eq!(seeks(&store), before, "the open layer ends the gather");
    let stats = store.stats();
    assert_eq!(stats.gather_lengths.iter().sum::<u64>(), stats.gathers);
    assert_eq!(stats.gathered_versions, 3 + 2 + 1);
}

#[test]
fn gather_goes_on_below_what_a_child_timeline_gave() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let (parent, child) = (store.timeline(T1).expect("a timeline"), store.timeline(TimelineNo(2)).expect("a timeline"));
    parent
        .put(&batch(&[(block(1), 8, Kind::Image, b"p8"), (block(1), 24, Kind::Delta, b"p24")]), Lsn::new(24))
        .expect("put");
    child.put(&batch(&[(block(1), 20, Kind::Delta, b"c20")]), Lsn::new(20)).expect("put");
    for _ in 0..2 {
        let mut found = Gathered::default();
        assert_eq!(child.gather(&block(1), Lsn::new(100), &mut found), Ok(false));
        assert_eq!(parent.gather(&block(1), Lsn::new(16), &mut found), Ok(true));
        let versions: Vec<_> =
            found.versions.iter().map(|(lsn, kind, value)| (lsn.as_u64(), *kind, &value[..])).collect();
        assert_eq!(versions, [(20, Kind::Delta, &b"c20"[..]), (8, Kind::Image, &b"p8"[..])]);
        parent.flush(true).expect("flush");
        child.flush(true).expect("flush");
    }
}

#[test]
fn put_refuses_what_comes_out_of_order() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let timeline = store.timeline(T1).expect("a timeline");
    timeline.put(&batch(&[(block(1), 16, Kind::Image, PAGE)]), Lsn::new(16)).expect("put");
    timeline.put(&batch(&[(block(2), 16, Kind::Image, PAGE)]), Lsn::new(16)).expect("an import puts many at one LSN");
    let refused = timeline.put(&batch(&[(block(1), 8, Kind::Image, b"old")]), Lsn::new(24));
    let (version_lsn, last_record_lsn) = (Lsn::new(8), Lsn::new(16));
    assert_eq!(refused, Err(StoreError::OutOfOrder { key: block(1), version_lsn, last_record_lsn }));
    assert_eq!(timeline.last_record_lsn(), Lsn::new(16));
    assert_eq!(gather(&timeline, &block(1), 100), Ok((vec![(16, Kind::Image, PAGE.to_vec())], true)));
}

#[test]
fn an_import_leaves_no_watermark_before_its_last_flush() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let timeline = store.timeline(T1).expect("a timeline");
    for n in 0..512 {
        timeline.put(&batch(&[(block(n), 8, Kind::Image, PAGE)]), Lsn::new(8)).expect("put");
    }
    timeline.flush(false).expect("flush");
    assert!(store.stats().flushes > 2, "some by size");
    assert_eq!(timeline.watermark(), None);
    drop((timeline, store));

    let store = open(dir.path());
    let timeline = store.timeline(T1).expect("a timeline");
    assert_eq!(timeline.watermark(), None);
    timeline.put(&Batch::new(), Lsn::new(48)).expect("an empty batch moves the LSN");
    timeline.flush(true).expect("flush");
    assert_eq!(timeline.watermark(), Some(Watermark { last_record_lsn: Lsn::new(48) }));
    drop((timeline, store));
    let store = open(dir.path());
    let timeline = store.timeline(T1).expect("a timeline");
    assert_eq!(timeline.watermark(), Some(Watermark { last_record_lsn: Lsn::new(48) }));
    assert_eq!(timeline.last_record_lsn(), Lsn::new(48));
    assert_eq!(gather(&timeline, &block(511), 48), Ok((vec![(8, Kind::Image, PAGE.to_vec())], true)));
}

/// Else each set would overlap the one before, and compaction would write all of an import again.
#[test]
fn an_import_in_key_order_goes_to_the_last_level_at_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let timeline = store.timeline(T1).expect("a timeline");
    let size =
        Object::RelationSize { rel: RelTag { spc_oid: 1663, db_oid: 5, rel_number: 16384 }, fork: ForkNumber::Main };
    for n in 0..1000u32 {
        let versions = [(block(n), 8, Kind::Image, PAGE), (size.into(), 8, Kind::Image, &n.to_be_bytes()[..])];
        timeline.put(&batch(&versions), Lsn::new(8)).expect("put");
    }
    timeline.flush(true).expect("flush");
    let stats = store.stats();
    assert!(stats.flushes > 8, "{stats:?}");
    let last_level = stats.levels.last().expect("levels").bytes;
    // The last flush brings the watermark, so it is not split.
    assert!(last_level * 10 > stats.flushed_bytes * 8 && stats.compaction_written_bytes < last_level / 4, "{stats:?}");
}

#[test]
fn an_old_layer_is_flushed_without_being_asked() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = StoreConfig { flush_interval: Duration::from_millis(40), ..small_config() };
    let store = Store::open(dir.path(), &config).expect("the store opens");
    let timeline = store.timeline(T1).expect("a timeline");
    timeline.flush(true).expect("flush");
    timeline.put(&batch(&[(block(1), 8, Kind::Image, PAGE)]), Lsn::new(16)).expect("put");
    let started_at = Instant::now();
    while timeline.watermark() != Some(Watermark { last_record_lsn: Lsn::new(16) }) {
        assert!(started_at.elapsed() < Duration::from_secs(20), "the layer is older than its age");
        thread::sleep(Duration::from_millis(5));
    }
    let flushes = store.stats().flushes;
    thread::sleep(Duration::from_millis(200));
    assert_eq!(store.stats().flushes, flushes, "nothing new, nothing to flush");
    assert_eq!(store.stats().open_layer_bytes + store.stats().frozen_layer_bytes, 0);
}

#[test]
fn memory_stays_within_its_bound() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let timeline = store.timeline(T1).expect("a timeline");
    let other = store.timeline(TimelineNo(2)).expect("a timeline");
    let (layer_bytes, batch_bytes) = (small_config().layer_bytes as u64, 16 * 9000);
    for n in 0..1500u64 {
        let mut versions = Batch::new();
        (0..16).for_each(|m| versions.put(block((n * 16 + m) as u32 % 700), Lsn::new(n * 8), Kind::Image, PAGE));
        [&timeline, &other][(n / 100 % 2) as usize].put(&versions, Lsn::new(n * 8)).expect("put");
        let stats = store.stats();
        let taken = stats.open_layer_bytes + stats.frozen_layer_bytes;
        // A new chunk, a larger map: allocation goes in steps.
        assert!(taken <= layer_bytes + batch_bytes + (512 << 10), "{taken}");
    }
    for _ in 0..2 {
        // The second time there is nothing to write.
        timeline.flush(true).expect("flush");
        other.flush(true).expect("flush");
    }
    let stats = store.stats();
    assert_eq!(stats.open_layer_bytes + stats.frozen_layer_bytes, 0);
    assert_eq!(stats.flushed_versions, stats.put_versions + 2, "and two watermarks");
}

#[test]
fn a_page_cached_back_waits_for_a_watermark_at_or_above_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let timeline = store.timeline(T1).expect("a timeline");
    timeline
        .put(&batch(&[(block(1), 8, Kind::Image, PAGE), (block(1), 16, Kind::Delta, b"a")]), Lsn::new(16))
        .expect("put");
    let page = Bytes::from(vec![9; 8192]);
    timeline.cache_back(block(1), Lsn::new(16), page.clone());
    timeline.cache_back(block(1), Lsn::new(24), Bytes::from_static(b"of the future"));
    timeline.flush(false).expect("flush");
    assert_eq!(gather(&timeline, &block(1), 100).map(|found| found.0.len()), Ok(2), "not before the first watermark");
    timeline.flush(true).expect("flush");
    assert_eq!(gather(&timeline, &block(1), 100), Ok((vec![(16, Kind::Image, page.to_vec())], true)));
    assert_eq!(store.stats().cached_back_pages, 1);
    let all = timeline.history(&block(1), Lsn::ZERO..Lsn::MAX).expect("history");
    let all: Vec<_> = all.iter().map(|(lsn, kind, _)| (lsn.as_u64(), *kind)).collect();
    assert_eq!(all, [(16, Kind::Image), (16, Kind::Delta), (8, Kind::Image)]);

    let many = (0..1000).map(|n| timeline.cache_back(block(n), Lsn::new(16), page.clone())).count() as u64;
    let stats = store.stats();
    assert!(stats.cache_back_bytes <= small_config().cache_back_bytes as u64);
    assert!(stats.cache_back_dropped_pages > many / 2);
}

#[test]
fn a_flush_tells_of_long_chains_and_waits_for_nobody() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path(), &StoreConfig { long_chain_deltas_min: 3, ..small_config() }).expect("open");
    let timeline = store.timeline(T1).expect("a timeline");
    let mut lsn = 8;
    let mut put_deltas = |block_no, count| {
        for _ in 0..count {
            lsn += 8;
            timeline.put(&batch(&[(block(block_no), lsn, Kind::Delta, b"d")]), Lsn::new(lsn)).expect("put");
        }
        Lsn::new(lsn)
    };
    put_deltas(1, 4);
    timeline.flush(false).expect("flush");
    assert!(store.long_chains().is_empty(), "an import tells nothing");
    put_deltas(1, 3);
    put_deltas(2, 5);
    let made_lsn = put_deltas(3, 5);
    put_deltas(3, 2);
    put_deltas(4, 2);
    timeline.cache_back(block(3), made_lsn, Bytes::from(vec![9; 8192]));
    timeline.flush(true).expect("flush");
    let found = store.long_chains().try_recv().expect("told");
    let chains: Vec<_> = found.chains.iter().map(|chain| (chain.key, chain.delta_count)).collect();
    assert_eq!((found.timeline, chains), (T1, vec![(block(2), 5), (block(1), 3)]));

    for _ in 0..100 {
        put_deltas(1, 3);
        timeline.flush(true).expect("flush");
    }
    let stats = store.stats();
    assert_eq!(stats.long_chains, 102);
    assert!((1..100).contains(&stats.long_chains_untold), "{}", stats.long_chains_untold);
}

#[test]
fn pages_are_cached_back_though_nothing_new_comes() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = StoreConfig { flush_interval: Duration::from_millis(20), ..small_config() };
    let store = Store::open(dir.path(), &config).expect("open");
    let timeline = store.timeline(T1).expect("a timeline");
    timeline
        .put(&batch(&[(block(1), 8, Kind::Image, PAGE), (block(1), 16, Kind::Delta, b"a")]), Lsn::new(16))
        .expect("put");
    timeline.flush(true).expect("flush");
    let page = Bytes::from(vec![9; 8192]);
    timeline.cache_back(block(1), Lsn::new(16), page.clone());
    while store.stats().cached_back_pages == 0 {
        std::thread::sleep(Duration::from_millis(5)); // Until it comes: the test has no limit of its own.
    }
    assert_eq!(gather(&timeline, &block(1), 100), Ok((vec![(16, Kind::Image, page.to_vec())], true)));
    assert_eq!(timeline.watermark().map(|watermark| watermark.last_record_lsn), Some(Lsn::new(16)));
    assert_eq!(store.stats().cache_back_bytes, 0);
}

#[test]
fn a_deleted_timeline_is_gone_and_its_number_free() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let (kept, deleted) = (store.timeline(TimelineNo(2)).expect("a timeline"), store.timeline(T1).expect("a timeline"));
    let after = store.timeline(TimelineNo(u32::MAX)).expect("a timeline");
    for timeline in [&kept, &deleted, &after] {
        timeline.put(&batch(&[(block(1), 8, Kind::Image, PAGE)]), Lsn::new(8)).expect("put");
        timeline.flush(true).expect("flush");
        timeline.put(&batch(&[(block(2), 16, Kind::Image, PAGE)]), Lsn::new(16)).expect("put");
        timeline.cache_back(block(1), Lsn::new(8), Bytes::from_static(PAGE));
    }
    store.delete_timeline(T1).expect("delete");
    store.delete_timeline(TimelineNo(u32::MAX)).expect("delete");
    let gone = StoreError::TimelineDeleted { timeline: T1 };
    assert_eq!(deleted.put(&Batch::new(), Lsn::new(24)), Err(gone.clone()));
    assert_eq!(deleted.flush(true), Err(gone));
    assert_eq!(gather(&deleted, &block(1), 100), Ok((vec![], false)));
    kept.flush(true).expect("flush");
    assert_eq!(store.stats().cache_back_bytes + store.stats().open_layer_bytes, 0);

    let again = store.timeline(T1).expect("a timeline");
    assert_eq!((again.watermark(), gather(&again, &block(1), 100)), (None, Ok((vec![], false))));
    again.put(&batch(&[(block(1), 4, Kind::Image, b"new")]), Lsn::new(4)).expect("put");
    again.flush(true).expect("flush");
    store.compact_all();
    drop((kept, deleted, after, again, store));
    let store = open(dir.path());
    let found = |no: u32, block_no| {
        let timeline = store.timeline(TimelineNo(no)).expect("a timeline");
        gather(&timeline, &block(block_no), 100).expect("gather").0.len()
    };
    assert_eq!([found(1, 1), found(1, 2), found(2, 1), found(2, 2), found(u32::MAX, 1)], [1, 0, 1, 1, 0]);
}

#[test]
fn scan_newest_skips_over_long_histories() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let timeline = store.timeline(T1).expect("a timeline");
    let size = |rel_number| {
        Key::from(Object::RelationSize { rel: RelTag { spc_oid: 1, db_oid: 2, rel_number }, fork: ForkNumber::Main })
    };
    for n in 1..=1000u64 {
        let value = (n as u32).to_be_bytes();
        timeline
            .put(
                &batch(&[(size(1), n * 8, Kind::Image, &value), (size(2), n * 8, Kind::Image, &value)]),
                Lsn::new(n * 8),
            )
            .expect("put");
    }
    timeline.flush(true).expect("flush");
    let (first, last) = Key::relation_sizes_of_database(1, 2);
    for request in [1, 7, 8, 9, 500, 992, 1000] {
        let before = store.stats().rocksdb_seeks;
        let mut found = Vec::new();
        let mut each = |key, lsn: Lsn, kind, value: Bytes| {
            found.push((key, lsn.as_u64(), kind, value.to_vec()));
            ControlFlow::Continue(())
        };
        timeline.scan_newest(&first, &last, Lsn::new(request * 8), &mut each).expect("scan");
        let value = (request as u32).to_be_bytes().to_vec();
        assert_eq!(found, [1, 2].map(|rel| (size(rel), request * 8, Kind::Image, value.clone())));
        assert!(store.stats().rocksdb_seeks - before <= 5, "two for each key, one to begin");
    }
}

#[test]
fn an_open_looks_into_few_of_many_files() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = StoreConfig { file_bytes: 4 << 10, open_files_max: 64, ..small_config() };
    let store = Store::open(dir.path(), &config).expect("the store opens");
    let timeline = store.timeline(T1).expect("a timeline");
    let page: Vec<u8> = (0..8192u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for n in 0..1500 {
        timeline.put(&batch(&[(block(n), 8, Kind::Image, &page)]), Lsn::new(8)).expect("put");
    }
    timeline.flush(true).expect("flush");
    let files: u64 = store.stats().levels.iter().map(|level| level.files).sum();
    assert!(files > 200, "{files} files");
    drop((timeline, store));
    let store = Store::open(dir.path(), &config).expect("the store opens");
    let opened = store.stats().rocksdb_file_opens;
    assert!(opened <= u64::from(config.open_files_max), "{opened} of {files} files");
    let timeline = store.timeline(T1).expect("a timeline");
    (0..1500).for_each(|n| assert_eq!(gather(&timeline, &block(n), 8).map(|found| found.0.len()), Ok(1)));
}

#[test]
fn open_refuses_unusable_settings_by_name() {
    let dir = tempfile::tempdir().expect("a directory");
    type Spoil = fn(&mut StoreConfig);
    let cases: [(&str, Spoil); 5] = [
        ("layer_bytes", |config| config.layer_bytes = 0),
        ("block_bytes", |config| config.block_bytes = 0),
        ("background_jobs", |config| config.background_jobs = 0),
        ("level0_files_max", |config| config.level0_files_max = 0),
        ("flush_interval", |config| config.flush_interval = Duration::ZERO),
    ];
    for (name, spoil) in cases {
        let mut config = StoreConfig::default();
        spoil(&mut config);
        let refused = Store::open(dir.path(), &config).err();
        assert!(matches!(refused, Some(StoreError::Config { setting, .. }) if setting == name), "{refused:?}");
    }
}

#[test]
fn stats_serialise() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let timeline = store.timeline(T1).expect("a timeline");
    timeline.put(&batch(&[(block(1), 8, Kind::Image, PAGE)]), Lsn::new(8)).expect("put");
    timeline.flush(true).expect("flush");
    let stats = serde_json::to_value(store.stats()).expect("JSON");
    assert_eq!((stats["put_versions"].as_u64(), stats["flushed_versions"].as_u64()), (Some(1), Some(2)));
    assert!(stats["sst_bytes"].as_u64() > Some(0) && stats["sst_bytes"].as_u64() == Some(store.disk_bytes()));
    assert_eq!(
        stats["levels"].as_array().map(|levels| levels.iter().filter(|level| level["files"] == 1).count()),
        Some(1)
    );
}
