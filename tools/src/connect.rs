//! Talking to a page server: address, commands, tables of rows.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use pageserver::client::{Client, ClientConfig, ResultSet, quote};
use pageserver::page_service::message::ColumnType;
use postgres_ffi::Lsn;
use serde_json::{Map, Value};

use crate::output::Output;

const BOOL: u32 = ColumnType::Bool.oid();
const INT8: u32 = ColumnType::Int8.oid();
/// How often a wait for an LSN looks again.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Which page server.
#[derive(Debug, Clone, clap::Args)]
pub struct ServerArgs {
    /// Page server to talk to, HOST:PORT
    #[arg(long, global = true, default_value = "127.0.0.1:6400", env = "PAGECTL_SERVER")]
    pub server: String,
}

impl ServerArgs {
    /// Connects.
    pub fn connect(&self) -> Result<Client> {
        self.connect_with(ClientConfig::new(&self.server))
    }

    /// Connects, and waits no longer than `limit` for a message of the server.
    pub fn connect_impatient(&self, limit: Duration) -> Result<Client> {
        let config = ClientConfig::new(&self.server);
        self.connect_with(ClientConfig { read_timeout: Some(limit), ..config })
    }

    fn connect_with(&self, mut config: ClientConfig) -> Result<Client> {
        config.application_name = "pagectl".to_owned();
        Client::connect(&config).with_context(|| format!("connect to the page server at {}", self.server))
    }

    /// Runs one command and shows its rows.
    pub fn show(&self, command: &str, output: &mut Output) -> Result<()> {
        let rows = self.connect()?.query_one(command)?;
        show_rows(&rows, output)
    }
}

/// ` AT '0/16B5A50'`, or nothing.
pub fn at_clause(lsn: Option<Lsn>) -> String {
    lsn.map(|lsn| format!(" AT {}", quote(&lsn.to_string()))).unwrap_or_default()
}

/// Rows as a table, or as one JSON object per line. NULL is empty, or null.
pub fn show_rows(rows: &ResultSet, output: &mut Output) -> Result<()> {
    if output.is_json() {
        return rows.rows.iter().try_for_each(|row| output.json_line(&json_row(rows, row.values())));
    }
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_header(&rows.columns);
    for row in &rows.rows {
        table.add_row(row.values().iter().map(|value| value.clone().unwrap_or_default()));
    }
    output.text(&format!("{}\n", table.trim_fmt()))
}

/// Numbers and truth values of the wire are text; in JSON they are what they are, by the types of their columns. In a list of names and values each value is of a type of its own: there
/// plain numbers are numbers.
fn json_row(rows: &ResultSet, values: &[Option<String>]) -> Map<String, Value> {
    let value = |(index, text): (usize, &Option<String>)| match text {
        None => Value::Null,
        Some(text) => match rows.types.get(index) {
            Some(&BOOL) => Value::from(text == "t"),
            Some(&INT8) => number(text),
            _ if rows.columns.get(index).is_some_and(|column| column == "value") => number(text),
            _ => Value::from(text.as_str()),
        },
    };
    rows.columns.iter().cloned().zip(values.iter().enumerate().map(value)).collect()
}

fn number(text: &str) -> Value {
    text.parse::<i64>().map_or_else(|_| Value::from(text), Value::from)
}

/// Returns once the timeline has everything up to `lsn`. Errors: it has not after `timeout`.
pub fn wait_for_lsn(client: &mut Client, timeline: &str, lsn: Lsn, timeout: Duration) -> Result<()> {
    let deadline = Instant::now() + timeout;
    loop {
        let rows = client.query_one(&format!("SHOW LAST_RECORD_LSN {}", quote(timeline)))?;
        let column = rows.column("last_record_lsn").context("the server's answer has no last_record_lsn")?;
        let last_record_lsn = rows.rows.first().and_then(|row| row.get_lsn(column)).unwrap_or_default();
        if last_record_lsn >= lsn {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!(
                "the timeline did not get so far in time. timeline=`{timeline}`, wanted=`{lsn}`, last_record_lsn=`{last_record_lsn}`"
            );
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}
