//! `pagectl compute`: stock PostgreSQL servers that start from a branch and write back into it.
//!
//! - A compute is one directory, `COMPUTES/NAME`: `compute.json`, `data/`, `tablespaces/`, `log`, and its socket. Nothing of it is anywhere else.
//! - Its data directory is a base backup from the page server; its WAL streams back, so it can be thrown away.
//! - `compute.json` is there before anything else and says `creating` until all is done: what a crash leaves behind is seen and can be destroyed.
//! - What fails is undone.
//!
//! In reading order: names and places ([`place`]), `compute.json` ([`record`]), who runs it ([`owner`]), which programs ([`binaries`]), the page
//! server's side ([`page_server`]), the data directory ([`unpack`], [`settings`], [`superuser`]), the process ([`postmaster`]), hot standbys ([`standby`]), then the
//! commands ([`create`], [`start`], [`stop`], [`list`], [`psql`], [`destroy`]; `undo` takes back what a command has begun).

pub mod place;

pub mod record;

pub mod owner;

pub mod binaries;

pub mod page_server;

pub mod unpack;

pub mod settings;

pub mod superuser;

pub mod postmaster;

pub mod standby;

pub mod create;
pub mod undo;

pub mod start;

pub mod stop;

pub mod list;

pub mod psql;

pub mod destroy;

use anyhow::Result;

use crate::connect::ServerArgs;
use crate::output::{Outcome, Output};

/// Runs stock PostgreSQL servers on branches
///
/// A compute is a PostgreSQL server in a directory of its own that starts from a branch as of an LSN and whose WAL comes back into that
/// branch. Unless it was made with --asynchronous, a commit that a client was told of is in the page server: the compute can be lost or
/// destroyed, and another one on the branch has every row.
///
/// Who may connect: the directory of the socket belongs to the server's user alone; over TCP it listens on 127.0.0.1 only. Both trust
/// whoever comes, as initdb makes it: every user of this machine can log in over TCP as any role. With --auth scram-sha-256 TCP asks for the
/// passwords that the roles have, and the page server comes over the socket, so it must run as root or as the same user.
#[derive(Debug, clap::Subcommand)]
#[expect(missing_docs, reason = "what each does stands at its arguments: clap takes the help from there")]
pub enum ComputeCommand {
    Create(create::Create),
    Start(start::Start),
    Stop(stop::Stop),
    List(list::List),
    Psql(psql::Psql),
    Destroy(destroy::Destroy),
}

impl ComputeCommand {
    /// Runs it.
    pub fn run(&self, server: &ServerArgs, output: &mut Output) -> Result<Outcome> {
        match self {
            ComputeCommand::Create(create) => create.run(server, output)?,
            ComputeCommand::Start(start) => start.run(server, output)?,
            ComputeCommand::Stop(stop) => return stop.run(server, output),
            ComputeCommand::List(list) => list.run(output)?,
            ComputeCommand::Psql(psql) => psql.run()?,
            ComputeCommand::Destroy(destroy) => return destroy.run(server, output),
        }
        Ok(Outcome::Good)
    }
}
