//! Goal: what garbage collection removes is gone at once and altogether, and its space comes back. Method: random pages, so that nothing is
//! compressed away.

use std::ops::ControlFlow;

use keyenc::Object;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::store::gather::gather_from;
use crate::store::layer_map::LayerMap;

#[test]
fn removed_versions_give_their_space_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let timeline = store.timeline(T1).unwrap();
    let mut rng = SmallRng::seed_from_u64(7);
    for n in 1..=20 {
        let mut batch = Batch::new();
        for block_no in 0..50 {
            let mut page = vec![0; 8192];
            rng.fill(&mut page[..]);
            batch.put(block(block_no), Lsn::new(n * 8), Kind::Image, &page);
        }
        timeline.put(&batch, Lsn::new(n * 8)).unwrap();
        timeline.flush(true).unwrap();
    }
    let bytes_before = store.disk_bytes();
    let mut set = timeline.begin_sweep();
    let (mut seen, mut removed) = (0, 0);
    let whole = timeline.walk_durable(&Key::from(Object::Watermark), &mut |version| {
        seen += 1;
        if version.key.is_block() && version.lsn < Lsn::new(19 * 8) {
            set.remove(&version.key, version.lsn, version.kind)?;
            removed += 1;
        }
        Ok::<_, StoreError>(ControlFlow::Continue(()))
    });
    assert_eq!((whole.unwrap(), seen, removed), (true, 20 * 50 + 20, 18 * 50));
    set.finish().unwrap();
    let read = |lsn| {
        let mut found = Gathered::default();
        timeline.gather(&block(3), Lsn::new(lsn), &mut found).unwrap();
        found.versions.first().map(|(lsn, ..)| lsn.as_u64() / 8)
    };
    assert_eq!((read(18 * 8), read(19 * 8), read(20 * 8)), (None, Some(19), Some(20)));
    assert!(timeline.compact_removed(&mut |_| false) > 0);
    assert_eq!((read(18 * 8), read(19 * 8), read(20 * 8)), (None, Some(19), Some(20)));
    assert!(store.disk_bytes() * 5 < bytes_before, "{} of {bytes_before} bytes are left", store.disk_bytes());
    // Nobody removes anything in a timeline that is gone.
    let mut set = timeline.begin_sweep();
    set.remove(&block(3), Lsn::new(19 * 8), Kind::Image).unwrap();
    store.delete_timeline(T1).unwrap();
    assert!(matches!(set.finish(), Err(StoreError::TimelineDeleted { .. })));
}

#[test]
fn a_reader_that_stood_still_during_a_collection_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let timeline = store.timeline(T1).unwrap();
    let key = block(0);
    let delta = |lsn: u64| (key, lsn, Kind::Delta, &b"delta"[..]);
    let old = (key, 8, Kind::Image, &b"old"[..]);
    timeline.put(&batch(&[old, delta(16), delta(24)]), Lsn::new(24)).unwrap();
    timeline.flush(true).unwrap();
    timeline.put(&batch(&[delta(32), delta(40)]), Lsn::new(40)).unwrap();
    // It has its layers, and stands still.
    let layers = timeline.state().layers.current();
    timeline.flush(true).unwrap();
    // The horizon is 40, and somebody has pinned 8.
    let mut set = timeline.begin_sweep();
    for lsn in [16, 24, 32, 40] {
        set.remove(&key, Lsn::new(lsn), Kind::Delta).unwrap();
    }
    set.put_image(&key, Lsn::new(40), b"new").unwrap();
    set.finish().unwrap();

    let go_on = |layer_map: &LayerMap| {
        let (inner, mut found) = (store.inner(), Gathered::default());
        let request_lsn = Lsn::new(40);
        let gathered = gather_from(&inner.db, T1, (layer_map, &layers), &key, request_lsn, &mut found, &inner.counters);
        (gathered.unwrap(), found.versions.iter().map(|(lsn, ..)| lsn.as_u64()).collect::<Vec<_>>())
    };
    let unaware = LayerMap::new(layers.covered_above);
    assert_eq!(go_on(&unaware), (Some(true), vec![40, 32, 8]), "what must not be: records 16 and 24 are not in it");
    assert_eq!(go_on(&timeline.state().layers), (None, vec![]));
    assert_eq!(gather(&timeline, &key, 40).unwrap(), (vec![(40, Kind::Image, b"new".to_vec())], true));
}
