//! Proves on real servers that crashes of the page server lose and spoil nothing. `make prove-crash`, `docs/crashes.md`.

use std::process::ExitCode;

use clap::Parser;
use postgres_ffi::PgVersion;
use tests::prove_crash::{Course, Plan, Summary, run_course};

/// Kill a page server under load at random moments and at every failpoint, and hold it against what the primary held and what was acknowledged.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Major versions of PostgreSQL, one after the other; the crashes are shared out among them
    #[arg(long = "pg", default_values = ["15", "17"])]
    versions: Vec<PgVersion>,
    /// Crashes
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rounds: u32,
    /// What everything random follows from; a new one unless given
    #[arg(long)]
    seed: Option<u64>,
    /// Do not fail when a failpoint was not reached: for a course that is too short for all of them
    #[arg(long)]
    some_failpoints: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(rand::random);
    println!("seed: {seed}");
    let mut plan = Plan::new(seed);
    let mut summary = Summary::default();
    let rounds = arguments.rounds as usize;
    let count = arguments.versions.len();
    for (at, version) in arguments.versions.iter().enumerate() {
        let rounds = rounds / count + usize::from(at < rounds % count);
        let course = Course { version: *version, rounds, seed: seed.wrapping_add(at as u64) };
        match run_course(course, &mut plan) {
            Ok(done) => summary.add(&done),
            Err(error) => {
                println!("PostgreSQL {version}: FAILED, seed {seed}: {error:?}");
                return ExitCode::FAILURE;
            }
        }
    }
    let missing = summary.not_reached();
    println!("seed: {seed}\n{summary}");
    if missing.is_empty() || arguments.some_failpoints {
        println!("wrong pages: 0, lost commits and operations: 0, stuck: 0");
        return ExitCode::SUCCESS;
    }
    println!("FAILED: failpoints at which the server has not crashed: {}", missing.join(", "));
    ExitCode::FAILURE
}
