//! `pagectl import`: a cluster becomes a timeline, with progress.

use std::path::PathBuf;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use pageserver::client::ImportProgress;
use pageserver::import::ClusterFiles;

use crate::connect::{ServerArgs, show_rows};
use crate::output::Output;

/// Makes a timeline of a cluster: a running primary, a stopped or crashed data directory, or a base backup
#[derive(Debug, clap::Args)]
pub struct Import {
    /// Name of the new timeline
    name: String,
    #[command(flatten)]
    from: From,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct From {
    /// Connection string of a running primary, which is followed then
    #[arg(long, value_name = "CONNINFO")]
    primary: Option<String>,
    /// Data directory on the page server's machine: of a server that was stopped or has crashed, or an unpacked base backup
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Base backup on the page server's machine, as `pg_basebackup --format=tar` makes it: base.tar, or the directory that holds it
    #[arg(long, value_name = "FILE")]
    tar: Option<PathBuf>,
}

impl Import {
    /// Imports, and shows the timeline.
    pub fn run(&self, server: &ServerArgs, output: &mut Output) -> Result<()> {
        let mut client = server.connect()?;
        let bar = progress_bar();
        let mut on_progress = |progress: &ImportProgress| show(&bar, progress);
        let imported = match (&self.from.primary, self.from.files()?) {
            (Some(conninfo), _) => client.import(&self.name, conninfo, &mut on_progress),
            (None, Some(files)) => client.import_files(&self.name, &files, &mut on_progress),
            (None, None) => unreachable!("clap asks for one of them"),
        };
        bar.finish_and_clear();
        show_rows(&imported?, output)
    }
}

impl From {
    /// A path is this machine's, which as a rule is the server's too.
    fn files(&self) -> Result<Option<ClusterFiles>> {
        let absolute = |path: &PathBuf| std::path::absolute(path).context("find the current directory");
        Ok(match (&self.directory, &self.tar) {
            (Some(path), _) => Some(ClusterFiles::Directory(absolute(path)?)),
            (None, Some(path)) => Some(ClusterFiles::Tar(absolute(path)?)),
            (None, None) => None,
        })
    }
}

/// On standard error, and only if that is a terminal.
fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {bar:30} {decimal_bytes} of {decimal_total_bytes}, {eta}");
    let bar = ProgressBar::no_length();
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn show(bar: &ProgressBar, progress: &ImportProgress) {
    if bar.message() != progress.phase {
        bar.reset();
        bar.set_message(progress.phase.clone());
    }
    if let Some(bytes_total) = progress.bytes_total {
        bar.set_length(bytes_total);
    }
    bar.set_position(progress.bytes_done);
}
