//! Goal: the oldest version that is late enough is found, wherever versions stand. Method: random numbers that grow, flushed at random,
//! against a walk; the number of probes where all is in RocksDB.

use keyenc::Object;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;

fn find(timeline: &TimelineStore, through: Lsn, least: u64, probes: &mut usize) -> Option<(Lsn, u64)> {
    let number = |value: &[u8]| u64::from_be_bytes(value.try_into().expect("8 bytes"));
    let found = timeline.first_version_where(&Object::CommitTime.into(), through, |_, value| {
        *probes += 1;
        Ok::<_, StoreError>(number(value) >= least)
    });
    found.expect("search").map(|(lsn, value)| (lsn, number(&value)))
}

#[test]
fn the_oldest_version_is_found_wherever_versions_stand() {
    for seed in 0..20 {
        println!("SEED={seed}");
        let mut random = SmallRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().expect("a directory");
        let store = open(dir.path());
        let timeline = store.timeline(TimelineNo(1)).expect("a timeline");
        // Neighbours on both sides: they must not be taken for versions of the object.
        let mut model: Vec<(Lsn, u64)> = Vec::new();
        let (mut lsn, mut number) = (1, 5);
        for _ in 0..random.random_range(0..150) {
            lsn += if random.random_bool(0.1) { 1 << random.random_range(4..40) } else { random.random_range(1..9) };
            number += random.random_range(0..3);
            let mut batch = Batch::new();
            batch.put(Object::Checkpoint.into(), Lsn::new(lsn), Kind::Image, b"neighbour");
            batch.put(Object::CommitTime.into(), Lsn::new(lsn), Kind::Image, &u64::to_be_bytes(number));
            batch.put(Object::Database { spc_oid: 0, db_oid: 0 }.into(), Lsn::new(lsn), Kind::Image, b"");
            timeline.put(&batch, Lsn::new(lsn)).expect("put");
            model.push((Lsn::new(lsn), number));
            if random.random_bool(0.05) {
                timeline.flush(true).expect("flush");
            }
        }
        let throughs = model.iter().flat_map(|(lsn, _)| [lsn.as_u64() - 1, lsn.as_u64()]).chain([0, u64::MAX]);
        for through in throughs.map(Lsn::new) {
            for least in [0, 5, number / 3, number / 2, number, number + 1, random.random_range(0..=number)] {
                let expected = model.iter().find(|(lsn, number)| *lsn <= through && *number >= least).copied();
                assert_eq!(find(&timeline, through, least, &mut 0), expected, "through {through}, at least {least}");
            }
        }
    }
}

#[test]
fn few_of_many_versions_are_looked_at() {
    const VERSIONS: u64 = 20_000;
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let timeline = store.timeline(TimelineNo(1)).expect("a timeline");
    let mut batch = Batch::new();
    for n in 1..=VERSIONS {
        batch.put(Object::CommitTime.into(), Lsn::new(n * n * 8), Kind::Image, &n.to_be_bytes());
    }
    timeline.put(&batch, Lsn::new(VERSIONS * VERSIONS * 8)).expect("put");
    timeline.flush(true).expect("flush");
    for least in [1, 2, 77, VERSIONS / 2, VERSIONS - 1, VERSIONS] {
        let mut probes = 0;
        assert_eq!(find(&timeline, Lsn::MAX, least, &mut probes), Some((Lsn::new(least * least * 8), least)));
        assert!(probes <= 64, "{probes} probes for {least}");
    }
}
