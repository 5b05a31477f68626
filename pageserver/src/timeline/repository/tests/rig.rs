//! A repository in a temporary directory, with a timeline that looks imported, and writes of a few kinds of objects.

use std::ops::ControlFlow;
use std::sync::Arc;

use byteorder::{ByteOrder, LittleEndian};
use bytes::Bytes;
use keyenc::{Key, Kind, Object};
use postgres_ffi::checkpoint::Checkpoint;
use postgres_ffi::control_file::{ControlFile, catalog_version, control_version};
use postgres_ffi::slru::XidStatus;
use postgres_ffi::{BLCKSZ, ForkNumber, Lsn, PgVersion, RelTag, SlruKind};

use crate::config::Config;
use crate::delta::{Delta, Index};
use crate::import::{ImportCounts, ImportSummary, MissingSegment};
use crate::ingest::KeptSizes;
use crate::store::Batch;
use crate::timeline::gc::{OwnRetention, RetentionTime, WalSize};
use crate::timeline::{GcReport, Repository, Timeline};

pub const VERSION: PgVersion = PgVersion::V17;
pub const START_LSN: Lsn = Lsn::new(0x100_0100);
/// Transactions of one made-up CLOG page.
pub const XACT_COUNT: u16 = 200;

/// Where the record with this number ends that a test writes: eight bytes each.
pub fn at(n: u64) -> Lsn {
    Lsn::new(START_LSN.as_u64() + n * 8)
}

/// A retention of so many of these records.
pub fn keep_records(count: u64) -> OwnRetention {
    OwnRetention { time: Some(RetentionTime::from_seconds(0)), wal: Some(WalSize::from_bytes(count * 8)) }
}

/// Keeps this many records before the last one, and collects.
pub fn collect(repository: &Repository, name: &str, kept: u64) -> GcReport {
    repository.set_retention(name, Some(keep_records(kept))).unwrap();
    repository.timeline_named(name).unwrap().store.flush(true).unwrap();
    repository.collect_garbage(name, false, &mut |_, _| ControlFlow::Continue(())).unwrap()
}

/// Where a record can end, at or below `lsn`: aligned, and neither within nor right behind the header of a WAL page.
pub fn record_end(lsn: Lsn) -> Lsn {
    let aligned = lsn.as_u64() / 8 * 8;
    let in_page = aligned % 8192;
    let header_len = if (aligned - in_page).is_multiple_of(16 << 20) { 40 } else { 24 };
    Lsn::new(if in_page <= header_len { aligned - in_page } else { aligned })
}

/// What a test writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// A fork has so many blocks; `None`: it is gone.
    Size(u32, Option<u32>),
    /// A block's whole page, known by its tag.
    Block(u32, u32, u64),
    /// A transaction of the CLOG page is committed.
    Commit(u16),
    /// A prepared transaction is there, or gone.
    TwoPhase(u64, bool),
    /// The second segment of the CLOG has so many pages; `None`: it is gone.
    Segment(Option<u32>),
    /// A page of it begins with zeroes.
    SlruZero(u32),
    /// A transaction of a page of it is committed; true: and the page begins anew.
    SlruCommit(u32, u16, bool),
}

pub fn rel(n: u32) -> RelTag {
    RelTag { spc_oid: 1663, db_oid: 5, rel_number: 16384 + n }
}

pub fn block(n: u32, block_no: u32) -> Key {
    Key::block(rel(n), ForkNumber::Main, block_no)
}

pub fn clog() -> Key {
    Object::SlruPage { kind: SlruKind::Clog, page_no: 3 }.into()
}

/// A page of the CLOG's second segment.
pub fn slru_page(place: u32) -> Key {
    Object::SlruPage { kind: SlruKind::Clog, page_no: 32 + place }.into()
}

pub fn page(tag: u64) -> Bytes {
    Bytes::from(tag.to_be_bytes().repeat(BLCKSZ / 8))
}

pub fn open(dir: &tempfile::TempDir) -> Arc<Repository> {
    let mut config = Config { page_cache_mib: 1, ..Config::default() };
    config.store.layer_mib = 8;
    config.store.block_cache_mib = 1;
    config.redo.backlog_records_min = 4;
    config.redo.cache_back_records_min = 2;
    config.wait_lsn_timeout_seconds = 1;
    Repository::open(dir.path(), config).unwrap()
}

/// A control file that decodes, of a cluster that nobody runs.
pub fn control_file() -> ControlFile {
    let mut bytes = vec![0; 8192];
    LittleEndian::write_u64(&mut bytes, 7);
    LittleEndian::write_u64(&mut bytes[32..], START_LSN.as_u64());
    for (offset, value) in [
        (8, control_version(VERSION)),
        (12, catalog_version(VERSION)),
        (204, 8),
        (216, 8192),
        (220, 131_072),
        (224, 8192),
        (228, 1 << 20),
    ] {
        LittleEndian::write_u32(&mut bytes[offset..], value);
    }
    LittleEndian::write_f64(&mut bytes[208..], 1_234_567.0);
    // PG 17: pg_control.h, ControlFileData: the CRC is behind the nonce.
    let crc = crc32c::crc32c(&bytes[..288]);
    LittleEndian::write_u32(&mut bytes[288..], crc);
    ControlFile::decode(&bytes).unwrap()
}

/// A timeline of a tenant of its own, readable from [`START_LSN`] on, with a CLOG page and nothing else.
pub fn import(repository: &Repository, name: &str) -> Arc<Timeline> {
    import_backup(repository, name, START_LSN, &[])
}

/// The same of a backup that ends at `first_readable_lsn` and lacks files.
pub fn import_backup(
    repository: &Repository,
    name: &str,
    first_readable_lsn: Lsn,
    missing_segments: &[MissingSegment],
) -> Arc<Timeline> {
    let new = repository.begin_import(name).unwrap();
    let store = repository.store.timeline(new.no).unwrap();
    let control_file = control_file();
    let mut batch = Batch::new();
    let mut put = |object: Object, value: &[u8]| batch.put(object.into(), START_LSN, Kind::Image, value);
    put(Object::ControlFile, &control_file.encode());
    put(Object::Checkpoint, &Checkpoint { next_xid: 1000, ..Checkpoint::default() }.encode(VERSION));
    put(Object::Database { spc_oid: 1663, db_oid: 5 }, b"");
    put(Object::SlruSegment { kind: SlruKind::Clog, segment_no: 0 }, &4_u32.to_be_bytes());
    for page_no in 0..4 {
        put(Object::SlruPage { kind: SlruKind::Clog, page_no }, b"");
    }
    store.put(&batch, START_LSN).unwrap();
    store.flush(true).unwrap();
    let summary = ImportSummary {
        control_file: Box::new(control_file),
        pg_timeline_id: 1,
        start_lsn: START_LSN,
        first_readable_lsn,
        missing_segments: missing_segments.to_vec(),
        counts: ImportCounts::default(),
    };
    repository.end_import(new, Ok(summary), None, None).unwrap().0
}

/// Puts `writes` as one record that ends at `lsn`, as the receiver of a followed timeline does.
pub fn write(repository: &Repository, timeline: &Timeline, lsn: Lsn, writes: &[Write]) {
    repository.begin_own_history(timeline).unwrap();
    let last_record_lsn = timeline.last_record_lsn();
    let mut batch = Batch::new();
    let mut kept_sizes = KeptSizes::default();
    for write in writes {
        let (key, kind, value) = version(write);
        let before = || timeline.count_object(key.object().unwrap(), last_record_lsn).unwrap();
        match write {
            Write::Size(n, after) => kept_sizes.fork_changed(rel(*n), ForkNumber::Main, before(), *after),
            Write::Segment(after) => kept_sizes.segment_changed(SlruKind::Clog, before(), *after),
            _ => {}
        }
        batch.put(key, lsn, kind, &value);
    }
    kept_sizes.put(&mut batch, lsn, timeline, last_record_lsn).unwrap();
    timeline.store.put(&batch, lsn).unwrap();
    timeline.last_record.advance(lsn);
}

/// What stands in the store for a write.
pub fn version(write: &Write) -> (Key, Kind, Vec<u8>) {
    match write {
        Write::Size(n, size) => {
            let key = Object::RelationSize { rel: rel(*n), fork: ForkNumber::Main }.into();
            match size {
                Some(size) => (key, Kind::Image, size.to_be_bytes().to_vec()),
                None => (key, Kind::Tombstone, Vec::new()),
            }
        }
        Write::Block(n, block_no, tag) => (block(*n, *block_no), Kind::Image, page(*tag).to_vec()),
        Write::Commit(index) => (clog(), Kind::Delta, committed(*index)),
        Write::Segment(page_count) => {
            let key = Object::SlruSegment { kind: SlruKind::Clog, segment_no: 1 }.into();
            match page_count {
                Some(page_count) => (key, Kind::Image, page_count.to_be_bytes().to_vec()),
                None => (key, Kind::Tombstone, Vec::new()),
            }
        }
        Write::SlruZero(place) => (slru_page(*place), Kind::Image, Vec::new()),
        Write::SlruCommit(place, index, begins) => {
            (slru_page(*place), if *begins { Kind::InitDelta } else { Kind::Delta }, committed(*index))
        }
        Write::TwoPhase(xid, is_there) => {
            let key = Object::TwoPhase { xid: *xid }.into();
            if *is_there { (key, Kind::Image, b"prepared".to_vec()) } else { (key, Kind::Tombstone, Vec::new()) }
        }
    }
}

/// A delta of a CLOG page. Long, so that a few make a long chain.
fn committed(index: u16) -> Vec<u8> {
    let mut value = Vec::new();
    let indexes = vec![Index::new(index); 2000];
    Delta::ClogStatus { status: XidStatus::Committed, indexes: &indexes }.encode(&mut value);
    value
}
