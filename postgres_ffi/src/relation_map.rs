//! `pg_filenode.map`: which files hold the catalogs that cannot be looked up in `pg_class`.
//!
//! One map stands in `global/` for the shared catalogs, one in each database's folder. WAL carries it whole
//! (XLOG_RELMAP_UPDATE), so its bytes are kept as they are; this reads and checks them.
//!
//! Little endian: magic i32@0, number of mappings i32@4, then (catalog OID u32, file number u32) each, then the CRC-32C
//! of everything before it. Up to 15 there is room for 62 mappings and 4 bytes of padding behind the CRC, from 16 for 64 and none.
//!
//! PG 15 and 17: src/backend/utils/cache/relmapper.c, RelMapFile.

use byteorder::{ByteOrder, LittleEndian};
use serde::Serialize;

use crate::{Oid, PgVersion};

/// PG: relmapper.c, RELMAPPER_FILEMAGIC, the same in 14 to 18.
const MAGIC: u32 = 0x0059_2717;
const HEADER_LEN: usize = 8;
const MAPPING_LEN: usize = 8;
const CRC_LEN: usize = 4;

/// A catalog and the file that holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Mapping {
    /// OID of the catalog or its index.
    pub catalog_oid: Oid,
    /// Its relfilenode.
    pub rel_number: Oid,
}

/// A checked relation map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RelationMap {
    /// In the order of the file.
    pub mappings: Vec<Mapping>,
}

/// Why a relation map was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RelationMapError {
    /// Not as long as this version's file.
    #[error("relation map of a wrong length. expected_bytes=`{expected}`, found_bytes=`{found}`")]
    WrongLength {
        /// What the version writes.
        expected: usize,
        /// What was there.
        found: usize,
    },
    /// Not a relation map.
    #[error("relation map has a wrong magic number. value=`{0:#010x}`")]
    WrongMagic(u32),
    /// More mappings than there is room for.
    #[error("relation map has too many mappings. max=`{max}`, value=`{value}`")]
    TooManyMappings {
        /// Room in the file.
        max: usize,
        /// As it stands in the file.
        value: u32,
    },
    /// The bytes were damaged.
    #[error("relation map has a wrong checksum. stored=`{stored:#010x}`, computed=`{computed:#010x}`")]
    WrongCrc {
        /// As it stands in the file.
        stored: u32,
        /// As it should be.
        computed: u32,
    },
}

/// Room for mappings in the file of a version.
const fn mappings_max(version: PgVersion) -> usize {
    match version {
        PgVersion::V14 | PgVersion::V15 => 62,
        _ => 64,
    }
}

/// Size of the file in bytes: 512 up to 15, 524 from 16.
pub const fn relation_map_len(version: PgVersion) -> usize {
    let padding = match version {
        PgVersion::V14 | PgVersion::V15 => 4,
        _ => 0,
    };
    crc_offset(version) + CRC_LEN + padding
}

const fn crc_offset(version: PgVersion) -> usize {
    HEADER_LEN + mappings_max(version) * MAPPING_LEN
}

const _: () = assert!(relation_map_len(PgVersion::V15) == 512);
const _: () = assert!(relation_map_len(PgVersion::V16) == 524);

impl RelationMap {
    /// The map in `bytes`, which are a whole file, or the whole map of a WAL record.
    pub fn decode(version: PgVersion, bytes: &[u8]) -> Result<Self, RelationMapError> {
        let expected = relation_map_len(version);
        if bytes.len() != expected {
            return Err(RelationMapError::WrongLength { expected, found: bytes.len() });
        }
        let magic = LittleEndian::read_u32(bytes);
        if magic != MAGIC {
            return Err(RelationMapError::WrongMagic(magic));
        }
        let max = mappings_max(version);
        let value = LittleEndian::read_u32(&bytes[4..]);
        let count = usize::try_from(value).unwrap_or(usize::MAX);
        if count > max {
            return Err(RelationMapError::TooManyMappings { max, value });
        }
        let crc_at = crc_offset(version);
        let stored = LittleEndian::read_u32(&bytes[crc_at..]);
        let computed = crc32c::crc32c(&bytes[..crc_at]);
        if stored != computed {
            return Err(RelationMapError::WrongCrc { stored, computed });
        }
        let mappings = bytes[HEADER_LEN..].chunks_exact(MAPPING_LEN).take(count).map(|pair| Mapping {
            catalog_oid: LittleEndian::read_u32(pair),
            rel_number: LittleEndian::read_u32(&pair[4..]),
        });
        Ok(RelationMap { mappings: mappings.collect() })
    }

    /// The file number of a mapped catalog; `None` when the map does not name it.
    pub fn rel_number_of(&self, catalog_oid: Oid) -> Option<Oid> {
        self.mappings.iter().find(|mapping| mapping.catalog_oid == catalog_oid).map(|mapping| mapping.rel_number)
    }
}

#[cfg(test)]
mod tests {
    //! Files of freshly made clusters of 14 to 18, and damage to them.

    use super::*;

    const REAL: [&[u8]; 5] = [
        include_bytes!("../tests/data/relmap/pg_filenode.map.14"),
        include_bytes!("../tests/data/relmap/pg_filenode.map.15"),
        include_bytes!("../tests/data/relmap/pg_filenode.map.16"),
        include_bytes!("../tests/data/relmap/pg_filenode.map.17"),
        include_bytes!("../tests/data/relmap/pg_filenode.map.18"),
    ];
    /// OID of pg_database, a shared mapped catalog whose file has its own OID after initdb.
    const PG_DATABASE: Oid = 1262;

    #[test]
    fn reads_real_files_of_each_version() {
        for (version, bytes) in PgVersion::ALL.into_iter().zip(REAL) {
            let map = RelationMap::decode(version, bytes).expect("decode");
            assert!((40..=64).contains(&map.mappings.len()), "{version} {}", map.mappings.len());
            assert_eq!(map.rel_number_of(PG_DATABASE), Some(PG_DATABASE));
            assert_eq!(map.rel_number_of(1), None);
        }
    }

    #[test]
    fn a_map_of_the_other_length_is_refused() {
        let refused = RelationMap::decode(PgVersion::V16, REAL[1]);
        assert_eq!(refused, Err(RelationMapError::WrongLength { expected: 524, found: 512 }));
        assert!(RelationMap::decode(PgVersion::V15, REAL[2]).is_err());
        assert!(RelationMap::decode(PgVersion::V15, &[]).is_err());
    }

    #[test]
    fn every_flipped_byte_up_to_the_crc_is_noticed() {
        for (version, real) in PgVersion::ALL.into_iter().zip(REAL) {
            for byte_no in 0..crc_offset(version) + CRC_LEN {
                let mut bytes = real.to_vec();
                bytes[byte_no] ^= 0xFF;
                assert!(RelationMap::decode(version, &bytes).is_err(), "{version} {byte_no}");
            }
        }
    }
}
