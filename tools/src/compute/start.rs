//! `pagectl compute start`: a compute that was stopped, or crashed, goes on where it was.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::create::check_port;
use super::page_server::{PageServer, conninfo_for_page_server};
use super::place::{ComputeName, ComputesArgs, Place};
use super::postmaster;
use super::record::{self, Record};
use super::standby;
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
    standby: bool,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let follows = match self.standby {
            true => "it follows its primary".to_owned(),
            false => format!("branch {} follows it", self.branch),
        };
        write!(f, "compute {} runs on port {}; {follows}", self.name, self.port)
    }
}

impl Start {
    /// Runs it. A server that is started and not followed in time keeps running: it has WAL that the page server needs.
    pub fn run(&self, server: &ServerArgs, output: &mut Output) -> Result<()> {
        let place = self.computes.place(&self.name)?;
        let _busy = record::occupy(&place)?;
        let record = Record::load_ready(&place)?;
        let mut branch = match record.standby_of {
            Some(_) => None,
            None => Some(FollowedBranch::connect(server, &place, &record)?),
        };
        let pid = match postmaster::state(&place).1 {
            Some(pid) => pid,
            None => {
                check_port(record.port)?;
                postmaster::start(&place, &record, self.timeout)?
            }
        };
        let timeout = Duration::from_secs(self.timeout.into());
        match &mut branch {
            Some(branch) => branch.follow(&place, &record, timeout)?,
            None => standby::wait_until_streaming(&place, &record, timeout)?,
        }
        let standby = record.standby_of.is_some();
        output.value(&Report { name: self.name.clone(), branch: record.branch, port: record.port, pid, standby })
    }
}

/// The branch that is to follow a compute again: asked for before anything starts.
struct FollowedBranch {
    page_server: PageServer,
    id: String,
}

impl FollowedBranch {
    fn connect(server: &ServerArgs, place: &Place, record: &Record) -> Result<Self> {
        let id = record.branch_id.clone().context("compute.json names no branch")?;
        let mut page_server = PageServer::connect(server)?;
        let branch = page_server.branch(&id).with_context(|| format!("branch {} of this compute", record.branch))?;
        if let Some(other) = branch.follows_another(place, record) {
            bail!(
                "branch {name} has come to follow another server, {other}: what that one writes and what this compute has cannot both be in it. \
                 To give up the other one, or if that is this compute at an older address: `pagectl timeline unfollow {name}`",
                name = branch.name
            );
        }
        Ok(FollowedBranch { page_server, id })
    }

    fn follow(&mut self, place: &Place, record: &Record, timeout: Duration) -> Result<()> {
        self.page_server.follow(&self.id, &conninfo_for_page_server(place, record)?)?;
        let started_lsn = postmaster::control_file(place, record.pg_version)?.checkpoint_lsn;
        self.page_server.wait_until_streaming(&self.id, started_lsn, timeout)
    }
}
