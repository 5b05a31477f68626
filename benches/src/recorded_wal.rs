//! WAL of a primary, read from its segment files.

use std::path::Path;

use anyhow::{Context, Result};
use bytes::Bytes;
use postgres_ffi::Lsn;

const SEGMENT_BYTES: u64 = 16 << 20;

/// The bytes of `start..end`, from segments of 16 MiB of PostgreSQL timeline 1. Errors: a segment is not there.
pub fn read(pg_wal: &Path, start: Lsn, end: Lsn) -> Result<Bytes> {
    let mut bytes = Vec::new();
    for segment_no in start.segment_no(SEGMENT_BYTES)..=end.segment_no(SEGMENT_BYTES) {
        let name = format!("00000001{:08X}{:08X}", segment_no / 256, segment_no % 256);
        let path = pg_wal.join(name);
        bytes.extend(std::fs::read(&path).with_context(|| format!("read {}", path.display()))?);
    }
    let skipped = start.segment_offset(SEGMENT_BYTES) as usize;
    let len = end.saturating_sub(start) as usize;
    Ok(Bytes::from(bytes).slice(skipped..skipped + len))
}
