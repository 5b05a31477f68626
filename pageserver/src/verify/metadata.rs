//! The files that a server begins with, read again: do they parse, do they say what the server knows, do they agree with one another?

use std::path::PathBuf;
use std::sync::Arc;

use postgres_ffi::Lsn;

use super::finding::advice;
use super::job::{Job, VerifyError};
use super::{Finding, Part};
use crate::timeline::{FileCheck, Timeline, TimelineState};

/// Checks the files of `timelines` and those of the server as a whole.
pub(super) fn check(job: &mut Job<'_>, timelines: &[Arc<Timeline>]) -> Result<(), VerifyError> {
    job.begin("metadata", None)?;
    let checks = job.repository.check_files(timelines);
    job.counts.metadata_files = checks.len() as u64;
    for FileCheck { timeline, path, wrong } in checks {
        let Some(what) = wrong else { continue };
        let what_to_do = match path.file_name().and_then(|name| name.to_str()) {
            Some("pageserver.toml") => advice::CONFIG,
            _ => advice::METADATA,
        };
        job.found(&finding(timeline, path.display().to_string(), Some(path), what, what_to_do))?;
    }
    timelines.iter().try_for_each(|timeline| check_agreement(job, timeline))
}

/// A timeline's metadata and its store.
fn check_agreement(job: &mut Job<'_>, timeline: &Arc<Timeline>) -> Result<(), VerifyError> {
    let metadata = timeline.metadata();
    if let TimelineState::Damaged { reason } = timeline.state() {
        let (name, what) = (metadata.name.clone(), format!("could not be opened: {reason}"));
        return job.found(&finding(Some(name), "the timeline".to_owned(), None, what, advice::UNOPENED));
    }
    let mut wrong = |object: &str, what: String| {
        let what_to_do = advice::DISAGREE;
        job.found(&finding(Some(metadata.name.clone()), object.to_owned(), None, what, what_to_do))
    };
    let durable_lsn = timeline.own_durable_lsn();
    if metadata.imported.is_some() && durable_lsn.is_none() {
        wrong("watermark", "an imported timeline without a watermark: its import was not whole".to_owned())?;
    }
    let own_last_lsn = timeline.own_last_record_lsn();
    if let Some(durable_lsn) = durable_lsn.filter(|durable_lsn| *durable_lsn > own_last_lsn) {
        let what = format!("above the last record. durable_lsn=`{durable_lsn}`, last_record_lsn=`{own_last_lsn}`");
        wrong("watermark", what)?;
    }
    let start_lsn = metadata.imported.as_ref().map(|imported| imported.start_lsn);
    let branch_lsn = metadata.ancestor.as_ref().map(|ancestor| ancestor.lsn);
    let floor_lsn = branch_lsn.or(start_lsn).unwrap_or(Lsn::ZERO);
    if let Some(durable_lsn) = durable_lsn.filter(|durable_lsn| *durable_lsn < floor_lsn) {
        wrong(
            "watermark",
            format!("below where the timeline begins. durable_lsn=`{durable_lsn}`, begins=`{floor_lsn}`"),
        )?;
    }
    if let Some((ancestor, branch_lsn)) = timeline.nearest_ancestor() {
        let ancestor_lsn = ancestor.own_last_record_lsn();
        if ancestor.state() == TimelineState::Active && ancestor_lsn < branch_lsn {
            let what = format!(
                "its ancestor does not reach it. branch_lsn=`{branch_lsn}`, ancestor's last_record_lsn=`{ancestor_lsn}`"
            );
            wrong("branch LSN", what)?;
        }
    }
    Ok(())
}

fn finding(
    timeline: Option<String>,
    object: String,
    file: Option<PathBuf>,
    what: String,
    what_to_do: &'static str,
) -> Finding {
    Finding { timeline, part: Part::Metadata, object, lsn: None, file, what, what_to_do }
}
