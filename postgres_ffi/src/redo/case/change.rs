//! A case with something changed in it: what fuzzers and tests without a server try redo on.
//!
//! Nearly all bytes of a page are in tuples that redo does not look at, and a byte put into a record makes nonsense of all that follows. So bytes are changed where redo
//! looks: in the bodies of the record, which may become longer and shorter and have their lengths set right; in the page's header, its line pointers, the heads of its tuples
//! and its special space.
//!
//! PG 14-18: src/include/storage/bufpage.h (PageHeaderData), itemid.h (ItemIdData).

use std::ops::Range;

use super::RedoCase;
use crate::page::layout::{Header, ITEM_ID_LEN, item, item_id_at};
use crate::page::{BLCKSZ, PAGE_HEADER_LEN, PD_FLAGS, Page, ZERO_PAGE};
use crate::wal::DecodedRecord;
use crate::wal::checks::build::RecordBuilder;
use crate::wal::record::{RECORD_HEADER_LEN, RMGR_INFO_MASK};

/// How much longer one change makes a body.
const GROWTH_MAX: usize = 64;
/// Of a tuple: longer than the head of any, so that the first of what it holds is in reach.
const TUPLE_HEAD_LEN: usize = 40;
/// Where `xl_info` stands in a record. PG: xlogrecord.h, XLogRecord.
const INFO_AT: usize = 16;

/// Who decides what is changed.
pub trait Changes {
    /// A number below `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize;
    /// Changes `bytes`, which may become longer or shorter. What is beyond `len_max` is cut off.
    fn change(&mut self, bytes: &mut Vec<u8>, len_max: usize);
}

impl RedoCase {
    /// Changes one to three things in the record and the page. Neither whose record it is, nor its version, nor which page it is.
    pub fn change(&mut self, changes: &mut impl Changes) {
        for _ in 0..=changes.below(3) {
            match changes.below(16) {
                0 => self.change_operation(changes),
                1..8 => self.change_body(changes),
                _ => change_page(self.page.get_or_insert_with(|| Box::new(ZERO_PAGE)), changes),
            }
        }
    }

    fn change_operation(&mut self, changes: &mut impl Changes) {
        let mut raw = self.record.to_vec();
        if let Some(info) = raw.get_mut(INFO_AT) {
            *info ^= (changes.below(16) as u8) << RMGR_INFO_MASK.trailing_zeros();
        }
        self.record = raw.into();
    }

    /// Changes the data or the image of a block, or main data. A record that is none is changed anywhere behind its header.
    fn change_body(&mut self, changes: &mut impl Changes) {
        let version = self.facts.version;
        let record = match DecodedRecord::decode(version, self.end_lsn, self.end_lsn, self.record.clone()) {
            Ok(record) => record,
            Err(_no_record) => {
                let mut raw = self.record.to_vec();
                change_in_place(raw.get_mut(RECORD_HEADER_LEN..).unwrap_or_default(), changes);
                self.record = raw.into();
                return;
            }
        };
        let mut builder = RecordBuilder::of(&record);
        let of_blocks = builder.blocks.iter_mut().flat_map(|block| {
            let image = block.image.as_mut().map(|image| &mut image.bytes);
            [Some(&mut block.data), image]
        });
        let mut bodies: Vec<&mut Vec<u8>> = of_blocks.flatten().chain([&mut builder.main_data]).collect();
        let which = changes.below(bodies.len());
        let body = &mut *bodies[which];
        let len_max = (body.len() + GROWTH_MAX).min(usize::from(u16::MAX).max(body.len()));
        // Half of the changes keep the length: that leaves more of the meaning.
        if changes.below(2) == 0 {
            change_in_place(body, changes)
        } else {
            changes.change(body, len_max)
        }
        self.record = builder.build(version, record.prev_lsn).into();
    }
}

/// Changes bytes in one of the page's areas.
fn change_page(page: &mut Page, changes: &mut impl Changes) {
    let header = Header::read(page);
    let [lower, special] = [header.lower, header.special].map(|at| at.clamp(PAGE_HEADER_LEN, BLCKSZ));
    let area = match changes.below(8) {
        0 => PD_FLAGS..PAGE_HEADER_LEN,
        1 => PAGE_HEADER_LEN..lower, // Some pages have something else than line pointers here.
        2 => special..BLCKSZ,
        3 | 4 => line_pointer(&header, changes),
        5 | 6 => tuple_head(page, &header, changes),
        _ => 0..BLCKSZ,
    };
    change_in_place(&mut page[area], changes);
}

/// One of the page's line pointers, or where the first would be.
fn line_pointer(header: &Header, changes: &mut impl Changes) -> Range<usize> {
    let start = item_id_at(1 + changes.below(usize::from(header.item_count().max(1))) as u16);
    start..start + ITEM_ID_LEN
}

fn tuple_head(page: &Page, header: &Header, changes: &mut impl Changes) -> Range<usize> {
    let offset_no = 1 + changes.below(usize::from(header.item_count().max(1))) as u16;
    let start = item(page, offset_no).map_or(PAGE_HEADER_LEN, |item| item.offset).min(BLCKSZ);
    start..(start + TUPLE_HEAD_LEN).min(BLCKSZ)
}

/// Changes `bytes` but keeps their number: where they would become fewer, the end stays.
fn change_in_place(bytes: &mut [u8], changes: &mut impl Changes) {
    let mut changed = bytes.to_vec();
    changes.change(&mut changed, bytes.len());
    changed.truncate(bytes.len());
    bytes[..changed.len()].copy_from_slice(&changed);
}
