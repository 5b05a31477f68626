//! One leg: one version of PostgreSQL, from the empty cluster to the last clone.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use postgres_ffi::{Lsn, PgVersion};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::clone::{Cloned, Known};
use super::markers::{Markers, Writers};
use super::moments::{self, Kind, Moment};
use super::primary::{self, start_restless};
use super::recovery::Base;
use super::tree::run_tree;
use super::wal_history::{WalHistory, WalSource};
use crate::prove::{Load, Narrator};
use crate::workload::{Target, Workload};
use crate::{PageServer, Postgres, TestDir, wait_until};

/// What the timeline is called on the page server.
const TIMELINE: &str = "main";
/// Until every workload has run once.
const WORKLOADS_LIMIT: Duration = Duration::from_secs(1800);
/// Until the page server has what the primary has.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(300);
/// So little memory and WAL that layers are frozen and flushed all the time, and the WAL in front of most LSNs is gone.
const LITTLE: &str = "page_cache_mib = 4\n[store]\nlayer_mib = 8\nblock_cache_mib = 8\nflush_interval_seconds = 5\n\
    [wal]\nkeep_mib = 16";
/// All WAL is kept: an LSN within a record is moved to the record's end.
const ALL_WAL: &str = "[wal]\nkeep_mib = 65536";
/// What runs beside bank transactions while clones are made: little that is new, so that clones stay small.
const WORKLOAD_BESIDE_CLONES: &str = "lockers";

/// The settings of a leg.
#[derive(Clone, Copy, Debug)]
pub struct Leg {
    /// Major version.
    pub version: PgVersion,
    /// Size of a WAL segment file.
    pub wal_segment_mb: u32,
    /// `pageserver.toml`: little memory, and little WAL kept, so that filler stands in front of most clones' first record; or all WAL kept.
    pub little: bool,
}

impl Leg {
    /// The leg of a version. Odd ones have small segments, even ones a page server with little.
    pub fn of(version: PgVersion) -> Self {
        let is_odd = version.major() % 2 == 1;
        Leg { version, wal_segment_mb: if is_odd { 1 } else { 16 }, little: !is_odd || version == PgVersion::V17 }
    }
}

/// How much of everything.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Branches of the bank: 16 MB each.
    pub scale: i32,
    /// What everything random follows from.
    pub seed: u64,
    /// LSNs that clones are made of.
    pub moments: usize,
    /// As many of them are held against a recovery of PostgreSQL's own.
    pub recoveries: usize,
    /// As many of the clones are made and checked while WAL streams in.
    pub under_load: usize,
    /// Kinds that there must be; `None`: all that the version has.
    pub kinds: Option<Vec<Kind>>,
    /// How long the load lasts at least.
    pub load: Duration,
    /// Clones that are checked at once.
    pub jobs: usize,
    /// Times that page server or computes are killed while a tree of branches grows.
    pub kills: usize,
}

/// A clone and what became of it.
#[derive(Clone, Debug)]
pub struct Row {
    /// What it is a clone of.
    pub subject: String,
    /// What was seen, in words; or the failure.
    pub outcome: Result<String, String>,
    /// How long the checks took.
    pub duration: Duration,
}

impl fmt::Display for Row {
    /// One line, more for a failure.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Row { subject, outcome, duration } = self;
        let word = if outcome.is_ok() { "good" } else { "FAILED" };
        let seen = outcome.as_ref().unwrap_or_else(|failure| failure);
        write!(f, "{word}: {subject}: {seen}; {:.1} s", duration.as_secs_f64())
    }
}

/// What a leg has shown.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// One per clone.
    pub rows: Vec<Row>,
    /// What the load was, in words.
    pub load: String,
}

impl Summary {
    /// Clones that failed a check.
    pub fn failures(&self) -> usize {
        self.rows.iter().filter(|row| row.outcome.is_err()).count()
    }
}

/// Runs one leg. A clone that fails is in the summary; an error is what kept the leg from being run.
pub fn run_leg(leg: Leg, plan: &Plan) -> Result<Summary> {
    let narrator = Narrator::start();
    narrator.say(format_args!("{leg:?}, {plan:?}"));
    let dir = TestDir::new(&format!("prove-clones-{}", leg.version))?;
    let mut rng = SmallRng::seed_from_u64(plan.seed);
    let course = Course::start(leg, plan, &dir, &mut rng, narrator)?;
    let (history, load) = (&course.history, &course.load);
    narrator.say(format_args!(
        "{} records from {} to {}: {load}",
        history.record_count(),
        course.first_lsn,
        course.last_lsn
    ));
    let kinds = plan.kinds.clone().unwrap_or_else(|| Kind::required(leg.version));
    let moments = moments::choose(history, course.first_lsn, &kinds, plan.moments, &mut rng)?;
    for moment in &moments {
        narrator.say(format_args!("chosen: {}  {}", moment.request_lsn, moment.kind));
    }
    let mut recovered: Vec<bool> = (0..moments.len()).map(|index| index < plan.recoveries).collect();
    recovered.shuffle(&mut rng);
    let mut moments: Vec<(Moment, bool)> = moments.into_iter().zip(recovered).collect();
    moments.shuffle(&mut rng);
    let rest = moments.split_off(plan.under_load.min(moments.len()));
    let target = Target::new(&course.primary);
    let load = Load::of(vec![Workload::find(WORKLOAD_BESIDE_CLONES)?], &target, plan.scale, &mut rng, narrator);
    let mut rows = course.check_all(moments, plan, narrator);
    let (transactions, _) = load.stop()?;
    narrator.say(format_args!("the load has ended; {transactions} transactions beside {} clones", rows.len()));
    rows.extend(course.check_all(rest, plan, narrator));
    let mut summary = course.finish(rows)?;
    summary.rows.extend(run_tree(leg.version, plan.seed, plan.kills, narrator).context("the tree of branches")?);
    Ok(summary)
}

/// The servers of a leg after the load, and what is known. Dropped in this order: the page server before its primary.
struct Course {
    leg: Leg,
    dir: TestDir,
    page_server: PageServer,
    primary: Postgres,
    base: Base,
    history: WalHistory,
    markers: Vec<Markers>,
    load: String,
    first_lsn: Lsn,
    last_lsn: Lsn,
}

impl Course {
    /// Servers, import under load, the load to its end.
    fn start(leg: Leg, plan: &Plan, dir: &TestDir, rng: &mut SmallRng, narrator: Narrator) -> Result<Self> {
        let mut primary = primary::start(leg.version, leg.wal_segment_mb, plan.scale, dir)?;
        let base = Base::take(&primary, dir)?;
        narrator.say(format_args!("PostgreSQL {} is running; base for recoveries up to {}", leg.version, base.end_lsn));
        let config = if leg.little { LITTLE } else { ALL_WAL };
        let mut page_server = PageServer::builder().config(config)?.start(dir)?;
        page_server.expect_in_log("connection to the primary");
        let target = Target::new(&primary);
        let mut load = Load::of(primary::workloads()?, &target, plan.scale, rng, narrator);
        let mut writers = Writers::start(&target);
        let mut restless = start_restless(&target, rng.random());
        let backup = target.begin_backup();
        page_server.import_under_load(TIMELINE, &primary.conninfo())?;
        drop(backup);
        let first_lsn: Lsn = page_server.timeline(TIMELINE, "first_readable_lsn")?.parse()?;
        narrator.say(format_args!("imported under load, readable from {first_lsn}"));
        let started = Instant::now();
        load.wait_for_all_workloads(WORKLOADS_LIMIT)?;
        primary.kill()?;
        primary.start().context("start the primary after a crash")?;
        narrator.say("the primary was killed, and has recovered");
        wait_until("the load to have lasted", plan.load + WORKLOADS_LIMIT, || {
            load.check()?;
            writers.check()?;
            restless.check()?;
            Ok(started.elapsed() >= plan.load)
        })?;
        let (transactions, runs) = load.stop()?;
        let markers = writers.stop()?;
        let rounds = restless.stop()?.context("it is stopped once")?;
        let last_lsn = last_record_end(&primary)?;
        wait_until("the page server to have it all", CATCH_UP_LIMIT, || {
            Ok(page_server.timeline(TIMELINE, "last_record_lsn")?.parse::<Lsn>()? >= last_lsn)
        })?;
        let source = WalSource {
            dir: primary.data_dir().join("pg_wal"),
            version: leg.version,
            segment_bytes: leg.wal_segment_mb << 20,
        };
        let history = WalHistory::read(&source, base.end_lsn, last_lsn)?;
        let load = format!(
            "{transactions} TPC-B transactions, {} runs of workloads, {rounds} restless rounds, {} markers",
            runs.values().sum::<u32>(),
            markers.iter().map(Markers::count).sum::<usize>()
        );
        Ok(Course { leg, dir: dir.clone(), page_server, primary, base, history, markers, load, first_lsn, last_lsn })
    }

    /// Checks a clone of each moment, several at once. Rows in that order.
    fn check_all(&self, moments: Vec<(Moment, bool)>, plan: &Plan, narrator: Narrator) -> Vec<Row> {
        let known = Known { history: &self.history, markers: &self.markers, scale: plan.scale };
        let queue = Mutex::new(moments.into_iter().enumerate());
        let rows = Mutex::new(BTreeMap::new());
        thread::scope(|scope| {
            for _ in 0..plan.jobs {
                scope.spawn(|| {
                    loop {
                        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                        let Some((index, (moment, recovered))) = next else { return };
                        let row = self.check_one(moment, recovered, &known);
                        narrator.say(&row);
                        rows.lock().unwrap_or_else(PoisonError::into_inner).insert(index, row);
                    }
                });
            }
        });
        rows.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect()
    }

    fn check_one(&self, moment: Moment, recovered: bool, known: &Known<'_>) -> Row {
        let started = Instant::now();
        let mut taken = "no clone".to_owned();
        let request_lsn = Some(moment.request_lsn);
        let cloned = Cloned::start(&self.page_server, TIMELINE, request_lsn, self.leg.version, &self.dir);
        let outcome = cloned.and_then(|mut cloned| {
            taken = cloned.branch_lsn.to_string();
            let checked = self.check_clone(&mut cloned, moment, recovered, known);
            let checked = checked.with_context(|| format!("end of the clone's log:\n{}\n", cloned.log_tail()));
            cloned.server.remove().and(checked)
        });
        Row {
            subject: format!("{} ({taken}), {}", moment.request_lsn, moment.kind),
            outcome: outcome.map_err(|error| format!("{error:#}")),
            duration: started.elapsed(),
        }
    }

    fn check_clone(&self, cloned: &mut Cloned, moment: Moment, recovered: bool, known: &Known<'_>) -> Result<String> {
        let is_right = moment.allows(&self.history, cloned.branch_lsn)?;
        ensure!(is_right, "asked for {moment:?}, and it is of {}", cloned.branch_lsn);
        let markers = cloned.check_markers(known).context("markers")?;
        let fates = cloned.check_fates(known).context("fates of transactions")?;
        cloned.check_that_checks_fail(known)?;
        let prepared = cloned.check_prepared(known).context("prepared transactions")?;
        cloned.check_bank().context("the bank")?;
        let unlogged = cloned.check_unlogged().context("unlogged tables")?;
        let compared = if recovered { self.compare_with_recovery(cloned)? } else { String::new() };
        cloned.end_prepared().context("end of prepared transactions")?;
        cloned.check_relations(&["--all"]).context("relations")?;
        cloned.check_dump().context("dump")?;
        cloned.check_writable(known).context("writes")?;
        cloned
            .check_relations(&["--database", "postgres", "--parent-check", "--rootdescend"])
            .context("relations after writes")?;
        cloned.check_crash().context("crash")?;
        cloned.check_log()?;
        let pages = cloned.check_checksums().context("checksums")?;
        cloned.check_log()?;
        Ok(format!(
            "{markers} markers, {fates} fates, {prepared} prepared, {unlogged} unlogged, {pages} checksums{compared}"
        ))
    }

    /// PostgreSQL's own recovery to the same record has the same rows, prepared transactions and dump.
    fn compare_with_recovery(&self, cloned: &Cloned) -> Result<String> {
        let stop_lsn = self.history.last_end(cloned.branch_lsn)?;
        let recovered = self.base.recover(&self.primary, stop_lsn)?;
        let redo_lsn = self.history.backup_start(self.first_lsn)?;
        let replayed = Lsn::new(redo_lsn.as_u64() + 1)..Lsn::new(cloned.branch_lsn.as_u64() + 1);
        let is_replayed_by_both =
            |database, relfilenode| self.history.has_sequence_record(database, relfilenode, replayed.clone());
        let compared =
            cloned.compare(&recovered, &is_replayed_by_both).context("compared with PostgreSQL's own recovery")?;
        recovered.remove()?;
        Ok(compared)
    }

    /// The page server's log must be clean as well.
    fn finish(mut self, rows: Vec<Row>) -> Result<Summary> {
        let lines = self.page_server.unexpected_log_lines();
        self.page_server.ignore_log();
        ensure!(lines.is_empty(), "unexpected in the page server's log:\n{}", lines.join("\n"));
        Ok(Summary { rows, load: self.load })
    }
}

/// The end of a record, flushed, with nothing of the load behind it.
fn last_record_end(primary: &Postgres) -> Result<Lsn> {
    // The insert position may lie behind a page header that nothing has been written after.
    let mut session = primary.connect()?;
    let sql = "SELECT pg_logical_emit_message(true, 'prove-clones', 'the end')::text";
    let end_lsn = crate::query_text(&mut session, sql)?;
    Ok(end_lsn.parse()?)
}
