//! Materialised pages that wait to be written with the next set of files.
//!
//! - They never enter a layer: an old image in a new layer would hide newer deltas in older layers.
//! - A page is written only in a set whose watermark is at or above its LSN: an image must not become durable before the versions
//!   it was made of.
//! - Nothing depends on them: a full queue drops, a crash loses, and the page is made again.

use std::collections::BTreeMap;
use std::time::Instant;

use bytes::Bytes;
use keyenc::Key;
use postgres_ffi::Lsn;

/// What a queued page takes beside its bytes: node of the map, and the header of its allocation.
const ENTRY_BYTES: usize = 96;

/// The queue of one timeline.
#[derive(Default)]
pub(super) struct CacheBack {
    pages: BTreeMap<(Key, Lsn), Bytes>,
    /// Of the oldest page, or later; `None` when there is none.
    waiting_since: Option<Instant>,
}

impl CacheBack {
    /// Adds a page, or nothing when it is there already. Returns the memory that it takes.
    pub fn push(&mut self, key: Key, lsn: Lsn, page: Bytes) -> usize {
        self.waiting_since.get_or_insert_with(Instant::now);
        match self.pages.entry((key, lsn)) {
            std::collections::btree_map::Entry::Occupied(_) => 0,
            std::collections::btree_map::Entry::Vacant(vacant) => page_bytes(vacant.insert(page)),
        }
    }

    /// Takes the pages at or below `watermark_lsn`, in key order, and leaves the rest for the next set. Returns also the memory freed.
    pub fn take(&mut self, watermark_lsn: Lsn) -> (Vec<(Key, Lsn, Bytes)>, usize) {
        let later = |(_, lsn): &(Key, Lsn)| *lsn > watermark_lsn;
        let (kept, taken): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut self.pages).into_iter().partition(|(at, _)| later(at));
        self.waiting_since = if kept.is_empty() { None } else { Some(Instant::now()) };
        self.pages = kept;
        let freed = taken.values().map(page_bytes).sum();
        (taken.into_iter().map(|((key, lsn), page)| (key, lsn, page)).collect(), freed)
    }

    /// Since when pages have been waiting; `None`: none does.
    pub fn waiting_since(&self) -> Option<Instant> {
        self.waiting_since
    }
}

/// Memory that a queued page takes.
pub(super) fn page_bytes(page: &Bytes) -> usize {
    page.len() + ENTRY_BYTES
}

#[cfg(test)]
mod tests {
    //! Goal: pages above the watermark stay, the count of memory returns to 0. Method: plain cases.

    use postgres_ffi::{ForkNumber, RelTag};

    use super::*;

    #[test]
    fn pages_above_the_watermark_stay() {
        let key = |n| Key::block(RelTag { spc_oid: 1, db_oid: 2, rel_number: 3 }, ForkNumber::Main, n);
        let page = Bytes::from_static(&[1; 100]);
        let mut queue = CacheBack::default();
        let pushed: usize = [(2, 16), (1, 8), (1, 24), (1, 8)]
            .map(|(block_no, lsn)| queue.push(key(block_no), Lsn::new(lsn), page.clone()))
            .into_iter()
            .sum();
        assert_eq!(pushed, 3 * (100 + ENTRY_BYTES));
        let (taken, freed) = queue.take(Lsn::new(16));
        assert!(queue.waiting_since().is_some());
        assert_eq!(taken, [(key(1), Lsn::new(8), page.clone()), (key(2), Lsn::new(16), page.clone())]);
        let (taken, freed_later) = queue.take(Lsn::MAX);
        assert_eq!(taken, [(key(1), Lsn::new(24), page)]);
        assert!(queue.pages.is_empty() && queue.waiting_since().is_none());
        assert_eq!(freed + freed_later, pushed);
    }
}
