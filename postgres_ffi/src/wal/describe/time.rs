//! Times of the log as people write them.

use std::fmt;

use crate::TimestampTz;

const MICROS_PER_DAY: i64 = 86_400_000_000;
/// Days from 0000-03-01 to 2000-01-01 in the Gregorian calendar.
const DAYS_TO_2000: i64 = 730_425;
const DAYS_PER_ERA: i64 = 146_097; // 400 years

/// Microseconds since 2000-01-01, shown as `2026-11-20 14:30:02.307595 UTC`.
pub(super) struct Time(pub TimestampTz);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil(self.0.div_euclid(MICROS_PER_DAY));
        let micros = self.0.rem_euclid(MICROS_PER_DAY);
        let seconds = micros / 1_000_000;
        let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{:06} UTC", micros % 1_000_000)
    }
}

/// Year, month and day of a number of days since 2000-01-01. Years are counted from March, so that the leap day is the last of its year.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + DAYS_TO_2000;
    let (era, day_of_era) = (days.div_euclid(DAYS_PER_ERA), days.rem_euclid(DAYS_PER_ERA));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    //! Against `select timestamptz '2000-01-01 UTC' + interval '... microseconds'`.

    use super::*;

    #[test]
    fn times_are_those_of_postgresql() {
        for (micros, text) in [
            (0, "2000-01-01 00:00:00.000000 UTC"),
            (-1, "1999-12-31 23:59:59.999999 UTC"),
            (848_500_202_307_595, "2026-11-20 14:30:02.307595 UTC"),
            (59 * MICROS_PER_DAY, "2000-02-29 00:00:00.000000 UTC"),
            (60 * MICROS_PER_DAY, "2000-03-01 00:00:00.000000 UTC"),
            (36_524 * MICROS_PER_DAY, "2099-12-31 00:00:00.000000 UTC"),
        ] {
            assert_eq!(Time(micros).to_string(), text);
        }
        // Not a time that any server writes, but a number that the log can hold.
        for micros in [i64::MIN, i64::MAX] {
            assert!(!Time(micros).to_string().is_empty());
        }
    }
}
