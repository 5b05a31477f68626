//! `pagectl verify`, `pagectl repair`: what is damaged, and what became of it.

use std::fmt::Write;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use pageserver::client::{ImportProgress, ResultSet, Row, quote};

use crate::connect::{ServerArgs, show_rows};
use crate::output::{Outcome, Output};

/// Reads everything that a server keeps again, while it serves, and lists what is damaged
///
/// Every version of the store, every page as it would be served, every record of WAL, the files of metadata; past all caches. Exit code 1 if
/// anything is wrong.
#[derive(Debug, clap::Args)]
pub struct Verify {
    /// Only this timeline, by name or id
    #[arg(long)]
    timeline: Option<String>,
    /// Read at most so many MiB a second
    #[arg(long, value_name = "MIB_PER_SECOND", value_parser = clap::value_parser!(u64).range(1..=1 << 40))]
    rate: Option<u64>,
}

/// Mends what `verify` finds, as far as it can be mended without guessing
///
/// WAL segments come from the primary again, if it still has them; files of metadata are written again from what the running server knows; versions
/// that are nobody's are deleted. Damaged files of the store stay. Exit code 1 unless all is repaired.
#[derive(Debug, clap::Args)]
pub struct Repair {
    /// Only this timeline, by name or id
    #[arg(long)]
    timeline: Option<String>,
    /// Only tell what would be tried
    #[arg(long)]
    dry_run: bool,
}

impl Verify {
    /// Runs it.
    pub fn run(&self, server: &ServerArgs, output: &mut Output) -> Result<Outcome> {
        let rate = self.rate.map(|rate| format!(" RATE {rate}")).unwrap_or_default();
        let command = format!("VERIFY{}{rate}", name_clause(self.timeline.as_deref()));
        let rows = run(server, &command)?;
        show(&rows, &["timeline", "part", "object"], &["lsn", "file"], &["what", "what_to_do"], output)?;
        Ok(if rows.rows.is_empty() { Outcome::Good } else { Outcome::Bad })
    }
}

impl Repair {
    /// Runs it.
    pub fn run(&self, server: &ServerArgs, output: &mut Output) -> Result<Outcome> {
        let dry_run = if self.dry_run { " DRY RUN" } else { "" };
        let command = format!("REPAIR{}{dry_run}", name_clause(self.timeline.as_deref()));
        let rows = run(server, &command)?;
        show(&rows, &["timeline", "part", "object"], &["file"], &["outcome", "what"], output)?;
        let outcome = rows.column("outcome").context("the server's answer has no column outcome")?;
        let is_mended = |row: &Row| row.get(outcome) == Some("repaired");
        Ok(if rows.rows.iter().all(is_mended) { Outcome::Good } else { Outcome::Bad })
    }
}

fn name_clause(timeline: Option<&str>) -> String {
    timeline.map(|name| format!(" {}", quote(name))).unwrap_or_default()
}

/// Runs a command that takes long. Its notices go to standard error, its progress to a bar there.
fn run(server: &ServerArgs, command: &str) -> Result<ResultSet> {
    let bar = ProgressBar::no_length();
    bar.set_style(ProgressStyle::with_template("{msg} {bar:30} {decimal_bytes} of {decimal_total_bytes}, {eta}")?);
    let mut on_notice = |notice: &str| match ImportProgress::parse(notice) {
        Some(progress) => {
            if bar.message() != progress.phase {
                bar.reset();
                bar.set_message(progress.phase);
            }
            bar.set_length(progress.bytes_total.unwrap_or(progress.bytes_done).max(progress.bytes_done));
            bar.set_position(progress.bytes_done);
        }
        None => bar.suspend(|| eprintln!("{notice}")),
    };
    let results = server.connect()?.query_with_notices(command, &mut on_notice);
    bar.finish_and_clear();
    results?.pop().context("the server gave no answer")
}

/// One paragraph for each row: a table would be wider than any terminal.
fn show(rows: &ResultSet, head: &[&str], places: &[&str], texts: &[&str], output: &mut Output) -> Result<()> {
    if output.is_json() {
        return show_rows(rows, output);
    }
    if rows.rows.is_empty() {
        return output.text("nothing is wrong\n");
    }
    rows.rows.iter().try_for_each(|row| output.text(&paragraph(rows, row, head, places, texts)))
}

fn paragraph(rows: &ResultSet, row: &Row, head: &[&str], places: &[&str], texts: &[&str]) -> String {
    let value = |name: &&str| rows.column(name).and_then(|column| row.get(column));
    let mut text = head.iter().filter_map(value).collect::<Vec<_>>().join(": ");
    for name in places {
        if let Some(value) = value(name) {
            let _ = write!(text, ", {name} {value}");
        }
    }
    text.push('\n');
    for value in texts.iter().filter_map(value) {
        let _ = writeln!(text, "    {value}");
    }
    text
}
