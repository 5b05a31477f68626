//! Rows whose commits wait for the page server: whatever was acknowledged stands in the page server's WAL files, whenever it is killed.
//!
//! - One session, one transaction per row. Within the transaction the primary is asked where its WAL ends: the commit lies behind.
//! - Looked at while the page server is down: what it asks the primary for later helps nobody who has lost the primary.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postgres::Client;
use postgres_ffi::records::xact;
use postgres_ffi::wal::{DecodedRecord, WalStreamDecoder, rmgr};
use postgres_ffi::{Lsn, PgVersion};

use crate::Background;
use crate::workload::{Target, is_transient};

/// Between two rows.
const PAUSE: Duration = Duration::from_millis(3);

/// The name under which the page server must follow the primary to be waited for.
pub const STANDBY_NAME: &str = "crash_main";

/// An acknowledged commit.
#[derive(Clone, Copy, Debug)]
struct Acknowledged {
    xid: u32,
    /// The commit's record ends above.
    before_lsn: Lsn,
}

/// The thread that writes rows. Dropped: it ends by itself.
pub struct Rows {
    acknowledged: Arc<Mutex<Vec<Acknowledged>>>,
    writer: Background<()>,
}

impl Rows {
    /// Begins to write. Requires: the primary waits for [`STANDBY_NAME`].
    pub fn start(target: &Target) -> Result<Self> {
        target
            .connect("postgres")?
            .batch_execute("SET synchronous_commit = local; CREATE TABLE acknowledged (n int, xid int8)")?;
        let acknowledged = Arc::default();
        let writer = Background::start("the writer of acknowledged rows", {
            let (target, acknowledged) = (target.clone(), Arc::clone(&acknowledged));
            move |stop| write_rows(&target, &acknowledged, stop)
        });
        Ok(Rows { acknowledged, writer })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Acknowledged>> {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many were acknowledged.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// Every acknowledged commit that the WAL files of `wal_dir` reach back to is in them. How many those are.
    /// Requires: no page server runs on it.
    pub fn check(&self, wal_dir: &Path, version: PgVersion, segment_bytes: u32) -> Result<usize> {
        let acknowledged = self.lock().clone();
        let found = Found::read(wal_dir, version, segment_bytes)?;
        let expected: Vec<_> =
            acknowledged.iter().filter(|acknowledged| found.first_lsn <= acknowledged.before_lsn).collect();
        let is_lost = |acknowledged: &&&Acknowledged| !found.committed.contains(&acknowledged.xid);
        let lost: Vec<_> = expected.iter().filter(is_lost).take(5).collect();
        ensure!(
            lost.is_empty(),
            "acknowledged commits are lost: {lost:?}; our WAL is from {} to {}",
            found.first_lsn,
            found.end_lsn
        );
        Ok(expected.len())
    }

    /// An error if the thread has ended, which it does not by itself.
    pub fn check_alive(&mut self) -> Result<()> {
        self.writer.check()
    }

    /// Ends it. Requires: the page server runs, or a commit may be waited for in vain.
    pub fn stop(&mut self) -> Result<()> {
        self.writer.stop().map(drop)
    }
}

fn write_rows(target: &Target, acknowledged: &Mutex<Vec<Acknowledged>>, stop: &AtomicBool) -> Result<()> {
    let mut session = None;
    let mut n = 0;
    while !stop.load(Ordering::SeqCst) {
        n += 1;
        let _busy = target.enter();
        match write_row(&mut session, target, n) {
            Ok(row) => acknowledged.lock().unwrap_or_else(PoisonError::into_inner).push(row),
            // The primary is being restarted; a commit that was under way is not acknowledged.
            Err(error) if is_transient(&error) => session = None,
            Err(error) => return Err(error.context("an acknowledged row")),
        }
        drop(_busy);
        thread::sleep(PAUSE);
    }
    Ok(())
}

fn write_row(session: &mut Option<Client>, target: &Target, n: i32) -> Result<Acknowledged> {
    if session.is_none() {
        let mut client = target.connect("postgres")?;
        client.batch_execute("SET synchronous_commit = on")?;
        *session = Some(client);
    }
    let client = session.as_mut().context("connected above")?;
    let mut transaction = client.transaction()?;
    let row = transaction.query_one(
        "INSERT INTO acknowledged VALUES ($1, txid_current()) RETURNING xid, pg_current_wal_insert_lsn()::text",
        &[&n],
    )?;
    let (xid, lsn): (i64, &str) = (row.get(0), row.get(1));
    // The lower half: what WAL holds.
    let row = Acknowledged { xid: (xid & 0xFFFF_FFFF).try_into()?, before_lsn: lsn.parse()? };
    transaction.commit()?;
    Ok(row)
}

/// What the WAL files of a directory hold.
struct Found {
    /// Where the oldest of the files that follow each other begins.
    first_lsn: Lsn,
    /// End of the last whole record.
    end_lsn: Lsn,
    committed: BTreeSet<u32>,
}

impl Found {
    fn read(dir: &Path, version: PgVersion, segment_bytes: u32) -> Result<Self> {
        let (first_segment_no, paths) = files(dir, segment_bytes)?;
        let first_lsn = Lsn::new(first_segment_no * u64::from(segment_bytes));
        let mut found = Found { first_lsn, end_lsn: first_lsn, committed: BTreeSet::new() };
        let mut decoder = WalStreamDecoder::new_at_page(version, first_lsn, segment_bytes);
        for path in paths {
            decoder.feed(fs::read(&path).with_context(|| format!("read {}", path.display()))?.into());
            // An error is the end of the log, or damage: what lies behind is not found then.
            while let Ok(Some((start_lsn, end_lsn, raw))) = decoder.next_record() {
                let record = DecodedRecord::decode(version, start_lsn, end_lsn, raw)?;
                found.end_lsn = end_lsn;
                if record.rmid == rmgr::XACT && record.operation() & xact::OPERATION_MASK == xact::COMMIT {
                    found.committed.insert(record.xid);
                }
            }
        }
        Ok(found)
    }
}

/// The files that follow each other up to the last one, and the number of the first; of one number the newest timeline's.
fn files(dir: &Path, segment_bytes: u32) -> Result<(u64, Vec<PathBuf>)> {
    let segments_per_id = (1_u64 << 32) / u64::from(segment_bytes);
    let mut newest = std::collections::BTreeMap::new();
    let mut names: Vec<String> = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.retain(|name| name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit()));
    names.sort(); // The timeline comes first in a name.
    for name in names {
        let [high, low] = [8, 16].map(|at| u64::from_str_radix(&name[at..at + 8], 16));
        newest.insert(high? * segments_per_id + low?, dir.join(name));
    }
    let mut following = Vec::new();
    let mut first = None;
    for (segment_no, path) in newest.into_iter().rev() {
        if first.is_some_and(|first| first != segment_no + 1) {
            break;
        }
        first = Some(segment_no);
        following.insert(0, path);
    }
    Ok((first.context("no WAL file")?, following))
}
