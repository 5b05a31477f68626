//! Goal: real records with wrong bytes are refused or read, never a panic, and never pass the CRC.
//! Method: of every operation of every version the first two records, each byte changed to five other values.

use std::collections::HashMap;

use anyhow::Result;
use bytes::Bytes;
use postgres_ffi::wal::DecodedRecord;
use postgres_ffi::wal::checks::{check_decoded, check_record, check_stream};
use postgres_ffi::wal::record::crc_is_right;
use postgres_ffi::{Lsn, PgVersion};

use crate::fixture::Fixture;

/// Of each operation the first two records, large ones left out.
fn specimens(version: PgVersion) -> Result<Vec<DecodedRecord>> {
    let mut seen = HashMap::new();
    let mut records = Fixture::load(version)?.records()?;
    records.retain(|record| {
        let count: &mut u32 = seen.entry((record.rmid, record.operation(), record.blocks.len())).or_default();
        *count += 1;
        *count <= 2 && record.raw.len() < 2000
    });
    Ok(records)
}

#[test]
fn a_real_record_with_a_wrong_byte_never_panics() -> Result<()> {
    for version in PgVersion::ALL {
        let specimens = specimens(version)?;
        assert!(specimens.len() > 120, "{version}: {}", specimens.len());
        for record in specimens {
            // Behind the headers a byte more or less is just other data.
            for at in 0..record.raw.len().min(160) {
                for change in [0x01, 0x80, 0xFF, 0x10, record.raw[at]] {
                    let mut raw = record.raw.to_vec();
                    raw[at] ^= change;
                    assert_eq!(crc_is_right(&raw), change == 0, "{version} {} byte {at}", record.start_lsn);
                    if let Ok(changed) = DecodedRecord::decode(version, Lsn::new(8), Lsn::new(16), Bytes::from(raw)) {
                        check_decoded(version, &changed);
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_real_record_that_is_cut_short_is_refused() -> Result<()> {
    for record in specimens(PgVersion::V15)? {
        for len in 4..record.raw.len() {
            let mut raw = record.raw[..len].to_vec();
            raw[..4].copy_from_slice(&(len as u32).to_le_bytes());
            // What is left can look like a record without main data, when the blocks' data happens to fill it.
            let result = DecodedRecord::decode(PgVersion::V15, Lsn::new(8), Lsn::new(16), Bytes::from(raw));
            assert!(result.map_or(true, |cut| cut.main_data().is_empty()), "{} {len}", record.start_lsn);
        }
    }
    Ok(())
}

#[test]
fn the_bodies_of_the_fuzz_targets_take_real_wal() -> Result<()> {
    for (selector, version) in (0..).zip(PgVersion::ALL) {
        for record in specimens(version)? {
            let input = [&[selector], &record.raw[..]].concat();
            check_record(&input);
        }
        let fixture = Fixture::load(version)?;
        for (at, piece_len) in [(0, 100), (8192, 1), (3 * 8192, 255)] {
            let settings = [selector, piece_len, ((fixture.start_lsn.as_u64() + at) / 8192) as u8];
            check_stream(&[&settings[..], &fixture.bytes[at as usize..at as usize + 30_000]].concat());
        }
    }
    Ok(())
}
