//! A clone of a database by a copy from the page server, beside `pg_basebackup` from the primary with recovery, in the same run.
//!
//! For each scale of pgbench a primary is filled and imported, and has some load. Then, several times in turn:
//! - *now*: `pagectl compute create` on a branch of its last record, until the first query is answered;
//! - *past*: the same as of an LSN before the load;
//! - *pg_basebackup*: a base backup of the primary with its WAL, a start with recovery, until the first query is answered. It has no past.
//!
//! All of them make the copy durable before the first query, as they do by default; *now, --no-sync* does not.
//! Needs PostgreSQL 15 with `pgbench` and `pg_basebackup` (`scripts/setup`).

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use benches::pgbench;
use clap::Parser;
use postgres_ffi::{Lsn, PgVersion};
use tests::process::{run, server_command};
use tests::{Computes, PageServer, Postgres, TestDir, wait_until};

const LIMIT: Duration = Duration::from_secs(1800);
const QUERY: &str = "SELECT abalance FROM pgbench_accounts WHERE aid = 1";

/// Measure the time to the first query of copied clones.
#[derive(Parser)]
struct Arguments {
    /// pgbench scales, one unit is 15 MB
    #[arg(long, value_delimiter = ',', default_value = "1,10,100")]
    scales: Vec<u32>,
    /// pgbench transactions after the import, per unit of scale
    #[arg(long, default_value_t = 1000)]
    transactions: u32,
    /// How often each is done; the median counts
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    println!(
        "| scale | data directory | now (branch + base backup + start + follow) | now, --no-sync | past | pg_basebackup + recovery |"
    );
    println!("|---|---|---|---|---|---|");
    for scale in &arguments.scales {
        println!("{}", measure(*scale, &arguments).with_context(|| format!("scale {scale}"))?);
    }
    Ok(())
}

/// A row of the table.
fn measure(scale: u32, arguments: &Arguments) -> Result<String> {
    let dir = TestDir::new("bench-clones")?;
    let primary = Postgres::builder(PgVersion::V15)
        .setting("max_wal_size", "8GB")
        .setting("wal_keep_size", "4GB")
        .setting("track_commit_timestamp", "off")
        .setting("shared_buffers", "256MB")
        .start(&dir)?;
    pgbench(&primary, &["--initialize", "--quiet", &format!("--scale={scale}")])?;
    let mut server = PageServer::builder().start(&dir)?;
    server.import("main", &primary.conninfo())?;
    let past_lsn = primary.current_lsn()?;
    primary.execute("CREATE TABLE after_that (n int)")?;
    let transactions = format!("--transactions={}", scale * arguments.transactions / 4);
    pgbench(&primary, &["--client=4", "--jobs=2", "--no-vacuum", "--protocol=prepared", &transactions])?;
    let end_lsn = primary.current_lsn()?;
    wait_until("the page server to be there", LIMIT, || {
        Ok(end_lsn <= server.timeline("main", "last_record_lsn")?.parse::<Lsn>()?)
    })?;
    primary.execute("CHECKPOINT")?;
    let computes = Computes::new(&mut server)?;
    let past = past_lsn.to_string();
    let (mut now, mut unsynced, mut then, mut stock) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut bytes = 0;
    for _ in 0..arguments.rounds {
        now.push(clone(&computes, &[])?);
        unsynced.push(clone(&computes, &["--no-sync"])?);
        then.push(clone(&computes, &["--lsn", &past])?);
        let (time, size) = pg_basebackup(&dir, &primary)?;
        stock.push(time);
        bytes = size;
    }
    let now = median(&mut now, |clone| clone.total);
    let row = format!(
        "| {scale} | {:.0} MB | {:.2} s ({}) | {:.2} s | {:.2} s | {:.2} s |",
        bytes as f64 / 1e6,
        now.total.as_secs_f64(),
        now.phases,
        median(&mut unsynced, |clone| clone.total).total.as_secs_f64(),
        median(&mut then, |clone| clone.total).total.as_secs_f64(),
        median(&mut stock, |time| *time).as_secs_f64()
    );
    Ok(row)
}

#[derive(Clone)]
struct CloneTime {
    total: Duration,
    phases: String,
}

/// Time until the first query of a clone is answered. It is gone afterwards.
fn clone(computes: &Computes, arguments: &[&str]) -> Result<CloneTime> {
    let begun = Instant::now();
    let clone = computes.create("clone", "main", arguments)?;
    clone.query_text(QUERY)?;
    let total = begun.elapsed();
    let seconds = |phase: &str| clone.report[phase].as_u64().unwrap_or_default() as f64 / 1e3;
    let phases = ["branch_ms", "base_backup_ms", "start_ms", "follow_ms"].map(seconds);
    let phases = phases.map(|seconds| format!("{seconds:.2}")).join(" + ");
    computes.run(&["destroy", "clone", "--confirm", "--with-branch", "--force"])?;
    Ok(CloneTime { total, phases })
}

/// Time until the first query of a server from `pg_basebackup` is answered, and the size of its directory. It is gone afterwards.
fn pg_basebackup(dir: &TestDir, primary: &Postgres) -> Result<(Duration, u64)> {
    let root = dir.create_subdir("stock")?;
    let data = root.join("data");
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let begun = Instant::now();
    let mut backup = server_command(&primary.bin_dir().join("pg_basebackup"), &root)?;
    backup.args(["--host=127.0.0.1", "--username=postgres", "--checkpoint=fast", "--wal-method=stream"]);
    run(backup.arg(format!("--port={}", primary.port())).arg("--pgdata").arg(&data))?;
    let pg_ctl = |action: &str| -> Result<Command> {
        let mut command = server_command(&primary.bin_dir().join("pg_ctl"), &root)?;
        command.arg(action).arg("--silent").arg("--wait").arg("--timeout=1800").arg("--pgdata").arg(&data);
        Ok(command)
    };
    // With fsync, unlike the harness's servers: the other side has it, too.
    let options = format!("-p {port} -c fsync=on");
    run(pg_ctl("start")?.arg("--log").arg(root.join("log")).arg("--options").arg(options))?;
    let answered = (|| {
        let text = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres");
        postgres::Client::connect(&text, postgres::NoTls)?.query_one(QUERY, &[])?;
        Ok::<_, anyhow::Error>(begun.elapsed())
    })();
    let size = tools::compute::list::disk_bytes(&data);
    run(pg_ctl("stop")?.arg("--mode=immediate"))?;
    fs::remove_dir_all(&root)?;
    Ok((answered?, size))
}

fn median<T>(values: &mut [T], key: impl Fn(&T) -> Duration) -> &T {
    values.sort_by_key(key);
    &values[values.len() / 2]
}
