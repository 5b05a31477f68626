//! Progress of replication origins. PG 14-18: src/include/replication/origin.h.

use super::fields::{Fields, RecordError};

/// XLOG_REPLORIGIN_SET
pub const SET: u8 = 0x00;
/// XLOG_REPLORIGIN_DROP
pub const DROP: u8 = 0x10;

/// The id that nobody tracks. PG: origin.h, DoNotReplicateId.
pub const DO_NOT_REPLICATE: u16 = 0xFFFF;

/// Body of SET. PG: xl_replorigin_set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OriginSet {
    /// How far the origin was replayed, 0 for not at all.
    pub remote_lsn: u64,
    /// The origin.
    pub origin_id: u16,
    /// The position may go back.
    pub force: bool,
}

impl OriginSet {
    /// Reads the body.
    pub fn parse(main_data: &[u8]) -> Result<Self, RecordError> {
        let mut fields = Fields::new("xl_replorigin_set", main_data);
        Ok(OriginSet { remote_lsn: fields.u64()?, origin_id: fields.u16()?, force: fields.u8()? != 0 })
    }
}

/// Body of DROP: the origin. PG: xl_replorigin_drop.
pub fn parse_drop(main_data: &[u8]) -> Result<u16, RecordError> {
    Fields::new("xl_replorigin_drop", main_data).u16()
}

#[cfg(test)]
mod tests {
    //! Bodies made by hand.

    use super::*;
    use crate::records::fields::Body;

    #[test]
    fn set_and_drop() {
        let body = Body::default().u64(0x99).u16(3).u8(1).align(8).0;
        assert_eq!(OriginSet::parse(&body), Ok(OriginSet { remote_lsn: 0x99, origin_id: 3, force: true }));
        assert!(OriginSet::parse(&body[..10]).is_err());
        assert_eq!(parse_drop(&[7, 0]), Ok(7));
        assert!(parse_drop(&[7]).is_err());
    }
}
