//! What is known of a timeline besides its versions: `timelines/ID/timeline.json`.
//!
//! - Written whole to a new file, with a checksum and a copy ([`sealed_file`]): a crash leaves the old or the new one, a flipped bit is an error, and mended at a start.
//! - Holds the primary's connection string, so the file is readable by its owner alone.

use std::path::{Path, PathBuf};

use keyenc::TimelineNo;
use postgres_ffi::{Lsn, PgVersion, TimeLineId};
use serde::{Deserialize, Serialize};

use super::gc::OwnRetention;
use super::id::{TenantId, TimelineId};
use crate::failpoint::Failpoint;
use crate::import::MissingSegment;
use crate::replication::ConnInfo;
use crate::sealed_file;

/// Name of the file within the timeline's directory.
pub const METADATA_FILE_NAME: &str = "timeline.json";
/// Format of the file; raised when an older server could misread it.
const FORMAT: u32 = 1;
/// Longest name of a timeline.
pub const NAME_LEN_MAX: usize = 63;

/// Everything about a timeline that is not a version of something.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimelineMetadata {
    /// Always [`FORMAT`] in memory.
    pub format: u32,
    /// The cluster that it belongs to.
    pub tenant_id: TenantId,
    /// Its own id.
    pub timeline_id: TimelineId,
    /// Its short number within the store's keys.
    pub timeline_no: u32,
    /// What people call it.
    pub name: String,
    /// Where it was branched off; none for an imported one.
    pub ancestor: Option<Ancestor>,
    /// What kind of cluster it is of.
    pub cluster: ClusterFacts,
    /// Where it was imported to; none while the import is under way.
    pub imported: Option<Imported>,
    /// Where its WAL comes from; none for one that only stands.
    pub primary: Option<Primary>,
    /// How much history it keeps, where that is not as for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<OwnRetention>,
    /// What garbage collection has done; none where it never had to do anything. An older server refuses the file for it, rightly: it would
    /// show what is not there any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gc: Option<GcDone>,
}

/// How far a timeline's history was given up. Written before the first version goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GcDone {
    /// Below it nothing can be read but what is pinned.
    pub horizon_lsn: Lsn,
    /// The horizon of the last pass that came to its end; none: the first one has not.
    pub swept_lsn: Option<Lsn>,
    /// The pins below it that the pass kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub swept_pins: Vec<Lsn>,
}

/// The point at which a branch leaves its ancestor.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ancestor {
    /// The timeline it leaves.
    pub timeline_id: TimelineId,
    /// Versions at or below it are the ancestor's.
    pub lsn: Lsn,
}

/// What never changes in the life of a cluster, or only by a record that says so.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterFacts {
    /// Major version.
    pub pg_version: PgVersion,
    /// `system_identifier` of the control file, as text since JSON numbers end at 2^53.
    #[serde(with = "decimal")]
    pub system_identifier: u64,
    /// Size of a WAL segment in bytes.
    pub wal_segment_bytes: u32,
    /// Pages carry checksums.
    pub data_checksums: bool,
    /// PostgreSQL's own timeline id at import.
    pub pg_timeline_id: TimeLineId,
}

/// The import that a timeline began with.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Imported {
    /// All imported versions carry this LSN; WAL from here on is ingested over them.
    pub start_lsn: Lsn,
    /// Nothing below it can be read: pages of a running primary's backup were copied while they changed.
    pub first_readable_lsn: Lsn,
    /// Files that the backup lacks. There their relations must be gone, or all of them have come with WAL.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing_segments: Vec<MissingSegment>,
}

impl Imported {
    /// An import of all files.
    pub(crate) fn at(start_lsn: Lsn, first_readable_lsn: Lsn) -> Self {
        Imported { start_lsn, first_readable_lsn, missing_segments: Vec::new() }
    }
}

/// The primary that a timeline follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Primary {
    /// libpq connection string; may hold a password.
    pub conninfo: String,
    /// Replication slot on the primary.
    pub slot: String,
}

impl Primary {
    /// User, hosts and ports, for people: no password, and not a connection string.
    pub fn server(&self) -> String {
        self.conninfo.parse::<ConnInfo>().map_or_else(|_| "the primary".to_owned(), |conninfo| conninfo.to_string())
    }
}

mod decimal {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// Reading or writing failed.
    #[error("cannot {doing} the timeline's metadata. path=`{path}`")]
    Io {
        /// `read` or `write`.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The content is not ours.
    #[error("the timeline's metadata is damaged. path=`{path}`: {message}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// Not a name that a timeline can have.
    #[error(
        "not a name for a timeline, expected 1 to {NAME_LEN_MAX} letters, digits, `_`, `-`, `.` or `/`, the first a letter or digit, and not 32 hexadecimal digits. value=`{value}`"
    )]
    Name {
        /// The text found.
        value: String,
    },
}

impl TimelineMetadata {
    /// The metadata in `dir`. Errors: unreadable, damaged, or of a later format.
    pub fn load(dir: &Path) -> Result<Self, MetadataError> {
        let path = dir.join(METADATA_FILE_NAME);
        let file = std::fs::read(&path);
        Self::of_file(path, file)
    }

    /// As [`TimelineMetadata::load`], from the file's copy if the file is damaged.
    pub fn load_either(dir: &Path) -> Result<Self, MetadataError> {
        let path = dir.join(METADATA_FILE_NAME);
        let file = sealed_file::copy::read_either::<Self>(&path);
        Self::of_file(path, file)
    }

    /// As [`TimelineMetadata::load`], for a server that starts: first a damaged file is replaced by its copy, or the copy is made. Errors: cannot be written, too.
    pub(crate) fn load_settled(dir: &Path) -> Result<Self, MetadataError> {
        let path = dir.join(METADATA_FILE_NAME);
        match sealed_file::copy::settle::<Self>(&path) {
            Ok(file) => Self::of_file(path, file),
            Err(source) => Err(MetadataError::Io { doing: "write", path, source }),
        }
    }

    fn of_file(path: PathBuf, file: std::io::Result<Vec<u8>>) -> Result<Self, MetadataError> {
        let bytes = file.map_err(|source| MetadataError::Io { doing: "read", path: path.clone(), source })?;
        let damaged = |message| MetadataError::Damaged { path: path.clone(), message };
        let metadata: TimelineMetadata = sealed_file::parse(&bytes).map_err(damaged)?;
        if metadata.format != FORMAT {
            return Err(damaged(format!("format {} is not {FORMAT}", metadata.format)));
        }
        check_name(&metadata.name).map_err(|error| damaged(error.to_string()))?;
        Ok(metadata)
    }

    /// Replaces the metadata in `dir`; durable when it returns.
    pub fn save(&self, dir: &Path) -> Result<(), MetadataError> {
        let path = dir.join(METADATA_FILE_NAME);
        let points = [Failpoint::MetadataBeforeRename, Failpoint::MetadataRenamed];
        sealed_file::write(&path, self, points).map_err(|source| MetadataError::Io { doing: "write", path, source })?;
        Failpoint::MetadataSaved.pass();
        Ok(())
    }

    /// True if both would be written as the same file.
    pub(crate) fn says_the_same(&self, other: &TimelineMetadata) -> bool {
        serde_json::to_value(self).ok() == serde_json::to_value(other).ok()
    }

    /// The number within keys.
    pub fn timeline_no(&self) -> TimelineNo {
        TimelineNo(self.timeline_no)
    }

    /// The format that this server writes.
    pub const fn format() -> u32 {
        FORMAT
    }
}

/// Refuses names that could be taken for an id or that do not fit a command line.
pub fn check_name(name: &str) -> Result<(), MetadataError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
    let is_name = (1..=NAME_LEN_MAX).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(allowed)
        && name.parse::<TimelineId>().is_err();
    if is_name { Ok(()) } else { Err(MetadataError::Name { value: name.chars().take(2 * NAME_LEN_MAX).collect() }) }
}

#[cfg(test)]
mod tests {
    //! Goal: what is saved loads, damage is named. Method: real files.

    use super::*;

    fn metadata() -> TimelineMetadata {
        TimelineMetadata {
            format: FORMAT,
            tenant_id: TenantId::generate(),
            timeline_id: TimelineId::generate(),
            timeline_no: 1,
            name: "main".to_string(),
            ancestor: None,
            cluster: ClusterFacts {
                pg_version: PgVersion::V17,
                system_identifier: u64::MAX,
                wal_segment_bytes: 16 << 20,
                data_checksums: true,
                pg_timeline_id: 1,
            },
            imported: None,
            primary: Some(Primary { conninfo: "host=127.0.0.1".to_string(), slot: "pageserver".to_string() }),
            retention: Some(OwnRetention { time: Some("7d".parse().unwrap()), wal: None }),
            gc: Some(GcDone { horizon_lsn: Lsn::new(9), swept_lsn: None, swept_pins: vec![Lsn::new(7)] }),
        }
    }

    #[test]
    fn saved_metadata_loads_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let saved = metadata();
        saved.save(dir.path()).unwrap();
        saved.save(dir.path()).unwrap();
        assert_eq!(format!("{:?}", TimelineMetadata::load(dir.path()).unwrap()), format!("{saved:?}"));
        let mode = std::os::unix::fs::MetadataExt::mode(&dir.path().join(METADATA_FILE_NAME).metadata().unwrap());
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn damage_and_later_formats_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(TimelineMetadata::load(dir.path()), Err(MetadataError::Io { .. })));
        let mut later = metadata();
        later.format = FORMAT + 1;
        later.save(dir.path()).unwrap();
        assert!(TimelineMetadata::load(dir.path()).unwrap_err().to_string().contains("format 2"));
        std::fs::write(dir.path().join(METADATA_FILE_NAME), b"{").unwrap();
        assert!(matches!(TimelineMetadata::load(dir.path()), Err(MetadataError::Damaged { .. })));
    }

    #[test]
    fn names_are_plain_and_cannot_be_ids() {
        for good in ["main", "pr/17", "a.b-c_d", "7"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "-x", "a b", "a'b", "ü", &"x".repeat(64), &"0".repeat(32)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
