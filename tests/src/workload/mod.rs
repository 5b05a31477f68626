//! What a primary is kept busy with, so that every kind of WAL record occurs: scripts in `tests/workloads/`, and code where
//! SQL is not enough (COPY data, sessions that wait for each other, settings that a server may refuse).
//!
//! - Each workload runs alone, with any other, several times and in any order: a run works in a schema of its own.
//! - What is random follows from a seed.
//! - A run that the server interrupted (restart, deadlock) is one that the caller may start again: [`is_transient`].

mod script;

mod code;

pub mod tpcb;

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use anyhow::{Context, Result};
use postgres::error::SqlState;
use postgres::{Client, NoTls};
use postgres_ffi::PgVersion;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::Postgres;
use script::Script;

/// One workload.
#[derive(Clone, Copy)]
pub struct Workload {
    /// Its name: that of its file, or of its function.
    pub name: &'static str,
    body: Body,
}

#[derive(Clone, Copy)]
enum Body {
    Script(&'static str),
    Code(fn(&mut Run<'_>) -> Result<Outcome>),
}

/// How a run came out that did not fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All of it was done.
    Done,
    /// Not for this server, and why.
    Skipped(String),
    /// Asked to end before the end.
    Stopped,
}

macro_rules! script {
    ($name:literal) => {
        Workload { name: $name, body: Body::Script(include_str!(concat!("../../workloads/", $name, ".sql"))) }
    };
}

/// Every workload.
pub const ALL: &[Workload] = &[
    script!("heap"),
    script!("freeze"),
    script!("btree"),
    script!("hash"),
    script!("gin"),
    script!("gist"),
    script!("spgist"),
    script!("brin"),
    script!("bloom"),
    script!("contrib_indexes"),
    script!("sequences"),
    script!("toast"),
    script!("ddl"),
    script!("rewrite"),
    script!("large_deletes"),
    script!("subtransactions"),
    script!("two_phase"),
    script!("multixacts"),
    script!("databases"),
    script!("tablespaces"),
    script!("unlogged"),
    script!("unlogged_extension"),
    script!("origins"),
    Workload { name: "slru", body: Body::Code(code::slru) },
    Workload { name: "copy", body: Body::Code(code::copy) },
    Workload { name: "lockers", body: Body::Code(code::lockers) },
    Workload { name: "images", body: Body::Code(code::images) },
    Workload { name: "transactions", body: Body::Code(code::transactions) },
];

impl Workload {
    /// The workload called `name`; an error lists those that there are.
    pub fn find(name: &str) -> Result<&'static Workload> {
        let names = || ALL.iter().map(|workload| workload.name).collect::<Vec<_>>().join(", ");
        ALL.iter()
            .find(|workload| workload.name == name)
            .with_context(|| format!("no workload `{name}`; there are: {}", names()))
    }

    /// Runs it once on `target`, in a new schema.
    pub fn run(&self, target: &Target, seed: u64) -> Result<Outcome> {
        static RUNS: AtomicU32 = AtomicU32::new(1);
        let name = format!("{}_{}", self.name, RUNS.fetch_add(1, Ordering::Relaxed));
        target.forget_interrupted_runs()?;
        let mut run = Run { workload: self.name, name, target, rng: SmallRng::seed_from_u64(seed) };
        run.connect_to("postgres")?.batch_execute(&format!("CREATE SCHEMA {}", run.name))?;
        let outcome = match self.body {
            Body::Script(text) => Script::parse(text).context(self.name).and_then(|script| script.run(&mut run)),
            Body::Code(function) => function(&mut run).context(self.name),
        };
        if !matches!(outcome, Ok(Outcome::Done)) {
            target.interrupted_runs().push(run.name);
            // The server may be down: then the next run does it.
            let _ = target.forget_interrupted_runs();
        }
        outcome
    }
}

/// The server that workloads run on. It may move to another port (a promotion) while they do. No password. Clones share it.
#[derive(Clone, Debug)]
pub struct Target {
    port: Arc<AtomicU16>,
    version: PgVersion,
    /// Held for reading by whoever is about to change something.
    gate: Arc<RwLock<()>>,
    /// Held for writing while a base backup is taken, for reading by what none may see half done.
    backups: Arc<RwLock<()>>,
    stopping: Arc<AtomicBool>,
    /// Names of runs that did not come to their end and may have left prepared transactions.
    interrupted_runs: Arc<Mutex<Vec<String>>>,
}

impl Target {
    /// `server`, until it is moved.
    pub fn new(server: &Postgres) -> Self {
        Self {
            port: Arc::new(AtomicU16::new(server.port())),
            version: server.version(),
            gate: Arc::default(),
            backups: Arc::default(),
            stopping: Arc::default(),
            interrupted_runs: Arc::default(),
        }
    }

    /// New sessions go to `server` from now on.
    pub fn move_to(&self, server: &Postgres) {
        self.port.store(server.port(), Ordering::SeqCst);
    }

    /// The server's major version.
    pub fn version(&self) -> PgVersion {
        self.version
    }

    /// Waits while somebody wants quiet, then keeps quiet away until the guard is dropped. Taken around one statement or one
    /// transaction. **Never** twice by one thread: whoever wants quiet would wait in between.
    pub fn enter(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for all statements on their way; none begins until the guard is dropped.
    pub fn quiesce(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no base backup is being taken, then keeps backups away until the guard is dropped.
    pub fn keep_backups_away(&self) -> RwLockReadGuard<'_, ()> {
        self.backups.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for statements that no base backup may see half done; none begins until the guard is dropped. Load goes on.
    pub fn begin_backup(&self) -> RwLockWriteGuard<'_, ()> {
        self.backups.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks every workload to end at its next statement.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    /// Whether workloads were asked to end.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    fn interrupted_runs(&self) -> MutexGuard<'_, Vec<String>> {
        self.interrupted_runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rolls back what interrupted runs have prepared: their locks would hold up other runs for ever, and every vacuum.
    fn forget_interrupted_runs(&self) -> Result<()> {
        let runs = self.interrupted_runs().clone();
        if runs.is_empty() {
            return Ok(());
        }
        let mut client = self.connect("postgres")?;
        for row in
            client.query("SELECT gid FROM pg_prepared_xacts WHERE split_part(gid, ' ', 1) = ANY($1)", &[&runs])?
        {
            client.batch_execute(&format!("ROLLBACK PREPARED '{}'", row.get::<_, String>(0)))?;
        }
        self.interrupted_runs().retain(|name| !runs.contains(name));
        Ok(())
    }

    /// A session in `database`.
    pub fn connect(&self, database: &str) -> Result<Client> {
        let mut config = postgres::Config::new();
        config.host("127.0.0.1").port(self.port.load(Ordering::SeqCst)).user("postgres").dbname(database);
        config.connect_timeout(Duration::from_secs(10)).application_name("workload");
        Ok(config.connect(NoTls)?)
    }
}

/// One run of a workload.
pub struct Run<'a> {
    workload: &'static str,
    name: String,
    target: &'a Target,
    /// Where everything random comes from.
    pub rng: SmallRng,
}

impl Run<'_> {
    /// The server.
    pub fn target(&self) -> &Target {
        self.target
    }

    /// The server's major version.
    pub fn version(&self) -> PgVersion {
        self.target.version
    }

    /// A session in database `postgres` that works in the schema of this run; `random()` follows from `seed`, within -1 to 1.
    pub fn connect(&self, seed: f64) -> Result<Client> {
        let mut client = self.connect_to("postgres")?;
        client.batch_execute(&format!("SET search_path = {}, public; SELECT setseed({seed})", self.name))?;
        Ok(client)
    }

    /// A session in `database`.
    pub fn connect_to(&self, database: &str) -> Result<Client> {
        let mut client = self.target.connect(database)?;
        client.batch_execute("SET statement_timeout = '10min'; SET lock_timeout = '1min'")?;
        Ok(client)
    }

    /// `text` with the name of this run in place of `{run}`.
    pub fn fill_in(&self, text: &str) -> String {
        text.replace("{run}", &self.name)
    }

    /// Whether the server has the extension; it is created if so.
    pub fn has_extension(&self, name: &str) -> Result<bool> {
        let mut client = self.connect_to("postgres")?;
        let available = client.query_opt("SELECT 1 FROM pg_available_extensions WHERE name = $1", &[&name])?.is_some();
        if available {
            // Two runs at once: `IF NOT EXISTS` alone would let both try.
            client.batch_execute("SELECT pg_advisory_lock(1)")?;
            client.batch_execute(&format!("CREATE EXTENSION IF NOT EXISTS {name} SCHEMA public"))?;
        }
        Ok(available)
    }
}

/// Whether `error` says that the server went away or chose this session as a victim, not that the workload is wrong.
pub fn is_transient(error: &anyhow::Error) -> bool {
    const CODES: &[SqlState] = &[
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::T_R_SERIALIZATION_FAILURE,
        SqlState::ADMIN_SHUTDOWN,
        SqlState::CRASH_SHUTDOWN,
        SqlState::CANNOT_CONNECT_NOW,
        SqlState::READ_ONLY_SQL_TRANSACTION,
        SqlState::OBJECT_IN_USE,
    ];
    error.chain().any(|cause| match cause.downcast_ref::<postgres::Error>() {
        Some(error) => error.is_closed() || error.code().is_none_or(|code| CODES.contains(code)),
        None => cause.is::<std::io::Error>(),
    })
}
