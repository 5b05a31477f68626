//! The header that tuples of B-tree, hash, GiST and GIN entry pages have in common.
//!
//! t_tid (6 bytes: block high u16, block low u16, offset number u16), t_info u16 with the length in bytes in the lower 13 bits.
//! PG 14-18: src/include/access/itup.h (IndexTupleData), src/include/storage/itemptr.h, src/include/storage/block.h.

use byteorder::{ByteOrder, LittleEndian};

use crate::BlockNumber;

/// Length of IndexTupleData.
pub(super) const HEADER_LEN: usize = 8;
/// Length of ItemPointerData.
pub(super) const TID_LEN: usize = 6;
/// Where t_info stands.
pub(super) const INFO_AT: usize = 6;
/// PG: itup.h, INDEX_SIZE_MASK.
pub(super) const LEN_MASK: u16 = 0x1FFF;

/// The first tuple of `bytes`, and what follows it without a gap.
///
/// `None`: the header is cut, or the length it tells is shorter than itself or longer than `bytes`.
pub(super) fn split_first(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let info = LittleEndian::read_u16(bytes.get(INFO_AT..HEADER_LEN)?);
    let len = usize::from(info & LEN_MASK);
    if len < HEADER_LEN {
        return None;
    }
    bytes.split_at_checked(len)
}

/// A pointer to an item of a block. PG: itemptr.h, ItemPointerSet.
pub(super) fn tid(block_no: BlockNumber, offset_no: u16) -> [u8; TID_LEN] {
    let mut tid = [0; TID_LEN];
    LittleEndian::write_u16(&mut tid[0..2], (block_no >> 16) as u16);
    LittleEndian::write_u16(&mut tid[2..4], (block_no & 0xFFFF) as u16);
    LittleEndian::write_u16(&mut tid[4..6], offset_no);
    tid
}
