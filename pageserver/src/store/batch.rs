//! Versions on their way into the store: what one run of WAL records made.
//!
//! - In LSN order, as WAL is.
//! - One allocation for all values; `clear` keeps it for the next batch.

use keyenc::{Key, Kind};
use postgres_ffi::Lsn;

use super::watermark::watermark_key;

/// Versions in LSN order with their values.
#[derive(Default)]
pub struct Batch {
    entries: Vec<BatchEntry>,
    values: Vec<u8>,
}

struct BatchEntry {
    key: Key,
    kind: Kind,
    value_len: u32,
    lsn: Lsn,
    value_start: usize,
}

/// One version of a batch.
#[derive(Clone, Copy)]
pub(crate) struct BatchVersion<'a> {
    pub key: Key,
    pub lsn: Lsn,
    pub kind: Kind,
    pub value: &'a [u8],
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Batch::default()
    }

    /// Adds the version (`key`, `lsn`, `kind`). Of two with the same three the later one counts.
    ///
    /// Requires: `lsn` is not below that of the version put before; `value` is shorter than 4 GiB; `key` is not `Object::Watermark`,
    /// which only the store writes.
    pub fn put(&mut self, key: Key, lsn: Lsn, kind: Kind, value: &[u8]) {
        assert!(key != watermark_key(), "the store writes its watermarks itself");
        if let Some(last) = self.entries.last() {
            assert!(last.lsn <= lsn, "versions come in LSN order");
        }
        let value_len = u32::try_from(value.len()).expect("a value is shorter than 4 GiB");
        self.entries.push(BatchEntry { key, kind, value_len, lsn, value_start: self.values.len() });
        self.values.extend_from_slice(value);
    }

    /// Number of versions.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True without versions.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Drops the versions and keeps the memory.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.values.clear();
    }

    /// Drops the versions above `lsn`.
    pub fn drop_above(&mut self, lsn: Lsn) {
        let kept = self.entries.partition_point(|entry| entry.lsn <= lsn);
        if let Some(first_dropped) = self.entries.get(kept) {
            self.values.truncate(first_dropped.value_start);
            self.entries.truncate(kept);
        }
    }

    /// Bytes of all values.
    pub fn value_bytes(&self) -> usize {
        self.values.len()
    }

    pub(super) fn first(&self) -> Option<BatchVersion<'_>> {
        self.versions(0..self.len().min(1)).next()
    }

    #[cfg(test)]
    pub(super) fn last_lsn(&self) -> Option<Lsn> {
        self.entries.last().map(|entry| entry.lsn)
    }

    /// The versions at `range` of the order they were put in.
    pub(crate) fn versions(&self, range: std::ops::Range<usize>) -> impl Iterator<Item = BatchVersion<'_>> {
        self.entries[range].iter().map(|entry| BatchVersion {
            key: entry.key,
            lsn: entry.lsn,
            kind: entry.kind,
            value: &self.values[entry.value_start..][..entry.value_len as usize],
        })
    }
}

#[cfg(test)]
mod tests {
    //! Goal: a batch gives back what was put, and refuses versions out of order. Method: plain cases.

    use keyenc::Object;

    use super::*;

    #[test]
    fn gives_back_what_was_put() {
        let mut batch = Batch::new();
        assert!(batch.is_empty() && batch.first().is_none() && batch.last_lsn().is_none());
        let key = Key::from(Object::Checkpoint);
        batch.put(key, Lsn::new(8), Kind::Delta, b"one");
        batch.put(key, Lsn::new(8), Kind::Image, b"");
        batch.put(key, Lsn::new(16), Kind::Tombstone, b"three");
        let found: Vec<_> = batch.versions(0..3).map(|v| (v.lsn.as_u64(), v.kind, v.value.to_vec())).collect();
        assert_eq!(
            found,
            [(8, Kind::Delta, b"one".to_vec()), (8, Kind::Image, vec![]), (16, Kind::Tombstone, b"three".to_vec())]
        );
        assert_eq!((batch.len(), batch.value_bytes(), batch.last_lsn()), (3, 8, Some(Lsn::new(16))));
        for (lsn, left) in [(16, (3, 8)), (15, (2, 3)), (8, (2, 3)), (7, (0, 0))] {
            batch.drop_above(Lsn::new(lsn));
            assert_eq!((batch.len(), batch.value_bytes()), left, "above {lsn}");
        }
        batch.put(key, Lsn::new(8), Kind::Delta, b"one");
        batch.clear();
        assert!(batch.is_empty() && batch.value_bytes() == 0);
    }

    #[test]
    #[should_panic(expected = "versions come in LSN order")]
    fn refuses_versions_out_of_order() {
        let mut batch = Batch::new();
        batch.put(Object::Checkpoint.into(), Lsn::new(16), Kind::Delta, b"");
        batch.put(Object::Checkpoint.into(), Lsn::new(8), Kind::Delta, b"");
    }
}
