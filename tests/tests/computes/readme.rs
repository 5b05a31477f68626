//! What the README tells to type runs as it is written there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use postgres_ffi::PgVersion;
use tests::{Postgres, TestDir, built_program, free_port};

/// The block of the README that begins behind this heading.
fn block(heading: &str) -> Result<String> {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md"))?;
    let after = readme.split_once(heading).and_then(|(_, after)| after.split_once("```\n"));
    let block = after.and_then(|(_, after)| after.split_once("\n```")).map(|(block, _)| block.to_owned());
    block.with_context(|| format!("no block of shell behind `{heading}` in the README"))
}

/// What `script` prints, run by bash in `dir`, where the server's address is `address`. Errors: a line of it fails.
fn run(dir: &TestDir, address: &str, script: &str) -> Result<String> {
    let programs = built_program("pageserver")?.parent().map(PathBuf::from).context("a directory of programs")?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths([programs].into_iter().chain(std::env::split_paths(&path)))?;
    let file = dir.path().join("script.sh");
    fs::write(&file, format!("set -euo pipefail\n{script}\n"))?;
    let mut bash = Command::new("bash");
    bash.arg(&file).current_dir(dir.path()).stdin(Stdio::null());
    bash.env("PATH", path).env("PAGESERVER_LISTEN", address).env("PAGECTL_SERVER", address);
    let output = bash.output().context("run bash")?;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{}\n{stdout}\n{stderr}", output.status);
    Ok(stdout.into_owned())
}

fn free_address() -> Result<String> {
    Ok(format!("127.0.0.1:{}", free_port()?))
}

#[test]
fn the_story_of_the_readme_is_true() -> Result<()> {
    let dir = TestDir::new("readme")?;
    // Whatever happens, what the story started in the background ends with it.
    let ends = "trap 'pagectl compute destroy dev --confirm --force; kill $(jobs -p)' EXIT";
    let story = block("## Clone it")?;
    let printed = run(&dir, &free_address()?, &format!("{ends}\n{story}\ntrap - EXIT"))?;
    // What the clone shows, and the end.
    ensure!(
        printed.contains("100000") && printed.contains("rescue destroyed") && printed.contains("dev destroyed"),
        "{printed}"
    );
    Ok(())
}

#[test]
fn the_use_of_the_readme_is_true() -> Result<()> {
    let dir = TestDir::new("readme-use")?;
    let primary = Postgres::builder(PgVersion::V15).start(&dir)?;
    primary.execute("CREATE ROLE replicator LOGIN REPLICATION")?;
    primary.execute("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")?;
    let table = primary.query_text("SELECT pg_relation_filenode('t')")?;
    let (address, port) = (free_address()?, primary.port().to_string());
    let ask = |sql: &str| format!("$(psql 'host=127.0.0.1 port={port} user=postgres dbname=postgres' -Atc \"{sql}\")");
    let written_later = format!("ignored={}", ask("INSERT INTO t VALUES (0); CHECKPOINT"));
    // What stands in the README is somebody's; here it is ours.
    let mut script = block("## Use it")?;
    for (theirs, ours) in [
        ("/srv/pages", dir.path().join("pages").display().to_string()),
        ("port=6400", format!("port={}", address.rsplit(':').next().unwrap_or_default())),
        ("port=5432", format!("port={port}")),
        ("/16384/", format!("/{table}/")),
        ("2026-11-25 14:32:00", ask("SELECT now()")),
        ("0/3000060", ask("SELECT pg_current_wal_flush_lsn()")),
        ("pagectl lsn", format!("{written_later}\npagectl lsn")),
    ] {
        ensure!(script.contains(theirs), "`{theirs}` stands there no more: {script}");
        script = script.replace(theirs, &ours);
    }
    let printed = run(&dir, &address, &format!("trap 'kill $(jobs -p)' EXIT\n{script}"))?;
    for line in ["active", "nothing is wrong"] {
        ensure!(printed.contains(line), "no `{line}` in {printed}");
    }
    Ok(())
}
