//! A compute that is a hot standby: it follows the server that its branch follows, and writes nothing.
//!
//! - Begins with a base backup for standbys, so that only WAL since the last checkpoint is replayed whatever the size.
//! - WAL that its primary has removed meanwhile comes from the page server, as far as that has it.
//! - The page server has nothing to follow here: the branch stays as it is.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use pageserver::replication::ConnInfo;
use postgres::{Client, NoTls};

use super::create::conninfo;
use super::owner::Owner;
use super::page_server::conninfo_for;
use super::place::Place;
use super::record::Record;
use crate::connect::ServerArgs;

/// How a standby calls itself when it connects to its primary.
const APPLICATION_NAME: &str = "standby";
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Where the primary is: `given`, or the compute on the branch, if there is one. Errors: neither, or `given` is no connection string.
pub fn primary_conninfo(given: Option<&str>, on_branch: Option<(&Place, &Record)>) -> Result<String> {
    match (given, on_branch) {
        (Some(given), _) => {
            let _: ConnInfo = given.parse().context("--primary")?;
            Ok(given.to_owned())
        }
        (None, Some((place, record))) => conninfo_for(place, record, APPLICATION_NAME),
        (None, None) => {
            bail!("no compute of this directory is on the branch: name the standby's primary with --primary")
        }
    }
}

/// What the standby runs for a WAL file that its primary does not give: this program, asking the page server. `None`: the standby's user may not run it, which
/// is told; PostgreSQL would give up at once if it could not.
pub fn restore_command(owner: &Owner, server: &ServerArgs, branch_id: &str) -> Result<Option<String>> {
    let program = std::env::current_exe().context("find the running program")?;
    let is_runnable =
        owner.command(&program, Path::new("/")).arg("--version").output().is_ok_and(|run| run.status.success());
    if !is_runnable {
        eprintln!(
            "the standby's user may not run {}: WAL that the primary has removed will not be taken from the page server",
            program.display()
        );
        return Ok(None);
    }
    let words = [
        program.to_str().context("the name of pagectl must be UTF-8")?,
        "--server",
        &server.server,
        "wal",
        "get",
        branch_id,
    ];
    let words = words.map(|word| format!("'{}'", word.replace('\'', "'\\''").replace('%', "%%")));
    Ok(Some(format!("{} \"%f\" \"%p\"", words.join(" "))))
}

/// Returns once WAL flows into the standby. Errors: it does not within `timeout`; its log says why.
pub fn wait_until_streaming(place: &Place, record: &Record, timeout: Duration) -> Result<()> {
    let mut session = Client::connect(&conninfo(place, record), NoTls).context("connect to the standby")?;
    let deadline = Instant::now() + timeout;
    loop {
        let streaming = session.query("SELECT 1 FROM pg_stat_wal_receiver WHERE status = 'streaming'", &[])?;
        if !streaming.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!(
                "the standby does not follow its primary after {} s; {} says why",
                timeout.as_secs(),
                place.log().display()
            );
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}
