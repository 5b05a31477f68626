//! What chains weigh below the layers in memory, so that a chain's weight is known without a look into RocksDB.
//!
//! - **Never:** a weight below what it is, unless that is above the limit. A key that is not listed weighs no more than the floor.
//! - Bounded: where too many are listed, the lightest half goes and the floor rises to the heaviest of these. A weight that is taken for more than it
//!   is costs a look at the chain, not a wrong page.
//! - What the heaviest chains weigh is stored with each watermark. On a branch nothing is listed at first and the floor is the limit, so each page is looked
//!   at once, when it is changed there for the first time; so it is after a restart for those that were not stored if the floor is the limit.

use std::cmp::Reverse;
use std::collections::HashMap;

use foldhash::fast::RandomState;
use keyenc::Key;

use super::chain_weight::Weight;

/// Chains that are stored with a watermark: 80 KiB at most with each flush.
const STORED_MAX: usize = 4096;

/// Weights of one timeline's chains in RocksDB and in its ancestors.
#[derive(Default)]
pub(super) struct Carried {
    weights: HashMap<Key, Weight, RandomState>,
    floor: Weight,
}

impl Carried {
    /// Knows of nothing but that no chain weighs more than `floor`.
    pub fn new(floor: Weight) -> Self {
        Carried { floor, weights: HashMap::default() }
    }

    /// Knows of these, and that no other chain weighs more than `floor`.
    pub fn listed(floor: Weight, chains: Vec<(Key, Weight)>) -> Self {
        Carried { floor, weights: chains.into_iter().collect() }
    }

    /// What is not listed counts as no heavier than `limit`, though it may be: its chain is looked at all the same when it is changed for the first time.
    pub fn with_floor_at_most(self, limit: Weight) -> Self {
        Carried { floor: self.floor.min(limit), ..self }
    }

    /// The heaviest chains, as many as are stored with a watermark, in the order of keys; no other one weighs more than the floor that comes with them.
    pub fn heaviest(&self) -> (Weight, Vec<(Key, Weight)>) {
        let mut chains: Vec<(Key, Weight)> = self.weights.iter().map(|(key, weight)| (*key, *weight)).collect();
        let mut floor = self.floor;
        if chains.len() > STORED_MAX {
            let (_, (_, heaviest_left_out), _) =
                chains.select_nth_unstable_by_key(STORED_MAX, |(_, weight)| Reverse(*weight));
            floor = floor.max(*heaviest_left_out);
            chains.truncate(STORED_MAX);
        }
        chains.sort_unstable();
        (floor, chains)
    }

    /// Weight of the key's chain, or more than that.
    pub fn weight(&self, key: &Key) -> Weight {
        self.weights.get(key).copied().unwrap_or(self.floor)
    }

    /// Takes over what is known of keys of a layer that is in RocksDB now, and keeps `keys_max` of all at most.
    pub fn take_over(&mut self, flushed: impl Iterator<Item = (Key, Weight)>, keys_max: usize) {
        for (key, weight) in flushed {
            if weight == self.floor {
                self.weights.remove(&key);
            } else {
                self.weights.insert(key, weight);
            }
            if self.weights.len() > keys_max {
                self.drop_light();
            }
        }
    }

    /// Keys with at least this weight, as far as they are listed.
    pub fn heavier(&self, weight_min: Weight) -> impl Iterator<Item = (Key, Weight)> {
        self.weights.iter().map(|(key, weight)| (*key, *weight)).filter(move |(_, weight)| *weight >= weight_min)
    }

    fn drop_light(&mut self) {
        let mut weights: Vec<Weight> = self.weights.values().copied().collect();
        let middle = weights.len() / 2;
        let (_, median, _) = weights.select_nth_unstable(middle);
        let dropped_max = *median;
        self.weights.retain(|_, weight| *weight > dropped_max);
        self.floor = self.floor.max(dropped_max);
    }
}

#[cfg(test)]
mod tests {
    //! Goal: never a weight below what it is, however many keys there are. Method: layers of random deltas and images beside exact weights.

    use keyenc::Kind;
    use postgres_ffi::{ForkNumber, Lsn, RelTag};
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::super::chain_weight::{HeavyFinder, weight_with};
    use super::super::layer::Layer;
    use super::*;
    use crate::store::Batch;

    fn key(block_no: u32) -> Key {
        Key::block(RelTag { spc_oid: 1663, db_oid: 5, rel_number: 16384 }, ForkNumber::Main, block_no)
    }

    fn check(keys_max: usize) -> usize {
        const KEYS: u32 = 300;
        let mut random = SmallRng::seed_from_u64(7);
        let mut carried = Carried::new(0);
        let mut exact = HashMap::<Key, Weight>::new();
        let mut lsn = 0;
        for _ in 0..60 {
            let layer = Layer::new();
            for _ in 0..200 {
                lsn += 8;
                let key = key(random.random_range(0..KEYS));
                let kind = if random.random_bool(0.1) { Kind::Image } else { Kind::Delta };
                let mut batch = Batch::new();
                batch.put(key, Lsn::new(lsn), kind, b"");
                layer.put(&batch, &|key| carried.weight(key), &mut HeavyFinder::new(0));
                let weight = exact.entry(key).or_default();
                *weight = weight_with(*weight, kind, 0);
            }
            carried.take_over(layer.read().weights(), keys_max);
            assert!(carried.weights.len() <= keys_max);
            let known = |key: &Key| carried.weight(key);
            assert!(exact.iter().all(|(key, weight)| *weight <= known(key)), "a weight below what it is");
        }
        exact.iter().filter(|(key, weight)| **weight != carried.weight(key)).count()
    }

    #[test]
    fn what_is_stored_is_the_heaviest_and_a_floor_for_the_rest() {
        let chains: Vec<(Key, Weight)> = (0..STORED_MAX as u32 + 3).map(|n| (key(n), n as Weight)).collect();
        let (floor, stored) = Carried::listed(1, chains.clone()).heaviest();
        assert_eq!((floor, &stored[..]), (2, &chains[3..]));
        assert_eq!(Carried::listed(9, chains[..2].to_vec()).heaviest(), (9, chains[..2].to_vec()));
    }

    #[test]
    fn never_below_what_it_is() {
        assert_eq!(check(1000), 0, "with room for all each weight is exact");
        assert!(check(100) > 0, "with room for a third some are taken for more");
        check(1);
    }
}
