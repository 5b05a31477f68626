//! The keys that a flush found with the most deltas behind their newest image: whoever reads them waits for redo.
//!
//! - Counts what stands in one set of files alone: a lower bound of what a reader meets, and free, since the flusher sees every version.
//! - Bounded: the longest ones are kept.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use keyenc::{Key, Kind, TimelineNo};

/// Keys told of per set of files: some 8 MiB of pages, a quarter of what may wait to be cached back by default.
const CHAINS_PER_FLUSH_MAX: usize = 1000;

/// What one flush found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LongChains {
    /// The timeline that was flushed.
    pub timeline: TimelineNo,
    /// Longest first.
    pub chains: Vec<LongChain>,
}

/// A key whose newest versions are deltas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongChain {
    /// The page.
    pub key: Key,
    /// Deltas of the flushed set above its newest image.
    pub delta_count: u32,
}

/// Finds the longest chains of versions that come by in the order of files.
pub(super) struct ChainFinder {
    /// 0: finds nothing.
    deltas_min: u32,
    current: Option<LongChain>,
    /// The shortest on top.
    longest: BinaryHeap<Reverse<(u32, Key)>>,
}

impl ChainFinder {
    /// Keeps chains of at least `deltas_min`; none at all for 0.
    pub fn new(deltas_min: u32) -> Self {
        ChainFinder { deltas_min, current: None, longest: BinaryHeap::new() }
    }

    /// Takes the next version. Requires: all versions of a key follow each other, oldest first.
    pub fn add(&mut self, key: &Key, kind: Kind) {
        if self.deltas_min == 0 {
            return;
        }
        if self.current.is_none_or(|chain| chain.key != *key) {
            self.end_key();
            self.current = Some(LongChain { key: *key, delta_count: 0 });
        }
        let Some(chain) = &mut self.current else { return };
        chain.delta_count = match kind {
            Kind::Delta => chain.delta_count + 1,
            Kind::InitDelta => 1,
            Kind::Image | Kind::Tombstone => 0,
        };
    }

    /// What was found, longest first; begins anew.
    pub fn take(&mut self) -> Vec<LongChain> {
        self.end_key();
        let longest = std::mem::take(&mut self.longest).into_sorted_vec();
        longest.into_iter().map(|Reverse((delta_count, key))| LongChain { key, delta_count }).collect()
    }

    fn end_key(&mut self) {
        let Some(chain) = self.current.take().filter(|chain| chain.delta_count >= self.deltas_min) else { return };
        self.longest.push(Reverse((chain.delta_count, chain.key)));
        if self.longest.len() > CHAINS_PER_FLUSH_MAX {
            self.longest.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: a chain is what stands above the newest image; the longest are kept. Method: plain cases.

    use postgres_ffi::{ForkNumber, RelTag};

    use super::*;

    fn key(block_no: u32) -> Key {
        Key::block(RelTag { spc_oid: 1663, db_oid: 5, rel_number: 16384 }, ForkNumber::Main, block_no)
    }

    #[test]
    fn a_chain_is_what_stands_above_the_newest_image() {
        use Kind::{Delta, Image, InitDelta, Tombstone};
        let mut finder = ChainFinder::new(2);
        let cases: [&[Kind]; 6] = [
            &[Delta, Delta, Delta],
            &[Delta, Delta, Image, Delta],
            &[Delta, InitDelta, Delta],
            &[Delta, Delta, Delta, Tombstone],
            &[Image, Delta, Delta, Delta, Delta],
            &[Delta],
        ];
        for (block_no, kinds) in (0..).zip(cases) {
            kinds.iter().for_each(|kind| finder.add(&key(block_no), *kind));
        }
        let found: Vec<_> = finder.take().into_iter().map(|chain| (chain.key, chain.delta_count)).collect();
        assert_eq!(found, [(key(4), 4), (key(0), 3), (key(2), 2)]);
        assert_eq!(finder.take(), []);
    }

    #[test]
    fn the_longest_are_kept() {
        let mut finder = ChainFinder::new(1);
        let count = CHAINS_PER_FLUSH_MAX as u32 + 100;
        for block_no in 0..count {
            (0..=block_no).for_each(|_| finder.add(&key(block_no), Kind::Delta));
        }
        let found = finder.take();
        assert_eq!(found.len(), CHAINS_PER_FLUSH_MAX);
        assert_eq!((found[0].delta_count, found[CHAINS_PER_FLUSH_MAX - 1].delta_count), (count, 101));
    }

    #[test]
    fn zero_finds_nothing() {
        let mut finder = ChainFinder::new(0);
        (0..100).for_each(|_| finder.add(&key(1), Kind::Delta));
        assert_eq!(finder.take(), []);
    }
}
