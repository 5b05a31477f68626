//! Base backup: a tar archive from which a stock PostgreSQL starts at any LSN of a timeline.
//!
//! - Whatever can be known beforehand is checked before the first byte: [`BaseBackup::plan`] refuses, [`BaseBackup::send`] reads and writes.
//! - **Never:** a page newer than the LSN (checked for each page as it is sent; the backup ends with an error then).
//! - **Never:** a made-up page of an SLRU. A page that a server would ask for and that is not there refuses the backup: PostgreSQL itself takes a missing
//!   segment of `pg_xact` for zeroes and forgets committed transactions without a word.
//! - `global/pg_control` comes last: what was cut off does not start.
//! - Memory is bounded: pages are read a few MiB ahead of the receiver, never a whole relation.
//!
//! In reading order: where the LSN stands in our WAL ([`old_wal`]), WAL for a standby ([`standby`]), what is checked ([`checks`]), what is sent ([`contents`], [`tablespaces`], [`config_files`]), pages in
//! the order of the archive ([`page_stream`]), the archive ([`archive`], [`send`]).

mod archive;
mod checks;
mod config_files;
mod contents;
mod error;
mod old_wal;
mod page_stream;
mod send;
mod standby;
mod tablespaces;

pub use error::BackupError;
pub use old_wal::{OldWal, RecordEnd};

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use keyenc::Object;
use postgres_ffi::checkpoint::Checkpoint;
use postgres_ffi::control_file::ControlFile;
use postgres_ffi::start::control::control_file;
use postgres_ffi::start::{Start, StartPoint, WalPlace};
use postgres_ffi::{Lsn, TimeLineId};

use crate::timeline::metadata::ClusterFacts;
use crate::timeline::{PgHistory, Timeline};
use crate::wal::WalLayout;
use contents::Contents;
use standby::StandbyWal;

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackupOptions {
    /// Compress the archive.
    pub gzip: bool,
    /// Leave out relation forks, but for the init forks of unlogged relations: for a server that fetches pages on first use.
    pub no_data: bool,
}

/// What the server becomes.
pub enum Become {
    /// A server of its own, on a PostgreSQL timeline that nobody else is on.
    Clone {
        /// That timeline.
        pg_timeline_id: TimeLineId,
    },
    /// A standby, which goes on with the timeline's own WAL from where the backup ends.
    Standby {
        /// Where that WAL may lie.
        layouts: Vec<WalLayout>,
    },
}

/// The WAL that goes with a backup.
enum BackupWal {
    Made { start: Start, left: PgHistory, old_wal: Option<OldWal> },
    Copied(StandbyWal),
}

/// A backup that was looked over and can be sent.
pub struct BaseBackup {
    timeline: Arc<Timeline>,
    options: BackupOptions,
    branch_lsn: Lsn,
    time: i64,
    place: WalPlace,
    control_file: ControlFile,
    wal: BackupWal,
    contents: Contents,
}

/// What was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackupCounts {
    /// Files in the archive.
    pub file_count: u64,
    /// Pages of relations and SLRUs.
    pub page_count: u64,
}

impl BaseBackup {
    /// Everything about a backup of `timeline` as of `end.lsn`, checked. `history` is that of the PostgreSQL timeline there.
    /// Requires: the LSN can be read, and [`RecordEnd::find`] gave it.
    /// Errors: the LSN cannot be read; something that a server needs is not there.
    pub fn plan(
        timeline: Arc<Timeline>,
        end: RecordEnd,
        history: PgHistory,
        becomes: Become,
        options: BackupOptions,
    ) -> Result<Self, BackupError> {
        let (branch_lsn, time) = (end.lsn, now_seconds());
        let place = wal_place(&timeline.metadata().cluster);
        let read = |object, what| {
            timeline.object(object, branch_lsn)?.ok_or(BackupError::Missing { what, request_lsn: branch_lsn })
        };
        let before = ControlFile::decode_as(place.version, &read(Object::ControlFile, "control file")?)?;
        let counters = Checkpoint::decode(place.version, &read(Object::Checkpoint, "checkpoint")?)?;
        let (wal, control_file, two_phase_lsn) = match becomes {
            Become::Clone { pg_timeline_id } => {
                let prev_record = match &end.old_wal {
                    Some(old_wal) => Some(old_wal.last_record()),
                    // No record can end there, as is told below.
                    None if place.record_end_at_or_before(branch_lsn) != branch_lsn => None,
                    None => old_wal::filler(place, history.timeline_id, branch_lsn).last_record_of_all(),
                };
                let prev_timeline_id = history.timeline_id;
                let point = StartPoint { branch_lsn, timeline_id: pg_timeline_id, prev_timeline_id, prev_record, time };
                let start = Start::new(place, point, &counters, &before)?;
                let control_file = control_file(&before, &start);
                (BackupWal::Made { start, left: history, old_wal: end.old_wal }, control_file, branch_lsn)
            }
            Become::Standby { layouts } => {
                let redo_lsn = Lsn::new(counters.redo);
                let wal = standby::find(&layouts, place, history, redo_lsn, branch_lsn, time)?;
                let control_file = wal.start.control_file(&before);
                // Replay brings those prepared later, and does not want to find them.
                (BackupWal::Copied(wal), control_file, redo_lsn)
            }
        };
        let contents = Contents::list(&timeline, branch_lsn, two_phase_lsn, &before)?;
        checks::check(&timeline, branch_lsn, &counters, &before, &contents)?;
        Ok(BaseBackup { timeline, options, branch_lsn, time, place, control_file, wal, contents })
    }

    /// As of which LSN: the end of a record.
    pub fn branch_lsn(&self) -> Lsn {
        self.branch_lsn
    }

    /// The PostgreSQL timeline that the server is on.
    pub fn pg_timeline_id(&self) -> TimeLineId {
        match &self.wal {
            BackupWal::Made { start, .. } => start.point.timeline_id,
            BackupWal::Copied(wal) => wal.start.timeline_id,
        }
    }

    /// Bytes of the archive before compression, about: headers and padding are not counted.
    pub fn bytes_estimated(&self) -> u64 {
        let segment_count = match &self.wal {
            BackupWal::Made { .. } => 1,
            BackupWal::Copied(wal) => wal.segment_count(),
        };
        self.contents.bytes(self.options.no_data) + segment_count * u64::from(self.place.segment_bytes)
    }

    /// The WAL in front of the LSN in its segment is the timeline's own, not filler.
    pub fn has_old_wal(&self) -> bool {
        !matches!(self.wal, BackupWal::Made { old_wal: None, .. })
    }
}

impl RecordEnd {
    /// The record end that a backup as of `request_lsn` is of: that of the record in which `request_lsn` lies, found in the first of `layouts`
    /// that has its WAL; else `request_lsn` aligned down, in which case no record is known that ends there.
    pub fn find(layouts: &[WalLayout], place: WalPlace, request_lsn: Lsn) -> Result<Self, BackupError> {
        for layout in layouts {
            if let Some(found) = old_wal::find(layout, request_lsn)? {
                return Ok(found);
            }
        }
        Ok(RecordEnd { lsn: place.record_end_at_or_before(request_lsn), old_wal: None })
    }
}

/// Where WAL of a cluster stands.
pub fn wal_place(cluster: &ClusterFacts) -> WalPlace {
    WalPlace {
        version: cluster.pg_version,
        system_id: cluster.system_identifier,
        segment_bytes: cluster.wal_segment_bytes,
    }
}

fn now_seconds() -> i64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_1970.as_secs()).unwrap_or(i64::MAX)
}
