//! A primary and a page server that follows it, and the comparison in the end.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postgres_ffi::{Lsn, PgVersion};
use tests::{Outcome, PageServer, PageServerBuilder, Postgres, PostgresBuilder, Stop, TestDir, wait_until};

pub const LIMIT: Duration = Duration::from_secs(60);
/// In the log of every server whose primary goes away.
const PRIMARY_LEFT: &str = "connection to the primary";

/// Dropped in this order.
pub struct Rig {
    pub pageserver: PageServer,
    pub primary: Postgres,
    pub dir: TestDir,
}

/// A primary with small segments, which many tests are about.
pub fn small_primary() -> PostgresBuilder {
    Postgres::builder(PgVersion::V15).wal_segment_mb(1).checksums(true)
}

impl Rig {
    /// The page server follows the primary as timeline `main`, and table `t` with 5,000 rows has arrived.
    pub fn start(name: &str, primary: PostgresBuilder, pageserver: PageServerBuilder) -> Result<Self> {
        let dir = TestDir::new(name)?;
        let primary = primary.start(&dir)?;
        let pageserver = pageserver.start(&dir)?;
        pageserver.import("main", &primary.conninfo())?;
        let mut rig = Rig { pageserver, primary, dir };
        rig.pageserver.expect_in_log(PRIMARY_LEFT);
        rig.primary.execute("CREATE TABLE t AS SELECT i, md5(i::text) AS v FROM generate_series(1, 5000) i")?;
        rig.catch_up()?;
        Ok(rig)
    }

    /// Writes WAL that changes many pages.
    pub fn write(&self) -> Result<()> {
        self.primary.execute("UPDATE t SET v = md5(v)")
    }

    pub fn last_record_lsn(&self) -> Result<Lsn> {
        Ok(self.pageserver.timeline("main", "last_record_lsn")?.parse()?)
    }

    /// Waits until all of the primary's WAL can be read; where that is.
    pub fn catch_up(&self) -> Result<Lsn> {
        let primary_lsn = self.primary.current_lsn()?;
        wait_until("the page server to catch up", LIMIT, || Ok(self.last_record_lsn()? >= primary_lsn))?;
        Ok(primary_lsn)
    }

    /// Waits until `property` of the timeline has `text` in it.
    pub fn wait_for(&self, property: &str, text: &str) -> Result<()> {
        let mut value = String::new();
        let waited = wait_until(&format!("`{text}` in {property}"), LIMIT, || {
            value = self.pageserver.timeline("main", property)?;
            Ok(value.contains(text))
        });
        waited.with_context(|| format!("{property} is `{value}`"))
    }

    /// Address of a page of `t`, and how many pages it has.
    pub fn table(&self) -> Result<(String, i64)> {
        let path = self.primary.query_text("SELECT '1663/5/' || pg_relation_filenode('t')")?;
        Ok((path, self.primary.query_text("SELECT pg_relation_size('t') / 8192")?.parse()?))
    }

    /// The page, as hexadecimal digits.
    pub fn page(&self, address: &str, at: Lsn) -> Result<String> {
        let rows = self.pageserver.query(&format!("PAGE GET main '{address}' AT '{at}'"))?;
        let page = rows.first().and_then(|row| row.get(2)).context("no page in the answer")?;
        ensure!(page.len() == 2 + 2 * 8192, "a page has 8192 bytes");
        Ok(page.clone())
    }

    /// What `pagectl compare` says of the stopped primary.
    pub fn compare(&self) -> Result<Outcome> {
        let data_dir = self.primary.data_dir().to_str().context("a path in UTF-8")?;
        self.pageserver.pagectl()?.outcome(&["compare", "--timeline", "main", "--datadir", data_dir])
    }

    /// Stops the primary once everything has arrived, and compares every page.
    pub fn stop_and_compare(&mut self) -> Result<()> {
        self.catch_up()?;
        self.primary.stop(Stop::Fast)?;
        let outcome = self.compare()?;
        ensure!(outcome.exit_code == 0, "{}{}", outcome.stdout, outcome.stderr);
        ensure!(outcome.stdout.trim_end().ends_with("mismatches: 0"), "{}", outcome.stdout);
        Ok(())
    }
}
