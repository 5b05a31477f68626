//! From a time to an LSN and back, by the ends of transactions.
//!
//! What is known at an LSN is the highest time at which a transaction at or below it ended, to the granularity of
//! [`COMMIT_TIME_GRANULARITY_MICROS`](crate::ingest::COMMIT_TIME_GRANULARITY_MICROS): stored ends grow strictly along a timeline and its ancestors.
//!
//! - [`Timeline::lsn_at_time`] of T is where PostgreSQL's recovery would stop with `recovery_target_time` somewhere in T to T + 1 ms
//!   (inclusive): just before the first end of a transaction that is later. So every transaction that ended at or before T is in, unless
//!   its record stands behind that of a later one; none that ended at T + 1 ms or later is in.
//!   PG 14-18: src/backend/access/transam/xlogrecovery.c (14: xlog.c), recoveryStopsBefore.
//! - Before the first transaction of an imported timeline ends, all that is known is when the imported control file was written, in whole
//!   seconds. PostgreSQL writes it after each checkpoint, and the import begins at or below that checkpoint's redo point: what lies below
//!   has ended by then, within a second. So from a second after it on, times are answered; no earlier ones, since of what
//!   ended before nothing is known. (PG 14-18: src/common/controldata_utils.c, update_controlfile; src/backend/access/transam/xlog.c, CreateCheckPoint.)
//! - Never an LSN that cannot be read.

use bytes::Bytes;
use keyenc::{Key, Kind, Object};
use postgres_ffi::Lsn;

use super::{ReadError, Timeline};
use crate::ingest::CommitTime;
use crate::store::Gathered;
use crate::wall_time::WallTime;

/// The control file counts whole seconds, rounded down.
const CONTROL_FILE_PRECISION_MICROS: i64 = 1_000_000;

/// Where a timeline was at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LsnAtTime {
    /// The highest LSN that had been reached: the end of a record.
    pub lsn: Lsn,
    /// The time that is known at this LSN; at or before the time asked for.
    pub commit_time: WallTime,
}

/// No LSN can be told for a time.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TimeError {
    /// No transaction has ended since times are kept.
    #[error(
        "no time is known of this timeline: it was made before times were kept, and no transaction has ended since. last_record_lsn=`{last_record_lsn}`"
    )]
    Unknown {
        /// End of the last record.
        last_record_lsn: Lsn,
    },
    /// The time lies before what can be told, or read.
    #[error(
        "the time is before the first one that this timeline can show. time=`{time}`, first_time=`{first_time}`, first_lsn=`{first_lsn}`"
    )]
    BeforeFirst {
        /// What was asked for.
        time: WallTime,
        /// The first time that can be asked for, or a later one.
        first_time: WallTime,
        /// The LSN where that is the time.
        first_lsn: Lsn,
    },
    /// The timeline cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl Timeline {
    /// The highest time at which a transaction at or below `request_lsn` ended; before the first one after an import, when the
    /// imported control file was written, in whole seconds. `None`: a store that was made before times were kept, until a transaction ends.
    pub fn commit_time_at(&self, request_lsn: Lsn) -> Result<Option<WallTime>, ReadError> {
        self.check_readable(request_lsn)?;
        Ok(self.stored_time(request_lsn)?.map(|stored| WallTime::from_postgres(stored.time)))
    }

    /// The highest LSN that can be read and at which it was not later than `time`; the last record's end if `time` is after that.
    pub fn lsn_at_time(&self, time: WallTime) -> Result<LsnAtTime, TimeError> {
        let last_record_lsn = self.last_record_lsn();
        self.check_readable(last_record_lsn)?;
        let later = self.first_end_after(time, last_record_lsn)?;
        let lsn = later.and_then(|(_, later)| later.before_lsn).unwrap_or(last_record_lsn);
        let first_readable_lsn = self.first_readable_lsn().unwrap_or(Lsn::MAX);
        let shown_lsn = lsn.max(first_readable_lsn);
        let known = self.stored_time(shown_lsn)?;
        match known {
            Some(known) if lsn == shown_lsn && known_from(&known) <= time => {
                Ok(LsnAtTime { lsn, commit_time: WallTime::from_postgres(known.time) })
            }
            _ => {
                let at_shown =
                    known.map(|known| self.first_answer_from(&known, shown_lsn, last_record_lsn)).transpose()?;
                let at_later = later.map(|(later_lsn, later)| (known_from(&later), later_lsn));
                let at_later = at_later.filter(|(_, later_lsn)| first_readable_lsn <= *later_lsn);
                let first = at_shown.into_iter().chain(at_later).min();
                let (first_time, first_lsn) = first.ok_or(TimeError::Unknown { last_record_lsn })?;
                Err(TimeError::BeforeFirst { time, first_time, first_lsn })
            }
        }
    }

    /// The first time that is answered if `known` is the time at `shown_lsn`, and the LSN where it is the time.
    ///
    /// What can be read may begin behind the end of the last record before the next end of a transaction (inside that one's record, say): then
    /// nobody can be where `known` was.
    fn first_answer_from(
        &self,
        known: &CommitTime,
        shown_lsn: Lsn,
        last_record_lsn: Lsn,
    ) -> Result<(WallTime, Lsn), ReadError> {
        let known_from = known_from(known);
        Ok(match self.first_end_after(known_from, last_record_lsn)? {
            Some((next_lsn, next)) if next.before_lsn < Some(shown_lsn) => {
                (WallTime::from_postgres(next.time), next_lsn)
            }
            _ => (known_from, shown_lsn),
        })
    }

    /// What stands at or below `request_lsn`, here or in the ancestors.
    fn stored_time(&self, request_lsn: Lsn) -> Result<Option<CommitTime>, ReadError> {
        let Gathered { versions, .. } = self.gather(&Key::from(Object::CommitTime), request_lsn)?;
        let Some((version_lsn, kind, value)) = versions.into_iter().next() else { return Ok(None) };
        if kind != Kind::Image {
            return Err(damaged(version_lsn));
        }
        decode(version_lsn, &value).map(Some)
    }

    /// The first end of a transaction at or below `through_lsn` that is stored and later than `time`, with its LSN.
    fn first_end_after(&self, time: WallTime, through_lsn: Lsn) -> Result<Option<(Lsn, CommitTime)>, ReadError> {
        let key = Key::from(Object::CommitTime);
        let is_later = |version_lsn, value: &[u8]| -> Result<bool, ReadError> {
            let stored = decode(version_lsn, value)?;
            Ok(stored.before_lsn.is_some() && stored.time > time.as_postgres())
        };
        let first = self.through_ancestors(through_lsn, |ancestors| {
            let mut first: Option<(Lsn, Bytes)> = self.store.first_version_where(&key, through_lsn, is_later)?;
            for (ancestor, branch_lsn) in ancestors {
                // What an ancestor has of it is older.
                let inherited = ancestor.store.first_version_where(&key, through_lsn.min(*branch_lsn), is_later)?;
                first = inherited.or(first);
            }
            Ok(first)
        })?;
        first.map(|(version_lsn, value)| Ok((version_lsn, decode(version_lsn, &value)?))).transpose()
    }
}

/// The first time at which what is stored was surely so.
fn known_from(stored: &CommitTime) -> WallTime {
    let precision_micros = if stored.before_lsn.is_some() { 0 } else { CONTROL_FILE_PRECISION_MICROS };
    WallTime::from_postgres(stored.time.saturating_add(precision_micros))
}

fn decode(version_lsn: Lsn, value: &[u8]) -> Result<CommitTime, ReadError> {
    CommitTime::decode(value).ok_or_else(|| damaged(version_lsn))
}

fn damaged(version_lsn: Lsn) -> ReadError {
    ReadError::Damaged { key: Object::CommitTime.into(), version_lsn, reason: "not a commit time" }
}

#[cfg(test)]
mod tests;
