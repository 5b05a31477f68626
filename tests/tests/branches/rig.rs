//! A primary with some of everything, a page server that follows it, and everything that a timeline shows at an LSN.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use pageserver::client::{Client, ClientConfig, PageStream, ReadAt};
use pageserver::page_service::pagestream::wire::Version;
use postgres_ffi::{ForkNumber, Lsn, PgVersion, RelTag, SlruKind};
use tests::workload::tpcb;
use tests::{PageServer, Postgres, TestDir, wait_until};

pub const LIMIT: Duration = Duration::from_secs(120);
/// In the log of a page server whose primary goes away, or that is told to follow another one.
const EXPECTED: &[&str] = &["connection to the primary", "a replication slot stays", "WAL files end before"];

/// Versions that are here; the oldest, the one that most people run, the newest.
pub fn versions() -> Vec<PgVersion> {
    let wanted = [PgVersion::V14, PgVersion::V15, PgVersion::V18];
    wanted.into_iter().filter(|version| Postgres::is_installed(*version)).collect()
}

/// Dropped in this order.
pub struct Rig {
    pub server: PageServer,
    pub primary: Postgres,
    pub dir: TestDir,
}

impl Rig {
    /// The page server follows the primary as `main`.
    pub fn start(name: &str, version: PgVersion) -> Result<Self> {
        let dir = TestDir::new(name)?;
        let primary = Postgres::builder(version).checksums(true).wal_segment_mb(1).start(&dir)?;
        tpcb::init(&mut primary.connect()?, 1)?;
        let mut server = PageServer::builder().config("store.layer_mib = 8\nwal.keep_mib = 64")?.start(&dir)?;
        EXPECTED.iter().for_each(|text| server.expect_in_log(text));
        server.import("main", &primary.conninfo())?;
        Ok(Rig { server, primary, dir })
    }

    pub fn lsn_of(&self, timeline: &str, property: &str) -> Result<Lsn> {
        Ok(self.server.timeline(timeline, property)?.parse()?)
    }

    /// Waits until all of the primary's WAL can be read on `main`; where that is.
    pub fn catch_up(&self) -> Result<Lsn> {
        // Flushed at once, so that it comes.
        self.primary.execute("SELECT txid_current(); SELECT pg_logical_emit_message(true, 'test', 'flush')")?;
        let primary_lsn: Lsn = self.primary.query_text("SELECT pg_current_wal_flush_lsn()")?.parse()?;
        wait_until("main to catch up", LIMIT, || Ok(self.lsn_of("main", "last_record_lsn")? >= primary_lsn))?;
        Ok(primary_lsn)
    }

    /// Everything that `timeline` shows at `lsn`: hashes by relation fork, SLRU segment, object.
    pub fn everything(&self, timeline: &str, lsn: Lsn) -> Result<BTreeMap<String, u64>> {
        let mut client = self.client()?;
        let mut shown = BTreeMap::new();
        let rows = client.query_one(&format!("OBJECT LIST {timeline} AT '{lsn}'"))?;
        for row in &rows.rows {
            let name = format!("{} {}", row.get(0).unwrap_or_default(), row.get(1).unwrap_or_default());
            shown.insert(name, hash(&row.get_bytes(3).unwrap_or_default()));
        }
        let relations = client.query_one(&format!("RELATION LIST {timeline} AT '{lsn}'"))?;
        let slrus = client.query_one(&format!("SLRU LIST {timeline} AT '{lsn}'"))?;
        let mut blocks = Vec::new();
        for row in &relations.rows {
            let [rel, fork, count] = [0, 1, 2].map(|column| row.get(column).unwrap_or_default());
            let (rel, fork): (RelTag, ForkNumber) = (rel.parse()?, fork.parse()?);
            let count: u32 = count.parse()?;
            shown.insert(format!("{rel} {fork} blocks"), count.into());
            blocks.extend((0..count).map(|block_no| (rel, fork, block_no)));
        }
        let lsns = ReadAt { request_lsn: lsn, not_modified_since: lsn };
        let mut stream = PageStream::start(client, Version::V3, None, timeline)?;
        let mut failed = None;
        let mut place = blocks.iter();
        stream.get_pages(blocks.iter().copied(), lsns, |_, page| {
            let (rel, fork, block_no) = place.next().expect("one answer each");
            match page {
                Ok(page) => drop(shown.insert(format!("{rel} {fork} {block_no:06}"), hash(&page[..]))),
                Err(text) => failed = Some(format!("{rel} {fork} {block_no}: {text}")),
            }
        })?;
        if let Some(failed) = failed {
            bail!("{timeline} at {lsn}: {failed}");
        }
        for row in &slrus.rows {
            let [kind, segment] = [0, 1].map(|column| row.get(column).unwrap_or_default());
            let kind = SlruKind::ALL.into_iter().find(|slru| slru.directory() == kind).context("an SLRU")?;
            let bytes = stream.slru_segment(kind, segment.parse()?, lsns)?;
            shown.insert(format!("{kind} {segment}"), hash(&bytes));
        }
        Ok(shown)
    }

    /// Errors: the two show something else at `lsn`; what.
    pub fn check_same(&self, one: &str, other: &str, lsn: Lsn) -> Result<()> {
        let (one_shows, other_shows) = (self.everything(one, lsn)?, self.everything(other, lsn)?);
        check_equal(&one_shows, &other_shows).with_context(|| format!("{one} and {other} at {lsn}"))
    }

    pub fn client(&self) -> Result<Client> {
        let mut config = ClientConfig::new(format!("127.0.0.1:{}", self.server.port()));
        config.application_name = "test".to_owned();
        Ok(Client::connect(&config)?)
    }

    /// Rows and notices of one command.
    pub fn change(&self, command: &str) -> Result<(Vec<String>, Vec<String>)> {
        let mut notices = Vec::new();
        let results = self.client()?.query_with_notices(command, &mut |notice| notices.push(notice.to_owned()))?;
        let row = results.first().and_then(|result| result.rows.first()).context("no row")?;
        Ok((row.values().iter().map(|value| value.clone().unwrap_or_default()).collect(), notices))
    }

    /// SQLSTATE and text of a refusal.
    pub fn refusal(&self, command: &str) -> Result<(String, String)> {
        match self.client()?.query(command) {
            Ok(_) => bail!("`{command}` was not refused"),
            Err(pageserver::client::ClientError::Server(error)) => Ok((error.sqlstate.clone(), error.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    pub fn slots(&self) -> Result<String> {
        self.primary.query_text("SELECT count(*) FROM pg_replication_slots")
    }
}

/// Errors: what is different.
pub fn check_equal(one: &BTreeMap<String, u64>, other: &BTreeMap<String, u64>) -> Result<()> {
    let names: std::collections::BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    let different: Vec<&&String> = names.iter().filter(|name| one.get(**name) != other.get(**name)).collect();
    if different.is_empty() && one.len() > 500 {
        return Ok(());
    }
    bail!("{} of {} are different: {:?}", different.len(), names.len(), &different[..different.len().min(10)]);
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}
