//! Files to versions: each page an image, each fork its size, all at one LSN.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::Arc;

use byteorder::{ByteOrder, LittleEndian};
use keyenc::{Key, Kind, Object};
use postgres_ffi::checkpoint::Checkpoint;
use postgres_ffi::control_file::ControlFile;
use postgres_ffi::page::{Page, ZERO_PAGE};
use postgres_ffi::records::xact::TWOPHASE_MAGIC;
use postgres_ffi::rel::{GLOBALTABLESPACE_OID, SLRU_PAGES_PER_SEGMENT};
use postgres_ffi::relation_map::RelationMap;
use postgres_ffi::slru::{XidStatus, clog_place, clog_status};
use postgres_ffi::{BLCKSZ, BlockNumber, ForkNumber, Lsn, PgVersion, RelTag, SlruKind, TransactionId};

use super::ImportError;
use super::layout::{FileKind, RELSEG_BLOCKS, classify};
use crate::ingest::{CommitTime, KeptSize, OriginProgress};
use crate::store::{Batch, Gathered, TimelineStore};
use crate::wall_time::WallTime;

/// A batch is put when it holds this many bytes.
const BATCH_BYTES_MAX: usize = 4 << 20;
/// The same in versions: pages of zeroes have no bytes.
const BATCH_VERSIONS_MAX: usize = 64 << 10;
/// Longest small file (relation map, prepared transaction, replication origins) that is read.
const SMALL_FILE_BYTES_MAX: u64 = 64 << 20;

/// Bytes of all states of prepared transactions, which are held until the last file has come.
const TWO_PHASE_BYTES_MAX: usize = 256 << 20;

/// How much an import brought.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct ImportCounts {
    /// Pages of relations and SLRUs.
    pub page_count: u64,
    /// Relation forks.
    pub fork_count: u64,
    /// Databases, the shared one included.
    pub database_count: u64,
    /// Bytes of files that were kept.
    pub bytes: u64,
}

/// Takes the files of one cluster and puts them into one timeline's store. Nothing is published before [`ImportSink::finish`].
pub struct ImportSink {
    store: Arc<TimelineStore>,
    lsn: Lsn,
    version: PgVersion,
    /// The files are copied while a server writes them.
    is_fuzzy: bool,
    batch: Batch,
    /// Blocks in each segment file of each fork.
    fork_segments: BTreeMap<(RelTag, ForkNumber), BTreeMap<u32, BlockNumber>>,
    control_file: Option<Box<ControlFile>>,
    /// Numbers and contents of `pg_twophase`; their full xids are known once the control file is.
    two_phase: Vec<(u64, Vec<u8>)>,
    two_phase_bytes: usize,
    /// Directories of databases (tablespace, database) that were put.
    database_dirs: BTreeSet<(u32, u32)>,
    /// Sums of what came: see `ingest::kept_sizes`.
    kept_sizes: BTreeMap<Key, KeptSize>,
    missing_segments: Vec<MissingSegment>,
    /// Catalog versions of files in tablespaces that were not kept: leftovers, unless they are the cluster's own.
    unreleased_catalogs: BTreeSet<u32>,
    counts: ImportCounts,
}

/// What came of a cluster's files.
#[derive(Debug)]
pub struct Imported {
    /// The cluster's description of itself.
    pub control_file: Box<ControlFile>,
    /// Files that were not there. None of a stopped cluster's.
    pub missing_segments: Vec<MissingSegment>,
    /// How much came.
    pub counts: ImportCounts,
}

/// A file of a relation that was not there although a later one was. Either the relation was dropped between the two, or the file was made behind the place up to which the directory had
/// been listed, and all of it is in WAL; else the backup is damaged. Without the first file there is no relation, unless WAL makes it and all of it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MissingSegment {
    /// The relation.
    pub rel: RelTag,
    /// Its fork.
    pub fork: ForkNumber,
    /// The file, counted from 0.
    pub segment_no: u32,
}

impl MissingSegment {
    /// The blocks of the file that a fork of so many blocks has.
    pub fn blocks_of(&self, block_count: BlockNumber) -> std::ops::Range<BlockNumber> {
        let first = self.segment_no.saturating_mul(RELSEG_BLOCKS);
        first..block_count.min(first.saturating_add(RELSEG_BLOCKS)).max(first)
    }

    /// Every file of a fork of so many blocks.
    pub fn all_of(rel: RelTag, fork: ForkNumber, block_count: BlockNumber) -> impl Iterator<Item = MissingSegment> {
        (0..block_count.div_ceil(RELSEG_BLOCKS)).map(move |segment_no| MissingSegment { rel, fork, segment_no })
    }
}

impl ImportSink {
    /// Takes files of a stopped cluster of `version`; every version gets `lsn`.
    pub fn new(store: Arc<TimelineStore>, version: PgVersion, lsn: Lsn) -> Self {
        ImportSink {
            store,
            lsn,
            version,
            is_fuzzy: false,
            batch: Batch::new(),
            fork_segments: BTreeMap::new(),
            control_file: None,
            two_phase: Vec::new(),
            two_phase_bytes: 0,
            database_dirs: BTreeSet::new(),
            kept_sizes: BTreeMap::new(),
            missing_segments: Vec::new(),
            unreleased_catalogs: BTreeSet::new(),
            counts: ImportCounts::default(),
        }
    }

    /// The same for a cluster that is running: what WAL from `lsn` on brings again need not be whole.
    pub fn fuzzy(store: Arc<TimelineStore>, version: PgVersion, lsn: Lsn) -> Self {
        ImportSink { is_fuzzy: true, ..Self::new(store, version, lsn) }
    }

    /// The cluster's control file, if it has come.
    pub fn control_file(&self) -> Option<&ControlFile> {
        self.control_file.as_deref()
    }

    /// How much has come so far.
    pub fn counts(&self) -> ImportCounts {
        self.counts
    }

    /// Takes the file at `path` (relative to the data directory) with `length` bytes. False: a file that is not kept, and was not read.
    pub fn file(&mut self, path: &str, length: u64, contents: &mut dyn Read) -> Result<bool, ImportError> {
        let kind = classify(path, self.version);
        let mut counted = Counted { inner: contents, count: 0 };
        let contents = &mut counted;
        match kind {
            FileKind::NotKept => return Ok(false),
            FileKind::Unreleased { catalog_version_no } => {
                self.unreleased_catalogs.insert(catalog_version_no);
                return Ok(false);
            }
            FileKind::Relation { rel, fork, segment_no } => {
                self.relation_segment(path, rel, fork, segment_no, contents)?
            }
            FileKind::Slru { kind, segment_no } => self.slru_segment(path, kind, segment_no, contents)?,
            FileKind::RelationMap { spc_oid, db_oid } => {
                let bytes = read_small(path, contents)?;
                let damaged = |_| ImportError::FileDamaged { file: path.to_string(), reason: "not a relation map" };
                RelationMap::decode(self.version, &bytes).map_err(damaged)?;
                self.put(Object::RelationMap { spc_oid, db_oid }, &bytes)?;
                if spc_oid == GLOBALTABLESPACE_OID {
                    self.database(spc_oid, db_oid)?;
                }
            }
            FileKind::Database { spc_oid, db_oid } => {
                let text = read_small(path, contents)?;
                if text.trim_ascii() != self.version.to_string().as_bytes() {
                    return Err(ImportError::FileDamaged { file: path.to_string(), reason: "another version" });
                }
                self.database(spc_oid, db_oid)?;
            }
            FileKind::ControlFile => {
                let bytes = read_small(path, contents)?;
                let control_file = ControlFile::decode_as(self.version, &bytes)?;
                super::check_control_file(&control_file)?;
                self.put(Object::ControlFile, &bytes)?;
                self.put(Object::Checkpoint, &control_file.checkpoint_copy)?;
                self.commit_time(&control_file)?;
                self.control_file = Some(Box::new(control_file));
            }
            FileKind::TwoPhase { xid } => self.two_phase(path, xid, contents)?,
            FileKind::ReplicationOrigins => self.replication_origins(path, contents)?,
        }
        if counted.count != length {
            return Err(ImportError::FileCut { file: path.to_string(), length: counted.count });
        }
        self.counts.bytes += length;
        Ok(true)
    }

    /// What is known of time before the first transaction ends: see `timeline::commit_times`.
    fn commit_time(&mut self, control_file: &ControlFile) -> Result<(), ImportError> {
        let written = WallTime::from_unix_seconds(control_file.time);
        let value = CommitTime { time: written.as_postgres(), before_lsn: None };
        self.put(Object::CommitTime, &value.encode())
    }

    fn database(&mut self, spc_oid: u32, db_oid: u32) -> Result<(), ImportError> {
        self.counts.database_count += 1;
        self.database_dir(spc_oid, db_oid)
    }

    fn database_dir(&mut self, spc_oid: u32, db_oid: u32) -> Result<(), ImportError> {
        if self.database_dirs.insert((spc_oid, db_oid)) {
            self.put(Object::Database { spc_oid, db_oid }, &[])?;
        }
        Ok(())
    }

    fn relation_segment(
        &mut self,
        path: &str,
        rel: RelTag,
        fork: ForkNumber,
        segment_no: u32,
        contents: &mut dyn Read,
    ) -> Result<(), ImportError> {
        let first_block_no = segment_no * RELSEG_BLOCKS;
        let mut block_count = 0;
        while let Some(page) = read_page(path, contents, self.is_fuzzy)? {
            if block_count == RELSEG_BLOCKS {
                return Err(ImportError::FileDamaged { file: path.to_string(), reason: "longer than a segment" });
            }
            self.page(Key::block(rel, fork, first_block_no + block_count), &page)?;
            block_count += 1;
        }
        self.fork_segments.entry((rel, fork)).or_default().insert(segment_no, block_count);
        Ok(())
    }

    /// Puts the size of a fork. A segment that was copied before it was filled up, while a later one was copied with blocks in it, gets
    /// pages of zeroes: what they hold came later and is in WAL. Of one that is not there at all WAL must tell the rest ([`MissingSegment`]). In a stopped cluster
    /// PostgreSQL ignores what lies behind a segment that is not full, and so it is damage.
    fn fork_size(
        &mut self,
        rel: RelTag,
        fork: ForkNumber,
        segments: &BTreeMap<u32, BlockNumber>,
    ) -> Result<(), ImportError> {
        self.counts.fork_count += 1;
        let last = segments.iter().rev().find(|(_, block_count)| **block_count > 0);
        let Some((last_segment_no, last_count)) = last else {
            return self.put_fork_size(rel, fork, 0);
        };
        let is_missing = |segment_no: u32| !segments.contains_key(&segment_no);
        if is_missing(0) {
            // Without its first file it is none of PostgreSQL's either: what a drop has left, or is just removing. Its later files may stay for ever after a crash in between.
            // Or it came while a running server's directory was being listed, and is in WAL.
            if self.is_fuzzy {
                self.missing_segments.push(MissingSegment { rel, fork, segment_no: 0 });
            }
            return Ok(());
        }
        if self.is_fuzzy && segments.get(&0) == Some(&0) && (0..*last_segment_no).any(is_missing) {
            // A drop is just removing it; or it was empty when it was copied, and has all come with WAL since.
            let missing = (1..*last_segment_no).filter(|segment_no| is_missing(*segment_no));
            self.missing_segments.extend(missing.map(|segment_no| MissingSegment { rel, fork, segment_no }));
            return self.put_fork_size(rel, fork, 0);
        }
        for segment_no in 0..*last_segment_no {
            let block_count = segments.get(&segment_no).copied();
            if block_count.unwrap_or(0) < RELSEG_BLOCKS && !self.is_fuzzy {
                let file = format!("{rel} {fork}, segment {segment_no}");
                return Err(ImportError::FileDamaged { file, reason: "not full" });
            }
            let Some(block_count) = block_count else {
                self.missing_segments.push(MissingSegment { rel, fork, segment_no });
                continue;
            };
            for block_no in block_count..RELSEG_BLOCKS {
                self.page(Key::block(rel, fork, segment_no * RELSEG_BLOCKS + block_no), &ZERO_PAGE)?;
            }
        }
        let size = last_segment_no * RELSEG_BLOCKS + last_count;
        self.put_fork_size(rel, fork, size)
    }

    fn put_fork_size(&mut self, rel: RelTag, fork: ForkNumber, block_count: BlockNumber) -> Result<(), ImportError> {
        let database = Object::DatabaseSize { spc_oid: rel.spc_oid, db_oid: rel.db_oid };
        self.kept_sizes.entry(database.into()).or_default().add_fork(fork, block_count);
        self.put(Object::RelationSize { rel, fork }, &block_count.to_be_bytes())
    }

    /// PG 14-18: src/backend/access/transam/twophase.c, ReadTwoPhaseFile: magic, length, body, CRC.
    fn two_phase(&mut self, path: &str, xid: u64, contents: &mut dyn Read) -> Result<(), ImportError> {
        let damaged = |reason| ImportError::FileDamaged { file: path.to_string(), reason };
        let state = read_small(path, contents)?;
        let Some((body, crc)) = state.split_last_chunk::<4>() else { return Err(damaged("too short")) };
        if body.first_chunk() != Some(&TWOPHASE_MAGIC.to_le_bytes()) {
            return Err(damaged("wrong magic number"));
        }
        if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
            return Err(damaged("wrong checksum"));
        }
        self.two_phase_bytes += state.len();
        if self.two_phase_bytes > TWO_PHASE_BYTES_MAX {
            return Err(damaged("with it the states of prepared transactions are larger than 256 MiB"));
        }
        self.two_phase.push((xid, state));
        Ok(())
    }

    fn slru_segment(
        &mut self,
        path: &str,
        kind: SlruKind,
        segment_no: u32,
        contents: &mut dyn Read,
    ) -> Result<(), ImportError> {
        let mut page_count = 0;
        while let Some(page) = read_page(path, contents, self.is_fuzzy)? {
            if page_count == SLRU_PAGES_PER_SEGMENT {
                return Err(ImportError::FileDamaged { file: path.to_string(), reason: "longer than an SLRU segment" });
            }
            let page_no = segment_no * SLRU_PAGES_PER_SEGMENT + page_count;
            self.page(Object::SlruPage { kind, page_no }.into(), &page)?;
            page_count += 1;
        }
        self.kept_sizes.entry(Object::SlruSize { kind }.into()).or_default().add_segment(page_count);
        self.put(Object::SlruSegment { kind, segment_no }, &page_count.to_be_bytes())
    }

    /// PG 14-18: src/backend/replication/logical/origin.c, CheckPointReplicationOrigin: magic, (id u16, 6 bytes, lsn u64) each, crc.
    fn replication_origins(&mut self, path: &str, contents: &mut dyn Read) -> Result<(), ImportError> {
        const MAGIC: u32 = 0x1257_DADE;
        const ENTRY_LEN: usize = 16;
        let damaged = |reason| ImportError::FileDamaged { file: path.to_string(), reason };
        let bytes = read_small(path, contents)?;
        let Some(entries_len) = bytes.len().checked_sub(8).filter(|len| len % ENTRY_LEN == 0) else {
            return Err(damaged("wrong length"));
        };
        let (body, crc) = bytes.split_at(4 + entries_len);
        if LittleEndian::read_u32(body) != MAGIC {
            return Err(damaged("wrong magic number"));
        }
        if crc32c::crc32c(body) != LittleEndian::read_u32(crc) {
            return Err(damaged("wrong checksum"));
        }
        for entry in body[4..].chunks_exact(ENTRY_LEN) {
            let origin_id = LittleEndian::read_u16(entry);
            let remote_lsn = Lsn::new(LittleEndian::read_u64(&entry[8..]));
            let progress = OriginProgress { remote_lsn, local_lsn: self.lsn };
            self.put(Object::ReplicationOrigin { origin_id }, &progress.encode())?;
        }
        Ok(())
    }

    fn page(&mut self, key: Key, page: &Page) -> Result<(), ImportError> {
        let value: &[u8] = if *page == ZERO_PAGE { &[] } else { page };
        self.batch.put(key, self.lsn, Kind::Image, value);
        self.counts.page_count += 1;
        self.put_full_batch()
    }

    fn put(&mut self, object: Object, value: &[u8]) -> Result<(), ImportError> {
        self.batch.put(object.into(), self.lsn, Kind::Image, value);
        self.put_full_batch()
    }

    fn put_full_batch(&mut self) -> Result<(), ImportError> {
        if self.batch.value_bytes() >= BATCH_BYTES_MAX || self.batch.len() >= BATCH_VERSIONS_MAX {
            self.put_batch()?;
        }
        Ok(())
    }

    fn put_batch(&mut self) -> Result<(), ImportError> {
        self.store.put(&self.batch, self.lsn)?;
        self.batch.clear();
        Ok(())
    }

    /// Puts sizes and prepared transactions, and makes everything durable with a watermark. Errors: a file that every cluster has did not come.
    pub fn finish(mut self) -> Result<Imported, ImportError> {
        let control_file = self.control_file.take().ok_or(ImportError::FileMissing { file: "global/pg_control" })?;
        if self.unreleased_catalogs.contains(&control_file.catalog_version_no) {
            return Err(ImportError::UnsupportedCluster {
                setting: "the catalog version of a cluster with tablespaces",
                expected: "that of a release",
                value: control_file.catalog_version_no.to_string(),
            });
        }
        for ((rel, fork), segments) in std::mem::take(&mut self.fork_segments) {
            // A database has a directory in each tablespace that it has relations in; PG_VERSION stands in its own alone.
            self.database_dir(rel.spc_oid, rel.db_oid)?;
            self.fork_size(rel, fork, &segments)?;
        }
        for (key, size) in std::mem::take(&mut self.kept_sizes) {
            self.batch.put(key, self.lsn, Kind::Image, &size.encode());
        }
        self.put_batch()?;
        for (number, state) in std::mem::take(&mut self.two_phase) {
            let xid = self.full_xid(&control_file, number)?;
            if !self.has_ended(xid)? {
                self.put(Object::TwoPhase { xid }, &state)?;
            }
        }
        self.put_batch()?;
        self.store.flush(true)?;
        Ok(Imported { control_file, missing_segments: self.missing_segments, counts: self.counts })
    }

    /// True for a transaction whose end is in the CLOG. Its file may still be there: the server removes it when a synchronous standby has confirmed that end, and no record says so.
    /// PG 14-18: src/backend/access/transam/twophase.c, FinishPreparedTransaction; recovery leaves such files out too: ProcessTwoPhaseBuffer.
    fn has_ended(&self, xid: u64) -> Result<bool, ImportError> {
        let (page_no, index) = clog_place(xid as TransactionId);
        let mut found = Gathered::default();
        self.store.gather(&Object::SlruPage { kind: SlruKind::Clog, page_no }.into(), self.lsn, &mut found)?;
        let page = found.versions.first().and_then(|(_, _, value)| <&Page>::try_from(&value[..]).ok());
        let status = page.map_or(XidStatus::InProgress, |page| clog_status(page, index));
        Ok(matches!(status, XidStatus::Committed | XidStatus::Aborted))
    }

    /// Up to 16, the file's name holds 32 bits of the xid; the epoch follows from the next xid of the checkpoint, which is not far: the next checkpoint may have
    /// written the file already, and then the xid lies behind it.
    fn full_xid(&self, control_file: &ControlFile, number: u64) -> Result<u64, ImportError> {
        match u32::try_from(number) {
            Ok(xid) if self.version < PgVersion::V17 => {
                let checkpoint = Checkpoint::decode(self.version, &control_file.checkpoint_copy).map_err(|_| {
                    ImportError::FileDamaged { file: "global/pg_control".to_string(), reason: "no checkpoint in it" }
                })?;
                let from_next = xid.wrapping_sub(checkpoint.next_xid as u32).cast_signed();
                Ok(checkpoint.next_xid.saturating_add_signed(from_next.into()))
            }
            _ => Ok(number),
        }
    }
}

/// Counts what is read.
struct Counted<'a> {
    inner: &'a mut dyn Read,
    count: u64,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count += count as u64;
        Ok(count)
    }
}

/// The next page of a file; `None` at its end. Errors: the file ends within a page, unless it may: a block that was just being added when a
/// running server's file was looked at is as good as one that came a moment later.
fn read_page(path: &str, contents: &mut dyn Read, may_end_within: bool) -> Result<Option<Box<Page>>, ImportError> {
    let mut page = Box::new(ZERO_PAGE);
    let mut filled = 0;
    while filled < BLCKSZ {
        match contents.read(&mut page[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(source) => return Err(ImportError::Io { path: path.into(), source }),
        }
    }
    match filled {
        0 => Ok(None),
        BLCKSZ => Ok(Some(page)),
        _ if may_end_within => Ok(None),
        _ => Err(ImportError::FileCut { file: path.to_string(), length: filled as u64 }),
    }
}

fn read_small(path: &str, contents: &mut dyn Read) -> Result<Vec<u8>, ImportError> {
    let mut bytes = Vec::new();
    contents
        .take(SMALL_FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| ImportError::Io { path: path.into(), source })?;
    if bytes.len() as u64 > SMALL_FILE_BYTES_MAX {
        return Err(ImportError::FileDamaged { file: path.to_string(), reason: "longer than its kind can be" });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
