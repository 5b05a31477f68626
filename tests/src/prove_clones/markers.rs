//! Rows whose transactions tell where they committed, so that for any LSN it is known which of them must be there, and which must not.
//!
//! - One writer in each of two databases, one transaction per row. Before and after each, the primary is asked where its WAL ends.
//! - Where exactly the commit record ends comes from the WAL, by the transaction's id; that it lies between the two answers is checked.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use postgres::Client;
use postgres_ffi::{Lsn, TransactionId};

use super::primary::OTHER_DATABASE;
use super::wal_history::WalHistory;
use crate::wait_until_some;
use crate::workload::{Target, is_transient};

/// Databases with a table `markers`.
pub const DATABASES: [&str; 2] = ["postgres", OTHER_DATABASE];
/// Between two rows of a writer.
const PAUSE: Duration = Duration::from_millis(5);

/// Until the primary takes connections after a crash.
const CRASH_LIMIT: Duration = Duration::from_secs(180);
/// What the primary's disk has.
const FLUSHED: &str = "SELECT pg_current_wal_flush_lsn()::text";

/// A row that was committed.
#[derive(Clone, Copy, Debug)]
struct Marker {
    n: i32,
    xid: TransactionId,
    /// The insert position before the transaction began.
    before_lsn: Lsn,
    /// What was flushed after its commit was acknowledged.
    after_lsn: Lsn,
}

/// All rows of one database.
#[derive(Clone, Debug)]
pub struct Markers {
    /// The database.
    pub database: &'static str,
    markers: Vec<Marker>,
}

impl Markers {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.markers.len()
    }

    /// The rows that must be there at `lsn`; no other may be. Errors: what the WAL says contradicts what the primary said.
    pub fn expected_at(&self, history: &WalHistory, lsn: Lsn) -> Result<BTreeSet<i32>> {
        let mut expected = BTreeSet::new();
        for marker in &self.markers {
            let Marker { n, xid, before_lsn, after_lsn } = *marker;
            let end = history.end(xid).with_context(|| format!("no end of transaction {xid} in the WAL"))?;
            ensure!(
                end.committed && before_lsn < end.lsn && end.lsn <= after_lsn,
                "marker {n}, transaction {xid}: {end:?} does not lie between {before_lsn} and {after_lsn}"
            );
            if end.lsn <= lsn {
                expected.insert(n);
            }
        }
        Ok(expected)
    }
}

/// The ends of the last commit of a marker at or before `lsn` and of the first one after it, where there are such.
pub fn neighbours(markers: &[Markers], history: &WalHistory, lsn: Lsn) -> (Option<Lsn>, Option<Lsn>) {
    let ends = markers.iter().flat_map(|markers| &markers.markers).filter_map(|marker| history.end(marker.xid));
    let (before, after): (Vec<Lsn>, Vec<Lsn>) = ends.map(|end| end.lsn).partition(|end_lsn| *end_lsn <= lsn);
    (before.into_iter().max(), after.into_iter().min())
}

/// Threads that write.
pub struct Writers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Markers>>>,
}

impl Writers {
    /// Starts them.
    pub fn start(target: &Target) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = DATABASES.map(|database| {
            let (target, stop) = (target.clone(), Arc::clone(&stop));
            thread::spawn(move || write(&target, database, &stop).with_context(|| format!("markers in {database}")))
        });
        Self { stop, threads: threads.into() }
    }

    /// An error if one has ended, which none does by itself.
    pub fn check(&mut self) -> Result<()> {
        match self.threads.iter().position(JoinHandle::is_finished) {
            None => Ok(()),
            Some(index) => bail!("a marker writer ended by itself: {:?}", join(self.threads.swap_remove(index))?),
        }
    }

    /// Ends them; what they have written.
    pub fn stop(mut self) -> Result<Vec<Markers>> {
        self.stop.store(true, Ordering::SeqCst);
        self.threads.drain(..).map(join).collect()
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

fn join(thread: JoinHandle<Result<Markers>>) -> Result<Markers> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn write(target: &Target, database: &'static str, stop: &AtomicBool) -> Result<Markers> {
    let mut session = target.connect(database)?;
    let mut markers = Vec::new();
    for n in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let mut before_lsn = None;
        match write_one(&mut session, n, &mut before_lsn) {
            Ok(marker) => markers.push(marker),
            Err(error) if is_transient(&error) => {
                session =
                    wait_until_some("the primary after a crash", CRASH_LIMIT, || Ok(target.connect(database).ok()))?;
                // Nobody was told whether it committed.
                if let Some(before_lsn) = before_lsn {
                    markers.extend(find_one(&mut session, n, before_lsn)?);
                }
            }
            Err(error) => return Err(error),
        }
        thread::sleep(PAUSE);
    }
    Ok(Markers { database, markers })
}

/// `before_lsn` is where the WAL stood before, as soon as that is known.
fn write_one(session: &mut Client, n: i32, before_lsn: &mut Option<Lsn>) -> Result<Marker> {
    let known_lsn = lsn(session, "SELECT pg_current_wal_insert_lsn()::text")?;
    *before_lsn = Some(known_lsn);
    // A subtransaction for some: their ids end with the transaction's.
    let sql = if n % 4 == 0 {
        format!(
            "BEGIN; SELECT pg_current_xact_id(); SAVEPOINT s; INSERT INTO markers VALUES ({n}, repeat('m', 100)); COMMIT"
        )
    } else {
        format!("BEGIN; INSERT INTO markers VALUES ({n}, repeat('m', 100)); SELECT pg_current_xact_id(); COMMIT")
    };
    let xid = crate::query_text(session, &sql)?.parse::<u64>()? as TransactionId;
    let after_lsn = lsn(session, FLUSHED)?;
    Ok(Marker { n, xid, before_lsn: known_lsn, after_lsn })
}

/// The marker, if it is there.
fn find_one(session: &mut Client, n: i32, before_lsn: Lsn) -> Result<Option<Marker>> {
    let row = session.query_opt("SELECT xmin::text FROM markers WHERE n = $1", &[&n])?;
    let after_lsn = lsn(session, FLUSHED)?;
    row.map(|row| Ok(Marker { n, xid: row.get::<_, &str>(0).parse()?, before_lsn, after_lsn })).transpose()
}

fn lsn(session: &mut Client, sql: &str) -> Result<Lsn> {
    Ok(crate::query_text(session, sql)?.parse()?)
}
