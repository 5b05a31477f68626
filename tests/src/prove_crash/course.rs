//! One course: one version of PostgreSQL, so many crashes.

use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pageserver::failpoint::Armed;
use postgres_ffi::{Lsn, PgVersion};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::acknowledged::{Rows, STANDBY_NAME};
use super::load::Load;
use super::operation::{FILES, MAIN};
use super::pages::{Pages, start_reader};
use super::plan::{Crash, Plan, Provocation, provocation};
use super::server::{CrashedServer, Life};
use super::summary::Summary;
use super::timelines::Reach;
use crate::prove::{Narrator, compare_uncrashed};
use crate::workload::{Target, tpcb};
use crate::{Background, Killed, PageServer, Postgres, Stop, TestDir, standby, wait_until};

/// Size of a WAL segment: small, so that segments are made and removed all the time.
const SEGMENT_MB: u32 = 1;
/// Branches of the bank: 16 MB each.
const SCALE: i32 = 1;
/// So little memory that layers are flushed and merged all the time; WAL goes as soon as it may; pages are cached back early;
/// little history is kept, so that garbage collection runs all the time.
const CONFIG: &str = "page_cache_mib = 4\n[store]\nlayer_mib = 2\nblock_cache_mib = 8\nflush_interval_seconds = 1\n\
    [wal]\nkeep_mib = 2\nstatus_interval_seconds = 1\n[redo]\nthreads = 1\ncache_back_records_min = 2\nbacklog_records_min = 4\nchain_records_max = 128\n\
    [retention]\ntime = \"5s\"\nwal_mib = 16\n[gc]\nperiod_seconds = 1\nmib_per_second = 0\nhorizon_step_mib = 1";
/// What the page server may say when it is killed, and its primary restarted.
// A branch that was killed before its WAL files, which begin with a segment, had come to its branch LSN takes them again.
const EXPECTED: &[&str] = &[
    "connection to the primary",
    "taking away a timeline that a crash has left",
    "WAL files end before what is ingested",
];
/// Until the page server has what the primary had.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(120);
/// Until an armed failpoint is reached.
const REACH_LIMIT: Duration = Duration::from_secs(40);
/// Longest time from the checks to a kill.
const RUN_MS_MAX: u64 = 1500;
/// Longest time from the start to a kill while it starts.
const STARTING_MS_MAX: u64 = 400;
/// Between two operations.
const PAUSE_MS_MAX: u64 = 60;
/// Pages asked for after each crash: of `main`, of each other timeline.
const PAGES_OF_MAIN: usize = 150;
const PAGES_OF_OTHERS: usize = 25;
/// Every so many crashes all pages are compared with the files of the stopped primary.
const ROUNDS_BETWEEN_COMPARISONS: usize = 20;

/// What a course is to be.
#[derive(Clone, Copy, Debug)]
pub struct Course {
    /// Major version of PostgreSQL.
    pub version: PgVersion,
    /// Crashes.
    pub rounds: usize,
    /// What everything random but the plan follows from.
    pub seed: u64,
}

/// Runs a course; which crashes come is `plan`'s. Before an error, it prints the ends of the servers' logs. The directory stays with `PAGESERVER_TEST_KEEP=1`.
pub fn run_course(course: Course, plan: &mut Plan) -> Result<Summary> {
    let narrator = Narrator::start();
    narrator.say(format_args!("{course:?}"));
    let mut running = Running::start(course, narrator)?;
    if let Err(error) = running.run(plan) {
        let process = &mut running.server.process;
        let lines = process.unexpected_log_lines().join("\n");
        process.ignore_log();
        println!("{}\n{}", running.primary.log_tail(), process.log_tail());
        println!("unexpected in the page server's log:\n{lines}");
        return Err(error);
    }
    Ok(running.summary)
}

/// Dropped in this order: readers and load before servers.
struct Running {
    course: Course,
    narrator: Narrator,
    rng: SmallRng,
    summary: Summary,
    pages: Pages,
    reader: Option<Background<u64>>,
    rows: Rows,
    load: Option<Load>,
    server: CrashedServer,
    target: Target,
    primary: Postgres,
    /// The directory of the primary before, stopped.
    stopped_dir: PathBuf,
    first_lsn: Lsn,
}

impl Running {
    /// A primary that was promoted, so that there is a history; a page server that follows it; load.
    fn start(course: Course, narrator: Narrator) -> Result<Self> {
        let mut rng = SmallRng::seed_from_u64(course.seed);
        let dir = TestDir::new(&format!("prove-crash-{}", course.version))?;
        let (mut primary, stopped_dir) = start_primary(course.version, &dir)?;
        let other = format!("{} application_name=crash_other", primary.conninfo());
        let mut process = PageServer::builder().config(CONFIG)?.start(&dir)?;
        EXPECTED.iter().for_each(|text| process.expect_in_log(text));
        process.import(MAIN, &format!("{} application_name={STANDBY_NAME}", primary.conninfo()))?;
        let first_lsn: Lsn = process.timeline(MAIN, "first_readable_lsn")?.parse()?;
        primary.set("synchronous_standby_names", STANDBY_NAME)?;
        primary.execute("SELECT pg_reload_conf()")?;
        let target = Target::new(&primary);
        let rows = Rows::start(&target)?;
        let load = Load::start(&target, SCALE, &mut rng)?;
        let pages = Pages::default();
        let reader = start_reader(process.conninfo(), &pages, rng.random());
        let mut server = CrashedServer::new(process, other, stopped_dir.to_string_lossy().into_owned());
        let shown = super::timelines::look(&mut server.client()?, server.process.data_dir())??;
        (server.timelines, server.reaches) = shown;
        narrator.say(format_args!("PostgreSQL {} is followed from {first_lsn} on", course.version));
        Ok(Running {
            course,
            narrator,
            rng,
            summary: Summary::default(),
            pages,
            reader: Some(reader),
            rows,
            load: Some(load),
            server,
            target,
            primary,
            stopped_dir,
            first_lsn,
        })
    }

    fn run(&mut self, plan: &mut Plan) -> Result<()> {
        plan.begin_again();
        self.verify()?;
        self.server.process.kill()?;
        for round in 1..=self.course.rounds {
            let crash = plan.next_crash();
            let begun = Instant::now();
            self.crash(crash, plan).with_context(|| format!("round {round}, {crash:?}"))?;
            self.check_while_down().with_context(|| format!("after round {round}, {crash:?}"))?;
            self.narrator.say(format_args!("round {round}: {crash} in {:.1} s", begun.elapsed().as_secs_f64()));
            if round % ROUNDS_BETWEEN_COMPARISONS == 0 || round == self.course.rounds {
                self.narrator.say(format_args!("round {round}: {}", self.progress()));
            }
            if round % ROUNDS_BETWEEN_COMPARISONS == 0 {
                self.compare_all().with_context(|| format!("after round {round}, {crash:?}"))?;
                self.server.process.kill()?;
            }
        }
        self.finish()
    }

    fn progress(&self) -> String {
        format!(
            "{} pages remembered, {} rows acknowledged, {} operations, crashes at {} failpoints, timelines {:?}",
            self.pages.count(),
            self.rows.count(),
            self.server.acknowledged,
            self.summary.reached.len(),
            self.server.timelines.keys().collect::<Vec<_>>()
        )
    }

    /// The server is down when it returns.
    fn crash(&mut self, crash: Crash, plan: &mut Plan) -> Result<()> {
        self.summary.count("crashes", 1);
        match crash {
            Crash::Failpoint(armed) => {
                if !self.crash_at(armed)? {
                    self.narrator.say(format_args!("{armed} was not reached"));
                    self.summary.count("failpoints armed and not reached in time", 1);
                    plan.again(armed.failpoint);
                }
            }
            Crash::Random => {
                self.summary.count("kills at random moments", 1);
                self.server.process.start()?;
                self.verify()?;
                self.run_until_killed(RUN_MS_MAX)?;
            }
            Crash::Starting => {
                self.summary.count("kills while it starts", 1);
                self.server.process.launch(&[])?;
                thread::sleep(Duration::from_millis(self.rng.random_range(0..STARTING_MS_MAX)));
                self.server.process.kill()?;
            }
        }
        Ok(())
    }

    /// True: the server crashed there. Else it was killed.
    fn crash_at(&mut self, armed: Armed) -> Result<bool> {
        let provocation = provocation(armed.failpoint);
        let started = Instant::now();
        if !self.server.process.start_armed(armed)? {
            self.summary.reach(armed.failpoint);
            self.summary.count("crashes before the server answered", 1);
            return Ok(true);
        }
        let mut life = self.server.settle()?;
        while life == Life::Alive && started.elapsed() < REACH_LIMIT {
            life = self.provoke(provocation)?;
        }
        match life {
            Life::Alive => {
                self.server.process.kill()?;
                Ok(false)
            }
            Life::Dead(Killed { failpoint }) => {
                ensure!(failpoint.as_deref() == Some(armed.failpoint.name()), "killed at {failpoint:?}, not {armed}");
                self.summary.reach(armed.failpoint);
                Ok(true)
            }
        }
    }

    fn provoke(&mut self, provocation: Provocation) -> Result<Life> {
        let wish = match provocation {
            Provocation::Operation(kinds) => kinds.choose(&mut self.rng).copied(),
            Provocation::Ingest | Provocation::Start | Provocation::StartAfter(_) => {
                if self.rng.random_bool(0.7) {
                    self.pages.take_glimpse(&self.target, self.first_lsn, &mut self.rng);
                    return self.server.life();
                }
                None
            }
        };
        self.server.operate(wish, &self.pages.moments(), &mut self.rng)
    }

    /// Operations until a kill that comes from elsewhere, within `ms_max`.
    fn run_until_killed(&mut self, ms_max: u64) -> Result<()> {
        let pid = self.server.process.pid().context("it was started")?;
        let after = Duration::from_millis(self.rng.random_range(0..ms_max));
        let killer = Killer::start(pid, after);
        let mut life = Life::Alive;
        while life == Life::Alive {
            life = self.server.operate(None, &self.pages.moments(), &mut self.rng)?;
            thread::sleep(Duration::from_millis(self.rng.random_range(0..PAUSE_MS_MAX)));
        }
        killer.wait();
        ensure!(life == Life::Dead(Killed { failpoint: None }), "killed at a failpoint that was not armed: {life:?}");
        Ok(())
    }

    /// All that was acknowledged is there, everything catches up, pages of the past are right; new ones are remembered.
    fn verify(&mut self) -> Result<()> {
        self.expect_alive(|running| running.server.settle())?;
        self.catch_up()?;
        self.wait_for_left_slots()?;
        for reach in self.server.reaches.clone() {
            let (count, what) = match reach.name.as_str() {
                MAIN => (PAGES_OF_MAIN, "pages of main compared after crashes"),
                _ => (PAGES_OF_OTHERS, "pages of other timelines compared after crashes"),
            };
            let right = self.check_pages(&reach, count)?;
            self.summary.count(what, right);
        }
        if self.rng.random_bool(0.3) {
            self.pages.take_moment(&self.target, &mut self.rng)?;
            self.summary.count("quiet moments", 1);
        } else {
            self.pages.take_glimpse(&self.target, self.first_lsn, &mut self.rng);
        }
        self.check_log()
    }

    /// How many of at most `count` pages were right; the others are given up by now: a horizon moves while pages are asked for.
    fn check_pages(&mut self, reach: &Reach, count: usize) -> Result<u64> {
        let process = &mut self.server.process;
        let conninfo = process.conninfo();
        let mut given_up = |lsn: Lsn| {
            process.check_alive()?;
            let first_readable_lsn: Lsn = process.timeline(&reach.name, "first_readable_lsn")?.parse()?;
            Ok(lsn < first_readable_lsn)
        };
        self.pages.check(&conninfo, reach, count, &mut given_up, &mut self.rng)
    }

    fn expect_alive(&mut self, step: impl FnOnce(&mut Self) -> Result<Life>) -> Result<()> {
        let life = step(self)?;
        ensure!(life == Life::Alive, "the server has ended: {life:?}");
        Ok(())
    }

    fn check_log(&self) -> Result<()> {
        let lines = self.server.process.unexpected_log_lines();
        ensure!(lines.is_empty(), "unexpected in the page server's log:\n{}", lines.join("\n"));
        Ok(())
    }

    /// Every timeline that follows the primary comes to where the primary is now.
    fn catch_up(&mut self) -> Result<()> {
        let primary_lsn: Lsn = self.primary.query_text("SELECT pg_current_wal_flush_lsn()")?.parse()?;
        let started = Instant::now();
        loop {
            self.expect_alive(|running| running.server.look())?;
            let (timelines, reaches) = (&self.server.timelines, &self.server.reaches);
            let follows = |name: &str| timelines.get(name).is_some_and(|shown| shown.follows);
            let behind = reaches.iter().find(|reach| follows(&reach.name) && reach.last_record_lsn < primary_lsn);
            let Some(reach) = behind else { return Ok(()) };
            let ended = reach.state == "stopped";
            ensure!(!ended && started.elapsed() < CATCH_UP_LIMIT, "stuck: {reach:?}; the primary is at {primary_lsn}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// A slot whose import or timeline a crash took away goes, else it would keep the primary's WAL for ever.
    fn wait_for_left_slots(&mut self) -> Result<()> {
        let followers = self.server.timelines.values().filter(|shown| shown.follows);
        let ids: Vec<String> = followers.map(|shown| format!("pageserver_{}", shown.id)).collect();
        let sql =
            "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'pageserver%' AND NOT slot_name = ANY($1)";
        let mut client = self.primary.connect()?;
        let mut count = || -> Result<i64> { Ok(client.query_one(sql, &[&ids])?.get(0)) };
        let left = count()?;
        if left > 0 {
            wait_until("slots of what is gone to go", CATCH_UP_LIMIT, || Ok(count()? == 0))?;
            self.summary.count("slots that crashes left at the primary, and that went", u64::try_from(left)?);
        }
        Ok(())
    }

    /// What needs no page server, or is better looked at without one.
    fn check_while_down(&mut self) -> Result<()> {
        let main = self.server.timelines.get(MAIN).context("main")?;
        let wal_dir = self.server.process.data_dir().join("timelines").join(&main.id).join("wal");
        let found = self.rows.check(&wal_dir, self.course.version, SEGMENT_MB << 20)?;
        self.summary.count("acknowledged commits found in our WAL", found as u64);
        self.rows.check_alive()?;
        self.load.as_mut().context("the load runs")?.check()?;
        self.reader.as_mut().context("the reader runs")?.check()?;
        self.primary.check_alive()
    }

    /// Every page of `main` against the files of the primary, which is stopped for that; each import of files against what it was imported from.
    fn compare_all(&mut self) -> Result<()> {
        self.server.process.start()?;
        self.verify()?;
        let target = self.target.clone();
        let _quiet = target.quiesce();
        self.primary.stop(Stop::Fast)?;
        let data_dir = self.primary.data_dir().to_path_buf();
        self.compare(MAIN, &data_dir)?;
        let of_files: Vec<String> = self.imports_of_files();
        for name in of_files {
            self.compare(&name, &self.stopped_dir.clone())?;
        }
        self.primary.start()
    }

    fn imports_of_files(&self) -> Vec<String> {
        let is_one = |name: &&String| name.starts_with(FILES);
        // One that follows the primary by now has more than the files had, and its last record is not where theirs was.
        let imports = self.server.timelines.iter().filter(|(name, shown)| is_one(name) && !shown.follows);
        imports.map(|(name, _)| name.clone()).collect()
    }

    fn compare(&mut self, timeline: &str, data_dir: &std::path::Path) -> Result<()> {
        let comparison = compare_uncrashed(&self.server.process, timeline, data_dir)
            .with_context(|| format!("{timeline} against {}", data_dir.display()))?;
        self.summary.count("pages compared with files of a stopped server", comparison.compared);
        self.summary.count("comparisons with files of a stopped server", 1);
        Ok(())
    }

    /// The load ends, and everything is held against everything.
    fn finish(&mut self) -> Result<()> {
        self.server.process.start()?;
        self.verify()?;
        self.rows.stop()?;
        let (committed, runs) = self.load.take().context("the load runs")?.stop()?;
        self.summary.count("bank transactions committed", committed);
        self.summary.count("workloads run", runs);
        self.summary.count("rows acknowledged", self.rows.count() as u64);
        let read = self.reader.take().context("the reader runs")?.stop()?.context("it is stopped once")?;
        self.summary.count("pages compared meanwhile", read);
        self.catch_up()?;
        self.primary.stop(Stop::Fast)?;
        let data_dir = self.primary.data_dir().to_path_buf();
        self.compare(MAIN, &data_dir)?;
        for reach in self.server.reaches.clone() {
            let right = self.check_pages(&reach, usize::MAX)?;
            self.summary.count("pages of the past compared in the end", right);
        }
        self.server.process.stop()?;
        self.summary.count("operations acknowledged", self.server.acknowledged);
        self.summary.count("operations cut off by a crash, and done", self.server.cut_off.0);
        self.summary.count("operations cut off by a crash, and not done", self.server.cut_off.1);
        self.check_log()?;
        self.check_promises()
    }

    /// A course that looked at nothing proves nothing.
    fn check_promises(&self) -> Result<()> {
        let needed = [
            "acknowledged commits found in our WAL",
            "pages of main compared after crashes",
            "pages of other timelines compared after crashes",
            "pages compared with files of a stopped server",
            "pages compared meanwhile",
            "operations acknowledged",
        ];
        let missing: Vec<&str> = needed.into_iter().filter(|what| self.summary.times(what) == 0).collect();
        ensure!(missing.is_empty(), "nothing was seen of: {missing:?}");
        self.narrator.say(format_args!("PostgreSQL {}: nothing wrong, nothing lost", self.course.version));
        Ok(())
    }
}

/// A primary on PostgreSQL timeline 2, and the directory of the server that it was promoted from.
fn start_primary(version: PgVersion, dir: &TestDir) -> Result<(Postgres, PathBuf)> {
    let mut first = Postgres::builder(version)
        .checksums(true)
        .wal_segment_mb(SEGMENT_MB)
        .setting("synchronous_commit", "local")
        .setting("autovacuum_naptime", "5s")
        .setting("checkpoint_timeout", "120s")
        .setting("max_wal_size", "512MB")
        .setting("wal_keep_size", "2GB") // A branch follows from its branch LSN on.
        .setting("shared_buffers", "128MB")
        .start(dir)?;
    let mut session = first.connect()?;
    session.batch_execute("CREATE EXTENSION pageinspect")?;
    tpcb::init(&mut session, SCALE)?;
    drop(session);
    let mut primary = standby::start_standby(&first)?;
    first.stop(Stop::Fast)?;
    primary.promote()?;
    // Whoever imports it later finds its history from the first checkpoint on.
    primary.execute("CHECKPOINT")?;
    Ok((primary, first.data_dir().to_owned()))
}

/// A thread that kills a process after a while.
struct Killer {
    thread: JoinHandle<()>,
}

impl Killer {
    /// The process is the page server, and nobody else ends it before.
    fn start(pid: i32, after: Duration) -> Self {
        let thread = thread::spawn(move || {
            thread::sleep(after);
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        });
        Killer { thread }
    }

    fn wait(self) {
        let _ = self.thread.join();
    }
}
