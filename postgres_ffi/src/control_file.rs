//! `global/pg_control`: who a cluster is, how it was built, and where its last checkpoint stands.
//!
//! - Offsets stand once, in the table `control_fields!`; they are the same in 14 to 18 up to `data_checksum_version`.
//!   17 added `wal_level` inside the CheckPoint copy (in what was padding), 18 put `default_char_signedness` before the nonce.
//! - What [`ControlFile::decode`] returns passed its CRC and is of a build that we can serve (8 KiB blocks, 8-byte alignment).
//! - `encode` of what was decoded gives the same bytes back: PostgreSQL zeroes the padding (xlog.c, InitControlFile).
//! - The checkpoint copy stays raw here; [`crate::checkpoint`] reads it.
//!
//! PG 15, 17, 18: src/include/catalog/pg_control.h, ControlFileData; 14 and 16 checked against files of those servers.

use byteorder::{ByteOrder, LittleEndian};
use serde::Serialize;

use crate::{BLCKSZ, Lsn, PgVersion, TimeLineId};

/// Size of the file on disk, of which the first 292 or 296 bytes count. PG: pg_control.h, PG_CONTROL_FILE_SIZE.
pub const CONTROL_FILE_LEN: usize = 8192;
/// Size of the CheckPoint struct in 14 to 18. PG: pg_control.h, CheckPoint.
pub const CHECKPOINT_LEN: usize = 88;
/// Size of the nonce for failed SASL exchanges. PG: pg_control.h, MOCK_AUTH_NONCE_LEN.
pub const NONCE_LEN: usize = 32;

const CHAR_SIGNEDNESS_OFFSET: usize = 256;
const FLOAT_FORMAT_OFFSET: usize = 208;
/// PG: pg_control.h, FLOATFORMAT_VALUE.
const FLOAT_FORMAT: f64 = 1_234_567.0;

/// What the cluster was doing when the file was written. PG: pg_control.h, DBState.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u32)]
pub enum DbState {
    /// Starting up.
    Startup = 0,
    /// Cleanly shut down: the last checkpoint is a shutdown checkpoint and every page is on disk.
    ShutDown = 1,
    /// A standby, cleanly shut down.
    ShutDownInRecovery = 2,
    /// Writing its shutdown checkpoint.
    ShuttingDown = 3,
    /// Replaying after a crash.
    InCrashRecovery = 4,
    /// A standby or a restore.
    InArchiveRecovery = 5,
    /// Running, or crashed.
    InProduction = 6,
}

/// Why a control file was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlFileError {
    /// Fewer bytes than the struct has.
    #[error("control file too short. expected_bytes=`{expected}`, found_bytes=`{found}`")]
    TooShort {
        /// What the struct needs.
        expected: usize,
        /// What was there.
        found: usize,
    },
    /// No version from 14 to 18 writes this file.
    #[error(
        "control file of an unknown version. pg_control_version=`{pg_control_version}`, catalog_version_no=`{catalog_version_no}`"
    )]
    UnknownVersion {
        /// Format of the file.
        pg_control_version: u32,
        /// Format of the catalogs.
        catalog_version_no: u32,
    },
    /// The caller knows the major version from elsewhere, and this file is not of it.
    #[error(
        "control file is not of the expected version. expected_major=`{expected}`, pg_control_version=`{pg_control_version}`"
    )]
    OtherVersion {
        /// The version that the caller named.
        expected: PgVersion,
        /// Format of the file.
        pg_control_version: u32,
    },
    /// The bytes were damaged, or cut between two writes.
    #[error("control file has a wrong checksum. stored=`{stored:#010x}`, computed=`{computed:#010x}`")]
    WrongCrc {
        /// As it stands in the file.
        stored: u32,
        /// As it should be.
        computed: u32,
    },
    /// A field holds what no server writes.
    #[error("control file has an impossible value. field=`{field}`, value=`{value}`")]
    InvalidField {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A right file of a build that we do not serve.
    #[error(
        "cluster was built with a setting that is not supported. field=`{field}`, expected=`{expected}`, value=`{value}`"
    )]
    UnsupportedBuild {
        /// Name of the setting.
        field: &'static str,
        /// The one value that we serve.
        expected: u32,
        /// The cluster's.
        value: u32,
    },
}

/// Reading and writing one field in place. `None`: no server writes these bytes.
trait Field: Sized {
    const LEN: usize;
    fn get(bytes: &[u8]) -> Option<Self>;
    fn put(&self, bytes: &mut [u8]);
}

macro_rules! integer_field {
    ($type:ty, $len:literal, $read:ident, $write:ident) => {
        impl Field for $type {
            const LEN: usize = $len;
            fn get(bytes: &[u8]) -> Option<Self> {
                Some(LittleEndian::$read(bytes))
            }
            fn put(&self, bytes: &mut [u8]) {
                LittleEndian::$write(bytes, *self);
            }
        }
    };
}

integer_field!(u32, 4, read_u32, write_u32);
integer_field!(i32, 4, read_i32, write_i32);
integer_field!(u64, 8, read_u64, write_u64);
integer_field!(i64, 8, read_i64, write_i64);

impl Field for bool {
    const LEN: usize = 1;
    fn get(bytes: &[u8]) -> Option<Self> {
        match bytes[0] {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
    fn put(&self, bytes: &mut [u8]) {
        bytes[0] = u8::from(*self);
    }
}

impl Field for Option<Lsn> {
    const LEN: usize = 8;
    fn get(bytes: &[u8]) -> Option<Self> {
        Some(Lsn::from_pg(LittleEndian::read_u64(bytes)))
    }
    fn put(&self, bytes: &mut [u8]) {
        LittleEndian::write_u64(bytes, self.map_or(0, Lsn::as_u64));
    }
}

impl Field for Lsn {
    const LEN: usize = 8;
    fn get(bytes: &[u8]) -> Option<Self> {
        Lsn::from_pg(LittleEndian::read_u64(bytes))
    }
    fn put(&self, bytes: &mut [u8]) {
        LittleEndian::write_u64(bytes, self.as_u64());
    }
}

impl Field for DbState {
    const LEN: usize = 4;
    fn get(bytes: &[u8]) -> Option<Self> {
        use DbState::*;
        let states =
            [Startup, ShutDown, ShutDownInRecovery, ShuttingDown, InCrashRecovery, InArchiveRecovery, InProduction];
        let number = LittleEndian::read_u32(bytes);
        states.into_iter().find(|state| *state as u32 == number)
    }
    fn put(&self, bytes: &mut [u8]) {
        LittleEndian::write_u32(bytes, *self as u32);
    }
}

impl Field for [u8; CHECKPOINT_LEN] {
    const LEN: usize = CHECKPOINT_LEN;
    fn get(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok()
    }
    fn put(&self, bytes: &mut [u8]) {
        bytes.copy_from_slice(self);
    }
}

/// Makes the struct, its reader and its writer from one table of offsets.
macro_rules! control_fields {
    ($($(#[$doc:meta])* $offset:literal $name:ident: $type:ty,)*) => {
        /// The contents of `pg_control`. Change fields at will, then [`encode`](ControlFile::encode).
        #[derive(Clone, Debug, PartialEq, Eq, Serialize)]
        pub struct ControlFile {
            /// Major version of the server that wrote it; decides where the nonce and the CRC stand.
            pub version: PgVersion,
            $($(#[$doc])* pub $name: $type,)*
            /// True where `char` is signed on the machine of initdb; `None` before 18, which did not store it.
            pub default_char_signedness: Option<bool>,
            /// Random bytes for SASL exchanges that fail early.
            #[serde(skip)]
            pub mock_authentication_nonce: [u8; NONCE_LEN],
        }

        impl ControlFile {
            fn read_fields(version: PgVersion, bytes: &[u8]) -> Result<Self, ControlFileError> {
                let default_char_signedness = match version >= PgVersion::V18 {
                    true => Some(field(bytes, CHAR_SIGNEDNESS_OFFSET, "default_char_signedness")?),
                    false => None,
                };
                let mut mock_authentication_nonce = [0; NONCE_LEN];
                mock_authentication_nonce.copy_from_slice(&bytes[nonce_offset(version)..][..NONCE_LEN]);
                Ok(ControlFile {
                    version,
                    $($name: field(bytes, $offset, stringify!($name))?,)*
                    default_char_signedness,
                    mock_authentication_nonce,
                })
            }

            fn write_fields(&self, bytes: &mut [u8]) {
                $(self.$name.put(&mut bytes[$offset..][..<$type as Field>::LEN]);)*
                if self.version >= PgVersion::V18 {
                    bytes[CHAR_SIGNEDNESS_OFFSET] = u8::from(self.default_char_signedness.unwrap_or(true));
                }
                bytes[nonce_offset(self.version)..][..NONCE_LEN].copy_from_slice(&self.mock_authentication_nonce);
            }
        }

        // Every field ends before the first one that moved between versions.
        $(const _: () = assert!($offset + <$type as Field>::LEN <= CHAR_SIGNEDNESS_OFFSET);)*
    };
}

control_fields! {
    /// Made up at initdb; every WAL segment carries it.
    0 system_identifier: u64,
    /// Format of this file: 1300 (14 to 16), 1700, 1800.
    8 pg_control_version: u32,
    /// Format of the catalogs, one per major version.
    12 catalog_version_no: u32,
    /// What the cluster was doing.
    16 state: DbState,
    /// When the file was last written, seconds since 1970.
    24 time: i64,
    /// Start of the last checkpoint record.
    32 checkpoint_lsn: Lsn,
    /// The CheckPoint struct of that record, raw.
    #[serde(skip)]
    40 checkpoint_copy: [u8; CHECKPOINT_LEN],
    /// Next fake LSN for unlogged relations.
    128 unlogged_lsn: u64,
    /// A standby or restore is not consistent before this.
    136 min_recovery_lsn: Option<Lsn>,
    /// PostgreSQL timeline of `min_recovery_lsn`.
    144 min_recovery_tli: TimeLineId,
    /// Redo position of the backup that is being restored.
    152 backup_start_lsn: Option<Lsn>,
    /// End of a backup taken from a standby.
    160 backup_end_lsn: Option<Lsn>,
    /// The end-of-backup record must be seen before the cluster is consistent.
    168 backup_end_required: bool,
    /// 0 minimal, 1 replica, 2 logical.
    172 wal_level: i32,
    /// `wal_log_hints`.
    176 wal_log_hints: bool,
    /// `max_connections`.
    180 max_connections: i32,
    /// `max_worker_processes`.
    184 max_worker_processes: i32,
    /// `max_wal_senders`.
    188 max_wal_senders: i32,
    /// `max_prepared_transactions`.
    192 max_prepared_xacts: i32,
    /// `max_locks_per_transaction`.
    196 max_locks_per_xact: i32,
    /// `track_commit_timestamp`.
    200 track_commit_timestamp: bool,
    /// Alignment of tuples; only 8 is served.
    204 max_align: u32,
    /// Size of a page; only 8192 is served.
    216 blcksz: u32,
    /// Blocks in one file of a relation, 131072 unless built otherwise.
    220 relseg_size: u32,
    /// Size of a WAL page; only 8192 is served.
    224 xlog_blcksz: u32,
    /// Size of a WAL segment in bytes.
    228 xlog_seg_size: u32,
    /// Width of the type `name`.
    232 name_data_len: u32,
    /// Highest number of columns of an index.
    236 index_max_keys: u32,
    /// Chunk size of TOAST tables.
    240 toast_max_chunk_size: u32,
    /// Chunk size of large objects.
    244 loblksize: u32,
    /// 8-byte values are passed by value.
    248 float8_by_val: bool,
    /// 0 without data checksums, 1 with.
    252 data_checksum_version: u32,
}

fn field<T: Field>(bytes: &[u8], offset: usize, name: &'static str) -> Result<T, ControlFileError> {
    let bytes = &bytes[offset..][..T::LEN];
    T::get(bytes).ok_or_else(|| ControlFileError::InvalidField {
        field: name,
        value: LittleEndian::read_uint(bytes, bytes.len().min(8)),
    })
}

impl ControlFile {
    /// The control file in `bytes` (the whole file, or at least its first 296 bytes), with the major version found from its two version numbers.
    pub fn decode(bytes: &[u8]) -> Result<Self, ControlFileError> {
        let (pg_control_version, catalog_version_no) = version_numbers(bytes)?;
        let version = version_of(pg_control_version, catalog_version_no)
            .ok_or(ControlFileError::UnknownVersion { pg_control_version, catalog_version_no })?;
        Self::decode_checked(version, bytes)
    }

    /// As [`decode`](Self::decode) when `PG_VERSION` tells the major version: catalog versions of betas are then served too.
    pub fn decode_as(version: PgVersion, bytes: &[u8]) -> Result<Self, ControlFileError> {
        let (pg_control_version, catalog_version_no) = version_numbers(bytes)?;
        let known = version_of(pg_control_version, catalog_version_no).unwrap_or(version);
        if pg_control_version != control_version(version) || known != version {
            return Err(ControlFileError::OtherVersion { expected: version, pg_control_version });
        }
        Self::decode_checked(version, bytes)
    }

    /// The whole file, with its CRC.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; CONTROL_FILE_LEN];
        self.write_fields(&mut bytes);
        LittleEndian::write_f64(&mut bytes[FLOAT_FORMAT_OFFSET..][..8], FLOAT_FORMAT);
        let crc_at = crc_offset(self.version);
        let crc = crc32c::crc32c(&bytes[..crc_at]);
        LittleEndian::write_u32(&mut bytes[crc_at..][..4], crc);
        bytes
    }

    /// True when the pages of the cluster carry checksums.
    pub fn data_checksums(&self) -> bool {
        self.data_checksum_version != 0
    }

    fn decode_checked(version: PgVersion, bytes: &[u8]) -> Result<Self, ControlFileError> {
        let crc_at = crc_offset(version);
        let expected = crc_at + 4;
        if bytes.len() < expected {
            return Err(ControlFileError::TooShort { expected, found: bytes.len() });
        }
        let stored = LittleEndian::read_u32(&bytes[crc_at..]);
        let computed = crc32c::crc32c(&bytes[..crc_at]);
        if stored != computed {
            return Err(ControlFileError::WrongCrc { stored, computed });
        }
        let float_bits = LittleEndian::read_u64(&bytes[FLOAT_FORMAT_OFFSET..]);
        if float_bits != FLOAT_FORMAT.to_bits() {
            return Err(ControlFileError::InvalidField { field: "float_format", value: float_bits });
        }
        let control = Self::read_fields(version, bytes)?;
        control.check_build()?;
        Ok(control)
    }

    fn check_build(&self) -> Result<(), ControlFileError> {
        let page_size = BLCKSZ as u32;
        for (field, expected, value) in [
            ("blcksz", page_size, self.blcksz),
            ("xlog_blcksz", page_size, self.xlog_blcksz),
            ("max_align", 8, self.max_align),
        ] {
            if value != expected {
                return Err(ControlFileError::UnsupportedBuild { field, expected, value });
            }
        }
        // PG: xlog_internal.h, IsValidWalSegSize: a power of two from 1 MiB to 1 GiB.
        let segment = self.xlog_seg_size;
        if !segment.is_power_of_two() || !(1 << 20..=1 << 30).contains(&segment) {
            return Err(ControlFileError::InvalidField { field: "xlog_seg_size", value: u64::from(segment) });
        }
        if self.relseg_size == 0 {
            return Err(ControlFileError::InvalidField { field: "relseg_size", value: 0 });
        }
        Ok(())
    }
}

/// `pg_control_version` that a major version writes. PG: pg_control.h, PG_CONTROL_VERSION.
pub fn control_version(version: PgVersion) -> u32 {
    match version {
        PgVersion::V14 | PgVersion::V15 | PgVersion::V16 => 1300,
        PgVersion::V17 => 1700,
        PgVersion::V18 => 1800,
    }
}

/// `catalog_version_no` of the releases of a major version. PG: src/include/catalog/catversion.h.
pub fn catalog_version(version: PgVersion) -> u32 {
    match version {
        PgVersion::V14 => 202_107_181,
        PgVersion::V15 => 202_209_061,
        PgVersion::V16 => 202_307_071,
        PgVersion::V17 => 202_406_281,
        PgVersion::V18 => 202_506_291,
    }
}

fn version_of(pg_control_version: u32, catalog_version_no: u32) -> Option<PgVersion> {
    PgVersion::ALL
        .into_iter()
        .find(|v| control_version(*v) == pg_control_version && catalog_version(*v) == catalog_version_no)
}

fn version_numbers(bytes: &[u8]) -> Result<(u32, u32), ControlFileError> {
    match bytes.get(8..16) {
        Some(numbers) => Ok((LittleEndian::read_u32(numbers), LittleEndian::read_u32(&numbers[4..]))),
        None => Err(ControlFileError::TooShort { expected: crc_offset(PgVersion::V14) + 4, found: bytes.len() }),
    }
}

const fn nonce_offset(version: PgVersion) -> usize {
    match version {
        PgVersion::V18 => CHAR_SIGNEDNESS_OFFSET + 1,
        _ => CHAR_SIGNEDNESS_OFFSET,
    }
}

/// The CRC follows the nonce, aligned to 4.
const fn crc_offset(version: PgVersion) -> usize {
    (nonce_offset(version) + NONCE_LEN).next_multiple_of(4)
}

const _: () = assert!(crc_offset(PgVersion::V17) == 288);
const _: () = assert!(crc_offset(PgVersion::V18) == 292);

#[cfg(test)]
mod tests {
    //! Files of freshly made clusters of 14 to 18 (the first 512 bytes of each), and damage to them.

    use super::*;
    use proptest::prelude::*;

    fn real(version: PgVersion) -> &'static [u8] {
        match version {
            PgVersion::V14 => include_bytes!("../tests/data/control/pg_control.14"),
            PgVersion::V15 => include_bytes!("../tests/data/control/pg_control.15"),
            PgVersion::V16 => include_bytes!("../tests/data/control/pg_control.16"),
            PgVersion::V17 => include_bytes!("../tests/data/control/pg_control.17"),
            PgVersion::V18 => include_bytes!("../tests/data/control/pg_control.18"),
        }
    }

    #[test]
    fn reads_and_rewrites_real_files_of_each_version() {
        for version in PgVersion::ALL {
            let control = ControlFile::decode(real(version)).expect("decode");
            assert_eq!(control.version, version);
            assert_eq!(control.state, DbState::ShutDown);
            assert!(control.data_checksums());
            assert_eq!((control.max_connections, control.xlog_seg_size), (100, 16 << 20));
            assert_eq!(control.default_char_signedness, (version == PgVersion::V18).then_some(true));
            assert_eq!(control.encode()[..512], *real(version));
            assert_eq!(ControlFile::decode_as(version, real(version)), Ok(control));
        }
    }

    #[test]
    fn a_file_of_another_major_version_is_refused() {
        let refused = ControlFile::decode_as(PgVersion::V16, real(PgVersion::V15));
        assert!(matches!(refused, Err(ControlFileError::OtherVersion { .. })), "{refused:?}");
        let refused = ControlFile::decode_as(PgVersion::V17, real(PgVersion::V18));
        assert!(matches!(refused, Err(ControlFileError::OtherVersion { .. })), "{refused:?}");
    }

    #[test]
    fn another_block_size_is_refused_by_name_and_value() {
        let mut control = ControlFile::decode(real(PgVersion::V15)).expect("decode");
        control.blcksz = 16_384;
        let refused = ControlFile::decode(&control.encode());
        let expected = ControlFileError::UnsupportedBuild { field: "blcksz", expected: 8192, value: 16_384 };
        assert_eq!(refused, Err(expected));
    }

    #[test]
    fn every_flipped_bit_before_the_end_of_the_crc_is_noticed() {
        for version in PgVersion::ALL {
            for byte_no in 0..crc_offset(version) + 4 {
                let mut bytes = real(version).to_vec();
                bytes[byte_no] ^= 0x10;
                assert!(ControlFile::decode(&bytes).is_err(), "{version} {byte_no}");
            }
        }
    }

    #[test]
    fn every_shorter_file_is_refused() {
        for len in 0..crc_offset(PgVersion::V18) + 4 {
            assert!(ControlFile::decode(&real(PgVersion::V18)[..len]).is_err());
        }
    }

    proptest! {
        /// Damage behind a right CRC must not panic, and what is accepted must come back the same.
        #[test]
        fn values_behind_a_right_crc_never_panic(offset in 16usize..288, value: u64) {
            let mut bytes = real(PgVersion::V15).to_vec();
            let end = (offset + 8).min(288);
            let value = value.to_le_bytes();
            bytes[offset..end].copy_from_slice(&value[..end - offset]);
            let crc = crc32c::crc32c(&bytes[..288]);
            bytes[288..292].copy_from_slice(&crc.to_le_bytes());
            if let Ok(control) = ControlFile::decode(&bytes) {
                prop_assert_eq!(ControlFile::decode(&control.encode()), Ok(control));
            }
        }
    }
}
