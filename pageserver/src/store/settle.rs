//! Heavy chains become light again: an image is put where redo made it, or the weight is set right.
//!
//! - The image goes into the open layer, at the LSN of the version that it was made of, whatever layer that version is in.
//! - **Never:** an image in the open layer above which an older layer has versions: it would hide them. So it is taken only from a read at or above
//!   every version in older layers.

use std::collections::HashMap;
use std::time::Instant;

use bytes::Bytes;
use keyenc::Key;
use postgres_ffi::Lsn;

use super::chain_weight::{Weight, weight_of};
use super::{Gathered, HeavyChain, TimelineStore};

/// What has come of a heavy chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The page as of its newest version, and the LSN of that.
    Made(Lsn, Bytes),
    /// It weighs no more than this: it was taken for heavier than it is, or an image stands in it already.
    Weighs(u32),
    /// No page can be made of it. It is told of again when as much has come on top.
    Failed,
}

impl TimelineStore {
    /// Takes what was found of `key`, whose newest version at or below `request_lsn` was seen by a gather from this timeline and its ancestors. False:
    /// nothing was taken, since a layer has become full meanwhile (gather again), or no layer takes a page now.
    ///
    /// Requires: `request_lsn` was the last record's end, or below, when it was gathered.
    pub fn settle(&self, key: &Key, request_lsn: Lsn, settled: &Settled) -> bool {
        let inner = self.store().inner();
        let state = self.state();
        {
            let mut writer = state.writer.lock();
            let layers = state.layers.current();
            let has_room = !matches!(settled, Settled::Made(..)) || inner.has_room();
            if request_lsn < layers.open_above || state.is_deleted() || !has_room {
                return false;
            }
            match settled {
                Settled::Made(lsn, image) => {
                    assert!(*lsn <= request_lsn, "an image is not newer than the read that it was made for");
                    let before = layers.open.allocated_bytes();
                    layers.open.put_made(key, *lsn, image);
                    inner.memory.open_changed(before, layers.open.allocated_bytes());
                    writer.changed_at.get_or_insert_with(Instant::now);
                }
                Settled::Weighs(weight) => {
                    layers.open.set_weight(key, request_lsn, Weight::try_from(*weight).unwrap_or(Weight::MAX));
                }
                Settled::Failed => layers.open.set_weight(key, request_lsn, 0),
            }
        }
        inner.freeze_if_full();
        true
    }

    /// What a gathered chain weighs.
    pub fn weight_of(found: &Gathered) -> u32 {
        weight_of(&found.versions).into()
    }

    /// From now on nothing is known of the chains below the layers: they are taken to be as heavy as they may be. For a branch, whose chains go on in its ancestors.
    pub fn forget_weights(&self) {
        *self.state().carried.lock() = super::carried::Carried::new(self.store().inner().weight_max());
    }

    /// All chains that are too heavy by now, as far as they are known: in the layers, or carried from layers that were flushed since the store was opened.
    pub fn heavy_chains(&self) -> Vec<HeavyChain> {
        let weight_max = self.store().inner().weight_max();
        if weight_max == 0 {
            return Vec::new();
        }
        let layers = self.state().layers.current();
        let mut weights: HashMap<Key, Weight> = self.state().carried.lock().heavier(weight_max).collect();
        // What is newer counts.
        for frozen in &layers.frozen {
            weights.extend(frozen.layer.read().weights());
        }
        weights.extend(layers.open.read().weights());
        let is_heavy = |(_, weight): &(Key, Weight)| *weight >= weight_max;
        weights.into_iter().filter(is_heavy).map(|(key, weight)| HeavyChain { key, weight: weight.into() }).collect()
    }

    /// What the chain of `key` is known to weigh.
    #[cfg(test)]
    pub(super) fn known_weight(&self, key: &Key) -> u32 {
        let layers = self.state().layers.current();
        let in_layers = layers.open.read().weight(key).or_else(|| layers.frozen_weight(key));
        in_layers.unwrap_or_else(|| self.state().carried.lock().weight(key)).into()
    }
}
