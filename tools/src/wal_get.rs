//! `pagectl wal get`: a file of WAL for a server's `restore_command`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use pageserver::client::{ClientError, quote};
use pageserver::page_service::error::sqlstate;

use crate::connect::ServerArgs;
use crate::part_file::write_whole;

/// For each message of the server. It reads through a segment before the first one.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// Fetches a WAL segment or history file of a timeline: what a server asks for with restore_command
///
/// restore_command = 'pagectl --server 127.0.0.1:6400 wal get main "%f" "%p"'
///
/// The page server has the WAL that its store, its leases and wal.keep_mib need. A segment is given once its end has been received, and its records are checked.
///
/// For PostgreSQL every exit code up to 125 means that there is no such file. A standby looks elsewhere then and asks again; recovery to a point in time takes the WAL to end
/// there. So use --strict for recovery, and name recovery_target_timeline by its number: PostgreSQL timelines of computes begin at 4096 and leave gaps, at which
/// 'latest' stops to look.
#[derive(Debug, clap::Args)]
pub struct WalGet {
    /// Timeline, by name or id
    timeline: String,
    /// Name of the file: 000000010000000000000002, 00000002.history
    file: String,
    /// Where to write it. It is there only once it is whole
    path: PathBuf,
    /// Exit code 126, at which PostgreSQL gives up, for whatever is no answer: the page server cannot be reached, has not ingested the file yet, finds it damaged
    #[arg(long)]
    strict: bool,
}

impl WalGet {
    /// Runs it. Errors: [`NoAnswer`] if it is strict and the server did not say that there is no such file.
    pub fn run(&self, server: &ServerArgs) -> Result<()> {
        let fetched = self.fetch_whole(server);
        match fetched {
            Err(error) if self.strict && !is_missing(&error) => Err(error.context(NoAnswer)),
            fetched => fetched,
        }
    }

    fn fetch_whole(&self, server: &ServerArgs) -> Result<()> {
        write_whole(&self.path, |file| {
            // A server that has vanished must not hold up a standby that is being promoted.
            let mut client = server.connect_impatient(ANSWER_LIMIT)?;
            let command = format!("WAL GET {} {}", quote(&self.timeline), quote(&self.file));
            let mut bytes = client.copy_out(&command)?;
            std::io::copy(&mut bytes, file).with_context(|| format!("fetch {}", self.file))?;
            Ok(())
        })
    }
}

/// True if the server says that it does not have the file.
fn is_missing(error: &anyhow::Error) -> bool {
    let server_error = error.chain().find_map(|cause| cause.downcast_ref::<ClientError>());
    matches!(server_error, Some(ClientError::Server(error)) if error.sqlstate == sqlstate::UNDEFINED_FILE)
}

/// Whoever recovers must not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoAnswer;

impl std::fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("it is not known whether there is such a WAL file")
    }
}
