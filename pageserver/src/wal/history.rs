//! Timeline history files: through which timelines a server's WAL has come, and where it left each.
//!
//! One line per ancestor, oldest first: timeline, tab, the position where it was left, tab, a reason for people.
//! PG 15: src/backend/access/transam/timeline.c, readTimeLineHistory, writeTimeLineHistory.

use postgres_ffi::{Lsn, TimeLineId};

/// What the reason begins with where a clone left its origin's timeline: the name of the origin follows. A promoted server writes others.
pub const CLONE_REASON: &str = "base backup by the page server of ";
/// A history longer than this is not one.
const HISTORY_BYTES_MAX: usize = 1 << 20;

/// A history file makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// A line is not `timeline position reason`.
    #[error("line {line_no} is not a timeline and a position")]
    Line {
        /// Counted from 1.
        line_no: usize,
    },
    /// Timelines and positions do not ascend.
    #[error("line {line_no} does not ascend")]
    Order {
        /// Counted from 1.
        line_no: usize,
    },
    /// An ancestor is not older than the timeline itself.
    #[error("the history names its own timeline or a later one. timeline_id=`{timeline_id}`")]
    NotAnAncestor {
        /// That one.
        timeline_id: TimeLineId,
    },
    /// Longer than any history.
    #[error("too long. length=`{length}`")]
    TooLong {
        /// Bytes.
        length: usize,
    },
}

/// The ancestors of a timeline.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TimelineHistory {
    /// Timeline and where it was left, oldest first, strictly ascending timelines.
    ancestors: Vec<(TimeLineId, Lsn)>,
    /// Those of them that were left by a clone.
    left_by_clone: Vec<TimeLineId>,
}

impl TimelineHistory {
    /// The history of `timeline_id` from the bytes of its history file.
    pub fn parse(timeline_id: TimeLineId, content: &[u8]) -> Result<Self, HistoryError> {
        if content.len() > HISTORY_BYTES_MAX {
            return Err(HistoryError::TooLong { length: content.len() });
        }
        let mut ancestors: Vec<(TimeLineId, Lsn)> = Vec::new();
        let mut left_by_clone = Vec::new();
        // The reason is the label of a restore point and may be in any encoding.
        for (index, line) in content.split(|byte| *byte == b'\n').enumerate() {
            let line_no = index + 1;
            let line = line.trim_ascii_start();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let mut fields = line.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty());
            let mut field = || fields.next().and_then(|field| std::str::from_utf8(field).ok());
            let ancestor = field().and_then(|text| text.parse::<TimeLineId>().ok());
            let left_lsn = field().and_then(|text| text.parse::<Lsn>().ok());
            let (Some(ancestor), Some(left_lsn)) = (ancestor, left_lsn) else {
                return Err(HistoryError::Line { line_no });
            };
            if ancestor >= timeline_id {
                return Err(HistoryError::NotAnAncestor { timeline_id: ancestor });
            }
            if ancestors.last().is_some_and(|(before, before_lsn)| ancestor <= *before || left_lsn < *before_lsn) {
                return Err(HistoryError::Order { line_no });
            }
            ancestors.push((ancestor, left_lsn));
            if line.windows(CLONE_REASON.len()).any(|part| part == CLONE_REASON.as_bytes()) {
                left_by_clone.push(ancestor);
            }
        }
        Ok(TimelineHistory { ancestors, left_by_clone })
    }

    /// Where `ancestor` was left. `None`: it is none of the ancestors.
    pub fn left_at(&self, ancestor: TimeLineId) -> Option<Lsn> {
        self.ancestors.iter().find(|(timeline_id, _)| *timeline_id == ancestor).map(|(_, left_lsn)| *left_lsn)
    }

    /// True if who left `ancestor` is a clone: it began there, and did not come there with WAL.
    pub fn is_left_by_clone(&self, ancestor: TimeLineId) -> bool {
        self.left_by_clone.contains(&ancestor)
    }

    /// Timelines and where they were left, oldest first.
    pub fn ancestors(&self) -> &[(TimeLineId, Lsn)] {
        &self.ancestors
    }

    /// The timeline that the WAL which ends at `lsn` is on, `newest` being the one that this is the history of. A record that ends where a
    /// timeline was left is on that timeline.
    pub fn timeline_at(&self, newest: TimeLineId, lsn: Lsn) -> TimeLineId {
        self.ancestors.iter().find(|(_, left_lsn)| lsn <= *left_lsn).map_or(newest, |(timeline_id, _)| *timeline_id)
    }

    /// The part of this history that is older than `timeline_id`.
    pub fn before(&self, timeline_id: TimeLineId) -> &[(TimeLineId, Lsn)] {
        let count = self.ancestors.iter().take_while(|(ancestor, _)| *ancestor < timeline_id).count();
        &self.ancestors[..count]
    }
}

/// The lines of a history file that are older than `timeline_id`: the content of that one's own history file. Requires: `content` parses.
pub fn lines_before(content: &[u8], timeline_id: TimeLineId) -> &[u8] {
    let mut end = 0;
    for line in content.split_inclusive(|byte| *byte == b'\n') {
        let mut fields = line.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty());
        let ancestor = fields.next().and_then(|field| std::str::from_utf8(field).ok()?.parse::<TimeLineId>().ok());
        if ancestor.is_some_and(|ancestor| ancestor >= timeline_id) {
            break;
        }
        end += line.len();
    }
    &content[..end]
}

#[cfg(test)]
mod tests {
    //! Goal: files that PostgreSQL writes are understood, nonsense is refused. Method: one real file, small edits of it.

    use super::*;

    const FILE: &[u8] = b"1\t0/3000148\tno recovery target specified\n\n2\t0/40000A0\tat restore point \"caf\xe9\"\n";

    #[test]
    fn a_real_file_is_understood() {
        let history = TimelineHistory::parse(3, FILE).unwrap();
        assert_eq!(history.ancestors(), [(1, Lsn::new(0x3000148)), (2, Lsn::new(0x40000A0))]);
        assert_eq!(history.left_at(2), Some(Lsn::new(0x40000A0)));
        assert_eq!(history.left_at(3), None);
        assert_eq!(history.before(2), &[(1, Lsn::new(0x3000148))]);
        assert_eq!(TimelineHistory::parse(1, b"# nothing\n"), Ok(TimelineHistory::default()));
    }

    #[test]
    fn a_switch_belongs_to_the_older_timeline() {
        let history = TimelineHistory::parse(3, FILE).unwrap();
        for (lsn, timeline_id) in [(0x3000148, 1), (0x3000149, 2), (0x40000A0, 2), (0x40000A8, 3)] {
            assert_eq!(history.timeline_at(3, Lsn::new(lsn)), timeline_id, "{lsn:x}");
        }
        // Nothing was ever written on timeline 2.
        let history = TimelineHistory::parse(3, b"1\t0/500\tx\n2\t0/500\ty\n").unwrap();
        assert_eq!((history.timeline_at(3, Lsn::new(0x500)), history.timeline_at(3, Lsn::new(0x508))), (1, 3));
        assert_eq!(TimelineHistory::default().timeline_at(7, Lsn::new(8)), 7);
    }

    #[test]
    fn older_lines_are_cut_whole() {
        let first_line = b"1\t0/3000148\tno recovery target specified\n";
        assert_eq!(lines_before(FILE, 1), b"");
        assert_eq!(lines_before(FILE, 2), [&first_line[..], b"\n"].concat());
        assert_eq!(lines_before(FILE, 3), FILE);
        assert_eq!(lines_before(b"", 3), b"");
    }

    #[test]
    fn nonsense_is_refused() {
        let check = |content: &[u8], expect| assert_eq!(TimelineHistory::parse(3, content), Err(expect));
        check(b"1\n", HistoryError::Line { line_no: 1 });
        check(b"1\t0/1\n2\tx\n", HistoryError::Line { line_no: 2 });
        check(b"3\t0/1\n", HistoryError::NotAnAncestor { timeline_id: 3 });
        check(b"1\t0/5\n2\t0/4\n", HistoryError::Order { line_no: 2 });
        check(b"1\t0/5\n1\t0/6\n", HistoryError::Order { line_no: 2 });
        check(&vec![b'#'; HISTORY_BYTES_MAX + 1], HistoryError::TooLong { length: HISTORY_BYTES_MAX + 1 });
    }
}
