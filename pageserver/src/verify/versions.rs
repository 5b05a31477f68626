//! Every version in the store, in key order: does it decode, does it belong to somebody, has each chain a base, do sizes agree with blocks?

use std::collections::HashMap;

use keyenc::{Key, Kind, Object, TimelineNo, VersionKey};
use postgres_ffi::{ForkNumber, Lsn, PgVersion};

use super::finding::advice;
use super::job::{Job, VerifyError};
use super::sizes::Sizes;
use super::{Finding, Part, value};
use crate::store::{ColdItem, LostStretch, LostStretches, StoreError, UnreadableRange};
use crate::timeline::Timeline;

/// Checks the versions of `only`, or all there are.
pub(super) fn check(job: &mut Job<'_>, only: Option<&Timeline>) -> Result<(), VerifyError> {
    check_and_list(job, only, &mut Vec::new())
}

/// Checks the versions of `only`, or all there are; numbers that are nobody's go to `orphans`, in the order in which they are found.
pub(super) fn check_and_list(
    job: &mut Job<'_>,
    only: Option<&Timeline>,
    orphans: &mut Vec<TimelineNo>,
) -> Result<(), VerifyError> {
    let repository = job.repository;
    // The list comes before and after: neither a timeline that is made meanwhile nor one that goes is nobody's.
    let mut owners = owners_of(job)?;
    let cold = match repository.store().cold_read() {
        Ok(cold) => cold,
        Err(error) => return job.found(&unopenable(&error)),
    };
    owners.extend(owners_of(job)?);
    job.counts.store_files = cold.file_count() as u64;
    if let Some(wrong) = cold.options_file_error() {
        job.found(&options_file(wrong))?;
    }
    let bytes_total = if only.is_some() { None } else { cold.bytes_estimated() };
    job.begin("store", bytes_total)?;
    let asked_for = |owner: &&Owner| only.is_none_or(|only| only.metadata().name == owner.name);
    for owner in owners.values().filter(asked_for) {
        owner.lost.iter().try_for_each(|stretch| job.found(&lost(owner, stretch)))?;
    }
    let mut walk = Walk { job, owners, no: None, object: None, sizes: Sizes::default(), behind_a_gap: false, orphans };
    cold.versions(only.map(Timeline::timeline_no), &mut |item| walk.item(item))?;
    walk.end_object()?;
    walk.end_number()?;
    match repository.store().compaction_paused() {
        Some(cause) if only.is_none() => job.found(&compaction_paused(&cause)),
        _ => Ok(()),
    }
}

/// Whose versions stand under a number.
#[derive(Clone)]
struct Owner {
    name: String,
    pg_version: PgVersion,
    is_branch: bool,
    /// No version lies below.
    floor_lsn: Lsn,
    /// It is being made or taken away: nothing is to be expected of it.
    is_in_transit: bool,
    /// What a mend had to leave out.
    lost: LostStretches,
}

impl Owner {
    /// Versions of the object may be lost.
    fn may_lack(&self, key: &Key) -> bool {
        self.lost.iter().any(|stretch| stretch.meets(key, key))
    }
}

fn owners_of(job: &Job<'_>) -> Result<HashMap<TimelineNo, Owner>, VerifyError> {
    let in_transit = job.repository.numbers_in_transit()?.into_iter().map(|no| {
        let owner = Owner {
            name: format!("number {}", no.0),
            pg_version: PgVersion::V15,
            is_branch: true,
            floor_lsn: Lsn::ZERO,
            is_in_transit: true,
            lost: LostStretches::default(),
        };
        (no, owner)
    });
    let timelines = job.repository.timelines();
    let here = timelines.iter().map(|timeline| {
        let metadata = timeline.metadata();
        let branch_lsn = metadata.ancestor.as_ref().map(|ancestor| ancestor.lsn);
        let start_lsn = metadata.imported.as_ref().map(|imported| imported.start_lsn);
        let owner = Owner {
            name: metadata.name.clone(),
            pg_version: metadata.cluster.pg_version,
            is_branch: branch_lsn.is_some(),
            floor_lsn: branch_lsn.or(start_lsn).unwrap_or(Lsn::ZERO),
            is_in_transit: false,
            // Without a watermark nobody knows what is lost.
            lost: timeline.own_durable_lsn().map_or_else(LostStretches::default, |_| timeline.lost().clone()),
        };
        (metadata.timeline_no(), owner)
    });
    Ok(in_transit.chain(here).collect())
}

/// The object whose versions are coming.
struct InHand {
    key: Key,
    /// Its oldest version, if that is known to be the oldest.
    oldest: Option<(Lsn, Kind)>,
    newest_lsn: Lsn,
}

struct Walk<'j, 'a> {
    job: &'j mut Job<'a>,
    owners: HashMap<TimelineNo, Owner>,
    /// The number whose versions are coming, and how many there were.
    no: Option<(TimelineNo, u64)>,
    object: Option<InHand>,
    sizes: Sizes,
    /// What comes next may have older versions that could not be read.
    behind_a_gap: bool,
    orphans: &'j mut Vec<TimelineNo>,
}

impl Walk<'_, '_> {
    fn item(&mut self, item: ColdItem<'_>) -> Result<(), VerifyError> {
        match item {
            ColdItem::Version { version, value } => self.version(&version, value),
            ColdItem::BadKey { key, cause } => {
                let object = format!("key {key:02x?}");
                self.job.found(&finding(None, object, None, cause, advice::FAULT))
            }
            ColdItem::OutOfOrder { version } => {
                let what = "not in the order of keys".to_owned();
                self.found_at(&version, what, advice::RESTORE_STORE)
            }
            ColdItem::Unreadable(range) => self.unreadable(&range),
        }
    }

    fn version(&mut self, version: &VersionKey, value: &[u8]) -> Result<(), VerifyError> {
        self.job.counts.versions += 1;
        self.job.took((keyenc::ENCODED_KEY_LEN + value.len()) as u64)?;
        if self.no.is_none_or(|(no, _)| no != version.timeline) {
            self.end_object()?;
            self.end_number()?;
            self.no = Some((version.timeline, 0));
        }
        if let Some((_, count)) = &mut self.no {
            *count += 1;
        }
        let Some(owner) = self.owners.get(&version.timeline) else { return Ok(()) };
        let (pg_version, floor_lsn, is_in_transit) = (owner.pg_version, owner.floor_lsn, owner.is_in_transit);
        if is_in_transit {
            return Ok(());
        }
        if self.object.as_ref().is_none_or(|object| object.key != version.key) {
            self.end_object()?;
            let oldest = (!self.behind_a_gap).then_some((version.lsn, version.kind));
            self.object = Some(InHand { key: version.key, oldest, newest_lsn: version.lsn });
        }
        self.behind_a_gap = false;
        if let Some(object) = &mut self.object {
            object.newest_lsn = version.lsn;
        }
        self.sizes.see(version, value);
        if version.lsn < floor_lsn {
            let what = format!("below where its timeline begins. floor_lsn=`{floor_lsn}`");
            self.found_at(version, what, advice::FAULT)?;
        }
        match value::check(pg_version, version, value) {
            Ok(()) => Ok(()),
            Err(wrong) => self.found_at(version, wrong.into_owned(), advice::FAULT),
        }
    }

    /// All versions of an object were seen.
    fn end_object(&mut self) -> Result<(), VerifyError> {
        let (Some(object), Some((no, _))) = (self.object.take(), self.no) else { return Ok(()) };
        let Ok(address) = object.key.object() else { return Ok(()) };
        let owner = self.owners.get(&no);
        let is_branch = owner.is_none_or(|owner| owner.is_branch);
        let may_lack = |key: &Key| owner.is_some_and(|owner| owner.may_lack(key));
        let may_lack_versions = may_lack(&object.key);
        let may_lack_size = match address {
            Object::RelationBlock { rel, fork, .. } => may_lack(&Object::RelationSize { rel, fork }.into()),
            _ => false,
        };
        let version = |lsn, kind| VersionKey { timeline: no, key: object.key, lsn, kind };
        // A branch's may go on in an ancestor; the maps are read as zeroes where nothing was written.
        let begins_at_zeroes = matches!(address, Object::RelationBlock { fork: ForkNumber::Fsm | ForkNumber::Vm, .. });
        if let Some((oldest_lsn, Kind::Delta)) = object.oldest
            && !is_branch
            && !begins_at_zeroes
            && !may_lack_versions
        {
            let what = "the oldest version is a record, and there is no page to apply it to".to_owned();
            self.found_at(&version(oldest_lsn, Kind::Delta), what, advice::FAULT)?;
        }
        if let Object::RelationBlock { rel, fork, block_no } = address
            && !may_lack_size
            && let Some(what) = self.sizes.check_block(rel, fork, block_no, object.newest_lsn)
        {
            self.found_at(&version(object.newest_lsn, Kind::Image), what, advice::FAULT)?;
        }
        Ok(())
    }

    /// All versions of a number were seen.
    fn end_number(&mut self) -> Result<(), VerifyError> {
        self.sizes = Sizes::default();
        let Some((no, count)) = self.no.take() else { return Ok(()) };
        if self.owners.contains_key(&no) {
            return Ok(());
        }
        self.orphans.push(no);
        let what = format!("versions under a number that no timeline has. versions=`{count}`");
        self.job.found(&finding(None, format!("number {}", no.0), None, what, advice::ORPHANS))
    }

    fn unreadable(&mut self, range: &UnreadableRange) -> Result<(), VerifyError> {
        // What is in hand may have newer versions in there.
        self.object = None;
        self.behind_a_gap = true;
        let no = range.after.or(range.before).map(|version| version.timeline);
        let finding = Finding {
            timeline: no.and_then(|no| self.owners.get(&no)).map(|owner| owner.name.clone()),
            part: Part::Store,
            object: describe(range),
            lsn: None,
            file: range.file.clone(),
            what: format!("cannot be read: {}", range.cause),
            what_to_do: advice::RESTORE_STORE,
        };
        self.job.found(&finding)
    }

    fn found_at(&mut self, version: &VersionKey, what: String, what_to_do: &'static str) -> Result<(), VerifyError> {
        let timeline = self.owners.get(&version.timeline).map(|owner| owner.name.clone());
        let object = format!("{} ({})", version.key, kind_name(version.kind));
        self.job.found(&finding(timeline, object, Some(version.lsn), what, what_to_do))
    }
}

/// `from KEY@LSN to KEY@LSN`, both exclusive.
pub(super) fn describe(range: &UnreadableRange) -> String {
    let place = |version: &VersionKey| format!("{}@{}", version.key, version.lsn);
    let after = range.after.as_ref().map_or_else(|| "the beginning".to_owned(), place);
    let before = range.before.as_ref().map_or_else(|| "the end".to_owned(), place);
    format!("between {after} and {before}")
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Tombstone => "tombstone",
        Kind::Delta => "delta",
        Kind::InitDelta => "init delta",
        Kind::Image => "image",
    }
}

fn finding(
    timeline: Option<String>,
    object: String,
    lsn: Option<Lsn>,
    what: String,
    what_to_do: &'static str,
) -> Finding {
    Finding { timeline, part: Part::Store, object, lsn, file: None, what, what_to_do }
}

fn lost(owner: &Owner, stretch: &LostStretch) -> Finding {
    let what = "taken out by `pageserver mend`, since it could not be read".to_owned();
    finding(Some(owner.name.clone()), stretch.to_string(), Some(stretch.through_lsn), what, advice::LOST)
}

fn unopenable(error: &StoreError) -> Finding {
    let file = Some("store/rocksdb".into());
    let object = "CURRENT or MANIFEST".to_owned();
    Finding { file, ..finding(None, object, None, error.to_string(), advice::RESTORE_STORE) }
}

fn compaction_paused(cause: &str) -> Finding {
    let file = Some("store/compaction_paused".into());
    let what = format!("compaction is paused: {cause}");
    Finding { file, ..finding(None, "compaction".to_owned(), None, what, advice::PAUSED) }
}

fn options_file(wrong: (std::path::PathBuf, String)) -> Finding {
    let (file, what) = wrong;
    let object = "RocksDB's options".to_owned();
    let what_to_do = "nothing reads this file; the next start writes a new one";
    Finding { file: Some(file), ..finding(None, object, None, what, what_to_do) }
}
