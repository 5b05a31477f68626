//! What timelines cost, on the wire: from the command to the repository, and to rows.

use std::ops::ControlFlow;

use postgres_ffi::Lsn;

use super::backend::{BackendError, ImportProgress};
use super::message::{Column, Value};
use super::timeline_change::OnProgress;
use crate::timeline::{LogicalSize, Pin, ReadError, Repository, RepositoryError, TimelineSizes};

/// `SIZE [name] [AT lsn] [PINS]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SizeCommand {
    /// Only this timeline.
    pub timeline: Option<String>,
    /// As of; the last record without.
    pub at: Option<Lsn>,
    /// Count what each branch pins in its ancestors: a walk.
    pub pins: bool,
}

/// Columns of its rows.
pub(super) const COLUMNS: &[Column] = &[
    Column::text("timeline"),
    Column::text("lsn"),
    Column::int8("logical_bytes"),
    Column::int8("slru_bytes"),
    Column::int8("history_bytes"),
    Column::int8("uncompressed_bytes"),
    Column::int8("memory_bytes"),
    Column::int8("wal_bytes"),
    Column::int8("wal_history_bytes"),
    Column::int8("own_bytes"),
    Column::text("pinned_by"),
    Column::text("pins"),
    Column::int8("pinned_bytes"),
];

/// One row for each timeline.
pub(super) fn apply(
    repository: &Repository,
    command: &SizeCommand,
    progress: &mut OnProgress<'_>,
) -> Result<Vec<Vec<Value>>, BackendError> {
    let all = match &command.timeline {
        Some(name) => vec![repository.timeline_sizes(name, command.at)?],
        None => repository.all_sizes(command.at)?,
    };
    let mut on_progress = |bytes_done, bytes_total| -> ControlFlow<()> {
        progress(&ImportProgress { phase: "pins".to_owned(), bytes_done, bytes_total: Some(bytes_total) })
    };
    let mut rows = Vec::with_capacity(all.len());
    for sizes in all {
        let pinned_bytes = match command.pins {
            true => match repository.pinned_bytes(&sizes.timeline, &mut on_progress) {
                Err(RepositoryError::Read(ReadError::Unopened { .. })) if command.timeline.is_none() => None,
                pinned_bytes => Some(pinned_bytes?),
            },
            false => None,
        };
        rows.push(row(&sizes, pinned_bytes));
    }
    Ok(rows)
}

fn row(sizes: &TimelineSizes, pinned_bytes: Option<u64>) -> Vec<Value> {
    let count = |value: Option<u64>| value.map_or(Value::Null, Value::count);
    let logical = sizes.logical.as_ref();
    vec![
        sizes.timeline.as_str().into(),
        Value::display(sizes.request_lsn),
        count(logical.map(LogicalSize::bytes)),
        count(logical.map(LogicalSize::slru_bytes)),
        Value::count(sizes.versions.files),
        Value::count(sizes.versions.uncompressed),
        Value::count(sizes.versions.memory),
        Value::count(sizes.wal_file_bytes),
        count(sizes.wal_history_bytes),
        Value::count(sizes.own_bytes()),
        pins(&sizes.pinned_by),
        pins(&sizes.pins),
        count(pinned_bytes),
    ]
}

/// NULL for none.
fn pins(pins: &[Pin]) -> Value {
    let texts: Vec<String> = pins.iter().map(Pin::to_string).collect();
    Value::display((!texts.is_empty()).then(|| texts.join(", ")))
}
