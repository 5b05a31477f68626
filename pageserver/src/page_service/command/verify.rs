//! `VERIFY` and `REPAIR`: findings and outcomes as rows, progress and the summary as notices.

use std::ops::ControlFlow;

use super::import::progress_text;
use super::rows::Rows;
use crate::page_service::backend::{BackendError, ImportProgress, RepositoryBackend};
use crate::page_service::error::Failure;
use crate::page_service::message::{Column, Value};
use crate::verify::{Finding, Repaired, VerifyCounts, VerifyOptions, VerifyProgress, VerifySink};

/// Of `VERIFY`.
pub const VERIFY_COLUMNS: &[Column] = &[
    Column::text("timeline"),
    Column::text("part"),
    Column::text("object"),
    Column::text("lsn"),
    Column::text("file"),
    Column::text("what"),
    Column::text("what_to_do"),
];

/// Of `REPAIR`.
pub const REPAIR_COLUMNS: &[Column] = &[
    Column::text("timeline"),
    Column::text("part"),
    Column::text("object"),
    Column::text("file"),
    Column::text("outcome"),
    Column::text("what"),
];

/// `REPAIR [name] [DRY RUN]`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepairRequest {
    /// This timeline; everything without.
    pub timeline: Option<String>,
    /// Only tell.
    pub dry_run: bool,
}

/// Checks, and sends what is wrong as it is found.
pub(super) fn verify(
    repository: &dyn RepositoryBackend,
    options: &VerifyOptions,
    rows: &mut Rows<'_>,
) -> Result<(), Failure> {
    let counts = telling(rows, |sink| repository.verify(options, sink))?;
    rows.notice(&summary(&counts))
}

/// Repairs, and sends what became of each damage.
pub(super) fn repair(
    repository: &dyn RepositoryBackend,
    request: &RepairRequest,
    rows: &mut Rows<'_>,
) -> Result<(), Failure> {
    let repaired = telling(rows, |sink| repository.repair(request, sink))?;
    repaired.iter().try_for_each(|repaired| rows.row(&repair_row(repaired)))
}

/// What `check` gives, which tells the client meanwhile. Errors: the client went away or cancelled, which stops it; else its own.
fn telling<T>(
    rows: &mut Rows<'_>,
    check: impl FnOnce(&mut dyn VerifySink) -> Result<T, BackendError>,
) -> Result<T, Failure> {
    let mut sink = RowsSink { rows, stopped_by: None };
    let outcome = check(&mut sink);
    match sink.stopped_by {
        Some(failure) => Err(failure),
        None => Ok(outcome?),
    }
}

/// One line for people.
fn summary(counts: &VerifyCounts) -> String {
    let VerifyCounts { metadata_files, store_files, versions, pages, wal_segments, wal_records, findings } = counts;
    format!(
        "checked {metadata_files} files of metadata, {store_files} files and {versions} versions of the store, {pages} pages, \
         {wal_segments} segments and {wal_records} records of WAL; found {findings}"
    )
}

struct RowsSink<'r, 'a> {
    rows: &'r mut Rows<'a>,
    /// The client went away, or cancelled.
    stopped_by: Option<Failure>,
}

impl RowsSink<'_, '_> {
    fn go_on(&mut self, outcome: Result<(), Failure>) -> ControlFlow<()> {
        match outcome {
            Ok(()) => ControlFlow::Continue(()),
            Err(failure) => {
                self.stopped_by = Some(failure);
                ControlFlow::Break(())
            }
        }
    }
}

impl VerifySink for RowsSink<'_, '_> {
    fn finding(&mut self, finding: &Finding) -> ControlFlow<()> {
        let row = [
            Value::display(finding.timeline.as_deref()),
            finding.part.name().into(),
            finding.object.as_str().into(),
            Value::display(finding.lsn),
            Value::display(finding.file.as_ref().map(|file| file.display())),
            finding.what.as_str().into(),
            finding.what_to_do.into(),
        ];
        let sent = self.rows.row(&row);
        self.go_on(sent)
    }

    fn progress(&mut self, progress: &VerifyProgress) -> ControlFlow<()> {
        let VerifyProgress { phase, bytes_done, bytes_total } = *progress;
        let progress = ImportProgress { phase: phase.to_owned(), bytes_done, bytes_total };
        let told = self.rows.check_interrupts().and_then(|()| self.rows.notice(&progress_text(&progress)));
        self.go_on(told)
    }
}

fn repair_row(repaired: &Repaired) -> [Value; 6] {
    [
        Value::display(repaired.timeline.as_deref()),
        repaired.part.name().into(),
        repaired.object.as_str().into(),
        Value::display(repaired.file.as_ref().map(|file| file.display())),
        repaired.outcome.name().into(),
        repaired.what.as_str().into(),
    ]
}
