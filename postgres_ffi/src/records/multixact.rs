//! Multixacts: pages zeroed, ids created, segments removed. PG 14-18: src/include/access/multixact.h.

use byteorder::{ByteOrder, LittleEndian};

use super::fields::{Fields, RecordError};
use crate::{MultiXactId, MultiXactOffset, Oid, TransactionId};

/// XLOG_MULTIXACT_ZERO_OFF_PAGE. Body: [`super::slru::parse_zero_page`].
pub const ZERO_OFFSETS_PAGE: u8 = 0x00;
/// XLOG_MULTIXACT_ZERO_MEM_PAGE. Body: [`super::slru::parse_zero_page`].
pub const ZERO_MEMBERS_PAGE: u8 = 0x10;
/// XLOG_MULTIXACT_CREATE_ID
pub const CREATE_ID: u8 = 0x20;
/// XLOG_MULTIXACT_TRUNCATE_ID
pub const TRUNCATE_ID: u8 = 0x30;

/// The highest status of a member. PG: multixact.h, MultiXactStatusUpdate.
pub const MEMBER_STATUS_MAX: u8 = 5;

/// MultiXactMember: xid and status, an enum in 4 bytes.
const MEMBER_LEN: usize = 8;

/// One member of a multixact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// The transaction.
    pub xid: TransactionId,
    /// What it holds: 0 to [`MEMBER_STATUS_MAX`].
    pub status: u8,
}

/// Body of CREATE_ID. PG: xl_multixact_create.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Create<'a> {
    /// The new id.
    pub multi: MultiXactId,
    /// Where its members start.
    pub offset: MultiXactOffset,
    members: &'a [u8],
}

impl<'a> Create<'a> {
    /// Reads the body. Errors also for a status that does not exist.
    pub fn parse(main_data: &'a [u8]) -> Result<Self, RecordError> {
        let mut fields = Fields::new("xl_multixact_create", main_data);
        let (multi, offset, count) = (fields.u32()?, fields.u32()?, fields.count()?);
        let members = fields.items(count, MEMBER_LEN)?;
        let statuses = members.chunks_exact(MEMBER_LEN).map(|member| LittleEndian::read_u32(&member[4..]));
        if let Some(status) = statuses.clone().find(|status| *status > u32::from(MEMBER_STATUS_MAX)) {
            return Err(fields.impossible("status", status.into()));
        }
        Ok(Create { multi, offset, members })
    }

    /// Number of members.
    pub fn member_count(&self) -> u32 {
        (self.members.len() / MEMBER_LEN) as u32
    }

    /// The members, in order.
    pub fn members(&self) -> impl Iterator<Item = Member> + Clone + 'a {
        self.members
            .chunks_exact(MEMBER_LEN)
            .map(|member| Member { xid: LittleEndian::read_u32(member), status: member[4] })
    }
}

/// Body of TRUNCATE_ID. PG: xl_multixact_truncate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncate {
    /// The database with the oldest multixact.
    pub oldest_multi_db: Oid,
    /// Multixacts from here ...
    pub start_multi: MultiXactId,
    /// ... to before this one go away: it is the oldest that stays.
    pub end_multi: MultiXactId,
    /// Members from here ...
    pub start_offset: MultiXactOffset,
    /// ... to before this one go away.
    pub end_offset: MultiXactOffset,
}

impl Truncate {
    /// Reads the body.
    pub fn parse(main_data: &[u8]) -> Result<Self, RecordError> {
        let mut fields = Fields::new("xl_multixact_truncate", main_data);
        Ok(Truncate {
            oldest_multi_db: fields.u32()?,
            start_multi: fields.u32()?,
            end_multi: fields.u32()?,
            start_offset: fields.u32()?,
            end_offset: fields.u32()?,
        })
    }
}

#[cfg(test)]
mod tests {
    //! Bodies made by hand.

    use super::*;
    use crate::records::fields::Body;

    #[test]
    fn create_lists_members() {
        let body = Body::default().u32(7).u32(20).u32(2).u32(700).u32(5).u32(701).u32(0).0;
        let create = Create::parse(&body).unwrap();
        assert_eq!((create.multi, create.offset, create.member_count()), (7, 20, 2));
        let members: Vec<_> = create.members().collect();
        assert_eq!(members, [Member { xid: 700, status: 5 }, Member { xid: 701, status: 0 }]);
        assert!(Create::parse(&body[..body.len() - 1]).is_err());
        let bad_status = Body::default().u32(7).u32(20).u32(1).u32(700).u32(6).0;
        assert!(matches!(Create::parse(&bad_status), Err(RecordError::Value { field: "status", value: 6, .. })));
    }

    #[test]
    fn truncate_has_five_fields() {
        let body = Body::default().u32(1).u32(2).u32(3).u32(4).u32(5).0;
        let parsed = Truncate::parse(&body).unwrap();
        assert_eq!((parsed.oldest_multi_db, parsed.end_multi, parsed.end_offset), (1, 3, 5));
    }
}
