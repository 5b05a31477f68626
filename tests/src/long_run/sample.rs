//! What is measured at one moment, and its line in the CSV.

use std::fmt::Write as _;

/// One sample. Times between two samples are those of the interval before it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Since the load began.
    pub seconds: f64,
    /// Bytes of all files in the data directory.
    pub disk_bytes: u64,
    /// Bytes of SST files.
    pub sst_bytes: u64,
    /// Resident memory of the process.
    pub rss_bytes: u64,
    /// WAL that the primary has and cannot be read yet.
    pub lag_bytes: u64,
    /// WAL that came in the interval.
    pub wal_bytes: u64,
    /// Share of the interval in which ingest waited for room in memory.
    pub stalled: f64,
    /// Bytes that compaction wrote in the interval.
    pub compaction_bytes: u64,
    /// Nearest bound at or above the median and the 99th percentile of the chains that reads of the store met in the interval.
    pub chain_p50: u64,
    /// See `chain_p50`.
    pub chain_p99: u64,
    /// Pages read in the interval.
    pub reads: u64,
    /// Latency of GetPage, microseconds.
    pub read_p50_us: u64,
    /// See `read_p50_us`.
    pub read_p99_us: u64,
}

/// A column of the CSV: name, and its value as a number.
pub type Column = (&'static str, fn(&Sample) -> f64);

impl Sample {
    /// All columns.
    pub const COLUMNS: &[Column] = &[
        ("seconds", |sample| sample.seconds),
        ("disk_bytes", |sample| sample.disk_bytes as f64),
        ("sst_bytes", |sample| sample.sst_bytes as f64),
        ("rss_bytes", |sample| sample.rss_bytes as f64),
        ("lag_bytes", |sample| sample.lag_bytes as f64),
        ("wal_bytes", |sample| sample.wal_bytes as f64),
        ("stalled", |sample| sample.stalled),
        ("compaction_bytes", |sample| sample.compaction_bytes as f64),
        ("chain_p50", |sample| sample.chain_p50 as f64),
        ("chain_p99", |sample| sample.chain_p99 as f64),
        ("reads", |sample| sample.reads as f64),
        ("read_p50_us", |sample| sample.read_p50_us as f64),
        ("read_p99_us", |sample| sample.read_p99_us as f64),
    ];

    /// The samples as CSV, with a first line of names.
    pub fn csv(samples: &[Sample]) -> String {
        let names: Vec<&str> = Self::COLUMNS.iter().map(|(name, _)| *name).collect();
        let mut text = names.join(",") + "\n";
        for sample in samples {
            for (at, (_, value)) in Self::COLUMNS.iter().enumerate() {
                let comma = if at == 0 { "" } else { "," };
                let value = value(sample);
                // Whole numbers as such.
                let digits = if value.fract() == 0.0 { 0 } else { 3 };
                let _ = write!(text, "{comma}{value:.digits$}"); // A String takes everything.
            }
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_as_many_values_as_the_first_one_names() {
        let sample = Sample { seconds: 1.5, disk_bytes: 1 << 40, stalled: 0.25, ..Sample::default() };
        let csv = Sample::csv(&[sample, sample]);
        let lines: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| line.len() == Sample::COLUMNS.len()), "{csv}");
        assert_eq!(lines[1][..2], ["1.500", "1099511627776"]);
    }
}
