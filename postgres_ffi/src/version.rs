//! The PostgreSQL major versions that we speak.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A supported PostgreSQL major version. Ordered by age, so `version >= PgVersion::V16` reads as it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub enum PgVersion {
    /// PostgreSQL 14
    V14,
    /// PostgreSQL 15
    V15,
    /// PostgreSQL 16
    V16,
    /// PostgreSQL 17
    V17,
    /// PostgreSQL 18
    V18,
}

impl PgVersion {
    /// Every supported version, oldest first.
    pub const ALL: [PgVersion; 5] = [Self::V14, Self::V15, Self::V16, Self::V17, Self::V18];

    /// The major version number, 14 to 18.
    pub const fn major(self) -> u32 {
        match self {
            Self::V14 => 14,
            Self::V15 => 15,
            Self::V16 => 16,
            Self::V17 => 17,
            Self::V18 => 18,
        }
    }

    /// The magic number in each WAL page header. PG: src/include/access/xlog_internal.h, XLOG_PAGE_MAGIC.
    pub const fn xlog_page_magic(self) -> u16 {
        match self {
            Self::V14 => 0xD10D,
            Self::V15 => 0xD110,
            Self::V16 => 0xD113,
            Self::V17 => 0xD116,
            Self::V18 => 0xD118,
        }
    }

    /// The version whose WAL pages carry `magic`.
    pub fn from_xlog_page_magic(magic: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.xlog_page_magic() == magic)
    }
}

/// The number is not a major version that we speak.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unsupported PostgreSQL major version, expected 14 to 18. value=`{value}`")]
pub struct UnsupportedVersion {
    value: String,
}

impl TryFrom<u32> for PgVersion {
    type Error = UnsupportedVersion;

    fn try_from(major: u32) -> Result<Self, Self::Error> {
        Self::ALL
            .into_iter()
            .find(|version| version.major() == major)
            .ok_or_else(|| UnsupportedVersion { value: major.to_string() })
    }
}

impl From<PgVersion> for u32 {
    fn from(version: PgVersion) -> Self {
        version.major()
    }
}

impl FromStr for PgVersion {
    type Err = UnsupportedVersion;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || UnsupportedVersion { value: text.chars().take(64).collect() };
        text.trim().parse::<u32>().map_err(|_| refused())?.try_into()
    }
}

impl fmt::Display for PgVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.major())
    }
}
