//! A server process in the hands of a test: who it runs as, how it is ended, what it wrote.
//!
//! - Only processes that were started here are ever signalled, by pid: the child and what descends from it.
//! - A child outlives neither its [`Process`] nor the test: a watcher kills it when the test process is gone.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};

use crate::wait_until;

/// How much of a log a failure shows.
const LOG_TAIL_BYTES: u64 = 8 * 1024;

/// User and group that servers run as; `None`: as whoever runs the test.
pub fn server_user() -> Result<Option<(u32, u32)>> {
    static USER: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    if !geteuid().is_root() {
        return Ok(None);
    }
    if let Some(user) = USER.get() {
        return Ok(*user);
    }
    let user = User::from_name("postgres")
        .context("look up user postgres")?
        .context("tests run as root switch to user `postgres`, which is not here: run scripts/setup")?;
    Ok(*USER.get_or_init(|| Some((user.uid.as_raw(), user.gid.as_raw()))))
}

/// A command for `program` that runs as the user of the servers, in `work_dir`, with a small known environment.
pub fn server_command(program: &Path, work_dir: &Path) -> Result<Command> {
    let mut command = Command::new(program);
    command.current_dir(work_dir).env_clear().env("LC_ALL", "C").env("TZ", "UTC");
    for name in ["PATH", "RUST_LOG", "RUST_BACKTRACE", "TMPDIR"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    if let Some((uid, gid)) = server_user()? {
        command.uid(uid).gid(gid);
    }
    Ok(command)
}

/// Runs `command` to its end; its output if it succeeded, an error with what it wrote if not.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("run {command:?}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{command:?}: {}\n{stdout}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(stdout)
}

/// A running child, its output appended to a log file. Dropped: killed with all that descends from it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    watcher: Watcher,
}

impl Process {
    /// Starts `command`, both of its outputs appended to `log`.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let output = File::options().create(true).append(true).open(log).context("open the log")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("start {name}: {command:?}"))?;
        let watcher = Watcher::start(child.id())?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned(), watcher })
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Sends it `signal`. An error if it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid()), signal).with_context(|| format!("send {signal} to {}", self.name))
    }

    /// How it ended, if it has.
    pub fn exit_status(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("wait for {}", self.name))
    }

    /// How it ended; an error with the tail of its log if it has not within `limit`.
    pub fn wait_for_exit(&mut self, limit: Duration) -> Result<ExitStatus> {
        let mut status = None;
        let name = self.name.clone();
        let waited = wait_until(&format!("the end of {name}"), limit, || {
            status = self.exit_status()?;
            Ok(status.is_some())
        });
        waited.with_context(|| self.log_tail())?;
        status.context("it ended")
    }

    /// An error with the tail of its log if it has ended.
    pub fn check_alive(&mut self) -> Result<()> {
        match self.exit_status()? {
            None => Ok(()),
            Some(status) => bail!("{} ended by itself: {status}\n{}", self.name, self.log_tail()),
        }
    }

    /// Pids of its children and theirs, those whose program name is `program` (all: `None`).
    pub fn descendants(&self, program: Option<&str>) -> Vec<i32> {
        descendants(self.pid())
            .into_iter()
            .filter(|pid| program.is_none_or(|name| program_name(*pid) == name))
            .collect()
    }

    /// SIGKILL for it and all that descends from it, as at one moment: none of them has time to react to the end of another (a backend that sees
    /// its postmaster gone cleans up). Returns when all of them are gone.
    pub fn kill_all(&mut self) -> Result<()> {
        let send = |pids: &[i32], signal: Signal| {
            for pid in pids {
                let _ = kill(Pid::from_raw(*pid), signal);
            }
        };
        let _ = self.signal(Signal::SIGSTOP); // It starts no more children.
        let family = self.descendants(None);
        send(&family, Signal::SIGSTOP);
        send(&family, Signal::SIGKILL);
        let _ = self.child.kill();
        self.child.wait().with_context(|| format!("wait for {}", self.name))?;
        // A zombie holds neither files nor memory: gone enough, and init reaps it.
        wait_until("killed processes to be gone", Duration::from_secs(30), || {
            Ok(!family.iter().any(|pid| is_running(*pid)))
        })
    }

    /// The end of its log, with a line that says whose.
    pub fn log_tail(&self) -> String {
        let tail = read_tail(&self.log).unwrap_or_else(|error| format!("(unreadable: {error})"));
        format!("--- end of the log of {}, {}\n{tail}---", self.name, self.log.display())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !matches!(self.exit_status(), Ok(Some(_))) {
            let _ = self.kill_all();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
        self.watcher.dismiss();
    }
}

/// A shell that ends something when the test dies without having ended it: its standard input closes then.
#[derive(Debug)]
pub(crate) struct Watcher {
    shell: Child,
    input: Option<ChildStdin>,
}

impl Watcher {
    /// SIGQUIT: PostgreSQL's immediate shutdown, which takes its children along; ends any other program as well, unless the test was
    /// started by a shell in the background, which makes it and its children ignore that signal. So SIGKILL comes after it.
    pub(crate) fn start(pid: u32) -> Result<Self> {
        Self::run(&format!("kill -QUIT {pid} && sleep 5 && kill -KILL {pid}"))
    }

    /// Runs `cleanup`, a line of shell, when the test dies.
    pub(crate) fn run(cleanup: &str) -> Result<Self> {
        let mut shell = Command::new("/bin/sh")
            .args(["-c", &format!("read word || {{ {cleanup}; }}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0) // An interrupt at the terminal ends the test; the watcher is needed after that.
            .spawn()
            .context("start the watcher")?;
        let input = shell.stdin.take();
        Ok(Self { shell, input })
    }

    pub(crate) fn dismiss(&mut self) {
        if let Some(mut input) = self.input.take() {
            let _ = input.write_all(b"done\n");
        }
        let _ = self.shell.wait();
    }
}

/// The name of the program that `pid` runs (up to 15 bytes); empty if there is no such process.
fn program_name(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

/// State letter and parent of `pid`. The program name in between is in parentheses and may hold anything.
fn state_and_parent(pid: i32) -> Option<(char, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

pub(crate) fn is_running(pid: i32) -> bool {
    state_and_parent(pid).is_some_and(|(state, _)| state != 'Z')
}

/// Pids of all processes below `root`, parents first.
pub(crate) fn descendants(root: i32) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let parents: Vec<(i32, i32)> = pids.filter_map(|pid| Some((pid, state_and_parent(pid)?.1))).collect();
    let mut found = vec![root];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found.split_off(1)
}

fn read_tail(log: &Path) -> Result<String> {
    let mut file = File::open(log)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(LOG_TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kill_all_takes_the_grandchildren_along() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "sleep 600 & sleep 600 & wait"]);
        let mut process = Process::start("sh", &mut command, &dir.path().join("log")).unwrap();
        wait_until("two sleepers", Duration::from_secs(10), || Ok(process.descendants(Some("sleep")).len() == 2))
            .unwrap();
        let sleepers = process.descendants(Some("sleep"));
        process.kill_all().unwrap();
        assert!(sleepers.iter().all(|pid| !is_running(*pid)));
    }

    #[test]
    fn an_early_end_shows_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo no such luck; exit 3"]);
        let mut process = Process::start("sh", &mut command, &dir.path().join("log")).unwrap();
        process.wait_for_exit(Duration::from_secs(10)).unwrap();
        let error = process.check_alive().unwrap_err().to_string();
        assert!(error.contains("no such luck") && error.contains('3'), "{error}");
    }
}
