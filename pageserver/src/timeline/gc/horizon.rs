//! What of a timeline's own history can still be read: everything from its horizon on, and the pins below it.
//!
//! - The horizon is durable, and set here, before the first version goes; who reads looks here *last*. So a read of an LSN that is being given up
//!   either saw everything, or is refused.
//! - Pins are whatever was pinned when the horizon was set: what is pinned later lies above it, or at a pin.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use postgres_ffi::Lsn;

/// Horizon and pins of one timeline.
#[derive(Default)]
pub(in crate::timeline) struct Horizon {
    lsn: AtomicU64,
    /// Ascending.
    pins: RwLock<Arc<[Lsn]>>,
}

impl Horizon {
    /// A horizon that a timeline has had. `pins` are ascending.
    pub fn new(lsn: Option<Lsn>, pins: Vec<Lsn>) -> Self {
        Horizon { lsn: AtomicU64::new(lsn.map_or(0, Lsn::as_u64)), pins: RwLock::new(pins.into()) }
    }

    /// Nothing below it can be read but for the pins. [`Lsn::ZERO`]: nothing was given up yet.
    pub fn lsn(&self) -> Lsn {
        Lsn::new(self.lsn.load(Ordering::SeqCst))
    }

    /// LSNs below the horizon that can be read, among others.
    pub fn pins(&self) -> Arc<[Lsn]> {
        Arc::clone(&self.pins.read())
    }

    /// True when the timeline's own versions show `lsn`.
    pub fn keeps(&self, lsn: Lsn) -> bool {
        self.lsn() <= lsn || self.pins.read().binary_search(&lsn).is_ok()
    }

    /// Gives up what is below `lsn` and no pin. Requires: that is durable; `pins` are ascending; the horizon does not go back.
    pub fn set(&self, lsn: Lsn, pins: Vec<Lsn>) {
        assert!(self.lsn() <= lsn, "a horizon does not go back");
        // In this order: who sees the new horizon sees the new pins.
        *self.pins.write() = pins.into();
        self.lsn.store(lsn.as_u64(), Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    //! Goal: the horizon and the pins can be read, nothing else below. Method: plain cases.

    use super::*;

    #[test]
    fn keeps_what_lies_above_and_the_pins() {
        let kept = |horizon: &Horizon| (0..12).filter(|lsn| horizon.keeps(Lsn::new(*lsn))).collect::<Vec<_>>();
        let horizon = Horizon::default();
        assert_eq!(kept(&horizon), (0..12).collect::<Vec<_>>());
        horizon.set(Lsn::new(9), vec![Lsn::new(3), Lsn::new(7)]);
        assert_eq!(kept(&horizon), [3, 7, 9, 10, 11]);
        horizon.set(Lsn::new(10), vec![Lsn::new(7)]);
        assert_eq!(kept(&horizon), [7, 10, 11]);
        assert_eq!(kept(&Horizon::new(Some(Lsn::new(11)), Vec::new())), [11]);
    }
}
