//! The bound on chains: a page whose chain has become too long is made at once, whether or not anybody reads it, and put where the chain ends.
//!
//! - Ingest tells of such pages and goes on. Where a chain comes to twice the bound it makes the page itself, or waits until it is made: an overload shows as lag, not
//!   as long chains. Who makes them else is the thread of the [`super::backlog`], for records that are not plain computation the walredo threads.
//! - A chain counts with all that lies below it: in RocksDB, in ancestors. What is not known counts as the bound (on a branch; where the watermark does not tell), so that the page is looked
//!   at when it is changed for the first time.
//! - **Never:** ingest waits for a page that cannot be made. Its chain stays; that is counted, and told once.
//! - Nothing is made while a timeline catches up with its base backup: its pages are not of one moment yet, and nobody reads them. All that is too long by the end
//!   of that is made then.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};
use keyenc::{Key, TimelineNo};
use parking_lot::{Condvar, Mutex};
use postgres_ffi::Lsn;
use tracing::{debug, warn};

use super::{ReadError, Timeline};
use crate::redo::{BoundOutcome, Chain, RedoError};
use crate::store::{HeavyChain, Settled, TimelineStore};

/// Chains that may wait, over all timelines. Who finds no room is told of again.
const WAITING_MAX: usize = 100_000;
/// A wake-up lost by mistake costs this much, not for ever.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// Chains that are too long, on their way from ingest to who makes them short.
pub(super) struct HeavyQueue {
    state: Mutex<State>,
    dealt_with: Condvar,
    wake: (Sender<()>, Receiver<()>),
}

#[derive(Default)]
struct State {
    /// Each waits in one of the two queues, or in both, or is in hand.
    chains: HashMap<(TimelineNo, Key), Place>,
    /// Ingest waits for these.
    urgent: VecDeque<(TimelineNo, Key)>,
    others: VecDeque<(TimelineNo, Key)>,
    stopped: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Waiting,
    InHand,
}

/// A chain that is in somebody's hands. Dropped: it is dealt with, in whatever way.
pub(super) struct InHand {
    queue: Arc<HeavyQueue>,
    timeline: TimelineNo,
    pub key: Key,
    /// It waits again: whoever takes it next deals with it.
    is_put_back: bool,
}

impl HeavyQueue {
    pub fn new() -> Arc<Self> {
        Arc::new(HeavyQueue { state: Mutex::default(), dealt_with: Condvar::new(), wake: bounded(1) })
    }

    /// A message comes when there may be something to take.
    pub fn woken(&self) -> &Receiver<()> {
        &self.wake.1
    }

    /// Leaves chains to whoever takes them.
    pub fn tell(&self, timeline: TimelineNo, chains: &[HeavyChain]) {
        let mut state = self.state.lock();
        for chain in chains {
            if state.stopped || state.chains.len() >= WAITING_MAX {
                break;
            }
            let at = (timeline, chain.key);
            if state.chains.insert_if_absent(at) {
                state.others.push_back(at);
            }
        }
        drop(state);
        self.wake();
    }

    /// Returns when the chain is dealt with, or when nobody will do that any more.
    pub fn wait_for(&self, timeline: TimelineNo, key: Key) {
        let at = (timeline, key);
        let mut state = self.state.lock();
        state.chains.insert_if_absent(at);
        state.urgent.push_back(at);
        self.wake();
        while !state.stopped && state.chains.contains_key(&at) {
            self.dealt_with.wait_for(&mut state, WAIT_MAX);
        }
    }

    /// The next chain; those that ingest waits for first.
    pub fn take(self: &Arc<Self>) -> Option<(TimelineNo, InHand)> {
        let mut state = self.state.lock();
        loop {
            let at = state.urgent.pop_front().or_else(|| state.others.pop_front())?;
            if let Some(place @ Place::Waiting) = state.chains.get_mut(&at) {
                *place = Place::InHand;
                let (timeline, key) = at;
                return Some((timeline, InHand { queue: Arc::clone(self), timeline, key, is_put_back: false }));
            }
        }
    }

    /// Nothing is taken from now on; nobody waits any more.
    pub fn stop(&self) {
        self.state.lock().stopped = true;
        self.dealt_with.notify_all();
    }

    fn wake(&self) {
        let _ = self.wake.0.try_send(()); // Full: a message is there already.
    }
}

trait InsertIfAbsent {
    /// True when it was not there.
    fn insert_if_absent(&mut self, at: (TimelineNo, Key)) -> bool;
}

impl InsertIfAbsent for HashMap<(TimelineNo, Key), Place> {
    fn insert_if_absent(&mut self, at: (TimelineNo, Key)) -> bool {
        let count_before = self.len();
        self.entry(at).or_insert(Place::Waiting);
        self.len() > count_before
    }
}

impl InHand {
    /// It waits again, behind the others.
    pub fn put_back(mut self) {
        let at = (self.timeline, self.key);
        let mut state = self.queue.state.lock();
        if !state.stopped {
            // A second place in the queue does no harm.
            state.chains.insert(at, Place::Waiting);
            state.others.push_back(at);
            self.is_put_back = true;
        }
        drop(state);
        self.queue.wake();
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        if self.is_put_back {
            return;
        }
        let mut state = self.queue.state.lock();
        let at = (self.timeline, self.key);
        if state.chains.get(&at) == Some(&Place::InHand) {
            state.chains.remove(&at);
            self.queue.dealt_with.notify_all();
        }
    }
}

/// What a chain that was told of turned out to be.
pub(super) enum Found {
    /// Redo has to make its page, as of the last record at this LSN.
    Long(Lsn, Chain),
    /// Nothing is to be done any more.
    Settled,
    /// Nothing can be done before more WAL has come.
    NotNow,
}

impl Timeline {
    /// To be called by ingest when what it put can be read: leaves chains that are too long to who makes them short, and waits where they are much too long.
    pub(super) fn bound_chains(&self, chains: &[HeavyChain]) {
        let Some(queue) = &self.heavy else { return };
        if chains.is_empty() || self.is_catching_up.load(Ordering::Relaxed) {
            return;
        }
        queue.tell(self.no, chains);
        let mut too_long: Vec<Key> = chains
            .iter()
            .filter(|chain| chain.weight >= self.chain_weight_max.saturating_mul(2))
            .map(|chain| chain.key)
            .collect();
        if too_long.is_empty() {
            return;
        }
        too_long.sort_unstable();
        too_long.dedup();
        let waiting_since = Instant::now();
        for key in too_long {
            // Whoever has it in hand may be waiting for the processor: made twice it does no harm.
            if !self.make_heavy_here(&key) {
                queue.wait_for(self.no, key);
            }
        }
        self.redo.count_ingest_wait(waiting_since.elapsed());
    }

    /// Makes the page if that is plain computation. False: it is not.
    fn make_heavy_here(&self, key: &Key) -> bool {
        let Found::Long(request_lsn, chain) = self.look_at_heavy(key) else { return true };
        let version_lsn = chain.version_lsn;
        let Ok(made) = self.redo.make_if_computed(chain) else { return false };
        self.keep_bounded(key, request_lsn, version_lsn, made);
        true
    }

    /// To be called when the base backup is caught up with, and when the timeline is opened: those that were told of before are not told of again.
    pub(super) fn bound_all_chains(&self) {
        if let Some(queue) = &self.heavy
            && !self.is_catching_up.load(Ordering::Relaxed)
        {
            queue.tell(self.no, &self.store.heavy_chains());
        }
    }

    /// Looks at a chain that was told of.
    pub(super) fn look_at_heavy(&self, key: &Key) -> Found {
        let request_lsn = self.own_last_record_lsn();
        match self.heavy_chain(key, request_lsn) {
            Ok(Ok(chain)) => Found::Long(request_lsn, chain),
            Ok(Err(weight)) => {
                self.redo.count_bound(BoundOutcome::Short);
                self.settle(key, request_lsn, &Settled::Weighs(weight))
            }
            Err(error) => self.give_up_heavy(key, request_lsn, &error),
        }
    }

    /// The chain, or its weight if that will do as it is.
    fn heavy_chain(&self, key: &Key, request_lsn: Lsn) -> Result<Result<Chain, u32>, ReadError> {
        let found = self.gather_cold(key, request_lsn)?;
        let weight = TimelineStore::weight_of(&found);
        let is_own = found.versions.first().is_some_and(|(version_lsn, ..)| self.is_own_version(*version_lsn));
        // A page that was cut off has no chain that matters; what comes there next starts anew.
        if !is_own || weight < self.chain_weight_max / 2 || !self.page_exists(key, request_lsn)? {
            return Ok(Err(weight));
        }
        Ok(Ok(self.chain(key, found)?))
    }

    /// Puts the page that was made where its chain ends.
    pub(super) fn keep_bounded(
        &self,
        key: &Key,
        request_lsn: Lsn,
        version_lsn: Lsn,
        made: Result<Bytes, RedoError>,
    ) -> Found {
        let page = match made {
            Ok(page) => self.finished(key, version_lsn, page),
            Err(source) => Err(ReadError::Redo { key: *key, request_lsn, source: Arc::new(source) }),
        };
        match page {
            Ok(page) => {
                // A page of zeroes takes no value.
                let page = if page.iter().all(|byte| *byte == 0) { Bytes::new() } else { page };
                let found = self.settle(key, request_lsn, &Settled::Made(version_lsn, page));
                if matches!(found, Found::Settled) {
                    self.redo.count_bound(BoundOutcome::Made);
                }
                found
            }
            Err(error) => self.give_up_heavy(key, request_lsn, &error),
        }
    }

    fn settle(&self, key: &Key, request_lsn: Lsn, settled: &Settled) -> Found {
        if self.store.settle(key, request_lsn, settled) { Found::Settled } else { Found::NotNow }
    }

    fn give_up_heavy(&self, key: &Key, request_lsn: Lsn, error: &ReadError) -> Found {
        if self.is_gone() {
            return Found::Settled;
        }
        self.redo.count_bound(BoundOutcome::Failed);
        let timeline = &self.metadata().name;
        if self.told_of_failed_chain.swap(true, Ordering::Relaxed) {
            debug!(%timeline, %key, %request_lsn, %error, "a page with a long chain cannot be made");
        } else {
            warn!(%timeline, %key, %request_lsn, %error, "a page with a long chain cannot be made, its chain goes on growing; of others like it nothing is said");
        }
        self.settle(key, request_lsn, &Settled::Failed)
    }
}

#[cfg(test)]
mod tests;
