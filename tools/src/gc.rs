//! `pagectl gc`, and how much history a timeline keeps.

use anyhow::Result;
use pageserver::client::quote;
use pageserver::timeline::gc::{RetentionTime, WalSize};

use crate::branch;
use crate::connect::ServerArgs;
use crate::output::Output;

/// Looks after garbage collection: history that nobody may ask for any more
#[derive(Debug, clap::Subcommand)]
pub enum GcCommand {
    /// Shows, per timeline, below which LSN history is gone, and how far a run is
    Status {
        /// Only this timeline
        timeline: Option<String>,
    },
    /// Removes what is to go, now
    Run {
        /// Only this timeline
        timeline: Option<String>,
        /// Only tells what would go
        #[arg(long)]
        dry_run: bool,
    },
    /// No run begins by itself any more, until `gc resume` or the next start of the page server
    Pause,
    /// Runs begin by themselves again
    Resume,
}

/// Shows or sets how much history a timeline keeps: what lies within either, time or WAL; what is not named stays
#[derive(Debug, clap::Args)]
pub struct Retention {
    /// Its name or id
    timeline: String,
    /// Since so long ago: 7d, 36h; 0 for none
    #[arg(long)]
    time: Option<RetentionTime>,
    /// So much WAL before the last record: 1GiB, 512MiB; 0 for none
    #[arg(long)]
    wal: Option<WalSize>,
    /// As much as the page server's configuration says
    #[arg(long, conflicts_with_all = ["time", "wal"])]
    default: bool,
}

impl GcCommand {
    /// Runs it.
    pub fn run(&self, server: &ServerArgs, output: &mut Output) -> Result<()> {
        let of =
            |timeline: &Option<String>| timeline.as_ref().map(|name| format!(" {}", quote(name))).unwrap_or_default();
        match self {
            GcCommand::Status { timeline } => server.show(&format!("GC STATUS{}", of(timeline)), output),
            GcCommand::Run { timeline, dry_run } => {
                let word = if *dry_run { "PLAN" } else { "RUN" };
                branch::change(server, &format!("GC {word}{}", of(timeline)), output)
            }
            GcCommand::Pause => server.show("GC PAUSE", output),
            GcCommand::Resume => server.show("GC RESUME", output),
        }
    }
}

impl Retention {
    /// Runs it.
    pub fn run(&self, server: &ServerArgs, output: &mut Output) -> Result<()> {
        server.show(&self.command(), output)
    }

    fn command(&self) -> String {
        let mut command = format!("TIMELINE RETENTION {}", quote(&self.timeline));
        if self.default {
            command.push_str(" DEFAULT");
        }
        if let Some(time) = self.time {
            command.push_str(&format!(" TIME {}", quote(&time.to_string())));
        }
        if let Some(wal) = self.wal {
            command.push_str(&format!(" WAL {}", quote(&wal.to_string())));
        }
        command
    }
}

#[cfg(test)]
mod tests {
    //! Goal: what was asked for is what the server is told. Method: plain cases.

    use super::*;

    #[test]
    fn options_become_clauses() {
        let retention = |time: Option<&str>, wal: Option<&str>, default| {
            let (time, wal) =
                (time.map(|time| time.parse().expect("a time")), wal.map(|wal| wal.parse().expect("a size")));
            Retention { timeline: "main".to_owned(), time, wal, default }.command()
        };
        assert_eq!(retention(None, None, false), "TIMELINE RETENTION 'main'");
        assert_eq!(retention(None, None, true), "TIMELINE RETENTION 'main' DEFAULT");
        assert_eq!(
            retention(Some("7 days"), Some("512MiB"), false),
            "TIMELINE RETENTION 'main' TIME '7d' WAL '512MiB'"
        );
    }
}
