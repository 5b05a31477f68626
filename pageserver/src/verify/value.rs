//! Does a version say something that a version of its object can say?

use std::borrow::Cow;

use bytes::Bytes;
use keyenc::{Kind, Object, VersionKey};
use postgres_ffi::checkpoint::Checkpoint;
use postgres_ffi::control_file::ControlFile;
use postgres_ffi::relation_map::RelationMap;
use postgres_ffi::wal::DecodedRecord;
use postgres_ffi::{BLCKSZ, PgVersion};

use crate::delta::Delta;
use crate::ingest::{CommitTime, FileCopy, KeptSize, OriginProgress};
use crate::store::Watermark;

/// Why not.
pub(super) type Wrong = Cow<'static, str>;

/// Err: what is wrong with the value of `version`.
pub(super) fn check(pg_version: PgVersion, version: &VersionKey, value: &[u8]) -> Result<(), Wrong> {
    let object = version.key.object().map_err(|error| Wrong::from(error.to_string()))?;
    let is_page = matches!(object, Object::RelationBlock { .. } | Object::SlruPage { .. });
    match version.kind {
        Kind::Tombstone if value.is_empty() => Ok(()),
        Kind::Tombstone => Err("a tombstone with a value".into()),
        Kind::Delta | Kind::InitDelta if is_page => check_delta(pg_version, version, value),
        Kind::Delta | Kind::InitDelta => Err("a delta of something that is no page".into()),
        Kind::Image if is_page && (value.is_empty() || value.len() == BLCKSZ) => Ok(()),
        Kind::Image if is_page => Err(format!("an image of {} bytes", value.len()).into()),
        Kind::Image => check_object(pg_version, object, version, value),
    }
}

fn check_delta(pg_version: PgVersion, version: &VersionKey, value: &[u8]) -> Result<(), Wrong> {
    match Delta::decode(value).map_err(|error| Wrong::from(error.to_string()))? {
        Delta::Postgres(record) => {
            let decoded = DecodedRecord::decode(pg_version, version.lsn, version.lsn, Bytes::copy_from_slice(record));
            decoded.map(drop).map_err(|error| format!("a record that does not decode: {error}").into())
        }
        _ => Ok(()),
    }
}

fn check_object(pg_version: PgVersion, object: Object, version: &VersionKey, value: &[u8]) -> Result<(), Wrong> {
    let length = |right: bool| {
        let wrong = || Wrong::from(format!("a value of {} bytes", value.len()));
        if right { Ok(()) } else { Err(wrong()) }
    };
    match object {
        Object::Watermark => match Watermark::decode(value) {
            Ok(watermark) if watermark.last_record_lsn == version.lsn => Ok(()),
            Ok(watermark) => Err(format!("a watermark that says {}", watermark.last_record_lsn).into()),
            Err(error) => Err(error.to_string().into()),
        },
        Object::ControlFile => {
            ControlFile::decode_as(pg_version, value).map(drop).map_err(|error| error.to_string().into())
        }
        Object::Checkpoint => Checkpoint::decode(pg_version, value).map(drop).map_err(|error| error.to_string().into()),
        Object::RelationMap { .. } => {
            RelationMap::decode(pg_version, value).map(drop).map_err(|error| error.to_string().into())
        }
        Object::CommitTime => length(CommitTime::decode(value).is_some()),
        Object::Database { .. } => length(value.is_empty() || FileCopy::decode(value).is_some()),
        Object::DatabaseSize { .. } | Object::SlruSize { .. } => length(KeptSize::decode(value).is_some()),
        Object::RelationSize { .. } | Object::SlruSegment { .. } => length(value.len() == 4),
        Object::TwoPhase { .. } => length(!value.is_empty()),
        Object::ReplicationOrigin { .. } => length(OriginProgress::decode(value).is_some()),
        Object::SlruPage { .. } | Object::RelationBlock { .. } => Ok(()), // Pages are checked above.
    }
}

#[cfg(test)]
mod tests {
    //! Goal: every kind of value that cannot be is refused, and those that can be are not. Method: one of each.

    use keyenc::{Key, TimelineNo};
    use postgres_ffi::{ForkNumber, Lsn, RelTag, SlruKind};

    use super::*;

    const REL: RelTag = RelTag { spc_oid: 1663, db_oid: 5, rel_number: 16384 };

    fn outcome(object: Object, kind: Kind, value: &[u8]) -> Result<(), Wrong> {
        let version =
            VersionKey { timeline: TimelineNo(1), key: Key::from(object), lsn: Lsn::new(0x1_0100_0028), kind };
        check(PgVersion::V15, &version, value)
    }

    #[test]
    fn values_that_can_be_are_taken() {
        let block = Object::RelationBlock { rel: REL, fork: ForkNumber::Main, block_no: 7 };
        let size = Object::RelationSize { rel: REL, fork: ForkNumber::Main };
        for (object, kind, value) in [
            (block, Kind::Image, &[7; BLCKSZ][..]),
            (block, Kind::Image, &[]),
            (block, Kind::Tombstone, &[]),
            (block, Kind::Delta, &[8]),
            (Object::Database { spc_oid: 1663, db_oid: 5 }, Kind::Image, &[]),
            (Object::Database { spc_oid: 1663, db_oid: 5 }, Kind::Image, &[0, 0, 6, 0x7f, 0, 0, 0, 1, 1]),
            (size, Kind::Image, &[0, 0, 0, 7]),
            (Object::Watermark, Kind::Image, &[1, 0, 0, 0, 1, 1, 0, 0, 0x28]),
            (Object::Watermark, Kind::Image, &[2, 0, 0, 0, 1, 1, 0, 0, 0x28, 0, 3]),
            (Object::CommitTime, Kind::Image, &[0; 16]),
            (Object::DatabaseSize { spc_oid: 1663, db_oid: 5 }, Kind::Image, &[0; 16]),
            (Object::SlruSize { kind: SlruKind::Clog }, Kind::Tombstone, &[]),
        ] {
            assert_eq!(outcome(object, kind, value), Ok(()), "{object:?} {kind:?}");
        }
    }

    #[test]
    fn values_that_cannot_be_are_refused() {
        let block = Object::RelationBlock { rel: REL, fork: ForkNumber::Main, block_no: 7 };
        let size = Object::RelationSize { rel: REL, fork: ForkNumber::Main };
        for (object, kind, value) in [
            (block, Kind::Image, &[7; BLCKSZ - 1][..]),
            (block, Kind::Tombstone, &[0]),
            (block, Kind::Delta, &[]),
            (block, Kind::Delta, &[99]),
            (block, Kind::InitDelta, &[0, 1, 2, 3]),
            (size, Kind::Delta, &[8]),
            (size, Kind::Image, &[0, 0, 7]),
            (Object::Database { spc_oid: 1663, db_oid: 5 }, Kind::Image, &[1]),
            (Object::Watermark, Kind::Image, &[1, 0, 0, 0, 1, 1, 0, 0, 0x30]),
            (Object::Watermark, Kind::Image, &[2]),
            (Object::ControlFile, Kind::Image, &[0; 8192]),
            (Object::Checkpoint, Kind::Image, &[0; 3]),
            (Object::RelationMap { spc_oid: 1663, db_oid: 5 }, Kind::Image, &[0; 512]),
            (Object::CommitTime, Kind::Image, &[0; 8]),
            (Object::DatabaseSize { spc_oid: 1663, db_oid: 5 }, Kind::Image, &[0; 17]),
            (Object::SlruSize { kind: SlruKind::Clog }, Kind::Image, &[0; 15]),
            (Object::TwoPhase { xid: 7 }, Kind::Image, &[]),
            (Object::ReplicationOrigin { origin_id: 1 }, Kind::Image, &[0; 8]),
        ] {
            assert!(outcome(object, kind, value).is_err(), "{object:?} {kind:?}");
        }
    }
}
