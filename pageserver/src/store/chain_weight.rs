//! What a chain weighs: its deltas, and one more for each 4 KiB of a delta. So one number bounds how many a read applies and how many bytes it walks.

use bytes::Bytes;
use keyenc::{Key, Kind};
use postgres_ffi::Lsn;

/// A delta of less than this weighs 1: a chain of weight 256 has less than 1 MiB.
const BYTES_PER_WEIGHT: usize = 4 << 10;

/// Weight of what stands above a key's newest base. Stops at its highest value, which is above every bound.
pub(super) type Weight = u16;

/// A key whose newest versions weigh more than they should, as far as is known without a look into RocksDB: never less than it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeavyChain {
    /// The page.
    pub key: Key,
    /// Its weight, or more than that.
    pub weight: u32,
}

/// Weight of a chain of weight `below` with one version more on top.
pub(super) fn weight_with(below: Weight, kind: Kind, value_bytes: usize) -> Weight {
    let own = Weight::try_from(1 + value_bytes / BYTES_PER_WEIGHT).unwrap_or(Weight::MAX);
    match kind {
        Kind::Delta => below.saturating_add(own),
        Kind::InitDelta => own,
        Kind::Image | Kind::Tombstone => 0,
    }
}

/// Weight of a chain that was gathered.
pub(super) fn weight_of(newest_first: &[(Lsn, Kind, Bytes)]) -> Weight {
    let add = |below, (_, kind, value): &(Lsn, Kind, Bytes)| weight_with(below, *kind, value.len());
    newest_first.iter().rev().fold(0, add)
}

/// Finds the heavy ones among chains that become heavier.
pub(super) struct HeavyFinder {
    /// 0: finds nothing.
    weight_max: Weight,
    pub found: Vec<HeavyChain>,
}

impl HeavyFinder {
    /// Finds chains of at least `weight_max`; none for 0.
    pub fn new(weight_max: u32) -> Self {
        HeavyFinder { weight_max: Weight::try_from(weight_max).unwrap_or(Weight::MAX), found: Vec::new() }
    }

    /// A chain of weight `before` weighs `after` now; `is_first`: in the layer that is open. Told are those that reach the limit, or twice the limit, and again an eighth
    /// of it later: who was told the first time may have had no room for it.
    pub fn add(&mut self, key: &Key, is_first: bool, before: Weight, after: Weight) {
        if self.weight_max == 0 || after < self.weight_max {
            return;
        }
        let step = (self.weight_max / 8).max(1);
        let has_reached = |weight| before < weight && weight <= after;
        let is_told = is_first
            || has_reached(self.weight_max)
            || has_reached(self.weight_max.saturating_mul(2))
            || before / step != after / step;
        if is_told {
            self.found.push(HeavyChain { key: *key, weight: after.into() });
        }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: the weight is what stands above the base, large deltas weigh more, and who is heavy is told again. Method: plain cases.

    use keyenc::Object;

    use super::*;

    #[test]
    fn the_weight_is_what_stands_above_the_base() {
        use Kind::{Delta, Image, InitDelta, Tombstone};
        let cases: [(&[(Kind, usize)], Weight); 6] = [
            (&[(Image, 8192), (Delta, 10), (Delta, 4095)], 2),
            (&[(Delta, 4096), (Delta, 0)], 3),
            (&[(Delta, 1), (InitDelta, 8192), (Delta, 1)], 4),
            (&[(Delta, 1), (Image, 8192)], 0),
            (&[(Delta, 1), (Tombstone, 0)], 0),
            (&[(Delta, 1 << 30)], Weight::MAX),
        ];
        for (versions, weight) in cases {
            assert_eq!(versions.iter().fold(0, |below, (kind, bytes)| weight_with(below, *kind, *bytes)), weight);
        }
        let gathered = [(Lsn::new(9), Delta, Bytes::new()), (Lsn::new(8), Image, Bytes::from_static(&[0; 8192]))];
        assert_eq!(weight_of(&gathered), 1);
    }

    #[test]
    fn a_heavy_chain_is_told_again_each_eighth_of_the_limit() {
        let key = Key::from(Object::Checkpoint);
        let mut finder = HeavyFinder::new(16);
        for after in 1..=22 {
            finder.add(&key, false, after - 1, after);
        }
        finder.add(&key, true, 17, 17);
        let told: Vec<_> = finder.found.iter().map(|chain| chain.weight).collect();
        assert_eq!(told, [16, 18, 20, 22, 17]);
        let mut off = HeavyFinder::new(0);
        off.add(&key, true, 5000, 5001);
        assert_eq!(off.found, []);
    }
}
