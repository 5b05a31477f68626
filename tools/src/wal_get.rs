//! `pagectl wal get`: a file of WAL for a server's `restore_command`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use pageserver::client::quote;

use crate::connect::ServerArgs;

/// Fetches a WAL segment or history file of a timeline: what a server asks for with restore_command
///
/// restore_command = 'pagectl --server 127.0.0.1:6400 wal get main "%f" "%p"'
///
/// The page server has the WAL that its store, its leases and wal.keep_mib need. A segment is given once its end has been received. The exit code is 2 if the
/// file is not there, which for PostgreSQL means: look elsewhere.
#[derive(Debug, clap::Args)]
pub struct WalGet {
    /// Timeline, by name or id
    timeline: String,
    /// Name of the file: 000000010000000000000002, 00000002.history
    file: String,
    /// Where to write it. It is there only once it is whole
    path: PathBuf,
}

impl WalGet {
    /// Runs it.
    pub fn run(&self, server: &ServerArgs) -> Result<()> {
        let part = part_path(&self.path);
        let fetched = self
            .fetch(server, &part)
            .and_then(|()| fs::rename(&part, &self.path).with_context(|| format!("write {}", self.path.display())));
        if fetched.is_err() {
            // The first error is the one to report.
            let _ = fs::remove_file(&part);
        }
        fetched
    }

    fn fetch(&self, server: &ServerArgs, part: &Path) -> Result<()> {
        let mut client = server.connect()?;
        let command = format!("WAL GET {} {}", quote(&self.timeline), quote(&self.file));
        let mut bytes = client.copy_out(&command)?;
        let mut file = File::create(part).with_context(|| format!("create {}", part.display()))?;
        std::io::copy(&mut bytes, &mut file).with_context(|| format!("fetch {} into {}", self.file, part.display()))?;
        Ok(())
    }
}

/// Where the file is written before it is whole.
fn part_path(path: &Path) -> PathBuf {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    part.into()
}
