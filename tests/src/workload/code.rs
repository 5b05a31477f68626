//! Workloads that SQL alone cannot express.

use std::io::Write;

use anyhow::{Context, Result};
use postgres::error::SqlState;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::script::Script;
use super::{Outcome, Run, tpcb};
use crate::postgres_server::DATABASE_IS_VALID;

/// COPY: into new and into used tables, in a transaction that made the table, frozen, and one that fails half way.
pub fn copy(run: &mut Run<'_>) -> Result<Outcome> {
    let _busy = run.target().enter();
    let mut client = run.connect(0.5)?;
    client.batch_execute("CREATE TABLE copied (a int, b text); CREATE INDEX copied_a ON copied (a)")?;
    copy_rows(&mut client, "COPY copied FROM STDIN", 20_000)?;
    client.batch_execute("VACUUM copied")?;
    copy_rows(&mut client, "COPY copied FROM STDIN", 5_000)?;
    client.batch_execute("DELETE FROM copied WHERE a % 10 = 0")?;
    client.batch_execute("VACUUM copied")?;
    client.batch_execute("BEGIN; CREATE TABLE frozen (a int, b text)")?;
    copy_rows(&mut client, "COPY frozen FROM STDIN WITH (FREEZE)", 10_000)?;
    client.batch_execute("COMMIT")?;
    client.batch_execute("DELETE FROM frozen WHERE a % 100 = 1; UPDATE frozen SET b = 'q' WHERE a % 100 = 2")?;
    let mut writer = client.copy_in("COPY copied FROM STDIN")?;
    writer.write_all("1\tgood\n".repeat(3_000).as_bytes())?;
    writer.write_all(b"not a number\tbad\n")?;
    let error = writer.finish().err().context("a bad row was taken")?;
    anyhow::ensure!(error.code() == Some(&SqlState::INVALID_TEXT_REPRESENTATION), "{error}");
    client.batch_execute("VACUUM copied")?;
    Ok(Outcome::Done)
}

fn copy_rows(client: &mut postgres::Client, command: &str, count: u32) -> Result<()> {
    let mut writer = client.copy_in(command).with_context(|| command.to_owned())?;
    for row in 0..count {
        writeln!(writer, "{row}\trow number {row} of {count}")?;
    }
    anyhow::ensure!(writer.finish()? == u64::from(count), "rows were lost on the way");
    Ok(())
}

/// Sessions at once on the same few rows: lockers of every strength, updates, rollbacks, waits and deadlocks.
pub fn lockers(run: &mut Run<'_>) -> Result<Outcome> {
    const SESSIONS: u64 = 6;
    const ROUNDS: u32 = 60;
    let mut client = run.connect(0.5)?;
    client.batch_execute("CREATE TABLE rows_at_once (id int PRIMARY KEY, n int, pad text)")?;
    client.batch_execute("INSERT INTO rows_at_once SELECT i, 0, repeat('r', 60) FROM generate_series(1, 60) i")?;
    let seeds: Vec<u64> = (0..SESSIONS).map(|_| run.rng.random()).collect();
    let run = &*run;
    std::thread::scope(|scope| {
        let threads: Vec<_> = seeds.iter().map(|seed| scope.spawn(|| locker(run, *seed, ROUNDS))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("a locker does not panic"))
    })?;
    client.batch_execute("VACUUM rows_at_once")?;
    Ok(Outcome::Done)
}

fn locker(run: &Run<'_>, seed: u64, rounds: u32) -> Result<()> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut client = run.connect(0.5)?;
    client.batch_execute("SET deadlock_timeout = '50ms'")?;
    for _ in 0..rounds {
        let _busy = run.target().enter();
        if let Err(error) = locker_transaction(&mut client, &mut rng) {
            // The victim of a deadlock starts again; that is what this workload is for.
            if error.code() != Some(&SqlState::T_R_DEADLOCK_DETECTED) && !met_an_ending_updater(&error) {
                return Err(error.into());
            }
            client.batch_execute("ROLLBACK")?;
        }
    }
    Ok(())
}

/// PostgreSQL refused an UPDATE because of a race of its own, and has changed nothing.
///
/// An updater that rolls back is aborted in pg_xact before it leaves the list of running transactions. In between, another UPDATE of a row with a
/// second locker does not wait, since the updater has aborted (`DoesMultiXactIdConflict`), but takes it over into the new multixact, since it is
/// running (`MultiXactIdExpand`); `MultiXactIdCreateFromMembers` then refuses two updaters. PostgreSQL 17 and 18 do so each time if a debugger
/// stops the rollback at `ProcArrayEndTransaction`. (`src/backend/access/heap/heapam.c`, `src/backend/access/transam/multixact.c`.)
fn met_an_ending_updater(error: &postgres::Error) -> bool {
    error.as_db_error().is_some_and(|error| {
        *error.code() == SqlState::INTERNAL_ERROR
            && error.message().starts_with("new multixact has more than one updating member")
    })
}

fn locker_transaction(client: &mut postgres::Client, rng: &mut SmallRng) -> Result<(), postgres::Error> {
    client.batch_execute("BEGIN")?;
    for step in 0..rng.random_range(1..4) {
        if rng.random_bool(0.3) {
            client.batch_execute(&format!("SAVEPOINT s{step}"))?;
        }
        let low = rng.random_range(1..50);
        let rows = format!("id BETWEEN {low} AND {}", low + rng.random_range(0..10));
        let strengths = ["FOR KEY SHARE", "FOR SHARE", "FOR NO KEY UPDATE", "FOR UPDATE"];
        client.batch_execute(&match rng.random_range(0..6) {
            4 => format!("UPDATE rows_at_once SET n = n + 1 WHERE {rows}"),
            5 => format!("UPDATE rows_at_once SET id = id WHERE {rows}"),
            strength => format!("SELECT 1 FROM rows_at_once WHERE {rows} {}", strengths[strength]),
        })?;
    }
    client.batch_execute(if rng.random_bool(0.25) { "ROLLBACK" } else { "COMMIT" })
}

/// Full-page images in every compression that this server was built with, and without a hole.
pub fn images(run: &mut Run<'_>) -> Result<Outcome> {
    let mut client = run.connect(0.5)?;
    client.batch_execute("CREATE TABLE pages (id int PRIMARY KEY, v text)")?;
    client.batch_execute("INSERT INTO pages SELECT i, repeat(md5(i::text), 3) FROM generate_series(1, 4000) i")?;
    let mut refused = Vec::new();
    for compression in ["off", "on", "pglz", "lz4", "zstd"] {
        let _busy = run.target().enter();
        match client.batch_execute(&format!("SET wal_compression = {compression}")) {
            Err(error) if error.code() == Some(&SqlState::INVALID_PARAMETER_VALUE) => refused.push(compression),
            set => {
                set?;
                client.batch_execute("CHECKPOINT")?;
                client.batch_execute("UPDATE pages SET v = v || 'x' WHERE id % 20 = 0")?;
                client.batch_execute(&format!(
                    "CREATE INDEX pages_{compression} ON pages USING gist ((point(id, id)))"
                ))?;
                client.batch_execute(&format!("CREATE TABLE copy_{compression} AS SELECT * FROM pages"))?;
                client.batch_execute(&format!("CREATE INDEX ON copy_{compression} (v)"))?;
            }
        }
    }
    if !refused.is_empty() {
        println!("images: this server was built without compression {}", refused.join(", "));
    }
    Ok(Outcome::Done)
}

/// TPC-B on tables of its own, with a session that changes its mind.
pub fn transactions(run: &mut Run<'_>) -> Result<Outcome> {
    let mut client = run.connect(0.5)?;
    let target = run.target().clone();
    {
        let _busy = target.enter();
        tpcb::init(&mut client, 1)?;
    }
    for _ in 0..800 {
        let _busy = target.enter();
        tpcb::transaction(&mut client, &mut run.rng, 1)?;
    }
    Ok(Outcome::Done)
}

/// Burns ids as `slru.sql` says, then freezes every database, so that the files which nobody needs any more are cut off.
pub fn slru(run: &mut Run<'_>) -> Result<Outcome> {
    let burnt = Script::parse(include_str!("../../workloads/slru.sql"))?.run(run)?;
    if burnt != Outcome::Done {
        return Ok(burnt);
    }
    let mut client = run.connect(0.5)?;
    let _busy = run.target().enter();
    let databases = format!("SELECT datname, datallowconn FROM pg_database WHERE {DATABASE_IS_VALID}");
    for row in client.query(&databases, &[])? {
        let (database, allows_connections): (String, bool) = (row.get(0), row.get(1));
        let quoted = format!("\"{}\"", database.replace('"', "\"\""));
        client.batch_execute(&format!("ALTER DATABASE {quoted} ALLOW_CONNECTIONS true"))?;
        freeze(run, &database).with_context(|| format!("freeze {database}"))?;
        client.batch_execute(&format!("ALTER DATABASE {quoted} ALLOW_CONNECTIONS {allows_connections}"))?;
    }
    // The last one cuts: only now is no database older.
    freeze(run, "postgres")?;
    client.batch_execute("CHECKPOINT")?;
    Ok(Outcome::Done)
}

fn freeze(run: &Run<'_>, database: &str) -> Result<()> {
    let mut client = run.connect_to(database)?;
    for setting in ["freeze_min_age", "freeze_table_age", "multixact_freeze_min_age", "multixact_freeze_table_age"] {
        client.batch_execute(&format!("SET vacuum_{setting} = 0"))?;
    }
    client.batch_execute("VACUUM (FREEZE)")?;
    client.close()?;
    Ok(())
}
