//! The server process of a compute: starting and ending it with `pg_ctl`, and whether it runs.

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use postgres_ffi::PgVersion;
use postgres_ffi::control_file::{ControlFile, DbState};
use serde::Serialize;

use super::owner::Owner;
use super::place::Place;
use super::record::Record;

/// How much of the log a failure shows.
const LOG_TAIL_BYTES: u64 = 4 * 1024;
/// How long a killed server may stay in the list of processes.
const REAP_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Whether a compute's server runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessState {
    /// It runs.
    Running,
    /// It was ended.
    Stopped,
    /// It was killed, or the machine went down: the next start recovers.
    Crashed,
}

impl std::fmt::Display for ProcessState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ProcessState::Running => "running",
            ProcessState::Stopped => "stopped",
            ProcessState::Crashed => "crashed",
        })
    }
}

/// How a server is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Ends sessions, writes a checkpoint, and sends the rest of the WAL to those who follow it.
    Fast,
    /// Ends at once; the next start recovers.
    Immediate,
}

/// Whether the server of `place` runs, and its process id if it does.
pub fn state(place: &Place) -> (ProcessState, Option<i32>) {
    let Ok(text) = fs::read_to_string(place.data().join("postmaster.pid")) else {
        return (ProcessState::Stopped, None);
    };
    // PG: src/include/utils/pidfile.h, LOCK_FILE_LINE_PID.
    let pid = text.lines().next().and_then(|line| line.trim().parse::<i32>().ok()).filter(|pid| *pid > 0);
    match pid.filter(|pid| is_server_of(*pid, &place.data())) {
        Some(pid) => (ProcessState::Running, Some(pid)),
        None => (ProcessState::Crashed, None),
    }
}

/// Returns when the process that the pid file of a crashed server names is gone altogether: PostgreSQL does not start while a process of that
/// number can be signalled, and one that was killed can be until its parent has taken note. What holds on for longer is left to `pg_ctl` to refuse.
fn wait_until_reaped(place: &Place) {
    let text = fs::read_to_string(place.data().join("postmaster.pid")).unwrap_or_default();
    let Some(pid) = text.lines().next().and_then(|line| line.trim().parse::<i32>().ok()) else { return };
    let deadline = Instant::now() + REAP_TIMEOUT;
    while is_zombie(pid) && Instant::now() < deadline {
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// The program's name, in parentheses, may hold anything. Linux: proc(5), /proc/pid/stat.
fn is_zombie(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
}

/// Whether process `pid` is the server of the data directory `data`, and not one that came later and got the same number: a server works in
/// its data directory. Where that cannot be seen, that there is a process must do.
fn is_server_of(pid: i32, data: &Path) -> bool {
    match fs::read_link(format!("/proc/{pid}/cwd")) {
        Ok(cwd) => fs::canonicalize(data).is_ok_and(|data| data == cwd),
        Err(_) if is_zombie(pid) => false,
        Err(_) => !matches!(kill(Pid::from_raw(pid), None), Err(Errno::ESRCH)),
    }
}

/// Starts the server and returns its process id once it takes connections. Errors: it does not within `timeout_seconds`, with the end of its log.
pub fn start(place: &Place, record: &Record, timeout_seconds: u32) -> Result<i32> {
    wait_until_reaped(place);
    let mut command = pg_ctl(place, record)?;
    command.arg("start").arg("--log").arg(place.log()).arg("--wait").arg(format!("--timeout={timeout_seconds}"));
    run(&mut command).with_context(|| log_tail(place))?;
    match state(place) {
        (ProcessState::Running, Some(pid)) => Ok(pid),
        _ => bail!("the server ended by itself. {}", log_tail(place)),
    }
}

/// Ends the server; well when none runs. Errors: it has not ended within `timeout_seconds`.
pub fn stop(place: &Place, record: &Record, mode: Mode, timeout_seconds: u32) -> Result<()> {
    if state(place).0 != ProcessState::Running {
        return Ok(());
    }
    let mut command = pg_ctl(place, record)?;
    command.arg("stop").arg(format!("--mode={}", if mode == Mode::Fast { "fast" } else { "immediate" }));
    command.arg("--wait").arg(format!("--timeout={timeout_seconds}"));
    run(&mut command).map(drop)
}

/// The control file in the data directory of `place`.
pub fn control_file(place: &Place, version: PgVersion) -> Result<ControlFile> {
    let path = place.data().join("global/pg_control");
    let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    ControlFile::decode_as(version, &bytes).with_context(|| format!("decode {}", path.display()))
}

/// The value of a setting that the server, which does not run, would start with. PG 14-18: src/backend/postmaster/postmaster.c, PostmasterMain, option -C.
pub fn setting(place: &Place, record: &Record, name: &str) -> Result<String> {
    let owner = Owner::find(record.run_as.as_deref())?;
    let mut command = owner.command(&record.pg_bin.join("postgres"), place.root());
    run(command.arg("-D").arg(place.data()).arg("-C").arg(name))
}

/// Whether the server ended well: its last checkpoint is the end of its WAL.
pub fn was_shut_down(control: &ControlFile) -> bool {
    matches!(control.state, DbState::ShutDown)
}

fn pg_ctl(place: &Place, record: &Record) -> Result<Command> {
    let owner = Owner::find(record.run_as.as_deref())?;
    let mut command = owner.command(&record.pg_bin.join("pg_ctl"), place.root());
    command.arg("--silent").arg("--pgdata").arg(place.data());
    Ok(command)
}

/// What the program prints. Errors: it ends badly, with what it said.
fn run(command: &mut Command) -> Result<String> {
    let program = Path::new(command.get_program()).to_owned();
    let output = command.stdin(std::process::Stdio::null()).output();
    let output = output.with_context(|| format!("run {}", program.display()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let said = [output.stderr, output.stdout].concat();
    let name = program.file_name().unwrap_or_default().display();
    bail!("{name} failed ({}): {}", output.status, String::from_utf8_lossy(&said).trim())
}

/// The end of the server's log, with a line that says whose.
fn log_tail(place: &Place) -> String {
    let read = || {
        // It lies in a directory of the server's user: a link there is not ours to follow.
        let mut file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(place.log())?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&bytes).trim_end().to_owned())
    };
    match read() {
        Ok(tail) => format!("the server did not start; the end of {}:\n{tail}\n", place.log().display()),
        Err(error) => format!("the server did not start, and {} cannot be read: {error}", place.log().display()),
    }
}
