//! Commit status, commit timestamps, multixacts.
//!
//! PG 15, 17, 18: src/backend/access/rmgrdesc/{clog,committs,mxact}desc.c.

use super::body::Text;
use crate::PgVersion;
use crate::records::multixact::{self, Create, Truncate};
use crate::records::slru::{ClogTruncate, CommitTsTruncate, TRUNCATE, ZERO_PAGE, parse_zero_page};
use crate::wal::DecodedRecord;

/// PG: src/include/access/multixact.h, MultiXactStatus.
const MEMBER_STATUSES: [&str; 6] = ["keysh", "sh", "fornokeyupd", "forupd", "nokeyupd", "upd"];
const _: () = assert!(MEMBER_STATUSES.len() == multixact::MEMBER_STATUS_MAX as usize + 1);

pub(super) fn clog(record: &DecodedRecord, version: PgVersion) -> Text {
    let data = record.main_data();
    Ok(match record.operation() {
        ZERO_PAGE => format!("page {}", parse_zero_page(version, data)?),
        TRUNCATE => {
            let body = ClogTruncate::parse(version, data)?;
            format!("page {}; oldestXact {}", body.cutoff_page_no, body.oldest_xid)
        }
        _ => String::new(),
    })
}

pub(super) fn commit_ts(record: &DecodedRecord, version: PgVersion) -> Text {
    let data = record.main_data();
    Ok(match record.operation() {
        ZERO_PAGE => parse_zero_page(version, data)?.to_string(),
        TRUNCATE => {
            let body = CommitTsTruncate::parse(version, data)?;
            format!("pageno {}, oldestXid {}", body.cutoff_page_no, body.oldest_xid)
        }
        _ => String::new(),
    })
}

pub(super) fn multixact(record: &DecodedRecord, version: PgVersion) -> Text {
    let data = record.main_data();
    Ok(match record.operation() {
        multixact::ZERO_OFFSETS_PAGE | multixact::ZERO_MEMBERS_PAGE => parse_zero_page(version, data)?.to_string(),
        multixact::CREATE_ID => {
            let create = Create::parse(data)?;
            let member = |member: multixact::Member| {
                let status = MEMBER_STATUSES.get(usize::from(member.status)).unwrap_or(&"unk");
                format!("{} ({status}) ", member.xid)
            };
            let members: String = create.members().map(member).collect();
            format!("{} offset {} nmembers {}: {members}", create.multi, create.offset, create.member_count())
        }
        multixact::TRUNCATE_ID => {
            let Truncate { start_multi, end_multi, start_offset, end_offset, .. } = Truncate::parse(data)?;
            format!("offsets [{start_multi}, {end_multi}), members [{start_offset}, {end_offset})")
        }
        _ => String::new(),
    })
}
