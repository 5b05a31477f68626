//! WAL records to versions: what each record changes, put into a [`Batch`] under the record's end LSN.
//!
//! - Every block reference becomes a version of that block: the image if redo applies it, else the record cut down for the block. What
//!   redo changes without a reference (CLOG, multixacts, commit timestamps, the maps, sizes, databases, relation maps, prepared
//!   transactions, counters) becomes a version of its own, as a delta of ours or as a whole object.
//! - A record that changes something that is not understood is an error with its position, never skipped.
//! - The hot path does no read: sizes and existence are kept in memory ([`known`]). **Never:** something that the batch changed is
//!   forgotten before the batch is readable; so what is read from the timeline is always newest.
//! - Everything put is the same when the same records are ingested again from the watermark: a restart repeats harmlessly. Two exceptions, as
//!   harmless: the newest commit timestamp in checkpoint data, and the page of zeroes that switching commit timestamps on makes.
//!
//! # Why replay over a fuzzy import is right
//!
//! A base backup copies files while they change. Sizes, pages and SLRU segments enter at the backup's redo LSN as the copy found them; they
//! may be *newer* than that LSN. Nothing is readable below the backup's end LSN, so only what holds there counts. It is what PostgreSQL's own
//! recovery from this backup makes, for the same reasons:
//!
//! - **A page newer than a record**: redo compares the page's LSN and skips the record. A record with WILL_INIT and an image are not skipped by
//!   PostgreSQL either: they make the page anew and what follows in WAL makes it newer again. Torn pages get an image first: those are forced
//!   during a backup. What has no LSN (SLRU pages, map bits) is set to values, not changed relative to what was there, and every later setting
//!   comes again.
//! - **A fork longer than at this LSN**: blocks that WAL knows nothing of yet stand in the file already. A record that touches them finds them,
//!   as in recovery. Creating a fork that exists leaves it as it is (smgrcreate in redo). A truncation in WAL cuts, whatever the file held.
//! - **A fork shorter, or missing**: it was truncated or dropped after the record, or grew after it was copied. In the second case WAL makes
//!   the blocks (initialisation or image), and the size follows the highest block touched. In the first case records touch blocks that are not
//!   there: recovery notes the page as invalid and forgets it at the truncation or drop; here the fork is made and extended on the way and
//!   such versions (an `InitDelta` that nothing can redo) lie below the truncation or drop, which comes before the end LSN. Never readable.
//! - **A database copied as files**: what it was copied from may be newer than the copy's record, and the copy stays as it was made. [`file_copies`]
//!   watches for that.
//! - **A file copied after being truncated and extended again**: the truncation is in WAL and cuts to the same size, then the extension comes
//!   again with initialised pages.
//! - At the end LSN each fork is at least as long as WAL says and at most as long as the file was when copied or WAL made it later. What is
//!   longer than WAL knows is zeroes: PostgreSQL does not log extension.

mod error;
pub use error::{IngestError, StateError};
mod reader;
pub use reader::TimelineReader;
mod known;
mod step;
use step::Step;

pub mod page_changes;

mod blocks;
mod commit_time;
pub use commit_time::{COMMIT_TIME_GRANULARITY_MICROS, CommitTime};
mod databases;
mod file_copies;
pub use file_copies::FileCopy;
mod kept_sizes;
pub use kept_sizes::KeptSize;
pub(crate) use kept_sizes::{KeptSizes, summed_keys};
mod multixact;
mod origins;
pub use origins::OriginProgress;
mod relations;
pub(crate) use relations::GAP_BLOCKS_MAX;
mod slru;
mod xact;
mod xlog;

use std::collections::BTreeSet;

use keyenc::{Key, Kind, Object};
use postgres_ffi::checkpoint::{Checkpoint, round_next_xid};
use postgres_ffi::records::dbase::DatabaseDir;
use postgres_ffi::records::{relmap, standby};
use postgres_ffi::slru::{previous_xid, xid_precedes};
use postgres_ffi::wal::{DecodedRecord, record, rmgr};
use postgres_ffi::{ForkNumber, Lsn, PgVersion, RelTag, TimestampTz};

use crate::store::Batch;
use file_copies::FileCopies;
use known::Known;

/// Turns the records of one timeline into versions, in order.
pub struct WalIngest {
    version: PgVersion,
    /// End of the last record ingested: the newest LSN that is whole.
    last_record_lsn: Lsn,
    /// Counters as of `last_record_lsn`: exact, but for a next transaction id up to 1,023 too high after a restart.
    checkpoint: Checkpoint,
    /// The next transaction id in the last version put: at least the exact one.
    stored_next_xid: u64,
    /// The next transaction id may be up to 1,023 too high: it was stored so, and no shutdown checkpoint has come since.
    is_next_xid_rounded: bool,
    /// A field of `checkpoint` other than the next transaction id changed since that version.
    checkpoint_changed: bool,
    /// The highest end of a transaction, as stored; `None` before the first.
    commit_time: Option<TimestampTz>,
    /// Commit timestamps are kept.
    track_commit_timestamp: bool,
    /// Checksums or `wal_log_hints` are on.
    hint_bits_logged: bool,
    known: Known,
    file_copies: FileCopies,
    kept_sizes: KeptSizes,
    left_gaps: Vec<(RelTag, ForkNumber)>,
    /// Forks of which the backup lacks the first file, and that no record has made yet.
    unmade: BTreeSet<(RelTag, ForkNumber)>,
    /// For values on their way into the batch, so that no record allocates.
    value: Vec<u8>,
    places: slru::Places,
}

impl WalIngest {
    /// Goes on behind `last_record_lsn` of the timeline that `state` reads.
    ///
    /// Errors: `Missing` when the timeline has no checkpoint data or no control file, which the import puts first.
    pub fn new(version: PgVersion, last_record_lsn: Lsn, state: &dyn TimelineReader) -> Result<Self, IngestError> {
        let read = |object: Object, what: &'static str| {
            let found = state.object(&Key::from(object), last_record_lsn);
            found.map_err(|source| IngestError::State { source })?.ok_or(IngestError::Missing { what })
        };
        let checkpoint = read(Object::Checkpoint, "checkpoint")?;
        let checkpoint = Checkpoint::decode(version, &checkpoint)
            .map_err(|source| IngestError::Checkpoint { record_start_lsn: last_record_lsn, source })?;
        let control_file = read(Object::ControlFile, "control file")?;
        let track_commit_timestamp = xlog::track_commit_timestamp(&control_file, last_record_lsn)?;
        let hint_bits_logged = xlog::hint_bits_logged(&control_file, last_record_lsn)?;
        Ok(WalIngest {
            version,
            last_record_lsn,
            checkpoint,
            stored_next_xid: checkpoint.next_xid,
            is_next_xid_rounded: round_next_xid(checkpoint.next_xid) == checkpoint.next_xid,
            checkpoint_changed: false,
            commit_time: commit_time::stored(state, last_record_lsn)?,
            track_commit_timestamp,
            hint_bits_logged,
            known: Known::default(),
            file_copies: FileCopies::default(),
            kept_sizes: KeptSizes::default(),
            left_gaps: Vec::new(),
            unmade: BTreeSet::new(),
            value: Vec::new(),
            places: slru::Places::default(),
        })
    }

    /// Ingest over a base backup that ends at `first_readable_lsn`: below it pages may be newer than the records that name them. See [`file_copies`]. `unmade`: forks of which it lacks
    /// the first file.
    ///
    /// Errors: the timeline cannot be read.
    pub fn over_backup_until(
        mut self,
        first_readable_lsn: Lsn,
        unmade: BTreeSet<(RelTag, ForkNumber)>,
        state: &dyn TimelineReader,
    ) -> Result<Self, IngestError> {
        if self.last_record_lsn < first_readable_lsn {
            self.unmade = unmade;
            self.file_copies = FileCopies::watch_until(first_readable_lsn, self.last_record_lsn, state)?;
        }
        Ok(self)
    }

    /// End of the last record ingested.
    pub fn last_record_lsn(&self) -> Lsn {
        self.last_record_lsn
    }

    /// Forks of which a record below a backup's end has touched a block more than [`GAP_BLOCKS_MAX`] behind their end: the blocks in between have no versions, and must have them by the
    /// backup's end, or be gone.
    pub fn left_gaps(&self) -> &[(RelTag, ForkNumber)] {
        &self.left_gaps
    }

    /// True if the backup lacks the first file of the fork, and no record that came by this ingest has made it.
    pub fn is_unmade(&self, rel: RelTag, fork: ForkNumber) -> bool {
        self.unmade.contains(&(rel, fork))
    }

    /// Counters as of the last record. Exact, but for the next transaction id: after a restart it is the stored one, rounded up.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Puts what `record` changes into `batch`, under the record's end LSN.
    ///
    /// Requires: records come in order, each once, and always with the same batch until that batch was made readable (put into the
    /// store, then cleared); `state` reads the timeline this goes into. Long records and those that must read what the batch holds hand
    /// it over through [`TimelineReader::commit`] on the way: then it comes back shorter than it went in.
    ///
    /// Errors: the record is not understood or cannot be ingested. Then throw batch and `self` away: part of the record may be in them.
    pub fn ingest_record(
        &mut self,
        record: &DecodedRecord,
        batch: &mut Batch,
        state: &dyn TimelineReader,
    ) -> Result<(), IngestError> {
        if record.end_lsn <= self.last_record_lsn {
            return Err(IngestError::OutOfOrder {
                record_end_lsn: record.end_lsn,
                last_record_lsn: self.last_record_lsn,
            });
        }
        let mut step = Step { record, batch, state, last_record_lsn: self.last_record_lsn };
        if self.known.is_full() {
            step.commit()?; // From here on all that is forgotten can be read.
            self.known.clear();
            self.kept_sizes.clear();
        }
        self.checkpoint.advance_next_xid_past(record.xid);
        record.blocks.iter().for_each(|block| self.file_copies.note_change_of(block.rel));
        self.dispatch(&mut step)?;
        self.file_copies.end_record(&mut step)?;
        if self.kept_sizes.has_changes() {
            let lsn = step.lsn();
            self.kept_sizes.put(step.batch, lsn, state, self.last_record_lsn)?;
        }
        if self.checkpoint_changed || self.checkpoint.next_xid > self.stored_next_xid {
            self.put_checkpoint(&mut step, round_next_xid);
        }
        self.last_record_lsn = record.end_lsn;
        Ok(())
    }

    fn dispatch(&mut self, step: &mut Step<'_>) -> Result<(), IngestError> {
        let record = step.record;
        match record.rmid {
            rmgr::HEAP2..=rmgr::BRIN | rmgr::GENERIC => self.ingest_blocks(step),
            rmgr::XLOG => self.ingest_xlog(step),
            rmgr::XACT => self.ingest_xact(step.without_blocks()?),
            rmgr::SMGR => self.ingest_smgr(step.without_blocks()?),
            rmgr::CLOG => self.ingest_clog(step.without_blocks()?),
            rmgr::DBASE => self.ingest_database(step.without_blocks()?),
            rmgr::TBLSPC => self.ingest_tablespace(step.without_blocks()?),
            rmgr::MULTIXACT => self.ingest_multixact(step.without_blocks()?),
            rmgr::RELMAP => self.ingest_relation_map(step.without_blocks()?),
            rmgr::STANDBY => self.ingest_standby(step.without_blocks()?),
            rmgr::COMMIT_TS => self.ingest_commit_ts(step.without_blocks()?),
            rmgr::REPLORIGIN => self.ingest_replication_origin(step.without_blocks()?),
            rmgr::LOGICALMSG => match record.operation() {
                0x00 => step.without_blocks().map(|_| ()), // XLOG_LOGICAL_MESSAGE, for logical decoding alone.
                _ => Err(step.unknown_operation()),
            },
            rmid if rmgr::is_valid(self.version, rmid) => {
                // An extension's: its blocks are for PostgreSQL with that extension to redo. What it does to files beside them, nobody knows.
                if record.info & record::SPECIAL_REL_UPDATE != 0 {
                    return Err(step.unknown_operation());
                }
                self.ingest_blocks(step)
            }
            _ => Err(IngestError::UnknownResourceManager {
                record_start_lsn: record.start_lsn,
                rmid: record.rmid,
                info: record.info,
            }),
        }
    }

    fn ingest_relation_map(&mut self, step: &mut Step<'_>) -> Result<(), IngestError> {
        if step.record.operation() != relmap::UPDATE {
            return Err(step.unknown_operation());
        }
        let update = relmap::RelmapUpdate::parse(self.version, step.record.main_data());
        let update = update.map_err(|source| step.bad_body(source))?;
        let (spc_oid, db_oid) = (update.spc_oid, update.db_oid);
        self.file_copies.note_change_in(DatabaseDir { spc_oid, db_oid });
        if update.db_oid != 0 {
            self.ensure_database_dir(step, spc_oid, db_oid)?;
        }
        step.put(Object::RelationMap { spc_oid, db_oid }, Kind::Image, update.file);
        Ok(())
    }

    fn ingest_standby(&mut self, step: &mut Step<'_>) -> Result<(), IngestError> {
        match step.record.operation() {
            standby::LOCK | standby::INVALIDATIONS => Ok(()),
            standby::RUNNING_XACTS => {
                let running = standby::RunningXacts::parse(step.record.main_data());
                let running = running.map_err(|source| step.bad_body(source))?;
                // PG: procarray.c, ProcArrayApplyRecoveryInfo: the id before the next one is known to be given out.
                if xid_precedes(self.checkpoint.next_xid_low(), running.next_xid) {
                    self.checkpoint.advance_next_xid_past(previous_xid(running.next_xid));
                }
                Ok(())
            }
            _ => Err(step.unknown_operation()),
        }
    }

    /// Puts the checkpoint data as of this record, the next transaction id passed through `stored`.
    fn put_checkpoint(&mut self, step: &mut Step<'_>, stored: fn(u64) -> u64) {
        if self.checkpoint.next_xid > self.stored_next_xid {
            self.stored_next_xid = stored(self.checkpoint.next_xid);
        }
        let stored = Checkpoint { next_xid: self.stored_next_xid, ..self.checkpoint };
        step.put(Object::Checkpoint, Kind::Image, &stored.encode(self.version));
        self.checkpoint_changed = false;
    }
}

#[cfg(test)]
mod tests;
