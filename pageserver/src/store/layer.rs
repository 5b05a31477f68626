//! Versions in memory: a map from key to its newest version, each version pointing to the next older one of its key.
//!
//! - A layer is *open* (one writer puts) and later *frozen* (nobody does). Readers may come at any time; both are one type, and the lock
//!   around a frozen one is never waited for.
//! - Beside its newest version each key has the weight of its chain, what lies below the layer included: see `chain_weight`.
//! - Blocks stand in a hash map, everything else in an ordered one: lists (relations, databases, segments) are ordered scans.
//! - Memory is counted as allocated, not as used: entries, values and maps.

use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};
use std::ops::{Bound, Range};
use std::sync::atomic::{AtomicUsize, Ordering};

use foldhash::fast::RandomState;
use keyenc::{Key, Kind, Object};
use parking_lot::{RwLock, RwLockReadGuard};
use postgres_ffi::{ForkNumber, Lsn, RelTag};

use super::batch::{Batch, BatchVersion};
use super::chain_weight::{HeavyFinder, Weight, weight_with};
use super::version_bound::VersionBound;

mod sorted;
pub(super) use sorted::SortedWindows;

/// Versions put under one hold of the write lock: about 50 µs, so that readers do not notice.
const PUT_VERSIONS_PER_LOCK: usize = 256;
/// A read passes over no more versions than this, and what was put among them later, before it comes to the one that it looks for.
const ANCHOR_STEP: u8 = 128;
/// Values stand in chunks of this size; the first ones are smaller, so that a thousand idle timelines cost little.
const CHUNK_BYTES_MAX: usize = 1 << 20;
const CHUNK_BYTES_MIN: usize = 4 << 10;
/// What an entry of the ordered map costs, nodes being two thirds full.
const ORDERED_ENTRY_BYTES: usize = (size_of::<Key>() + size_of::<Head>()) * 3 / 2 + 8;

/// Index of an entry; `NONE` ends a chain.
type EntryNo = u32;
const NONE: EntryNo = u32::MAX;

/// Versions of one timeline in memory.
pub(super) struct Layer {
    data: RwLock<LayerData>,
    /// Memory of `data` after the last put.
    allocated_bytes: AtomicUsize,
}

/// What a layer holds, under its lock.
pub(super) struct LayerData {
    blocks: HashMap<BlockKey, Head, RandomState>,
    /// Keys that are not blocks.
    others: BTreeMap<Key, Head>,
    entries: Vec<Entry>,
    /// Of keys with many versions every `ANCHOR_STEP`th one, oldest first: where a read of an old LSN begins to look.
    anchors: HashMap<BlockKey, Vec<(Lsn, EntryNo)>, RandomState>,
    values: Vec<Vec<u8>>,
    values_allocated_bytes: usize,
    lsn_max: Lsn,
}

#[derive(Clone, Copy)]
struct Entry {
    lsn: Lsn,
    /// The next older version of the same key.
    older: EntryNo,
    chunk_no: u32,
    offset: u32,
    value_len: u32,
    kind: Kind,
}

const _: () = assert!(size_of::<Entry>() == 32);

/// Where a key's chain begins, and what it weighs. As bytes, since numbers would have to be aligned: a key and its head take 25 bytes.
#[derive(Clone, Copy)]
struct Head {
    entry_no: [u8; 4],
    weight: [u8; 2],
    /// Versions put since the last anchor.
    since_anchor: u8,
}

const _: () = assert!(size_of::<(BlockKey, Head)>() == 25);

impl Head {
    /// Of a key that has no version here.
    const NONE: Self = Head { entry_no: NONE.to_ne_bytes(), weight: [0; 2], since_anchor: 0 };

    fn entry_no(self) -> EntryNo {
        EntryNo::from_ne_bytes(self.entry_no)
    }

    fn weight(self) -> Weight {
        Weight::from_ne_bytes(self.weight)
    }

    fn set(&mut self, entry_no: EntryNo, weight: Weight) {
        *self = Head { entry_no: entry_no.to_ne_bytes(), weight: weight.to_ne_bytes(), ..*self };
    }

    /// As [`Head::set`], for a version that was not there before. True: it becomes an anchor.
    fn set_newest(&mut self, entry_no: EntryNo, weight: Weight) -> bool {
        self.set(entry_no, weight);
        self.since_anchor = (self.since_anchor + 1) % ANCHOR_STEP;
        self.since_anchor == 0
    }
}

/// A key that hashes as numbers, at half the cost of bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
struct BlockKey(Key);

impl Hash for BlockKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let (high, low) = sort_key(&self.0);
        state.write_u128(high);
        state.write_u16(low);
    }
}

/// The key as two numbers that sort as its bytes do: comparing them is cheaper than comparing bytes.
fn sort_key(key: &Key) -> (u128, u16) {
    let bytes = key.as_bytes();
    let (high, low) = bytes.split_first_chunk::<16>().expect("a key has 18 bytes");
    (u128::from_be_bytes(*high), u16::from_be_bytes([low[0], low[1]]))
}

/// One version in a layer.
#[derive(Clone, Copy)]
pub(super) struct LayerVersion<'a> {
    pub lsn: Lsn,
    pub kind: Kind,
    pub value: &'a [u8],
}

impl LayerVersion<'_> {
    /// Holds a place.
    const NOTHING: Self = LayerVersion { lsn: Lsn::ZERO, kind: Kind::Tombstone, value: &[] };
}

impl Layer {
    pub fn new() -> Self {
        Layer {
            data: RwLock::new(LayerData {
                blocks: HashMap::default(),
                others: BTreeMap::new(),
                entries: Vec::new(),
                anchors: HashMap::default(),
                values: Vec::new(),
                values_allocated_bytes: 0,
                lsn_max: Lsn::ZERO,
            }),
            allocated_bytes: AtomicUsize::new(0),
        }
    }

    /// Adds all versions of the batch. Readers may see a part of it meanwhile: they ask at LSNs that are published after the put. `below`: what a
    /// chain weighs below this layer.
    pub fn put(&self, batch: &Batch, below: &impl Fn(&Key) -> Weight, heavy: &mut HeavyFinder) {
        let mut start = 0;
        while start < batch.len() {
            let end = batch.len().min(start + PUT_VERSIONS_PER_LOCK);
            // Looked up before the lock is taken for writing: nobody else puts.
            let weights_below = self.data.read().weights_below(batch, start..end, below);
            let mut data = self.data.write();
            for (version, below) in batch.versions(start..end).zip(weights_below) {
                data.put(version, below, heavy);
            }
            self.allocated_bytes.store(data.allocated_bytes(), Ordering::Relaxed);
            start = end;
        }
    }

    /// Adds the image that redo made of `key` as of `lsn`, or of a version of it that is older than all here. Its chain weighs from then on what stands above it.
    pub fn put_made(&self, key: &Key, lsn: Lsn, image: &[u8]) {
        let mut data = self.data.write();
        data.put_made(BatchVersion { key: *key, lsn, kind: Kind::Image, value: image });
        self.allocated_bytes.store(data.allocated_bytes(), Ordering::Relaxed);
    }

    /// From now on the chain of `key` weighs `weight` below the versions above `lsn`. Without versions here it stays as it is.
    pub fn set_weight(&self, key: &Key, lsn: Lsn, weight: Weight) {
        self.data.write().set_weight(key, lsn, weight);
    }

    /// The highest LSN of a version in it; `Lsn::ZERO` for none.
    pub fn lsn_max(&self) -> Lsn {
        self.data.read().lsn_max
    }

    /// Memory that the layer takes.
    pub fn allocated_bytes(&self) -> usize {
        self.allocated_bytes.load(Ordering::Relaxed)
    }

    /// Locks the layer for reading: hold it for a chain, not for a scan of an open layer.
    pub fn read(&self) -> RwLockReadGuard<'_, LayerData> {
        self.data.read()
    }
}

impl LayerData {
    /// Versions of `key` at or below `bound`, newest first.
    pub fn versions(&self, key: &Key, bound: VersionBound) -> impl Iterator<Item = LayerVersion<'_>> {
        self.chain(self.start(key, bound)).skip_while(move |version| !bound.includes(version.lsn, version.kind))
    }

    /// Where to look for versions at or below `bound`: the newest one, or an anchor above the bound.
    fn start(&self, key: &Key, bound: VersionBound) -> EntryNo {
        let newest = self.head(key).entry_no();
        let is_old = self.entries.get(newest as usize).is_some_and(|entry| !bound.includes(entry.lsn, entry.kind));
        if !is_old || self.anchors.is_empty() {
            return newest;
        }
        let Some(anchors) = self.anchors.get(&BlockKey(*key)) else { return newest };
        // The kind that comes first of all: what is not included then is above the bound with any other kind, too.
        let above = anchors.partition_point(|(lsn, _)| bound.includes(*lsn, Kind::Tombstone));
        anchors.get(above).map_or(newest, |(_, entry_no)| *entry_no)
    }

    /// Keys in `first..=last`, in order. Looks at every block of the layer when the range reaches into blocks.
    pub fn keys_between(&self, first: &Key, last: &Key) -> Vec<Key> {
        let mut keys: Vec<Key> =
            self.others.range((Bound::Included(first), Bound::Included(last))).map(|(key, _)| *key).collect();
        let any = RelTag { spc_oid: 0, db_oid: 0, rel_number: 0 };
        let any_block = Object::RelationBlock { rel: any, fork: ForkNumber::Main, block_no: 0 };
        let (first_block, last_block) = Key::class_of(any_block);
        if *first <= last_block && first_block <= *last {
            keys.extend(self.blocks.keys().map(|key| key.0).filter(|key| (first..=last).contains(&key)));
            keys.sort_unstable();
        }
        keys
    }

    /// What the chain of `key` weighs, all below this layer included. `None`: it has no version here.
    pub fn weight(&self, key: &Key) -> Option<Weight> {
        let head = self.head(key);
        (head.entry_no() != NONE).then(|| head.weight())
    }

    /// All keys with the weights of their chains.
    pub fn weights(&self) -> impl Iterator<Item = (Key, Weight)> {
        let others = self.others.iter().map(|(key, head)| (*key, head.weight()));
        self.blocks.iter().map(|(key, head)| (key.0, head.weight())).chain(others)
    }

    fn head(&self, key: &Key) -> Head {
        let map_entry = if key.is_block() { self.blocks.get(&BlockKey(*key)) } else { self.others.get(key) };
        map_entry.copied().unwrap_or(Head::NONE)
    }

    fn head_mut(&mut self, key: &Key) -> &mut Head {
        if key.is_block() {
            self.blocks.entry(BlockKey(*key)).or_insert(Head::NONE)
        } else {
            self.others.entry(*key).or_insert(Head::NONE)
        }
    }

    fn chain(&self, newest: EntryNo) -> impl Iterator<Item = LayerVersion<'_>> {
        let mut next = newest;
        std::iter::from_fn(move || {
            let entry = self.entries.get(next as usize)?;
            next = entry.older;
            Some(self.version(entry))
        })
    }

    fn version(&self, entry: &Entry) -> LayerVersion<'_> {
        let value = &self.values[entry.chunk_no as usize][entry.offset as usize..][..entry.value_len as usize];
        LayerVersion { lsn: entry.lsn, kind: entry.kind, value }
    }

    /// What the chains of the deltas among `versions` weigh below this layer; 0 where it does not matter. Looks all keys up, so that `put` finds them in the processor's
    /// cache: these lookups do not wait for each other.
    fn weights_below(
        &self,
        batch: &Batch,
        range: Range<usize>,
        below: &impl Fn(&Key) -> Weight,
    ) -> [Weight; PUT_VERSIONS_PER_LOCK] {
        let mut is_first = [false; PUT_VERSIONS_PER_LOCK];
        for (is_first, version) in is_first.iter_mut().zip(batch.versions(range.clone())) {
            *is_first = self.weight(&version.key).is_none() && version.kind == Kind::Delta;
        }
        let mut weights = [0; PUT_VERSIONS_PER_LOCK];
        for (n, version) in batch.versions(range).enumerate().filter(|(n, _)| is_first[*n]) {
            weights[n] = below(&version.key);
        }
        weights
    }

    /// `below`: what the key's chain weighs below this layer, in case it has no version here.
    fn put(&mut self, version: BatchVersion<'_>, below: Weight, heavy: &mut HeavyFinder) {
        let (entry_no, mut entry) = self.new_entry(&version);
        let lsn_max = self.lsn_max;
        let head = self.head_mut(&version.key);
        let is_first = head.entry_no() == NONE;
        let before = if is_first { below } else { head.weight() };
        let after = weight_with(before, version.kind, version.value.len());
        if version.lsn > lsn_max || is_first {
            // The usual case; without a look at the older entry, which is not in the processor's cache.
            entry.older = head.entry_no();
            if head.set_newest(entry_no, after) {
                self.add_anchor(&version, entry_no);
            }
            heavy.add(&version.key, is_first, before, after);
            return self.push_entry(entry);
        }
        let (newest, mut chain) = (*head, head.entry_no());
        match link_in_order(&mut self.entries, &mut chain, &mut entry, entry_no) {
            Err(same) => {
                entry.older = self.entries[same as usize].older;
                self.entries[same as usize] = entry;
                return self.head_mut(&version.key).set(newest.entry_no(), after.max(before));
            }
            // Below an image of its own LSN, or of another one: it may weigh nothing, but not more than this.
            Ok(()) if chain == newest.entry_no() => self.head_mut(&version.key).set(chain, after.max(before)),
            Ok(()) if self.head_mut(&version.key).set_newest(entry_no, after) => self.add_anchor(&version, entry_no),
            Ok(()) => {}
        }
        heavy.add(&version.key, false, before, after);
        self.push_entry(entry);
    }

    fn add_anchor(&mut self, version: &BatchVersion<'_>, entry_no: EntryNo) {
        self.anchors.entry(BlockKey(version.key)).or_default().push((version.lsn, entry_no));
    }

    fn put_made(&mut self, version: BatchVersion<'_>) {
        let (entry_no, mut entry) = self.new_entry(&version);
        let mut chain = self.head(&version.key).entry_no();
        if link_in_order(&mut self.entries, &mut chain, &mut entry, entry_no).is_err() {
            return; // WAL brought one.
        }
        let weight = self.head(&version.key).weight();
        self.head_mut(&version.key).set(chain, weight);
        self.push_entry(entry);
        self.set_weight(&version.key, version.lsn, 0);
    }

    fn set_weight(&mut self, key: &Key, lsn: Lsn, weight: Weight) {
        let head = self.head(key);
        if head.entry_no() == NONE {
            return;
        }
        let mut above = Vec::new();
        let mut weight = weight;
        for version in self.chain(head.entry_no()).take_while(|version| version.lsn > lsn) {
            above.push((version.kind, version.value.len()));
            if version.kind.ends_gather() {
                break;
            }
        }
        for (kind, value_bytes) in above.into_iter().rev() {
            weight = weight_with(weight, kind, value_bytes);
        }
        self.head_mut(key).set(head.entry_no(), weight);
    }

    /// An entry with the version's value, not linked yet, and the number that it will have.
    fn new_entry(&mut self, version: &BatchVersion<'_>) -> (EntryNo, Entry) {
        let (chunk_no, offset) = self.store_value(version.value);
        let entry_no = EntryNo::try_from(self.entries.len()).ok().filter(|no| *no != NONE);
        let entry_no = entry_no.expect("a layer is frozen long before it holds 2^32 versions");
        let entry = Entry {
            lsn: version.lsn,
            older: NONE,
            chunk_no,
            offset,
            value_len: version.value.len() as u32, // `Batch::put` checked it.
            kind: version.kind,
        };
        (entry_no, entry)
    }

    fn push_entry(&mut self, entry: Entry) {
        self.lsn_max = self.lsn_max.max(entry.lsn);
        if self.entries.len() == self.entries.capacity() {
            // By a quarter, not by doubling: what is allocated counts.
            self.entries.reserve_exact(self.entries.len() / 4 + 64);
        }
        self.entries.push(entry);
    }

    /// Copies a value into the last chunk, or into a new one when it does not fit. Returns chunk number and offset.
    fn store_value(&mut self, value: &[u8]) -> (u32, u32) {
        let fits = self.values.last().is_some_and(|chunk| chunk.capacity() - chunk.len() >= value.len());
        if !fits {
            let next = self.values.last().map_or(CHUNK_BYTES_MIN, |chunk| (chunk.capacity() * 2).min(CHUNK_BYTES_MAX));
            let chunk = Vec::with_capacity(next.max(value.len()));
            self.values_allocated_bytes += chunk.capacity();
            self.values.push(chunk);
        }
        let chunk_no = self.values.len() - 1;
        let chunk = &mut self.values[chunk_no];
        let offset = chunk.len();
        chunk.extend_from_slice(value);
        (chunk_no as u32, offset as u32) // Fewer chunks than entries; a chunk is shorter than 4 GiB.
    }

    fn allocated_bytes(&self) -> usize {
        // hashbrown keeps one eighth of its slots free and a control byte for each.
        let block_slots = self.blocks.capacity() / 7 * 8;
        block_slots * (size_of::<(BlockKey, Head)>() + 1)
            + self.others.len() * ORDERED_ENTRY_BYTES
            + self.entries.capacity() * size_of::<Entry>()
            + self.values_allocated_bytes
    }
}

/// Puts `entry` at its place in the chain that begins at `head`. Err: the entry there that has the same LSN and kind.
fn link_in_order(
    entries: &mut [Entry],
    head: &mut EntryNo,
    entry: &mut Entry,
    entry_no: EntryNo,
) -> Result<(), EntryNo> {
    let mut newer = NONE;
    let mut at = *head;
    while at != NONE {
        let there = &entries[at as usize];
        match (there.lsn, there.kind).cmp(&(entry.lsn, entry.kind)) {
            std::cmp::Ordering::Greater => (newer, at) = (at, there.older),
            std::cmp::Ordering::Equal => return Err(at),
            std::cmp::Ordering::Less => break,
        }
    }
    entry.older = at;
    if newer == NONE {
        *head = entry_no;
    } else {
        entries[newer as usize].older = entry_no;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    //! Goal: chains come out newest first whatever the order within an LSN; memory is counted. Method: plain cases.

    use super::*;

    fn key(block_no: u32) -> Key {
        Key::block(RelTag { spc_oid: 1663, db_oid: 5, rel_number: 16384 }, ForkNumber::Main, block_no)
    }

    fn put(layer: &Layer, batch: &Batch) {
        layer.put(batch, &|_| 0, &mut HeavyFinder::new(0));
    }

    fn chain(layer: &Layer, key: &Key, bound: VersionBound) -> Vec<(u64, Kind, Vec<u8>)> {
        layer.read().versions(key, bound).map(|v| (v.lsn.as_u64(), v.kind, v.value.to_vec())).collect()
    }

    #[test]
    fn chains_are_newest_first_and_the_last_put_counts() {
        let layer = Layer::new();
        let mut batch = Batch::new();
        for (lsn, kind, value) in [
            (8, Kind::Image, "a"),
            (8, Kind::Delta, "b"),
            (8, Kind::Tombstone, "c"),
            (16, Kind::Delta, "d"),
            (16, Kind::Image, "e"),
            (16, Kind::Delta, "f"),
        ] {
            batch.put(key(1), Lsn::new(lsn), kind, value.as_bytes());
        }
        put(&layer, &batch);
        let all = chain(&layer, &key(1), VersionBound::at(Lsn::MAX));
        let expect = [
            (16, Kind::Image, "e"),
            (16, Kind::Delta, "f"),
            (8, Kind::Image, "a"),
            (8, Kind::Delta, "b"),
            (8, Kind::Tombstone, "c"),
        ];
        assert_eq!(all, expect.map(|(lsn, kind, value)| (lsn, kind, value.as_bytes().to_vec())));
        assert_eq!(chain(&layer, &key(1), VersionBound::at(Lsn::new(15))), all[2..]);
        let below_image = VersionBound::below(Lsn::new(8), Kind::Image).expect("there is something below");
        assert_eq!(chain(&layer, &key(1), below_image), all[3..]);
        assert_eq!(chain(&layer, &key(2), VersionBound::at(Lsn::MAX)), []);
    }

    #[test]
    fn keys_between_takes_both_maps() {
        let layer = Layer::new();
        let mut batch = Batch::new();
        for n in [3, 1, 2] {
            batch.put(key(n), Lsn::new(8), Kind::Image, b"");
        }
        batch.put(Object::Checkpoint.into(), Lsn::new(8), Kind::Image, b"");
        put(&layer, &batch);
        let data = layer.read();
        assert_eq!(data.keys_between(&key(1), &key(2)), [key(1), key(2)]);
        assert_eq!(data.keys_between(&Object::ControlFile.into(), &key(1)), [Object::Checkpoint.into(), key(1)]);
    }

    #[test]
    fn counts_what_it_allocates() {
        let layer = Layer::new();
        assert_eq!(layer.allocated_bytes(), 0);
        let mut batch = Batch::new();
        for n in 0..10_000 {
            batch.put(key(n), Lsn::new(u64::from(n) * 8), Kind::Delta, &[7; 100]);
        }
        batch.put(key(0), Lsn::new(80_000), Kind::Image, &vec![8; 3 << 20]); // Larger than a chunk.
        put(&layer, &batch);
        let least = 10_001 * (size_of::<Entry>() + size_of::<(BlockKey, Head)>()) + batch.value_bytes();
        assert!((least..least * 2).contains(&layer.allocated_bytes()), "{} for {least}", layer.allocated_bytes());
    }

    #[test]
    fn weights_go_on_from_below_and_end_at_an_image() {
        let layer = Layer::new();
        let mut heavy = HeavyFinder::new(4);
        let mut put = |lsn: u64, kind| {
            let mut batch = Batch::new();
            batch.put(key(1), Lsn::new(lsn), kind, b"");
            layer.put(&batch, &|_| 2, &mut heavy);
            layer.read().weight(&key(1))
        };
        assert_eq!([(8, Kind::Delta), (16, Kind::Delta)].map(|(lsn, kind)| put(lsn, kind)), [Some(3), Some(4)]);
        assert_eq!([(24, Kind::Image), (32, Kind::Delta)].map(|(lsn, kind)| put(lsn, kind)), [Some(0), Some(1)]);
        assert_eq!([(40, Kind::Delta), (48, Kind::InitDelta)].map(|(lsn, kind)| put(lsn, kind)), [Some(2), Some(1)]);
        assert_eq!(put(56, Kind::Delta), Some(2));
        assert_eq!(heavy.found.iter().map(|chain| chain.weight).collect::<Vec<_>>(), [4]);
        layer.set_weight(&key(1), Lsn::new(40), 7);
        assert_eq!(layer.read().weight(&key(1)), Some(2), "what starts anew does not rest on what is below");
        layer.set_weight(&key(1), Lsn::new(48), 7);
        assert_eq!(layer.read().weight(&key(1)), Some(8));
        layer.set_weight(&key(2), Lsn::new(48), 7);
        assert_eq!(layer.read().weight(&key(2)), None);
    }

    #[test]
    fn a_made_image_stands_where_it_was_made_and_ends_the_chain_there() {
        let layer = Layer::new();
        let mut batch = Batch::new();
        for lsn in [8, 16, 24] {
            batch.put(key(1), Lsn::new(lsn), Kind::Delta, b"d");
        }
        put(&layer, &batch);
        layer.put_made(&key(1), Lsn::new(16), b"made");
        let all = || chain(&layer, &key(1), VersionBound::at(Lsn::MAX));
        let lsns: Vec<_> = all().into_iter().map(|(lsn, kind, _)| (lsn, kind)).collect();
        assert_eq!(lsns, [(24, Kind::Delta), (16, Kind::Image), (16, Kind::Delta), (8, Kind::Delta)]);
        assert_eq!(layer.read().weight(&key(1)), Some(1));
        layer.put_made(&key(1), Lsn::new(16), b"again");
        assert_eq!(all().len(), 4);
        // Of a version that is in an older layer.
        layer.put_made(&key(1), Lsn::new(4), b"older");
        assert_eq!((all().len(), layer.read().weight(&key(1))), (5, Some(1)));
        layer.put_made(&key(2), Lsn::new(4), b"first");
        assert_eq!(layer.read().weight(&key(2)), Some(0));
    }

    #[test]
    fn a_read_of_an_old_lsn_passes_over_few_versions() {
        const VERSIONS: u64 = 3000;
        let layer = Layer::new();
        for lsn in 1..=VERSIONS {
            let mut batch = Batch::new();
            batch.put(key(1), Lsn::new(lsn * 8), Kind::Delta, &lsn.to_be_bytes());
            batch.put(Object::Checkpoint.into(), Lsn::new(lsn * 8), Kind::Image, &[]);
            put(&layer, &batch);
        }
        layer.put_made(&key(1), Lsn::new(8 * 1000), b"made");
        let data = layer.read();
        for lsn in (0..=VERSIONS).step_by(7) {
            let bound = VersionBound::at(Lsn::new(lsn * 8 + 3));
            for key in [key(1), Object::Checkpoint.into()] {
                let all =
                    data.chain(data.head(&key).entry_no()).find(|version| bound.includes(version.lsn, version.kind));
                let found = data.versions(&key, bound).next();
                assert_eq!(found.map(|version| version.lsn), all.map(|version| version.lsn));
                let passed_over = data
                    .chain(data.start(&key, bound))
                    .take_while(|version| !bound.includes(version.lsn, version.kind))
                    .count();
                assert!(passed_over <= usize::from(ANCHOR_STEP) + 1, "{passed_over} at {lsn}");
            }
        }
    }
}
