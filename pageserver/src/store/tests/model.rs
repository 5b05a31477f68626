//! Goal: the store reads what was put, whatever was flushed, cached back, made of heavy chains, deleted or lost in a crash in between.
//! Method: random operations on two timelines against a `BTreeMap`; `SEED=42 cargo test` replays one run.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use bytes::Bytes;
use keyenc::Object;
use postgres_ffi::SlruKind;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;

const KINDS: [Kind; 4] = [Kind::Tombstone, Kind::Delta, Kind::InitDelta, Kind::Image];
const TIMELINES: usize = 2;
const OPERATIONS: usize = 250;

/// (LSN, kind) -> value, of one key.
type Versions = BTreeMap<(u64, Kind), Vec<u8>>;

/// One timeline as it must be.
#[derive(Default)]
struct Model {
    versions: BTreeMap<Key, Versions>,
    /// Pages that may have been cached back.
    cached_back: BTreeMap<(Key, u64), Vec<u8>>,
    last_record_lsn: u64,
}

impl Model {
    fn put(&mut self, key: Key, lsn: u64, kind: Kind, value: &[u8]) {
        self.versions.entry(key).or_default().insert((lsn, kind), value.to_vec());
    }

    /// Newest first, down to the one that ends the gather.
    fn chain(&self, key: &Key, request_lsn: u64) -> Chain {
        let mut chain = Vec::new();
        let versions = self.versions.get(key).into_iter().flatten();
        for ((lsn, kind), value) in versions.rev().filter(|((lsn, _), _)| *lsn <= request_lsn) {
            chain.push((*lsn, *kind, value.clone()));
            if kind.ends_gather() {
                return (chain, true);
            }
        }
        (chain, false)
    }

    /// `found` is the chain, or it ends earlier with a page that was cached back at the LSN of a delta.
    fn check_chain(&self, key: &Key, request_lsn: u64, found: &Chain) {
        let (expect, ends) = self.chain(key, request_lsn);
        let page_at_end =
            found.0.split_last().filter(|((lsn, kind, page), _)| self.is_cached_back(key, *lsn, *kind, page));
        if let (Some(((lsn, ..), newer)), true) = (page_at_end, found.1) {
            assert_eq!(newer, &expect[..newer.len()], "{key} at {request_lsn}");
            assert_eq!(expect[newer.len()].0, *lsn, "a cached page stands for the versions from its LSN on");
            return;
        }
        assert_eq!(found, &(expect, ends), "{key} at {request_lsn}");
    }

    fn is_cached_back(&self, key: &Key, lsn: u64, kind: Kind, value: &[u8]) -> bool {
        kind == Kind::Image && self.cached_back.get(&(*key, lsn)).is_some_and(|page| page == value)
    }
}

struct Run {
    dir: tempfile::TempDir,
    store: Arc<Store>,
    random: SmallRng,
    keys: Vec<Key>,
    models: [Model; TIMELINES],
}

impl Run {
    fn new(seed: u64) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = open(dir.path());
        let rel = |rel_number| RelTag { spc_oid: 1663, db_oid: 5, rel_number };
        let mut keys: Vec<Key> = (0..30).map(|n| Key::block(rel(16384 + n % 3), ForkNumber::Main, n * 7)).collect();
        keys.extend((0..6).map(|n| Key::from(Object::RelationSize { rel: rel(16384 + n), fork: ForkNumber::Main })));
        keys.extend((0..4).map(|n| Key::from(Object::SlruPage { kind: SlruKind::Clog, page_no: n })));
        keys.extend([Object::Checkpoint, Object::Database { spc_oid: 1663, db_oid: 5 }].map(Key::from));
        Run { dir, store, random: SmallRng::seed_from_u64(seed), keys, models: Default::default() }
    }

    fn timeline(&self, n: usize) -> Arc<TimelineStore> {
        self.store.timeline(TimelineNo(n as u32 + 1)).expect("a timeline")
    }

    fn any_key(&mut self) -> Key {
        self.keys[self.random.random_range(0..self.keys.len())]
    }

    fn any_lsn(&mut self, n: usize) -> u64 {
        self.random.random_range(0..=self.models[n].last_record_lsn + 4)
    }

    fn step(&mut self) {
        let n = self.random.random_range(0..TIMELINES);
        match self.random.random_range(0..100) {
            0..30 => self.put(n),
            30..60 => (0..4).for_each(|_| self.gather(n)),
            60..70 => self.scan(n),
            70..78 => self.history(n),
            78..84 => self.cache_back(n),
            84..88 => self.settle(n),
            88..94 => self.flush(n),
            94..97 => self.crash(),
            97..99 => self.store.compact_all(),
            _ => self.delete(n),
        }
    }

    fn put(&mut self, n: usize) {
        let mut versions = Batch::new();
        for _ in 0..self.random.random_range(0..40) {
            self.models[n].last_record_lsn += 8;
            let lsn = self.models[n].last_record_lsn;
            for _ in 0..self.random.random_range(0..4) {
                let kind = KINDS[[0, 1, 1, 1, 1, 1, 1, 2, 3][self.random.random_range(0..9)]];
                let length = [0, 4, 150, 8192][self.random.random_range(0..4)];
                let mut value = vec![self.random.random::<u8>(); length];
                value.extend_from_slice(&lsn.to_be_bytes()[..length.min(8)]);
                let key = self.any_key();
                versions.put(key, Lsn::new(lsn), kind, &value);
                self.models[n].put(key, lsn, kind, &value);
            }
        }
        self.timeline(n).put(&versions, Lsn::new(self.models[n].last_record_lsn)).expect("put");
    }

    fn gather(&mut self, n: usize) {
        let (key, request_lsn) = (self.any_key(), self.any_lsn(n));
        let found = gather(&self.timeline(n), &key, request_lsn).expect("gather");
        self.models[n].check_chain(&key, request_lsn, &found);
    }

    fn scan(&mut self, n: usize) {
        let (a, b, request_lsn) = (self.any_key(), self.any_key(), self.any_lsn(n));
        let (first, last) = (a.min(b), a.max(b));
        let mut found = Vec::new();
        let mut each = |key, lsn: Lsn, kind, value: Bytes| {
            found.push((key, lsn.as_u64(), kind, value.to_vec()));
            ControlFlow::Continue(())
        };
        self.timeline(n).scan_newest(&first, &last, Lsn::new(request_lsn), &mut each).expect("scan");
        let model = &self.models[n];
        let expect: Vec<_> = model
            .versions
            .range(first..=last)
            .filter_map(|(key, _)| Some((*key, model.chain(key, request_lsn).0.first()?.clone())))
            .collect();
        assert_eq!(
            found.iter().map(|found| found.0).collect::<Vec<_>>(),
            expect.iter().map(|e| e.0).collect::<Vec<_>>()
        );
        for ((key, lsn, kind, value), (_, newest)) in found.into_iter().zip(expect) {
            let is_page_instead = model.is_cached_back(&key, lsn, kind, &value) && lsn == newest.0;
            assert!(is_page_instead || (lsn, kind, value) == newest, "{key} at {request_lsn}");
        }
    }

    fn history(&mut self, n: usize) {
        let (key, a, b) = (self.any_key(), self.any_lsn(n), self.any_lsn(n));
        let range = a.min(b)..a.max(b);
        let found = self.timeline(n).history(&key, Lsn::new(range.start)..Lsn::new(range.end)).expect("history");
        let model = &self.models[n];
        let mut expect: Versions = model.versions.get(&key).cloned().unwrap_or_default();
        expect.retain(|(lsn, _), _| range.contains(lsn));
        let mut last = None;
        for (lsn, kind, value) in found {
            let at = (lsn.as_u64(), kind);
            assert!(last.is_none_or(|last| at < last), "newest first, each once");
            last = Some(at);
            match expect.remove(&at) {
                Some(expected) => assert_eq!(value, expected, "{key} {at:?}"),
                None => assert!(model.is_cached_back(&key, at.0, kind, &value), "{key} {at:?} was never put"),
            }
        }
        assert_eq!(expect, Versions::new(), "missing from the history of {key}");
    }

    fn cache_back(&mut self, n: usize) {
        let (key, request_lsn) = (self.any_key(), self.any_lsn(n));
        let (chain, ends) = self.models[n].chain(&key, request_lsn);
        let Some((lsn, Kind::Delta, _)) = chain.first() else { return };
        if ends && chain.last().is_some_and(|(_, kind, _)| *kind != Kind::Tombstone) {
            let page = format!("{key} as of {lsn}").into_bytes();
            self.models[n].cached_back.insert((key, *lsn), page.clone());
            self.timeline(n).cache_back(key, Lsn::new(*lsn), Bytes::from(page));
        }
    }

    /// What comes of a chain that is too heavy: an image where it ends, or its true weight.
    fn settle(&mut self, n: usize) {
        let (key, request_lsn) = (self.any_key(), self.any_lsn(n).min(self.models[n].last_record_lsn));
        let timeline = self.timeline(n);
        let mut found = Gathered::default();
        timeline.gather(&key, Lsn::new(request_lsn), &mut found).expect("gather");
        let weight = Settled::Weighs(TimelineStore::weight_of(&found));
        let (chain, ends) = self.models[n].chain(&key, request_lsn);
        let settled = match chain.first() {
            Some((lsn, Kind::Delta, _)) if ends && self.random.random_bool(0.8) => {
                let page = format!("{key} as of {lsn}").into_bytes();
                self.models[n].cached_back.insert((key, *lsn), page.clone());
                Settled::Made(Lsn::new(*lsn), Bytes::from(page))
            }
            _ => weight,
        };
        timeline.settle(&key, Lsn::new(request_lsn), &settled);
        self.check_weights(n);
    }

    /// No chain weighs more than it is known to.
    fn check_weights(&self, n: usize) {
        let timeline = self.timeline(n);
        for key in &self.keys {
            let mut found = Gathered::default();
            timeline.gather(key, Lsn::MAX, &mut found).expect("gather");
            assert!(TimelineStore::weight_of(&found) <= timeline.known_weight(key), "{key}");
        }
    }

    fn flush(&mut self, n: usize) {
        let publish = self.random.random_bool(0.7);
        let timeline = self.timeline(n);
        timeline.flush(publish).expect("flush");
        self.check_weights(n);
        if publish {
            assert_eq!(timeline.watermark().map(|w| w.last_record_lsn), Some(Lsn::new(self.models[n].last_record_lsn)));
        }
    }

    /// Forgets what was not flushed, checks what must have stayed, and puts the rest again, as from WAL.
    fn crash(&mut self) {
        let dir = self.dir.path().to_owned();
        // Closes before it opens: one process at a time.
        let elsewhere = tempfile::tempdir().expect("a directory");
        self.store = open(elsewhere.path());
        self.store = open(&dir);
        for n in 0..TIMELINES {
            let timeline = self.timeline(n);
            let watermark_lsn = timeline.watermark().map_or(0, |watermark| watermark.last_record_lsn.as_u64());
            assert!(watermark_lsn <= self.models[n].last_record_lsn);
            for key in self.keys.clone() {
                let found = gather(&timeline, &key, watermark_lsn).expect("gather");
                self.models[n].check_chain(&key, watermark_lsn, &found);
            }
            self.put_again(n, watermark_lsn);
            self.check_weights(n);
        }
    }

    fn put_again(&mut self, n: usize, watermark_lsn: u64) {
        let mut by_lsn: BTreeMap<u64, Vec<_>> = BTreeMap::new();
        for (key, versions) in &self.models[n].versions {
            for ((lsn, kind), value) in versions.range((watermark_lsn + 1, Kind::Tombstone)..) {
                by_lsn.entry(*lsn).or_default().push((*key, *kind, value));
            }
        }
        let timeline = self.timeline(n);
        for (lsn, versions) in by_lsn {
            let mut again = Batch::new();
            versions.iter().for_each(|(key, kind, value)| again.put(*key, Lsn::new(lsn), *kind, value));
            timeline.put(&again, Lsn::new(lsn)).expect("put again");
        }
        timeline.put(&Batch::new(), Lsn::new(self.models[n].last_record_lsn)).expect("put again");
    }

    fn delete(&mut self, n: usize) {
        self.store.delete_timeline(TimelineNo(n as u32 + 1)).expect("delete");
        self.models[n] = Model::default();
    }

    fn check_everything(&mut self) {
        for n in 0..TIMELINES {
            let timeline = self.timeline(n);
            let lsns: BTreeSet<u64> = self.models[n].versions.values().flatten().map(|((lsn, _), _)| *lsn).collect();
            for key in self.keys.clone() {
                for lsn in lsns.iter().step_by(7).chain([&u64::MAX]) {
                    let found = gather(&timeline, &key, *lsn).expect("gather");
                    self.models[n].check_chain(&key, *lsn, &found);
                }
            }
        }
    }
}

fn run(seed: u64) {
    println!("SEED={seed}");
    let mut run = Run::new(seed);
    for _ in 0..OPERATIONS {
        run.step();
    }
    run.check_everything();
    run.crash();
    run.check_everything();
}

#[test]
fn reads_what_was_put() {
    match std::env::var("SEED") {
        Ok(seed) => run(seed.parse().expect("SEED is a number")),
        Err(_) => (0..8).for_each(|_| run(rand::random())),
    }
}
