//! GIN. PG 15, 17, 18: src/backend/access/rmgrdesc/gindesc.c, src/include/access/ginxlog.h, src/include/access/ginblock.h.

use super::body::{Body, Text, t_or_f};
use crate::wal::DecodedRecord;

/// GIN_INSERT_ISDATA
const IS_DATA: u16 = 1;
/// GIN_INSERT_ISLEAF
const IS_LEAF: u16 = 2;
/// GIN_SPLIT_ROOT
const SPLITS_ROOT: u16 = 4;

/// Length of ItemPointerData.
const ITEM_POINTER_LEN: usize = 6;
/// Where `ndeleted` stands in ginxlogDeleteListPages, behind a GinMetaPageData.
const DELETED_PAGES_AT: usize = 56;

pub(super) fn describe(record: &DecodedRecord) -> Text {
    let body = Body::of(record);
    Ok(match record.operation() {
        0x20 => insert(record)?,
        0x30 => {
            let flags = body.u16(24)?;
            format!("isrootsplit: {} {}", t_or_f(flags & SPLITS_ROOT != 0), kind(flags))
        }
        0x80 => format!("ndeleted: {}", body.i32(DELETED_PAGES_AT)?),
        0x90 => match image(record) {
            Some(words) => words.to_owned(),
            None => recompressed(Body::of_block_0(record))?,
        },
        _ => String::new(),
    })
}

fn insert(record: &DecodedRecord) -> Text {
    let (body, data) = (Body::of(record), Body::of_block_0(record));
    let flags = body.u16(0)?;
    let mut text = kind(flags);
    if flags & IS_LEAF == 0 {
        text += &format!(" children: {}/{}", body.block_id(2)?, body.block_id(6)?);
    }
    text += &match image(record) {
        Some(words) => words.to_owned(),
        None if flags & IS_DATA == 0 => format!(" isdelete: {}", data.t_or_f(2)?),
        None if flags & IS_LEAF != 0 => recompressed(data)?,
        // ginxlogInsertDataInternal: the offset, the child, its key.
        None => format!(" pitem: {}-{}/{}", data.block_id(2)?, data.block_id(6)?, data.u16(10)?),
    };
    Ok(text)
}

fn kind(flags: u16) -> String {
    format!("isdata: {} isleaf: {}", t_or_f(flags & IS_DATA != 0), t_or_f(flags & IS_LEAF != 0))
}

fn image(record: &DecodedRecord) -> Option<&'static str> {
    let image = record.block(0)?.image.as_ref()?;
    Some(if image.apply { " (full page image)" } else { " (full page image, for WAL verification)" })
}

/// ginxlogRecompressDataLeaf: what happens to each segment of a leaf's posting lists.
fn recompressed(data: Body<'_>) -> Text {
    let mut fields = data.from(0)?;
    let count = fields.u16()?;
    let mut text = format!(" {count} segments:");
    for _ in 0..count {
        let (segment_no, action) = (fields.u8()?, fields.u8()?);
        let words = match action {
            1 => "delete".to_owned(),
            2 | 3 => {
                // GinPostingList: first row position, length, bytes up to an even length.
                fields.take(ITEM_POINTER_LEN)?;
                let len = usize::from(fields.u16()?);
                fields.take(len.next_multiple_of(2))?;
                if action == 2 { "insert" } else { "replace" }.to_owned()
            }
            4 => {
                let count = fields.u16()?;
                fields.items(count.into(), ITEM_POINTER_LEN)?;
                format!("add {count} items")
            }
            _ => return Ok(format!("{text} {segment_no} unknown action {action} ???")),
        };
        text += &format!(" {segment_no} ({words})");
    }
    Ok(text)
}
