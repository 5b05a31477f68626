//! Records of an extension's own resource manager: the redo process applies them once `redo.preload_libraries` names the library, and without it
//! just the pages that have such records are an error.
//!
//! Method: a stock primary with `tests/custom_rmgr/`, whose function writes into a page of a table; its records stand in one chain with PostgreSQL's own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postgres_ffi::{Lsn, PgVersion};
use tests::{Outcome, PageServer, Postgres, Stop, TestDir, build_extension, wait_until};

const LIMIT: Duration = Duration::from_secs(60);
/// Bytes of the only column but the key of the first row: its tuple is the last one on the page, and the column the last of it.
const FIRST_VALUE_OFFSET: i32 = 8184;

struct Rig {
    pageserver: PageServer,
    primary: Postgres,
    library: PathBuf,
    _dir: TestDir,
}

impl Rig {
    /// Table `t` has 1,000 rows of two numbers; the function is there, and the page server knows nothing of its library.
    fn start(version: PgVersion) -> Result<Self> {
        let dir = TestDir::new("custom-rmgr")?;
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("custom_rmgr/custom_rmgr.c");
        let library = build_extension(version, &source, &dir)?;
        let preload = library.to_str().context("a path in UTF-8")?;
        let primary = Postgres::builder(version).setting("shared_preload_libraries", preload).start(&dir)?;
        primary.execute(&format!(
            "CREATE FUNCTION custom_rmgr_write(regclass, int, int, bytea) RETURNS void AS '{preload}' LANGUAGE c STRICT;
             CREATE TABLE t (i bigint, v bigint);
             INSERT INTO t SELECT i, i FROM generate_series(1, 1000) i"
        ))?;
        let mut pageserver = PageServer::builder().start(&dir)?;
        pageserver.expect_in_log("connection to the primary");
        pageserver.import("main", &primary.conninfo())?;
        Ok(Rig { pageserver, primary, library, _dir: dir })
    }

    /// Writes over a number of the first row of the table's page `block_no`.
    fn write_number(&self, block_no: u32, number: i64) -> Result<()> {
        let bytes: String = number.to_le_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        self.primary
            .execute(&format!("SELECT custom_rmgr_write('t', {block_no}, {FIRST_VALUE_OFFSET}, '\\x{bytes}')"))?;
        let found = self.primary.query_text(&format!("SELECT v FROM t WHERE ctid = '({block_no},1)'"))?;
        ensure!(found.parse::<i64>()? == number, "the function wrote elsewhere: {found}");
        Ok(())
    }

    fn catch_up(&self) -> Result<()> {
        let primary_lsn = self.primary.current_lsn()?;
        wait_until("the page server to catch up", LIMIT, || {
            Ok(self.pageserver.timeline("main", "last_record_lsn")?.parse::<Lsn>()? >= primary_lsn)
        })
    }

    /// What `pagectl page get` says of a page of `t` at the newest LSN.
    fn page(&self, block_no: u32) -> Result<Outcome> {
        let relation = self.primary.query_text("SELECT '1663/5/' || pg_relation_filenode('t')")?;
        self.pageserver.pagectl()?.outcome(&[
            "page",
            "get",
            "--timeline",
            "main",
            &format!("{relation}/main/{block_no}"),
        ])
    }

    fn restart_with_library(&mut self) -> Result<()> {
        self.pageserver.stop()?;
        self.pageserver.set_config(&format!("redo.preload_libraries = [{:?}]", self.library))?;
        self.pageserver.start()
    }
}

fn pages_with_records_of_an_extension(version: PgVersion) -> Result<()> {
    let mut rig = Rig::start(version)?;
    rig.primary.execute("CHECKPOINT")?;
    for (block_no, number) in [(0, 1), (0, i64::MIN), (2, 77), (2, 78)] {
        rig.write_number(block_no, number)?; // The first of each page comes with the whole page.
        rig.primary.execute(&format!("DELETE FROM t WHERE ctid = '({block_no},2)'"))?;
    }
    rig.write_number(0, i64::MAX)?;
    rig.catch_up()?;

    let refused = rig.page(0)?;
    ensure!(refused.exit_code != 0 && refused.stderr.contains("redo.preload_libraries"), "{refused:?}");
    let other = rig.page(1)?;
    ensure!(other.exit_code == 0, "a page without such records: {other:?}");

    rig.restart_with_library()?;
    let page = rig.page(0)?;
    ensure!(page.exit_code == 0, "{page:?}");
    ensure!(rig.pageserver.engine_count("left to the process")? > 0);
    rig.write_number(1, 79)?;
    rig.catch_up()?;
    rig.primary.stop(Stop::Fast)?;
    let data_dir = rig.primary.data_dir().to_str().context("a path in UTF-8")?;
    let compared = rig.pageserver.pagectl()?.outcome(&["compare", "--timeline", "main", "--datadir", data_dir])?;
    ensure!(compared.stdout.trim_end().ends_with("mismatches: 0"), "{compared:?}");
    ensure!(rig.pageserver.engine_count("left to the process")? >= 2, "pages 0 and 2; that of 1 came whole");
    Ok(())
}

#[test]
fn of_15() -> Result<()> {
    pages_with_records_of_an_extension(PgVersion::V15)
}

#[test]
fn of_17() -> Result<()> {
    pages_with_records_of_an_extension(PgVersion::V17)
}

#[test]
fn of_18() -> Result<()> {
    pages_with_records_of_an_extension(PgVersion::V18)
}
