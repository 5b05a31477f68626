//! Load for GetPage: clients with requests in flight, latencies, pages per second, CPU time per page on both sides.
//!
//! - One thread per client; a client keeps `--depth` requests (groups of `--batch` pages) in flight and refills what was answered.
//! - Every answer is checked to echo its question; what fails is counted and the first text shown. Page content is not checked here.
//! - CPU times are those of whole processes, from `/proc`: the server's includes what it does besides.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use pageserver::client::{Client, ClientConfig, PageStream, ReadAt, quote};
use pageserver::page_service::pagestream::wire::{Answer, Body, Header, Request, Version};
use postgres_ffi::{BlockNumber, ForkNumber, Lsn, RelTag};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;

use crate::connect::ServerArgs;

/// Latencies beyond are recorded as this.
const LATENCY_MAX: Duration = Duration::from_secs(60);
/// Clock ticks of `/proc/PID/stat` per second: USER_HZ, 100 on every Linux that we run on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Puts GetPage load on a page server and reports throughput and latency.
#[derive(Debug, Clone, Args)]
pub struct BenchGetPageArgs {
    /// Timeline to read from: name or id.
    #[arg(long, default_value = "main")]
    pub timeline: String,
    /// Connections, one thread each.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub clients: u32,
    /// Requests (groups of --batch pages) that each client keeps in flight.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=512))]
    pub depth: u32,
    /// Pages per group: sent together, with one request id, done when all are there.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=128))]
    pub batch: u32,
    /// Which blocks are asked for.
    #[arg(long, value_enum, default_value_t = Distribution::Uniform)]
    pub distribution: Distribution,
    /// Skew of the zipf distribution; higher means hotter.
    #[arg(long, default_value_t = 1.0)]
    pub zipf_exponent: f64,
    /// As of when: newest, random (between the first readable LSN and the last), or an LSN.
    #[arg(long, default_value = "newest")]
    pub lsn: LsnChoice,
    /// Relation to read, like 1663/5/16384; may be given several times. Without: every main fork of the timeline.
    #[arg(long)]
    pub relation: Vec<RelTag>,
    /// How long to measure, in seconds.
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// Stop after so many pages, if that comes before --seconds.
    #[arg(long)]
    pub count: Option<u64>,
    /// How long to run before measuring, in seconds.
    #[arg(long, default_value_t = 1.0)]
    pub warmup_seconds: f64,
    /// Version of the page stream's messages: 2 or 3.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=3))]
    pub protocol: u8,
    /// Process whose CPU time is reported as the server's. Without: the one that the server names, if it runs here.
    #[arg(long)]
    pub server_pid: Option<u32>,
    /// Seed of the random choices.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// Which blocks are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Distribution {
    /// Every block equally often.
    Uniform,
    /// Few blocks very often; hot blocks are spread over the relations.
    Zipf,
    /// One after the other, each client from a place of its own.
    Sequential,
}

/// As of when pages are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LsnChoice {
    /// The newest that the server has.
    Newest,
    /// Any readable LSN, another for each request.
    Random,
    /// This one.
    At(Lsn),
}

impl std::str::FromStr for LsnChoice {
    type Err = postgres_ffi::lsn::LsnParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "newest" => Ok(LsnChoice::Newest),
            "random" => Ok(LsnChoice::Random),
            lsn => lsn.parse().map(LsnChoice::At),
        }
    }
}

/// What was measured. Latencies are per group (`batch` pages), in microseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Connections.
    pub clients: u32,
    /// Groups in flight per client.
    pub depth: u32,
    /// Pages per group.
    pub batch: u32,
    /// Which blocks.
    pub distribution: Distribution,
    /// Relations read from.
    pub relations: usize,
    /// Their blocks.
    pub blocks: u64,
    /// Time measured.
    pub seconds: f64,
    /// Pages received.
    pub pages: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// The first of them.
    pub first_error: Option<String>,
    /// Throughput.
    pub pages_per_second: f64,
    /// Mean latency.
    pub latency_mean_us: f64,
    /// Median.
    pub latency_p50_us: f64,
    /// 99th percentile.
    pub latency_p99_us: f64,
    /// 99.9th percentile.
    pub latency_p999_us: f64,
    /// Longest.
    pub latency_max_us: f64,
    /// CPU time of this process per page.
    pub client_cpu_us_per_page: f64,
    /// CPU time of the server per page.
    pub server_cpu_us_per_page: Option<f64>,
}

/// Runs the load and prints the report to stdout.
pub fn run(args: &BenchGetPageArgs, server: &ServerArgs) -> anyhow::Result<()> {
    let report = measure(args, server)?;
    if args.json {
        println!("{}", serde_json::to_string(&report).context("print the report")?);
    } else {
        print!("{}", to_text(&report));
    }
    ensure!(report.pages > 0, "no page was received: {}", report.first_error.as_deref().unwrap_or("no error either"));
    Ok(())
}

/// Runs the load. Errors: the server cannot be reached, the timeline has no blocks, a connection ends.
pub fn measure(args: &BenchGetPageArgs, server: &ServerArgs) -> anyhow::Result<Report> {
    let duration = |seconds: f64| {
        Duration::try_from_secs_f64(seconds).context("--seconds and --warmup-seconds must not be negative")
    };
    let (warmup, seconds) = (duration(args.warmup_seconds)?, duration(args.seconds)?);
    ensure!(args.zipf_exponent > 0.0 && args.zipf_exponent.is_finite(), "--zipf-exponent must be positive");
    let mut client = connect(server)?;
    let target = Arc::new(Target::discover(args, &mut client)?);
    let server_pid = args.server_pid.or_else(|| local_server_pid(&server.server, &mut client));
    drop(client);

    let begins_at = Instant::now() + warmup;
    let run = Arc::new(Run {
        begins_at,
        ends_at: begins_at + seconds,
        pages_left: AtomicU64::new(args.count.unwrap_or(u64::MAX)),
    });
    let threads: Vec<_> = (0..args.clients)
        .map(|client_no| {
            let (args, server, target, run) = (args.clone(), server.clone(), target.clone(), run.clone());
            std::thread::Builder::new()
                .name(format!("client-{client_no}"))
                .spawn(move || drive(&args, &server, client_no, &target, &run))
                .context("start a client's thread")
        })
        .collect::<Result<_, _>>()?;
    std::thread::sleep(run.begins_at.saturating_duration_since(Instant::now()));
    let cpu_before = (process_cpu(std::process::id()), server_pid.and_then(process_cpu));
    let mut total = ClientResult::new()?;
    for thread in threads {
        let Ok(result) = thread.join() else { bail!("a client's thread panicked") };
        total.add(&result?)?;
    }
    let cpu_after = (process_cpu(std::process::id()), server_pid.and_then(process_cpu));
    let elapsed = total.last_answer_at.saturating_duration_since(run.begins_at);
    let cpu = (cpu_between(cpu_before.0, cpu_after.0), cpu_between(cpu_before.1, cpu_after.1));
    Ok(report(args, &target, &total, elapsed, cpu))
}

fn connect(server: &ServerArgs) -> anyhow::Result<Client> {
    let application_name = "bench getpage".to_owned();
    let config = ClientConfig { application_name, ..ClientConfig::new(server.server.clone()) };
    Client::connect(&config).with_context(|| format!("connect to the page server at {}", server.server))
}

/// When the clients measure.
struct Run {
    begins_at: Instant,
    ends_at: Instant,
    pages_left: AtomicU64,
}

impl Run {
    /// Takes `pages` off what is left to ask for. False: enough.
    fn take(&self, pages: u64) -> bool {
        let take = |left: u64| left.checked_sub(pages);
        self.pages_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

/// The blocks to ask for.
struct Target {
    /// Each relation with the number of blocks before it.
    relations: Vec<(RelTag, u64)>,
    blocks: u64,
    readable: (Lsn, Lsn),
}

impl Target {
    fn discover(args: &BenchGetPageArgs, client: &mut Client) -> anyhow::Result<Self> {
        let listed = client
            .query_one(&format!("RELATION LIST {}", quote(&args.timeline)))
            .with_context(|| format!("list the relations of {}", args.timeline))?;
        let mut target = Target { relations: Vec::new(), blocks: 0, readable: readable(args, client)? };
        for row in &listed.rows {
            let (Some(rel), Some(fork), Some(blocks)) = (row.get(0), row.get(1), row.get(2)) else {
                bail!("RELATION LIST has an unexpected form")
            };
            let (rel, blocks): (RelTag, u64) = (rel.parse()?, blocks.parse()?);
            let wanted = args.relation.is_empty() || args.relation.contains(&rel);
            if wanted && blocks > 0 && fork == ForkNumber::Main.name() {
                target.relations.push((rel, target.blocks));
                target.blocks += blocks;
            }
        }
        ensure!(target.blocks > 0, "no block to read in timeline {}", args.timeline);
        Ok(target)
    }

    fn block(&self, number: u64) -> (RelTag, BlockNumber) {
        let after = self.relations.partition_point(|(_, before)| *before <= number);
        let (rel, before) = self.relations[after - 1]; // The first one has no block before it.
        (rel, u32::try_from(number - before).unwrap_or(u32::MAX))
    }
}

fn readable(args: &BenchGetPageArgs, client: &mut Client) -> anyhow::Result<(Lsn, Lsn)> {
    let shown = client.query_one(&format!("SHOW TIMELINE {}", quote(&args.timeline)))?;
    let lsn = |name: &str| shown.rows.iter().find(|row| row.get(0) == Some(name)).and_then(|row| row.get_lsn(1));
    let (first, last) = (lsn("first_readable_lsn"), lsn("last_record_lsn"));
    first.zip(last).filter(|(first, last)| first <= last).context("the timeline has no readable LSN")
}

/// The server's process id, if it says so and a process of that number runs here.
fn local_server_pid(server: &str, client: &mut Client) -> Option<u32> {
    let local = server.starts_with("127.") || server.starts_with("localhost:") || server.starts_with("[::1]");
    let status = client.query_one("SHOW STATUS").ok().filter(|_| local)?;
    let row = status.rows.iter().find(|row| row.get(0) == Some("process_id"))?;
    row.get(1)?.parse().ok()
}

/// Chooses blocks and LSNs.
struct Chooser<'a> {
    args: &'a BenchGetPageArgs,
    target: &'a Target,
    rng: SmallRng,
    zipf: Zipf,
    next: u64,
}

impl<'a> Chooser<'a> {
    fn new(args: &'a BenchGetPageArgs, client_no: u32, target: &'a Target) -> Self {
        let rng = SmallRng::seed_from_u64(args.seed.wrapping_add(u64::from(client_no) << 32));
        let next = target.blocks / u64::from(args.clients) * u64::from(client_no);
        Chooser { args, target, rng, zipf: Zipf::new(target.blocks, args.zipf_exponent), next }
    }

    fn block(&mut self) -> (RelTag, BlockNumber) {
        let number = match self.args.distribution {
            Distribution::Uniform => self.rng.random_range(0..self.target.blocks),
            // Neighbouring ranks land far apart: hot pages are not neighbours in real life either.
            Distribution::Zipf => {
                self.zipf.sample(&mut self.rng).wrapping_mul(0x9E37_79B9_7F4A_7C15) % self.target.blocks
            }
            Distribution::Sequential => {
                let number = self.next;
                self.next = (number + 1) % self.target.blocks;
                number
            }
        };
        self.target.block(number)
    }

    fn read_at(&mut self) -> ReadAt {
        match self.args.lsn {
            LsnChoice::Newest => ReadAt::NEWEST,
            LsnChoice::At(lsn) => ReadAt::lsn(lsn),
            LsnChoice::Random => {
                let (first, last) = self.target.readable;
                ReadAt::lsn(Lsn::new(self.rng.random_range(first.as_u64().max(1)..=last.as_u64().max(1))))
            }
        }
    }
}

/// Ranks 1 to n, rank k with a frequency of k^-exponent.
///
/// Rejection-inversion: W. Hoermann, G. Derflinger, "Rejection-inversion to generate variates from monotone discrete distributions" (1996).
struct Zipf {
    exponent: f64,
    n: f64,
    h_first: f64,
    h_last: f64,
    accept_below: f64,
}

impl Zipf {
    fn new(n: u64, exponent: f64) -> Self {
        let n = n as f64;
        let mut zipf = Zipf { exponent, n, h_first: 0.0, h_last: 0.0, accept_below: 0.0 };
        zipf.h_first = zipf.h(1.5) - 1.0;
        zipf.h_last = zipf.h(n + 0.5);
        zipf.accept_below = 2.0 - zipf.h_inverse(zipf.h(2.5) - 2_f64.powf(-exponent));
        zipf
    }

    /// Integral of x^-exponent.
    fn h(&self, x: f64) -> f64 {
        let log_x = x.ln();
        let t = (1.0 - self.exponent) * log_x;
        // (e^t - 1) / t, which is 1 at 0: exponent 1 gives the logarithm.
        log_x * if t.abs() > 1e-8 { t.exp_m1() / t } else { 1.0 + t / 2.0 }
    }

    fn h_inverse(&self, y: f64) -> f64 {
        let t = (y * (1.0 - self.exponent)).max(-1.0);
        // ln(1 + t) / t, which is 1 at 0.
        (y * if t.abs() > 1e-8 { t.ln_1p() / t } else { 1.0 - t / 2.0 }).exp()
    }

    fn sample(&self, rng: &mut SmallRng) -> u64 {
        loop {
            let u = self.h_last + rng.random::<f64>() * (self.h_first - self.h_last);
            let x = self.h_inverse(u);
            let k = x.round().clamp(1.0, self.n);
            if k - x <= self.accept_below || u >= self.h(k + 0.5) - k.powf(-self.exponent) {
                return k as u64;
            }
        }
    }
}

/// What one client measured.
struct ClientResult {
    latencies_ns: Histogram<u64>,
    pages: u64,
    errors: u64,
    first_error: Option<String>,
    last_answer_at: Instant,
}

impl ClientResult {
    fn new() -> anyhow::Result<Self> {
        let max = u64::try_from(LATENCY_MAX.as_nanos()).unwrap_or(u64::MAX);
        let latencies_ns = Histogram::new_with_bounds(1, max, 3).context("make a histogram")?;
        Ok(ClientResult { latencies_ns, pages: 0, errors: 0, first_error: None, last_answer_at: Instant::now() })
    }

    fn add(&mut self, other: &ClientResult) -> anyhow::Result<()> {
        self.latencies_ns.add(&other.latencies_ns).context("add histograms")?;
        self.pages += other.pages;
        self.errors += other.errors;
        self.first_error = self.first_error.take().or_else(|| other.first_error.clone());
        self.last_answer_at = self.last_answer_at.max(other.last_answer_at);
        Ok(())
    }
}

/// A group of requests in flight.
struct Group {
    sent_at: Instant,
    unanswered: u32,
}

/// One client's work.
fn drive(
    args: &BenchGetPageArgs,
    server: &ServerArgs,
    client_no: u32,
    target: &Target,
    run: &Run,
) -> anyhow::Result<ClientResult> {
    let version = if args.protocol == 2 { Version::V2 } else { Version::V3 };
    let mut stream =
        PageStream::start(connect(server)?, version, None, &args.timeline).context("start a page stream")?;
    let mut chooser = Chooser::new(args, client_no, target);
    let mut result = ClientResult::new()?;
    let mut groups: VecDeque<Group> = VecDeque::new();
    let mut request_id = 0;
    loop {
        let now = Instant::now();
        while groups.len() < args.depth as usize
            && now < run.ends_at
            && (now < run.begins_at || run.take(args.batch.into()))
        {
            request_id += u64::from(version == Version::V3);
            send_group(&mut stream, &mut chooser, args.batch, request_id);
            groups.push_back(Group { sent_at: now, unanswered: args.batch });
        }
        if groups.is_empty() {
            // Without an answer since, the time up to now counts: the count was used up before it began.
            stream.finish().context("end the page stream")?;
            return Ok(result);
        }
        let (_, answer) = stream.receive().context("receive a page")?;
        count(&answer, &mut groups, run, &mut result);
        while let Some((_, answer)) = stream.receive_if_there().context("receive a page")? {
            count(&answer, &mut groups, run, &mut result);
        }
    }
}

fn send_group(stream: &mut PageStream, chooser: &mut Chooser<'_>, batch: u32, request_id: u64) {
    let ReadAt { request_lsn, not_modified_since } = chooser.read_at();
    let header = Header { request_id, request_lsn, not_modified_since };
    for _ in 0..batch {
        let (rel, block_no) = chooser.block();
        stream.send(Request { header, body: Body::get_page(rel, ForkNumber::Main, block_no) });
    }
}

fn count(answer: &Answer<'_>, groups: &mut VecDeque<Group>, run: &Run, result: &mut ClientResult) {
    let Some(group) = groups.front_mut() else { return };
    let measured = group.sent_at >= run.begins_at;
    match answer {
        Answer::Error(text) if measured => {
            result.errors += 1;
            result.first_error.get_or_insert_with(|| (*text).to_owned());
        }
        _ => result.pages += u64::from(measured),
    }
    group.unanswered -= 1;
    if group.unanswered == 0 {
        if measured {
            result.last_answer_at = Instant::now();
            let latency = result.last_answer_at - group.sent_at;
            result.latencies_ns.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
        }
        groups.pop_front();
    }
}

/// CPU time that a process has used, user and system; `None` if it is not there. PG-independent: proc(5), `/proc/PID/stat`, fields 14 and 15.
pub fn process_cpu(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses and may hold anything, spaces and parentheses too.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |i: usize| fields.get(i)?.parse::<u64>().ok();
    let ticks = ticks(11)?.checked_add(ticks(12)?)?;
    Some(Duration::from_secs_f64(ticks as f64 / TICKS_PER_SECOND))
}

fn cpu_between(before: Option<Duration>, after: Option<Duration>) -> Option<Duration> {
    before.zip(after).map(|(before, after)| after.saturating_sub(before))
}

fn report(
    args: &BenchGetPageArgs,
    target: &Target,
    total: &ClientResult,
    elapsed: Duration,
    cpu: (Option<Duration>, Option<Duration>),
) -> Report {
    let us = |ns: f64| ns / 1_000.0;
    let quantile = |q| us(total.latencies_ns.value_at_quantile(q) as f64);
    let per_page = |cpu: Duration| cpu.as_secs_f64() * 1e6 / total.pages.max(1) as f64;
    let seconds = elapsed.as_secs_f64();
    Report {
        clients: args.clients,
        depth: args.depth,
        batch: args.batch,
        distribution: args.distribution,
        relations: target.relations.len(),
        blocks: target.blocks,
        seconds,
        pages: total.pages,
        errors: total.errors,
        first_error: total.first_error.clone(),
        pages_per_second: if seconds > 0.0 { total.pages as f64 / seconds } else { 0.0 },
        latency_mean_us: us(total.latencies_ns.mean()),
        latency_p50_us: quantile(0.5),
        latency_p99_us: quantile(0.99),
        latency_p999_us: quantile(0.999),
        latency_max_us: us(total.latencies_ns.max() as f64),
        client_cpu_us_per_page: cpu.0.map_or(0.0, per_page),
        server_cpu_us_per_page: cpu.1.map(per_page),
    }
}

fn to_text(report: &Report) -> String {
    let Report { clients, depth, batch, blocks, relations, seconds, pages, errors, .. } = report;
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{clients} clients x {depth} in flight x {batch} pages, {:?}, {blocks} blocks of {relations} relations",
        report.distribution
    );
    let _ = writeln!(text, "{pages} pages in {seconds:.2} s: {:.0} pages/s, {errors} errors", report.pages_per_second);
    let _ = writeln!(
        text,
        "latency us: mean {:.1}, p50 {:.1}, p99 {:.1}, p99.9 {:.1}, max {:.1}",
        report.latency_mean_us,
        report.latency_p50_us,
        report.latency_p99_us,
        report.latency_p999_us,
        report.latency_max_us
    );
    let server = report.server_cpu_us_per_page.map_or("unknown".to_owned(), |us| format!("{us:.2}"));
    let _ = writeln!(text, "CPU us per page: server {server}, client {:.2}", report.client_cpu_us_per_page);
    if let Some(error) = &report.first_error {
        let _ = writeln!(text, "first error: {error}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zipf_ranks_have_their_frequencies() {
        for exponent in [0.5, 1.0, 1.5] {
            let (n, samples) = (1_000_u64, 200_000);
            let zipf = Zipf::new(n, exponent);
            let mut rng = SmallRng::seed_from_u64(1);
            let mut counts = vec![0_u32; n as usize + 1];
            for _ in 0..samples {
                counts[zipf.sample(&mut rng) as usize] += 1;
            }
            let norm: f64 = (1..=n).map(|k| (k as f64).powf(-exponent)).sum();
            for k in [1, 2, 10] {
                let expect = f64::from(samples) * (k as f64).powf(-exponent) / norm;
                let found = f64::from(counts[k]);
                assert!((found - expect).abs() < 5.0 * expect.sqrt() + 1.0, "rank {k}: {found}, expected {expect}");
            }
            assert_eq!(counts[0], 0);
        }
    }

    #[test]
    fn blocks_are_found_across_relations() {
        let rel = |rel_number| RelTag { spc_oid: 1663, db_oid: 5, rel_number };
        let relations = vec![(rel(1), 0), (rel(2), 10), (rel(3), 11)];
        let target = Target { relations, blocks: 20, readable: (Lsn::ZERO, Lsn::ZERO) };
        for (number, expect) in [(0, (1, 0)), (9, (1, 9)), (10, (2, 0)), (11, (3, 0)), (19, (3, 8))] {
            let (found, block_no) = target.block(number);
            assert_eq!((found.rel_number, block_no), expect);
        }
    }

    #[test]
    fn lsn_choices_parse() {
        assert_eq!("newest".parse(), Ok(LsnChoice::Newest));
        assert_eq!("random".parse(), Ok(LsnChoice::Random));
        assert_eq!("0/10".parse(), Ok(LsnChoice::At(Lsn::new(16))));
        assert!("yesterday".parse::<LsnChoice>().is_err());
    }

    #[test]
    fn own_cpu_time_is_readable() {
        assert!(process_cpu(std::process::id()).is_some());
        assert!(process_cpu(u32::MAX).is_none());
    }
}
