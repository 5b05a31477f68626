//! Whole objects by class, as `OBJECT LIST` names and shows them.
//!
//! - Only what is stored under its own address and is no page and no size: those have lists of their own (`RELATION`, `SLRU`, `PAGE`).
//! - The watermark is the store's own and is not shown; commit times have `SHOW TIME` and `SHOW LSN`, kept sizes `SHOW SIZES`.

use std::fmt;
use std::str::FromStr;

use keyenc::Object;

/// A class of objects that are given out whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ObjectClass {
    /// `global/pg_control`.
    ControlFile,
    /// The CheckPoint struct.
    Checkpoint,
    /// Directories of databases.
    Database,
    /// `pg_filenode.map` files.
    RelationMap,
    /// State files of prepared transactions.
    TwoPhase,
    /// Progress of replication origins.
    ReplicationOrigin,
}

/// The text is not a class of objects.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a class of objects, expected control_file, checkpoint, database, relation_map, two_phase or replication_origin. value=`{value}`"
)]
pub struct ObjectClassParseError {
    value: String,
}

impl ObjectClass {
    /// Every class, in the order of their keys.
    pub const ALL: [ObjectClass; 6] = [
        ObjectClass::ControlFile,
        ObjectClass::Checkpoint,
        ObjectClass::Database,
        ObjectClass::RelationMap,
        ObjectClass::TwoPhase,
        ObjectClass::ReplicationOrigin,
    ];

    /// As commands name it.
    pub fn name(self) -> &'static str {
        match self {
            ObjectClass::ControlFile => "control_file",
            ObjectClass::Checkpoint => "checkpoint",
            ObjectClass::Database => "database",
            ObjectClass::RelationMap => "relation_map",
            ObjectClass::TwoPhase => "two_phase",
            ObjectClass::ReplicationOrigin => "replication_origin",
        }
    }

    /// An object of the class, with its fields 0.
    pub fn template(self) -> Object {
        match self {
            ObjectClass::ControlFile => Object::ControlFile,
            ObjectClass::Checkpoint => Object::Checkpoint,
            ObjectClass::Database => Object::Database { spc_oid: 0, db_oid: 0 },
            ObjectClass::RelationMap => Object::RelationMap { spc_oid: 0, db_oid: 0 },
            ObjectClass::TwoPhase => Object::TwoPhase { xid: 0 },
            ObjectClass::ReplicationOrigin => Object::ReplicationOrigin { origin_id: 0 },
        }
    }
}

impl fmt::Display for ObjectClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ObjectClass {
    type Err = ObjectClassParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = ObjectClass::ALL.into_iter().find(|class| class.name().eq_ignore_ascii_case(text));
        found.ok_or_else(|| ObjectClassParseError { value: text.chars().take(64).collect() })
    }
}

/// Which one of its class: `1663/5` (tablespace and database), the full transaction id, the origin's number. `None`: there is but one.
pub fn address(object: Object) -> Option<String> {
    match object {
        Object::Database { spc_oid, db_oid } | Object::RelationMap { spc_oid, db_oid } => {
            Some(format!("{spc_oid}/{db_oid}"))
        }
        Object::TwoPhase { xid } => Some(xid.to_string()),
        Object::ReplicationOrigin { origin_id } => Some(origin_id.to_string()),
        Object::Watermark
        | Object::ControlFile
        | Object::Checkpoint
        | Object::CommitTime
        | Object::DatabaseSize { .. }
        | Object::RelationSize { .. }
        | Object::SlruSegment { .. }
        | Object::SlruPage { .. }
        | Object::SlruSize { .. }
        | Object::RelationBlock { .. } => None,
    }
}
