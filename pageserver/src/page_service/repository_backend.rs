//! The real backend of the page service: the repository and its timelines.

use std::io::Read;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use keyenc::{Key, Kind, Object};
use postgres_ffi::{BlockNumber, ForkNumber, Lsn, Oid, RelTag, SlruKind};
use tracing::{info, warn};

use super::backend::{
    BackendError, BackendErrorKind, ImportProgress, RepositoryBackend, TimelineBackend, TimelineInfo,
};
use super::basebackup::{BackupBegin, BackupRequest, BackupSink};
use super::command::verify::RepairRequest;
use super::gc::{self, GcAnswer, GcCommand};
use super::lease::{self, LeaseCommand, LeaseInfo};
use super::message::Value;
use super::size::{self, SizeCommand};
use super::timeline_change::{self, OnProgress, TimelineChange, TimelineChanged};
use crate::basebackup::{BackupError, BackupOptions};
use crate::import::{self, ClusterFiles, ImportError};
use crate::ingest::KeptSize;
use crate::redo::RedoErrorKind;
use crate::replication::ReplicationError;
use crate::store::StoreError;
use crate::timeline::gc::GcError;
use crate::timeline::metadata::MetadataError;
use crate::timeline::{
    DatabaseTag, LeaseError, Primary, ReadError, Repository, RepositoryError, TenantError, TimeError, Timeline,
    TimelineState, WalFileRequestError,
};
use crate::verify::{Repaired, VerifyCounts, VerifyError, VerifyOptions, VerifySink};
use crate::wal::WalFileError;
use crate::wal_receiver::{ReceiverState, ReceiverStatus};
use crate::wall_time::WallTime;

/// How often somebody who waits for an import hears of it.
const CATCH_UP_REPORT_INTERVAL: Duration = Duration::from_secs(1);

impl From<ReadError> for BackendError {
    fn from(error: ReadError) -> Self {
        let kind = match &error {
            ReadError::BelowFirstReadable { .. } => BackendErrorKind::InvalidRequest,
            ReadError::NotYet { .. } | ReadError::WaitTimeout { .. } => BackendErrorKind::NotYet,
            ReadError::RelationMissing { .. } | ReadError::Missing { .. } => BackendErrorKind::NotFound,
            ReadError::Damaged { .. }
            | ReadError::DamagedKey(_)
            | ReadError::BaseMissing { .. }
            | ReadError::Unopened { .. } => BackendErrorKind::Corrupt,
            ReadError::Redo { source, .. } => match source.kind() {
                RedoErrorKind::Corrupt => BackendErrorKind::Corrupt,
                RedoErrorKind::Unavailable => BackendErrorKind::Unavailable,
                RedoErrorKind::ShuttingDown => BackendErrorKind::ShuttingDown,
                RedoErrorKind::Internal => BackendErrorKind::Internal,
            },
            ReadError::Store(source) => match source.as_ref() {
                StoreError::Corrupt { .. } | StoreError::Lost { .. } => BackendErrorKind::Corrupt,
                StoreError::ShuttingDown => BackendErrorKind::ShuttingDown,
                _ => BackendErrorKind::Unavailable,
            },
            ReadError::Gone { .. } => BackendErrorKind::Unavailable,
            ReadError::ShuttingDown => BackendErrorKind::ShuttingDown,
        };
        BackendError::new(kind, error.to_string())
    }
}

impl From<TimeError> for BackendError {
    fn from(error: TimeError) -> Self {
        let kind = match error {
            TimeError::Read(error) => return error.into(),
            TimeError::Unknown { .. } => BackendErrorKind::NotFound,
            TimeError::BeforeFirst { .. } => BackendErrorKind::InvalidRequest,
        };
        BackendError::new(kind, error.to_string())
    }
}

impl From<&import::ImportProgress> for ImportProgress {
    fn from(progress: &import::ImportProgress) -> Self {
        let import::ImportProgress { phase, bytes_done, bytes_total } = *progress;
        ImportProgress { phase: phase.to_owned(), bytes_done, bytes_total }
    }
}

impl From<&ImportError> for BackendErrorKind {
    fn from(error: &ImportError) -> Self {
        match error {
            ImportError::Cancelled => BackendErrorKind::Cancelled,
            ImportError::Replication(_)
            | ImportError::Store(_)
            | ImportError::WalFile(_)
            | ImportError::SlotKeepsNothing { .. }
            | ImportError::Promoted { .. }
            | ImportError::Program { .. } => BackendErrorKind::Unavailable,
            // Another path, or other files there.
            _ => BackendErrorKind::InvalidRequest,
        }
    }
}

impl From<RepositoryError> for BackendError {
    fn from(error: RepositoryError) -> Self {
        let kind = match error {
            RepositoryError::Read(error) => return error.into(),
            RepositoryError::Time(error) => return error.into(),
            RepositoryError::Gc(error) => return error.into(),
            RepositoryError::Branch(ref error) => error.into(),
            RepositoryError::Import(ref error) => error.into(),
            RepositoryError::TimelineMissing { .. }
            | RepositoryError::OtherTenant { .. }
            | RepositoryError::Tenant(TenantError::Missing { .. })
            | RepositoryError::Lease(LeaseError::Missing { .. }) => BackendErrorKind::NotFound,
            RepositoryError::WalFileRequest(WalFileRequestError::Missing { .. }) => BackendErrorKind::FileMissing,
            RepositoryError::WalFileRequest(WalFileRequestError::NotIngested { .. }) => BackendErrorKind::NotYet,
            RepositoryError::Wal(
                WalFileError::Corrupt { .. } | WalFileError::Length { .. } | WalFileError::History { .. },
            ) => BackendErrorKind::Corrupt,
            RepositoryError::Lease(LeaseError::Duration { .. })
            | RepositoryError::WalFileRequest(WalFileRequestError::Name { .. }) => BackendErrorKind::InvalidRequest,
            RepositoryError::NameTaken { .. }
            | RepositoryError::Metadata(MetadataError::Name { .. })
            | RepositoryError::Replication(ReplicationError::ConnInfo(_)) => BackendErrorKind::InvalidRequest,
            RepositoryError::Metadata(MetadataError::Damaged { .. }) => BackendErrorKind::Corrupt,
            RepositoryError::ShuttingDown => BackendErrorKind::ShuttingDown,
            _ => BackendErrorKind::Unavailable,
        };
        BackendError::new(kind, with_sources(&error))
    }
}

impl From<GcError> for BackendError {
    fn from(error: GcError) -> Self {
        let kind = match error {
            GcError::Read(error) => return error.into(),
            GcError::Store(error) => return ReadError::from(error).into(),
            GcError::Stopped => BackendErrorKind::Cancelled,
            GcError::Busy => BackendErrorKind::NotYet,
            GcError::Key(_) => BackendErrorKind::Corrupt,
        };
        BackendError::new(kind, error.to_string())
    }
}

impl From<VerifyError> for BackendError {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Cancelled => BackendError::new(BackendErrorKind::Cancelled, error.to_string()),
            VerifyError::TooMuch { .. } => BackendError::new(BackendErrorKind::Unavailable, error.to_string()),
            VerifyError::Repository(error) => error.into(),
            VerifyError::Read(error) => error.into(),
            VerifyError::Store(error) => BackendError::new(BackendErrorKind::Unavailable, error.to_string()),
        }
    }
}

impl From<BackupError> for BackendError {
    fn from(error: BackupError) -> Self {
        let kind = match error {
            BackupError::Read(error) => return error.into(),
            BackupError::Start(_) | BackupError::StandbyWalGone { .. } => BackendErrorKind::InvalidRequest,
            BackupError::StandbyTooEarly { .. }
            | BackupError::StandbyTablespace { .. }
            | BackupError::StandbyAcrossSwitch { .. } => BackendErrorKind::NotYet,
            BackupError::Missing { .. }
            | BackupError::PreparedInFuture { .. }
            | BackupError::SlruPageMissing { .. }
            | BackupError::Damaged { .. }
            | BackupError::PageAhead { .. }
            | BackupError::Checkpoint(_)
            | BackupError::ControlFile(_) => BackendErrorKind::Corrupt,
            BackupError::PgTimelines(error) => return error.into(),
            BackupError::Wal(_) | BackupError::Thread(_) | BackupError::Output(_) => BackendErrorKind::Unavailable,
        };
        BackendError::new(kind, with_sources(&error))
    }
}

/// The error and what lies below it, in one line.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(below) = source {
        let line = below.to_string();
        if !text.contains(&line) {
            text = format!("{text}: {line}");
        }
        source = below.source();
    }
    text
}

impl RepositoryBackend for Repository {
    fn timeline(&self, tenant: Option<&str>, timeline: &str) -> Result<Arc<dyn TimelineBackend>, BackendError> {
        let found = match tenant {
            Some(tenant) => self.timeline_of_tenant(tenant, timeline)?,
            None => self.timeline_named(timeline)?,
        };
        found.check_here()?;
        Ok(found)
    }

    fn timeline_info(&self, timeline: &str) -> Result<TimelineInfo, BackendError> {
        let timeline = self.timeline_named(timeline)?;
        let mut info = timeline.info();
        if !timeline.is_damaged() {
            let told = self.pg_timelines_of(&timeline);
            let told = told.inspect_err(|error| warn!(timeline = info.name, %error, "its history cannot be told"));
            info.pg_timelines = told.ok();
        }
        Ok(info)
    }

    fn timelines(&self) -> Result<Vec<TimelineInfo>, BackendError> {
        Ok(Repository::timelines(self).iter().map(|timeline| timeline.info()).collect())
    }

    fn import(
        &self,
        name: &str,
        conninfo: &str,
        progress: &mut dyn FnMut(&ImportProgress) -> ControlFlow<()>,
    ) -> Result<TimelineInfo, BackendError> {
        let mut on_progress = |copied: &import::ImportProgress| progress(&copied.into());
        let (timeline, _) = self.import_primary(name, conninfo, &mut on_progress)?;
        wait_until_readable(&timeline, progress)?;
        Ok(timeline.info())
    }

    fn base_backup(&self, request: &BackupRequest, sink: &mut dyn BackupSink) -> Result<(), BackendError> {
        let timeline = match &request.tenant {
            Some(tenant) => self.timeline_of_tenant(tenant, &request.timeline)?,
            None => self.timeline_named(&request.timeline)?,
        };
        timeline.check_here()?;
        let request_lsn = request.request_lsn.unwrap_or_else(|| Timeline::last_record_lsn(&timeline));
        let options = BackupOptions { gzip: request.gzip, no_data: request.no_data };
        let begun = Instant::now();
        let backup = self.plan_base_backup(timeline, request_lsn, request.standby, options)?;
        let begin = BackupBegin {
            branch_lsn: backup.branch_lsn(),
            pg_timeline_id: backup.pg_timeline_id(),
            bytes_estimated: backup.bytes_estimated(),
        };
        let has_old_wal = backup.has_old_wal();
        info!(timeline = request.timeline, %request_lsn, has_old_wal, ?options, "{begin}");
        sink.begin(&begin).map_err(BackupError::Output)?;
        let counts = backup.send(sink)?;
        info!(
            timeline = request.timeline,
            branch_lsn = %begin.branch_lsn,
            files = counts.file_count,
            pages = counts.page_count,
            duration = ?begun.elapsed(),
            "base backup sent"
        );
        Ok(())
    }

    fn wal_file(&self, timeline: &str, file: &str) -> Result<(u64, Box<dyn Read + Send>), BackendError> {
        Ok(Repository::wal_file(self, timeline, file)?)
    }

    fn change_timeline(
        &self,
        change: &TimelineChange,
        progress: &mut OnProgress<'_>,
    ) -> Result<TimelineChanged, BackendError> {
        timeline_change::apply(self, change, progress)
    }

    fn lease(&self, command: &LeaseCommand) -> Result<Vec<LeaseInfo>, BackendError> {
        lease::apply(self, command)
    }

    fn gc(&self, command: &GcCommand, progress: &mut OnProgress<'_>) -> Result<GcAnswer, BackendError> {
        gc::apply(self, command, progress)
    }

    fn sizes(&self, command: &SizeCommand, progress: &mut OnProgress<'_>) -> Result<Vec<Vec<Value>>, BackendError> {
        size::apply(self, command, progress)
    }

    fn verify(&self, options: &VerifyOptions, sink: &mut dyn VerifySink) -> Result<VerifyCounts, BackendError> {
        Ok(Repository::verify(self, options, sink)?)
    }

    fn repair(&self, request: &RepairRequest, sink: &mut dyn VerifySink) -> Result<Vec<Repaired>, BackendError> {
        Ok(Repository::repair(self, request.timeline.as_deref(), request.dry_run, sink)?)
    }

    fn import_files(
        &self,
        name: &str,
        files: &ClusterFiles,
        progress: &mut dyn FnMut(&ImportProgress) -> ControlFlow<()>,
    ) -> Result<TimelineInfo, BackendError> {
        let mut on_progress = |done: &import::ImportProgress| progress(&done.into());
        let (timeline, _) = Repository::import_files(self, name, files, &mut on_progress)?;
        Ok(timeline.info())
    }

    fn store_stats(&self) -> Result<Vec<(String, String)>, BackendError> {
        let value = serde_json::json!({ "store": Repository::store_stats(self), "version_cache": self.cache_stats() });
        let mut rows = Vec::new();
        flatten("", &value, &mut rows);
        Ok(rows)
    }

    fn redo_stats(&self) -> Result<Vec<(String, String)>, BackendError> {
        let mut rows = Vec::new();
        for (tenant_id, stats, report) in Repository::redo_stats(self) {
            rows.push((format!("{tenant_id}.engine"), report.engine.to_owned()));
            let counts = report
                .counts
                .into_iter()
                .map(|(what, count)| (format!("{tenant_id}.engine.{what}"), count.to_string()));
            rows.extend(counts);
            flatten(&format!("{tenant_id}.walredo"), &serde_json::json!(stats), &mut rows);
            let read_chains = stats
                .read_chains()
                .map(|(bucket, count)| (format!("{tenant_id}.walredo.read_chains.{bucket}"), count.to_string()));
            rows.extend(read_chains);
            rows.push((format!("{tenant_id}.walredo.chain_records_max"), self.chain_records_max().to_string()));
        }
        Ok(rows)
    }
}

/// Waits for WAL up to the end of the backup. The timeline stays whether or not somebody waits for it.
fn wait_until_readable(
    timeline: &Timeline,
    progress: &mut dyn FnMut(&ImportProgress) -> ControlFlow<()>,
) -> Result<(), BackendError> {
    let start_lsn = timeline.last_record_lsn();
    let goal = Timeline::first_readable_lsn(timeline).unwrap_or(start_lsn);
    loop {
        match timeline.wait_lsn_for(goal, CATCH_UP_REPORT_INTERVAL) {
            Ok(_) => return Ok(()),
            Err(ReadError::WaitTimeout { last_record_lsn, .. }) => {
                if let TimelineState::Stopped { at_lsn, reason } = timeline.state() {
                    let message = format!("ingest stopped at {at_lsn}: {reason}");
                    return Err(BackendError::new(BackendErrorKind::Unavailable, message));
                }
                let phase = "catching up".to_string();
                let bytes_done = last_record_lsn.saturating_sub(start_lsn);
                let bytes_total = Some(goal.saturating_sub(start_lsn));
                if progress(&ImportProgress { phase, bytes_done, bytes_total }).is_break() {
                    let message = "no longer waiting; the timeline catches up by itself";
                    return Err(BackendError::new(BackendErrorKind::Cancelled, message));
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Nested figures as rows: `store.levels.0.bytes`, value.
fn flatten(path: &str, value: &serde_json::Value, rows: &mut Vec<(String, String)>) {
    let below = |name: &str| if path.is_empty() { name.to_string() } else { format!("{path}.{name}") };
    match value {
        serde_json::Value::Object(fields) => fields.iter().for_each(|(name, field)| flatten(&below(name), field, rows)),
        serde_json::Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, item)| flatten(&below(&i.to_string()), item, rows));
        }
        serde_json::Value::String(text) => rows.push((path.to_string(), text.clone())),
        other => rows.push((path.to_string(), other.to_string())),
    }
}

/// What stopped a timeline, or what its receiver met last. Of one that failed its own error: it names the file as well.
fn last_error(state: &TimelineState, receiver: Option<ReceiverStatus>) -> Option<String> {
    match (state, receiver) {
        (TimelineState::Stopped { reason, .. }, receiver) => {
            let failed = receiver.filter(|status| matches!(status.state, ReceiverState::Failed { .. }));
            failed.and_then(|status| status.last_error).or_else(|| Some(reason.clone()))
        }
        (TimelineState::Damaged { reason }, _) => Some(reason.clone()),
        (_, receiver) => receiver.and_then(|status| status.last_error),
    }
}

impl TimelineBackend for Timeline {
    fn info(&self) -> TimelineInfo {
        let metadata = self.metadata();
        let receiver = self.receiver_status();
        let state = self.state();
        let known = |lsn| (!self.is_damaged()).then_some(lsn);
        TimelineInfo {
            tenant: metadata.tenant_id.to_string(),
            id: metadata.timeline_id.to_string(),
            name: metadata.name.clone(),
            state: state.name().to_string(),
            pg_version: Some(metadata.cluster.pg_version),
            ancestor: self.nearest_ancestor().map(|(ancestor, lsn)| (ancestor.metadata().name.clone(), lsn)),
            first_readable_lsn: known(Timeline::first_readable_lsn(self).unwrap_or(Lsn::MAX)),
            last_record_lsn: known(Timeline::last_record_lsn(self)),
            durable_lsn: self.durable_lsn().and_then(known),
            received_lsn: receiver.as_ref().and_then(|status| status.flushed_lsn),
            oldest_wal: receiver
                .as_ref()
                .and_then(|status| Some((status.oldest_wal_lsn?, status.wal_needed_by.map(str::to_owned)))),
            pg_timelines: None,
            source_end_lsn: receiver.as_ref().and_then(|status| status.primary_lsn),
            primary: metadata.primary.as_ref().map(Primary::server),
            receiver: receiver.as_ref().map(|status| status.state.name().to_string()),
            last_error: last_error(&state, receiver),
        }
    }

    fn last_record_lsn(&self) -> Lsn {
        Timeline::last_record_lsn(self)
    }

    fn first_readable_lsn(&self) -> Lsn {
        Timeline::first_readable_lsn(self).unwrap_or(Lsn::MAX)
    }

    fn is_leased(&self, lsn: Lsn) -> bool {
        Timeline::is_pinned(self, lsn)
    }

    fn wait_lsn(&self, lsn: Lsn, timeout: Duration) -> Result<Lsn, BackendError> {
        Ok(self.wait_lsn_for(lsn, timeout)?)
    }

    fn get_pages_at_lsn(&self, requests: &[(Key, Lsn)]) -> Vec<Result<Bytes, BackendError>> {
        Timeline::get_pages_at_lsn(self, requests).into_iter().map(|page| page.map_err(BackendError::from)).collect()
    }

    fn relation_size(&self, rel: RelTag, fork: ForkNumber, lsn: Lsn) -> Result<Option<BlockNumber>, BackendError> {
        Ok(Timeline::relation_size(self, rel, fork, lsn)?)
    }

    fn relations(
        &self,
        spc_oid: Oid,
        db_oid: Oid,
        lsn: Lsn,
    ) -> Result<Vec<(RelTag, ForkNumber, BlockNumber)>, BackendError> {
        Ok(Timeline::relations(self, DatabaseTag { spc_oid, db_oid }, lsn)?)
    }

    fn database_size(&self, spc_oid: Oid, db_oid: Oid, lsn: Lsn) -> Result<KeptSize, BackendError> {
        Ok(Timeline::database_size(self, DatabaseTag { spc_oid, db_oid }, lsn)?)
    }

    fn databases(&self, lsn: Lsn) -> Result<Vec<(Oid, Oid)>, BackendError> {
        let found = Timeline::databases(self, lsn)?;
        Ok(found.into_iter().map(|database| (database.spc_oid, database.db_oid)).collect())
    }

    fn slru_segment_size(&self, kind: SlruKind, segment_no: u32, lsn: Lsn) -> Result<Option<u32>, BackendError> {
        Ok(self.slru_segment_pages(kind, segment_no, lsn)?)
    }

    fn slru_segments(&self, kind: SlruKind, lsn: Lsn) -> Result<Vec<(u32, u32)>, BackendError> {
        Ok(Timeline::slru_segments(self, kind, lsn)?)
    }

    fn objects(&self, class: Object, lsn: Lsn) -> Result<Vec<(Object, Bytes)>, BackendError> {
        Ok(self.objects_of_class(class, lsn)?)
    }

    fn commit_time_at(&self, lsn: Lsn) -> Result<Option<WallTime>, BackendError> {
        Ok(Timeline::commit_time_at(self, lsn)?)
    }

    fn lsn_at_time(&self, time: WallTime) -> Result<(Lsn, WallTime), BackendError> {
        let found = Timeline::lsn_at_time(self, time)?;
        Ok((found.lsn, found.commit_time))
    }

    fn history(&self, key: Key, lsn_range: Range<Lsn>) -> Result<Vec<(Lsn, Kind, Bytes)>, BackendError> {
        let object: Object = key.object().map_err(ReadError::from)?;
        Ok(Timeline::history(self, object, lsn_range)?)
    }
}
