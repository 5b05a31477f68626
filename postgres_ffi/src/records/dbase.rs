//! Databases and tablespaces. PG: src/include/commands/dbcommands_xlog.h, src/include/commands/tablespace.h.

use super::fields::{Fields, Ids, RecordError};
use crate::{Oid, PgVersion};

/// A database's directory in a tablespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DatabaseDir {
    /// Tablespace.
    pub spc_oid: Oid,
    /// Database.
    pub db_oid: Oid,
}

/// What a record of the Database resource manager does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatabaseRecord<'a> {
    /// The whole directory is copied. PG 14: XLOG_DBASE_CREATE; from 15: XLOG_DBASE_CREATE_FILE_COPY.
    CreateFileCopy {
        /// The copy.
        target: DatabaseDir,
        /// What is copied, as of this record.
        template: DatabaseDir,
    },
    /// An empty directory; its blocks follow in records of their own. PG 15: XLOG_DBASE_CREATE_WAL_LOG.
    CreateWalLog {
        /// The new directory.
        target: DatabaseDir,
    },
    /// The database's directories go away. PG: XLOG_DBASE_DROP (14: 0x10, from 15: 0x20).
    Drop {
        /// The database.
        db_oid: Oid,
        /// In which tablespaces.
        tablespaces: Ids<'a>,
    },
}

impl<'a> DatabaseRecord<'a> {
    /// Reads a record; `operation` is the upper half of `info`. `Ok(None)`: this version knows no such operation.
    pub fn parse(version: PgVersion, operation: u8, main_data: &'a [u8]) -> Result<Option<Self>, RecordError> {
        match (operation, version >= PgVersion::V15) {
            (0x00, _) => {
                let mut fields = Fields::new("xl_dbase_create_file_copy_rec", main_data);
                let target = dir(&mut fields)?;
                Ok(Some(DatabaseRecord::CreateFileCopy { target, template: dir(&mut fields)? }))
            }
            (0x10, true) => {
                let mut fields = Fields::new("xl_dbase_create_wal_log_rec", main_data);
                Ok(Some(DatabaseRecord::CreateWalLog { target: dir(&mut fields)? }))
            }
            (0x10, false) | (0x20, true) => {
                let mut fields = Fields::new("xl_dbase_drop_rec", main_data);
                let (db_oid, count) = (fields.u32()?, fields.count()?);
                Ok(Some(DatabaseRecord::Drop { db_oid, tablespaces: Ids(fields.items(count, 4)?) }))
            }
            _ => Ok(None),
        }
    }
}

fn dir(fields: &mut Fields<'_>) -> Result<DatabaseDir, RecordError> {
    let db_oid = fields.u32()?;
    Ok(DatabaseDir { db_oid, spc_oid: fields.u32()? })
}

/// XLOG_TBLSPC_CREATE
pub const TABLESPACE_CREATE: u8 = 0x00;
/// XLOG_TBLSPC_DROP
pub const TABLESPACE_DROP: u8 = 0x10;

/// The tablespace that a record of the Tablespace resource manager is about: both bodies begin with it.
/// PG 14-18: xl_tblspc_create_rec, xl_tblspc_drop_rec.
pub fn parse_tablespace(main_data: &[u8]) -> Result<Oid, RecordError> {
    Fields::new("xl_tblspc_drop_rec", main_data).u32()
}

#[cfg(test)]
mod tests {
    //! Bodies made by hand; the numbers of the operations moved in 15.

    use super::*;
    use crate::records::fields::Body;

    #[test]
    fn operations_moved_in_15() {
        let drop = Body::default().u32(9).u32(2).u32(1663).u32(1700).0;
        for (version, operation) in [(PgVersion::V14, 0x10), (PgVersion::V15, 0x20), (PgVersion::V18, 0x20)] {
            let Ok(Some(DatabaseRecord::Drop { db_oid, tablespaces })) =
                DatabaseRecord::parse(version, operation, &drop)
            else {
                panic!("{version}");
            };
            assert_eq!((db_oid, tablespaces.iter().collect::<Vec<_>>()), (9, vec![1663, 1700]));
        }
        assert_eq!(DatabaseRecord::parse(PgVersion::V14, 0x20, &drop), Ok(None));
        assert_eq!(DatabaseRecord::parse(PgVersion::V15, 0x30, &drop), Ok(None));
    }

    #[test]
    fn create_names_target_then_template() {
        let body = Body::default().u32(9).u32(1663).u32(1).u32(1664).0;
        let expected = DatabaseRecord::CreateFileCopy {
            target: DatabaseDir { spc_oid: 1663, db_oid: 9 },
            template: DatabaseDir { spc_oid: 1664, db_oid: 1 },
        };
        assert_eq!(DatabaseRecord::parse(PgVersion::V14, 0x00, &body), Ok(Some(expected)));
        assert_eq!(
            DatabaseRecord::parse(PgVersion::V16, 0x10, &body),
            Ok(Some(DatabaseRecord::CreateWalLog { target: DatabaseDir { spc_oid: 1663, db_oid: 9 } }))
        );
        assert!(DatabaseRecord::parse(PgVersion::V14, 0x00, &body[..15]).is_err());
    }
}
