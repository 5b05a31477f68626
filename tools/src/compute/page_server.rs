//! What a compute needs from the page server: facts of a branch, branches made and deleted, base backups, following.

use std::io::Read;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use pageserver::client::{Client, ClientError, ResultSet, quote};
use pageserver::replication::ConnInfo;
use postgres_ffi::{Lsn, PgVersion, TimeLineId};

use super::create::StartAt;
use super::place::Place;
use super::record::Record;
use super::settings::{APPLICATION_NAME, conninfo_value};
use crate::connect::ServerArgs;

/// How often a wait looks again: short against a start, long against a look.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// SQLSTATE of a timeline that is not there.
const UNDEFINED_OBJECT: &str = "42704";
/// What `receiver` says when WAL flows.
const STREAMING: &str = "streaming";

/// What is known of a branch.
#[derive(Debug, Clone)]
pub struct Branch {
    /// Its name.
    pub name: String,
    /// Its id, which no renaming changes.
    pub id: String,
    /// Major version of its cluster.
    pub pg_version: PgVersion,
    /// Where it left its ancestor.
    pub branch_lsn: Option<Lsn>,
    /// The lowest LSN that can be read.
    pub first_readable_lsn: Lsn,
    /// End of the last record that can be read.
    pub last_record_lsn: Lsn,
    /// End of the WAL that was received, which may not all be readable yet. None when nothing follows.
    pub received_lsn: Option<Lsn>,
    /// The server that it follows: user, host and port. None when it follows nobody.
    pub primary: Option<String>,
    /// What the receiver does; none when there is none.
    pub receiver: Option<String>,
    /// Why no WAL comes.
    pub last_error: Option<String>,
    /// `active`, or why not.
    pub state: String,
    /// PostgreSQL timelines of its WAL up to the last record, as the page server tells them: `1@0/3000148 4096`.
    pub pg_timelines: Option<String>,
}

/// A session with the page server.
pub struct PageServer {
    client: Client,
}

impl PageServer {
    /// Connects.
    pub fn connect(server: &ServerArgs) -> Result<Self> {
        Ok(PageServer { client: server.connect()? })
    }

    /// The branch called `name`, or with this id. Errors: there is none.
    pub fn branch(&mut self, name: &str) -> Result<Branch> {
        self.branch_if_there(name)?.with_context(|| format!("the page server has no branch `{name}`"))
    }

    /// The branch called `name`, or with this id; `None` when there is none.
    pub fn branch_if_there(&mut self, name: &str) -> Result<Option<Branch>> {
        match self.client.query_one(&format!("SHOW TIMELINE {}", quote(name))) {
            Err(ClientError::Server(error)) if error.sqlstate == UNDEFINED_OBJECT => Ok(None),
            rows => Branch::from_rows(&rows?).map(Some),
        }
    }

    /// Makes branch `name` off `from`. Errors: the name is taken, the LSN or time cannot be read.
    pub fn create_branch(&mut self, name: &str, from: &Branch, at: &StartAt) -> Result<Branch> {
        let at = match at {
            StartAt::End => String::new(),
            StartAt::Lsn(lsn) => format!(" AT {}", quote(&lsn.to_string())),
            StartAt::Time(time) => format!(" AT TIME {}", quote(time)),
        };
        let command = format!("BRANCH CREATE {} FROM {}{at}", quote(name), quote(&from.id));
        self.run_and_tell(&command, &mut |notice| eprintln!("pagectl: {notice}"))?;
        self.branch(name)
    }

    /// Deletes the branch with this name or id, whoever it follows. Errors: there are branches off it, or leases on it.
    pub fn delete_branch(&mut self, name: &str) -> Result<()> {
        self.run(&format!("BRANCH DELETE {}", quote(name)))
    }

    /// Has the branch follow the compute.
    pub fn follow(&mut self, branch_id: &str, conninfo: &str) -> Result<()> {
        self.run(&format!("TIMELINE FOLLOW {} FROM {}", quote(branch_id), quote(conninfo)))
    }

    /// Has the branch follow nobody. The slot at the compute goes with the compute, or is used again when it is started.
    pub fn unfollow(&mut self, branch_id: &str) -> Result<()> {
        let command = format!("TIMELINE UNFOLLOW {} KEEP SLOT", quote(branch_id));
        self.run_and_tell(&command, &mut |notice| eprintln!("pagectl: {notice}"))
    }

    /// A base backup of the branch at its last record, as a tar. `standby`: for a server that goes on replaying.
    pub fn base_backup(&mut self, branch_id: &str, standby: bool) -> Result<impl Read + '_> {
        let command = format!("BASEBACKUP {}{}", quote(branch_id), if standby { " --standby" } else { "" });
        Ok(self.client.copy_out(&command)?)
    }

    /// Returns once WAL flows into the branch and has come behind `lsn`. A receiver that still streams the PostgreSQL timeline that the
    /// compute has left is not there yet. Errors: it does not get there within `timeout`, with the last reason that the page server has.
    pub fn wait_until_streaming(&mut self, branch_id: &str, lsn: Lsn, timeout: Duration) -> Result<()> {
        let waited = self.wait_for(branch_id, timeout, |branch| branch.streams() && lsn < branch.last_record_lsn)?;
        match waited {
            Ok(_) => Ok(()),
            Err(branch) => bail!(
                "the page server does not follow the compute after {} s. receiver=`{}`, last_error=`{}`, last_record_lsn=`{}`, wanted_lsn=`{lsn}`",
                timeout.as_secs(),
                branch.receiver.as_deref().unwrap_or("none"),
                branch.last_error.as_deref().unwrap_or("none"),
                branch.last_record_lsn
            ),
        }
    }

    /// Looks until `is_there`, at most for `timeout`; how the branch then is, as an error when it is not there.
    pub fn wait_for(
        &mut self,
        branch_id: &str,
        timeout: Duration,
        is_there: impl Fn(&Branch) -> bool,
    ) -> Result<Result<Branch, Branch>> {
        let deadline = Instant::now() + timeout;
        loop {
            let branch = self.branch(branch_id)?;
            if is_there(&branch) {
                return Ok(Ok(branch));
            }
            if Instant::now() >= deadline {
                return Ok(Err(branch));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    fn run(&mut self, command: &str) -> Result<()> {
        self.run_and_tell(command, &mut |_| {})
    }

    fn run_and_tell(&mut self, command: &str, on_notice: &mut dyn FnMut(&str)) -> Result<()> {
        match self.client.query_with_notices(command, on_notice) {
            Ok(_) => Ok(()),
            Err(ClientError::Server(error)) => match error.hint {
                Some(hint) => bail!("{} ({hint})", error.message),
                None => bail!("{}", error.message),
            },
            Err(error) => Err(error).with_context(|| command.to_owned()),
        }
    }
}

impl Branch {
    /// From the rows (name, value) of `SHOW TIMELINE`.
    fn from_rows(rows: &ResultSet) -> Result<Self> {
        let value = |name: &str| {
            rows.rows.iter().find(|row| row.get(0) == Some(name)).and_then(|row| row.get(1)).map(str::to_owned)
        };
        let needed = |name: &str| value(name).with_context(|| format!("the page server does not tell {name}"));
        let lsn = |name: &str| -> Result<Option<Lsn>> { Ok(value(name).map(|text| text.parse()).transpose()?) };
        let needed_lsn = |name: &str| -> Result<Lsn> { Ok(needed(name)?.parse()?) };
        Ok(Branch {
            name: needed("name")?,
            id: needed("id")?,
            pg_version: needed("pg_version")?.parse()?,
            branch_lsn: lsn("ancestor_lsn")?,
            first_readable_lsn: needed_lsn("first_readable_lsn")?,
            last_record_lsn: needed_lsn("last_record_lsn")?,
            received_lsn: lsn("received_lsn")?,
            primary: value("primary"),
            receiver: value("receiver"),
            last_error: value("last_error"),
            state: needed("state")?,
            pg_timelines: value("pg_timelines"),
        })
    }

    /// True if all WAL of the PostgreSQL timeline up to `end_lsn` has been ingested, as far as the branch has not been reset since: then its WAL came through there, and left it no earlier.
    pub fn has_wal(&self, timeline_id: TimeLineId, end_lsn: Lsn) -> bool {
        let mut parts = self.pg_timelines.iter().flat_map(|text| text.split_whitespace());
        let is_its = |part: &str| match part.split_once('@') {
            Some((id, left_lsn)) => {
                id.parse() == Ok(timeline_id) && left_lsn.parse().is_ok_and(|left_lsn: Lsn| end_lsn <= left_lsn)
            }
            None => part.parse() == Ok(timeline_id) && end_lsn <= self.last_record_lsn,
        };
        parts.any(is_its)
    }

    /// True when WAL of somebody comes in, or would if it could.
    pub fn follows(&self) -> bool {
        self.primary.is_some()
    }

    /// The server that it follows, if that is not the compute in `place`.
    pub fn follows_another(&self, place: &Place, record: &Record) -> Option<&str> {
        let primary = self.primary.as_deref()?;
        // Before it had a role nobody could follow it.
        let ours = conninfo_for_page_server(place, record).ok().and_then(|text| text.parse::<ConnInfo>().ok());
        ours.is_none_or(|ours| address(&ours.to_string()) != address(primary)).then_some(primary)
    }

    /// True when WAL comes in now.
    pub fn streams(&self) -> bool {
        self.receiver.as_deref() == Some(STREAMING)
    }
}

/// Where a server listens, of `user@host:port`, whatever this machine is called there.
fn address(server: &str) -> String {
    let address = server.split_once('@').map_or(server, |(_, address)| address);
    match address.rsplit_once(':') {
        Some(("localhost" | "[::1]", port)) => format!("127.0.0.1:{port}"),
        _ => address.to_owned(),
    }
}

/// Where the page server finds the compute in `place`.
pub fn conninfo_for_page_server(place: &Place, record: &Record) -> Result<String> {
    conninfo_for(place, record, APPLICATION_NAME)
}

/// Where a server that streams finds the compute in `place`.
pub fn conninfo_for(place: &Place, record: &Record, application_name: &str) -> Result<String> {
    let role = record.role.as_deref().context("the compute has no role yet")?;
    Ok(format!(
        "host={} port={} user={} application_name={application_name}",
        conninfo_value(&record.auth.host(place)),
        record.port,
        conninfo_value(role)
    ))
}
