//! Redo against PostgreSQL's own word: under `wal_consistency_checking` a record brings every page that it changes as the page must become.
//!
//! - Goes the way of the server: what ingest would store of a record ([`crate::ingest::page_changes`]), made into a page by the walredo threads and
//!   their engine. The page is compared with the image in the record after PostgreSQL's own masks.
//! - Goes on from what redo made, not from the image, so that an error that masking hides for one record shows at a later one; after a difference
//!   it goes on from the image, so that one mistake is told once.
//! - A page whose beginning is not known (no image, no initialisation, no base file) cannot be checked: its first image is taken over, and checks begin behind it.
//! - At the end each page's whole history can be applied at once: it must give the same page, byte for byte.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use keyenc::{Key, TimelineNo};
use postgres_ffi::mask::{Equality, PageKind, classify, differs_in_gist_flag_alone, equal_after_masking};
use postgres_ffi::page::{PAGE_HEADER_LEN, PD_CHECKSUM, Page};
use postgres_ffi::records::dbase::DatabaseRecord;
use postgres_ffi::records::heap;
use postgres_ffi::records::smgr::{self, Truncate};
use postgres_ffi::records::xlog::{ParameterChange, operation};
use postgres_ffi::redo::case::RedoCase;
use postgres_ffi::redo::{ClusterFacts, PageAddress};
use postgres_ffi::wal::describe::operation_name;
use postgres_ffi::wal::{DecodedRecord, rmgr};
use postgres_ffi::{BLCKSZ, BlockNumber, ForkNumber, Lsn, Oid, PgVersion, RelTag};
use serde::Serialize;

use crate::delta::{self, Delta, Index, visibility_map};
use crate::ingest::IngestError;
use crate::ingest::page_changes::{PageContent, page_changes};
use crate::redo::{Chain, PendingPage, RedoError, WalRedo};

/// So many pages are asked for before the first is waited for: what pipelines a process.
const PENDING_MAX: usize = 64;
/// Differences that are described; all are counted.
const DESCRIBED_MAX: usize = 50;
/// All pages are of one timeline.
const TIMELINE: TimelineNo = TimelineNo(1);

/// One block of one relation.
pub type BlockTag = (RelTag, ForkNumber, BlockNumber);
/// Where a page comes from that was there before the WAL begins. `None`: nobody knows it.
pub type BasePages<'a> = Box<dyn FnMut(BlockTag) -> Option<Box<Page>> + 'a>;

/// What the WAL is of, and what is wanted.
#[derive(Clone, Copy, Debug)]
pub struct CheckSettings {
    /// The cluster's version.
    pub version: PgVersion,
    /// Data checksums are on.
    pub data_checksums: bool,
    /// `wal_log_hints` where the WAL begins; the WAL tells when it changes.
    pub wal_log_hints: bool,
    /// A page for which there is no base was not there where the WAL begins. False: nobody knows.
    pub has_base: bool,
    /// Each page's history is kept, for [`RedoCheck::check_chains`].
    pub chains: bool,
    /// So many applications of each operation to each of its blocks are kept, for [`RedoCheck::cases`].
    pub cases: usize,
}

/// What was found of one operation of one resource manager, initialisation told apart. A record counts once for each page that it names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OperationCounts {
    /// Pages changed.
    pub pages: u64,
    /// Of these, compared with an image: the sum of the following four.
    pub checked: u64,
    /// The same in every byte but the checksum.
    pub equal: u64,
    /// The same after PostgreSQL's masks.
    pub equal_masked: u64,
    /// Different as PostgreSQL's own recovery is; `docs/redo.md` lists how.
    pub known_difference: u64,
    /// Different, or refused by redo.
    pub different: u64,
    /// Given by an image that the record brings to be put in place. There is nothing left to compare that with.
    pub images_applied: u64,
    /// Made by redo, without an image to compare with.
    pub no_image: u64,
    /// Not made, because what the page was before is not known.
    pub not_covered: u64,
}

/// The row of one operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OperationRow {
    /// PostgreSQL's name of the resource manager, or `custom` with its number.
    pub rmgr: String,
    /// PostgreSQL's name of the operation, or its number.
    pub operation: String,
    /// The counts.
    #[serde(flatten)]
    pub counts: OperationCounts,
}

/// What a check has found so far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// The cluster's version.
    pub version: PgVersion,
    /// Records read, those without pages included.
    pub records: u64,
    /// A row for each operation that changed a page, by resource manager and operation.
    pub operations: Vec<OperationRow>,
    /// All rows together.
    pub total: OperationCounts,
    /// Pages whose whole history was applied at once and gave the same page.
    pub chains_equal: u64,
    /// Pages whose whole history gave another page or none.
    pub chains_different: u64,
    /// The first differences, in words.
    pub differences: Vec<String>,
}

impl CheckReport {
    /// True when no page differs.
    pub fn is_good(&self) -> bool {
        self.total.different == 0 && self.chains_different == 0
    }
}

/// What is held of one page.
#[derive(Default)]
struct Held {
    /// As it is now. `None`: cut off, or not known.
    page: Option<Bytes>,
    /// Before the first of `deltas`.
    base: Option<(Lsn, Bytes)>,
    /// Since the page began anew, if chains are wanted.
    deltas: Vec<(Lsn, Bytes)>,
}

/// A page that was asked for.
struct Asked {
    tag: BlockTag,
    row: (u8, u8),
    what: String,
    image: Option<Box<Page>>,
    is_applied_image: bool,
    pending: PendingPage,
}

/// Bits of one heap block that an image of the map lacks.
struct ClearedEarly {
    /// The heap block's place on the map's page.
    index: u16,
    bits: u8,
    /// The record with the image, by its number.
    application: u64,
    row: (u8, u8),
    what: String,
}

/// The check of one WAL stream, record by record.
pub struct RedoCheck<'a> {
    settings: CheckSettings,
    redo: &'a WalRedo,
    base_pages: BasePages<'a>,
    held: HashMap<BlockTag, Held>,
    asked: Vec<Asked>,
    busy: HashSet<BlockTag>,
    /// Relations and databases made in this WAL: base files, if any, are not theirs.
    made_rels: HashSet<RelTag>,
    made_dbs: HashSet<Oid>,
    /// Of these, the ones whose files were copied as they were: nothing in WAL tells what is in them.
    copied_dbs: HashSet<Oid>,
    /// Pages of visibility maps that CREATE DATABASE logged without their bits, see [`Self::is_explained`].
    emptied_maps: HashSet<BlockTag>,
    /// Heap blocks whose bits an image lacks before a record has cleared them, by page of the map.
    cleared_early: HashMap<BlockTag, Vec<ClearedEarly>>,
    /// Of these, the ones that no record will explain any more.
    unexplained: Vec<ClearedEarly>,
    /// Relations that were cut, and to how few blocks: what the base files hold behind is gone.
    cuts: HashMap<RelTag, BlockNumber>,
    rows: BTreeMap<(u8, u8), OperationCounts>,
    records: u64,
    chains_equal: u64,
    chains_different: u64,
    differences: Vec<String>,
    /// Applications kept, and how many there were, by operation and block.
    cases: BTreeMap<(u8, u8, u8), (Vec<RedoCase>, u64)>,
    value: Vec<u8>,
}

impl<'a> RedoCheck<'a> {
    /// Checks what `redo` makes. `base_pages` gives pages as they were where the WAL begins.
    pub fn new(settings: CheckSettings, redo: &'a WalRedo, base_pages: BasePages<'a>) -> Self {
        RedoCheck {
            settings,
            redo,
            base_pages,
            held: HashMap::new(),
            asked: Vec::new(),
            busy: HashSet::new(),
            made_rels: HashSet::new(),
            made_dbs: HashSet::new(),
            copied_dbs: HashSet::new(),
            emptied_maps: HashSet::new(),
            cleared_early: HashMap::new(),
            unexplained: Vec::new(),
            cuts: HashMap::new(),
            rows: BTreeMap::new(),
            records: 0,
            chains_equal: 0,
            chains_different: 0,
            differences: Vec::new(),
            cases: BTreeMap::new(),
            value: Vec::new(),
        }
    }

    /// Applies the next record and checks every page that it changes.
    ///
    /// Errors: the record is not one that ingest would take. What redo refuses is no error here but a difference.
    pub fn record(&mut self, record: &DecodedRecord) -> Result<(), IngestError> {
        self.records += 1;
        match (record.rmid, record.operation()) {
            (rmgr::SMGR, smgr::TRUNCATE) => {
                self.settle();
                self.truncate(
                    &Truncate::parse(record.main_data()).map_err(|source| IngestError::body(record, source))?,
                );
            }
            (rmgr::SMGR, smgr::CREATE) => {
                let (rel, fork) =
                    smgr::parse_create(record.main_data()).map_err(|source| IngestError::body(record, source))?;
                self.forget(|tag| tag.0 == rel && tag.1 == fork);
                self.made_rels.insert(rel);
            }
            (rmgr::DBASE, operation) => {
                let database = DatabaseRecord::parse(self.settings.version, operation, record.main_data());
                let database = database.map_err(|source| IngestError::body(record, source))?;
                match database {
                    Some(DatabaseRecord::CreateFileCopy { target, .. }) => self.make_database(target.db_oid, true),
                    Some(DatabaseRecord::CreateWalLog { target }) => self.make_database(target.db_oid, false),
                    Some(DatabaseRecord::Drop { .. }) | None => {}
                }
            }
            (rmgr::XLOG, operation::PARAMETER_CHANGE) => {
                let change =
                    ParameterChange::parse(record.main_data()).map_err(|source| IngestError::body(record, source))?;
                self.settings.wal_log_hints = change.wal_log_hints;
            }
            _ => {}
        }
        if record.blocks.is_empty() {
            return Ok(());
        }
        let mut value = std::mem::take(&mut self.value);
        let hint_bits_logged = self.settings.data_checksums || self.settings.wal_log_hints;
        let outcome = page_changes(record, hint_bits_logged, &mut value, &mut |change| {
            self.change(record, (change.rel, change.fork, change.block_no), change.block_id, change.content);
            Ok(())
        });
        self.value = value;
        outcome
    }

    fn change(&mut self, record: &DecodedRecord, tag: BlockTag, block_id: Option<u8>, content: PageContent<'_>) {
        self.make_way(tag);
        let row = (record.rmid, record.operation());
        let block = block_id.and_then(|block_id| record.block(block_id));
        let image = block.and_then(|block| block.image.as_ref());
        let is_applied_image = image.is_some_and(|image| image.apply);
        // The errors of one that is applied were told by `page_changes`.
        let restored = image.filter(|image| !image.apply).map(|image| record.restore_image(image)).transpose();
        if block.is_some() {
            self.rows.entry(row).or_default().pages += 1;
        }
        let what = || {
            let (rel, fork, block_no) = tag;
            let (name, info, start_lsn) = (rmgr_name(record.rmid), record.info, record.start_lsn);
            let block = block_id.map_or_else(|| "unnamed".to_owned(), |id| format!("{id} of {}", record.blocks.len()));
            format!("{name} {info:#04x} at {start_lsn}, block {block} ({rel}/{fork}/{block_no})")
        };
        let image = restored.unwrap_or_else(|error| {
            let counts = self.rows.entry(row).or_default();
            (counts.checked, counts.different) = (counts.checked + 1, counts.different + 1);
            self.describe(format!("{}: the image to compare with cannot be restored: {error}", what()));
            None
        });
        let (starts_anew, value) = match content {
            PageContent::Image(page) => {
                self.rows.entry(row).or_default().images_applied += 1;
                let page = if page.is_empty() { vec![0; BLCKSZ].into() } else { Bytes::copy_from_slice(page) };
                // The first that WAL tells of a map page in a database made in this WAL is the copy of the template's.
                let is_copy = self.made_dbs.contains(&tag.0.db_oid) && !self.held.contains_key(&tag);
                if is_copy && tag.1 == ForkNumber::Vm && record.rmid == rmgr::XLOG && has_no_bits(&page) {
                    self.emptied_maps.insert(tag);
                } else {
                    self.emptied_maps.remove(&tag);
                }
                return self.begin(tag, record.end_lsn, page);
            }
            PageContent::Delta { starts_anew, value } => (starts_anew, value),
        };
        let before = if starts_anew { None } else { self.current(tag) };
        // The maps are read as zeroes where nothing was written, if that is known.
        let is_known =
            self.settings.has_base || self.made_rels.contains(&tag.0) || self.made_dbs.contains(&tag.0.db_oid);
        let is_unwritten = is_known && !self.copied_dbs.contains(&tag.0.db_oid);
        let is_map = matches!(tag.1, ForkNumber::Vm | ForkNumber::Fsm) && is_unwritten;
        let is_covered = starts_anew || before.is_some() || is_map;
        if !is_covered {
            self.rows.entry(row).or_default().not_covered += 1;
            if let Some(image) = image {
                self.begin(tag, record.end_lsn, Bytes::from(image as Box<[u8]>));
            }
            return;
        }
        if self.settings.cases > 0 {
            self.keep_case(record, tag, block_id, value, before.as_ref(), image.as_deref());
        }
        match Delta::decode(value) {
            Ok(Delta::VisibilityMapClear { bits, indexes, .. }) => self.record_clears(tag, bits, indexes),
            _ => self.record_sets(tag, record),
        }
        let delta = (record.end_lsn, Bytes::copy_from_slice(value));
        let base = before.map(|page| (Lsn::ZERO, page));
        self.note(tag, starts_anew, base.clone(), delta.clone());
        let (rel, fork, block_no) = tag;
        let key = Key::block(rel, fork, block_no);
        let chain = Chain { timeline: TIMELINE, key, version_lsn: record.end_lsn, base, deltas: vec![delta] };
        let pending = self.redo.submit(chain);
        self.busy.insert(tag);
        self.asked.push(Asked { tag, row, what: what(), image, is_applied_image, pending });
    }

    /// Keeps the first application, the second, the fourth, the eighth ... that has an image.
    fn keep_case(
        &mut self,
        record: &DecodedRecord,
        (rel, fork, block_no): BlockTag,
        block_id: Option<u8>,
        value: &[u8],
        before: Option<&Bytes>,
        image: Option<&Page>,
    ) {
        let (Some(block_id), Some(image), Ok(Delta::Postgres(cut_down))) = (block_id, image, Delta::decode(value))
        else {
            return;
        };
        let (kept, seen) = self.cases.entry((record.rmid, record.operation(), block_id)).or_default();
        *seen += 1;
        if kept.len() < self.settings.cases && seen.is_power_of_two() {
            kept.push(RedoCase {
                facts: ClusterFacts { version: self.settings.version, hint_bits_logged: true },
                address: PageAddress { rel, fork, block_no },
                end_lsn: record.end_lsn,
                record: Bytes::copy_from_slice(cut_down),
                page: before.and_then(|page| page[..].try_into().ok()).map(Box::new),
                image: Some(Box::new(*image)),
            });
        }
    }

    /// What was kept, by operation.
    pub fn cases(&self) -> impl Iterator<Item = &RedoCase> {
        self.cases.values().flat_map(|(kept, _)| kept)
    }

    /// The page as it is now.
    fn current(&mut self, tag: BlockTag) -> Option<Bytes> {
        if let Some(held) = self.held.get(&tag) {
            return held.page.clone();
        }
        let (rel, fork, block_no) = tag;
        let is_cut =
            fork == ForkNumber::Main && self.cuts.get(&rel).is_some_and(|block_count| *block_count <= block_no);
        if is_cut || self.made_rels.contains(&rel) || self.made_dbs.contains(&rel.db_oid) {
            return None;
        }
        (self.base_pages)(tag).map(|page| Bytes::from(page as Box<[u8]>))
    }

    /// The page is this from here on.
    fn begin(&mut self, tag: BlockTag, lsn: Lsn, page: Bytes) {
        self.held.insert(tag, Held { page: Some(page.clone()), base: Some((lsn, page)), deltas: Vec::new() });
    }

    fn note(&mut self, tag: BlockTag, starts_anew: bool, base: Option<(Lsn, Bytes)>, delta: (Lsn, Bytes)) {
        let held = self.held.entry(tag).or_default();
        if starts_anew || held.page.is_none() {
            held.base = base;
            held.deltas.clear();
        } else if !self.settings.chains {
            held.base = base;
        }
        if self.settings.chains {
            held.deltas.push(delta);
        }
    }

    /// Waits for what was asked if the page is among it, or enough has come together.
    fn make_way(&mut self, tag: BlockTag) {
        if self.busy.contains(&tag) || self.asked.len() >= PENDING_MAX {
            self.settle();
        }
    }

    fn settle(&mut self) {
        self.busy.clear();
        for asked in std::mem::take(&mut self.asked) {
            let Asked { tag, row, what, image, is_applied_image, pending } = asked;
            let made = pending.wait();
            let mut verdict = Self::judge(tag, image.as_deref(), &made);
            if let (Verdict::Different(_), Some(image), Ok(page)) = (&verdict, &image, &made)
                && let Ok(page) = page[..].try_into()
                && self.is_explained(tag, row, &what, page, image)
            {
                verdict = Verdict::KnownDifference;
            }
            let counts = self.rows.entry(row).or_default();
            let counter = match verdict {
                Verdict::NothingToCompare if is_applied_image => &mut counts.images_applied,
                Verdict::NothingToCompare => &mut counts.no_image,
                Verdict::Equal => &mut counts.equal,
                Verdict::EqualMasked => &mut counts.equal_masked,
                Verdict::KnownDifference => &mut counts.known_difference,
                Verdict::Different(_) => &mut counts.different,
            };
            *counter += 1;
            counts.checked += u64::from(!matches!(verdict, Verdict::NothingToCompare));
            match (verdict, image, made) {
                (Verdict::Different(difference), image, _) => {
                    self.describe(format!("{what}: {difference}"));
                    match image {
                        Some(image) => self.begin(tag, Lsn::ZERO, Bytes::from(image as Box<[u8]>)),
                        None => _ = self.held.insert(tag, Held::default()),
                    }
                }
                (_, _, Ok(page)) => self.held.entry(tag).or_default().page = Some(page),
                (_, _, Err(_)) => {} // Judged different, above.
            }
        }
    }

    fn judge(tag: BlockTag, image: Option<&Page>, made: &Result<Bytes, RedoError>) -> Verdict {
        let page: &Page = match made.as_ref().map(|page| page[..].try_into()) {
            Ok(Ok(page)) => page,
            Ok(Err(_)) => return Verdict::Different("not a page".to_owned()),
            Err(error) => return Verdict::Different(error.to_string()),
        };
        let Some(image) = image else { return Verdict::NothingToCompare };
        let (_, fork, block_no) = tag;
        let kind = classify(image, fork, block_no);
        match equal_after_masking(page, image, kind, block_no) {
            _ if same_but_checksum(page, image) => Verdict::Equal,
            Equality::Equal | Equality::EqualMasked => Verdict::EqualMasked,
            Equality::Different { .. } if differs_in_gist_flag_alone(page, image) => Verdict::KnownDifference,
            Equality::Different { first_offset } => {
                let around = first_offset..(first_offset + 16).min(BLCKSZ);
                let (ours, theirs) = (&page[around.clone()], &image[around]);
                Verdict::Different(format!("{kind:?} page differs at {first_offset}: {ours:02x?} is not {theirs:02x?}"))
            }
        }
    }

    /// Whether what differs on a page of a visibility map is PostgreSQL's own doing, in one of two ways, and nothing else differs:
    ///
    /// - The primary clears bits of the map first and writes the record that says so afterwards, holding the heap page's lock all the while. An image of the
    ///   same map page that another process logs in between lacks them already. The record must come: see [`Self::record_clears`].
    /// - CREATE DATABASE ... STRATEGY wal_log logs maps as if the bits were the unused space of a page, so that whoever replays the WAL gets a map without
    ///   bits, while the primary has them: a bit that is missing costs time and nothing else. PG 15-18: bufmgr.c, RelationCopyStorageUsingBuffer.
    fn is_explained(&mut self, tag: BlockTag, row: (u8, u8), what: &str, page: &Page, image: &Page) -> bool {
        if tag.1 != ForkNumber::Vm {
            return false;
        }
        let is_emptied = self.emptied_maps.contains(&tag);
        let mut explained = *page;
        let mut lost = Vec::new();
        for (byte_no, (ours, theirs)) in
            explained[PAGE_HEADER_LEN..].iter_mut().zip(&image[PAGE_HEADER_LEN..]).enumerate()
        {
            for pair_no in 0..visibility_map::HEAP_BLOCKS_PER_BYTE {
                let bits = (*ours & !*theirs) >> (2 * pair_no) & visibility_map::VALID_BITS;
                if bits != 0 {
                    let index = (byte_no as u32 * visibility_map::HEAP_BLOCKS_PER_BYTE + pair_no) as u16;
                    lost.push(ClearedEarly { index, bits, application: self.records, row, what: what.to_owned() });
                }
            }
            *ours &= *theirs;
            if is_emptied {
                *ours = *theirs;
            }
        }
        if matches!(equal_after_masking(&explained, image, PageKind::VisibilityMap, tag.2), Equality::Different { .. })
        {
            return false;
        }
        self.cleared_early.entry(tag).or_default().extend(lost);
        true
    }

    /// A record clears `bits` of these heap blocks: what was cleared early, and no more than that, is explained.
    fn record_clears(&mut self, tag: BlockTag, bits: u8, indexes: &[Index]) {
        if let Some(early) = self.cleared_early.get_mut(&tag) {
            let clears = |early: &ClearedEarly| indexes.iter().any(|index| index.get() == early.index);
            early.retain(|early| early.bits & !bits != 0 || !clears(early));
        }
    }

    /// A record sets bits of a heap block. Who cleared them before has written its record by then, or never will: it held the heap page's lock.
    fn record_sets(&mut self, tag: BlockTag, record: &DecodedRecord) {
        const HEAP_BLOCK: u8 = 1;
        let is_visible =
            record.rmid == rmgr::HEAP2 && record.operation() & heap::OPERATION_MASK == heap::heap2_operation::VISIBLE;
        let (Some(heap_block), Some(early)) = (record.block(HEAP_BLOCK), self.cleared_early.get_mut(&tag)) else {
            return;
        };
        let (map_page, index) = visibility_map::place(heap_block.block_no);
        if is_visible && map_page == tag.2 {
            self.unexplained.extend(early.extract_if(.., |early| early.index == index));
        }
    }

    /// What no record has explained is a difference after all, one for each application.
    fn take_unexplained(&mut self) {
        let left = std::mem::take(&mut self.cleared_early).into_values().flatten();
        let unexplained: Vec<ClearedEarly> = std::mem::take(&mut self.unexplained).into_iter().chain(left).collect();
        let mut told = HashSet::new();
        for early in unexplained {
            if !told.insert(early.application) {
                continue;
            }
            let counts = self.rows.entry(early.row).or_default();
            counts.known_difference -= 1; // It was counted there when it was put aside.
            counts.different += 1;
            self.describe(format!(
                "{}: no record clears the bits of heap block {} of the map's page",
                early.what, early.index
            ));
        }
    }

    fn make_database(&mut self, db_oid: Oid, is_copied: bool) {
        self.forget(|tag| tag.0.db_oid == db_oid);
        self.made_dbs.insert(db_oid);
        if is_copied {
            self.copied_dbs.insert(db_oid);
        }
    }

    fn describe(&mut self, difference: String) {
        if self.differences.len() < DESCRIBED_MAX {
            self.differences.push(difference);
        }
    }

    fn forget(&mut self, is_gone: impl Fn(&BlockTag) -> bool) {
        self.settle();
        self.held.retain(|tag, _| !is_gone(tag));
    }

    fn truncate(&mut self, cut: &Truncate) {
        let (first_vm_page, first_index) = visibility_map::place(cut.block_count);
        let is_gone = |(rel, fork, block_no): &BlockTag| {
            let main = cut.main && *fork == ForkNumber::Main && *block_no >= cut.block_count;
            let first_gone_vm_page = first_vm_page + BlockNumber::from(first_index > 0);
            let vm = cut.vm && *fork == ForkNumber::Vm && *block_no >= first_gone_vm_page;
            *rel == cut.rel && (main || vm)
        };
        for (_, held) in self.held.iter_mut().filter(|(tag, _)| is_gone(tag)) {
            *held = Held::default();
        }
        if cut.main {
            let block_count = self.cuts.entry(cut.rel).or_insert(cut.block_count);
            *block_count = cut.block_count.min(*block_count);
        }
        let tag = (cut.rel, ForkNumber::Vm, first_vm_page);
        if cut.vm
            && first_index > 0
            && let Some(page) = self.current(tag)
        {
            let mut cut_page: Box<Page> = Box::new([0; BLCKSZ]);
            cut_page.copy_from_slice(&page);
            // Fails for no page that is one.
            if delta::apply(&Delta::VisibilityMapTruncate { first_index }, &mut cut_page, Lsn::ZERO).is_ok() {
                self.begin(tag, Lsn::ZERO, Bytes::from(cut_page as Box<[u8]>));
            }
        }
    }

    /// Applies each page's history at once. Requires: `settings.chains`.
    pub fn check_chains(&mut self) {
        self.settle();
        let chains: Vec<(BlockTag, Bytes, Chain)> =
            self.held.iter().filter_map(|(tag, held)| Some((*tag, held.page.clone()?, held.chain(*tag)?))).collect();
        for some in chains.chunks(PENDING_MAX) {
            let pending: Vec<PendingPage> = some.iter().map(|(_, _, chain)| self.redo.submit(chain.clone())).collect();
            for ((tag, page, chain), pending) in some.iter().zip(pending) {
                let made = pending.wait();
                if made.as_ref().is_ok_and(|made| same_but_checksum(made, page)) {
                    self.chains_equal += 1;
                    continue;
                }
                self.chains_different += 1;
                let ((rel, fork, block_no), count) = (*tag, chain.deltas.len());
                let why = made.map_or_else(|error| error.to_string(), |_| "another page".to_owned());
                self.describe(format!("{rel}/{fork}/{block_no}, {count} records at once: {why}"));
            }
        }
    }

    /// What was found so far.
    ///
    /// Requires: the WAL has been checked to its end, or else bits of a visibility map may count as different that the next record explains.
    pub fn report(&mut self) -> CheckReport {
        self.settle();
        self.take_unexplained();
        let mut total = OperationCounts::default();
        self.rows.values().for_each(|counts| total.add(counts));
        let version = self.settings.version;
        let operations = self.rows.iter().map(|((rmid, operation), counts)| OperationRow {
            rmgr: rmgr_name(*rmid),
            operation: operation_name(version, *rmid, *operation)
                .map_or_else(|| format!("{operation:#04x}"), str::to_owned),
            counts: *counts,
        });
        CheckReport {
            version,
            records: self.records,
            operations: operations.collect(),
            total,
            chains_equal: self.chains_equal,
            chains_different: self.chains_different,
            differences: self.differences.clone(),
        }
    }
}

enum Verdict {
    NothingToCompare,
    Equal,
    EqualMasked,
    KnownDifference,
    Different(String),
}

impl Held {
    fn chain(&self, (rel, fork, block_no): BlockTag) -> Option<Chain> {
        let (version_lsn, _) = self.deltas.last()?;
        let (key, version_lsn) = (Key::block(rel, fork, block_no), *version_lsn);
        Some(Chain { timeline: TIMELINE, key, version_lsn, base: self.base.clone(), deltas: self.deltas.clone() })
    }
}

impl OperationCounts {
    /// Adds those of `other`.
    pub fn add(&mut self, other: &OperationCounts) {
        self.pages += other.pages;
        self.checked += other.checked;
        self.equal += other.equal;
        self.equal_masked += other.equal_masked;
        self.known_difference += other.known_difference;
        self.different += other.different;
        self.images_applied += other.images_applied;
        self.no_image += other.no_image;
        self.not_covered += other.not_covered;
    }
}

fn has_no_bits(map_page: &[u8]) -> bool {
    map_page[PAGE_HEADER_LEN..].iter().all(|byte| *byte == 0)
}

fn same_but_checksum(a: &[u8], b: &[u8]) -> bool {
    let checksum = PD_CHECKSUM..PD_CHECKSUM + 2;
    a.len() == b.len() && a[..checksum.start] == b[..checksum.start] && a[checksum.end..] == b[checksum.end..]
}

fn rmgr_name(rmid: u8) -> String {
    rmgr::builtin_name(rmid).map_or_else(|| format!("custom{rmid:03}"), str::to_owned)
}
