//! `pageserver mend`: a store with files that cannot be read becomes one that has all that can be, and knows what it lacks. While no server runs.
//!
//! - [`survey`]: what can be read, what cannot, how far each timeline goes. [`plan`]: from where on each begins again. [`copy`]: the new store.
//! - **Never:** a page whose newest records are lost reads as an older one: what was lost stands in the timeline's watermark, and the store answers by it.
//! - **Never:** a file of the old store is changed: it is moved aside when the new one is whole and durable, and stays there.
//! - Where only blocks of relations are lost, a timeline that follows a primary ingests the WAL on disk again that leads to where it was, from as far back as it goes: what
//!   it holds is not lost.

mod copy;
mod plan;
mod survey;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use postgres_ffi::Lsn;
use serde::Serialize;

use crate::config::{Config, ConfigError};
use crate::pid_file::{PID_FILE_NAME, PidFile, PidFileError};
use crate::store::{ColdRead, LostStretch, StoreError, is_unsettled, settle};
use crate::timeline::{RepositoryError, StoppedTimeline, store_of};

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct MendOptions {
    /// Only tell what cannot be read and what would become of it.
    pub dry_run: bool,
    /// Names of timelines that are deleted, since they cannot be opened any more.
    pub give_up: Vec<String>,
}

/// Why a store was not mended. Nothing was changed, but that timelines that were to be given up may be marked: they go at the next start.
#[derive(Debug, thiserror::Error)]
pub enum MendError {
    /// A server runs, or its pid file cannot be used.
    #[error(transparent)]
    PidFile(#[from] PidFileError),
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The timelines' files cannot be used.
    #[error(transparent)]
    Timelines(#[from] RepositoryError),
    /// The store cannot be opened, or the new one cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What a server needs of a timeline before it opens it is lost.
    #[error(
        "watermark or control file of these timelines cannot be read, so they cannot be opened: import them anew, and give up what is left of them with --give-up NAME. timelines=`{}`", names.join(", ")
    )]
    Unopenable {
        /// Their names.
        names: Vec<String>,
    },
    /// A dry run sees something else than the next start would open.
    #[error(
        "a flush or a mend was cut off, and what it has left would look like damage: start the server once, or mend without --dry-run. store=`{store}`"
    )]
    Unsettled {
        /// The store's directory.
        store: PathBuf,
    },
    /// No timeline has this name.
    #[error("no timeline has the name that is to be given up. timeline=`{name}`")]
    NotThere {
        /// The name.
        name: String,
    },
    /// A timeline that is to stay reads through one that is not.
    #[error(
        "a branch reads through the timeline that is to be given up; give it up too. timeline=`{name}`, branch=`{branch}`"
    )]
    HasBranch {
        /// What is to be given up.
        name: String,
        /// Who reads through it.
        branch: String,
    },
    /// The second look at the store showed less than the first.
    #[error(
        "the store could be read worse the second time: the disk may be failing; copy the data directory to another one first. timeline=`{name}`"
    )]
    GetsWorse {
        /// Of which less could be read.
        name: String,
    },
}

/// How far it is.
#[derive(Clone, Copy, Debug)]
pub struct MendProgress {
    /// What is being done.
    pub doing: &'static str,
    /// Bytes of keys and values done.
    pub bytes: u64,
    /// Of about so many; 0: not known.
    pub bytes_total: u64,
}

/// What was found and done.
#[derive(Clone, Debug, Serialize)]
pub struct MendReport {
    /// SST files that something could not be read of, as far as RocksDB names them.
    pub files: Vec<PathBuf>,
    /// What RocksDB said first.
    pub cause: Option<String>,
    /// The timelines that lost something, or are given up.
    pub timelines: Vec<MendedTimelineReport>,
    /// Versions in the new store; of a dry run: that can be read.
    pub versions: u64,
    /// Where the old store is now. `None`: nothing was changed, since all can be read or nothing was to be.
    pub old_store: Option<PathBuf>,
}

/// What became of a timeline that lost something.
#[derive(Clone, Debug, Serialize)]
pub struct MendedTimelineReport {
    /// Its name.
    pub name: String,
    /// It is deleted.
    pub is_given_up: bool,
    /// WAL is ingested again from here on: what it holds is not lost. `None`: the WAL on disk does not lead to where the timeline was, or more than
    /// blocks is lost.
    pub ingested_again_from: Option<Lsn>,
    /// Where the timeline was.
    pub last_record_lsn: Option<Lsn>,
    /// What is lost, earlier mends included: between what, as text.
    pub lost: Vec<String>,
}

/// Mends the store of `data_dir`. `progress` is told how far it is, some times a second.
///
/// The store is read twice and written once beside itself: there must be room for it. Errors: see [`MendError`]; the store is as it was then.
pub fn mend(
    data_dir: &Path,
    options: &MendOptions,
    progress: &mut dyn FnMut(MendProgress),
) -> Result<MendReport, MendError> {
    let config = Config::load(data_dir)?;
    let _pid_file = PidFile::claim(&data_dir.join(PID_FILE_NAME))?;
    let (store_dir, store_config) = store_of(data_dir, &config);
    if !options.dry_run {
        settle(&store_dir)?; // What a mend that crashed has left.
    } else if is_unsettled(&store_dir) {
        return Err(MendError::Unsettled { store: store_dir });
    }
    let timelines = StoppedTimeline::all(data_dir)?;
    let given_up = plan::given_up(&timelines, &options.give_up)?;
    let survey = {
        let source = ColdRead::of_stopped(&store_dir, &store_config)?;
        survey::survey(&source, progress)?
    };
    let is_whole = survey.unreadable.is_empty() && given_up.is_empty();
    let plans = if is_whole { Vec::new() } else { plan::plan(&timelines, &given_up, &survey)? };
    let mut report = report(&survey, &plans, &given_up);
    if is_whole || options.dry_run {
        return Ok(report);
    }
    let (mended, versions) = copy::copy((&store_dir, &store_config), plans, survey.bytes, progress)?;
    report.versions = versions;
    // First: the new store has nothing of them, so the next start must not open them. A slot that is listed stays at the primary while a timeline names it.
    // The marks stay, whatever comes: whether the new store takes the place at the next start is not known after an error.
    given_up.iter().try_for_each(|timeline| timeline.give_up())?;
    report.old_store = Some(mended.finish()?);
    Ok(report)
}

fn report(survey: &survey::Survey, plans: &[plan::Plan<'_>], given_up: &[&StoppedTimeline]) -> MendReport {
    let mut files: Vec<PathBuf> = survey.unreadable.iter().filter_map(|range| range.file.clone()).collect();
    files.sort_unstable();
    files.dedup();
    let damaged = plans.iter().filter(|plan| !plan.lost.is_empty()).map(|plan| MendedTimelineReport {
        name: plan.timeline.metadata.name.clone(),
        is_given_up: false,
        ingested_again_from: plan.is_ingested_again().then_some(plan.begin_lsn),
        last_record_lsn: Some(plan.last_record_lsn),
        lost: plan.lost.iter().map(LostStretch::to_string).collect(),
    });
    let given_up = given_up.iter().map(|timeline| MendedTimelineReport {
        name: timeline.metadata.name.clone(),
        is_given_up: true,
        ingested_again_from: None,
        last_record_lsn: None,
        lost: Vec::new(),
    });
    MendReport {
        files,
        cause: survey.unreadable.first().map(|range| range.cause.clone()),
        timelines: damaged.chain(given_up).collect(),
        versions: survey.versions,
        old_store: None,
    }
}
