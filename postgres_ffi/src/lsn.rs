//! Log sequence numbers: byte positions in the WAL.
//!
//! - The LSN of a page version is the *end* of its record, as PostgreSQL stamps pages.
//! - `Lsn` is never "none": PostgreSQL's 0/0 is turned into `None` by [`Lsn::from_pg`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Records start at multiples of this. PG: src/include/pg_config.h, MAXIMUM_ALIGNOF on every supported platform.
pub const MAXALIGN: u64 = 8;

/// A byte position in the WAL. Ordered, printed as PostgreSQL prints it (`0/16B5A50`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(u64);

impl Lsn {
    /// The highest position; pagestream requests use it for "the newest there is".
    pub const MAX: Lsn = Lsn(u64::MAX);
    /// Below every real position: the start of a range that has no lower bound.
    pub const ZERO: Lsn = Lsn(0);

    /// The position at `byte_position`.
    pub const fn new(byte_position: u64) -> Self {
        Lsn(byte_position)
    }

    /// An LSN as PostgreSQL stores it, where 0 stands for none (InvalidXLogRecPtr).
    pub const fn from_pg(value: u64) -> Option<Self> {
        if value == 0 { None } else { Some(Lsn(value)) }
    }

    /// The byte position as a number.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// `self + len`, or `None` past the end of the 64-bit WAL.
    pub fn checked_add(self, len: u64) -> Option<Self> {
        self.0.checked_add(len).map(Lsn)
    }

    /// Bytes from `earlier` to `self`, 0 when `earlier` is not earlier.
    pub fn saturating_sub(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The next position at which a record can start (8-byte aligned), `self` if it is one. Saturates at the end of the 64-bit WAL.
    pub fn align_up(self) -> Self {
        Lsn(self.0.saturating_add(MAXALIGN - 1) & !(MAXALIGN - 1))
    }

    /// True when a record can start here.
    pub fn is_aligned(self) -> bool {
        self.0.is_multiple_of(MAXALIGN)
    }

    /// Number of the segment that holds the byte at `self`. `segment_bytes` is the cluster's WAL segment size.
    pub fn segment_no(self, segment_bytes: u64) -> u64 {
        self.0 / segment_bytes
    }

    /// Offset of `self` within its segment.
    pub fn segment_offset(self, segment_bytes: u64) -> u64 {
        self.0 % segment_bytes
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not an LSN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an LSN, expected two hexadecimal numbers like 0/16B5A50. value=`{value}`")]
pub struct LsnParseError {
    value: String,
}

impl FromStr for Lsn {
    type Err = LsnParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || LsnParseError { value: text.chars().take(64).collect() };
        let (high, low) = text.split_once('/').ok_or_else(refused)?;
        let half = |digits: &str| {
            // `from_str_radix` would take a sign.
            if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(refused());
            }
            u64::from_str_radix(digits, 16).map_err(|_| refused())
        };
        Ok(Lsn(half(high)? << 32 | half(low)?))
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_and_parses_as_postgresql_does() {
        for (value, text) in [(0x16B5A50, "0/16B5A50"), (0x1_0000_0000, "1/0"), (u64::MAX, "FFFFFFFF/FFFFFFFF")] {
            assert_eq!(Lsn::new(value).to_string(), text);
            assert_eq!(text.parse::<Lsn>(), Ok(Lsn::new(value)));
        }
        for bad in ["", "/", "1", "0/", "0/+1", "0/123456789", "g/0", "0/1 ", "-1/0"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad}");
        }
    }

    #[test]
    fn aligns_to_eight() {
        assert_eq!(Lsn::new(1).align_up(), Lsn::new(8));
        assert_eq!(Lsn::new(8).align_up(), Lsn::new(8));
        assert!(Lsn::MAX.align_up() <= Lsn::MAX);
    }
}
