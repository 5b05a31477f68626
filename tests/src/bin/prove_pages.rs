//! Proves on real servers that no page is wrong: load, crashes, cuts, a promotion, then the comparison. `make prove-pages`.

use std::process::ExitCode;

use clap::Parser;
use postgres_ffi::PgVersion;
use tests::prove::{Leg, Plan, Times, run_leg};

/// Compare every page with the primary's, and pages of the past with what the primary held, after load and crashes.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Major versions of PostgreSQL, one after the other
    #[arg(long = "pg", default_values = ["14", "15", "16", "17", "18"])]
    versions: Vec<PgVersion>,
    /// Size of the bank that is under load all the time: 16 MB each
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(i32).range(1..=10_000))]
    scale: i32,
    /// Moments of the past whose pages are compared in the end
    #[arg(long, default_value_t = 50)]
    moments: usize,
    /// What everything random follows from; a new one unless given
    #[arg(long)]
    seed: Option<u64>,
    /// Only the leg with checksums and full-page writes (1) or the one without (2)
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=2))]
    leg: Option<u8>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let times = Times { moments: arguments.moments, ..Times::PROOF };
    let plan = Plan { scale: arguments.scale, times, seed: arguments.seed.unwrap_or_else(rand::random) };
    println!("seed: {}", plan.seed);
    let mut table = Vec::new();
    for version in &arguments.versions {
        for (number, leg) in (1..).zip(Leg::both(*version)) {
            if arguments.leg.is_some_and(|only| only != number) {
                continue;
            }
            match run_leg(leg, plan) {
                Ok(summary) => {
                    let last_line = summary.comparison.lines().last().unwrap_or_default().to_owned();
                    let counts = summary.counts.iter().map(|(what, count)| format!("\n    {count:9}  {what}"));
                    table
                        .push(format!("PostgreSQL {version}, leg {number}: {last_line}{}", counts.collect::<String>()));
                }
                Err(error) => {
                    println!("PostgreSQL {version}, leg {number}: FAILED, seed {}: {error:?}", plan.seed);
                    return ExitCode::FAILURE;
                }
            }
        }
    }
    println!("seed: {}\n{}", plan.seed, table.join("\n"));
    ExitCode::SUCCESS
}
