//! From where on each timeline begins again, and what of it is lost.

use keyenc::{Key, Object, TimelineNo};
use postgres_ffi::Lsn;
use postgres_ffi::wal::{DecodedRecord, rmgr};

use super::MendError;
use super::survey::Survey;
use crate::store::{LostStretch, LostStretches, UnreadableRange};
use crate::timeline::{RepositoryError, StoppedTimeline, TimelineMetadata};

/// What becomes of one timeline.
pub(super) struct Plan<'a> {
    pub timeline: &'a StoppedTimeline,
    /// Where it was.
    pub last_record_lsn: Lsn,
    /// Its watermark in the new store; versions above are not copied if it is below where the timeline was: ingest brings them again.
    pub begin_lsn: Lsn,
    pub lost: LostStretches,
}

impl Plan<'_> {
    /// WAL behind the beginning is ingested again at the next start.
    pub fn is_ingested_again(&self) -> bool {
        self.begin_lsn < self.last_record_lsn
    }
}

/// Those of the names. Errors: [`MendError::NotThere`], [`MendError::HasBranch`].
pub(super) fn given_up<'a>(
    timelines: &'a [StoppedTimeline],
    names: &[String],
) -> Result<Vec<&'a StoppedTimeline>, MendError> {
    let named = |name: &String| {
        let found = timelines.iter().find(|timeline| timeline.metadata.name == *name);
        found.ok_or_else(|| MendError::NotThere { name: name.clone() })
    };
    let given_up = names.iter().map(named).collect::<Result<Vec<_>, _>>()?;
    for branch in timelines.iter().filter(|timeline| !names.contains(&timeline.metadata.name)) {
        let ancestor_id = branch.metadata.ancestor.as_ref().map(|ancestor| ancestor.timeline_id);
        if let Some(ancestor) = given_up.iter().find(|timeline| Some(timeline.metadata.timeline_id) == ancestor_id) {
            let (name, branch) = (ancestor.metadata.name.clone(), branch.metadata.name.clone());
            return Err(MendError::HasBranch { name, branch });
        }
    }
    Ok(given_up)
}

/// One for each timeline that has versions and is not given up. Errors: [`MendError::Unopenable`]; the WAL's directory cannot be read.
pub(super) fn plan<'a>(
    timelines: &'a [StoppedTimeline],
    given_up: &[&StoppedTimeline],
    survey: &Survey,
) -> Result<Vec<Plan<'a>>, MendError> {
    let (mut plans, mut names) = (Vec::new(), Vec::new());
    let is_given_up = |timeline: &&StoppedTimeline| {
        given_up.iter().any(|other| other.metadata.timeline_id == timeline.metadata.timeline_id)
    };
    for timeline in timelines.iter().filter(|timeline| !is_given_up(timeline)) {
        let metadata = &timeline.metadata;
        let no = metadata.timeline_no();
        let all_lost = lost_of(no, survey);
        let found = survey.watermarks.get(&no);
        // A newer watermark may have stood in what is lost: how far the timeline went is not known then.
        let newest_watermark = found.map(|(watermark, _)| watermark.last_record_lsn);
        let newest_control_file = survey.control_files.get(&no).copied();
        let hides = |object: Object, newest_lsn| all_lost.may_hide(&Key::from(object), newest_lsn);
        // A branch may have none of either; who was imported has both.
        let has_none = metadata.ancestor.is_none() && newest_watermark.and(newest_control_file).is_none();
        let is_hidden = hides(Object::Watermark, newest_watermark) || hides(Object::ControlFile, newest_control_file);
        if has_none || is_hidden {
            names.push(metadata.name.clone());
            continue;
        }
        let Some((watermark, lost_before)) = found else { continue };
        let last_record_lsn = watermark.last_record_lsn;
        let is_damaged = !stretches_of(no, &survey.unreadable, Lsn::MAX).is_empty();
        // Who follows nobody ingests nothing at a start.
        let goes_on = metadata.primary.is_some();
        let mut begin_lsn = last_record_lsn;
        if is_damaged && goes_on && lineage_of(timeline, timelines).all(|no| are_only_blocks(&lost_of(no, survey))) {
            begin_lsn = from_wal(timeline, last_record_lsn)?.unwrap_or(last_record_lsn);
        }
        let lost = stretches_of(no, &survey.unreadable, begin_lsn).with(lost_before);
        plans.push(Plan { timeline, last_record_lsn, begin_lsn, lost });
    }
    if names.is_empty() { Ok(plans) } else { Err(MendError::Unopenable { names }) }
}

/// All that is lost of a number, now and before.
fn lost_of(no: TimelineNo, survey: &Survey) -> LostStretches {
    let now = stretches_of(no, &survey.unreadable, Lsn::MAX);
    survey.watermarks.get(&no).map_or(now.clone(), |(_, lost_before)| now.with(lost_before))
}

/// The numbers that a timeline reads, its own first.
fn lineage_of<'a>(timeline: &'a StoppedTimeline, timelines: &'a [StoppedTimeline]) -> impl Iterator<Item = TimelineNo> {
    let ancestor_of = |timeline: &&'a StoppedTimeline| {
        let ancestor_id = timeline.metadata.ancestor.as_ref()?.timeline_id;
        timelines.iter().find(|other| other.metadata.timeline_id == ancestor_id)
    };
    // A damaged file could make a ring of them.
    let lineage = std::iter::successors(Some(timeline), ancestor_of).take(timelines.len());
    lineage.map(|timeline| timeline.metadata.timeline_no())
}

/// What of a number lies in stretches that cannot be read; nothing of it was above `through_lsn`.
pub(super) fn stretches_of(no: TimelineNo, unreadable: &[UnreadableRange], through_lsn: Lsn) -> LostStretches {
    let of_no = |range: &UnreadableRange| {
        let begins_before = range.after.is_none_or(|after| after.timeline <= no);
        let ends_behind = range.before.is_none_or(|before| no <= before.timeline);
        let own =
            |version: keyenc::VersionKey| (version.timeline == no).then_some((version.key, version.lsn, version.kind));
        (begins_before && ends_behind).then(|| LostStretch {
            after: range.after.and_then(own),
            before: range.before.and_then(own),
            through_lsn,
        })
    };
    LostStretches::new(unreadable.iter().filter_map(of_no).collect())
}

/// Nothing that ingest reads is in them, but for records that copy databases.
pub(super) fn are_only_blocks(lost: &LostStretches) -> bool {
    let others = Key::objects_that_are_no_pages();
    let slru_pages = Key::class_of(Object::SlruPage { kind: postgres_ffi::SlruKind::Clog, page_no: 0 });
    let meets =
        |stretch: &LostStretch| others.iter().chain([&slru_pages]).any(|(first, last)| stretch.meets(first, last));
    !lost.iter().any(meets)
}

/// The lowest LSN from which the WAL on disk leads to where the timeline was, and at which the timeline can be read.
fn from_wal(timeline: &StoppedTimeline, last_record_lsn: Lsn) -> Result<Option<Lsn>, MendError> {
    let floor_lsn = first_readable_lsn(&timeline.metadata);
    // Such a record reads the pages that it copies.
    let copies_pages = |record: &DecodedRecord| record.rmid == rmgr::DBASE;
    let oldest = timeline.wal_layout().oldest_leading_to(last_record_lsn, floor_lsn, &copies_pages);
    Ok(oldest.map_err(RepositoryError::from)?)
}

fn first_readable_lsn(metadata: &TimelineMetadata) -> Lsn {
    let branch_lsn = metadata.ancestor.as_ref().map(|ancestor| ancestor.lsn);
    let imported_lsn = metadata.imported.as_ref().map(|imported| imported.first_readable_lsn);
    let horizon_lsn = metadata.gc.as_ref().map(|gc| gc.horizon_lsn);
    branch_lsn.max(imported_lsn).max(horizon_lsn).unwrap_or(Lsn::ZERO)
}
