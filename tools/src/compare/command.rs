//! `pagectl compare`: arguments, and which source they name.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postgres_ffi::Lsn;

use super::page_server::PageServerSource;
use super::source::DirectorySource;
use super::{Options, Report, compare};
use crate::connect::{ServerArgs, wait_for_lsn};
use crate::datadir::DataDir;
use crate::output::{Outcome, Output};

/// Holds every page of a cleanly stopped cluster's data directory against a timeline.
///
/// Compares each page of each relation, fork and SLRU, and the other files, at the end of the cluster's shutdown checkpoint, after masking what
/// PostgreSQL changes without WAL. Waits for the timeline to get there. Ends with "pages compared: N, mismatches: M".
/// Exit code 1 when there is a mismatch.
#[derive(Debug, clap::Args)]
pub struct Compare {
    /// Data directory of a cleanly stopped cluster; must be readable by you
    #[arg(long)]
    datadir: PathBuf,
    /// Timeline to compare with, by name or id
    #[arg(long, required_unless_present = "with_datadir", conflicts_with = "with_datadir")]
    timeline: Option<String>,
    /// Compare with a second data directory instead: that of a standby that was stopped behind its primary
    #[arg(long)]
    with_datadir: Option<PathBuf>,
    /// Compare with the timeline as of this LSN; without it, the end of the shutdown checkpoint
    #[arg(long, conflicts_with = "with_datadir")]
    lsn: Option<Lsn>,
    /// How long to wait for the timeline to get there
    #[arg(long, default_value_t = 60)]
    wait_seconds: u64,
    /// Threads that read and compare; 0 for twice the number of processors
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Describe so many mismatches; all are counted
    #[arg(long, default_value_t = 20)]
    mismatches: usize,
    /// Save both versions of the pages that are described, raw (.bin) and decoded (.txt), in this folder
    #[arg(long)]
    save: Option<PathBuf>,
}

impl Compare {
    /// Compares.
    pub fn run(&self, server: &ServerArgs, output: &mut Output) -> Result<Outcome> {
        let dir = DataDir::open(&self.datadir)?;
        let threads = match self.threads {
            0 => 2 * std::thread::available_parallelism().map_or(1, |count| count.get()),
            threads => threads,
        };
        let options = Options { threads, mismatches_max: self.mismatches, save_dir: self.save.clone() };
        let report = self.compare(&dir, server, &options)?;
        output.value(&report)?;
        Ok(if report.mismatches == 0 { Outcome::Good } else { Outcome::Bad })
    }

    fn compare(&self, dir: &DataDir, server: &ServerArgs, options: &Options) -> Result<Report> {
        let disk_lsn = dir.checkpoint_end_lsn()?;
        if let Some(path) = &self.with_datadir {
            let source = DirectorySource::new(DataDir::open(path)?)?;
            ensure!(
                disk_lsn == source.lsn(),
                "the two directories are not at the same LSN. first=`{disk_lsn}`, second=`{}`",
                source.lsn()
            );
            return compare(dir, &source, options);
        }
        let timeline = self.timeline.clone().context("a timeline or a second directory is needed")?;
        let lsn = self.lsn.unwrap_or(disk_lsn);
        wait_for_lsn(&mut server.connect()?, &timeline, lsn, Duration::from_secs(self.wait_seconds))?;
        compare(dir, &PageServerSource::new(server.clone(), timeline, lsn), options)
    }
}
