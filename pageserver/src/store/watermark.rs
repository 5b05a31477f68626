//! How far a timeline's data in RocksDB goes, and what its chains weigh there: the value of the versions of `Object::Watermark`.
//!
//! ```text
//! format 2, 11 bytes and 20 for each chain that is listed, big-endian
//! | format u8 = 2 | last_record_lsn u64 | floor u16 | (key 18 bytes | weight u16) ... |
//! ```
//! A chain that is not listed weighs no more than the floor. Example: `02 0000000101000028 0003` is 1/1000028, no chain weighs more than 3. A field more is a new
//! format number; old formats stay readable. Format 1 ends behind the LSN: nothing is known of chains.

use bytes::{BufMut, Bytes, BytesMut};
use keyenc::{KEY_LEN, Key, Object};
use postgres_ffi::Lsn;

use super::StoreError;
use super::carried::Carried;
use super::chain_weight::Weight;

/// Without chains.
const FORMAT_1: u8 = 1;
const FORMAT_2: u8 = 2;
const CHAIN_LEN: usize = KEY_LEN + size_of::<Weight>();

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
    /// With the chains that weigh most; `None`: nothing is known of chains.
    pub(super) fn encode(self, carried: Option<&Carried>) -> Bytes {
        let Some(carried) = carried else {
            let mut bytes = BytesMut::from(&[FORMAT_1][..]);
            bytes.put_u64(self.last_record_lsn.as_u64());
            return bytes.freeze();
        };
        let (floor, chains) = carried.heaviest();
        let mut bytes = BytesMut::with_capacity(1 + 8 + size_of::<Weight>() + chains.len() * CHAIN_LEN);
        bytes.put_u8(FORMAT_2);
        bytes.put_u64(self.last_record_lsn.as_u64());
        bytes.put_u16(floor);
        for (key, weight) in chains {
            bytes.put_slice(key.as_bytes());
            bytes.put_u16(weight);
        }
        bytes.freeze()
    }

    /// Errors: `Corrupt` for a length or format that this release does not know.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        Self::decode_with_weights(bytes).map(|(watermark, _)| watermark)
    }

    /// With what is known of chains; `None`: nothing. Errors: as [`Watermark::decode`].
    pub(super) fn decode_with_weights(bytes: &[u8]) -> Result<(Self, Option<Carried>), StoreError> {
        let bad_length =
            || StoreError::Corrupt { detail: format!("watermark has the wrong length. length=`{}`", bytes.len()) };
        let (format, rest) =
            bytes.split_first().ok_or_else(|| StoreError::Corrupt { detail: "watermark is empty".to_owned() })?;
        if ![FORMAT_1, FORMAT_2].contains(format) {
            let detail = format!("watermark has a format that this release does not know. format=`{format}`");
            return Err(StoreError::Corrupt { detail });
        }
        let (lsn, rest) = rest.split_first_chunk::<8>().ok_or_else(bad_length)?;
        let watermark = Watermark { last_record_lsn: Lsn::new(u64::from_be_bytes(*lsn)) };
        if *format == FORMAT_1 {
            return if rest.is_empty() { Ok((watermark, None)) } else { Err(bad_length()) };
        }
        let (floor, chains) = rest.split_first_chunk::<2>().ok_or_else(bad_length)?;
        if chains.len() % CHAIN_LEN != 0 {
            return Err(bad_length());
        }
        let chains = chains.chunks_exact(CHAIN_LEN).map(decode_chain).collect::<Result<Vec<_>, _>>()?;
        Ok((watermark, Some(Carried::listed(Weight::from_be_bytes(*floor), chains))))
    }
}

fn decode_chain(bytes: &[u8]) -> Result<(Key, Weight), StoreError> {
    let bad = || StoreError::Corrupt { detail: "watermark lists what is no key".to_owned() };
    let (key, weight) = bytes.split_first_chunk::<KEY_LEN>().ok_or_else(bad)?;
    let weight = <[u8; 2]>::try_from(weight).map_err(|_| bad())?;
    let key = Key::from_bytes(key).map_err(|_| bad())?;
    key.object().map_err(|_| bad())?;
    Ok((*key, Weight::from_be_bytes(weight)))
}

#[cfg(test)]
mod tests {
    //! Goal: the bytes stay what they are, and other bytes are refused. Method: golden bytes and hostile ones.

    use super::*;

    const WATERMARK: Watermark = Watermark { last_record_lsn: Lsn::new(0x1_0100_0028) };

    fn encoded() -> Vec<u8> {
        let chains = vec![(Object::ControlFile.into(), 4), (Object::Checkpoint.into(), 0x102)];
        WATERMARK.encode(Some(&Carried::listed(3, chains))).to_vec()
    }

    #[test]
    fn golden_bytes() {
        assert_eq!(WATERMARK.encode(None)[..], [1, 0, 0, 0, 1, 1, 0, 0, 0x28]);
        assert_eq!(Watermark::decode(&WATERMARK.encode(None)), Ok(WATERMARK));
        let mut expect = vec![2, 0, 0, 0, 1, 1, 0, 0, 0x28, 0, 3];
        for (class, weight) in [(2, [0, 4]), (3, [1, 2])] {
            expect.push(class);
            expect.extend([0; KEY_LEN - 1]);
            expect.extend(weight);
        }
        assert_eq!(encoded(), expect);
        let (watermark, carried) = Watermark::decode_with_weights(&encoded()).unwrap();
        let carried = carried.unwrap();
        assert_eq!(watermark, WATERMARK);
        let weights = [Object::ControlFile, Object::Checkpoint, Object::CommitTime].map(|o| carried.weight(&o.into()));
        assert_eq!(weights, [4, 0x102, 3]);
    }

    #[test]
    fn refuses_other_bytes() {
        let good = WATERMARK.encode(None);
        let mut bad: Vec<Vec<u8>> = [&[][..], &good[..8], &good[..1], &[&good[..], &[0]].concat(), &[0; 9], &[3; 11]]
            .map(<[u8]>::to_vec)
            .to_vec();
        let with_chains = encoded();
        let whole = [11, 31, 51];
        bad.extend((0..51).filter(|length| !whole.contains(length)).map(|length| with_chains[..length].to_vec()));
        let mut no_key = with_chains.clone();
        no_key[11] = 0xEE;
        bad.push(no_key);
        for bad in bad {
            assert!(matches!(Watermark::decode(&bad), Err(StoreError::Corrupt { .. })), "{bad:?}");
        }
    }
}
