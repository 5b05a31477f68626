//! How far a timeline's data in RocksDB goes: the value of the versions of `Object::Watermark`.
//!
//! ```text
//! format 1, 9 bytes, big-endian
//! | format u8 = 1 | last_record_lsn u64 |
//! ```
//! Example: `01 0000000101000028` is 1/1000028. A field more is a new format number; old formats stay readable.

use keyenc::{Key, Object};
use postgres_ffi::Lsn;

use super::StoreError;

const FORMAT: u8 = 1;
const ENCODED_LEN: usize = 1 + 8;

/// All versions of the timeline at or below `last_record_lsn` are in RocksDB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Watermark {
    /// End of the last record whose versions are all in RocksDB. WAL is read again from here.
    pub last_record_lsn: Lsn,
}

/// The key of the watermark, which the flusher alone writes.
pub(super) fn watermark_key() -> Key {
    Object::Watermark.into()
}

impl Watermark {
    pub(super) fn encode(self) -> [u8; ENCODED_LEN] {
        let mut bytes = [FORMAT; ENCODED_LEN];
        bytes[1..].copy_from_slice(&self.last_record_lsn.as_u64().to_be_bytes());
        bytes
    }

    /// Errors: `Corrupt` for a length or format that this release does not know.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        match bytes {
            [FORMAT, lsn @ ..] => {
                if let Ok(lsn) = <[u8; 8]>::try_from(lsn) {
                    return Ok(Watermark { last_record_lsn: Lsn::new(u64::from_be_bytes(lsn)) });
                }
                Err(StoreError::Corrupt { detail: format!("watermark has the wrong length. length=`{}`", bytes.len()) })
            }
            [format, ..] => Err(StoreError::Corrupt {
                detail: format!("watermark has a format that this release does not know. format=`{format}`"),
            }),
            [] => Err(StoreError::Corrupt { detail: "watermark is empty".to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: the bytes stay what they are, and other bytes are refused. Method: golden bytes and hostile ones.

    use super::*;

    #[test]
    fn golden_bytes() {
        let watermark = Watermark { last_record_lsn: Lsn::new(0x1_0100_0028) };
        assert_eq!(watermark.encode(), [1, 0, 0, 0, 1, 1, 0, 0, 0x28]);
        assert_eq!(Watermark::decode(&watermark.encode()), Ok(watermark));
    }

    #[test]
    fn refuses_other_bytes() {
        let good = Watermark { last_record_lsn: Lsn::new(8) }.encode();
        let mut long = good.to_vec();
        long.push(0);
        let mut other_format = good;
        other_format[0] = 2;
        for bad in [&[][..], &good[..8], &good[..1], &long, &other_format, &[0; 9]] {
            assert!(matches!(Watermark::decode(bad), Err(StoreError::Corrupt { .. })), "{bad:?}");
        }
    }
}
