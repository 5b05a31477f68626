//! What the benchmarks share: stores and WAL of a known shape.

use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use tests::Postgres;

/// True under `cargo bench`. Under `cargo test` the benchmarks run once, small, so that they do not rot.
pub fn is_full_size() -> bool {
    std::env::args().any(|argument| argument == "--bench")
}
pub mod constant_pages;
pub mod recorded_wal;
pub mod redo_cluster;

/// The time now, to subtract from a later one: of the wall, or with `BENCH_CLOCK=cpu` of this thread on the processor (Linux). A machine
/// that does other work too makes the first one useless and leaves the second one only somewhat too high.
pub fn clock() -> Duration {
    static STARTED_AT: LazyLock<Instant> = LazyLock::new(Instant::now);
    static IS_CPU: LazyLock<bool> = LazyLock::new(|| std::env::var("BENCH_CLOCK").is_ok_and(|clock| clock == "cpu"));
    if *IS_CPU { cpu_time("thread-self") } else { STARTED_AT.elapsed() }
}

/// Time on the processor of a task, given by its path below `/proc`.
pub fn cpu_time(task: &str) -> Duration {
    std::thread::yield_now(); // Brings the count of this thread up to date; else it moves in ticks.
    let text = std::fs::read_to_string(format!("/proc/{task}/schedstat")).expect("Linux counts it");
    Duration::from_nanos(text.split_whitespace().next().and_then(|nanos| nanos.parse().ok()).expect("a number"))
}

/// Runs `pgbench` on the database `postgres` of `primary`. Errors: it fails, with what it wrote.
pub fn pgbench(primary: &Postgres, arguments: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new("pgbench");
    command.args(["--host=127.0.0.1", "--username=postgres"]).arg(format!("--port={}", primary.port()));
    tests::process::run(command.args(arguments).arg("postgres")).map(drop)
}
