//! Records made by hand, a timeline in memory, and what ties them to [`WalIngest`].

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;
use keyenc::{Key, Kind, Object};
use postgres_ffi::checkpoint::Checkpoint;
use postgres_ffi::page::{BLCKSZ, Page, ZERO_PAGE};
use postgres_ffi::wal::DecodedRecord;
use postgres_ffi::{BlockNumber, ForkNumber, Lsn, PgVersion, RelTag};

use crate::delta::{Delta, apply};
use crate::ingest::{IngestError, KeptSize, StateError, TimelineReader, WalIngest};
use crate::store::Batch;

pub const REL: RelTag = RelTag { spc_oid: 1663, db_oid: 5, rel_number: 16384 };
pub const START_LSN: Lsn = Lsn::new(0x1000);

/// One version: of what, which kind, its value.
pub type Put = (Object, Kind, Vec<u8>);

/// Little-endian bytes, field after field.
#[derive(Default, Clone)]
pub struct Body(pub Vec<u8>);

impl Body {
    pub fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }
    pub fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    pub fn rel(self, rel: RelTag) -> Self {
        self.u32(rel.spc_oid).u32(rel.db_oid).u32(rel.rel_number)
    }
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
}

#[derive(Clone)]
pub struct BlockRef {
    pub id: u8,
    pub rel: RelTag,
    pub fork: ForkNumber,
    pub block_no: BlockNumber,
    pub will_init: bool,
    pub image: Option<(bool, Box<Page>)>,
    pub data: Vec<u8>,
}

pub fn block(id: u8, block_no: BlockNumber) -> BlockRef {
    BlockRef { id, rel: REL, fork: ForkNumber::Main, block_no, will_init: false, image: None, data: vec![7; 9] }
}

impl BlockRef {
    pub fn of(mut self, rel: RelTag) -> Self {
        self.rel = rel;
        self
    }
    pub fn fork(mut self, fork: ForkNumber) -> Self {
        self.fork = fork;
        self
    }
    pub fn init(mut self) -> Self {
        self.will_init = true;
        self
    }
    pub fn image(mut self, apply: bool, page: &Page) -> Self {
        self.image = Some((apply, Box::new(*page)));
        self
    }
}

/// A record in PostgreSQL's bytes. PG 14-18: xlogrecord.h.
#[derive(Clone)]
pub struct Rec {
    pub rmid: u8,
    pub info: u8,
    pub xid: u32,
    pub blocks: Vec<BlockRef>,
    pub origin_id: Option<u16>,
    pub main: Vec<u8>,
}

pub fn rec(rmid: u8, info: u8, xid: u32, main: Body) -> Rec {
    Rec { rmid, info, xid, blocks: Vec::new(), origin_id: None, main: main.0 }
}

impl Rec {
    pub fn block(mut self, block: BlockRef) -> Self {
        self.blocks.push(block);
        self
    }

    pub fn origin(mut self, origin_id: u16) -> Self {
        self.origin_id = Some(origin_id);
        self
    }

    pub fn raw(&self, version: PgVersion) -> Bytes {
        let apply_flag = if version >= PgVersion::V15 { 0x02 } else { 0x04 };
        let (mut head, mut payload) = (Body::default(), Vec::new());
        for block in &self.blocks {
            let flags = block.fork as u8
                | if block.image.is_some() { 0x10 } else { 0 }
                | if block.data.is_empty() { 0 } else { 0x20 }
                | if block.will_init { 0x40 } else { 0 };
            head = head.u8(block.id).u8(flags).u16(block.data.len() as u16);
            if let Some((apply, page)) = &block.image {
                head = head.u16(BLCKSZ as u16).u16(0).u8(if *apply { apply_flag } else { 0 });
                payload.extend_from_slice(&page[..]);
            }
            head = head.rel(block.rel).u32(block.block_no);
            payload.extend_from_slice(&block.data);
        }
        if let Some(origin_id) = self.origin_id {
            head = head.u8(253).u16(origin_id);
        }
        if self.main.len() > 255 {
            head = head.u8(254).u32(self.main.len() as u32);
        } else if !self.main.is_empty() {
            head = head.u8(255).u8(self.main.len() as u8);
        }
        payload.extend_from_slice(&self.main);
        let total_len = 24 + head.0.len() + payload.len();
        let fixed =
            Body::default().u32(total_len as u32).u32(self.xid).u64(0).u8(self.info).u8(self.rmid).u16(0).u32(0);
        Bytes::from(fixed.bytes(&head.0).bytes(&payload).0)
    }
}

/// A timeline in memory. Reads see what was committed, at or below the LSN asked for.
#[derive(Default)]
pub struct MemoryTimeline {
    pub versions: RefCell<BTreeMap<(Key, Lsn, Kind), Vec<u8>>>,
    pub watermark: Cell<Lsn>,
    pub commits: Cell<usize>,
}

impl MemoryTimeline {
    pub fn newest(&self, key: &Key, request_lsn: Lsn) -> Option<(Kind, Vec<u8>)> {
        let versions = self.versions.borrow();
        let found = versions.range((*key, Lsn::ZERO, Kind::Tombstone)..=(*key, request_lsn, Kind::Image)).next_back();
        found.map(|((_, _, kind), value)| (*kind, value.clone()))
    }

    pub fn put(&self, object: Object, lsn: Lsn, kind: Kind, value: &[u8]) {
        self.versions.borrow_mut().insert((Key::from(object), lsn, kind), value.to_vec());
    }

    /// The page at an LSN; PostgreSQL's records count as no change, so that a test sees where the base came from.
    pub fn page(&self, key: &Key, request_lsn: Lsn) -> Option<Page> {
        let versions = self.versions.borrow();
        let mut deltas = Vec::new();
        let mut page = None;
        for ((_, lsn, kind), value) in
            versions.range((*key, Lsn::ZERO, Kind::Tombstone)..=(*key, request_lsn, Kind::Image)).rev()
        {
            match kind {
                Kind::Tombstone => return None,
                Kind::Image if value.is_empty() => page = Some(ZERO_PAGE),
                Kind::Image => page = Some(value.as_slice().try_into().unwrap()),
                Kind::Delta | Kind::InitDelta => deltas.push((*lsn, value.clone())),
            }
            if *kind == Kind::InitDelta {
                page = Some(ZERO_PAGE);
            }
            if page.is_some() {
                break;
            }
        }
        let mut page = page?;
        for (lsn, value) in deltas.iter().rev() {
            match Delta::decode(value).unwrap() {
                Delta::Postgres(_) => {}
                delta => apply(&delta, &mut page, *lsn).unwrap(),
            }
        }
        Some(page)
    }
}

impl TimelineReader for MemoryTimeline {
    fn object(&self, key: &Key, request_lsn: Lsn) -> Result<Option<Bytes>, StateError> {
        let newest = self.newest(key, request_lsn).filter(|(kind, _)| *kind == Kind::Image);
        Ok(newest.map(|(_, value)| Bytes::from(value)))
    }

    fn scan(
        &self,
        first: &Key,
        last: &Key,
        request_lsn: Lsn,
        each: &mut dyn FnMut(Key, Bytes) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        let bounds = (*first, Lsn::ZERO, Kind::Tombstone)..=(*last, Lsn::MAX, Kind::Image);
        let mut keys: Vec<Key> = self.versions.borrow().range(bounds).map(|((key, _, _), _)| *key).collect();
        keys.dedup();
        for key in keys {
            if let Some(value) = self.object(&key, request_lsn)?
                && each(key, value).is_break()
            {
                break;
            }
        }
        Ok(())
    }

    fn pages(&self, keys: &[Key], request_lsn: Lsn) -> Result<Vec<Bytes>, StateError> {
        keys.iter()
            .map(|key| {
                let page = self.page(key, request_lsn).ok_or_else(|| StateError::from(format!("no page {key}")))?;
                Ok(Bytes::copy_from_slice(&page))
            })
            .collect()
    }

    fn commit(&self, batch: &mut Batch, last_record_lsn: Lsn) -> Result<(), StateError> {
        assert!(self.watermark.get() <= last_record_lsn);
        self.watermark.set(last_record_lsn);
        self.commits.set(self.commits.get() + 1);
        let mut versions = self.versions.borrow_mut();
        for version in batch.versions(0..batch.len()) {
            versions.insert((version.key, version.lsn, version.kind), version.value.to_vec());
        }
        drop(versions);
        batch.clear();
        Ok(())
    }
}

/// Ingest over a timeline in memory.
pub struct Rig {
    pub version: PgVersion,
    pub timeline: MemoryTimeline,
    pub ingest: WalIngest,
    pub batch: Batch,
    pub next_lsn: u64,
}

pub fn start_checkpoint() -> Checkpoint {
    Checkpoint {
        redo: 0x1000,
        this_tli: 1,
        prev_tli: 1,
        full_page_writes: true,
        next_xid: 1000,
        next_oid: 16500,
        next_multi: 1,
        next_multi_offset: 0,
        oldest_xid: 730,
        oldest_xid_db: 1,
        oldest_multi: 1,
        oldest_multi_db: 1,
        ..Checkpoint::default()
    }
}

impl Rig {
    pub fn new(version: PgVersion) -> Self {
        Self::with(version, start_checkpoint())
    }

    pub fn with(version: PgVersion, checkpoint: Checkpoint) -> Self {
        let timeline = MemoryTimeline::default();
        timeline.put(Object::Checkpoint, START_LSN, Kind::Image, &checkpoint.encode(version));
        timeline.put(Object::ControlFile, START_LSN, Kind::Image, &[0; 8192]);
        Self::over(version, timeline, START_LSN)
    }

    pub fn over(version: PgVersion, timeline: MemoryTimeline, last_record_lsn: Lsn) -> Self {
        let ingest = WalIngest::new(version, last_record_lsn, &timeline).unwrap();
        Rig { version, timeline, ingest, batch: Batch::new(), next_lsn: last_record_lsn.as_u64() }
    }

    /// Ingests without a commit.
    pub fn try_ingest(&mut self, rec: &Rec) -> Result<Lsn, IngestError> {
        let raw = rec.raw(self.version);
        let start_lsn = Lsn::new(self.next_lsn);
        let end_lsn = Lsn::new(self.next_lsn + raw.len() as u64).align_up();
        let record = DecodedRecord::decode(self.version, start_lsn, end_lsn, raw).expect("records of tests decode");
        self.ingest.ingest_record(&record, &mut self.batch, &self.timeline)?;
        self.next_lsn = end_lsn.as_u64();
        Ok(end_lsn)
    }

    pub fn commit(&mut self) {
        let last_record_lsn = self.ingest.last_record_lsn();
        self.timeline.commit(&mut self.batch, last_record_lsn).unwrap();
        self.check_kept_sizes();
    }

    /// What is kept is the sum of what is there, after every record of every test.
    fn check_kept_sizes(&self) {
        let mut sums: BTreeMap<Key, KeptSize> = BTreeMap::new();
        let mut kept: BTreeMap<Key, KeptSize> = BTreeMap::new();
        let (first, last) = (Key::from(Object::Watermark), Key::block(REL, ForkNumber::Main, 0));
        let mut each = |key: Key, value: Bytes| {
            let count = || u32::from_be_bytes(value[..].try_into().unwrap());
            match key.object().unwrap() {
                Object::RelationSize { rel: RelTag { spc_oid, db_oid, .. }, fork } => {
                    sums.entry(Object::DatabaseSize { spc_oid, db_oid }.into()).or_default().add_fork(fork, count());
                }
                Object::SlruSegment { kind, .. } => {
                    sums.entry(Object::SlruSize { kind }.into()).or_default().add_segment(count());
                }
                Object::DatabaseSize { .. } | Object::SlruSize { .. } => {
                    kept.insert(key, KeptSize::decode(&value).unwrap());
                }
                _ => {}
            }
            ControlFlow::Continue(())
        };
        self.timeline.scan(&first, &last, self.lsn(), &mut each).unwrap();
        for (key, size) in kept {
            assert_eq!(Some(&size), sums.get(&key), "{key}");
        }
    }

    /// Ingests, commits, and gives what the record put, in key order, checkpoint data, commit times and kept sizes left out.
    pub fn ingest(&mut self, rec: &Rec) -> Vec<Put> {
        let mut puts = self.ingest_all(rec);
        let is_aside = |object: &Object| {
            matches!(
                object,
                Object::Checkpoint | Object::CommitTime | Object::DatabaseSize { .. } | Object::SlruSize { .. }
            )
        };
        puts.retain(|(object, _, _)| !is_aside(object));
        puts
    }

    pub fn ingest_all(&mut self, rec: &Rec) -> Vec<Put> {
        let lsn = self.try_ingest(rec).unwrap();
        self.commit();
        let versions = self.timeline.versions.borrow();
        versions
            .iter()
            .filter(|((_, version_lsn, _), _)| *version_lsn == lsn)
            .map(|((key, _, kind), value)| (key.object().unwrap(), *kind, value.clone()))
            .collect()
    }

    /// What the record puts beside PostgreSQL's records, whose bytes are the business of `trim`: those are shown as their length being right.
    pub fn shown(&mut self, rec: &Rec) -> Vec<String> {
        self.ingest(rec).into_iter().map(|put| show(&put)).collect()
    }

    pub fn lsn(&self) -> Lsn {
        self.ingest.last_record_lsn()
    }
}

/// A version in few words.
pub fn show((object, kind, value): &Put) -> String {
    let object = match object {
        Object::RelationSize { rel, fork } => format!("size {rel} {fork}"),
        Object::RelationBlock { rel, fork, block_no } => format!("block {rel} {fork} {block_no}"),
        Object::SlruPage { kind, page_no } => format!("{kind} page {page_no}"),
        Object::SlruSegment { kind, segment_no } => format!("{kind} segment {segment_no}"),
        Object::Database { spc_oid, db_oid } => format!("database {spc_oid}/{db_oid}"),
        other => format!("{other:?}"),
    };
    let value = match (kind, value.as_slice()) {
        (_, []) => String::new(),
        (Kind::Delta | Kind::InitDelta, [0, record @ ..]) => {
            assert_eq!(record[..4], (record.len() as u32).to_le_bytes(), "xl_tot_len of a trimmed record");
            " record".to_owned()
        }
        (Kind::Delta | Kind::InitDelta, delta) => format!(" {:?}", Delta::decode(delta).unwrap()),
        (_, [a, b, c, d]) => format!(" {}", u32::from_be_bytes([*a, *b, *c, *d])),
        (_, value) if value.len() == BLCKSZ => " page".to_owned(),
        (_, value) => format!(" {} bytes", value.len()),
    };
    format!("{object} {kind:?}{value}")
}
