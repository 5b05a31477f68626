//! `pagectl compute psql`: becomes `psql`, connected to a compute.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::binaries;
use super::place::{ComputeName, ComputesArgs};
use super::record::Record;

/// Runs psql on a compute, as its superuser and in database postgres unless the arguments or PGDATABASE say otherwise
#[derive(Debug, clap::Args)]
pub struct Psql {
    /// Which one
    name: ComputeName,
    /// Arguments for psql, after --
    #[arg(last = true)]
    arguments: Vec<OsString>,
    #[command(flatten)]
    computes: ComputesArgs,
}

impl Psql {
    /// Runs it; returns only when psql cannot be run.
    pub fn run(&self) -> Result<()> {
        let place = self.computes.place(&self.name)?;
        let record = Record::load_ready(&place)?;
        let role = record.role.as_deref().context("compute.json names no role")?;
        let program = binaries::psql(&record.pg_bin);
        let mut command = Command::new(&program);
        command.arg("--host").arg(record.auth.host(&place)).arg("--port").arg(record.port.to_string());
        command.arg("--username").arg(role).args(&self.arguments);
        if std::env::var_os("PGDATABASE").is_none() {
            command.env("PGDATABASE", "postgres");
        }
        let error = command.exec();
        bail!("cannot run {}: {error}", program.display());
    }
}
