//! The CheckPoint struct: body of checkpoint records, copied into `pg_control`, and how redo moves its counters.
//!
//! ```text
//! 88 bytes, little-endian (PG 14-18: src/include/catalog/pg_control.h, CheckPoint)
//!  0 redo u64          8 ThisTimeLineID u32  12 PrevTimeLineID u32  16 fullPageWrites u8   20 wal_level i32 (from 17)
//! 24 nextXid u64      32 nextOid u32         36 nextMulti u32       40 nextMultiOffset u32 44 oldestXid u32
//! 48 oldestXidDB u32  52 oldestMulti u32     56 oldestMultiDB u32   64 time i64
//! 72 oldestCommitTsXid u32                   76 newestCommitTsXid u32                      80 oldestActiveXid u32
//! ```
//!
//! - `0` of a transaction id or LSN stays `0` here: the struct is a copy of PostgreSQL's, field by field.
//! - The functions that advance counters do what recovery does with the same record; each names its model.

use byteorder::{ByteOrder, LittleEndian};

use crate::slru::{FIRST_NORMAL_XID, wraps_before, xid_precedes};
use crate::{MultiXactId, MultiXactOffset, Oid, PgVersion, TimeLineId, TransactionId};

/// Size of the struct in every version.
pub const CHECKPOINT_LEN: usize = 88;

/// [`Checkpoint::next_xid`] is stored rounded up to a multiple of this, so that it is not written for each transaction. It divides the
/// number of transactions on a CLOG page: the stored value lies on the page of the last used xid or is the first of the next page, which
/// is where PostgreSQL can start from.
pub const NEXT_XID_STEP: u64 = 1024;
const _: () = assert!((crate::slru::CLOG_XACTS_PER_PAGE as u64).is_multiple_of(NEXT_XID_STEP));

/// A checkpoint's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Checkpoint {
    /// Where redo starts.
    pub redo: u64,
    /// Timeline.
    pub this_tli: TimeLineId,
    /// Timeline before, when the record begins a new one.
    pub prev_tli: TimeLineId,
    /// Full-page images are written.
    pub full_page_writes: bool,
    /// `wal_level`; before 17 always 0 here.
    pub wal_level: i32,
    /// Next transaction id, epoch in the high half.
    pub next_xid: u64,
    /// Next object id.
    pub next_oid: Oid,
    /// Next multixact id.
    pub next_multi: MultiXactId,
    /// Next position in the members.
    pub next_multi_offset: MultiXactOffset,
    /// Oldest transaction that may be found in tables.
    pub oldest_xid: TransactionId,
    /// The database that holds it.
    pub oldest_xid_db: Oid,
    /// Oldest multixact that may be found in tables.
    pub oldest_multi: MultiXactId,
    /// The database that holds it.
    pub oldest_multi_db: Oid,
    /// Seconds since 1970.
    pub time: i64,
    /// Oldest transaction with a commit timestamp, 0 for none.
    pub oldest_commit_ts_xid: TransactionId,
    /// Newest transaction with a commit timestamp, 0 for none.
    pub newest_commit_ts_xid: TransactionId,
    /// Oldest running transaction, 0 in a shutdown checkpoint.
    pub oldest_active_xid: TransactionId,
}

/// Bytes that are no CheckPoint struct.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// Fewer bytes than the struct has.
    #[error("checkpoint too short. expected=`{CHECKPOINT_LEN}`, length=`{length}`")]
    TooShort {
        /// Bytes given.
        length: usize,
    },
    /// The next transaction id is one that is never given out.
    #[error("checkpoint with an impossible next transaction id. next_xid=`{next_xid}`")]
    NextXid {
        /// As found.
        next_xid: u64,
    },
}

impl Checkpoint {
    /// Reads the struct at the start of `bytes`.
    pub fn decode(version: PgVersion, bytes: &[u8]) -> Result<Self, CheckpointError> {
        let Some(bytes) = bytes.first_chunk::<CHECKPOINT_LEN>() else {
            return Err(CheckpointError::TooShort { length: bytes.len() });
        };
        let u32_at = |at: usize| LittleEndian::read_u32(&bytes[at..at + 4]);
        let u64_at = |at: usize| LittleEndian::read_u64(&bytes[at..at + 8]);
        let next_xid = u64_at(24);
        if (next_xid as u32) < FIRST_NORMAL_XID {
            return Err(CheckpointError::NextXid { next_xid });
        }
        Ok(Checkpoint {
            redo: u64_at(0),
            this_tli: u32_at(8),
            prev_tli: u32_at(12),
            full_page_writes: bytes[16] != 0,
            wal_level: if version >= PgVersion::V17 { u32_at(20) as i32 } else { 0 },
            next_xid,
            next_oid: u32_at(32),
            next_multi: u32_at(36),
            next_multi_offset: u32_at(40),
            oldest_xid: u32_at(44),
            oldest_xid_db: u32_at(48),
            oldest_multi: u32_at(52),
            oldest_multi_db: u32_at(56),
            time: u64_at(64) as i64,
            oldest_commit_ts_xid: u32_at(72),
            newest_commit_ts_xid: u32_at(76),
            oldest_active_xid: u32_at(80),
        })
    }

    /// The struct's bytes, padding zero.
    pub fn encode(&self, version: PgVersion) -> [u8; CHECKPOINT_LEN] {
        let mut bytes = [0; CHECKPOINT_LEN];
        for (at, value) in [(0, self.redo), (24, self.next_xid), (64, self.time as u64)] {
            LittleEndian::write_u64(&mut bytes[at..at + 8], value);
        }
        for (at, value) in [
            (8, self.this_tli),
            (12, self.prev_tli),
            (32, self.next_oid),
            (36, self.next_multi),
            (40, self.next_multi_offset),
            (44, self.oldest_xid),
            (48, self.oldest_xid_db),
            (52, self.oldest_multi),
            (56, self.oldest_multi_db),
            (72, self.oldest_commit_ts_xid),
            (76, self.newest_commit_ts_xid),
            (80, self.oldest_active_xid),
        ] {
            LittleEndian::write_u32(&mut bytes[at..at + 4], value);
        }
        bytes[16] = self.full_page_writes.into();
        if version >= PgVersion::V17 {
            LittleEndian::write_i32(&mut bytes[20..24], self.wal_level);
        }
        bytes
    }

    /// The low half of the next transaction id.
    pub fn next_xid_low(&self) -> TransactionId {
        self.next_xid as u32
    }

    /// Makes sure that `xid` will not be given out again. True when that changed something.
    /// PG: varsup.c, AdvanceNextFullTransactionIdPastXid.
    #[inline]
    pub fn advance_next_xid_past(&mut self, xid: TransactionId) -> bool {
        let next = self.next_xid_low();
        if xid_precedes(xid, next) {
            return false;
        }
        // The span of active xids is below one epoch, so a smaller number means a new one.
        let advanced = xid.wrapping_add(1).max(FIRST_NORMAL_XID);
        let epoch = (self.next_xid >> 32) + u64::from(advanced < next);
        self.next_xid = epoch << 32 | u64::from(advanced);
        true
    }

    /// The next multixact and members position are at least these. True when that changed something.
    /// PG: multixact.c, MultiXactAdvanceNextMXact.
    pub fn advance_next_multi(&mut self, multi: MultiXactId, offset: MultiXactOffset) -> bool {
        let before = *self;
        if wraps_before(self.next_multi, multi) {
            self.next_multi = multi;
        }
        if wraps_before(self.next_multi_offset, offset) {
            self.next_multi_offset = offset;
        }
        *self != before
    }

    /// The oldest multixact is at least this. PG: multixact.c, MultiXactAdvanceOldest.
    pub fn advance_oldest_multi(&mut self, multi: MultiXactId, db_oid: Oid) {
        // With the same id the later record knows better which database holds it: the one named before may have been dropped since.
        // PostgreSQL's own redo keeps the old name then; a primary does not.
        if self.oldest_multi == multi || wraps_before(self.oldest_multi, multi) {
            self.oldest_multi = multi;
            self.oldest_multi_db = db_oid;
        }
    }

    /// The oldest transaction is at least this. PG: xlog.c, xlog_redo (XLOG_CHECKPOINT_ONLINE).
    pub fn advance_oldest_xid(&mut self, xid: TransactionId, db_oid: Oid) {
        if xid_precedes(self.oldest_xid, xid) {
            self.oldest_xid = xid;
            self.oldest_xid_db = db_oid;
        }
    }

    /// The 64-bit id of `xid`, which was given out before now. PG: transam.h, FullTransactionIdFromAllowableAt.
    pub fn full_xid(&self, xid: TransactionId) -> u64 {
        let epoch = self.next_xid >> 32;
        let epoch = if xid > self.next_xid_low() { epoch.saturating_sub(1) } else { epoch };
        epoch << 32 | u64::from(xid)
    }

    /// This checkpoint with the next transaction id rounded up to a multiple of [`NEXT_XID_STEP`].
    pub fn with_rounded_next_xid(mut self) -> Self {
        self.next_xid = round_next_xid(self.next_xid);
        self
    }

    /// What redo makes of `self` when it meets a shutdown checkpoint: counters are taken over as they stand.
    /// PG: xlog.c, xlog_redo (XLOG_CHECKPOINT_SHUTDOWN).
    pub fn redo_shutdown(&mut self, record: &Checkpoint) {
        let (oldest_multi, oldest_multi_db) = (self.oldest_multi, self.oldest_multi_db);
        *self = *record;
        (self.oldest_multi, self.oldest_multi_db) = (oldest_multi, oldest_multi_db);
        self.advance_oldest_multi(record.oldest_multi, record.oldest_multi_db);
    }

    /// What redo makes of `self` when it meets an online checkpoint: its counters are minima, and the next object id does not count (it
    /// dates from the start of the checkpoint). PG: xlog.c, xlog_redo (XLOG_CHECKPOINT_ONLINE).
    pub fn redo_online(&mut self, record: &Checkpoint) {
        let before = *self;
        *self = *record;
        self.next_xid = before.next_xid.max(record.next_xid);
        self.next_oid = before.next_oid;
        (self.next_multi, self.next_multi_offset) = (before.next_multi, before.next_multi_offset);
        self.advance_next_multi(record.next_multi, record.next_multi_offset);
        (self.oldest_multi, self.oldest_multi_db) = (before.oldest_multi, before.oldest_multi_db);
        self.advance_oldest_multi(record.oldest_multi, record.oldest_multi_db);
        (self.oldest_xid, self.oldest_xid_db) = (before.oldest_xid, before.oldest_xid_db);
        self.advance_oldest_xid(record.oldest_xid, record.oldest_xid_db);
        if record.newest_commit_ts_xid != 0 && before.newest_commit_ts_xid != 0 {
            // Both only grow; those of the record were read when the checkpoint began.
            self.oldest_commit_ts_xid = newer(before.oldest_commit_ts_xid, record.oldest_commit_ts_xid);
            self.newest_commit_ts_xid = newer(before.newest_commit_ts_xid, record.newest_commit_ts_xid);
        }
    }
}

fn newer(a: TransactionId, b: TransactionId) -> TransactionId {
    if xid_precedes(a, b) { b } else { a }
}

/// `next_xid` rounded up to a multiple of [`NEXT_XID_STEP`]; never one of the special ids at the start of an epoch.
pub fn round_next_xid(next_xid: u64) -> u64 {
    let rounded = next_xid.checked_next_multiple_of(NEXT_XID_STEP).unwrap_or(next_xid);
    if (rounded as u32) < FIRST_NORMAL_XID { rounded | u64::from(FIRST_NORMAL_XID) } else { rounded }
}

#[cfg(test)]
mod tests {
    //! Golden bytes, round trips, and each counter at its edges.

    use super::*;

    fn sample() -> Checkpoint {
        Checkpoint {
            redo: 0x0102_0304_0506_0708,
            this_tli: 1,
            prev_tli: 2,
            full_page_writes: true,
            wal_level: 2,
            next_xid: (7 << 32) | 1000,
            next_oid: 16384,
            next_multi: 5,
            next_multi_offset: 11,
            oldest_xid: 730,
            oldest_xid_db: 1,
            oldest_multi: 1,
            oldest_multi_db: 4,
            time: 1_700_000_000,
            oldest_commit_ts_xid: 740,
            newest_commit_ts_xid: 990,
            oldest_active_xid: 900,
        }
    }

    #[test]
    fn fields_stand_where_postgresql_has_them() {
        let bytes = sample().encode(PgVersion::V17);
        assert_eq!(bytes[..8], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!((bytes[8], bytes[12], bytes[16], bytes[20]), (1, 2, 1, 2));
        assert_eq!(bytes[24..32], [0xE8, 3, 0, 0, 7, 0, 0, 0]);
        assert_eq!(bytes[60..64], [0; 4]);
        assert_eq!(bytes[84..], [0; 4]);
        assert_eq!(Checkpoint::decode(PgVersion::V17, &bytes), Ok(sample()));
    }

    #[test]
    fn wal_level_is_padding_before_17() {
        let bytes = sample().encode(PgVersion::V16);
        assert_eq!(bytes[20..24], [0; 4]);
        assert_eq!(Checkpoint::decode(PgVersion::V16, &bytes), Ok(Checkpoint { wal_level: 0, ..sample() }));
        assert!(Checkpoint::decode(PgVersion::V16, &bytes[..87]).is_err());
        assert!(Checkpoint::decode(PgVersion::V16, &[0; 88]).is_err());
    }

    fn check_advance(next: u64, xid: u32, expect: u64) {
        let mut checkpoint = Checkpoint { next_xid: next, ..sample() };
        assert_eq!(checkpoint.advance_next_xid_past(xid), next != expect, "{next} {xid}");
        assert_eq!(checkpoint.next_xid, expect, "{next} {xid}");
    }

    #[test]
    fn next_xid_moves_past_used_ones_and_over_epochs() {
        check_advance(1000, 0, 1000);
        check_advance(1000, 999, 1000);
        check_advance(1000, 1000, 1001);
        check_advance(1000, 5000, 5001);
        check_advance(u32::MAX.into(), u32::MAX, (1 << 32) | 3);
        check_advance(0xFFFF_FFF0, 3, (1 << 32) | 4);
        check_advance((1 << 32) | 3, u32::MAX, (1 << 32) | 3);
    }

    #[test]
    fn rounding_stays_on_the_page_or_at_a_page_start() {
        assert_eq!(round_next_xid(3), 1024);
        assert_eq!(round_next_xid(1024), 1024);
        assert_eq!(round_next_xid(32_001), 32_768);
        assert_eq!(round_next_xid(0xFFFF_FFFF), (1 << 32) | 3);
        for next in [3, 1023, 1025, 32_767, 65_000] {
            let rounded = round_next_xid(next);
            assert!(rounded >= next && rounded / 32_768 == next / 32_768 || rounded.is_multiple_of(32_768));
        }
    }

    #[test]
    fn full_ids_take_the_epoch_before_when_they_are_above_next() {
        let checkpoint = Checkpoint { next_xid: (7 << 32) | 1000, ..sample() };
        assert_eq!(checkpoint.full_xid(999), (7 << 32) | 999);
        assert_eq!(checkpoint.full_xid(0xFFFF_FFF0), (6 << 32) | 0xFFFF_FFF0);
    }

    #[test]
    fn shutdown_is_believed_online_is_a_minimum() {
        let low = Checkpoint { next_xid: 500, next_oid: 9, next_multi: 2, oldest_xid: 3, oldest_multi: 1, ..sample() };
        let mut here = sample();
        here.redo_online(&low);
        assert_eq!((here.next_xid, here.next_oid, here.next_multi, here.oldest_xid), ((7 << 32) | 1000, 16384, 5, 730));
        let mut here = sample();
        here.redo_shutdown(&low);
        assert_eq!((here.next_xid, here.next_oid, here.next_multi, here.oldest_xid), (500, 9, 2, 3));
    }

    #[test]
    fn multixacts_advance_around_the_wrap() {
        let mut here = Checkpoint { next_multi: u32::MAX, next_multi_offset: u32::MAX - 1, ..sample() };
        assert!(here.advance_next_multi(1, 3));
        assert_eq!((here.next_multi, here.next_multi_offset), (1, 3));
        assert!(!here.advance_next_multi(u32::MAX, 2));
    }
}
