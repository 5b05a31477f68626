//! A tree of branches three levels deep, a compute writing on each, page server and computes killed meanwhile: in the end each branch has what was
//! acknowledged in its own lineage, and nothing of its siblings.
//!
//! ```text
//! main ── a ── aa
//!    │     └── ab
//!    └─── b
//! ```
//! - A writer inserts rows, each in a transaction, under the name of its branch. A row is acknowledged, or it is open whether it is there.
//! - Of an ancestor's rows a branch must have those that were acknowledged before it was made, and may have none that were begun after.
//! - Judged from a fresh clone of each branch's last record, after every compute was killed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use postgres::Client;
use postgres_ffi::{Lsn, PgVersion};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::clone::Cloned;
use super::leg::Row;
use crate::prove::Narrator;
use crate::{Compute, Computes, PageServer, TestDir, wait_until};

/// Each branch with the one that it is made off; `main` is there.
const BRANCHES: [(&str, &str); 5] = [("main", ""), ("a", "main"), ("b", "main"), ("aa", "a"), ("ab", "a")];
/// A branch is made once its ancestor's writer has as many rows acknowledged.
const ROWS_BEFORE_BRANCH: i32 = 30;
/// Each kill comes after so many more rows of the slowest writer.
const ROWS_BETWEEN_KILLS: i32 = 15;
/// Until rows go on after a kill.
const LIMIT: Duration = Duration::from_secs(180);
/// A session that found nobody there asks again.
const PAUSE: Duration = Duration::from_millis(50);

/// Servers that are to go away, and what the page server says of that.
const EXPECTED: [&str; 3] = ["connection to the primary", "a replication slot stays", "wal receiver"];

/// Writes rows to one compute.
struct Writer {
    branch: &'static str,
    compute: Compute,
    state: Mutex<Written>,
}

/// What a writer knows.
#[derive(Clone, Debug, Default)]
struct Written {
    /// The last row that was begun.
    last: i32,
    acknowledged: BTreeSet<i32>,
    /// What was flushed when a row had been acknowledged: this one and those before it are in the WAL below.
    located: Option<(i32, Lsn)>,
}

impl Written {
    /// What was acknowledged by an LSN, and that LSN.
    fn up_to_lsn(mut self) -> Result<(Self, Lsn)> {
        let (last_located, lsn) = self.located.context("an LSN after an acknowledged row")?;
        self.acknowledged.retain(|n| *n <= last_located);
        Ok((self, lsn))
    }
}

/// What an ancestor had written when a branch was made: `before.acknowledged` must be there, nothing above `after_last` may.
#[derive(Clone, Debug)]
struct Inherited {
    before: Written,
    after_last: i32,
}

impl Writer {
    fn lock(&self) -> MutexGuard<'_, Written> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, stop: &AtomicBool) {
        let mut session = None;
        while !stop.load(Ordering::SeqCst) {
            let Some(client) = &mut session else {
                session = self.compute.connect().ok();
                if session.is_none() {
                    thread::sleep(PAUSE);
                }
                continue;
            };
            let n = {
                let mut written = self.lock();
                written.last += 1;
                written.last
            };
            let row = client.execute("INSERT INTO written VALUES ($1, $2)", &[&self.branch, &n]);
            if row.is_err() {
                session = None; // Perhaps it was committed, but nobody was told so.
                continue;
            }
            self.lock().acknowledged.insert(n);
            if let Ok(lsn) = flush_lsn(client) {
                self.lock().located = Some((n, lsn));
            }
        }
    }

    /// All that was acknowledged is in the WAL below an LSN from now on. Requires: nothing more is written.
    fn locate_all(&self) -> Result<()> {
        let lsn = flush_lsn(&mut self.compute.connect()?)?;
        let mut written = self.lock();
        written.located = written.acknowledged.last().map(|last| (*last, lsn));
        Ok(())
    }

    fn count(&self) -> i32 {
        self.lock().acknowledged.len() as i32
    }
}

/// Makes the tree, lets it grow through `kills` kills, and checks a clone of each branch.
pub fn run_tree(version: PgVersion, seed: u64, kills: usize, narrator: Narrator) -> Result<Vec<Row>> {
    let dir = TestDir::new(&format!("prove-tree-{version}"))?;
    let mut page_server = PageServer::builder().initdb(version).start(&dir)?;
    EXPECTED.iter().for_each(|text| page_server.expect_in_log(text));
    let mut tree =
        Tree { narrator, computes: Computes::new(&mut page_server)?, branches: Vec::new(), stop: Arc::default() };
    let mut rng = SmallRng::seed_from_u64(seed);
    let grown = tree.grow(&mut page_server, &mut rng, kills).and_then(|()| tree.end());
    let rows = grown.and_then(|()| {
        tree.branches.iter().map(|branch| tree.check(branch, &page_server, version, &dir)).collect::<Result<Vec<_>>>()
    });
    if rows.is_err() {
        page_server.ignore_log();
    }
    rows
}

/// A branch with its compute.
struct Branch {
    name: &'static str,
    writer: Arc<Writer>,
    thread: Option<JoinHandle<()>>,
    inherited: BTreeMap<&'static str, Inherited>,
}

/// Dropped: the writers end.
struct Tree {
    narrator: Narrator,
    computes: Computes,
    branches: Vec<Branch>,
    stop: Arc<AtomicBool>,
}

impl Drop for Tree {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

impl Tree {
    /// All branches, each with its writer, then the kills.
    fn grow(&mut self, page_server: &mut PageServer, rng: &mut SmallRng, kills: usize) -> Result<()> {
        for (index, (name, ancestor)) in BRANCHES.into_iter().enumerate() {
            let (compute, inherited) = match self.branches.iter().find(|branch| branch.name == ancestor) {
                None => {
                    let compute = self.computes.create(name, "main", &["--no-sync"])?;
                    compute
                        .execute("CREATE TABLE written (branch text, n int); CREATE INDEX ON written (branch, n)")?;
                    (compute, BTreeMap::new())
                }
                Some(ancestor) => self.branch(name, ancestor, page_server, index % 2 == 0)?,
            };
            let writer = Arc::new(Writer { branch: name, compute, state: Mutex::default() });
            let thread = thread::spawn({
                let (writer, stop) = (Arc::clone(&writer), Arc::clone(&self.stop));
                move || writer.run(&stop)
            });
            self.branches.push(Branch { name, writer, thread: Some(thread), inherited });
        }
        for _ in 0..kills {
            self.wait_for_rows(ROWS_BETWEEN_KILLS)?;
            self.kill(page_server, rng)?;
        }
        self.wait_for_rows(ROWS_BETWEEN_KILLS)
    }

    /// A branch of `ancestor` with a compute: at an LSN that its writer knows, or at its last record.
    fn branch(
        &self,
        name: &'static str,
        ancestor: &Branch,
        page_server: &PageServer,
        at_lsn: bool,
    ) -> Result<(Compute, BTreeMap<&'static str, Inherited>)> {
        wait_until("rows of the ancestor", LIMIT, || Ok(ancestor.writer.count() >= ROWS_BEFORE_BRANCH))?;
        let written = ancestor.writer.lock().clone();
        let (before, lsn) = written.up_to_lsn()?;
        let (arguments, lsn_text) = (["--no-sync", "--lsn"], lsn.to_string());
        let compute = if at_lsn {
            self.computes.create(name, ancestor.name, &[&arguments[..], &[&lsn_text]].concat())?
        } else {
            // What is acknowledged has been written there, and may yet have to be read.
            wait_for_lsn(page_server, ancestor.name, lsn)?;
            self.computes.create(name, ancestor.name, &arguments[..1])?
        };
        let after_last = if at_lsn { before.last } else { ancestor.writer.lock().last };
        self.narrator.say(format_args!("branch {name} of {}, as of {}", ancestor.name, compute.report["start_lsn"]));
        let mut inherited = ancestor.inherited.clone();
        inherited.insert(ancestor.name, Inherited { before, after_last });
        Ok((compute, inherited))
    }

    /// Every writer gets on.
    fn wait_for_rows(&self, rows: i32) -> Result<()> {
        let enough: Vec<i32> = self.branches.iter().map(|branch| branch.writer.count() + rows).collect();
        let is_enough = || self.branches.iter().zip(&enough).all(|(branch, enough)| branch.writer.count() >= *enough);
        wait_until("acknowledged rows on every branch", LIMIT, || Ok(is_enough()))
    }

    /// The page server, a compute, or both.
    fn kill(&self, page_server: &mut PageServer, rng: &mut SmallRng) -> Result<()> {
        let branch = &self.branches[rng.random_range(0..self.branches.len())];
        let (kills_server, kills_compute) = [(true, false), (false, true), (true, true)][rng.random_range(0..3)];
        if kills_server {
            page_server.kill()?;
        }
        if kills_compute {
            branch.writer.compute.kill()?;
        }
        if kills_server {
            page_server.start()?;
        }
        if kills_compute {
            self.computes.run(&["start", branch.name])?;
        }
        let killed = match (kills_server, kills_compute) {
            (true, false) => "the page server".to_owned(),
            (false, _) => format!("the compute of {}", branch.name),
            (true, true) => format!("the page server and the compute of {}", branch.name),
        };
        self.narrator.say(format_args!("killed: {killed}"));
        Ok(())
    }

    /// No more rows; every compute is killed, so that nothing but the page server has them.
    fn end(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        for branch in &mut self.branches {
            if let Some(Err(panic)) = branch.thread.take().map(JoinHandle::join) {
                std::panic::resume_unwind(panic);
            }
            branch.writer.locate_all().with_context(|| format!("the end of branch {}", branch.name))?;
            branch.writer.compute.kill()?;
        }
        Ok(())
    }

    fn check(&self, branch: &Branch, page_server: &PageServer, version: PgVersion, dir: &TestDir) -> Result<Row> {
        let started = Instant::now();
        let outcome = self.check_clone(branch, page_server, version, dir).map_err(|error| format!("{error:#}"));
        let row = Row { subject: format!("branch {}", branch.name), outcome, duration: started.elapsed() };
        self.narrator.say(&row);
        Ok(row)
    }

    fn check_clone(
        &self,
        branch: &Branch,
        page_server: &PageServer,
        version: PgVersion,
        dir: &TestDir,
    ) -> Result<String> {
        let (_, lsn) = branch.writer.lock().located.context("no row was acknowledged")?;
        wait_for_lsn(page_server, branch.name, lsn)?;
        let cloned = Cloned::start(page_server, branch.name, None, version, dir)?;
        let seen = branch.check_rows(&cloned)?;
        cloned.check_relations(&["--all", "--parent-check", "--rootdescend"])?;
        cloned.check_log()?;
        cloned.server.remove()?;
        Ok(seen)
    }
}

impl Branch {
    /// Its own rows and those of its lineage, and no others. In words.
    fn check_rows(&self, cloned: &Cloned) -> Result<String> {
        let mut found: BTreeMap<String, BTreeSet<i32>> = BTreeMap::new();
        for row in cloned.server.connect()?.query("SELECT branch, n FROM written", &[])? {
            let (branch, n): (String, i32) = (row.get(0), row.get(1));
            ensure!(found.entry(branch).or_default().insert(n), "row {n} is there twice");
        }
        let mut seen = Vec::new();
        let own = self.writer.lock().clone();
        let own = Inherited { after_last: own.last, before: own };
        for (name, inherited) in self.inherited.iter().chain([(&self.name, &own)]) {
            let found = found.remove(*name).unwrap_or_default();
            let lost: Vec<_> = inherited.before.acknowledged.difference(&found).collect();
            ensure!(lost.is_empty(), "acknowledged rows of {name} are lost: {lost:?}");
            let last = found.last().copied().unwrap_or_default();
            ensure!(
                last <= inherited.after_last,
                "row {last} of {name}, which was begun after {}",
                inherited.after_last
            );
            seen.push(format!("{} rows of {name}", found.len()));
        }
        ensure!(found.is_empty(), "rows of others: {:?}", found.keys());
        Ok(seen.join(", "))
    }
}

fn flush_lsn(client: &mut Client) -> Result<Lsn> {
    let row = client.query_one("SELECT pg_current_wal_flush_lsn()::text", &[])?;
    Ok(row.get::<_, &str>(0).parse()?)
}

fn wait_for_lsn(page_server: &PageServer, timeline: &str, lsn: Lsn) -> Result<()> {
    wait_until(&format!("{lsn} on {timeline}"), LIMIT, || {
        Ok(page_server.timeline(timeline, "last_record_lsn")?.parse::<Lsn>()? >= lsn)
    })
}
