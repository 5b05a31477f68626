//! What all handles of one timeline share.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use keyenc::TimelineNo;
use parking_lot::Mutex;
use postgres_ffi::Lsn;

use super::cache_back::CacheBack;
use super::carried::Carried;
use super::inner::JobNo;
use super::layer_map::LayerMap;
use super::{LostStretch, LostStretches, StoreError, Watermark};

/// One timeline in the store.
pub(super) struct TimelineState {
    pub timeline: TimelineNo,
    pub layers: LayerMap,
    /// Held for a whole `put` and while a layer is frozen, so that a layer never ends within a batch. Whoever holds it waits for nothing.
    pub writer: Mutex<WriterState>,
    pub watermark: Mutex<Option<Watermark>>,
    pub cache_back: Mutex<CacheBack>,
    /// What chains weigh below the layers. Locked last of all, and for a moment.
    pub carried: Mutex<Carried>,
    /// What was taken out of it because it could not be read.
    pub lost: LostStretches,
    deleted: AtomicBool,
    /// Somebody waits for whoever puts to end.
    waited_for: AtomicBool,
    /// How many would rather have `NoRoom` than wait until somebody makes room.
    impatient: AtomicUsize,
    /// What could not be read of it, the first time.
    damage: OnceLock<String>,
}

/// How far a timeline was put.
pub(super) struct WriterState {
    /// End of the last record that was put.
    pub last_record_lsn: Lsn,
    /// True once a watermark may be written.
    pub publishing: bool,
    /// True when the last layer that was frozen writes its watermark.
    pub is_published: bool,
    /// The last layer that was frozen. 0: none since the store was opened.
    pub last_job_no: JobNo,
    /// When the open layer got its first version, or the LSN moved without one. None: nothing new since the last freeze.
    pub changed_at: Option<Instant>,
}

impl TimelineState {
    /// `carried`: what its chains weigh in RocksDB.
    pub fn new(timeline: TimelineNo, watermark: Option<Watermark>, carried: Carried, lost: LostStretches) -> Self {
        let writer = WriterState {
            last_record_lsn: watermark.map_or(Lsn::ZERO, |watermark| watermark.last_record_lsn),
            publishing: watermark.is_some(),
            is_published: watermark.is_some(),
            last_job_no: 0,
            changed_at: None,
        };
        TimelineState {
            timeline,
            layers: LayerMap::new(watermark.map_or(Lsn::ZERO, |watermark| watermark.last_record_lsn)),
            writer: Mutex::new(writer),
            watermark: Mutex::new(watermark),
            cache_back: Mutex::default(),
            carried: Mutex::new(carried),
            lost,
            deleted: AtomicBool::new(false),
            waited_for: AtomicBool::new(false),
            impatient: AtomicUsize::new(0),
            damage: OnceLock::new(),
        }
    }

    /// One of which not even the watermark can be read: all of it is lost, as far as anybody knows.
    pub fn unread(timeline: TimelineNo, cause: &str) -> Self {
        let all = LostStretch { after: None, before: None, through_lsn: Lsn::MAX };
        let state = TimelineState::new(timeline, None, Carried::default(), LostStretches::new(vec![all]));
        TimelineState { damage: OnceLock::from(cause.to_owned()), ..state }
    }

    pub fn set_waited_for(&self, waited_for: bool) {
        self.waited_for.store(waited_for, Ordering::SeqCst);
    }

    pub fn is_waited_for(&self) -> bool {
        self.waited_for.load(Ordering::SeqCst)
    }

    pub fn is_impatient(&self) -> bool {
        self.impatient.load(Ordering::SeqCst) > 0
    }

    /// Refuses every later write to this timeline. Err: it was marked before.
    pub fn mark_deleted(&self) -> Result<(), StoreError> {
        // Under the writer lock: a put that is under way ends first.
        let _writer = self.writer.lock();
        self.check_not_deleted()?;
        self.deleted.store(true, Ordering::Release);
        Ok(())
    }

    /// Remembers the first failure to read this timeline, and tells the log of it; every later put is refused. What it gives is what it was given.
    pub fn note<T, E>(&self, outcome: Result<T, E>, store_error: impl Fn(&E) -> Option<&StoreError>) -> Result<T, E> {
        if let Err(error) = &outcome
            && let Some(error @ (StoreError::Corrupt { .. } | StoreError::Read { .. })) = store_error(error)
            && self.damage.set(error.to_string()).is_ok()
        {
            tracing::error!(timeline_no = self.timeline.0, %error, "the store cannot be read, the timeline takes no more versions");
        }
        outcome
    }

    /// What could not be read of it, the first time.
    pub fn damage(&self) -> Option<&str> {
        self.damage.get().map(String::as_str)
    }

    /// Errors: [`StoreError::Damaged`].
    pub fn check_not_damaged(&self) -> Result<(), StoreError> {
        self.damage().map_or(Ok(()), |cause| Err(StoreError::Damaged { cause: cause.to_owned() }))
    }

    pub fn is_deleted(&self) -> bool {
        self.deleted.load(Ordering::Acquire)
    }

    pub fn check_not_deleted(&self) -> Result<(), StoreError> {
        if self.is_deleted() { Err(StoreError::TimelineDeleted { timeline: self.timeline }) } else { Ok(()) }
    }
}

/// While it lives, who puts or flushes versions of the timeline has [`StoreError::NoRoom`] where it would wait until somebody makes room.
pub struct Impatience(Arc<TimelineState>);

impl Impatience {
    pub(super) fn with(state: &Arc<TimelineState>) -> Self {
        state.impatient.fetch_add(1, Ordering::SeqCst);
        Impatience(Arc::clone(state))
    }
}

impl Drop for Impatience {
    fn drop(&mut self) {
        self.0.impatient.fetch_sub(1, Ordering::SeqCst);
    }
}
