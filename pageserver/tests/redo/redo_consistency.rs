//! Each record against PostgreSQL's own word: under `wal_consistency_checking = all` a record brings every page that it
//! changes as it must become.
//!
//! Method: `workload.sql` fills a cluster. Its records are applied one by one, each cut down for the block in question as
//! the store holds it; the page that the engine makes is compared with the image in the record, after PostgreSQL's own
//! masks. Then each page's whole history since its last beginning goes to the engine as one request, which must give the
//! same page, byte for byte.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use pageserver::delta::{self, Delta};
use pageserver::redo::process::ProcessEngine;
use pageserver::redo::{Engine, EngineRequest};
use postgres_ffi::mask::{Equality, classify, equal_after_masking};
use postgres_ffi::page::Page;
use postgres_ffi::records::smgr::{self, Truncate};
use postgres_ffi::wal::{DecodedBlock, DecodedRecord, rmgr, trim};
use postgres_ffi::{BlockNumber, ForkNumber, Lsn, PgVersion};

use crate::cluster::{BlockTag, Cluster};

const WORKLOAD: &str = include_str!("workload.sql");
/// Heap blocks that one page of the visibility map tells of. PG: visibilitymap.c, HEAPBLOCKS_PER_PAGE.
const HEAP_BLOCKS_PER_VM_PAGE: BlockNumber = 32_672;
/// No block of any record: the record is cut down to its references and main data.
const NO_BLOCK: u8 = u8::MAX;

/// What we hold of one page.
#[derive(Default)]
struct Held {
    page: Option<Box<Page>>,
    /// The page before the first record of `records`.
    base: Option<Box<Page>>,
    /// Since the last record that began the page anew.
    records: Vec<(Lsn, Bytes)>,
}

/// A request that waits to be sent, and what must come of it.
struct Expected {
    tag: BlockTag,
    request: EngineRequest,
    image: Option<Box<Page>>,
    what: String,
    rmid: u8,
}

#[derive(Default)]
struct Row {
    checked: u32,
    images_applied: u32,
    unchecked: u32,
}

struct Replay<'a> {
    cluster: &'a Cluster,
    engine: ProcessEngine,
    held: HashMap<BlockTag, Held>,
    /// Blocks that were cut off: what initdb had made there is gone.
    cut: HashSet<BlockTag>,
    waiting: Vec<Expected>,
    busy: HashSet<BlockTag>,
    table: BTreeMap<u8, Row>,
    operations: HashSet<(u8, u8)>,
    wrong: Vec<String>,
    /// Differences that PostgreSQL's own recovery has as well.
    known_differences: u32,
    /// Leaves out the effect of each record whose number is a multiple of this: the checks must notice.
    leave_out_every: Option<u32>,
    record_no: u32,
}

impl<'a> Replay<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        Replay {
            cluster,
            engine: cluster.engine(),
            held: HashMap::new(),
            cut: HashSet::new(),
            waiting: Vec::new(),
            busy: HashSet::new(),
            table: BTreeMap::new(),
            operations: HashSet::new(),
            wrong: Vec::new(),
            known_differences: 0,
            leave_out_every: None,
            record_no: 0,
        }
    }

    fn current(&self, tag: BlockTag) -> Option<Box<Page>> {
        match self.held.get(&tag) {
            Some(held) => held.page.clone(),
            None if self.cut.contains(&tag) => None,
            None => self.cluster.page_of_initdb(tag),
        }
    }

    fn record(&mut self, record: &DecodedRecord) {
        self.record_no += 1;
        if self.leave_out_every.is_some_and(|every| self.record_no.is_multiple_of(every)) {
            return;
        }
        if record.rmid == rmgr::SMGR && record.operation() == smgr::TRUNCATE {
            self.send();
            self.truncate(&Truncate::parse(record.main_data()).unwrap());
        }
        for block in &record.blocks {
            self.operations.insert((record.rmid, record.operation()));
            self.block(record, block);
        }
        self.implied_visibility(record);
    }

    fn block(&mut self, record: &DecodedRecord, block: &DecodedBlock) {
        let tag = (block.rel, block.fork, block.block_no);
        let image = block.image.as_ref().map(|image| record.restore_image(image).unwrap());
        let applied = block.image.as_ref().is_some_and(|image| image.apply);
        self.make_way(tag);
        let begins = block.will_init || applied;
        let row = self.table.entry(record.rmid).or_default();
        match (&image, applied) {
            (Some(_), false) => row.checked += 1,
            (Some(_), true) => row.images_applied += 1,
            (None, _) => row.unchecked += 1,
        }
        // What is put in place by redo may still be changed by it: only the image to check with is the last word.
        let expected = image.filter(|_| !applied);
        self.ask(record, block.block_id, tag, begins, expected);
    }

    /// Heap records that clear bits of the visibility map without naming its page.
    fn implied_visibility(&mut self, record: &DecodedRecord) {
        if record.rmid != rmgr::HEAP && record.rmid != rmgr::HEAP2
            || record.blocks.iter().any(|block| block.fork == ForkNumber::Vm)
        {
            return;
        }
        let map_page = |block: &DecodedBlock| (block.rel, ForkNumber::Vm, block.block_no / HEAP_BLOCKS_PER_VM_PAGE);
        let tags: HashSet<BlockTag> =
            record.blocks.iter().filter(|block| block.fork == ForkNumber::Main).map(map_page).collect();
        for tag in tags {
            self.make_way(tag);
            if self.current(tag).is_some() {
                self.ask(record, NO_BLOCK, tag, false, None);
            }
        }
    }

    fn ask(&mut self, record: &DecodedRecord, block_id: u8, tag: BlockTag, begins: bool, image: Option<Box<Page>>) {
        let mut trimmed = Vec::new();
        trim::trim_for_block(record, block_id, &mut trimmed);
        let trimmed = Bytes::from(trimmed);
        let base = if begins { None } else { self.current(tag) };
        let held = self.held.entry(tag).or_default();
        if begins || held.records.is_empty() {
            held.base.clone_from(&base);
            held.records.clear();
        }
        held.records.push((record.end_lsn, trimmed.clone()));
        let (rel, fork, block_no) = tag;
        let base = base.map(|page| Bytes::from(page as Box<[u8]>));
        let request = EngineRequest { rel, fork, block_no, base, records: vec![(record.end_lsn, trimmed)] };
        let what = format!(
            "{} {:#04x} at {}, block {block_id} of {} ({rel}/{fork}/{block_no})",
            rmgr::builtin_name(record.rmid).unwrap_or("custom"),
            record.info,
            record.start_lsn,
            record.blocks.len()
        );
        self.busy.insert(tag);
        self.waiting.push(Expected { tag, request, image, what, rmid: record.rmid });
    }

    /// Sends what waits if the page is among it, or enough has come together.
    fn make_way(&mut self, tag: BlockTag) {
        if self.busy.contains(&tag) || self.waiting.len() >= 64 {
            self.send();
        }
    }

    fn send(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        self.busy.clear();
        let requests: Vec<_> = waiting.iter().map(|expected| expected.request.clone()).collect();
        for (expected, answer) in waiting.into_iter().zip(self.engine.redo(&requests)) {
            match answer {
                Ok(page) => self.check(&expected, page),
                Err(error) => self.wrong.push(format!("{}: {error}", expected.what)),
            }
        }
    }

    fn check(&mut self, expected: &Expected, page: Box<Page>) {
        let (_, fork, block_no) = expected.tag;
        if let Some(image) = &expected.image {
            let kind = classify(image, fork, block_no);
            let equality = equal_after_masking(&page, image, kind, block_no);
            if let Equality::Different { first_offset } = equality {
                if is_known_difference(self.cluster.version, expected.rmid, first_offset, &page, image) {
                    self.known_differences += 1;
                    return self.hold(expected.tag, page);
                }
                let around = first_offset..(first_offset + 8).min(page.len());
                let (ours, theirs) = (&page[around.clone()], &image[around]);
                self.wrong.push(format!(
                    "{}: {kind:?} page differs at {first_offset}: {ours:02x?} is not {theirs:02x?}",
                    expected.what
                ));
            }
        }
        self.hold(expected.tag, page);
    }

    fn hold(&mut self, tag: BlockTag, page: Box<Page>) {
        self.held.entry(tag).or_default().page = Some(page);
    }

    fn truncate(&mut self, cut: &Truncate) {
        let first_vm_page = cut.block_count / HEAP_BLOCKS_PER_VM_PAGE;
        let first_index = (cut.block_count % HEAP_BLOCKS_PER_VM_PAGE) as u16;
        let is_gone = |&(rel, fork, block_no): &BlockTag| {
            let main = cut.main && fork == ForkNumber::Main && block_no >= cut.block_count;
            let first_gone_vm_page = first_vm_page + BlockNumber::from(first_index > 0);
            let vm = cut.vm && fork == ForkNumber::Vm && block_no >= first_gone_vm_page;
            rel == cut.rel && (main || vm)
        };
        let gone: Vec<BlockTag> = self.held.keys().copied().filter(is_gone).collect();
        for tag in gone {
            self.held.remove(&tag);
            self.cut.insert(tag);
        }
        let tag = (cut.rel, ForkNumber::Vm, first_vm_page);
        if let Some(held) = self.held.get_mut(&tag).filter(|_| cut.vm && first_index > 0)
            && let Some(page) = &mut held.page
        {
            delta::apply(&Delta::VisibilityMapTruncate { first_index }, page, Lsn::ZERO).unwrap();
            held.records.clear();
        }
    }

    /// Each page's history as one request.
    fn check_chains(&mut self) -> usize {
        let mut chains = 0;
        for (tag, held) in &self.held {
            let (Some(page), false) = (&held.page, held.records.is_empty()) else { continue };
            let (rel, fork, block_no) = *tag;
            let base = held.base.clone().map(|page| Bytes::from(page as Box<[u8]>));
            let request = EngineRequest { rel, fork, block_no, base, records: held.records.clone() };
            match self.engine.redo(&[request]).pop().unwrap() {
                Ok(chained) if chained == *page => chains += 1,
                Ok(_) => self.wrong.push(format!("{rel}/{fork}/{block_no}: {} records at once", held.records.len())),
                Err(error) => self.wrong.push(format!("{rel}/{fork}/{block_no} at once: {error}")),
            }
        }
        chains
    }
}

/// PostgreSQL's own, from 16: redo marks a GiST page with deleted tuples where the primary's pruning does not, and its own
/// recovery stops at the same record with "inconsistent page found".
/// PG 17: gistxlog.c, gistRedoDeleteRecord sets F_TUPLES_DELETED; gist.c, gistprunepage does not.
fn is_known_difference(version: PgVersion, rmid: u8, first_offset: usize, page: &Page, image: &Page) -> bool {
    const FLAGS_OFFSET: usize = 8188;
    const F_TUPLES_DELETED: u8 = 1 << 2;
    let but_flags = |page: &Page| {
        let mut page = *page;
        page[FLAGS_OFFSET] &= !F_TUPLES_DELETED;
        page
    };
    let kind = classify(image, ForkNumber::Main, 1);
    version >= PgVersion::V16
        && rmid == rmgr::GIST
        && first_offset == FLAGS_OFFSET
        && !matches!(equal_after_masking(&but_flags(page), &but_flags(image), kind, 1), Equality::Different { .. })
}

fn every_record_gives_postgresqls_own_page(version: PgVersion, settings: &[&str], initdb_args: &[&str]) {
    let all: Vec<&str> = ["wal_consistency_checking=all"].into_iter().chain(settings.iter().copied()).collect();
    let cluster = Cluster::init(version, &all, initdb_args);
    let statements: Vec<&str> = WORKLOAD.lines().filter(|line| !line.is_empty() && !line.starts_with("--")).collect();
    cluster.sql(&statements);
    let mut replay = Replay::new(&cluster);
    cluster.for_each_record(|record| replay.record(&record));
    replay.send();
    let chains = replay.check_chains();
    println!("PostgreSQL {version} {settings:?} {initdb_args:?}: {chains} chains, {:?}", replay.engine.stats());
    for (rmid, row) in &replay.table {
        let name = rmgr::builtin_name(*rmid).unwrap_or("custom");
        println!("{name:10} checked {:6}, images {:5}, unchecked {:5}", row.checked, row.images_applied, row.unchecked);
    }
    println!("{} operations, {} known differences", replay.operations.len(), replay.known_differences);
    let wrong = &replay.wrong;
    assert!(wrong.is_empty(), "{} wrong, the first: {:#?}", wrong.len(), &wrong[..wrong.len().min(20)]);
    for rmid in PAGE_MANAGERS {
        let checked = replay.table.get(&rmid).map_or(0, |row| row.checked);
        assert!(checked > 0, "no record of {:?} was checked", rmgr::builtin_name(rmid));
    }
    assert!(replay.operations.len() >= OPERATIONS_MIN, "{:?}", replay.operations);
    assert_eq!((replay.engine.stats().refused, replay.engine.stats().retried), (0, 0));
    assert!(chains > 1000, "{chains} chains");
}

/// Every resource manager with pages of its own.
const PAGE_MANAGERS: [u8; 10] = [
    rmgr::HEAP,
    rmgr::HEAP2,
    rmgr::BTREE,
    rmgr::HASH,
    rmgr::GIN,
    rmgr::GIST,
    rmgr::SPGIST,
    rmgr::BRIN,
    rmgr::SEQ,
    rmgr::GENERIC,
];
/// Different operations (with and without initialisation) that the workload makes in the version with the fewest.
const OPERATIONS_MIN: usize = 60;

#[test]
fn lost_records_are_noticed() {
    let cluster = Cluster::init(PgVersion::V15, &["wal_consistency_checking=all", "full_page_writes=off"], &[]);
    cluster.sql(&[
        "CREATE TABLE t (id int PRIMARY KEY, v text)",
        "INSERT INTO t SELECT i, repeat('x', i % 100) FROM generate_series(1, 1000) i",
        "UPDATE t SET v = v || 'y' WHERE id % 3 = 0",
    ]);
    let wrong_of = |leave_out_every| {
        let mut replay = Replay::new(&cluster);
        replay.leave_out_every = leave_out_every;
        cluster.for_each_record(|record| replay.record(&record));
        replay.send();
        (replay.wrong.len(), replay.record_no)
    };
    let (wrong, records) = wrong_of(None);
    assert_eq!(wrong, 0);
    let (wrong, _) = wrong_of(Some(97));
    assert!(wrong as u32 > records / 97, "{wrong} wrong, {} of {records} records left out", records / 97);
}

#[test]
fn records_of_15_with_full_page_writes() {
    every_record_gives_postgresqls_own_page(PgVersion::V15, &[], &[]);
}

#[test]
fn records_of_15_with_checksums_and_without_full_page_writes() {
    every_record_gives_postgresqls_own_page(PgVersion::V15, &["full_page_writes=off"], &["--data-checksums"]);
}

#[test]
fn records_of_15_with_hint_bits_logged() {
    every_record_gives_postgresqls_own_page(PgVersion::V15, &["wal_log_hints=on", "wal_compression=lz4"], &[]);
}

#[test]
fn records_of_17_with_checksums_and_without_full_page_writes() {
    every_record_gives_postgresqls_own_page(PgVersion::V17, &["full_page_writes=off"], &["--data-checksums"]);
}

#[test]
fn records_of_17_with_hint_bits_logged() {
    every_record_gives_postgresqls_own_page(PgVersion::V17, &["wal_log_hints=on", "wal_compression=pglz"], &[]);
}

#[test]
fn records_of_18_with_checksums_and_without_full_page_writes() {
    every_record_gives_postgresqls_own_page(PgVersion::V18, &["full_page_writes=off"], &["--data-checksums"]);
}
