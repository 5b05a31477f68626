//! `pagectl redo`: try again what a redo process failed at.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use pageserver::redo::process::failed_input::FailedInput;
use pageserver::redo::process::{PostgresProgram, ProcessConfig, ProcessEngine, Program};
use pageserver::redo::{Engine, EngineRequest};
use postgres_ffi::Lsn;
use postgres_ffi::page::{Page, page_lsn};
use serde::Serialize;

use crate::output::{Outcome, Output};

/// Works with redo processes
#[derive(Debug, Subcommand)]
pub enum RedoCommand {
    /// Applies an input that a redo process failed at again
    Replay(ReplayArgs),
}

/// Applies an input that a redo process failed at again, and says what comes of it.
///
/// The file holds the page, the records, and what else the process needs to know of the cluster. Only the programs must be
/// of the cluster's major version. Exit code 1 when it fails again.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// File that the page server saved (*.redo-input)
    pub file: PathBuf,
    /// The postgres binary
    #[arg(long, value_name = "BIN")]
    pub postgres: PathBuf,
    /// pageserver_redo.so, built for that binary's major version; an absolute path
    #[arg(long, value_name = "SO")]
    pub extension: PathBuf,
    /// User that the process runs as; needed by root, because PostgreSQL does not run as root
    #[arg(long, value_name = "USER")]
    pub run_as: Option<String>,
    /// Apply the first N records only
    #[arg(long, value_name = "N")]
    pub records: Option<usize>,
    /// Write the page to this file
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Seconds until the process is given up
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub timeout: u64,
}

/// Runs `command`. Bad: the input fails again. Errors: the input cannot be read, the page cannot be written.
pub fn run(command: &RedoCommand, output: &mut Output) -> Result<Outcome> {
    match command {
        RedoCommand::Replay(args) => replay(args, output),
    }
}

fn replay(args: &ReplayArgs, output: &mut Output) -> Result<Outcome> {
    let mut input = FailedInput::read(&args.file).with_context(|| format!("read {}", args.file.display()))?;
    if let Some(count) = args.records {
        input.request.records.truncate(count);
    }
    let engine = ProcessEngine::new(config(args, &input));
    let answer = engine.redo(std::slice::from_ref(&input.request)).pop().context("the engine gave no answer")?;
    let mut replay = Replay::of(&input);
    let outcome = match answer {
        Ok(page) => {
            replay.page_lsn = page_lsn(&page);
            replay.written = args.output.as_deref().map(|path| write_page(path, &page)).transpose()?;
            Outcome::Good
        }
        Err(error) => {
            replay.fails_with = Some(error.to_string());
            Outcome::Bad
        }
    };
    output.value(&replay)?;
    Ok(outcome)
}

fn write_page(path: &Path, page: &Page) -> Result<String> {
    std::fs::write(path, page).with_context(|| format!("write {}", path.display()))?;
    Ok(path.display().to_string())
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

/// What was in the file, and what came of it.
#[derive(Debug, Serialize)]
struct Replay {
    block: String,
    pg_version: String,
    has_base: bool,
    records: usize,
    /// What the page server was told.
    failed_with: String,
    /// What it fails with now; `None`: it does not.
    fails_with: Option<String>,
    page_lsn: Option<Lsn>,
    written: Option<String>,
}

impl Replay {
    fn of(input: &FailedInput) -> Self {
        let EngineRequest { rel, fork, block_no, base, records } = &input.request;
        Replay {
            block: format!("{rel}/{fork}/{block_no}"),
            pg_version: input.version.to_string(),
            has_base: base.is_some(),
            records: records.len(),
            failed_with: input.message.clone(),
            fails_with: None,
            page_lsn: None,
            written: None,
        }
    }
}

impl fmt::Display for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "block     {}, PostgreSQL {}", self.block, self.pg_version)?;
        writeln!(f, "base      {}", if self.has_base { "a page" } else { "zeroes" })?;
        writeln!(f, "records   {}", self.records)?;
        writeln!(f, "failed    {}", self.failed_with)?;
        if let Some(path) = &self.written {
            writeln!(f, "written   {path}")?;
        }
        match (&self.fails_with, self.page_lsn) {
            (Some(message), _) => write!(f, "now       {message}"),
            (None, Some(lsn)) => write!(f, "now       a page with LSN {lsn}"),
            (None, None) => write!(f, "now       a page without LSN"),
        }
    }
}
