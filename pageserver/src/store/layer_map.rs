//! The layers of one timeline in front of RocksDB: the open one, and those that wait for the flusher.
//!
//! - A reader takes the set once and keeps it: layers that are flushed meanwhile stay readable in its hands.
//! - The flusher drops a layer from the set only after RocksDB has it; so whoever takes the set first and opens an iterator second
//!   misses nothing.

use std::sync::Arc;

use keyenc::Key;
use parking_lot::RwLock;
use postgres_ffi::Lsn;

use super::chain_weight::Weight;
use super::layer::Layer;

/// One consistent set of layers.
pub(super) struct Layers {
    pub open: Arc<Layer>,
    /// Oldest first.
    pub frozen: Vec<Arc<FrozenLayer>>,
    /// All versions above this LSN are in these layers.
    pub covered_above: Lsn,
    /// No version above this LSN is in a frozen layer or in RocksDB, but for what comes again after a crash.
    pub open_above: Lsn,
}

/// A layer that nobody puts into any more.
pub(super) struct FrozenLayer {
    pub layer: Arc<Layer>,
    /// All versions up to here are in this layer or an older one, or in RocksDB.
    pub last_record_lsn: Lsn,
    /// True when the watermark is written with it.
    pub publish: bool,
    /// What is counted as frozen for it.
    pub allocated_bytes: usize,
}

/// The current set of layers of a timeline.
pub(super) struct LayerMap {
    current: RwLock<Arc<Layers>>,
}

impl Layers {
    fn new(frozen: Vec<Arc<FrozenLayer>>, covered_above: Lsn, open_above: Lsn) -> Self {
        Layers { open: Arc::new(Layer::new()), frozen, covered_above, open_above }
    }

    /// What the chain of `key` weighs in the frozen layers and below them; `None`: no frozen layer has it.
    pub fn frozen_weight(&self, key: &Key) -> Option<Weight> {
        self.frozen.iter().rev().find_map(|frozen| frozen.layer.read().weight(key))
    }

    /// Newest first: the order in which a reader looks.
    pub fn newest_first(&self) -> impl Iterator<Item = &Layer> {
        std::iter::once(&*self.open).chain(self.frozen.iter().rev().map(|frozen| &*frozen.layer))
    }
}

impl LayerMap {
    /// No layers yet; what is put will be above `covered_above`.
    pub fn new(covered_above: Lsn) -> Self {
        LayerMap { current: RwLock::new(Arc::new(Layers::new(Vec::new(), covered_above, covered_above))) }
    }

    pub fn current(&self) -> Arc<Layers> {
        Arc::clone(&self.current.read())
    }

    /// Makes the open layer a frozen one and begins a new open layer.
    ///
    /// Requires: nobody puts meanwhile (the caller holds the timeline's writer lock).
    pub fn freeze(&self, last_record_lsn: Lsn, publish: bool) -> Arc<FrozenLayer> {
        let mut current = self.current.write();
        let frozen = Arc::new(FrozenLayer {
            layer: Arc::clone(&current.open),
            last_record_lsn,
            publish,
            allocated_bytes: current.open.allocated_bytes(),
        });
        let all = current.frozen.iter().chain([&frozen]).map(Arc::clone).collect();
        let open_above = current.open_above.max(last_record_lsn).max(frozen.layer.lsn_max());
        *current = Arc::new(Layers::new(all, current.covered_above, open_above));
        frozen
    }

    /// Forgets a layer that RocksDB has now.
    pub fn drop_frozen(&self, flushed: &Arc<FrozenLayer>) {
        let mut current = self.current.write();
        let frozen = current.frozen.iter().filter(|layer| !Arc::ptr_eq(layer, flushed)).map(Arc::clone).collect();
        // A layer may hold versions above its last whole record: those are in RocksDB alone from now on.
        let flushed_lsn = flushed.last_record_lsn.max(flushed.layer.lsn_max());
        let covered_above = current.covered_above.max(flushed_lsn);
        *current = Arc::new(Layers { open: Arc::clone(&current.open), frozen, covered_above, ..**current });
    }

    /// Forgets everything, for a timeline that is deleted.
    pub fn clear(&self) {
        *self.current.write() = Arc::new(Layers::new(Vec::new(), Lsn::MAX, Lsn::MAX));
    }
}
