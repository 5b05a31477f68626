//! Hash index. PG 15, 17, 18: src/backend/access/rmgrdesc/hashdesc.c, src/include/access/hash_xlog.h.

use super::body::{Body, Text, t_or_f};
use crate::PgVersion;
use crate::wal::DecodedRecord;

/// XLH_SPLIT_META_UPDATE_MASKS
pub(crate) const MASKS_UPDATED: u8 = 1;
/// XLH_SPLIT_META_UPDATE_SPLITPOINT
pub(crate) const SPLIT_POINT_CHANGED: u8 = 2;

pub(super) fn describe(record: &DecodedRecord, version: PgVersion) -> Text {
    let body = Body::of(record);
    Ok(match record.operation() {
        0x00 => format!("num_tuples {}, fillfactor {}", general(body.f64(0)?), body.u16(12)?),
        0x10 => format!("bmsize {}", body.u16(0)?),
        0x20 => format!("off {}", body.u16(0)?),
        0x30 => format!("bmsize {}, bmpage_found {}", body.u16(0)?, body.t_or_f(2)?),
        0x40 => {
            let flags = body.u8(8)?;
            format!(
                "new_bucket {}, meta_page_masks_updated {}, issplitpoint_changed {}",
                body.u32(0)?,
                t_or_f(flags & MASKS_UPDATED != 0),
                t_or_f(flags & SPLIT_POINT_CHANGED != 0)
            )
        }
        0x60 => format!("old_bucket_flag {}, new_bucket_flag {}", body.u16(0)?, body.u16(2)?),
        0x70 => format!("ntups {}, is_primary {}", body.u16(0)?, body.t_or_f(2)?),
        0x80 => format!(
            "prevblkno {}, nextblkno {}, ntups {}, is_primary {}",
            body.u32(0)?,
            body.u32(4)?,
            body.u16(8)?,
            body.t_or_f(10)?
        ),
        0x90 => format!("clear_dead_marking {}, is_primary {}", body.t_or_f(0)?, body.t_or_f(1)?),
        0xB0 => format!("ntuples {}", general(body.f64(0)?)),
        0xC0 => vacuum_one_page(body, version)?,
        _ => String::new(),
    })
}

/// xl_hash_vacuum_one_page: `ntuples` is an int up to 15, an uint16 with a flag behind it from 16.
fn vacuum_one_page(body: Body<'_>, version: PgVersion) -> Text {
    let horizon = body.u32(0)?;
    Ok(match version {
        PgVersion::V14 | PgVersion::V15 => format!("ntuples {}, latestRemovedXid {horizon}", body.i32(4)?),
        PgVersion::V16 => format!("ntuples {}, snapshotConflictHorizon {horizon}", body.u16(4)?),
        _ => {
            let is_catalog = body.t_or_f(6)?;
            format!("ntuples {}, snapshotConflictHorizon {horizon}, isCatalogRel {is_catalog}", body.u16(4)?)
        }
    })
}

/// A number as C's `%g` prints it: six significant digits, no trailing zeroes, an exponent for very large and very small ones.
fn general(value: f64) -> String {
    let scientific = format!("{value:.5e}");
    let Some((digits, exponent)) =
        scientific.split_once('e').and_then(|(digits, exponent)| Some((digits, exponent.parse::<i32>().ok()?)))
    else {
        return if value.is_nan() {
            "NaN".to_owned()
        } else {
            format!("{}Infinity", if value < 0.0 { "-" } else { "" })
        };
    };
    let without_zeroes = |digits: &str| match digits.contains('.') {
        true => digits.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => digits.to_owned(),
    };
    match exponent {
        -4..=5 => without_zeroes(&format!("{value:.*}", (5 - exponent) as usize)),
        _ => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{}e{sign}{:02}", without_zeroes(digits), exponent.unsigned_abs())
        }
    }
}

#[cfg(test)]
mod tests {
    //! Against what `printf %g` prints.

    use super::general;

    #[test]
    fn numbers_are_those_of_printf() {
        for (value, text) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (88.0, "88"),
            (700.0, "700"),
            (123456.0, "123456"),
            (1234567.0, "1.23457e+06"),
            (999999.5, "1e+06"),
            (1e100, "1e+100"),
            (0.5, "0.5"),
            (0.0001, "0.0001"),
            (0.00001234, "1.234e-05"),
            (-2.25, "-2.25"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            assert_eq!(general(value), text);
        }
    }
}
