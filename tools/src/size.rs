//! `pagectl size`: what timelines cost.
//!
//! - Sizes for people in the table (`1.21 GiB`), bytes in JSON.

use anyhow::{Context, Result};
use indicatif::HumanBytes;
use pageserver::client::{ResultSet, Row, quote};
use postgres_ffi::Lsn;

use crate::branch;
use crate::connect::{ServerArgs, at_clause, show_rows};
use crate::output::Output;

/// Shows how big timelines are, what their history and WAL take, and what their deletion would give back
///
/// logical: relations and SLRUs at the LSN, as PostgreSQL's files would have them. history: all versions of the timeline's own, compressed, in the
/// store's files. own: history and WAL, which is what its deletion gives back; what a branch shows of its ancestors is theirs. pinned by: branches and
/// leases that keep an LSN older than the retention asks for.
#[derive(Debug, clap::Args)]
pub struct Size {
    /// Only this timeline, by name or id
    timeline: Option<String>,
    /// As of this LSN instead of the last record
    #[arg(long)]
    at: Option<Lsn>,
    /// One line for each database in each tablespace
    #[arg(long, conflicts_with = "pins")]
    databases: bool,
    /// Count what each branch alone keeps in its ancestors: walks over their history
    #[arg(long)]
    pins: bool,
}

/// A column of a table: what it is called, and how it is made of a row of the server's.
type Shown = (&'static str, fn(&Answer<'_>) -> String);

const SIZES: &[Shown] = &[
    ("timeline", |answer| answer.text("timeline")),
    ("logical", |answer| answer.bytes("logical_bytes")),
    ("history", |answer| answer.bytes("history_bytes")),
    ("wal", |answer| answer.bytes("wal_bytes")),
    ("own", |answer| answer.bytes("own_bytes")),
    ("pinned by", |answer| answer.text("pinned_by")),
];

const PINS: &[Shown] =
    &[("pins", |answer| answer.text("pins")), ("pins only for it", |answer| answer.bytes("pinned_bytes"))];

const DATABASES: &[Shown] = &[
    ("timeline", |answer| answer.text("timeline")),
    ("tablespace", |answer| answer.text("tablespace")),
    ("database", |answer| answer.text("database")),
    ("relations", |answer| answer.text("relations")),
    ("size", |answer| answer.bytes("bytes")),
];

/// A row of the server's answer.
struct Answer<'a> {
    rows: &'a ResultSet,
    row: &'a Row,
}

impl Answer<'_> {
    fn value(&self, column: &str) -> Option<&str> {
        self.row.get(self.rows.column(column)?)
    }

    /// Empty for NULL.
    fn text(&self, column: &str) -> String {
        self.value(column).unwrap_or_default().to_owned()
    }

    /// For people; empty for NULL.
    fn bytes(&self, column: &str) -> String {
        let value = self.value(column).unwrap_or_default();
        value.parse().map_or_else(|_| value.to_owned(), |bytes| HumanBytes(bytes).to_string())
    }
}

impl Size {
    /// Runs it.
    pub fn run(&self, server: &ServerArgs, output: &mut Output) -> Result<()> {
        let rows = branch::ask(server, &self.command())?;
        if output.is_json() {
            return show_rows(&rows, output);
        }
        output.text(&table(&rows, &self.shown())?)
    }

    fn command(&self) -> String {
        let word = if self.databases { "SHOW SIZES" } else { "SIZE" };
        let name = self.timeline.as_ref().map(|name| format!(" {}", quote(name))).unwrap_or_default();
        let pins = if self.pins { " PINS" } else { "" };
        format!("{word}{name}{}{pins}", at_clause(self.at))
    }

    fn shown(&self) -> Vec<Shown> {
        match self.databases {
            true => DATABASES.to_vec(),
            false => [SIZES, if self.pins { PINS } else { &[] }].concat(),
        }
    }
}

fn table(rows: &ResultSet, shown: &[Shown]) -> Result<String> {
    rows.column("timeline").context("the server's answer has no column timeline")?;
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_header(shown.iter().map(|(name, _)| *name));
    for row in &rows.rows {
        let answer = Answer { rows, row };
        table.add_row(shown.iter().map(|(_, of)| of(&answer)));
    }
    Ok(format!("{}\n", table.trim_fmt()))
}

#[cfg(test)]
mod tests {
    //! Goal: what was asked for is what the server is told. Method: plain cases.

    use super::*;

    #[test]
    fn options_become_clauses() {
        let command = |timeline: Option<&str>, at: Option<u64>, databases, pins| {
            Size { timeline: timeline.map(str::to_owned), at: at.map(Lsn::new), databases, pins }.command()
        };
        assert_eq!(command(None, None, false, false), "SIZE");
        assert_eq!(command(Some("it's"), Some(16), false, true), "SIZE 'it''s' AT '0/10' PINS");
        assert_eq!(command(Some("main"), None, true, false), "SHOW SIZES 'main'");
    }
}
