//! Runs workloads on a PostgreSQL server of its own and says how each came out: for trying one out.

use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use postgres_ffi::PgVersion;
use tests::workload::{ALL, Outcome, Target, Workload};
use tests::{Postgres, TestDir};

/// Run workloads on a PostgreSQL server that is made for it and removed again.
#[derive(Parser)]
struct Arguments {
    /// Major version of the server
    #[arg(long, default_value = "15")]
    pg: PgVersion,
    /// What everything random follows from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Which ones, in this order; all of them if none is named
    workloads: Vec<String>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let workloads = if arguments.workloads.is_empty() {
        ALL.iter().collect()
    } else {
        arguments.workloads.iter().map(|name| Workload::find(name)).collect::<Result<Vec<_>>>()?
    };
    let dir = TestDir::new("workload")?;
    let server = Postgres::builder(arguments.pg).start(&dir)?;
    let target = Target::new(&server);
    for workload in workloads {
        let (started, lsn) = (Instant::now(), server.current_lsn()?);
        let outcome = workload.run(&target, arguments.seed)?;
        let wal_mb = (server.current_lsn()?.as_u64() - lsn.as_u64()) as f64 / 1e6;
        let said = if let Outcome::Skipped(why) = outcome { format!("skipped: {why}") } else { String::new() };
        println!("{:20} {:6.1} s {wal_mb:8.1} MB of WAL {said}", workload.name, started.elapsed().as_secs_f64());
    }
    Ok(())
}
