//! A cluster becomes a timeline: its files, read once, as images at one LSN.
//!
//! - A running primary's base backup is *fuzzy*: pages were copied while they changed, each at its own moment between the backup's
//!   redo point and its end. All of them enter at the redo point, and WAL from there on is ingested over them. That is right for the
//!   same reason that PostgreSQL may recover from the backup: redo skips a record at or below the page's own LSN, the primary logs whole
//!   pages at the first touch after the redo point (so a torn page is replaced), and nothing can be read before the end of the backup.
//! - A fork's size enters as the file was copied. Where it was cut or extended since the redo point, WAL says so again.
//! - A backup that breaks off leaves nothing: its versions have no watermark, and the timeline's number is not used again.
//!
//! - A crashed server's directory and a base backup on disk are fuzzy in the same way; the WAL that makes them whole comes from beside them, is
//!   proven to be there before anything is published, and lies in the timeline's own directory then.
//!
//! In reading order: which file is what ([`layout`]), files to versions ([`sink`]), what WAL they need ([`backup_label`], `recovery`, `wal_files`), where
//! they come from ([`base_backup`], [`data_dir`], [`tar_backup`] with `tar_file`; not from under a server: `running`).

pub mod backup_label;
pub mod base_backup;
pub mod data_dir;
mod error;
pub mod layout;
mod progress;
mod recovery;
mod running;
mod sink;
pub mod tar_backup;
mod tar_file;
mod wal_files;

pub use error::ImportError;
pub use progress::{ImportProgress, OnProgress};
pub use sink::{ImportCounts, ImportSink, MissingSegment};

use std::path::{Path, PathBuf};
use std::sync::Arc;

use postgres_ffi::checkpoint::Checkpoint;
use postgres_ffi::control_file::ControlFile;
use postgres_ffi::{BLCKSZ, Lsn, TimeLineId};

use crate::store::TimelineStore;
use crate::wal::WalLayout;

/// A cluster's files on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterFiles {
    /// A data directory whose server does not run: cleanly stopped, crashed, or an unpacked base backup.
    Directory(PathBuf),
    /// A base backup in tar files: `base.tar`, or the directory that holds it.
    Tar(PathBuf),
}

impl ClusterFiles {
    /// Where they are.
    pub fn path(&self) -> &Path {
        match self {
            ClusterFiles::Directory(path) | ClusterFiles::Tar(path) => path,
        }
    }

    /// Imports them: see [`data_dir::import_data_dir`] and [`tar_backup::import_tar`].
    pub fn import(
        &self,
        store: Arc<TimelineStore>,
        wal_dir: &Path,
        on_progress: OnProgress<'_>,
    ) -> Result<ImportSummary, ImportError> {
        if !self.path().is_absolute() {
            let what = "a path on the server's machine must be absolute";
            return Err(ImportError::NotThere { what, path: self.path().to_owned() });
        }
        match self {
            ClusterFiles::Directory(path) => data_dir::import_data_dir(store, path, wal_dir, on_progress),
            ClusterFiles::Tar(path) => tar_backup::import_tar(store, path, wal_dir, on_progress),
        }
    }
}

/// What was imported.
#[derive(Clone, Debug)]
pub struct ImportSummary {
    /// The cluster's own description of itself.
    pub control_file: Box<ControlFile>,
    /// PostgreSQL's timeline id that WAL goes on with.
    pub pg_timeline_id: TimeLineId,
    /// Every imported version carries this LSN; WAL from here on is to be ingested.
    pub start_lsn: Lsn,
    /// Nothing below it can be read.
    pub first_readable_lsn: Lsn,
    /// Files that were not there: their relations must be gone by then.
    pub missing_segments: Vec<MissingSegment>,
    /// How much came.
    pub counts: ImportCounts,
}

/// The cluster's WAL in `wal_dir`.
fn wal_layout(wal_dir: &Path, control_file: &ControlFile) -> WalLayout {
    WalLayout {
        directory: wal_dir.to_owned(),
        version: control_file.version,
        segment_bytes: control_file.xlog_seg_size,
        system_id: control_file.system_identifier,
    }
}

/// PostgreSQL's timeline id at the checkpoint that the control file names.
fn timeline_id_of_checkpoint(control_file: &ControlFile) -> Result<TimeLineId, ImportError> {
    let checkpoint = Checkpoint::decode(control_file.version, &control_file.checkpoint_copy).map_err(|_| {
        ImportError::FileDamaged { file: "global/pg_control".to_string(), reason: "no checkpoint in it" }
    })?;
    Ok(checkpoint.this_tli)
}

/// Refuses clusters whose pages or segments are not what we store.
fn check_control_file(control_file: &ControlFile) -> Result<(), ImportError> {
    let relseg_size = control_file.relseg_size;
    if relseg_size != layout::RELSEG_BLOCKS {
        return Err(ImportError::UnsupportedCluster {
            setting: "blocks per segment file",
            expected: "131072",
            value: relseg_size.to_string(),
        });
    }
    let blcksz = control_file.blcksz;
    if blcksz as usize != BLCKSZ {
        return Err(ImportError::UnsupportedCluster {
            setting: "block size",
            expected: "8192",
            value: blcksz.to_string(),
        });
    }
    Ok(())
}
