//! Waits until a number that only grows has reached a value: `last_record_lsn`, mostly.
//!
//! - The number never goes back: an [`SeqWait::advance`] to a lower or equal value changes nothing.
//! - Reading the number takes no lock when `T` fits an atomic, as an `Lsn` does.
//! - Waiters are woken after the lock is released, and only those whose value was reached.
//! - After [`SeqWait::shutdown`] nobody waits any more; values already reached are still answered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::{Duration, Instant};

use crossbeam_utils::atomic::AtomicCell;
use parking_lot::Mutex;

/// Why [`SeqWait::wait_for`] came back without the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WaitError<T: std::fmt::Debug> {
    /// The time is over.
    #[error("the position was not reached in time. current=`{current:?}`")]
    Timeout {
        /// How far the number had come.
        current: T,
    },
    /// [`SeqWait::shutdown`] was called, before or while we waited.
    #[error("shutting down")]
    Shutdown,
}

/// A number that only grows, and those who wait for it.
pub struct SeqWait<T> {
    /// Written under the lock of `waiting` alone, so that nobody can enter the queue behind an advance that misses him.
    current: AtomicCell<T>,
    waiting: Mutex<Waiting<T>>,
}

struct Waiting<T> {
    shutdown: bool,
    next_ticket: u64,
    /// By value, then by order of arrival, which makes each entry its own.
    queue: BTreeMap<(T, u64), Arc<Waiter>>,
}

struct Waiter {
    thread: Thread,
    woken: AtomicBool,
}

impl Waiter {
    fn wake(&self) {
        self.woken.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

impl<T: Ord + Copy + std::fmt::Debug> SeqWait<T> {
    /// Starts at `initial`.
    pub fn new(initial: T) -> Self {
        let waiting = Waiting { shutdown: false, next_ticket: 0, queue: BTreeMap::new() };
        SeqWait { current: AtomicCell::new(initial), waiting: Mutex::new(waiting) }
    }

    /// The number as it stands.
    pub fn current(&self) -> T {
        self.current.load()
    }

    /// The number once it is at or above `value`. Returns at once when it already is, whatever the timeout and even after a shutdown.
    pub fn wait_for(&self, value: T, timeout: Duration) -> Result<T, WaitError<T>> {
        let current = self.current();
        if value <= current {
            return Ok(current);
        }
        // A timeout beyond what the clock can express is a wait without end.
        let deadline = Instant::now().checked_add(timeout);
        let (ticket, waiter) = {
            let mut waiting = self.waiting.lock();
            let current = self.current();
            if value <= current {
                return Ok(current);
            }
            if waiting.shutdown {
                return Err(WaitError::Shutdown);
            }
            let ticket = waiting.next_ticket;
            waiting.next_ticket += 1;
            let waiter = Arc::new(Waiter { thread: std::thread::current(), woken: AtomicBool::new(false) });
            waiting.queue.insert((value, ticket), Arc::clone(&waiter));
            (ticket, waiter)
        };
        while !waiter.woken.load(Ordering::Acquire) {
            let Some(deadline) = deadline else {
                std::thread::park();
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.waiting.lock().queue.remove(&(value, ticket));
                break;
            }
            std::thread::park_timeout(left);
        }
        // Not decided by `woken`: a shutdown wakes as well, and an advance may have come together with the timeout.
        let current = self.current();
        if value <= current {
            Ok(current)
        } else if waiter.woken.load(Ordering::Acquire) {
            Err(WaitError::Shutdown)
        } else {
            Err(WaitError::Timeout { current })
        }
    }

    /// Sets the number to `value` and wakes whoever waited for it or for less. Returns the number as it was before;
    /// if that is `value` or more, nothing has changed.
    pub fn advance(&self, value: T) -> T {
        let mut reached = Vec::new();
        let old = {
            let mut waiting = self.waiting.lock();
            let old = self.current();
            if value <= old {
                return old;
            }
            self.current.store(value);
            while let Some(first) = waiting.queue.first_entry() {
                if value < first.key().0 {
                    break;
                }
                reached.push(first.remove());
            }
            old
        };
        reached.iter().for_each(|waiter| waiter.wake());
        old
    }

    /// Ends every wait with [`WaitError::Shutdown`], now and from now on.
    pub fn shutdown(&self) {
        let queue = {
            let mut waiting = self.waiting.lock();
            waiting.shutdown = true;
            std::mem::take(&mut waiting.queue)
        };
        queue.values().for_each(|waiter| waiter.wake());
    }

    /// How many wait at the moment.
    pub fn waiter_count(&self) -> usize {
        self.waiting.lock().queue.len()
    }
}

#[cfg(test)]
mod tests {
    //! Goal: nobody waits for what has been reached, nobody is told of what has not. Method: single cases, then many
    //! threads that wait for values below and above what another thread is just setting.

    use super::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    const LONG: Duration = Duration::from_secs(60);

    fn until(what: impl Fn() -> bool) {
        let start = Instant::now();
        while !what() {
            assert!(start.elapsed() < LONG);
            std::thread::yield_now();
        }
    }

    #[test]
    fn reached_values_are_answered_at_once() {
        let seq = SeqWait::new(10u64);
        assert_eq!(seq.wait_for(10, Duration::ZERO), Ok(10));
        assert_eq!(seq.wait_for(3, Duration::ZERO), Ok(10));
        assert_eq!(seq.wait_for(11, Duration::ZERO), Err(WaitError::Timeout { current: 10 }));
        assert_eq!(seq.waiter_count(), 0);
    }

    #[test]
    fn advance_returns_the_old_value_and_never_goes_back() {
        let seq = SeqWait::new(1u64);
        assert_eq!(seq.advance(5), 1);
        assert_eq!(seq.advance(4), 5);
        assert_eq!(seq.advance(5), 5);
        assert_eq!(seq.current(), 5);
    }

    #[test]
    fn a_timeout_says_how_far_we_came_and_leaves_nothing_behind() {
        let seq = SeqWait::new(1u64);
        let start = Instant::now();
        assert_eq!(seq.wait_for(2, Duration::from_millis(30)), Err(WaitError::Timeout { current: 1 }));
        assert!(start.elapsed() >= Duration::from_millis(30));
        assert_eq!(seq.waiter_count(), 0);
    }

    #[test]
    fn only_reached_waiters_wake() {
        let seq = SeqWait::new(0u64);
        std::thread::scope(|scope| {
            let low = scope.spawn(|| seq.wait_for(10, Duration::MAX));
            let high = scope.spawn(|| seq.wait_for(20, LONG));
            until(|| seq.waiter_count() == 2);
            seq.advance(9);
            assert_eq!(seq.waiter_count(), 2);
            seq.advance(15);
            assert_eq!(low.join().unwrap(), Ok(15));
            assert_eq!(seq.waiter_count(), 1);
            seq.advance(20);
            assert_eq!(high.join().unwrap(), Ok(20));
        });
    }

    #[test]
    fn shutdown_ends_every_wait_but_not_what_was_reached() {
        let seq = SeqWait::new(7u64);
        std::thread::scope(|scope| {
            let seq = &seq;
            let waits: Vec<_> = (8..40).map(|value| scope.spawn(move || seq.wait_for(value, Duration::MAX))).collect();
            until(|| seq.waiter_count() == waits.len());
            seq.shutdown();
            for wait in waits {
                assert_eq!(wait.join().unwrap(), Err(WaitError::Shutdown));
            }
        });
        assert_eq!(seq.waiter_count(), 0);
        assert_eq!(seq.wait_for(8, LONG), Err(WaitError::Shutdown));
        assert_eq!(seq.wait_for(7, LONG), Ok(7));
    }

    #[test]
    fn stress_many_waiters_against_one_writer() {
        const LAST: u64 = 20_000;
        let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(42);
        println!("SEED={seed}");
        let seq = SeqWait::new(0u64);
        std::thread::scope(|scope| {
            for thread in 0..16 {
                let seq = &seq;
                scope.spawn(move || {
                    let mut rng = SmallRng::seed_from_u64(seed + thread);
                    loop {
                        let before = seq.current();
                        if before == LAST {
                            return;
                        }
                        let value = (before + rng.random_range(0..8)).min(LAST);
                        // Every fourth wait is so short that timeout and advance meet.
                        let hurried = rng.random_range(0..4) == 0;
                        let timeout = if hurried { Duration::from_micros(rng.random_range(0..50)) } else { LONG };
                        match seq.wait_for(value, timeout) {
                            Ok(current) => assert!(value <= current && before <= current),
                            Err(WaitError::Timeout { current }) => assert!(hurried && current < value),
                            Err(WaitError::Shutdown) => panic!("nobody shut down"),
                        }
                    }
                });
            }
            for value in 1..=LAST {
                assert_eq!(seq.advance(value), value - 1);
                if value % 64 == 0 {
                    std::thread::yield_now();
                }
            }
        });
        assert_eq!(seq.waiter_count(), 0);
    }
}
