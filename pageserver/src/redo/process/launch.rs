//! Starts a redo process and brings it to the point where it takes requests.
//!
//! - The environment is empty but for what PostgreSQL needs; descriptors of ours are closed on exec (std opens all with
//!   O_CLOEXEC), and the extension closes whatever else it finds.
//! - The process leads a process group, so that it can be killed with all it may have started.
//! - It has said hello in time, or it is killed and the start has failed.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{Gid, Uid, User};
use postgres_ffi::PgVersion;
use tempfile::TempDir;

use super::ProcessConfig;
use super::keeper::Keeper;
use super::library::Library;
use super::pipeline::Pipeline;
use super::protocol::{HELLO_LEN, Hello};
use super::skeleton;

/// What is started.
#[derive(Clone, Debug)]
pub enum Program {
    /// A stock PostgreSQL with our extension.
    Postgres(PostgresProgram),
    /// Any other program that speaks the protocol of `redo_extension/redo.h` on its standard input and output.
    Other {
        /// The program.
        path: PathBuf,
        /// Its arguments.
        args: Vec<String>,
    },
}

/// A stock PostgreSQL with our extension.
#[derive(Clone, Debug)]
pub struct PostgresProgram {
    /// The `postgres` binary, of the cluster's major version.
    pub postgres: PathBuf,
    /// `pageserver_redo.so`, built for that major version.
    pub extension: PathBuf,
    /// The cluster's control file: it tells whether pages have checksums, on which the LSN of some pages depends.
    pub pg_control: Bytes,
    /// `wal_log_hints` of the cluster, on which it depends too.
    pub wal_log_hints: bool,
    /// Libraries with resource managers of their own, loaded before ours.
    pub preload_libraries: Vec<Library>,
    /// Where the data directory that a start needs for a moment is made. Default: shared memory.
    pub work_dir: Option<PathBuf>,
    /// The user that it runs as. PostgreSQL refuses root, so a page server that runs as root must name one.
    pub run_as: Option<String>,
}

/// Why a process could not be started. The message says it all: nobody reacts to the difference.
pub type StartError = String;

/// A process that has said hello. One that ends before it does is started once more: anybody may have killed it, the kernel for want of memory as well.
pub fn launch(config: &ProcessConfig) -> Result<(Pipeline, Hello), StartError> {
    match launch_once(config)? {
        Ok(started) => Ok(started),
        Err(_) => launch_once(config)?.map_err(|how| format!("process ended before it said hello, twice ({how})")),
    }
}

/// The inner error: how a process ended that said nothing.
fn launch_once(config: &ProcessConfig) -> Result<Result<(Pipeline, Hello), String>, StartError> {
    let deadline = Instant::now() + config.start_timeout;
    let (mut command, skeleton) = match &config.program {
        Program::Postgres(program) => {
            let (command, skeleton) = postgres_command(program, config.version)?;
            (command, Some(skeleton))
        }
        Program::Other { path, args } => {
            let mut command = Command::new(path);
            command.env_clear().args(args);
            (command, None)
        }
    };
    command.current_dir("/").process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let program = command.get_program().to_owned();
    let mut child =
        command.spawn().map_err(|error| format!("cannot run {}: {error}", Path::new(&program).display()))?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let keeper = Keeper::new(child).map_err(|error| format!("cannot start a thread: {error}"))?;
    let (Some(stdin), Some(stdout)) = (stdin, stdout) else {
        return Err("process has no pipes".to_owned()); // Not seen: both were asked for above.
    };
    let mut stdout = std::fs::File::from(OwnedFd::from(stdout));
    let hello =
        read_hello(&mut stdout, config.version, deadline).map_err(|reason| format!("{reason} ({})", keeper.end()))?;
    let Some(hello) = hello else { return Ok(Err(keeper.end())) };
    drop(skeleton); // The process has read all that it will ever read.
    let pipeline = Pipeline::new(keeper, OwnedFd::from(stdin), OwnedFd::from(stdout), config.timeout)
        .map_err(|error| format!("cannot prepare the pipes: {error}"))?;
    Ok(Ok((pipeline, hello)))
}

/// `None`: the process came to its end first.
fn read_hello(stdout: &mut std::fs::File, version: PgVersion, deadline: Instant) -> Result<Option<Hello>, StartError> {
    let mut hello = [0; HELLO_LEN];
    let mut len = 0;
    while len < HELLO_LEN {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err("no hello in time".to_owned());
        }
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(format!("cannot wait for the hello: {error}")),
        }
        match stdout.read(&mut hello[len..]) {
            Ok(0) => return Ok(None),
            Ok(read) => len += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(format!("cannot read the hello: {error}")),
        }
    }
    Hello::parse(&hello, version).map(Some).map_err(|error| error.to_string())
}

fn postgres_command(program: &PostgresProgram, version: PgVersion) -> Result<(Command, TempDir), StartError> {
    let owner = run_as(program.run_as.as_deref())?;
    let skeleton = skeleton::create(program.work_dir.as_deref(), version, &program.pg_control, owner)
        .map_err(|error| format!("cannot make the data directory: {error}"))?;
    // Another user may not be allowed to come to where the extension is installed; to the data directory it is.
    let extension = match owner {
        Some(owner) => skeleton::add_extension(&skeleton, &program.extension, owner)
            .map_err(|error| format!("cannot copy {}: {error}", program.extension.display()))?,
        None => program.extension.clone(),
    };
    let extension = Library::at(&extension).map_err(|error| format!("redo extension: {error}"))?;
    let mut command = Command::new(&program.postgres);
    command.env_clear().env("LC_ALL", "C");
    if let Some((uid, gid)) = owner {
        command.uid(uid.as_raw()).gid(gid.as_raw()); // Drops our supplementary groups as well.
    }
    command.arg("--single").arg("-D").arg(skeleton.path());
    let mut libraries: Vec<String> = program.preload_libraries.iter().map(Library::to_string).collect();
    if version == PgVersion::V14 {
        // 14 loads no libraries in single-user mode.
        if extension.as_str().contains([' ', ':']) {
            return Err(format!("redo extension: a path with a blank or a colon cannot be preloaded: {extension}"));
        }
        command.env("LD_PRELOAD", extension.as_str()).env("PAGESERVER_REDO_PRELOAD", "1");
    } else {
        libraries.push(extension.to_string());
    }
    command.arg("-c").arg(format!("shared_preload_libraries={}", libraries.join(",")));
    command.arg("-c").arg(format!("wal_log_hints={}", if program.wal_log_hints { "on" } else { "off" }));
    for setting in SETTINGS {
        command.arg("-c").arg(setting);
    }
    if version >= PgVersion::V18 {
        command.arg("-c").arg("io_method=sync"); // No worker processes, no rings: there is no I/O.
    }
    command.arg("postgres");
    Ok((command, skeleton))
}

/// As little of PostgreSQL as there can be. One buffer pool of 128 pages is what the extension counts on.
const SETTINGS: [&str; 12] = [
    "shared_buffers=1MB",
    "max_connections=1",
    "max_worker_processes=0",
    "max_wal_senders=0",
    "autovacuum_max_workers=1",
    "max_prepared_transactions=0",
    "max_locks_per_transaction=10",
    // The default leaves a file in /dev/shm when the process is killed.
    "dynamic_shared_memory_type=mmap",
    "fsync=off",
    "huge_pages=off",
    "wal_buffers=64kB",
    "log_min_messages=warning",
];

fn run_as(name: Option<&str>) -> Result<Option<(Uid, Gid)>, StartError> {
    match name {
        Some(name) => match User::from_name(name) {
            Ok(Some(user)) if user.uid.is_root() => {
                Err("PostgreSQL does not run as root; name another user".to_owned())
            }
            Ok(Some(user)) => Ok(Some((user.uid, user.gid))),
            Ok(None) => Err(format!("there is no user {name:?}")),
            Err(error) => Err(format!("cannot look up user {name:?}: {error}")),
        },
        None if Uid::effective().is_root() => {
            Err("PostgreSQL does not run as root; name a user for the redo process".to_owned())
        }
        None => Ok(None),
    }
}
