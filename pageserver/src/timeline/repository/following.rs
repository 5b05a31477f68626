//! Timelines follow their primaries: each has a receiver that feeds it.
//!
//! - A branch that nothing was written to gets a watermark at its branch LSN before the first record comes: from then on every flush writes one.
//! - What a primary was told is durable here is ingested before a timeline stops following it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use keyenc::Object;
use postgres_ffi::Lsn;
use postgres_ffi::checkpoint::Checkpoint;
use tracing::{info, warn};

use super::branch_error::BranchError;
use super::branching::Changed;
use super::{Repository, RepositoryError, create_dir};
use crate::failpoint::Failpoint;
use crate::replication::{ConnInfo, ReplicationError, one_line};
use crate::store::Batch;
use crate::timeline::metadata::{Primary, TimelineMetadata};
use crate::timeline::{Timeline, TimelineIngest, TimelineIngestError, TimelineState};
use crate::wal::{WalFileError, WalLog, WalReader};
use crate::wal_receiver::{KeptWal, ReceiverConfig, SinkError, WalReceiver, WalSink};

/// WAL read from our own files at once.
const READ_BYTES: usize = 1 << 20;

/// What becomes of the replication slot at a primary that is followed no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotThen {
    /// It is dropped; as long as the primary does not let us, it is tried again for a week (`slots.json`).
    Dropped,
    /// It is left alone: its primary is gone or goes now, or somebody needs it. It keeps WAL there.
    Kept,
}

impl Repository {
    /// Starts to follow the primary of every timeline that has one and that nobody feeds, those included that could not begin before. Errors: the thread of a branch that waits for its ancestors cannot be started.
    ///
    /// A timeline whose ingest cannot begin is stopped with the reason, for example because what it reads first or its WAL on disk is damaged or lost; the others go on.
    pub fn follow_primaries(&self) -> Result<(), RepositoryError> {
        self.timelines().iter().try_for_each(|timeline| match self.follow_if_nobody_feeds(timeline) {
            Err(error @ RepositoryError::Thread(_)) => Err(error),
            Err(error) => {
                timeline.stop(&error);
                Ok(())
            }
            Ok(()) => Ok(()),
        })
    }

    /// As [`Repository::follow`], of a timeline that somebody may have changed meanwhile: commands are answered from the first moment on.
    pub(super) fn follow_if_nobody_feeds(&self, timeline: &Arc<Timeline>) -> Result<(), RepositoryError> {
        // Else a command that ingests the WAL on disk, or begins to follow, would be at it at the same time.
        let _changes = self.changes.lock();
        if timeline.is_gone() || timeline.receiver.read().is_some() || self.is_being_repaired(timeline) {
            return Ok(());
        }
        if timeline.metadata().primary.is_some() && matches!(timeline.state(), TimelineState::Stopped { .. }) {
            self.change_metadata(timeline, |_| {})?; // It may have stopped since this is not known to be on disk.
            timeline.begin_again();
        }
        self.follow(timeline)
    }

    /// Starts to follow the timeline's primary, if it has one; a branch whose ancestors have to read WAL again first, as soon as they have.
    pub(super) fn follow(&self, timeline: &Arc<Timeline>) -> Result<(), RepositoryError> {
        let metadata = timeline.metadata();
        let Some(primary) = &metadata.primary else { return Ok(()) };
        if timeline.is_damaged() || self.is_closing.load(Ordering::SeqCst) {
            return Ok(());
        }
        if !timeline.inherits_all() {
            return self.follow_later(timeline);
        }
        let conninfo: ConnInfo = primary.conninfo.parse().map_err(ReplicationError::from)?;
        self.begin_own_history(timeline)?;
        let sink = TimelineSink::new(Arc::clone(timeline), self.config.wal.keep_mib << 20)?;
        let config = ReceiverConfig {
            conninfo,
            slot: Some(primary.slot.clone()),
            layout: self.wal_layout(timeline),
            data_checksums: Some(metadata.cluster.data_checksums),
            pg_timeline_id: sink.ingest.pg_timeline_id(),
            status_interval: std::time::Duration::from_secs(self.config.wal.status_interval_seconds),
            receive_timeout: RECEIVE_TIMEOUT,
        };
        let receiver = WalReceiver::start(config, Box::new(sink))?;
        *timeline.receiver.write() = Some(receiver);
        Ok(())
    }

    /// Follows the primary at `conninfo` from now on, whatever the timeline followed before. How that goes shows in the receiver's state: the
    /// primary need not run yet.
    ///
    /// Errors: no such timeline; the connection string is none; the WAL on our disk cannot be used.
    pub fn follow_primary(&self, name: &str, conninfo: &str) -> Result<Changed, RepositoryError> {
        let _: ConnInfo = conninfo.parse().map_err(ReplicationError::from)?;
        let _changes = self.changes.lock();
        let timeline = self.timeline_named(name)?;
        timeline.check_here()?;
        self.check_not_repaired(&timeline)?;
        let slot = format!("pageserver_{}", timeline.metadata().timeline_id);
        let primary = Primary { conninfo: conninfo.to_owned(), slot: slot.clone() };
        let before = timeline.metadata().primary.clone();
        self.change_metadata(&timeline, |metadata| metadata.primary = Some(primary.clone()))?;
        let mut notices = Vec::new();
        let stays_at =
            |server: &str| format!("slot `{slot}` stays at {server}; drop it there when it is not needed any more");
        let elsewhere = self.left_slots.elsewhere(&primary);
        notices.extend(elsewhere.iter().map(|server| {
            format!("slot `{slot}` stays at {server} as long as this timeline follows another; drop it there if that server comes back before")
        }));
        if let Err(error) = self.left_slots.take(&primary).keep() {
            notices.push(format!(
                "slot `{slot}` stays on the list of those that are to go as long as it is needed: {}",
                one_line(&error)
            ));
        }
        Failpoint::FollowSaved.pass();
        timeline.end_receiver();
        timeline.begin_again();
        if let Err(error) = self.follow(&timeline) {
            timeline.stop(&error);
            return Err(error);
        }
        Failpoint::FollowDone.pass();
        if let Some(before) = before.filter(|before| before.conninfo != conninfo) {
            notices.push(stays_at(&before.server()));
        }
        Ok(Changed { timeline, notices })
    }

    /// Follows nobody from now on. Everything that a primary was told is durable here is ingested and durable in the store by then, unless ingest had stopped:
    /// then a notice says where.
    pub fn unfollow_primary(&self, name: &str, slot_then: SlotThen) -> Result<Changed, RepositoryError> {
        let changes = self.changes.lock();
        let timeline = self.timeline_named(name)?;
        let Some(primary) = timeline.metadata().primary.clone() else {
            return Ok(Changed { timeline, notices: vec!["it followed nobody".to_owned()] });
        };
        timeline.check_here()?; // Its slot has what a mended store needs.
        self.check_not_repaired(&timeline)?;
        if !timeline.inherits_all() {
            let (timeline, state) = (timeline.metadata().name.clone(), timeline.state().name());
            return Err(BranchError::NotReadableYet { timeline, state }.into());
        }
        let slot = self.left_slots.take(&primary);
        timeline.end_receiver(); // What it had in hand is on disk.
        if let Err(error) = self.end_following(&timeline, &primary, slot_then) {
            self.follow_again(&timeline);
            return Err(error);
        }
        info!(timeline = %timeline.metadata().name, last_record_lsn = %timeline.last_record_lsn(), "follows nobody any more");
        drop(changes); // Its primary may take its time.
        let mut notices = Vec::new();
        match slot_then {
            SlotThen::Dropped => notices.push(slot.drop_slot()),
            SlotThen::Kept => {
                if let Err(error) = slot.keep() {
                    let (slot, error) = (&primary.slot, one_line(&error));
                    notices.push(format!("slot `{slot}` stays on the list of those that are to go: {error}"));
                }
            }
        }
        if let TimelineState::Stopped { at_lsn, .. } = timeline.state() {
            let directory = self.wal_layout(&timeline).directory;
            notices.push(format!(
                "ingest had stopped at {at_lsn}: what was received behind it stays in {} and cannot be read; TIMELINE FOLLOW tries it again first",
                directory.display()
            ));
        }
        Ok(Changed { timeline, notices })
    }

    fn end_following(
        &self,
        timeline: &Arc<Timeline>,
        primary: &Primary,
        slot_then: SlotThen,
    ) -> Result<(), RepositoryError> {
        let _impatience = timeline.store.impatient(); // All changes wait for this one.
        self.ingest_wal_on_disk(timeline, &mut |_, _| Ok(()))?;
        if timeline.store.watermark().is_some() {
            timeline.store.flush(true)?;
        }
        Failpoint::UnfollowFlushed.pass();
        if slot_then == SlotThen::Dropped {
            self.left_slots.add(primary)?;
        }
        self.change_metadata(timeline, |metadata| metadata.primary = None)?;
        Failpoint::UnfollowSaved.pass();
        Ok(())
    }

    /// After a command that has failed: as before it. A timeline that cannot follow again says so; one that is stopped stays so.
    pub(super) fn follow_again(&self, timeline: &Arc<Timeline>) {
        if matches!(timeline.state(), TimelineState::Stopped { .. }) {
            return;
        }
        if let Err(error) = self.follow(timeline) {
            timeline.stop(&error);
        }
    }

    /// Ingest needs all that the ancestors have: waits for it in a thread of its own, which ends with the server at the latest.
    fn follow_later(&self, timeline: &Arc<Timeline>) -> Result<(), RepositoryError> {
        info!(timeline = %timeline.metadata().name, "follows once its ancestors have read their WAL again");
        let (repository, timeline) = (self.me.clone(), Arc::clone(timeline));
        let wait = move || {
            let arrived = timeline.wait_for_ancestors(Lsn::MAX, || Duration::MAX);
            let (Ok(()), Some(repository)) = (arrived, repository.upgrade()) else { return };
            if let Err(error) = repository.follow_if_nobody_feeds(&timeline) {
                timeline.stop(&error);
            }
        };
        let thread = std::thread::Builder::new().name("follow-later".to_owned()).spawn(wait);
        thread.map(drop).map_err(RepositoryError::Thread)
    }

    /// Before a timeline's first own record: its watermark, and the history of the PostgreSQL timeline that it begins on.
    pub(super) fn begin_own_history(&self, timeline: &Timeline) -> Result<(), RepositoryError> {
        let Some(ancestor) = timeline.metadata().ancestor.clone() else { return Ok(()) };
        if timeline.store.watermark().is_none() {
            timeline.publish_at(ancestor.lsn)?;
            Failpoint::FollowPublished.pass();
        }
        self.write_history_before(timeline, ancestor.lsn)
    }

    /// Writes the history file of the PostgreSQL timeline that the ancestor was on at `branch_lsn`, if there is one and it is not here yet.
    pub(super) fn write_history_before(&self, timeline: &Timeline, branch_lsn: Lsn) -> Result<(), RepositoryError> {
        let history = self.pg_history_at(timeline, branch_lsn)?;
        let layout = self.wal_layout(timeline);
        create_dir(&layout.directory)?;
        if !history.content.is_empty() && layout.history(history.timeline_id)?.is_none() {
            layout.write_history(history.timeline_id, &history.content)?;
        }
        Ok(())
    }

    /// Ingests what is durable in the timeline's WAL files and not in the store, as the receiver would do at its next start. `on_piece` is
    /// told how far it is and how far it goes, and stops it with an error.
    pub(super) fn ingest_wal_on_disk(
        &self,
        timeline: &Arc<Timeline>,
        on_piece: &mut dyn FnMut(Lsn, Lsn) -> Result<(), RepositoryError>,
    ) -> Result<(), RepositoryError> {
        if matches!(timeline.state(), TimelineState::Stopped { .. }) {
            return Ok(()); // It would stop there again; what is behind stays in its files.
        }
        let layout = self.wal_layout(timeline);
        let Some(end_lsn) =
            WalLog::open(layout.clone(), timeline.last_record_lsn())?.and_then(|log| log.flushed_record_end_lsn())
        else {
            return Ok(());
        };
        let mut ingest = TimelineIngest::new(Arc::clone(timeline))?;
        let mut reader = WalReader::new(layout);
        while ingest.fed_until() < end_lsn {
            ingest.feed(reader.read(ingest.fed_until(), end_lsn, READ_BYTES)?)?;
            on_piece(ingest.fed_until(), end_lsn)?;
        }
        Ok(())
    }

    /// Changes what is known of a timeline, on disk first. Requires: `changes` is locked. Errors: then it is as before, on disk too; if that cannot be written either, the timeline is stopped.
    pub(super) fn change_metadata(
        &self,
        timeline: &Timeline,
        change: impl FnOnce(&mut TimelineMetadata),
    ) -> Result<(), RepositoryError> {
        let mut metadata = (*timeline.metadata()).clone();
        change(&mut metadata);
        let dir = self.timeline_dir(metadata.timeline_id);
        if let Err(error) = metadata.save(&dir) {
            // The new file may have taken the old one's place all the same, and the next start would find it.
            let is_there = TimelineMetadata::load(&dir).is_ok_and(|found| found.says_the_same(&metadata));
            if is_there && let Err(error) = timeline.metadata().save(&dir) {
                timeline.end_receiver();
                timeline.stop(&error);
            }
            return Err(error.into());
        }
        *timeline.metadata.write() = Arc::new(metadata);
        Ok(())
    }
}

impl Timeline {
    /// Gives a timeline that has none a watermark at `lsn`, durably. Requires: everything at or below it is in the store.
    pub(super) fn publish_at(&self, lsn: Lsn) -> Result<(), RepositoryError> {
        let _impatience = self.store.impatient(); // All changes may wait for this one.
        self.store.put(&Batch::new(), lsn)?;
        self.store.flush(true)?;
        Ok(())
    }

    /// Where the redo of the last checkpoint before each leased LSN begins: the lowest of all, `Some(None)` without leases. `None`: it cannot be told.
    fn leased_wal_lsn(&self) -> Option<Option<Lsn>> {
        let Some(leases) = &self.leases else { return Some(None) };
        let metadata = self.metadata();
        let mut lowest = None;
        for lease_lsn in leases.lsns_of(metadata.timeline_id) {
            let value = self.object_unchecked(&Object::Checkpoint.into(), lease_lsn).ok()??;
            let checkpoint = Checkpoint::decode(metadata.cluster.pg_version, &value).ok()?;
            let from_lsn = Lsn::new(checkpoint.redo).min(lease_lsn);
            lowest = Some(lowest.map_or(from_lsn, |lowest: Lsn| lowest.min(from_lsn)));
        }
        Some(lowest)
    }

    /// Returns when no receiver feeds this timeline any more. What it is about to put it need not wait for room with: that comes again from WAL, or is not needed.
    pub(super) fn end_receiver(&self) {
        // First, so that it knows why.
        self.receiver.write().iter_mut().for_each(WalReceiver::request_stop);
        self.store.set_waited_for(true);
        let receiver = self.receiver.write().take();
        if let Some(receiver) = receiver {
            receiver.stop();
        }
        self.store.set_waited_for(false);
    }

    /// A stopped timeline tries again from its last record on.
    pub(super) fn begin_again(&self) {
        let mut state = self.state.write();
        if let TimelineState::Stopped { at_lsn, reason } = &*state {
            warn!(timeline = %self.metadata().name, %at_lsn, reason, "ingest begins again where it stopped");
            let is_catching_up = self.is_catching_up.load(std::sync::atomic::Ordering::Relaxed);
            *state = if is_catching_up { TimelineState::CatchingUp } else { TimelineState::Active };
        }
    }
}

/// Silence of the primary after which the connection counts as lost, as PostgreSQL's `wal_receiver_timeout`.
const RECEIVE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);

/// The end of the receiver's way: the timeline's ingest.
struct TimelineSink {
    timeline: Arc<Timeline>,
    ingest: TimelineIngest,
    /// WAL behind the watermark that stays on disk.
    keep_bytes: u64,
}

impl TimelineSink {
    fn new(timeline: Arc<Timeline>, keep_bytes: u64) -> Result<Self, TimelineIngestError> {
        let ingest = TimelineIngest::new(Arc::clone(&timeline))?;
        Ok(TimelineSink { timeline, ingest, keep_bytes })
    }
}

impl WalSink for TimelineSink {
    fn last_record_lsn(&self) -> Lsn {
        self.timeline.last_record_lsn()
    }

    fn restart(&mut self) -> Result<(), SinkError> {
        self.ingest = TimelineIngest::new(Arc::clone(&self.timeline))?;
        Ok(())
    }

    fn ingest(&mut self, start_lsn: Lsn, bytes: Bytes) -> Result<Lsn, SinkError> {
        if start_lsn != self.ingest.fed_until() {
            return Err(WalFileError::NotContiguous { written_lsn: self.ingest.fed_until(), start_lsn }.into());
        }
        let last_record_lsn = self.ingest.feed(bytes)?;
        Failpoint::WalIngested.pass();
        Ok(last_record_lsn)
    }

    /// WAL from the last checkpoint on stays too: a standby that starts from a base backup replays it; and from the last one before what is leased.
    fn kept(&self) -> Option<KeptWal> {
        let durable_lsn = self.timeline.durable_lsn()?;
        let configured_lsn = Lsn::new(durable_lsn.saturating_sub(Lsn::new(self.keep_bytes)));
        let needs = [
            Some(KeptWal { from_lsn: durable_lsn, needed_by: "the store" }),
            Some(KeptWal { from_lsn: configured_lsn, needed_by: "wal.keep_mib" }),
            Some(KeptWal { from_lsn: self.ingest.redo_lsn(), needed_by: "the last checkpoint" }),
            self.timeline.leased_wal_lsn()?.map(|from_lsn| KeptWal { from_lsn, needed_by: "a lease" }),
        ];
        needs.into_iter().flatten().min_by_key(|kept| kept.from_lsn)
    }
}
