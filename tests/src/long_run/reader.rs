//! A small constant load of reads: random pages of one relation at the last record, and how long each took.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use pageserver::client::{Client, ClientConfig, PageStream, ReadAt};
use pageserver::page_service::pagestream::wire::Version;
use postgres_ffi::{BlockNumber, ForkNumber, Lsn, RelTag};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::Background;

/// The thread. Dropped: it ends by itself.
pub struct Reader {
    latencies: Arc<Mutex<Vec<Duration>>>,
    thread: Background<()>,
}

impl Reader {
    /// Reads blocks of `rel` below `block_count` from the server at `address`, one every `pause`.
    pub fn start(
        address: String,
        timeline: &str,
        rel: RelTag,
        block_count: BlockNumber,
        pause: Duration,
    ) -> Result<Self> {
        let client = Client::connect(&ClientConfig::new(address))?;
        let mut stream = PageStream::start(client, Version::V3, None, timeline)?;
        let latencies = Arc::<Mutex<Vec<Duration>>>::default();
        let thread = Background::start("the load of reads", {
            let latencies = Arc::clone(&latencies);
            move |stop| {
                let mut rng = SmallRng::seed_from_u64(1);
                // As a primary asks: the newest version, and nothing that would have to be waited for.
                let lsns = ReadAt { request_lsn: Lsn::MAX, not_modified_since: Lsn::new(1) };
                let mut due = Instant::now();
                while !stop.load(Ordering::SeqCst) {
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    let begun = Instant::now();
                    stream.get_page(rel, ForkNumber::Main, rng.random_range(0..block_count), lsns)?;
                    latencies.lock().unwrap_or_else(PoisonError::into_inner).push(begun.elapsed());
                    // What could not be asked in time is not made up for.
                    due = Instant::now().max(due + pause);
                }
                Ok(())
            }
        });
        Ok(Reader { latencies, thread })
    }

    /// Latencies since it was asked last, in order of their length.
    pub fn take(&self) -> Vec<Duration> {
        let mut latencies = std::mem::take(&mut *self.latencies.lock().unwrap_or_else(PoisonError::into_inner));
        latencies.sort_unstable();
        latencies
    }

    /// Ends it; an error if a read has failed.
    pub fn stop(mut self) -> Result<()> {
        self.thread.stop().map(drop)
    }
}

/// The value below which the share `part` of `sorted` lies; zero of nothing.
pub fn percentile(sorted: &[Duration], part: f64) -> Duration {
    let at = (sorted.len() as f64 * part) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_few_and_of_none() {
        let sorted: Vec<Duration> = (1..=100).map(Duration::from_micros).collect();
        assert_eq!(percentile(&sorted, 0.5), Duration::from_micros(51));
        assert_eq!(percentile(&sorted, 0.99), Duration::from_micros(100));
        assert_eq!(percentile(&sorted[..1], 0.99), Duration::from_micros(1));
        assert_eq!(percentile(&[], 0.5), Duration::ZERO);
    }
}
