//! What keeps the primary busy: bank transactions at a steady pace, and workloads one after the other, each of which is thrown away again.
//!
//! The pace is what a page server on the same processors keeps up with, since a course is about crashes and not about lag: bank transactions wait until
//! the page server has ingested them, workloads for nobody.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Result, bail};
use postgres::Client;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::workload::{Outcome, Target, Workload, is_transient, tpcb};

/// Workloads of the course: between them most kinds of pages and records, and none that needs another server or burns time.
const WORKLOADS: &[&str] = &[
    "heap",
    "btree",
    "toast",
    "ddl",
    "multixacts",
    "subtransactions",
    "two_phase",
    "gin",
    "gist",
    "hash",
    "brin",
    "spgist",
    "sequences",
    "rewrite",
    "freeze",
    "unlogged",
];
/// Between two bank transactions.
const BANK_PAUSE: Duration = Duration::from_millis(8);
/// Between two workloads.
const WORKLOAD_PAUSE: Duration = Duration::from_millis(1500);
/// A server that went away is asked again after this.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Schemas of workloads that stay: their pages are looked at. Those before are dropped.
const SCHEMAS_KEPT: i64 = 6;

/// The threads. Dropped: they end by themselves.
pub struct Load {
    target: Target,
    threads: Vec<JoinHandle<Result<()>>>,
    committed: Arc<AtomicU64>,
    runs: Arc<AtomicU64>,
}

impl Load {
    /// Starts on a bank of `scale` branches.
    pub fn start(target: &Target, scale: i32, rng: &mut SmallRng) -> Result<Self> {
        let workloads = WORKLOADS.iter().map(|name| Workload::find(name)).collect::<Result<Vec<_>>>()?;
        let (committed, runs) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let bank = {
            let (target, committed, rng) =
                (target.clone(), Arc::clone(&committed), SmallRng::seed_from_u64(rng.random()));
            thread::spawn(move || run_bank(&target, scale, &committed, rng))
        };
        let pool = {
            let (target, runs, rng) = (target.clone(), Arc::clone(&runs), SmallRng::seed_from_u64(rng.random()));
            thread::spawn(move || run_workloads(&target, &workloads, &runs, rng))
        };
        Ok(Load { target: target.clone(), threads: vec![bank, pool], committed, runs })
    }

    /// An error if a thread has ended, which none does by itself.
    pub fn check(&mut self) -> Result<()> {
        match self.threads.iter().position(JoinHandle::is_finished) {
            None => Ok(()),
            Some(at) => {
                join(self.threads.swap_remove(at))?;
                bail!("a thread of the load ended by itself")
            }
        }
    }

    /// Ends it; bank transactions committed, and workloads run to their end.
    pub fn stop(mut self) -> Result<(u64, u64)> {
        self.target.stop();
        self.threads.drain(..).try_for_each(join)?;
        Ok((self.committed.load(Ordering::SeqCst), self.runs.load(Ordering::SeqCst)))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.target.stop();
    }
}

fn join(thread: JoinHandle<Result<()>>) -> Result<()> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn run_bank(target: &Target, scale: i32, committed: &AtomicU64, mut rng: SmallRng) -> Result<()> {
    let mut session: Option<Client> = None;
    while !target.is_stopping() {
        let pause = {
            let _busy = target.enter();
            match bank_transaction(&mut session, target, &mut rng, scale) {
                Ok(()) => {
                    committed.fetch_add(1, Ordering::SeqCst);
                    BANK_PAUSE
                }
                Err(error) if is_transient(&error) => {
                    session = None;
                    RETRY_PAUSE
                }
                Err(error) => return Err(error.context("a bank transaction")),
            }
        };
        thread::sleep(pause);
    }
    Ok(())
}

fn bank_transaction(session: &mut Option<Client>, target: &Target, rng: &mut SmallRng, scale: i32) -> Result<()> {
    if session.is_none() {
        let mut client = target.connect("postgres")?;
        client.batch_execute("SET synchronous_commit = remote_apply")?;
        *session = Some(client);
    }
    match session {
        Some(client) => Ok(tpcb::transaction(client, rng, scale)?),
        None => unreachable!("connected above"),
    }
}

fn run_workloads(target: &Target, workloads: &[&Workload], runs: &AtomicU64, mut rng: SmallRng) -> Result<()> {
    while !target.is_stopping() {
        let Some(workload) = workloads.choose(&mut rng) else { bail!("no workload") };
        match workload.run(target, rng.random()).and_then(|outcome| drop_old_schemas(target).map(|()| outcome)) {
            Ok(Outcome::Done) => _ = runs.fetch_add(1, Ordering::SeqCst),
            Ok(Outcome::Skipped(_) | Outcome::Stopped) => {}
            Err(error) if is_transient(&error) => thread::sleep(RETRY_PAUSE),
            Err(error) => return Err(error),
        }
        thread::sleep(WORKLOAD_PAUSE);
    }
    Ok(())
}

/// Else a course would end with hundreds of tables.
fn drop_old_schemas(target: &Target) -> Result<()> {
    let _busy = target.enter();
    let mut client = target.connect("postgres")?;
    let sql = "SELECT nspname::text FROM pg_namespace WHERE nspname ~ '^[a-z_]+_[0-9]+$' AND nspname !~ '^pg_'
                ORDER BY oid DESC OFFSET $1";
    for row in client.query(sql, &[&SCHEMAS_KEPT])? {
        let dropped =
            client.batch_execute(&format!("SET lock_timeout = '1s'; DROP SCHEMA {} CASCADE", row.get::<_, &str>(0)));
        // A prepared transaction may still hold a lock: the next time.
        if let Err(error) = dropped
            && error.as_db_error().is_none()
        {
            return Err(error.into());
        }
    }
    Ok(())
}
