//! Import of a data directory on disk: of a server that was cleanly stopped, of one that crashed, of a base backup, and of a new cluster that
//! `initdb` makes.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use nix::unistd::{Uid, User};
use postgres_ffi::control_file::ControlFile;
use postgres_ffi::wal::WalStreamDecoder;
use postgres_ffi::{Lsn, PgVersion};

use super::backup_label::{BACKUP_LABEL, BackupLabel, TABLESPACE_MAP, parse_tablespace_map};
use super::progress::{ImportProgress, OnProgress, PROGRESS_INTERVAL};
use super::recovery::{Recovery, recovery_of};
use super::running::running_server;
use super::sink::Imported;
use super::wal_files::{take_segments, take_wal};
use super::{ImportError, ImportSink, ImportSummary};
use crate::store::TimelineStore;
use crate::wal::names::segment_file_name;

/// Bytes read from a WAL segment to find the end of one checkpoint record.
const CHECKPOINT_READ_BYTES: u64 = 64 << 10;
const CONTROL_FILE: &str = "global/pg_control";

/// Imports `data_dir` and takes the WAL that goes with it into `wal_dir`, which is there and empty. Where the files are not of one moment
/// (a crash, a base backup), that WAL is still to be ingested: the summary's first readable LSN lies above its start LSN then.
/// Errors: no data directory, a server runs on it, it is damaged, WAL is missing, the store fails, `on_progress` asks to stop.
pub fn import_data_dir(
    store: Arc<TimelineStore>,
    data_dir: &Path,
    wal_dir: &Path,
    on_progress: OnProgress<'_>,
) -> Result<ImportSummary, ImportError> {
    let found = DataDir::open(data_dir)?;
    let summary = match &found.recovery {
        None => found.import_stopped(store, wal_dir, on_progress)?,
        Some(recovery) => found.import_fuzzy(recovery, store, wal_dir, on_progress)?,
    };
    found.check_unchanged()?;
    Ok(summary)
}

/// A data directory that nobody writes to.
struct DataDir<'a> {
    path: &'a Path,
    version: PgVersion,
    control_file: ControlFile,
    control_bytes: Vec<u8>,
    recovery: Option<Recovery>,
}

impl<'a> DataDir<'a> {
    fn open(path: &'a Path) -> Result<Self, ImportError> {
        let not_there = |what| ImportError::NotThere { what, path: path.to_owned() };
        if !path.is_dir() {
            return Err(not_there("this is no directory"));
        }
        let Some(version) = read_if_there(&path.join("PG_VERSION"))? else {
            return Err(not_there("this is no data directory: it has no file PG_VERSION"));
        };
        let version: PgVersion = String::from_utf8_lossy(&version).parse()?;
        if let Some(pid) = running_server(path) {
            return Err(ImportError::ServerRuns { pid, path: path.to_owned() });
        }
        let Some(control_bytes) = read_if_there(&path.join(CONTROL_FILE))? else {
            return Err(not_there("this is no data directory: it has no file global/pg_control"));
        };
        let control_file = ControlFile::decode_as(version, &control_bytes)?;
        super::check_control_file(&control_file)?;
        let label = read_if_there(&path.join(BACKUP_LABEL))?.map(|content| BackupLabel::parse(&content)).transpose()?;
        check_tablespaces(path)?;
        let recovery = recovery_of(&control_file, label.as_ref())?;
        Ok(DataDir { path, version, control_file, control_bytes, recovery })
    }

    fn import_stopped(
        &self,
        store: Arc<TimelineStore>,
        wal_dir: &Path,
        on_progress: OnProgress<'_>,
    ) -> Result<ImportSummary, ImportError> {
        let pg_timeline_id = super::timeline_id_of_checkpoint(&self.control_file)?;
        let start_lsn = checkpoint_end(self.path, self.version, &self.control_file, pg_timeline_id)?;
        let layout = super::wal_layout(wal_dir, &self.control_file);
        take_segments(&self.path.join("pg_wal"), pg_timeline_id, self.control_file.checkpoint_lsn, start_lsn, &layout)?;
        let mut sink = ImportSink::new(store, self.version, start_lsn);
        Walk::new(self.path, on_progress)?.import(&mut sink)?;
        let Imported { control_file, missing_segments, counts } = sink.finish()?;
        Ok(ImportSummary {
            control_file,
            pg_timeline_id,
            start_lsn,
            first_readable_lsn: start_lsn,
            missing_segments,
            counts,
        })
    }

    fn import_fuzzy(
        &self,
        recovery: &Recovery,
        store: Arc<TimelineStore>,
        wal_dir: &Path,
        on_progress: OnProgress<'_>,
    ) -> Result<ImportSummary, ImportError> {
        // First, since what is missing shows here.
        let wal = take_wal(&self.path.join("pg_wal"), recovery, &super::wal_layout(wal_dir, &self.control_file))?;
        let start_lsn = recovery.start_lsn;
        let mut sink = ImportSink::fuzzy(store, self.version, start_lsn);
        Walk::new(self.path, on_progress)?.import(&mut sink)?;
        let Imported { control_file, missing_segments, counts } = sink.finish()?;
        let (pg_timeline_id, first_readable_lsn) = (wal.timeline_id, wal.whole_lsn);
        Ok(ImportSummary { control_file, pg_timeline_id, start_lsn, first_readable_lsn, missing_segments, counts })
    }

    /// A server that was started meanwhile has written its control file.
    fn check_unchanged(&self) -> Result<(), ImportError> {
        let now = read_if_there(&self.path.join(CONTROL_FILE))?;
        if now.as_ref() == Some(&self.control_bytes) && running_server(self.path).is_none() {
            return Ok(());
        }
        Err(ImportError::Changed { path: self.path.to_owned() })
    }
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, ImportError> {
    match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some).map_err(|source| ImportError::Io { path: path.to_owned(), source }),
    }
}

/// A backup that was unpacked without its tablespaces must not pass for a whole one.
fn check_tablespaces(data_dir: &Path) -> Result<(), ImportError> {
    let Some(map) = read_if_there(&data_dir.join(TABLESPACE_MAP))? else { return Ok(()) };
    for oid in parse_tablespace_map(&map)? {
        let missing = format!("pg_tblspc/{oid}");
        if !data_dir.join(&missing).is_dir() {
            return Err(ImportError::TablespaceMissing { missing });
        }
    }
    Ok(())
}

/// Where WAL goes on: behind the shutdown checkpoint that the control file names.
fn checkpoint_end(
    data_dir: &Path,
    version: PgVersion,
    control_file: &ControlFile,
    pg_timeline_id: u32,
) -> Result<Lsn, ImportError> {
    let checkpoint_lsn = control_file.checkpoint_lsn;
    let refused = |reason: String| ImportError::NoCheckpoint { checkpoint_lsn, reason };
    let segment_bytes = control_file.xlog_seg_size;
    let read = |segment_no: u64, offset: u64| {
        let path = data_dir.join("pg_wal").join(segment_file_name(pg_timeline_id, segment_no, segment_bytes));
        let read = || {
            let mut file = File::open(&path)?;
            file.seek(SeekFrom::Start(offset))?;
            let mut bytes = Vec::new();
            file.take(CHECKPOINT_READ_BYTES).read_to_end(&mut bytes).map(|_| Bytes::from(bytes))
        };
        read().map_err(|error| refused(format!("{error}: {}", path.display())))
    };
    let (segment_no, offset) =
        (checkpoint_lsn.segment_no(segment_bytes.into()), checkpoint_lsn.segment_offset(segment_bytes.into()));
    let mut decoder = WalStreamDecoder::new(version, checkpoint_lsn, segment_bytes);
    let mut end_of = |bytes: Bytes| -> Result<Option<Lsn>, ImportError> {
        decoder.feed(bytes);
        let record = decoder.next_record().map_err(|error| refused(error.to_string()))?;
        Ok(record.map(|(_, end_lsn, _)| end_lsn))
    };
    let bytes = read(segment_no, offset)?;
    let is_at_segment_end = offset + bytes.len() as u64 == u64::from(segment_bytes);
    // It may begin at the end of one segment and go on in the next.
    let end_lsn = match end_of(bytes)? {
        None if is_at_segment_end => end_of(read(segment_no + 1, 0)?)?,
        end_lsn => end_lsn,
    };
    end_lsn.ok_or_else(|| refused("the record is longer than any checkpoint's".to_string()))
}

/// All files of a data directory, one after the other.
struct Walk<'a, 'p> {
    data_dir: &'a Path,
    progress: ImportProgress,
    reported: Instant,
    on_progress: OnProgress<'p>,
}

impl<'a, 'p> Walk<'a, 'p> {
    fn new(data_dir: &'a Path, on_progress: OnProgress<'p>) -> Result<Self, ImportError> {
        let mut bytes_total = 0;
        each_file(data_dir, "", &mut |_, _, length| {
            bytes_total += length;
            Ok(())
        })?;
        let progress = ImportProgress { phase: "files", bytes_done: 0, bytes_total: Some(bytes_total) };
        Ok(Walk { data_dir, progress, reported: Instant::now(), on_progress })
    }

    fn import(mut self, sink: &mut ImportSink) -> Result<(), ImportError> {
        each_file(self.data_dir, "", &mut |path, inner, length| {
            let io = |source| ImportError::Io { path: path.to_owned(), source };
            let file = File::open(path).map_err(io)?;
            sink.file(inner, length, &mut BufReader::with_capacity(1 << 20, file))?;
            self.progress.bytes_done += length;
            if self.reported.elapsed() >= PROGRESS_INTERVAL {
                self.reported = Instant::now();
                if let ControlFlow::Break(()) = (self.on_progress)(&self.progress) {
                    return Err(ImportError::Cancelled);
                }
            }
            Ok(())
        })
    }
}

/// Calls `each` with path, path within the data directory, and length of every file below `dir` but WAL and main forks of unlogged
/// relations, in order; `prefix` is the path of `dir` within the data directory, empty or ending with `/`.
fn each_file(
    dir: &Path,
    prefix: &str,
    each: &mut dyn FnMut(&Path, &str, u64) -> Result<(), ImportError>,
) -> Result<(), ImportError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| ImportError::Io { path, source }
    };
    let mut entries: Vec<_> = std::fs::read_dir(dir).and_then(Iterator::collect).map_err(io(dir))?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let Ok(name) = entry.file_name().into_string() else { continue }; // PostgreSQL's own names are ASCII.
        let (path, inner) = (entry.path(), format!("{prefix}{name}"));
        // Follows the links of pg_tblspc.
        let metadata = std::fs::metadata(&path).map_err(io(&path))?;
        if metadata.is_dir() {
            if inner != "pg_wal" {
                each_file(&path, &format!("{inner}/"), each)?;
            }
        } else if metadata.is_file() && !is_unlogged_main_fork(dir, &name) {
            each(&path, &inner, metadata.len())?;
        }
    }
    Ok(())
}

/// True for a file of a relation that has an init fork: after a crash it is made anew from that, so nothing of it is kept.
fn is_unlogged_main_fork(dir: &Path, name: &str) -> bool {
    let rel_number: String = name.chars().take_while(char::is_ascii_digit).collect();
    let is_init = name[rel_number.len()..].starts_with("_init");
    !rel_number.is_empty() && !is_init && dir.join(format!("{rel_number}_init")).exists()
}

/// Runs `initdb` of the server in `bin_dir` in a new private directory, which is removed when the value is dropped.
pub fn run_initdb(bin_dir: &Path, run_as: &str, options: &[String]) -> Result<tempfile::TempDir, ImportError> {
    let io = |path: PathBuf| move |source| ImportError::Io { path, source };
    let dir = tempfile::tempdir().map_err(io(std::env::temp_dir()))?;
    let program = bin_dir.join("initdb");
    let failed = |message: String| ImportError::Program { program: program.display().to_string(), message };
    let mut command = Command::new(&program);
    command.arg("--pgdata").arg(dir.path().join("data")).args(["--no-sync", "--no-instructions"]).args(options);
    command.env_clear().env("LC_ALL", "C.UTF-8").env("PATH", "/usr/bin:/bin").current_dir(dir.path());
    if Uid::effective().is_root() {
        let user = User::from_name(run_as).ok().flatten();
        let user =
            user.ok_or_else(|| failed(format!("PostgreSQL does not run as root, and there is no user `{run_as}`")))?;
        nix::unistd::chown(dir.path(), Some(user.uid), Some(user.gid)).map_err(|error| failed(error.to_string()))?;
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).map_err(io(dir.path().to_owned()))?;
    let output = command.output().map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let stderr: String = String::from_utf8_lossy(&output.stderr).chars().take(2000).collect();
        return Err(failed(format!("{}: {}", output.status, stderr.trim())));
    }
    Ok(dir)
}

#[cfg(test)]
mod tests {
    //! Goal: the end of a checkpoint record is found wherever it lies. Method: WAL in which it does, on disk.

    use postgres_ffi::wal::checks::build::RecordBuilder;
    use postgres_ffi::wal::checks::layout::WalWriter;

    use super::*;

    const CONTROL_15: &[u8] = include_bytes!("../../../postgres_ffi/tests/data/control/pg_control.15");
    const SEGMENT_BYTES: u32 = 1 << 20;

    #[test]
    fn a_checkpoint_may_begin_in_one_segment_and_end_in_the_next() {
        let start_lsn = Lsn::new(3 * u64::from(SEGMENT_BYTES));
        let record = |length: usize| RecordBuilder { rmid: 10, main_data: vec![1; length], ..RecordBuilder::default() };
        for left in [400, 64, 24] {
            let mut writer = WalWriter::new(PgVersion::V15, start_lsn, SEGMENT_BYTES);
            let behind = |writer: &WalWriter| u64::from(SEGMENT_BYTES) - writer.position().saturating_sub(start_lsn);
            while behind(&writer) > left {
                // 24 bytes of header and 2 of data header.
                let room = usize::try_from(behind(&writer) - left).unwrap();
                writer.append(&record(if room < 200 { room - 26 } else { 100 }));
            }
            assert_eq!(behind(&writer), left);
            let checkpoint_lsn = writer.position();
            let (_, end_lsn, _) = writer.append(&record(88));
            let wal = writer.into_bytes();
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join("pg_wal")).unwrap();
            for (index, bytes) in wal.chunks(SEGMENT_BYTES as usize).enumerate() {
                let name = segment_file_name(1, 3 + index as u64, SEGMENT_BYTES);
                std::fs::write(dir.path().join("pg_wal").join(name), bytes).unwrap();
            }
            let real = ControlFile::decode(CONTROL_15).unwrap();
            let control_file = ControlFile { checkpoint_lsn, xlog_seg_size: SEGMENT_BYTES, ..real };
            assert_eq!(checkpoint_end(dir.path(), PgVersion::V15, &control_file, 1).unwrap(), end_lsn, "{left}");
            let next = dir.path().join("pg_wal").join(segment_file_name(1, 4, SEGMENT_BYTES));
            if next.exists() {
                std::fs::remove_file(&next).unwrap();
                let refused = checkpoint_end(dir.path(), PgVersion::V15, &control_file, 1);
                assert!(
                    matches!(refused, Err(ImportError::NoCheckpoint { reason, .. }) if reason.contains("No such file"))
                );
            }
        }
    }
}
