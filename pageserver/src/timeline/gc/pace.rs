//! How fast a pass reads and writes, and how it is stopped.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// Bytes between two looks at the clock. Few in unit tests, so that there are some.
const LOOK_BYTES: u64 = if cfg!(test) { 4 << 10 } else { 256 << 10 };
/// The longest wait in one piece.
const WAIT_MAX: Duration = Duration::from_millis(200);
/// What a pause may be made up for.
const CREDIT_MAX: Duration = Duration::from_secs(1);

/// Waits for so long, less if there is nothing to wait for. Breaks: the pass stops.
pub(in crate::timeline) type OnWait<'a> = dyn FnMut(Duration) -> ControlFlow<()> + 'a;

/// A budget of bytes per second, on average.
pub(in crate::timeline) struct Pace<'a> {
    /// 0: no limit.
    bytes_per_second: u64,
    on_wait: &'a mut OnWait<'a>,
    /// When what was taken so far is paid.
    paid_until: Instant,
    taken: u64,
    is_stopped: bool,
}

impl<'a> Pace<'a> {
    /// Begins now. `on_wait` is called often, also without anything to wait for.
    pub fn new(bytes_per_second: u64, on_wait: &'a mut OnWait<'a>) -> Self {
        Pace { bytes_per_second, on_wait, paid_until: Instant::now(), taken: 0, is_stopped: false }
    }

    /// Takes `bytes`, and waits until that is paid. Breaks: stop.
    pub fn take(&mut self, bytes: u64) -> ControlFlow<()> {
        self.taken += bytes;
        if self.taken < LOOK_BYTES && !self.is_stopped {
            return ControlFlow::Continue(());
        }
        self.settle()
    }

    /// Waits until all that was taken is paid.
    pub fn settle(&mut self) -> ControlFlow<()> {
        let taken = std::mem::take(&mut self.taken);
        let cost = match self.bytes_per_second {
            0 => Duration::ZERO,
            rate => Duration::from_secs_f64(taken as f64 / rate as f64),
        };
        let now = Instant::now();
        self.paid_until = self.paid_until.max(now.checked_sub(CREDIT_MAX).unwrap_or(now)) + cost;
        loop {
            let left = self.paid_until.saturating_duration_since(Instant::now());
            if self.is_stopped || (self.on_wait)(left.min(WAIT_MAX)).is_break() {
                self.is_stopped = true;
                return ControlFlow::Break(());
            }
            if left.is_zero() {
                return ControlFlow::Continue(());
            }
        }
    }
}
