//! A request that failed, with all that is needed to try it again: what `pagectl redo replay FILE` reads.
//!
//! ```text
//! magic "PGREDOIN" | u32 format 1 | u32 major version | u8 wal_log_hints | 3 zeroes | u32 tablespace | u32 database
//! | u32 relation | u32 block | u8 fork | u8 1 if there is a base | 2 zeroes
//! | u32 length, control file | u32 length, message | base (8192) if there is one
//! | u32 number of records, each: u64 end LSN, u32 length, bytes
//! ```
//! All numbers little-endian. A file is input like any other: nothing in it is believed.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use byteorder::{ByteOrder, LittleEndian};
use bytes::{Buf, Bytes};
use postgres_ffi::{BLCKSZ, ForkNumber, Lsn, PgVersion, RelTag};

use crate::redo::EngineRequest;

const MAGIC: &[u8; 8] = b"PGREDOIN";
const FORMAT: u32 = 1;
/// A longer file is none of ours: a request is at most 64 MiB.
const FILE_BYTES_MAX: u64 = 80 * 1024 * 1024;
const FILE_SUFFIX: &str = ".redo-input";

/// A failed request and the cluster that it is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedInput {
    /// The cluster's version.
    pub version: PgVersion,
    /// The cluster's `wal_log_hints`.
    pub wal_log_hints: bool,
    /// The cluster's control file; empty if the engine was no PostgreSQL.
    pub pg_control: Bytes,
    /// How it failed.
    pub message: String,
    /// The request.
    pub request: EngineRequest,
}

/// The file is no failed input.
#[derive(Debug, thiserror::Error)]
pub enum FailedInputError {
    /// It cannot be read.
    #[error("cannot read the file")]
    Io(#[from] io::Error),
    /// It is too long.
    #[error("file is too long for a redo input. length=`{0}`")]
    TooLong(u64),
    /// It ends too early, or goes on behind its end.
    #[error("file is not as long as it says")]
    Length,
    /// A field has an impossible value.
    #[error("not a redo input, or of another format. field=`{0}`")]
    Field(&'static str),
}

impl FailedInput {
    /// The bytes of the file.
    pub fn encode(&self) -> Vec<u8> {
        let request = &self.request;
        let mut out = MAGIC.to_vec();
        put_u32(&mut out, FORMAT);
        put_u32(&mut out, self.version.major());
        out.extend_from_slice(&[self.wal_log_hints.into(), 0, 0, 0]);
        for number in [request.rel.spc_oid, request.rel.db_oid, request.rel.rel_number, request.block_no] {
            put_u32(&mut out, number);
        }
        out.extend_from_slice(&[request.fork as u8, request.base.is_some().into(), 0, 0]);
        put_bytes(&mut out, &self.pg_control);
        put_bytes(&mut out, self.message.as_bytes());
        if let Some(base) = &request.base {
            out.extend_from_slice(base);
        }
        put_u32(&mut out, request.records.len() as u32);
        for (end_lsn, record) in &request.records {
            out.extend_from_slice(&end_lsn.as_u64().to_le_bytes());
            put_bytes(&mut out, record);
        }
        out
    }

    /// The input whose file has these bytes.
    pub fn decode(mut bytes: Bytes) -> Result<Self, FailedInputError> {
        let input = &mut bytes;
        if &take(input, 8)?[..] != MAGIC {
            return Err(FailedInputError::Field("magic"));
        }
        if take_u32(input)? != FORMAT {
            return Err(FailedInputError::Field("format"));
        }
        let version = PgVersion::try_from(take_u32(input)?).map_err(|_| FailedInputError::Field("version"))?;
        let wal_log_hints = take_flag(input, "wal_log_hints")?;
        take(input, 3)?;
        let rel = RelTag { spc_oid: take_u32(input)?, db_oid: take_u32(input)?, rel_number: take_u32(input)? };
        let block_no = take_u32(input)?;
        let fork = ForkNumber::from_number(take(input, 1)?[0]).ok_or(FailedInputError::Field("fork"))?;
        let has_base = take_flag(input, "base")?;
        take(input, 2)?;
        let pg_control = take_bytes(input)?;
        let message = String::from_utf8_lossy(&take_bytes(input)?).into_owned();
        let base = if has_base { Some(take(input, BLCKSZ)?) } else { None };
        let record_count = take_u32(input)?;
        let mut records = Vec::new(); // Grows with what is there, not with what is claimed.
        for _ in 0..record_count {
            let end_lsn = Lsn::new(LittleEndian::read_u64(&take(input, 8)?));
            records.push((end_lsn, take_bytes(input)?));
        }
        if !input.is_empty() {
            return Err(FailedInputError::Length);
        }
        let request = EngineRequest { rel, fork, block_no, base, records };
        Ok(FailedInput { version, wal_log_hints, pg_control, message, request })
    }

    /// Reads the file at `path`.
    pub fn read(path: &Path) -> Result<Self, FailedInputError> {
        let length = fs::metadata(path)?.len();
        if length > FILE_BYTES_MAX {
            return Err(FailedInputError::TooLong(length));
        }
        Self::decode(fs::read(path)?.into())
    }
}

/// A directory that takes a bounded number of failed inputs. Once it is full, the first ones stay: they are the ones that tell.
#[derive(Debug)]
pub struct FailedInputs {
    dir: PathBuf,
    left: AtomicUsize,
}

impl FailedInputs {
    /// Takes inputs until `dir` holds `count_max` of them, those from earlier runs included.
    pub fn new(dir: PathBuf, count_max: usize) -> Self {
        let is_input = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().ends_with(FILE_SUFFIX);
        let present = fs::read_dir(&dir).map_or(0, |entries| entries.flatten().filter(is_input).count());
        FailedInputs { dir, left: AtomicUsize::new(count_max.saturating_sub(present)) }
    }

    /// Saves `input`; returns where. `None`: no room, or it failed, which is logged.
    pub fn save(&self, input: &FailedInput) -> Option<PathBuf> {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).ok()?;
        match self.write(input) {
            Ok(path) => Some(path),
            Err(error) => {
                tracing::warn!(dir = %self.dir.display(), %error, "failed redo input cannot be saved");
                None
            }
        }
    }

    fn write(&self, input: &FailedInput) -> io::Result<PathBuf> {
        fs::create_dir_all(&self.dir)?;
        let mut file = tempfile::Builder::new().prefix("failed-").suffix(FILE_SUFFIX).tempfile_in(&self.dir)?;
        file.write_all(&input.encode())?;
        let (_, path) = file.keep().map_err(|error| error.error)?;
        Ok(path)
    }
}

fn put_u32(out: &mut Vec<u8>, number: u32) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_u32(out, bytes.len() as u32); // Each part of a request is shorter than 4 GiB.
    out.extend_from_slice(bytes);
}

fn take(input: &mut Bytes, len: usize) -> Result<Bytes, FailedInputError> {
    if input.len() < len { Err(FailedInputError::Length) } else { Ok(input.split_to(len)) }
}

fn take_u32(input: &mut Bytes) -> Result<u32, FailedInputError> {
    input.try_get_u32_le().map_err(|_| FailedInputError::Length)
}

fn take_flag(input: &mut Bytes, field: &'static str) -> Result<bool, FailedInputError> {
    match input.try_get_u8().map_err(|_| FailedInputError::Length)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(FailedInputError::Field(field)),
    }
}

fn take_bytes(input: &mut Bytes) -> Result<Bytes, FailedInputError> {
    let len = take_u32(input)? as usize;
    take(input, len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input() -> FailedInput {
        FailedInput {
            version: PgVersion::V16,
            wal_log_hints: true,
            pg_control: Bytes::from_static(b"control"),
            message: "why".to_owned(),
            request: EngineRequest {
                rel: RelTag { spc_oid: 1663, db_oid: 5, rel_number: 16384 },
                fork: ForkNumber::Init,
                block_no: 3,
                base: Some(vec![7; BLCKSZ].into()),
                records: vec![(Lsn::new(9), Bytes::from_static(b"one")), (Lsn::new(u64::MAX), Bytes::from_static(b""))],
            },
        }
    }

    #[test]
    fn encodes_and_decodes() {
        let input = input();
        assert_eq!(FailedInput::decode(input.encode().into()).unwrap(), input);
    }

    #[test]
    fn damaged_file_is_an_error() {
        let whole = input().encode();
        for len in 0..whole.len() {
            assert!(FailedInput::decode(Bytes::copy_from_slice(&whole[..len])).is_err(), "{len}");
        }
        let mut longer = whole.clone();
        longer.push(0);
        assert!(matches!(FailedInput::decode(longer.into()), Err(FailedInputError::Length)));
        for (at, value) in [(0, 0), (8, 9), (12, 9), (16, 2), (36, 4), (37, 2), (40, 255), (43, 255)] {
            let mut bad = whole.clone();
            bad[at] = value;
            assert!(FailedInput::decode(bad.into()).is_err(), "{at}");
        }
    }

    #[test]
    fn directory_takes_a_bounded_number() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let inputs = FailedInputs::new(dir.path().join("failed"), 3);
            for _ in 0..5 {
                inputs.save(&input());
            }
        }
        let files: Vec<_> = fs::read_dir(dir.path().join("failed")).unwrap().map(|f| f.unwrap().path()).collect();
        assert_eq!(files.len(), 3);
        assert_eq!(FailedInput::read(&files[0]).unwrap(), input());
    }
}
