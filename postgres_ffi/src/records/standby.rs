//! What a hot standby needs to know. Of all that, only the next transaction id matters here.
//! PG 14-18: src/include/storage/standbydefs.h.

use super::fields::{Fields, RecordError};
use crate::TransactionId;

/// XLOG_STANDBY_LOCK
pub const LOCK: u8 = 0x00;
/// XLOG_RUNNING_XACTS
pub const RUNNING_XACTS: u8 = 0x10;
/// XLOG_INVALIDATIONS
pub const INVALIDATIONS: u8 = 0x20;

/// Body of RUNNING_XACTS, its fixed part. PG: xl_running_xacts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunningXacts {
    /// The next transaction id that the primary would have given out.
    pub next_xid: TransactionId,
    /// The oldest transaction that was running.
    pub oldest_running_xid: TransactionId,
}

impl RunningXacts {
    /// Reads the fixed part.
    pub fn parse(main_data: &[u8]) -> Result<Self, RecordError> {
        let mut fields = Fields::new("xl_running_xacts", main_data);
        fields.take(12)?; // xcnt, subxcnt, subxid_overflow and padding
        Ok(RunningXacts { next_xid: fields.u32()?, oldest_running_xid: fields.u32()? })
    }
}

#[cfg(test)]
mod tests {
    //! A body made by hand.

    use super::*;
    use crate::records::fields::Body;

    #[test]
    fn next_xid_stands_behind_three_words() {
        let body = Body::default().u32(1).u32(0).u8(1).align(4).u32(800).u32(790).u32(799).u32(790).0;
        assert_eq!(RunningXacts::parse(&body), Ok(RunningXacts { next_xid: 800, oldest_running_xid: 790 }));
        assert!(RunningXacts::parse(&body[..19]).is_err());
    }
}
