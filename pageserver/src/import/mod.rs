//! A cluster becomes a timeline: its files, read once, as images at one LSN.
//!
//! - A running primary's base backup is *fuzzy*: pages were copied while they changed, each at its own moment between the backup's
//!   redo point and its end. All of them enter at the redo point, and WAL from there on is ingested over them. That is right for the
//!   same reason that PostgreSQL may recover from the backup: redo skips a record at or below the page's own LSN, the primary logs whole
//!   pages at the first touch after the redo point (so a torn page is replaced), and nothing can be read before the end of the backup.
//! - A fork's size enters as the file was copied. Where it was cut or extended since the redo point, WAL says so again.
//! - A backup that breaks off leaves nothing: its versions have no watermark, and the timeline's number is not used again.
//!
//! In reading order: which file is what ([`layout`]), files to versions ([`sink`]), where they come from ([`base_backup`], [`data_dir`]).

pub mod base_backup;
pub mod data_dir;
mod error;
pub mod layout;
mod sink;

pub use error::ImportError;
pub use sink::{ImportCounts, ImportSink};

use postgres_ffi::checkpoint::Checkpoint;
use postgres_ffi::control_file::ControlFile;
use postgres_ffi::{BLCKSZ, Lsn, TimeLineId};

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
    /// How much came.
    pub counts: ImportCounts,
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
