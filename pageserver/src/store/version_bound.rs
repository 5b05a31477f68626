//! Where a read goes on: at or below a version.

use keyenc::{Key, Kind, TimelineNo, VersionKey};
use postgres_ffi::Lsn;

/// The versions at or below (lsn, kind), in the order of keys: at one LSN an image is above a delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct VersionBound {
    lsn: Lsn,
    kind: Kind,
}

impl VersionBound {
    /// All versions at or below `lsn`.
    pub fn at(lsn: Lsn) -> Self {
        VersionBound { lsn, kind: Kind::Image }
    }

    /// All versions strictly below (`lsn`, `kind`). None: there cannot be any.
    pub fn below(lsn: Lsn, kind: Kind) -> Option<Self> {
        let kind = match kind {
            Kind::Image => Kind::InitDelta,
            Kind::InitDelta => Kind::Delta,
            Kind::Delta => Kind::Tombstone,
            Kind::Tombstone => return Some(Self::at(Lsn::new(lsn.as_u64().checked_sub(1)?))),
        };
        Some(VersionBound { lsn, kind })
    }

    /// The highest version within the bound.
    pub fn highest(self) -> (Lsn, Kind) {
        (self.lsn, self.kind)
    }

    pub fn includes(self, lsn: Lsn, kind: Kind) -> bool {
        (lsn, kind) <= (self.lsn, self.kind)
    }

    /// The highest version key of `key` that is within the bound: where a reverse seek begins.
    pub fn version_key(self, timeline: TimelineNo, key: &Key) -> VersionKey {
        VersionKey { timeline, key: *key, lsn: self.lsn, kind: self.kind }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: nothing lies between a version and the bound below it. Method: all kinds at a few LSNs.

    use super::*;

    const KINDS: [Kind; 4] = [Kind::Tombstone, Kind::Delta, Kind::InitDelta, Kind::Image];

    #[test]
    fn below_excludes_the_version_and_nothing_else() {
        let versions: Vec<_> = (0..3).flat_map(|lsn| KINDS.map(|kind| (Lsn::new(lsn), kind))).collect();
        for (n, (lsn, kind)) in versions.iter().enumerate() {
            let bound = VersionBound::below(*lsn, *kind);
            assert_eq!(bound.is_none(), n == 0);
            for (m, (other_lsn, other_kind)) in versions.iter().enumerate() {
                assert_eq!(bound.is_some_and(|b| b.includes(*other_lsn, *other_kind)), m < n);
                assert_eq!(VersionBound::at(*lsn).includes(*other_lsn, *other_kind), other_lsn <= lsn);
            }
        }
    }
}
