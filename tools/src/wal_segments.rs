//! WAL segment files on disk, read as one log.
//!
//! - Version, segment size and system identifier are read from the first page; a segment of another cluster ends the log with an error.
//! - Reads a mebibyte at a time, so a folder of any size can be read.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use postgres_ffi::wal::page_header::{LongPart, PageHeader};
use postgres_ffi::wal::{DecodedRecord, WalErrorKind, WalStreamDecoder};
use postgres_ffi::{Lsn, PgVersion, TimeLineId};

const CHUNK_BYTES: usize = 1 << 20;
/// `TTTTTTTTHHHHHHHHLLLLLLLL`: timeline, and the segment's number in two halves.
const SEGMENT_NAME_LEN: usize = 24;

/// A run of segment files without a gap, and what its first page says.
pub struct Segments {
    files: Vec<PathBuf>,
    /// Where the first file begins.
    pub start_lsn: Lsn,
    /// Major version of the server that wrote it.
    pub version: PgVersion,
    segment_bytes: u32,
    system_id: u64,
}

impl Segments {
    /// The segment file at `path`, or the segments of one timeline in that folder (the highest there is without `timeline_id`), from `start` on or
    /// from the first, up to the first gap.
    pub fn find(path: &Path, start: Option<Lsn>, timeline_id: Option<TimeLineId>) -> Result<Self> {
        if path.is_dir() {
            return Self::of_folder(path, start, timeline_id);
        }
        let (header, long) = read_first_page(path)?;
        Self::new(vec![path.to_path_buf()], header, long)
    }

    fn of_folder(folder: &Path, start: Option<Lsn>, timeline_id: Option<TimeLineId>) -> Result<Self> {
        let mut found: BTreeMap<TimeLineId, BTreeMap<u64, PathBuf>> = BTreeMap::new();
        let mut segment_bytes = None;
        for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
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
        let (_, mut segments) = match timeline_id {
            Some(timeline_id) => found.remove_entry(&timeline_id),
            None => found.pop_last(),
        }
        .with_context(|| format!("no WAL segments in {}", folder.display()))?;
        if let (Some(start), Some(bytes)) = (start, segment_bytes) {
            segments = segments.split_off(&start.segment_no(bytes));
        }
        let first_no = *segments.keys().next().context("no WAL segment holds the start position")?;
        if let (Some(start), Some(bytes)) = (start, segment_bytes) {
            ensure!(first_no == start.segment_no(bytes), "no WAL segment holds the start position. start=`{start}`");
        }
        if let Some(missing) = (first_no..)
            .find(|number| !segments.contains_key(number))
            .filter(|number| segments.last_key_value().is_some_and(|(last, _)| number < last))
        {
            eprintln!("there is a gap: reading up to the missing segment number {missing} in {}", folder.display());
        }
        let run = segments.into_iter().zip(first_no..).take_while(|((segment_no, _), expected)| segment_no == expected);
        let files: Vec<PathBuf> = run.map(|((_, path), _)| path).collect();
        let (header, long) = read_first_page(&files[0])?;
        Segments::new(files, header, long)
    }

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

    /// Bytes of WAL from `start` to the end of the last file.
    pub fn bytes_from(&self, start: Lsn) -> u64 {
        let bytes = self.files.len() as u64 * u64::from(self.segment_bytes);
        bytes.saturating_sub(start.saturating_sub(self.start_lsn))
    }

    /// The records that begin at or behind `start`, or the first that begins in these files without it.
    pub fn records(&self, start: Option<Lsn>) -> Result<Records<'_>> {
        let start = start.unwrap_or(self.start_lsn).max(self.start_lsn);
        let page_bytes = postgres_ffi::BLCKSZ as u64;
        let page_lsn = Lsn::new(start.as_u64() / page_bytes * page_bytes);
        let decoder =
            WalStreamDecoder::new_at_page(self.version, page_lsn, self.segment_bytes).with_system_id(self.system_id);
        Ok(Records { version: self.version, start, decoder, source: SegmentReader::new(self, page_lsn)? })
    }
}

/// Records one after the other, their CRC checked.
pub struct Records<'a> {
    version: PgVersion,
    start: Lsn,
    decoder: WalStreamDecoder,
    source: SegmentReader<'a>,
}

impl Records<'_> {
    /// The next record; `None` where the log ends, which is told on standard error if it ends within the files.
    pub fn next_record(&mut self) -> Result<Option<DecodedRecord>> {
        loop {
            match self.decoder.next_record() {
                Ok(Some((start_lsn, ..))) if start_lsn < self.start => {}
                Ok(Some((start_lsn, end_lsn, raw))) => {
                    let record = DecodedRecord::decode(self.version, start_lsn, end_lsn, raw);
                    return Ok(Some(record.with_context(|| format!("decode the record at {start_lsn}"))?));
                }
                Ok(None) => match self.source.next_chunk()? {
                    Some(chunk) => self.decoder.feed(chunk),
                    None => return Ok(None),
                },
                Err(error) if error.kind() == WalErrorKind::EndOfWal => {
                    let end_lsn = self.decoder.last_record_end();
                    // Segments kept for later use carry addresses of the past; one that goes on behind the end says that this is no end.
                    if let Some(path) = self.source.files.first()
                        && read_first_page(path).is_ok_and(|(header, _)| end_lsn < header.page_lsn)
                    {
                        return Err(error).with_context(|| {
                            format!("WAL is damaged at {end_lsn}: {} goes on behind it", path.display())
                        });
                    }
                    eprintln!("end of the log at {end_lsn}: {error}");
                    return Ok(None);
                }
                Err(error) => return Err(error).context("read WAL"),
            }
        }
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
            file.seek(SeekFrom::Start(offset % bytes)).context("seek in a WAL segment")?;
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
}
