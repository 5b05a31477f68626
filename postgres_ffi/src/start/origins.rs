//! `pg_logical/replorigin_checkpoint`: how far each replication origin was replayed.
//!
//! Layout, little endian: magic u32; per origin: id u16, 6 bytes of padding, position at the origin u64; CRC-32C of all that u32.
//! PG 14-18: src/backend/replication/logical/origin.c, CheckPointReplicationOrigin, ReplicationStateOnDisk.

use crate::Lsn;

/// Where the file stands.
pub const PATH: &str = "pg_logical/replorigin_checkpoint";

/// PG: origin.c, REPLICATION_STATE_MAGIC.
const MAGIC: u32 = 0x1257_DADE;

/// The file for these origins, each with its position at the origin.
pub fn replorigin_checkpoint(origins: impl IntoIterator<Item = (u16, Lsn)>) -> Vec<u8> {
    let mut file = MAGIC.to_le_bytes().to_vec();
    for (origin_id, remote_lsn) in origins {
        file.extend(origin_id.to_le_bytes());
        file.extend([0; 6]);
        file.extend(remote_lsn.as_u64().to_le_bytes());
    }
    let crc = crc32c::crc32c(&file);
    file.extend(crc.to_le_bytes());
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_stand_as_postgresql_writes_them() {
        let file = replorigin_checkpoint([(1, Lsn::new(0xABCD)), (258, Lsn::new(1 << 32))]);
        assert_eq!(file[..4], [0xDE, 0xDA, 0x57, 0x12]);
        assert_eq!(file[4..20], [1, 0, 0, 0, 0, 0, 0, 0, 0xCD, 0xAB, 0, 0, 0, 0, 0, 0]);
        assert_eq!(file[20..36], [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(file[36..], crc32c::crc32c(&file[..36]).to_le_bytes());
        assert_eq!(replorigin_checkpoint([]).len(), 8);
    }
}
