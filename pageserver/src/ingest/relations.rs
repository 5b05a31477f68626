//! Relation forks: how long they are, and that they come and go.

use keyenc::{Key, Kind, Object};
use postgres_ffi::records::smgr::{self, Truncate};
use postgres_ffi::rel::GLOBALTABLESPACE_OID;
use postgres_ffi::{BlockNumber, ForkNumber, Oid, RelTag};

use super::step::Step;
use super::{IngestError, WalIngest};
use crate::delta::{Delta, free_space_map, visibility_map};

/// Blocks that one record may add in front of the block it touches: 128 GiB. A hash index grows by up to a quarter of itself at once and
/// logs the last block only; everything else adds a few hundred at most. Below a backup's end there is no limit: the relation may be gone before the backup comes to its files.
/// Then the blocks in front get no versions: [`WalIngest::left_gaps`].
pub(crate) const GAP_BLOCKS_MAX: BlockNumber = 1 << 24;

/// Forks that may have such gaps at a time.
const LEFT_GAPS_MAX: usize = 1 << 10;

impl WalIngest {
    /// Makes the fork long enough for the block. True if the block was there before.
    ///
    /// The block itself gets no version here; those between the old end and it become pages of zeroes.
    #[inline]
    pub(super) fn touch_block(
        &mut self,
        step: &mut Step<'_>,
        rel: RelTag,
        fork: ForkNumber,
        block_no: BlockNumber,
    ) -> Result<bool, IngestError> {
        match self.known.forks.get(&(rel, fork)) {
            Some(Some(block_count)) if block_no < *block_count => Ok(true),
            _ => self.touch_slow(step, rel, fork, block_no),
        }
    }

    #[cold]
    fn touch_slow(
        &mut self,
        step: &mut Step<'_>,
        rel: RelTag,
        fork: ForkNumber,
        block_no: BlockNumber,
    ) -> Result<bool, IngestError> {
        let before = self.fork_size(step, rel, fork)?;
        let block_count = before.unwrap_or(0);
        if block_no < block_count {
            return Ok(true);
        }
        if before.is_none() {
            self.ensure_database_dir(step, rel.spc_oid, rel.db_oid)?;
        }
        let is_left = block_no - block_count > GAP_BLOCKS_MAX;
        let may_be_left = self.file_copies.is_over_backup() && self.left_gaps.len() < LEFT_GAPS_MAX;
        if is_left && !may_be_left {
            let record_start_lsn = step.record.start_lsn;
            return Err(IngestError::GapTooLarge { record_start_lsn, rel, fork, block_count, block_no });
        }
        if !is_left {
            for gap_block in block_count..block_no {
                step.batch.put(Key::block(rel, fork, gap_block), step.lsn(), Kind::Image, &[]);
                step.commit_if_full()?;
            }
        } else if !self.left_gaps.contains(&(rel, fork)) {
            self.left_gaps.push((rel, fork));
        }
        self.set_fork_size(step, rel, fork, before, block_no + 1); // Fits: `u32::MAX` is no block number, decoding refuses it.
        Ok(false)
    }

    /// Blocks of a fork, `None` if it does not exist.
    pub(super) fn fork_size(
        &mut self,
        step: &Step<'_>,
        rel: RelTag,
        fork: ForkNumber,
    ) -> Result<Option<BlockNumber>, IngestError> {
        if let Some(known) = self.known.forks.get(&(rel, fork)) {
            return Ok(*known);
        }
        let found = step.number(Object::RelationSize { rel, fork })?;
        self.known.forks.insert((rel, fork), found);
        Ok(found)
    }

    /// `before`: what it had before this record, as far as the record itself has not changed it already.
    pub(super) fn set_fork_size(
        &mut self,
        step: &mut Step<'_>,
        rel: RelTag,
        fork: ForkNumber,
        before: Option<BlockNumber>,
        block_count: BlockNumber,
    ) {
        step.put(Object::RelationSize { rel, fork }, Kind::Image, &block_count.to_be_bytes());
        self.fork_changed(rel, fork, before, Some(block_count));
    }

    /// `before`: as of [`Self::set_fork_size`].
    pub(super) fn remove_fork(
        &mut self,
        step: &mut Step<'_>,
        rel: RelTag,
        fork: ForkNumber,
        before: Option<BlockNumber>,
    ) {
        step.put(Object::RelationSize { rel, fork }, Kind::Tombstone, &[]);
        self.fork_changed(rel, fork, before, None);
    }

    fn fork_changed(&mut self, rel: RelTag, fork: ForkNumber, before: Option<BlockNumber>, after: Option<BlockNumber>) {
        // A record may change a fork more than once: what is known is newer than what stood before the record.
        let before = self.known.forks.insert((rel, fork), after).unwrap_or(before);
        self.kept_sizes.fork_changed(rel, fork, before, after);
    }

    /// A relation's files go away: all forks that there are. PG: md.c, DropRelationFiles.
    pub(super) fn drop_relation(&mut self, step: &mut Step<'_>, rel: RelTag) -> Result<(), IngestError> {
        self.file_copies.note_change_of(rel);
        for fork in ForkNumber::ALL {
            let before = self.fork_size(step, rel, fork)?;
            if before.is_some() {
                self.remove_fork(step, rel, fork, before);
            }
        }
        step.commit_if_full()
    }

    /// A database's directory in a tablespace is made when its first file is. PG: tablespace.c, TablespaceCreateDbspace.
    pub(super) fn ensure_database_dir(
        &mut self,
        step: &mut Step<'_>,
        spc_oid: Oid,
        db_oid: Oid,
    ) -> Result<(), IngestError> {
        if spc_oid == GLOBALTABLESPACE_OID || self.known.database_dirs.get(&(spc_oid, db_oid)) == Some(&true) {
            return Ok(());
        }
        let is_known = self.known.database_dirs.contains_key(&(spc_oid, db_oid));
        if is_known || step.object(Object::Database { spc_oid, db_oid })?.is_none() {
            step.put(Object::Database { spc_oid, db_oid }, Kind::Image, &[]);
        }
        self.known.database_dirs.insert((spc_oid, db_oid), true);
        Ok(())
    }

    /// Records of the Storage resource manager. PG: src/backend/catalog/storage.c, smgr_redo.
    pub(super) fn ingest_smgr(&mut self, step: &mut Step<'_>) -> Result<(), IngestError> {
        match step.record.operation() {
            smgr::CREATE => {
                let (rel, fork) =
                    smgr::parse_create(step.record.main_data()).map_err(|source| step.bad_body(source))?;
                self.file_copies.note_change_of(rel);
                self.unmade.remove(&(rel, fork));
                self.create_fork(step, rel, fork)
            }
            smgr::TRUNCATE => {
                let truncate = Truncate::parse(step.record.main_data()).map_err(|source| step.bad_body(source))?;
                self.file_copies.note_change_of(truncate.rel);
                self.truncate(step, &truncate)
            }
            _ => Err(step.unknown_operation()),
        }
    }

    /// A fork that exists stays as it is: after a fuzzy import the file may be there before its record.
    fn create_fork(&mut self, step: &mut Step<'_>, rel: RelTag, fork: ForkNumber) -> Result<(), IngestError> {
        if self.fork_size(step, rel, fork)?.is_none() {
            self.ensure_database_dir(step, rel.spc_oid, rel.db_oid)?;
            self.set_fork_size(step, rel, fork, None, 0);
        }
        Ok(())
    }

    fn truncate(&mut self, step: &mut Step<'_>, truncate: &Truncate) -> Result<(), IngestError> {
        let rel = truncate.rel;
        self.create_fork(step, rel, ForkNumber::Main)?;
        if truncate.main {
            self.cut_fork(step, rel, ForkNumber::Main, truncate.block_count)?;
        }
        if truncate.fsm {
            self.cut_free_space_map(step, rel, truncate.block_count)?;
        }
        if truncate.vm {
            self.cut_visibility_map(step, rel, truncate.block_count)?;
        }
        Ok(())
    }

    /// A fork that is shorter already is left alone. PG: md.c, mdtruncate in recovery.
    fn cut_fork(
        &mut self,
        step: &mut Step<'_>,
        rel: RelTag,
        fork: ForkNumber,
        block_count: BlockNumber,
    ) -> Result<(), IngestError> {
        let before = self.fork_size(step, rel, fork)?;
        if before.is_some_and(|before| before > block_count) {
            self.set_fork_size(step, rel, fork, before, block_count);
        }
        Ok(())
    }

    /// PG: visibilitymap.c, visibilitymap_prepare_truncate.
    fn cut_visibility_map(
        &mut self,
        step: &mut Step<'_>,
        rel: RelTag,
        heap_block_count: BlockNumber,
    ) -> Result<(), IngestError> {
        let Some(before) = self.fork_size(step, rel, ForkNumber::Vm)? else { return Ok(()) };
        let cut = visibility_map::cut(heap_block_count);
        if let Some((map_page, first_index)) = cut.partial.filter(|(map_page, _)| *map_page < before) {
            self.put_map_delta(step, rel, ForkNumber::Vm, map_page, Delta::VisibilityMapTruncate { first_index });
        }
        self.cut_fork(step, rel, ForkNumber::Vm, cut.page_count)
    }

    /// PG: freespace.c, FreeSpaceMapPrepareTruncateRel, FreeSpaceMapVacuumRange.
    fn cut_free_space_map(
        &mut self,
        step: &mut Step<'_>,
        rel: RelTag,
        heap_block_count: BlockNumber,
    ) -> Result<(), IngestError> {
        let Some(before) = self.fork_size(step, rel, ForkNumber::Fsm)? else { return Ok(()) };
        let cut = free_space_map::cut(heap_block_count);
        let is_shorter_already = match cut.partial {
            Some((map_page, _)) => map_page >= before,
            None => cut.page_count >= before,
        };
        if is_shorter_already {
            return Ok(());
        }
        for (map_page, first_slot) in cut.partial.into_iter().chain(cut.upper.into_iter().flatten()) {
            self.put_map_delta(step, rel, ForkNumber::Fsm, map_page, Delta::FreeSpaceMapTruncate { first_slot });
        }
        self.cut_fork(step, rel, ForkNumber::Fsm, cut.page_count)
    }

    /// A change to a page of a map that is there.
    fn put_map_delta(
        &mut self,
        step: &mut Step<'_>,
        rel: RelTag,
        fork: ForkNumber,
        map_page: BlockNumber,
        delta: Delta<'_>,
    ) {
        self.value.clear();
        delta.encode(&mut self.value);
        step.batch.put(Key::block(rel, fork, map_page), step.lsn(), Kind::Delta, &self.value);
    }
}
