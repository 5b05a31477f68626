//! The samples as a picture: one panel below the other, time to the right, in SVG.

use std::fmt::Write as _;

use super::Sample;

const WIDTH: f64 = 900.0;
const PANEL_HEIGHT: f64 = 110.0;
/// Room left of the panels, for the scale, and above each, for its title.
const LEFT: f64 = 80.0;
const TITLE: f64 = 24.0;
const COLOURS: [&str; 2] = ["#1f6fb2", "#c2571a"];

/// A line of a panel: what it is called, and its value.
type Line = (&'static str, fn(&Sample) -> f64);

const PANELS: &[(&str, &[Line])] = &[
    (
        "disk, MiB",
        &[("data directory", |sample| mib(sample.disk_bytes)), ("SST files", |sample| mib(sample.sst_bytes))],
    ),
    ("resident memory, MiB", &[("page server", |sample| mib(sample.rss_bytes))]),
    (
        "WAL, MiB",
        &[("lag", |sample| mib(sample.lag_bytes)), ("arrived since the last sample", |sample| mib(sample.wal_bytes))],
    ),
    (
        "GetPage, milliseconds",
        &[("p50", |sample| sample.read_p50_us as f64 / 1e3), ("p99", |sample| sample.read_p99_us as f64 / 1e3)],
    ),
    (
        "deltas in a chain, at most",
        &[("p50", |sample| sample.chain_p50 as f64), ("p99", |sample| sample.chain_p99 as f64)],
    ),
    ("compaction wrote, MiB", &[("since the last sample", |sample| mib(sample.compaction_bytes))]),
    ("ingest waited, percent of the time", &[("for room in memory", |sample| sample.stalled * 100.0)]),
];

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The picture, with `title` above it.
pub fn svg(title: &str, samples: &[Sample]) -> String {
    let height = (PANEL_HEIGHT + TITLE) * PANELS.len() as f64 + 3.0 * TITLE;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"{LEFT}\" y=\"18\" font-size=\"14\">{}</text>\n",
        escape(title)
    );
    let seconds_max = samples.last().map_or(1.0, |sample| sample.seconds.max(1.0));
    for (at, (title, lines)) in PANELS.iter().enumerate() {
        let top = TITLE + (PANEL_HEIGHT + TITLE) * at as f64 + TITLE;
        panel(&mut text, top, title, lines, samples, seconds_max);
    }
    let _ = write!(
        text,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{:.1} minutes</text>\n</svg>\n",
        WIDTH - 10.0,
        height - 8.0,
        seconds_max / 60.0
    );
    text
}

fn panel(text: &mut String, top: f64, title: &str, lines: &[Line], samples: &[Sample], seconds_max: f64) {
    let values = |value: fn(&Sample) -> f64| samples.iter().map(value);
    let highest = lines.iter().flat_map(|(_, value)| values(*value)).fold(0.0_f64, f64::max);
    let scale = if highest > 0.0 { highest } else { 1.0 };
    let (bottom, right) = (top + PANEL_HEIGHT, WIDTH - 10.0);
    let (title, title_y, scale_x, scale_y) = (escape(title), top - 6.0, LEFT - 6.0, top + 10.0);
    let _ = writeln!(
        text,
        "<text x=\"{LEFT}\" y=\"{title_y}\">{title}</text>\n\
         <path d=\"M{LEFT} {top}V{bottom}H{right}\" fill=\"none\" stroke=\"#888\"/>\n\
         <text x=\"{scale_x}\" y=\"{scale_y}\" text-anchor=\"end\">{highest:.1}</text>\
         <text x=\"{scale_x}\" y=\"{bottom}\" text-anchor=\"end\">0</text>",
    );
    for (at, (name, value)) in lines.iter().enumerate() {
        let colour = COLOURS[at % COLOURS.len()];
        let points: Vec<String> = samples
            .iter()
            .map(|sample| {
                let x = LEFT + sample.seconds / seconds_max * (right - LEFT);
                format!("{x:.1},{:.1}", bottom - value(sample) / scale * PANEL_HEIGHT)
            })
            .collect();
        let _ = writeln!(
            text,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\"/><text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"{colour}\">{}</text>",
            points.join(" "),
            right - 190.0 * at as f64,
            top - 6.0,
            escape(name)
        );
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_has_a_point_for_each_sample_within_the_picture() {
        let samples: Vec<Sample> = (1..=5)
            .map(|n| Sample { seconds: f64::from(n), disk_bytes: u64::from(n as u32) << 20, ..Sample::default() })
            .collect();
        let picture = svg("a < b", &samples);
        let lines: Vec<&str> = picture.split("<polyline points=\"").skip(1).collect();
        assert_eq!(lines.len(), PANELS.iter().map(|(_, lines)| lines.len()).sum::<usize>());
        for line in lines {
            let points: Vec<&str> = line.split('"').next().unwrap().split(' ').collect();
            assert_eq!(points.len(), samples.len());
            for point in points {
                let (x, _) = point.split_once(',').unwrap();
                assert!((0.0..=WIDTH).contains(&x.parse::<f64>().unwrap()), "{point}");
            }
        }
        assert!(picture.contains("a &lt; b") && svg("nothing", &[]).ends_with("</svg>\n"));
    }
}
