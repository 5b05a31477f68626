//! Records of all shapes for property tests.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::build::{BlockBuilder, ImageBuilder, RecordBuilder};
use crate::page::BLCKSZ;
use crate::wal::Compression;
use crate::{ForkNumber, PgVersion, RelTag};

pub(crate) fn version() -> impl Strategy<Value = PgVersion> {
    proptest::sample::select(&PgVersion::ALL[..])
}

/// A record that every version's decoder takes. Compressed images hold nothing that can be decompressed.
pub(crate) fn record() -> impl Strategy<Value = RecordBuilder> {
    let main_data = prop_oneof![vec(any::<u8>(), 0..300), vec(any::<u8>(), 0..40_000)];
    let blocks = vec((block(), 1..8_u8), 0..5);
    // No XLOG records: a switch would end the segment.
    (any::<u32>(), 1..22_u8, any::<u8>(), option::of(1..9_u16), option::of(1..9_u32), blocks, main_data).prop_map(
        |(xid, rmid, info, origin_id, top_xid, blocks, main_data)| {
            let mut next_id = 0;
            let numbered = blocks.into_iter().map(|(block, step)| {
                next_id += step;
                BlockBuilder { block_id: next_id - 1, ..block }
            });
            RecordBuilder { xid, rmid, info, origin_id, top_xid, blocks: numbered.collect(), main_data }
        },
    )
}

fn block() -> impl Strategy<Value = BlockBuilder> {
    let fork = proptest::sample::select(&ForkNumber::ALL[..]);
    (0..3_u32, fork, 0..u32::MAX, any::<bool>(), option::of(image()), vec(any::<u8>(), 0..50)).prop_map(
        |(rel_number, fork, block_no, will_init, image, data)| {
            let rel = RelTag { spc_oid: 1663, db_oid: 5, rel_number };
            BlockBuilder { block_id: 0, rel, fork, block_no, will_init, image, data }
        },
    )
}

fn image() -> impl Strategy<Value = ImageBuilder> {
    let hole = prop_oneof![Just((0, 0)), (1..BLCKSZ as u16 - 1).prop_flat_map(|at| (Just(at), 1..BLCKSZ as u16 - at))];
    let compression = option::of(Just(Compression::Pglz));
    (hole, compression, any::<bool>(), any::<u8>()).prop_map(|((hole_offset, hole_len), compression, apply, fill)| {
        let len = if compression.is_some() { 100 } else { BLCKSZ - usize::from(hole_len) };
        ImageBuilder { bytes: vec![fill; len], hole_offset, hole_len, compression, apply }
    })
}
