//! Replication origins, messages to logical decoding, generic records of extensions.
//!
//! PG 15, 17, 18: src/backend/access/rmgrdesc/{replorigin,logicalmsg,generic}desc.c.

use super::body::{Body, Text, string};
use crate::Lsn;
use crate::records::RecordError;
use crate::records::replorigin::{self, OriginSet};
use crate::wal::DecodedRecord;

pub(super) fn origin(record: &DecodedRecord) -> Text {
    let data = record.main_data();
    Ok(match record.operation() {
        replorigin::SET => {
            let OriginSet { remote_lsn, origin_id, force } = OriginSet::parse(data)?;
            format!("set {origin_id}; lsn {}; force: {}", Lsn::new(remote_lsn), u8::from(force))
        }
        replorigin::DROP => format!("drop {}", replorigin::parse_drop(data)?),
        _ => String::new(),
    })
}

/// Ranges of a page that change. Servers put them into the blocks' data, where pg_waldump does not look either.
pub(super) fn generic(record: &DecodedRecord) -> Text {
    let mut fields = Body::of(record).from(0)?;
    let mut ranges = Vec::new();
    while !fields.rest().is_empty() {
        let (offset, len) = (fields.u16()?, fields.u16()?);
        fields.take(len.into())?;
        ranges.push(format!("offset {offset}, length {len}"));
    }
    Ok(ranges.join("; "))
}

/// xl_logical_message: database, whether transactional, two lengths, the prefix with its NUL, the payload.
pub(super) fn message(record: &DecodedRecord) -> Text {
    if record.operation() != 0 {
        return Ok(String::new());
    }
    let mut fields = Body::of(record).from(4)?;
    let kind = if fields.u8()? != 0 { "transactional" } else { "non-transactional" };
    fields.align(8);
    let mut len = || -> Result<usize, RecordError> {
        let len = fields.u64()?;
        usize::try_from(len).map_err(|_| fields.impossible("size", len.cast_signed()))
    };
    let (prefix_len, payload_len) = (len()?, len()?);
    let prefix = string(fields.take(prefix_len)?);
    let payload: Vec<String> = fields.take(payload_len)?.iter().map(|byte| format!("{byte:02X}")).collect();
    Ok(format!("{kind}, prefix \"{prefix}\"; payload ({payload_len} bytes): {}", payload.join(" ")))
}
