//! Versions that are read often, in memory: materialised pages, relation sizes, other objects.
//!
//! - An entry says what an object was from one LSN (its version) *through* another (the highest LSN for which that is known).
//! - Never answers for an LSN outside of that range. To go beyond, the caller proves that nothing changed in between.
//! - Pages stand here with their checksum, ready to be sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use keyenc::{Key, TimelineNo};
use postgres_ffi::Lsn;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

/// What an entry costs besides its value: key, range, list links.
const ENTRY_OVERHEAD_BYTES: u64 = 128;
/// Expected size of an entry when the cache sizes its tables.
const ENTRY_BYTES_ESTIMATED: u64 = 4096;

/// An object as of an LSN; `None` when it does not exist there.
pub type CachedValue = Option<Bytes>;

struct Entry {
    /// LSN of the version; `None` for an object that never was.
    from: Option<Lsn>,
    /// Known to be the newest version up to here, inclusive. Only grows.
    through: AtomicU64,
    value: CachedValue,
}

#[derive(Clone)]
struct Weight;

impl Weighter<(TimelineNo, Key), Arc<Entry>> for Weight {
    fn weight(&self, _key: &(TimelineNo, Key), entry: &Arc<Entry>) -> u64 {
        ENTRY_OVERHEAD_BYTES + entry.value.as_ref().map_or(0, |value| value.len() as u64)
    }
}

/// Bounded by bytes, shared by all timelines.
pub struct VersionCache {
    entries: Cache<(TimelineNo, Key), Arc<Entry>, Weight>,
    hits: AtomicU64,
    misses: AtomicU64,
}

/// How often the cache answered.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct VersionCacheStats {
    /// Reads answered from memory.
    pub hits: u64,
    /// Reads that went to the store.
    pub misses: u64,
    /// Bytes held.
    pub bytes: u64,
}

impl VersionCache {
    /// An empty cache of at most `bytes_max` bytes.
    pub fn new(bytes_max: u64) -> Self {
        let estimated = usize::try_from(bytes_max / ENTRY_BYTES_ESTIMATED).unwrap_or(usize::MAX).max(64);
        VersionCache {
            entries: Cache::with_weighter(estimated, bytes_max, Weight),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    /// The object as of `request_lsn`, if it is known here. `unchanged(after, through)` must be true only if no version of the
    /// object lies above `after` and at or below `through`; it is asked when `request_lsn` is above what the entry knows.
    pub fn get(
        &self,
        timeline: TimelineNo,
        key: &Key,
        request_lsn: Lsn,
        unchanged: impl FnOnce(Lsn, Lsn) -> bool,
    ) -> Option<CachedValue> {
        let found = self.entries.get(&(timeline, *key)).filter(|entry| {
            let through = Lsn::new(entry.through.load(Ordering::Acquire));
            if entry.from.is_some_and(|from| request_lsn < from) {
                return false;
            }
            if request_lsn <= through {
                // An absent object has no version LSN; it is known to be absent at `through` alone and upwards.
                return entry.from.is_some() || request_lsn == through;
            }
            let is_unchanged = unchanged(through, request_lsn);
            if is_unchanged {
                entry.through.fetch_max(request_lsn.as_u64(), Ordering::AcqRel);
            }
            is_unchanged
        });
        let counter = if found.is_some() { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        found.map(|entry| entry.value.clone())
    }

    /// Remembers `value` as the version of `from`, known to be the newest at `through`. An entry of a newer version stays.
    pub fn insert(&self, timeline: TimelineNo, key: &Key, from: Option<Lsn>, through: Lsn, value: CachedValue) {
        assert!(from <= Some(through));
        let slot = (timeline, *key);
        let is_older = self.entries.peek(&slot).is_some_and(|held| {
            held.from > from || (held.from == from && held.through.load(Ordering::Acquire) >= through.as_u64())
        });
        if !is_older {
            let through = AtomicU64::new(through.as_u64());
            self.entries.insert(slot, Arc::new(Entry { from, through, value }));
        }
    }

    /// Counters since the start.
    pub fn stats(&self) -> VersionCacheStats {
        VersionCacheStats {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            bytes: self.entries.weight(),
        }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: an answer only for LSNs that the entry speaks of. Method: one entry, reads around its range.

    use keyenc::Object;

    use super::*;

    const TIMELINE: TimelineNo = TimelineNo(1);

    fn lsn(value: u64) -> Lsn {
        Lsn::new(value)
    }

    #[test]
    fn answers_within_its_range_and_asks_beyond() {
        let cache = VersionCache::new(1 << 20);
        let key = Key::from(Object::Checkpoint);
        let never = |_, _| -> bool { panic!("must not be asked") };
        assert!(cache.get(TIMELINE, &key, lsn(50), never).is_none());
        cache.insert(TIMELINE, &key, Some(lsn(10)), lsn(20), Some(Bytes::from_static(b"x")));
        for request in [10, 15, 20] {
            assert_eq!(cache.get(TIMELINE, &key, lsn(request), never), Some(Some(Bytes::from_static(b"x"))));
        }
        assert!(cache.get(TIMELINE, &key, lsn(9), never).is_none());
        assert!(cache.get(TimelineNo(2), &key, lsn(15), never).is_none());
        assert!(
            cache
                .get(TIMELINE, &key, lsn(30), |after, through| {
                    assert_eq!((after, through), (lsn(20), lsn(30)));
                    false
                })
                .is_none()
        );
        assert!(cache.get(TIMELINE, &key, lsn(30), |_, _| true).is_some());
        assert!(cache.get(TIMELINE, &key, lsn(30), never).is_some(), "what was proven is remembered");
    }

    #[test]
    fn an_older_version_does_not_replace_a_newer_one() {
        let cache = VersionCache::new(1 << 20);
        let key = Key::from(Object::Checkpoint);
        cache.insert(TIMELINE, &key, Some(lsn(10)), lsn(20), Some(Bytes::from_static(b"new")));
        cache.insert(TIMELINE, &key, Some(lsn(5)), lsn(9), Some(Bytes::from_static(b"old")));
        assert_eq!(cache.get(TIMELINE, &key, lsn(12), |_, _| false), Some(Some(Bytes::from_static(b"new"))));
        assert!(cache.get(TIMELINE, &key, lsn(7), |_, _| false).is_none());
    }

    #[test]
    fn absence_is_known_only_where_it_was_seen() {
        let cache = VersionCache::new(1 << 20);
        let key = Key::from(Object::ControlFile);
        cache.insert(TIMELINE, &key, None, lsn(20), None);
        assert_eq!(cache.get(TIMELINE, &key, lsn(20), |_, _| false), Some(None));
        assert!(cache.get(TIMELINE, &key, lsn(19), |_, _| false).is_none(), "it may have been there before");
    }
}
