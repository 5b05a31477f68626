//! `pagectl compute create`: from a branch to a running server, or nothing at all.
//!
//! - All checks come before anything is made; whatever fails after that is undone.
//! - Commits wait for the page server from the first start on, so nothing here commits: the page server follows before anybody writes.

use std::fs::{self, DirBuilder, File, Permissions};
use std::hash::{Hash, Hasher};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::geteuid;
use pageserver::client::ClientError;
use postgres_ffi::checkpoint::Checkpoint;
use postgres_ffi::control_file::ControlFile;
use postgres_ffi::{Lsn, PgVersion};
use serde::Serialize;

use super::owner::Owner;
use super::page_server::{Branch, PageServer, conninfo_for_page_server};
use super::place::{ComputeName, ComputesArgs, Place};
use super::record::{self, Progress, Record};
use super::settings::{Auth, Choices, conninfo_value};
use super::undo::Made;
use super::unpack::{self, Unpacked};
use super::{binaries, postmaster, settings, standby, superuser};
use crate::connect::ServerArgs;
use crate::output::Output;

/// Ports that are chosen from: few services have theirs here, and Linux gives none of them to outgoing connections (from 32768).
const PORTS: std::ops::Range<u16> = 15_432..16_432;
/// How long an LSN that a primary has just written is waited for.
const LSN_TIMEOUT: Duration = Duration::from_secs(2);

/// Makes a compute: a running PostgreSQL server on a branch, as of now, an LSN or a time
///
/// With --lsn or --time, or when the branch already follows a primary or another compute, a branch with the compute's name is made first. The server
/// trusts whoever comes to its socket's directory (the server's user and root) and, unless --auth says otherwise, every user of this machine
/// over TCP.
#[derive(Debug, clap::Args)]
pub struct Create {
    /// What to call it
    name: ComputeName,
    /// The branch to start from, by name or id
    #[arg(long)]
    branch: String,
    /// Start as of this LSN
    #[arg(long, conflicts_with = "time")]
    lsn: Option<Lsn>,
    /// Start as of this time: `2026-11-25 14:32:00` (UTC without a zone), or `5 minutes ago`
    #[arg(long, allow_hyphen_values = true)]
    time: Option<String>,
    /// Port to listen on; a free one is chosen without
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Commits do not wait until the page server has them: faster, and the last ones are lost with the compute
    #[arg(long)]
    asynchronous: bool,
    /// Make a hot standby, which follows the server that the branch follows: for reading. It begins with the branch's last record and leaves the
    /// branch alone
    #[arg(long, conflicts_with_all = ["lsn", "time", "asynchronous"])]
    standby: bool,
    /// Primary of the standby, as libpq's connection string; the compute on the branch without. It must keep WAL for the standby (wal_keep_size)
    #[arg(long, value_name = "CONNINFO", requires = "standby")]
    primary: Option<String>,
    /// How it makes sure who connects over TCP
    #[arg(long, value_enum, default_value = "trust")]
    auth: Auth,
    /// Superuser to log in as, for the page server and for psql; the one that initdb made without
    #[arg(long, value_name = "ROLE")]
    user: Option<String>,
    /// System user to run the server as, for root only
    #[arg(long, value_name = "USER")]
    run_as: Option<String>,
    /// Directory of postgres and pg_ctl
    #[arg(long, value_name = "DIR")]
    pg_bin: Option<PathBuf>,
    /// Make it and leave it stopped
    #[arg(long)]
    no_start: bool,
    /// Run it with fsync off: after a crash of the machine it must be destroyed. What was committed is in the page server
    #[arg(long)]
    no_sync: bool,
    /// How long the start, and after it the page server's connection, may take
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u32,
    #[command(flatten)]
    computes: ComputesArgs,
}

/// The moment of a branch that a compute starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartAt {
    /// Its last record.
    End,
    /// An LSN.
    Lsn(Lsn),
    /// The last commit at or before a time, as `BRANCH CREATE` takes it.
    Time(String),
}

/// What was made, for people and programs.
#[derive(Debug, Serialize)]
struct Report {
    name: ComputeName,
    branch: String,
    /// The branch that this one was made off; none when it was there.
    made_off: Option<String>,
    #[serde(skip)]
    made_since: String,
    pg_version: PgVersion,
    start_lsn: Option<Lsn>,
    /// libpq connection string.
    conninfo: String,
    port: u16,
    role: Option<String>,
    directory: PathBuf,
    /// Process id; none when it was not started.
    pid: Option<i32>,
    synchronous: bool,
    standby: bool,
    base_backup_files: u64,
    base_backup_bytes: u64,
    branch_ms: u64,
    base_backup_ms: u64,
    configure_ms: u64,
    start_ms: u64,
    follow_ms: u64,
    total_ms: u64,
}

/// How long each phase took.
#[derive(Debug, Default)]
struct Phases {
    branch: Duration,
    base_backup: Duration,
    configure: Duration,
    start: Duration,
    follow: Duration,
}

/// The computes that are there, complete or not.
struct Others(Vec<(ComputeName, Place, Result<Record>)>);

impl Others {
    fn find(&self, is_it: impl Fn(&Record) -> bool) -> Option<(&Place, &Record)> {
        let mut readable = self.0.iter().filter_map(|(_, place, record)| Some((place, record.as_ref().ok()?)));
        readable.find(|(_, record)| is_it(record))
    }

    fn of_port(&self, port: u16) -> Option<&ComputeName> {
        self.find(|record| record.port == port).map(|(_, record)| &record.name)
    }

    /// Whose WAL goes, or will go, into this branch.
    fn on_branch(&self, branch_id: &str) -> Option<(&Place, &Record)> {
        self.find(|record| record.branch_id.as_deref() == Some(branch_id) && record.standby_of.is_none())
    }
}

/// What the checks found out.
struct Plan {
    place: Place,
    owner: Owner,
    source: Branch,
    /// Why a branch has to be made first.
    make_branch: Option<String>,
    record: Record,
}

impl Create {
    /// Runs it.
    pub fn run(&self, server: &ServerArgs, output: &mut Output) -> Result<()> {
        let begun = Instant::now();
        let mut page_server = PageServer::connect(server)?;
        let lock = record::lock(&self.computes.directory()?)?;
        let mut plan = self.plan(&mut page_server)?;
        let mut made = Made::default();
        let mut busy = None;
        let done = self.claim(&plan, &mut made, &mut busy).and_then(|()| {
            drop(lock); // Name and port are taken.
            self.make(&mut plan, server, &mut page_server, &mut made)
        });
        match done {
            Ok((phases, unpacked, pid)) => output.value(&self.report(&plan, &phases, unpacked, pid, begun.elapsed())),
            Err(error) => {
                made.undo(server, &plan.place, &plan.record);
                Err(error)
            }
        }
    }

    /// All checks. Makes nothing.
    fn plan(&self, page_server: &mut PageServer) -> Result<Plan> {
        let computes = self.computes.directory()?;
        let place = Place::new(&computes, &self.name);
        ensure!(
            Record::load_if_there(&place)?.is_none(),
            "there is a compute of this name already. name=`{}`, path=`{}`",
            self.name,
            place.root().display()
        );
        let others = Others(record::all(&computes)?);
        let port = self.free_port(&computes, &others)?;
        place.check_free(port)?;
        let owner = Owner::find(self.run_as.as_deref())?;
        let source = page_server.branch(&self.branch)?;
        let make_branch = self.reason_for_a_branch(&source, &others);
        if make_branch.is_some() {
            let taken = page_server.branch_if_there(self.name.as_str())?.is_some();
            ensure!(!taken, "a branch has to be made for this compute, and its name is taken. branch=`{}`", self.name);
        }
        let record = Record {
            format: Record::format(),
            progress: Progress::Creating,
            name: self.name.clone(),
            branch: if make_branch.is_some() { self.name.to_string() } else { source.name.clone() },
            branch_id: if make_branch.is_some() { None } else { Some(source.id.clone()) },
            branch_is_own: make_branch.is_some(),
            pg_version: source.pg_version,
            pg_bin: binaries::find(source.pg_version, self.pg_bin.as_deref())?,
            port,
            run_as: owner.run_as(),
            role: self.user.clone(),
            start_lsn: None,
            synchronous: !self.asynchronous && !self.standby,
            auth: self.auth,
            standby_of: self.standby.then(|| self.primary_conninfo(&others, &source)).transpose()?,
        };
        Ok(Plan { place, owner, source, make_branch, record })
    }

    fn primary_conninfo(&self, others: &Others, source: &Branch) -> Result<String> {
        standby::primary_conninfo(self.primary.as_deref(), others.on_branch(&source.id))
    }

    fn start_at(&self) -> StartAt {
        match (self.lsn, &self.time) {
            (Some(lsn), _) => StartAt::Lsn(lsn),
            (None, Some(time)) => StartAt::Time(time.clone()),
            (None, None) => StartAt::End,
        }
    }

    fn reason_for_a_branch(&self, source: &Branch, others: &Others) -> Option<String> {
        if self.standby {
            return None;
        }
        match self.start_at() {
            StartAt::Lsn(_) => Some("for the LSN".to_owned()),
            StartAt::Time(_) => Some("for the time".to_owned()),
            StartAt::End => match others.on_branch(&source.id) {
                Some((_, other)) => Some(format!("since compute {} is on that one", other.name)),
                None if source.follows() => Some("since that one follows another server".to_owned()),
                None => None,
            },
        }
    }

    /// The port that was asked for, or the first that is free; those of computes that do not run are taken. Errors: it is taken.
    fn free_port(&self, computes: &Path, others: &Others) -> Result<u16> {
        if let Some(port) = self.port {
            if let Some(name) = others.of_port(port) {
                bail!("the port is taken by compute {name}. port=`{port}`");
            }
            check_port(port)?;
            return Ok(port);
        }
        // Each directory of computes begins elsewhere, so that two that are used at the same time do not both take what is free just now.
        let mut hasher = std::hash::DefaultHasher::new();
        computes.hash(&mut hasher);
        let begin = PORTS.start + (hasher.finish() % PORTS.len() as u64) as u16;
        let free = (begin..PORTS.end)
            .chain(PORTS.start..begin)
            .find(|port| others.of_port(*port).is_none() && check_port(*port).is_ok());
        free.with_context(|| format!("no port from {} to {} is free: name one with --port", PORTS.start, PORTS.end - 1))
    }

    /// Takes name and port: from now on there is a compute that is being made, and nobody else works on it as long as `busy` is held.
    fn claim(&self, plan: &Plan, made: &mut Made, busy: &mut Option<File>) -> Result<()> {
        let root = plan.place.root();
        match DirBuilder::new().mode(0o700).create(root) {
            // Empty, as was checked. Ours from now on, whoever made it.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                lchown(root, Some(geteuid().as_raw()), None)
                    .and_then(|()| fs::set_permissions(root, Permissions::from_mode(0o700)))
                    .with_context(|| format!("take {}", root.display()))?;
                plan.place.check_free(plan.record.port)?;
            }
            created => created.with_context(|| format!("create {}", root.display()))?,
        }
        *busy = record::occupy(&plan.place).inspect_err(|_| _ = fs::remove_dir(root))?;
        made.directory = true;
        plan.record.save(&plan.place)
    }

    /// The steps, in their order. What they make is in `made` as soon as it may be there.
    fn make(
        &self,
        plan: &mut Plan,
        server: &ServerArgs,
        page_server: &mut PageServer,
        made: &mut Made,
    ) -> Result<(Phases, Unpacked, Option<i32>)> {
        let mut phases = Phases::default();
        let branch_id = timed(&mut phases.branch, || self.branch_id(plan, server, page_server, made))?;
        let unpacked =
            timed(&mut phases.base_backup, || take_base_backup(&plan.place, page_server, &branch_id, self.standby))?;
        timed(&mut phases.configure, || self.configure(plan, server, &branch_id))?;
        if self.no_start {
            plan.record.progress = Progress::Ready;
            plan.record.save(&plan.place)?;
            return Ok((phases, unpacked, None));
        }
        made.process = true;
        let pid = timed(&mut phases.start, || postmaster::start(&plan.place, &plan.record, self.timeout))?;
        timed(&mut phases.follow, || {
            if self.standby {
                return standby::wait_until_streaming(&plan.place, &plan.record, self.timeout());
            }
            let branch = page_server.branch(&branch_id)?;
            ensure!(!branch.follows(), "branch {} follows another server since a moment ago", branch.name);
            made.followed_id = Some(branch_id.clone());
            page_server.follow(&branch_id, &conninfo_for_page_server(&plan.place, &plan.record)?)?;
            let started_lsn = postmaster::control_file(&plan.place, plan.record.pg_version)?.checkpoint_lsn;
            page_server.wait_until_streaming(&branch_id, started_lsn, self.timeout())
        })?;
        plan.record.progress = Progress::Ready;
        plan.record.save(&plan.place)?;
        Ok((phases, unpacked, Some(pid)))
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout.into())
    }

    /// Id of the branch that the compute is on; made first if it has to be.
    fn branch_id(
        &self,
        plan: &mut Plan,
        server: &ServerArgs,
        page_server: &mut PageServer,
        made: &mut Made,
    ) -> Result<String> {
        if plan.make_branch.is_none() {
            return Ok(plan.source.id.clone());
        }
        if let StartAt::Lsn(lsn) = self.start_at()
            && plan.source.follows()
        {
            // It may be on its way: whoever wrote it has just been told. If it does not come, the next step says so.
            _ = page_server.wait_for(&plan.source.id, LSN_TIMEOUT, |source| lsn <= source.last_record_lsn)?;
        }
        let created = page_server.create_branch(self.name.as_str(), &plan.source, &self.start_at());
        // Not after a refusal.
        if created.as_ref().is_err_and(anyhow::Error::is::<ClientError>) {
            self.tell_of_branch(server);
        }
        let branch = created?;
        made.branch_id = Some(branch.id.clone());
        plan.record.branch_id = Some(branch.id.clone());
        plan.record.save(&plan.place)?;
        Ok(branch.id)
    }

    /// After an answer that was lost: the branch may be there all the same. Whether it is ours cannot be told, so it is not deleted.
    fn tell_of_branch(&self, server: &ServerArgs) {
        let found = PageServer::connect(server).and_then(|mut again| again.branch_if_there(self.name.as_str()));
        if !matches!(found, Ok(None)) {
            eprintln!(
                "pagectl: NOT undone: branch {name} may have been made: look with `pagectl timeline show {name}`, and delete it with `pagectl branch delete {name}`",
                name = self.name
            );
        }
    }

    /// Configuration, the superuser's name, rights; durable unless the server will do that.
    fn configure(&self, plan: &mut Plan, server: &ServerArgs, branch_id: &str) -> Result<()> {
        let place = &plan.place;
        let control = postmaster::control_file(place, plan.record.pg_version)?;
        plan.record.start_lsn = match self.standby {
            true => control.min_recovery_lsn,
            false => Some(start_lsn(place, &control)?),
        };
        if plan.record.role.is_none() {
            plan.record.role = Some(superuser::find(&place.data(), plan.record.pg_version)?);
        }
        let restore_command = match self.standby {
            true => standby::restore_command(&plan.owner, server, branch_id)?,
            false => None,
        };
        let choices = Choices {
            port: plan.record.port,
            synchronous: plan.record.synchronous,
            auth: self.auth,
            standby_of: plan.record.standby_of.as_deref(),
            restore_command: restore_command.as_deref(),
            fsync: !self.no_sync,
        };
        settings::write(place, &control, &choices)?;
        plan.record.save(place)?;
        plan.owner.take_over(place.root())?;
        if self.no_start && !self.no_sync {
            // A server that starts now makes all files durable itself before it does anything (xlog.c, SyncDataDirectory).
            unpack::sync_all(place.root())?;
        }
        Ok(())
    }

    fn report(&self, plan: &Plan, phases: &Phases, unpacked: Unpacked, pid: Option<i32>, total: Duration) -> Report {
        let ms = |time: Duration| time.as_millis() as u64;
        Report {
            name: self.name.clone(),
            branch: plan.record.branch.clone(),
            made_off: plan.make_branch.as_ref().map(|_| plan.source.name.clone()),
            made_since: plan.make_branch.clone().unwrap_or_default(),
            pg_version: plan.record.pg_version,
            start_lsn: plan.record.start_lsn,
            conninfo: conninfo(&plan.place, &plan.record),
            port: plan.record.port,
            role: plan.record.role.clone(),
            directory: plan.place.root().to_owned(),
            pid,
            synchronous: plan.record.synchronous,
            standby: self.standby,
            base_backup_files: unpacked.files,
            base_backup_bytes: unpacked.bytes,
            branch_ms: ms(phases.branch),
            base_backup_ms: ms(phases.base_backup),
            configure_ms: ms(phases.configure),
            start_ms: ms(phases.start),
            follow_ms: ms(phases.follow),
            total_ms: ms(total),
        }
    }
}

/// Where people connect to.
pub fn conninfo(place: &Place, record: &Record) -> String {
    let role = record.role.as_deref().unwrap_or_default();
    let (host, port) = (conninfo_value(&record.auth.host(place)), record.port);
    format!("host={host} port={port} user={} dbname=postgres", conninfo_value(role))
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let start_lsn = self.start_lsn.unwrap_or_default();
        if let Some(made_off) = &self.made_off {
            writeln!(f, "branch {} was made off {made_off} at {start_lsn}, {}", self.branch, self.made_since)?;
        }
        let state = if self.pid.is_some() { "runs" } else { "is made, not started" };
        let kind = match (self.standby, self.synchronous) {
            (true, _) => ", a hot standby",
            (false, true) => "",
            (false, false) => ", asynchronous",
        };
        writeln!(
            f,
            "compute {} {state}: PostgreSQL {} on branch {} from {start_lsn} on{kind}",
            self.name, self.pg_version, self.branch
        )?;
        writeln!(f, "connect:   psql \"{}\"", self.conninfo)?;
        writeln!(f, "directory: {}", self.directory.display())?;
        write!(
            f,
            "time:      branch {} ms, base backup {} ms ({:.1} MB), configuration {} ms, start {} ms, follow {} ms; in all {} ms",
            self.branch_ms,
            self.base_backup_ms,
            self.base_backup_bytes as f64 / 1e6,
            self.configure_ms,
            self.start_ms,
            self.follow_ms,
            self.total_ms
        )
    }
}

fn timed<T>(time: &mut Duration, step: impl FnOnce() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    let done = step();
    *time = begun.elapsed();
    done
}

fn take_base_backup(place: &Place, page_server: &mut PageServer, branch_id: &str, standby: bool) -> Result<Unpacked> {
    let progress = indicatif::ProgressBar::no_length(); // Shown at a terminal only.
    progress.set_style(indicatif::ProgressStyle::with_template("base backup: {bytes}, {bytes_per_sec}")?);
    let tar = page_server.base_backup(branch_id, standby)?;
    let unpacked = unpack::unpack(tar, place, &mut |bytes| progress.inc(bytes));
    progress.finish_and_clear();
    unpacked
}

/// Where the compute's PostgreSQL timeline leaves the one before: the last line of its history file has it.
/// PG: src/backend/access/transam/timeline.c, writeTimeLineHistory.
fn start_lsn(place: &Place, control: &ControlFile) -> Result<Lsn> {
    let checkpoint = Checkpoint::decode(control.version, &control.checkpoint_copy)?;
    let path = place.data().join(format!("pg_wal/{:08X}.history", checkpoint.this_tli));
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let last = text.lines().rev().find(|line| !line.trim().is_empty());
    let lsn = last.and_then(|line| line.split_whitespace().nth(1)).and_then(|lsn| lsn.parse().ok());
    lsn.with_context(|| format!("{} does not tell where the timeline begins", path.display()))
}

/// Errors: somebody listens there, or we may not.
pub fn check_port(port: u16) -> Result<()> {
    // Without SO_REUSEADDR a port whose last connection has just ended would count as taken; std sets it, as PostgreSQL does.
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
        Ok(_) => Ok(()),
        Err(error) => bail!("the port cannot be used: {error}. port=`{port}`"),
    }
}
