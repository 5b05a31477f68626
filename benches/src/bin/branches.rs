//! A thousand branches: how long one takes, whatever the size of the cluster; how long the repository takes to open with them; what a read through
//! many ancestors costs; what a detach copies per second.
//!
//! A primary is filled by pgbench and imported; everything but the load runs in this process. Needs PostgreSQL and `pgbench` (`scripts/setup`).

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use benches::pgbench;
use clap::Parser;
use keyenc::Key;
use pageserver::config::Config;
use pageserver::timeline::{BranchPoint, Repository, Timeline};
use postgres_ffi::{ForkNumber, Lsn, PgVersion};
use tests::{Postgres, TestDir, wait_until};

const LIMIT: Duration = Duration::from_secs(600);
/// How many branches of branches the longest line has.
const DEPTH: usize = 100;
/// Reads per figure.
const READS: u32 = 20_000;

/// Measure branches.
#[derive(Parser)]
struct Arguments {
    /// Major version of the primary
    #[arg(long, default_value = "17")]
    pg: PgVersion,
    /// Scale of pgbench: 15 MB each. Once for each that is given
    #[arg(long, default_values_t = [1, 50])]
    scale: Vec<u32>,
    /// How many branches
    #[arg(long, default_value_t = 1000)]
    branches: usize,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    for scale in &arguments.scale {
        measure(&arguments, *scale).with_context(|| format!("scale {scale}"))?;
    }
    Ok(())
}

fn measure(arguments: &Arguments, scale: u32) -> Result<()> {
    let dir = TestDir::new("bench-branches")?;
    let primary = Postgres::builder(arguments.pg).start(&dir)?;
    pgbench(&primary, &["--initialize", "--quiet", &format!("--scale={scale}")])?;
    let data_dir = dir.path().join("repository");
    let repository = Repository::open(&data_dir, config())?;
    let (main, _) = repository.import_primary("main", &primary.conninfo(), &mut |_| ControlFlow::Continue(()))?;
    catch_up(&main, &primary)?;
    let load = ["--client=2", "--no-vacuum", "--transactions=5000"];
    let first_lsn = main.last_record_lsn();
    pgbench(&primary, &load)?;
    catch_up(&main, &primary)?;
    let blocks: u64 = main.all_relations(main.last_record_lsn())?.iter().map(|(.., blocks)| u64::from(*blocks)).sum();
    println!("\n## {} MB in the cluster (scale {scale}), PostgreSQL {}", blocks * 8 / 1024, arguments.pg);

    let (repository, main, open_alone) = reopen(repository, main, &data_dir)?;
    catch_up(&main, &primary)?;
    let create = |name: String, from: &str, point| create(&repository, &name, from, point);
    let last_lsn = main.last_record_lsn();
    let first = create("first".to_owned(), "main", BranchPoint::Last)?;
    println!("first branch of the last record, what it needs written out before: {first:.1?}");
    let at_last: Vec<Duration> = (0..arguments.branches)
        .map(|n| create(format!("last{n}"), "main", BranchPoint::Last))
        .collect::<Result<_>>()?;
    show("at the last record", at_last);
    let step = (last_lsn.as_u64() - first_lsn.as_u64()) / 50;
    let anywhere = |n: u64| BranchPoint::Lsn(Lsn::new(first_lsn.as_u64() + n * step));
    let at_any = (0..50).map(|n| create(format!("any{n}"), "main", anywhere(n))).collect::<Result<_>>()?;
    show("at an LSN that is looked up in the WAL", at_any);
    show(
        "at the last record, while pgbench writes",
        under_load(&primary, &load, |n| create(format!("busy{n}"), "main", BranchPoint::Last))?,
    );

    let mut from = "main".to_owned();
    for depth in 1..=DEPTH {
        let name = format!("deep{depth}");
        create(name.clone(), &from, BranchPoint::Last)?;
        from = name;
    }
    catch_up(&main, &primary)?;
    for name in ["main".to_owned(), "deep1".to_owned(), "deep10".to_owned(), format!("deep{DEPTH}")] {
        println!("a page of {name} through the store: {:.1?}", read_time(&repository.timeline_named(&name)?)?);
    }

    let count = repository.timelines().len();
    let (repository, _, open_many) = reopen(repository, main, &data_dir)?;
    println!("open with 1 timeline: {open_alone:.1?}; with {count}: {open_many:.1?}");

    let begun = Instant::now();
    repository.detach_branch("first", &mut |_, _| ControlFlow::Continue(()))?;
    let seconds = begun.elapsed().as_secs_f64();
    println!("detach: {seconds:.1} s, {:.0} MB/s", blocks as f64 / 128.0 / seconds);
    let begun = Instant::now();
    (0..arguments.branches).try_for_each(|n| repository.delete_timeline(&format!("last{n}")).map(drop))?;
    println!("delete: {:.1?} each", begun.elapsed() / u32::try_from(arguments.branches)?);
    repository.shutdown()?;
    Ok(())
}

fn create(repository: &Repository, name: &str, from: &str, point: BranchPoint) -> Result<Duration> {
    let begun = Instant::now();
    repository.create_branch(name, from, point)?;
    Ok(begun.elapsed())
}

/// Closes the repository and opens it anew; how long opening took. It follows its primary again.
fn reopen(
    repository: Arc<Repository>,
    main: Arc<Timeline>,
    data_dir: &Path,
) -> Result<(Arc<Repository>, Arc<Timeline>, Duration)> {
    repository.shutdown()?;
    drop((main, repository));
    let begun = Instant::now();
    let repository = Repository::open(data_dir, config())?;
    let took = begun.elapsed();
    repository.follow_primaries()?;
    let main = repository.timeline_named("main")?;
    Ok((repository, main, took))
}

/// Next to no page cache: reads go to the store.
fn config() -> Config {
    Config { page_cache_mib: 1, ..Config::default() }
}

/// Mean time of a read of one page.
fn read_time(timeline: &Arc<Timeline>) -> Result<Duration> {
    let lsn = timeline.last_record_lsn();
    let relations = timeline.all_relations(lsn)?;
    let largest = relations.iter().max_by_key(|(.., blocks)| *blocks).context("a relation")?;
    let (rel, blocks) = (largest.0, largest.2);
    let begun = Instant::now();
    for n in 0..READS {
        // A step that meets each block once in a while, and never the same twice in a row.
        let block_no = n.wrapping_mul(7919) % blocks;
        timeline.get_page_at_lsn(Key::block(rel, ForkNumber::Main, block_no), lsn)?;
    }
    Ok(begun.elapsed() / READS)
}

fn under_load(
    primary: &Postgres,
    load: &[&str],
    mut create: impl FnMut(usize) -> Result<Duration>,
) -> Result<Vec<Duration>> {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            let outcome = pgbench(primary, load);
            is_over.store(true, Ordering::SeqCst);
            outcome
        });
        let mut times = Vec::new();
        while !is_over.load(Ordering::SeqCst) && times.len() < 100 {
            times.push(create(times.len())?);
            std::thread::sleep(Duration::from_millis(20));
        }
        running.join().map_err(|_| anyhow::anyhow!("pgbench panicked"))??;
        Ok(times)
    })
}

fn show(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |part: usize| times[(times.len() - 1) * part / 100];
    let mean = times.iter().sum::<Duration>() / u32::try_from(times.len()).unwrap_or(1);
    println!(
        "{} branches {what}: mean {mean:.1?}, p50 {:.1?}, p99 {:.1?}, max {:.1?}",
        times.len(),
        at(50),
        at(99),
        at(100)
    );
}

fn catch_up(main: &Timeline, primary: &Postgres) -> Result<()> {
    primary.execute("SELECT txid_current(); SELECT pg_logical_emit_message(true, 'bench', 'flush')")?;
    let lsn: Lsn = primary.query_text("SELECT pg_current_wal_flush_lsn()")?.parse()?;
    wait_until("the page server to catch up", LIMIT, || Ok(main.last_record_lsn() >= lsn))
}
