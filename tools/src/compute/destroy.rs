//! `pagectl compute destroy`: a compute is thrown away. Its branch stays, with everything that was handed over.
//!
//! - Without `--confirm` it only tells what it would do.
//! - Nothing is removed while the page server might lack something that a client was told is committed, unless `--force` says so. After a crash the compute's
//!   configuration says whether commits waited; roles, databases and sessions that were told not to wait have chosen so.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use super::list::disk_bytes;
use super::page_server::PageServer;
use super::place::{ComputeName, ComputesArgs, Place};
use super::postmaster::{self, Mode, ProcessState};
use super::record::{self, Progress, Record};
use super::settings::waits_for_page_server;
use super::stop::{handed_over, wait_for_receiver};
use super::undo::remove_directory;
use crate::connect::ServerArgs;
use crate::output::{Outcome, Output};

/// Throws a compute away: stops it, removes its directory, and has its branch follow nobody
///
/// Everything that it handed over stays in the branch. Without --confirm it only tells what it would do.
#[derive(Debug, clap::Args)]
pub struct Destroy {
    /// Which one
    name: ComputeName,
    /// Do it
    #[arg(long)]
    confirm: bool,
    /// Delete its branch, too
    #[arg(long)]
    with_branch: bool,
    /// Go on even though the page server does not answer, or does not have everything
    #[arg(long)]
    force: bool,
    /// How long the stop may take
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u32,
    #[command(flatten)]
    computes: ComputesArgs,
}

#[derive(Debug, Serialize)]
struct Report {
    name: ComputeName,
    done: bool,
    directory: PathBuf,
    disk_bytes: u64,
    branch: Option<String>,
    branch_deleted: bool,
    /// What the page server has; empty when it was not asked.
    handed_over: String,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let would = if self.done { "" } else { "would be " };
        let branch = self.branch.as_deref().unwrap_or("(none)");
        let after = if self.branch_deleted { format!("{would}deleted") } else { "stays".to_owned() };
        write!(
            f,
            "compute {} {would}destroyed: {}, {:.1} MB, {would}removed; branch {branch} {after}",
            self.name,
            self.directory.display(),
            self.disk_bytes as f64 / 1e6
        )?;
        if !self.handed_over.is_empty() {
            write!(f, "; {}", self.handed_over)?;
        }
        if !self.done {
            write!(f, "\nnothing was done: --confirm does it")?;
        }
        Ok(())
    }
}

impl Destroy {
    /// Runs it.
    pub fn run(&self, server: &ServerArgs, output: &mut Output) -> Result<Outcome> {
        let place = self.computes.place(&self.name)?;
        let _busy = record::occupy(&place)?;
        let record = match Record::load(&place) {
            Err(error) if self.force && Record::is_there(&place) => {
                eprintln!("pagectl: {error:#}");
                None
            }
            record => Some(record?),
        };
        let mut report = Report {
            name: self.name.clone(),
            done: self.confirm,
            directory: place.root().to_owned(),
            disk_bytes: disk_bytes(place.root()),
            branch: record.as_ref().map(|record| record.branch.clone()),
            branch_deleted: self.with_branch && record.is_some() && !self.confirm,
            handed_over: String::new(),
        };
        if let Some(record) = &record
            && self.with_branch
        {
            ensure!(
                record.branch_is_own,
                "branch {} was not made for this compute: delete it with `BRANCH DELETE` if that is meant",
                record.branch
            );
        }
        if self.confirm {
            (report.handed_over, report.branch_deleted) = self.destroy(server, &place, record.as_ref())?;
        }
        output.value(&report)?;
        Ok(Outcome::Good)
    }

    /// Ends the server, then the branch's following, then removes the directory. What the page server has, and whether the branch is deleted.
    fn destroy(&self, server: &ServerArgs, place: &Place, record: Option<&Record>) -> Result<(String, bool)> {
        let Some(record) = record else {
            if postmaster::state(place).0 == ProcessState::Running {
                bail!("its server runs, and compute.json does not tell as whom: end it first");
            }
            remove_directory(place)?;
            return Ok((String::new(), false));
        };
        if record.standby_of.is_some() {
            postmaster::stop(place, record, Mode::Immediate, self.timeout)?;
            remove_directory(place)?;
            return Ok((String::new(), false));
        }
        // Asked before anything ends: what cannot be handed over should not be stopped.
        let mut page_server = self.unless_forced(PageServer::connect(server))?;
        if let Some(page_server) = &mut page_server
            && record.progress == Progress::Ready
        {
            self.unless_forced(check_is_its_branch(place, record, page_server))?;
            self.unless_forced(wait_for_receiver(place, record, page_server))?;
        }
        if postmaster::stop(place, record, Mode::Fast, self.timeout).is_err() {
            postmaster::stop(place, record, Mode::Immediate, self.timeout)?;
        }
        let (mut told, mut branch_deleted) = (String::new(), false);
        if let Some(page_server) = &mut page_server {
            if record.progress == Progress::Ready {
                told = self.unless_forced(self.check_handed_over(place, record, page_server))?.unwrap_or_default();
            }
            // From here on it can only be destroyed: should this be cut off, it can be said again.
            let begun = Record { progress: Progress::Creating, ..record.clone() };
            begun.save(place).unwrap_or_else(|error| eprintln!("pagectl: {error:#}"));
            let left = self.unless_forced(self.leave_branch(place, record, page_server));
            if left.is_err() {
                record.save(place)?; // It is as it was.
            }
            branch_deleted = left?.unwrap_or(false);
        }
        remove_directory(place)?;
        Ok((told, branch_deleted))
    }

    /// Errors: the page server may lack something that was acknowledged.
    fn check_handed_over(&self, place: &Place, record: &Record, page_server: &mut PageServer) -> Result<String> {
        let handed_over = handed_over(place, record, page_server)?;
        if handed_over.complete || record.start_lsn.is_none() {
            return Ok(handed_over.to_string());
        }
        // After a crash nobody knows where its WAL ends, but no commit was acknowledged that the page server does not have.
        let is_crashed = handed_over.end_lsn.is_none() && handed_over.is_ingesting;
        if is_crashed && record.synchronous && waits_for_page_server(place, record)? {
            return Ok(handed_over.to_string());
        }
        bail!(
            "{handed_over}. Start it, so that the rest is handed over; --force destroys it all the same. compute=`{}`",
            record.name
        )
    }

    /// The branch follows nobody any more, and is deleted if that was asked for: true then. One that has come to follow another server is left alone.
    fn leave_branch(&self, place: &Place, record: &Record, page_server: &mut PageServer) -> Result<bool> {
        let Some(id) = &record.branch_id else {
            // `create` was interrupted before it could note the id of a branch that it may have made. Whether one of that name is it cannot be told.
            if record.branch_is_own && page_server.branch_if_there(&record.branch)?.is_some() {
                eprintln!(
                    "pagectl: there is a branch {}, which may have been made for this compute: `pagectl branch delete` deletes it",
                    record.branch
                );
            }
            return Ok(false);
        };
        let Some(branch) = page_server.branch_if_there(id)? else { return Ok(false) };
        if let Some(other) = branch.follows_another(place, record) {
            eprintln!("pagectl: branch {} follows another server, {other}: it is left alone", branch.name);
            return Ok(false);
        }
        if branch.follows() {
            page_server.unfollow(id)?;
        }
        if self.with_branch {
            page_server.delete_branch(id).with_context(|| format!("delete branch {}", branch.name))?;
        }
        Ok(self.with_branch)
    }

    /// With `--force` an error is told and `None` comes back.
    fn unless_forced<T>(&self, result: Result<T>) -> Result<Option<T>> {
        match result {
            Err(error) if self.force => {
                eprintln!("pagectl: {error:#}; going on, as --force says");
                Ok(None)
            }
            result => result.map(Some),
        }
    }
}

/// Errors: the branch has come to follow another server, so that nobody knows what the page server has of this one.
fn check_is_its_branch(place: &Place, record: &Record, page_server: &mut PageServer) -> Result<()> {
    let id = record.branch_id.as_deref().context("compute.json names no branch")?;
    let Some(branch) = page_server.branch_if_there(id)? else { return Ok(()) };
    match branch.follows_another(place, record) {
        None => Ok(()),
        Some(other) => bail!(
            "branch {} has come to follow another server, {other}: what this compute has not handed over before is lost with it; --force destroys it \
             all the same, and leaves that branch alone",
            branch.name
        ),
    }
}
