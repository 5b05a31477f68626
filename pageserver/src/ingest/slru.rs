//! SLRU pages: CLOG and commit timestamps from commits and aborts, pages zeroed, segments removed.

use keyenc::{Key, Kind, Object};
use postgres_ffi::records::slru::{ClogTruncate, CommitTsTruncate, TRUNCATE, ZERO_PAGE, parse_zero_page};
use postgres_ffi::rel::SLRU_PAGES_PER_SEGMENT;
use postgres_ffi::slru::{
    XidStatus, clog_place, commit_ts_place, page_precedes, segment_place, truncation_removes_segment,
};
use postgres_ffi::{SlruKind, TimestampTz, TransactionId};

use super::step::{Step, number_of};
use super::{IngestError, WalIngest};
use crate::delta::{Delta, Index};

/// Places of a transaction and its subtransactions: memory that records reuse.
#[derive(Default)]
pub(super) struct Places {
    /// (page, place there), in order of pages.
    all: Vec<(u32, u16)>,
    /// Those of one page.
    on_page: Vec<Index>,
}

impl WalIngest {
    /// PG: clog.c, clog_redo.
    pub(super) fn ingest_clog(&mut self, step: &mut Step<'_>) -> Result<(), IngestError> {
        match step.record.operation() {
            ZERO_PAGE => self.ingest_zero_page(step, SlruKind::Clog),
            TRUNCATE => {
                let truncate = ClogTruncate::parse(self.version, step.record.main_data());
                let truncate = truncate.map_err(|source| step.bad_body(source))?;
                // The primary does this next, and logs it only with the following checkpoint; until then a start from here would ask for
                // pages that are gone. PG: vacuum.c, vac_truncate_clog.
                self.checkpoint.advance_oldest_xid(truncate.oldest_xid, truncate.oldest_xid_db);
                self.checkpoint_changed = true;
                let newest_page = clog_place(self.checkpoint.next_xid_low()).0;
                self.truncate_slru(step, SlruKind::Clog, truncate.cutoff_page_no, newest_page)
            }
            _ => Err(step.unknown_operation()),
        }
    }

    /// PG: commit_ts.c, commit_ts_redo.
    pub(super) fn ingest_commit_ts(&mut self, step: &mut Step<'_>) -> Result<(), IngestError> {
        match step.record.operation() {
            ZERO_PAGE => self.ingest_zero_page(step, SlruKind::CommitTs),
            TRUNCATE => {
                let truncate = CommitTsTruncate::parse(self.version, step.record.main_data());
                let truncate = truncate.map_err(|source| step.bad_body(source))?;
                let oldest = self.checkpoint.oldest_commit_ts_xid;
                if oldest != 0 && postgres_ffi::slru::xid_precedes(oldest, truncate.oldest_xid) {
                    self.checkpoint.oldest_commit_ts_xid = truncate.oldest_xid;
                    self.checkpoint_changed = true;
                }
                self.truncate_slru(step, SlruKind::CommitTs, truncate.cutoff_page_no, truncate.cutoff_page_no)
            }
            _ => Err(step.unknown_operation()),
        }
    }

    /// The status of a transaction and its subtransactions, which all ended with this record.
    /// PG: clog.c, TransactionIdSetTreeStatus: in between some are "sub-committed", but nobody sees that in one record.
    pub(super) fn set_clog_status(
        &mut self,
        step: &mut Step<'_>,
        xids: impl Iterator<Item = TransactionId>,
        status: XidStatus,
    ) -> Result<(), IngestError> {
        self.put_per_page(step, SlruKind::Clog, xids.map(clog_place), |indexes| Delta::ClogStatus { status, indexes })
    }

    /// When a transaction and its subtransactions were committed. PG: commit_ts.c, TransactionTreeSetCommitTsData.
    pub(super) fn set_commit_ts(
        &mut self,
        step: &mut Step<'_>,
        xids: impl Iterator<Item = TransactionId>,
        time: TimestampTz,
        origin_id: u16,
    ) -> Result<(), IngestError> {
        let places = xids.map(commit_ts_place);
        self.put_per_page(step, SlruKind::CommitTs, places, |indexes| Delta::CommitTs { time, origin_id, indexes })
    }

    /// One delta per page that `places` lie on.
    fn put_per_page(
        &mut self,
        step: &mut Step<'_>,
        kind: SlruKind,
        places: impl Iterator<Item = (u32, u16)>,
        delta_of: impl Fn(&[Index]) -> Delta<'_>,
    ) -> Result<(), IngestError> {
        let mut scratch = std::mem::take(&mut self.places);
        scratch.all.clear();
        scratch.all.extend(places);
        // Subtransactions ascend, but they may wrap around, and a page must get one version at this LSN.
        scratch.all.sort_by_key(|(page_no, _)| *page_no);
        for on_page in scratch.all.chunk_by(|(page1, _), (page2, _)| page1 == page2) {
            scratch.on_page.clear();
            scratch.on_page.extend(on_page.iter().map(|(_, index)| Index::new(*index)));
            self.put_slru_delta(step, kind, on_page[0].0, &delta_of(&scratch.on_page))?;
        }
        self.places = scratch;
        Ok(())
    }

    /// Puts a change to an SLRU page; a page that is not there starts from zeroes, as in recovery (slru.c, SlruPhysicalReadPage).
    pub(super) fn put_slru_delta(
        &mut self,
        step: &mut Step<'_>,
        kind: SlruKind,
        page_no: u32,
        delta: &Delta<'_>,
    ) -> Result<(), IngestError> {
        let existed = self.touch_slru_page(step, kind, page_no)?;
        let version_kind = if existed { Kind::Delta } else { Kind::InitDelta };
        self.value.clear();
        delta.encode(&mut self.value);
        step.batch.put(Key::from(Object::SlruPage { kind, page_no }), step.lsn(), version_kind, &self.value);
        Ok(())
    }

    fn ingest_zero_page(&mut self, step: &mut Step<'_>, kind: SlruKind) -> Result<(), IngestError> {
        let page_no = parse_zero_page(self.version, step.record.main_data()).map_err(|source| step.bad_body(source))?;
        self.zero_slru_page(step, kind, page_no)
    }

    /// The page is zeroes from here on, whatever it was.
    pub(super) fn zero_slru_page(
        &mut self,
        step: &mut Step<'_>,
        kind: SlruKind,
        page_no: u32,
    ) -> Result<(), IngestError> {
        self.touch_slru_page(step, kind, page_no)?;
        step.put(Object::SlruPage { kind, page_no }, Kind::Image, &[]);
        Ok(())
    }

    /// Makes the page's segment long enough. True if the page was there before.
    fn touch_slru_page(&mut self, step: &mut Step<'_>, kind: SlruKind, page_no: u32) -> Result<bool, IngestError> {
        let (segment_no, place) = segment_place(page_no);
        let before = self.segment_size(step, kind, segment_no)?;
        let page_count = before.unwrap_or(0);
        if place < page_count {
            return Ok(true);
        }
        if before.is_none() && kind == SlruKind::CommitTs {
            self.end_commit_ts_segment_before(step, page_no - place)?;
        }
        for gap in page_count..place {
            step.put(Object::SlruPage { kind, page_no: page_no - place + gap }, Kind::Image, &[]);
        }
        step.put(Object::SlruSegment { kind, segment_no }, Kind::Image, &(place + 1).to_be_bytes());
        self.segment_changed(kind, segment_no, before, Some(place + 1));
        Ok(false)
    }

    /// A server that begins at a rounded transaction id may leave out a whole page of commit timestamps: nobody ever makes it, since its first id was never given out. Where it is the last
    /// of a segment nothing else fills it up. PG 14-18: src/backend/access/transam/commit_ts.c, ActivateCommitTs, ExtendCommitTs.
    fn end_commit_ts_segment_before(&mut self, step: &mut Step<'_>, first_page_no: u32) -> Result<(), IngestError> {
        let Some(last_page_no) = first_page_no.checked_sub(1) else { return Ok(()) };
        let page_count = self.segment_size(step, SlruKind::CommitTs, segment_place(last_page_no).0)?;
        match page_count {
            Some(page_count) if page_count < SLRU_PAGES_PER_SEGMENT => {
                self.zero_slru_page(step, SlruKind::CommitTs, last_page_no)
            }
            _ => Ok(()),
        }
    }

    /// True if the page lies within its segment.
    pub(super) fn slru_page_exists(
        &mut self,
        step: &Step<'_>,
        kind: SlruKind,
        page_no: u32,
    ) -> Result<bool, IngestError> {
        let (segment_no, place) = segment_place(page_no);
        Ok(self.segment_size(step, kind, segment_no)?.is_some_and(|page_count| place < page_count))
    }

    fn segment_size(&mut self, step: &Step<'_>, kind: SlruKind, segment_no: u32) -> Result<Option<u32>, IngestError> {
        if let Some(known) = self.known.segments.get(&(kind, segment_no)) {
            return Ok(*known);
        }
        let found = step.number(Object::SlruSegment { kind, segment_no })?;
        self.known.segments.insert((kind, segment_no), found);
        Ok(found)
    }

    /// Removes the segments that lie wholly before the cutoff, around the wrap. PG: slru.c, SimpleLruTruncate.
    pub(super) fn truncate_slru(
        &mut self,
        step: &mut Step<'_>,
        kind: SlruKind,
        cutoff_page: u32,
        newest_page: u32,
    ) -> Result<(), IngestError> {
        if page_precedes(kind, newest_page, cutoff_page) {
            tracing::warn!(%kind, cutoff_page, newest_page, "SLRU not truncated: the newest page would go");
            return Ok(());
        }
        for segment_no in self.existing_segments(step, kind)? {
            if truncation_removes_segment(kind, segment_no, cutoff_page) {
                self.remove_segment(step, kind, segment_no)?;
            }
        }
        Ok(())
    }

    pub(super) fn remove_segment(
        &mut self,
        step: &mut Step<'_>,
        kind: SlruKind,
        segment_no: u32,
    ) -> Result<(), IngestError> {
        let before = self.segment_size(step, kind, segment_no)?;
        step.put(Object::SlruSegment { kind, segment_no }, Kind::Tombstone, &[]);
        self.segment_changed(kind, segment_no, before, None);
        Ok(())
    }

    fn segment_changed(&mut self, kind: SlruKind, segment_no: u32, before: Option<u32>, after: Option<u32>) {
        self.known.segments.insert((kind, segment_no), after);
        self.kept_sizes.segment_changed(kind, before, after);
    }

    /// Segments that exist before this record, ascending.
    pub(super) fn existing_segments(&mut self, step: &mut Step<'_>, kind: SlruKind) -> Result<Vec<u32>, IngestError> {
        let bound = |segment_no| Key::from(Object::SlruSegment { kind, segment_no });
        let mut segments = Vec::new();
        for (object, value) in step.scan(&bound(0), &bound(u32::MAX))? {
            number_of(Key::from(object), &value)?;
            if let Object::SlruSegment { segment_no, .. } = object {
                segments.push(segment_no);
            }
        }
        Ok(segments)
    }
}
