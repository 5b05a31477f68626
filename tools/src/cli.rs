//! The command line: which subcommand, and how it ends.

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use pageserver::client::quote;

use crate::basebackup::BaseBackupArgs;
use crate::bench_getpage::{self, BenchGetPageArgs};
use crate::branch::{BranchCommand, Delete, Follow, LeaseCommand, Unfollow};
use crate::compare::Compare;
use crate::compute::ComputeCommand;
use crate::connect::ServerArgs;
use crate::gc::{GcCommand, Retention};
use crate::import::Import;
use crate::output::{Outcome, Output, is_broken_pipe};
use crate::page::PageCommand;
use crate::redo::RedoCommand;
use crate::size::Size;
use crate::time::{LsnAtTime, TimeAtLsn};
use crate::verify::{Repair, Verify};
use crate::wal_dump::WalDump;
use crate::wal_get::{NoAnswer, WalGet};

/// Exit code of a command that could not be carried out; clap uses the same for wrong arguments.
const EXIT_FAILED: u8 = 2;
/// Exit code of `wal get --strict` at which PostgreSQL's recovery gives up. PG: xlogarchive.c, RestoreArchivedFile.
const EXIT_NO_ANSWER: u8 = 126;

/// Looks into a page server: its timelines, pages, WAL and store.
///
/// Exit codes: 0 done, 1 done and the answer is that something is wrong (pages differ), 2 could not be done.
#[derive(Debug, Parser)]
#[command(name = "pagectl", version)]
pub struct Cli {
    #[command(flatten)]
    server: ServerArgs,
    /// Answer in JSON: one value per line
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Looks at timelines; which primary each follows
    #[command(subcommand)]
    Timeline(TimelineCommand),
    #[command(subcommand)]
    Branch(BranchCommand),
    #[command(subcommand)]
    Lease(LeaseCommand),
    #[command(subcommand)]
    Gc(GcCommand),
    /// Looks at pages
    #[command(subcommand)]
    Page(PageCommand),
    /// Looks at WAL files, and fetches them
    #[command(subcommand)]
    Wal(WalCommand),
    /// Works with redo: records to pages
    #[command(subcommand)]
    Redo(RedoCommand),
    /// Looks at the store
    #[command(subcommand)]
    Store(StoreCommand),
    Import(Import),
    Lsn(LsnAtTime),
    Time(TimeAtLsn),
    Size(Size),
    Compare(Compare),
    Verify(Verify),
    Repair(Repair),
    #[command(subcommand)]
    Compute(ComputeCommand),
    #[command(name = "basebackup")]
    BaseBackup(BaseBackupArgs),
    /// Puts load on a page server
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Shows how the page server is doing
    Status,
    /// Prints a completion script for a shell
    Completion {
        /// The shell
        shell: Shell,
    },
}

#[derive(Debug, Subcommand)]
enum TimelineCommand {
    /// Lists timelines with where each stands
    List,
    /// Shows one timeline
    Show {
        /// Its name or id
        timeline: String,
    },
    /// Shows how far timelines are behind their source
    Lag {
        /// Only this one
        timeline: Option<String>,
    },
    /// Takes the timeline's WAL from a primary or compute from now on
    Follow(Follow),
    Unfollow(Unfollow),
    /// Deletes a timeline that nothing branches off
    ///
    /// Without --confirm it only tells what it would do.
    Delete(Delete),
    Retention(Retention),
}

#[derive(Debug, Subcommand)]
enum WalCommand {
    /// Shows WAL records, one line each, as pg_waldump does
    Dump(WalDump),
    Get(WalGet),
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    #[command(name = "getpage")]
    GetPage(BenchGetPageArgs),
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Shows sizes and counters of the store
    Stats,
}

/// Runs the program: parses its arguments, does what they say, gives its exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut output = Output::new(cli.json);
    let done = cli.run(&mut output).and_then(|outcome| output.finish().map(|()| outcome));
    match done {
        Ok(outcome) => ExitCode::from(outcome.exit_code()),
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pagectl: {error:#}");
            ExitCode::from(if error.is::<NoAnswer>() { EXIT_NO_ANSWER } else { EXIT_FAILED })
        }
    }
}

impl Cli {
    fn run(&self, output: &mut Output) -> Result<Outcome> {
        let server = &self.server;
        match &self.command {
            Command::Timeline(command) => command.run(server, output)?,
            Command::Branch(command) => command.run(server, output)?,
            Command::Lease(command) => command.run(server, output)?,
            Command::Gc(command) => command.run(server, output)?,
            Command::Page(command) => return command.run(server, output),
            Command::Wal(WalCommand::Dump(dump)) => return dump.run(output),
            Command::Wal(WalCommand::Get(get)) => get.run(server)?,
            Command::Store(StoreCommand::Stats) => server.show("STORE STATS", output)?,
            Command::Import(import) => import.run(server, output)?,
            Command::Lsn(lsn) => lsn.run(server, output)?,
            Command::Time(time) => time.run(server, output)?,
            Command::Size(size) => size.run(server, output)?,
            Command::Compare(compare) => return compare.run(server, output),
            Command::Verify(verify) => return verify.run(server, output),
            Command::Repair(repair) => return repair.run(server, output),
            Command::Compute(command) => return command.run(server, output),
            Command::BaseBackup(args) => args.run(server, output)?,
            Command::Bench(BenchCommand::GetPage(args)) => bench_getpage::run(args, server)?,
            Command::Redo(command) => return command.run(server, output),
            Command::Status => server.show("SHOW STATUS", output)?,
            Command::Completion { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(*shell, &mut Cli::command(), "pagectl", &mut script);
                output.bytes(&script)?;
            }
        }
        Ok(Outcome::Good)
    }
}

impl TimelineCommand {
    fn run(&self, server: &ServerArgs, output: &mut Output) -> Result<()> {
        match self {
            TimelineCommand::List => server.show("TIMELINE LIST", output),
            TimelineCommand::Show { timeline } => server.show(&format!("TIMELINE SHOW {}", quote(timeline)), output),
            TimelineCommand::Lag { timeline: Some(timeline) } => {
                server.show(&format!("SHOW LAG {}", quote(timeline)), output)
            }
            TimelineCommand::Lag { timeline: None } => server.show("SHOW LAG", output),
            TimelineCommand::Follow(follow) => follow.run(server, output),
            TimelineCommand::Unfollow(unfollow) => unfollow.run(server, output),
            TimelineCommand::Delete(delete) => delete.run("TIMELINE", server, output),
            TimelineCommand::Retention(retention) => retention.run(server, output),
        }
    }
}

#[cfg(test)]
mod tests {
    //! The shape of the command line.

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn one_server_for_all_subcommands() {
        let cli = Cli::try_parse_from(["pagectl", "bench", "getpage", "--server", "127.0.0.1:1"]).expect("parses");
        assert_eq!(cli.server.server, "127.0.0.1:1");
        assert!(matches!(cli.command, Command::Bench(BenchCommand::GetPage(_))));
    }

    #[test]
    fn a_comparison_needs_something_to_compare_with() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["pagectl", "compare", "--datadir", "d"], args].concat());
        assert!(parse(&[]).is_err());
        assert!(parse(&["--timeline", "main"]).is_ok());
        assert!(parse(&["--timeline", "main", "--lsn", "0/16B5A50"]).is_ok());
        assert!(parse(&["--timeline", "main", "--lsn", "16B5A50"]).is_err());
        assert!(parse(&["--with-datadir", "e"]).is_ok());
        assert!(parse(&["--with-datadir", "e", "--timeline", "main"]).is_err());
    }
}
