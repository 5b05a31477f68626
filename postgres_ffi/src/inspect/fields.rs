//! Numbers at fixed places, by tables of names, offsets and widths.

use std::fmt;

use byteorder::{ByteOrder, LittleEndian};
use serde::{Serialize, Serializer};

/// Names and numbers, in the order of their table.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Fields(pub Vec<(&'static str, i64)>);

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

impl fmt::Display for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, value)) in self.0.iter().enumerate() {
            write!(f, "{}{name}: {value}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// How a number stands in the bytes, little endian.
#[derive(Clone, Copy)]
pub(super) enum Width {
    U8,
    U16,
    U32,
    U64,
    I64,
    F64,
}
use Width::*;

/// Name, offset, width.
pub(super) type Layout = &'static [(&'static str, usize, Width)];

impl Fields {
    /// The numbers of `layout`; those that do not fit into `bytes` are left out.
    pub(super) fn read(bytes: &[u8], layout: Layout) -> Self {
        Fields(
            layout.iter().filter_map(|(name, offset, width)| Some((*name, number(bytes, *offset, *width)?))).collect(),
        )
    }
}

fn number(bytes: &[u8], offset: usize, width: Width) -> Option<i64> {
    let len = match width {
        U8 => 1,
        U16 => 2,
        U32 => 4,
        U64 | I64 | F64 => 8,
    };
    let bytes = bytes.get(offset..offset + len)?;
    Some(match width {
        U8 => i64::from(bytes[0]),
        U16 => i64::from(LittleEndian::read_u16(bytes)),
        U32 => i64::from(LittleEndian::read_u32(bytes)),
        U64 | I64 => LittleEndian::read_i64(bytes),
        F64 => LittleEndian::read_f64(bytes) as i64,
    })
}
