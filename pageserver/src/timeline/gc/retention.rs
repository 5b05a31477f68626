//! How much history is kept: by time and by bytes of WAL.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::fmt::friendly;
use jiff::{SignedDuration, SpanRelativeTo};
use postgres_ffi::Lsn;
use serde::{Deserialize, Serialize};

/// Longest time that can be kept: a thousand years, far from the ends of every clock.
const TIME_MAX: Duration = Duration::from_secs(1000 * 366 * 86_400);
/// How much of a text that is none is repeated in the error.
const SHOWN_CHARS: usize = 64;

/// A stretch of time, as people write it: `7d`, `36 hours`, `90m`; `0` is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RetentionTime(Duration);

/// A number of bytes, as people write it: `512MiB`, `1 GiB`, `1048576`; `0` is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WalSize(u64);

/// The text says neither a time nor a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not {expected}. value=`{value}`")]
pub struct RetentionParseError {
    expected: &'static str,
    value: String,
}

impl RetentionParseError {
    fn new(expected: &'static str, text: &str) -> Self {
        RetentionParseError { expected, value: text.chars().take(SHOWN_CHARS).collect() }
    }
}

impl RetentionTime {
    /// A time of whole seconds.
    pub const fn from_seconds(seconds: u64) -> Self {
        RetentionTime(Duration::from_secs(seconds))
    }

    /// The time; zero: none is kept for its time.
    pub const fn duration(self) -> Duration {
        self.0
    }
}

impl WalSize {
    /// So many bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        WalSize(bytes)
    }

    /// The bytes; 0: none is kept for its size.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for RetentionTime {
    type Err = RetentionParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error =
            || RetentionParseError::new("a stretch of time, expected one like `7d`, `36h`, `90 minutes`, or `0`", text);
        if text.trim() == "0" {
            return Ok(RetentionTime(Duration::ZERO));
        }
        let span = friendly::SpanParser::new().parse_span(text.trim()).map_err(|_| error())?;
        let signed = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| error())?;
        let time = Duration::try_from(signed).map_err(|_| error())?;
        if time <= TIME_MAX { Ok(RetentionTime(time)) } else { Err(error()) }
    }
}

impl fmt::Display for RetentionTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_zero() {
            return f.write_str("0");
        }
        let seconds = self.0.as_secs();
        if self.0.subsec_nanos() == 0 && seconds.is_multiple_of(86_400) {
            return write!(f, "{}d", seconds / 86_400);
        }
        // At most a thousand years, which fits.
        write!(f, "{:#}", SignedDuration::try_from(self.0).unwrap_or(SignedDuration::MAX))
    }
}

const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];

impl FromStr for WalSize {
    type Err = RetentionParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || RetentionParseError::new("a size, expected one like `1GiB`, `512MiB`, or `0`", text);
        let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(digits_end);
        let shift = match unit.trim() {
            "" | "B" => 0,
            unit => UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(error)?.1,
        };
        let number: u64 = digits.parse().map_err(|_| error())?;
        number.checked_mul(1 << shift).map(WalSize).ok_or_else(error)
    }
}

impl fmt::Display for WalSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, shift)| self.0 > 0 && self.0.is_multiple_of(1 << shift)) {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

impl TryFrom<String> for RetentionTime {
    type Error = RetentionParseError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<RetentionTime> for String {
    fn from(time: RetentionTime) -> Self {
        time.to_string()
    }
}

impl TryFrom<String> for WalSize {
    type Error = RetentionParseError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<WalSize> for String {
    fn from(size: WalSize) -> Self {
        size.to_string()
    }
}

/// How much history is kept: what lies within either of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Since so long ago; zero: for its time none is kept.
    pub time: RetentionTime,
    /// So many bytes of WAL before the last record; 0: for its size none is kept.
    pub wal: WalSize,
}

/// What a timeline has instead of the server's retention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnRetention {
    /// Instead of the server's time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<RetentionTime>,
    /// Instead of the server's bytes of WAL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wal: Option<WalSize>,
}

impl OwnRetention {
    /// What `other` has where this names nothing.
    pub fn or(self, other: Option<OwnRetention>) -> Self {
        let other = other.unwrap_or_default();
        OwnRetention { time: self.time.or(other.time), wal: self.wal.or(other.wal) }
    }
}

impl Retention {
    /// With what a timeline has of its own.
    pub fn with(self, own: Option<OwnRetention>) -> Self {
        let own = own.unwrap_or_default();
        Retention { time: own.time.unwrap_or(self.time), wal: own.wal.unwrap_or(self.wal) }
    }

    /// The horizon: `lsn_at_time` is where the timeline was at the beginning of the time that is kept, `None` where it did not exist yet or that is not known
    /// (then everything is within that time).
    pub fn horizon_lsn(self, last_record_lsn: Lsn, lsn_at_time: impl FnOnce() -> Option<Lsn>) -> Option<Lsn> {
        let by_wal = Lsn::new(last_record_lsn.as_u64().saturating_sub(self.wal.bytes()));
        let by_time = if self.time.duration().is_zero() { last_record_lsn } else { lsn_at_time()? };
        Some(by_wal.min(by_time))
    }
}

#[cfg(test)]
mod tests {
    //! Goal: what people write is read and written back; either window keeps. Method: plain cases.

    use super::*;

    #[test]
    fn times_and_sizes_are_read_and_written_back() {
        for (text, seconds, back) in [
            ("0", 0, "0"),
            ("7d", 7 * 86_400, "7d"),
            ("36 hours", 36 * 3600, "36h"),
            ("90m", 90 * 60, "1h 30m"),
            ("1 week", 7 * 86_400, "7d"),
        ] {
            let time: RetentionTime = text.parse().unwrap();
            assert_eq!((time.duration().as_secs(), time.to_string().as_str()), (seconds, back));
            assert_eq!(time.to_string().parse(), Ok(time));
        }
        for (text, bytes, back) in [
            ("0", 0, "0"),
            ("1GiB", 1 << 30, "1GiB"),
            ("512 mib", 512 << 20, "512MiB"),
            ("1000", 1000, "1000"),
            ("2048", 2048, "2KiB"),
        ] {
            let size: WalSize = text.parse().unwrap();
            assert_eq!((size.bytes(), size.to_string().as_str()), (bytes, back));
            assert_eq!(size.to_string().parse(), Ok(size));
        }
        for wrong in ["", "x", "-7d", "7d ago", "99999999999999 years", "7"] {
            assert!(wrong.parse::<RetentionTime>().is_err(), "{wrong}");
        }
        for wrong in ["", "x", "-1", "1 GB", "99999999999999TiB", "1.5GiB"] {
            assert!(wrong.parse::<WalSize>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_lies_within_either_window_is_kept() {
        let lsn = Lsn::new;
        let kept = |time: &str, wal, at_time: Option<u64>| {
            let retention = Retention { time: time.parse().unwrap(), wal: WalSize::from_bytes(wal) };
            retention.horizon_lsn(lsn(1000), || at_time.map(lsn)).map(|lsn| lsn.as_u64())
        };
        assert_eq!(kept("7d", 100, Some(500)), Some(500));
        assert_eq!(kept("7d", 600, Some(500)), Some(400));
        assert_eq!(kept("7d", 0, Some(500)), Some(500));
        assert_eq!(kept("7d", 0, None), None);
        assert_eq!(kept("0", 100, None), Some(900));
        assert_eq!(kept("0", 0, None), Some(1000));
        assert_eq!(kept("0", 2000, None), Some(0));
    }
}
