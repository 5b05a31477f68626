//! A timeline in a map: one relation of 1,000 blocks that was 500 blocks long at first, one visibility map, one CLOG segment.
//!
//! Every page says where it belongs: block number and the LSN that made it, so that a wrong page is seen.

use std::io::{self, Read};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use keyenc::{Key, Kind, Object};
use parking_lot::{Condvar, Mutex};
use postgres_ffi::{BLCKSZ, ForkNumber, Lsn, Oid, PgVersion, RelTag, SlruKind};

use crate::import::ClusterFiles;
use crate::page_service::backend::{
    BackendError, BackendErrorKind, ImportProgress, RepositoryBackend, TimelineBackend, TimelineInfo,
};
use crate::page_service::basebackup::{BackupBegin, BackupRequest, BackupSink};
use crate::page_service::command::verify::RepairRequest;
use crate::page_service::gc::{GcAnswer, GcCommand};
use crate::page_service::lease::{LeaseCommand, LeaseInfo};
use crate::page_service::message::Value;
use crate::page_service::size::SizeCommand;
use crate::page_service::timeline_change::{OnProgress, TimelineChange, TimelineChanged};
use crate::verify::{Finding, Part, RepairOutcome, Repaired, VerifyCounts, VerifyOptions, VerifyProgress, VerifySink};
use crate::wall_time::WallTime;

/// A file whose reading fails.
struct BrokenFile;

impl Read for BrokenFile {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("the disk is broken"))
    }
}

pub const ID: &str = "3aa8fcc61f6d357410b7de754b1d9001";
pub const TENANT: &str = "de200bd42b49cc1814412c7e592dd6e9";
pub const REL: RelTag = RelTag { spc_oid: 1663, db_oid: 5, rel_number: 16384 };
/// Block whose read fails as corrupt.
pub const CORRUPT_BLOCK: u32 = 666;
/// Block whose read says that the server cannot answer any more.
pub const UNAVAILABLE_BLOCK: u32 = 667;
/// Block of zeroes that exists.
pub const ZERO_BLOCK: u32 = 13;
/// The relation's second half, and everything in it, comes at this LSN.
pub const GROWN_AT: u64 = 0x2000;
pub const FIRST_READABLE: u64 = 0x1000;
pub const LAST_RECORD: u64 = 0x3000;
pub const LEASED: u64 = 0x800;

/// The page that block `block_no` must read as of `lsn`.
pub fn page_of(block_no: u32, lsn: u64) -> Vec<u8> {
    if block_no == ZERO_BLOCK || block_no >= block_count(lsn) {
        return vec![0; BLCKSZ];
    }
    let version = if lsn >= GROWN_AT { GROWN_AT } else { LEASED };
    let mut page = vec![0; BLCKSZ];
    for (i, byte) in page.iter_mut().enumerate() {
        *byte = (i as u32 ^ block_no).to_le_bytes()[0];
    }
    page[..4].copy_from_slice(&block_no.to_be_bytes());
    page[4..12].copy_from_slice(&version.to_be_bytes());
    page
}

pub fn block_count(lsn: u64) -> u32 {
    if lsn >= GROWN_AT { 1_000 } else { 500 }
}

/// Length of the backup.
pub const BACKUP_BYTES: usize = 300_001;

/// The backup.
pub fn backup_bytes() -> Vec<u8> {
    (0..BACKUP_BYTES).map(|i| (i % 251) as u8).collect()
}

/// The timeline.
pub struct Toy {
    pub last_record_lsn: AtomicU64,
    pub shutting_down: AtomicBool,
    /// Sizes of the batches that were read.
    pub batches: Mutex<Vec<usize>>,
    pub imports_begun: AtomicUsize,
    pub imports_cancelled: AtomicUsize,
    pub slow_import: AtomicBool,
    /// Pieces of an endless backup that were taken.
    pub backup_pieces: AtomicUsize,
    advanced: (Mutex<()>, Condvar),
}

impl Toy {
    pub fn new() -> Self {
        Toy {
            last_record_lsn: AtomicU64::new(LAST_RECORD),
            shutting_down: AtomicBool::new(false),
            batches: Mutex::default(),
            imports_begun: AtomicUsize::new(0),
            imports_cancelled: AtomicUsize::new(0),
            slow_import: AtomicBool::new(false),
            backup_pieces: AtomicUsize::new(0),
            advanced: Default::default(),
        }
    }

    pub fn advance(&self, lsn: u64) {
        let _guard = self.advanced.0.lock();
        self.last_record_lsn.store(lsn, Ordering::SeqCst);
        self.advanced.1.notify_all();
    }

    fn page(&self, key: Key, lsn: Lsn) -> Result<Bytes, BackendError> {
        assert!(lsn <= TimelineBackend::last_record_lsn(self), "reads are at or below the last record");
        match key.object().expect("a key of ours") {
            Object::RelationBlock { block_no: CORRUPT_BLOCK, .. } => {
                Err(BackendError::new(BackendErrorKind::Corrupt, "checksum does not match. block=`666`"))
            }
            Object::RelationBlock { block_no: UNAVAILABLE_BLOCK, .. } => {
                Err(BackendError::new(BackendErrorKind::Unavailable, "this shard has moved"))
            }
            Object::RelationBlock { block_no: ZERO_BLOCK, .. } => Ok(Bytes::new()),
            Object::RelationBlock { rel, fork: ForkNumber::Main, block_no } if rel == REL => {
                Ok(page_of(block_no, lsn.as_u64()).into())
            }
            Object::SlruPage { page_no, .. } => Ok(page_of(page_no, lsn.as_u64()).into()),
            object => Err(BackendError::not_found(format!("relation does not exist. object=`{object:?}`"))),
        }
    }

    pub fn info(&self) -> TimelineInfo {
        let last_record_lsn = TimelineBackend::last_record_lsn(self);
        TimelineInfo {
            tenant: TENANT.into(),
            id: ID.into(),
            name: "main".into(),
            state: "active".into(),
            pg_version: Some(PgVersion::V15),
            ancestor: None,
            first_readable_lsn: Some(Lsn::new(FIRST_READABLE)),
            last_record_lsn: Some(last_record_lsn),
            durable_lsn: Some(Lsn::new(GROWN_AT)),
            received_lsn: Some(last_record_lsn),
            oldest_wal: None,
            pg_timelines: None,
            source_end_lsn: last_record_lsn.checked_add(0x100),
            receiver: Some("streaming".into()),
            primary: None,
            last_error: None,
        }
    }
}

/// A repository of one.
pub struct ToyRepository(pub Arc<Toy>);

impl RepositoryBackend for ToyRepository {
    fn timeline(&self, tenant: Option<&str>, timeline: &str) -> Result<Arc<dyn TimelineBackend>, BackendError> {
        if ["main", ID].contains(&timeline) && tenant.is_none_or(|tenant| tenant == TENANT) {
            return Ok(self.0.clone());
        }
        Err(BackendError::not_found(format!("timeline does not exist. timeline=`{timeline}`")))
    }

    fn timelines(&self) -> Result<Vec<TimelineInfo>, BackendError> {
        Ok(vec![self.0.info()])
    }

    fn import(
        &self,
        name: &str,
        conninfo: &str,
        progress: &mut dyn FnMut(&ImportProgress) -> ControlFlow<()>,
    ) -> Result<TimelineInfo, BackendError> {
        assert_eq!(conninfo, "host=/tmp user='o''neill'");
        self.0.imports_begun.fetch_add(1, Ordering::SeqCst);
        let steps = if self.0.slow_import.load(Ordering::SeqCst) { 2_000 } else { 2 };
        for step in 1..=steps {
            let at = ImportProgress { phase: "base backup".into(), bytes_done: step * 5, bytes_total: Some(steps * 5) };
            if progress(&at).is_break() {
                self.0.imports_cancelled.fetch_add(1, Ordering::SeqCst);
                return Err(BackendError::new(BackendErrorKind::Cancelled, "import cancelled"));
            }
            if steps > 2 {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(TimelineInfo { name: name.to_owned(), ..self.0.info() })
    }

    /// Its bytes count up. Of a backup as of [`GROWN_AT`] the middle cannot be read.
    fn base_backup(&self, request: &BackupRequest, sink: &mut dyn BackupSink) -> Result<(), BackendError> {
        let branch_lsn = request.request_lsn.expect("the service names an LSN");
        assert!(branch_lsn <= TimelineBackend::last_record_lsn(&*self.0), "the LSN has arrived");
        if branch_lsn < Lsn::new(FIRST_READABLE) {
            return Err(BackendError::new(BackendErrorKind::InvalidRequest, "the LSN is below the first readable one"));
        }
        let stopped = |_| BackendError::new(BackendErrorKind::Unavailable, "the receiver takes no more");
        let begin = BackupBegin { branch_lsn, pg_timeline_id: 4096, bytes_estimated: BACKUP_BYTES as u64 };
        sink.begin(&begin).map_err(stopped)?;
        let bytes = backup_bytes();
        let (first, second) = bytes.split_at(BACKUP_BYTES / 2);
        sink.write_all(first).map_err(stopped)?;
        if branch_lsn == Lsn::new(GROWN_AT) {
            return Err(BackendError::new(BackendErrorKind::Corrupt, "the backup ends here"));
        }
        if request.gzip {
            // Without end: until the sink takes no more.
            loop {
                sink.write_all(second).map_err(stopped)?;
                self.0.backup_pieces.fetch_add(1, Ordering::SeqCst);
            }
        }
        sink.write_all(second).map_err(stopped)
    }

    /// The answer repeats the command, so that a test sees what came through.
    fn change_timeline(
        &self,
        change: &TimelineChange,
        progress: &mut OnProgress<'_>,
    ) -> Result<TimelineChanged, BackendError> {
        let _ = progress(&ImportProgress { phase: "toy".into(), bytes_done: 1, bytes_total: None });
        let notices = vec![format!("{change:?}")];
        Ok(TimelineChanged { info: self.0.info(), notices })
    }

    /// One finding, so that a test sees what came through.
    fn verify(&self, options: &VerifyOptions, sink: &mut dyn VerifySink) -> Result<VerifyCounts, BackendError> {
        let _ = sink.progress(&VerifyProgress { phase: "store", bytes_done: 1, bytes_total: Some(2) });
        let _ = sink.finding(&Finding {
            timeline: options.timeline.clone(),
            part: Part::Wal,
            object: "record at 0/28".to_owned(),
            lsn: Some(Lsn::new(0x28)),
            file: Some("wal/000000010000000000000000".into()),
            what: format!("{:?}", options.bytes_per_second),
            what_to_do: "nothing",
        });
        Ok(VerifyCounts { findings: 1, ..VerifyCounts::default() })
    }

    fn wal_file(&self, _: &str, file: &str) -> Result<(u64, Box<dyn Read + Send>), BackendError> {
        match file {
            "whole" => Ok((BACKUP_BYTES as u64, Box::new(io::Cursor::new(backup_bytes())))),
            "broken" => Ok((8, Box::new(io::Cursor::new(b"half").chain(BrokenFile)))),
            "cut" => Ok((8, Box::new(io::Cursor::new(b"half")))),
            _ => Err(BackendError::new(BackendErrorKind::FileMissing, "Not found: no such file")),
        }
    }

    fn repair(&self, request: &RepairRequest, _: &mut dyn VerifySink) -> Result<Vec<Repaired>, BackendError> {
        Ok(vec![Repaired {
            timeline: request.timeline.clone(),
            part: Part::Wal,
            object: "segment".to_owned(),
            file: None,
            outcome: if request.dry_run { RepairOutcome::Possible } else { RepairOutcome::Repaired },
            what: "toy".to_owned(),
        }])
    }

    fn lease(&self, command: &LeaseCommand) -> Result<Vec<LeaseInfo>, BackendError> {
        match command {
            LeaseCommand::Give { timeline, lsn, seconds } => Ok(vec![LeaseInfo {
                lease_id: 7,
                timeline: timeline.clone(),
                lsn: *lsn,
                valid_until: WallTime::from_unix_seconds(seconds.unwrap_or(600) as i64),
            }]),
            LeaseCommand::List { .. } => Ok(Vec::new()),
            LeaseCommand::End { lease_id } => {
                Err(BackendError::not_found(format!("no such lease. lease=`{lease_id}`")))
            }
        }
    }

    /// One row: the command itself.
    fn gc(&self, command: &GcCommand, _: &mut OnProgress<'_>) -> Result<GcAnswer, BackendError> {
        let mut row = vec![Value::Null; command.columns().len()];
        row[0] = Value::Text(format!("{command:?}"));
        Ok(GcAnswer { rows: vec![row], notices: vec!["collected".to_owned()] })
    }

    /// One row: the command itself.
    fn sizes(&self, command: &SizeCommand, _: &mut OnProgress<'_>) -> Result<Vec<Vec<Value>>, BackendError> {
        let mut row = vec![Value::Null; crate::page_service::size::COLUMNS.len()];
        row[0] = Value::Text(format!("{command:?}"));
        Ok(vec![row])
    }

    fn import_files(
        &self,
        name: &str,
        files: &ClusterFiles,
        progress: &mut dyn FnMut(&ImportProgress) -> ControlFlow<()>,
    ) -> Result<TimelineInfo, BackendError> {
        assert_eq!(*files, ClusterFiles::Directory("/srv/o'neill".into()));
        let _ = progress(&ImportProgress { phase: "files".into(), bytes_done: 7, bytes_total: None });
        Ok(TimelineInfo { name: name.to_owned(), ..self.0.info() })
    }

    fn store_stats(&self) -> Result<Vec<(String, String)>, BackendError> {
        Ok(vec![("files".into(), "3".into()), ("bytes".into(), "4711".into())])
    }

    fn redo_stats(&self) -> Result<Vec<(String, String)>, BackendError> {
        Ok(vec![("engine".into(), "native".into())])
    }
}

impl TimelineBackend for Toy {
    fn info(&self) -> TimelineInfo {
        Toy::info(self)
    }

    fn last_record_lsn(&self) -> Lsn {
        Lsn::new(self.last_record_lsn.load(Ordering::SeqCst))
    }

    fn first_readable_lsn(&self) -> Lsn {
        Lsn::new(FIRST_READABLE)
    }

    fn is_leased(&self, lsn: Lsn) -> bool {
        lsn == Lsn::new(LEASED)
    }

    fn wait_lsn(&self, lsn: Lsn, timeout: Duration) -> Result<Lsn, BackendError> {
        let deadline = Instant::now() + timeout;
        let mut guard = self.advanced.0.lock();
        while TimelineBackend::last_record_lsn(self) < lsn {
            if self.advanced.1.wait_until(&mut guard, deadline).timed_out() {
                return Err(BackendError::new(
                    BackendErrorKind::NotYet,
                    format!("timed out while waiting for WAL. lsn=`{lsn}`"),
                ));
            }
        }
        Ok(TimelineBackend::last_record_lsn(self))
    }

    fn get_pages_at_lsn(&self, requests: &[(Key, Lsn)]) -> Vec<Result<Bytes, BackendError>> {
        self.batches.lock().push(requests.len());
        if self.shutting_down.load(Ordering::SeqCst) {
            return vec![Err(BackendError::new(BackendErrorKind::ShuttingDown, "going down")); requests.len()];
        }
        requests.iter().map(|(key, lsn)| self.page(*key, *lsn)).collect()
    }

    fn relation_size(&self, rel: RelTag, fork: ForkNumber, lsn: Lsn) -> Result<Option<u32>, BackendError> {
        Ok((rel == REL && fork == ForkNumber::Main).then(|| block_count(lsn.as_u64())))
    }

    fn relations(&self, spc_oid: Oid, db_oid: Oid, lsn: Lsn) -> Result<Vec<(RelTag, ForkNumber, u32)>, BackendError> {
        let here = (spc_oid, db_oid) == (REL.spc_oid, REL.db_oid);
        let relations = [(REL, ForkNumber::Main, block_count(lsn.as_u64())), (REL, ForkNumber::Vm, 1)];
        Ok(if here { relations.to_vec() } else { Vec::new() })
    }

    fn databases(&self, _: Lsn) -> Result<Vec<(Oid, Oid)>, BackendError> {
        Ok(vec![(1663, 5)])
    }

    fn slru_segment_size(&self, kind: SlruKind, segment_no: u32, _: Lsn) -> Result<Option<u32>, BackendError> {
        Ok((kind == SlruKind::Clog && segment_no == 2).then_some(3))
    }

    fn slru_segments(&self, kind: SlruKind, _: Lsn) -> Result<Vec<(u32, u32)>, BackendError> {
        Ok(if kind == SlruKind::Clog { vec![(2, 3)] } else { Vec::new() })
    }

    fn objects(&self, class: Object, lsn: Lsn) -> Result<Vec<(Object, Bytes)>, BackendError> {
        assert!(lsn <= TimelineBackend::last_record_lsn(self), "reads are at or below the last record");
        let objects = [
            (Object::ControlFile, Bytes::from_static(b"control")),
            (Object::Checkpoint, Bytes::from_static(b"checkpoint")),
            (Object::Database { spc_oid: 1663, db_oid: 5 }, Bytes::from_static(&[1])),
            (Object::RelationMap { spc_oid: 1663, db_oid: 5 }, Bytes::from_static(b"map")),
            (Object::TwoPhase { xid: 0x1_0000_0007 }, Bytes::from_static(b"prepared")),
            (Object::ReplicationOrigin { origin_id: 3 }, Bytes::new()),
        ];
        let of_class = |object: &Object| std::mem::discriminant(object) == std::mem::discriminant(&class);
        // The transaction is prepared where the relation grows.
        let is_there = |object: &Object| !matches!(object, Object::TwoPhase { .. }) || lsn >= Lsn::new(GROWN_AT);
        Ok(objects.into_iter().filter(|(object, _)| of_class(object) && is_there(object)).collect())
    }

    /// A second passes with each 0x1000 bytes.
    fn commit_time_at(&self, lsn: Lsn) -> Result<Option<WallTime>, BackendError> {
        let seconds = i64::try_from(lsn.as_u64() / 0x1000).expect("small LSNs");
        Ok((lsn < Lsn::new(GROWN_AT + 0x1000)).then(|| WallTime::from_postgres(seconds * 1_000_000)))
    }

    fn lsn_at_time(&self, time: WallTime) -> Result<(Lsn, WallTime), BackendError> {
        let seconds = u64::try_from(time.as_postgres() / 1_000_000)
            .map_err(|_| BackendError::new(BackendErrorKind::InvalidRequest, "before the first time"))?;
        Ok((Lsn::new(seconds * 0x1000), time))
    }

    fn history(&self, key: Key, lsn_range: Range<Lsn>) -> Result<Vec<(Lsn, Kind, Bytes)>, BackendError> {
        let Ok(Object::RelationBlock { block_no, .. }) = key.object() else { return Ok(Vec::new()) };
        let page = page_of(block_no, GROWN_AT);
        let versions = [
            (Lsn::new(LAST_RECORD), Kind::Delta, Bytes::from_static(b"\0record")),
            (Lsn::new(GROWN_AT), Kind::Image, Bytes::from(page)),
        ];
        Ok(versions.into_iter().filter(|(lsn, ..)| lsn_range.contains(lsn)).collect())
    }
}
