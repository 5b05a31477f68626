//! `pagectl basebackup`: a tar archive from which a stock PostgreSQL starts.

use std::io::{self, IsTerminal, Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use pageserver::client::quote;
use pageserver::page_service::basebackup::BackupBegin;
use postgres_ffi::Lsn;

use crate::connect::ServerArgs;
use crate::output::{Output, ReaderGone};
use crate::part_file::write_whole;

/// Bytes that are read and written at once.
const PIECE_BYTES: usize = 256 * 1024;
/// How often the progress at a terminal is drawn.
const DRAW_INTERVAL: Duration = Duration::from_millis(200);

/// Fetches a base backup: a tar archive that a stock PostgreSQL starts from, as of any LSN
///
/// Unpack it into an empty directory that belongs to the server's user, and start a server of the same version on it. Where there are tablespaces
/// (pg_tblspc/OID), move those directories away and put links to them in their place.
#[derive(Debug, clap::Args)]
pub struct BaseBackupArgs {
    /// Timeline, by name or id
    timeline: String,
    /// As of this LSN; the last record without. Waits for one that has not arrived
    #[arg(long)]
    lsn: Option<Lsn>,
    /// Compress the archive
    #[arg(long)]
    gzip: bool,
    /// Without relations, but for init forks of unlogged ones: for a server that fetches pages on first use
    #[arg(long)]
    no_data: bool,
    /// For a hot standby of who writes the timeline: set primary_conninfo before it is started. Needs WAL since the last checkpoint on the page
    /// server's disk: for an older LSN raise wal.keep_mib
    #[arg(long)]
    standby: bool,
    /// Write the archive to this file, or to standard output (-). A file is there only once it is whole
    #[arg(long)]
    output: PathBuf,
}

impl BaseBackupArgs {
    /// Runs it.
    pub fn run(&self, server: &ServerArgs, output: &mut Output) -> Result<()> {
        if self.output.as_os_str() == "-" {
            return self.fetch(server, &mut OutputWriter(output));
        }
        write_whole(&self.output, |file| {
            self.fetch(server, file)?;
            file.sync_all().context("write the archive")
        })
    }

    fn fetch(&self, server: &ServerArgs, to: &mut dyn Write) -> Result<()> {
        let mut client = server.connect()?;
        let mut backup = client.copy_out(&self.command())?;
        let begin: Option<BackupBegin> = backup.notices().iter().find_map(|notice| notice.parse().ok());
        for notice in backup.notices() {
            eprintln!("{notice}");
        }
        let progress = self.progress(begin.as_ref());
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let length = backup.read(&mut piece).context("the backup broke off")?;
            if length == 0 {
                break;
            }
            to.write_all(&piece[..length]).context("write the archive")?;
            progress.inc(length as u64);
        }
        to.flush().context("write the archive")?;
        progress.finish_and_clear();
        eprintln!("{} bytes", progress.position());
        Ok(())
    }

    fn command(&self) -> String {
        let lsn = self.lsn.map(|lsn| format!(" {}", quote(&lsn.to_string()))).unwrap_or_default();
        let option = |is_set, option| if is_set { option } else { "" };
        let options =
            [option(self.gzip, " --gzip"), option(self.no_data, " --no-data"), option(self.standby, " --standby")];
        let options = options.concat();
        format!("BASEBACKUP {}{lsn}{options}", quote(&self.timeline))
    }

    /// At a terminal only. How long a compressed archive will be, nobody knows.
    fn progress(&self, begin: Option<&BackupBegin>) -> ProgressBar {
        if !io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let template = "{bytes} of about {total_bytes}, {bytes_per_sec}";
        let progress = match begin.filter(|_| !self.gzip) {
            Some(begin) => ProgressBar::new(begin.bytes_estimated)
                .with_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())),
            None => ProgressBar::new_spinner(),
        };
        progress.enable_steady_tick(DRAW_INTERVAL);
        progress
    }
}

struct OutputWriter<'a>(&'a mut Output);

impl Write for OutputWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // What it is must stay visible: a reader that went away ends the program quietly.
        self.0.bytes(bytes).map(|()| bytes.len()).map_err(|error| match error.downcast::<ReaderGone>() {
            Ok(gone) => io::Error::other(gone),
            Err(error) => io::Error::other(format!("{error:#}")),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_says_all_that_was_asked_for() {
        let args = BaseBackupArgs {
            timeline: "it's".to_owned(),
            lsn: Some(Lsn::new(0x300_0060)),
            gzip: true,
            no_data: true,
            standby: true,
            output: "x".into(),
        };
        assert_eq!(args.command(), "BASEBACKUP 'it''s' '0/3000060' --gzip --no-data --standby");
        let plain = BaseBackupArgs { lsn: None, gzip: false, no_data: false, standby: false, ..args };
        assert_eq!(plain.command(), "BASEBACKUP 'it''s'");
    }
}
