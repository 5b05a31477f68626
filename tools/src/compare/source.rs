//! Where the pages come from that are held against a data directory: a page server, or a second directory.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use postgres_ffi::control_file::DbState;
use postgres_ffi::{BlockNumber, ForkNumber, Lsn, Oid, RelTag, SlruKind};

use crate::datadir::DataDir;

/// Bytes of relation maps by (tablespace, database).
pub type RelationMaps = BTreeMap<(Oid, Oid), Vec<u8>>;

/// One cluster's contents as of one LSN.
pub trait Source: Sync {
    /// For people: what is being compared with.
    fn describe(&self) -> String;
    /// The LSN that everything below is as of.
    fn lsn(&self) -> Lsn;
    /// Every fork of every relation with its size in blocks.
    fn relations(&self) -> Result<BTreeMap<(RelTag, ForkNumber), BlockNumber>>;
    /// A way to read pages that one thread has to itself.
    fn reader(&self) -> Result<Box<dyn Reader + '_>>;
    /// Segments of an SLRU: number and contents in whole pages.
    fn slru_segments(&self, kind: SlruKind) -> Result<BTreeMap<u32, Vec<u8>>>;
    /// Relation maps by (tablespace, database), as the bytes of their files.
    fn relation_maps(&self) -> Result<RelationMaps>;
    /// Prepared transactions by full transaction id, as the bytes of their files.
    fn two_phase(&self) -> Result<BTreeMap<u64, Vec<u8>>>;
    /// The 88 bytes of the CheckPoint struct.
    fn checkpoint(&self) -> Result<Vec<u8>>;
}

/// Reads pages for one thread.
pub trait Reader {
    /// Fills `buffer` with consecutive blocks from `first_block` on. Requires: they exist.
    fn read_blocks(&mut self, rel: RelTag, fork: ForkNumber, first_block: BlockNumber, buffer: &mut [u8])
    -> Result<()>;
}

/// A second data directory: a standby that was stopped behind its primary.
pub struct DirectorySource {
    dir: DataDir,
    lsn: Lsn,
}

impl DirectorySource {
    /// Requires: a cleanly stopped server, primary or standby.
    pub fn new(dir: DataDir) -> Result<Self> {
        let lsn = match dir.control.state {
            DbState::ShutDown => dir.checkpoint_end_lsn()?,
            DbState::ShutDownInRecovery => dir.control.min_recovery_lsn.unwrap_or(dir.checkpoint_end_lsn()?),
            state => bail!("the second directory is not of a cleanly stopped server. state=`{state:?}`"),
        };
        Ok(DirectorySource { dir, lsn })
    }

    /// Where its replay or its own WAL ended.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }
}

impl Source for DirectorySource {
    fn describe(&self) -> String {
        "a second data directory".into()
    }

    fn lsn(&self) -> Lsn {
        self.lsn
    }

    fn relations(&self) -> Result<BTreeMap<(RelTag, ForkNumber), BlockNumber>> {
        Ok(self.dir.forks.iter().map(|(address, files)| (*address, files.blocks())).collect())
    }

    fn reader(&self) -> Result<Box<dyn Reader + '_>> {
        Ok(Box::new(&self.dir))
    }

    fn slru_segments(&self, kind: SlruKind) -> Result<BTreeMap<u32, Vec<u8>>> {
        self.dir.slru_segments(kind)
    }

    fn relation_maps(&self) -> Result<RelationMaps> {
        self.dir.relation_map_bytes()
    }

    fn two_phase(&self) -> Result<BTreeMap<u64, Vec<u8>>> {
        self.dir.two_phase_files()
    }

    fn checkpoint(&self) -> Result<Vec<u8>> {
        Ok(self.dir.control.checkpoint_copy.to_vec())
    }
}

impl Reader for &DataDir {
    fn read_blocks(
        &mut self,
        rel: RelTag,
        fork: ForkNumber,
        first_block: BlockNumber,
        buffer: &mut [u8],
    ) -> Result<()> {
        DataDir::read_blocks(self, rel, fork, first_block, buffer)
    }
}
