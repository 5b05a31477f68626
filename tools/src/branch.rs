//! `pagectl branch`, `pagectl lease`, and what `pagectl timeline` changes.
//!
//! - What throws something away only tells what it would do, unless `--confirm` says to do it.
//! - What the server tells beside its answer goes to standard error.

use std::fmt::Write;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use pageserver::client::{ImportProgress, ResultSet, quote};
use pageserver::wall_time::TimeSpec;
use postgres_ffi::Lsn;
use serde::Serialize;

use crate::connect::{ServerArgs, at_clause, show_rows};
use crate::output::Output;

/// Makes, changes and deletes branches
#[derive(Debug, clap::Subcommand)]
pub enum BranchCommand {
    /// Makes a branch of a timeline as it was at an LSN or a time; takes the same moment whatever its size
    Create {
        /// What to call it
        name: String,
        /// The timeline that it leaves
        #[arg(long)]
        from: String,
        /// Where
        #[command(flatten)]
        point: Point,
    },
    /// Shows all timelines as a tree: who left whom, and where
    List,
    /// Deletes a branch that nothing branches off
    ///
    /// Without --confirm it only tells what it would do.
    Delete(Delete),
    /// Gives a branch another name
    Rename {
        /// Its name or id
        name: String,
        /// What to call it from now on
        new_name: String,
    },
    /// Throws away what a branch has, and begins it anew at its ancestor's last record, an LSN or a time
    ///
    /// It follows no compute or primary then. Without --confirm it only tells what it would do.
    Reset {
        /// Its name or id
        name: String,
        /// Where
        #[command(flatten)]
        point: Point,
        /// Do it
        #[arg(long)]
        confirm: bool,
    },
    /// Copies what a branch reads from its ancestors, so that it needs them no more
    ///
    /// Afterwards nothing below its branch LSN can be read on it, and its ancestor can be deleted.
    Detach {
        /// Its name or id
        name: String,
    },
}

/// Where of a timeline; its last record without.
#[derive(Debug, clap::Args)]
pub struct Point {
    /// At this LSN
    #[arg(long, conflicts_with = "time")]
    lsn: Option<Lsn>,
    /// As it was at this time: `2026-11-25 14:32:00` (UTC without a zone), or `5 minutes ago`
    #[arg(long, allow_hyphen_values = true)]
    time: Option<TimeSpec>,
}

/// `branch delete`, `timeline delete`
#[derive(Debug, clap::Args)]
pub struct Delete {
    /// Its name or id
    name: String,
    /// Do it
    #[arg(long)]
    confirm: bool,
}

/// `timeline follow`
#[derive(Debug, clap::Args)]
pub struct Follow {
    /// Its name or id
    timeline: String,
    /// Connection string of the primary or compute, as libpq takes it
    #[arg(long, env = "PAGECTL_CONNINFO", hide_env_values = true)]
    conninfo: String,
}

/// Takes no WAL any more; the replication slot is dropped as far as the primary lets us
#[derive(Debug, clap::Args)]
pub struct Unfollow {
    /// Its name or id
    timeline: String,
    /// Leave the replication slot alone, because its primary is gone, say
    #[arg(long)]
    keep_slot: bool,
}

/// Keeps LSNs readable while somebody needs them
#[derive(Debug, clap::Subcommand)]
pub enum LeaseCommand {
    /// Leases an LSN of a timeline for a while
    Create {
        /// The timeline, by name or id
        timeline: String,
        /// The LSN
        #[arg(long)]
        lsn: Lsn,
        /// For so many seconds
        #[arg(long, default_value_t = 600)]
        seconds: u64,
    },
    /// Lists the leases that are valid
    List {
        /// Only those on this timeline
        #[arg(long)]
        timeline: Option<String>,
    },
    /// Ends a lease
    End {
        /// Its number
        lease: u64,
    },
}

impl BranchCommand {
    /// Runs it.
    pub fn run(&self, server: &ServerArgs, output: &mut Output) -> Result<()> {
        match self {
            BranchCommand::Create { name, from, point } => {
                let command = format!("BRANCH CREATE {} FROM {}{}", quote(name), quote(from), point.clause());
                change(server, &command, output)
            }
            BranchCommand::List => list(server, output),
            BranchCommand::Delete(delete) => delete.run("BRANCH", server, output),
            BranchCommand::Rename { name, new_name } => {
                change(server, &format!("BRANCH RENAME {} TO {}", quote(name), quote(new_name)), output)
            }
            BranchCommand::Reset { name, point, confirm } => {
                if !confirm {
                    return would(server, name, "reset", output);
                }
                change(server, &format!("BRANCH RESET {}{}", quote(name), point.clause()), output)
            }
            BranchCommand::Detach { name } => change(server, &format!("BRANCH DETACH {}", quote(name)), output),
        }
    }
}

impl Point {
    fn clause(&self) -> String {
        match &self.time {
            Some(time) => format!(" AT TIME {}", quote(&time.to_string())),
            None => at_clause(self.lsn),
        }
    }
}

impl Delete {
    /// Runs it, as `BRANCH DELETE` or `TIMELINE DELETE`.
    pub fn run(&self, word: &str, server: &ServerArgs, output: &mut Output) -> Result<()> {
        if !self.confirm {
            return would(server, &self.name, "deleted", output);
        }
        change(server, &format!("{word} DELETE {}", quote(&self.name)), output)
    }
}

impl Follow {
    /// Runs it.
    pub fn run(&self, server: &ServerArgs, output: &mut Output) -> Result<()> {
        let command = format!("TIMELINE FOLLOW {} FROM {}", quote(&self.timeline), quote(&self.conninfo));
        change(server, &command, output)
    }
}

impl Unfollow {
    /// Runs it.
    pub fn run(&self, server: &ServerArgs, output: &mut Output) -> Result<()> {
        let keep_slot = if self.keep_slot { " KEEP SLOT" } else { "" };
        change(server, &format!("TIMELINE UNFOLLOW {}{keep_slot}", quote(&self.timeline)), output)
    }
}

impl LeaseCommand {
    /// Runs it.
    pub fn run(&self, server: &ServerArgs, output: &mut Output) -> Result<()> {
        let command = match self {
            LeaseCommand::Create { timeline, lsn, seconds } => {
                format!("LEASE {} AT {} FOR {seconds}", quote(timeline), quote(&lsn.to_string()))
            }
            LeaseCommand::List { timeline: Some(timeline) } => format!("LEASE LIST {}", quote(timeline)),
            LeaseCommand::List { timeline: None } => "LEASE LIST".to_owned(),
            LeaseCommand::End { lease } => format!("LEASE END {lease}"),
        };
        server.show(&command, output)
    }
}

/// Runs a command that changes timelines: its rows, its notices and its progress.
pub(crate) fn change(server: &ServerArgs, command: &str, output: &mut Output) -> Result<()> {
    show_rows(&ask(server, command)?, output)
}

/// Rows of a command; its notices and its progress go to standard error.
pub(crate) fn ask(server: &ServerArgs, command: &str) -> Result<ResultSet> {
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template("{wide_bar} {bytes} of {total_bytes}, {eta} left")?);
    let mut on_notice = |notice: &str| match ImportProgress::parse(notice) {
        Some(progress) => {
            bar.set_length(progress.bytes_total.unwrap_or(progress.bytes_done));
            bar.set_position(progress.bytes_done);
        }
        None => eprintln!("{notice}"),
    };
    let results = server.connect()?.query_with_notices(command, &mut on_notice);
    bar.finish_and_clear();
    results?.into_iter().next().context("the server gave no answer")
}

/// A timeline as the server lists it.
#[derive(Debug, Clone, Serialize)]
struct Listed {
    name: String,
    /// Ancestors that it has.
    depth: usize,
    ancestor: Option<String>,
    ancestor_lsn: Option<String>,
    state: String,
    first_readable_lsn: String,
    last_record_lsn: String,
    id: String,
}

impl Listed {
    fn all(rows: &ResultSet) -> Result<Vec<Self>> {
        let column = |name| rows.column(name).with_context(|| format!("the server's answer has no column {name}"));
        let (name, ancestor, ancestor_lsn) = (column("name")?, column("ancestor")?, column("ancestor_lsn")?);
        let (state, first, last) = (column("state")?, column("first_readable_lsn")?, column("last_record_lsn")?);
        let id = column("id")?;
        let listed = rows.rows.iter().map(|row| {
            let text = |column| row.get(column).unwrap_or_default().to_owned();
            Listed {
                name: text(name),
                depth: 0,
                ancestor: row.get(ancestor).map(str::to_owned),
                ancestor_lsn: row.get(ancestor_lsn).map(str::to_owned),
                state: text(state),
                first_readable_lsn: text(first),
                last_record_lsn: text(last),
                id: text(id),
            }
        });
        Ok(listed.collect())
    }
}

fn timelines(server: &ServerArgs) -> Result<Vec<Listed>> {
    Listed::all(&server.connect()?.query_one("SHOW TIMELINES")?)
}

fn list(server: &ServerArgs, output: &mut Output) -> Result<()> {
    let tree = tree(&timelines(server)?);
    if output.is_json() {
        return tree.iter().try_for_each(|(_, listed)| output.json_line(listed));
    }
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_header(["timeline", "left at", "state", "first readable", "last record"]);
    for (lines, listed) in &tree {
        let left_at = listed.ancestor_lsn.clone().unwrap_or_default();
        table.add_row([
            format!("{lines}{}", listed.name),
            left_at,
            listed.state.clone(),
            listed.first_readable_lsn.clone(),
            listed.last_record_lsn.clone(),
        ]);
    }
    output.text(&format!("{}\n", table.trim_fmt()))
}

/// Every timeline below the one that it left, with the lines that lead to it.
fn tree(all: &[Listed]) -> Vec<(String, Listed)> {
    let mut found = Vec::new();
    // An ancestor that is not listed (it was deleted between two answers) does not hide its branches.
    let is_listed = |name: &str| all.iter().any(|listed| listed.name == name);
    for root in all.iter().filter(|listed| !listed.ancestor.as_deref().is_some_and(is_listed)) {
        found.push((String::new(), root.clone()));
        add_branches(all, root, "", 1, &mut found);
    }
    found
}

fn add_branches(all: &[Listed], of: &Listed, lines: &str, depth: usize, found: &mut Vec<(String, Listed)>) {
    let branches: Vec<&Listed> =
        all.iter().filter(|listed| listed.ancestor.as_ref() == Some(&of.name) && listed.name != of.name).collect();
    for (index, branch) in branches.iter().enumerate() {
        let is_last = index + 1 == branches.len();
        let corner = if is_last { "└─ " } else { "├─ " };
        found.push((format!("{lines}{corner}"), Listed { depth, ..(*branch).clone() }));
        let below = if is_last { "   " } else { "│  " };
        add_branches(all, branch, &format!("{lines}{below}"), depth + 1, found);
    }
}

/// What a command would do that was not confirmed.
#[derive(Debug, Serialize)]
struct Would {
    name: String,
    /// `deleted`, `reset`
    would_be: &'static str,
    done: bool,
    ancestor: Option<String>,
    ancestor_lsn: Option<String>,
    last_record_lsn: String,
    /// They branch off: it would be refused.
    branches: Vec<String>,
}

impl std::fmt::Display for Would {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut from = String::new();
        if let (Some(ancestor), Some(lsn)) = (&self.ancestor, &self.ancestor_lsn) {
            write!(from, ", a branch of {ancestor} at {lsn}")?;
        }
        if !self.branches.is_empty() {
            let branches = self.branches.join(", ");
            return write!(f, "{}{from}: cannot be {}, these branch off: {branches}", self.name, self.would_be);
        }
        write!(
            f,
            "{}{from}, last record at {}: would be {}\nnothing was done: --confirm does it",
            self.name, self.last_record_lsn, self.would_be
        )
    }
}

fn would(server: &ServerArgs, name: &str, would_be: &'static str, output: &mut Output) -> Result<()> {
    let all = timelines(server)?;
    let Some(this) = all.iter().find(|listed| listed.name == name || listed.id == name) else {
        bail!("the page server has no such timeline. timeline=`{name}`");
    };
    let branches_off = |listed: &&Listed| listed.ancestor.as_ref() == Some(&this.name);
    output.value(&Would {
        name: this.name.clone(),
        would_be,
        done: false,
        ancestor: this.ancestor.clone(),
        ancestor_lsn: this.ancestor_lsn.clone(),
        last_record_lsn: this.last_record_lsn.clone(),
        branches: all.iter().filter(branches_off).map(|listed| listed.name.clone()).collect(),
    })
}

#[cfg(test)]
mod tests {
    //! Goal: a tree shows every timeline once, under the one that it left. Method: plain cases.

    use super::*;

    fn listed(name: &str, ancestor: Option<&str>) -> Listed {
        Listed {
            name: name.to_owned(),
            depth: 0,
            ancestor: ancestor.map(str::to_owned),
            ancestor_lsn: ancestor.map(|_| "0/3000060".to_owned()),
            state: "active".to_owned(),
            first_readable_lsn: "0/2000028".to_owned(),
            last_record_lsn: "0/4000000".to_owned(),
            id: String::new(),
        }
    }

    #[test]
    fn branches_stand_below_what_they_left() {
        let all = [
            listed("a", Some("main")),
            listed("b", Some("a")),
            listed("c", Some("main")),
            listed("main", None),
            listed("orphan", Some("gone")),
            listed("z", Some("a")),
        ];
        let shown: Vec<String> = tree(&all).iter().map(|(lines, listed)| format!("{lines}{}", listed.name)).collect();
        assert_eq!(shown, ["main", "├─ a", "│  ├─ b", "│  └─ z", "└─ c", "orphan"]);
        let depths: Vec<usize> = tree(&all).iter().map(|(_, listed)| listed.depth).collect();
        assert_eq!(depths, [0, 1, 2, 2, 1, 0]);
    }

    #[test]
    fn points_are_one_or_none() {
        let point = |lsn: Option<Lsn>, time: Option<&str>| {
            Point { lsn, time: time.map(|time| time.parse().expect("a time")) }.clause()
        };
        assert_eq!(point(None, None), "");
        assert_eq!(point(Some(Lsn::new(16)), None), " AT '0/10'");
        assert_eq!(point(None, Some("2026-11-25 14:00:00")), " AT TIME '2026-11-25T14:00:00.000000Z'");
    }
}
