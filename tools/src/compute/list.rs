//! `pagectl compute list`: every compute with its state. Asks no server.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Result;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use postgres_ffi::PgVersion;
use serde::Serialize;

use super::place::{ComputesArgs, Place};
use super::postmaster;
use super::record::{self, Progress, Record};
use crate::output::Output;

/// `st_blocks` counts in these, whatever the file system's own are. Linux: stat(2).
const STAT_BLOCK_BYTES: u64 = 512;

/// Lists computes: name, branch, version, port, process id, state, size on disk
#[derive(Debug, clap::Args)]
pub struct List {
    #[command(flatten)]
    computes: ComputesArgs,
}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    branch: Option<String>,
    pg_version: Option<PgVersion>,
    port: Option<u16>,
    pid: Option<i32>,
    /// `creating`, `running`, `stopped`, `crashed`, or `damaged` when `compute.json` cannot be read.
    state: String,
    disk_bytes: u64,
}

impl List {
    /// Runs it.
    pub fn run(&self, output: &mut Output) -> Result<()> {
        let rows = record::all(&self.computes.directory()?)?
            .into_iter()
            .map(|(name, place, record)| row(name.to_string(), &place, record));
        if output.is_json() {
            return rows.into_iter().try_for_each(|row| output.json_line(&row));
        }
        let mut table = Table::new();
        table.load_preset(NOTHING).set_header(["name", "branch", "version", "port", "pid", "state", "size on disk"]);
        let text = |value: Option<String>| value.unwrap_or_default();
        for row in rows {
            table.add_row([
                row.name,
                text(row.branch),
                text(row.pg_version.map(|version| version.to_string())),
                text(row.port.map(|port| port.to_string())),
                text(row.pid.map(|pid| pid.to_string())),
                row.state,
                format!("{:.1} MB", row.disk_bytes as f64 / 1e6),
            ]);
        }
        output.text(&format!("{}\n", table.trim_fmt()))
    }
}

fn row(name: String, place: &Place, record: Result<Record>) -> Row {
    let (process, pid) = postmaster::state(place);
    let state = match &record {
        Err(_) => "damaged".to_owned(),
        Ok(record) if record.progress == Progress::Creating => "creating".to_owned(),
        Ok(_) => process.to_string(),
    };
    let record = record.ok();
    Row {
        name,
        branch: record.as_ref().map(|record| record.branch.clone()),
        pg_version: record.as_ref().map(|record| record.pg_version),
        port: record.as_ref().map(|record| record.port),
        pid,
        state,
        disk_bytes: disk_bytes(place.root()),
    }
}

/// What the directory takes on disk. Files that vanish meanwhile, or that we may not see, do not count.
pub fn disk_bytes(path: &Path) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else { return 0 };
    let own = metadata.blocks() * STAT_BLOCK_BYTES;
    match metadata.is_dir() {
        true => {
            own + fs::read_dir(path).into_iter().flatten().flatten().map(|entry| disk_bytes(&entry.path())).sum::<u64>()
        }
        false => own,
    }
}
