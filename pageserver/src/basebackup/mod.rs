//! Base backup: a tar archive from which a stock PostgreSQL starts at any LSN of a timeline.
//!
//! - Whatever can be known beforehand is checked before the first byte: [`BaseBackup::plan`] refuses, [`BaseBackup::send`] reads and writes.
//! - **Never:** a page newer than the LSN (checked for each page as it is sent; the backup ends with an error then).
//! - **Never:** a made-up page of an SLRU. A page that a server would ask for and that is not there refuses the backup: PostgreSQL itself takes a missing
//!   segment of `pg_xact` for zeroes and forgets committed transactions without a word.
//! - `global/pg_control` comes last: what was cut off does not start.
//! - Memory is bounded: pages are read a few MiB ahead of the receiver, never a whole relation.
//!
//! In reading order: where the LSN stands in our WAL ([`old_wal`]), what is checked ([`checks`]), what is sent ([`contents`], [`tablespaces`], [`config_files`]), pages in
//! the order of the archive ([`page_stream`]), the archive ([`archive`], [`send`]).

mod archive;
mod checks;
mod config_files;
mod contents;
mod error;
mod old_wal;
mod page_stream;
mod send;
mod tablespaces;

pub use error::BackupError;
pub use old_wal::{OldWal, RecordEnd};

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use keyenc::Object;
use postgres_ffi::checkpoint::Checkpoint;
use postgres_ffi::control_file::ControlFile;
use postgres_ffi::start::{Start, StartPoint, WalPlace};
use postgres_ffi::{Lsn, TimeLineId};

use crate::timeline::Timeline;
use crate::wal::WalLayout;
use contents::Contents;

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackupOptions {
    /// Compress the archive.
    pub gzip: bool,
    /// Leave out relation forks, but for the init forks of unlogged relations: for a server that fetches pages on first use.
    pub no_data: bool,
}

/// The PostgreSQL timeline that a server leaves, and the one that it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PgTimelines {
    /// The one that holds the LSN.
    pub left: TimeLineId,
    /// Content of that one's history file; empty for the first timeline of a cluster.
    pub left_history: Vec<u8>,
    /// The new one.
    pub begun: TimeLineId,
}

/// A backup that was looked over and can be sent.
pub struct BaseBackup {
    timeline: Arc<Timeline>,
    options: BackupOptions,
    pg_timelines: PgTimelines,
    place: WalPlace,
    start: Start,
    control_file: ControlFile,
    old_wal: Option<OldWal>,
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
    /// Everything about a backup of `timeline` as of `end.lsn`, checked. Requires: that LSN can be read, and [`RecordEnd::find`] gave it.
    /// Errors: the LSN cannot be read; something that a server needs is not there.
    pub fn plan(
        timeline: Arc<Timeline>,
        end: RecordEnd,
        pg_timelines: PgTimelines,
        options: BackupOptions,
    ) -> Result<Self, BackupError> {
        let branch_lsn = end.lsn;
        let cluster = timeline.metadata().cluster.clone();
        let place = WalPlace {
            version: cluster.pg_version,
            system_id: cluster.system_identifier,
            segment_bytes: cluster.wal_segment_bytes,
        };
        let read = |object, what| {
            timeline.object(object, branch_lsn)?.ok_or(BackupError::Missing { what, request_lsn: branch_lsn })
        };
        let control_before = ControlFile::decode_as(place.version, &read(Object::ControlFile, "control file")?)?;
        let counters = Checkpoint::decode(place.version, &read(Object::Checkpoint, "checkpoint")?)?;
        let contents = Contents::list(&timeline, branch_lsn, &control_before)?;
        checks::check(&timeline, branch_lsn, &counters, &control_before, &contents)?;
        let prev_record = match &end.old_wal {
            Some(old_wal) => old_wal.last_record(),
            None => old_wal::filler(place, pg_timelines.left, branch_lsn).last_record_of_all(),
        };
        let point = StartPoint {
            branch_lsn,
            timeline_id: pg_timelines.begun,
            prev_timeline_id: pg_timelines.left,
            prev_record,
            time: now_seconds(),
        };
        let start = Start::new(place, point, &counters, &control_before)?;
        let control_file = postgres_ffi::start::control::control_file(&control_before, &start);
        Ok(BaseBackup { timeline, options, pg_timelines, place, start, control_file, old_wal: end.old_wal, contents })
    }

    /// As of which LSN: the end of a record.
    pub fn branch_lsn(&self) -> Lsn {
        self.start.point.branch_lsn
    }

    /// The PostgreSQL timeline that the server begins.
    pub fn pg_timeline_id(&self) -> TimeLineId {
        self.pg_timelines.begun
    }

    /// Bytes of the archive before compression, about: headers and padding are not counted.
    pub fn bytes_estimated(&self) -> u64 {
        self.contents.bytes(self.options.no_data) + u64::from(self.place.segment_bytes)
    }

    /// The WAL in front of the LSN in its segment is the timeline's own, not filler.
    pub fn has_old_wal(&self) -> bool {
        self.old_wal.is_some()
    }
}

impl RecordEnd {
    /// The record end that a backup as of `request_lsn` is of: that of the record in which `request_lsn` lies, found in the first of `layouts`
    /// that has its WAL; else `request_lsn` aligned down, in which case no record is known that ends there.
    pub fn find(layouts: &[WalLayout], place: WalPlace, request_lsn: Lsn) -> Result<Self, BackupError> {
        for layout in layouts {
            if let Some(found) = old_wal::find(layout, place, request_lsn)? {
                return Ok(found);
            }
        }
        Ok(RecordEnd { lsn: place.record_end_at_or_before(request_lsn), old_wal: None })
    }
}

fn now_seconds() -> i64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_1970.as_secs()).unwrap_or(i64::MAX)
}
