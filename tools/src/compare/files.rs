//! Compares what is not a relation: SLRUs, relation maps, prepared transactions, the checkpoint.
//!
//! SLRU pages have no header and no hints: every byte comes from a record. Where a byte may differ all the same:
//!
//! - CLOG, commit timestamps: nowhere. A page begins with a record that zeroes it (CLOG_ZEROPAGE, COMMIT_TS_ZEROPAGE), a status is
//!   set by a commit or abort record, a segment goes with a truncate record. What TrimCLOG zeroes at a start, behind the next
//!   xid, was never set by a record. A clean stop writes all of it out.
//! - Multixact offsets: at each start TrimMultiXact writes the next offset at the next multixact's place, without a record, and
//!   makes the page if that place is its first (multixact.c of the minor releases from 2026 on). So in the directory that one place
//!   may hold the checkpoint's `nextMultiOffset` where we have 0.
//! - Multixact members: nowhere.
//!
//! A page that one side has and the other has not must be all zeroes: the file's length says nothing by itself, since
//! an SLRU page is made when it is first zeroed and written when it is thrown out of memory.

use std::collections::BTreeMap;

use anyhow::Result;
use postgres_ffi::rel::SLRU_PAGES_PER_SEGMENT;
use postgres_ffi::{BLCKSZ, Oid, PgVersion, SlruKind};

use super::report::{Mismatch, Report};
use super::source::Source;
use crate::datadir::DataDir;

/// Offsets in the CheckPoint struct; the head of `postgres_ffi::checkpoint` has the whole table.
const NEXT_MULTI: usize = 36;
const NEXT_MULTI_OFFSET: usize = 40;
const MULTI_OFFSET_LEN: usize = 4;

/// Compares everything that is not a relation.
pub fn compare(dir: &DataDir, source: &dyn Source, report: &mut Report) -> Result<()> {
    for kind in SlruKind::ALL {
        compare_slru(dir, source, kind, report)?;
    }
    compare_relation_maps(dir, source, report)?;
    compare_two_phase(dir, source, report)?;
    compare_checkpoint(dir, source, report)
}

fn compare_slru(dir: &DataDir, source: &dyn Source, kind: SlruKind, report: &mut Report) -> Result<()> {
    let (ours, mut on_disk) = (source.slru_segments(kind)?, dir.slru_segments(kind)?);
    if kind == SlruKind::MultiXactOffsets {
        take_over_next_offset(dir, &ours, &mut on_disk);
    }
    let mut numbers: Vec<u32> = ours.keys().chain(on_disk.keys()).copied().collect();
    numbers.sort_unstable();
    numbers.dedup();
    for segment_no in numbers {
        for page_no in 0..SLRU_PAGES_PER_SEGMENT {
            let what = format!("segment {segment_no:04X} page {page_no:2}");
            let pages = (page_of(&ours, segment_no, page_no), page_of(&on_disk, segment_no, page_no));
            compare_slru_page(kind.directory(), what, pages, report);
        }
    }
    Ok(())
}

fn page_of(segments: &BTreeMap<u32, Vec<u8>>, segment_no: u32, page_no: u32) -> Option<&[u8]> {
    let start = page_no as usize * BLCKSZ;
    segments.get(&segment_no)?.get(start..start + BLCKSZ)
}

fn compare_slru_page(kind: &str, what: String, pages: (Option<&[u8]>, Option<&[u8]>), report: &mut Report) {
    let (side, only) = match pages {
        (None, None) => return,
        (Some(ours), Some(on_disk)) => return compare_bytes(kind, what, ours, on_disk, report),
        (Some(ours), None) => ("not in the directory", ours),
        (None, Some(on_disk)) => ("in the directory only", on_disk),
    };
    if only.iter().all(|byte| *byte == 0) {
        report.leave_out(kind, "pages of zeroes that one side alone has", 1);
    } else {
        report.missing(kind, what, side.to_owned());
    }
}

/// See the head of this file. Our own page is taken where it has 0 and the directory has the next offset at the next multixact's place.
fn take_over_next_offset(dir: &DataDir, ours: &BTreeMap<u32, Vec<u8>>, on_disk: &mut BTreeMap<u32, Vec<u8>>) {
    let next_multi = u32_at(&dir.control.checkpoint_copy, NEXT_MULTI) as usize;
    let place = next_multi.saturating_mul(MULTI_OFFSET_LEN);
    let segment_len = SLRU_PAGES_PER_SEGMENT as usize * BLCKSZ;
    let Ok(segment_no) = u32::try_from(place / segment_len) else { return };
    let range = place % segment_len..place % segment_len + MULTI_OFFSET_LEN;
    let is_ours_zero = match ours.get(&segment_no).and_then(|bytes| bytes.get(range.clone())) {
        Some(bytes) => bytes.iter().all(|byte| *byte == 0),
        None => true,
    };
    let Some(disk) = on_disk.get_mut(&segment_no).and_then(|bytes| bytes.get_mut(range)) else { return };
    if is_ours_zero && *disk == dir.control.checkpoint_copy[NEXT_MULTI_OFFSET..NEXT_MULTI_OFFSET + MULTI_OFFSET_LEN] {
        disk.fill(0);
    }
}

fn compare_relation_maps(dir: &DataDir, source: &dyn Source, report: &mut Report) -> Result<()> {
    const KIND: &str = "relation maps";
    let on_disk = dir.relation_map_bytes()?;
    let ours = source.relation_maps()?;
    let name = |(spc_oid, db_oid): &(Oid, Oid)| format!("tablespace {spc_oid} database {db_oid}");
    compare_maps(KIND, &ours, &on_disk, name, report);
    Ok(())
}

fn compare_two_phase(dir: &DataDir, source: &dyn Source, report: &mut Report) -> Result<()> {
    const KIND: &str = "prepared transactions";
    let on_disk = dir.two_phase_files()?;
    let ours = source.two_phase()?;
    compare_maps(KIND, &ours, &on_disk, |xid| format!("xid {xid}"), report);
    Ok(())
}

/// Compares two sets of small files.
fn compare_maps<K: Ord>(
    kind: &str,
    ours: &BTreeMap<K, Vec<u8>>,
    on_disk: &BTreeMap<K, Vec<u8>>,
    name: impl Fn(&K) -> String,
    report: &mut Report,
) {
    for (key, disk_bytes) in on_disk {
        match ours.get(key) {
            Some(our_bytes) => compare_bytes(kind, name(key), our_bytes, disk_bytes, report),
            None => report.missing(kind, name(key), "in the directory only".to_owned()),
        }
    }
    for key in ours.keys().filter(|key| !on_disk.contains_key(key)) {
        report.missing(kind, name(key), "not in the directory".to_owned());
    }
}

fn compare_bytes(kind: &str, what: String, ours: &[u8], on_disk: &[u8], report: &mut Report) {
    let counts = report.kind(kind);
    counts.compared += 1;
    if ours == on_disk {
        counts.equal += 1;
        return;
    }
    counts.different += 1;
    let offset = ours.iter().zip(on_disk).position(|(a, b)| a != b).unwrap_or(ours.len().min(on_disk.len()));
    let hex = |bytes: &[u8]| bytes.iter().skip(offset & !7).take(16).map(|b| format!("{b:02x}")).collect::<String>();
    let detail = format!(
        "differs from byte {offset} on; from {}: ours {} ({} bytes), on disk {} ({} bytes)",
        offset & !7,
        hex(ours),
        ours.len(),
        hex(on_disk),
        on_disk.len()
    );
    report.first_mismatches.push(Mismatch { kind: kind.to_owned(), what, detail, offset: Some(offset) });
}

/// A field of the CheckPoint struct: name, offset, length. Both sides stand at the end of a shutdown checkpoint record and hold what it
/// says, the next xid too (which we keep rounded up at other records). Padding belongs to nobody.
const CHECKPOINT_FIELDS: [(&str, usize, usize); 16] = [
    ("redo position", 0, 8),
    ("timeline", 8, 4),
    ("previous timeline", 12, 4),
    ("full page writes", 16, 1),
    ("next xid", 24, 8),
    ("next oid", 32, 4),
    ("next multixact", NEXT_MULTI, 4),
    ("next multixact offset", NEXT_MULTI_OFFSET, 4),
    ("oldest xid", 44, 4),
    ("oldest xid database", 48, 4),
    ("oldest multixact", 52, 4),
    ("oldest multixact database", 56, 4),
    ("time", 64, 8),
    ("oldest commit timestamp xid", 72, 4),
    ("newest commit timestamp xid", 76, 4),
    ("oldest active xid", 80, 4),
];
/// A field that there is from 17 on; padding before.
const WAL_LEVEL_FIELD: (&str, usize, usize) = ("WAL level", 20, 4);

fn compare_checkpoint(dir: &DataDir, source: &dyn Source, report: &mut Report) -> Result<()> {
    const KIND: &str = "checkpoint fields";
    let on_disk = &dir.control.checkpoint_copy;
    let ours = source.checkpoint()?;
    if ours.len() != on_disk.len() {
        let detail = format!("ours has {} bytes, expected {}", ours.len(), on_disk.len());
        report.missing(KIND, "checkpoint".to_owned(), detail);
        return Ok(());
    }
    let wal_level = (dir.control.version >= PgVersion::V17).then_some(WAL_LEVEL_FIELD);
    for (name, offset, len) in CHECKPOINT_FIELDS.into_iter().chain(wal_level) {
        let range = offset..offset + len;
        compare_bytes(KIND, name.to_owned(), &ours[range.clone()], &on_disk[range], report);
    }
    Ok(())
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    bytes.get(offset..offset + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_le_bytes)
}
