//! A server that started from a base backup, and what must be true of it.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use postgres_ffi::{Lsn, PgVersion};
use tests::process::run;
use tests::{Postgres, Stop};

/// Debian's programs: the only ones at hand, for servers of all versions.
pub const CLIENT_PROGRAMS: &str = "/usr/lib/postgresql/15/bin";
/// The first PostgreSQL timeline that the page server gives out.
pub const TIMELINE_FIRST: u32 = 0x1000;

/// No line of its log says that something is wrong, and it went the way of a crash recovery with nothing to replay.
pub fn check_start_log(clone: &Postgres) -> Result<()> {
    let log = clone.log()?;
    let alarming = |line: &&str| ["WARNING:", "ERROR:", "FATAL:", "PANIC:"].iter().any(|level| line.contains(level));
    // Sessions that come too early or are left open when it ends: that is the test.
    const OURS: &[&str] = &[
        "the database system is starting up",
        "the database system is not yet accepting connections",
        "terminating connection due to administrator command",
        "terminating walreceiver process due to administrator command",
        // PostgreSQL's answer to a template that is in use, to a stop, and to a lock that somebody waits for.
        "terminating autovacuum process due to administrator command",
        "canceling autovacuum task",
    ];
    let is_ours = |line: &&str| OURS.iter().any(|text| line.contains(text));
    let lines: Vec<&str> = log.lines().filter(alarming).filter(|line| !is_ours(line)).collect();
    ensure!(lines.is_empty(), "in the log: {lines:#?}\n{log}");
    Ok(())
}

/// Ran its first start as it should.
pub fn check_first_start(clone: &Postgres) -> Result<()> {
    check_start_log(clone)?;
    ensure!(clone.log()?.contains("redo is not required"), "{}", clone.log()?);
    Ok(())
}

/// It writes PostgreSQL timeline 4096 or above, whose history says where it began.
pub fn check_timeline(clone: &Postgres) -> Result<u32> {
    let timeline_id: u32 = clone.query_text("SELECT timeline_id FROM pg_control_checkpoint()")?.parse()?;
    ensure!(timeline_id >= TIMELINE_FIRST, "timeline {timeline_id}");
    let history = std::fs::read_to_string(clone.data_dir().join(format!("pg_wal/{timeline_id:08X}.history")))?;
    let last = history.lines().last().context("a line")?;
    ensure!(last.starts_with("1\t"), "{history}");
    Ok(timeline_id)
}

/// Its newest history file: timeline and the LSN where that began.
fn newest_history(clone: &Postgres) -> Result<(u32, Lsn)> {
    let mut newest = None;
    for entry in std::fs::read_dir(clone.data_dir().join("pg_wal"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some(digits) = name.strip_suffix(".history") {
            newest = newest.max(Some(u32::from_str_radix(digits, 16)?));
        }
    }
    let timeline_id = newest.context("a history file")?;
    let text = std::fs::read_to_string(clone.data_dir().join(format!("pg_wal/{timeline_id:08X}.history")))?;
    let line = text.lines().last().context("a line")?;
    Ok((timeline_id, line.split('\t').nth(1).context("an LSN")?.parse()?))
}

/// The timeline that its history file names it.
pub fn timeline_of_history(clone: &Postgres) -> Result<u32> {
    Ok(newest_history(clone)?.0)
}

/// Where its history says that it began.
pub fn branch_lsn(clone: &Postgres) -> Result<Lsn> {
    Ok(newest_history(clone)?.1)
}

/// Writes everywhere, and checks what was written.
pub fn check_writable(clone: &Postgres) -> Result<()> {
    super::primary::multixacts(clone)?;
    super::primary::subtransactions(clone)?;
    super::primary::transactions(clone, 50, 7)?;
    clone.execute(
        "INSERT INTO far_away SELECT generate_series(1, 5000);
         UPDATE documents SET words = words || 'new'::text WHERE n % 3 = 0;
         CREATE TABLE made_here TABLESPACE elsewhere AS SELECT generate_series(1, 100) n;
         CREATE TABLE first_there TABLESPACE empty AS SELECT generate_series(1, 100) n;
         SELECT nextval('numbers')",
    )?;
    clone.connect()?.batch_execute("VACUUM (FREEZE, ANALYZE)")?;
    clone.connect()?.batch_execute("CREATE DATABASE made_here TEMPLATE another")?;
    let rows = |name: &str| -> Result<i64> {
        Ok(clone.connect_to(name)?.query_one("SELECT count(*) FROM inside", &[])?.get(0))
    };
    let links = std::fs::read_dir(clone.data_dir().join("pg_tblspc"))?.count();
    ensure!(links == 2, "{links} tablespaces");
    ensure!(rows("made_here")? == 3000 && rows("another")? == 3000);
    Ok(())
}

/// An unlogged table starts empty and works.
pub fn check_unlogged(clone: &Postgres) -> Result<()> {
    let count = || -> Result<i64> { Ok(clone.connect()?.query_one("SELECT count(*) FROM unlogged", &[])?.get(0)) };
    ensure!(count()? == 0, "an unlogged table has rows");
    clone.execute("INSERT INTO unlogged SELECT generate_series(1, 100)")?;
    ensure!(count()? == 100);
    Ok(())
}

/// PostgreSQL's own check of tables and indexes.
pub fn check_relations(clone: &Postgres) -> Result<()> {
    let mut command = Command::new(Path::new(CLIENT_PROGRAMS).join("pg_amcheck"));
    command.args(["--all", "--heapallindexed", "--parent-check", "--rootdescend", "--install-missing"]);
    command.args(["--host", "127.0.0.1", "--username", "postgres", "--port", &clone.port().to_string()]);
    let said = run(&mut command)?;
    ensure!(said.is_empty(), "pg_amcheck says: {said}");
    Ok(())
}

/// Checksums of all pages on disk. The only pg_checksums at hand is that of 15.
pub fn check_checksums(clone: &mut Postgres) -> Result<()> {
    if clone.version() != PgVersion::V15 {
        return Ok(());
    }
    clone.stop(Stop::Fast)?;
    let mut command = Command::new(Path::new(CLIENT_PROGRAMS).join("pg_checksums"));
    let said = run(command.arg("--check").arg("-D").arg(clone.data_dir()))?;
    ensure!(said.contains("Bad checksums:  0"), "{said}");
    clone.start()
}

/// A crash, and all is still there.
pub fn check_crash(clone: &mut Postgres) -> Result<()> {
    clone.execute("INSERT INTO marks VALUES ('before the crash', '')")?;
    let marks = |clone: &Postgres| clone.query_text("SELECT count(*) FROM marks WHERE mark = 'before the crash'");
    let before = marks(clone)?;
    clone.kill()?;
    clone.start()?;
    ensure!(marks(clone)? == before);
    check_start_log(clone)
}

/// `pg_waldump` goes from the start of the segment in front of the backup's LSN into the new timeline; what it prints. 15 alone.
pub fn waldump(clone: &Postgres, branch_lsn: Lsn, timeline_id: u32, segment_bytes: u64) -> Result<String> {
    let segment_no = branch_lsn.segment_no(segment_bytes);
    let start = Lsn::new(segment_no * segment_bytes);
    let per_4_gib = (1 << 32) / segment_bytes;
    let name = format!("{timeline_id:08X}{:08X}{:08X}", segment_no / per_4_gib, segment_no % per_4_gib);
    let path = clone.data_dir().join("pg_wal").join(name);
    let output = Command::new(Path::new(CLIENT_PROGRAMS).join("pg_waldump"))
        .arg("--path")
        .arg(clone.data_dir().join("pg_wal"))
        .args(["--timeline", &timeline_id.to_string(), "--start", &start.to_string()])
        .output()
        .with_context(|| format!("pg_waldump of {}", path.display()))?;
    // It ends with an error where the log ends: zeroes.
    Ok(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}
