//! Names of WAL files. PG: src/include/access/xlog_internal.h, XLogFileName, TLHistoryFileName.
//!
//! ```text
//! 00000001 00000000 0000002A   PostgreSQL timeline, upper and lower half of the segment number
//! 00000002.history             history of that timeline
//! ```
//!
//! The halves are not 32 bits each: a segment number is counted in segments per 4 GiB, so it depends on the segment size.

use postgres_ffi::TimeLineId;

/// Segments in 4 GiB of WAL.
fn segments_per_4_gib(segment_bytes: u32) -> u64 {
    (1 << 32) / u64::from(segment_bytes.max(1))
}

/// Name of a segment file. `segment_no` counts segments from the beginning of the WAL.
pub fn segment_file_name(timeline_id: TimeLineId, segment_no: u64, segment_bytes: u32) -> String {
    let per_4_gib = segments_per_4_gib(segment_bytes);
    format!("{timeline_id:08X}{:08X}{:08X}", segment_no / per_4_gib, segment_no % per_4_gib)
}

/// Timeline and segment number of a segment file; `None` for any other name.
pub fn parse_segment_file_name(name: &str, segment_bytes: u32) -> Option<(TimeLineId, u64)> {
    if name.len() != 24 {
        return None;
    }
    let timeline_id = hexadecimal(name.get(..8)?)?;
    let (high, low) = (u64::from(hexadecimal(name.get(8..16)?)?), u64::from(hexadecimal(name.get(16..)?)?));
    let per_4_gib = segments_per_4_gib(segment_bytes);
    (low < per_4_gib && timeline_id != 0).then_some((timeline_id, high * per_4_gib + low))
}

/// Name of a timeline's history file.
pub fn history_file_name(timeline_id: TimeLineId) -> String {
    format!("{timeline_id:08X}.history")
}

/// Timeline of a history file; `None` for any other name.
pub fn parse_history_file_name(name: &str) -> Option<TimeLineId> {
    let digits = name.strip_suffix(".history").filter(|digits| digits.len() == 8)?;
    hexadecimal(digits).filter(|timeline_id| *timeline_id != 0)
}

/// Eight upper-case digits, as PostgreSQL writes them.
fn hexadecimal(digits: &str) -> Option<u32> {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte);
    if digits.bytes().all(is_digit) { u32::from_str_radix(digits, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    //! Goal: the names are PostgreSQL's. Method: examples that a server of each segment size has printed.

    use super::*;

    const MIB: u32 = 1024 * 1024;

    #[test]
    fn names_are_those_of_pg_walfile_name() {
        for (timeline_id, segment_no, segment_bytes, name) in [
            (1, 1, 16 * MIB, "000000010000000000000001"),
            (1, 256, 16 * MIB, "000000010000000100000000"),
            (0x1F, 255, 16 * MIB, "0000001F00000000000000FF"),
            (2, 4095, MIB, "000000020000000000000FFF"),
            (2, 5, 1024 * MIB, "000000020000000100000001"),
        ] {
            assert_eq!(segment_file_name(timeline_id, segment_no, segment_bytes), name);
            assert_eq!(parse_segment_file_name(name, segment_bytes), Some((timeline_id, segment_no)));
        }
    }

    #[test]
    fn history_files_are_known_by_their_names() {
        assert_eq!(parse_history_file_name(&history_file_name(0x1001)), Some(0x1001));
        for name in ["00000000.history", "0000000a.history", "1.history", "00000002.history.tmp", "ééé1.history"] {
            assert_eq!(parse_history_file_name(name), None, "{name}");
        }
    }

    #[test]
    fn other_names_are_not_segments() {
        for name in [
            "",
            "00000002.history",
            "000000010000000000000001.partial",
            "00000001000000000000000g",
            "00000001000000000000000a",
            "0000000100000000+0000001",
            "000000000000000000000001",
            "000000010000000000000100",
            "éééééééééééé",
        ] {
            assert_eq!(parse_segment_file_name(name, 16 * MIB), None, "{name}");
        }
    }
}
