//! A timeline whose pages cost nothing to find: what the protocol, the socket and the load generator can do at best.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use keyenc::{Key, Kind, Object};
use pageserver::import::ClusterFiles;
use pageserver::page_service::backend::{
    BackendError, ImportProgress, RepositoryBackend, TimelineBackend, TimelineInfo,
};
use pageserver::page_service::basebackup::{BackupRequest, BackupSink};
use pageserver::page_service::command::verify::RepairRequest;
use pageserver::page_service::gc::{GcAnswer, GcCommand};
use pageserver::page_service::lease::{LeaseCommand, LeaseInfo};
use pageserver::page_service::message::Value;
use pageserver::page_service::size::SizeCommand;
use pageserver::page_service::timeline_change::{OnProgress, TimelineChange, TimelineChanged};
use pageserver::verify::{Repaired, VerifyCounts, VerifyOptions, VerifySink};
use pageserver::wall_time::WallTime;
use postgres_ffi::{BLCKSZ, ForkNumber, Lsn, Oid, RelTag, SlruKind};

/// The one relation there is.
pub const REL: RelTag = RelTag { spc_oid: 1663, db_oid: 5, rel_number: 16384 };
const LSN: Lsn = Lsn::new(0x100_0000);

/// Serves timeline `main` with one relation.
#[derive(Debug, Clone)]
pub struct ConstantPages {
    pages: Arc<[Bytes]>,
}

impl ConstantPages {
    /// A relation of `block_count` blocks with different bytes. All lie in memory: choose it beyond or within the processor's cache.
    pub fn new(block_count: u32) -> Self {
        let page = |block_no: u32| Bytes::from(block_no.to_le_bytes().repeat(BLCKSZ / 4));
        ConstantPages { pages: (0..block_count).map(page).collect() }
    }

    fn block_count(&self) -> u32 {
        u32::try_from(self.pages.len()).unwrap_or(u32::MAX)
    }
}

impl RepositoryBackend for ConstantPages {
    fn timeline(&self, _: Option<&str>, timeline: &str) -> Result<Arc<dyn TimelineBackend>, BackendError> {
        if timeline == "main" {
            return Ok(Arc::new(self.clone()));
        }
        Err(BackendError::not_found(format!("there is only main. timeline=`{timeline}`")))
    }

    fn timelines(&self) -> Result<Vec<TimelineInfo>, BackendError> {
        Ok(vec![self.info()])
    }

    fn import(
        &self,
        _: &str,
        _: &str,
        _: &mut dyn FnMut(&ImportProgress) -> ControlFlow<()>,
    ) -> Result<TimelineInfo, BackendError> {
        Err(BackendError::not_found("nothing can be imported here"))
    }

    fn wal_file(&self, _: &str, _: &str) -> Result<(u64, Box<dyn std::io::Read + Send>), BackendError> {
        Err(BackendError::not_found("there is no cluster to back up here"))
    }

    fn base_backup(&self, _: &BackupRequest, _: &mut dyn BackupSink) -> Result<(), BackendError> {
        Err(BackendError::not_found("there is no cluster to back up here"))
    }

    fn import_files(
        &self,
        _: &str,
        _: &ClusterFiles,
        _: &mut dyn FnMut(&ImportProgress) -> ControlFlow<()>,
    ) -> Result<TimelineInfo, BackendError> {
        Err(BackendError::not_found("nothing can be imported here"))
    }

    fn change_timeline(&self, _: &TimelineChange, _: &mut OnProgress<'_>) -> Result<TimelineChanged, BackendError> {
        Err(BackendError::not_found("nothing can be changed here"))
    }

    fn lease(&self, _: &LeaseCommand) -> Result<Vec<LeaseInfo>, BackendError> {
        Err(BackendError::not_found("nothing can be leased here"))
    }

    fn gc(&self, _: &GcCommand, _: &mut OnProgress<'_>) -> Result<GcAnswer, BackendError> {
        Err(BackendError::not_found("there is no garbage here"))
    }

    fn sizes(&self, _: &SizeCommand, _: &mut OnProgress<'_>) -> Result<Vec<Vec<Value>>, BackendError> {
        Err(BackendError::not_found("nothing takes room here"))
    }

    fn verify(&self, _: &VerifyOptions, _: &mut dyn VerifySink) -> Result<VerifyCounts, BackendError> {
        Err(BackendError::not_found("there is nothing to check here"))
    }

    fn repair(&self, _: &RepairRequest, _: &mut dyn VerifySink) -> Result<Vec<Repaired>, BackendError> {
        Err(BackendError::not_found("there is nothing to mend here"))
    }

    fn store_stats(&self) -> Result<Vec<(String, String)>, BackendError> {
        Ok(Vec::new())
    }

    fn redo_stats(&self) -> Result<Vec<(String, String)>, BackendError> {
        Ok(Vec::new())
    }
}

impl TimelineBackend for ConstantPages {
    fn info(&self) -> TimelineInfo {
        TimelineInfo {
            tenant: "0".repeat(32),
            id: "1".repeat(32),
            name: "main".into(),
            state: "active".into(),
            pg_version: None,
            ancestor: None,
            first_readable_lsn: Some(LSN),
            last_record_lsn: Some(LSN),
            durable_lsn: None,
            oldest_wal: None,
            received_lsn: None,
            pg_timelines: None,
            source_end_lsn: None,
            receiver: None,
            primary: None,
            last_error: None,
        }
    }

    fn last_record_lsn(&self) -> Lsn {
        LSN
    }

    fn first_readable_lsn(&self) -> Lsn {
        LSN
    }

    fn wait_lsn(&self, lsn: Lsn, _: Duration) -> Result<Lsn, BackendError> {
        Err(BackendError::not_found(format!("nothing will ever arrive here. lsn=`{lsn}`")))
    }

    fn get_pages_at_lsn(&self, requests: &[(Key, Lsn)]) -> Vec<Result<Bytes, BackendError>> {
        let page = |key: &Key| {
            let block_no = key.as_bytes().last_chunk::<4>().map_or(0, |bytes| u32::from_be_bytes(*bytes));
            Ok(self.pages.get(block_no as usize).cloned().unwrap_or_default())
        };
        requests.iter().map(|(key, _)| page(key)).collect()
    }

    fn relation_size(&self, rel: RelTag, fork: ForkNumber, _: Lsn) -> Result<Option<u32>, BackendError> {
        Ok((rel == REL && fork == ForkNumber::Main).then(|| self.block_count()))
    }

    fn relations(&self, spc_oid: Oid, db_oid: Oid, _: Lsn) -> Result<Vec<(RelTag, ForkNumber, u32)>, BackendError> {
        let here = (spc_oid, db_oid) == (REL.spc_oid, REL.db_oid);
        Ok(if here { vec![(REL, ForkNumber::Main, self.block_count())] } else { Vec::new() })
    }

    fn databases(&self, _: Lsn) -> Result<Vec<(Oid, Oid)>, BackendError> {
        Ok(vec![(REL.spc_oid, REL.db_oid)])
    }

    fn slru_segment_size(&self, _: SlruKind, _: u32, _: Lsn) -> Result<Option<u32>, BackendError> {
        Ok(None)
    }

    fn slru_segments(&self, _: SlruKind, _: Lsn) -> Result<Vec<(u32, u32)>, BackendError> {
        Ok(Vec::new())
    }

    fn objects(&self, _: Object, _: Lsn) -> Result<Vec<(Object, Bytes)>, BackendError> {
        Ok(Vec::new())
    }

    fn commit_time_at(&self, _: Lsn) -> Result<Option<WallTime>, BackendError> {
        Ok(None)
    }

    fn lsn_at_time(&self, _: WallTime) -> Result<(Lsn, WallTime), BackendError> {
        Err(BackendError::not_found("nothing was ever committed here"))
    }

    fn history(&self, _: Key, _: Range<Lsn>) -> Result<Vec<(Lsn, Kind, Bytes)>, BackendError> {
        Ok(Vec::new())
    }
}
