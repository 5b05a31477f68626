//! Updates a database of a fixed size for many minutes and draws what the page server takes and how it answers. `make long-run`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use postgres_ffi::PgVersion;
use tests::long_run::{LongRun, run};

/// Sample disk, memory, chains, latency of reads and lag of a page server under a constant load.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Minutes of load
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,
    /// Major version of PostgreSQL
    #[arg(long = "pg", default_value = "15")]
    version: PgVersion,
    /// Rows of the table, some 140 bytes each
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(i32).range(1000..))]
    rows: i32,
    /// Statements per second, each of which changes 20 rows
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    updates: u32,
    /// Seconds between two samples
    #[arg(long, default_value_t = 5.0)]
    interval: f64,
    /// Text of pageserver.toml; keys that it does not name have their defaults
    #[arg(
        long,
        default_value = "page_cache_mib = 16\n[store]\nlayer_mib = 32\nblock_cache_mib = 32\nflush_interval_seconds = 10\n[wal]\nkeep_mib = 32"
    )]
    config: String,
    /// Command for the page server after the import; may be given more than once
    #[arg(long = "command", value_name = "COMMAND")]
    commands: Vec<String>,
    /// Where the samples go
    #[arg(long, default_value = "docs/long-run.csv")]
    csv: PathBuf,
    /// Where the picture goes
    #[arg(long, default_value = "docs/long-run.svg")]
    svg: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let what = LongRun {
        version: arguments.version,
        duration: Duration::from_secs_f64(arguments.minutes * 60.0),
        sample_interval: Duration::from_secs_f64(arguments.interval),
        rows: arguments.rows,
        updates_per_second: arguments.updates,
        config: arguments.config,
        commands: arguments.commands,
        csv: arguments.csv,
        svg: arguments.svg,
    };
    match run(&what) {
        Ok(report) => {
            println!("{report}{} and {}", what.csv.display(), what.svg.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("FAILED: {error:?}");
            ExitCode::FAILURE
        }
    }
}
