//! What is known of a timeline besides its versions: `timelines/ID/timeline.json`.
//!
//! - Written whole to a new file, fsynced and renamed: a crash leaves the old or the new one.
//! - Holds the primary's connection string, so the file is readable by its owner alone.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use keyenc::TimelineNo;
use postgres_ffi::{Lsn, PgVersion, TimeLineId};
use serde::{Deserialize, Serialize};

use super::id::{TenantId, TimelineId};
use crate::failpoint::Failpoint;

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
}

/// The primary that a timeline follows.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Primary {
    /// libpq connection string; may hold a password.
    pub conninfo: String,
    /// Replication slot on the primary.
    pub slot: String,
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
        let bytes =
            std::fs::read(&path).map_err(|source| MetadataError::Io { doing: "read", path: path.clone(), source })?;
        let damaged = |message| MetadataError::Damaged { path: path.clone(), message };
        let metadata: TimelineMetadata = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if metadata.format != FORMAT {
            return Err(damaged(format!("format {} is not {FORMAT}", metadata.format)));
        }
        check_name(&metadata.name).map_err(|error| damaged(error.to_string()))?;
        Ok(metadata)
    }

    /// Replaces the metadata in `dir`; durable when it returns.
    pub fn save(&self, dir: &Path) -> Result<(), MetadataError> {
        let path = dir.join(METADATA_FILE_NAME);
        let write = || {
            let new = dir.join(format!("{METADATA_FILE_NAME}.new"));
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.sync_all()?;
            Failpoint::MetadataBeforeRename.pass();
            std::fs::rename(&new, &path)?;
            Failpoint::MetadataRenamed.pass();
            File::open(dir)?.sync_all()?;
            Failpoint::MetadataSaved.pass();
            Ok(())
        };
        write().map_err(|source| MetadataError::Io { doing: "write", path: path.clone(), source })
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
