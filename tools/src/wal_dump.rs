//! `pagectl wal dump`: WAL segment files as text, record by record.
//!
//! - Version, segment size and system identifier are read from the first page; a segment of another cluster ends the dump with an error.
//! - Records are shown only after their CRC was checked. Where the log ends, the reason is said on standard error.
//! - Reads a mebibyte at a time, so a folder of any size can be dumped.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use postgres_ffi::inspect::record::RecordView;
use postgres_ffi::wal::page_header::{LongPart, PageHeader};
use postgres_ffi::wal::{DecodedRecord, WalErrorKind, WalStreamDecoder, rmgr};
use postgres_ffi::{BlockNumber, Lsn, PgVersion, RelTag, TimeLineId};

use crate::output::{Outcome, Output};

const CHUNK_BYTES: usize = 1 << 20;
/// `TTTTTTTTHHHHHHHHLLLLLLLL`: timeline, and the segment's number in two halves.
const SEGMENT_NAME_LEN: usize = 24;

/// Shows WAL records, one line each.
#[derive(Debug, clap::Args)]
pub struct WalDump {
    /// A WAL segment file, or a folder of them (pg_wal)
    path: PathBuf,
    /// Show only records that start at or behind this LSN
    #[arg(long)]
    start: Option<Lsn>,
    /// Stop at the first record that starts at or behind this LSN
    #[arg(long)]
    end: Option<Lsn>,
    /// Show only records of this resource manager, by pg_waldump's name (Heap, Btree, Transaction, ...)
    #[arg(long)]
    rmgr: Option<String>,
    /// Show only records that touch this relation: TABLESPACE/DATABASE/RELFILENODE
    #[arg(long)]
    rel: Option<RelTag>,
    /// With --rel, show only records that touch this block
    #[arg(long, requires = "rel")]
    block: Option<BlockNumber>,
    /// Show only records of this transaction
    #[arg(long)]
    xid: Option<u32>,
    /// Stop after so many records
    #[arg(long)]
    limit: Option<u64>,
    /// PostgreSQL timeline of the segments to read from a folder; the highest there is without it
    #[arg(long)]
    timeline_id: Option<TimeLineId>,
}

/// A run of segment files without a gap, and what its first page says.
struct Segments {
    files: Vec<PathBuf>,
    start_lsn: Lsn,
    version: PgVersion,
    segment_bytes: u32,
    system_id: u64,
}

impl WalDump {
    /// Dumps.
    pub fn run(&self, output: &mut Output) -> Result<Outcome> {
        let rmid = self.rmgr.as_deref().map(rmgr_number).transpose()?;
        let segments = self.segments()?;
        let first_page = self.start.unwrap_or(segments.start_lsn).max(segments.start_lsn);
        let page_bytes = postgres_ffi::BLCKSZ as u64;
        let page_lsn = Lsn::new(first_page.as_u64() / page_bytes * page_bytes);
        let mut decoder = WalStreamDecoder::new_at_page(segments.version, page_lsn, segments.segment_bytes)
            .with_system_id(segments.system_id);
        let mut source = SegmentReader::new(&segments, page_lsn)?;
        let mut shown = 0;
        loop {
            let next = match decoder.next_record() {
                Ok(next) => next,
                Err(error) if error.kind() == WalErrorKind::EndOfWal => {
                    eprintln!("end of the log at {}: {error}", decoder.last_record_end());
                    return Ok(Outcome::Good);
                }
                Err(error) => return Err(error).context("read WAL"),
            };
            let Some((start_lsn, end_lsn, raw)) = next else {
                match source.next_chunk()? {
                    Some(chunk) => decoder.feed(chunk),
                    None => return Ok(Outcome::Good),
                }
                continue;
            };
            if self.end.is_some_and(|end| start_lsn >= end) || self.limit.is_some_and(|limit| shown >= limit) {
                return Ok(Outcome::Good);
            }
            let record = DecodedRecord::decode(segments.version, start_lsn, end_lsn, raw)
                .with_context(|| format!("decode the record at {start_lsn}"))?;
            if self.wants(&record, rmid) {
                output.value(&RecordView::new(segments.version, &record))?;
                shown += 1;
            }
        }
    }

    fn wants(&self, record: &DecodedRecord, rmid: Option<u8>) -> bool {
        self.start.is_none_or(|start| start <= record.start_lsn)
            && rmid.is_none_or(|rmid| rmid == record.rmid)
            && self.xid.is_none_or(|xid| xid == record.xid)
            && self.rel.is_none_or(|rel| {
                let is_wanted = |block_no| self.block.is_none_or(|wanted| wanted == block_no);
                record.blocks.iter().any(|block| block.rel == rel && is_wanted(block.block_no))
            })
    }

    fn segments(&self) -> Result<Segments> {
        if self.path.is_dir() {
            return self.segments_of_folder();
        }
        let (header, long) = read_first_page(&self.path)?;
        Segments::new(vec![self.path.clone()], header, long)
    }

    /// The segments of one timeline from `--start` on (or from the first), up to the first gap.
    fn segments_of_folder(&self) -> Result<Segments> {
        let mut found: BTreeMap<TimeLineId, BTreeMap<u64, PathBuf>> = BTreeMap::new();
        let mut segment_bytes = None;
        for entry in fs::read_dir(&self.path).with_context(|| format!("list {}", self.path.display()))? {
            let path = entry?.path();
            let Some((timeline_id, high, low)) = parse_segment_name(&path) else { continue };
            let bytes = match segment_bytes {
                Some(bytes) => bytes,
                None => u64::from(read_first_page(&path)?.1.segment_bytes),
            };
            segment_bytes = Some(bytes);
            let segment_no = u64::from(high) * ((1 << 32) / bytes) + u64::from(low);
            found.entry(timeline_id).or_default().insert(segment_no, path);
        }
        let (_, mut segments) = match self.timeline_id {
            Some(timeline_id) => found.remove_entry(&timeline_id),
            None => found.pop_last(),
        }
        .with_context(|| format!("no WAL segments in {}", self.path.display()))?;
        if let (Some(start), Some(bytes)) = (self.start, segment_bytes) {
            segments = segments.split_off(&start.segment_no(bytes));
        }
        let first_no = *segments.keys().next().context("no WAL segment holds the start position")?;
        let run = segments.into_iter().zip(first_no..).take_while(|((segment_no, _), expected)| segment_no == expected);
        let files: Vec<PathBuf> = run.map(|((_, path), _)| path).collect();
        let (header, long) = read_first_page(&files[0])?;
        Segments::new(files, header, long)
    }
}

impl Segments {
    fn new(files: Vec<PathBuf>, header: PageHeader, long: LongPart) -> Result<Self> {
        let version = PgVersion::from_xlog_page_magic(header.magic)
            .with_context(|| format!("WAL of an unknown version. page_magic=`{:#06x}`", header.magic))?;
        ensure!(
            header.page_lsn.segment_offset(u64::from(long.segment_bytes)) == 0,
            "the file does not begin with the first page of a segment. page_lsn=`{}`",
            header.page_lsn
        );
        let (segment_bytes, system_id) = (long.segment_bytes, long.system_id);
        Ok(Segments { files, start_lsn: header.page_lsn, version, segment_bytes, system_id })
    }
}

/// Reads segment files one after the other.
struct SegmentReader<'a> {
    files: &'a [PathBuf],
    current: Option<File>,
}

impl<'a> SegmentReader<'a> {
    /// Reads from `page_lsn` on. Requires: it is in the first segment, or behind all of them.
    fn new(segments: &'a Segments, page_lsn: Lsn) -> Result<Self> {
        let offset = page_lsn.saturating_sub(segments.start_lsn);
        let bytes = u64::from(segments.segment_bytes);
        let skipped = usize::try_from(offset / bytes).unwrap_or(usize::MAX).min(segments.files.len());
        let mut reader = SegmentReader { files: &segments.files[skipped..], current: None };
        if reader.open_next()?
            && let Some(file) = &mut reader.current
        {
            std::io::Seek::seek(file, std::io::SeekFrom::Start(offset % bytes)).context("seek in a WAL segment")?;
        }
        Ok(reader)
    }

    fn open_next(&mut self) -> Result<bool> {
        let Some((path, rest)) = self.files.split_first() else { return Ok(false) };
        self.files = rest;
        self.current = Some(File::open(path).with_context(|| format!("open {}", path.display()))?);
        Ok(true)
    }

    fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        loop {
            let Some(file) = &mut self.current else { return Ok(None) };
            let mut chunk = Vec::with_capacity(CHUNK_BYTES);
            file.take(CHUNK_BYTES as u64).read_to_end(&mut chunk).context("read a WAL segment")?;
            if !chunk.is_empty() {
                return Ok(Some(chunk.into()));
            }
            self.current = None;
            if !self.open_next()? {
                return Ok(None);
            }
        }
    }
}

fn read_first_page(path: &Path) -> Result<(PageHeader, LongPart)> {
    let mut bytes = Vec::new();
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    file.take(64).read_to_end(&mut bytes).with_context(|| format!("read {}", path.display()))?;
    let header = PageHeader::parse(&bytes).with_context(|| format!("no WAL page header in {}", path.display()))?;
    let long = header.long.with_context(|| format!("{} does not begin with a segment's header", path.display()))?;
    ensure!(
        postgres_ffi::wal::page_header::is_segment_size(long.segment_bytes),
        "impossible WAL segment size in {}. value=`{}`",
        path.display(),
        long.segment_bytes
    );
    Ok((header, long))
}

fn parse_segment_name(path: &Path) -> Option<(TimeLineId, u32, u32)> {
    let name = path.file_name()?.to_str()?;
    if name.len() != SEGMENT_NAME_LEN || !name.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'A'..=b'F'))
    {
        return None;
    }
    let part = |range: std::ops::Range<usize>| u32::from_str_radix(&name[range], 16).ok();
    Some((part(0..8)?, part(8..16)?, part(16..24)?))
}

fn rmgr_number(name: &str) -> Result<u8> {
    let position = rmgr::BUILTIN_NAMES.iter().position(|known| known.eq_ignore_ascii_case(name));
    let custom = || name.strip_prefix("custom").and_then(|digits| digits.parse::<u8>().ok());
    match position.and_then(|number| u8::try_from(number).ok()).or_else(custom) {
        Some(number) => Ok(number),
        None => bail!("unknown resource manager, expected one of {}. value=`{name}`", rmgr::BUILTIN_NAMES.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    //! Names; dumps of real segments are held against pg_waldump in `tests/`.

    use super::*;

    #[test]
    fn segment_names_are_told_from_other_files() {
        let parse = |name: &str| parse_segment_name(Path::new(name));
        assert_eq!(parse("/x/00000002000000010000000A"), Some((2, 1, 10)));
        for other in
            ["00000002.history", "archive_status", "00000002000000010000000A.partial", "00000002000000010000000g"]
        {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn resource_managers_have_pg_waldumps_names() {
        assert_eq!(rmgr_number("heap").ok(), Some(rmgr::HEAP));
        assert_eq!(rmgr_number("custom128").ok(), Some(128));
        assert!(rmgr_number("nothing").is_err());
    }
}
