//! What is kept per tenant: `tenants/ID/tenant.json`. PostgreSQL timeline ids are given out here.
//!
//! - An id is durable before it is given: no two clones of a tenant ever get the same, whatever crashes in between.
//! - The ids begin far above those that a primary reaches by being promoted, which counts up from its own: the two never meet.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use postgres_ffi::TimeLineId;
use serde::{Deserialize, Serialize};
use tracing::info;

use super::{Repository, RepositoryError, create_dir};
use crate::failpoint::Failpoint;
use crate::sealed_file;
use crate::timeline::metadata::TimelineMetadata;
use crate::timeline::{TenantId, Timeline};

/// Directory of the tenants within the data directory.
pub(super) const TENANTS_DIR: &str = "tenants";
/// The first PostgreSQL timeline id that we give out.
pub const PG_TIMELINE_ID_FIRST: TimeLineId = 0x1000;
/// Name of the file within a tenant's directory.
pub(super) const FILE_NAME: &str = "tenant.json";
/// Format of the file; raised when an older server could misread it.
const FORMAT: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TenantFile {
    format: u32,
    /// The highest PostgreSQL timeline id that was given out.
    pg_timeline_id_last: TimeLineId,
}

/// A tenant's file cannot be used, or has no more ids.
#[derive(Debug, thiserror::Error)]
pub enum TenantError {
    /// No timeline belongs to this tenant.
    #[error("Not found: no such tenant. tenant=`{tenant_id}`")]
    Missing {
        /// The tenant asked for.
        tenant_id: TenantId,
    },
    /// The content is not ours. Nothing was guessed: an id that is given twice cannot be taken back.
    #[error("the tenant's file is damaged. path=`{path}`: {message}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// PostgreSQL has no timeline id above the last one.
    #[error("no PostgreSQL timeline id is left. pg_timeline_id_last=`{pg_timeline_id_last}`")]
    NoTimelineIdLeft {
        /// The highest known one.
        pg_timeline_id_last: TimeLineId,
    },
}

impl Repository {
    /// A PostgreSQL timeline id that nothing of this tenant was ever on: at least [`PG_TIMELINE_ID_FIRST`], above every one known. Durable
    /// when it returns; asked again, the next one.
    pub fn next_pg_timeline_id(&self, tenant_id: TenantId) -> Result<TimeLineId, RepositoryError> {
        let _one_at_a_time = self.pg_timeline_ids.lock();
        let timelines = self.timelines();
        let mut known = PG_TIMELINE_ID_FIRST - 1;
        let mut members = timelines.iter().filter(|timeline| timeline.metadata().tenant_id == tenant_id).peekable();
        if members.peek().is_none() {
            return Err(TenantError::Missing { tenant_id }.into());
        }
        for timeline in members {
            known = known.max(self.pg_timeline_id_known(timeline)?);
        }
        let dir = self.tenant_dir(tenant_id);
        create_dir(&dir)?;
        settle(&dir)?;
        let pg_timeline_id_last = load(&dir)?.map_or(known, |file| file.pg_timeline_id_last.max(known));
        let next = pg_timeline_id_last.checked_add(1).ok_or(TenantError::NoTimelineIdLeft { pg_timeline_id_last })?;
        save(&dir, &TenantFile { format: FORMAT, pg_timeline_id_last: next })?;
        info!(%tenant_id, pg_timeline_id = next, "PostgreSQL timeline id given out");
        Ok(next)
    }

    /// Damaged files of tenants are replaced by their copies, missing copies made.
    pub(super) fn settle_tenants(&self, timelines: &[TimelineMetadata]) -> Result<(), RepositoryError> {
        let tenant_ids: BTreeSet<TenantId> = timelines.iter().map(|metadata| metadata.tenant_id).collect();
        tenant_ids.into_iter().try_for_each(|tenant_id| settle(&self.tenant_dir(tenant_id)))
    }

    /// The highest PostgreSQL timeline id that the timeline is known to have been on.
    fn pg_timeline_id_known(&self, timeline: &Timeline) -> Result<TimeLineId, RepositoryError> {
        let imported_on = timeline.metadata().cluster.pg_timeline_id;
        let received = timeline.receiver_status().map_or(0, |status| status.pg_timeline_id);
        let in_files = self.wal_layout(timeline).newest_timeline_id()?.unwrap_or(0);
        Ok(imported_on.max(received).max(in_files))
    }

    pub(super) fn tenant_dir(&self, tenant_id: TenantId) -> PathBuf {
        self.tenants_dir.join(tenant_id.to_string())
    }
}

/// A damaged file in `dir` is replaced by its copy, or the copy is made. Requires: no id is given out meanwhile.
pub(super) fn settle(dir: &Path) -> Result<(), RepositoryError> {
    let path = dir.join(FILE_NAME);
    let settled = sealed_file::copy::settle::<TenantFile>(&path);
    settled.map(drop).map_err(|source| RepositoryError::Io { doing: "write a tenant's file", path, source })
}

/// What `dir` holds; `None`: nothing yet.
pub(super) fn load(dir: &Path) -> Result<Option<TenantFile>, RepositoryError> {
    let path = dir.join(FILE_NAME);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(RepositoryError::Io { doing: "read a tenant's file", path, source }),
    };
    let file = sealed_file::parse::<TenantFile>(&bytes);
    let file = file.and_then(|file| match file.format {
        FORMAT => Ok(file),
        format => Err(format!("format {format} is not {FORMAT}")),
    });
    file.map(Some).map_err(|message| TenantError::Damaged { path, message }.into())
}

fn save(dir: &Path, file: &TenantFile) -> Result<(), RepositoryError> {
    let path = dir.join(FILE_NAME);
    let write = || {
        sealed_file::write(&path, file, [Failpoint::TenantBeforeRename, Failpoint::TenantRenamed])?;
        // The directory may be new as well.
        dir.ancestors().skip(1).take(2).try_for_each(|above| File::open(above)?.sync_all())
    };
    write().map_err(|source| RepositoryError::Io { doing: "write a tenant's file", path: path.clone(), source })?;
    Failpoint::TenantSaved.pass();
    Ok(())
}
