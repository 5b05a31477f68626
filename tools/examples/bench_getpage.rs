//! The load generator by itself: `cargo run --release -p tools --example bench_getpage -- --clients 8 --depth 16`.

use clap::Parser;
use tools::bench_getpage::{BenchGetPageArgs, run};
use tools::connect::ServerArgs;

#[derive(Parser)]
#[command(about, version)]
struct Cli {
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    args: BenchGetPageArgs,
}

fn main() -> anyhow::Result<()> {
    let Cli { server, args } = Cli::parse();
    run(&args, &server)
}
