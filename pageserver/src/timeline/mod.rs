//! Reads as of an LSN, through ancestors; the repository of all timelines.
//!
//! - Never a version above the request LSN, never a page whose records could not all be applied.
//! - No lock is held while waiting for redo, for WAL or for a socket.
//! - A page beyond the end of its fork reads as zeroes, as the pagestream protocol wants it; a fork that does not exist is an error.
//!
//! In reading order: [`id`], [`metadata`], [`version_cache`], WAL coming in (`wal_ingest`, `backup_proof`), the reads ([`pages`], [`objects`], [`sizes`], [`commit_times`]), pages made before
//! anybody reads them ([`backlog`], [`chain_bound`]), what nobody needs any more ([`gc`]), [`repository`].

pub mod id;
pub mod metadata;
pub mod version_cache;

mod background;
mod backlog;
mod backup_proof;
mod chain_bound;
mod commit_times;
pub mod gc;
mod lineage;
mod objects;
mod pages;
mod read_error;
mod repository;
mod sizes;
mod wal_ingest;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use keyenc::TimelineNo;
use parking_lot::RwLock;
use postgres_ffi::Lsn;

pub use commit_times::{LsnAtTime, TimeError};
pub use id::{TenantId, TimelineId};
pub use metadata::{Primary, TimelineMetadata};
pub use objects::DatabaseTag;
pub use read_error::ReadError;
pub(crate) use repository::FileCheck;
pub use repository::{
    BranchError, BranchPoint, Changed, GcReport, GcState, GcStatus, ImportReport, LEASE_DEFAULT, LEASE_MAX, Lease,
    LeaseError, OnCollected, OnDetached, PG_TIMELINE_ID_FIRST, PgHistory, Pin, Repository, RepositoryError, SlotThen,
    StoppedTimeline, TenantError, TimelineSizes, WalFileRequestError, store_of,
};
pub use sizes::{DatabaseSize, LogicalSize};
pub use wal_ingest::{TimelineIngest, TimelineIngestError};

use crate::config::Config;
use crate::redo::WalRedo;
use crate::seq_wait::SeqWait;
use crate::store::TimelineStore;
use crate::wal_receiver::{ReceiverState, ReceiverStatus, WalReceiver};
use chain_bound::HeavyQueue;
use gc::Horizon;
use lineage::Lineage;
use repository::Leases;
use version_cache::VersionCache;

/// What a timeline is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TimelineState {
    /// Its base backup is coming in; nothing can be read.
    Importing,
    /// The backup is in, WAL up to its end is still to come; nothing can be read before that.
    CatchingUp,
    /// Reads and ingest go on.
    Active,
    /// Ingest ended at an error. What was ingested can be read; nothing was skipped.
    Stopped {
        /// End of the last record that was ingested.
        at_lsn: Lsn,
        /// What happened.
        reason: String,
    },
    /// It could not be opened: nothing of it can be read, nothing comes in. It keeps its name, its slot, and what it needs of its ancestors.
    Damaged {
        /// What could not be read.
        reason: String,
    },
}

impl TimelineState {
    /// One word for tables.
    pub fn name(&self) -> &'static str {
        match self {
            TimelineState::Importing => "importing",
            TimelineState::CatchingUp => "catching up",
            TimelineState::Active => "active",
            TimelineState::Stopped { .. } => "stopped",
            TimelineState::Damaged { .. } => "damaged",
        }
    }
}

/// One line of a cluster's history.
pub struct Timeline {
    metadata: RwLock<Arc<TimelineMetadata>>,
    no: TimelineNo,
    store: Arc<TimelineStore>,
    /// Where versions that are not its own stand.
    lineage: RwLock<Arc<Lineage>>,
    /// Counts the lineages that it had.
    lineage_no: AtomicU64,
    /// Who needs which LSN of it; `None` for a timeline of no repository.
    leases: Option<Arc<Leases>>,
    /// What was given up of its own history.
    horizon: Horizon,
    /// True once every ancestor has come to where this timeline left it, as far as is known. After a crash it may take WAL to come there again.
    inherits_all: AtomicBool,
    /// It was deleted, or reset: what it reads from now on may lack versions.
    gone: AtomicBool,
    /// Why it could not be opened. `None`, nearly always: it could.
    damage: Option<Arc<str>>,
    redo: Arc<WalRedo>,
    cache: Arc<VersionCache>,
    last_record: SeqWait<Lsn>,
    state: RwLock<TimelineState>,
    data_checksums: bool,
    /// True until WAL has come up to the first readable LSN. Beside `state`, since it is asked for each batch.
    is_catching_up: AtomicBool,
    wal_bytes_ingested: AtomicU64,
    /// Feeds this timeline from its primary, while one runs.
    receiver: RwLock<Option<WalReceiver>>,
    wait_lsn_timeout: Duration,
    cache_back_records_min: usize,
    backlog_records_min: usize,
    /// Who makes chains short that have become too long; `None`: nobody.
    heavy: Option<Arc<HeavyQueue>>,
    chain_weight_max: u32,
    /// The log was told of a chain that stays too long.
    told_of_failed_chain: AtomicBool,
}

impl Timeline {
    fn new(
        metadata: TimelineMetadata,
        store: Arc<TimelineStore>,
        ancestors: Vec<(Arc<Timeline>, Lsn)>,
        redo: Arc<WalRedo>,
        cache: Arc<VersionCache>,
        config: &Config,
    ) -> Self {
        let branch_lsn = metadata.ancestor.as_ref().map(|ancestor| ancestor.lsn);
        if branch_lsn.is_some() && store.watermark().is_none() {
            store.forget_weights(); // Chains go on in the ancestor.
        }
        let start_lsn =
            store.watermark().map(|watermark| watermark.last_record_lsn).or(branch_lsn).unwrap_or(Lsn::ZERO);
        let first_readable_lsn = metadata.imported.as_ref().map(|imported| imported.first_readable_lsn);
        let lineage = Lineage::new(&metadata, ancestors);
        let gc_lsn = metadata.gc.as_ref().map(|gc| gc.horizon_lsn);
        let is_catching_up = first_readable_lsn.is_some_and(|first_readable_lsn| start_lsn < first_readable_lsn);
        let state = if is_catching_up { TimelineState::CatchingUp } else { TimelineState::Active };
        Timeline {
            no: metadata.timeline_no(),
            data_checksums: metadata.cluster.data_checksums,
            metadata: RwLock::new(Arc::new(metadata)),
            store,
            lineage: RwLock::new(Arc::new(lineage)),
            lineage_no: AtomicU64::new(0),
            leases: None,
            horizon: Horizon::new(gc_lsn, Vec::new()),
            inherits_all: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            damage: None,
            redo,
            cache,
            last_record: SeqWait::new(start_lsn),
            state: RwLock::new(state),
            is_catching_up: AtomicBool::new(is_catching_up),
            wal_bytes_ingested: AtomicU64::new(0),
            receiver: RwLock::default(),
            wait_lsn_timeout: config.wait_lsn_timeout(),
            cache_back_records_min: config.redo.cache_back_records_min,
            backlog_records_min: config.redo.backlog_records_min as usize,
            heavy: None,
            chain_weight_max: config.redo.chain_records_max,
            told_of_failed_chain: AtomicBool::new(false),
        }
    }

    fn bounded_by(mut self, heavy: &Arc<HeavyQueue>) -> Self {
        if self.chain_weight_max > 0 {
            self.heavy = Some(Arc::clone(heavy));
        }
        self
    }

    /// One that could not be opened.
    fn damaged(mut self, reason: &str) -> Self {
        self.damage = Some(reason.into());
        self
    }

    fn leased_in(mut self, leases: &Arc<Leases>) -> Self {
        self.leases = Some(Arc::clone(leases));
        self
    }

    /// True when a lease keeps exactly `lsn`.
    pub fn is_leased(&self, lsn: Lsn) -> bool {
        self.leases.as_ref().is_some_and(|leases| leases.covers(self.metadata().timeline_id, lsn))
    }

    /// Id, name, cluster, where it comes from.
    pub fn metadata(&self) -> Arc<TimelineMetadata> {
        self.metadata.read().clone()
    }

    /// What it is doing. A receiver that cannot go on (our disk is full, a WAL file is damaged) has stopped it, too; so has a store that takes no more writes
    /// or cannot be read, whether or not anything comes in.
    pub fn state(&self) -> TimelineState {
        if let Some(reason) = &self.damage {
            return TimelineState::Damaged { reason: reason.to_string() };
        }
        let state = self.state.read().clone();
        if matches!(state, TimelineState::Active | TimelineState::CatchingUp)
            && let Some(reason) = self.store.trouble()
        {
            // Nothing goes on, even where nobody has tried yet.
            return TimelineState::Stopped { at_lsn: self.last_record_lsn(), reason };
        }
        if state == TimelineState::Active && !self.inherits_all() {
            return TimelineState::CatchingUp;
        }
        match (state, self.receiver_status().map(|status| status.state)) {
            (TimelineState::Active | TimelineState::CatchingUp, Some(ReceiverState::Failed { reason })) => {
                TimelineState::Stopped { at_lsn: self.last_record_lsn(), reason }
            }
            (state, _) => state,
        }
    }

    /// End of the last record that can be read.
    pub fn last_record_lsn(&self) -> Lsn {
        let own_lsn = self.last_record.current();
        if self.inherits_all() { own_lsn } else { self.inherited_lsn().min(own_lsn) }
    }

    /// Versions up to here are durable in the store, those of ancestors included; ingest goes on from here after a crash.
    pub fn durable_lsn(&self) -> Option<Lsn> {
        let branch_lsn = || self.metadata().ancestor.as_ref().map(|ancestor| ancestor.lsn);
        let own_lsn = self.store.watermark().map(|watermark| watermark.last_record_lsn).or_else(branch_lsn)?;
        Some(self.inherited_durable_lsn().map_or(own_lsn, |inherited_lsn| inherited_lsn.min(own_lsn)))
    }

    /// Its number in the store's keys.
    pub(crate) fn timeline_no(&self) -> TimelineNo {
        self.no
    }

    /// Its own watermark: versions of its own up to here are durable in the store.
    pub(crate) fn own_durable_lsn(&self) -> Option<Lsn> {
        self.store.watermark().map(|watermark| watermark.last_record_lsn)
    }

    /// End of the last record of its own, whatever its ancestors have.
    pub(crate) fn own_last_record_lsn(&self) -> Lsn {
        self.last_record.current()
    }

    /// The lowest LSN from which on all can be read; below it single ones may, see [`Timeline::is_pinned`]. `None` while the import is under way.
    pub fn first_readable_lsn(&self) -> Option<Lsn> {
        let horizon_lsn = self.horizon.lsn();
        Some(self.first_readable_lsn_before_gc()?.max(horizon_lsn))
    }

    /// As far as it is up to the import and the ancestors.
    fn first_readable_lsn_before_gc(&self) -> Option<Lsn> {
        if let Some(imported) = &self.metadata().imported {
            return Some(imported.first_readable_lsn);
        }
        let (ancestor, branch_lsn) = self.nearest_ancestor()?;
        // What the ancestor has given up in between, the branch has not got either; where it leaves the ancestor it always can be read.
        Some(ancestor.first_readable_lsn()?.min(branch_lsn))
    }

    /// Waits until `request_lsn` has been ingested; the last record's LSN by then.
    /// Errors: [`ReadError::WaitTimeout`] after the configured time, [`ReadError::ShuttingDown`]; the timeline could not be opened.
    pub fn wait_lsn(&self, request_lsn: Lsn) -> Result<Lsn, ReadError> {
        self.wait_lsn_for(request_lsn, self.wait_lsn_timeout)
    }

    /// As [`Timeline::wait_lsn`], with a time of the caller's.
    pub fn wait_lsn_for(&self, request_lsn: Lsn, timeout: Duration) -> Result<Lsn, ReadError> {
        self.check_here()?;
        let deadline = Instant::now().checked_add(timeout);
        let left = || deadline.map_or(timeout, |deadline| deadline.saturating_duration_since(Instant::now()));
        let inherited = self.wait_for_ancestors(request_lsn, left);
        let arrived = inherited.and_then(|()| self.last_record.wait_for(request_lsn, left()));
        arrived.map(|_| self.last_record_lsn()).map_err(|error| {
            if let Err(gone) = self.check_here() {
                return gone;
            }
            let state = match self.state() {
                TimelineState::Active => {
                    let last_error = self.receiver_status().and_then(|status| status.last_error);
                    last_error.map(|error| format!("; the primary's WAL does not come: {error}")).unwrap_or_default()
                }
                TimelineState::Stopped { at_lsn, reason } => format!("; ingest stopped at {at_lsn}: {reason}"),
                other => format!("; the timeline is {}", other.name()),
            };
            ReadError::from_wait(error, request_lsn, state)
        })
    }

    /// Refuses LSNs that this timeline cannot show (yet).
    pub(crate) fn check_readable(&self, request_lsn: Lsn) -> Result<(), ReadError> {
        self.check_here()?;
        let last_record_lsn = self.last_record_lsn();
        if request_lsn > last_record_lsn {
            return Err(ReadError::NotYet { request_lsn, last_record_lsn });
        }
        self.check_in_history(request_lsn)
    }

    /// How the receiver is doing; `None` while none runs.
    pub fn receiver_status(&self) -> Option<ReceiverStatus> {
        self.receiver.read().as_ref().map(WalReceiver::status)
    }

    /// Where the WAL on disk ends as far as is known: what was ingested, or more that a receiver has.
    pub(crate) fn wal_end_lsn(&self) -> Lsn {
        let received_lsn = self.receiver_status().and_then(|status| status.flushed_lsn);
        received_lsn.unwrap_or(Lsn::ZERO).max(self.last_record_lsn())
    }
}
