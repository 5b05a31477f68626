//! `pagectl lsn` and `pagectl time`: from a time to an LSN and back.

use anyhow::Result;
use pageserver::client::quote;
use pageserver::wall_time::TimeSpec;
use postgres_ffi::Lsn;

use crate::connect::{ServerArgs, at_clause};
use crate::output::Output;

/// Tells how far a timeline was at a time: the LSN, and the last commit's time there
#[derive(Debug, clap::Args)]
pub struct LsnAtTime {
    /// Timeline, by name or id
    #[arg(long)]
    timeline: String,
    /// `2026-11-25 14:32:00`, `2026-11-25T14:32:00.5+01:00` (UTC without a zone), or `5 minutes ago`
    #[arg(long, allow_hyphen_values = true)]
    time: TimeSpec,
}

/// Tells the time of the last commit at an LSN
#[derive(Debug, clap::Args)]
pub struct TimeAtLsn {
    /// Timeline, by name or id
    #[arg(long)]
    timeline: String,
    /// As of this LSN; the newest without
    #[arg(long)]
    lsn: Option<Lsn>,
}

impl LsnAtTime {
    /// Runs it.
    pub fn run(&self, server: &ServerArgs, output: &mut Output) -> Result<()> {
        let time = quote(&self.time.to_string());
        server.show(&format!("SHOW LSN {} AT TIME {time}", quote(&self.timeline)), output)
    }
}

impl TimeAtLsn {
    /// Runs it.
    pub fn run(&self, server: &ServerArgs, output: &mut Output) -> Result<()> {
        server.show(&format!("SHOW TIME {}{}", quote(&self.timeline), at_clause(self.lsn)), output)
    }
}
