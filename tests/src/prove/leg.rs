//! One leg: one version of PostgreSQL, one set of settings, from the empty cluster to the comparison.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postgres_ffi::checkpoint::Checkpoint;
use postgres_ffi::control_file::ControlFile;
use postgres_ffi::{Lsn, PgVersion};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::Narrator;
use super::comparison::{CrashRemains, compare};
use super::database_dirs::DatabaseDirs;
use super::dropped_before::DroppedBefore;
use super::events::{Event, Times, shuffled};
use super::history::{self, Sample};
use super::load::Load;
use super::lost_bits::Recovery;
use super::lost_wal::WalArchive;
use super::orphans;
use crate::workload::{Target, tpcb};
use crate::{Background, CutProxy, PageServer, Postgres, Stop, TestDir, standby, wait_until};

/// Directory of all WAL, within that of the test.
const ARCHIVE: &str = "wal archive";
/// What the timeline is called on the page server.
const TIMELINE: &str = "main";
/// Until the page server has what the primary has, once nothing disturbs it any more.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(120);
/// Until every workload has run, once nothing disturbs it any more.
const WORKLOADS_LIMIT: Duration = Duration::from_secs(1800);
/// Longest pause between two events.
const PAUSE_MS_MAX: u64 = 1000;
/// After so many bytes at most, counted from the event, the stream is cut.
const CUT_BYTES_MAX: u64 = 300_000;

/// So little that layers are frozen, flushed and merged all the time, and pages are cached back early.
const LITTLE_MEMORY: &str = "page_cache_mib = 4\n[store]\nlayer_mib = 8\nblock_cache_mib = 8\nflush_interval_seconds = 5\n\
    [wal]\nkeep_mib = 16";

/// The settings of a leg.
#[derive(Clone, Copy, Debug)]
pub struct Leg {
    /// Major version.
    pub version: PgVersion,
    /// Page checksums.
    pub checksums: bool,
    /// `full_page_writes`
    pub full_page_writes: bool,
    /// `wal_level = logical`, which adds to records.
    pub logical: bool,
    /// Size of a WAL segment file.
    pub wal_segment_mb: u32,
    /// A tablespace outside of the data directory. A standby on the same machine cannot have the same one, so there is no
    /// promotion then; otherwise tablespaces are in place, and there is one.
    pub tablespace_outside: bool,
    /// `redo.engine` of the page server: `native`, or `verify`, which compares every page that it makes with a redo process's.
    pub redo_engine: &'static str,
    /// `pageserver.toml`: little memory, so that much is written and read back, or the defaults.
    pub little_memory: bool,
}

impl Leg {
    /// The two legs of a version. Between them each setting stands at both of its values.
    pub fn both(version: PgVersion) -> [Leg; 2] {
        [
            Leg {
                version,
                checksums: true,
                full_page_writes: true,
                logical: false,
                wal_segment_mb: 16,
                tablespace_outside: false,
                // There are no server headers of 14 and 16 on Debian to build the process's extension with.
                redo_engine: if matches!(version, PgVersion::V14 | PgVersion::V16) { "native" } else { "verify" },
                little_memory: true,
            },
            Leg {
                version,
                checksums: false,
                full_page_writes: false,
                logical: true,
                wal_segment_mb: 1,
                tablespace_outside: true,
                redo_engine: "native",
                little_memory: false,
            },
        ]
    }

    fn start_primary(&self, dir: &TestDir) -> Result<Postgres> {
        let archive = dir.create_subdir(ARCHIVE)?;
        let archive = archive.to_str().context("a path in UTF-8")?;
        Postgres::builder(self.version)
            .checksums(self.checksums)
            .wal_segment_mb(self.wal_segment_mb)
            .wal_level(if self.logical { "logical" } else { "replica" })
            .setting("full_page_writes", if self.full_page_writes { "on" } else { "off" })
            .setting("archive_mode", "on") // See `lost_wal`.
            .setting("archive_command", &format!("cp %p '{archive}/%f'"))
            .setting("autovacuum_naptime", "2s")
            .setting("checkpoint_timeout", "30s")
            .setting("max_wal_size", if self.wal_segment_mb == 1 { "64MB" } else { "512MB" })
            .setting("wal_keep_size", "4GB") // Nobody holds WAL back for a page server that is down and has no slot.
            .start(dir)
    }
}

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Branches of the bank: 16 MB each.
    pub scale: i32,
    /// How often what happens.
    pub times: Times,
    /// What everything random follows from.
    pub seed: u64,
}

/// What a leg did, all of it without one wrong page.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// What happened how often.
    pub counts: BTreeMap<String, u64>,
    /// What `pagectl compare` printed.
    pub comparison: String,
}

impl Summary {
    fn count(&mut self, what: &str, times: u64) {
        *self.counts.entry(what.to_owned()).or_default() += times;
    }
}

/// Runs one leg. The first wrong page is an error that says which, after the ends of the servers' logs, which are printed; the directory is then kept if `PAGESERVER_TEST_KEEP` is set.
pub fn run_leg(leg: Leg, plan: Plan) -> Result<Summary> {
    let narrator = Narrator::start();
    narrator.say(format_args!("{leg:?}, {plan:?}"));
    let mut course = Course::start(leg, plan, narrator)?;
    let result = course.run();
    if let Err(error) = result {
        let lines = course.pageserver.unexpected_log_lines().join("\n");
        course.pageserver.ignore_log();
        println!("{}\n{}", course.primary.log_tail(), course.pageserver.log_tail());
        println!("unexpected in the page server's log:\n{lines}");
        return Err(error);
    }
    Ok(course.summary)
}

/// The servers of a leg and what is known about them. Dropped in this order: readers and load before servers.
struct Course {
    leg: Leg,
    narrator: Narrator,
    rng: SmallRng,
    summary: Summary,
    samples: Samples,
    recoveries: Recoveries,
    first_lsn: Lsn,
    remains: CrashRemains,
    plan: Plan,
    checker: Option<Background<u64>>,
    load: Option<Load>,
    pageserver: PageServer,
    proxy: CutProxy,
    target: Target,
    primary: Postgres,
}

impl Course {
    /// Servers, data, load, and the import under that load.
    fn start(leg: Leg, plan: Plan, narrator: Narrator) -> Result<Self> {
        let mut rng = SmallRng::seed_from_u64(plan.seed);
        let dir = TestDir::new(&format!("prove-{}", leg.version))?;
        let primary = leg.start_primary(&dir)?;
        let mut session = primary.connect()?;
        session.batch_execute("CREATE EXTENSION pageinspect")?;
        tpcb::init(&mut session, plan.scale)?;
        if leg.tablespace_outside {
            make_tablespace_outside(&mut session, &dir)?;
        }
        narrator.say(format_args!("PostgreSQL {} is running with scale {}", leg.version, plan.scale));
        let proxy = CutProxy::start(primary.port())?;
        let memory = if leg.little_memory { LITTLE_MEMORY } else { "" };
        let cache_back = if leg.little_memory { "cache_back_records_min = 2" } else { "" };
        let config = format!("{memory}\n[redo]\nengine = \"{}\"\n{cache_back}", leg.redo_engine);
        let mut pageserver = PageServer::builder().config(&config)?.start(&dir)?;
        for expected in ["redo process", "wal receiver", "connection to the primary"] {
            pageserver.expect_in_log(expected); // Killed and cut on purpose: to be warned of, and survived.
        }
        let target = Target::new(&primary);
        let load = Load::start(&target, plan.scale, &mut rng, narrator);
        let backup = target.begin_backup();
        pageserver.import_under_load(TIMELINE, &primary.conninfo_through(proxy.port()))?;
        drop(backup);
        let first_lsn = last_record_lsn(&pageserver)?;
        narrator.say(format_args!("imported under load, readable from {first_lsn}"));
        let samples = Samples::default();
        let recoveries = Recoveries::default();
        let checker = Background::start("the checker", {
            let (samples, recoveries) = (samples.clone(), recoveries.clone());
            let (conninfo, seed) = (pageserver.conninfo(), rng.random());
            move |stop| check_until(stop, &samples, &recoveries, &conninfo, seed)
        });
        let summary = Summary::default();
        let (checker, load) = (Some(checker), Some(load));
        let archive = WalArchive {
            dirs: vec![dir.path().join(ARCHIVE)],
            version: leg.version,
            segment_bytes: leg.wal_segment_mb << 20,
        };
        let remains = CrashRemains {
            orphans: BTreeSet::new(),
            database_dirs: DatabaseDirs::default(),
            dropped_before: DroppedBefore::default(),
            archive,
            recoveries: Vec::new(),
        };
        Ok(Self {
            leg,
            narrator,
            rng,
            summary,
            samples,
            recoveries,
            first_lsn,
            remains,
            plan,
            checker,
            load,
            pageserver,
            proxy,
            target,
            primary,
        })
    }

    fn run(&mut self) -> Result<()> {
        let times = Times { promote: self.plan.times.promote && !self.leg.tablespace_outside, ..self.plan.times };
        let events = shuffled(&mut self.rng, times);
        for event in events {
            thread::sleep(Duration::from_millis(self.rng.random_range(0..PAUSE_MS_MAX)));
            self.happen(event).with_context(|| format!("event {event:?}"))?;
            self.check_all_alive()?;
        }
        self.narrator.say("nothing disturbs from here on; the workloads that are left run to their end");
        let load = self.load.as_mut().context("the load is running")?;
        load.wait_for_all_workloads(WORKLOADS_LIMIT)?;
        self.finish()
    }

    fn check_all_alive(&mut self) -> Result<()> {
        self.pageserver.check_alive()?;
        self.primary.check_alive()?;
        self.checker.as_mut().context("the checker is running")?.check()?;
        self.load.as_mut().context("the load is running")?.check()
    }

    fn happen(&mut self, event: Event) -> Result<()> {
        let done = match event {
            Event::KillPageServer => self.kill_page_server().map(|()| true),
            Event::KillRedoProcess => self.kill_redo_process(),
            Event::CutStream => {
                self.proxy.cut_after(self.rng.random_range(1..CUT_BYTES_MAX));
                Ok(true)
            }
            Event::RestartPrimary(Stop::Fast) => self.primary.restart(Stop::Fast).map(|()| true),
            Event::RestartPrimary(Stop::Immediate) => {
                self.primary.stop(Stop::Immediate).and_then(|()| self.recover()).map(|()| true)
            }
            Event::KillPrimary => self.primary.kill().and_then(|()| self.recover()).map(|()| true),
            Event::Promote => self.promote().map(|()| true),
            Event::Moment => self.take_moment().map(|()| true),
            Event::Glimpse => self.take_glimpse(),
        }?;
        if done {
            self.summary.count(&format!("{event:?}"), 1);
        }
        if !matches!(event, Event::Moment | Event::Glimpse) {
            self.narrator.say(format_args!("{event:?}{}", if done { "" } else { ": nothing there" }));
        }
        Ok(())
    }

    /// Starts the primary after a crash.
    fn recover(&mut self) -> Result<()> {
        let control_file = self.primary.data_dir().join("global/pg_control");
        let control_file = ControlFile::decode(&fs::read(control_file).context("read pg_control")?)?;
        let checkpoint = Checkpoint::decode(self.leg.version, &control_file.checkpoint_copy)?;
        // Before it takes writes: whoever samples it sees what it has lost already.
        let recovery = Recovery { redo_lsn: Lsn::new(checkpoint.redo), end_lsn: Lsn::MAX };
        if !self.leg.full_page_writes {
            self.recoveries.lock().push(recovery);
        }
        self.primary.start()?;
        let end_lsn = self.primary.current_lsn()?;
        if let Some(recovery) = self.recoveries.lock().last_mut() {
            recovery.end_lsn = end_lsn;
        }
        Ok(())
    }

    fn kill_page_server(&mut self) -> Result<()> {
        self.pageserver.kill()?;
        self.pageserver.start()
    }

    /// Reads go on all the time, so there soon is one. False: there was none for seconds, and the page server was killed instead, so
    /// that there are as many kills as the plan says.
    fn kill_redo_process(&mut self) -> Result<bool> {
        let mut killed = false;
        let has_processes = self.leg.redo_engine == "verify";
        let limit = Duration::from_secs(if has_processes { 5 } else { 0 });
        let waited = wait_until("a redo process", limit, || {
            killed = self.pageserver.kill_redo_process()?;
            Ok(killed)
        });
        if waited.is_ok() && killed {
            return Ok(true);
        }
        self.kill_page_server()?;
        self.summary.count("KillPageServer", 1);
        Ok(false)
    }

    /// A switch without loss: the primary ends cleanly, which sends all of its WAL to the standby first.
    fn promote(&mut self) -> Result<()> {
        let target = self.target.clone();
        let backup = target.begin_backup();
        let mut standby = standby::start_standby(&self.primary)?;
        drop(backup);
        self.narrator.say("a standby follows the primary");
        let _quiet = target.quiesce();
        self.primary.stop(Stop::Fast)?;
        standby.promote()?;
        self.proxy.set_upstream(standby.port());
        self.proxy.cut_now();
        target.move_to(&standby);
        self.primary = standby;
        Ok(())
    }

    fn take_moment(&mut self) -> Result<()> {
        let (lsn, samples) = history::take_moment(&self.target, &mut self.rng)?;
        self.narrator.say(format_args!("moment {lsn}: {} pages", samples.len()));
        self.summary.count("pages taken in moments", samples.len() as u64);
        self.samples.add(samples);
        Ok(())
    }

    /// False: the primary did not answer, which under load it may refuse (a lock, a dropped table).
    fn take_glimpse(&mut self) -> Result<bool> {
        let Ok(samples) = history::take_glimpse(&self.target, self.first_lsn, &mut self.rng) else { return Ok(false) };
        self.summary.count("pages taken under load", samples.len() as u64);
        self.samples.add(samples);
        Ok(true)
    }

    /// The load ends, the primary ends, and everything is held against everything.
    fn finish(&mut self) -> Result<()> {
        let (committed, runs) = self.load.take().context("the load is running")?.stop()?;
        self.summary.count("bank transactions committed", committed);
        self.summary.count("workload runs", runs.values().map(|count| u64::from(*count)).sum());
        (self.remains.orphans, self.remains.database_dirs) = orphans::find(&self.primary)?;
        self.remains.recoveries = self.recoveries.lock().clone();
        self.remains.archive.dirs.push(self.primary.data_dir().join("pg_wal"));
        self.leave_a_prepared_transaction()?;
        let checked = self.checker.take().context("the checker is running")?.stop()?.context("it is stopped once")?;
        self.summary.count("pages of the past compared meanwhile", checked);
        self.summary.count("cuts that hit", self.proxy.cuts());
        self.catch_up()?;
        self.primary.stop(Stop::Fast)?;
        self.narrator.say("the primary is stopped; comparing every page");
        self.compare()?;
        self.kill_page_server()?;
        self.summary.count("KillPageServer", 1);
        self.narrator.say("the page server was killed once more; comparing every page again");
        self.compare()?;
        let samples = self.samples.take();
        self.narrator.say(format_args!("comparing {} pages of the past", samples.len()));
        history::check_all(&self.pageserver, TIMELINE, &samples, &self.remains.recoveries)?;
        self.summary.count("pages of the past compared in the end", samples.len() as u64);
        self.check_engines()?;
        self.check_promises()?;
        let lines = self.pageserver.unexpected_log_lines();
        ensure!(lines.is_empty(), "unexpected in the page server's log:\n{}", lines.join("\n"));
        self.narrator.say(format_args!("PostgreSQL {}: no wrong page", self.leg.version));
        Ok(())
    }

    /// Native redo and the process made the same pages; or no process was ever needed.
    fn check_engines(&mut self) -> Result<()> {
        let count = |what| self.pageserver.engine_count(what);
        if self.leg.redo_engine == "native" {
            let (pages, left) = (count("pages")?, count("left to the process")?);
            ensure!(pages > 0 && left == 0, "native redo: {pages} pages, {left} left to the process");
            self.summary.count("pages made by native redo alone", pages);
        } else {
            let (equal, different) = (count("equal")?, count("different")?);
            ensure!(
                equal > 0 && different == 0,
                "native redo and PostgreSQL: {equal} pages equal, {different} different"
            );
            self.summary.count("pages made alike by native redo and PostgreSQL", equal);
        }
        Ok(())
    }

    /// As many kills and moments as planned, or the summary would say less than it seems to.
    fn check_promises(&self) -> Result<()> {
        let happened = |what: &str| self.summary.counts.get(what).copied().unwrap_or(0);
        let (kills, moments) = (happened("KillPageServer") + happened("KillRedoProcess"), happened("Moment"));
        let times = self.plan.times;
        let planned = (times.page_server_kills + times.redo_kills, times.moments);
        ensure!(
            kills >= planned.0 as u64 && moments >= planned.1 as u64,
            "less happened than planned. kills=`{kills}`, moments=`{moments}`, planned=`{planned:?}`"
        );
        self.narrator.say(format_args!("{kills} kills, pages of {moments} moments of the past"));
        Ok(())
    }

    /// A primary that ends sends the rest of its WAL to those who are connected: the page server must be.
    fn catch_up(&mut self) -> Result<()> {
        self.proxy.cut_no_more();
        let primary_lsn = self.primary.current_lsn()?;
        let mut reached = None;
        let waited = wait_until("the page server to catch up", CATCH_UP_LIMIT, || {
            reached = Some(last_record_lsn(&self.pageserver)?);
            Ok(reached >= Some(primary_lsn))
        });
        waited.with_context(|| format!("the primary is at {primary_lsn}, the page server at {reached:?}"))
    }

    /// So that the comparison sees a file of `pg_twophase`, too.
    fn leave_a_prepared_transaction(&mut self) -> Result<()> {
        let sql =
            "BEGIN; CREATE TABLE left_prepared AS SELECT i FROM generate_series(1, 100) i; PREPARE TRANSACTION 'left'";
        self.primary.execute(sql)
    }

    fn compare(&mut self) -> Result<()> {
        let comparison = compare(&self.pageserver, TIMELINE, self.primary.data_dir(), &self.remains)?;
        self.summary.count("pages compared", comparison.compared);
        println!("{}", comparison.text);
        if comparison.forgiven > 0 {
            println!("(not counted: {} that crashes of the primary left behind or lost)", comparison.forgiven);
            self.summary.count("left behind or lost by crashes of the primary", comparison.forgiven as u64);
        }
        self.summary.comparison = comparison.text;
        Ok(())
    }
}

/// A tablespace in a directory of its own, with a table, an index and a database in it.
fn make_tablespace_outside(session: &mut postgres::Client, dir: &TestDir) -> Result<()> {
    let location = dir.create_subdir("tablespace outside")?;
    let location = location.to_str().context("a path in UTF-8")?;
    session.batch_execute(&format!("CREATE TABLESPACE outside LOCATION '{location}'"))?;
    session.batch_execute(
        "CREATE TABLE lies_outside (id int PRIMARY KEY USING INDEX TABLESPACE outside, v text) TABLESPACE outside",
    )?;
    session.batch_execute("INSERT INTO lies_outside SELECT i, repeat('o', 50) FROM generate_series(1, 5000) i")?;
    session
        .batch_execute("CREATE DATABASE lies_outside TEMPLATE template0 TABLESPACE outside")
        .context("a database outside")
}

/// The end of the last record that the page server can read.
fn last_record_lsn(pageserver: &PageServer) -> Result<Lsn> {
    let rows = pageserver.query(&format!("SHOW LAST_RECORD_LSN {TIMELINE}"))?;
    let text = rows.first().and_then(|row| row.get(1)).context("no LSN in the answer")?;
    Ok(text.parse()?)
}

/// The pages taken so far, shared with the checker.
#[derive(Clone, Default)]
struct Samples {
    samples: Arc<Mutex<Vec<Arc<Sample>>>>,
}

impl Samples {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Sample>>> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, samples: Vec<Sample>) {
        self.lock().extend(samples.into_iter().map(Arc::new));
    }

    fn random(&self, rng: &mut SmallRng) -> Option<Arc<Sample>> {
        let samples = self.lock();
        if samples.is_empty() { None } else { Some(Arc::clone(&samples[rng.random_range(0..samples.len())])) }
    }

    fn take(&self) -> Vec<Arc<Sample>> {
        std::mem::take(&mut self.lock())
    }
}

/// Crash recoveries so far of a primary without full-page writes, shared with the checker.
#[derive(Clone, Default)]
struct Recoveries {
    recoveries: Arc<Mutex<Vec<Recovery>>>,
}

impl Recoveries {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Recovery>> {
        self.recoveries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks for random pages of the past until `stop`, whatever happens to the servers. How many it compared; an error for a wrong one.
fn check_until(
    stop: &AtomicBool,
    samples: &Samples,
    recoveries: &Recoveries,
    conninfo: &str,
    seed: u64,
) -> Result<u64> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut session = None;
    let mut checked = 0;
    while !stop.load(Ordering::SeqCst) {
        let sample = samples.random(&mut rng);
        let answered = match &sample {
            None => None,
            Some(sample) => {
                let recoveries = recoveries.lock().clone();
                history::check_one(&mut session, conninfo, TIMELINE, sample, &recoveries)?
            }
        };
        match answered {
            Some(()) => checked += 1,
            None => thread::sleep(Duration::from_millis(50)), // Nothing to ask yet, or the server is down.
        }
    }
    Ok(checked)
}
