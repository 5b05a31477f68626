//! Entries of the index access methods.
//!
//! PG 14-18: src/include/access/itup.h (IndexTupleData: tid 6 bytes@0, info u16@6), nbtree.h (what a btree puts into the tid),
//! spgist_private.h (SpGistInnerTupleData, SpGistLeafTupleData, SpGistDeadTupleData), brin_tuple.h (BrinTuple).

use std::fmt;

use byteorder::{ByteOrder, LittleEndian};
use serde::Serialize;

use crate::BlockNumber;
use crate::mask::PageKind;

const TUPLE_ID_LEN: usize = 6;
const INDEX_TUPLE_HEADER_LEN: usize = 8;
const INDEX_SIZE_MASK: u16 = 0x1FFF;
/// PG: itup.h, INDEX_AM_RESERVED_BIT; nbtree.h, INDEX_ALT_TID_MASK.
pub(crate) const ALT_TID: u16 = 0x2000;
const HAS_VARWIDTHS: u16 = 0x4000;
const HAS_NULLS: u16 = 0x8000;
/// In the offset of such a tid. PG: nbtree.h, BT_OFFSET_MASK, BT_PIVOT_HEAP_TID_ATTR, BT_IS_POSTING.
pub(crate) const BT_OFFSET_MASK: u16 = 0x0FFF;
const BT_PIVOT_HEAP_TID: u16 = 0x1000;
pub(crate) const BT_IS_POSTING: u16 = 0x2000;

/// A block and a line pointer in it. PG: itemptr.h, ItemPointerData.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct TupleId {
    /// Block.
    pub block_no: BlockNumber,
    /// Line pointer, from 1; some access methods keep flags here.
    pub offset_no: u16,
}

impl TupleId {
    /// Reads the 6 bytes at the start of `bytes`: block high half, block low half, offset number.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..TUPLE_ID_LEN)?;
        let half = |offset: usize| u32::from(LittleEndian::read_u16(&bytes[offset..]));
        Some(TupleId { block_no: half(0) << 16 | half(2), offset_no: LittleEndian::read_u16(&bytes[4..]) })
    }
}

impl fmt::Display for TupleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({},{})", self.block_no, self.offset_no)
    }
}

/// An entry of a btree, hash, GiST or GIN index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IndexTuple {
    /// The row, or the child page; see `meaning` where it holds something else.
    pub tid: TupleId,
    /// Size as the entry itself says.
    pub size: u16,
    /// There is a null bitmap.
    pub has_nulls: bool,
    /// A value is of variable length.
    pub has_varwidths: bool,
    /// What a btree put into the tid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meaning: Option<TidMeaning>,
}

/// What a btree entry has in place of a row's address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum TidMeaning {
    /// A separator: the block is the child, and this many key columns are left.
    Pivot {
        /// Columns that were not cut off.
        columns: u16,
        /// A row address follows as the last column.
        has_heap_tid: bool,
    },
    /// Many rows under one key.
    Posting {
        /// Rows.
        count: u16,
        /// The first of them.
        first: Option<TupleId>,
    },
}

impl IndexTuple {
    /// `None` when the header does not fit.
    pub fn decode(bytes: &[u8], kind: PageKind) -> Option<Self> {
        if bytes.len() < INDEX_TUPLE_HEADER_LEN {
            return None;
        }
        let tid = TupleId::decode(bytes)?;
        let info = LittleEndian::read_u16(&bytes[TUPLE_ID_LEN..]);
        let is_alternative = kind == PageKind::Btree && info & ALT_TID != 0;
        Some(IndexTuple {
            tid,
            size: info & INDEX_SIZE_MASK,
            has_nulls: info & HAS_NULLS != 0,
            has_varwidths: info & HAS_VARWIDTHS != 0,
            meaning: is_alternative.then(|| tid_meaning(tid, bytes)),
        })
    }
}

fn tid_meaning(tid: TupleId, bytes: &[u8]) -> TidMeaning {
    let number = tid.offset_no & BT_OFFSET_MASK;
    if tid.offset_no & BT_IS_POSTING != 0 {
        // The block number is the offset of the list in the entry. PG: nbtree.h, BTreeTupleGetPostingOffset.
        let list = usize::try_from(tid.block_no).ok().and_then(|offset| bytes.get(offset..));
        return TidMeaning::Posting { count: number, first: list.and_then(TupleId::decode) };
    }
    TidMeaning::Pivot { columns: number, has_heap_tid: tid.offset_no & BT_PIVOT_HEAP_TID != 0 }
}

/// An entry of an SP-GiST index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SpgistTuple {
    /// `live`, `redirect`, `dead` or `placeholder`.
    pub state: &'static str,
    /// Size as the entry itself says.
    pub size: u32,
    /// Of an inner tuple: its nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<u32>,
    /// Of an inner tuple: bytes of the prefix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix_len: Option<u32>,
    /// Of a leaf: the row. Of a redirect: the page and tuple that took its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tid: Option<TupleId>,
}

impl SpgistTuple {
    /// `None` when the header does not fit.
    pub fn decode(bytes: &[u8], is_leaf: bool) -> Option<Self> {
        let word = LittleEndian::read_u32(bytes.get(..4)?);
        let state = ["live", "redirect", "dead", "placeholder"][(word & 3) as usize];
        if is_leaf || word & 3 != 0 {
            let tid = Some(TupleId::decode(bytes.get(6..)?)?);
            return Some(SpgistTuple { state, size: word >> 2, nodes: None, prefix_len: None, tid });
        }
        let size = u32::from(LittleEndian::read_u16(bytes.get(4..6)?));
        Some(SpgistTuple { state, size, nodes: Some(word >> 3 & 0x1FFF), prefix_len: Some(word >> 16), tid: None })
    }
}

/// A BRIN summary of a range of heap blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BrinTuple {
    /// First block of the range.
    pub heap_block: BlockNumber,
    /// Offset of the values.
    pub data_offset: u8,
    /// The range has no rows (16 and later).
    pub is_empty_range: bool,
    /// Being summarised.
    pub is_placeholder: bool,
    /// There are null bitmaps.
    pub has_nulls: bool,
}

impl BrinTuple {
    /// `None` when the header does not fit.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let info = *bytes.get(4)?;
        Some(BrinTuple {
            heap_block: LittleEndian::read_u32(bytes),
            data_offset: info & 0x1F,
            is_empty_range: info & 0x20 != 0,
            is_placeholder: info & 0x40 != 0,
            has_nulls: info & 0x80 != 0,
        })
    }
}
