//! Import of a base backup in tar files, as `pg_basebackup --format=tar` writes them: `base.tar`, a `OID.tar` per tablespace, and WAL in one of
//! `base.tar` (`--wal-method=fetch`) or `pg_wal.tar` (`stream`); each may be compressed.
//!
//! - The archive is read twice: the first time only until version and label are known, which stand near its beginning.
//! - WAL comes last and is what says whether the backup is whole, so nothing is published before it is there.

use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use postgres_ffi::PgVersion;
use postgres_ffi::wal::page_header::SEGMENT_BYTES_MAX;

use super::backup_label::{BACKUP_LABEL, BackupLabel, TABLESPACE_MAP, parse_tablespace_map};
use super::progress::{ImportProgress, OnProgress, PROGRESS_INTERVAL};
use super::recovery::recovery_of_backup;
use super::sink::Imported;
use super::tar_file::{each_file, find_archive};
use super::wal_files::{is_wal_file, take_wal};
use super::{ImportError, ImportSink, ImportSummary};
use crate::store::TimelineStore;

/// Longest label, map or version that is read.
const SMALL_FILE_BYTES_MAX: u64 = 1 << 20;
/// Where the backup's WAL is unpacked, beside the timeline's own WAL.
const UNPACKED_DIR: &str = "unpacked_wal";

/// Imports the backup at `path`, its `base.tar` or the directory that holds it, and takes the WAL that it needs into `wal_dir`, which is there
/// and empty. That WAL is still to be ingested. Errors: no backup, one that is not whole, missing WAL, the store fails, `on_progress` asks to stop.
pub fn import_tar(
    store: Arc<TimelineStore>,
    path: &Path,
    wal_dir: &Path,
    on_progress: OnProgress<'_>,
) -> Result<ImportSummary, ImportError> {
    let unpacked_wal = wal_dir.with_file_name(UNPACKED_DIR);
    fs::create_dir_all(&unpacked_wal).map_err(|source| ImportError::Io { path: unpacked_wal.clone(), source })?;
    let backup = TarBackup::find(path)?;
    let summary = backup.import(store, &unpacked_wal, wal_dir, on_progress)?;
    fs::remove_dir_all(&unpacked_wal).map_err(|source| ImportError::Io { path: unpacked_wal, source })?;
    Ok(summary)
}

struct TarBackup {
    dir: PathBuf,
    base: PathBuf,
    version: PgVersion,
    label: BackupLabel,
}

impl TarBackup {
    fn find(path: &Path) -> Result<Self, ImportError> {
        let not_there = |what| ImportError::NotThere { what, path: path.to_owned() };
        let (dir, base) = if path.is_dir() {
            let base = find_archive(path, "base");
            (
                path.to_owned(),
                base.ok_or_else(|| not_there("the directory holds no base.tar, base.tar.gz or base.tar.zst"))?,
            )
        } else if path.is_file() {
            (path.parent().map_or_else(PathBuf::new, Path::to_owned), path.to_owned())
        } else {
            return Err(not_there("there is no such file or directory"));
        };
        let (version, label) = read_head(&base)?;
        let version = version.ok_or_else(|| not_there("this is no base backup: it has no file PG_VERSION"))?;
        let label = label.ok_or_else(|| not_there("this is no base backup: it has no file backup_label"))?;
        Ok(TarBackup { dir, base, version, label })
    }

    fn import(
        &self,
        store: Arc<TimelineStore>,
        unpacked_wal: &Path,
        wal_dir: &Path,
        on_progress: OnProgress<'_>,
    ) -> Result<ImportSummary, ImportError> {
        let start_lsn = self.label.start_lsn;
        let mut sink = ImportSink::fuzzy(store, self.version, start_lsn);
        let mut progress = Progress::new(self, on_progress);
        let mut tablespaces = Vec::new();
        each_file(&self.base, &progress.read_bytes(), &mut |name, length, contents| {
            if name == TABLESPACE_MAP {
                tablespaces = parse_tablespace_map(&read_small(name, contents)?)?;
            } else if let Some(name) = name.strip_prefix("pg_wal/") {
                unpack_wal(unpacked_wal, name, length, contents)?;
            } else {
                sink.file(name, length, contents)?;
            }
            progress.report()
        })?;
        for oid in tablespaces {
            let missing = || ImportError::TablespaceMissing { missing: format!("{oid}.tar") };
            let archive = find_archive(&self.dir, &oid.to_string()).ok_or_else(missing)?;
            each_file(&archive, &progress.read_bytes(), &mut |name, length, contents| {
                sink.file(&format!("pg_tblspc/{oid}/{name}"), length, contents)?;
                progress.report()
            })?;
        }
        if let Some(archive) = find_archive(&self.dir, "pg_wal") {
            each_file(&archive, &progress.read_bytes(), &mut |name, length, contents| {
                unpack_wal(unpacked_wal, name, length, contents)?;
                progress.report()
            })?;
        }
        let control_file = sink.control_file().ok_or(ImportError::FileMissing { file: "global/pg_control" })?;
        let recovery = recovery_of_backup(control_file, &self.label)?;
        let wal = take_wal(unpacked_wal, &recovery, &super::wal_layout(wal_dir, control_file))?;
        let Imported { control_file, missing_segments, counts } = sink.finish()?;
        let (pg_timeline_id, first_readable_lsn) = (wal.timeline_id, wal.whole_lsn);
        Ok(ImportSummary { control_file, pg_timeline_id, start_lsn, first_readable_lsn, missing_segments, counts })
    }
}

/// Version and label, as far as they are there. Every database has the version too, so it comes soon.
fn read_head(base: &Path) -> Result<(Option<PgVersion>, Option<BackupLabel>), ImportError> {
    let (mut version, mut label) = (None, None);
    each_file(base, &Arc::default(), &mut |name, _, contents| {
        if name == BACKUP_LABEL {
            label = Some(BackupLabel::parse(&read_small(name, contents)?)?);
        } else if name.rsplit('/').next() == Some("PG_VERSION") {
            version = Some(String::from_utf8_lossy(&read_small(name, contents)?).parse()?);
        }
        Ok(if version.is_some() && label.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok((version, label))
}

fn read_small(name: &str, contents: &mut dyn Read) -> Result<Vec<u8>, ImportError> {
    let mut bytes = Vec::new();
    let failed = |source| ImportError::Archive { archive: name.to_owned(), source };
    contents.take(SMALL_FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > SMALL_FILE_BYTES_MAX {
        return Err(ImportError::FileDamaged { file: name.to_owned(), reason: "longer than its kind can be" });
    }
    Ok(bytes)
}

/// Writes a segment or a history file to `dir`; other files that lie beside WAL are of no use.
fn unpack_wal(dir: &Path, name: &str, length: u64, contents: &mut dyn Read) -> Result<(), ImportError> {
    if !is_wal_file(name) {
        return Ok(());
    }
    if u64::from(SEGMENT_BYTES_MAX) < length {
        return Err(ImportError::FileDamaged { file: name.to_owned(), reason: "longer than a WAL segment" });
    }
    let path = dir.join(name);
    let written = File::create(&path).and_then(|mut file| io::copy(contents, &mut file));
    let written = written.map_err(|source| ImportError::Io { path: path.clone(), source })?;
    if written != length {
        return Err(ImportError::FileCut { file: name.to_owned(), length: written });
    }
    Ok(())
}

/// Counts in bytes of the archives on disk, as they lie there compressed.
struct Progress<'p> {
    read_bytes: Arc<AtomicU64>,
    bytes_total: u64,
    reported: Instant,
    on_progress: OnProgress<'p>,
}

impl<'p> Progress<'p> {
    fn new(backup: &TarBackup, on_progress: OnProgress<'p>) -> Self {
        let length = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
        let archives = fs::read_dir(&backup.dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
        let is_other = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let stem = name.split('.').next().unwrap_or_default();
            name.contains(".tar") && (stem == "pg_wal" || stem.parse::<u32>().is_ok())
        };
        let bytes_total = length(&backup.base) + archives.filter(is_other).map(|path| length(&path)).sum::<u64>();
        Progress { read_bytes: Arc::default(), bytes_total, reported: Instant::now(), on_progress }
    }

    fn read_bytes(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.read_bytes)
    }

    fn report(&mut self) -> Result<ControlFlow<()>, ImportError> {
        if self.reported.elapsed() >= PROGRESS_INTERVAL {
            self.reported = Instant::now();
            let bytes_done = self.read_bytes.load(Ordering::Relaxed);
            let progress = ImportProgress { phase: "files", bytes_done, bytes_total: Some(self.bytes_total) };
            if (self.on_progress)(&progress).is_break() {
                return Err(ImportError::Cancelled);
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}
