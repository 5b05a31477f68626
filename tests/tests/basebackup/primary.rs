//! A primary with everything that a base backup must bring, and a page server that follows it.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use pageserver::client::{Client, ClientConfig};
use postgres_ffi::{Lsn, PgVersion};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tests::workload::tpcb;
use tests::{PageServer, Postgres, PostgresBuilder, TestDir, wait_until};

/// Until the page server has what the primary has written.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(120);

/// A primary, and a page server with it as timeline `main`.
pub struct Followed {
    pub page_server: PageServer, // First: goes before its primary does.
    pub primary: Postgres,
    pub dir: TestDir,
}

impl Followed {
    /// Both, for `version`, with what [`fill`] makes before the import.
    pub fn start(name: &str, version: PgVersion, config: &str) -> Result<Self> {
        let dir = TestDir::new(&format!("{name}-{version}"))?;
        Self::start_with(Postgres::builder(version).checksums(true), dir, config)
    }

    pub fn start_with(builder: PostgresBuilder, dir: TestDir, config: &str) -> Result<Self> {
        let primary = builder.start(&dir)?;
        fill(&primary, &dir)?;
        let page_server = PageServer::builder().config(config)?.start(&dir)?;
        page_server.import("main", &primary.conninfo())?;
        Ok(Followed { page_server, primary, dir })
    }

    /// Waits until the page server can show what the primary has written by now; its LSN, the end of a record.
    pub fn catch_up(&self) -> Result<Lsn> {
        // The insert position may lie behind a page header, and the flushed one inside a record; the next one flushes this one.
        let lsn: Lsn = self.primary.query_text("SELECT pg_logical_emit_message(false, 'test', 'catch up')")?.parse()?;
        self.primary.execute("SELECT pg_logical_emit_message(true, 'test', 'flush')")?;
        wait_until("the page server to catch up", CATCH_UP_LIMIT, || {
            Ok(self.page_server.timeline("main", "last_record_lsn")?.parse::<Lsn>()? >= lsn)
        })?;
        Ok(lsn)
    }

    pub fn client(&self) -> Result<Client> {
        Ok(Client::connect(&ClientConfig::new(format!("127.0.0.1:{}", self.page_server.port())))?)
    }
}

/// Tables of all kinds, a tablespace, multixacts, subtransactions, an origin.
fn fill(primary: &Postgres, dir: &TestDir) -> Result<()> {
    let mut session = primary.connect()?;
    tpcb::init(&mut session, 1)?;
    let location = dir.create_subdir("elsewhere")?;
    session.batch_execute(&format!("CREATE TABLESPACE elsewhere LOCATION '{}'", location.display()))?;
    let empty = dir.create_subdir("empty")?;
    session.batch_execute(&format!("CREATE TABLESPACE empty LOCATION '{}'", empty.display()))?;
    let dropped = dir.create_subdir("dropped")?;
    session.batch_execute(&format!("CREATE TABLESPACE dropped LOCATION '{}'", dropped.display()))?;
    session.batch_execute("DROP TABLESPACE dropped")?;
    session.batch_execute(
        "CREATE TABLE marks (mark text, filler text);
         CREATE TABLE locked AS SELECT generate_series(1, 500) n;
         CREATE UNLOGGED TABLE unlogged AS SELECT generate_series(1, 1000) n;
         CREATE INDEX ON unlogged (n);
         CREATE TABLE far_away TABLESPACE elsewhere AS SELECT generate_series(1, 20000) n;
         CREATE INDEX ON far_away USING hash (n);
         CREATE TABLE documents AS SELECT n, string_to_array(repeat(n || ' ', 5), ' ') words, point(n, n) place,
             repeat(md5(n::text), 200) body FROM generate_series(1, 2000) n;
         CREATE INDEX ON documents USING gin (words);
         CREATE INDEX ON documents USING gist (place);
         CREATE INDEX ON documents USING brin (n);
         CREATE SEQUENCE numbers;
         SELECT nextval('numbers') FROM generate_series(1, 100)",
    )?;
    session.batch_execute("CREATE DATABASE another TABLESPACE elsewhere")?;
    primary.connect_to("another")?.batch_execute("CREATE TABLE inside AS SELECT generate_series(1, 3000) n")?;
    session.batch_execute("CREATE DATABASE second TEMPLATE template0")?;
    session.batch_execute(
        "SELECT pg_replication_origin_create('origin'), pg_replication_origin_advance('origin', '0/ABCD')",
    )?;
    multixacts(primary)?;
    subtransactions(primary)
}

/// Rows that two transactions hold at once.
pub fn multixacts(primary: &Postgres) -> Result<()> {
    let (mut first, mut second) = (primary.connect()?, primary.connect()?);
    first.batch_execute("BEGIN; SELECT count(*) FROM (SELECT n FROM locked FOR KEY SHARE) l")?;
    second.batch_execute("BEGIN; SELECT count(*) FROM (SELECT n FROM locked FOR SHARE) l; COMMIT")?;
    first.batch_execute("COMMIT")?;
    Ok(())
}

/// More subtransactions than a process has room for in shared memory, half of them rolled back.
pub fn subtransactions(primary: &Postgres) -> Result<()> {
    let sql = "DO $$ BEGIN FOR i IN 1..200 LOOP
                 BEGIN
                   INSERT INTO marks VALUES ('subtransaction', i);
                   IF i % 2 = 0 THEN RAISE EXCEPTION 'back'; END IF;
                 EXCEPTION WHEN raise_exception THEN NULL;
                 END;
               END LOOP; END $$";
    primary.execute(sql).context("subtransactions")
}

/// Some transactions of TPC-B.
pub fn transactions(primary: &Postgres, count: usize, seed: u64) -> Result<()> {
    let mut session = primary.connect()?;
    let mut rng = SmallRng::seed_from_u64(seed);
    for _ in 0..count {
        tpcb::transaction(&mut session, &mut rng, 1)?;
    }
    Ok(())
}

/// A backup of timeline `main` in a file, by `pagectl`.
pub fn backup(followed: &Followed, request_lsn: Option<Lsn>, options: &[&str]) -> Result<fs::File> {
    let path = followed.dir.path().join("backup.tar");
    let path_text = path.to_string_lossy().into_owned();
    let lsn_text = request_lsn.map(|lsn| lsn.to_string());
    let mut arguments = vec!["basebackup", "main", "--output", &path_text];
    if let Some(lsn) = &lsn_text {
        arguments.extend(["--lsn", lsn]);
    }
    arguments.extend(options);
    followed.page_server.pagectl()?.run(&arguments)?;
    let file = fs::File::open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}
