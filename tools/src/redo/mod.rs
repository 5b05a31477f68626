//! `pagectl redo`: redo by hand. What failed once is tried again ([`replay`]); what WAL says of itself is held against ours ([`check`]).

pub mod check;
pub mod replay;

use anyhow::Result;
use clap::Subcommand;

use crate::connect::ServerArgs;
use crate::output::{Outcome, Output};

/// Work with redo: records to pages.
#[derive(Debug, Subcommand)]
pub enum RedoCommand {
    /// Apply a saved input again and say what comes of it.
    Replay(replay::ReplayArgs),
    /// Show the page server's redo engines and their counters.
    Status,
    /// Check redo against the page images that wal_consistency_checking puts into WAL.
    Check(check::CheckArgs),
}

impl RedoCommand {
    /// Does what it says. The outcome is bad if records give no page or another one than they should.
    pub fn run(&self, server: &ServerArgs, output: &mut Output) -> Result<Outcome> {
        match self {
            RedoCommand::Status => server.show("SHOW REDO", output).map(|()| Outcome::Good),
            RedoCommand::Replay(args) => args.run(output),
            RedoCommand::Check(args) => args.run(output),
        }
    }
}
