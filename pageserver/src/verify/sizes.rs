//! Do a relation's blocks agree with its size? Sizes come before blocks in the order of keys: one number for each fork is remembered.

use std::collections::HashMap;

use byteorder::{BigEndian, ByteOrder};
use keyenc::{Kind, Object, VersionKey};
use postgres_ffi::{BlockNumber, ForkNumber, Lsn, RelTag};

/// The newest size of each relation fork of one timeline.
#[derive(Default)]
pub(super) struct Sizes {
    newest: HashMap<(RelTag, ForkNumber), (Lsn, Option<BlockNumber>)>,
}

impl Sizes {
    /// Versions come oldest first: the last one stays.
    pub fn see(&mut self, version: &VersionKey, value: &[u8]) {
        if let Ok(Object::RelationSize { rel, fork }) = version.key.object() {
            let count = (version.kind == Kind::Image && value.len() == 4).then(|| BigEndian::read_u32(value));
            self.newest.insert((rel, fork), (version.lsn, count));
        }
    }

    /// What is wrong with the newest version of a block, which was put at `block_lsn`: it lies behind the end of its fork although it was
    /// written after the fork was cut there. A size that is an ancestor's is not known here.
    pub fn check_block(&self, rel: RelTag, fork: ForkNumber, block_no: BlockNumber, block_lsn: Lsn) -> Option<String> {
        let (size_lsn, count) = self.newest.get(&(rel, fork))?;
        if block_lsn <= *size_lsn {
            return None;
        }
        match count {
            Some(count) if block_no < *count => None,
            Some(count) => Some(format!(
                "behind the end of its fork, and newer than that. blocks=`{count}`, size_lsn=`{size_lsn}`"
            )),
            None => {
                Some(format!("of a fork that does not exist any more, and newer than that. dropped_lsn=`{size_lsn}`"))
            }
        }
    }
}
