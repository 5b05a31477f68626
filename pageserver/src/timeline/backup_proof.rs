//! What is proven of the backup that a timeline was imported from, with the record with which the timeline can be read.
//!
//! - Files that the backup lacked ([`MissingSegment`]) are of relations that are gone, or have come with WAL, block by block; of one without its first file WAL must have the making, too: else the pages of
//!   zeroes in front of a block that WAL names would pass for what the file had.
//! - So have the blocks in front of one that WAL names far behind a fork's end: a relation that is dropped, or cut, before the backup comes to its files. PostgreSQL's recovery
//!   remembers such blocks, and wants the same by the backup's end (xlogutils.c, log_invalid_page, XLogCheckInvalidPages).
//! - Ingest that begins anew in between does not know what was before: it looks at all forks that are longer than such a gap, and takes none for made.
//! - **Never:** the timeline becomes readable with such a block that has nothing to stand on. (A fork that a record behind such a restart has cut to less than that is not looked at. What had a gap there was of a
//!   damaged backup, and its blocks read as zeroes, as they would in PostgreSQL.)

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use keyenc::{Key, Kind, Object};
use postgres_ffi::{BlockNumber, ForkNumber, Lsn, RelTag};

use super::Timeline;
use super::wal_ingest::TimelineIngestError;
use crate::import::MissingSegment;
use crate::ingest::{GAP_BLOCKS_MAX, IngestError, WalIngest};
use crate::store::Gathered;

/// What is to be proven.
pub(super) struct BackupProof {
    /// The backup's end.
    pub backup_end_lsn: Lsn,
    missing_segments: Vec<MissingSegment>,
    /// Not all WAL of the backup has come by this ingest: what was before it is not known.
    is_begun_late: bool,
}

impl BackupProof {
    /// Of a timeline whose ingest goes on at `start_lsn`. `None`: it was not imported, or its backup is passed.
    pub fn of(timeline: &Timeline, start_lsn: Lsn) -> Option<Self> {
        let imported = timeline.metadata().imported.clone()?;
        (start_lsn < imported.first_readable_lsn).then(|| BackupProof {
            backup_end_lsn: imported.first_readable_lsn,
            missing_segments: imported.missing_segments,
            is_begun_late: start_lsn > imported.start_lsn,
        })
    }

    /// Forks without their first files.
    pub fn unmade(&self) -> BTreeSet<(RelTag, ForkNumber)> {
        let has_no_beginning = |missing: &&MissingSegment| missing.segment_no == 0;
        self.missing_segments.iter().filter(has_no_beginning).map(|missing| (missing.rel, missing.fork)).collect()
    }

    /// True if there is something to prove.
    pub fn is_owed(&self, ingest: &WalIngest) -> bool {
        self.is_begun_late || !ingest.left_gaps().is_empty() || !self.missing_segments.is_empty()
    }

    /// With the record that ends at `lsn`, which is in the store, and with which the timeline can be read. Errors: [`TimelineIngestError::MissingSegment`]; a failed read.
    pub fn check(&self, timeline: &Timeline, lsn: Lsn, ingest: &WalIngest) -> Result<(), TimelineIngestError> {
        for missing in &self.missing_segments {
            let MissingSegment { rel, fork, segment_no } = *missing;
            let block_count = block_count(timeline, rel, fork, lsn)?;
            match (block_count, segment_no) {
                (None, _) => {}
                (Some(_), 0) if ingest.is_unmade(rel, fork) => {
                    return Err(TimelineIngestError::MissingSegment(*missing));
                }
                // Then the size is WAL's alone, and its blocks may be anywhere.
                (Some(block_count), 0) => check_fork(timeline, rel, fork, block_count, lsn)?,
                (Some(block_count), _) => check_bases(timeline, *missing, block_count, lsn)?,
            }
        }
        for (rel, fork) in ingest.left_gaps() {
            check_fork(timeline, *rel, *fork, block_count(timeline, *rel, *fork, lsn)?.unwrap_or(0), lsn)?;
        }
        if self.is_begun_late { check_long_forks(timeline, lsn) } else { Ok(()) }
    }
}

/// `None`: the fork is not there.
fn block_count(
    timeline: &Timeline,
    rel: RelTag,
    fork: ForkNumber,
    lsn: Lsn,
) -> Result<Option<BlockNumber>, IngestError> {
    let block_count = timeline.count_object(Object::RelationSize { rel, fork }, lsn);
    block_count.map_err(|error| IngestError::State { source: error.into() })
}

/// Those that are long enough to have a gap.
fn check_long_forks(timeline: &Timeline, lsn: Lsn) -> Result<(), TimelineIngestError> {
    let relations = timeline.all_relations_unchecked(lsn);
    let relations = relations.map_err(|error| IngestError::State { source: error.into() })?;
    let is_long = |(_, _, block_count): &(RelTag, ForkNumber, BlockNumber)| *block_count > GAP_BLOCKS_MAX;
    let mut long = relations.into_iter().filter(is_long);
    long.try_for_each(|(rel, fork, block_count)| check_fork(timeline, rel, fork, block_count, lsn))
}

/// All blocks of a fork.
fn check_fork(
    timeline: &Timeline,
    rel: RelTag,
    fork: ForkNumber,
    block_count: BlockNumber,
    lsn: Lsn,
) -> Result<(), TimelineIngestError> {
    let mut segments = MissingSegment::all_of(rel, fork, block_count);
    segments.try_for_each(|segment| check_bases(timeline, segment, block_count, lsn))
}

/// Each block of the segment, in a fork of so many blocks, has a version at `lsn` that stands on an image, or on nothing.
fn check_bases(
    timeline: &Timeline,
    segment: MissingSegment,
    block_count: BlockNumber,
    lsn: Lsn,
) -> Result<(), TimelineIngestError> {
    let blocks = segment.blocks_of(block_count);
    let Some(last) = blocks.clone().next_back() else { return Ok(()) };
    let key = |block_no| Key::block(segment.rel, segment.fork, block_no);
    let (mut based, mut deltas) = (0, Vec::new());
    timeline.store.scan_newest(&key(blocks.start), &key(last), lsn, &mut |key, _, kind, _| {
        match kind {
            Kind::Image | Kind::InitDelta => based += 1,
            Kind::Delta => deltas.push(key),
            Kind::Tombstone => {}
        }
        ControlFlow::Continue(())
    })?;
    for key in deltas {
        based += usize::from(timeline.store.gather(&key, lsn, &mut Gathered::default())?);
    }
    if based == blocks.len() { Ok(()) } else { Err(TimelineIngestError::MissingSegment(segment)) }
}
