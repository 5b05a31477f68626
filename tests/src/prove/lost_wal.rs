//! Was there ever a record that ends at some LSN, in WAL that survived?
//!
//! A crash takes back WAL that was not flushed. A few pages are written to disk without waiting for their WAL although a catalog names
//! their relation: a hash index that grows writes the last page of its new buckets so (PG 15: src/backend/access/hash/hashpage.c,
//! _hash_alloc_buckets). Such a page keeps the LSN of a record that no longer exists, nothing refers to it, and no follower of the WAL
//! can have it. The proof is in the archive: no record ends at the LSN that the page carries.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bytes::Bytes;
use postgres_ffi::wal::{DecodedRecord, RecordHeader, WalStreamDecoder};
use postgres_ffi::{Lsn, PgVersion};

/// Every WAL segment file that a leg's primaries have written.
#[derive(Clone, Debug)]
pub struct WalArchive {
    /// Where files are looked for: the archive, and `pg_wal` for what was not archived yet.
    pub dirs: Vec<PathBuf>,
    /// Major version.
    pub version: PgVersion,
    /// Size of a segment file.
    pub segment_bytes: u32,
}

impl WalArchive {
    /// True if files cover `lsn` on every timeline that has files there, and no record ends there. False: one does, or nothing is known.
    pub fn no_record_ends_at(&self, lsn: Lsn) -> Result<bool> {
        let mut covered = false;
        for timeline_id in self.timeline_ids()? {
            match self.record_ends_at(timeline_id, lsn)? {
                Some(true) => return Ok(false),
                Some(false) => covered = true,
                None => {}
            }
        }
        Ok(covered)
    }

    /// `None`: the files of this timeline do not say.
    fn record_ends_at(&self, timeline_id: u32, lsn: Lsn) -> Result<Option<bool>> {
        let segment_bytes = u64::from(self.segment_bytes);
        // From the segment before: a record may reach over the border.
        let first_segment_no = lsn.segment_no(segment_bytes).saturating_sub(1);
        let start_lsn = Lsn::new(first_segment_no * segment_bytes);
        let mut decoder = WalStreamDecoder::new_at_page(self.version, start_lsn, self.segment_bytes);
        let mut next_segment_no = first_segment_no;
        let mut ended_below = false;
        loop {
            match decoder.next_record() {
                Ok(Some((_, end_lsn, _))) if end_lsn < lsn => ended_below = true,
                // A record behind it shows that the decoder has been past it.
                Ok(Some((_, end_lsn, _))) => return Ok(if ended_below { Some(end_lsn == lsn) } else { None }),
                Ok(None) => match self.read_segment(timeline_id, next_segment_no)? {
                    Some(bytes) => {
                        decoder.feed(bytes);
                        next_segment_no += 1;
                    }
                    None => return Ok(None),
                },
                Err(_) => return Ok(None), // Here the log of this timeline ends.
            }
        }
    }

    /// Gives every record of the resource managers `rmids` to `visit`, from the oldest segment on from which files go on without a gap to the record
    /// that ends at `end_lsn`; of a segment that two timelines have, the newer one's. False: there is no such record, or a gap before it.
    pub fn for_each_record_up_to(
        &self,
        end_lsn: Lsn,
        rmids: &[u8],
        mut visit: impl FnMut(&DecodedRecord) -> Result<()>,
    ) -> Result<bool> {
        let segment_bytes = u64::from(self.segment_bytes);
        let mut segments = self.segments()?;
        let last_segment_no = Lsn::new(end_lsn.as_u64().saturating_sub(1)).segment_no(segment_bytes);
        segments.retain(|segment_no, _| *segment_no <= last_segment_no);
        let mut paths = Vec::new();
        let mut first_segment_no = last_segment_no + 1;
        while let Some(path) = first_segment_no.checked_sub(1).and_then(|segment_no| segments.remove(&segment_no)) {
            first_segment_no -= 1;
            paths.push(path);
        }
        let start_lsn = Lsn::new(first_segment_no * segment_bytes);
        let mut decoder = WalStreamDecoder::new_at_page(self.version, start_lsn, self.segment_bytes);
        loop {
            match decoder.next_record() {
                Ok(Some((record_lsn, record_end_lsn, raw))) => {
                    if RecordHeader::parse(&raw).is_some_and(|header| rmids.contains(&header.rmid)) {
                        visit(&DecodedRecord::decode(self.version, record_lsn, record_end_lsn, raw)?)?;
                    }
                    if record_end_lsn >= end_lsn {
                        return Ok(record_end_lsn == end_lsn);
                    }
                }
                Ok(None) => match paths.pop() {
                    Some(path) => {
                        decoder.feed(fs::read(&path).with_context(|| format!("read {}", path.display()))?.into())
                    }
                    None => return Ok(false),
                },
                Err(_) => return Ok(false), // Here the log ends.
            }
        }
    }

    /// The file of each segment, the newest timeline's.
    fn segments(&self) -> Result<BTreeMap<u64, PathBuf>> {
        let segments_per_id = (1_u64 << 32) / u64::from(self.segment_bytes);
        let mut newest = BTreeMap::new();
        for dir in &self.dirs {
            for name in segment_names(dir)? {
                let [timeline_id, high, low] = [0, 8, 16].map(|at| u64::from_str_radix(&name[at..at + 8], 16));
                let segment_no = high? * segments_per_id + low?;
                let found = (timeline_id?, dir.join(&name));
                let file = newest.entry(segment_no).or_insert_with(|| found.clone());
                if file.0 < found.0 {
                    *file = found;
                }
            }
        }
        Ok(newest.into_iter().map(|(segment_no, (_, path))| (segment_no, path)).collect())
    }

    fn read_segment(&self, timeline_id: u32, segment_no: u64) -> Result<Option<Bytes>> {
        let segments_per_id = (1_u64 << 32) / u64::from(self.segment_bytes);
        let name = format!("{timeline_id:08X}{:08X}{:08X}", segment_no / segments_per_id, segment_no % segments_per_id);
        let found = self.dirs.iter().map(|dir| dir.join(&name)).find(|path| path.exists());
        let Some(path) = found else { return Ok(None) };
        Ok(Some(fs::read(&path).with_context(|| format!("read {}", path.display()))?.into()))
    }

    /// The PostgreSQL timelines that have files.
    fn timeline_ids(&self) -> Result<Vec<u32>> {
        let mut found = std::collections::BTreeSet::new();
        for dir in &self.dirs {
            found.extend(segment_names(dir)?.iter().filter_map(|name| u32::from_str_radix(&name[..8], 16).ok()));
        }
        Ok(found.into_iter().collect())
    }
}

/// Names of 24 hexadecimal digits.
fn segment_names(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Postgres, Stop, TestDir};

    #[test]
    fn knows_where_records_end() {
        let dir = TestDir::new("lost-wal").unwrap();
        let mut server = Postgres::builder(PgVersion::V15).wal_segment_mb(1).start(&dir).unwrap();
        server.execute("CREATE TABLE t AS SELECT i FROM generate_series(1, 20000) i").unwrap();
        let end_lsn: Lsn =
            server.query_text("SELECT pg_logical_emit_message(true, 'a', 'b')").unwrap().parse().unwrap();
        server.execute("CREATE TABLE u AS SELECT i FROM generate_series(1, 20000) i").unwrap();
        server.stop(Stop::Fast).unwrap();
        let dirs = vec![server.data_dir().join("pg_wal")];
        let archive = WalArchive { dirs, version: PgVersion::V15, segment_bytes: 1 << 20 };
        assert!(!archive.no_record_ends_at(end_lsn).unwrap());
        assert!(archive.no_record_ends_at(Lsn::new(end_lsn.as_u64() - 8)).unwrap());
        // Nothing is known of what lies behind the end.
        assert!(!archive.no_record_ends_at(Lsn::new(end_lsn.as_u64() + (1 << 40))).unwrap());
    }
}
