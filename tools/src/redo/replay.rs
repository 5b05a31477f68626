//! `pagectl redo replay`: try again what redo failed at, in Rust or by a process.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use pageserver::redo::failed_input::FailedInput;
use pageserver::redo::native::NativeEngine;
use pageserver::redo::process::{Library, PostgresProgram, ProcessConfig, ProcessEngine, Program};
use pageserver::redo::{Engine, EngineRequest, NoEngine, RedoError};
use postgres_ffi::page::{Page, page_lsn};
use postgres_ffi::{Lsn, PgVersion};
use serde::Serialize;

use crate::output::{Outcome, Output};

/// Apply a saved input again and say what comes of it.
///
/// The file holds the page, the records, and what else redo needs to know of the cluster. They are applied by redo in Rust, or, with --postgres and
/// --extension, by a redo process, whose programs must be of the cluster's major version.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// File that the page server saved (`*.redo-input`).
    pub file: PathBuf,
    /// The `postgres` binary.
    #[arg(long, requires = "extension")]
    pub postgres: Option<PathBuf>,
    /// `pageserver_redo.so`, built for that binary's major version. An absolute path.
    #[arg(long, requires = "postgres")]
    pub extension: Option<PathBuf>,
    /// Library of an extension that has a resource manager of its own, as in `redo.preload_libraries`. May be given several times.
    #[arg(long = "preload-library", value_name = "NAME", requires = "postgres")]
    pub preload_libraries: Vec<Library>,
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

/// What came of a replay.
#[derive(Debug, Serialize)]
struct ReplayView {
    block: String,
    pg_version: PgVersion,
    has_base: bool,
    records: usize,
    /// How it failed when it was saved.
    failed: String,
    /// LSN of the page that it makes now, if it makes one that has an LSN.
    page_lsn: Option<Lsn>,
    /// How it fails now.
    error: Option<String>,
}

impl fmt::Display for ReplayView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "block    {}, PostgreSQL {}", self.block, self.pg_version)?;
        writeln!(f, "base     {}", if self.has_base { "a page" } else { "zeroes" })?;
        writeln!(f, "records  {}", self.records)?;
        writeln!(f, "failed   {}", self.failed)?;
        match (&self.error, self.page_lsn) {
            (Some(error), _) => write!(f, "now      {error}"),
            (None, Some(lsn)) => write!(f, "now      a page with LSN {lsn}"),
            (None, None) => write!(f, "now      a page without an LSN"),
        }
    }
}

impl ReplayArgs {
    /// Applies it.
    pub fn run(&self, output: &mut Output) -> Result<Outcome> {
        let mut input = FailedInput::read(&self.file).with_context(|| format!("read {}", self.file.display()))?;
        if let Some(count) = self.records {
            input.request.records.truncate(count);
        }
        let engine = self.engine(&input)?;
        let answer = engine.redo(std::slice::from_ref(&input.request)).pop().context("the engine gave no answer")?;
        if let (Ok(page), Some(path)) = (&answer, &self.output) {
            std::fs::write(path, &page[..]).with_context(|| format!("write {}", path.display()))?;
        }
        let outcome = if answer.is_ok() { Outcome::Good } else { Outcome::Bad };
        output.value(&view(input, answer))?;
        Ok(outcome)
    }

    fn engine(&self, input: &FailedInput) -> Result<Box<dyn Engine>> {
        let (Some(postgres), Some(extension)) = (self.postgres.clone(), self.extension.clone()) else {
            return Ok(Box::new(NativeEngine::new(input.version, Arc::new(NoEngine))));
        };
        ensure!(!input.pg_control.is_empty(), "the file holds no control file, and a process needs one");
        let program = PostgresProgram {
            postgres,
            extension,
            pg_control: input.pg_control.clone(),
            wal_log_hints: input.wal_log_hints,
            preload_libraries: self.preload_libraries.clone(),
            work_dir: None,
            run_as: self.run_as.clone(),
        };
        let mut config = ProcessConfig::new(Program::Postgres(program), input.version);
        config.timeout = Duration::from_secs(self.timeout);
        Ok(Box::new(ProcessEngine::new(config)))
    }
}

fn view(input: FailedInput, answer: Result<Box<Page>, RedoError>) -> ReplayView {
    let EngineRequest { rel, fork, block_no, base, records } = &input.request;
    ReplayView {
        block: format!("{rel}/{fork}/{block_no}"),
        pg_version: input.version,
        has_base: base.is_some(),
        records: records.len(),
        failed: input.message.clone(),
        page_lsn: answer.as_ref().ok().and_then(|page| page_lsn(page)),
        error: answer.err().map(|error| error.to_string()),
    }
}
