//! The computes of one test: made, ended and destroyed with `pagectl compute`, as a person would.
//!
//! - Their servers are no children of the test: each is watched by its pid, and killed when the test is over.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres::{Client, NoTls};
use serde_json::Value;

use crate::postgres_server::query_text;
use crate::process::{Watcher, descendants, is_running};
use crate::{Outcome, PageServer, Pagectl, free_port, wait_until};

/// Until a killed server is gone.
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// In the log of every page server whose computes go away.
const EXPECTED_IN_LOG: &str = "connection to the primary";

/// A directory of computes, and `pagectl` that works in it. Dropped: every server in it is killed.
pub struct Computes {
    root: PathBuf,
    pagectl: Pagectl,
    watchers: Mutex<Vec<Watcher>>,
}

impl Computes {
    /// No computes yet, below the directory of `server`'s test; they start from its branches.
    pub fn new(server: &mut PageServer) -> Result<Self> {
        server.expect_in_log(EXPECTED_IN_LOG);
        let root = server.test_dir().path().join("computes");
        let pagectl = server.installed_pagectl()?.environment("PAGECTL_COMPUTES", &root);
        Ok(Computes { root, pagectl, watchers: Mutex::default() })
    }

    /// Where they are.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What `pagectl compute` says to `arguments`.
    pub fn outcome(&self, arguments: &[&str]) -> Result<Outcome> {
        let outcome = self.pagectl.outcome(&[&["compute"], arguments].concat());
        self.watch()?;
        outcome
    }

    /// What `pagectl --json compute` says to `arguments`; an error when it does not end well.
    pub fn run(&self, arguments: &[&str]) -> Result<Value> {
        let outcome = self.outcome(&[&["--json"], arguments].concat())?;
        ensure!(outcome.exit_code == 0, "pagectl compute {arguments:?}: {outcome:?}");
        serde_json::from_str(&outcome.stdout).with_context(|| format!("not JSON: {}", outcome.stdout))
    }

    /// `pagectl compute create NAME --branch BRANCH ARGUMENTS`, on a port that no other test of this process has.
    pub fn create(&self, name: &str, branch: &str, arguments: &[&str]) -> Result<Compute> {
        let port = free_port()?.to_string();
        let port: &[&str] = if arguments.contains(&"--port") { &[] } else { &["--port", &port] };
        let report = self.run(&[&["create", name, "--branch", branch], port, arguments].concat())?;
        Compute::new(self.root.join(name), report)
    }

    /// `pagectl compute destroy NAME --confirm`.
    pub fn destroy(&self, name: &str) -> Result<Value> {
        let report = self.run(&["destroy", name, "--confirm"])?;
        ensure!(!self.root.join(name).exists(), "the directory of {name} is there still");
        Ok(report)
    }

    /// What `list` says of `name`: state and other columns; an error when it is not listed.
    pub fn listed(&self, name: &str) -> Result<Value> {
        let outcome = self.outcome(&["--json", "list"])?;
        ensure!(outcome.exit_code == 0, "{outcome:?}");
        let rows = outcome.stdout.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
        rows.into_iter().find(|row| row["name"] == name).with_context(|| format!("{name} is not listed"))
    }

    /// Has every server that runs now end with the test, however that ends.
    fn watch(&self) -> Result<()> {
        let mut watchers = self.watchers.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        for pid in self.pids() {
            watchers.push(Watcher::start(pid.unsigned_abs())?);
        }
        Ok(())
    }

    fn pids(&self) -> Vec<i32> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        entries.filter_map(|entry| postmaster_pid(&entry.path())).filter(|pid| is_running(*pid)).collect()
    }
}

impl Drop for Computes {
    fn drop(&mut self) {
        for pid in self.pids() {
            kill_all(pid);
        }
        let watchers = self.watchers.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        watchers.iter_mut().for_each(Watcher::dismiss);
    }
}

/// A compute that `create` has made.
#[derive(Debug, Clone)]
pub struct Compute {
    root: PathBuf,
    conninfo: String,
    /// What `create` said.
    pub report: Value,
}

impl Compute {
    fn new(root: PathBuf, report: Value) -> Result<Self> {
        let conninfo = report["conninfo"].as_str().context("a connection string")?.to_owned();
        Ok(Compute { root, conninfo, report })
    }

    /// Its directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A libpq connection string.
    pub fn conninfo(&self) -> &str {
        &self.conninfo
    }

    /// A session in database `postgres`.
    pub fn connect(&self) -> Result<Client> {
        let mut config: postgres::Config = self.conninfo.parse()?;
        config.connect_timeout(Duration::from_secs(10));
        config.connect(NoTls).with_context(|| format!("connect to {}", self.conninfo))
    }

    /// Runs `sql` in a session of its own.
    pub fn execute(&self, sql: &str) -> Result<()> {
        self.connect()?.batch_execute(sql).with_context(|| sql.to_owned())
    }

    /// The first column of the first row that `sql` gives, as text.
    pub fn query_text(&self, sql: &str) -> Result<String> {
        query_text(&mut self.connect()?, sql)
    }

    /// Kills server and backends with SIGKILL.
    pub fn kill(&self) -> Result<()> {
        let pid = postmaster_pid(&self.root).filter(|pid| is_running(*pid));
        kill_all(pid.context("the compute does not run")?);
        Ok(())
    }
}

/// The server's process id as its pid file has it.
fn postmaster_pid(root: &Path) -> Option<i32> {
    let text = fs::read_to_string(root.join("data/postmaster.pid")).ok()?;
    text.lines().next()?.trim().parse().ok()
}

fn kill_all(pid: i32) {
    let family = [&[pid][..], &descendants(pid)].concat();
    for pid in &family {
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    let gone = wait_until("a killed compute to be gone", KILL_LIMIT, || Ok(!family.iter().any(|pid| is_running(*pid))));
    if let Err(error) = gone {
        eprintln!("{error}");
    }
}
