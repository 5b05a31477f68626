//! The time line of a cluster: how late it was at the end of a record, by the ends of transactions.
//!
//! - The time of a record that ends a transaction (commit or abort, prepared or not) is the primary's clock just before the record was
//!   written. Clocks are set back, and sessions overtake each other on the way into the WAL; so what counts is the *highest* time so far.
//! - A version is put when that has grown by [`COMMIT_TIME_GRANULARITY_MICROS`] since the last version: along a timeline and its ancestors
//!   times grow strictly, and no transaction since the import ended later than the stored time plus the granularity.
//! - An import puts one version of its own, with a time that is no end of a transaction; it does not count here, the first end after it does.
//! - Cost per transaction: one comparison. Cost in the store: at most one version of 47 bytes per millisecond.

use keyenc::{Key, Kind, Object};
use postgres_ffi::{Lsn, TimestampTz};

use super::step::Step;
use super::{IngestError, TimelineReader, WalIngest};

/// Times closer to the last stored one are not stored: a millisecond. Finer than people ask, and it bounds what a busy primary costs.
pub const COMMIT_TIME_GRANULARITY_MICROS: i64 = 1000;

/// One version of `Object::CommitTime`: 16 bytes, big-endian.
///
/// ```text
/// | time i64 | before_lsn u64 |
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitTime {
    /// The highest time so far, microseconds since 2000-01-01 UTC. PG: src/include/datatype/timestamp.h, TimestampTz.
    pub time: TimestampTz,
    /// End of the record before the one that this version stands at: the highest LSN at which it was not yet so late. `None`, stored as
    /// 0, where an import put it: `time` is then when the imported control file was written, in whole seconds.
    pub before_lsn: Option<Lsn>,
}

impl CommitTime {
    /// The stored bytes.
    pub fn encode(&self) -> [u8; 16] {
        let mut value = [0; 16];
        value[..8].copy_from_slice(&self.time.to_be_bytes());
        value[8..].copy_from_slice(&self.before_lsn.map_or(0, Lsn::as_u64).to_be_bytes());
        value
    }

    /// What the stored bytes say, `None` if they are not 16.
    pub fn decode(value: &[u8]) -> Option<Self> {
        let (time, before_lsn) = value.split_first_chunk::<8>()?;
        let before_lsn = u64::from_be_bytes(before_lsn.try_into().ok()?);
        Some(CommitTime { time: i64::from_be_bytes(*time), before_lsn: Lsn::from_pg(before_lsn) })
    }
}

/// The highest end of a transaction up to `last_record_lsn`; `None` until one has ended since the import, or since times are kept.
pub(super) fn stored(state: &dyn TimelineReader, last_record_lsn: Lsn) -> Result<Option<TimestampTz>, IngestError> {
    let key = Key::from(Object::CommitTime);
    let found = state.object(&key, last_record_lsn).map_err(|source| IngestError::State { source })?;
    let Some(value) = found else { return Ok(None) };
    let decoded = CommitTime::decode(&value).ok_or(IngestError::StoredValue { key, length: value.len() })?;
    Ok(decoded.before_lsn.map(|_| decoded.time))
}

impl WalIngest {
    /// Puts a version if it is later than the last one by the granularity.
    #[inline]
    pub(super) fn put_commit_time(&mut self, step: &mut Step<'_>, time: TimestampTz) {
        if self.commit_time.is_some_and(|last| time.saturating_sub(last) < COMMIT_TIME_GRANULARITY_MICROS) {
            return;
        }
        self.commit_time = Some(time);
        let value = CommitTime { time, before_lsn: Some(step.last_record_lsn) };
        step.put(Object::CommitTime, Kind::Image, &value.encode());
    }
}
