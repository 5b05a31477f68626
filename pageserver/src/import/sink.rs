//! Files to versions: each page an image, each fork its size, all at one LSN.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use byteorder::{ByteOrder, LittleEndian};
use keyenc::{Key, Kind, Object};
use postgres_ffi::checkpoint::Checkpoint;
use postgres_ffi::control_file::ControlFile;
use postgres_ffi::page::{Page, ZERO_PAGE};
use postgres_ffi::rel::{GLOBALTABLESPACE_OID, SLRU_PAGES_PER_SEGMENT};
use postgres_ffi::{BLCKSZ, BlockNumber, ForkNumber, Lsn, PgVersion, RelTag, SlruKind};

use super::ImportError;
use super::layout::{FileKind, RELSEG_BLOCKS, classify};
use crate::ingest::OriginProgress;
use crate::store::{Batch, TimelineStore};

/// A batch is put when it holds this many bytes.
const BATCH_BYTES_MAX: usize = 4 << 20;
/// Longest small file (relation map, prepared transaction, replication origins) that is read.
const SMALL_FILE_BYTES_MAX: u64 = 64 << 20;

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
    batch: Batch,
    fork_sizes: BTreeMap<(RelTag, ForkNumber), BlockNumber>,
    control_file: Option<Box<ControlFile>>,
    /// Numbers and contents of `pg_twophase`; their full xids are known once the control file is.
    two_phase: Vec<(u64, Vec<u8>)>,
    counts: ImportCounts,
}

impl ImportSink {
    /// Takes files of a cluster of `version`; every version gets `lsn`.
    pub fn new(store: Arc<TimelineStore>, version: PgVersion, lsn: Lsn) -> Self {
        ImportSink {
            store,
            lsn,
            version,
            batch: Batch::new(),
            fork_sizes: BTreeMap::new(),
            control_file: None,
            two_phase: Vec::new(),
            counts: ImportCounts::default(),
        }
    }

    /// How much has come so far.
    pub fn counts(&self) -> ImportCounts {
        self.counts
    }

    /// Takes the file at `path` (relative to the data directory) with `length` bytes. False: a file that is not kept, and was not read.
    pub fn file(&mut self, path: &str, length: u64, contents: &mut dyn Read) -> Result<bool, ImportError> {
        let kind = classify(path);
        match kind {
            FileKind::NotKept => return Ok(false),
            FileKind::Relation { rel, fork, segment_no } => {
                self.relation_segment(path, rel, fork, segment_no, contents)?
            }
            FileKind::Slru { kind, segment_no } => self.slru_segment(path, kind, segment_no, contents)?,
            FileKind::RelationMap { spc_oid, db_oid } => {
                let bytes = read_small(path, contents)?;
                self.put(Object::RelationMap { spc_oid, db_oid }, &bytes)?;
                if spc_oid == GLOBALTABLESPACE_OID {
                    self.database(spc_oid, db_oid)?;
                }
            }
            FileKind::Database { spc_oid, db_oid } => self.database(spc_oid, db_oid)?,
            FileKind::ControlFile => {
                let bytes = read_small(path, contents)?;
                let control_file = ControlFile::decode_as(self.version, &bytes)?;
                super::check_control_file(&control_file)?;
                self.put(Object::ControlFile, &bytes)?;
                self.put(Object::Checkpoint, &control_file.checkpoint_copy)?;
                self.control_file = Some(Box::new(control_file));
            }
            FileKind::TwoPhase { xid } => self.two_phase.push((xid, read_small(path, contents)?)),
            FileKind::ReplicationOrigins => self.replication_origins(path, contents)?,
        }
        self.counts.bytes += length;
        Ok(true)
    }

    fn database(&mut self, spc_oid: u32, db_oid: u32) -> Result<(), ImportError> {
        self.counts.database_count += 1;
        self.put(Object::Database { spc_oid, db_oid }, &[])
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
        while let Some(page) = read_page(path, contents)? {
            if block_count == RELSEG_BLOCKS {
                return Err(ImportError::FileDamaged { file: path.to_string(), reason: "longer than a segment" });
            }
            self.page(Key::block(rel, fork, first_block_no + block_count), &page)?;
            block_count += 1;
        }
        let size = self.fork_sizes.entry((rel, fork)).or_default();
        *size = (*size).max(if block_count == 0 { 0 } else { first_block_no + block_count });
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
        while let Some(page) = read_page(path, contents)? {
            if page_count == SLRU_PAGES_PER_SEGMENT {
                return Err(ImportError::FileDamaged { file: path.to_string(), reason: "longer than an SLRU segment" });
            }
            let page_no = segment_no * SLRU_PAGES_PER_SEGMENT + page_count;
            self.page(Object::SlruPage { kind, page_no }.into(), &page)?;
            page_count += 1;
        }
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
        if self.batch.value_bytes() >= BATCH_BYTES_MAX {
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
    pub fn finish(mut self) -> Result<(Box<ControlFile>, ImportCounts), ImportError> {
        let control_file = self.control_file.take().ok_or(ImportError::FileMissing { file: "global/pg_control" })?;
        for ((rel, fork), size) in std::mem::take(&mut self.fork_sizes) {
            self.counts.fork_count += 1;
            self.put(Object::RelationSize { rel, fork }, &size.to_be_bytes())?;
        }
        for (number, state) in std::mem::take(&mut self.two_phase) {
            let xid = self.full_xid(&control_file, number)?;
            self.put(Object::TwoPhase { xid }, &state)?;
        }
        self.put_batch()?;
        self.store.flush(true)?;
        Ok((control_file, self.counts))
    }

    /// Up to 16, the file's name holds 32 bits of the xid; the epoch follows from the next xid of the checkpoint.
    fn full_xid(&self, control_file: &ControlFile, number: u64) -> Result<u64, ImportError> {
        match u32::try_from(number) {
            Ok(xid) if self.version < PgVersion::V17 => {
                let checkpoint = Checkpoint::decode(self.version, &control_file.checkpoint_copy).map_err(|_| {
                    ImportError::FileDamaged { file: "global/pg_control".to_string(), reason: "no checkpoint in it" }
                })?;
                Ok(checkpoint.full_xid(xid))
            }
            _ => Ok(number),
        }
    }
}

/// The next page of a file; `None` at its end. Errors: the file ends within a page.
fn read_page(path: &str, contents: &mut dyn Read) -> Result<Option<Box<Page>>, ImportError> {
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
