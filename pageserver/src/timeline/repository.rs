//! All timelines of one server: opened from their metadata, found by id or name, imported, followed.
//!
//! - A timeline whose import did not finish is taken away when the server starts: nothing half imported can be read.
//! - Opening a timeline reads its metadata and its watermark, and the WAL since that watermark; nothing that grows with the history.

mod base_backup;
mod branch_error;
mod branching;
mod busy;
mod collecting;
mod deleting;
mod detaching;
mod engine;
mod following;
mod importing;
mod leases;
mod left_slots;
mod marks;
mod names;
mod pg_history;
mod repairing;
mod sizes;
mod slots;
mod stopped;
mod tenants;
mod verifying;
mod wal_files;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use keyenc::{Key, Object};
use parking_lot::{Mutex, RwLock};
use postgres_ffi::control_file::{ControlFile, ControlFileError};
use postgres_ffi::{Lsn, PgVersion};
use tracing::{error, info, warn};

use super::backlog::Backlog;
use super::gc::GcError;
use super::lineage::Lineage;
use super::metadata::{MetadataError, TimelineMetadata};
use super::version_cache::{VersionCache, VersionCacheStats};
use super::{ReadError, TenantId, TimeError, Timeline, TimelineId, TimelineIngestError};
use crate::config::Config;
use crate::failpoint::Failpoint;
use crate::import::ImportError;
use crate::redo::{EngineReport, NoEngine, RedoConfig, RedoStats, WalRedo};
use crate::replication::{ReplicationError, one_line};
use crate::store::{Gathered, Store, StoreConfig, StoreError, StoreStats, TimelineStore};
use crate::wal::WalFileError;
use crate::wal_receiver::{ReceiverError, WalReceiver};

pub use branch_error::BranchError;
pub use branching::{BranchPoint, Changed};
pub use collecting::{GcReport, GcState, GcStatus, OnCollected};
pub use detaching::OnDetached;
pub use following::SlotThen;
pub use importing::ImportReport;
pub(super) use leases::Leases;
pub use leases::{LEASE_DEFAULT, LEASE_MAX, Lease, LeaseError};
pub use pg_history::PgHistory;
pub use sizes::{Pin, TimelineSizes};
pub use stopped::{StoppedTimeline, store_of};
pub use tenants::{PG_TIMELINE_ID_FIRST, TenantError};
pub(crate) use verifying::FileCheck;
pub use wal_files::WalFileRequestError;

/// Directory of the timelines within the data directory.
const TIMELINES_DIR: &str = "timelines";

/// What can go wrong with timelines as wholes.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// The store cannot be opened or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A timeline's metadata cannot be used.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// A timeline cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The cluster cannot be imported.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// A file or directory of ours cannot be used.
    #[error("cannot {doing}. path=`{path}`")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The WAL on our disk cannot be used.
    #[error(transparent)]
    Wal(#[from] WalFileError),
    /// There is no such file of WAL.
    #[error(transparent)]
    WalFileRequest(#[from] WalFileRequestError),
    /// The primary's connection string cannot be used.
    #[error(transparent)]
    Replication(#[from] ReplicationError),
    /// A primary does not give what it is asked for.
    #[error(transparent)]
    Receiver(#[from] ReceiverError),
    /// Ingest cannot begin.
    #[error(transparent)]
    Ingest(#[from] TimelineIngestError),
    /// No timeline has this id or name.
    #[error("Not found: no such timeline; `show timelines` lists them. timeline=`{name}`")]
    TimelineMissing {
        /// What was asked for.
        name: String,
    },
    /// The timeline belongs to another tenant.
    #[error("Not found: the timeline belongs to another tenant. tenant=`{tenant}`, timeline=`{timeline}`")]
    OtherTenant {
        /// The tenant asked for.
        tenant: String,
        /// The timeline asked for.
        timeline: String,
    },
    /// No LSN can be told for a time.
    #[error(transparent)]
    Time(#[from] TimeError),
    /// A branch cannot be made or changed.
    #[error(transparent)]
    Branch(#[from] BranchError),
    /// A lease cannot be given or ended.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// A tenant's file cannot be used.
    #[error(transparent)]
    Tenant(#[from] TenantError),
    /// Garbage collection did not come to its end.
    #[error(transparent)]
    Gc(#[from] GcError),
    /// The name is taken.
    #[error("a timeline of this name exists; choose another name. name=`{name}`")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// A timeline's ancestor is not there.
    #[error("the ancestor of a timeline is missing. timeline=`{timeline}`, ancestor=`{ancestor}`")]
    AncestorMissing {
        /// The timeline.
        timeline: TimelineId,
        /// Its ancestor.
        ancestor: TimelineId,
    },
    /// A timeline without a control file: its import was not whole.
    #[error("the store holds no control file of this timeline. timeline=`{timeline}`")]
    ControlFileMissing {
        /// The timeline.
        timeline: TimelineId,
    },
    /// The control file in the store is damaged.
    #[error(transparent)]
    ControlFile(#[from] ControlFileError),
    /// No PostgreSQL of this version is installed where we look.
    #[error(
        "no PostgreSQL of this version was found; install it, or name its directory in redo.postgres_bin_dirs. version=`{version}`"
    )]
    PostgresMissing {
        /// The major version.
        version: PgVersion,
    },
    /// A thread of ours cannot be started.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
    /// The server is shutting down.
    #[error("shutdown")]
    ShuttingDown,
}

/// Everything that one server keeps.
pub struct Repository {
    me: Weak<Repository>,
    /// Nobody begins to follow any more.
    is_closing: AtomicBool,
    timelines_dir: PathBuf,
    tenants_dir: PathBuf,
    redo_failed_dir: PathBuf,
    config: Config,
    store: Arc<Store>,
    cache: Arc<VersionCache>,
    timelines: RwLock<HashMap<TimelineId, Arc<Timeline>>>,
    /// Numbers given out; a number is never given twice, so that no version can be taken for another timeline's.
    timeline_no_max: Mutex<u32>,
    redo: Mutex<HashMap<TenantId, Arc<WalRedo>>>,
    /// `None`: switched off.
    backlog: Option<Backlog>,
    /// Held by whoever makes, changes or deletes a timeline: what one looks at stays as it is for the other.
    changes: Mutex<()>,
    names: names::Names,
    busy: busy::BusyTimelines,
    leases: Arc<Leases>,
    left_slots: left_slots::LeftSlots,
    collecting: collecting::Collecting,
    /// Held while a PostgreSQL timeline id is given out.
    pg_timeline_ids: Mutex<()>,
}

impl Repository {
    /// Opens what `data_dir` holds. Ingest has not begun; see [`Repository::follow_primaries`].
    pub fn open(data_dir: &Path, config: Config) -> Result<Arc<Self>, RepositoryError> {
        let (store_dir, store_config) = store_of(data_dir, &config);
        let store = Store::open(&store_dir, &store_config)?;
        let timelines_dir = data_dir.join(TIMELINES_DIR);
        create_dir(&timelines_dir)?;
        // What an earlier run has renamed and not synced is acted on from here on.
        [data_dir, &timelines_dir].into_iter().try_for_each(sync_dir)?;
        let leases = Leases::load(data_dir)?;
        let left_slots = left_slots::LeftSlots::load(data_dir)?;
        let backlog = match (config.redo.backlog_records_min, config.redo.chain_records_max) {
            (0, 0) => None,
            _ => Some(Backlog::start(store.long_chains()).map_err(RepositoryError::Thread)?),
        };
        let collecting = collecting::Collecting::new(config.gc.paused);
        let repository = Arc::new_cyclic(|me| Repository {
            me: me.clone(),
            is_closing: AtomicBool::new(false),
            redo_failed_dir: data_dir.join("redo_failed"),
            cache: Arc::new(VersionCache::new(config.page_cache_mib << 20)),
            timelines_dir,
            tenants_dir: data_dir.join(tenants::TENANTS_DIR),
            config,
            store,
            timelines: RwLock::default(),
            timeline_no_max: Mutex::new(0),
            redo: Mutex::default(),
            backlog,
            changes: Mutex::default(),
            names: names::Names::default(),
            busy: busy::BusyTimelines::default(),
            leases: Arc::new(leases),
            left_slots,
            collecting,
            pg_timeline_ids: Mutex::default(),
        });
        let metadata = repository.load_metadata()?;
        repository.forget_tenants_but_of(&metadata)?;
        repository.settle_tenants(&metadata)?;
        repository.open_timelines(metadata)?;
        repository.restore_pins();
        Failpoint::OpenDone.pass();
        Ok(repository)
    }

    fn load_metadata(&self) -> Result<Vec<TimelineMetadata>, RepositoryError> {
        let io = |source| RepositoryError::Io { doing: "list the timelines", path: self.timelines_dir.clone(), source };
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.timelines_dir).map_err(io)? {
            let entry = entry.map_err(io)?;
            let dir = entry.path();
            if marks::is_left_over(&entry.file_name()) {
                std::fs::remove_dir_all(&dir).map_err(io)?;
                Failpoint::OpenLeftOverRemoved.pass();
                continue;
            }
            sync_dir(&dir)?;
            if let Some(mark) = marks::to_be_taken_away(&dir) {
                warn!(dir = %dir.display(), mark, "taking away a timeline that a crash has left");
                self.take_away(&dir, mark)?;
                Failpoint::OpenTakenAway.pass();
                continue;
            }
            let metadata = TimelineMetadata::load_settled(&dir)?;
            if dir.join(marks::RESETTING).exists() {
                self.finish_reset(&dir, &metadata)?;
                Failpoint::OpenResetFinished.pass();
            }
            found.push(metadata);
        }
        let highest = found.iter().map(|metadata| metadata.timeline_no).max().unwrap_or(0);
        let mut timeline_no_max = self.timeline_no_max.lock();
        // Also above what a deletion that was cut off has left of a timeline of which nothing else is there.
        *timeline_no_max = highest.max(self.store.highest_number()).max(*timeline_no_max);
        Ok(found)
    }

    /// Opens ancestors before their branches. One that is damaged is there all the same, with its branches: it keeps what it needs, and keeps nobody else from opening.
    fn open_timelines(&self, mut metadata: Vec<TimelineMetadata>) -> Result<(), RepositoryError> {
        while !metadata.is_empty() {
            let count_before = metadata.len();
            let mut later = Vec::new();
            for one in metadata {
                match &one.ancestor {
                    Some(ancestor) if !self.timelines.read().contains_key(&ancestor.timeline_id) => later.push(one),
                    _ => self.open_at_start(one)?,
                }
            }
            if later.len() == count_before {
                let orphan = &later[0];
                let ancestor = orphan.ancestor.as_ref().map_or(orphan.timeline_id, |ancestor| ancestor.timeline_id);
                return Err(RepositoryError::AncestorMissing { timeline: orphan.timeline_id, ancestor });
            }
            metadata = later;
        }
        Ok(())
    }

    fn open_at_start(&self, metadata: TimelineMetadata) -> Result<(), RepositoryError> {
        match self.make_timeline(metadata.clone()) {
            Ok(timeline) => self.show_timeline(&timeline),
            Err(error) if is_damage(&error) => {
                let reason = one_line(&error);
                error!(timeline = %metadata.name, timeline_id = %metadata.timeline_id, reason, "a timeline cannot be opened; the others go on without it");
                self.show_unopened(metadata, error)?;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// A timeline that cannot be opened for `error`, which comes back, is there as damaged until the next start: it keeps what it needs.
    fn show_unopened(
        &self,
        metadata: TimelineMetadata,
        error: RepositoryError,
    ) -> Result<RepositoryError, RepositoryError> {
        let damaged = Arc::new(self.damaged_timeline(metadata, &one_line(&error))?);
        self.timelines.write().insert(damaged.metadata().timeline_id, damaged);
        Ok(error)
    }

    fn damaged_timeline(&self, metadata: TimelineMetadata, reason: &str) -> Result<Timeline, RepositoryError> {
        let ancestors = self.ancestors_of(&metadata)?;
        let no = metadata.timeline_no();
        let store = self.store.timeline(no).unwrap_or_else(|_| self.store.timeline_unread(no, reason));
        let redo = WalRedo::start(&RedoConfig { threads: 1, ..RedoConfig::default() }, Arc::new(NoEngine));
        let timeline = Timeline::new(metadata, store, ancestors, redo, Arc::clone(&self.cache), &self.config);
        Ok(timeline.leased_in(&self.leases).damaged(reason))
    }

    /// Nearest first, each with the LSN up to which its versions are the branch's too.
    fn ancestors_of(&self, metadata: &TimelineMetadata) -> Result<Vec<(Arc<Timeline>, Lsn)>, RepositoryError> {
        let Some(ancestor) = &metadata.ancestor else { return Ok(Vec::new()) };
        Ok(Lineage::ancestors_of_branch(&self.timeline(ancestor.timeline_id)?, ancestor.lsn))
    }

    fn open_timeline(&self, metadata: TimelineMetadata) -> Result<Arc<Timeline>, RepositoryError> {
        let timeline = self.make_timeline(metadata)?;
        self.show_timeline(&timeline);
        Ok(timeline)
    }

    /// A timeline that nobody else knows of yet.
    fn make_timeline(&self, metadata: TimelineMetadata) -> Result<Arc<Timeline>, RepositoryError> {
        let ancestors = self.ancestors_of(&metadata)?;
        ancestors.iter().try_for_each(|(ancestor, _)| ancestor.check_here())?;
        let store = self.store.timeline(metadata.timeline_no())?;
        let control_file = self.control_file(&metadata, &store, &ancestors)?;
        let redo = self.redo_of(&metadata, &control_file);
        let timeline = Timeline::new(metadata, store, ancestors, redo, Arc::clone(&self.cache), &self.config);
        let timeline = timeline.leased_in(&self.leases);
        Ok(Arc::new(match &self.backlog {
            Some(backlog) => timeline.bounded_by(backlog.heavy()),
            None => timeline,
        }))
    }

    fn show_timeline(&self, timeline: &Arc<Timeline>) {
        self.timelines.write().insert(timeline.metadata().timeline_id, Arc::clone(timeline));
        self.bound_chains_of(timeline);
    }

    /// Chains of the timeline that are too long are made short from now on; those that are known to be, at once.
    fn bound_chains_of(&self, timeline: &Arc<Timeline>) {
        if let Some(backlog) = &self.backlog {
            backlog.add_timeline(timeline);
        }
        timeline.bound_all_chains();
    }

    /// The newest control file of the timeline, which the redo engine needs.
    fn control_file(
        &self,
        metadata: &TimelineMetadata,
        store: &TimelineStore,
        ancestors: &[(Arc<Timeline>, Lsn)],
    ) -> Result<ControlFile, RepositoryError> {
        let key = Key::from(Object::ControlFile);
        let mut found = Gathered::default();
        let own = std::iter::once((store, Lsn::MAX));
        let inherited = ancestors.iter().map(|(ancestor, branch_lsn)| (&*ancestor.store, *branch_lsn));
        for (store, lsn) in own.chain(inherited) {
            if store.gather(&key, lsn, &mut found)? {
                break;
            }
        }
        let missing = || RepositoryError::ControlFileMissing { timeline: metadata.timeline_id };
        let (_, _, bytes) = found.versions.first().ok_or_else(missing)?;
        Ok(ControlFile::decode_as(metadata.cluster.pg_version, bytes)?)
    }

    /// The timeline with this id.
    pub fn timeline(&self, timeline_id: TimelineId) -> Result<Arc<Timeline>, RepositoryError> {
        let found = self.timelines.read().get(&timeline_id).cloned();
        found.ok_or_else(|| RepositoryError::TimelineMissing { name: timeline_id.to_string() })
    }

    /// The timeline that `name` names: its name, or its id as 32 hexadecimal digits.
    pub fn timeline_named(&self, name: &str) -> Result<Arc<Timeline>, RepositoryError> {
        if let Ok(timeline_id) = name.parse() {
            return self.timeline(timeline_id);
        }
        let found = self.timelines.read().values().find(|timeline| timeline.metadata().name == name).cloned();
        found.ok_or_else(|| RepositoryError::TimelineMissing { name: name.chars().take(64).collect() })
    }

    /// The timeline named `timeline` of the tenant with the id `tenant`.
    pub fn timeline_of_tenant(&self, tenant: &str, timeline: &str) -> Result<Arc<Timeline>, RepositoryError> {
        let found = self.timeline_named(timeline)?;
        let own_tenant = found.metadata().tenant_id.to_string();
        // Upper case digits name the same id.
        if own_tenant.eq_ignore_ascii_case(tenant) {
            return Ok(found);
        }
        let clip = |text: &str| text.chars().take(64).collect();
        Err(RepositoryError::OtherTenant { tenant: clip(tenant), timeline: clip(timeline) })
    }

    /// All timelines, ordered by name.
    pub fn timelines(&self) -> Vec<Arc<Timeline>> {
        let mut all: Vec<_> = self.timelines.read().values().cloned().collect();
        all.sort_by_key(|timeline| timeline.metadata().name.clone());
        all
    }

    /// Counters of the store.
    pub fn store_stats(&self) -> StoreStats {
        self.store.stats()
    }

    /// Merges all of the store's files, and returns when that is done: for benchmarks that want a store at rest.
    pub fn compact_store(&self) {
        self.store.compact_all();
    }

    /// What redo has done for each cluster that a page was made of: walredo's counters and the engine's.
    pub fn redo_stats(&self) -> Vec<(TenantId, RedoStats, EngineReport)> {
        let mut all: Vec<_> =
            self.redo.lock().iter().map(|(tenant_id, redo)| (*tenant_id, redo.stats(), redo.engine_report())).collect();
        all.sort_by_key(|(tenant_id, ..)| *tenant_id);
        all
    }

    /// The bound on chains, in records. 0: there is none.
    pub fn chain_records_max(&self) -> u32 {
        self.config.redo.chain_records_max
    }

    /// Counters of the version cache.
    pub fn cache_stats(&self) -> VersionCacheStats {
        self.cache.stats()
    }

    fn timeline_dir(&self, timeline_id: TimelineId) -> PathBuf {
        self.timelines_dir.join(timeline_id.to_string())
    }

    /// Ends the backlog and the receivers, wakes who waits, and writes out what is in memory.
    pub fn shutdown(&self) -> Result<(), RepositoryError> {
        // First: where nobody makes room, whoever holds `changes` may wait for it.
        self.store.begin_closing();
        {
            let _changes = self.changes.lock();
            self.is_closing.store(true, Ordering::SeqCst);
        }
        self.collecting.stop();
        self.left_slots.stop();
        if let Some(backlog) = &self.backlog {
            backlog.stop();
        }
        for timeline in self.timelines() {
            timeline.last_record.shutdown();
        }
        let mut receivers: Vec<_> =
            self.timelines().iter().filter_map(|timeline| timeline.receiver.write().take()).collect();
        receivers.iter_mut().for_each(WalReceiver::request_stop);
        receivers.into_iter().for_each(WalReceiver::stop);
        for timeline in self.timelines() {
            if timeline.is_damaged() {
                continue;
            }
            let flushed = timeline.store.watermark().map_or(Ok(()), |_| timeline.store.flush(true));
            if matches!(flushed, Err(StoreError::ShuttingDown)) {
                warn!(timeline = %timeline.metadata().name, "compaction is paused and level 0 is full: what is in memory is not written out, and comes again from WAL");
                continue;
            }
            flushed?;
            info!(timeline = %timeline.metadata().name, durable_lsn = ?timeline.durable_lsn(), "flushed");
        }
        Ok(())
    }
}

/// True for what is wrong with one timeline alone: something that it is opened with cannot be read, its ancestor's included.
fn is_damage(error: &RepositoryError) -> bool {
    match error {
        RepositoryError::Store(error) => {
            matches!(error, StoreError::Corrupt { .. } | StoreError::Read { .. } | StoreError::Lost { .. })
        }
        RepositoryError::ControlFileMissing { .. } => true,
        // One of another version is whole, and not ours to serve.
        RepositoryError::ControlFile(error) => matches!(
            error,
            ControlFileError::TooShort { .. }
                | ControlFileError::WrongCrc { .. }
                | ControlFileError::InvalidField { .. }
        ),
        RepositoryError::Read(ReadError::Unopened { .. }) => true,
        _ => false,
    }
}

fn store_config(config: &Config) -> StoreConfig {
    let bytes = |mib: u64| usize::try_from(mib << 20).unwrap_or(usize::MAX);
    StoreConfig {
        layer_bytes: bytes(config.store.layer_mib),
        block_cache_bytes: bytes(config.store.block_cache_mib),
        flush_interval: std::time::Duration::from_secs(config.store.flush_interval_seconds),
        long_chain_deltas_min: config.redo.backlog_records_min,
        chain_weight_max: config.redo.chain_records_max,
        compaction_bytes_per_second: config.store.background_mib_per_second << 20,
        compaction: config.store.compaction,
        compression: config.store.compression,
        bottommost_compression: config.store.bottommost_compression,
        dictionary_bytes: config.store.dictionary_kib.saturating_mul(1 << 10),
        block_bytes: (config.store.block_kib as usize) << 10,
        blob_bytes_min: config.store.blob_bytes_min,
        ..StoreConfig::default()
    }
}

fn create_dir(path: &Path) -> Result<(), RepositoryError> {
    std::fs::create_dir_all(path).map_err(|source| RepositoryError::Io {
        doing: "create a directory",
        path: path.to_owned(),
        source,
    })
}

fn sync_dir(path: &Path) -> Result<(), RepositoryError> {
    let synced = std::fs::File::open(path).and_then(|dir| dir.sync_all());
    synced.map_err(|source| RepositoryError::Io { doing: "sync a directory", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests;
