//! Import of a data directory on disk whose server was cleanly stopped, and of a new one that `initdb` makes.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use nix::unistd::{Uid, User};
use postgres_ffi::control_file::{ControlFile, DbState};
use postgres_ffi::wal::WalStreamDecoder;
use postgres_ffi::{Lsn, PgVersion};

use super::{ImportError, ImportSink, ImportSummary};
use crate::store::TimelineStore;

/// Bytes read from a WAL segment to find the end of one checkpoint record.
const CHECKPOINT_READ_BYTES: u64 = 64 << 10;

/// Imports `data_dir`. Requires: no server runs on it. Errors: it was not cleanly stopped, it is damaged, or the store fails.
pub fn import_data_dir(
    store: Arc<TimelineStore>,
    version: PgVersion,
    data_dir: &Path,
) -> Result<ImportSummary, ImportError> {
    let path = data_dir.join("global/pg_control");
    let bytes = std::fs::read(&path).map_err(|source| ImportError::Io { path, source })?;
    let control_file = ControlFile::decode_as(version, &bytes)?;
    super::check_control_file(&control_file)?;
    if !matches!(control_file.state, DbState::ShutDown | DbState::ShutDownInRecovery) {
        return Err(ImportError::NotShutDown { state: format!("{:?}", control_file.state) });
    }
    let pg_timeline_id = super::timeline_id_of_checkpoint(&control_file)?;
    let start_lsn = checkpoint_end(data_dir, version, &control_file, pg_timeline_id)?;
    let mut sink = ImportSink::new(store, version, start_lsn);
    import_dir(&mut sink, data_dir, "")?;
    let (control_file, counts) = sink.finish()?;
    Ok(ImportSummary { control_file, pg_timeline_id, start_lsn, first_readable_lsn: start_lsn, counts })
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
    let segment_no = checkpoint_lsn.segment_no(segment_bytes.into());
    let segments_per_id = 0x1_0000_0000 / u64::from(segment_bytes);
    let name = format!("{pg_timeline_id:08X}{:08X}{:08X}", segment_no / segments_per_id, segment_no % segments_per_id);
    let path = data_dir.join("pg_wal").join(name);
    let read = || {
        let mut file = File::open(&path)?;
        file.seek(SeekFrom::Start(checkpoint_lsn.segment_offset(segment_bytes.into())))?;
        let mut bytes = Vec::new();
        file.take(CHECKPOINT_READ_BYTES).read_to_end(&mut bytes).map(|_| bytes)
    };
    let bytes = read().map_err(|error| refused(format!("{error}: {}", path.display())))?;
    let mut decoder = WalStreamDecoder::new(version, checkpoint_lsn, segment_bytes);
    decoder.feed(Bytes::from(bytes));
    match decoder.next_record() {
        Ok(Some((_, end_lsn, _))) => Ok(end_lsn),
        Ok(None) => Err(refused("the record runs past its segment".to_string())),
        Err(error) => Err(refused(error.to_string())),
    }
}

/// Takes every file below `dir`; `prefix` is its path within the data directory, empty or ending with `/`.
fn import_dir(sink: &mut ImportSink, dir: &Path, prefix: &str) -> Result<(), ImportError> {
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
            sink.directory(&inner)?;
            if inner != "pg_wal" {
                import_dir(sink, &path, &format!("{inner}/"))?;
            }
        } else if !is_unlogged_main_fork(dir, &name) {
            let file = File::open(&path).map_err(io(&path))?;
            sink.file(&inner, metadata.len(), &mut BufReader::with_capacity(1 << 20, file))?;
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
