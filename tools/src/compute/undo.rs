//! What a `create` that fails takes back: everything that it made, and nothing else.

use std::fs;

use anyhow::{Context, Result};

use super::page_server::PageServer;
use super::place::Place;
use super::postmaster::{self, Mode, ProcessState};
use super::record::Record;
use crate::connect::ServerArgs;

/// For a server that is thrown away.
const STOP_TIMEOUT_SECONDS: u32 = 60;

/// What was made so far.
#[derive(Debug, Default)]
pub struct Made {
    /// The compute's directory.
    pub directory: bool,
    /// The branch with this id.
    pub branch_id: Option<String>,
    /// A process may run.
    pub process: bool,
    /// The branch with this id was told to follow.
    pub followed_id: Option<String>,
}

impl Made {
    /// Takes back what was made, last things first, and tells each on standard error; what cannot be taken back is told, too.
    pub fn undo(&self, server: &ServerArgs, place: &Place, record: &Record) {
        if self.process && postmaster::state(place).0 == ProcessState::Running {
            tell("server", postmaster::stop(place, record, Mode::Immediate, STOP_TIMEOUT_SECONDS), "ended");
        }
        if let Some(id) = &self.followed_id {
            tell("following", ask(server, |page_server| page_server.unfollow(id)), "ended");
        }
        if let Some(id) = &self.branch_id {
            tell(
                &format!("branch {}", record.branch),
                ask(server, |page_server| page_server.delete_branch(id)),
                "deleted",
            );
        }
        if self.directory {
            tell(&place.root().display().to_string(), remove_directory(place), "removed");
        }
    }
}

/// Over a connection of its own: the one that failed is of no use.
fn ask(server: &ServerArgs, what: impl FnOnce(&mut PageServer) -> Result<()>) -> Result<()> {
    what(&mut PageServer::connect(server)?)
}

fn tell(what: &str, done: Result<()>, how: &str) {
    match done {
        Ok(()) => eprintln!("pagectl: undone: {what} {how}"),
        Err(error) => eprintln!("pagectl: NOT undone: {what} stays: {error:#}"),
    }
}

/// Removes the compute's directory, `compute.json` after the rest: what a crash leaves in between can be destroyed again.
pub fn remove_directory(place: &Place) -> Result<()> {
    for dir in [place.data(), place.tablespaces()] {
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
        }
    }
    fs::remove_dir_all(place.root()).with_context(|| format!("remove {}", place.root().display()))
}
