//! A stock PostgreSQL server of one test: made with `initdb`, started, crashed, restarted and ended at the test's word.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use postgres::{Client, NoTls, SimpleQueryMessage};
use postgres_ffi::{Lsn, PgVersion};

use crate::ports::free_port;
use crate::process::{Process, run, server_command};
use crate::test_dir::give_to_server_user;
use crate::{TestDir, wait_until};

/// Until a server answers. Crash recovery of a loaded server on a busy two-core machine is what takes long.
const START_LIMIT: Duration = Duration::from_secs(180);
/// Until a server that was told to end has ended: a checkpoint, and the rest of the WAL sent to those who follow it.
const STOP_LIMIT: Duration = Duration::from_secs(180);
/// Until a standby that was told to take over takes writes: it replays what it has first.
const PROMOTE_LIMIT: Duration = Duration::from_secs(180);
/// The superuser.
const USER: &str = "postgres";
/// Its password, where the server asks for one.
const PASSWORD: &str = "not a secret";

/// A condition on `pg_database`. A database of which a crash interrupted DROP DATABASE stays, marked as invalid, and takes nothing but another
/// DROP. PG: src/include/catalog/pg_database.h, DATCONNLIMIT_INVALID_DB.
pub(crate) const DATABASE_IS_VALID: &str = "datconnlimit <> -2";

/// How the server makes sure who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    /// Not at all.
    Trust,
    /// A password in clear.
    Password,
    /// A password, hashed with MD5.
    Md5,
    /// SCRAM-SHA-256.
    Scram,
}

impl Auth {
    fn method(self) -> &'static str {
        match self {
            Auth::Trust => "trust",
            Auth::Password => "password",
            Auth::Md5 => "md5",
            Auth::Scram => "scram-sha-256",
        }
    }
}

/// How a server is told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Ends sessions, writes a checkpoint, sends the last WAL to those who follow.
    Fast,
    /// Ends at once; the next start recovers.
    Immediate,
}

/// What a new server is to be like.
#[derive(Clone, Debug)]
pub struct PostgresBuilder {
    version: PgVersion,
    settings: BTreeMap<String, String>,
    checksums: bool,
    wal_segment_mb: Option<u32>,
    auth: Auth,
}

impl PostgresBuilder {
    /// Sets a parameter of postgresql.conf, `value` as it would stand between quotes.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.insert(name.to_owned(), value.to_owned());
        self
    }

    /// `minimal`, `replica` (unless said otherwise) or `logical`.
    pub fn wal_level(self, level: &str) -> Self {
        self.setting("wal_level", level)
    }

    /// Page checksums; off unless said otherwise, in every version.
    pub fn checksums(mut self, on: bool) -> Self {
        self.checksums = on;
        self
    }

    /// Size of a WAL segment file; PostgreSQL's 16 unless said otherwise.
    pub fn wal_segment_mb(mut self, size_mb: u32) -> Self {
        self.wal_segment_mb = Some(size_mb);
        self
    }

    /// How the server makes sure who connects; trust unless said otherwise.
    pub fn auth(mut self, auth: Auth) -> Self {
        self.auth = auth;
        self
    }

    /// Makes the cluster below `dir` and starts it.
    pub fn start(self, dir: &TestDir) -> Result<Postgres> {
        let mut server = self.init(dir)?;
        server.start()?;
        Ok(server)
    }

    /// Makes the cluster below `dir` and leaves it stopped.
    pub fn init(self, dir: &TestDir) -> Result<Postgres> {
        let bin = bin_dir(self.version)?;
        let port = free_port()?;
        let root = dir.create_subdir(&format!("pg{}-{port}", self.version))?;
        let data_dir = root.join("data");
        self.initdb(&bin, &root, &data_dir)?;
        let server = Postgres {
            version: self.version,
            bin,
            root,
            data_dir,
            port,
            auth: self.auth,
            settings: self.settings,
            process: None,
            dir: dir.clone(),
        };
        server.write_settings()?;
        Ok(server)
    }

    fn initdb(&self, bin: &Path, root: &Path, data_dir: &Path) -> Result<()> {
        let password_file = root.join("password");
        fs::write(&password_file, PASSWORD)?;
        give_to_server_user(&password_file)?;
        let mut command = server_command(&bin.join("initdb"), root)?;
        command.arg("--pgdata").arg(data_dir).args(["--username", USER, "--encoding", "UTF8", "--locale", "C"]);
        command.args(["--auth", self.auth.method(), "--no-sync", "--no-instructions", "--pwfile"]).arg(&password_file);
        match (self.checksums, self.version >= PgVersion::V18) {
            (true, _) => _ = command.arg("--data-checksums"),
            (false, true) => _ = command.arg("--no-data-checksums"), // On unless refused, from 18.
            (false, false) => {}
        }
        if let Some(size_mb) = self.wal_segment_mb {
            command.arg(format!("--wal-segsize={size_mb}"));
        }
        run(&mut command).context("initdb")?;
        // The parameters live in a file of ours, so that each write replaces all of them.
        let conf = data_dir.join("postgresql.conf");
        fs::write(&conf, fs::read_to_string(&conf)? + "\ninclude 'harness.conf'\n")?;
        Ok(())
    }
}

/// One PostgreSQL server. Dropped: killed.
#[derive(Debug)]
pub struct Postgres {
    version: PgVersion,
    bin: PathBuf,
    root: PathBuf,
    data_dir: PathBuf,
    port: u16,
    auth: Auth,
    settings: BTreeMap<String, String>,
    process: Option<Process>,
    dir: TestDir, // Last: outlives the process.
}

impl Postgres {
    /// A server of `version` with what the tests need: replication, prepared transactions, commit timestamps. No fsync:
    /// tests crash processes, never the machine.
    pub fn builder(version: PgVersion) -> PostgresBuilder {
        let mut settings = vec![
            ("listen_addresses", "127.0.0.1"),
            ("unix_socket_directories", ""),
            ("fsync", "off"),
            ("allow_in_place_tablespaces", "on"),
            ("shared_buffers", "64MB"),
            ("max_connections", "60"),
            ("wal_level", "replica"),
            ("max_wal_senders", "10"),
            ("max_replication_slots", "100"),
            ("wal_keep_size", "1GB"),
            ("wal_sender_timeout", "60s"),
            ("max_prepared_transactions", "20"),
            ("track_commit_timestamp", "on"),
            ("log_line_prefix", "%m [%p] "),
            ("log_checkpoints", "off"),
        ];
        if version >= PgVersion::V18 {
            settings.push(("max_active_replication_origins", "100")); // Before: as many as replication slots.
        }
        PostgresBuilder {
            version,
            settings: settings.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            checksums: false,
            wal_segment_mb: None,
            auth: Auth::Trust,
        }
    }

    /// Whether the machine has a server of `version`.
    pub fn is_installed(version: PgVersion) -> bool {
        bin_dir(version).is_ok()
    }

    /// Its major version.
    pub fn version(&self) -> PgVersion {
        self.version
    }

    /// Its data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Where its programs are.
    pub fn bin_dir(&self) -> &Path {
        &self.bin
    }

    /// The port that it listens on, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A libpq connection string of the superuser, for the server itself or what forwards to it.
    pub fn conninfo_through(&self, port: u16) -> String {
        let password = if self.auth == Auth::Trust { String::new() } else { format!(" password='{PASSWORD}'") };
        format!("host=127.0.0.1 port={port} user={USER}{password}")
    }

    /// A libpq connection string of the superuser.
    pub fn conninfo(&self) -> String {
        self.conninfo_through(self.port)
    }

    /// A session in database `postgres`.
    pub fn connect(&self) -> Result<Client> {
        self.connect_to("postgres")
    }

    /// A session in `database`.
    pub fn connect_to(&self, database: &str) -> Result<Client> {
        let mut config: postgres::Config = self.conninfo().parse()?;
        config.dbname(database).connect_timeout(Duration::from_secs(10));
        config.connect(NoTls).with_context(|| format!("connect to {database} of PostgreSQL {}", self.version))
    }

    /// Runs `sql` (one or more statements; more than one is one transaction) in a session of its own.
    pub fn execute(&self, sql: &str) -> Result<()> {
        self.connect()?.batch_execute(sql).with_context(|| sql.to_owned())
    }

    /// The first column of the first row that `sql` gives, as text. An error if there is none or it is null.
    pub fn query_text(&self, sql: &str) -> Result<String> {
        query_text(&mut self.connect()?, sql)
    }

    /// Where its WAL ends now: the insert position, or on a standby the last replayed record.
    pub fn current_lsn(&self) -> Result<Lsn> {
        let sql =
            "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END";
        Ok(self.query_text(sql)?.parse()?)
    }

    /// Changes parameters for the next start (or reload).
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        self.settings.insert(name.to_owned(), value.to_owned());
        self.write_settings()
    }

    /// Starts it and returns when it takes connections.
    pub fn start(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "PostgreSQL is already running");
        let mut command = server_command(&self.bin.join("postgres"), &self.root)?;
        command.arg("-D").arg(&self.data_dir);
        let name = format!("PostgreSQL {} on port {}", self.version, self.port);
        let mut process = Process::start(&name, &mut command, &self.root.join("log"))?;
        let mut refused = None;
        let started = wait_until(&format!("{name} to take connections"), START_LIMIT, || {
            process.check_alive()?;
            Ok(match self.connect() {
                Ok(_) => true,
                Err(error) => {
                    refused = Some(error);
                    false
                }
            })
        });
        started.with_context(|| format!("{}\nlast answer: {refused:?}", process.log_tail()))?;
        self.process = Some(process);
        Ok(())
    }

    /// Ends it in the way of `stop`; an error if it was not running or did not end well.
    pub fn stop(&mut self, stop: Stop) -> Result<()> {
        let mut process = self.process.take().context("PostgreSQL is not running")?;
        process.signal(if stop == Stop::Fast { Signal::SIGINT } else { Signal::SIGQUIT })?;
        let status = process.wait_for_exit(STOP_LIMIT)?;
        ensure!(stop == Stop::Immediate || status.success(), "it ended with {status}\n{}", process.log_tail());
        Ok(())
    }

    /// Ends it in the way of `stop` and starts it again.
    pub fn restart(&mut self, stop: Stop) -> Result<()> {
        self.stop(stop)?;
        self.start()
    }

    /// Kills the server and all its backends with SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("PostgreSQL is not running")?.kill_all()
    }

    /// Ends it, if it runs, and removes its directory.
    pub fn remove(mut self) -> Result<()> {
        if self.process.is_some() {
            self.stop(Stop::Immediate)?; // Killed, it would leave its piece of shared memory behind.
        }
        fs::remove_dir_all(&self.root).with_context(|| format!("remove {}", self.root.display()))
    }

    /// Makes a standby a primary and returns when it takes writes.
    pub fn promote(&mut self) -> Result<()> {
        // As `pg_ctl promote` does: a query may be cancelled by what is still being replayed.
        let signal_file = self.data_dir.join("promote");
        fs::write(&signal_file, "")?;
        give_to_server_user(&signal_file)?;
        self.process.as_ref().context("PostgreSQL is not running")?.signal(Signal::SIGUSR1)?;
        let sql = "SELECT pg_is_in_recovery()::text";
        wait_until("the promotion", PROMOTE_LIMIT, || {
            self.check_alive()?;
            Ok(self.query_text(sql).is_ok_and(|text| text == "false"))
        })
    }

    /// Says so, with the tail of its log, if it is not running any more.
    pub fn check_alive(&mut self) -> Result<()> {
        self.process.as_mut().context("PostgreSQL is not running")?.check_alive()
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        self.process.as_ref().map(Process::log_tail).unwrap_or_default()
    }

    /// A second cluster in `data_dir` below `root`, with this one's version and parameters but a port of its own.
    pub(crate) fn sibling(&self, root: PathBuf, port: u16) -> Result<Postgres> {
        let sibling = Postgres {
            version: self.version,
            bin: self.bin.clone(),
            data_dir: root.join("data"),
            root,
            port,
            auth: self.auth,
            settings: self.settings.clone(),
            process: None,
            dir: self.dir.clone(),
        };
        Ok(sibling)
    }

    /// The server of `version` on the data directory `data` below `root`, which the servers' user owns, with these parameters besides those of its
    /// postgresql.conf. Not started.
    pub(crate) fn on_directory(
        version: PgVersion,
        dir: &TestDir,
        root: PathBuf,
        port: u16,
        settings: &[(&str, &str)],
    ) -> Result<Postgres> {
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let server = Postgres {
            version,
            bin: bin_dir(version)?,
            data_dir: root.join("data"),
            root,
            port,
            auth: Auth::Trust,
            settings,
            process: None,
            dir: dir.clone(),
        };
        server.write_settings()?;
        Ok(server)
    }

    /// All that it has logged, over all starts.
    pub fn log(&self) -> Result<String> {
        let bytes = fs::read(self.root.join("log")).context("read the server's log")?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The test's directory.
    pub(crate) fn test_dir(&self) -> &TestDir {
        &self.dir
    }

    /// Writes `harness.conf`, all of it.
    pub(crate) fn write_settings(&self) -> Result<()> {
        let mut text = format!("port = {}\n", self.port);
        for (name, value) in &self.settings {
            writeln!(text, "{name} = '{}'", value.replace('\'', "''"))?;
        }
        let path = self.data_dir.join("harness.conf");
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        give_to_server_user(&path)
    }
}

/// The first column of the first row that `sql` gives, as text. An error if there is none or it is null.
pub(crate) fn query_text(client: &mut Client, sql: &str) -> Result<String> {
    let messages = client.simple_query(sql).with_context(|| sql.to_owned())?;
    for message in &messages {
        if let SimpleQueryMessage::Row(row) = message {
            return row.get(0).map(str::to_owned).with_context(|| format!("null from {sql}"));
        }
    }
    bail!("no row from {sql}")
}

/// The directory that scripts/setup fills.
fn home() -> PathBuf {
    std::env::var_os("PAGESERVER_PG_HOME").map_or("/opt/pageserver-postgresql".into(), PathBuf::from)
}

/// Where the programs of `version` are: in the directory that scripts/setup fills, or where Debian puts them.
fn bin_dir(version: PgVersion) -> Result<PathBuf> {
    let places = [home().join(version.to_string()).join("bin"), format!("/usr/lib/postgresql/{version}/bin").into()];
    let found = places.iter().find(|bin| bin.join("postgres").exists()).cloned();
    found.with_context(|| format!("no PostgreSQL {version} in {places:?}: run scripts/setup"))
}

/// Where the headers for extensions of `version` are, as its programs.
fn include_dir(version: PgVersion) -> Result<PathBuf> {
    let packaged = format!("/usr/include/postgresql/{version}/server");
    let places = [home().join(format!("headers/{version}{packaged}")), packaged.into()];
    let found = places.iter().find(|dir| dir.join("postgres.h").exists()).cloned();
    found.with_context(|| format!("no headers of PostgreSQL {version} in {places:?}: run scripts/setup"))
}

/// Compiles the extension `source`, one C file, for `version` into `dir`: the library, where every user can read it.
pub fn build_extension(version: PgVersion, source: &Path, dir: &TestDir) -> Result<PathBuf> {
    let name = source.file_stem().context("a C file has a name")?;
    let library = dir.path().join(name).with_extension("so");
    let mut cc = Command::new("cc");
    cc.args(["-std=gnu11", "-O2", "-fPIC", "-fwrapv", "-fno-strict-aliasing", "-D_GNU_SOURCE", "-shared"]);
    cc.arg("-isystem").arg(include_dir(version)?).arg("-o").arg(&library).arg(source);
    run(&mut cc)?;
    fs::set_permissions(&library, fs::Permissions::from_mode(0o755))?;
    Ok(library)
}
