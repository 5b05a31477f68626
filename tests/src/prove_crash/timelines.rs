//! What timelines there are, as the page server shows them and as its directory has them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use pageserver::client::{Client, ClientError, ResultSet};
use postgres_ffi::Lsn;
use serde_json::Value;

/// What of a timeline changes by operations alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// 32 hexadecimal digits.
    pub id: String,
    /// The ancestor's id and the branch LSN.
    pub ancestor: Option<(String, Lsn)>,
    /// It has a primary.
    pub follows: bool,
}

/// What can be read of a timeline now.
#[derive(Clone, Debug)]
pub struct Reach {
    /// Its name.
    pub name: String,
    /// `active`, `catching up`, ...
    pub state: String,
    /// The lowest LSN; `None` while it is being imported.
    pub first_readable_lsn: Option<Lsn>,
    /// The highest LSN.
    pub last_record_lsn: Lsn,
}

/// Timelines by name.
pub type Timelines = BTreeMap<String, Shown>;

/// All timelines now. `Err` of the inner kind: the server did not answer.
pub fn look(client: &mut Client, data_dir: &Path) -> Result<Result<(Timelines, Vec<Reach>), ClientError>> {
    let rows = match client.query_one("SHOW TIMELINES") {
        Ok(rows) => rows,
        Err(error) => return Ok(Err(error)),
    };
    let column = |name: &str| rows.column(name).with_context(|| format!("no column {name} in SHOW TIMELINES"));
    let columns = ["name", "state", "ancestor", "ancestor_lsn", "first_readable_lsn", "last_record_lsn", "id"];
    let columns: Vec<usize> = columns.into_iter().map(column).collect::<Result<_>>()?;
    let ids = ids_by_name(&rows, columns[0], columns[6]);
    let (mut timelines, mut reaches) = (Timelines::new(), Vec::new());
    for row in &rows.rows {
        let text = |at: usize| row.get(columns[at]).unwrap_or_default().to_owned();
        let ancestor = match row.get(columns[2]) {
            None => None,
            Some(name) => {
                let id = ids.get(name).with_context(|| format!("the ancestor `{name}` is not listed"))?;
                Some((id.clone(), row.get_lsn(columns[3]).context("no ancestor_lsn")?))
            }
        };
        let id = text(6);
        let follows = has_primary(data_dir, &id)?;
        timelines.insert(text(0), Shown { id, ancestor, follows });
        reaches.push(Reach {
            name: text(0),
            state: text(1),
            first_readable_lsn: row.get_lsn(columns[4]).filter(|lsn| *lsn != Lsn::MAX),
            last_record_lsn: row.get_lsn(columns[5]).context("no last_record_lsn")?,
        });
    }
    Ok(Ok((timelines, reaches)))
}

fn ids_by_name(rows: &ResultSet, name: usize, id: usize) -> BTreeMap<String, String> {
    let pair = |row: &pageserver::client::Row| Some((row.get(name)?.to_owned(), row.get(id)?.to_owned()));
    rows.rows.iter().filter_map(pair).collect()
}

fn has_primary(data_dir: &Path, id: &str) -> Result<bool> {
    let path = data_dir.join("timelines").join(id).join("timeline.json");
    let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let metadata: Value = serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))?;
    Ok(metadata["primary"].is_object())
}

/// Nothing but the directories of `timelines` is there, and no mark in them. Requires: nobody makes or changes a timeline.
pub fn check_directories(data_dir: &Path, timelines: &Timelines) -> Result<()> {
    let dir = data_dir.join("timelines");
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
        let entry = entry?;
        for mark in ["importing", "deleting", "resetting"] {
            ensure!(!entry.path().join(mark).exists(), "a mark stays: {}/{mark}", entry.path().display());
        }
        found.insert(entry.file_name().to_string_lossy().into_owned());
    }
    let expected: BTreeSet<String> = timelines.values().map(|shown| shown.id.clone()).collect();
    ensure!(found == expected, "directories of timelines: {found:?}, shown: {expected:?}");
    Ok(())
}
