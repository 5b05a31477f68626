//! Garbage collection on the wire: from the command to the repository, and to rows.

use std::ops::ControlFlow;

use super::backend::{BackendError, ImportProgress};
use super::message::{Column, Value};
use super::timeline_change::OnProgress;
use crate::replication::one_line;
use crate::timeline::gc::{OwnRetention, RemovedOfClass};
use crate::timeline::{GcReport, GcStatus, ReadError, Repository, RepositoryError};

/// What is to be done about garbage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GcCommand {
    /// `GC STATUS [name]`
    Status {
        /// Only this timeline.
        timeline: Option<String>,
    },
    /// `GC RUN [name]`; `GC PLAN [name]`, which only tells what would go
    Run {
        /// Only this timeline.
        timeline: Option<String>,
        /// Nothing is written.
        dry_run: bool,
    },
    /// `GC PAUSE`, `GC RESUME`
    Pause {
        /// True for `GC PAUSE`.
        paused: bool,
    },
    /// `TIMELINE RETENTION name [TIME 'time'] [WAL 'size'] | DEFAULT`
    Retention {
        /// The timeline.
        timeline: String,
        /// What it keeps from now on (what is not named stays as it is), `Some(None)`: as much as all; `None`: it is only shown.
        change: Option<Option<OwnRetention>>,
    },
}

/// Rows, and what a person should hear besides, one sentence each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcAnswer {
    /// One value per column of the command.
    pub rows: Vec<Vec<Value>>,
    /// Notices.
    pub notices: Vec<String>,
}

const STATUS_COLUMNS: &[Column] = &[
    Column::text("timeline"),
    Column::text("state"),
    Column::text("horizon_lsn"),
    Column::text("kept_time"),
    Column::text("kept_wal"),
    Column::bool("own_retention"),
    Column::int8("pins"),
    Column::int8("removed_versions"),
    Column::int8("removed_bytes"),
    Column::int8("progress_percent"),
    Column::int8("seconds_left"),
    Column::text("last_error"),
];

const REMOVED_COLUMNS: &[Column] = &[
    Column::text("timeline"),
    Column::text("class"),
    Column::int8("versions"),
    Column::int8("bytes"),
    Column::int8("images"),
    Column::int8("image_bytes"),
];

impl GcCommand {
    /// Columns of its rows.
    pub(super) fn columns(&self) -> &'static [Column] {
        if matches!(self, GcCommand::Run { .. }) { REMOVED_COLUMNS } else { STATUS_COLUMNS }
    }
}

/// Does it.
pub(super) fn apply(
    repository: &Repository,
    command: &GcCommand,
    progress: &mut OnProgress<'_>,
) -> Result<GcAnswer, BackendError> {
    let shown = match command {
        GcCommand::Run { timeline, dry_run } => return run(repository, timeline.as_deref(), *dry_run, progress),
        GcCommand::Status { timeline } => timeline.clone(),
        GcCommand::Pause { paused: true } => {
            repository.pause_collecting();
            None
        }
        GcCommand::Pause { paused: false } => {
            repository.resume_collecting();
            None
        }
        GcCommand::Retention { timeline, change } => {
            if let Some(own) = change {
                repository.set_retention(timeline, *own)?;
            }
            Some(timeline.clone())
        }
    };
    let statuses = repository.collecting_status(shown.as_deref())?;
    Ok(GcAnswer { rows: statuses.iter().map(status_row).collect(), notices: Vec::new() })
}

fn run(
    repository: &Repository,
    timeline: Option<&str>,
    dry_run: bool,
    progress: &mut OnProgress<'_>,
) -> Result<GcAnswer, BackendError> {
    let names = match timeline {
        Some(name) => vec![name.to_owned()],
        None => repository.timelines().iter().map(|timeline| timeline.metadata().name.clone()).collect(),
    };
    let mut answer = GcAnswer::default();
    for name in names {
        let mut on_progress = |bytes_done, bytes_total| -> ControlFlow<()> {
            progress(&ImportProgress { phase: "gc".to_owned(), bytes_done, bytes_total: Some(bytes_total) })
        };
        let report = match repository.collect_garbage(&name, dry_run, &mut on_progress) {
            // Of all that there are: one that has gone meanwhile, or could not be opened, keeps no other from its pass.
            Err(
                error @ (RepositoryError::TimelineMissing { .. }
                | RepositoryError::Read(ReadError::Gone { .. } | ReadError::Unopened { .. })),
            ) if timeline.is_none() => {
                answer.notices.push(format!("`{name}` is left out: {}", one_line(&error)));
                continue;
            }
            report => report?,
        };
        answer.notices.push(summary(&report, dry_run));
        let classes =
            report.counts.removed.iter().map(|(class, removed)| removed_row(&report.timeline, class, removed));
        answer.rows.extend(classes);
        answer.rows.push(removed_row(&report.timeline, "total", &report.counts.total()));
    }
    Ok(answer)
}

fn summary(report: &GcReport, dry_run: bool) -> String {
    let GcReport { timeline, horizon_lsn, counts, duration } = report;
    let Some(horizon_lsn) = horizon_lsn else {
        return format!("`{timeline}` has no history to give up");
    };
    let (removed, seconds) = (counts.total(), duration.as_secs_f64());
    if dry_run {
        return format!("`{timeline}`: below {horizon_lsn} {} versions would go; nothing was done", removed.versions);
    }
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    format!(
        "`{timeline}`: below {horizon_lsn} {} versions are gone, {:.1} MiB of {:.1}; {:.1} MiB written, {:.1} by compaction, in {seconds:.1} s",
        removed.versions,
        mib(removed.bytes),
        mib(counts.walked_bytes),
        mib(counts.written_bytes),
        mib(counts.compacted_bytes),
    )
}

fn removed_row(timeline: &str, class: &str, removed: &RemovedOfClass) -> Vec<Value> {
    let RemovedOfClass { versions, bytes, images, image_bytes } = *removed;
    let mut row = vec![timeline.into(), class.into()];
    row.extend([versions, bytes, images, image_bytes].map(Value::count));
    row
}

fn status_row(status: &GcStatus) -> Vec<Value> {
    vec![
        status.timeline.as_str().into(),
        status.state.name().into(),
        Value::display(status.horizon_lsn),
        Value::display(Some(status.retention.time)),
        Value::display(Some(status.retention.wal)),
        Value::Bool(status.is_own_retention),
        Value::count(status.pins),
        Value::count(status.removed.versions),
        Value::count(status.removed.bytes),
        status.progress_percent.map_or(Value::Null, Value::count),
        status.seconds_left.map_or(Value::Null, Value::count),
        Value::display(status.last_error.as_deref()),
    ]
}
