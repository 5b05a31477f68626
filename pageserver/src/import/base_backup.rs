//! Import of a running primary by `BASE_BACKUP` over the replication protocol.
//!
//! The slot is made before the backup begins, so that the primary keeps all WAL from the backup's redo point on.

use std::convert::Infallible;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crossbeam_channel::RecvTimeoutError;
use parking_lot::Mutex;
use tar::EntryType;

use super::progress::PROGRESS_INTERVAL;
pub use super::progress::{ImportProgress, OnProgress};
use super::sink::Imported;
use super::{ImportError, ImportSink, ImportSummary};
use crate::failpoint::Failpoint;
use crate::replication::{BackupOptions, BaseBackup, ConnInfo, Connection, Mode, ReplicationError};
use crate::store::TimelineStore;

/// Imports the cluster at `conninfo` into `store` and leaves behind the replication slot `slot`, from which its WAL can be streamed.
/// Errors: the primary refuses or its cluster cannot be served, the backup breaks off, the store fails, `on_progress` asks to stop. Then the
/// slot is dropped again as far as the primary lets us, and nothing was published in the store.
pub fn import_primary(
    conninfo: &ConnInfo,
    slot: &str,
    store: Arc<TimelineStore>,
    on_progress: OnProgress<'_>,
) -> Result<ImportSummary, ImportError> {
    ReachedPrimary::connect(conninfo)?.import(slot, store, on_progress)
}

/// A primary that can be imported; nothing was changed there.
pub struct ReachedPrimary<'a> {
    conninfo: &'a ConnInfo,
    connection: Connection,
}

impl<'a> ReachedPrimary<'a> {
    /// Errors: it cannot be reached, or its cluster cannot be served.
    pub fn connect(conninfo: &'a ConnInfo) -> Result<Self, ImportError> {
        let mut connection = connect(conninfo)?;
        check_wal_level(&connection.show("wal_level")?)?;
        Ok(ReachedPrimary { conninfo, connection })
    }

    /// Goes on as [`import_primary`] does.
    pub fn import(
        mut self,
        slot: &str,
        store: Arc<TimelineStore>,
        on_progress: OnProgress<'_>,
    ) -> Result<ImportSummary, ImportError> {
        let connection = &mut self.connection;
        let is_new_slot = connection.create_physical_slot(slot)?;
        let keeps_wal = is_new_slot || connection.read_slot(slot)?.is_none_or(|slot| slot.restart_lsn.is_some());
        if !keeps_wal {
            return Err(ImportError::SlotKeepsNothing { slot: slot.to_string() });
        }
        Failpoint::ImportSlotMade.pass();
        let imported = import_watched(self.connection, store, on_progress);
        if imported.is_err() && is_new_slot {
            // The first error is the one to report; a slot that stays is named in the primary's pg_replication_slots.
            let _ = Connection::connect(self.conninfo, Mode::Replication).and_then(|mut again| again.drop_slot(slot));
        }
        imported
    }
}

/// A primary with `wal_level = minimal` has no WAL sender for us and refuses us for that; an ordinary connection tells the reason.
fn connect(conninfo: &ConnInfo) -> Result<Connection, ImportError> {
    const SQLSTATE_TOO_MANY_CONNECTIONS: &str = "53300";
    let refused = match Connection::connect(conninfo, Mode::Replication) {
        Ok(connection) => return Ok(connection),
        Err(error) => error,
    };
    if refused.sqlstate() == Some(SQLSTATE_TOO_MANY_CONNECTIONS)
        && let Ok(mut connection) = Connection::connect(conninfo, Mode::Sql)
        && let Ok(wal_level) = connection.show("wal_level")
    {
        check_wal_level(&wal_level)?;
    }
    Err(refused.into())
}

fn check_wal_level(wal_level: &str) -> Result<(), ImportError> {
    if matches!(wal_level, "replica" | "logical") {
        return Ok(());
    }
    let (setting, expected) = ("wal_level", "replica or logical (set it on the primary and restart it)");
    Err(ImportError::UnsupportedCluster { setting, expected, value: wal_level.to_string() })
}

/// As [`import_backup`], in a thread of its own: a primary that says nothing for an hour, while it makes its checkpoint or because it hangs, must not keep anybody from asking to stop.
fn import_watched(
    connection: Connection,
    store: Arc<TimelineStore>,
    on_progress: OnProgress<'_>,
) -> Result<ImportSummary, ImportError> {
    let interrupt = connection.interrupt_handle()?;
    let waiting = Arc::clone(&store);
    let latest = Mutex::new(ImportProgress { phase: "base backup", bytes_done: 0, bytes_total: None });
    let is_stopped = AtomicBool::new(false);
    let (ended, end) = crossbeam_channel::bounded::<Infallible>(0);
    std::thread::scope(|scope| {
        let take = || {
            let _ended = ended; // Dropped at the end, however that comes.
            import_backup(connection, store, &mut |progress| {
                *latest.lock() = progress.clone();
                if is_stopped.load(Ordering::SeqCst) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
        };
        let taking = std::thread::Builder::new().name("import".to_owned()).spawn_scoped(scope, take);
        let taking = taking.map_err(ReplicationError::Io)?;
        while let Err(RecvTimeoutError::Timeout) = end.recv_timeout(PROGRESS_INTERVAL) {
            let progress = latest.lock().clone();
            if !is_stopped.load(Ordering::SeqCst) && on_progress(&progress).is_break() {
                is_stopped.store(true, Ordering::SeqCst);
                interrupt.interrupt();
                waiting.set_waited_for(true);
            }
        }
        match taking.join() {
            Ok(_) if is_stopped.load(Ordering::SeqCst) => Err(ImportError::Cancelled),
            Ok(imported) => imported,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn import_backup(
    connection: Connection,
    store: Arc<TimelineStore>,
    on_progress: OnProgress<'_>,
) -> Result<ImportSummary, ImportError> {
    let version = connection.version();
    let mut backup = connection.base_backup(&BackupOptions::default())?;
    let start_lsn = backup.start_lsn();
    let mut sink = ImportSink::fuzzy(store, version, start_lsn);
    let sizes: Option<Vec<u64>> = backup.tablespaces().iter().map(|tablespace| tablespace.size_kib).collect();
    let kib_total = sizes.and_then(|sizes| sizes.into_iter().try_fold(0_u64, u64::checked_add));
    let bytes_total = kib_total.and_then(|kib| kib.checked_mul(1024));
    while let Some(index) = backup.next_archive()? {
        let prefix = match backup.tablespaces().get(index).and_then(|tablespace| tablespace.oid) {
            Some(oid) => format!("pg_tblspc/{oid}/"),
            None => String::new(),
        };
        import_archive(&mut backup, &prefix, &mut sink, bytes_total, on_progress)?;
    }
    let start_timeline_id = backup.timeline_id();
    let (end, _connection) = backup.finish()?;
    if end.timeline_id != start_timeline_id {
        return Err(ImportError::Promoted { start_timeline_id, end_timeline_id: end.timeline_id });
    }
    let Imported { control_file, missing_segments, counts } = sink.finish()?;
    Ok(ImportSummary {
        control_file,
        pg_timeline_id: end.timeline_id,
        start_lsn,
        first_readable_lsn: end.end_lsn,
        missing_segments,
        counts,
    })
}

fn import_archive(
    backup: &mut BaseBackup,
    prefix: &str,
    sink: &mut ImportSink,
    bytes_total: Option<u64>,
    on_progress: OnProgress<'_>,
) -> Result<(), ImportError> {
    let archive_error = |source| ImportError::Archive { archive: prefix.to_string(), source };
    let bytes_before = backup.bytes_done();
    let mut archive_bytes = 0;
    let mut reported = Instant::now();
    let mut archive = tar::Archive::new(backup.reader());
    // Raw: PostgreSQL writes no members that describe the next one, which would be read into memory whatever their length.
    for entry in archive.entries().map_err(archive_error)?.raw(true) {
        let mut entry = entry.map_err(archive_error)?;
        match entry.header().entry_type() {
            EntryType::Regular => {}
            EntryType::Directory | EntryType::Symlink => continue,
            other => {
                let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
                let error = format!("`{name}` stands in it as {other:?}, which PostgreSQL does not send");
                return Err(archive_error(io::Error::new(io::ErrorKind::Unsupported, error)));
            }
        }
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let path = format!("{prefix}{}", path.trim_start_matches("./"));
        let length = entry.size();
        sink.file(&path, length, &mut entry)?;
        // What was not read of it, the archive skips.
        archive_bytes = length.saturating_add(archive_bytes);
        if reported.elapsed() >= PROGRESS_INTERVAL {
            reported = Instant::now();
            let bytes_done = bytes_before.saturating_add(archive_bytes);
            let progress = ImportProgress { phase: "base backup", bytes_done, bytes_total };
            if on_progress(&progress).is_break() {
                return Err(ImportError::Cancelled);
            }
        }
    }
    // What follows the end mark of the archive belongs to it too.
    let mut rest = archive.into_inner();
    io::copy(&mut rest as &mut dyn Read, &mut io::sink()).map_err(archive_error)?;
    Ok(())
}
