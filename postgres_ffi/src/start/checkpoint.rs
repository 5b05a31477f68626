//! The made-up checkpoint: a record, and the pages that it stands on.

use super::pages::{PageWriter, WalPlace};
use super::record::xlog_record;
use crate::checkpoint::Checkpoint;
use crate::control_file::ControlFile;
use crate::records::xlog::operation;
use crate::slru::previous_xid;
use crate::wal::page_header::is_segment_size;
use crate::{Lsn, PgVersion, TimeLineId};

/// Where and on which PostgreSQL timeline a server shall start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartPoint {
    /// Everything up to here is there: a record's end.
    pub branch_lsn: Lsn,
    /// The timeline that the server begins.
    pub timeline_id: TimeLineId,
    /// The timeline that it leaves.
    pub prev_timeline_id: TimeLineId,
    /// Where the last record before `branch_lsn` starts, if that is known.
    pub prev_record: Option<Lsn>,
    /// When, in seconds since 1970.
    pub time: i64,
}

/// A server cannot start there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// No record ends at such a position, or there is no room behind it.
    #[error("no server can start at this LSN. branch_lsn=`{branch_lsn}`")]
    Position {
        /// As asked.
        branch_lsn: Lsn,
    },
    /// The new timeline does not come after the old one.
    #[error(
        "a PostgreSQL timeline must be above the one it leaves. timeline_id=`{timeline_id}`, left=`{prev_timeline_id}`"
    )]
    TimelineOrder {
        /// The new one.
        timeline_id: TimeLineId,
        /// The one it leaves.
        prev_timeline_id: TimeLineId,
    },
    /// Not a segment size of PostgreSQL.
    #[error("impossible WAL segment size. segment_bytes=`{segment_bytes}`")]
    SegmentSize {
        /// As given.
        segment_bytes: u32,
    },
}

/// The checkpoint that a server starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// As asked.
    pub point: StartPoint,
    /// Where the record starts: the LSN, or behind the page header there.
    pub record_lsn: Lsn,
    /// Where it ends and the server goes on.
    pub end_lsn: Lsn,
    /// What it says.
    pub checkpoint: Checkpoint,
    /// WAL from `point.branch_lsn` to `end_lsn`, page headers included. May run into the next segment.
    pub wal: Vec<u8>,
}

impl Start {
    /// The checkpoint at `point` of a cluster whose counters there are `counters` and whose control file there is `control`.
    pub fn new(
        place: WalPlace,
        point: StartPoint,
        counters: &Checkpoint,
        control: &ControlFile,
    ) -> Result<Self, StartError> {
        let StartPoint { branch_lsn, timeline_id, prev_timeline_id, prev_record, time } = point;
        if !is_segment_size(place.segment_bytes) {
            return Err(StartError::SegmentSize { segment_bytes: place.segment_bytes });
        }
        if timeline_id <= prev_timeline_id {
            return Err(StartError::TimelineOrder { timeline_id, prev_timeline_id });
        }
        let has_room = branch_lsn.checked_add(2 * u64::from(place.segment_bytes)).is_some();
        if !has_room || branch_lsn == Lsn::ZERO || place.record_end_at_or_before(branch_lsn) != branch_lsn {
            return Err(StartError::Position { branch_lsn });
        }
        let record_lsn = place.next_record_start(branch_lsn);
        let checkpoint = Checkpoint {
            redo: record_lsn.as_u64(),
            this_tli: timeline_id,
            prev_tli: prev_timeline_id,
            wal_level: if place.version >= PgVersion::V17 { control.wal_level } else { 0 },
            newest_commit_ts_xid: newest_commit_ts_xid(counters, control),
            time,
            oldest_active_xid: 0,
            ..*counters
        };
        let record = xlog_record(operation::CHECKPOINT_SHUTDOWN, prev_record, &checkpoint.encode(place.version));
        let mut writer = PageWriter::new(place, timeline_id, branch_lsn);
        let written_at = writer.append(&record);
        assert!(written_at == record_lsn, "the record stands where the checkpoint says");
        Ok(Start { point, record_lsn, end_lsn: writer.position(), checkpoint, wal: writer.take() })
    }
}

/// The stored counter lags behind, and what lies above it is reported without a time. The one below the next transaction id is not too high: a
/// transaction without an entry has none.
fn newest_commit_ts_xid(counters: &Checkpoint, control: &ControlFile) -> u32 {
    if control.track_commit_timestamp && counters.oldest_commit_ts_xid != 0 {
        previous_xid(counters.next_xid_low())
    } else {
        counters.newest_commit_ts_xid
    }
}
