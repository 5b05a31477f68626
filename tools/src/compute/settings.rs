//! The configuration of a compute: what it must have in order to start, to stream, and to be reached.
//!
//! - Our settings stand in a file of their own that `postgresql.conf` includes last, so that they win over what is there, and
//!   `ALTER SYSTEM` wins over them.
//! - No value is below what `pg_control` has: a standby refuses lower ones, and prepared transactions need their room.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use postgres_ffi::control_file::ControlFile;
use serde::{Deserialize, Serialize};

use super::place::Place;
use super::postmaster;
use super::record::Record;

/// How the page server calls itself when it connects; `synchronous_standby_names` refers to it.
pub const APPLICATION_NAME: &str = "pageserver";
/// Our file, beside `postgresql.conf`.
const FILE_NAME: &str = "pageserver_compute.conf";

/// How a compute makes sure who connects over TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum Auth {
    /// Not at all: every user of this machine can log in as any role
    #[serde(rename = "trust")]
    Trust,
    /// By the passwords that the roles have
    #[serde(rename = "scram-sha-256")]
    #[value(name = "scram-sha-256")]
    Scram,
}

impl Auth {
    fn method(self) -> &'static str {
        match self {
            Auth::Trust => "trust",
            Auth::Scram => "scram-sha-256",
        }
    }

    /// Where those who have no password connect to: libpq's `host`.
    pub fn host(self, place: &Place) -> String {
        match self {
            Auth::Trust => "127.0.0.1".to_owned(),
            Auth::Scram => place.root().display().to_string(),
        }
    }
}

/// What is chosen for a compute.
#[derive(Clone, Copy, Debug)]
pub struct Choices<'a> {
    /// Its port.
    pub port: u16,
    /// A commit waits until the page server has it.
    pub synchronous: bool,
    /// Who may connect.
    pub auth: Auth,
    /// Connection string of the primary, for a standby.
    pub standby_of: Option<&'a str>,
    /// Where a standby gets WAL that its primary has removed.
    pub restore_command: Option<&'a str>,
    /// `fsync`: what is written survives a crash of the machine.
    pub fsync: bool,
}

/// Whether no commit was acknowledged before the page server had it on disk, as far as the compute's configuration says so: it can be changed after it was made.
/// A role, a database or a session for which `synchronous_commit` was set has chosen otherwise, and does not show here; nor does what has been changed back.
pub fn waits_for_page_server(place: &Place, record: &Record) -> Result<bool> {
    let names = postmaster::setting(place, record, "synchronous_standby_names")?;
    let level = postmaster::setting(place, record, "synchronous_commit")?;
    Ok(names == APPLICATION_NAME && matches!(level.as_str(), "on" | "remote_apply"))
}

/// Writes the configuration into the data directory of `place`, whose control file is `control`.
pub fn write(place: &Place, control: &ControlFile, choices: &Choices<'_>) -> Result<()> {
    let data = place.data();
    replace(&data.join(FILE_NAME), &settings(place, control, choices)?)?;
    replace(&data.join("pg_hba.conf"), &hba(choices.auth))?;
    let main = data.join("postgresql.conf");
    let before = if main.exists() {
        fs::read_to_string(&main).with_context(|| format!("read {}", main.display()))?
    } else {
        String::new()
    };
    replace(&main, &format!("{before}\n# Written by pagectl compute.\ninclude '{FILE_NAME}'\n"))?;
    for empty in ["pg_ident.conf", "postgresql.auto.conf"] {
        let path = data.join(empty);
        if !path.exists() {
            replace(&path, "")?;
        }
    }
    Ok(())
}

fn settings(place: &Place, control: &ControlFile, choices: &Choices<'_>) -> Result<String> {
    // A standby commits nothing. Promoted, it is nobody's until the page server is told to follow it.
    let standby_names = if choices.synchronous && choices.standby_of.is_none() { APPLICATION_NAME } else { "" };
    let wal_level = match control.wal_level {
        ..=1 => "replica",
        2 => "logical",
        other => bail!("the control file has an unknown wal_level. value=`{other}`"),
    };
    let mut text = String::from(
        "# Written by pagectl compute. To change a setting, use ALTER SYSTEM, or add it at the end of postgresql.conf.\n",
    );
    // PG: src/backend/utils/misc/guc-file.l, DeescapeQuotedString.
    let escaped = |value: &str| value.replace('\\', "\\\\").replace('\'', "''");
    let mut set = |name: &str, value: &str| writeln!(text, "{name} = '{}'", escaped(value));
    set("port", &choices.port.to_string())?;
    set("listen_addresses", "127.0.0.1")?;
    set("unix_socket_directories", &socket_directory(place.root())?)?;
    set("shared_buffers", "128MB")?;
    set("wal_level", wal_level)?;
    set("wal_log_hints", on_or_off(control.wal_log_hints))?;
    set("track_commit_timestamp", on_or_off(control.track_commit_timestamp))?;
    set("max_connections", &control.max_connections.max(100).to_string())?;
    set("max_worker_processes", &control.max_worker_processes.max(8).to_string())?;
    set("max_wal_senders", &control.max_wal_senders.max(10).to_string())?;
    set("max_prepared_transactions", &control.max_prepared_xacts.max(0).to_string())?;
    set("max_locks_per_transaction", &control.max_locks_per_xact.max(64).to_string())?;
    set("wal_keep_size", "128MB")?; // What the page server may still want when its slot is made anew.
    set("synchronous_standby_names", standby_names)?;
    set("fsync", on_or_off(choices.fsync))?;
    // A start makes the whole directory durable first. One call for all files instead of one for each: 0.2 s instead of 2 s for an empty cluster.
    set("recovery_init_sync_method", "syncfs")?;
    set("log_line_prefix", "%m [%p] ")?;
    if let Some(primary) = choices.standby_of {
        set("hot_standby", "on")?;
        set("primary_conninfo", primary)?;
        set("restore_command", choices.restore_command.unwrap_or_default())?;
    }
    Ok(text)
}

/// The list of directories has one element: in double quotes, so that nothing in it is taken for a separator.
/// PG: src/backend/utils/adt/varlena.c, SplitDirectoriesString.
fn socket_directory(path: &Path) -> Result<String> {
    let text = path.to_str().filter(|text| !text.contains('\n'));
    let text = text.with_context(|| {
        format!("the directory's name must be UTF-8 without line breaks. path=`{}`", path.display())
    })?;
    Ok(format!("\"{}\"", text.replace('"', "\"\"")))
}

fn on_or_off(value: bool) -> &'static str {
    if value { "on" } else { "off" }
}

/// As initdb makes it, for the addresses that there are. The socket's directory is the server's user's alone.
fn hba(auth: Auth) -> String {
    let method = auth.method();
    format!(
        "# Written by pagectl compute.\n\
         # type  database     user  address       method\n\
         local   all          all                 trust\n\
         local   replication  all                 trust\n\
         host    all          all   127.0.0.1/32  {method}\n\
         host    replication  all   127.0.0.1/32  {method}\n"
    )
}

/// A value of a libpq connection string. PG: libpq.sgml, "Keyword/Value Connection Strings".
pub fn conninfo_value(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

fn replace(path: &Path, text: &str) -> Result<()> {
    let open = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())
    };
    open().with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTROL_17: &[u8] = include_bytes!("../../../postgres_ffi/tests/data/control/pg_control.17");

    #[test]
    fn no_value_is_below_the_control_files() {
        let mut control = ControlFile::decode(CONTROL_17).expect("a control file");
        control.max_connections = 500;
        control.max_wal_senders = 3;
        control.max_prepared_xacts = 20;
        control.wal_level = 2;
        let place = Place::new(Path::new("/a \"b'c"), &"dev".parse().expect("a name"));
        let mut choices = Choices {
            port: 5433,
            synchronous: true,
            auth: Auth::Trust,
            standby_of: None,
            restore_command: None,
            fsync: true,
        };
        let text = settings(&place, &control, &choices).expect("settings");
        for line in [
            "port = '5433'",
            "max_connections = '500'",
            "max_wal_senders = '10'",
            "max_prepared_transactions = '20'",
            "wal_level = 'logical'",
            "synchronous_standby_names = 'pageserver'",
            "unix_socket_directories = '\"/a \"\"b''c/dev\"'",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        assert!(!text.contains("primary_conninfo"), "{text}");
        choices.standby_of = Some("host='a' port=1");
        choices.restore_command = Some(r#"'/a\b' wal get "%f""#);
        let standby = settings(&place, &control, &choices).expect("settings");
        assert!(standby.contains("synchronous_standby_names = ''\n"), "{standby}");
        assert!(standby.contains("primary_conninfo = 'host=''a'' port=1'\n"), "{standby}");
        assert!(standby.contains("\nrestore_command = '''/a\\\\b'' wal get \"%f\"'\n"), "{standby}");
        choices.standby_of = None;
        choices.synchronous = false;
        control.wal_level = 0;
        let text = settings(&place, &control, &choices).expect("settings");
        assert!(
            text.contains("synchronous_standby_names = ''\n") && text.contains("wal_level = 'replica'\n"),
            "{text}"
        );
        control.wal_level = 3;
        assert!(settings(&place, &control, &choices).is_err());
    }

    #[test]
    fn passwords_are_asked_for_over_tcp_alone() {
        let text = hba(Auth::Scram);
        let methods = |kind: &str| -> Vec<String> {
            let lines = text.lines().filter(|line| line.starts_with(kind));
            lines.filter_map(|line| line.split_whitespace().last().map(str::to_owned)).collect()
        };
        assert_eq!(methods("local"), ["trust", "trust"]);
        assert_eq!(methods("host"), ["scram-sha-256", "scram-sha-256"]);
    }

    #[test]
    fn a_role_with_quotes_stands_in_a_connection_string() {
        assert_eq!(conninfo_value("o'hara \\"), "'o\\'hara \\\\'");
    }
}
