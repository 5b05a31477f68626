//! The recorded WAL and what PostgreSQL says of it.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use postgres_ffi::wal::page_header::PageHeader;
use postgres_ffi::wal::{DecodedRecord, WalStreamDecoder};
use postgres_ffi::{Lsn, PgVersion};

/// One version's WAL, from a segment's start on.
pub struct Fixture {
    pub version: PgVersion,
    pub start_lsn: Lsn,
    pub segment_bytes: u32,
    pub bytes: Bytes,
}

/// A row of `pg_get_wal_records_info`.
#[derive(Debug)]
pub struct Row {
    pub start_lsn: Lsn,
    pub end_lsn: Lsn,
    pub prev_lsn: Lsn,
    pub xid: u32,
    pub rmgr: String,
    pub operation: String,
    pub record_len: usize,
    pub main_data_len: usize,
    pub image_len: usize,
    pub description: String,
    pub block_refs: String,
}

fn read(name: &str) -> Result<Vec<u8>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/wal").join(name);
    let packed = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    zstd::stream::decode_all(&packed[..]).with_context(|| format!("unpack {}", path.display()))
}

impl Fixture {
    pub fn load(version: PgVersion) -> Result<Self> {
        let bytes = Bytes::from(read(&format!("{version}.wal.zst"))?);
        let header = PageHeader::parse(&bytes).context("a page header")?;
        let segment_bytes = header.long.context("a segment's first page")?.segment_bytes;
        Ok(Fixture { version, start_lsn: header.page_lsn, segment_bytes, bytes })
    }

    /// A decoder at the start of the WAL.
    pub fn decoder(&self) -> WalStreamDecoder {
        WalStreamDecoder::new_at_page(self.version, self.start_lsn, self.segment_bytes)
    }

    /// All records, read in one piece.
    pub fn records(&self) -> Result<Vec<DecodedRecord>> {
        let mut decoder = self.decoder();
        decoder.feed(self.bytes.clone());
        let mut records = Vec::new();
        while let Some((start_lsn, end_lsn, raw)) = decoder.next_record()? {
            records.push(DecodedRecord::decode(self.version, start_lsn, end_lsn, raw)?);
        }
        ensure!(decoder.last_record_end() == self.end_lsn(), "all of it must be read");
        Ok(records)
    }

    /// Where the recorded bytes end.
    pub fn end_lsn(&self) -> Lsn {
        Lsn::new(self.start_lsn.as_u64() + self.bytes.len() as u64)
    }

    /// Where in `bytes` the position is.
    pub fn offset(&self, lsn: Lsn) -> usize {
        lsn.saturating_sub(self.start_lsn) as usize
    }

    /// What pg_walinspect says, row by row. Not for 14.
    pub fn rows(&self) -> Result<Vec<Row>> {
        let text = String::from_utf8(read(&format!("{}.records.tsv.zst", self.version))?)?;
        text.lines().map(|line| Row::parse(line).with_context(|| line.to_owned())).collect()
    }
}

/// What pg_waldump 15 says of the WAL of 15, line by line.
pub fn pg_waldump_15() -> Result<Vec<String>> {
    Ok(String::from_utf8(read("15.pg_waldump.txt.zst")?)?.lines().map(str::to_owned).collect())
}

impl Row {
    fn parse(line: &str) -> Result<Self> {
        let fields: Vec<&str> = line.split('\t').collect();
        let [start_lsn, end_lsn, prev_lsn, xid, rmgr, operation, len, main_len, image_len, description, block_refs] =
            fields[..]
        else {
            anyhow::bail!("11 columns expected, {} found", fields.len())
        };
        // COPY writes NULL as \N and control characters with a backslash.
        let text = |field: &str| if field == "\\N" { String::new() } else { field.to_owned() };
        Ok(Row {
            start_lsn: start_lsn.parse()?,
            end_lsn: end_lsn.parse()?,
            prev_lsn: prev_lsn.parse()?,
            xid: xid.parse()?,
            rmgr: rmgr.to_owned(),
            operation: operation.to_owned(),
            record_len: len.parse()?,
            main_data_len: main_len.parse()?,
            image_len: image_len.parse()?,
            description: text(description),
            block_refs: text(block_refs),
        })
    }
}
