//! Requests that broke a process all by themselves: refused for a while without being tried.
//!
//! Without this a client that asks again and again for one bad page would have the process killed each time, and
//! everybody else would wait for the next.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::redo::{EngineRequest, RedoError};

/// When full, the oldest goes.
const ENTRIES_MAX: usize = 64;
/// A new release of PostgreSQL may take what an old one died of, so nothing stays for ever.
const STAY: Duration = Duration::from_secs(300);

/// The requests, as fingerprints that nobody outside can foresee.
#[derive(Default)]
pub struct Quarantine {
    /// Read without the lock: it is nearly always 0.
    len: AtomicUsize,
    entries: Mutex<HashMap<u64, (Instant, RedoError)>>,
    hasher: foldhash::quality::RandomState,
}

impl Quarantine {
    /// The error of the request, if it is in here.
    pub fn get(&self, request: &EngineRequest) -> Option<RedoError> {
        if self.len.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let fingerprint = self.fingerprint(request);
        let mut entries = self.entries.lock();
        entries.retain(|_, (since, _)| since.elapsed() < STAY);
        self.len.store(entries.len(), Ordering::Relaxed);
        entries.get(&fingerprint).map(|(_, error)| error.clone())
    }

    /// Keeps the request out for a while.
    pub fn put(&self, request: &EngineRequest, error: RedoError) {
        let fingerprint = self.fingerprint(request);
        let mut entries = self.entries.lock();
        if entries.len() >= ENTRIES_MAX {
            let oldest = entries.iter().min_by_key(|(_, (since, _))| *since).map(|(fingerprint, _)| *fingerprint);
            oldest.and_then(|oldest| entries.remove(&oldest));
        }
        entries.insert(fingerprint, (Instant::now(), error));
        self.len.store(entries.len(), Ordering::Relaxed);
    }

    fn fingerprint(&self, request: &EngineRequest) -> u64 {
        let EngineRequest { rel, fork, block_no, base, records } = request;
        self.hasher.hash_one((rel, fork, block_no, base, records))
    }
}
