//! How far an import is.

use std::ops::ControlFlow;
use std::time::Duration;

/// How often progress is reported.
pub(super) const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// How far an import is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportProgress {
    /// What is being done: `base backup`, `files`, `WAL`.
    pub phase: &'static str,
    /// Bytes so far.
    pub bytes_done: u64,
    /// Bytes there are, as far as is known.
    pub bytes_total: Option<u64>,
}

/// Called about once a second; asks to stop by breaking.
pub type OnProgress<'a> = &'a mut dyn FnMut(&ImportProgress) -> ControlFlow<()>;
