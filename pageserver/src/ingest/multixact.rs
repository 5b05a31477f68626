//! Multixacts: offsets and members. PG: src/backend/access/transam/multixact.c.

use byteorder::{ByteOrder, LittleEndian};
use keyenc::{Key, Object};
use postgres_ffi::records::multixact::{self, Create, Truncate};
use postgres_ffi::records::slru::parse_zero_page;
use postgres_ffi::slru::{
    FIRST_MULTI, multi_member_place, multi_offset_place, next_multi, previous_multi, removed_members_segments,
    xid_precedes,
};
use postgres_ffi::{MultiXactOffset, SlruKind};

use super::step::Step;
use super::{IngestError, WalIngest};
use crate::delta::{Delta, MemberEntry, OffsetEntry};

impl WalIngest {
    /// PG: multixact_redo.
    pub(super) fn ingest_multixact(&mut self, step: &mut Step<'_>) -> Result<(), IngestError> {
        let main_data = step.record.main_data();
        match step.record.operation() {
            multixact::ZERO_OFFSETS_PAGE => {
                let page_no = parse_zero_page(self.version, main_data).map_err(|source| step.bad_body(source))?;
                self.zero_offsets_page(step, page_no)
            }
            multixact::ZERO_MEMBERS_PAGE => {
                let page_no = parse_zero_page(self.version, main_data).map_err(|source| step.bad_body(source))?;
                self.zero_slru_page(step, SlruKind::MultiXactMembers, page_no)
            }
            multixact::CREATE_ID => {
                let create = Create::parse(main_data).map_err(|source| step.bad_body(source))?;
                self.create_multixact(step, &create)
            }
            multixact::TRUNCATE_ID => {
                let truncate = Truncate::parse(main_data).map_err(|source| step.bad_body(source))?;
                self.truncate_multixacts(step, &truncate)
            }
            _ => Err(step.unknown_operation()),
        }
    }

    /// PG: multixact_redo and RecordNewMultiXact.
    fn create_multixact(&mut self, step: &mut Step<'_>, create: &Create<'_>) -> Result<(), IngestError> {
        let next_offset = create.offset.wrapping_add(create.member_count());
        self.put_multi_offsets(step, create, next_offset)?;
        self.put_multi_members(step, create)?;
        self.checkpoint_changed |= self.checkpoint.advance_next_multi(create.multi.wrapping_add(1), next_offset);
        let newest = create
            .members()
            .map(|member| member.xid)
            .fold(step.record.xid, |newest, xid| if xid_precedes(newest, xid) { xid } else { newest });
        self.checkpoint.advance_next_xid_past(newest);
        Ok(())
    }

    /// Where this multixact's members start, and where the next one's will: that ends this one's. Older minor releases set only
    /// the first; later ones set both, in redo of older WAL too, so that no multixact is without an end (seen in 15.18, 17.11, 18.6).
    fn put_multi_offsets(
        &mut self,
        step: &mut Step<'_>,
        create: &Create<'_>,
        next_offset: MultiXactOffset,
    ) -> Result<(), IngestError> {
        let (page_no, index) = multi_offset_place(create.multi);
        let (next_page_no, next_index) = multi_offset_place(next_multi(create.multi));
        let own = OffsetEntry::new(index, create.offset);
        let next = OffsetEntry::new(next_index, next_offset.max(1)); // Offset 0 is never used as a start.
        let kind = SlruKind::MultiXactOffsets;
        if page_no == next_page_no {
            return self.put_slru_delta(step, kind, page_no, &Delta::MultiOffsets(&[own, next]));
        }
        self.put_slru_delta(step, kind, page_no, &Delta::MultiOffsets(&[own]))?;
        self.put_slru_delta(step, kind, next_page_no, &Delta::MultiOffsets(&[next]))
    }

    fn put_multi_members(&mut self, step: &mut Step<'_>, create: &Create<'_>) -> Result<(), IngestError> {
        let mut offset = create.offset;
        let mut entries: Vec<MemberEntry> = Vec::new();
        let mut members = create.members().peekable();
        while members.peek().is_some() {
            let (page_no, first_index) = multi_member_place(offset);
            entries.clear();
            while multi_member_place(offset).0 == page_no
                && let Some(member) = members.next()
            {
                entries.push(MemberEntry::new(member.xid, member.status));
                offset = offset.wrapping_add(1); // Behind the last member comes page 0.
            }
            let delta = Delta::MultiMembers { first_index, members: &entries };
            self.put_slru_delta(step, SlruKind::MultiXactMembers, page_no, &delta)?;
        }
        Ok(())
    }

    /// A page of offsets is zeroed, unless it exists with nothing but its first entry: then the multixact before it, written by an older
    /// server, made it when it stored its own end (see `put_multi_offsets`), and that end must stay. PG: pre_initialized_offsets_page.
    fn zero_offsets_page(&mut self, step: &mut Step<'_>, page_no: u32) -> Result<(), IngestError> {
        let kind = SlruKind::MultiXactOffsets;
        if self.slru_page_exists(step, kind, page_no)? {
            step.commit()?;
            let pages = step.pages(&[Key::from(Object::SlruPage { kind, page_no })])?;
            let first = if page_no == 0 { FIRST_MULTI as usize } else { 0 };
            let mut entries = pages[0].chunks_exact(4).map(LittleEndian::read_u32).enumerate();
            if entries.all(|(index, offset)| (index == first) == (offset != 0)) {
                return Ok(());
            }
        }
        self.zero_slru_page(step, kind, page_no)
    }

    /// PG: multixact_redo, PerformMembersTruncation, PerformOffsetsTruncation.
    fn truncate_multixacts(&mut self, step: &mut Step<'_>, truncate: &Truncate) -> Result<(), IngestError> {
        self.checkpoint.oldest_multi = truncate.end_multi;
        self.checkpoint.oldest_multi_db = truncate.oldest_multi_db;
        self.checkpoint_changed = true;
        let existing = self.existing_segments(step, SlruKind::MultiXactMembers)?;
        for segment_no in removed_members_segments(truncate.start_offset, truncate.end_offset) {
            if existing.binary_search(&segment_no).is_ok() {
                self.remove_segment(step, SlruKind::MultiXactMembers, segment_no)?;
            }
        }
        // One multixact back: the page of the oldest one may not exist yet.
        let cutoff_page = multi_offset_place(previous_multi(truncate.end_multi)).0;
        let newest_page = multi_offset_place(self.checkpoint.next_multi).0;
        self.truncate_slru(step, SlruKind::MultiXactOffsets, cutoff_page, newest_page)
    }
}
