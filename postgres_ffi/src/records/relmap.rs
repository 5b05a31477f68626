//! Relation maps. PG: src/include/utils/relmapper.h, src/backend/utils/cache/relmapper.c.

use super::fields::{Fields, RecordError};
use crate::{Oid, PgVersion};

/// XLOG_RELMAP_UPDATE
pub const UPDATE: u8 = 0x00;

/// Size of `pg_filenode.map`. PG 14, 15: 62 mappings and padding; from 16: 64 mappings (relmapper.c, RelMapFile).
pub const fn file_len(version: PgVersion) -> usize {
    if version.major() >= 16 { 524 } else { 512 }
}

/// Body of UPDATE: the whole new file. PG 14-18: xl_relmap_update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelmapUpdate<'a> {
    /// Tablespace of the database, `pg_global` for the shared map.
    pub spc_oid: Oid,
    /// Database, 0 for the shared map.
    pub db_oid: Oid,
    /// The file, with magic and CRC.
    pub file: &'a [u8],
}

impl<'a> RelmapUpdate<'a> {
    /// Reads the body. Errors also when the file has not the size of this version's.
    pub fn parse(version: PgVersion, main_data: &'a [u8]) -> Result<Self, RecordError> {
        let mut fields = Fields::new("xl_relmap_update", main_data);
        let (db_oid, spc_oid, len) = (fields.u32()?, fields.u32()?, fields.i32()?);
        if usize::try_from(len).ok() != Some(file_len(version)) {
            return Err(fields.impossible("nbytes", len.into()));
        }
        Ok(RelmapUpdate { spc_oid, db_oid, file: fields.take(file_len(version))? })
    }
}

#[cfg(test)]
mod tests {
    //! Bodies made by hand.

    use super::*;
    use crate::records::fields::Body;

    #[test]
    fn the_file_grew_in_16() {
        for (version, len) in
            [(PgVersion::V14, 512), (PgVersion::V15, 512), (PgVersion::V16, 524), (PgVersion::V18, 524)]
        {
            let body = Body::default().u32(5).u32(1663).u32(len as u32).bytes(&vec![7; len]).0;
            let update = RelmapUpdate::parse(version, &body).unwrap();
            assert_eq!((update.spc_oid, update.db_oid, update.file.len()), (1663, 5, len));
            assert!(RelmapUpdate::parse(version, &body[..body.len() - 1]).is_err());
        }
        let body = Body::default().u32(5).u32(1663).u32(512).bytes(&[7; 512]).0;
        assert!(RelmapUpdate::parse(PgVersion::V16, &body).is_err());
    }
}
