//! WAL bytes become readable versions: decode, ingest, put, advance.
//!
//! - Takes only WAL that is fsynced: what is put may become durable in the store, which must not be ahead of the WAL on disk.
//! - A record that cannot be ingested stops the timeline at the end of the record before it; nothing is skipped.

use std::error::Error as _;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use keyenc::Key;
use postgres_ffi::wal::{DecodeError, DecodedRecord, WalError, WalStreamDecoder};
use postgres_ffi::{Lsn, PgVersion, TimeLineId};
use tracing::{error, info, warn};

use super::backup_proof::BackupProof;
use super::{ReadError, Timeline, TimelineState};
use crate::import::MissingSegment;
use crate::ingest::{IngestError, StateError, TimelineReader, WalIngest};
use crate::redo::RedoError;
use crate::seq_wait::WaitError;
use crate::store::{Batch, StoreError};

/// A batch is put when it holds this many bytes: large enough to pay for the lock, small enough for readers not to wait.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// The same in versions.
const BATCH_VERSIONS_MAX: usize = 8192;
/// How often ingest tries to have a page made while the redo process cannot be started, and how long it waits in between. A minute is
/// longer than what passes by itself takes; a configuration that is wrong is told after that.
const ENGINE_TRIES: u32 = 60;
const ENGINE_PAUSE: Duration = Duration::from_secs(1);

/// Ingest ended. The timeline is stopped; what was ingested before can be read.
#[derive(Debug, thiserror::Error)]
pub enum TimelineIngestError {
    /// The bytes are not WAL that goes on where the last record ended.
    #[error("WAL cannot be read")]
    Wal(#[from] WalError),
    /// A record with a right checksum has no form that we know.
    #[error("record cannot be decoded. record_start_lsn=`{start_lsn}`")]
    Decode {
        /// Where it starts.
        start_lsn: Lsn,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// A record cannot be turned into versions.
    #[error("record cannot be ingested")]
    Ingest(#[from] IngestError),
    /// The store takes no writes.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The import's backup was not whole.
    #[error(
        "the backup lacked a file, or blocks of it, of a relation that is there at its end, and the WAL does not have them: import it anew from a whole backup. relation=`{}`, fork=`{}`, segment_no=`{}`",
        .0.rel, .0.fork, .0.segment_no
    )]
    MissingSegment(MissingSegment),
}

impl TimelineIngestError {
    /// True if nothing is wrong with the timeline: somebody waits for ingest to end, or does not wait for room.
    fn is_end(&self) -> bool {
        let causes = std::iter::successors(self.source(), |&cause| cause.source());
        let is_end = |error: &StoreError| matches!(error, StoreError::ShuttingDown | StoreError::NoRoom);
        match self {
            TimelineIngestError::Store(error) => is_end(error),
            _ => causes.filter_map(|cause| cause.downcast_ref()).any(is_end),
        }
    }
}

/// Feeds one timeline with WAL. There is one at a time, owned by whoever reads the timeline's WAL.
pub struct TimelineIngest {
    timeline: Arc<Timeline>,
    version: PgVersion,
    decoder: WalStreamDecoder,
    ingest: WalIngest,
    batch: Batch,
    batch_versions_max: usize,
    /// Until the end of the import's backup.
    backup_proof: Option<BackupProof>,
    /// It could not be proven: the record that would make the timeline readable does not count.
    is_unproven: bool,
}

impl TimelineIngest {
    /// Ingest that goes on behind the last record of `timeline`. Requires: its ancestors have all that it inherits.
    pub fn new(timeline: Arc<Timeline>) -> Result<Self, TimelineIngestError> {
        assert!(timeline.inherits_all(), "ingest goes on behind what is there");
        let cluster = timeline.metadata().cluster.clone();
        let start_lsn = timeline.last_record_lsn();
        let backup_proof = BackupProof::of(&timeline, start_lsn);
        let backup_end_lsn = backup_proof.as_ref().map_or(Lsn::ZERO, |proof| proof.backup_end_lsn);
        let ingest = WalIngest::new(cluster.pg_version, start_lsn, &*timeline)?;
        let unmade = backup_proof.as_ref().map(BackupProof::unmade).unwrap_or_default();
        let ingest = ingest.over_backup_until(backup_end_lsn, unmade, &*timeline)?;
        Ok(TimelineIngest {
            version: cluster.pg_version,
            decoder: WalStreamDecoder::new(cluster.pg_version, start_lsn, cluster.wal_segment_bytes)
                .with_system_id(cluster.system_identifier),
            ingest,
            batch: Batch::new(),
            batch_versions_max: timeline.batch_versions_max(),
            backup_proof,
            is_unproven: false,
            timeline,
        })
    }

    /// The timeline that is fed.
    pub fn timeline(&self) -> &Arc<Timeline> {
        &self.timeline
    }

    /// Where the redo of the last checkpoint begins.
    pub fn redo_lsn(&self) -> Lsn {
        Lsn::new(self.ingest.checkpoint().redo)
    }

    /// The PostgreSQL timeline of the last record, as far as a record has named it: one of the first on a new timeline does, before anybody writes there.
    /// PG 14-18: src/backend/access/transam/xlog.c, StartupXLOG.
    pub fn pg_timeline_id(&self) -> TimeLineId {
        self.ingest.checkpoint().this_tli
    }

    /// Where the next bytes must start.
    pub fn fed_until(&self) -> Lsn {
        self.decoder.fed_until()
    }

    /// Ingests every record that is whole with `bytes`, which follow those given before. The end of the last one, readable by then.
    /// Blocks while the store is behind. On an error the timeline is stopped with its reason, unless somebody wants ingest to end, and this value is of no more use.
    pub fn feed(&mut self, bytes: Bytes) -> Result<Lsn, TimelineIngestError> {
        self.timeline.wal_bytes_ingested.fetch_add(bytes.len() as u64, std::sync::atomic::Ordering::Relaxed);
        self.decoder.feed(bytes);
        let outcome = self.ingest_whole_records();
        if let Err(error) = &outcome
            && !error.is_end()
        {
            if !matches!(error, TimelineIngestError::Store(_)) && !self.is_unproven {
                self.keep_what_was_before();
            }
            self.timeline.stop(error);
        }
        outcome
    }

    /// What the record that ends at `end_lsn` itself does counts, but nobody can read it yet.
    fn prove(&mut self, proof: &BackupProof, last_record_lsn: Lsn, end_lsn: Lsn) -> Result<(), TimelineIngestError> {
        if proof.is_owed(&self.ingest) {
            self.is_unproven = true;
            self.timeline.commit_batch(&mut self.batch, last_record_lsn)?;
            proof.check(&self.timeline, end_lsn, &self.ingest)?;
            self.is_unproven = false;
        }
        Ok(())
    }

    /// Makes what was ingested before a record that cannot be readable: the timeline stops right in front of that record.
    fn keep_what_was_before(&mut self) {
        let last_record_lsn = self.ingest.last_record_lsn();
        self.batch.drop_above(last_record_lsn);
        if let Err(error) = self.timeline.commit_batch(&mut self.batch, last_record_lsn) {
            warn!(timeline = %self.timeline.metadata().name, %last_record_lsn, %error, "the last records cannot be put");
        }
    }

    fn ingest_whole_records(&mut self) -> Result<Lsn, TimelineIngestError> {
        while let Some((start_lsn, end_lsn, raw)) = self.decoder.next_record()? {
            let record = DecodedRecord::decode(self.version, start_lsn, end_lsn, raw)
                .map_err(|source| TimelineIngestError::Decode { start_lsn, source })?;
            let last_record_lsn = self.ingest.last_record_lsn();
            self.ingest.ingest_record(&record, &mut self.batch, &*self.timeline)?;
            if let Some(proof) = self.backup_proof.take_if(|proof| proof.backup_end_lsn <= end_lsn) {
                self.prove(&proof, last_record_lsn, end_lsn)?;
            }
            if self.batch.value_bytes() >= BATCH_BYTES_MAX || self.batch.len() >= self.batch_versions_max {
                self.timeline.commit_batch(&mut self.batch, end_lsn)?;
            }
        }
        let last_record_lsn = self.ingest.last_record_lsn();
        self.timeline.commit_batch(&mut self.batch, last_record_lsn)?;
        Ok(last_record_lsn)
    }
}

impl Timeline {
    /// All of a batch may be of one page: it must not be much of what a chain may have.
    fn batch_versions_max(&self) -> usize {
        match self.chain_weight_max {
            0 => BATCH_VERSIONS_MAX,
            weight_max => BATCH_VERSIONS_MAX.min((weight_max as usize / 2).max(1)),
        }
    }

    /// Makes the batch readable, clears it, and wakes who waits for `last_record_lsn`.
    pub(super) fn commit_batch(&self, batch: &mut Batch, last_record_lsn: Lsn) -> Result<(), StoreError> {
        let heavy_chains = self.store.put_weighed(batch, last_record_lsn)?;
        batch.clear();
        // First, so that nobody who waited for the LSN is told that the timeline is still catching up.
        let has_caught_up = self.leave_catching_up(last_record_lsn);
        self.last_record.advance(last_record_lsn);
        if has_caught_up {
            self.bound_all_chains();
        }
        self.bound_chains(&heavy_chains);
        Ok(())
    }

    /// Waits. Errors: the server is shutting down.
    fn pause(&self, duration: Duration) -> Result<(), ReadError> {
        // Nothing ever has this LSN.
        match self.last_record.wait_for(Lsn::MAX, duration) {
            Err(WaitError::Shutdown) => Err(ReadError::ShuttingDown),
            _ => Ok(()),
        }
    }

    /// True when the base backup is caught up with just now.
    fn leave_catching_up(&self, last_record_lsn: Lsn) -> bool {
        if !self.is_catching_up.load(std::sync::atomic::Ordering::Relaxed) {
            return false;
        }
        if self.first_readable_lsn().is_some_and(|first_readable_lsn| first_readable_lsn <= last_record_lsn) {
            self.is_catching_up.store(false, std::sync::atomic::Ordering::Relaxed);
            *self.state.write() = TimelineState::Active;
            info!(timeline = %self.metadata().name, %last_record_lsn, "readable");
            return true;
        }
        false
    }

    /// Ends ingest in a state that says why.
    pub(super) fn stop(&self, error: &dyn std::error::Error) {
        let mut reason = error.to_string();
        let mut source = error.source();
        while let Some(below) = source {
            reason = format!("{reason}: {below}");
            source = below.source();
        }
        let at_lsn = self.last_record_lsn();
        error!(timeline = %self.metadata().name, %at_lsn, reason, "ingest stopped");
        *self.state.write() = TimelineState::Stopped { at_lsn, reason };
    }
}

impl TimelineReader for Timeline {
    fn object(&self, key: &Key, request_lsn: Lsn) -> Result<Option<Bytes>, StateError> {
        Ok(self.object_unchecked(key, request_lsn)?)
    }

    fn scan(
        &self,
        first: &Key,
        last: &Key,
        request_lsn: Lsn,
        each: &mut dyn FnMut(Key, Bytes) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        for (key, value) in self.objects_between(first, last, request_lsn)? {
            if each(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// A redo process that cannot start just now (killed, no memory) is waited for: a record is not lost to ingest for that.
    fn pages(&self, keys: &[Key], request_lsn: Lsn) -> Result<Vec<Bytes>, StateError> {
        let mut tries_left = ENGINE_TRIES;
        loop {
            tries_left -= 1;
            match self.pages_unchecked(keys, request_lsn) {
                Err(ReadError::Redo { source, .. })
                    if matches!(*source, RedoError::CannotStart { .. }) && tries_left > 0 =>
                {
                    warn!(timeline = %self.metadata().name, error = %source, "ingest waits for a redo process");
                    self.pause(ENGINE_PAUSE)?;
                }
                pages => return Ok(pages?),
            }
        }
    }

    fn commit(&self, batch: &mut Batch, last_record_lsn: Lsn) -> Result<(), StateError> {
        Ok(self.commit_batch(batch, last_record_lsn)?)
    }
}
