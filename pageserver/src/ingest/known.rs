//! What ingest remembers of the timeline, so that a record needs no read: sizes and existence.
//!
//! - `None` in a map: known not to exist. No entry: not known, ask the timeline.
//! - Everything that the batch changed stands here until the batch is committed: [`Known::clear`] is only called then.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use postgres_ffi::{BlockNumber, ForkNumber, Oid, RelTag, SlruKind};

use super::OriginProgress;

/// Entries kept before everything is forgotten: a million relation forks are some 40 MB, and more than one server has in use at a time.
const ENTRIES_MAX: usize = 1 << 20;

/// See the head of the file.
#[derive(Default)]
pub(super) struct Known {
    /// Blocks of a fork.
    pub forks: HashMap<(RelTag, ForkNumber), Option<BlockNumber>, RandomState>,
    /// Pages of an SLRU segment.
    pub segments: HashMap<(SlruKind, u32), Option<u32>, RandomState>,
    /// Whether a database has a directory in a tablespace: (tablespace, database).
    pub database_dirs: HashMap<(Oid, Oid), bool, RandomState>,
    /// Progress of replication origins.
    pub origins: HashMap<u16, Option<OriginProgress>, RandomState>,
}

impl Known {
    /// True when it is time to forget.
    #[inline]
    pub fn is_full(&self) -> bool {
        // The other maps are small by nature: 65,536 origins, 256 K segments; directories have relations.
        self.forks.len() > ENTRIES_MAX || self.segments.len() > ENTRIES_MAX || self.database_dirs.len() > ENTRIES_MAX
    }

    /// Forgets everything. Requires: the batch is committed.
    pub fn clear(&mut self) {
        self.forks.clear();
        self.segments.clear();
        self.database_dirs.clear();
        self.origins.clear();
    }
}
