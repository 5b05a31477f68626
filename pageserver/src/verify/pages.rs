//! Every page as it would be served: at the newest LSN, where branches leave, and where leases are.
//!
//! What is asked is what PostgreSQL asks of a page that it reads (PG 15: src/backend/storage/page/bufpage.c, PageIsVerifiedExtended), and that no page
//! is newer than the LSN that it was asked for.

use std::sync::Arc;

use keyenc::{Key, Object};
use postgres_ffi::page::layout::Header;
use postgres_ffi::page::{self, Page, compute_checksum, page_is_new, page_lsn, stored_checksum};
use postgres_ffi::rel::SLRU_PAGES_PER_SEGMENT;
use postgres_ffi::{BLCKSZ, Lsn, SlruKind};

use super::finding::advice;
use super::job::{Job, VerifyError};
use super::{Finding, Part, kept_sizes, name_of};
use crate::store::StoreError;
use crate::timeline::{ReadError, Timeline, TimelineState};

/// Pages that are made together, in walredo threads at the same time.
const PAGES_AT_ONCE: u32 = 128;
/// PG 15: bufpage.h, PD_VALID_FLAG_BITS.
const VALID_FLAGS: u16 = page::PD_HAS_FREE_LINES | page::PD_PAGE_FULL | page::PD_ALL_VISIBLE;
/// Size and layout version, as every initialised page has them. PG 14-18: bufpage.h, PG_PAGE_LAYOUT_VERSION.
const PAGESIZE_VERSION: u16 = BLCKSZ as u16 | 4;
/// Special areas begin where a maximally aligned thing may. PG: MAXALIGN.
const ALIGNMENT: usize = 8;

/// Checks the pages of `timeline`.
pub(super) fn check(job: &mut Job<'_>, timeline: &Arc<Timeline>) -> Result<(), VerifyError> {
    if timeline.is_damaged() {
        return Ok(()); // Told with the metadata.
    }
    if matches!(timeline.state(), TimelineState::Importing | TimelineState::CatchingUp) {
        return Ok(()); // Nobody can read them yet.
    }
    let lsns = job.repository.lsns_in_use(timeline);
    let newest_lsn = lsns.first().copied();
    for lsn in lsns {
        match check_at(job, timeline, lsn) {
            Err(VerifyError::Read(ReadError::Gone { .. })) => return Ok(()), // Deleted or reset meanwhile.
            Err(VerifyError::Read(ReadError::BelowFirstReadable { .. }))
                if !job.repository.lsns_in_use(timeline).contains(&lsn) =>
            {
                if Some(lsn) == newest_lsn {
                    job.found(&overtaken(timeline, lsn))?; // Its history is shorter than this takes.
                } // Else nobody reads there any more: the lease is over, or the branch is gone.
            }
            Err(VerifyError::Read(error)) => job.found(&whole(timeline, lsn, &error))?,
            other => other?,
        }
    }
    Ok(())
}

fn check_at(job: &mut Job<'_>, timeline: &Arc<Timeline>, lsn: Lsn) -> Result<(), VerifyError> {
    let relations = timeline.all_relations(lsn)?;
    kept_sizes::check(job, timeline, lsn, &relations)?;
    let segments = slru_segments(timeline, lsn)?;
    let page_count = relations.iter().map(|(.., blocks)| u64::from(*blocks)).sum::<u64>()
        + segments.iter().map(|(.., pages)| u64::from(*pages)).sum::<u64>();
    job.begin("pages", Some(page_count * BLCKSZ as u64))?;
    let mut check = Check { job, timeline, lsn, run: None };
    for (kind, segment_no, count) in segments {
        let first = segment_no * SLRU_PAGES_PER_SEGMENT;
        check.pages(count, &|index| Object::SlruPage { kind, page_no: first + index }.into())?;
    }
    for (rel, fork, block_count) in relations {
        check.pages(block_count, &|block_no| Key::block(rel, fork, block_no))?;
    }
    Ok(())
}

fn slru_segments(timeline: &Timeline, lsn: Lsn) -> Result<Vec<(SlruKind, u32, u32)>, ReadError> {
    let mut all = Vec::new();
    for kind in SlruKind::ALL {
        let segments = timeline.slru_segments(kind, lsn)?;
        all.extend(segments.into_iter().map(|(no, pages)| (kind, no, pages.min(SLRU_PAGES_PER_SEGMENT))));
    }
    Ok(all)
}

/// Neighbouring pages with which the same is wrong.
struct Run {
    first: Key,
    last: Key,
    count: u64,
    what: String,
}

struct Check<'j, 'a, 't> {
    job: &'j mut Job<'a>,
    timeline: &'t Arc<Timeline>,
    lsn: Lsn,
    run: Option<Run>,
}

impl Check<'_, '_, '_> {
    fn pages(&mut self, count: u32, key_of: &dyn Fn(u32) -> Key) -> Result<(), VerifyError> {
        let mut next = 0;
        while next < count {
            let end = count.min(next.saturating_add(PAGES_AT_ONCE));
            let keys: Vec<Key> = (next..end).map(key_of).collect();
            for (key, page) in keys.iter().zip(self.timeline.pages_cold(&keys, self.lsn)) {
                match page {
                    Err(
                        error @ (ReadError::Gone { .. }
                        | ReadError::BelowFirstReadable { .. }
                        | ReadError::ShuttingDown),
                    ) => {
                        self.end_run()?;
                        return Err(error.into());
                    }
                    Err(error) => self.wrong(*key, cause_of(&error))?,
                    Ok(page) => match self.look_at(*key, &page) {
                        Some(what) => self.wrong(*key, what)?,
                        None => self.end_run()?,
                    },
                }
            }
            self.job.counts.pages += u64::from(end - next);
            self.job.took(u64::from(end - next) * BLCKSZ as u64)?;
            next = end;
        }
        self.end_run()
    }

    /// What is wrong with a page.
    fn look_at(&self, key: Key, page: &[u8]) -> Option<String> {
        let page: &Page = match page.try_into() {
            Ok(page) => page,
            Err(_) => return Some(format!("a page of {} bytes", page.len())),
        };
        // Pages of SLRUs have no header.
        let Ok(Object::RelationBlock { block_no, .. }) = key.object() else { return None };
        let data_checksums = self.timeline.metadata().cluster.data_checksums;
        wrong_with(page, data_checksums.then_some(block_no), self.lsn)
    }

    fn wrong(&mut self, key: Key, what: String) -> Result<(), VerifyError> {
        match &mut self.run {
            Some(run) if run.what == what => {
                run.last = key;
                run.count += 1;
                Ok(())
            }
            _ => {
                self.end_run()?;
                self.run = Some(Run { first: key, last: key, count: 1, what });
                Ok(())
            }
        }
    }

    fn end_run(&mut self) -> Result<(), VerifyError> {
        let Some(Run { first, last, count, what }) = self.run.take() else { return Ok(()) };
        let object = if count == 1 { first.to_string() } else { format!("{first} to {last}, {count} pages") };
        self.job.found(&Finding {
            timeline: Some(name_of(self.timeline)),
            part: Part::Pages,
            object,
            lsn: Some(self.lsn),
            file: None,
            what,
            what_to_do: advice::PAGE,
        })
    }
}

/// What is the same of neighbours in one damaged block of the store.
fn cause_of(error: &ReadError) -> String {
    match error {
        ReadError::Store(error) => match &**error {
            StoreError::Lost { through_lsn, .. } => format!("records of it are lost, up to {through_lsn}"),
            error => error.to_string(),
        },
        other => other.to_string(),
    }
}

/// What PostgreSQL would not take of a page as of `lsn`; with the number of the block where the cluster has checksums.
fn wrong_with(page: &Page, checksum_of_block: Option<u32>, lsn: Lsn) -> Option<String> {
    if page_is_new(page) {
        let is_zero = page.iter().all(|byte| *byte == 0);
        return (!is_zero).then(|| "not initialised, and not zeroes".to_owned());
    }
    let header = Header::read(page);
    let is_sane = header.flags & !VALID_FLAGS == 0
        && header.lower <= header.upper
        && header.upper <= header.special
        && header.special <= BLCKSZ
        && header.special.is_multiple_of(ALIGNMENT)
        && header.pagesize_version == PAGESIZE_VERSION;
    if !is_sane {
        return Some(format!("its header makes no sense: {header:?}"));
    }
    if let Some(page_lsn) = page_lsn(page).filter(|page_lsn| *page_lsn > lsn) {
        return Some(format!("newer than the LSN that it was asked for. page_lsn=`{page_lsn}`"));
    }
    let block_no = checksum_of_block?;
    let (stored, computed) = (stored_checksum(page), compute_checksum(page, block_no));
    (stored != computed).then(|| format!("its checksum is wrong. stored=`{stored}`, computed=`{computed}`"))
}

fn whole(timeline: &Arc<Timeline>, lsn: Lsn, error: &ReadError) -> Finding {
    Finding {
        timeline: Some(name_of(timeline)),
        part: Part::Pages,
        object: "the lists of relations and segments".to_owned(),
        lsn: Some(lsn),
        file: None,
        what: cause_of(error),
        what_to_do: advice::PAGE,
    }
}

/// Nothing is known to be wrong, and not all was looked at.
fn overtaken(timeline: &Arc<Timeline>, lsn: Lsn) -> Finding {
    Finding {
        timeline: Some(name_of(timeline)),
        part: Part::Pages,
        object: "pages".to_owned(),
        lsn: Some(lsn),
        file: None,
        what: "not all of them were read: garbage collection has given up the LSN meanwhile".to_owned(),
        what_to_do: advice::OVERTAKEN,
    }
}

#[cfg(test)]
mod tests {
    //! Goal: what PostgreSQL would refuse is told, and nothing else. Method: one sound page, spoilt in each way.

    use postgres_ffi::page::{PD_FLAGS, PD_LOWER, PD_PAGESIZE_VERSION, PD_SPECIAL, PD_UPPER, ZERO_PAGE, set_page_lsn};

    use super::*;

    const LSN: Lsn = Lsn::new(0x1000);

    fn sound() -> Page {
        let mut page = ZERO_PAGE;
        let mut put = |at: usize, value: u16| page[at..at + 2].copy_from_slice(&value.to_le_bytes());
        put(PD_LOWER, 28);
        put(PD_UPPER, 8000);
        put(PD_SPECIAL, 8192);
        put(PD_PAGESIZE_VERSION, PAGESIZE_VERSION);
        set_page_lsn(&mut page, LSN);
        page::set_checksum(&mut page, 7);
        page
    }

    #[test]
    fn a_sound_page_is_taken() {
        assert_eq!(wrong_with(&sound(), Some(7), LSN), None);
        assert_eq!(wrong_with(&ZERO_PAGE, Some(7), LSN), None);
    }

    #[test]
    fn a_spoilt_page_is_not() {
        let spoil = |at: usize, value: u16| {
            let mut page = sound();
            page[at..at + 2].copy_from_slice(&value.to_le_bytes());
            page::set_checksum(&mut page, 7);
            page
        };
        for (at, value) in [
            (PD_FLAGS, 8),
            (PD_LOWER, 8001),
            (PD_UPPER, 8193),
            (PD_SPECIAL, 8191),
            (PD_SPECIAL, 8004),
            (PD_PAGESIZE_VERSION, 0),
            (PD_UPPER, 0),
        ] {
            assert!(wrong_with(&spoil(at, value), Some(7), LSN).is_some(), "{at} {value}");
        }
        assert!(wrong_with(&sound(), Some(8), LSN).is_some(), "the checksum of another block");
        assert_eq!(wrong_with(&sound(), None, LSN), None);
        assert!(wrong_with(&sound(), Some(7), Lsn::new(0xFFF)).is_some(), "newer than asked for");
    }
}
