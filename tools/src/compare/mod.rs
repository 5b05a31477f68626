//! Holds every page of a cleanly stopped cluster's directory against what the page server says at the same LSN.
//!
//! - The LSN is the end of the shutdown checkpoint record: nothing in the directory is newer, nothing in WAL is missing from it.
//! - What may differ is decided in `postgres_ffi::mask` (pages) and in [`files`] (everything else), with the reasons.
//! - Nothing is skipped silently: what is not compared is counted under a reason.

mod command;
pub mod files;
pub mod page_server;
pub mod relations;
pub mod report;
pub mod source;

use std::path::PathBuf;

use anyhow::{Result, bail};
use postgres_ffi::control_file::DbState;

pub use command::Compare;
pub use report::Report;
pub use source::Source;

use crate::datadir::{DataDir, OtherReason};

/// How to compare.
#[derive(Debug, Clone)]
pub struct Options {
    /// Threads that read and compare.
    pub threads: usize,
    /// How many mismatches to describe.
    pub mismatches_max: usize,
    /// Where both versions of the pages that differ are saved, raw and decoded.
    pub save_dir: Option<PathBuf>,
}

/// Compares the directory with the source. Requires: nothing was written between the end of the directory's shutdown checkpoint and the
/// source's LSN. Errors: the server of the directory was not stopped cleanly, files or pages cannot be read.
pub fn compare(dir: &DataDir, source: &dyn Source, options: &Options) -> Result<Report> {
    match dir.control.state {
        DbState::ShutDown => {}
        state => bail!("the cluster was not stopped cleanly, its files are behind its WAL. state=`{state:?}`"),
    }
    let mut report = relations::compare(dir, source, options)?;
    files::compare(dir, source, &mut report)?;
    report.compared_with = source.describe();
    report.lsn = Some(source.lsn());
    leave_out_others(dir, &mut report);
    report.finish(options.mismatches_max);
    Ok(report)
}

fn leave_out_others(dir: &DataDir, report: &mut Report) {
    for other in &dir.others {
        let reason = match other.reason {
            OtherReason::TemporaryRelation => "temporary relation: not in the WAL",
            OtherReason::RelationCache => "relation cache: the server writes it anew",
            OtherReason::TemporaryFile => "temporary files of sorts and hashes",
            OtherReason::Unknown => "unknown name",
        };
        report.leave_out("other files", reason, 1);
        if other.reason == OtherReason::Unknown {
            report.notes.push(format!("unknown file: {}", other.path.display()));
        }
    }
}
