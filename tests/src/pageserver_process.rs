//! A page server of one test: the real binary, started, killed and restarted at the test's word; and `pagectl` with it.
//!
//! - Its log is read at the end: a warning or an error that the test did not expect fails the test.
//! - `psql`-like commands go over the same libpq port that people use.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use pageserver::failpoint::{Armed, FAILPOINT_VARIABLE, REACHED};
use postgres::{Client, NoTls, SimpleQueryMessage};
use postgres_ffi::PgVersion;

use crate::ports::free_port;
use crate::process::{Process, run, server_command};
use crate::test_dir::give_to_server_user;
use crate::{TestDir, wait_until};

/// Until it answers: opening the store and repeating the WAL behind the watermark.
const START_LIMIT: Duration = Duration::from_secs(120);
/// Until it has ended after SIGTERM: one flush.
const STOP_LIMIT: Duration = Duration::from_secs(120);

/// What a new page server is to be like.
#[derive(Clone, Debug, Default)]
pub struct PageServerBuilder {
    config: toml::Table,
    init_arguments: Vec<String>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    root: Option<PathBuf>,
}

impl PageServerBuilder {
    /// Sets keys of `pageserver.toml`; `text` is TOML, as it would stand there.
    pub fn config(mut self, text: &str) -> Result<Self> {
        merge(&mut self.config, text.parse().context("configuration of the test")?);
        Ok(self)
    }

    /// Its data directory begins with a new cluster of `version` as timeline `main`, which follows nobody.
    pub fn initdb(mut self, version: PgVersion) -> Self {
        self.init_arguments = vec!["--initdb".to_owned(), "--pg-version".to_owned(), version.to_string()];
        self
    }

    /// Its data directory begins with the cluster in `data_dir` as timeline `main`, which follows nobody.
    pub fn import_directory(mut self, data_dir: &Path) -> Self {
        self.init_arguments = vec!["--import-directory".to_owned(), data_dir.to_string_lossy().into_owned()];
        self
    }

    /// Adds an argument of `pageserver serve`.
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Sets an environment variable of `pageserver serve`.
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Its data directory goes below `root`, a directory of the servers' user, instead of one that is made for it.
    pub fn root(mut self, root: &Path) -> Self {
        self.root = Some(root.to_owned());
        self
    }

    /// Makes its data directory below `dir` and starts it.
    pub fn start(self, dir: &TestDir) -> Result<PageServer> {
        let port = free_port()?;
        let root = match &self.root {
            Some(root) => root.clone(),
            None => dir.create_subdir(&format!("pageserver-{port}"))?,
        };
        let mut server = PageServer {
            program: dir.copy_program(&built_program("pageserver")?)?,
            data_dir: root.join("data"),
            root,
            port,
            builder: self,
            process: None,
            log_start: 0,
            expected: Vec::new(),
            dir: dir.clone(),
        };
        let mut init = server.command("init")?;
        run(init.arg("--data-dir").arg(&server.data_dir).args(&server.builder.init_arguments))
            .context("pageserver init")?;
        server.write_config()?;
        server.start()?;
        Ok(server)
    }
}

/// A page server's end by SIGKILL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Killed {
    /// The failpoint at which it has killed itself; `None`: somebody else did.
    pub failpoint: Option<String>,
}

/// One page server. Dropped: killed, and its log looked through.
#[derive(Debug)]
pub struct PageServer {
    program: PathBuf,
    root: PathBuf,
    data_dir: PathBuf,
    port: u16,
    builder: PageServerBuilder,
    process: Option<Process>,
    /// Where in the log the last start began.
    log_start: u64,
    expected: Vec<String>,
    dir: TestDir, // Last: outlives the process.
}

impl PageServer {
    /// A page server with its defaults.
    pub fn builder() -> PageServerBuilder {
        PageServerBuilder::default()
    }

    /// The port of its libpq server, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<i32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Its data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The test's directory.
    pub fn test_dir(&self) -> &TestDir {
        &self.dir
    }

    /// Where its log is.
    pub fn log_path(&self) -> PathBuf {
        self.root.join("log")
    }

    /// A libpq connection string to it.
    pub fn conninfo(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname=pageserver", self.port)
    }

    /// A libpq session with it.
    pub fn connect(&self) -> Result<Client> {
        let mut config: postgres::Config = self.conninfo().parse()?;
        config.connect_timeout(Duration::from_secs(10));
        config.connect(NoTls).context("connect to the page server")
    }

    /// What a command gives when a person types it in `psql`: rows of columns as text, null as empty.
    pub fn query(&self, command: &str) -> Result<Vec<Vec<String>>> {
        let messages = self.connect()?.simple_query(command).with_context(|| command.to_owned())?;
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|column| row.get(column).unwrap_or_default().to_owned()).collect())
            }
            _ => None,
        });
        Ok(rows.collect())
    }

    /// Starts following the primary at `conninfo` as timeline `name`: the base backup first. Returns when the command does.
    pub fn import(&self, name: &str, conninfo: &str) -> Result<()> {
        self.query(&format!("import {name} FROM '{}'", conninfo.replace('\'', "''")))?;
        Ok(())
    }

    /// As [`PageServer::import`], of a primary whose databases are copied meanwhile: done again when what one was copied from has changed before the
    /// backup ended, which the page server refuses.
    pub fn import_under_load(&mut self, name: &str, conninfo: &str) -> Result<()> {
        const REFUSAL: &str = "a database was copied as files";
        self.expect_in_log(REFUSAL);
        for _ in 0..5 {
            match self.import(name, conninfo) {
                Err(error) if format!("{error:?}").contains(REFUSAL) => {
                    println!("refused: {error:#}; once more");
                    self.query(&format!("TIMELINE DELETE {name}"))?;
                }
                outcome => return outcome.context("import under load"),
            }
        }
        bail!("five imports were refused, one after the other")
    }

    /// How often its redo engine did `what`, as `SHOW REDO` counts it. An error if no redo engine counts that.
    pub fn engine_count(&self, what: &str) -> Result<u64> {
        let rows = self.query("SHOW REDO")?;
        let row = rows.iter().find(|row| row[0].ends_with(&format!(".engine.{what}")));
        row.with_context(|| format!("no count of {what}: {rows:?}"))?[1].parse().context("a number")
    }

    /// `pagectl`, talking to this server.
    pub fn pagectl(&self) -> Result<Pagectl> {
        Ok(Pagectl {
            program: built_program("pagectl")?,
            server: format!("127.0.0.1:{}", self.port),
            environment: Vec::new(),
        })
    }

    /// The same where every user may run it: standbys do, as their servers' user.
    pub fn installed_pagectl(&self) -> Result<Pagectl> {
        let pagectl = self.pagectl()?;
        Ok(Pagectl { program: self.test_dir().copy_program(&pagectl.program)?, ..pagectl })
    }

    /// Sets keys of its `pageserver.toml`, which it reads when it starts; `text` is TOML, as it would stand there.
    pub fn set_config(&mut self, text: &str) -> Result<()> {
        merge(&mut self.builder.config, text.parse().context("configuration of the test")?);
        self.write_config()
    }

    /// Starts it and returns when it takes connections.
    pub fn start(&mut self) -> Result<()> {
        self.launch(&[])?;
        let started = self.wait_for_connections();
        if started.is_err() {
            self.process = None;
        }
        started
    }

    /// Starts it with a failpoint armed and returns when it takes connections. False: it came to the failpoint before, and has ended.
    pub fn start_armed(&mut self, armed: Armed) -> Result<bool> {
        self.launch(&[(FAILPOINT_VARIABLE, &armed.to_string())])?;
        let waited = self.wait_for_connections();
        match waited {
            Err(error) => match self.killed()? {
                Some(Killed { failpoint: Some(_) }) => Ok(false),
                _ => Err(error),
            },
            Ok(()) => Ok(true),
        }
    }

    /// Starts it and waits for nothing.
    pub fn launch(&mut self, environment: &[(&str, &str)]) -> Result<()> {
        ensure!(self.process.is_none(), "the page server is already running");
        let mut command = self.command("serve")?;
        command.arg("--data-dir").arg(&self.data_dir).arg("--listen").arg(format!("127.0.0.1:{}", self.port));
        command.args(&self.builder.arguments);
        for (name, value) in &self.builder.environment {
            command.env(name, value);
        }
        command.envs(environment.iter().copied());
        self.log_start = fs::metadata(self.log_path()).map_or(0, |log| log.len());
        self.process = Some(Process::start("the page server", &mut command, &self.log_path())?);
        Ok(())
    }

    /// Waits until it takes connections. An error if it ends before.
    pub fn wait_for_connections(&mut self) -> Result<()> {
        let started = wait_until("the page server to take connections", START_LIMIT, || {
            self.check_alive()?;
            Ok(self.connect().is_ok())
        });
        started.with_context(|| self.log_tail())
    }

    /// How it was killed, if it was: it does not run any more then. Errors: it has ended in another way.
    pub fn killed(&mut self) -> Result<Option<Killed>> {
        let process = self.process.as_mut().context("the page server is not running")?;
        let Some(status) = process.exit_status()? else { return Ok(None) };
        ensure!(
            status.signal() == Some(Signal::SIGKILL as i32),
            "the page server ended by itself: {status}\n{}",
            process.log_tail()
        );
        self.process = None;
        let log = fs::read(self.log_path()).unwrap_or_default();
        let since = log.get(usize::try_from(self.log_start)?..).unwrap_or_default();
        let text = String::from_utf8_lossy(since);
        let failpoint = text.lines().find_map(|line| line.split_once(REACHED)).map(|(_, name)| name.trim().to_owned());
        Ok(Some(Killed { failpoint }))
    }

    /// Ends it with SIGTERM; an error if it does not end well.
    pub fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the page server is not running")?;
        process.signal(Signal::SIGTERM)?;
        let status = process.wait_for_exit(STOP_LIMIT)?;
        ensure!(status.success(), "the page server ended with {status}\n{}", process.log_tail());
        Ok(())
    }

    /// Whatever the binary says to `arguments` and its data directory.
    pub fn outcome(&self, arguments: &[&str]) -> Result<Outcome> {
        let (subcommand, rest) = arguments.split_first().context("a subcommand")?;
        let mut command = self.command(subcommand)?;
        Outcome::of(command.arg("--data-dir").arg(&self.data_dir).args(rest))
    }

    /// What `SHOW TIMELINE` says of `property`; empty for null.
    pub fn timeline(&self, name: &str, property: &str) -> Result<String> {
        let rows = self.query(&format!("SHOW TIMELINE {name}"))?;
        let row = rows.into_iter().find(|row| row.first().is_some_and(|found| found == property));
        row.and_then(|row| row.into_iter().nth(1)).with_context(|| format!("no {property} in SHOW TIMELINE"))
    }

    /// Kills it and its redo processes with SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("the page server is not running")?.kill_all()
    }

    /// Kills one of its redo processes with SIGKILL; false if none is running.
    pub fn kill_redo_process(&self) -> Result<bool> {
        let process = self.process.as_ref().context("the page server is not running")?;
        let Some(pid) = process.descendants(Some("postgres")).pop() else { return Ok(false) };
        // Gone in this very moment is as good as killed.
        Ok(nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok())
    }

    /// Says so, with the tail of its log, if it is not running any more.
    pub fn check_alive(&mut self) -> Result<()> {
        self.process.as_mut().context("the page server is not running")?.check_alive()
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        self.process.as_ref().map(Process::log_tail).unwrap_or_default()
    }

    /// Warnings and errors that contain `text` are what this test provokes.
    pub fn expect_in_log(&mut self, text: &str) {
        self.expected.push(text.to_owned());
    }

    /// The test has failed for another reason: that one is to be shown, not what the log says about it.
    pub fn ignore_log(&mut self) {
        self.expected.push(String::new());
    }

    /// The warnings, errors and panics in its log that nobody expected.
    pub fn unexpected_log_lines(&self) -> Vec<String> {
        let log = fs::read(self.log_path()).unwrap_or_default();
        let unexpected = |line: &&str| is_alarming(line) && !self.expected.iter().any(|text| line.contains(text));
        String::from_utf8_lossy(&log).lines().filter(unexpected).map(str::to_owned).collect()
    }

    fn command(&self, subcommand: &str) -> Result<Command> {
        let mut command = server_command(&self.program, &self.root)?;
        command.arg(subcommand);
        if let Some(home) = std::env::var_os("PAGESERVER_PG_HOME") {
            command.env("PAGESERVER_PG_HOME", home);
        }
        Ok(command)
    }

    /// The file that stands there, with the keys of the test.
    fn write_config(&self) -> Result<()> {
        let path = self.data_dir.join("pageserver.toml");
        let mut config: toml::Table = fs::read_to_string(&path).context("read pageserver.toml")?.parse()?;
        let extension_dir = self.redo_extension_dir()?;
        merge(&mut config, format!("redo.extension_dir = {extension_dir:?}").parse()?);
        merge(&mut config, self.builder.config.clone());
        fs::write(&path, config.to_string()).context("write pageserver.toml")?;
        give_to_server_user(&path)
    }

    /// A copy of the redo extensions where the server's user can read them, one directory per version.
    fn redo_extension_dir(&self) -> Result<PathBuf> {
        let target = self.dir.path().join("redo_extension");
        let source = target_dir()?.parent().context("a target directory has a parent")?.join("redo_extension");
        if !target.exists() && source.exists() {
            run(Command::new("cp").arg("--recursive").arg(&source).arg(&target)).context("copy the redo extensions")?;
            run(Command::new("chmod").args(["--recursive", "a+rX"]).arg(&target))?;
        }
        Ok(target)
    }
}

impl Drop for PageServer {
    fn drop(&mut self) {
        self.process = None; // Ends it, and shows its log if the test is failing.
        if !std::thread::panicking() {
            let lines = self.unexpected_log_lines();
            assert!(lines.is_empty(), "unexpected in the page server's log:\n{}", lines.join("\n"));
        }
    }
}

/// The command line tool, bound to one page server.
#[derive(Clone, Debug)]
pub struct Pagectl {
    program: PathBuf,
    server: String,
    environment: Vec<(String, PathBuf)>,
}

/// What one run of a program gave.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// 0: well; 1: done, and something is wrong (pages differ); 2: it could not be done.
    pub exit_code: i32,
    /// Data.
    pub stdout: String,
    /// Messages.
    pub stderr: String,
}

impl Outcome {
    fn of(command: &mut Command) -> Result<Self> {
        let output = command.stdin(Stdio::null()).output().with_context(|| format!("run {command:?}"))?;
        Ok(Outcome {
            exit_code: output.status.code().with_context(|| format!("{command:?} was killed"))?,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}

impl Pagectl {
    /// Runs `pagectl` with `arguments`; whatever it says is the outcome.
    pub fn outcome(&self, arguments: &[&str]) -> Result<Outcome> {
        let mut command = Command::new(&self.program);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        Outcome::of(command.args(arguments).env("PAGECTL_SERVER", &self.server))
    }

    /// As this one, with an environment variable of its own.
    pub fn environment(mut self, name: &str, value: &Path) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs `pagectl` with `arguments`; its data if it ends well.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let outcome = self.outcome(arguments)?;
        if outcome.exit_code != 0 {
            bail!("pagectl {arguments:?}: exit code {}\n{}{}", outcome.exit_code, outcome.stdout, outcome.stderr);
        }
        Ok(outcome.stdout)
    }
}

/// Where cargo puts the programs: beside the running one, or above it when that is a test in `deps/`.
fn target_dir() -> Result<PathBuf> {
    let own = std::env::current_exe().context("find the running program")?;
    let dir = own.parent().context("a program lies in a directory")?;
    Ok(if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir }.to_owned())
}

/// A program of this workspace that cargo has built.
pub fn built_program(name: &str) -> Result<PathBuf> {
    let path = target_dir()?.join(name);
    ensure!(path.exists(), "{} is not built: run `make build`", path.display());
    Ok(path)
}

/// Sets the keys of `from` in `into`, table by table.
fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(into)), toml::Value::Table(from)) => merge(into, from),
            (_, value) => _ = into.insert(key, value),
        }
    }
}

/// Whether a log line says that something is wrong: level WARN or ERROR, as text or in JSON, or a panic.
fn is_alarming(line: &str) -> bool {
    [" WARN ", " ERROR ", "\"level\":\"WARN\"", "\"level\":\"ERROR\"", "panicked at", "PANIC:", "FATAL:"]
        .iter()
        .any(|mark| line.contains(mark))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_keeps_what_was_not_named() {
        let mut config: toml::Table = "a = 1\n[s]\nx = 1\ny = 2".parse().unwrap();
        merge(&mut config, "s.y = 3\nb = 4".parse().unwrap());
        assert_eq!(config, "a = 1\nb = 4\n[s]\nx = 1\ny = 3".parse().unwrap());
    }

    #[test]
    fn knows_an_alarming_line() {
        assert!(is_alarming("2026-01-01T00:00:00Z  WARN pageserver::redo: redo process died"));
        assert!(is_alarming("thread 'main' panicked at src/main.rs:1:1:"));
        assert!(is_alarming(r#"{"level":"ERROR","message":"x"}"#));
        assert!(!is_alarming("2026-01-01T00:00:00Z  INFO pageserver: 0 WARNINGS so far"));
    }
}
