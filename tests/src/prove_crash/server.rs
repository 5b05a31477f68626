//! The page server of a course: operations on it, what it shows, and whether that is what was acknowledged.
//!
//! - One operation at a time. When the server dies, at most one is open, and the next start must show it whole or not at all.
//! - A connection that ends while the server lives, and an answer that does not come, are errors.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use pageserver::client::{Client, ClientConfig, ClientError, ResultSet, ServerError};
use pageserver::page_service::basebackup::BackupBegin;
use rand::rngs::SmallRng;

use super::operation::{Kind, Operation, Situation};
use super::timelines::{self, Reach, Timelines};
use crate::{Killed, PageServer, wait_until_some};

/// An answer takes no longer, or the server is stuck.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);
/// Until a started server has every timeline in its usual state.
const SETTLE_LIMIT: Duration = Duration::from_secs(120);
/// A connection has ended: until the process has.
const DEATH_LIMIT: Duration = Duration::from_secs(20);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// An operation that was sent.
#[derive(Clone, Debug)]
struct UnderWay {
    operation: Operation,
    acknowledged: bool,
}

/// The server is there, or has died in a way that was meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Life {
    /// It goes on.
    Alive,
    /// It was killed.
    Dead(Killed),
}

/// What was acknowledged, and the server that must have it.
pub struct CrashedServer {
    /// The server.
    pub process: PageServer,
    /// Timelines that there must be.
    pub timelines: Timelines,
    /// What can be read of them, when last looked at.
    pub reaches: Vec<Reach>,
    /// Acknowledged operations.
    pub acknowledged: u64,
    /// Operations that were cut off: done, and not done.
    pub cut_off: (u64, u64),
    under_way: Option<UnderWay>,
    leases: Vec<u64>,
    lease_id_max: u64,
    pg_timeline_id_max: u32,
    next_name: u32,
    /// Connection string for timelines besides `main`, and the directory of a stopped server.
    primary: String,
    directory: String,
}

impl CrashedServer {
    /// `primary`: a connection string for timelines besides `main`; `directory`: of a stopped server of the same cluster.
    pub fn new(process: PageServer, primary: String, directory: String) -> Self {
        CrashedServer {
            process,
            timelines: Timelines::new(),
            reaches: Vec::new(),
            acknowledged: 0,
            cut_off: (0, 0),
            under_way: None,
            leases: Vec::new(),
            lease_id_max: 0,
            pg_timeline_id_max: 0,
            next_name: 1,
            primary,
            directory,
        }
    }

    /// A session with it.
    pub fn client(&self) -> Result<Client> {
        Ok(self.connect()?)
    }

    fn connect(&self) -> Result<Client, ClientError> {
        let mut config = ClientConfig::new(format!("127.0.0.1:{}", self.process.port()));
        config.read_timeout = Some(ANSWER_LIMIT);
        Client::connect(&config)
    }

    /// How it was killed, if it was.
    pub fn life(&mut self) -> Result<Life> {
        Ok(self.process.killed()?.map_or(Life::Alive, Life::Dead))
    }

    /// The connection has ended: the process has, or does now.
    fn death(&mut self, error: &ClientError) -> Result<Life> {
        if let ClientError::Io(io) = error
            && matches!(io.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
        {
            bail!("stuck: no answer in {ANSWER_LIMIT:?}");
        }
        let died = wait_until_some("the end of a server whose connection ended", DEATH_LIMIT, || self.process.killed());
        Ok(Life::Dead(died.with_context(|| format!("{error:?}"))?))
    }

    /// Does something: an operation of the kind `wish`, or one that leads there, or any.
    pub fn operate(&mut self, wish: Option<Kind>, moments: &[postgres_ffi::Lsn], rng: &mut SmallRng) -> Result<Life> {
        if let life @ Life::Dead(_) = self.look()? {
            return Ok(life);
        }
        let situation = Situation {
            timelines: &self.timelines,
            reaches: &self.reaches,
            moments,
            leases: &self.leases,
            next_name: self.next_name,
        };
        let operation = situation.choose(wish, rng);
        self.next_name += 1;
        self.perform(operation)
    }

    fn perform(&mut self, operation: Operation) -> Result<Life> {
        self.under_way = Some(UnderWay { operation: operation.clone(), acknowledged: false });
        let command = operation.command(&self.primary, &self.directory);
        let answer = self.connect().and_then(|mut client| match operation {
            Operation::Backup => take_backup(&mut client, &command).map(Answer::Backup),
            _ => client.query_one(&command).map(Answer::Rows),
        });
        match answer {
            Ok(answer) => {
                self.acknowledged += 1;
                self.under_way = Some(UnderWay { operation: operation.clone(), acknowledged: true });
                self.take_answer(&operation, &answer).with_context(|| command)?;
                self.look()
            }
            Err(ClientError::Server(error)) if is_given_up(&error) => {
                // The horizon has moved behind the LSN that was chosen.
                self.under_way = None;
                self.look()
            }
            Err(ClientError::Server(error)) if error.severity == "ERROR" => bail!("refused: {command}: {error}"),
            Err(error) => self.death(&error),
        }
    }

    /// Ids are never given twice, whatever crashed in between.
    fn take_answer(&mut self, operation: &Operation, answer: &Answer) -> Result<()> {
        match (operation, answer) {
            (Operation::Lease(_), Answer::Rows(rows)) => {
                let lease_id = rows.rows.first().and_then(|row| row.get(0)?.parse().ok()).context("a lease's id")?;
                ensure!(self.lease_id_max < lease_id, "lease {lease_id} was given before");
                self.lease_id_max = lease_id;
                self.leases.push(lease_id);
            }
            (Operation::EndLease(lease_id), _) => self.leases.retain(|lease| lease != lease_id),
            (_, Answer::Backup(pg_timeline_id)) => {
                let before = std::mem::replace(&mut self.pg_timeline_id_max, *pg_timeline_id);
                ensure!(before < *pg_timeline_id, "PostgreSQL timeline {pg_timeline_id} was given before");
            }
            _ => {}
        }
        Ok(())
    }

    /// Looks at all timelines; an operation that was under way is judged.
    pub fn look(&mut self) -> Result<Life> {
        let client = self.connect();
        let looked = match client {
            Ok(mut client) => timelines::look(&mut client, self.process.data_dir())?,
            Err(error) => Err(error),
        };
        match looked {
            Ok((now, reaches)) => {
                self.judge(&now)?;
                self.timelines = now;
                self.reaches = reaches;
                Ok(Life::Alive)
            }
            Err(ClientError::Server(error)) if error.severity == "ERROR" => bail!("refused: SHOW TIMELINES: {error}"),
            Err(error) => self.death(&error),
        }
    }

    fn judge(&mut self, now: &Timelines) -> Result<()> {
        let before = &self.timelines;
        let Some(UnderWay { operation, acknowledged }) = self.under_way.take() else {
            ensure!(now == before, "timelines have changed by themselves: {now:#?}, before: {before:#?}");
            return Ok(());
        };
        let has_happened = operation.has_made(before, now);
        if acknowledged {
            ensure!(has_happened, "acknowledged and not there: {operation:?}: {now:#?}, before: {before:#?}");
        } else if has_happened && now != before {
            self.cut_off.0 += 1;
        } else {
            ensure!(now == before, "neither done nor undone: {operation:?}: {now:#?}, before: {before:#?}");
            self.cut_off.1 += 1;
            // A lease is no timeline: the next look at leases tells.
            self.forget_lease_if_ended(&operation)?;
        }
        Ok(())
    }

    /// An end of a lease that was not acknowledged may have happened.
    fn forget_lease_if_ended(&mut self, operation: &Operation) -> Result<()> {
        if let Operation::EndLease(lease_id) = operation
            && let Ok(shown) = self.shown_leases()?
            && !shown.contains(lease_id)
        {
            self.leases.retain(|lease| lease != lease_id);
        }
        Ok(())
    }

    fn shown_leases(&self) -> Result<Result<BTreeSet<u64>, ClientError>> {
        let rows = match self.connect().and_then(|mut client| client.query_one("LEASE LIST")) {
            Ok(rows) => rows,
            Err(error) => return Ok(Err(error)),
        };
        let ids = rows.rows.iter().map(|row| row.get(0).and_then(|id| id.parse().ok()).context("a lease's id"));
        ids.collect::<Result<_>>().map(Ok)
    }

    /// Those that were given are there. One more may be: given, and not acknowledged.
    fn check_leases(&mut self) -> Result<Life> {
        let shown = match self.shown_leases()? {
            Ok(shown) => shown,
            Err(error) => return self.death(&error),
        };
        let given: BTreeSet<u64> = self.leases.iter().copied().collect();
        let lost: Vec<_> = given.difference(&shown).collect();
        ensure!(lost.is_empty(), "leases are lost: {lost:?}");
        let more: Vec<u64> = shown.difference(&given).copied().collect();
        ensure!(
            more.len() <= 1 && more.iter().all(|lease_id| self.lease_id_max < *lease_id),
            "leases that nobody was given: {more:?}"
        );
        self.lease_id_max = more.iter().copied().fold(self.lease_id_max, u64::max);
        self.leases.extend(more);
        Ok(Life::Alive)
    }

    /// After a start: waits until every timeline is in its usual state, and checks that all is there that was acknowledged and nothing else.
    pub fn settle(&mut self) -> Result<Life> {
        let started = Instant::now();
        loop {
            if let life @ Life::Dead(_) = self.look()? {
                return Ok(life);
            }
            let unusual = self.reaches.iter().find(|reach| reach.state != "active");
            let Some(reach) = unusual else { break };
            ensure!(reach.state != "stopped", "a timeline has stopped: {reach:?}");
            ensure!(started.elapsed() < SETTLE_LIMIT, "stuck: {reach:?}");
            std::thread::sleep(PAUSE);
        }
        timelines::check_directories(self.process.data_dir(), &self.timelines)?;
        self.check_leases()
    }
}

/// What was asked for is history that is not kept any more.
fn is_given_up(error: &ServerError) -> bool {
    error.severity == "ERROR"
        && ["first_readable_lsn=", "garbage collected"].iter().any(|text| error.message.contains(text))
}

enum Answer {
    Rows(ResultSet),
    /// The PostgreSQL timeline id that was given.
    Backup(u32),
}

fn take_backup(client: &mut Client, command: &str) -> Result<u32, ClientError> {
    let mut copy = client.copy_out(command)?;
    let begin = copy.notices().iter().find_map(|notice| notice.parse::<BackupBegin>().ok());
    match io::copy(&mut copy, &mut io::sink()) {
        Ok(_) => {}
        Err(error) => {
            let kind = error.kind();
            let inner = error.into_inner().and_then(|inner| inner.downcast::<ClientError>().ok());
            return Err(inner.map_or_else(|| io::Error::from(kind).into(), |inner| *inner));
        }
    }
    begin.map(|begin| begin.pg_timeline_id).ok_or(ClientError::Result { command: "BASEBACKUP" })
}
