//! Wall-clock time as PostgreSQL counts it and as people write it.
//!
//! - Counted in microseconds since 2000-01-01 UTC, the resolution of every time in WAL.
//! - Shown in RFC 3339, always UTC, always with six digits. Read in several forms; without a zone it is UTC, never the machine's zone.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use jiff::fmt::{friendly, temporal};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, SpanRelativeTo, Timestamp};
use postgres_ffi::TimestampTz;

/// Seconds from 1970-01-01 to 2000-01-01. PG: src/include/datatype/timestamp.h, POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE.
const SECONDS_1970_TO_2000: i64 = 10_957 * 86_400;
const MICROS_1970_TO_2000: i64 = SECONDS_1970_TO_2000 * 1_000_000;
/// How much of a text that is no time is repeated in the error.
const SHOWN_CHARS: usize = 64;

/// A moment, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WallTime(TimestampTz);

/// A moment as a person names it: `2026-11-25 14:32:00`, or so long ago: `5 minutes ago`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeSpec {
    /// This moment.
    At(WallTime),
    /// So many microseconds before now; never negative.
    Ago {
        /// How many.
        micros: i64,
    },
}

/// The text is no time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a time, expected one like `2026-11-25 14:32:00.5`, `2026-11-25T14:32:00Z`, `2026-11-25 14:32:00+01:00` (UTC without a zone) or `5 minutes ago`. value=`{value}`"
)]
pub struct TimeParseError {
    value: String,
}

impl WallTime {
    /// The moment of a PostgreSQL timestamp.
    pub const fn from_postgres(micros_since_2000: TimestampTz) -> Self {
        WallTime(micros_since_2000)
    }

    /// Microseconds since 2000-01-01 UTC.
    pub const fn as_postgres(self) -> TimestampTz {
        self.0
    }

    /// The moment so many seconds after 1970-01-01 UTC; the nearest that can be told if that is beyond it.
    pub const fn from_unix_seconds(seconds: i64) -> Self {
        WallTime(seconds.saturating_sub(SECONDS_1970_TO_2000).saturating_mul(1_000_000))
    }

    fn from_timestamp(timestamp: Timestamp) -> Self {
        // Down to a whole microsecond: what ended within it ended at or after it.
        let micros_since_1970 = timestamp.as_nanosecond().div_euclid(1000) as i64; // Years up to 9999: far from the end of i64.
        WallTime(micros_since_1970 - MICROS_1970_TO_2000)
    }
}

impl fmt::Display for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let timestamp =
            self.0.checked_add(MICROS_1970_TO_2000).and_then(|micros| Timestamp::from_microsecond(micros).ok());
        match timestamp {
            Some(timestamp) => write!(f, "{timestamp:.6}"),
            // No server's clock, but a number that WAL can hold.
            None => write!(f, "{} microseconds since 2000", self.0),
        }
    }
}

impl FromStr for WallTime {
    type Err = TimeParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_timestamp(text.trim()).map(WallTime::from_timestamp).ok_or_else(|| not_a_time(text))
    }
}

impl FromStr for TimeSpec {
    type Err = TimeParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(time) = text.parse() {
            return Ok(TimeSpec::At(time));
        }
        let span = friendly::SpanParser::new().parse_span(text.trim()).ok();
        let duration = span.and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()).ok());
        // Without a sign or `ago` it would be a time to come.
        let back = duration.and_then(SignedDuration::checked_neg).filter(|back| !back.is_negative());
        let micros = back.and_then(|back| i64::try_from(back.as_micros()).ok());
        micros.map(|micros| TimeSpec::Ago { micros }).ok_or_else(|| not_a_time(text))
    }
}

impl fmt::Display for TimeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TimeSpec::At(time) => time.fmt(f),
            TimeSpec::Ago { micros } => write!(f, "{:#} ago", SignedDuration::from_micros(*micros)),
        }
    }
}

impl TimeSpec {
    /// The moment, if it is `now`.
    pub fn resolve(self, now: SystemTime) -> WallTime {
        match self {
            TimeSpec::At(time) => time,
            TimeSpec::Ago { micros } => {
                let now = Timestamp::try_from(now).map_or(WallTime(i64::MAX), WallTime::from_timestamp);
                WallTime(now.0.saturating_sub(micros))
            }
        }
    }
}

/// With a zone as it says, without one in UTC.
fn parse_timestamp(text: &str) -> Option<Timestamp> {
    let parser = temporal::DateTimeParser::new();
    if let Ok(timestamp) = parser.parse_timestamp(text) {
        return Some(timestamp);
    }
    // The parser would drop a zone that it cannot use; so only what has none may come here.
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit() || b"-: .Tt".contains(&byte));
    let has_offset = text.bytes().skip(11).any(|byte| byte == b'-');
    if !is_plain || has_offset {
        return None;
    }
    TimeZone::UTC.to_timestamp(parser.parse_datetime(text).ok()?).ok()
}

fn not_a_time(text: &str) -> TimeParseError {
    TimeParseError { value: text.chars().take(SHOWN_CHARS).collect() }
}

#[cfg(test)]
mod tests {
    //! Goal: every form that people write is the moment they mean, and nothing else is a time. Method: cases; properties of what is shown.

    use proptest::prelude::*;

    use super::*;

    fn shown(text: &str) -> String {
        text.parse::<WallTime>().map_or_else(|error| error.to_string(), |time| time.to_string())
    }

    #[test]
    fn people_write_a_moment_in_many_ways() {
        for (text, expected) in [
            ("2026-11-25 14:32:00", "2026-11-25T14:32:00.000000Z"),
            ("2026-11-25T14:32:00", "2026-11-25T14:32:00.000000Z"),
            ("2026-11-25 14:32", "2026-11-25T14:32:00.000000Z"),
            ("2026-11-25", "2026-11-25T00:00:00.000000Z"),
            ("2026-11-25 14:32:00.5", "2026-11-25T14:32:00.500000Z"),
            ("2026-11-25 14:32:00.123456789", "2026-11-25T14:32:00.123456Z"),
            ("2026-11-25T14:32:00Z", "2026-11-25T14:32:00.000000Z"),
            ("2026-11-25 14:32:00Z", "2026-11-25T14:32:00.000000Z"),
            ("2026-11-25 14:32:00+01", "2026-11-25T13:32:00.000000Z"),
            ("2026-11-25 14:32:00.25+01:00", "2026-11-25T13:32:00.250000Z"),
            ("2026-11-25 14:32:00-05:30", "2026-11-25T20:02:00.000000Z"),
            ("2026-11-25T14:32:00-05", "2026-11-25T19:32:00.000000Z"),
            (" 2026-11-25 14:32:00 ", "2026-11-25T14:32:00.000000Z"),
            ("1999-12-31 23:59:59.999999", "1999-12-31T23:59:59.999999Z"),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
        assert_eq!("2000-01-01".parse(), Ok(WallTime(0)));
        assert_eq!("2000-01-01 00:00:01".parse(), Ok(WallTime(1_000_000)));
        assert_eq!(WallTime::from_unix_seconds(0).to_string(), "1970-01-01T00:00:00.000000Z");
        assert_eq!(WallTime::from_unix_seconds(i64::MAX), WallTime(i64::MAX));
    }

    #[test]
    fn what_is_no_time_or_says_a_zone_that_is_none_is_refused() {
        for text in [
            "",
            "now",
            "14:32:00",
            "2026-13-01 00:00:00",
            "2026-02-30",
            "2026-11-25 25:00:00",
            "2026-11-25 14:32:00+99",
            "2026-11-25 14:32:00 CET",
            "2026-11-25 14:32:00[Europe/Berlin]",
            "2026-11-25 14:32:00+x",
            "2026-11-25 14:32:00-",
            "0/16B5A50",
            "5 minutes",
            "in 5 minutes",
            "1 month ago",
        ] {
            let error = text.parse::<TimeSpec>().unwrap_err().to_string();
            assert!(error.ends_with(&format!("value=`{text}`")), "{error}");
        }
    }

    #[test]
    fn so_long_ago_counts_from_now() {
        let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(SECONDS_1970_TO_2000 as u64 + 3600);
        for (text, seconds_since_2000) in [
            ("5 minutes ago", 3300),
            ("-5min", 3300),
            ("1h 30s ago", -30),
            ("1 day ago", 3600 - 86_400),
            ("-2w", 3600 - 14 * 86_400),
            ("0s ago", 3600),
            ("2000-01-01 00:00:07", 7),
        ] {
            let spec: TimeSpec = text.parse().unwrap();
            assert_eq!(spec.resolve(now), WallTime(seconds_since_2000 * 1_000_000), "{text}");
            assert_eq!(spec.to_string().parse(), Ok(spec), "{spec}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(micros in -400_000_000_000_000_000_i64..200_000_000_000_000_000) {
            let time = WallTime(micros);
            let text = time.to_string();
            prop_assume!(text.ends_with('Z'));
            prop_assert_eq!(text.parse(), Ok(time));
        }

        #[test]
        fn later_times_are_shown_as_later(a in 0_i64..2_000_000_000_000_000, b in 0_i64..2_000_000_000_000_000) {
            prop_assert_eq!(WallTime(a).to_string().cmp(&WallTime(b).to_string()), a.cmp(&b));
        }

        #[test]
        fn no_text_and_no_number_panics(text in any::<String>(), micros in any::<i64>()) {
            let _ = text.parse::<TimeSpec>().map(|spec| spec.resolve(SystemTime::UNIX_EPOCH));
            prop_assert!(!WallTime(micros).to_string().is_empty());
        }

        #[test]
        fn almost_times_never_panic(text in "[0-9]{1,4}-[0-9]{1,2}-[0-9]{1,2}[ T]?[0-9:.+Z-]{0,16}( ago)?") {
            let _ = text.parse::<TimeSpec>();
        }
    }
}
