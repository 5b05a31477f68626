//! Compares every page of every relation, in parallel.
//!
//! Sizes: no WAL tells of an extension (bulk extension adds blocks that may never be used), so the directory may have more
//! blocks than the WAL knows, all zeroes or initialised and empty. Anything else behind our end, and any block of ours that the
//! directory has not, is a mismatch.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Result, anyhow};
use indicatif::ProgressBar;
use postgres_ffi::mask::{Equality, PageComparison, PageKind, bloom, compare_pages, visibility_map};
use postgres_ffi::page::{Page, ZERO_PAGE};
use postgres_ffi::{BLCKSZ, BlockNumber, ForkNumber, PgVersion, RelTag};

use super::Options;
use super::report::{Mismatch, Report};
use super::source::{Reader, Source};
use crate::datadir::DataDir;
use crate::page_dump;

/// Blocks that one request of a thread covers: 1 MiB.
const BLOCKS_PER_UNIT: BlockNumber = 128;

/// OIDs from here on are given out after initdb. PG: src/include/access/transam.h, FirstNormalObjectId.
const FIRST_NORMAL_OID: u32 = 16_384;
const LOST_IN_COPY: &str = "bits of a copied database's maps: CREATE DATABASE logs the maps without them; we have no bit that the primary has not";
const BLOOM_WITHOUT_WAL: &str = "meta page of an unlogged bloom index: contrib/bloom from 16 on does not log it, a standby has no page there either";

type Sizes = BTreeMap<(RelTag, ForkNumber), BlockNumber>;

/// A run of blocks of one fork.
struct Unit {
    rel: RelTag,
    fork: ForkNumber,
    first_block: BlockNumber,
    /// Blocks that both have.
    common: BlockNumber,
    /// Blocks behind them that the directory alone has.
    tail: BlockNumber,
}

/// What the threads share.
struct Work<'a> {
    dir: &'a DataDir,
    source: &'a dyn Source,
    options: &'a Options,
    units: Vec<Unit>,
    next_unit: AtomicUsize,
    /// A thread failed: the others need not go on.
    failed: AtomicBool,
    total: Mutex<Report>,
    /// Counts blocks; shown at a terminal only.
    bar: ProgressBar,
}

/// Compares all relations of the directory with those of the source.
pub fn compare(dir: &DataDir, source: &dyn Source, options: &Options) -> Result<Report> {
    let mut report = Report::default();
    let ours = source.relations()?;
    let units = plan(dir, &ours, &mut report);
    let bar = ProgressBar::new(units.iter().map(|unit| u64::from(unit.common + unit.tail)).sum());
    let (next_unit, failed, total) = (AtomicUsize::new(0), AtomicBool::new(false), Mutex::new(report));
    let work = Work { dir, source, options, units, next_unit, failed, total, bar };
    let started = Instant::now();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..options.threads.max(1)).map(|_| scope.spawn(|| work.run())).collect();
        for worker in workers {
            worker.join().map_err(|_| anyhow!("a comparing thread panicked"))??;
        }
        anyhow::Ok(())
    })?;
    work.bar.finish_and_clear();
    let mut report = work.total.into_inner().map_err(|_| anyhow!("a comparing thread panicked"))?;
    report.notes.push(format!("relations read in {:.1} s", started.elapsed().as_secs_f64()));
    Ok(report)
}

/// Splits what both have into units, and counts what is left out or missing.
fn plan(dir: &DataDir, ours: &Sizes, report: &mut Report) -> Vec<Unit> {
    let mut units = Vec::new();
    let mut addresses: Vec<_> = dir.forks.keys().chain(ours.keys()).copied().collect();
    addresses.sort_unstable();
    addresses.dedup();
    for (rel, fork) in addresses {
        let on_disk = dir.fork_blocks(rel, fork);
        let our_blocks = ours.get(&(rel, fork)).copied();
        if let Some((kind, reason)) = reason_to_leave_out(dir, rel, fork) {
            report.leave_out(kind, reason, on_disk.or(our_blocks).unwrap_or(0).into());
            continue;
        }
        let what = format!("{rel} {fork}");
        match (our_blocks, on_disk) {
            (Some(our_blocks), Some(on_disk)) => {
                if our_blocks > on_disk {
                    let detail = format!("we have {our_blocks} blocks, the directory {on_disk}");
                    report.missing("relation sizes", what, detail);
                }
                split(&mut units, rel, fork, our_blocks.min(on_disk), on_disk);
            }
            // The fork may still be all zeroes: a map that was extended and never written to. An init fork's creation is always logged.
            (None, Some(on_disk)) if !matches!(fork, ForkNumber::Main | ForkNumber::Init) && on_disk > 0 => {
                split(&mut units, rel, fork, 0, on_disk);
            }
            // A map's file is made without WAL (visibilitymap.c, vm_extend): one without blocks says as much as none.
            (None, Some(0)) | (Some(0), None) if fork == ForkNumber::Vm => {}
            (None, Some(on_disk)) => {
                report.missing("relations", what, format!("in the directory only, {on_disk} blocks"));
            }
            (Some(our_blocks), None) => {
                report.missing("relations", what, format!("not in the directory, {our_blocks} blocks"));
            }
            (None, None) => {}
        }
    }
    units
}

/// Why a fork's pages cannot be compared; the argument stands in the reason.
fn reason_to_leave_out(dir: &DataDir, rel: RelTag, fork: ForkNumber) -> Option<(&'static str, &'static str)> {
    match fork {
        ForkNumber::Fsm => Some(("fsm", "the free space map is not in the WAL, PostgreSQL repairs it as it goes")),
        ForkNumber::Main if dir.is_unlogged(rel) => {
            Some(("main unlogged", "unlogged: only the init fork is in the WAL"))
        }
        ForkNumber::Vm if dir.is_unlogged(rel) => Some(("vm unlogged", "unlogged: only the init fork is in the WAL")),
        _ => None,
    }
}

fn split(units: &mut Vec<Unit>, rel: RelTag, fork: ForkNumber, common: BlockNumber, on_disk: BlockNumber) {
    let mut first_block = 0;
    while first_block < on_disk {
        let end = first_block.saturating_add(BLOCKS_PER_UNIT).min(on_disk);
        let common_end = common.clamp(first_block, end);
        units.push(Unit { rel, fork, first_block, common: common_end - first_block, tail: end - common_end });
        first_block = end;
    }
}

impl Work<'_> {
    /// What one thread does: takes units until there are none.
    fn run(&self) -> Result<()> {
        let reader = self.source.reader()?;
        let mut worker = Worker { dir: self.dir, reader, options: self.options, report: Report::default() };
        let mut ours = vec![0; BLOCKS_PER_UNIT as usize * BLCKSZ];
        let mut on_disk = ours.clone();
        while let Some(unit) = self.units.get(self.next_unit.fetch_add(1, Ordering::Relaxed)) {
            if self.failed.load(Ordering::Relaxed) {
                break;
            }
            if let Err(error) = worker.run(unit, &mut ours, &mut on_disk) {
                self.failed.store(true, Ordering::Relaxed);
                return Err(error);
            }
            self.bar.inc(u64::from(unit.common + unit.tail));
        }
        self.total.lock().map_err(|_| anyhow!("a comparing thread panicked"))?.merge(worker.report);
        Ok(())
    }
}

struct Worker<'a> {
    dir: &'a DataDir,
    reader: Box<dyn Reader + 'a>,
    options: &'a Options,
    report: Report,
}

impl Worker<'_> {
    fn run(&mut self, unit: &Unit, ours: &mut [u8], on_disk: &mut [u8]) -> Result<()> {
        let common_len = unit.common as usize * BLCKSZ;
        let on_disk = &mut on_disk[..common_len + unit.tail as usize * BLCKSZ];
        let ours = &mut ours[..common_len];
        self.dir.read_blocks(unit.rel, unit.fork, unit.first_block, on_disk)?;
        if common_len > 0 {
            self.reader.read_blocks(unit.rel, unit.fork, unit.first_block, ours)?;
        }
        let pages = on_disk.as_chunks::<BLCKSZ>().0;
        let our_pages = ours.as_chunks::<BLCKSZ>().0;
        for (block_no, page) in (unit.first_block..).zip(pages) {
            match our_pages.get((block_no - unit.first_block) as usize) {
                Some(our_page) => self.compare_page(unit, block_no, our_page, page)?,
                None => self.judge_tail(unit, block_no, page)?,
            }
        }
        Ok(())
    }

    fn compare_page(&mut self, unit: &Unit, block_no: BlockNumber, ours: &Page, on_disk: &Page) -> Result<()> {
        let comparison = compare_pages(ours, on_disk, unit.fork, block_no);
        if comparison.is_mismatch() && is_map_lost_in_copy(unit, &comparison, ours, on_disk) {
            self.report.leave_out("vm", LOST_IN_COPY, 1);
            return Ok(());
        }
        if comparison.is_mismatch() && self.is_bloom_without_wal(unit, block_no, ours, on_disk) {
            return Ok(());
        }
        let counts = self.report.kind(kind_name(unit.fork, comparison.kind));
        counts.compared += 1;
        match comparison.equality {
            Equality::Different { .. } => counts.different += 1,
            _ if comparison.lsn_differs => counts.lsn_differs += 1,
            Equality::EqualMasked => counts.equal_masked += 1,
            Equality::Equal => counts.equal += 1,
        }
        if comparison.is_mismatch() {
            self.note(unit, block_no, &comparison, ours, on_disk)?;
        }
        Ok(())
    }

    /// A block behind our end: it must say as much as zeroes do.
    fn judge_tail(&mut self, unit: &Unit, block_no: BlockNumber, on_disk: &Page) -> Result<()> {
        let comparison = compare_pages(&ZERO_PAGE, on_disk, unit.fork, block_no);
        let kind = kind_name(unit.fork, comparison.kind);
        if !comparison.is_mismatch() {
            self.report.leave_out(kind, "empty blocks behind the last one that the WAL knows", 1);
            return Ok(());
        }
        if self.is_bloom_without_wal(unit, block_no, &ZERO_PAGE, on_disk) {
            return Ok(());
        }
        let counts = self.report.kind(kind);
        counts.compared += 1;
        counts.different += 1;
        self.note(unit, block_no, &comparison, &ZERO_PAGE, on_disk)
    }

    /// True, and counted, for the one page of an init fork that PostgreSQL from 16 on does not log: see [`bloom`]. We have zeroes there.
    fn is_bloom_without_wal(&mut self, unit: &Unit, block_no: BlockNumber, ours: &Page, on_disk: &Page) -> bool {
        let is_one = self.dir.control.version >= PgVersion::V16
            && (unit.fork, block_no) == (ForkNumber::Init, bloom::METAPAGE_BLOCK_NO)
            && *ours == ZERO_PAGE
            && bloom::is_unlogged_empty_metapage(on_disk);
        if is_one {
            self.report.leave_out(kind_name(unit.fork, PageKind::Generic), BLOOM_WITHOUT_WAL, 1);
            self.report.notes.push(format!("{} init block {block_no}: {BLOOM_WITHOUT_WAL}", unit.rel));
        }
        is_one
    }

    fn note(
        &mut self,
        unit: &Unit,
        block_no: BlockNumber,
        comparison: &PageComparison,
        ours: &Page,
        on_disk: &Page,
    ) -> Result<()> {
        if self.report.first_mismatches.len() >= self.options.mismatches_max {
            return Ok(());
        }
        let offset = match comparison.equality {
            Equality::Different { first_offset } => Some(first_offset),
            _ => None,
        };
        self.report.first_mismatches.push(Mismatch {
            kind: kind_name(unit.fork, comparison.kind).to_owned(),
            what: format!("{} {} block {block_no:>6}", unit.rel, unit.fork),
            detail: describe(comparison, ours, on_disk),
            offset,
        });
        if let Some(folder) = &self.options.save_dir {
            let stem = format!("{}_{}_{block_no}", unit.rel.to_string().replace('/', "_"), unit.fork);
            page_dump::save(folder, &format!("{stem}.ours"), ours, unit.fork, block_no)?;
            page_dump::save(folder, &format!("{stem}.disk"), on_disk, unit.fork, block_no)?;
        }
        Ok(())
    }
}

/// CREATE DATABASE with the strategy `wal_log` (15 and later) logs each page of the template as a page with a hole, and to a
/// visibility map everything is hole: the primary's file keeps the bits, the WAL has none of them, and so has every standby
/// (bufmgr.c, RelationCopyStorageUsingBuffer). True for such a page: of a database that was not there at initdb, with the primary's
/// stamp, and without any bit that the primary has not.
fn is_map_lost_in_copy(unit: &Unit, comparison: &PageComparison, ours: &Page, on_disk: &Page) -> bool {
    unit.fork == ForkNumber::Vm
        && unit.rel.db_oid >= FIRST_NORMAL_OID
        && !comparison.lsn_differs
        && visibility_map::is_subset(ours, on_disk)
}

fn describe(comparison: &PageComparison, ours: &Page, on_disk: &Page) -> String {
    let lsn = |lsn: Option<postgres_ffi::Lsn>| lsn.unwrap_or_default();
    let stamps = format!("lsn of ours {}, on disk {}", lsn(comparison.our_lsn), lsn(comparison.disk_lsn));
    match comparison.equality {
        Equality::Different { first_offset } => {
            let start = first_offset & !7;
            let bytes = |page: &Page| {
                page[start..(start + 16).min(BLCKSZ)].iter().map(|b| format!("{b:02x}")).collect::<String>()
            };
            format!(
                "differs from byte {first_offset} on; {stamps}; from {start}: ours {}, on disk {}",
                bytes(ours),
                bytes(on_disk)
            )
        }
        _ => format!("only the lsn differs; {stamps}"),
    }
}

/// Names of the counters.
fn kind_name(fork: ForkNumber, kind: PageKind) -> &'static str {
    use PageKind::*;
    match (fork, kind) {
        (ForkNumber::Vm, _) => "vm",
        (ForkNumber::Fsm, _) => "fsm",
        (ForkNumber::Init, _) => "init",
        (ForkNumber::Main, New) => "main new",
        (ForkNumber::Main, Heap) => "main heap",
        (ForkNumber::Main, Btree) => "main btree",
        (ForkNumber::Main, Hash) => "main hash",
        (ForkNumber::Main, Gist) => "main gist",
        (ForkNumber::Main, Gin) => "main gin",
        (ForkNumber::Main, Spgist) => "main spgist",
        (ForkNumber::Main, Brin) => "main brin",
        (ForkNumber::Main, Sequence) => "main sequence",
        (ForkNumber::Main, VisibilityMap | FreeSpaceMap | Generic) => "main generic",
    }
}
