//! The load generator by itself: `cargo run --release -p tools --example bench_getpage -- --clients 8 --depth 16`.

use clap::Parser;
use tools::bench_getpage::{BenchGetPageArgs, run};

#[derive(Parser)]
#[command(about, version)]
struct Cli {
    #[command(flatten)]
    args: BenchGetPageArgs,
}

fn main() -> anyhow::Result<()> {
    run(&Cli::parse().args)
}
