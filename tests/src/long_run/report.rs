//! What a long run comes to: the last third against the first, and reads while compaction writes against reads while it does not.

use std::fmt::Write as _;

use super::Sample;

/// The ratios as text. A ratio of something that was not seen is `-`.
pub fn report(samples: &[Sample]) -> String {
    let third = samples.len() / 3;
    let (first, last) = (&samples[..third], &samples[samples.len() - third..]);
    let mut text = String::new();
    let mut line = |what: &str, before: Option<f64>, after: Option<f64>, unit: &str, scale: f64| {
        let shown = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{:.1}", value / scale));
        let ratio = match (before, after) {
            (Some(before), Some(after)) if before > 0.0 => format!("{:.2}", after / before),
            _ => "-".to_owned(),
        };
        let _ = writeln!(text, "{what:44} {:>10} {:>10} {unit:5} ratio {ratio}", shown(before), shown(after));
    };
    let mib = f64::from(1 << 20);
    let thirds = [
        ("data directory, first and last third", (|sample| sample.disk_bytes as f64) as fn(&Sample) -> f64, "MiB", mib),
        ("SST files, first and last third", |sample| sample.sst_bytes as f64, "MiB", mib),
        ("resident memory, first and last third", |sample| sample.rss_bytes as f64, "MiB", mib),
        ("lag, first and last third", |sample| sample.lag_bytes as f64, "MiB", mib),
        ("chains p99, first and last third", |sample| sample.chain_p99 as f64, "", 1.0),
        ("GetPage p50, first and last third", |sample| sample.read_p50_us as f64, "us", 1.0),
        ("GetPage p99, first and last third", |sample| sample.read_p99_us as f64, "us", 1.0),
    ];
    for (what, value, unit, scale) in thirds {
        line(what, mean(first, value), mean(last, value), unit, scale);
    }
    let (busy, idle): (Vec<Sample>, Vec<Sample>) = samples.iter().partition(|sample| sample.compaction_bytes > 0);
    let p99 = |sample: &Sample| sample.read_p99_us as f64;
    line("GetPage p99, compaction idle and at work", mean(&idle, p99), mean(&busy, p99), "us", 1.0);
    text
}

fn mean(samples: &[Sample], value: impl Fn(&Sample) -> f64) -> Option<f64> {
    if samples.is_empty() {
        return None;
    }
    Some(samples.iter().map(value).sum::<f64>() / samples.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_third_is_held_against_the_first() {
        let sample = |disk_mib: u64, compaction_bytes| Sample {
            disk_bytes: disk_mib << 20,
            compaction_bytes,
            read_p99_us: if compaction_bytes > 0 { 300 } else { 100 },
            ..Sample::default()
        };
        let text = report(&[sample(100, 0), sample(500, 1), sample(250, 0)]);
        assert!(text.lines().any(|line| line.starts_with("data directory") && line.ends_with("ratio 2.50")), "{text}");
        assert!(text.lines().any(|line| line.contains("at work") && line.ends_with("ratio 3.00")), "{text}");
        assert!(text.lines().any(|line| line.starts_with("lag") && line.ends_with("ratio -")), "{text}");
        assert!(report(&[]).lines().all(|line| line.ends_with('-')));
    }
}
