//! PostgreSQL's regression suite on a server of ours, for the WAL that it makes.
//!
//! What its tests print does not matter here, so the suite of an older version does as well: statements that the server does not know fail, and the rest
//! runs. Without the suite's own C library the few functions that it brings are missing. A test may crash the server, which then starts anew.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postgres_ffi::PgVersion;

use crate::process::{Process, server_command};
use crate::{Postgres, TestDir, wait_until};

/// Longer than it takes on a slow machine.
const LIMIT: Duration = Duration::from_secs(3600);

/// Runs the newest suite that is not newer than the server (for 14, that of 15); what ran, in words.
pub fn run(server: &Postgres, dir: &TestDir, suites: &Path) -> Result<String> {
    let suite_version = if server.version() <= PgVersion::V17 { PgVersion::V15 } else { PgVersion::V18 };
    let suite = suites.join(suite_version.to_string());
    ensure!(
        suite.join("parallel_schedule").exists(),
        "no regression suite in {}: run scripts/setup --regression",
        suite.display()
    );
    let out = dir.create_subdir("regression")?;
    let program = pg_regress(server)?;
    let log = out.join("pg_regress.log");
    File::create(&log)?;
    let mut command = server_command(&program, &out)?;
    command.arg("--inputdir").arg(&suite).arg("--outputdir").arg(&out).arg("--bindir=");
    command.args(["--host=127.0.0.1", "--max-connections=8", "--dbname=regression"]);
    command.arg(format!("--port={}", server.port())).arg("--user=postgres");
    command.arg("--schedule").arg(write_schedule(&suite, &out)?);
    let mut process = Process::start("pg_regress", &mut command, &log)?;
    process.wait_for_exit(LIMIT).context("pg_regress")?; // It fails: not all output is as expected.
    wait_until("the server to accept connections", Duration::from_secs(60), || Ok(server.connect().is_ok()))?;
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    // `ok 1 - name` from 16, `test name ... ok` before.
    let is_test = |line: &&str| line.contains(" ms") && (line.contains("ok") || line.contains("FAILED"));
    let ran = text.lines().filter(is_test).count();
    ensure!(ran > 100, "pg_regress ran {ran} tests:\n{}", process.log_tail());
    Ok(format!("{ran} tests of the regression suite of {suite_version}"))
}

/// The suite's schedule without the tests of psql itself: they write no WAL of interest, and a psql of another version may wait for ever in them.
fn write_schedule(suite: &Path, out: &Path) -> Result<std::path::PathBuf> {
    let text = fs::read_to_string(suite.join("parallel_schedule"))?;
    let is_kept = |word: &&str| !word.starts_with("psql");
    // Up to 15 there are lines that say which failures count; later versions refuse them.
    let tests = text.lines().filter(|line| line.starts_with("test:"));
    let lines = tests.map(|line| line.split(' ').filter(is_kept).collect::<Vec<_>>().join(" ") + "\n");
    let path = out.join("schedule");
    fs::write(&path, lines.collect::<String>())?;
    Ok(path)
}

fn pg_regress(server: &Postgres) -> Result<std::path::PathBuf> {
    let lib = server.bin_dir().parent().context("a directory above that of the programs")?.join("lib");
    let places = ["pgxs/src/test/regress/pg_regress", "postgresql/pgxs/src/test/regress/pg_regress"];
    let found = places.iter().map(|place| lib.join(place)).find(|path| path.exists());
    found.with_context(|| format!("no pg_regress below {}", lib.display()))
}
