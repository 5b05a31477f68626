//! A timeline of a page server as the other side of a comparison.
//!
//! Lists come by commands, pages by a page stream per thread with many requests in flight.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use pageserver::client::{Client, PageStream, ReadAt, ResultSet, Row, quote};
use pageserver::page_service::command::DatabaseAddress;
use pageserver::page_service::command::object::ObjectClass;
use pageserver::page_service::pagestream::wire::Version;
use postgres_ffi::{BLCKSZ, BlockNumber, ForkNumber, Lsn, RelTag, SlruKind};

use super::source::{Reader, RelationMaps, Source};
use crate::connect::{ServerArgs, at_clause};

/// A timeline as of one LSN.
pub struct PageServerSource {
    server: ServerArgs,
    timeline: String,
    lsn: Lsn,
}

impl PageServerSource {
    /// Requires: the timeline has got as far as `lsn`.
    pub fn new(server: ServerArgs, timeline: String, lsn: Lsn) -> Self {
        PageServerSource { server, timeline, lsn }
    }

    fn list(&self, what: &str) -> Result<ResultSet> {
        self.rows(format!("{what} LIST {}{}", quote(&self.timeline), at_clause(Some(self.lsn))))
    }

    fn rows(&self, command: String) -> Result<ResultSet> {
        self.server.connect()?.query_one(&command).with_context(|| command)
    }

    /// Every object of a class: its address, `None` where there is but one, and its bytes.
    fn objects(&self, class: ObjectClass) -> Result<Vec<(Option<String>, Vec<u8>)>> {
        let at = at_clause(Some(self.lsn));
        let rows = self.rows(format!("OBJECT LIST {} CLASS {class}{at}", quote(&self.timeline)))?;
        let [address, value] = columns(&rows, ["address", "value"])?;
        let object = |row: &Row| {
            let bytes = row.get_bytes(value).context("the server's list has a value that is no bytea")?;
            Ok((row.get(address).map(str::to_owned), bytes.to_vec()))
        };
        rows.rows.iter().map(object).collect()
    }

    fn stream(&self) -> Result<PageStream> {
        let client: Client = self.server.connect()?;
        PageStream::start(client, Version::V3, None, &self.timeline).context("start a page stream")
    }
}

impl Source for PageServerSource {
    fn describe(&self) -> String {
        format!("timeline {} of {}", self.timeline, self.server.server)
    }

    fn lsn(&self) -> Lsn {
        self.lsn
    }

    fn relations(&self) -> Result<BTreeMap<(RelTag, ForkNumber), BlockNumber>> {
        let rows = self.list("RELATION")?;
        let [rel, fork, blocks] = columns(&rows, ["relation", "fork", "blocks"])?;
        let parse = |row: &Row| {
            let rel: RelTag = text(row, rel)?.parse()?;
            let fork: ForkNumber = text(row, fork)?.parse()?;
            Ok(((rel, fork), text(row, blocks)?.parse()?))
        };
        rows.rows.iter().map(parse).collect()
    }

    fn reader(&self) -> Result<Box<dyn Reader + '_>> {
        Ok(Box::new(StreamReader { stream: self.stream()?, read_at: ReadAt::lsn(self.lsn) }))
    }

    fn slru_segments(&self, kind: SlruKind) -> Result<BTreeMap<u32, Vec<u8>>> {
        let rows = self.list("SLRU")?;
        let [slru, segment, pages] = columns(&rows, ["slru", "segment", "pages"])?;
        let mut stream = self.stream()?;
        let mut segments = BTreeMap::new();
        for row in rows.rows.iter().filter(|row| row.get(slru) == Some(kind.directory())) {
            let segment_no: u32 = text(row, segment)?.parse()?;
            let page_count: usize = text(row, pages)?.parse()?;
            let bytes = stream.slru_segment(kind, segment_no, ReadAt::lsn(self.lsn))?;
            ensure!(
                bytes.len() == page_count * BLCKSZ,
                "an SLRU segment is not as long as the list says. slru=`{kind}`, segment=`{segment_no}`, pages=`{page_count}`, bytes=`{}`",
                bytes.len()
            );
            segments.insert(segment_no, bytes.to_vec());
        }
        Ok(segments)
    }

    fn relation_maps(&self) -> Result<RelationMaps> {
        let map = |(address, bytes): (Option<String>, Vec<u8>)| {
            let DatabaseAddress { spc_oid, db_oid } = present(address)?.parse()?;
            Ok(((spc_oid, db_oid), bytes))
        };
        self.objects(ObjectClass::RelationMap)?.into_iter().map(map).collect()
    }

    fn two_phase(&self) -> Result<BTreeMap<u64, Vec<u8>>> {
        let file = |(address, bytes): (Option<String>, Vec<u8>)| Ok((present(address)?.parse()?, bytes));
        self.objects(ObjectClass::TwoPhase)?.into_iter().map(file).collect()
    }

    fn checkpoint(&self) -> Result<Vec<u8>> {
        let (_, bytes) = self.objects(ObjectClass::Checkpoint)?.pop().context("the timeline has no checkpoint data")?;
        Ok(bytes)
    }
}

/// Numbers of the columns with these names.
fn columns<const N: usize>(rows: &ResultSet, names: [&str; N]) -> Result<[usize; N]> {
    let mut numbers = [0; N];
    for (number, name) in numbers.iter_mut().zip(names) {
        *number = rows.column(name).with_context(|| format!("the server's list has no column {name}"))?;
    }
    Ok(numbers)
}

fn text(row: &Row, column: usize) -> Result<&str> {
    row.get(column).context("the server's list has an empty field")
}

fn present(address: Option<String>) -> Result<String> {
    address.context("the server's list has an object without an address")
}

struct StreamReader {
    stream: PageStream,
    read_at: ReadAt,
}

impl Reader for StreamReader {
    fn read_blocks(
        &mut self,
        rel: RelTag,
        fork: ForkNumber,
        first_block: BlockNumber,
        buffer: &mut [u8],
    ) -> Result<()> {
        let pages = buffer.as_chunks_mut::<BLCKSZ>().0;
        let block_count = BlockNumber::try_from(pages.len()).context("too many blocks at once")?;
        let mut pages = pages.iter_mut();
        let mut block_no = first_block;
        let mut failed = None;
        let blocks = (first_block..first_block.saturating_add(block_count)).map(|block_no| (rel, fork, block_no));
        let read = self.stream.get_pages(blocks, self.read_at, |_, answer| {
            match (answer, pages.next()) {
                (Ok(page), Some(place)) => place.copy_from_slice(page),
                (Err(message), _) if failed.is_none() => failed = Some((block_no, message.to_owned())),
                _ => {}
            }
            block_no += 1;
        });
        read.with_context(|| {
            format!("read {rel} {fork} from block {first_block} on; the page server's log says more")
        })?;
        if let Some((block_no, message)) = failed {
            bail!("the page server gave no page for {rel} {fork} block {block_no}: {message}");
        }
        ensure!(pages.next().is_none(), "the page server gave too few pages for {rel} {fork}");
        Ok(())
    }
}
