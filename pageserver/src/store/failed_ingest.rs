//! What a failed ingestion leaves: the mark `<dir>/ingest_failed`, and a MANIFEST that may name files that are not there.
//!
//! When RocksDB cannot sync the MANIFEST it takes the files of the ingestion back, though the record that names them may be on disk all the same; such a store does not open. Who
//! asked for the ingestion was told that it failed, and nothing was ingested behind it. So its record goes.
//!
//! - Only with the mark: a file that is missing for another reason is damage, and its record stays.
//! - Only the last record, only if it adds a file that is not there.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::cold_read::sst_file_in;
use super::manifest;

const FILE_NAME: &str = "ingest_failed";

/// Sets the mark, durably. Best effort: the disk fails just now; without it the store may not open.
pub(super) fn set_mark(dir: &Path) {
    let set = || {
        File::create(dir.join(FILE_NAME))?.sync_all()?;
        File::open(dir)?.sync_all()
    };
    if let Err(error) = set() {
        tracing::error!(%error, dir = %dir.display(), "the mark of a failed ingestion cannot be set");
    }
}

/// Takes the mark away. To be called when RocksDB is open.
pub(super) fn clear_mark(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join(FILE_NAME)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// True: the MANIFEST named a file of a failed ingestion that is not there, as RocksDB said in `open_error`, and does no more.
pub(super) fn take_back(dir: &Path, rocks_dir: &Path, open_error: &str) -> io::Result<bool> {
    let Some(file) = sst_file_in(open_error).filter(|file| !rocks_dir.join(file).exists()) else { return Ok(false) };
    let Some(number) = file.strip_suffix(".sst").and_then(|number| number.parse().ok()) else { return Ok(false) };
    if !dir.join(FILE_NAME).exists() {
        return Ok(false);
    }
    let current = fs::read_to_string(rocks_dir.join("CURRENT"))?;
    let path = rocks_dir.join(current.trim_end());
    let log = fs::read(&path)?;
    let Some(shorter) = manifest::without_last_addition(&log, number) else { return Ok(false) };
    tracing::warn!(file, manifest = %path.display(), "a failed ingestion is taken back: its record in the MANIFEST goes");
    let new = PathBuf::from(format!("{}.new", path.display()));
    fs::write(&new, shorter)?;
    File::open(&new)?.sync_all()?;
    fs::rename(&new, &path)?;
    File::open(rocks_dir)?.sync_all()?;
    Ok(true)
}
