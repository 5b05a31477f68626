//! The log's own records. PG: src/include/catalog/pg_control.h (XLOG_*), src/include/access/xlog_internal.h (bodies).

use byteorder::{ByteOrder, LittleEndian};

use super::fields::{Fields, RecordError};
use crate::{Oid, PgVersion, TimeLineId, TimestampTz};

/// Operations of the XLOG resource manager. PG: pg_control.h, XLOG_*.
pub mod operation {
    #![allow(missing_docs)] // The names are PostgreSQL's.
    pub const CHECKPOINT_SHUTDOWN: u8 = 0x00;
    pub const CHECKPOINT_ONLINE: u8 = 0x10;
    pub const NOOP: u8 = 0x20;
    pub const NEXTOID: u8 = 0x30;
    pub const SWITCH: u8 = 0x40;
    pub const BACKUP_END: u8 = 0x50;
    pub const PARAMETER_CHANGE: u8 = 0x60;
    pub const RESTORE_POINT: u8 = 0x70;
    pub const FPW_CHANGE: u8 = 0x80;
    pub const END_OF_RECOVERY: u8 = 0x90;
    pub const FPI_FOR_HINT: u8 = 0xA0;
    pub const FPI: u8 = 0xB0;
    pub const OVERWRITE_CONTRECORD: u8 = 0xD0;
    /// From 17.
    pub const CHECKPOINT_REDO: u8 = 0xE0;
}

/// Body of NEXTOID: the next object id.
pub fn parse_next_oid(main_data: &[u8]) -> Result<Oid, RecordError> {
    Fields::new("nextOid", main_data).u32()
}

/// Body of FPW_CHANGE: whether full-page images are written from here on.
pub fn parse_fpw_change(main_data: &[u8]) -> Result<bool, RecordError> {
    Ok(Fields::new("full_page_writes", main_data).u8()? != 0)
}

/// Body of END_OF_RECOVERY: a promoted server's first record. PG: xl_end_of_recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndOfRecovery {
    /// When.
    pub time: TimestampTz,
    /// The timeline from here on.
    pub this_tli: TimeLineId,
    /// The timeline before.
    pub prev_tli: TimeLineId,
    /// Where the record has it (seen in 17 and 18).
    pub wal_level: Option<i32>,
}

impl EndOfRecovery {
    /// Reads the body.
    pub fn parse(main_data: &[u8]) -> Result<Self, RecordError> {
        let mut fields = Fields::new("xl_end_of_recovery", main_data);
        let (time, this_tli, prev_tli) = (fields.i64()?, fields.u32()?, fields.u32()?);
        Ok(EndOfRecovery { time, this_tli, prev_tli, wal_level: fields.i32().ok() })
    }
}

/// Body of RESTORE_POINT: when, and the name's bytes up to its NUL. PG: xl_restore_point.
pub fn parse_restore_point(main_data: &[u8]) -> Result<(TimestampTz, &[u8]), RecordError> {
    let mut fields = Fields::new("xl_restore_point", main_data);
    let time = fields.i64()?;
    let name = fields.rest();
    Ok((time, name.split(|byte| *byte == 0).next().unwrap_or_default()))
}

/// Body of PARAMETER_CHANGE. PG 14-18: xl_parameter_change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParameterChange {
    /// `max_connections`
    pub max_connections: i32,
    /// `max_worker_processes`
    pub max_worker_processes: i32,
    /// `max_wal_senders`
    pub max_wal_senders: i32,
    /// `max_prepared_transactions`
    pub max_prepared_xacts: i32,
    /// `max_locks_per_transaction`
    pub max_locks_per_xact: i32,
    /// `wal_level`: see [`WAL_LEVEL_REPLICA`].
    pub wal_level: i32,
    /// `wal_log_hints`
    pub wal_log_hints: bool,
    /// `track_commit_timestamp`
    pub track_commit_timestamp: bool,
}

/// The lowest `wal_level` at which all changes are logged. PG: src/include/access/xlog.h, WAL_LEVEL_REPLICA.
pub const WAL_LEVEL_REPLICA: i32 = 1;

/// Offsets in `pg_control`. PG 14-18: pg_control.h, ControlFileData.
mod control_file {
    pub const WAL_LEVEL: usize = 172;
    pub const WAL_LOG_HINTS: usize = 176;
    pub const MAX_CONNECTIONS: usize = 180;
    pub const MAX_WORKER_PROCESSES: usize = 184;
    pub const MAX_WAL_SENDERS: usize = 188;
    pub const MAX_PREPARED_XACTS: usize = 192;
    pub const DATA_CHECKSUM_VERSION: usize = 252;
    pub const MAX_LOCKS_PER_XACT: usize = 196;
    pub const TRACK_COMMIT_TIMESTAMP: usize = 200;

    /// 18 has one more field, `default_char_signedness`, in front of the nonce.
    pub const fn crc_at(version: crate::PgVersion) -> usize {
        if version.major() >= 18 { 292 } else { 288 }
    }
}

/// `pg_control` is shorter than its CRC's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("control file too short. length=`{length}`")]
pub struct ControlFileTooShort {
    length: usize,
}

impl ParameterChange {
    /// Reads the body.
    pub fn parse(main_data: &[u8]) -> Result<Self, RecordError> {
        let mut fields = Fields::new("xl_parameter_change", main_data);
        Ok(ParameterChange {
            max_connections: fields.i32()?,
            max_worker_processes: fields.i32()?,
            max_wal_senders: fields.i32()?,
            max_prepared_xacts: fields.i32()?,
            max_locks_per_xact: fields.i32()?,
            wal_level: fields.i32()?,
            wal_log_hints: fields.u8()? != 0,
            track_commit_timestamp: fields.u8()? != 0,
        })
    }

    /// Puts the parameters into `pg_control` and its CRC right, as redo does. PG: xlog.c, xlog_redo (XLOG_PARAMETER_CHANGE).
    pub fn apply_to_control_file(&self, version: PgVersion, file: &mut [u8]) -> Result<(), ControlFileTooShort> {
        use control_file as at;
        let crc_at = at::crc_at(version);
        if file.len() < crc_at + 4 {
            return Err(ControlFileTooShort { length: file.len() });
        }
        for (offset, value) in [
            (at::MAX_CONNECTIONS, self.max_connections),
            (at::MAX_WORKER_PROCESSES, self.max_worker_processes),
            (at::MAX_WAL_SENDERS, self.max_wal_senders),
            (at::MAX_PREPARED_XACTS, self.max_prepared_xacts),
            (at::MAX_LOCKS_PER_XACT, self.max_locks_per_xact),
            (at::WAL_LEVEL, self.wal_level),
        ] {
            LittleEndian::write_i32(&mut file[offset..offset + 4], value);
        }
        file[at::WAL_LOG_HINTS] = self.wal_log_hints.into();
        file[at::TRACK_COMMIT_TIMESTAMP] = self.track_commit_timestamp.into();
        let crc = crc32c::crc32c(&file[..crc_at]);
        LittleEndian::write_u32(&mut file[crc_at..crc_at + 4], crc);
        Ok(())
    }
}

/// `track_commit_timestamp` as `pg_control` has it.
pub fn control_file_track_commit_timestamp(file: &[u8]) -> Result<bool, ControlFileTooShort> {
    let byte = file.get(control_file::TRACK_COMMIT_TIMESTAMP);
    Ok(*byte.ok_or(ControlFileTooShort { length: file.len() })? != 0)
}

/// Whether changes of hint bits are logged, as `pg_control` has it: with data checksums or `wal_log_hints`. Redo of some records stamps the page
/// only then. PG 14-18: src/include/access/xlog.h, XLogHintBitIsNeeded.
pub fn control_file_hint_bits_logged(file: &[u8]) -> Result<bool, ControlFileTooShort> {
    let too_short = ControlFileTooShort { length: file.len() };
    let checksum_version = file.get(control_file::DATA_CHECKSUM_VERSION..control_file::DATA_CHECKSUM_VERSION + 4);
    let checksum_version = LittleEndian::read_u32(checksum_version.ok_or(too_short)?);
    Ok(checksum_version != 0 || file[control_file::WAL_LOG_HINTS] != 0)
}

#[cfg(test)]
mod tests {
    //! Bodies made by hand; offsets in the control file against `docs`' list through the CRC rule.

    use super::*;
    use crate::records::fields::Body;

    fn change() -> ParameterChange {
        ParameterChange {
            max_connections: 100,
            max_worker_processes: 8,
            max_wal_senders: 10,
            max_prepared_xacts: 5,
            max_locks_per_xact: 64,
            wal_level: 2,
            wal_log_hints: true,
            track_commit_timestamp: true,
        }
    }

    #[test]
    fn parameter_change_is_read() {
        let body = Body::default().u32(100).u32(8).u32(10).u32(5).u32(64).u32(2).u8(1).u8(1).0;
        assert_eq!(ParameterChange::parse(&body), Ok(change()));
        assert!(ParameterChange::parse(&body[..25]).is_err());
    }

    #[test]
    fn parameter_change_goes_into_the_control_file() {
        for (version, crc_at) in [(PgVersion::V14, 288), (PgVersion::V17, 288), (PgVersion::V18, 292)] {
            let mut file = vec![0; 8192];
            change().apply_to_control_file(version, &mut file).unwrap();
            assert_eq!(file[172], 2);
            assert_eq!(file[180], 100);
            assert_eq!(control_file_track_commit_timestamp(&file), Ok(true));
            assert_eq!(control_file_hint_bits_logged(&file), Ok(true));
            let mut without_hints = file.clone();
            without_hints[176] = 0;
            assert_eq!(control_file_hint_bits_logged(&without_hints), Ok(false));
            without_hints[252] = 1; // Data checksums.
            assert_eq!(control_file_hint_bits_logged(&without_hints), Ok(true));
            assert!(control_file_hint_bits_logged(&file[..255]).is_err());
            assert_eq!(file[crc_at..crc_at + 4], crc32c::crc32c(&file[..crc_at]).to_le_bytes());
            assert!(change().apply_to_control_file(version, &mut file[..crc_at + 3]).is_err());
        }
    }

    #[test]
    fn small_bodies() {
        assert_eq!(parse_next_oid(&[1, 0, 0, 0]), Ok(1));
        assert!(parse_next_oid(&[1, 0, 0]).is_err());
        assert_eq!(parse_fpw_change(&[1]), Ok(true));
        let body = Body::default().u64(5).u32(2).u32(1).0;
        let expected = EndOfRecovery { time: 5, this_tli: 2, prev_tli: 1, wal_level: None };
        assert_eq!(EndOfRecovery::parse(&body), Ok(expected));
        let longer = Body::default().u64(5).u32(2).u32(1).u32(1).u32(0).0;
        assert_eq!(EndOfRecovery::parse(&longer), Ok(EndOfRecovery { wal_level: Some(1), ..expected }));
        let point = Body::default().u64(6).bytes(b"here\0junk").0;
        assert_eq!(parse_restore_point(&point), Ok((6, &b"here"[..])));
    }
}
