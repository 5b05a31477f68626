//! `pagectl page`: one page of a timeline, all its versions, or a page in a file.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use pageserver::client::quote;
use pageserver::page_service::command::PageAddress;
use postgres_ffi::inspect::hex_dump;
use postgres_ffi::inspect::record::RecordView;
use postgres_ffi::page::Page;
use postgres_ffi::wal::DecodedRecord;
use postgres_ffi::{BLCKSZ, BlockNumber, ForkNumber, Lsn, PgVersion};
use serde::Serialize;

use crate::connect::{ServerArgs, at_clause};
use crate::output::{Outcome, Output};
use crate::page_dump::{self, Format};

/// A delta that is a PostgreSQL record begins with this byte; other bytes are deltas of the page server's own.
const TAG_RECORD: u8 = 0;

/// Looks at pages
#[derive(Debug, clap::Subcommand)]
pub enum PageCommand {
    /// Shows a page of a timeline as of an LSN
    Get(PageGet),
    /// Lists the versions of a page, newest first
    History(PageHistory),
    /// Decodes a page in a file: a relation's segment file, or a page that was saved
    Show(PageShow),
}

/// `page get`
#[derive(Debug, clap::Args)]
pub struct PageGet {
    /// TABLESPACE/DATABASE/RELFILENODE/FORK/BLOCK (1663/5/16384/main/0), or an SLRU page (pg_xact/0)
    address: PageAddress,
    /// Timeline, by name or id
    #[arg(long)]
    timeline: String,
    /// As of this LSN; the newest without
    #[arg(long)]
    lsn: Option<Lsn>,
    /// How to show it
    #[arg(long, value_enum, default_value_t = Format::Decoded)]
    format: Format,
    /// Write the 8192 bytes to this file instead
    #[arg(long)]
    output: Option<PathBuf>,
}

/// `page history`
#[derive(Debug, clap::Args)]
pub struct PageHistory {
    /// TABLESPACE/DATABASE/RELFILENODE/FORK/BLOCK (1663/5/16384/main/0), or an SLRU page (pg_xact/0)
    address: PageAddress,
    /// Timeline, by name or id
    #[arg(long)]
    timeline: String,
    /// Oldest version wanted
    #[arg(long)]
    from: Option<Lsn>,
    /// Newest version wanted
    #[arg(long)]
    to: Option<Lsn>,
}

/// `page show`
#[derive(Debug, clap::Args)]
pub struct PageShow {
    /// The file
    file: PathBuf,
    /// Which page of the file, from 0
    #[arg(long, default_value_t = 0)]
    page: u32,
    /// The page's block number, if it is another: for its checksum, and for what a map covers
    #[arg(long)]
    block: Option<BlockNumber>,
    /// Fork: main, fsm, vm or init; without it, what the file's name says
    #[arg(long)]
    fork: Option<ForkNumber>,
    /// How to show it
    #[arg(long, value_enum, default_value_t = Format::Decoded)]
    format: Format,
}

impl PageCommand {
    /// Runs it.
    pub fn run(&self, server: &ServerArgs, output: &mut Output) -> Result<Outcome> {
        match self {
            PageCommand::Get(get) => get.run(server, output)?,
            PageCommand::History(history) => history.run(server, output)?,
            PageCommand::Show(show) => show.run(output)?,
        }
        Ok(Outcome::Good)
    }
}

impl PageGet {
    fn run(&self, server: &ServerArgs, output: &mut Output) -> Result<()> {
        let command =
            format!("PAGE GET {} {}{}", quote(&self.timeline), quote(&self.address.to_string()), at_clause(self.lsn));
        let rows = server.connect()?.query_one(&command)?;
        let row = rows.rows.first().context("the server answered without a row")?;
        let column = |name| rows.column(name).with_context(|| format!("the server's answer has no column {name}"));
        let (blocks, lsn) = (row.get(column("blocks")?), row.get(column("lsn")?).unwrap_or_default());
        let Some(bytes) = row.get_bytes(column("page")?) else {
            bail!("no such block. page=`{}`, lsn=`{lsn}`, blocks=`{}`", self.address, blocks.unwrap_or("unknown"));
        };
        let page: &Page = bytes.as_ref().try_into().context("the server's page is not 8192 bytes")?;
        if let Some(path) = &self.output {
            return fs::write(path, page).with_context(|| format!("write {}", path.display()));
        }
        match self.address {
            PageAddress::Block { fork, block_no, .. } => page_dump::show(page, fork, block_no, self.format, output),
            PageAddress::Slru { .. } => show_slru(page, self.format, output),
        }
    }
}

/// An SLRU page has no header to decode.
fn show_slru(page: &Page, format: Format, output: &mut Output) -> Result<()> {
    if output.is_json() {
        let hex: String = page.iter().map(|byte| format!("{byte:02x}")).collect();
        return output.json_line(&serde_json::json!({ "page": hex }));
    }
    match format {
        Format::Raw => output.bytes(page),
        Format::Decoded | Format::Hex => output.text(&hex_dump(page)),
    }
}

/// One version of a page.
#[derive(Debug, Serialize)]
struct VersionView {
    lsn: Lsn,
    kind: String,
    bytes: usize,
    /// The record, where the version is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<RecordView>,
    note: &'static str,
}

impl std::fmt::Display for VersionView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:<17} {:<10} {:>6} bytes  {}", self.lsn.to_string(), self.kind, self.bytes, self.note)?;
        match &self.record {
            Some(record) => {
                write!(f, "{} {} tx {}", record.rmgr, record.operation, record.xid)?;
                // What the description says the fields say too; of a record cut down for the block it may be missing.
                match (record.description.is_empty(), &record.fields) {
                    (false, _) => write!(f, "  {}", record.description),
                    (true, Some(fields)) => write!(f, "  {fields}"),
                    (true, None) => Ok(()),
                }
            }
            None => Ok(()),
        }
    }
}

impl PageHistory {
    fn run(&self, server: &ServerArgs, output: &mut Output) -> Result<()> {
        let bound = |word: &str, lsn: Option<Lsn>| {
            lsn.map(|lsn| format!(" {word} {}", quote(&lsn.to_string()))).unwrap_or_default()
        };
        let (from, to) = (bound("FROM", self.from), bound("TO", self.to));
        let (timeline, address) = (quote(&self.timeline), quote(&self.address.to_string()));
        let mut client = server.connect()?;
        let version = pg_version(&client.query_one(&format!("SHOW TIMELINE {timeline}"))?);
        let rows = client.query_one(&format!("PAGE HISTORY {timeline} {address}{from}{to}"))?;
        let column = |name| rows.column(name).with_context(|| format!("the server's answer has no column {name}"));
        let (lsn, kind, value) = (column("lsn")?, column("kind")?, column("value")?);
        for row in &rows.rows {
            let value = row.get_bytes(value).unwrap_or_default();
            let lsn = row.get_lsn(lsn).context("a version without an LSN")?;
            output.value(&VersionView::new(version, lsn, row.get(kind).unwrap_or_default(), value))?;
        }
        Ok(())
    }
}

fn pg_version(rows: &pageserver::client::ResultSet) -> Option<PgVersion> {
    let row = rows.rows.iter().find(|row| row.get(0) == Some("pg_version"))?;
    row.get(1)?.parse().ok()
}

impl VersionView {
    fn new(version: Option<PgVersion>, lsn: Lsn, kind: &str, value: Bytes) -> Self {
        let mut view = VersionView { lsn, kind: kind.to_owned(), bytes: value.len(), record: None, note: "" };
        match (kind, value.first()) {
            ("image", None) => view.note = "zeroes",
            ("delta" | "init_delta", Some(&TAG_RECORD)) => {
                let raw = value.slice(1..);
                let record = version.and_then(|version| {
                    let record = DecodedRecord::decode(version, lsn, lsn, raw).ok()?;
                    Some(RecordView::new(version, &record))
                });
                view.note = if record.is_some() { "" } else { "a record that does not decode" };
                view.record = record;
            }
            ("delta" | "init_delta", Some(_)) => {
                view.note = "a change of the page server's own (SLRU or visibility map)"
            }
            _ => {}
        }
        view
    }
}

impl PageShow {
    fn run(&self, output: &mut Output) -> Result<()> {
        let file = File::open(&self.file).with_context(|| format!("open {}", self.file.display()))?;
        let len = file.metadata().context("stat the file")?.len();
        let offset = u64::from(self.page) * BLCKSZ as u64;
        ensure!(
            offset + BLCKSZ as u64 <= len,
            "the file has no such page. page=`{}`, pages=`{}`",
            self.page,
            len / BLCKSZ as u64
        );
        let mut page = [0; BLCKSZ];
        file.read_exact_at(&mut page, offset).with_context(|| format!("read {}", self.file.display()))?;
        let fork = self.fork.unwrap_or_else(|| fork_by_name(&self.file));
        page_dump::show(&page, fork, self.block.unwrap_or(self.page), self.format, output)
    }
}

fn fork_by_name(path: &std::path::Path) -> ForkNumber {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let stem = name.split('.').next().unwrap_or_default();
    let suffix = stem.split_once('_').map_or("main", |(_, suffix)| suffix);
    suffix.parse().unwrap_or(ForkNumber::Main)
}
