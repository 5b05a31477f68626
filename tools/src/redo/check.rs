//! `pagectl redo check`: native redo of WAL against the page images that `wal_consistency_checking` puts into it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use pageserver::redo::native::NativeEngine;
use pageserver::redo::{NoEngine, RedoConfig, WalRedo};
use pageserver::redo_check::{BlockTag, CheckReport, CheckSettings, OperationCounts, RedoCheck};
use pageserver::timeline::TimelineMetadata;
use postgres_ffi::{Lsn, TimeLineId};
use serde::Serialize;

use crate::datadir::DataDir;
use crate::output::{Outcome, Output};
use crate::wal_segments::Segments;

/// Check redo against the page images that wal_consistency_checking puts into WAL.
///
/// Applies every record, block by block, with redo in Rust; no PostgreSQL is needed. Where a record brings the page as it must become
/// (`wal_consistency_checking = all` on the server that wrote it), the two are compared after PostgreSQL's own masks. A line per resource manager and
/// operation: pages changed, compared with an image, equal, equal after masking, different. Exit code 1 when a page differs, 2 when there was nothing to
/// compare with.
///
/// Pages that were there before the WAL begins are checked from their first image on, or from the start with --base.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// A WAL segment file, or a folder of them (pg_wal)
    #[arg(required_unless_present = "server_dir")]
    wal: Option<PathBuf>,
    /// Data directory of a page server, with --timeline: check the WAL that it keeps of that timeline
    #[arg(long, value_name = "DIR", conflicts_with = "wal", requires = "timeline")]
    server_dir: Option<PathBuf>,
    /// Name or id of the timeline
    #[arg(long, requires = "server_dir")]
    timeline: Option<String>,
    /// Copy of the cluster's data directory as it was, stopped, when the WAL begins
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,
    /// Begin at the first record at or behind this LSN; with --base, at its checkpoint without this
    #[arg(long)]
    start: Option<Lsn>,
    /// Stop at the first record that starts at or behind this LSN
    #[arg(long)]
    end: Option<Lsn>,
    /// PostgreSQL timeline of the segments to read from a folder; the highest there is without it
    #[arg(long)]
    timeline_id: Option<TimeLineId>,
    /// Without --base: the cluster has neither data checksums nor wal_log_hints
    #[arg(long, conflicts_with = "base")]
    no_hint_bits_logged: bool,
    /// Also apply each page's whole history at once, which must give the same page; takes memory for all of it
    #[arg(long)]
    chains: bool,
}

/// The report as people read it.
#[derive(Serialize)]
#[serde(transparent)]
struct ReportView(CheckReport);

impl CheckArgs {
    /// Checks.
    pub fn run(&self, output: &mut Output) -> Result<Outcome> {
        let base = self.base.as_deref().map(DataDir::open).transpose()?;
        let start = self.start.or_else(|| base.as_ref().map(|base| base.control.checkpoint_lsn));
        let segments = Segments::find(&self.wal_dir()?, start, self.timeline_id)?;
        if let Some(base) = &base {
            ensure!(
                base.control.version == segments.version,
                "the base is of another version than the WAL. base=`{}`, wal=`{}`",
                base.control.version,
                segments.version
            );
        }
        let engine = Arc::new(NativeEngine::new(segments.version, Arc::new(NoEngine)));
        let redo = WalRedo::start(&RedoConfig::default(), engine);
        let settings = CheckSettings {
            version: segments.version,
            data_checksums: base.as_ref().map_or(!self.no_hint_bits_logged, |base| base.control.data_checksums()),
            wal_log_hints: base.as_ref().is_some_and(|base| base.control.wal_log_hints),
            has_base: base.is_some(),
            chains: self.chains,
            cases: 0,
        };
        let base_pages =
            |(rel, fork, block_no): BlockTag| base.as_ref().and_then(|base| base.read_page(rel, fork, block_no));
        let mut check = RedoCheck::new(settings, &redo, Box::new(base_pages));
        self.check_records(&mut check, &segments, start)?;
        if self.chains {
            check.check_chains();
        }
        let report = ReportView(check.report());
        output.value(&report)?;
        ensure!(
            report.0.total.checked > 0,
            "no page could be checked: the WAL holds no images to compare with (wal_consistency_checking on the server that wrote it)"
        );
        Ok(if report.0.is_good() { Outcome::Good } else { Outcome::Bad })
    }

    fn check_records(&self, check: &mut RedoCheck<'_>, segments: &Segments, start: Option<Lsn>) -> Result<()> {
        let first = start.unwrap_or(segments.start_lsn);
        let bar = ProgressBar::new(segments.bytes_from(first));
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {bytes} of {total_bytes} of WAL, {eta} left") {
            bar.set_style(style);
        }
        let mut records = segments.records(start)?;
        while let Some(record) = records.next_record()? {
            if self.end.is_some_and(|end| record.start_lsn >= end) {
                break;
            }
            bar.set_position(record.end_lsn.saturating_sub(first));
            check.record(&record).with_context(|| format!("check the record at {}", record.start_lsn))?;
        }
        bar.finish_and_clear();
        Ok(())
    }

    fn wal_dir(&self) -> Result<PathBuf> {
        match (&self.wal, &self.server_dir, &self.timeline) {
            (Some(wal), ..) => Ok(wal.clone()),
            (None, Some(server_dir), Some(timeline)) => timeline_wal_dir(server_dir, timeline),
            _ => anyhow::bail!("name a WAL folder, or --server-dir and --timeline"),
        }
    }
}

/// Where a page server keeps the WAL of the timeline with this name or id.
fn timeline_wal_dir(server_dir: &Path, timeline: &str) -> Result<PathBuf> {
    let timelines = server_dir.join("timelines");
    for entry in std::fs::read_dir(&timelines).with_context(|| format!("list {}", timelines.display()))? {
        let dir = entry?.path();
        let metadata = TimelineMetadata::load(&dir)?;
        if metadata.name == timeline || metadata.timeline_id.to_string() == timeline {
            return Ok(dir.join("wal"));
        }
    }
    anyhow::bail!("no such timeline in {}. timeline=`{timeline}`", timelines.display())
}

impl fmt::Display for ReportView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = &self.0;
        let mut table = comfy_table::Table::new();
        table.load_preset(comfy_table::presets::NOTHING);
        table.set_header([
            "rmgr",
            "operation",
            "pages",
            "checked",
            "equal",
            "masked",
            "known",
            "different",
            "images",
            "no image",
            "not covered",
        ]);
        let numbers = |counts: &OperationCounts| {
            let counts = [
                counts.pages,
                counts.checked,
                counts.equal,
                counts.equal_masked,
                counts.known_difference,
                counts.different,
                counts.images_applied,
                counts.no_image,
                counts.not_covered,
            ];
            counts.map(|count| count.to_string())
        };
        for row in &report.operations {
            table.add_row([row.rmgr.clone(), row.operation.clone()].into_iter().chain(numbers(&row.counts)));
        }
        table.add_row(["total".to_owned(), String::new()].into_iter().chain(numbers(&report.total)));
        for column_no in 2..=10 {
            if let Some(column) = table.column_mut(column_no) {
                column.set_cell_alignment(comfy_table::CellAlignment::Right);
            }
        }
        writeln!(f, "{table}")?;
        for difference in &report.differences {
            writeln!(f, "different: {difference}")?;
        }
        if report.chains_equal + report.chains_different > 0 {
            writeln!(
                f,
                "histories applied at once: {} equal, {} different",
                report.chains_equal, report.chains_different
            )?;
        }
        write!(
            f,
            "PostgreSQL {}, records: {}, pages checked: {}, different: {}",
            report.version, report.records, report.total.checked, report.total.different
        )
    }
}
