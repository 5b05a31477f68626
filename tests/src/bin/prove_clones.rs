//! Proves on real servers that a clone at any LSN is what the primary was there. `make prove-clones`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use postgres_ffi::PgVersion;
use tests::prove_clones::{Leg, Plan, run_leg};

/// Start a stock PostgreSQL from the page server at LSNs chosen by looking at the WAL, check everything in it, and compare it with PostgreSQL's
/// own point-in-time recovery.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Major versions of PostgreSQL, one after the other
    #[arg(long = "pg", default_values = ["14", "15", "16", "17", "18"])]
    versions: Vec<PgVersion>,
    /// Size of the bank that is under load all the time: 16 MB each
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=1000))]
    scale: i32,
    /// What everything random follows from; a new one unless given
    #[arg(long)]
    seed: Option<u64>,
    /// LSNs that clones are made of
    #[arg(long, default_value_t = 24)]
    moments: usize,
    /// How many of them are compared with a recovery of PostgreSQL's own; all unless given
    #[arg(long)]
    recoveries: Option<usize>,
    /// How many of the clones are made and checked while WAL streams in
    #[arg(long, default_value_t = 5)]
    under_load: usize,
    /// How long the load lasts at least
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    load: u64,
    /// Clones that are checked at once
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Times that page server or computes are killed while a tree of branches grows
    #[arg(long, default_value_t = 10)]
    kills: usize,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let plan = Plan {
        scale: arguments.scale,
        seed: arguments.seed.unwrap_or_else(rand::random),
        moments: arguments.moments,
        recoveries: arguments.recoveries.unwrap_or(arguments.moments),
        under_load: arguments.under_load,
        kinds: None,
        load: Duration::from_secs(arguments.load),
        jobs: arguments.jobs,
        kills: arguments.kills,
    };
    println!("seed: {}", plan.seed);
    let (mut table, mut checked, mut failures) = (Vec::new(), 0, 0);
    for version in &arguments.versions {
        match run_leg(Leg::of(*version), &plan) {
            Ok(summary) => {
                checked += summary.rows.len();
                failures += summary.failures();
                table.push(format!("PostgreSQL {version}: {}", summary.load));
                table.extend(summary.rows.iter().map(|row| format!("    {row}")));
            }
            Err(error) => {
                println!("PostgreSQL {version}: FAILED, seed {}: {error:?}", plan.seed);
                table.push(format!("PostgreSQL {version}: FAILED"));
                failures += 1;
            }
        }
    }
    println!("{}\nseed: {}\nclones checked: {checked}, failures: {failures}", table.join("\n"), plan.seed);
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
