//! When garbage collection has something to do, over all timelines: horizons and pins are fixed, passes run, one at a time.
//!
//! - Horizon and pins of a timeline are fixed while nobody makes or ends a branch or gives a lease (`changes`), and durable before the first version goes.
//! - A pass is due when the horizon has moved by a step since the last one, which is larger for a large timeline, or something that pinned history is gone.
//! - Passes by hand run on their caller's thread, also while the others are paused.

use std::collections::HashMap;
use std::convert::Infallible;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use keyenc::Key;
use parking_lot::Mutex;
use postgres_ffi::Lsn;
use tracing::{debug, info, warn};

use super::branching::Changed;
use super::leases::Lease;
use super::sizes::Pin;
use super::{Repository, RepositoryError};
use crate::basebackup::wal_place;
use crate::failpoint::Failpoint;
use crate::store::StoreError;
use crate::timeline::background::Background;
use crate::timeline::gc::{
    GcCounts, GcError, OwnRetention, Pace, Pass, PassProgress, RemovedOfClass, Retention, WalSize,
};
use crate::timeline::metadata::GcDone;
use crate::timeline::{ReadError, TimeError, Timeline, TimelineId, TimelineState};
use crate::wall_time::TimeSpec;

/// How often who waits for a pass hears of it. Always in unit tests.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(if cfg!(test) { 0 } else { 500 });

/// A pass walks at most so many bytes of files for each byte of WAL by which the horizon has moved.
const WALKED_PER_STEP: u64 = 16;

/// What is to be done with one timeline.
struct Plan {
    horizon_lsn: Lsn,
    /// Below the horizon, ascending.
    pins: Vec<Lsn>,
}

/// What a pass did.
#[derive(Clone, Debug)]
pub struct GcReport {
    /// Name of the timeline.
    pub timeline: String,
    /// Below it nothing can be read any more but what is pinned; `None`: there was nothing to give up.
    pub horizon_lsn: Option<Lsn>,
    /// What it removed, or would have.
    pub counts: GcCounts,
    /// How long it took.
    pub duration: Duration,
}

/// How garbage collection stands with one timeline.
#[derive(Clone, Debug)]
pub struct GcStatus {
    /// Name of the timeline.
    pub timeline: String,
    /// What is being done.
    pub state: GcState,
    /// Below it nothing can be read but what is pinned; `None`: nothing was given up yet.
    pub horizon_lsn: Option<Lsn>,
    /// How much is kept.
    pub retention: Retention,
    /// True when that is the timeline's own.
    pub is_own_retention: bool,
    /// LSNs below the horizon that are kept.
    pub pins: u64,
    /// Versions and bytes that passes have removed since the server started.
    pub removed: RemovedOfClass,
    /// Of the pass that is running: the part of the timeline's files behind it, in percent.
    pub progress_percent: Option<u64>,
    /// Of the pass that is running, as it went so far.
    pub seconds_left: Option<u64>,
    /// Why the last pass did not come to its end.
    pub last_error: Option<String>,
}

/// What garbage collection does with a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GcState {
    /// Nothing.
    Idle,
    /// A pass is running.
    Running,
    /// No pass runs but by hand.
    Paused,
}

impl GcState {
    /// One word for tables.
    pub fn name(self) -> &'static str {
        match self {
            GcState::Idle => "idle",
            GcState::Running => "running",
            GcState::Paused => "paused",
        }
    }
}

/// Told now and then while a pass runs: bytes of files behind it, and bytes there are. Breaks: stop.
pub type OnCollected<'a> = dyn FnMut(u64, u64) -> ControlFlow<()> + 'a;

#[derive(Default)]
struct Told {
    running: Option<(Arc<PassProgress>, Instant)>,
    removed: RemovedOfClass,
    last_error: Option<String>,
}

/// What all passes share.
#[derive(Default)]
pub(super) struct Collecting {
    /// Held while a pass runs.
    one_at_a_time: Mutex<()>,
    paused: AtomicBool,
    told: Mutex<HashMap<TimelineId, Told>>,
    thread: Background,
    /// The server shuts down: passes by hand end, too.
    is_stopping: AtomicBool,
}

impl Collecting {
    pub fn new(paused: bool) -> Self {
        Collecting { paused: AtomicBool::new(paused), ..Collecting::default() }
    }

    /// Ends the thread and every pass.
    pub fn stop(&self) {
        self.is_stopping.store(true, Ordering::SeqCst);
        self.thread.stop();
        drop(self.one_at_a_time.lock());
    }
}

impl Repository {
    /// Starts to collect garbage in the background.
    pub fn start_collecting(&self) -> Result<(), RepositoryError> {
        let (me, period) = (self.me.clone(), Duration::from_secs(self.config.gc.period_seconds));
        let thread = &self.collecting.thread;
        thread.start("gc", move |stop| collect(&me, period, &stop)).map_err(RepositoryError::Thread)
    }

    /// Passes do not begin by themselves any more, until [`Repository::resume_collecting`] or the next start; one that runs in the background stops.
    pub fn pause_collecting(&self) {
        self.collecting.paused.store(true, Ordering::SeqCst);
    }

    /// Passes begin by themselves again.
    pub fn resume_collecting(&self) {
        self.collecting.paused.store(false, Ordering::SeqCst);
    }

    /// How much history the timeline keeps.
    pub fn retention_of(&self, timeline: &Timeline) -> Retention {
        let section = &self.config.retention;
        let wal = WalSize::from_bytes(section.wal_mib.saturating_mul(1 << 20));
        Retention { time: section.time, wal }.with(timeline.metadata().retention)
    }

    /// Gives the timeline `name` a retention of its own; what `own` does not name stays. `None`: the server's. Errors: no such timeline; the disk.
    pub fn set_retention(&self, name: &str, own: Option<OwnRetention>) -> Result<Changed, RepositoryError> {
        let _changes = self.changes.lock();
        let timeline = self.timeline_named(name)?;
        let own = own.map(|own| own.or(timeline.metadata().retention));
        self.change_metadata(&timeline, |metadata| metadata.retention = own)?;
        info!(timeline = name, ?own, "retention changed");
        Ok(Changed { timeline, notices: Vec::new() })
    }

    /// Runs a pass over the timeline `name`, whatever has become garbage and whether or not passes are paused; with `dry_run` nothing is written, only counted.
    /// Errors: no such timeline; another pass is running; [`GcError`].
    pub fn collect_garbage(
        &self,
        name: &str,
        dry_run: bool,
        on_progress: &mut OnCollected<'_>,
    ) -> Result<GcReport, RepositoryError> {
        let timeline = self.timeline_named(name)?;
        // Who only looks is in nobody's way.
        let one_at_a_time = if dry_run { None } else { self.collecting.one_at_a_time.try_lock() };
        if one_at_a_time.is_none() && !dry_run {
            return Err(GcError::Busy.into());
        }
        let progress = Arc::new(PassProgress::default());
        let shown = Arc::clone(&progress);
        let mut told = Instant::now();
        let mut on_wait = |wait: Duration| {
            std::thread::sleep(wait);
            if told.elapsed() < PROGRESS_INTERVAL {
                return ControlFlow::Continue(());
            }
            told = Instant::now();
            let key = shown.get().0.unwrap_or(Key::from(keyenc::Object::Watermark));
            let (before, all) = timeline.store.disk_bytes_before(&key);
            on_progress(before, all)
        };
        self.run_pass(&timeline, dry_run, &progress, &mut on_wait)
    }

    /// How garbage collection stands, with one timeline or with all of them, ordered by name.
    pub fn collecting_status(&self, name: Option<&str>) -> Result<Vec<GcStatus>, RepositoryError> {
        let timelines = match name {
            Some(name) => vec![self.timeline_named(name)?],
            None => self.timelines(),
        };
        Ok(timelines.iter().map(|timeline| self.status_of(timeline)).collect())
    }

    fn status_of(&self, timeline: &Timeline) -> GcStatus {
        let metadata = timeline.metadata();
        let told = self.collecting.told.lock();
        let told = told.get(&metadata.timeline_id);
        let running = told.and_then(|told| told.running.clone());
        let mut removed = told.map(|told| told.removed).unwrap_or_default();
        let mut progress = None;
        if let Some((pass, begun)) = &running {
            let (next, counts) = pass.get();
            removed += counts.total();
            let (before, all) = next.map_or((0, 0), |next| timeline.store.disk_bytes_before(&next));
            progress = Some((before, all.max(1), begun.elapsed()));
        }
        let seconds_left = progress.filter(|(before, ..)| *before > 0).map(|(before, all, elapsed)| {
            (elapsed.as_secs_f64() * all.saturating_sub(before) as f64 / before as f64) as u64
        });
        GcStatus {
            timeline: metadata.name.clone(),
            state: match running {
                Some(_) => GcState::Running,
                None if self.collecting.paused.load(Ordering::SeqCst) => GcState::Paused,
                None => GcState::Idle,
            },
            horizon_lsn: metadata.gc.as_ref().map(|gc| gc.horizon_lsn),
            retention: self.retention_of(timeline),
            is_own_retention: metadata.retention.is_some(),
            pins: timeline.horizon.pins().len() as u64,
            removed,
            progress_percent: progress.map(|(before, all, _)| before * 100 / all),
            seconds_left,
            last_error: told.and_then(|told| told.last_error.clone()),
        }
    }

    /// Requires: no other pass is running.
    fn run_pass(
        &self,
        timeline: &Timeline,
        dry_run: bool,
        progress: &Arc<PassProgress>,
        on_wait: &mut dyn FnMut(Duration) -> ControlFlow<()>,
    ) -> Result<GcReport, RepositoryError> {
        let begun = Instant::now();
        let plan = if dry_run { self.plan(timeline)? } else { self.fix_horizon(timeline)? };
        let name = timeline.metadata().name.clone();
        let Some(plan) = plan else {
            let (counts, duration) = (GcCounts::default(), begun.elapsed());
            return Ok(GcReport { timeline: name, horizon_lsn: None, counts, duration });
        };
        let timeline_id = timeline.metadata().timeline_id;
        if !dry_run {
            let mut told = self.collecting.told.lock();
            told.entry(timeline_id).or_default().running = Some((Arc::clone(progress), begun));
        }
        let stopping = &self.collecting.is_stopping;
        let mut on_wait = |wait| if stopping.load(Ordering::SeqCst) { ControlFlow::Break(()) } else { on_wait(wait) };
        let mut pace = Pace::new(self.config.gc.mib_per_second << 20, &mut on_wait);
        let pins = [&plan.pins[..], &[plan.horizon_lsn]].concat();
        let outcome = Pass { timeline, pins: &pins, dry_run, pace: &mut pace, progress }.run();
        let (_, counts) = progress.get();
        if !dry_run {
            let mut told = self.collecting.told.lock();
            let told = told.entry(timeline_id).or_default();
            told.running = None;
            told.removed += counts.total();
            told.last_error = outcome.as_ref().err().map(GcError::to_string);
        }
        outcome?;
        let duration = begun.elapsed();
        if !dry_run {
            self.pass_ended(timeline, &plan)?;
            let removed = counts.total();
            info!(
                timeline = name, horizon_lsn = %plan.horizon_lsn, pins = plan.pins.len(), versions = removed.versions, bytes = removed.bytes,
                images = removed.images, walked_bytes = counts.walked_bytes, written_bytes = counts.written_bytes,
                compacted_bytes = counts.compacted_bytes, ?duration, "garbage collected"
            );
        }
        Ok(GcReport { timeline: name, horizon_lsn: Some(plan.horizon_lsn), counts, duration })
    }

    /// Fixes horizon and pins, durably. `None`: there is nothing to give up.
    fn fix_horizon(&self, timeline: &Timeline) -> Result<Option<Plan>, RepositoryError> {
        let _changes = self.changes.lock();
        timeline.check_here()?;
        let Some(plan) = self.plan(timeline)? else { return Ok(None) };
        if timeline.horizon.lsn() < plan.horizon_lsn {
            self.change_metadata(timeline, |metadata| {
                let before = metadata.gc.take();
                let (swept_lsn, swept_pins) = before.map_or((None, Vec::new()), |gc| (gc.swept_lsn, gc.swept_pins));
                metadata.gc = Some(GcDone { horizon_lsn: plan.horizon_lsn, swept_lsn, swept_pins });
            })?;
            Failpoint::GcHorizonSaved.pass();
        }
        timeline.horizon.set(plan.horizon_lsn, plan.pins.clone());
        Ok(Some(plan))
    }

    fn pass_ended(&self, timeline: &Timeline, plan: &Plan) -> Result<(), RepositoryError> {
        let _changes = self.changes.lock();
        timeline.check_here()?;
        self.change_metadata(timeline, |metadata| {
            if let Some(gc) = &mut metadata.gc {
                gc.swept_lsn = Some(plan.horizon_lsn);
                gc.swept_pins.clone_from(&plan.pins);
            }
        })?;
        Failpoint::GcPassSaved.pass();
        Ok(())
    }

    /// Horizon and pins as they should be now. `None`: nothing of the timeline's own lies below.
    fn plan(&self, timeline: &Timeline) -> Result<Option<Plan>, RepositoryError> {
        timeline.check_here()?;
        let state_is_whole = matches!(timeline.state(), TimelineState::Active | TimelineState::Stopped { .. });
        let Some(watermark) = timeline.store.watermark().filter(|_| state_is_whole && timeline.inherits_all()) else {
            return Ok(None);
        };
        let Some(first_lsn) = timeline.first_own_lsn() else { return Ok(None) };
        let Some(wanted_lsn) = self.wanted_horizon(timeline)? else { return Ok(None) };
        let place = wal_place(&timeline.metadata().cluster);
        let aligned_lsn = place.record_end_at_or_before(wanted_lsn.min(watermark.last_record_lsn));
        let horizon_lsn = aligned_lsn.max(timeline.horizon.lsn());
        if horizon_lsn < first_lsn {
            return Ok(None);
        }
        let mut pins = self.pins_of(timeline);
        pins.retain(|pin_lsn| *pin_lsn < horizon_lsn);
        Ok(Some(Plan { horizon_lsn, pins }))
    }

    fn wanted_horizon(&self, timeline: &Timeline) -> Result<Option<Lsn>, RepositoryError> {
        let retention = self.retention_of(timeline);
        let micros = i64::try_from(retention.time.duration().as_micros()).unwrap_or(i64::MAX);
        let begin = TimeSpec::Ago { micros }.resolve(SystemTime::now());
        let mut failed = None;
        let horizon_lsn = retention.horizon_lsn(timeline.last_record_lsn(), || match timeline.lsn_at_time(begin) {
            Ok(found) => Some(found.lsn),
            Err(TimeError::BeforeFirst { .. } | TimeError::Unknown { .. }) => None,
            Err(TimeError::Read(error)) => {
                failed = Some(error);
                None
            }
        });
        failed.map_or(Ok(horizon_lsn), |error| Err(error.into()))
    }

    /// The LSNs of the timeline that must stay readable whatever its horizon: where branches read through it, and what is leased of it, directly or through
    /// a branch. Ascending. An LSN where no record can end shows what the last one before it does; that one is among them, too.
    fn pins_of(&self, timeline: &Timeline) -> Vec<Lsn> {
        self.pins_without(timeline, None)
    }

    /// As [`Repository::pins_of`], as if `gone` were not there, nor leases on it.
    pub(super) fn pins_without(&self, timeline: &Timeline, gone: Option<&Arc<Timeline>>) -> Vec<Lsn> {
        let place = wal_place(&timeline.metadata().cluster);
        let mut pins: Vec<Lsn> = self.named_pins(timeline, gone).into_iter().map(|pin| pin.lsn).collect();
        let record_ends: Vec<Lsn> = pins.iter().map(|pin_lsn| place.record_end_at_or_before(*pin_lsn)).collect();
        pins.extend(record_ends);
        pins.sort_unstable();
        pins.dedup();
        pins
    }

    /// Who keeps which LSNs of the timeline, in no order: branches that read there, directly or through others, and leases; as if `gone` were not there.
    pub(super) fn named_pins(&self, timeline: &Timeline, gone: Option<&Arc<Timeline>>) -> Vec<Pin> {
        let leases = self.leases.all();
        let mut pins = Vec::new();
        let is_there = |other: &Arc<Timeline>| gone.is_none_or(|gone| !Arc::ptr_eq(gone, other));
        let all: Vec<Arc<Timeline>> = self.timelines.read().values().cloned().collect();
        for other in all.into_iter().filter(is_there) {
            let metadata = other.metadata();
            let reads_up_to = if std::ptr::eq(&*other, timeline) {
                Lsn::MAX
            } else {
                let lineage = other.lineage();
                let through = lineage.ancestors.iter().find(|(ancestor, _)| std::ptr::eq(&**ancestor, timeline));
                let Some((_, branch_lsn)) = through else { continue };
                pins.push(Pin { by: metadata.name.clone(), lsn: *branch_lsn });
                *branch_lsn
            };
            let is_kept = |lease: &&Lease| lease.timeline_id == metadata.timeline_id && lease.lsn < reads_up_to;
            let leased = leases.iter().filter(is_kept);
            pins.extend(leased.map(|lease| Pin { by: format!("lease {}", lease.lease_id), lsn: lease.lsn }));
        }
        pins
    }

    /// What is pinned below horizons that were set before the server was started.
    pub(super) fn restore_pins(&self) {
        // Each looks at all others.
        let has_given_up = |timeline: &Arc<Timeline>| timeline.horizon.lsn() > Lsn::ZERO;
        for timeline in self.timelines().into_iter().filter(has_given_up) {
            let horizon_lsn = timeline.horizon.lsn();
            let mut pins = self.pins_of(&timeline);
            pins.retain(|pin_lsn| *pin_lsn < horizon_lsn);
            timeline.horizon.set(horizon_lsn, pins);
        }
    }

    /// True when a pass would give back something worth it.
    fn is_due(&self, timeline: &Timeline) -> Result<bool, RepositoryError> {
        if timeline.is_damaged() {
            return Ok(false);
        }
        let Some(plan) = self.plan(timeline)? else { return Ok(false) };
        let Some(GcDone { swept_lsn: Some(swept_lsn), swept_pins, .. }) = timeline.metadata().gc.clone() else {
            return Ok(true);
        };
        let (_, file_bytes) = timeline.store.disk_bytes_before(&Key::from(keyenc::Object::Watermark));
        let step = (self.config.gc.horizon_step_mib << 20).max(file_bytes / WALKED_PER_STEP);
        let is_pin_gone = swept_pins.iter().any(|pin_lsn| plan.pins.binary_search(pin_lsn).is_err());
        Ok(is_pin_gone || plan.horizon_lsn.saturating_sub(swept_lsn) >= step)
    }

    /// One round over all timelines. `stop`: the thread is to end.
    fn collect_round(&self, stop: &Receiver<Infallible>) {
        self.collecting.told.lock().retain(|timeline_id, _| self.timeline(*timeline_id).is_ok());
        for timeline in self.timelines() {
            let is_paused = || self.collecting.paused.load(Ordering::SeqCst);
            if is_paused() || self.is_closing.load(Ordering::SeqCst) {
                return;
            }
            let outcome = self.is_due(&timeline).and_then(|is_due| {
                let Some(_one_at_a_time) = self.collecting.one_at_a_time.try_lock().filter(|_| is_due) else {
                    return Ok(());
                };
                let mut on_wait = |wait| match stop.recv_timeout(wait) {
                    Err(RecvTimeoutError::Timeout) if !is_paused() => ControlFlow::Continue(()),
                    _ => ControlFlow::Break(()),
                };
                self.run_pass(&timeline, false, &Arc::default(), &mut on_wait).map(drop)
            });
            let name = &timeline.metadata().name;
            match outcome {
                Ok(()) => {}
                Err(error) if is_end(&error) => debug!(timeline = name, %error, "a pass was stopped"),
                Err(error) => warn!(timeline = name, %error, "garbage was not collected"),
            }
        }
    }
}

impl Timeline {
    /// The lowest LSN at which the timeline's own versions are what is read. `None`: it cannot be read yet.
    fn first_own_lsn(&self) -> Option<Lsn> {
        match self.nearest_ancestor() {
            // At the branch LSN itself all is the ancestor's.
            Some((_, branch_lsn)) => branch_lsn.checked_add(1),
            None => self.metadata().imported.as_ref().map(|imported| imported.first_readable_lsn),
        }
    }
}

/// True for what ends a pass in good order: somebody stopped it, or the timeline or the server goes away.
fn is_end(error: &RepositoryError) -> bool {
    let is_read_end = |error: &ReadError| matches!(error, ReadError::Gone { .. } | ReadError::ShuttingDown);
    match error {
        RepositoryError::Gc(GcError::Read(error)) | RepositoryError::Read(error) => is_read_end(error),
        RepositoryError::Gc(GcError::Stopped) => true,
        RepositoryError::Gc(GcError::Store(error)) => {
            matches!(error, StoreError::TimelineDeleted { .. } | StoreError::ShuttingDown)
        }
        _ => false,
    }
}

/// Body of the thread.
fn collect(repository: &Weak<Repository>, period: Duration, stop: &Receiver<Infallible>) {
    while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(period) {
        let Some(repository) = repository.upgrade() else { return };
        repository.collect_round(stop);
    }
}
