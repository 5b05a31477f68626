//! Writes the new store: all that can be read of the timelines that stay.

use std::path::Path;

use keyenc::{ENCODED_KEY_LEN, Key, Object, VersionKey};
use postgres_ffi::Lsn;

use super::plan::{Plan, are_only_blocks, stretches_of};
use super::survey::{Progress, no_version};
use super::{MendError, MendProgress};
use crate::store::{ColdItem, ColdRead, MendedStore, MendedTimeline, StoreConfig, UnreadableRange, Watermark};

/// Copies what `plans` say, of about `bytes_total` bytes of keys and values, beside the store in `dir`; the new store, whole and durable, and how many versions it has. Errors: see [`MendError`]; nothing is left then.
pub(super) fn copy(
    (dir, config): (&Path, &StoreConfig),
    plans: Vec<Plan<'_>>,
    bytes_total: u64,
    progress: &mut dyn FnMut(MendProgress),
) -> Result<(MendedStore, u64), MendError> {
    let source = ColdRead::of_stopped(dir, config)?;
    let mended = MendedStore::begin(dir, config)?;
    let progress = Progress::new("writing the new store", bytes_total, progress);
    let mut copy = Copy { mended: &mended, plans, current: None, unreadable: Vec::new(), versions: 0, progress };
    source.versions(None, &mut |item| copy.item(item))?;
    copy.end_timeline()?;
    if let Some(plan) = copy.plans.first() {
        return Err(gets_worse(plan));
    }
    let versions = copy.versions;
    drop(copy);
    Ok((mended, versions))
}

struct Copy<'a, 'p> {
    mended: &'a MendedStore,
    /// Of the timelines that are still to come.
    plans: Vec<Plan<'p>>,
    current: Option<Current<'a, 'p>>,
    /// What could not be read now.
    unreadable: Vec<UnreadableRange>,
    versions: u64,
    progress: Progress<'a>,
}

/// The timeline whose versions are coming.
struct Current<'a, 'p> {
    plan: Plan<'p>,
    versions: MendedTimeline<'a>,
    control_file_lsn: Option<Lsn>,
}

impl Copy<'_, '_> {
    fn item(&mut self, item: ColdItem<'_>) -> Result<(), MendError> {
        match item {
            ColdItem::Version { version, value } => self.version(&version, value),
            ColdItem::Unreadable(range) => {
                self.unreadable.push(range);
                Ok(())
            }
            item => Err(no_version(&item).into()),
        }
    }

    fn version(&mut self, version: &VersionKey, value: &[u8]) -> Result<(), MendError> {
        self.progress.add((ENCODED_KEY_LEN + value.len()) as u64);
        let no = version.timeline;
        if self.current.as_ref().is_none_or(|current| current.plan.timeline.metadata.timeline_no() != no) {
            self.end_timeline()?;
            let place = self.plans.iter().position(|plan| plan.timeline.metadata.timeline_no() == no);
            self.current = place.map(|place| Current {
                plan: self.plans.remove(place),
                versions: self.mended.begin_timeline(no),
                control_file_lsn: None,
            });
        }
        // Nobody's versions, or those of a timeline that is given up, stay where they are.
        let Some(current) = &mut self.current else { return Ok(()) };
        let comes_again = current.plan.is_ingested_again() && current.plan.begin_lsn < version.lsn;
        if comes_again || version.key == Key::from(Object::Watermark) {
            return Ok(());
        }
        if version.key == Key::from(Object::ControlFile) {
            current.control_file_lsn = Some(version.lsn);
        }
        self.versions += 1;
        Ok(current.versions.put(version, value)?)
    }

    fn end_timeline(&mut self) -> Result<(), MendError> {
        let Some(Current { plan, versions, control_file_lsn }) = self.current.take() else { return Ok(()) };
        let watermark = Watermark { last_record_lsn: plan.begin_lsn };
        let no = plan.timeline.metadata.timeline_no();
        // What could not be read the first time may have been read now, but is not believed.
        let lost_now = stretches_of(no, &self.unreadable, plan.begin_lsn);
        let lost = plan.lost.with(&lost_now);
        let is_branch = plan.timeline.metadata.ancestor.is_some();
        let hides_control_file = lost.may_hide(&Key::from(Object::ControlFile), control_file_lsn);
        let has_none = control_file_lsn.is_none() && !is_branch;
        if has_none || hides_control_file || plan.is_ingested_again() && !are_only_blocks(&lost_now) {
            return Err(gets_worse(&plan));
        }
        versions.finish(watermark, &lost)?;
        Ok(())
    }
}

fn gets_worse(plan: &Plan<'_>) -> MendError {
    MendError::GetsWorse { name: plan.timeline.metadata.name.clone() }
}
