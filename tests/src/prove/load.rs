//! The load of a leg: bank transactions all the time, and beside them every workload, in an order that follows from the seed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Result, bail};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::Narrator;
use crate::wait_until;
use crate::workload::{ALL, Outcome, Target, Workload, is_transient, tpcb};

/// Sessions of bank transactions.
const CLIENTS: u64 = 2;
/// How often a workload may be interrupted by restarts of the server before that itself is the error.
const INTERRUPTIONS_MAX: u32 = 50;

/// Runs of each workload that came to their end.
type Runs = Arc<Mutex<BTreeMap<&'static str, u32>>>;

/// Threads that keep the primary busy. Dropped without [`Load::stop`]: they end by themselves, unheard.
pub struct Load {
    target: Target,
    clients: Vec<JoinHandle<Result<u64>>>,
    pool: Option<JoinHandle<Result<()>>>,
    runs: Runs,
    workload_count: usize,
}

impl Load {
    /// Starts on `target`, whose bank has `scale` branches; every workload.
    pub fn start(target: &Target, scale: i32, rng: &mut SmallRng, narrator: Narrator) -> Self {
        Self::of(ALL.iter().collect(), target, scale, rng, narrator)
    }

    /// Starts on `target`, whose bank has `scale` branches; these workloads.
    pub fn of(
        workloads: Vec<&'static Workload>,
        target: &Target,
        scale: i32,
        rng: &mut SmallRng,
        narrator: Narrator,
    ) -> Self {
        let workload_count = workloads.len();
        let runs = Runs::default();
        let clients = (0..CLIENTS).map(|_| {
            let (target, seed) = (target.clone(), rng.random());
            thread::spawn(move || tpcb::client(&target, scale, seed))
        });
        let clients = clients.collect();
        let pool = thread::spawn({
            let (target, runs, seed) = (target.clone(), Arc::clone(&runs), rng.random());
            move || run_pool(workloads, &target, &runs, seed, narrator)
        });
        Self { target: target.clone(), clients, pool: Some(pool), runs, workload_count }
    }

    /// An error if a thread has ended, which none does by itself.
    pub fn check(&mut self) -> Result<()> {
        if self.pool.as_ref().is_some_and(JoinHandle::is_finished) {
            join(self.pool.take())?;
            bail!("the workloads ended by themselves");
        }
        match self.clients.iter().position(JoinHandle::is_finished) {
            None => Ok(()),
            Some(index) => bail!("a bank client ended by itself: {:?}", join(Some(self.clients.swap_remove(index)))?),
        }
    }

    /// Waits until each workload has come to its end at least once (or was skipped on this server).
    pub fn wait_for_all_workloads(&mut self, limit: Duration) -> Result<()> {
        wait_until("every workload to have run", limit, || {
            self.check()?;
            Ok(lock(&self.runs).len() == self.workload_count)
        })
    }

    /// Ends the load; how many bank transactions were committed, and how often each workload ran.
    pub fn stop(mut self) -> Result<(u64, BTreeMap<&'static str, u32>)> {
        self.target.stop();
        join(self.pool.take())?;
        let mut committed = 0;
        for client in self.clients.drain(..) {
            committed += join(Some(client))?.unwrap_or(0);
        }
        let runs = lock(&self.runs).clone();
        Ok((committed, runs))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.target.stop();
    }
}

fn lock(runs: &Runs) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, u32>> {
    runs.lock().unwrap_or_else(PoisonError::into_inner)
}

fn join<T>(thread: Option<JoinHandle<Result<T>>>) -> Result<Option<T>> {
    match thread.map(JoinHandle::join) {
        None => Ok(None),
        Some(Ok(result)) => result.map(Some),
        Some(Err(panic)) => std::panic::resume_unwind(panic),
    }
}

/// Every workload once, then any of them, until the target is stopping.
fn run_pool(
    workloads: Vec<&'static Workload>,
    target: &Target,
    runs: &Runs,
    seed: u64,
    narrator: Narrator,
) -> Result<()> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut first_round = workloads;
    first_round.shuffle(&mut rng);
    for workload in &first_round {
        run_to_its_end(workload, target, runs, &mut rng, narrator)?;
    }
    // The one that burns a million transaction ids is enough once.
    let again: Vec<&&Workload> = first_round.iter().filter(|workload| workload.name != "slru").collect();
    while !target.is_stopping() {
        run_to_its_end(again[rng.random_range(0..again.len())], target, runs, &mut rng, narrator)?;
    }
    Ok(())
}

fn run_to_its_end(
    workload: &Workload,
    target: &Target,
    runs: &Runs,
    rng: &mut SmallRng,
    narrator: Narrator,
) -> Result<()> {
    for _ in 0..INTERRUPTIONS_MAX {
        if target.is_stopping() {
            return Ok(());
        }
        match workload.run(target, rng.random()) {
            Ok(Outcome::Stopped) => return Ok(()),
            Ok(outcome) => {
                let runs_so_far = { *lock(runs).entry(workload.name).and_modify(|count| *count += 1).or_insert(1) };
                match outcome {
                    Outcome::Skipped(why) => narrator.say(format_args!("workload {} skipped: {why}", workload.name)),
                    _ if runs_so_far == 1 => narrator.say(format_args!("workload {} done", workload.name)),
                    _ => {}
                }
                return Ok(());
            }
            Err(error) if is_transient(&error) => thread::sleep(Duration::from_millis(200)), // The server is coming back.
            Err(error) => return Err(error),
        }
    }
    bail!("workload {} was interrupted {INTERRUPTIONS_MAX} times", workload.name)
}
