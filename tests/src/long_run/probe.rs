//! Asks the server, `/proc` and the file system for the figures of a sample.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use postgres_ffi::Lsn;

use super::Sample;
use super::reader::{Reader, percentile};
use crate::PageServer;

/// Counters at the last sample.
pub struct Probe {
    begun: Instant,
    last: Instant,
    figures: BTreeMap<String, u64>,
    received_lsn: Lsn,
}

impl Probe {
    /// Begins to count.
    pub fn start(server: &PageServer, timeline: &str) -> Result<Self> {
        let now = Instant::now();
        let received_lsn = lsn(server, timeline, "received_lsn")?;
        Ok(Probe { begun: now, last: now, figures: figures(server)?, received_lsn })
    }

    /// What is, and what happened since the last one.
    pub fn sample(&mut self, server: &PageServer, timeline: &str, reader: &Reader) -> Result<Sample> {
        let now = Instant::now();
        let figures = figures(server)?;
        let received_lsn = lsn(server, timeline, "received_lsn")?;
        let since = |name: &str| {
            let of = |figures: &BTreeMap<String, u64>| figures.get(name).copied().unwrap_or(0);
            of(&figures).saturating_sub(of(&self.figures))
        };
        let latencies = reader.take();
        let chains = chains(&figures, &self.figures);
        let interval = now.duration_since(self.last).as_secs_f64();
        let micros = |part: f64| percentile(&latencies, part).as_micros().try_into().unwrap_or(u64::MAX);
        let sample = Sample {
            seconds: now.duration_since(self.begun).as_secs_f64(),
            disk_bytes: bytes_below(server.data_dir()),
            sst_bytes: figures.get("store.sst_bytes").copied().unwrap_or(0),
            rss_bytes: rss_bytes(server.pid().context("it runs")?)?,
            lag_bytes: server.timeline(timeline, "lag_bytes")?.parse().unwrap_or(0),
            wal_bytes: received_lsn.saturating_sub(self.received_lsn),
            stalled: since("store.put_blocked_nanos") as f64 / 1e9 / interval,
            compaction_bytes: since("store.compaction_written_bytes"),
            chain_p50: bound(&chains, 0.5),
            chain_p99: bound(&chains, 0.99),
            reads: latencies.len() as u64,
            read_p50_us: micros(0.5),
            read_p99_us: micros(0.99),
        };
        (self.last, self.figures, self.received_lsn) = (now, figures, received_lsn);
        Ok(sample)
    }
}

fn lsn(server: &PageServer, timeline: &str, property: &str) -> Result<Lsn> {
    server.timeline(timeline, property)?.parse().with_context(|| property.to_owned())
}

/// Every whole number that the server tells of its store and its redo, by name; of redo the names without the cluster.
fn figures(server: &PageServer) -> Result<BTreeMap<String, u64>> {
    let mut figures = BTreeMap::new();
    for row in server.query("STORE STATS")?.into_iter().chain(server.query("SHOW REDO")?) {
        if let [name, value] = &row[..]
            && let Ok(value) = value.parse::<u64>()
        {
            let name = name.split_once(".walredo.").map_or(name.as_str(), |(_, name)| name);
            *figures.entry(name.to_owned()).or_default() += value;
        }
    }
    Ok(figures)
}

/// Chains of the interval: upper bound of their length, and how many there were, ascending.
fn chains(now: &BTreeMap<String, u64>, before: &BTreeMap<String, u64>) -> Vec<(u64, u64)> {
    let mut chains = Vec::new();
    for (name, count) in now {
        let Some(bucket) = name.strip_prefix("read_chains.") else { continue };
        let bound = match bucket.strip_prefix("up_to_").map(str::parse) {
            Some(Ok(bound)) => bound,
            // Above the highest bound: shown as twice that.
            _ => bucket.strip_prefix("above_").and_then(|bound| bound.parse::<u64>().ok()).unwrap_or(0) * 2,
        };
        chains.push((bound, count.saturating_sub(before.get(name).copied().unwrap_or(0))));
    }
    chains.sort_unstable();
    chains
}

fn bound(chains: &[(u64, u64)], part: f64) -> u64 {
    let total: u64 = chains.iter().map(|(_, count)| count).sum();
    let mut left = (total as f64 * part) as u64;
    for (bound, count) in chains {
        if left < *count {
            return *bound;
        }
        left -= count;
    }
    0
}

fn rss_bytes(pid: i32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("read the server's /proc")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kib * 1024)
}

/// Files come and go meanwhile: what is not there any more does not count.
fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let bytes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    bytes.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_those_of_the_interval() {
        let figures = |counts: [u64; 3]| {
            let names = ["read_chains.up_to_0", "read_chains.up_to_16", "read_chains.above_16"].map(str::to_owned);
            names.into_iter().zip(counts).collect::<BTreeMap<_, _>>()
        };
        let chains = chains(&figures([100, 60, 5]), &figures([50, 20, 4]));
        assert_eq!(chains, [(0, 50), (16, 40), (32, 1)]);
        assert_eq!([bound(&chains, 0.5), bound(&chains, 0.99), bound(&[], 0.5)], [0, 32, 0]);
    }
}
