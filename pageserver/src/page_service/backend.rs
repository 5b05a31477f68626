//! What the page service needs from the rest of the page server: a repository of timelines, and timelines to read from.
//!
//! - One implementation serves (`timeline::Repository`); protocol tests have another over a map. The seam is here so that bytes on the
//!   wire can be tested without a store, and so that nothing of the wire leaks into the store.
//! - LSN rules of the wire (what to wait for, what to read at) are decided in [`super::pagestream::lsn`], not behind this seam:
//!   a backend reads exactly at the LSN that it is given.

use std::io::Read;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use keyenc::{Key, Kind, Object};

use super::command::verify::RepairRequest;
use super::gc::{GcAnswer, GcCommand};
use super::lease::{LeaseCommand, LeaseInfo};
use super::message::Value;
use super::size::SizeCommand;
use super::timeline_change::{OnProgress, TimelineChange, TimelineChanged};
use postgres_ffi::{BlockNumber, ForkNumber, Lsn, Oid, PgVersion, RelTag, SlruKind};

use super::basebackup::{BackupRequest, BackupSink};
use crate::import::ClusterFiles;
use crate::ingest::KeptSize;
use crate::verify::{Repaired, VerifyCounts, VerifyOptions, VerifySink};
use crate::wall_time::WallTime;

/// What a caller does next about a failed call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BackendErrorKind {
    /// There is no such timeline, relation or segment.
    NotFound,
    /// There is no such file.
    FileMissing,
    /// It will be there, or could be: the LSN has not arrived within the time given.
    NotYet,
    /// The request can never succeed as it stands.
    InvalidRequest,
    /// What is stored cannot be proven right.
    Corrupt,
    /// This server cannot answer now; another connection or a later try may do.
    Unavailable,
    /// The server is going down.
    ShuttingDown,
    /// Somebody asked to stop this work.
    Cancelled,
    /// A fault of ours.
    Internal,
}

/// A call on the backend that failed: kind for the caller, message (lower case, values last) for the person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BackendError {
    /// What the caller does next.
    pub kind: BackendErrorKind,
    /// What happened.
    pub message: String,
}

impl BackendError {
    /// An error of `kind` that reads `message`.
    pub fn new(kind: BackendErrorKind, message: impl Into<String>) -> Self {
        BackendError { kind, message: message.into() }
    }

    /// [`BackendErrorKind::NotFound`] with `message`.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(BackendErrorKind::NotFound, message)
    }
}

/// One timeline, as lists show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineInfo {
    /// Name of the cluster (tenant) it belongs to.
    pub tenant: String,
    /// 32 hexadecimal digits.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// `active`, `importing`, `catching up`, `stopped`, `damaged`
    pub state: String,
    /// Major version of the cluster; `None` while it is not known yet.
    pub pg_version: Option<PgVersion>,
    /// Name of the timeline it branched from, and where.
    pub ancestor: Option<(String, Lsn)>,
    /// Nothing below is readable (end of the base backup, GC horizon). `None`: it could not be opened.
    pub first_readable_lsn: Option<Lsn>,
    /// End of the last record that is readable. `None`: it could not be opened.
    pub last_record_lsn: Option<Lsn>,
    /// Everything up to here is in the store and survives a crash without the WAL.
    pub durable_lsn: Option<Lsn>,
    /// End of the WAL that is fsynced on our disk.
    pub received_lsn: Option<Lsn>,
    /// The oldest WAL on our disk, and who needs it from about there on; `None` without a receiver.
    pub oldest_wal: Option<(Lsn, Option<String>)>,
    /// End of WAL at the source as it last told us.
    pub source_end_lsn: Option<Lsn>,
    /// The PostgreSQL timelines that its WAL came through up to the last record, oldest first, each with where it was left, the last one without: `1@0/3000148 4096`. `None`: not known, or of
    /// a list of timelines.
    pub pg_timelines: Option<String>,
    /// Whose WAL it takes, without a password; `None` when it follows nobody.
    pub primary: Option<String>,
    /// What the receiver of the source's WAL is doing: `streaming`, `waiting`, `wal removed`, ...
    pub receiver: Option<String>,
    /// Why nothing comes in: what stopped ingest, or the receiver's last error.
    pub last_error: Option<String>,
}

/// Progress of an import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportProgress {
    /// What is being done: `base backup`, `catching up`, ...
    pub phase: String,
    /// Bytes so far.
    pub bytes_done: u64,
    /// Bytes there are, as far as is known.
    pub bytes_total: Option<u64>,
}

/// All timelines of this server.
pub trait RepositoryBackend: Send + Sync + 'static {
    /// The timeline that `timeline` names: its name, or its 32 hexadecimal digits. With `tenant`, only within that cluster (name or digits).
    /// Errors: `NotFound`, `Unavailable`, `ShuttingDown`; `Corrupt`: it could not be opened.
    fn timeline(&self, tenant: Option<&str>, timeline: &str) -> Result<Arc<dyn TimelineBackend>, BackendError>;

    /// How the timeline stands that `timeline` names, also if it could not be opened. Errors: `NotFound`.
    fn timeline_info(&self, timeline: &str) -> Result<TimelineInfo, BackendError> {
        Ok(self.timeline(None, timeline)?.info())
    }

    /// Every timeline, in order of name.
    fn timelines(&self) -> Result<Vec<TimelineInfo>, BackendError>;

    /// Makes timeline `name` from the running primary at `conninfo` and returns once it is readable. `progress` is called now and then,
    /// at least every few seconds, on the calling thread; when it breaks, the import is undone and the error is `Cancelled`.
    fn import(
        &self,
        name: &str,
        conninfo: &str,
        progress: &mut dyn FnMut(&ImportProgress) -> ControlFlow<()>,
    ) -> Result<TimelineInfo, BackendError>;

    /// Gives a base backup to `sink`: what it is, then every byte. Requires: the request names an LSN, and that has arrived.
    /// Errors: `NotFound`, `InvalidRequest` (history that is gone), `Corrupt` (something is missing that a server needs, or a page cannot be proven
    /// right); `Unavailable` when `sink` takes no more.
    fn base_backup(&self, request: &BackupRequest, sink: &mut dyn BackupSink) -> Result<(), BackendError>;

    /// Length and bytes of a WAL segment or history file of a timeline. Errors: `FileMissing` (not received to its end, removed), `NotYet` (not ingested),
    /// `Corrupt`, `NotFound` (no such timeline), `InvalidRequest` (no such name).
    fn wal_file(&self, timeline: &str, file: &str) -> Result<(u64, Box<dyn Read + Send>), BackendError>;

    /// Makes, changes or deletes a timeline. `progress` as for [`Self::import`], for what takes long.
    fn change_timeline(
        &self,
        change: &TimelineChange,
        progress: &mut OnProgress<'_>,
    ) -> Result<TimelineChanged, BackendError>;

    /// Gives, lists or ends leases: those that are concerned, as they are now; an ended one as it was.
    fn lease(&self, command: &LeaseCommand) -> Result<Vec<LeaseInfo>, BackendError>;

    /// Looks after garbage collection, or collects. `progress` as for [`Self::import`], for what takes long.
    fn gc(&self, command: &GcCommand, progress: &mut OnProgress<'_>) -> Result<GcAnswer, BackendError>;

    /// What timelines cost: one row each. `progress` as for [`Self::import`], for the walk that counts pins.
    fn sizes(&self, command: &SizeCommand, progress: &mut OnProgress<'_>) -> Result<Vec<Vec<Value>>, BackendError>;

    /// Checks one timeline or everything and tells `sink` what is wrong, as it is found. What was looked at.
    fn verify(&self, options: &VerifyOptions, sink: &mut dyn VerifySink) -> Result<VerifyCounts, BackendError>;

    /// Mends what can be mended; what became of each damage. `sink` is told how far the checks are that it begins with, and stops them.
    fn repair(&self, request: &RepairRequest, sink: &mut dyn VerifySink) -> Result<Vec<Repaired>, BackendError>;

    /// Makes timeline `name` from a cluster's files on this machine, WAL included, and returns once it is readable. `progress` as for
    /// [`RepositoryBackend::import`].
    fn import_files(
        &self,
        name: &str,
        files: &ClusterFiles,
        progress: &mut dyn FnMut(&ImportProgress) -> ControlFlow<()>,
    ) -> Result<TimelineInfo, BackendError>;

    /// Figures of the store for people: (name, value), in a fixed order.
    fn store_stats(&self) -> Result<Vec<(String, String)>, BackendError>;

    /// Redo engine and counters of each cluster for people: (name, value), in a fixed order.
    fn redo_stats(&self) -> Result<Vec<(String, String)>, BackendError>;
}

/// One timeline to read from. Every call reads exactly at the LSN given, which is at most `last_record_lsn()`.
pub trait TimelineBackend: Send + Sync + 'static {
    /// How it stands now.
    fn info(&self) -> TimelineInfo;

    /// End of the last record that is readable. Cheap: asked for each request.
    fn last_record_lsn(&self) -> Lsn;

    /// Nothing below is readable, unless leased. Cheap: asked for each request.
    fn first_readable_lsn(&self) -> Lsn;

    /// True when a lease, or a branch, keeps exactly `lsn` readable although it is below [`Self::first_readable_lsn`].
    fn is_leased(&self, lsn: Lsn) -> bool {
        let _ = lsn;
        false
    }

    /// Returns `last_record_lsn()` once that has reached `lsn`. Errors: `NotYet` after `timeout`, `Unavailable` when it never will,
    /// `ShuttingDown`.
    fn wait_lsn(&self, lsn: Lsn, timeout: Duration) -> Result<Lsn, BackendError>;

    /// One answer per request, in order: 8,192 bytes, or none at all for a page of zeroes. Keys are relation blocks or SLRU pages.
    /// A block at or past the end of its fork at that LSN is a page of zeroes; a fork that does not exist is `NotFound`
    /// (free space map and visibility map: a page of zeroes).
    fn get_pages_at_lsn(&self, requests: &[(Key, Lsn)]) -> Vec<Result<Bytes, BackendError>>;

    /// Blocks of a relation fork; `None` if it does not exist at `lsn`.
    fn relation_size(&self, rel: RelTag, fork: ForkNumber, lsn: Lsn) -> Result<Option<BlockNumber>, BackendError>;

    /// All relation forks of a database in a tablespace, with their blocks, in key order.
    fn relations(
        &self,
        spc_oid: Oid,
        db_oid: Oid,
        lsn: Lsn,
    ) -> Result<Vec<(RelTag, ForkNumber, BlockNumber)>, BackendError>;

    /// Blocks and relations of a database in a tablespace, all forks: what [`Self::relations`] sum up to.
    fn database_size(&self, spc_oid: Oid, db_oid: Oid, lsn: Lsn) -> Result<KeptSize, BackendError> {
        let mut size = KeptSize::ZERO;
        let relations = self.relations(spc_oid, db_oid, lsn)?;
        relations.into_iter().for_each(|(_, fork, block_count)| size.add_fork(fork, block_count));
        Ok(size)
    }

    /// Every (tablespace, database) that has a directory at `lsn`, in key order; shared relations are 1664/0.
    fn databases(&self, lsn: Lsn) -> Result<Vec<(Oid, Oid)>, BackendError>;

    /// Pages of an SLRU segment; `None` if it does not exist at `lsn`.
    fn slru_segment_size(&self, kind: SlruKind, segment_no: u32, lsn: Lsn) -> Result<Option<u32>, BackendError>;

    /// Every segment of an SLRU with its pages, in order.
    fn slru_segments(&self, kind: SlruKind, lsn: Lsn) -> Result<Vec<(u32, u32)>, BackendError>;

    /// The objects of the class that `class` belongs to (its fields do not matter) that exist at `lsn`, with their whole values, in key
    /// order. Requires: a class of which no object is a page.
    fn objects(&self, class: Object, lsn: Lsn) -> Result<Vec<(Object, Bytes)>, BackendError>;

    /// The highest time at which a transaction at or below `lsn` ended; `None` if none is known.
    fn commit_time_at(&self, lsn: Lsn) -> Result<Option<WallTime>, BackendError>;

    /// The highest LSN at which it was not later than `time`, with the time that is known there. Errors: `InvalidRequest` for a time
    /// before the first one that is known.
    fn lsn_at_time(&self, time: WallTime) -> Result<(Lsn, WallTime), BackendError>;

    /// Every version of `key` with an LSN in `lsn_range` (start inclusive, end exclusive), newest first, ancestors included.
    fn history(&self, key: Key, lsn_range: Range<Lsn>) -> Result<Vec<(Lsn, Kind, Bytes)>, BackendError>;
}
