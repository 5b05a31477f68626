//! The one process that all share, started when it is needed.
//!
//! - Of many who need it, one starts it; the others wait for that start and share its outcome.
//! - After a failed start the same error is given for a while: a broken configuration does not become a storm of starts.
//! - The lock is held for a moment only, never while a process starts or ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::pipeline::Pipeline;

/// Holds the shared process.
pub struct Slot {
    state: Mutex<State>,
    settled: Condvar,
    retry_delay: Duration,
}

enum State {
    Empty,
    Starting,
    Running(Arc<Pipeline>),
    Failed { reason: String, until: Instant },
}

impl Slot {
    /// Empty. After a failed start the next one is tried `retry_delay` later.
    pub fn new(retry_delay: Duration) -> Self {
        Slot { state: Mutex::new(State::Empty), settled: Condvar::new(), retry_delay }
    }

    /// The running process, or the one that `start` gives. `start` gets the one that broke, if one did.
    pub fn get_or_start(
        &self,
        start: impl FnOnce(Option<Arc<Pipeline>>) -> Result<Pipeline, String>,
    ) -> Result<Arc<Pipeline>, String> {
        let mut state = self.state.lock();
        let worn_out = loop {
            match &*state {
                State::Running(process) if process.is_usable() => return Ok(process.clone()),
                State::Failed { reason, until } if Instant::now() < *until => return Err(reason.clone()),
                State::Starting => self.settled.wait(&mut state),
                _ => break std::mem::replace(&mut *state, State::Starting),
            }
        };
        drop(state);
        // Should `start` panic, the others must not wait for ever.
        let guard = StartGuard { slot: self };
        let worn_out = match worn_out {
            State::Running(process) => Some(process),
            _ => None,
        };
        let outcome = start(worn_out).map(Arc::new);
        guard.settle(match &outcome {
            Ok(process) => State::Running(process.clone()),
            Err(reason) => State::Failed { reason: reason.clone(), until: Instant::now() + self.retry_delay },
        });
        outcome
    }

    /// The running process, if there is one.
    pub fn current(&self) -> Option<Arc<Pipeline>> {
        match &*self.state.lock() {
            State::Running(process) => Some(process.clone()),
            _ => None,
        }
    }

    /// No new requests for `process`; those in flight end as they would. False if it is not the shared one any more.
    pub fn retire(&self, process: &Arc<Pipeline>) -> bool {
        let mut state = self.state.lock();
        if !matches!(&*state, State::Running(current) if Arc::ptr_eq(current, process)) {
            return false;
        }
        *state = State::Empty; // `process` is alive in our caller, so this does not wait for its end.
        true
    }

    /// Ends the shared process. False if there is none.
    pub fn retire_current(&self) -> bool {
        self.current().is_some_and(|process| self.retire(&process))
    }
}

struct StartGuard<'a> {
    slot: &'a Slot,
}

impl StartGuard<'_> {
    fn settle(self, outcome: State) {
        *self.slot.state.lock() = outcome;
        // Drop wakes the others.
    }
}

impl Drop for StartGuard<'_> {
    fn drop(&mut self) {
        let mut state = self.slot.state.lock();
        if matches!(&*state, State::Starting) {
            *state = State::Empty;
        }
        self.slot.settled.notify_all();
    }
}
