//! BRIN. PG 15, 17, 18: src/backend/access/rmgrdesc/brindesc.c, src/include/access/brin_xlog.h.

use super::body::{Body, Text};
use crate::wal::DecodedRecord;

pub(super) fn describe(record: &DecodedRecord) -> Text {
    let body = Body::of(record);
    Ok(match record.operation() & 0x70 {
        0x00 => format!("v{} pagesPerRange {}", body.u16(4)?, body.u32(0)?),
        0x10 => format!("heapBlk {} pagesPerRange {} offnum {}", body.u32(0)?, body.u32(4)?, body.u16(8)?),
        0x20 => format!(
            "heapBlk {} pagesPerRange {} old offnum {}, new offnum {}",
            body.u32(4)?,
            body.u32(8)?,
            body.u16(0)?,
            body.u16(12)?
        ),
        0x30 => format!("offnum {}", body.u16(0)?),
        0x40 => format!("targetBlk {}", body.u32(0)?),
        0x50 => format!("pagesPerRange {}, heapBlk {}, page offset {}", body.u32(0)?, body.u32(4)?, body.u16(8)?),
        _ => String::new(),
    })
}
