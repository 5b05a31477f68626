//! A check under way: how fast it may go, who is told, what it has looked at.

use std::ops::ControlFlow;
use std::thread;
use std::time::{Duration, Instant};

use super::Finding;
use crate::store::StoreError;
use crate::timeline::{ReadError, Repository, RepositoryError};

/// How often somebody hears of it, and how long a sleep may be.
const REPORT_INTERVAL: Duration = Duration::from_millis(500);

/// What to check, and how fast.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyOptions {
    /// This timeline by name or id; everything without.
    pub timeline: Option<String>,
    /// Bytes a second (versions uncompressed, pages, WAL together); no limit without.
    pub bytes_per_second: Option<u64>,
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifyCounts {
    /// Files of metadata.
    pub metadata_files: u64,
    /// SST files.
    pub store_files: u64,
    /// Versions.
    pub versions: u64,
    /// Pages that were made.
    pub pages: u64,
    /// WAL segments.
    pub wal_segments: u64,
    /// Records of WAL.
    pub wal_records: u64,
    /// What was wrong.
    pub findings: u64,
}

/// How far a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Which.
    pub phase: &'static str,
    /// Bytes so far.
    pub bytes_done: u64,
    /// Bytes there are, as far as is known.
    pub bytes_total: Option<u64>,
}

/// Who is told. Breaks: stop.
pub trait VerifySink {
    /// Something is wrong.
    fn finding(&mut self, finding: &Finding) -> ControlFlow<()>;
    /// Called at least twice a second while there is something to read.
    fn progress(&mut self, progress: &VerifyProgress) -> ControlFlow<()>;
}

/// A check cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// Somebody asked to stop.
    #[error("stopped; what was told so far holds")]
    Cancelled,
    /// More is wrong than a repair can keep in mind.
    #[error(
        "more than {max} things are wrong: repair one timeline at a time, or stop the server and run `pageserver mend`"
    )]
    TooMuch {
        /// As many are kept.
        max: usize,
    },
    /// The repository: no such timeline.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// A timeline cannot be read at all.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The store cannot be read at all.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// See the module.
pub(super) struct Job<'a> {
    pub repository: &'a Repository,
    pub counts: VerifyCounts,
    sink: &'a mut dyn VerifySink,
    pace: Pace,
    progress: VerifyProgress,
    reported: Instant,
}

impl<'a> Job<'a> {
    pub fn new(repository: &'a Repository, options: &VerifyOptions, sink: &'a mut dyn VerifySink) -> Self {
        Job {
            repository,
            counts: VerifyCounts::default(),
            sink,
            pace: Pace::new(options.bytes_per_second),
            progress: VerifyProgress { phase: "metadata", bytes_done: 0, bytes_total: None },
            reported: Instant::now(),
        }
    }

    /// The next part begins.
    pub fn begin(&mut self, phase: &'static str, bytes_total: Option<u64>) -> Result<(), VerifyError> {
        self.progress = VerifyProgress { phase, bytes_done: 0, bytes_total };
        self.report()
    }

    /// Tells of something wrong.
    pub fn found(&mut self, finding: &Finding) -> Result<(), VerifyError> {
        self.counts.findings += 1;
        go_on(self.sink.finding(finding))
    }

    /// So much was read: waits as long as the rate asks for, and tells how far it is.
    pub fn took(&mut self, bytes: u64) -> Result<(), VerifyError> {
        self.progress.bytes_done += bytes;
        self.pace.took(bytes);
        while let Some(wait) = self.pace.wait() {
            thread::sleep(wait.min(REPORT_INTERVAL));
            self.report_if_due()?;
        }
        self.report_if_due()
    }

    fn report_if_due(&mut self) -> Result<(), VerifyError> {
        if self.reported.elapsed() < REPORT_INTERVAL { Ok(()) } else { self.report() }
    }

    fn report(&mut self) -> Result<(), VerifyError> {
        self.reported = Instant::now();
        go_on(self.sink.progress(&self.progress))
    }
}

fn go_on(flow: ControlFlow<()>) -> Result<(), VerifyError> {
    if flow.is_break() { Err(VerifyError::Cancelled) } else { Ok(()) }
}

/// A rate that is kept from the beginning on.
struct Pace {
    bytes_per_second: Option<u64>,
    begun: Instant,
    bytes: u64,
}

impl Pace {
    fn new(bytes_per_second: Option<u64>) -> Self {
        Pace { bytes_per_second: bytes_per_second.filter(|rate| *rate > 0), begun: Instant::now(), bytes: 0 }
    }

    fn took(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// How long it is until so many bytes may have been read; `None`: they may.
    fn wait(&self) -> Option<Duration> {
        let due = due(self.bytes, self.bytes_per_second?);
        due.checked_sub(self.begun.elapsed()).filter(|wait| !wait.is_zero())
    }
}

/// When so many bytes may have been read, from the beginning.
fn due(bytes: u64, bytes_per_second: u64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(bytes_per_second);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    //! Goal: the rate is what was asked for. Method: sums.

    use super::*;

    #[test]
    fn so_many_bytes_take_so_long() {
        assert_eq!(due(10 << 20, 1 << 20), Duration::from_secs(10));
        assert_eq!(due(1, u64::MAX), Duration::ZERO);
        assert_eq!(due(u64::MAX, 1), Duration::from_nanos(u64::MAX));
    }

    #[test]
    fn without_a_rate_nobody_waits() {
        for rate in [None, Some(0)] {
            let mut pace = Pace::new(rate);
            pace.took(u64::MAX);
            assert_eq!(pace.wait(), None);
        }
        let mut pace = Pace::new(Some(1));
        pace.took(3600);
        assert!(pace.wait().is_some_and(|wait| wait > Duration::from_secs(3000)));
    }
}
