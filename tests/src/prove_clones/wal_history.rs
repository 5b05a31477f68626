//! What the primary's WAL says: where records end, which transactions ended where, and places of which a clone is interesting.
//!
//! - Read from the primary's own `pg_wal`, which keeps all of it; the page server is not asked.
//! - A place is a range of records, by number: the LSN is the end of one of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::ops::Range;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use pageserver::wal::names::segment_file_name;
use postgres_ffi::checkpoint::Checkpoint;
use postgres_ffi::records::dbase::DatabaseRecord;
use postgres_ffi::records::xlog::operation;
use postgres_ffi::records::{multixact, smgr, xact};
use postgres_ffi::wal::page_header::WAL_PAGE_BYTES;
use postgres_ffi::wal::{DecodedRecord, WalStreamDecoder, rmgr};
use postgres_ffi::{ForkNumber, Lsn, Oid, PgVersion, RelTag, TransactionId};

use super::moments::Kind;

/// The PostgreSQL timeline of a primary that never was anything else.
const TIMELINE_ID: u32 = 1;
/// A transaction with as many records of rows is a long one.
const MANY_ROWS: usize = 100;
/// CLOG's only record besides truncation. PG: src/include/access/clog.h, CLOG_ZEROPAGE.
const CLOG_ZEROPAGE: u8 = 0x00;

/// PG 14-18: src/include/access/nbtxlog.h, XLOG_BTREE_*.
mod btree {
    pub const INSERT_UPPER: u8 = 0x10;
    pub const INSERT_META: u8 = 0x20;
    pub const SPLIT_L: u8 = 0x30;
    pub const SPLIT_R: u8 = 0x40;
    pub const NEWROOT: u8 = 0xA0;
    pub const MARK_PAGE_HALFDEAD: u8 = 0xB0;
}

/// Where WAL is, and which part of it counts.
#[derive(Clone, Debug)]
pub struct WalSource {
    /// The primary's `pg_wal`.
    pub dir: PathBuf,
    /// Major version.
    pub version: PgVersion,
    /// Size of a segment file.
    pub segment_bytes: u32,
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The end of the record that says so.
    pub lsn: Lsn,
    /// Committed; else rolled back.
    pub committed: bool,
}

/// A transaction that was prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// Its id.
    pub xid: TransactionId,
    /// The end of the record of PREPARE TRANSACTION.
    pub prepared_lsn: Lsn,
    /// The end of the record that ended it; `None`: it has not ended.
    pub ended_lsn: Option<Lsn>,
}

/// The WAL from one LSN to another.
#[derive(Debug, Default)]
pub struct WalHistory {
    /// Start and end of each record.
    records: Vec<(Lsn, Lsn)>,
    /// Transactions and subtransactions.
    ends: HashMap<TransactionId, End>,
    prepared: Vec<Prepared>,
    /// The ends of the records of each sequence, by database and relfilenode.
    sequences: HashMap<(Oid, Oid), Vec<Lsn>>,
    /// The redo point of each base backup that was taken, and the end of the record that ends it.
    backups: Vec<(Lsn, Lsn)>,
    places: BTreeMap<Kind, Vec<Range<usize>>>,
}

impl WalHistory {
    /// Every record from the segment of `from_lsn` on up to the one that ends at `to_lsn`.
    pub fn read(source: &WalSource, from_lsn: Lsn, to_lsn: Lsn) -> Result<Self> {
        let segment_bytes = u64::from(source.segment_bytes);
        let mut segment_no = from_lsn.segment_no(segment_bytes);
        let start_lsn = Lsn::new(segment_no * segment_bytes);
        let mut decoder = WalStreamDecoder::new_at_page(source.version, start_lsn, source.segment_bytes);
        let mut reader = Reader::new(source, from_lsn);
        loop {
            while let Some((start_lsn, end_lsn, raw)) = decoder.next_record().context("the primary's WAL")? {
                let record = DecodedRecord::decode(source.version, start_lsn, end_lsn, raw)
                    .with_context(|| format!("the record at {start_lsn}"))?;
                reader.record(&record).with_context(|| format!("the record at {start_lsn}"))?;
                if end_lsn >= to_lsn {
                    ensure!(end_lsn == to_lsn, "a record ends at {end_lsn}, none at {to_lsn}");
                    return Ok(reader.history);
                }
            }
            let path = source.dir.join(segment_file_name(TIMELINE_ID, segment_no, source.segment_bytes));
            decoder.feed(fs::read(&path).with_context(|| format!("read {}", path.display()))?.into());
            segment_no += 1;
        }
    }

    /// How many records there are.
    pub fn record_count(&self) -> usize {
        self.records.len()
    }

    /// Start and end of a record.
    pub fn record(&self, index: usize) -> (Lsn, Lsn) {
        self.records[index]
    }

    /// Number of the first record that ends above `lsn`.
    pub fn first_above(&self, lsn: Lsn) -> usize {
        self.records.partition_point(|(_, end_lsn)| *end_lsn <= lsn)
    }

    /// Where PostgreSQL's recovery must stop in order to have every record that ends at or before `lsn` and no other: a record's end.
    pub fn last_end(&self, lsn: Lsn) -> Result<Lsn> {
        let index = self.first_above(lsn).checked_sub(1).context("no record ends at or before")?;
        Ok(self.records[index].1)
    }

    /// The places of a kind.
    pub fn places(&self, kind: Kind) -> &[Range<usize>] {
        self.places.get(&kind).map(Vec::as_slice).unwrap_or_default()
    }

    /// How a transaction or subtransaction stood at `lsn`: committed (true), rolled back (false), or neither yet. `None`: it did not end in
    /// this WAL.
    pub fn end(&self, xid: TransactionId) -> Option<End> {
        self.ends.get(&xid).copied()
    }

    /// All that ended.
    pub fn ended(&self) -> impl Iterator<Item = (TransactionId, End)> {
        self.ends.iter().map(|(xid, end)| (*xid, *end))
    }

    /// Where the base backup began that ended at `end_lsn`: its redo point. WAL from there on is replayed over it.
    pub fn backup_start(&self, end_lsn: Lsn) -> Result<Lsn> {
        let found = self.backups.iter().find(|(_, found)| *found == end_lsn);
        found.map(|(start_lsn, _)| *start_lsn).with_context(|| format!("no base backup ends at {end_lsn}"))
    }

    /// Whether a sequence has a record that ends in `lsns`.
    pub fn has_sequence_record(&self, database: Oid, relfilenode: Oid, lsns: Range<Lsn>) -> bool {
        self.sequences.get(&(database, relfilenode)).is_some_and(|ends| ends.iter().any(|lsn| lsns.contains(lsn)))
    }

    /// Transactions that were prepared and had not ended at `lsn`.
    pub fn prepared_at(&self, lsn: Lsn) -> BTreeSet<TransactionId> {
        let is_open =
            |found: &&Prepared| found.prepared_lsn <= lsn && found.ended_lsn.is_none_or(|ended_lsn| lsn < ended_lsn);
        self.prepared.iter().filter(is_open).map(|found| found.xid).collect()
    }
}

/// Goes over the records once.
struct Reader<'a> {
    source: &'a WalSource,
    from_lsn: Lsn,
    history: WalHistory,
    /// Records of rows of transactions that are under way.
    rows: HashMap<TransactionId, Vec<usize>>,
    /// B-tree pages that were split and have no downlink to their right half yet.
    splits: HashMap<(RelTag, u32), usize>,
    /// Transactions that create a database.
    databases: HashMap<TransactionId, (Kind, usize)>,
}

impl<'a> Reader<'a> {
    fn new(source: &'a WalSource, from_lsn: Lsn) -> Self {
        Reader {
            source,
            from_lsn,
            history: WalHistory::default(),
            rows: HashMap::new(),
            splits: HashMap::new(),
            databases: HashMap::new(),
        }
    }

    fn record(&mut self, record: &DecodedRecord) -> Result<()> {
        let index = self.history.records.len();
        self.history.records.push((record.start_lsn, record.end_lsn));
        self.look_at_position(record, index);
        match record.rmid {
            rmgr::XLOG => self.xlog(record, index)?,
            rmgr::XACT => self.xact(record, index)?,
            rmgr::HEAP | rmgr::HEAP2 if record.xid != 0 => self.rows.entry(record.xid).or_default().push(index),
            rmgr::BTREE => self.btree(record, index),
            rmgr::DBASE => self.database(record, index)?,
            rmgr::CLOG if record.operation() == CLOG_ZEROPAGE => self.after(Kind::ClogPage, index),
            rmgr::MULTIXACT if record.operation() == multixact::CREATE_ID => self.after(Kind::MultiXact, index),
            rmgr::RELMAP => self.after(Kind::RelationMap, index),
            rmgr::SMGR => self.smgr(record, index)?,
            rmgr::SEQ => {
                if let Some(block) = record.block(0) {
                    let ends = self.history.sequences.entry((block.rel.db_oid, block.rel.rel_number)).or_default();
                    ends.push(record.end_lsn);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The LSN after the record.
    fn after(&mut self, kind: Kind, index: usize) {
        self.between(kind, index, index + 1);
    }

    /// Any LSN from the end of record `first` on and before the end of record `end`.
    fn between(&mut self, kind: Kind, first: usize, end: usize) {
        let first = first.max(self.history.first_above(self.from_lsn));
        if first < end {
            self.history.places.entry(kind).or_default().push(first..end);
        }
    }

    fn look_at_position(&mut self, record: &DecodedRecord, index: usize) {
        let segment_bytes = u64::from(self.source.segment_bytes);
        let last_byte = Lsn::new(record.end_lsn.as_u64() - 1);
        let is_switch = record.rmid == rmgr::XLOG && record.operation() == operation::SWITCH;
        if is_switch {
            self.after(Kind::AfterSwitch, index);
            self.after(Kind::InsideSwitch, index);
        } else if record.start_lsn.segment_no(segment_bytes) != last_byte.segment_no(segment_bytes) {
            self.after(Kind::SpanEnd, index);
            self.after(Kind::SpanInside, index);
        } else if record.end_lsn.as_u64().is_multiple_of(WAL_PAGE_BYTES as u64) {
            self.after(Kind::PageBoundary, index);
            self.after(Kind::PageHeader, index);
        }
    }

    fn xlog(&mut self, record: &DecodedRecord, index: usize) -> Result<()> {
        if record.operation() == operation::CHECKPOINT_ONLINE {
            let redo_lsn = Lsn::new(Checkpoint::decode(self.source.version, record.main_data())?.redo);
            let first = self.history.records.partition_point(|(_, end_lsn)| *end_lsn < redo_lsn);
            self.between(Kind::Checkpoint, first, index);
        } else if record.operation() == operation::CHECKPOINT_SHUTDOWN {
            // The primary is never stopped, only killed: this one ends its recovery.
            self.between(Kind::Crash, index.saturating_sub(1), index + 1);
        } else if record.operation() == operation::BACKUP_END {
            // PG: xlog.c, do_pg_backup_stop: where the backup started.
            let start = record.main_data().first_chunk::<8>().context("a backup's end names its start")?;
            self.history.backups.push((Lsn::new(u64::from_le_bytes(*start)), record.end_lsn));
        }
        Ok(())
    }

    fn xact(&mut self, record: &DecodedRecord, index: usize) -> Result<()> {
        let lsn = record.end_lsn;
        let operation = record.info & xact::OPERATION_MASK;
        let committed = match operation {
            xact::PREPARE => {
                self.long_transaction(record.xid, index);
                self.history.prepared.push(Prepared { xid: record.xid, prepared_lsn: lsn, ended_lsn: None });
                return Ok(());
            }
            xact::COMMIT | xact::COMMIT_PREPARED => true,
            xact::ABORT | xact::ABORT_PREPARED => false,
            _ => return Ok(()),
        };
        let end = xact::XactEnd::parse(self.source.version, record.info, record.main_data())?;
        let xid = end.twophase_xid.unwrap_or(record.xid);
        self.history.ends.insert(xid, End { lsn, committed });
        for subxact in end.subxacts.iter() {
            self.history.ends.insert(subxact, End { lsn, committed });
        }
        self.long_transaction(xid, index);
        if let Some(number) = self.history.prepared.iter().rposition(|prepared| prepared.xid == xid) {
            self.history.prepared[number].ended_lsn = Some(lsn);
            let first = self.history.first_above(self.history.prepared[number].prepared_lsn) - 1;
            self.between(Kind::Prepared, first, index);
        }
        if let Some((kind, first)) = self.databases.remove(&xid) {
            self.between(kind, first, index);
        }
        Ok(())
    }

    /// A transaction ends here: if it was long, its middle half is a place.
    fn long_transaction(&mut self, xid: TransactionId, index: usize) {
        let Some(rows) = self.rows.remove(&xid) else { return };
        if rows.len() >= MANY_ROWS {
            let (first, last) = (rows[rows.len() / 4], rows[rows.len() * 3 / 4]);
            assert!(last < index);
            self.between(Kind::MidTransaction, first, last);
        }
    }

    fn btree(&mut self, record: &DecodedRecord, index: usize) {
        let page = |block_id| record.block(block_id).map(|block| (block.rel, block.block_no));
        match record.operation() {
            btree::SPLIT_L | btree::SPLIT_R => {
                // The split of an inner page finishes that of the page below it. PG: nbtree/README, "cbuf".
                if let Some(first) = page(3).and_then(|child| self.splits.remove(&child)) {
                    self.between(Kind::BtreeSplit, first, index);
                }
                if let Some(left) = page(0) {
                    self.splits.insert(left, index);
                }
            }
            btree::INSERT_UPPER | btree::INSERT_META | btree::NEWROOT => {
                if let Some(first) = page(1).and_then(|child| self.splits.remove(&child)) {
                    self.between(Kind::BtreeSplit, first, index);
                }
            }
            btree::MARK_PAGE_HALFDEAD => self.after(Kind::HalfDeadPage, index),
            _ => {}
        }
    }

    /// Right after the first of the records of a new database, and anywhere up to its commit.
    fn database(&mut self, record: &DecodedRecord, index: usize) -> Result<()> {
        let kind = match DatabaseRecord::parse(self.source.version, record.operation(), record.main_data())? {
            Some(DatabaseRecord::CreateWalLog { .. }) => Kind::CreateDatabaseBlocks,
            Some(DatabaseRecord::CreateFileCopy { .. }) => Kind::CreateDatabaseFiles,
            Some(DatabaseRecord::Drop { .. }) => {
                self.after(Kind::DropDatabase, index);
                return Ok(());
            }
            None => return Ok(()),
        };
        self.after(kind, index);
        self.databases.insert(record.xid, (kind, index));
        Ok(())
    }

    fn smgr(&mut self, record: &DecodedRecord, index: usize) -> Result<()> {
        if record.operation() == smgr::TRUNCATE {
            self.after(Kind::Truncation, index);
        } else if record.operation() == smgr::CREATE && smgr::parse_create(record.main_data())?.1 == ForkNumber::Init {
            self.after(Kind::InitFork, index);
        }
        Ok(())
    }
}
