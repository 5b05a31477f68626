//! How far a timeline's data in RocksDB goes, what its chains weigh there, and what of it was lost: the value of the versions of `Object::Watermark`.
//!
//! ```text
//! format 2, 11 bytes and 20 for each chain that is listed, big-endian
//! | format u8 = 2 | last_record_lsn u64 | floor u16 | (key 18 bytes | weight u16) ... |
//! format 3, the same with what was lost, while that is anything
//! | format u8 = 3 | last_record_lsn u64 | floor u16 | count u16 | (after 27 bytes | before 27 bytes | through_lsn u64) ... | (key 18 bytes | weight u16) ... |
//! ```
//! A chain that is not listed weighs no more than the floor. Example: `02 0000000101000028 0003` is 1/1000028, no chain weighs more than 3. A field more is a new
//! format number; old formats stay readable. Format 1 ends behind the LSN: nothing is known of chains.
//! An older server refuses format 3, rightly: it would believe what is lost. A floor of 65535 there says that nothing is known of chains.

use bytes::{BufMut, Bytes, BytesMut};
use keyenc::{KEY_LEN, Key, Object};
use postgres_ffi::Lsn;

use super::StoreError;
use super::carried::Carried;
use super::chain_weight::Weight;
use super::lost::{LostStretches, STRETCH_LEN};

/// Without chains.
const FORMAT_1: u8 = 1;
const FORMAT_2: u8 = 2;
/// With what was lost.
const FORMAT_3: u8 = 3;
const CHAIN_LEN: usize = KEY_LEN + size_of::<Weight>();
/// In format 3: nothing is known of chains.
const UNKNOWN_FLOOR: Weight = Weight::MAX;

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

/// What a watermark's bytes say.
pub(super) struct DecodedWatermark {
    pub watermark: Watermark,
    /// `None`: nothing is known of chains.
    pub carried: Option<Carried>,
    pub lost: LostStretches,
}

impl Watermark {
    /// With the chains that weigh most (`None`: nothing is known of chains), and with what is lost.
    pub(super) fn encode(self, carried: Option<&Carried>, lost: &LostStretches) -> Bytes {
        let (floor, chains) = carried.map_or((UNKNOWN_FLOOR, Vec::new()), Carried::heaviest);
        let mut bytes = BytesMut::new();
        bytes.put_u8(match (lost.is_empty(), carried) {
            (false, _) => FORMAT_3,
            (true, Some(_)) => FORMAT_2,
            (true, None) => FORMAT_1,
        });
        bytes.put_u64(self.last_record_lsn.as_u64());
        if carried.is_some() || !lost.is_empty() {
            bytes.put_u16(floor);
        }
        if !lost.is_empty() {
            bytes.put_u16(u16::try_from(lost.iter().len()).expect("they are bounded"));
            lost.encode(&mut bytes);
        }
        for (key, weight) in chains {
            bytes.put_slice(key.as_bytes());
            bytes.put_u16(weight);
        }
        bytes.freeze()
    }

    /// Errors: `Corrupt` for an impossible length; `UnknownFormat`.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        Self::decode_whole(bytes).map(|decoded| decoded.watermark)
    }

    /// With what was lost. Errors: as [`Watermark::decode`].
    pub(crate) fn decode_with_lost(bytes: &[u8]) -> Result<(Self, LostStretches), StoreError> {
        Self::decode_whole(bytes).map(|decoded| (decoded.watermark, decoded.lost))
    }

    /// With all that it says. Errors: as [`Watermark::decode`].
    pub(super) fn decode_whole(bytes: &[u8]) -> Result<DecodedWatermark, StoreError> {
        let bad_length =
            || StoreError::Corrupt { detail: format!("watermark has the wrong length. length=`{}`", bytes.len()) };
        let (format, rest) =
            bytes.split_first().ok_or_else(|| StoreError::Corrupt { detail: "watermark is empty".to_owned() })?;
        if ![FORMAT_1, FORMAT_2, FORMAT_3].contains(format) {
            return Err(StoreError::UnknownFormat { what: "a watermark", format: *format });
        }
        let (lsn, rest) = rest.split_first_chunk::<8>().ok_or_else(bad_length)?;
        let watermark = Watermark { last_record_lsn: Lsn::new(u64::from_be_bytes(*lsn)) };
        let mut decoded = DecodedWatermark { watermark, carried: None, lost: LostStretches::default() };
        if *format == FORMAT_1 {
            return if rest.is_empty() { Ok(decoded) } else { Err(bad_length()) };
        }
        let (floor, mut chains) = rest.split_first_chunk::<2>().ok_or_else(bad_length)?;
        let floor = Weight::from_be_bytes(*floor);
        if *format == FORMAT_3 {
            let (count, rest) = chains.split_first_chunk::<2>().ok_or_else(bad_length)?;
            let lost_bytes = usize::from(u16::from_be_bytes(*count)) * STRETCH_LEN;
            let (lost, rest) = rest.split_at_checked(lost_bytes).ok_or_else(bad_length)?;
            decoded.lost = LostStretches::decode(lost)?;
            chains = rest;
        }
        if chains.len() % CHAIN_LEN != 0 {
            return Err(bad_length());
        }
        let chains = chains.chunks_exact(CHAIN_LEN).map(decode_chain).collect::<Result<Vec<_>, _>>()?;
        let is_known = *format == FORMAT_2 || floor != UNKNOWN_FLOOR;
        decoded.carried = is_known.then(|| Carried::listed(floor, chains));
        Ok(decoded)
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
    use crate::store::lost::LostStretch;

    const WATERMARK: Watermark = Watermark { last_record_lsn: Lsn::new(0x1_0100_0028) };

    fn encoded() -> Vec<u8> {
        let chains = vec![(Object::ControlFile.into(), 4), (Object::Checkpoint.into(), 0x102)];
        WATERMARK.encode(Some(&Carried::listed(3, chains)), &LostStretches::default()).to_vec()
    }

    #[test]
    fn golden_bytes() {
        assert_eq!(WATERMARK.encode(None, &LostStretches::default())[..], [1, 0, 0, 0, 1, 1, 0, 0, 0x28]);
        assert_eq!(Watermark::decode(&WATERMARK.encode(None, &LostStretches::default())), Ok(WATERMARK));
        let mut expect = vec![2, 0, 0, 0, 1, 1, 0, 0, 0x28, 0, 3];
        for (class, weight) in [(2, [0, 4]), (3, [1, 2])] {
            expect.push(class);
            expect.extend([0; KEY_LEN - 1]);
            expect.extend(weight);
        }
        assert_eq!(encoded(), expect);
        let DecodedWatermark { watermark, carried, .. } = Watermark::decode_whole(&encoded()).unwrap();
        let carried = carried.unwrap();
        assert_eq!(watermark, WATERMARK);
        let weights = [Object::ControlFile, Object::Checkpoint, Object::CommitTime].map(|o| carried.weight(&o.into()));
        assert_eq!(weights, [4, 0x102, 3]);
    }

    #[test]
    fn what_is_lost_comes_back_with_and_without_chains() {
        let after = Some((Object::Checkpoint.into(), Lsn::new(0x10), keyenc::Kind::Image));
        let lost = LostStretches::new(vec![LostStretch { after, before: None, through_lsn: Lsn::new(0x20) }]);
        let bytes = WATERMARK.encode(None, &lost);
        let mut expect = vec![3, 0, 0, 0, 1, 1, 0, 0, 0x28, 0xFF, 0xFF, 0, 1, 3];
        expect.extend([0; KEY_LEN - 1]);
        expect.extend([0, 0, 0, 0, 0, 0, 0, 0x10, 3]);
        expect.extend([0xFF; KEY_LEN + 9]);
        expect.extend([0, 0, 0, 0, 0, 0, 0, 0x20]);
        assert_eq!(bytes[..], expect);
        let decoded = Watermark::decode_whole(&bytes).unwrap();
        assert!(decoded.carried.is_none() && decoded.lost == lost && decoded.watermark == WATERMARK);
        let carried = Carried::listed(3, vec![(Object::ControlFile.into(), 4)]);
        let decoded = Watermark::decode_whole(&WATERMARK.encode(Some(&carried), &lost)).unwrap();
        assert_eq!(decoded.carried.unwrap().weight(&Object::ControlFile.into()), 4);
        assert_eq!(decoded.lost, lost);
        for length in 0..bytes.len() {
            assert!(Watermark::decode(&bytes[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn refuses_other_bytes() {
        let good = WATERMARK.encode(None, &LostStretches::default());
        let mut bad: Vec<Vec<u8>> =
            [&[][..], &good[..8], &good[..1], &[&good[..], &[0]].concat()].map(<[u8]>::to_vec).to_vec();
        let with_chains = encoded();
        let whole = [11, 31, 51];
        bad.extend((0..51).filter(|length| !whole.contains(length)).map(|length| with_chains[..length].to_vec()));
        let mut no_key = with_chains.clone();
        no_key[11] = 0xEE;
        bad.push(no_key);
        for bad in bad {
            assert!(matches!(Watermark::decode(&bad), Err(StoreError::Corrupt { .. })), "{bad:?}");
        }
        for format in [0, 4] {
            let unknown = Watermark::decode(&[format; 11]);
            assert!(
                matches!(unknown, Err(StoreError::UnknownFormat { format: found, .. }) if found == format),
                "{unknown:?}"
            );
        }
    }
}
