//! The history file of a timeline that begins at a made-up checkpoint.

use crate::{Lsn, TimeLineId};

/// The history of a timeline that leaves `prev_timeline_id` at `branch_lsn`: `prev_content`, the history of that one (nothing for the first), and a line of
/// its own. `reason` is for people; line breaks in it become spaces.
/// PG 15, 18: src/backend/access/transam/timeline.c, writeTimeLineHistory.
pub fn history_content(prev_content: &[u8], prev_timeline_id: TimeLineId, branch_lsn: Lsn, reason: &str) -> Vec<u8> {
    let mut content = prev_content.to_vec();
    if content.last().is_some_and(|byte| *byte != b'\n') {
        content.push(b'\n');
    }
    let reason = reason.replace(['\n', '\r'], " ");
    content.extend(format!("{prev_timeline_id}\t{branch_lsn}\t{reason}\n").into_bytes());
    content
}
