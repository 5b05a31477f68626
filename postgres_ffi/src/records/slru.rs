//! CLOG and commit timestamps: pages zeroed, segments removed.
//!
//! PG: src/include/access/clog.h, src/include/access/commit_ts.h, src/backend/access/transam/{clog,commit_ts}.c.
//! Page numbers have 32 bits up to 16 and 64 from 17; their values always fit 32.

use super::fields::{Fields, RecordError};
use crate::{Oid, PgVersion, TransactionId};

/// CLOG_ZEROPAGE, COMMIT_TS_ZEROPAGE
pub const ZERO_PAGE: u8 = 0x00;
/// CLOG_TRUNCATE, COMMIT_TS_TRUNCATE
pub const TRUNCATE: u8 = 0x10;

/// Body of a zero-page record of any SLRU (also MULTIXACT_ZERO_OFF_PAGE and _MEM_PAGE): the page number.
pub fn parse_zero_page(version: PgVersion, main_data: &[u8]) -> Result<u32, RecordError> {
    page_no(version, &mut Fields::new("pageno", main_data))
}

pub(super) fn page_no(version: PgVersion, fields: &mut Fields<'_>) -> Result<u32, RecordError> {
    let page_no = if version >= PgVersion::V17 { fields.i64()? } else { fields.i32()?.into() };
    u32::try_from(page_no).map_err(|_| fields.impossible("pageno", page_no))
}

/// Body of CLOG_TRUNCATE. PG: xl_clog_truncate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClogTruncate {
    /// The first page that must stay.
    pub cutoff_page_no: u32,
    /// No older transaction will be asked for.
    pub oldest_xid: TransactionId,
    /// The database that holds it.
    pub oldest_xid_db: Oid,
}

impl ClogTruncate {
    /// Reads the body.
    pub fn parse(version: PgVersion, main_data: &[u8]) -> Result<Self, RecordError> {
        let mut fields = Fields::new("xl_clog_truncate", main_data);
        Ok(ClogTruncate {
            cutoff_page_no: page_no(version, &mut fields)?,
            oldest_xid: fields.u32()?,
            oldest_xid_db: fields.u32()?,
        })
    }
}

/// Body of COMMIT_TS_TRUNCATE. PG: xl_commit_ts_truncate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitTsTruncate {
    /// The first page that must stay.
    pub cutoff_page_no: u32,
    /// The oldest transaction with a timestamp.
    pub oldest_xid: TransactionId,
}

impl CommitTsTruncate {
    /// Reads the body.
    pub fn parse(version: PgVersion, main_data: &[u8]) -> Result<Self, RecordError> {
        let mut fields = Fields::new("xl_commit_ts_truncate", main_data);
        Ok(CommitTsTruncate { cutoff_page_no: page_no(version, &mut fields)?, oldest_xid: fields.u32()? })
    }
}

#[cfg(test)]
mod tests {
    //! Bodies made by hand, in both widths.

    use super::*;
    use crate::records::fields::Body;

    #[test]
    fn page_numbers_grew_in_17() {
        assert_eq!(parse_zero_page(PgVersion::V16, &Body::default().u32(9).0), Ok(9));
        assert_eq!(parse_zero_page(PgVersion::V17, &Body::default().u64(9).0), Ok(9));
        assert!(parse_zero_page(PgVersion::V17, &Body::default().u32(9).0).is_err());
        assert!(parse_zero_page(PgVersion::V17, &Body::default().u64(1 << 32).0).is_err());
        assert!(parse_zero_page(PgVersion::V14, &Body::default().u32(u32::MAX).0).is_err());
    }

    #[test]
    fn truncations() {
        let expected = ClogTruncate { cutoff_page_no: 3, oldest_xid: 700, oldest_xid_db: 5 };
        assert_eq!(ClogTruncate::parse(PgVersion::V15, &Body::default().u32(3).u32(700).u32(5).0), Ok(expected));
        assert_eq!(ClogTruncate::parse(PgVersion::V18, &Body::default().u64(3).u32(700).u32(5).0), Ok(expected));
        let expected = CommitTsTruncate { cutoff_page_no: 4, oldest_xid: 701 };
        assert_eq!(CommitTsTruncate::parse(PgVersion::V14, &Body::default().u32(4).u32(701).0), Ok(expected));
        assert_eq!(CommitTsTruncate::parse(PgVersion::V17, &Body::default().u64(4).u32(701).0), Ok(expected));
    }
}
