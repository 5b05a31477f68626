//! `SHOW LSN` and `SHOW TIME`: from a time to an LSN and back.

use std::time::SystemTime;

use postgres_ffi::Lsn;

use super::rows::Rows;
use super::run::timeline_at;
use crate::page_service::backend::{BackendError, RepositoryBackend};
use crate::page_service::error::Failure;
use crate::page_service::message::{Column, Value};
use crate::wall_time::{TimeSpec, WallTime};

/// Of both commands.
pub(super) const COLUMNS: &[Column] = &[Column::text("timeline"), Column::text("lsn"), Column::text("commit_time")];

/// `SHOW LSN name AT TIME 'time'`
pub(super) fn show_lsn(
    repository: &dyn RepositoryBackend,
    timeline: &str,
    time: TimeSpec,
    rows: &mut Rows<'_>,
) -> Result<(), Failure> {
    let timeline = repository.timeline(None, timeline)?;
    let (lsn, commit_time) = timeline.lsn_at_time(time.resolve(SystemTime::now()))?;
    rows.row(&row(timeline.info().name, lsn, commit_time))
}

/// `SHOW TIME name [AT lsn]`
pub(super) fn show_time(
    repository: &dyn RepositoryBackend,
    timeline: &str,
    at: Option<Lsn>,
    rows: &mut Rows<'_>,
) -> Result<(), Failure> {
    let (timeline, at) = timeline_at(repository, timeline, at)?;
    let commit_time = timeline.commit_time_at(at)?.ok_or_else(|| {
        BackendError::not_found(format!(
            "no time is known at this LSN: the timeline was made before times were kept, and no transaction had ended since. lsn=`{at}`"
        ))
    })?;
    rows.row(&row(timeline.info().name, at, commit_time))
}

fn row(timeline: String, lsn: Lsn, commit_time: WallTime) -> [Value; 3] {
    [Value::Text(timeline), Value::display(Some(lsn)), Value::display(Some(commit_time))]
}
