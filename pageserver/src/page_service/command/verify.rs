//! `VERIFY` and `REPAIR`: findings and outcomes as rows, progress and the summary as notices.

use std::ops::ControlFlow;

use super::import::progress_text;
use super::rows::Rows;
use crate::page_service::backend::{ImportProgress, RepositoryBackend};
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
    let mut sink = RowsSink { rows, stopped_by: None };
    let outcome = repository.verify(options, &mut sink);
    if let Some(failure) = sink.stopped_by {
        return Err(failure);
    }
    rows.notice(&summary(&outcome?))
}

/// Repairs, and sends what became of each damage.
pub(super) fn repair(
    repository: &dyn RepositoryBackend,
    request: &RepairRequest,
    rows: &mut Rows<'_>,
) -> Result<(), Failure> {
    let mut sink = RowsSink { rows: &mut *rows, stopped_by: None };
    let outcome = repository.repair(request, &mut sink);
    if let Some(failure) = sink.stopped_by {
        return Err(failure);
    }
    let repaired = outcome?;
    repaired.iter().try_for_each(|repaired| rows.row(&repair_row(repaired)))
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
