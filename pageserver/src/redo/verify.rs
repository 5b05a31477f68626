//! Two engines at once: redo in Rust and a PostgreSQL process make each page, and the two must be the same in every byte but the checksum.
//!
//! - The answer is always PostgreSQL's. Where the two differ that is logged and counted, and the input is saved for `pagectl redo replay`.
//! - Pages with records of extensions are PostgreSQL's alone: there is nothing to compare them with.
//! - Twice the work and a process's latency: for finding out, not for every day.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use postgres_ffi::PgVersion;
use postgres_ffi::page::{PD_CHECKSUM, Page};

use super::failed_input::{FailedInput, FailedInputs};
use super::native::NativeEngine;
use super::{Engine, EngineReport, EngineRequest, NoEngine, RedoError};

type Answer = Result<Box<Page>, RedoError>;

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
        let native = self.native.redo(std::slice::from_ref(request)).pop();
        let Some(difference) = native.and_then(|native| difference(&native, postgres)) else {
            self.equal.fetch_add(1, Ordering::Relaxed);
            return;
        };
        self.different.fetch_add(1, Ordering::Relaxed);
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

/// How the two answers differ, `None` if they do not. Two refusals are the same whatever their words.
fn difference(native: &Answer, postgres: &Answer) -> Option<String> {
    match (native, postgres) {
        (Ok(native), Ok(postgres)) => {
            let is_checksum = |at: &usize| (PD_CHECKSUM..PD_CHECKSUM + 2).contains(at);
            let differs = |at: &usize| native[*at] != postgres[*at] && !is_checksum(at);
            let count = (0..native.len()).filter(differs).count();
            let at = (0..native.len()).find(differs)?;
            Some(format!(
                "{count} bytes, the first at {at}: native {:#04x}, PostgreSQL {:#04x}",
                native[at], postgres[at]
            ))
        }
        (Err(error), Ok(_)) => Some(format!("native redo refuses what PostgreSQL applies: {error}")),
        (Ok(_), Err(error)) => Some(format!("native redo applies what PostgreSQL refuses: {error}")),
        (Err(_), Err(_)) => None,
    }
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
        let mut counts = vec![("equal", equal), ("different", different), ("not compared", not_compared)];
        counts.extend(self.postgres.report().counts);
        EngineReport { engine: "verify", counts }
    }

    fn idle(&self, idle: std::time::Duration) {
        self.postgres.idle(idle);
    }
}
