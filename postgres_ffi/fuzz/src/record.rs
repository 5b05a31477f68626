//! Changes to a record: to one of its bodies, which may become longer or shorter, to its headers, to its operation.
//!
//! PG 14-18: src/include/access/xlogrecord.h.

use std::ops::Range;

use bytes::Bytes;
use postgres_ffi::redo::case::RedoCase;
use postgres_ffi::wal::DecodedRecord;
use postgres_ffi::wal::record::{BLOCK_ID_MAX, RECORD_HEADER_LEN};
use postgres_ffi::{Lsn, PgVersion};
use rand::Rng;
use rand::rngs::SmallRng;

use super::{mutate_bytes, mutate_in_place};

const INFO_AT: usize = 16;
const HAS_DATA: u8 = 0x20;
const SAME_REL: u8 = 0x80;
const IMAGE_HAS_HOLE: u8 = 0x01;
const ID_DATA_SHORT: u8 = 255;
const ID_DATA_LONG: u8 = 254;
const ID_ORIGIN: u8 = 253;
const ID_TOP_XID: u8 = 252;
/// Of the body after a change: longer than a page, which is more than any redo takes.
const BODY_LEN_MAX: usize = 9000;

/// An image, the data of a block, or main data.
struct Body {
    bytes: Range<usize>,
    len_at: usize,
    /// Bytes of the length: 1, 2 or 4.
    len_width: usize,
    /// Where the flag stands that there are data: set exactly when there are any.
    flags_at: Option<usize>,
}

impl Body {
    /// Its place is not known before all headers are read.
    fn of_len(len: usize, len_at: usize, len_width: usize) -> Self {
        Body { bytes: 0..len, len_at, len_width, flags_at: None }
    }
}

/// Another operation, or other flags beside it.
pub(super) fn mutate_operation(record: &mut Bytes, numbers: &mut SmallRng) {
    let mut raw = record.to_vec();
    if let Some(info) = raw.get_mut(INFO_AT) {
        *info ^= 1 << numbers.random_range(0..8);
    }
    *record = raw.into();
}

/// Changes what stands in front of the bodies: flags of blocks, heads of images, block numbers, lengths.
pub(super) fn mutate_headers(record: &mut Bytes, numbers: &mut SmallRng) {
    let mut raw = record.to_vec();
    let end = raw.len().min(RECORD_HEADER_LEN + numbers.random_range(1..80));
    if let Some(headers) = raw.get_mut(RECORD_HEADER_LEN..end) {
        mutate_in_place(headers);
    }
    *record = raw.into();
}

/// Changes one body and sets right the length that the record tells of it. A record that is none is changed anywhere.
pub(super) fn mutate_body(case: &mut RedoCase, numbers: &mut SmallRng) {
    let mut raw = case.record.to_vec();
    let bodies = bodies(case.facts.version, &raw).filter(|bodies| !bodies.is_empty());
    let Some(bodies) = bodies else {
        mutate_in_place(raw.get_mut(RECORD_HEADER_LEN..).unwrap_or_default());
        case.record = raw.into();
        return;
    };
    let body = &bodies[numbers.random_range(0..bodies.len())];
    let mut bytes = raw[body.bytes.clone()].to_vec();
    let len_max = match body.len_width {
        1 => usize::from(u8::MAX),
        _ => BODY_LEN_MAX.min(bytes.len() + 64),
    };
    // A change that keeps the length leaves more of the meaning.
    if numbers.random() || len_max <= bytes.len() {
        mutate_in_place(&mut bytes);
    } else {
        mutate_bytes(&mut bytes, len_max);
    }
    if let Some(flags_at) = body.flags_at {
        raw[flags_at] = if bytes.is_empty() { raw[flags_at] & !HAS_DATA } else { raw[flags_at] | HAS_DATA };
    }
    let len = (bytes.len() as u32).to_le_bytes(); // At most `BODY_LEN_MAX` or what it was.
    raw[body.len_at..][..body.len_width].copy_from_slice(&len[..body.len_width]);
    raw.splice(body.bytes.clone(), bytes);
    case.record = raw.into();
}

/// The bodies of the record, in their order; `None` if it is no record.
fn bodies(version: PgVersion, raw: &[u8]) -> Option<Vec<Body>> {
    let mut sized = raw.to_vec();
    sized.get_mut(..4)?.copy_from_slice(&(raw.len() as u32).to_le_bytes()); // As the target does.
    let record = DecodedRecord::decode(version, Lsn::new(1), Lsn::new(1), sized.into()).ok()?;
    // The headers make sense, so that their sizes are enough.
    let mut bodies = Vec::new();
    let mut blocks = record.blocks.iter();
    let mut at = RECORD_HEADER_LEN;
    // A record may have no main data: its headers end where the bodies begin.
    while raw.len() - at > bodies.iter().map(|body: &Body| body.bytes.len()).sum() {
        match *raw.get(at)? {
            0..=BLOCK_ID_MAX => {
                let block = blocks.next()?;
                let mut data = Body::of_len(record.block_data(block).len(), at + 2, 2);
                data.flags_at = Some(at + 1);
                let has_rel = raw.get(at + 1)? & SAME_REL == 0;
                at += 4;
                if let Some(image) = &block.image {
                    bodies.push(Body::of_len(record.image_bytes(image).len(), at, 2));
                    let has_hole = raw.get(at + 4)? & IMAGE_HAS_HOLE != 0;
                    at += if image.compression.is_some() && has_hole { 7 } else { 5 };
                }
                bodies.push(data);
                at += if has_rel { 12 + 4 } else { 4 };
            }
            ID_ORIGIN => at += 3,
            ID_TOP_XID => at += 5,
            ID_DATA_SHORT => {
                bodies.push(Body::of_len(record.main_data().len(), at + 1, 1));
                at += 2;
            }
            ID_DATA_LONG => {
                bodies.push(Body::of_len(record.main_data().len(), at + 1, 4));
                at += 5;
            }
            _ => return None,
        }
    }
    for body in &mut bodies {
        body.bytes = at..at + body.bytes.len();
        at = body.bytes.end;
    }
    (at == raw.len()).then_some(bodies)
}
