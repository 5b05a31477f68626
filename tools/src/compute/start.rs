//! `pagectl compute start`: a compute that was stopped, or crashed, goes on where it was.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::create::check_port;
use super::page_server::{PageServer, conninfo_for_page_server};
use super::place::{ComputeName, ComputesArgs};
use super::postmaster::{self, ProcessState};
use super::record::Record;
use crate::connect::ServerArgs;
use crate::output::Output;

/// Starts a compute that is stopped or has crashed, and has its branch follow it again
#[derive(Debug, clap::Args)]
pub struct Start {
    /// Which one
    name: ComputeName,
    /// How long the start, and after it the page server's connection, may take
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u32,
    #[command(flatten)]
    computes: ComputesArgs,
}

#[derive(Debug, Serialize)]
struct Report {
    name: ComputeName,
    branch: String,
    port: u16,
    pid: i32,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "compute {} runs on port {}; branch {} follows it", self.name, self.port, self.branch)
    }
}

impl Start {
    /// Runs it. A server that is started and not followed in time keeps running: it has WAL that the page server needs.
    pub fn run(&self, server: &ServerArgs, output: &mut Output) -> Result<()> {
        let place = self.computes.place(&self.name)?;
        let record = Record::load_ready(&place)?;
        let branch_id = record.branch_id.clone().context("compute.json names no branch")?;
        let (state, running) = postmaster::state(&place);
        let mut page_server = PageServer::connect(server)?;
        page_server.branch(&branch_id).with_context(|| format!("branch {} of this compute", record.branch))?;
        let pid = match running {
            Some(pid) => pid,
            None => {
                ensure!(state != ProcessState::Running);
                check_port(record.port)?;
                postmaster::start(&place, &record, self.timeout)?
            }
        };
        page_server.follow(&branch_id, &conninfo_for_page_server(&place, &record)?)?;
        let started_lsn = postmaster::control_file(&place, record.pg_version)?.checkpoint_lsn;
        page_server.wait_until_streaming(&branch_id, started_lsn, Duration::from_secs(self.timeout.into()))?;
        output.value(&Report { name: self.name.clone(), branch: record.branch, port: record.port, pid })
    }
}
