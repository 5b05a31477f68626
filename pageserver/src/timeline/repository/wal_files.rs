//! WAL files of timelines, for servers that recover from them: standbys whose primary has removed them, recovery to a point in time.
//!
//! - Each comes from the timeline's own directory, or, up to where it was branched off, from its ancestors'.
//! - **Never:** a segment that was not received to its end, or WAL of an ancestor's own later life under a name that the branch's servers ask for.

use std::io::Read;
use std::sync::Arc;

use postgres_ffi::Lsn;

use super::{Repository, RepositoryError};
use crate::timeline::Timeline;
use crate::wal::{WalFileName, WholeFile};

/// Why there is no such file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WalFileRequestError {
    /// The text names nothing that there could be.
    #[error(
        "not the name of a WAL segment (24 hexadecimal digits) or history file. value=`{value}`, wal_segment_bytes=`{wal_segment_bytes}`"
    )]
    Name {
        /// What was asked for.
        value: String,
        /// The cluster's, on which names of segments depend.
        wal_segment_bytes: u32,
    },
    /// It is on our disk, and has to be read through first: the server has been started just now, or the timeline is stopped.
    #[error(
        "the WAL file has been received and is not ingested yet. file=`{file}`, timeline=`{timeline}`, last_record_lsn=`{last_record_lsn}`"
    )]
    NotIngested {
        /// What was asked for.
        file: String,
        /// The timeline.
        timeline: String,
        /// What has been ingested.
        last_record_lsn: Lsn,
    },
    /// It is not on our disk.
    #[error(
        "Not found: the WAL file is not here: not received to its end yet, removed (wal.keep_mib keeps more), or never written. file=`{file}`, timeline=`{timeline}`, oldest_wal_lsn=`{oldest_wal_lsn}`, last_record_lsn=`{last_record_lsn}`"
    )]
    Missing {
        /// What was asked for.
        file: String,
        /// The timeline.
        timeline: String,
        /// Where its own files begin; `0/0` without one.
        oldest_wal_lsn: Lsn,
        /// What has been received, but for the beginning of a record.
        last_record_lsn: Lsn,
    },
}

impl Repository {
    /// Length and bytes of the WAL segment or history file `file`, as the primary would archive it. Errors: there is no such timeline or file; it is damaged.
    pub fn wal_file(&self, timeline: &str, file: &str) -> Result<(u64, Box<dyn Read + Send>), RepositoryError> {
        let timeline = self.timeline_named(timeline)?;
        let metadata = timeline.metadata();
        let wal_segment_bytes = metadata.cluster.wal_segment_bytes;
        let name = WalFileName::parse(file, wal_segment_bytes).ok_or_else(|| {
            let value = file.chars().take(64).collect();
            WalFileRequestError::Name { value, wal_segment_bytes }
        })?;
        let (file, last_record_lsn) = (file.to_owned(), timeline.last_record_lsn());
        let refused = match self.find_wal_file(&timeline, name)? {
            WholeFile::Whole { length, bytes } => return Ok((length, bytes)),
            WholeFile::NotIngested => {
                WalFileRequestError::NotIngested { file, timeline: metadata.name.clone(), last_record_lsn }
            }
            WholeFile::Missing => WalFileRequestError::Missing {
                file,
                timeline: metadata.name.clone(),
                oldest_wal_lsn: self
                    .wal_layout(&timeline)
                    .segment_files()?
                    .first()
                    .map_or(Lsn::ZERO, |first| first.start_lsn),
                last_record_lsn,
            },
        };
        Err(refused.into())
    }

    fn find_wal_file(&self, timeline: &Arc<Timeline>, name: WalFileName) -> Result<WholeFile, RepositoryError> {
        let layout = self.wal_layout(timeline);
        let found = layout.whole_file(name, timeline.last_record_lsn())?;
        if !matches!(found, WholeFile::Missing) {
            // The files of one that is reset or deleted go one by one, and others of the same names may follow.
            timeline.check_here()?;
            return Ok(found);
        }
        let Some((ancestor, branch_lsn)) = timeline.nearest_ancestor() else { return Ok(WholeFile::Missing) };
        let is_shared = match name {
            // The one in which the branch was made goes on with what the ancestor wrote later. The branch's own has what was in front.
            WalFileName::Segment { segment_no, .. } => {
                layout.segment_start_of(segment_no.saturating_add(1)) <= branch_lsn
            }
            WalFileName::History { timeline_id } => {
                timeline_id <= self.pg_history_at(&ancestor, branch_lsn)?.timeline_id
            }
        };
        if is_shared { self.find_wal_file(&ancestor, name) } else { Ok(WholeFile::Missing) }
    }
}
