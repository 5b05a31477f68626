//! What is proven of the backup that a timeline was imported from, with the record with which the timeline can be read.
//!
//! - Files that the backup lacked ([`MissingSegment`]) are of relations that are gone, or have come with WAL, block by block.
//! - So have the blocks in front of one that WAL names far behind a fork's end: a relation that is dropped, or cut, before the backup comes to its files. PostgreSQL's recovery
//!   remembers such blocks, and wants the same by the backup's end (xlogutils.c, log_invalid_page, XLogCheckInvalidPages).
//! - **Never:** the timeline becomes readable with such a block that has nothing to stand on.

use std::ops::ControlFlow;

use keyenc::{Key, Kind, Object};
use postgres_ffi::{BlockNumber, ForkNumber, Lsn, RelTag};

use super::Timeline;
use super::wal_ingest::TimelineIngestError;
use crate::import::MissingSegment;
use crate::ingest::{GAP_BLOCKS_MAX, IngestError};
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

    /// True if there is something to prove. `left_gaps`: forks in which ingest has left gaps, so far.
    pub fn is_owed(&self, left_gaps: &[(RelTag, ForkNumber)]) -> bool {
        self.is_begun_late || !left_gaps.is_empty() || !self.missing_segments.is_empty()
    }

    /// With the record that ends at `lsn`, which is in the store, and with which the timeline can be read. Errors: [`TimelineIngestError::MissingSegment`]; a failed read.
    pub fn check(
        &self,
        timeline: &Timeline,
        lsn: Lsn,
        left_gaps: &[(RelTag, ForkNumber)],
    ) -> Result<(), TimelineIngestError> {
        for missing in &self.missing_segments {
            let block_count = block_count(timeline, missing.rel, missing.fork, lsn)?;
            match missing.segment_no {
                // Then the size is WAL's alone, and its blocks may be anywhere.
                0 => check_fork(timeline, missing.rel, missing.fork, block_count, lsn)?,
                _ => check_bases(timeline, *missing, block_count, lsn)?,
            }
        }
        for (rel, fork) in left_gaps {
            check_fork(timeline, *rel, *fork, block_count(timeline, *rel, *fork, lsn)?, lsn)?;
        }
        if self.is_begun_late { check_long_forks(timeline, lsn) } else { Ok(()) }
    }
}

/// 0: the fork is not there.
fn block_count(timeline: &Timeline, rel: RelTag, fork: ForkNumber, lsn: Lsn) -> Result<BlockNumber, IngestError> {
    let block_count = timeline.count_object(Object::RelationSize { rel, fork }, lsn);
    Ok(block_count.map_err(|error| IngestError::State { source: error.into() })?.unwrap_or(0))
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
