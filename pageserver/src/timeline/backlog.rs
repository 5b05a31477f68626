//! Pages with long chains are made before anybody reads them, by walredo threads that have nothing else to do, and cached back.
//!
//! - A thread of its own gathers them: the flusher tells what it found and goes on, ingest knows of nothing here.
//! - It holds no lock while it gathers (from RocksDB alone: no layer) or waits, and sleeps until a flush finds something or a walredo thread has made a page.
//! - What finds no room with the walredo threads waits here as keys, oldest first; where too many wait the oldest are dropped. Nothing
//!   depends on any of them: a read makes its page itself.
//! - What ingest tells of ([`super::chain_bound`]) comes first: it may be waiting for it.
//! - Nothing is made while a timeline catches up with its base backup: its pages are not of one moment yet.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::io;
use std::ops::Bound;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded, select};
use keyenc::{Key, Object, TimelineNo};
use parking_lot::Mutex;
use postgres_ffi::Lsn;
use tracing::debug;

use super::background::Background;
use super::chain_bound::{Found, HeavyQueue, InHand};
use super::{ReadError, Timeline};
use crate::redo::{Chain, RedoError};
use crate::store::{Gathered, LongChain, LongChains};

/// Keys that wait, per timeline: what a few flushes find at most.
const WAITING_MAX: usize = 4000;

type Timelines = Arc<Mutex<HashMap<TimelineNo, Weak<Timeline>>>>;

/// The thread that hands long chains to the walredo threads. Dropped: waits for its end.
pub(super) struct Backlog {
    timelines: Timelines,
    heavy: Arc<HeavyQueue>,
    thread: Background,
}

impl Backlog {
    /// Starts on what flushes find from now on.
    pub fn start(found: Receiver<LongChains>) -> io::Result<Self> {
        let (timelines, heavy, thread) = (Timelines::default(), HeavyQueue::new(), Background::default());
        let (worker_timelines, worker_heavy) = (Arc::clone(&timelines), Arc::clone(&heavy));
        let run = move |stop| {
            let worker = Worker {
                found,
                heavy: worker_heavy,
                heavy_stalled: false,
                room: bounded(1),
                stop,
                timelines: worker_timelines,
                waiting: Waiting::default(),
            };
            worker.run();
        };
        thread.start("backlog", run)?;
        Ok(Backlog { timelines, heavy, thread })
    }

    /// Where ingest leaves chains that are too long.
    pub fn heavy(&self) -> &Arc<HeavyQueue> {
        &self.heavy
    }

    /// What flushes find of this timeline is worked on from now on.
    pub fn add_timeline(&self, timeline: &Arc<Timeline>) {
        let mut timelines = self.timelines.lock();
        timelines.retain(|_, timeline| timeline.strong_count() > 0);
        timelines.insert(timeline.no, Arc::downgrade(timeline));
    }

    /// Returns when the thread has ended. What the walredo threads have in hand they may still finish.
    pub fn stop(&self) {
        self.thread.stop();
    }
}

impl Drop for Backlog {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Worker {
    found: Receiver<LongChains>,
    heavy: Arc<HeavyQueue>,
    /// The walredo threads had no room for the last one that was too long.
    heavy_stalled: bool,
    /// A walredo thread is through with a chain, so there is room for another one.
    room: (Sender<()>, Receiver<()>),
    stop: Receiver<Infallible>,
    timelines: Timelines,
    waiting: Waiting,
}

impl Worker {
    fn run(mut self) {
        loop {
            while let Ok(found) = self.found.try_recv() {
                self.take(&found);
            }
            if self.stop.try_recv() == Err(TryRecvError::Disconnected) {
                return;
            }
            if self.serve_heavy() {
                continue;
            }
            if let Some((timeline, key)) = self.next() {
                self.offer(&timeline, key);
                continue;
            }
            select! {
                recv(self.found) -> found => match found {
                    Ok(found) => self.take(&found),
                    Err(_) => return, // The store is gone.
                },
                recv(self.heavy.woken()) -> _ => {}
                recv(self.room.1) -> _ => self.heavy_stalled = false,
                recv(self.stop) -> _ => return,
            }
        }
    }

    fn take(&mut self, found: &LongChains) {
        let Some(timeline) = self.timeline(found.timeline) else { return };
        let dropped = self.waiting.push(found.timeline, &found.chains);
        timeline.redo.count_backlog_dropped(dropped);
    }

    fn timeline(&self, no: TimelineNo) -> Option<Arc<Timeline>> {
        self.timelines.lock().get(&no).and_then(Weak::upgrade)
    }

    /// The next page whose walredo threads take another chain. `None`: nothing to do, or no room; then a chain that is there ends with
    /// a message through `room`.
    fn next(&mut self) -> Option<(Arc<Timeline>, Key)> {
        for no in self.waiting.timelines_in_turn() {
            match self.timeline(no) {
                None => self.waiting.forget(no),
                Some(timeline) if timeline.redo.has_backlog_room() => {
                    return self.waiting.pop(no).map(|key| (timeline, key));
                }
                Some(_) => {}
            }
        }
        None
    }

    /// Deals with one chain that is too long. False: there is none, or no room for it.
    fn serve_heavy(&mut self) -> bool {
        if self.heavy_stalled {
            return false;
        }
        let Some((no, in_hand)) = self.heavy.take() else { return false };
        let Some(timeline) = self.timeline(no) else { return true };
        match timeline.look_at_heavy(&in_hand.key) {
            Found::Settled => {}
            Found::NotNow => {}
            Found::Long(request_lsn, chain) => self.make_heavy(&timeline, in_hand, request_lsn, chain),
        }
        true
    }

    fn make_heavy(&mut self, timeline: &Arc<Timeline>, in_hand: InHand, request_lsn: Lsn, chain: Chain) {
        let version_lsn = chain.version_lsn;
        let chain = match timeline.redo.make_if_computed(chain) {
            Ok(made) => return timeline.end_heavy(in_hand, request_lsn, version_lsn, made),
            Err(chain) => chain,
        };
        if !timeline.redo.has_backlog_room() {
            self.heavy_stalled = true;
            return in_hand.put_back();
        }
        let owner = Arc::downgrade(timeline);
        let room = RoomMade(self.room.0.clone());
        let done = move |made| {
            let _room = room;
            if let Some(timeline) = owner.upgrade() {
                timeline.end_heavy(in_hand, request_lsn, version_lsn, made);
            }
        };
        if !timeline.redo.offer_backlog(chain, Box::new(done)) {
            timeline.redo.count_backlog_dropped(1);
        }
    }

    fn offer(&self, timeline: &Arc<Timeline>, key: Key) {
        let chain = match timeline.long_chain(&key) {
            Ok(Some(chain)) => chain,
            Ok(None) => return,
            Err(error) => {
                debug!(%key, %error, "a long chain cannot be read");
                return timeline.redo.count_backlog_unreadable();
            }
        };
        let version_lsn = chain.version_lsn;
        let owner = Arc::downgrade(timeline);
        let room = RoomMade(self.room.0.clone());
        let done = move |made| {
            let _room = room;
            if let Some(timeline) = owner.upgrade() {
                timeline.keep_made(&key, version_lsn, made);
            }
        };
        if !timeline.redo.offer_backlog(chain, Box::new(done)) {
            timeline.redo.count_backlog_dropped(1);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.heavy.stop();
    }
}

/// Tells that a chain has left the walredo threads, in whatever way.
struct RoomMade(Sender<()>);

impl Drop for RoomMade {
    fn drop(&mut self) {
        let _ = self.0.try_send(()); // Full: the thread will look anyway.
    }
}

/// Keys that wait, by timeline.
#[derive(Default)]
struct Waiting {
    /// Oldest first; none is empty.
    keys: BTreeMap<TimelineNo, VecDeque<Key>>,
    served_last: Option<TimelineNo>,
}

impl Waiting {
    /// Adds keys that do not wait already. Returns how many older ones were dropped for them.
    fn push(&mut self, no: TimelineNo, chains: &[LongChain]) -> usize {
        let keys = self.keys.entry(no).or_default();
        let known: HashSet<Key> = keys.iter().copied().collect();
        keys.extend(chains.iter().map(|chain| chain.key).filter(|key| !known.contains(key)));
        let dropped = keys.len().saturating_sub(WAITING_MAX);
        keys.drain(..dropped);
        if keys.is_empty() {
            self.keys.remove(&no);
        }
        dropped
    }

    /// Timelines with keys, the one after that which was served last first.
    fn timelines_in_turn(&self) -> Vec<TimelineNo> {
        let after = self.served_last.map_or(Bound::Unbounded, Bound::Excluded);
        let later = self.keys.range((after, Bound::Unbounded));
        let before = self.served_last.into_iter().flat_map(|last| self.keys.range(..=last));
        later.chain(before).map(|(no, _)| *no).collect()
    }

    /// The oldest key of a timeline.
    fn pop(&mut self, no: TimelineNo) -> Option<Key> {
        self.served_last = Some(no);
        let keys = self.keys.get_mut(&no)?;
        let key = keys.pop_front();
        if keys.is_empty() {
            self.keys.remove(&no);
        }
        key
    }

    fn forget(&mut self, no: TimelineNo) {
        self.keys.remove(&no);
    }
}

impl Timeline {
    /// The chain of the page `key` as of the watermark. `None`: it is not (or no more) long, not there, or not this timeline's.
    ///
    /// Not as of the last record: ingest would wait for the open layer while a chain of many thousand records is copied out of it.
    fn long_chain(&self, key: &Key) -> Result<Option<Chain>, ReadError> {
        let Some(as_of_lsn) = self.durable_lsn() else { return Ok(None) };
        if self.check_readable(as_of_lsn).is_err() || !self.page_exists(key, as_of_lsn)? {
            return Ok(None);
        }
        let gather_own = |found: &mut Gathered| self.store.gather_durable(key, as_of_lsn, found);
        let found = self.gather_with(key, as_of_lsn, gather_own)?;
        let is_own = found.versions.first().is_some_and(|(version_lsn, ..)| self.is_own_version(*version_lsn));
        if !is_own || found.delta_count() < self.backlog_records_min {
            return Ok(None);
        }
        Ok(Some(self.chain(key, found)?))
    }

    pub(super) fn page_exists(&self, key: &Key, as_of_lsn: Lsn) -> Result<bool, ReadError> {
        let exists = match key.object()? {
            Object::RelationBlock { rel, fork, block_no } => {
                self.block_exists(rel, fork, block_no, as_of_lsn, &mut None)
            }
            Object::SlruPage { kind, page_no } => {
                self.check_slru_page_exists(key, kind, page_no, as_of_lsn).map(|()| true)
            }
            _ => Ok(false),
        };
        match exists {
            Err(ReadError::RelationMissing { .. } | ReadError::Missing { .. }) => Ok(false),
            exists => exists,
        }
    }

    /// Keeps what was made of a chain that was too long, or has it made again.
    fn end_heavy(&self, in_hand: InHand, request_lsn: Lsn, version_lsn: Lsn, made: Result<Bytes, RedoError>) {
        let found = self.keep_bounded(&in_hand.key, request_lsn, version_lsn, made);
        // Without new records it would come to the same.
        if matches!(found, Found::NotNow) && request_lsn < self.own_last_record_lsn() {
            in_hand.put_back();
        }
    }

    /// Caches back what was made of a long chain. Errors are counted by who made it, and told to whoever reads the page.
    fn keep_made(&self, key: &Key, version_lsn: Lsn, made: Result<Bytes, RedoError>) {
        match made.map(|page| self.finished(key, version_lsn, page)) {
            Ok(Ok(page)) => self.store.cache_back(*key, version_lsn, page),
            Ok(Err(error)) => debug!(%key, %version_lsn, %error, "a page from the backlog cannot be used"),
            Err(error) => debug!(%key, %version_lsn, %error, "a page from the backlog cannot be made"),
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
