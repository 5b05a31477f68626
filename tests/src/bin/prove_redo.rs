//! Proves on real servers that native redo makes the pages that PostgreSQL makes. `make prove-redo`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use pageserver::redo_check::OperationCounts;
use postgres_ffi::PgVersion;
use postgres_ffi::redo::case::RedoCase;
use tests::prove_redo::{Leg, Plan, run_leg, table};

/// Check native redo of every record that a busy primary writes against the page images in its WAL (wal_consistency_checking = all).
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Major versions of PostgreSQL, one after the other
    #[arg(long = "pg", default_values = ["14", "15", "16", "17", "18"])]
    versions: Vec<PgVersion>,
    /// Size of the bank that is under load all the time: 16 MB each
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(i32).range(1..=1000))]
    scale: i32,
    /// What everything random follows from; a new one unless given
    #[arg(long)]
    seed: Option<u64>,
    /// Only this leg: 1, 2 (with PostgreSQL's regression suite) or 3
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=3))]
    leg: Option<u8>,
    /// Where PostgreSQL's regression suites are; without it they do not run
    #[arg(long, value_name = "DIR")]
    regression: Option<PathBuf>,
    /// Write examples of each operation, of leg 1, to NN.cases.zst in this folder
    #[arg(long, value_name = "DIR")]
    cases: Option<PathBuf>,
    /// Write the table of operations into this document
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("FAILED: {error:?}");
            ExitCode::FAILURE
        }
    }
}

/// True when nothing differs and no operation is missing.
fn run(arguments: &Arguments) -> Result<bool> {
    let plan = Plan {
        scale: arguments.scale,
        seed: arguments.seed.unwrap_or_else(rand::random),
        regression_dir: arguments.regression.clone(),
    };
    println!("seed: {}", plan.seed);
    let (mut counts, mut total, mut lines, mut is_good) =
        (table::Counts::new(), OperationCounts::default(), Vec::new(), true);
    for version in &arguments.versions {
        for (number, leg) in (1..).zip(Leg::all(*version)) {
            if arguments.leg.is_some_and(|only| only != number) {
                continue;
            }
            let proof = run_leg(leg, &plan)
                .with_context(|| format!("PostgreSQL {version}, leg {number}, seed {}", plan.seed))?;
            proof.report.differences.iter().for_each(|difference| println!("different: {difference}"));
            if let Some(dir) = arguments.cases.as_deref().filter(|_| number == 1) {
                write_cases(&dir.join(format!("{version}.cases.zst")), &proof.cases)?;
            }
            table::add(&mut counts, &proof.report);
            total.add(&proof.report.total);
            is_good &= proof.report.is_good();
            let sum = proof.report.total;
            lines.push(format!(
                "PostgreSQL {version}, leg {number}: {} records, {} images checked, {} known differences, {} different ({})",
                proof.report.records, sum.checked, sum.known_difference, sum.different, proof.done.join("; ")
            ));
        }
        let missing = table::missing(&counts, *version);
        if !missing.is_empty() {
            lines.push(format!("PostgreSQL {version}: not met: {}", missing.join(", ")));
            is_good &= arguments.leg.is_some();
        }
    }
    println!("{}\n{}", table::markdown(&counts), lines.join("\n"));
    println!("seed: {}, images checked: {}, different: {}", plan.seed, total.checked, total.different);
    if let Some(path) = arguments.write.as_ref().filter(|_| is_good) {
        write_table(path, &counts)?;
    }
    Ok(is_good)
}

fn write_cases(path: &std::path::Path, cases: &[RedoCase]) -> Result<()> {
    let mut bytes = Vec::new();
    cases.iter().for_each(|case| case.encode(&mut bytes));
    let packed = zstd::bulk::compress(&bytes, 19).context("compress the cases")?;
    std::fs::write(path, packed).with_context(|| format!("write {}", path.display()))
}

fn write_table(path: &std::path::Path, counts: &table::Counts) -> Result<()> {
    let document = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let (before, rest) = document.split_once(table::BEGIN).context("the document has no place for the table")?;
    let (_, after) = rest.split_once(table::END).context("the table in the document has no end")?;
    // Versions that did not run keep what they have.
    let mut merged = table::parse(&document).unwrap_or_default();
    for (operation, by_version) in counts {
        merged.entry(operation.clone()).or_default().extend(by_version);
    }
    let text = format!("{before}{}{after}", table::markdown(&merged));
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
