//! `backup_label`: where a base backup begins. `tablespace_map`: which tablespaces belong to it.
//!
//! ```text
//! START WAL LOCATION: 0/2000028 (file 000000010000000000000002)
//! CHECKPOINT LOCATION: 0/2000060
//! BACKUP METHOD: streamed
//! BACKUP FROM: primary
//! START TIME: 2026-11-25 14:32:00 UTC
//! LABEL: pg_basebackup base backup
//! START TIMELINE: 1
//! ```
//!
//! PG 14-18: src/backend/access/transam/xlogrecovery.c (14: xlog.c), read_backup_label, read_tablespace_map; from 17 on an incremental
//! backup has a line `INCREMENTAL FROM LSN`.

use postgres_ffi::{Lsn, Oid, TimeLineId};

/// Name of the file.
pub const BACKUP_LABEL: &str = "backup_label";
/// Name of the list of tablespaces.
pub const TABLESPACE_MAP: &str = "tablespace_map";

/// What a base backup says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupLabel {
    /// The redo point of the backup's checkpoint: WAL from here on is needed.
    pub start_lsn: Lsn,
    /// Start of the checkpoint record.
    pub checkpoint_lsn: Lsn,
    /// PostgreSQL timeline of `start_lsn`.
    pub timeline_id: TimeLineId,
    /// Made by a server's own backup commands: its WAL has a record where it ends. `pg_rewind` writes a label without.
    pub is_streamed: bool,
    /// Made from a standby: it ends where the standby's control file says, without a record.
    pub from_standby: bool,
}

/// The file is no label that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// A line is missing or not of its form.
    #[error("backup_label has no right line `{line}`")]
    Line {
        /// How it begins.
        line: &'static str,
    },
    /// The timeline stands twice and differs.
    #[error("backup_label names two timelines. in_file_name=`{in_file_name}`, start_timeline=`{start_timeline}`")]
    Timelines {
        /// In the name of the first segment.
        in_file_name: TimeLineId,
        /// In the line of its own.
        start_timeline: TimeLineId,
    },
    /// It holds only what changed since another backup.
    #[error("this is an incremental backup; make a full one of it with pg_combinebackup, and import that")]
    Incremental,
    /// A line of the list of tablespaces is not of its form.
    #[error("tablespace_map has a line that is no tablespace. line=`{line}`")]
    TablespaceMap {
        /// Counted from 1.
        line: usize,
    },
}

impl BackupLabel {
    /// What the file with these bytes says.
    pub fn parse(content: &[u8]) -> Result<Self, LabelError> {
        let text = String::from_utf8_lossy(content);
        let value = |name: &'static str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .ok_or(LabelError::Line { line: name })
        };
        if value("INCREMENTAL FROM LSN").is_ok() {
            return Err(LabelError::Incremental);
        }
        const START: &str = "START WAL LOCATION";
        let (start_lsn, timeline_id) = parse_start(value(START)?).ok_or(LabelError::Line { line: START })?;
        const CHECKPOINT: &str = "CHECKPOINT LOCATION";
        let checkpoint_lsn = parse_lsn(value(CHECKPOINT)?).ok_or(LabelError::Line { line: CHECKPOINT })?;
        const TIMELINE: &str = "START TIMELINE";
        if let Ok(start_timeline) = value(TIMELINE) {
            let start_timeline = start_timeline.trim().parse().map_err(|_| LabelError::Line { line: TIMELINE })?;
            if start_timeline != timeline_id {
                return Err(LabelError::Timelines { in_file_name: timeline_id, start_timeline });
            }
        }
        Ok(BackupLabel {
            start_lsn,
            checkpoint_lsn,
            timeline_id,
            is_streamed: value("BACKUP METHOD").is_ok_and(|method| method.trim() == "streamed"),
            from_standby: value("BACKUP FROM").is_ok_and(|from| from.trim() == "standby"),
        })
    }
}

/// `0/2000028 (file 000000010000000000000002)`: the position, and the timeline in the first eight digits.
fn parse_start(value: &str) -> Option<(Lsn, TimeLineId)> {
    let (lsn, file) = value.trim().split_once(" (file ")?;
    let name = file.strip_suffix(')').filter(|name| name.len() == 24 && name.is_ascii())?;
    let timeline_id = TimeLineId::from_str_radix(&name[..8], 16).ok().filter(|timeline_id| *timeline_id != 0)?;
    Some((parse_lsn(lsn)?, timeline_id))
}

fn parse_lsn(text: &str) -> Option<Lsn> {
    text.trim().parse().ok().and_then(|lsn: Lsn| Lsn::from_pg(lsn.as_u64()))
}

/// The tablespaces in a `tablespace_map`: `16384 /srv/fast` a line; a line break within a path is escaped.
pub fn parse_tablespace_map(content: &[u8]) -> Result<Vec<Oid>, LabelError> {
    // A backslash takes the meaning from the byte behind it.
    let mut is_escaped = false;
    let lines = content.split(|byte| {
        let ends_line = *byte == b'\n' && !is_escaped;
        is_escaped = *byte == b'\\' && !is_escaped;
        ends_line
    });
    let mut oids = Vec::new();
    for (index, line) in lines.enumerate().filter(|(_, line)| !line.is_empty()) {
        let digits = line.split(|byte| *byte == b' ').next().and_then(|digits| std::str::from_utf8(digits).ok());
        let is_number = |digits: &&str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let oid = digits.filter(is_number).and_then(|digits| digits.parse().ok());
        oids.push(oid.ok_or(LabelError::TablespaceMap { line: index + 1 })?);
    }
    Ok(oids)
}

#[cfg(test)]
mod tests {
    //! Goal: labels that servers write are understood, others refused. Method: a real one, edited; random bytes.

    use proptest::prelude::*;

    use super::*;

    const LABEL: &str = "START WAL LOCATION: 1/2000028 (file 000000030000000100000002)
CHECKPOINT LOCATION: 1/2000060
BACKUP METHOD: streamed
BACKUP FROM: primary
START TIME: 2026-11-25 14:32:00 UTC
LABEL: pg_basebackup base backup
START TIMELINE: 3
";

    #[test]
    fn a_real_label_is_understood() {
        let label = BackupLabel {
            start_lsn: Lsn::new(0x1_0200_0028),
            checkpoint_lsn: Lsn::new(0x1_0200_0060),
            timeline_id: 3,
            is_streamed: true,
            from_standby: false,
        };
        assert_eq!(BackupLabel::parse(LABEL.as_bytes()), Ok(label));
        let standby = LABEL.replace("primary", "standby");
        assert_eq!(BackupLabel::parse(standby.as_bytes()), Ok(BackupLabel { from_standby: true, ..label }));
        let rewound = LABEL.replace("streamed", "pg_rewind");
        assert_eq!(BackupLabel::parse(rewound.as_bytes()), Ok(BackupLabel { is_streamed: false, ..label }));
        // The label is any text, in any encoding.
        let odd = [LABEL.as_bytes(), b"LABEL: \xe9\nSTOP TIME: x\n"].concat();
        assert_eq!(BackupLabel::parse(&odd), Ok(label));
    }

    #[test]
    fn what_is_no_label_is_refused() {
        let check = |from: &str, to: &str, expected| {
            assert_eq!(BackupLabel::parse(LABEL.replace(from, to).as_bytes()), Err(expected), "{to}");
        };
        let start = || LabelError::Line { line: "START WAL LOCATION" };
        check("START WAL LOCATION", "START", start());
        check("1/2000028", "0/0", start());
        check("(file 00000003", "(file 0000000", start());
        check("(file 00000003", "(file 00000000", start());
        check("(file 00000003", "(file 0000000é", start());
        check("1/2000060", "x", LabelError::Line { line: "CHECKPOINT LOCATION" });
        check("TIMELINE: 3", "TIMELINE: 4", LabelError::Timelines { in_file_name: 3, start_timeline: 4 });
        check("BACKUP FROM", "INCREMENTAL FROM LSN: 0/1\nBACKUP FROM", LabelError::Incremental);
    }

    #[test]
    fn tablespaces_are_listed() {
        assert_eq!(parse_tablespace_map(b""), Ok(vec![]));
        assert_eq!(parse_tablespace_map(b"16384 /srv/a b\n16385 /x\\\ny\\\\\n16386 /z"), Ok(vec![16384, 16385, 16386]));
        for (content, line) in [(&b"x /a\n"[..], 1), (b"1 /a\n /b\n", 2), (b"99999999999 /a\n", 1), (b"+1 /a", 1)] {
            assert_eq!(parse_tablespace_map(content), Err(LabelError::TablespaceMap { line }));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "START WAL LOCATION: .{0,40}\nCHECKPOINT LOCATION: .{0,9}\n.{0,40}") {
            let _ = (BackupLabel::parse(&bytes), BackupLabel::parse(text.as_bytes()), parse_tablespace_map(&bytes));
        }
    }
}
