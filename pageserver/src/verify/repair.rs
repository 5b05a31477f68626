//! Mends what a check finds, as far as it can be mended without guessing.
//!
//! - A WAL segment that is damaged or missing comes from the primary again, whole, is read through, and takes the old one's place in one step.
//! - A file of metadata that is damaged or differs is written again from what the running server, or the file's copy, knows.
//! - Versions that are nobody's are deleted, and with them damaged files that hold nothing else.
//! - Compaction that a damaged file has paused goes on when everything can be read again.
//! - **Never** versions in a damaged file of the store: an image that WAL no longer makes cannot come back, and a page whose newest records are
//!   lost would read as an older one. Such damage is listed with what it concerns; the way out is a new import, or a copy of the directory.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use keyenc::TimelineNo;

use super::finding::advice;
use super::job::{Job, VerifyError, VerifyOptions, VerifyProgress, VerifySink};
use super::{Finding, Part, metadata, versions, wal};
use crate::timeline::{Repository, Timeline};

/// What became of one damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepairOutcome {
    /// It is as it should be.
    Repaired,
    /// It would be tried: this was a dry run.
    Possible,
    /// It stays.
    Impossible,
}

impl RepairOutcome {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            RepairOutcome::Repaired => "repaired",
            RepairOutcome::Possible => "would be repaired",
            RepairOutcome::Impossible => "stays",
        }
    }
}

/// One damage, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repaired {
    /// The timeline's name; `None`: of the server as a whole, or nobody's.
    pub timeline: Option<String>,
    /// In which part.
    pub part: Part,
    /// Of what.
    pub object: String,
    /// The file.
    pub file: Option<PathBuf>,
    /// What became of it.
    pub outcome: RepairOutcome,
    /// What was done, or why it stays and what that means.
    pub what: String,
}

/// Why something about the WAL files stays.
const NO_SEGMENT: &str = "it is no segment that a primary has";
/// So many findings of one check are kept, a few hundred bytes each.
const FINDINGS_MAX: usize = 100_000;

/// Keeps what is found; how far it is goes on to somebody.
struct Collected<'s> {
    findings: Vec<Finding>,
    is_too_much: bool,
    sink: &'s mut dyn VerifySink,
}

impl VerifySink for Collected<'_> {
    fn finding(&mut self, finding: &Finding) -> ControlFlow<()> {
        self.is_too_much = self.findings.len() == FINDINGS_MAX;
        if self.is_too_much {
            return ControlFlow::Break(());
        }
        self.findings.push(finding.clone());
        ControlFlow::Continue(())
    }

    fn progress(&mut self, progress: &VerifyProgress) -> ControlFlow<()> {
        self.sink.progress(progress)
    }
}

impl Repository {
    /// Mends one timeline, or all; with `dry_run` only tells what would be tried. One entry for each damage. `sink` hears how far the checks are that it begins with; what they find it
    /// does not hear.
    ///
    /// Errors: no such timeline; the store cannot be read at all; `sink` asked to stop: what was mended by then stays so; [`VerifyError::TooMuch`].
    pub fn repair(
        &self,
        timeline: Option<&str>,
        dry_run: bool,
        sink: &mut dyn VerifySink,
    ) -> Result<Vec<Repaired>, VerifyError> {
        let timelines = match timeline {
            Some(name) => vec![self.timeline_named(name)?],
            None => self.timelines(),
        };
        let mut repaired = Vec::new();
        repaired.extend(self.repair_metadata(&timelines, dry_run, sink)?);
        for timeline in &timelines {
            repaired.extend(self.repair_wal(timeline, dry_run, sink)?);
        }
        let only = timeline.map(|_| &*timelines[0]);
        repaired.extend(self.repair_store(only, dry_run, sink)?);
        Ok(repaired)
    }

    fn repair_metadata(
        &self,
        timelines: &[Arc<Timeline>],
        dry_run: bool,
        sink: &mut dyn VerifySink,
    ) -> Result<Vec<Repaired>, VerifyError> {
        let found = collect(self, sink, |job| metadata::check(job, timelines))?;
        let mend = |finding: Finding| {
            let is_ours = finding.what_to_do == advice::METADATA;
            let outcome = match (is_ours, dry_run) {
                (true, true) => Ok(RepairOutcome::Possible),
                (true, false) => finding
                    .file
                    .as_deref()
                    .map_or(Ok(false), |file| self.write_file_again(file))
                    .map(|done| if done { RepairOutcome::Repaired } else { RepairOutcome::Impossible }),
                (false, _) => Ok(RepairOutcome::Impossible),
            };
            match outcome {
                Ok(outcome @ RepairOutcome::Impossible) => told(&finding, outcome, finding.what.clone()),
                Ok(outcome) => told(&finding, outcome, "written again".to_owned()),
                Err(error) => told(&finding, RepairOutcome::Impossible, crate::replication::one_line(&error)),
            }
        };
        Ok(found.into_iter().map(mend).collect())
    }

    fn repair_wal(
        &self,
        timeline: &Arc<Timeline>,
        dry_run: bool,
        sink: &mut dyn VerifySink,
    ) -> Result<Vec<Repaired>, VerifyError> {
        let mut damaged = Vec::new();
        let found = collect(self, sink, |job| wal::check_and_list(job, timeline, &mut damaged))?;
        let stays =
            |finding: &Finding, why: &str| told(finding, RepairOutcome::Impossible, format!("{why}: {}", finding.what));
        let is_of_segment = |finding: &Finding| finding.what_to_do == advice::WAL;
        if timeline.metadata().primary.is_none() {
            let why = "the timeline follows no primary to take it from";
            return Ok(found.iter().map(|finding| stays(finding, why)).collect());
        }
        if dry_run || damaged.is_empty() {
            let would = format!("{} segments would be taken from the primary", damaged.len());
            let tell = |finding: &Finding| match is_of_segment(finding) {
                true => told(finding, RepairOutcome::Possible, format!("{would}: {}", finding.what)),
                false => stays(finding, NO_SEGMENT),
            };
            return Ok(found.iter().map(tell).collect());
        }
        let segment_bytes = u64::from(self.wal_layout(timeline).segment_bytes);
        let bytes_total = Some(segment_bytes * damaged.len() as u64);
        let mut bytes_done = 0;
        let mut goes_on = || {
            let progress = VerifyProgress { phase: "segments", bytes_done, bytes_total };
            bytes_done += segment_bytes;
            sink.progress(&progress).is_continue()
        };
        let fetched = self.fetch_segments(timeline, &damaged, &mut goes_on);
        if matches!(fetched, Ok(false)) {
            return Err(VerifyError::Cancelled);
        }
        let left = collect(self, sink, |job| wal::check_and_list(job, timeline, &mut Vec::new()))?;
        let mend = |finding: &Finding| {
            let is_left = left.iter().any(|left| left.object == finding.object && left.file == finding.file);
            if is_left && !is_of_segment(finding) {
                return stays(finding, NO_SEGMENT);
            }
            match (&fetched, is_left) {
                (Ok(_), false) => told(finding, RepairOutcome::Repaired, "taken from the primary".to_owned()),
                (Ok(_), true) => stays(finding, "what the primary sends is no better"),
                (Err(error), _) => told(finding, RepairOutcome::Impossible, crate::replication::one_line(error)),
            }
        };
        Ok(found.iter().map(mend).collect())
    }

    fn repair_store(
        &self,
        only: Option<&Timeline>,
        dry_run: bool,
        sink: &mut dyn VerifySink,
    ) -> Result<Vec<Repaired>, VerifyError> {
        let mut orphans = Vec::new();
        let found = collect(self, sink, |job| versions::check_and_list(job, only, &mut orphans))?;
        let mut orphans = orphans.into_iter();
        let mut is_readable = true;
        let mend = |finding: Finding| match finding.what_to_do {
            advice::ORPHANS => self.repair_orphans(&finding, orphans.next(), dry_run),
            // The last one.
            advice::PAUSED => self.repair_pause(&finding, is_readable, dry_run),
            what_to_do => {
                let repaired = self.repair_file(&finding, dry_run);
                is_readable &= what_to_do != advice::RESTORE_STORE || repaired.outcome != RepairOutcome::Impossible;
                repaired
            }
        };
        Ok(found.into_iter().map(mend).collect())
    }

    fn repair_orphans(&self, finding: &Finding, no: Option<TimelineNo>, dry_run: bool) -> Repaired {
        let outcome = match (no, dry_run) {
            (None, _) => return told(finding, RepairOutcome::Impossible, finding.what.clone()),
            (Some(_), true) => Ok(RepairOutcome::Possible),
            (Some(no), false) => self.delete_orphans(no).map(|()| RepairOutcome::Repaired),
        };
        match outcome {
            Ok(outcome) => told(finding, outcome, "deleted; compaction gives the space back".to_owned()),
            Err(error) => told(finding, RepairOutcome::Impossible, crate::replication::one_line(&error)),
        }
    }

    /// A file that is damaged goes if nobody has versions in it.
    fn repair_file(&self, finding: &Finding, dry_run: bool) -> Repaired {
        let stays = || {
            let way_out = match finding.what_to_do {
                advice::LOST => advice::LOST,
                _ => {
                    "pages whose versions are in there cannot be read at the LSNs that need them: stop the server and run `pageserver mend`, or restore the data directory"
                }
            };
            told(finding, RepairOutcome::Impossible, format!("{}; {way_out}", finding.what))
        };
        let Some(file) = finding.file.as_deref().filter(|_| finding.what_to_do == advice::RESTORE_STORE) else {
            return stays();
        };
        let outcome = self.number_of_nobody_in(file).and_then(|no| match (no, dry_run) {
            (None, _) => Ok(RepairOutcome::Impossible),
            (Some(_), true) => Ok(RepairOutcome::Possible),
            (Some(no), false) => {
                self.delete_orphans(no)?;
                // One of level 0 stays until it is merged.
                let is_gone = self.number_of_nobody_in(file)?.is_none();
                Ok(if is_gone { RepairOutcome::Repaired } else { RepairOutcome::Impossible })
            }
        });
        match outcome {
            Ok(RepairOutcome::Impossible) => stays(),
            Ok(outcome) => told(finding, outcome, "nobody has versions in this file: taken away".to_owned()),
            Err(error) => told(finding, RepairOutcome::Impossible, crate::replication::one_line(&error)),
        }
    }

    fn repair_pause(&self, finding: &Finding, is_readable: bool, dry_run: bool) -> Repaired {
        let stays =
            |why: &str| told(finding, RepairOutcome::Impossible, format!("compaction is paused, and stays so: {why}"));
        if !is_readable {
            return stays("a part of the store cannot be read");
        }
        if dry_run {
            return told(finding, RepairOutcome::Possible, "compaction would go on".to_owned());
        }
        match self.resume_compaction() {
            Ok(()) => told(finding, RepairOutcome::Repaired, "compaction goes on".to_owned()),
            Err(error) => stays(&crate::replication::one_line(&error)),
        }
    }
}

fn collect(
    repository: &Repository,
    sink: &mut dyn VerifySink,
    check: impl FnOnce(&mut Job<'_>) -> Result<(), VerifyError>,
) -> Result<Vec<Finding>, VerifyError> {
    let mut collected = Collected { findings: Vec::new(), is_too_much: false, sink };
    let checked = check(&mut Job::new(repository, &VerifyOptions::default(), &mut collected));
    if collected.is_too_much {
        return Err(VerifyError::TooMuch { max: FINDINGS_MAX });
    }
    checked.map(|()| collected.findings)
}

fn told(finding: &Finding, outcome: RepairOutcome, what: String) -> Repaired {
    Repaired {
        timeline: finding.timeline.clone(),
        part: finding.part,
        object: finding.object.clone(),
        file: finding.file.clone(),
        outcome,
        what,
    }
}
