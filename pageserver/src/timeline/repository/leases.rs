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

use postgres_ffi::Lsn;
use serde::{Deserialize, Serialize};

use super::{Repository, RepositoryError};
use crate::failpoint::Failpoint;
use crate::sealed_file::{Kept, KeptFile, Sealed};
use crate::timeline::TimelineId;

/// Name of the file within the data directory.
pub(super) const LEASES_FILE_NAME: &str = "leases.json";
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

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LeasesFile {
    format: u32,
    lease_id_last: u64,
    leases: Vec<Lease>,
}

impl Default for LeasesFile {
    fn default() -> Self {
        LeasesFile { format: Self::FORMAT, lease_id_last: 0, leases: Vec::new() }
    }
}

impl Sealed for LeasesFile {
    const FORMAT: u32 = 1;

    fn format(&self) -> u32 {
        self.format
    }
}

impl Kept for LeasesFile {
    const POINTS: [Failpoint; 3] = [Failpoint::LeaseBeforeRename, Failpoint::LeaseRenamed, Failpoint::LeaseSaved];
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
pub(crate) struct Leases(KeptFile<LeasesFile>);

impl Leases {
    /// The leases in `data_dir`. Errors: unreadable or damaged.
    pub(super) fn load(data_dir: &Path) -> Result<Self, RepositoryError> {
        let path = data_dir.join(LEASES_FILE_NAME);
        match KeptFile::load(path.clone()) {
            Ok(file) => Ok(Leases(file)),
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                Err(LeaseError::Damaged { path, message: error.to_string() }.into())
            }
            Err(source) => Err(RepositoryError::Io { doing: "read the leases", path, source }),
        }
    }

    /// True if a lease is on exactly `lsn`.
    pub(crate) fn covers(&self, timeline_id: TimelineId, lsn: Lsn) -> bool {
        let now = now();
        self.0.content().leases.iter().any(|lease| lease.is_on(timeline_id, now) && lease.lsn == lsn)
    }

    /// Where the file is.
    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Reads the file again. Err: it is damaged, or says something else than what was given out.
    pub(super) fn check_file(&self) -> Result<(), String> {
        self.0.check()
    }

    /// Writes the file again as it is known.
    pub(super) fn write_again(&self) -> Result<(), RepositoryError> {
        self.0.write_again().map_err(|source| self.write_failed(source))
    }

    /// LSNs of the timeline that are leased.
    pub(super) fn lsns_of(&self, timeline_id: TimelineId) -> Vec<Lsn> {
        let now = now();
        let file = self.0.content();
        file.leases.iter().filter(|lease| lease.is_on(timeline_id, now)).map(|lease| lease.lsn).collect()
    }

    /// Leases on the timeline.
    pub(super) fn ids_of(&self, timeline_id: TimelineId) -> Vec<u64> {
        self.ids_below(timeline_id, Lsn::MAX)
    }

    /// Leases on LSNs of the timeline below `end_lsn`.
    pub(super) fn ids_below(&self, timeline_id: TimelineId, end_lsn: Lsn) -> Vec<u64> {
        let now = now();
        let file = self.0.content();
        let below = file.leases.iter().filter(|lease| lease.is_on(timeline_id, now) && lease.lsn < end_lsn);
        below.map(|lease| lease.lease_id).collect()
    }

    /// The leases that are valid.
    pub(super) fn all(&self) -> Vec<Lease> {
        let now = now();
        self.0.content().leases.iter().filter(|lease| now < lease.valid_until_unix_seconds).cloned().collect()
    }

    fn add(&self, timeline_id: TimelineId, lsn: Lsn, duration: Duration) -> Result<Lease, RepositoryError> {
        let mut file = self.0.content();
        let lease = Lease {
            lease_id: file.lease_id_last + 1,
            timeline_id,
            lsn,
            valid_until_unix_seconds: now() + duration.as_secs(),
        };
        let mut leases = file.valid();
        leases.push(lease.clone());
        let new = LeasesFile { lease_id_last: lease.lease_id, leases, ..LeasesFile::default() };
        self.0.replace(&mut file, new).map_err(|source| self.write_failed(source))?;
        Ok(lease)
    }

    fn end(&self, lease_id: u64) -> Result<Lease, RepositoryError> {
        let mut file = self.0.content();
        let mut leases = file.valid();
        let at = leases.iter().position(|lease| lease.lease_id == lease_id).ok_or(LeaseError::Missing { lease_id })?;
        let ended = leases.remove(at);
        let new = LeasesFile { lease_id_last: file.lease_id_last, leases, ..LeasesFile::default() };
        self.0.replace(&mut file, new).map_err(|source| self.write_failed(source))?;
        Ok(ended)
    }

    fn write_failed(&self, source: std::io::Error) -> RepositoryError {
        RepositoryError::Io { doing: "write the leases", path: self.path().to_owned(), source }
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

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
