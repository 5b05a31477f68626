//! GetPage over libpq on a real timeline: a bank of pgbench, imported, then written to.
//!
//! One run, one server, one timeline, four situations:
//! - *hot*: every page is in the page cache;
//! - *stored*: next to none is; each is an image in the store, as the import left it;
//! - *native*, *process*: the same after transactions: most pages are chains of records, and nothing is cached back.
//!
//! Load comes from `pagectl bench getpage` on the same machine. Needs PostgreSQL 15 with `pgbench` and the redo extension (`scripts/setup`, `make extension`).

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use benches::pgbench;
use clap::Parser;
use postgres_ffi::{Lsn, PgVersion};
use tests::{PageServer, Postgres, TestDir, built_program, wait_until};

const LIMIT: Duration = Duration::from_secs(1800);
/// Clients and requests that each has in flight.
const SHAPES: [(u32, u32); 4] = [(1, 1), (8, 1), (1, 16), (8, 16)];

/// Measure GetPage over libpq: hot pages, stored images, redo native and by process.
#[derive(Parser)]
struct Arguments {
    /// pgbench scale, one unit is 15 MB
    #[arg(long, default_value_t = 10)]
    scale: u32,
    /// pgbench transactions after the import
    #[arg(long, default_value_t = 100_000)]
    transactions: u32,
    /// How long each figure is measured
    #[arg(long, default_value_t = 5)]
    seconds: u32,
}

/// A configuration of the server, and what it is called here.
struct Situation {
    name: &'static str,
    config: &'static str,
}

const HOT: Situation = Situation { name: "hot", config: "page_cache_mib = 2048\n" };
const STORED: Situation = Situation { name: "stored", config: "page_cache_mib = 1\n[store]\nblock_cache_mib = 1024\n" };
const NATIVE: Situation = Situation {
    name: "native",
    config: "page_cache_mib = 1\n[store]\nblock_cache_mib = 1024\n[redo]\nengine = \"native\"\nbacklog_records_min = 0\nchain_records_max = 0\ncache_back_records_min = 1000000\n",
};
const PROCESS: Situation = Situation {
    name: "process",
    config: "page_cache_mib = 1\n[store]\nblock_cache_mib = 1024\n[redo]\nengine = \"postgres\"\nbacklog_records_min = 0\nchain_records_max = 0\ncache_back_records_min = 1000000\n",
};

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let dir = TestDir::new("bench-get-page")?;
    let primary = Postgres::builder(PgVersion::V15).setting("max_wal_size", "8GB").start(&dir)?;
    pgbench(&primary, &["--initialize", "--quiet", &format!("--scale={}", arguments.scale)])?;
    primary.execute("CHECKPOINT")?;
    let mut server = PageServer::builder().start(&dir)?;
    server.import("main", &primary.conninfo())?;
    println!("| situation | clients x depth | pages/s | mean / p50 / p99 us | server CPU us per page |");
    println!("|---|---|---|---|---|");
    for situation in [HOT, STORED] {
        measure(&mut server, &situation, arguments.seconds)?;
    }
    restart(&mut server, NATIVE.config)?; // Nothing that is written now is cached back.
    let transactions = format!("--transactions={}", arguments.transactions / 4);
    pgbench(&primary, &["--client=4", "--jobs=2", "--no-vacuum", "--protocol=prepared", &transactions])?;
    let end_lsn = primary.current_lsn()?;
    wait_until("the page server to be there", LIMIT, || {
        Ok(end_lsn <= server.timeline("main", "last_record_lsn")?.parse::<Lsn>()?)
    })?;
    for situation in [NATIVE, PROCESS] {
        measure(&mut server, &situation, arguments.seconds)?;
    }
    Ok(())
}

fn restart(server: &mut PageServer, config: &str) -> Result<()> {
    server.stop()?;
    fs::write(server.data_dir().join("pageserver.toml"), config)?;
    server.start()
}

/// Rows of the table, one for each shape.
fn measure(server: &mut PageServer, situation: &Situation, seconds: u32) -> Result<()> {
    restart(server, situation.config)?;
    load(server, (4, 16), 4, "sequential")?; // Fills the caches, and starts the redo process.
    for (clients, depth) in SHAPES {
        let report = load(server, (clients, depth), seconds, "uniform")?;
        let number = |name: &str| report[name].as_f64().with_context(|| format!("{name} in the report"));
        ensure!(report["errors"] == 0, "{}: {report}", situation.name);
        println!(
            "| {} | {clients} x {depth} | {:.0} | {:.0} / {:.0} / {:.0} | {:.1} |",
            situation.name,
            number("pages_per_second")?,
            number("latency_mean_us")?,
            number("latency_p50_us")?,
            number("latency_p99_us")?,
            number("server_cpu_us_per_page")?,
        );
    }
    Ok(())
}

fn load(
    server: &PageServer,
    (clients, depth): (u32, u32),
    seconds: u32,
    distribution: &str,
) -> Result<serde_json::Value> {
    let mut command = Command::new(built_program("pagectl")?);
    command.args(["bench", "getpage", "--json", "--server", &format!("127.0.0.1:{}", server.port())]);
    command.args([format!("--clients={clients}"), format!("--depth={depth}"), format!("--seconds={seconds}")]);
    command.arg(format!("--distribution={distribution}"));
    Ok(serde_json::from_str(&tests::process::run(&mut command)?)?)
}
