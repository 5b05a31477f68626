//! `pagectl compute stop`: ends a compute's server, and says up to where the page server has its WAL.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use postgres_ffi::Lsn;
use postgres_ffi::checkpoint::Checkpoint;
use serde::Serialize;

use super::page_server::{Branch, PageServer};
use super::place::{ComputeName, ComputesArgs, Place};
use super::postmaster::{self, Mode, ProcessState};
use super::record::{self, Record};
use crate::connect::ServerArgs;
use crate::datadir::checkpoint_end_lsn;
use crate::output::{Outcome, Output};

/// The state of a branch whose WAL is ingested.
const ACTIVE: &str = "active";
/// How long the page server may take to show what it was sent before the server ended.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Stops a compute; its branch stays with it
///
/// A fast stop hands over everything that was written; exit code 1 says that the page server does not have all of it.
#[derive(Debug, clap::Args)]
pub struct Stop {
    /// Which one
    name: ComputeName,
    /// End it at once, without handing over the rest; the next start recovers
    #[arg(long)]
    immediate: bool,
    /// How long it may take
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u32,
    #[command(flatten)]
    computes: ComputesArgs,
}

/// How far the page server has come with what a stopped compute has written.
#[derive(Debug, Clone, Serialize)]
pub struct HandedOver {
    /// Where the compute's WAL ends; none after a crash or an immediate stop, when only its own recovery could tell.
    pub end_lsn: Option<Lsn>,
    /// Up to here the page server has it.
    pub last_record_lsn: Lsn,
    /// Everything: the compute can be destroyed without loss.
    pub complete: bool,
    /// What was received behind that comes, too.
    #[serde(skip)]
    pub is_ingesting: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    name: ComputeName,
    branch: String,
    state: ProcessState,
    /// None for a standby, which has nothing of its own.
    #[serde(flatten)]
    handed_over: Option<HandedOver>,
}

impl Report {
    fn of(place: &Place, record: Record, handed_over: Option<HandedOver>) -> Self {
        Report { state: postmaster::state(place).0, name: record.name, branch: record.branch, handed_over }
    }
}

impl std::fmt::Display for HandedOver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.end_lsn {
            Some(_) if self.complete => write!(f, "the page server has everything, up to {}", self.last_record_lsn),
            Some(end_lsn) if end_lsn <= self.last_record_lsn => write!(
                f,
                "its branch ends at {}, but not with WAL of this compute: what it wrote up to {end_lsn} is not there",
                self.last_record_lsn
            ),
            Some(end_lsn) => write!(f, "the page server has it up to {} only, of {end_lsn}", self.last_record_lsn),
            None => write!(
                f,
                "the page server has it up to {}; where it ends, its next start will tell",
                self.last_record_lsn
            ),
        }
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "compute {} is {}", self.name, self.state)?;
        match &self.handed_over {
            Some(handed_over) => write!(f, "; {handed_over}"),
            None => Ok(()),
        }
    }
}

impl Stop {
    /// Runs it.
    pub fn run(&self, server: &ServerArgs, output: &mut Output) -> Result<Outcome> {
        let place = self.computes.place(&self.name)?;
        let _busy = record::occupy(&place)?;
        let record = Record::load_ready(&place)?;
        if record.standby_of.is_some() {
            let mode = if self.immediate { Mode::Immediate } else { Mode::Fast };
            postmaster::stop(&place, &record, mode, self.timeout)?;
            output.value(&Report::of(&place, record, None))?;
            return Ok(Outcome::Good);
        }
        if self.immediate {
            postmaster::stop(&place, &record, Mode::Immediate, self.timeout)?;
        } else {
            if let Ok(mut page_server) = PageServer::connect(server)
                && let Err(error) = wait_for_receiver(&place, &record, &mut page_server)
            {
                eprintln!("pagectl: {error:#}");
            }
            postmaster::stop(&place, &record, Mode::Fast, self.timeout)
                .context("it is still ending; `--immediate` does not wait for sessions and for the page server")?;
        }
        let handed_over = PageServer::connect(server)
            .and_then(|mut page_server| handed_over(&place, &record, &mut page_server))
            .context("the compute is stopped, but the page server cannot be asked what it has")?;
        let complete = handed_over.complete || self.immediate;
        output.value(&Report::of(&place, record, Some(handed_over)))?;
        Ok(if complete { Outcome::Good } else { Outcome::Bad })
    }
}

/// Gives a receiver that has lost its connection to a running compute a moment to come back: who is not connected when the server ends gets
/// nothing more.
pub fn wait_for_receiver(place: &Place, record: &Record, page_server: &mut PageServer) -> Result<()> {
    if let (ProcessState::Running, Some(branch_id)) = (postmaster::state(place).0, &record.branch_id) {
        _ = page_server.wait_for(branch_id, ARRIVAL_TIMEOUT, |branch| branch.streams() || !branch.follows())?;
    }
    Ok(())
}

/// How far the page server is with the WAL of a compute that does not run. What it has received is waited for.
pub fn handed_over(place: &Place, record: &Record, page_server: &mut PageServer) -> Result<HandedOver> {
    let branch_id = record.branch_id.as_deref().context("compute.json names no branch")?;
    let control = postmaster::control_file(place, record.pg_version)?;
    // Its last checkpoint is the end of the WAL only if it was a shutdown's.
    let end_lsn = match postmaster::was_shut_down(&control) {
        true => Some(checkpoint_end_lsn(&control)?),
        false => None,
    };
    let checkpoint =
        Checkpoint::decode(control.version, &control.checkpoint_copy).context("pg_control of the compute")?;
    let timeline_id = checkpoint.this_tli;
    let is_there = |branch: &Branch| end_lsn.is_some_and(|end_lsn| branch.has_wal(timeline_id, end_lsn));
    let branch = page_server.wait_for(branch_id, ARRIVAL_TIMEOUT, |branch| {
        let ingested = branch.received_lsn.is_none_or(|received_lsn| received_lsn <= branch.last_record_lsn);
        ingested && (end_lsn.is_none() || is_there(branch))
    })?;
    let (Ok(branch) | Err(branch)) = branch;
    if end_lsn.is_some() && branch.pg_timelines.is_none() {
        bail!("the page server does not tell through which PostgreSQL timelines branch {} has come", branch.name);
    }
    let (last_record_lsn, is_ingesting) = (branch.last_record_lsn, branch.state == ACTIVE);
    Ok(HandedOver { end_lsn, last_record_lsn, complete: is_there(&branch), is_ingesting })
}
