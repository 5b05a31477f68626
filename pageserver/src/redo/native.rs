//! Redo in Rust as an engine: [`postgres_ffi::redo`] over whole chains.
//!
//! - A page that has records of an extension's resource manager goes as a whole to another engine, the redo process if there is one.
//! - Needs nothing of the cluster but its version: what else redo depends on was settled when the record came in (see
//!   [`crate::delta::Delta::HeapAllVisible`]).
//! - Inputs that do not apply are saved, a bounded number of them, for `pagectl redo replay`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use postgres_ffi::page::{Page, ZERO_PAGE};
use postgres_ffi::redo::{self, ClusterFacts, PageAddress};
use postgres_ffi::wal::{DecodedRecord, RecordHeader};
use postgres_ffi::{BLCKSZ, PgVersion};

use super::failed_input::{FailedInput, FailedInputs};
use super::{Engine, EngineReport, EngineRequest, RedoError};

/// The engine that is a function.
pub struct NativeEngine {
    version: PgVersion,
    /// For pages with records that are not ours to redo.
    others: Arc<dyn Engine>,
    failed_inputs: Option<(FailedInputs, Bytes)>,
    pages: AtomicU64,
    records: AtomicU64,
    refused: AtomicU64,
    left_to_others: AtomicU64,
}

impl NativeEngine {
    /// Redo of a cluster of `version`. `others` gets the pages with records of extensions.
    pub fn new(version: PgVersion, others: Arc<dyn Engine>) -> Self {
        NativeEngine {
            version,
            others,
            failed_inputs: None,
            pages: AtomicU64::default(),
            records: AtomicU64::default(),
            refused: AtomicU64::default(),
            left_to_others: AtomicU64::default(),
        }
    }

    /// Keeps what does not apply, with the cluster's control file, so that a process can try it too.
    pub fn saving_failed_inputs(mut self, failed_inputs: FailedInputs, pg_control: Bytes) -> Self {
        self.failed_inputs = Some((failed_inputs, pg_control));
        self
    }

    /// True when all records of the request are of PostgreSQL's own resource managers.
    pub fn covers(&self, request: &EngineRequest) -> bool {
        request.records.iter().all(|(_, record)| self.computes(record))
    }

    fn make(&self, request: &EngineRequest) -> Result<Box<Page>, RedoError> {
        let made = apply_all(self.version, request);
        count(&self.pages, 1);
        count(&self.records, request.records.len() as u64);
        made.map_err(|message| self.refuse(request, message))
    }

    fn refuse(&self, request: &EngineRequest, message: String) -> RedoError {
        count(&self.refused, 1);
        if let Some((failed_inputs, pg_control)) = &self.failed_inputs {
            failed_inputs.save(&FailedInput {
                version: self.version,
                wal_log_hints: true,
                pg_control: pg_control.clone(),
                message: message.clone(),
                request: request.clone(),
            });
        }
        let EngineRequest { rel, fork, block_no, .. } = *request;
        RedoError::Refused { rel, fork, block_no, message }
    }
}

/// The page that the records make of the base, or why they make none.
fn apply_all(version: PgVersion, request: &EngineRequest) -> Result<Box<Page>, String> {
    let mut page = Box::new(ZERO_PAGE);
    if let Some(base) = &request.base {
        if base.len() != BLCKSZ {
            return Err(format!("base has {} bytes", base.len()));
        }
        page.copy_from_slice(base);
    }
    let address = PageAddress { rel: request.rel, fork: request.fork, block_no: request.block_no };
    let facts = ClusterFacts { version, hint_bits_logged: true };
    for (end_lsn, raw) in &request.records {
        // Where it starts is told by nobody and asked by nobody: a record cut down stands nowhere.
        let record = DecodedRecord::decode(version, *end_lsn, *end_lsn, raw.clone())
            .map_err(|error| format!("record that ends at {end_lsn}: {error}"))?;
        redo::redo(&mut page, address, &record, facts).map_err(|error| {
            format!("record that ends at {end_lsn}, rmid {}, info {:#04x}: {error}", record.rmid, record.info)
        })?;
    }
    Ok(page)
}

impl Engine for NativeEngine {
    fn redo(&self, requests: &[EngineRequest]) -> Vec<Result<Box<Page>, RedoError>> {
        let for_others: Vec<EngineRequest> = requests.iter().filter(|request| !self.covers(request)).cloned().collect();
        if for_others.is_empty() {
            return requests.iter().map(|request| self.make(request)).collect();
        }
        count(&self.left_to_others, for_others.len() as u64);
        let mut answers_of_others = self.others.redo(&for_others).into_iter();
        let lost = || RedoError::Internal { message: "the engine for extensions lost an answer".to_owned() };
        let answer = |request: &EngineRequest| match self.covers(request) {
            true => self.make(request),
            false => answers_of_others.next().unwrap_or_else(|| Err(lost())),
        };
        requests.iter().map(answer).collect()
    }

    fn computes(&self, record: &[u8]) -> bool {
        // What is no record at all is refused here as well as anywhere.
        RecordHeader::parse(record).is_none_or(|header| redo::is_native(header.rmid))
    }

    fn report(&self) -> EngineReport {
        let counts = [
            ("pages", &self.pages),
            ("records", &self.records),
            ("refused", &self.refused),
            ("left to the process", &self.left_to_others),
        ];
        let mut counts: Vec<_> =
            counts.iter().map(|(what, counter)| (*what, counter.load(Ordering::Relaxed))).collect();
        counts.extend(self.others.report().counts);
        EngineReport { engine: "native", counts }
    }

    fn idle(&self, idle: std::time::Duration) {
        self.others.idle(idle);
    }
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
