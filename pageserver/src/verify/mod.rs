//! A check of everything that a server keeps, while it serves: the files it begins with, every version in the store, every page as it would be
//! served, every record of WAL.
//!
//! - What is wrong is told as it is found ([`Finding`]): where, which LSN, which file, what, and what to do. Finding something ends nothing.
//! - Bounded: one page, one version or one piece of WAL at a time, a size for each relation fork, and as fast as it is allowed to be.
//! - Pushes nothing out: the store is read past all caches ([`crate::store::ColdRead`]), pages past the version cache and RocksDB's, WAL is dropped from the
//!   page cache behind it.
//! - Changes nothing; [`repair`] does.
//!
//! In reading order: what is found ([`finding`]), how fast and who is told ([`job`]), the parts: [`metadata`], the store ([`versions`], with
//! [`value`] and [`sizes`]), [`pages`] with [`kept_sizes`], [`wal`]; and what can be mended ([`repair`]).

pub mod finding;
pub use finding::{Finding, Part};

mod kept_sizes;

mod job;
pub use job::{VerifyCounts, VerifyError, VerifyOptions, VerifyProgress, VerifySink};

mod metadata;
mod pages;
mod repair;
pub use repair::{RepairOutcome, Repaired};
mod sizes;
mod value;
mod versions;
mod wal;

use std::sync::Arc;

use crate::timeline::{Repository, Timeline};
use job::Job;

impl Repository {
    /// Checks one timeline, or everything that the server keeps, and tells `sink` what is wrong. What was looked at.
    ///
    /// Errors: no such timeline; `sink` asked to stop; the store cannot be opened for reading.
    pub fn verify(&self, options: &VerifyOptions, sink: &mut dyn VerifySink) -> Result<VerifyCounts, VerifyError> {
        let timelines = match &options.timeline {
            Some(name) => vec![self.timeline_named(name)?],
            None => self.timelines(),
        };
        let mut job = Job::new(self, options, sink);
        metadata::check(&mut job, &timelines)?;
        versions::check(&mut job, options.timeline.as_ref().map(|_| &*timelines[0]))?;
        for timeline in &timelines {
            pages::check(&mut job, timeline)?;
            wal::check(&mut job, timeline)?;
        }
        Ok(job.counts)
    }
}

/// What people call it.
fn name_of(timeline: &Arc<Timeline>) -> String {
    timeline.metadata().name.clone()
}
