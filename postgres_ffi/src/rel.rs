//! Addresses of what a cluster consists of: relations and their forks, blocks, SLRUs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Object id. PG: src/include/postgres_ext.h, Oid.
pub type Oid = u32;

/// Number of a block within a relation fork (or of a page within an SLRU), from 0.
/// PG: src/include/storage/block.h; the highest legal one is 0xFFFFFFFE.
pub type BlockNumber = u32;

/// OID of `pg_default`. PG: src/include/catalog/pg_tablespace.dat.
pub const DEFAULTTABLESPACE_OID: Oid = 1663;
/// OID of `pg_global`. PG: src/include/catalog/pg_tablespace.dat.
pub const GLOBALTABLESPACE_OID: Oid = 1664;

/// A relation's files: tablespace, database, relfilenode. All forks share it.
/// PG: src/include/storage/relfilenode.h (RelFileNode, up to 15), relfilelocator.h (RelFileLocator, from 16).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RelTag {
    /// Tablespace.
    pub spc_oid: Oid,
    /// Database, 0 for shared relations.
    pub db_oid: Oid,
    /// Relfilenode (from 16: relNumber).
    pub rel_number: Oid,
}

/// The forks of a relation. PG: src/include/common/relpath.h, ForkNumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum ForkNumber {
    /// The data.
    Main = 0,
    /// Free space map.
    Fsm = 1,
    /// Visibility map.
    Vm = 2,
    /// What an unlogged relation is reset to after a crash.
    Init = 3,
}

impl ForkNumber {
    /// Every fork, in PostgreSQL's order.
    pub const ALL: [ForkNumber; 4] = [Self::Main, Self::Fsm, Self::Vm, Self::Init];

    /// The fork with PostgreSQL's number `number`; `None` if there is none.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// The suffix of its file names: empty, `_fsm`, `_vm`, `_init`.
    pub fn file_suffix(self) -> &'static str {
        match self {
            Self::Main => "",
            Self::Fsm => "_fsm",
            Self::Vm => "_vm",
            Self::Init => "_init",
        }
    }

    /// `main`, `fsm`, `vm` or `init`, as PostgreSQL's own functions name them.
    pub fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Fsm => "fsm",
            Self::Vm => "vm",
            Self::Init => "init",
        }
    }
}

impl fmt::Display for ForkNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text names no fork.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown fork, expected main, fsm, vm or init. value=`{value}`")]
pub struct UnknownFork {
    value: String,
}

impl FromStr for ForkNumber {
    type Err = UnknownFork;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|fork| fork.name() == text)
            .ok_or_else(|| UnknownFork { value: text.chars().take(64).collect() })
    }
}

impl fmt::Display for RelTag {
    /// `spc/db/rel`, as pg_waldump prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.spc_oid, self.db_oid, self.rel_number)
    }
}

/// The text is not a relation's address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a relation address, expected TABLESPACE/DATABASE/RELFILENODE like 1663/5/16384. value=`{value}`")]
pub struct RelTagParseError {
    value: String,
}

impl FromStr for RelTag {
    type Err = RelTagParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || RelTagParseError { value: text.chars().take(64).collect() };
        let parts: Vec<Oid> =
            text.split('/').map(|part| part.parse()).collect::<Result<_, _>>().map_err(|_| refused())?;
        let [spc_oid, db_oid, rel_number] = parts[..] else { return Err(refused()) };
        Ok(RelTag { spc_oid, db_oid, rel_number })
    }
}

/// The simple LRU areas whose pages WAL changes. The numbers are those of the pagestream protocol, then our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum SlruKind {
    /// Commit status of transactions, `pg_xact`.
    Clog = 0,
    /// `pg_multixact/members`.
    MultiXactMembers = 1,
    /// `pg_multixact/offsets`.
    MultiXactOffsets = 2,
    /// Commit timestamps, `pg_commit_ts`.
    CommitTs = 3,
}

/// Pages in one SLRU segment file. PG: src/include/access/slru.h, SLRU_PAGES_PER_SEGMENT.
pub const SLRU_PAGES_PER_SEGMENT: u32 = 32;

impl SlruKind {
    /// Every kind.
    pub const ALL: [SlruKind; 4] = [Self::Clog, Self::MultiXactMembers, Self::MultiXactOffsets, Self::CommitTs];

    /// The kind with the number `number`; `None` if there is none.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Its folder in the data directory.
    pub fn directory(self) -> &'static str {
        match self {
            Self::Clog => "pg_xact",
            Self::MultiXactMembers => "pg_multixact/members",
            Self::MultiXactOffsets => "pg_multixact/offsets",
            Self::CommitTs => "pg_commit_ts",
        }
    }
}

impl fmt::Display for SlruKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.directory())
    }
}
