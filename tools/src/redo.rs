//! `pagectl redo`: try again what a redo process failed at.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use pageserver::redo::process::failed_input::FailedInput;
use pageserver::redo::process::{PostgresProgram, ProcessConfig, ProcessEngine, Program};
use pageserver::redo::{Engine, EngineRequest};
use postgres_ffi::page::{Page, page_lsn};

/// Work with redo processes.
#[derive(Debug, Subcommand)]
pub enum RedoCommand {
    /// Apply a saved input again and say what comes of it.
    Replay(ReplayArgs),
}

/// Apply a saved input again and say what comes of it.
///
/// The file holds the page, the records, and what else the process needs to know of the cluster. Only the programs must be
/// of the cluster's major version.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// File that the page server saved (`*.redo-input`).
    pub file: PathBuf,
    /// The `postgres` binary.
    #[arg(long)]
    pub postgres: PathBuf,
    /// `pageserver_redo.so`, built for that binary's major version. An absolute path.
    #[arg(long)]
    pub extension: PathBuf,
    /// User that the process runs as. Needed by root, because PostgreSQL does not run as root.
    #[arg(long, value_name = "USER")]
    pub run_as: Option<String>,
    /// Apply the first N records only.
    #[arg(long, value_name = "N")]
    pub records: Option<usize>,
    /// Write the page to this file.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Seconds until the process is given up.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub timeout: u64,
}

/// Runs `command`; what it has to say goes to stdout. An error: the input cannot be read, or fails as before.
pub fn run(command: &RedoCommand) -> Result<()> {
    match command {
        RedoCommand::Replay(args) => replay(args),
    }
}

fn replay(args: &ReplayArgs) -> Result<()> {
    let mut input = FailedInput::read(&args.file).with_context(|| format!("read {}", args.file.display()))?;
    if let Some(count) = args.records {
        input.request.records.truncate(count);
    }
    print_input(&input);
    let engine = ProcessEngine::new(config(args, &input));
    let answer = engine.redo(std::slice::from_ref(&input.request)).pop().context("the engine gave no answer")?;
    match answer {
        Ok(page) => print_page(args, &page),
        Err(error) => bail!(error),
    }
}

fn config(args: &ReplayArgs, input: &FailedInput) -> ProcessConfig {
    let program = PostgresProgram {
        postgres: args.postgres.clone(),
        extension: args.extension.clone(),
        pg_control: input.pg_control.clone(),
        wal_log_hints: input.wal_log_hints,
        preload_libraries: Vec::new(),
        work_dir: None,
        run_as: args.run_as.clone(),
    };
    let mut config = ProcessConfig::new(Program::Postgres(program), input.version);
    config.timeout = Duration::from_secs(args.timeout);
    config
}

fn print_input(input: &FailedInput) {
    let EngineRequest { rel, fork, block_no, base, records } = &input.request;
    println!("block     {rel}/{fork}/{block_no}, PostgreSQL {}", input.version);
    println!("base      {}", if base.is_some() { "a page" } else { "zeroes" });
    println!("records   {}", records.len());
    println!("failed    {}", input.message);
}

fn print_page(args: &ReplayArgs, page: &Page) -> Result<()> {
    let lsn = page_lsn(page).map_or("none".to_owned(), |lsn| lsn.to_string());
    println!("now       a page with LSN {lsn}");
    if let Some(path) = &args.output {
        std::fs::write(path, page).with_context(|| format!("write {}", path.display()))?;
        println!("written   {}", path.display());
    }
    Ok(())
}
