//! Two engines at once: redo in Rust and a PostgreSQL process make each page, and the two must be the same in every byte but the checksum.
//!
//! - The answer is always PostgreSQL's, whatever becomes of ours. Where the two differ that is logged and counted, and the input is saved for
//!   `pagectl redo replay`.
//! - One difference is known and counted apart: GiST's flag for deleted tuples, which redo of some minor releases sets and of others does not, and
//!   which nothing reads. Which release runs here is not told by the WAL.
//! - Pages with records of extensions are PostgreSQL's alone: there is nothing to compare them with.
//! - Twice the work and a process's latency: for finding out, not for every day.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use postgres_ffi::mask::{PageKind, classify};
use postgres_ffi::page::{PD_CHECKSUM, Page};
use postgres_ffi::{BLCKSZ, ForkNumber, PgVersion};

use super::failed_input::{FailedInput, FailedInputs};
use super::native::NativeEngine;
use super::{Engine, EngineReport, EngineRequest, NoEngine, RedoError};

/// What an engine makes of a request.
pub type Answer = Result<Box<Page>, RedoError>;

/// What the comparison needs to know of the cluster, so that a saved input can be replayed.
#[derive(Clone, Debug)]
pub struct VerifiedCluster {
    /// Its major version.
    pub version: PgVersion,
    /// Its control file.
    pub pg_control: Bytes,
}

/// The engine that compares.
pub struct VerifyEngine {
    cluster: VerifiedCluster,
    native: NativeEngine,
    postgres: Arc<dyn Engine>,
    failed_inputs: Option<FailedInputs>,
    equal: AtomicU64,
    different: AtomicU64,
    gist_flag: AtomicU64,
    refused_by_both: AtomicU64,
    not_compared: AtomicU64,
}

impl VerifyEngine {
    /// Compares with `postgres`.
    pub fn new(cluster: VerifiedCluster, postgres: Arc<dyn Engine>, failed_inputs: Option<FailedInputs>) -> Self {
        VerifyEngine {
            native: NativeEngine::new(cluster.version, Arc::new(NoEngine)),
            cluster,
            postgres,
            failed_inputs,
            equal: AtomicU64::default(),
            different: AtomicU64::default(),
            gist_flag: AtomicU64::default(),
            refused_by_both: AtomicU64::default(),
            not_compared: AtomicU64::default(),
        }
    }

    /// Pages that both engines made alike, and pages that they did not.
    pub fn equal_and_different(&self) -> (u64, u64) {
        (self.equal.load(Ordering::Relaxed), self.different.load(Ordering::Relaxed))
    }

    fn compare(&self, request: &EngineRequest, postgres: &Answer) {
        // Only a page or PostgreSQL's refusal is a word on the records; a process that broke says nothing of them.
        let is_word = matches!(postgres, Ok(_) | Err(RedoError::Refused { .. }));
        if !is_word || !self.native.covers(request) {
            self.not_compared.fetch_add(1, Ordering::Relaxed);
            return;
        }
        // A panic of ours is our difference, and takes nobody's answer along.
        let native =
            catch_unwind(AssertUnwindSafe(|| self.native.redo(std::slice::from_ref(request)).pop())).ok().flatten();
        let native = native.unwrap_or_else(|| Err(RedoError::Internal { message: "native redo panicked".to_owned() }));
        let (counter, difference) = match compare_answers(&native, postgres) {
            Comparison::Equal => (&self.equal, None),
            Comparison::GistFlag => (&self.gist_flag, None),
            Comparison::BothRefuse => (&self.refused_by_both, None),
            Comparison::Different(difference) => (&self.different, Some(difference)),
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let Some(difference) = difference else { return };
        let saved = self.save(request, &difference);
        let EngineRequest { rel, fork, block_no, .. } = *request;
        tracing::error!(%rel, %fork, block_no, difference, ?saved, "native redo and PostgreSQL differ");
    }

    fn save(&self, request: &EngineRequest, difference: &str) -> Option<std::path::PathBuf> {
        self.failed_inputs.as_ref()?.save(&FailedInput {
            version: self.cluster.version,
            wal_log_hints: true,
            pg_control: self.cluster.pg_control.clone(),
            message: difference.to_owned(),
            request: request.clone(),
        })
    }
}

/// How two answers to one request stand to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// In all bytes but the checksum.
    Equal,
    /// But for GiST's flag for deleted tuples.
    GistFlag,
    /// Whatever their words.
    BothRefuse,
    /// How.
    Different(String),
}

/// Compares unmasked, in all bytes but the checksum.
pub fn compare_answers(native: &Answer, postgres: &Answer) -> Comparison {
    /// Where a GiST page has its flags, and the flag. PG 14-18: gist.h, F_TUPLES_DELETED.
    const GIST_FLAGS_AT: usize = BLCKSZ - 4;
    const GIST_TUPLES_DELETED: u8 = 1 << 2;
    let (native, postgres) = match (native, postgres) {
        (Ok(native), Ok(postgres)) => (native, postgres),
        (Err(error), Ok(_)) => {
            return Comparison::Different(format!("native redo refuses what PostgreSQL applies: {error}"));
        }
        (Ok(_), Err(error)) => {
            return Comparison::Different(format!("native redo applies what PostgreSQL refuses: {error}"));
        }
        (Err(_), Err(_)) => return Comparison::BothRefuse,
    };
    let differs = |at: &usize| native[*at] != postgres[*at] && !(PD_CHECKSUM..PD_CHECKSUM + 2).contains(at);
    let Some(at) = (0..BLCKSZ).find(differs) else { return Comparison::Equal };
    let count = (at..BLCKSZ).filter(differs).count();
    let (ours, theirs) = (native[at], postgres[at]);
    let is_gist = || classify(postgres, ForkNumber::Main, 1) == PageKind::Gist;
    if (at, count, ours ^ theirs) == (GIST_FLAGS_AT, 1, GIST_TUPLES_DELETED) && is_gist() {
        return Comparison::GistFlag;
    }
    Comparison::Different(format!("{count} bytes, the first at {at}: native {ours:#04x}, PostgreSQL {theirs:#04x}"))
}

impl Engine for VerifyEngine {
    fn redo(&self, requests: &[EngineRequest]) -> Vec<Answer> {
        let answers = self.postgres.redo(requests);
        for (request, answer) in requests.iter().zip(&answers) {
            self.compare(request, answer);
        }
        answers
    }

    fn report(&self) -> EngineReport {
        let (equal, different) = self.equal_and_different();
        let not_compared = self.not_compared.load(Ordering::Relaxed);
        let mut counts = vec![
            ("equal", equal),
            ("different", different),
            ("different in a GiST flag", self.gist_flag.load(Ordering::Relaxed)),
            ("refused by both", self.refused_by_both.load(Ordering::Relaxed)),
            ("not compared", not_compared),
        ];
        counts.extend(self.postgres.report().counts);
        EngineReport { engine: "verify", counts }
    }

    fn idle(&self, idle: std::time::Duration) {
        self.postgres.idle(idle);
    }
}
