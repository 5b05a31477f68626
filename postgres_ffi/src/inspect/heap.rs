//! Heap tuple headers.
//!
//! PG 14-18: src/include/access/htup_details.h, HeapTupleHeaderData: xmin u32@0, xmax u32@4, cid or xvac u32@8, ctid 6 bytes@12,
//! infomask2 u16@18, infomask u16@20, hoff u8@22, null bitmap@23.

use byteorder::{ByteOrder, LittleEndian};
use serde::Serialize;

use super::index::TupleId;
use crate::TransactionId;
use crate::mask::heap::{T_CTID, T_FIELD3, T_HOFF, T_INFOMASK, T_INFOMASK2, T_XMAX, TUPLE_HEADER_LEN};

const HEAP_HASNULL: u16 = 0x0001;
const HEAP_NATTS_MASK: u16 = 0x07FF;

/// Names of the bits of `t_infomask`, without their prefix HEAP_.
const INFOMASK_NAMES: [(u16, &str); 14] = [
    (0x0001, "HASNULL"),
    (0x0002, "HASVARWIDTH"),
    (0x0004, "HASEXTERNAL"),
    (0x0008, "HASOID_OLD"),
    (0x0010, "XMAX_KEYSHR_LOCK"),
    (0x0020, "COMBOCID"),
    (0x0040, "XMAX_EXCL_LOCK"),
    (0x0080, "XMAX_LOCK_ONLY"),
    (0x0400, "XMAX_COMMITTED"),
    (0x0800, "XMAX_INVALID"),
    (0x1000, "XMAX_IS_MULTI"),
    (0x2000, "UPDATED"),
    (0x4000, "MOVED_OFF"),
    (0x8000, "MOVED_IN"),
];
const INFOMASK2_NAMES: [(u16, &str); 3] = [(0x2000, "KEYS_UPDATED"), (0x4000, "HOT_UPDATED"), (0x8000, "ONLY_TUPLE")];

/// A row version's header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HeapTuple {
    /// Inserted by.
    pub xmin: TransactionId,
    /// Deleted or locked by; a multixact with XMAX_IS_MULTI.
    pub xmax: TransactionId,
    /// Command id, or the xid of an ancient VACUUM FULL.
    pub cid: u32,
    /// The next version of the row, or itself.
    pub ctid: TupleId,
    /// Raw.
    pub infomask: u16,
    /// Raw.
    pub infomask2: u16,
    /// Names of the bits that are set.
    pub flags: Vec<&'static str>,
    /// Number of columns.
    pub columns: u16,
    /// Columns that are null, from 1.
    pub null_columns: Vec<u16>,
    /// Length of the header with bitmap and padding.
    pub header_len: u8,
    /// Length of the values.
    pub data_len: usize,
}

impl HeapTuple {
    /// `None` when the header does not fit.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < TUPLE_HEADER_LEN {
            return None;
        }
        let infomask = LittleEndian::read_u16(&bytes[T_INFOMASK..]);
        let infomask2 = LittleEndian::read_u16(&bytes[T_INFOMASK2..]);
        let columns = infomask2 & HEAP_NATTS_MASK;
        let header_len = bytes[T_HOFF];
        let data_len = bytes.len().checked_sub(usize::from(header_len))?;
        let bitmap = bytes.get(TUPLE_HEADER_LEN..usize::from(header_len))?;
        let null_columns = match infomask & HEAP_HASNULL {
            0 => Vec::new(),
            _ => null_columns(bitmap, columns),
        };
        Some(HeapTuple {
            xmin: LittleEndian::read_u32(bytes),
            xmax: LittleEndian::read_u32(&bytes[T_XMAX..]),
            cid: LittleEndian::read_u32(&bytes[T_FIELD3..]),
            ctid: TupleId::decode(&bytes[T_CTID..])?,
            infomask,
            infomask2,
            flags: flag_names(infomask, infomask2),
            columns,
            null_columns,
            header_len,
            data_len,
        })
    }
}

/// A bit of the bitmap that is 0 is a null. PG: tupmacs.h, att_isnull.
fn null_columns(bitmap: &[u8], columns: u16) -> Vec<u16> {
    let is_null = |column_no: u16| {
        let bit_no = usize::from(column_no - 1);
        bitmap.get(bit_no / 8).is_some_and(|byte| byte & (1 << (bit_no % 8)) == 0)
    };
    (1..=columns).filter(|column_no| is_null(*column_no)).collect()
}

fn flag_names(infomask: u16, infomask2: u16) -> Vec<&'static str> {
    // Both bits of xmin together mean frozen.
    let xmin = match infomask & 0x0300 {
        0x0300 => Some("XMIN_FROZEN"),
        0x0100 => Some("XMIN_COMMITTED"),
        0x0200 => Some("XMIN_INVALID"),
        _ => None,
    };
    let named = |names: &'static [(u16, &'static str)], word: u16| {
        names.iter().filter(move |(bit, _)| word & bit != 0).map(|(_, name)| *name)
    };
    xmin.into_iter().chain(named(&INFOMASK_NAMES, infomask)).chain(named(&INFOMASK2_NAMES, infomask2)).collect()
}
