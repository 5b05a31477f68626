//! Transactions: commit, abort, prepare. PG: src/include/access/xact.h, src/backend/access/rmgrdesc/xactdesc.c.

use super::fields::{Fields, Ids, REL_LEN, RecordError, Rels};
use crate::{Oid, PgVersion, TimestampTz, TransactionId};

/// Bits of `info` that name the operation. PG: xact.h, XLOG_XACT_OPMASK.
pub const OPERATION_MASK: u8 = 0x70;
/// XLOG_XACT_COMMIT
pub const COMMIT: u8 = 0x00;
/// XLOG_XACT_PREPARE
pub const PREPARE: u8 = 0x10;
/// XLOG_XACT_ABORT
pub const ABORT: u8 = 0x20;
/// XLOG_XACT_COMMIT_PREPARED
pub const COMMIT_PREPARED: u8 = 0x30;
/// XLOG_XACT_ABORT_PREPARED
pub const ABORT_PREPARED: u8 = 0x40;
/// XLOG_XACT_ASSIGNMENT
pub const ASSIGNMENT: u8 = 0x50;
/// XLOG_XACT_INVALIDATIONS
pub const INVALIDATIONS: u8 = 0x60;
/// Bit of `info`: `xinfo` follows the time. PG: xact.h, XLOG_XACT_HAS_INFO.
pub const HAS_INFO: u8 = 0x80;

/// Bits of `xinfo`. PG: xact.h, XACT_XINFO_HAS_*, XACT_COMPLETION_*.
pub(crate) mod xinfo {
    pub const DBINFO: u32 = 1 << 0;
    pub const SUBXACTS: u32 = 1 << 1;
    pub const RELATIONS: u32 = 1 << 2;
    pub const INVALS: u32 = 1 << 3;
    pub const TWOPHASE: u32 = 1 << 4;
    pub const ORIGIN: u32 = 1 << 5;
    pub const GID: u32 = 1 << 7;
    /// From 15.
    pub const DROPPED_STATS: u32 = 1 << 8;
    pub const APPLY_FEEDBACK: u32 = 1 << 29;
    pub const DROPS_RELCACHE_FILE: u32 = 1 << 30;
    pub const FORCE_SYNC_COMMIT: u32 = 1 << 31;
}

/// SharedInvalidationMessage: 16 bytes in every version. PG: src/include/storage/sinval.h.
const INVALIDATION_LEN: usize = 16;
/// xl_xact_stats_item: 12 bytes; from 18 the object id has 64 bits in two halves. PG: xact.h.
pub(crate) const fn stats_item_len(version: PgVersion) -> usize {
    if version.major() >= 18 { 16 } else { 12 }
}

/// Where a replicated transaction came from. PG: xact.h, xl_xact_origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// Its commit's position at the origin, 0 for none.
    pub remote_lsn: u64,
    /// Its commit time at the origin.
    pub time: TimestampTz,
}

/// The end of a transaction: body of COMMIT, ABORT, COMMIT_PREPARED and ABORT_PREPARED.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XactEnd<'a> {
    /// When it ended here.
    pub time: TimestampTz,
    /// What the body has and what else is to be done, bits of xact.h.
    pub xinfo: u32,
    /// The database, 0 if the record does not say.
    pub db_oid: Oid,
    /// The database's tablespace, 0 if the record does not say.
    pub spc_oid: Oid,
    /// Its subtransactions that ended with it.
    pub subxacts: Ids<'a>,
    /// Relations whose files (all forks) go away.
    pub dropped: Rels<'a>,
    /// Statistics that go away: 12 bytes each, from 18 on 16. PG: xact.h, xl_xact_stats_item.
    pub dropped_stats: &'a [u8],
    /// Messages to other sessions' caches, 16 bytes each. PG: sinval.h, SharedInvalidationMessage.
    pub invalidations: &'a [u8],
    /// The prepared transaction that this ends.
    pub twophase_xid: Option<TransactionId>,
    /// Set when it was replicated from elsewhere.
    pub origin: Option<Origin>,
}

impl<'a> XactEnd<'a> {
    /// Reads the body of one of the four operations. `info` is the record's, for [`HAS_INFO`].
    ///
    /// PG 14-18: xactdesc.c, ParseCommitRecord and ParseAbortRecord (an abort has no invalidations).
    pub fn parse(version: PgVersion, info: u8, main_data: &'a [u8]) -> Result<Self, RecordError> {
        let mut fields = Fields::new("xl_xact_commit/abort", main_data);
        let time = fields.i64()?;
        let xinfo = if info & HAS_INFO != 0 { fields.u32()? } else { 0 };
        let mut parsed = XactEnd {
            time,
            xinfo,
            db_oid: 0,
            spc_oid: 0,
            subxacts: Ids(&[]),
            dropped: Rels(&[]),
            dropped_stats: &[],
            invalidations: &[],
            twophase_xid: None,
            origin: None,
        };
        if xinfo & xinfo::DBINFO != 0 {
            (parsed.db_oid, parsed.spc_oid) = (fields.u32()?, fields.u32()?);
        }
        if xinfo & xinfo::SUBXACTS != 0 {
            let count = fields.count()?;
            parsed.subxacts = Ids(fields.items(count, 4)?);
        }
        if xinfo & xinfo::RELATIONS != 0 {
            let count = fields.count()?;
            parsed.dropped = Rels(fields.items(count, REL_LEN)?);
        }
        if version >= PgVersion::V15 && xinfo & xinfo::DROPPED_STATS != 0 {
            let count = fields.count()?;
            parsed.dropped_stats = fields.items(count, stats_item_len(version))?;
        }
        let is_commit = matches!(info & OPERATION_MASK, COMMIT | COMMIT_PREPARED);
        if is_commit && xinfo & xinfo::INVALS != 0 {
            let count = fields.count()?;
            parsed.invalidations = fields.items(count, INVALIDATION_LEN)?;
        }
        if xinfo & xinfo::TWOPHASE != 0 {
            parsed.twophase_xid = Some(fields.u32()?);
            if xinfo & xinfo::GID != 0 {
                while fields.u8()? != 0 {}
            }
        }
        // Not aligned from here on: the GID may have any length.
        if xinfo & xinfo::ORIGIN != 0 {
            parsed.origin = Some(Origin { remote_lsn: fields.u64()?, time: fields.i64()? });
        }
        Ok(parsed)
    }
}

/// The head of a prepared transaction's state, which is also the head of its file in `pg_twophase`. PG: xact.h, xl_xact_prepare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prepare {
    /// The transaction.
    pub xid: TransactionId,
    /// Its database.
    pub database: Oid,
    /// When it was prepared.
    pub prepared_at: TimestampTz,
    /// Number of its subtransactions.
    pub subxact_count: usize,
    /// Where it came from; counts only if the record names an origin.
    pub origin: Origin,
    subxacts_at: usize,
}

/// PG: src/backend/access/transam/twophase.c, TWOPHASE_MAGIC (14-18).
pub const TWOPHASE_MAGIC: u32 = 0x57F9_4534;
/// The CRC-32C behind the state in a file, included in `total_len`.
const CRC_LEN: u32 = 4;

impl Prepare {
    /// Reads the head of the body of PREPARE. Errors: wrong magic, or `total_len` is not this body and its CRC.
    pub fn parse(version: PgVersion, main_data: &[u8]) -> Result<Self, RecordError> {
        let mut fields = Fields::new("xl_xact_prepare", main_data);
        let magic = fields.u32()?;
        if magic != TWOPHASE_MAGIC {
            return Err(fields.impossible("magic", magic.into()));
        }
        let total_len = fields.u32()?;
        if total_len.checked_sub(CRC_LEN).map(|len| len as usize) != Some(main_data.len()) {
            return Err(fields.impossible("total_len", total_len.into()));
        }
        let (xid, database, prepared_at) = (fields.u32()?, fields.u32()?, fields.i64()?);
        let _owner = fields.u32()?;
        let subxact_count = fields.count()?;
        // ncommitrels, nabortrels, (15: ncommitstats, nabortstats), ninvalmsgs
        fields.take(if version >= PgVersion::V15 { 20 } else { 12 })?;
        let _initfileinval = fields.u8()?;
        fields.align(2);
        let gid_len = usize::from(fields.u16()?);
        let origin = Origin { remote_lsn: fields.u64()?, time: fields.i64()? };
        fields.align(8);
        fields.take(gid_len)?;
        fields.align(8);
        let subxacts_at = main_data.len() - fields.rest().len();
        fields.items(subxact_count, 4)?;
        Ok(Prepare { xid, database, prepared_at, subxact_count, origin, subxacts_at })
    }

    /// The subtransactions. `main_data` must be what this was parsed from; of anything shorter, none.
    pub fn subxacts<'a>(&self, main_data: &'a [u8]) -> Ids<'a> {
        Ids(main_data.get(self.subxacts_at..self.subxacts_at + self.subxact_count * 4).unwrap_or_default())
    }

    /// The file in `pg_twophase`: the body and its CRC-32C. PG: twophase.c, RecreateTwoPhaseFile.
    pub fn state_file(main_data: &[u8]) -> Vec<u8> {
        let mut file = Vec::with_capacity(main_data.len() + CRC_LEN as usize);
        file.extend_from_slice(main_data);
        file.extend_from_slice(&crc32c::crc32c(main_data).to_le_bytes());
        file
    }
}

/// Body of ASSIGNMENT: subtransactions of a transaction. PG: xact.h, xl_xact_assignment.
pub fn parse_assignment(main_data: &[u8]) -> Result<Ids<'_>, RecordError> {
    let mut fields = Fields::new("xl_xact_assignment", main_data);
    let _top = fields.u32()?;
    let count = fields.count()?;
    Ok(Ids(fields.items(count, 4)?))
}

#[cfg(test)]
mod tests {
    //! Bodies made by hand, one per combination that moves fields; then the same cut at every byte.

    use super::*;
    use crate::RelTag;
    use crate::records::fields::Body;

    const REL: RelTag = RelTag { spc_oid: 1663, db_oid: 5, rel_number: 16384 };

    fn full_commit(version: PgVersion) -> Vec<u8> {
        let has_stats = version >= PgVersion::V15;
        let bits = xinfo::DBINFO
            | xinfo::SUBXACTS
            | xinfo::RELATIONS
            | xinfo::INVALS
            | xinfo::TWOPHASE
            | xinfo::GID
            | xinfo::ORIGIN
            | if has_stats { xinfo::DROPPED_STATS } else { 0 };
        let mut body = Body::default().u64(77).u32(bits).u32(5).u32(1663).u32(2).u32(101).u32(102).u32(1).rel(REL);
        if has_stats {
            body = body.u32(2).bytes(&vec![9; 2 * stats_item_len(version)]);
        }
        body.u32(1).bytes(&[8; 16]).u32(100).bytes(b"gid\0").u64(0x1234).u64(88).0
    }

    #[test]
    fn commit_with_everything_is_read_in_every_version() {
        for version in PgVersion::ALL {
            let body = full_commit(version);
            let end = XactEnd::parse(version, COMMIT_PREPARED | HAS_INFO, &body).unwrap();
            assert_eq!((end.time, end.db_oid, end.spc_oid), (77, 5, 1663));
            assert_eq!(
                end.dropped_stats.len(),
                if version >= PgVersion::V15 { 2 * stats_item_len(version) } else { 0 }
            );
            assert_eq!(end.invalidations, [8; 16]);
            assert_eq!(end.subxacts.iter().collect::<Vec<_>>(), [101, 102]);
            assert_eq!(end.dropped.iter().collect::<Vec<_>>(), [REL]);
            assert_eq!(end.twophase_xid, Some(100));
            assert_eq!(end.origin, Some(Origin { remote_lsn: 0x1234, time: 88 }));
            for cut in 0..body.len() {
                assert!(XactEnd::parse(version, COMMIT_PREPARED | HAS_INFO, &body[..cut]).is_err(), "{version} {cut}");
            }
        }
    }

    #[test]
    fn abort_has_no_invalidations_whatever_its_bits_say() {
        let body = Body::default().u64(1).u32(xinfo::INVALS | xinfo::TWOPHASE).u32(7).0;
        let end = XactEnd::parse(PgVersion::V16, ABORT_PREPARED | HAS_INFO, &body).unwrap();
        assert_eq!(end.twophase_xid, Some(7));
    }

    #[test]
    fn counts_beyond_the_body_are_refused() {
        for count in [1, u32::MAX, 0x7FFF_FFFF] {
            let body = Body::default().u64(1).u32(xinfo::SUBXACTS).u32(count).0;
            let error = XactEnd::parse(PgVersion::V15, COMMIT | HAS_INFO, &body).unwrap_err();
            assert!(matches!(error, RecordError::Count { .. }), "{error}");
        }
    }

    fn prepare(version: PgVersion) -> Vec<u8> {
        let counts = if version >= PgVersion::V15 { 5 } else { 3 };
        let mut body = Body::default().u32(TWOPHASE_MAGIC).u32(0).u32(500).u32(5).u64(99).u32(10).u32(3);
        for _ in 0..counts {
            body = body.u32(0);
        }
        body = body.u8(0).align(2).u16(4).u64(0x22).u64(0x33).align(8).bytes(b"gid\0").align(8);
        body = body.u32(501).u32(502).u32(503).align(8).bytes(&[0; 8]);
        let total = body.0.len() as u32 + 4;
        body.0[4..8].copy_from_slice(&total.to_le_bytes());
        body.0
    }

    #[test]
    fn prepare_head_subxacts_and_file() {
        for version in PgVersion::ALL {
            let body = prepare(version);
            let head = Prepare::parse(version, &body).unwrap();
            assert_eq!((head.xid, head.database, head.prepared_at), (500, 5, 99));
            assert_eq!(head.origin, Origin { remote_lsn: 0x22, time: 0x33 });
            assert_eq!(head.subxacts(&body).iter().collect::<Vec<_>>(), [501, 502, 503]);
            let file = Prepare::state_file(&body);
            assert_eq!(file.len(), body.len() + 4);
            assert_eq!(file[body.len()..], crc32c::crc32c(&body).to_le_bytes());
            for cut in 0..body.len() {
                assert!(Prepare::parse(version, &body[..cut]).is_err());
            }
        }
    }
}
