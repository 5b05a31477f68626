//! Goal: after a mend every read gives what was put, or says that it is lost; and the store is whole. Method: random versions and removals of two timelines, random
//! bytes of SST files changed, a mend, and every read asked of a model; each case of directories that a crash can leave.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

use keyenc::{Key, Kind, TimelineNo};
use postgres_ffi::{ForkNumber, PgVersion, RelTag};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::config::CONFIG_FILE_NAME;
use crate::store::{Batch, Gathered, Store, TimelineStore};
use crate::timeline::metadata::ClusterFacts;
use crate::timeline::{TenantId, TimelineId, TimelineMetadata};

const KINDS: [Kind; 4] = [Kind::Tombstone, Kind::Delta, Kind::InitDelta, Kind::Image];
const TIMELINES: [u32; 2] = [1, 2];
const SEEDS: u64 = 24;

type Versions = BTreeMap<(Lsn, Kind), Vec<u8>>;

/// One timeline as it must be.
#[derive(Default)]
struct Model {
    versions: BTreeMap<Key, Versions>,
    last_lsn: u64,
}

/// A data directory without a server.
struct Rig {
    dir: tempfile::TempDir,
    models: [Model; 2],
}

fn keys() -> Vec<Key> {
    let rel = |n| RelTag { spc_oid: 1663, db_oid: 5, rel_number: 16384 + n };
    let sizes = (0..40).map(|n| Key::from(keyenc::Object::RelationSize { rel: rel(n), fork: ForkNumber::Main }));
    let blocks = (0..160).map(|n| Key::block(rel(n / 40), ForkNumber::Main, n % 40));
    std::iter::once(Key::from(keyenc::Object::ControlFile)).chain(sizes).chain(blocks).collect()
}

fn metadata(no: u32) -> TimelineMetadata {
    TimelineMetadata {
        format: TimelineMetadata::format(),
        tenant_id: TenantId::generate(),
        timeline_id: TimelineId::generate(),
        timeline_no: no,
        name: format!("t{no}"),
        ancestor: None,
        cluster: ClusterFacts {
            pg_version: PgVersion::V17,
            system_identifier: 7,
            wal_segment_bytes: 16 << 20,
            data_checksums: false,
            pg_timeline_id: 1,
        },
        imported: None,
        primary: None,
        retention: None,
        gc: None,
    }
}

impl Rig {
    fn open(&self) -> std::sync::Arc<Store> {
        let (dir, config) = store_of(self.dir.path(), &Config::load(self.dir.path()).expect("the configuration"));
        Store::open(&dir, &config).expect("the store opens")
    }

    /// Random versions and removals, in some files of some levels.
    fn new(random: &mut SmallRng) -> Self {
        let mut rig = Rig { dir: tempfile::tempdir().expect("a directory"), models: Default::default() };
        fs::write(rig.dir.path().join(CONFIG_FILE_NAME), Config::default_file()).expect("written");
        for no in TIMELINES {
            let metadata = metadata(no);
            let dir = rig.dir.path().join("timelines").join(metadata.timeline_id.to_string());
            fs::create_dir_all(&dir).expect("made");
            metadata.save(&dir).expect("saved");
        }
        let store = rig.open();
        let keys = keys();
        for round in 0..4 {
            for (model, no) in rig.models.iter_mut().zip(TIMELINES) {
                let timeline = store.timeline(TimelineNo(no)).expect("a timeline");
                model.put_random(&timeline, &keys, round, random);
                timeline.flush(true).expect("flushed");
                if round > 0 && random.random_bool(0.5) {
                    model.remove_random(&timeline, random);
                }
            }
            if random.random_bool(0.3) {
                store.compact_all();
            }
        }
        drop(store);
        rig
    }

    /// Changes a few bytes of SST files. How many files there are.
    fn damage(&self, random: &mut SmallRng) {
        let files = sst_files(&self.dir.path().join("store"));
        for _ in 0..random.random_range(1..4) {
            let path = &files[random.random_range(0..files.len())];
            let file = fs::File::options().read(true).write(true).open(path).expect("opens");
            let at = random.random_range(0..file.metadata().expect("its length").len());
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).expect("read");
            file.write_all_at(&[byte[0] ^ 0x40], at).expect("written");
        }
    }

    fn mend(&self, options: &MendOptions) -> Result<MendReport, MendError> {
        mend(self.dir.path(), options, &mut |_| {})
    }
}

fn sst_files(store: &Path) -> Vec<PathBuf> {
    let entries =
        fs::read_dir(store.join("rocksdb")).expect("the directory").map(|entry| entry.expect("an entry").path());
    let mut files: Vec<_> = entries.filter(|path| path.extension().is_some_and(|it| it == "sst")).collect();
    files.sort_unstable();
    files
}

impl Model {
    fn put_random(&mut self, timeline: &TimelineStore, keys: &[Key], round: u64, random: &mut SmallRng) {
        let mut batch = Batch::new();
        for _ in 0..random.random_range(1..6) * 100 {
            self.last_lsn += 8;
            let lsn = Lsn::new(self.last_lsn);
            // The control file first, and once: what is asked of it is that it is there.
            let key = if self.last_lsn == 8 { keys[0] } else { keys[random.random_range(1..keys.len())] };
            let kind = if key.is_block() && round > 0 { KINDS[random.random_range(0..4)] } else { Kind::Image };
            let mut value = vec![0; if key.is_block() { random.random_range(1..2000) } else { 4 }];
            random.fill(&mut value[..]);
            batch.put(key, lsn, kind, &value);
            self.versions.entry(key).or_default().insert((lsn, kind), value);
        }
        timeline.put(&batch, Lsn::new(self.last_lsn)).expect("put");
    }

    /// As garbage collection does it, but at random.
    fn remove_random(&mut self, timeline: &TimelineStore, random: &mut SmallRng) {
        let mut sweep = timeline.begin_sweep();
        for (key, versions) in self.versions.iter_mut().skip(1) {
            versions.retain(|(lsn, kind), _| {
                let stays = random.random_bool(0.8);
                if !stays {
                    sweep.remove(key, *lsn, *kind).expect("removed");
                }
                stays
            });
        }
        sweep.finish().expect("swept");
    }

    /// Compares all reads. How many were right and how many lost.
    fn check(&self, timeline: &TimelineStore, context: &str) -> (u64, u64) {
        let (mut right, mut lost) = (0, 0);
        let keys = keys();
        let mut count = |is_lost: bool| *(if is_lost { &mut lost } else { &mut right }) += 1;
        for at in (1..=self.last_lsn / 8).step_by(23).map(|n| Lsn::new(n * 8)).chain([Lsn::new(self.last_lsn)]) {
            for key in &keys {
                let mut found = Gathered::default();
                match timeline.gather(key, at, &mut found) {
                    Ok(is_ended) => {
                        let found: Vec<_> =
                            found.versions.iter().map(|(lsn, kind, value)| (*lsn, *kind, value.to_vec())).collect();
                        assert_eq!((found, is_ended), self.chain(key, at), "{context}: {key} at {at}");
                        count(false);
                    }
                    Err(StoreError::Lost { key: lost_key, through_lsn }) => {
                        assert!(
                            lost_key == *key && through_lsn <= Lsn::new(self.last_lsn) && found.versions.is_empty()
                        );
                        count(true);
                    }
                    Err(error) => panic!("{context}: {key} at {at}: {error}"),
                }
            }
            for (first, last) in [(keys[1], keys[40]), (keys[7], keys[9]), (keys[3], keys[3])] {
                let mut found = Vec::new();
                let scanned = timeline.scan_newest(&first, &last, at, &mut |key, lsn, kind, value| {
                    found.push((key, lsn, kind, value.to_vec()));
                    ControlFlow::Continue(())
                });
                match scanned {
                    Ok(()) => {
                        assert_eq!(found, self.newest(&first, &last, at), "{context}: {first} to {last} at {at}");
                        count(false);
                    }
                    Err(StoreError::Lost { .. }) => count(true),
                    Err(error) => panic!("{context}: {first} to {last} at {at}: {error}"),
                }
            }
            for key in [keys[1], keys[20]] {
                let not_before = Lsn::new(at.as_u64() / 2);
                match timeline.first_version_where(&key, at, |lsn, _| Ok::<_, StoreError>(lsn >= not_before)) {
                    Ok(found) => {
                        let versions = self.versions.get(&key).into_iter().flatten();
                        let mut late = versions.filter(|((lsn, _), _)| (not_before..=at).contains(lsn));
                        assert_eq!(
                            found.map(|(lsn, _)| lsn),
                            late.next().map(|((lsn, _), _)| *lsn),
                            "{context}: {key}"
                        );
                        count(false);
                    }
                    Err(StoreError::Lost { .. }) => count(true),
                    Err(error) => panic!("{context}: {key} at {at}: {error}"),
                }
            }
        }
        (right, lost)
    }

    fn chain(&self, key: &Key, at: Lsn) -> (Vec<(Lsn, Kind, Vec<u8>)>, bool) {
        let mut chain = Vec::new();
        for ((lsn, kind), value) in
            self.versions.get(key).into_iter().flatten().rev().filter(|((lsn, _), _)| *lsn <= at)
        {
            chain.push((*lsn, *kind, value.clone()));
            if kind.ends_gather() {
                return (chain, true);
            }
        }
        (chain, false)
    }

    fn newest(&self, first: &Key, last: &Key, at: Lsn) -> Vec<(Key, Lsn, Kind, Vec<u8>)> {
        let newest = |(key, versions): (&Key, &Versions)| {
            let found = versions.iter().rev().find(|((lsn, _), _)| *lsn <= at);
            found.map(|((lsn, kind), value)| (*key, *lsn, *kind, value.clone()))
        };
        self.versions.range(*first..=*last).filter_map(newest).collect()
    }
}

#[test]
fn every_read_after_a_mend_is_right_or_says_that_it_is_lost() {
    let (mut mended, mut unopenable, mut right, mut lost, mut untouched) = (0, 0, 0, 0, 0);
    for seed in 0..SEEDS {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut rig = Rig::new(&mut random);
        // A second mend keeps what the first one lost.
        for mend_no in 0..2 {
            let context = format!("seed {seed}, mend {mend_no}");
            rig.damage(&mut random);
            let before = sst_files(&rig.dir.path().join("store"));
            match rig.mend(&MendOptions::default()) {
                Ok(report) if report.old_store.is_none() => {
                    assert!(report.files.is_empty() && report.timelines.is_empty(), "{context}: {report:?}");
                    untouched += 1; // What was changed is read by nobody, or holds what nobody reads.
                }
                Ok(report) => {
                    mended += 1;
                    let old_store = report.old_store.as_ref().expect("moved aside");
                    assert_eq!(sst_files(old_store).len(), before.len(), "{context}: the old store is as it was");
                }
                Err(MendError::Unopenable { names }) => {
                    assert!(!names.is_empty());
                    assert_eq!(sst_files(&rig.dir.path().join("store")), before, "{context}: nothing was changed");
                    unopenable += 1;
                    break;
                }
                // The first of RocksDB's own files.
                Err(error) => panic!("{context}: {error}"),
            }
            assert!(
                rig.mend(&MendOptions::default()).expect("whole").old_store.is_none(),
                "{context}: nothing is left to mend"
            );
            let store = rig.open();
            for (model, no) in rig.models.iter().zip(TIMELINES) {
                let timeline = store.timeline(TimelineNo(no)).expect("a timeline");
                assert_eq!(
                    timeline.watermark().map(|it| it.last_record_lsn),
                    Some(Lsn::new(model.last_lsn)),
                    "{context}"
                );
                let (right_here, lost_here) = model.check(&timeline, &context);
                assert!(timeline.lost().is_empty() == (lost_here == 0) || lost_here == 0, "{context}");
                right += right_here;
                lost += lost_here;
            }
            // It goes on, and what is written later can be read; what is lost stays lost.
            for (model, no) in rig.models.iter_mut().zip(TIMELINES) {
                let timeline = store.timeline(TimelineNo(no)).expect("a timeline");
                model.put_random(&timeline, &keys(), 5, &mut random);
                let in_memory = model.check(&timeline, &context);
                timeline.flush(true).expect("flushed");
                assert_eq!(model.check(&timeline, &context), in_memory, "{context}");
            }
        }
    }
    println!("mended {mended}, unopenable {unopenable}, untouched {untouched}; reads right {right}, lost {lost}");
    assert!(mended > SEEDS / 3 && lost > 100 && right > 4 * lost, "{mended} {lost} {right}");
}

#[test]
fn a_timeline_that_cannot_be_opened_is_named_and_can_be_given_up() {
    let mut random = SmallRng::seed_from_u64(7);
    let rig = Rig::new(&mut random);
    let store = rig.open();
    store.compact_all();
    drop(store);
    // The first block of the first file begins with the first timeline's watermark.
    let file = fs::File::options().write(true).open(&sst_files(&rig.dir.path().join("store"))[0]).expect("opens");
    file.write_all_at(&[0xA5; 16], 40).expect("written");
    let named = match rig.mend(&MendOptions::default()) {
        Err(MendError::Unopenable { names }) => names,
        other => panic!("{other:?}"),
    };
    assert_eq!(named, ["t1"]);
    let missing = MendOptions { give_up: vec!["t9".to_owned()], ..MendOptions::default() };
    assert!(matches!(rig.mend(&missing), Err(MendError::NotThere { name }) if name == "t9"));
    let dry = MendOptions { give_up: named.clone(), dry_run: true };
    let report = rig.mend(&dry).expect("told");
    assert!(report.old_store.is_none() && report.timelines.iter().any(|it| it.name == "t1" && it.is_given_up));
    let report = rig.mend(&MendOptions { give_up: named, dry_run: false }).expect("mended");
    assert!(report.old_store.is_some());
    let left = StoppedTimeline::all(rig.dir.path()).expect("listed");
    assert_eq!(left.iter().map(|it| it.metadata.name.as_str()).collect::<Vec<_>>(), ["t2"]);
    let store = rig.open();
    assert_eq!(store.timeline(TimelineNo(1)).expect("empty").watermark(), None);
    let (right, lost) = rig.models[1].check(&store.timeline(TimelineNo(2)).expect("a timeline"), "the other");
    assert!(right > 1000 && lost < right, "{right} {lost}");
}

#[test]
fn a_file_of_level_0_that_cannot_be_opened_costs_its_own_timeline_alone() {
    let mut random = SmallRng::seed_from_u64(9);
    let mut rig = Rig::new(&mut random);
    let store = rig.open();
    store.compact_all();
    let timeline = store.timeline(TimelineNo(2)).expect("a timeline");
    rig.models[1].put_random(&timeline, &keys(), 5, &mut random);
    timeline.flush(true).expect("flushed");
    let levels = store.stats().levels;
    drop((timeline, store));
    assert_eq!(levels.first().map(|level| level.files), Some(1), "{levels:?}");
    // The newest file; its footer says where its index is.
    let files = sst_files(&rig.dir.path().join("store"));
    let file = fs::File::options().write(true).open(files.last().expect("a file")).expect("opens");
    let length = file.metadata().expect("its length").len();
    file.write_all_at(&[0xA5; 40], length - 45).expect("written");
    match rig.mend(&MendOptions { dry_run: true, ..MendOptions::default() }) {
        Err(MendError::Unopenable { names }) => assert_eq!(names, ["t2"]),
        other => panic!("{other:?}"),
    }
    let report = rig.mend(&MendOptions { give_up: vec!["t2".to_owned()], dry_run: false }).expect("mended");
    assert!(report.old_store.is_some() && report.files.len() == 1, "{report:?}");
    assert!(!rig.dir.path().join("store.view").exists());
    let store = rig.open();
    let (right, lost) = rig.models[0].check(&store.timeline(TimelineNo(1)).expect("a timeline"), "the other");
    assert!(right > 1000 && lost == 0, "{right} {lost} {report:?}");
}

#[test]
fn what_a_crash_leaves_is_settled_by_the_next_open() {
    let mut random = SmallRng::seed_from_u64(8);
    let rig = Rig::new(&mut random);
    let store = rig.dir.path().join("store");
    let beside = |suffix: &str| rig.dir.path().join(format!("store.{suffix}"));
    let is_right = || {
        let store = rig.open();
        let (right, lost) = rig.models[0].check(&store.timeline(TimelineNo(1)).expect("a timeline"), "a crash");
        assert!(right > 1000 && lost == 0);
    };
    // Not finished: it goes.
    copy_dir(&store, &beside("mending"));
    fs::remove_file(&sst_files(&beside("mending"))[0]).expect("removed");
    is_right();
    assert!(!beside("mending").exists());
    // Whole, and the old one still in its place.
    fs::rename(&store, beside("mended")).expect("renamed");
    fs::create_dir_all(store.join("rocksdb")).expect("made");
    let dry_run = MendOptions { dry_run: true, ..MendOptions::default() };
    assert!(matches!(rig.mend(&dry_run), Err(MendError::Unsettled { .. })));
    is_right();
    assert!(!beside("mended").exists() && beside("damaged-1").exists());
    // Whole, and the old one moved aside.
    fs::rename(&store, beside("mended")).expect("renamed");
    is_right();
    assert!(!beside("mended").exists() && !beside("damaged-2").exists());
    // The store is gone, but one that was moved aside is there: no empty one takes its place.
    fs::rename(&store, rig.dir.path().join("elsewhere")).expect("renamed");
    let (dir, config) = store_of(rig.dir.path(), &Config::load(rig.dir.path()).expect("the configuration"));
    let refused = Store::open(&dir, &config).map(drop).expect_err("no store").to_string();
    assert!(refused.contains("damaged-1"), "{refused}");
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    for entry in fs::read_dir(from).expect("listed") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        match entry.file_type().expect("its type").is_dir() {
            true => copy_dir(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).expect("copied")),
        }
    }
}
