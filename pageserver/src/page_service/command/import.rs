//! `IMPORT`: what from, and notices on the way.

use std::ops::ControlFlow;

use super::Conninfo;
use super::rows::Rows;
use crate::import::ClusterFiles;
use crate::page_service::backend::{BackendError, BackendErrorKind, ImportProgress, RepositoryBackend, TimelineInfo};
use crate::page_service::error::Failure;

/// Where a cluster comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImportFrom {
    /// The running primary. May hold a password: never logged.
    Primary(Conninfo),
    /// Files on the server's machine.
    Files(ClusterFiles),
}

/// Imports. The timeline as it is then.
pub(super) fn import(
    repository: &dyn RepositoryBackend,
    name: &str,
    from: &ImportFrom,
    rows: &mut Rows<'_>,
) -> Result<TimelineInfo, Failure> {
    with_progress(rows, |progress| match from {
        ImportFrom::Primary(conninfo) => repository.import(name, &conninfo.0, progress),
        ImportFrom::Files(files) => repository.import_files(name, files, progress),
    })
}

/// Runs `work`, whose progress goes to the client in notices; a cancel request and the client's going away stop it.
pub(super) fn with_progress<T>(
    rows: &mut Rows<'_>,
    work: impl FnOnce(&mut dyn FnMut(&ImportProgress) -> ControlFlow<()>) -> Result<T, BackendError>,
) -> Result<T, Failure> {
    let mut stopped_by = None;
    let mut progress = |progress: &ImportProgress| match rows
        .check_interrupts()
        .and_then(|()| rows.notice(&progress_text(progress)))
    {
        Ok(()) => ControlFlow::Continue(()),
        Err(failure) => {
            stopped_by = Some(failure);
            ControlFlow::Break(())
        }
    };
    match (work(&mut progress), stopped_by) {
        (Ok(done), _) => Ok(done),
        (Err(error), Some(failure)) if error.kind == BackendErrorKind::Cancelled => Err(failure),
        (Err(error), _) => Err(error.into()),
    }
}

/// `PHASE: DONE of TOTAL bytes`; `client::ImportProgress` reads it back.
pub(super) fn progress_text(progress: &ImportProgress) -> String {
    let ImportProgress { phase, bytes_done, bytes_total } = progress;
    match bytes_total {
        Some(bytes_total) => format!("{phase}: {bytes_done} of {bytes_total} bytes"),
        None => format!("{phase}: {bytes_done} bytes"),
    }
}
