//! Leases: somebody needs an LSN of a timeline for a while. `DIR/leases.json`.
//!
//! - Durable before it is given. One that is over is as if it had never been; it leaves the file with the next change.
//! - Pins the timeline itself too: it is neither deleted nor reset while leases are on it.
//!
//! ```text
//! {"format": 1, "lease_id_last": 2, "leases": [{"lease_id": 2, "timeline_id": "...", "lsn": "0/3000060", "valid_until_unix_seconds": 1795651200}]}
//! ```

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use postgres_ffi::Lsn;
use serde::{Deserialize, Serialize};

use super::{Repository, RepositoryError};
use crate::failpoint::Failpoint;
use crate::sealed_file;
use crate::timeline::TimelineId;

/// Name of the file within the data directory.
pub(super) const LEASES_FILE_NAME: &str = "leases.json";
/// Format of the file; raised when an older server could misread it.
const FORMAT: u32 = 1;
/// How long a lease is valid without another wish.
pub const LEASE_DEFAULT: Duration = Duration::from_secs(600);
/// The longest lease: a hundred years.
pub const LEASE_MAX: Duration = Duration::from_secs(100 * 366 * 86_400);

/// One lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    /// Never given twice.
    pub lease_id: u64,
    /// The timeline.
    pub timeline_id: TimelineId,
    /// What is needed of it.
    pub lsn: Lsn,
    /// It is over from then on; seconds since 1970.
    pub valid_until_unix_seconds: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LeasesFile {
    format: u32,
    lease_id_last: u64,
    leases: Vec<Lease>,
}

/// A lease cannot be given or ended.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// There is no such lease, or it is over.
    #[error("Not found: no such lease, or it is over. lease=`{lease_id}`")]
    Missing {
        /// What was asked for.
        lease_id: u64,
    },
    /// Nobody can lease for so long, or for no time.
    #[error("a lease is for 1 to {} seconds. seconds=`{seconds}`", LEASE_MAX.as_secs())]
    Duration {
        /// What was asked for.
        seconds: u64,
    },
    /// The content is not ours.
    #[error("the file of leases is damaged. path=`{path}`: {message}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
}

/// All leases of a server.
pub(crate) struct Leases {
    path: PathBuf,
    file: Mutex<LeasesFile>,
}

impl Leases {
    /// The leases in `data_dir`. Errors: unreadable or damaged.
    pub(super) fn load(data_dir: &Path) -> Result<Self, RepositoryError> {
        let path = data_dir.join(LEASES_FILE_NAME);
        let file = match std::fs::read(&path) {
            Ok(bytes) => parse(&bytes).map_err(|message| LeaseError::Damaged { path: path.clone(), message })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                LeasesFile { format: FORMAT, ..LeasesFile::default() }
            }
            Err(source) => return Err(RepositoryError::Io { doing: "read the leases", path, source }),
        };
        Ok(Leases { path, file: Mutex::new(file) })
    }

    /// True if a lease is on exactly `lsn`.
    pub(crate) fn covers(&self, timeline_id: TimelineId, lsn: Lsn) -> bool {
        let now = now();
        self.file.lock().leases.iter().any(|lease| lease.is_on(timeline_id, now) && lease.lsn == lsn)
    }

    /// Where the file is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file again. Err: it is damaged, or says something else than what was given out.
    pub(super) fn check_file(&self) -> Result<(), String> {
        let known = self.file.lock();
        let found = match std::fs::read(&self.path) {
            Ok(bytes) => parse(&bytes)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && known.lease_id_last == 0 => return Ok(()),
            Err(error) => return Err(error.to_string()),
        };
        let is_same = (found.lease_id_last, &found.leases) == (known.lease_id_last, &known.leases);
        if is_same { Ok(()) } else { Err("it says something else than the server knows".to_owned()) }
    }

    /// Writes the file again as it is known.
    pub(super) fn write_again(&self) -> Result<(), RepositoryError> {
        let mut file = self.file.lock();
        let known = LeasesFile { format: FORMAT, lease_id_last: file.lease_id_last, leases: file.leases.clone() };
        self.replace(&mut file, known)
    }

    /// LSNs of the timeline that are leased.
    pub(super) fn lsns_of(&self, timeline_id: TimelineId) -> Vec<Lsn> {
        let now = now();
        let file = self.file.lock();
        file.leases.iter().filter(|lease| lease.is_on(timeline_id, now)).map(|lease| lease.lsn).collect()
    }

    /// Leases on the timeline.
    pub(super) fn ids_of(&self, timeline_id: TimelineId) -> Vec<u64> {
        self.ids_below(timeline_id, Lsn::MAX)
    }

    /// Leases on LSNs of the timeline below `end_lsn`.
    pub(super) fn ids_below(&self, timeline_id: TimelineId, end_lsn: Lsn) -> Vec<u64> {
        let now = now();
        let file = self.file.lock();
        let below = file.leases.iter().filter(|lease| lease.is_on(timeline_id, now) && lease.lsn < end_lsn);
        below.map(|lease| lease.lease_id).collect()
    }

    /// The leases that are valid.
    pub(super) fn all(&self) -> Vec<Lease> {
        let now = now();
        self.file.lock().leases.iter().filter(|lease| now < lease.valid_until_unix_seconds).cloned().collect()
    }

    fn add(&self, timeline_id: TimelineId, lsn: Lsn, duration: Duration) -> Result<Lease, RepositoryError> {
        let mut file = self.file.lock();
        let lease = Lease {
            lease_id: file.lease_id_last + 1,
            timeline_id,
            lsn,
            valid_until_unix_seconds: now() + duration.as_secs(),
        };
        let mut leases = file.valid();
        leases.push(lease.clone());
        self.replace(&mut file, LeasesFile { format: FORMAT, lease_id_last: lease.lease_id, leases })?;
        Ok(lease)
    }

    fn end(&self, lease_id: u64) -> Result<Lease, RepositoryError> {
        let mut file = self.file.lock();
        let mut leases = file.valid();
        let at = leases.iter().position(|lease| lease.lease_id == lease_id).ok_or(LeaseError::Missing { lease_id })?;
        let ended = leases.remove(at);
        let new = LeasesFile { format: FORMAT, lease_id_last: file.lease_id_last, leases };
        self.replace(&mut file, new)?;
        Ok(ended)
    }

    fn replace(&self, file: &mut LeasesFile, new: LeasesFile) -> Result<(), RepositoryError> {
        let written = sealed_file::write(&self.path, &new, [Failpoint::LeaseBeforeRename, Failpoint::LeaseRenamed]);
        written.map_err(|source| RepositoryError::Io { doing: "write the leases", path: self.path.clone(), source })?;
        Failpoint::LeaseSaved.pass();
        *file = new;
        Ok(())
    }
}

impl LeasesFile {
    fn valid(&self) -> Vec<Lease> {
        let now = now();
        self.leases.iter().filter(|lease| now < lease.valid_until_unix_seconds).cloned().collect()
    }
}

impl Lease {
    fn is_on(&self, timeline_id: TimelineId, now: u64) -> bool {
        self.timeline_id == timeline_id && now < self.valid_until_unix_seconds
    }
}

impl Repository {
    /// Leases `lsn` of the timeline `name`, which must be readable now, for `duration`. Errors: [`LeaseError::Duration`]; the LSN is out of range, or below
    /// the horizon and not pinned; no such timeline; the disk.
    pub fn lease(&self, name: &str, lsn: Lsn, duration: Duration) -> Result<Lease, RepositoryError> {
        if duration.as_secs() == 0 || duration > LEASE_MAX {
            return Err(LeaseError::Duration { seconds: duration.as_secs() }.into());
        }
        let _changes = self.changes.lock();
        let timeline = self.timeline_named(name)?;
        // What is leased or branched off already can be leased again, below the horizon too.
        timeline.check_readable(lsn)?;
        self.leases.add(timeline.metadata().timeline_id, lsn, duration)
    }

    /// The leases that are valid, oldest first; only those on the timeline `name` if one is given.
    pub fn leases(&self, name: Option<&str>) -> Result<Vec<Lease>, RepositoryError> {
        let mut leases = self.leases.all();
        if let Some(name) = name {
            let timeline_id = self.timeline_named(name)?.metadata().timeline_id;
            leases.retain(|lease| lease.timeline_id == timeline_id);
        }
        Ok(leases)
    }

    /// Ends a lease before its time. Errors: [`LeaseError::Missing`]; the disk.
    pub fn end_lease(&self, lease_id: u64) -> Result<Lease, RepositoryError> {
        self.leases.end(lease_id)
    }
}

fn parse(bytes: &[u8]) -> Result<LeasesFile, String> {
    let file: LeasesFile = sealed_file::parse(bytes)?;
    match file.format {
        FORMAT => Ok(file),
        format => Err(format!("format {format} is not {FORMAT}")),
    }
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
