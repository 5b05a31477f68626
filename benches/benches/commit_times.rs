//! From a time to an LSN over a long history: a million commit times, some 100 bytes to 1 MiB of WAL between two of them.
//!
//! The search alone, as `Timeline::lsn_at_time` does it in each timeline; the read of the time that is known there comes on top.
//! Fixed seed. *flushed*: all in RocksDB and in the block cache; *reopened*: the first search after the store was opened, blocks from the
//! operating system's cache; *in memory*: the newest commits not yet flushed, as many as given, and times asked from before them, so that all are walked over.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use benches::is_full_size;
use criterion::{Criterion, criterion_group, criterion_main};
use keyenc::{Key, Kind, Object, TimelineNo};
use pageserver::ingest::CommitTime;
use pageserver::store::{Batch, Gathered, Store, StoreConfig, StoreError, TimelineStore};
use postgres_ffi::Lsn;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const SEED: u64 = 42;

struct History {
    store: Arc<Store>,
    timeline: Arc<TimelineStore>,
    last: (Lsn, i64),
    random: SmallRng,
}

impl History {
    fn open(dir: &Path) -> Self {
        let config = StoreConfig { flush_interval: Duration::from_secs(3600), ..StoreConfig::default() };
        let store = Store::open(dir, &config).expect("the store opens");
        let timeline = store.timeline(TimelineNo(1)).expect("a timeline");
        History { store, timeline, last: (Lsn::new(0x100_0028), 0), random: SmallRng::seed_from_u64(SEED) }
    }

    fn grow(&mut self, commits: u64) {
        let mut batch = Batch::new();
        for n in 1..=commits {
            let before_lsn = Some(self.last.0);
            let wal_bytes = 1 << self.random.random_range(7..20);
            let time = self.last.1 + self.random.random_range(1000..100_000);
            self.last = (self.last.0.checked_add(wal_bytes).expect("an LSN"), time);
            let value = CommitTime { time, before_lsn };
            batch.put(Object::CommitTime.into(), self.last.0, Kind::Image, &value.encode());
            if batch.len() == 1000 || n == commits {
                self.timeline.put(&batch, self.last.0).expect("put");
                batch.clear();
            }
        }
    }

    /// As `Timeline::lsn_at_time`: the first commit after, then what is known before it.
    fn lsn_at(&self, time: i64) -> Lsn {
        let key = Key::from(Object::CommitTime);
        let is_later =
            |_, value: &[u8]| Ok::<_, StoreError>(CommitTime::decode(value).is_none_or(|stored| stored.time > time));
        let later = self.timeline.first_version_where(&key, self.last.0, is_later).expect("search");
        let lsn = later.and_then(|(_, value)| CommitTime::decode(&value)?.before_lsn).unwrap_or(self.last.0);
        let mut found = Gathered::default();
        self.timeline.gather(&key, lsn, &mut found).expect("gather");
        black_box(found);
        lsn
    }
}

fn search(c: &mut Criterion) {
    let (commits, in_memory) = if is_full_size() { (1_000_000, vec![10_000, 100_000]) } else { (2_000, vec![100]) };
    let dir = tempfile::tempdir().expect("a directory");
    let mut history = History::open(dir.path());
    history.grow(commits);
    history.timeline.flush(true).expect("flush");
    let last = history.last;
    drop((history.timeline, history.store));

    let mut history = History::open(dir.path());
    history.last = last;
    let begun = Instant::now();
    black_box(history.lsn_at(last.1 / 3));
    println!("{commits} commits over {last:?}; reopened: {:?}", begun.elapsed());

    let mut group = c.benchmark_group("lsn_at_time");
    let mut random = SmallRng::seed_from_u64(SEED);
    group.bench_function("flushed", |b| b.iter(|| history.lsn_at(random.random_range(0..last.1))));
    let mut grown = 0;
    for commits in in_memory {
        history.grow(commits - grown);
        grown = commits;
        group.bench_function(format!("in_memory_{commits}"), |b| {
            b.iter(|| history.lsn_at(random.random_range(0..last.1)))
        });
    }
    group.finish();
}

criterion_group!(benches, search);
criterion_main!(benches);
