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
use crate::workload::Target;

/// Databases with a table `markers`.
pub const DATABASES: [&str; 2] = ["postgres", OTHER_DATABASE];
/// Between two rows of a writer.
const PAUSE: Duration = Duration::from_millis(5);

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
    while !stop.load(Ordering::SeqCst) {
        let n = i32::try_from(markers.len())?;
        let before_lsn = lsn(&mut session, "SELECT pg_current_wal_insert_lsn()::text")?;
        // A subtransaction for some: their ids end with the transaction's.
        let sql = if n % 4 == 0 {
            format!(
                "BEGIN; SELECT pg_current_xact_id(); SAVEPOINT s; INSERT INTO markers VALUES ({n}, repeat('m', 100)); COMMIT"
            )
        } else {
            format!("BEGIN; INSERT INTO markers VALUES ({n}, repeat('m', 100)); SELECT pg_current_xact_id(); COMMIT")
        };
        let xid = crate::query_text(&mut session, &sql)?.parse::<u64>()? as TransactionId;
        let after_lsn = lsn(&mut session, "SELECT pg_current_wal_flush_lsn()::text")?;
        markers.push(Marker { n, xid, before_lsn, after_lsn });
        thread::sleep(PAUSE);
    }
    Ok(Markers { database, markers })
}

fn lsn(session: &mut Client, sql: &str) -> Result<Lsn> {
    Ok(crate::query_text(session, sql)?.parse()?)
}
