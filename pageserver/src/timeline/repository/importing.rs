//! A cluster becomes a new timeline of a new tenant.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyenc::TimelineNo;
use postgres_ffi::PgVersion;
use tracing::{info, warn};

use super::branching::NEW_DIR_PREFIX;
use super::left_slots::InHand;
use super::marks::{IMPORTING, clear_mark, set_mark};
use super::names::ReservedName;
use super::{Repository, RepositoryError, create_dir};
use crate::failpoint::Failpoint;
use crate::import::base_backup::ReachedPrimary;
use crate::import::{ClusterFiles, ImportError, ImportProgress, ImportSummary, OnProgress, data_dir};
use crate::replication::{ConnInfo, ReplicationError, one_line};
use crate::store::Impatience;
use crate::timeline::metadata::{ClusterFacts, Imported, Primary, TimelineMetadata};
use crate::timeline::{TenantId, Timeline, TimelineId};

/// How often somebody hears of how far ingest is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// What an import brought, for people.
#[derive(Clone, Debug)]
pub struct ImportReport {
    /// The new timeline's name.
    pub name: String,
    /// What was imported.
    pub summary: ImportSummary,
    /// How long it took.
    pub duration: Duration,
}

impl std::fmt::Display for ImportReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ImportSummary { control_file, counts, first_readable_lsn, .. } = &self.summary;
        let mib = counts.bytes as f64 / f64::from(1 << 20);
        let seconds = self.duration.as_secs_f64();
        write!(
            f,
            "imported timeline `{}`: PostgreSQL {}, {} pages of {} forks in {} databases, {mib:.1} MiB in {seconds:.1} s, readable from {first_readable_lsn}",
            self.name, control_file.version, counts.page_count, counts.fork_count, counts.database_count,
        )
    }
}

/// A timeline that is being made. Its directory bears the mark of an unfinished import until [`Repository::finish_import`].
pub(super) struct NewTimeline {
    pub tenant_id: TenantId,
    pub timeline_id: TimelineId,
    pub no: TimelineNo,
    pub name: String,
    dir: PathBuf,
    begun: Instant,
    /// An import that finds no room fails: it would hold its name and its primary's backup for who knows how long.
    _impatience: Impatience,
    _reserved_name: ReservedName,
}

impl NewTimeline {
    fn wal_dir(&self) -> PathBuf {
        self.dir.join("wal")
    }
}

impl Repository {
    /// Runs `initdb` of the installed PostgreSQL `version` with `options` and imports the new cluster as timeline `name`.
    pub fn import_initdb(
        &self,
        name: &str,
        version: PgVersion,
        options: &[String],
    ) -> Result<ImportReport, RepositoryError> {
        let bin_dir = self.postgres_bin_dir(version)?;
        let new = self.begin_import(name)?;
        let imported = data_dir::run_initdb(&bin_dir, &self.config.redo.run_as, options).and_then(|dir| {
            let store = self.store.timeline(new.no)?;
            data_dir::import_data_dir(store, &dir.path().join("data"), &new.wal_dir(), &mut |_| {
                ControlFlow::Continue(())
            })
        });
        let (_, report) = self.end_import(new, imported.map_err(RepositoryError::from), None, None)?;
        Ok(report)
    }

    /// Imports a cluster's files on this machine as timeline `name`. WAL that lies beside them is ingested to its last whole record; the
    /// timeline can be read then. Errors: see [`ClusterFiles::import`]; a record cannot be ingested; then nothing of it stays.
    pub fn import_files(
        &self,
        name: &str,
        files: &ClusterFiles,
        on_progress: OnProgress<'_>,
    ) -> Result<(Arc<Timeline>, ImportReport), RepositoryError> {
        let new = self.begin_import(name)?;
        let imported = self.store.timeline(new.no).map_err(ImportError::from);
        let imported = imported.and_then(|store| files.import(store, &new.wal_dir(), on_progress));
        self.end_import(new, imported.map_err(RepositoryError::from), Some(on_progress), None)
    }

    /// Imports the running primary at `conninfo` as timeline `name`. The timeline can be read once WAL up to the end of the backup has come.
    pub fn import_primary(
        &self,
        name: &str,
        conninfo: &str,
        on_progress: OnProgress<'_>,
    ) -> Result<(Arc<Timeline>, ImportReport), RepositoryError> {
        let parsed: ConnInfo = conninfo.parse().map_err(ReplicationError::from).map_err(ImportError::from)?;
        let new = self.begin_import(name)?;
        let slot = format!("pageserver_{}", new.timeline_id);
        let primary = Primary { conninfo: conninfo.to_string(), slot };
        // In hand until the timeline names it.
        let in_hand = self.left_slots.take(&primary);
        let imported = self.import_from(&new, &parsed, &in_hand, &primary, on_progress);
        let (timeline, report) = self.end_import(new, imported, None, Some(primary.clone()))?;
        // The timeline is there, and names the slot, which nobody drops then.
        if let Err(error) = in_hand.keep() {
            warn!(
                slot = primary.slot,
                error = one_line(&error),
                "a slot stays on the list of those that are to go as long as it is needed"
            );
        }
        if let Err(error) = self.follow_if_nobody_feeds(&timeline) {
            timeline.stop(&error);
        }
        Ok((timeline, report))
    }

    /// The slot at the primary is listed before it is made, and goes again if this fails.
    fn import_from(
        &self,
        new: &NewTimeline,
        conninfo: &ConnInfo,
        in_hand: &InHand<'_>,
        primary: &Primary,
        on_progress: OnProgress<'_>,
    ) -> Result<ImportSummary, RepositoryError> {
        let store = self.store.timeline(new.no)?;
        let reached = ReachedPrimary::connect(conninfo)?;
        self.left_slots.add(primary)?;
        let imported = reached.import(&primary.slot, store, on_progress);
        if imported.is_err() {
            in_hand.drop_slot();
        }
        Ok(imported?)
    }

    /// Reserves name, ids and number, durably: whatever is stored under the number from now on is taken away after a crash.
    pub(super) fn begin_import(&self, name: &str) -> Result<NewTimeline, RepositoryError> {
        let reserved_name = self.reserve_name(name)?;
        let no = self.next_timeline_no();
        let timeline_id = TimelineId::generate();
        let dir = self.timeline_dir(timeline_id);
        // Under another name until it bears its mark: a directory with neither mark nor metadata is nobody's, and the next start would stop there.
        let new_dir = self.timelines_dir.join(format!("{NEW_DIR_PREFIX}{timeline_id}"));
        create_dir(&new_dir.join("wal"))?;
        Failpoint::ImportDirMade.pass();
        set_mark(&new_dir, IMPORTING, no)?;
        self.make_visible(&new_dir, timeline_id)?;
        Failpoint::ImportMarked.pass();
        Ok(NewTimeline {
            tenant_id: TenantId::generate(),
            timeline_id,
            no: TimelineNo(no),
            name: name.to_string(),
            dir,
            begun: Instant::now(),
            _impatience: self.store.timeline(TimelineNo(no))?.impatient(),
            _reserved_name: reserved_name,
        })
    }

    /// Opens what was imported, or takes away what was begun.
    pub(super) fn end_import(
        &self,
        new: NewTimeline,
        imported: Result<ImportSummary, RepositoryError>,
        ingest_progress: Option<OnProgress<'_>>,
        primary: Option<Primary>,
    ) -> Result<(Arc<Timeline>, ImportReport), RepositoryError> {
        let finished = imported.and_then(|summary| {
            let timeline = self.finish_import(&new, &summary, ingest_progress, primary)?;
            Ok((timeline, summary))
        });
        match finished {
            Ok((timeline, summary)) => {
                let report = ImportReport { name: new.name.clone(), summary, duration: new.begun.elapsed() };
                info!("{report}");
                Ok((timeline, report))
            }
            Err(error) => {
                // If this fails too, the mark makes the next start do it.
                let _ = self.take_away(&new.dir, IMPORTING);
                self.redo.lock().remove(&new.tenant_id);
                Err(error)
            }
        }
    }

    fn finish_import(
        &self,
        new: &NewTimeline,
        summary: &ImportSummary,
        ingest_progress: Option<OnProgress<'_>>,
        primary: Option<Primary>,
    ) -> Result<Arc<Timeline>, RepositoryError> {
        Failpoint::ImportFilesDurable.pass();
        let control_file = &summary.control_file;
        let metadata = TimelineMetadata {
            format: TimelineMetadata::format(),
            tenant_id: new.tenant_id,
            timeline_id: new.timeline_id,
            timeline_no: new.no.0,
            name: new.name.clone(),
            ancestor: None,
            cluster: ClusterFacts {
                pg_version: control_file.version,
                system_identifier: control_file.system_identifier,
                wal_segment_bytes: control_file.xlog_seg_size,
                data_checksums: control_file.data_checksums(),
                pg_timeline_id: summary.pg_timeline_id,
            },
            imported: Some(Imported {
                start_lsn: summary.start_lsn,
                first_readable_lsn: summary.first_readable_lsn,
                missing_segments: summary.missing_segments.clone(),
            }),
            primary,
            retention: None,
            gc: None,
        };
        metadata.save(&new.dir)?;
        Failpoint::ImportMetadataSaved.pass();
        let timeline = self.make_timeline(metadata)?;
        if let Some(on_progress) = ingest_progress {
            self.bound_chains_of(&timeline);
            self.ingest_imported_wal(&timeline, on_progress)?;
            assert!(summary.first_readable_lsn <= timeline.last_record_lsn(), "WAL was proven to lead there");
        }
        clear_mark(&new.dir, IMPORTING)?;
        Failpoint::ImportDone.pass();
        self.show_timeline(&timeline);
        Ok(timeline)
    }

    /// Ingests the WAL that came with the files, durably: without a primary nobody would do it again.
    fn ingest_imported_wal(
        &self,
        timeline: &Arc<Timeline>,
        on_progress: OnProgress<'_>,
    ) -> Result<(), RepositoryError> {
        let mut reported = Instant::now();
        let start_lsn = timeline.last_record_lsn();
        self.ingest_wal_on_disk(timeline, &mut |fed_lsn, end_lsn| {
            if reported.elapsed() < PROGRESS_INTERVAL {
                return Ok(());
            }
            reported = Instant::now();
            let (bytes_done, bytes_total) =
                (fed_lsn.saturating_sub(start_lsn), Some(end_lsn.saturating_sub(start_lsn)));
            match on_progress(&ImportProgress { phase: "WAL", bytes_done, bytes_total }) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(ImportError::Cancelled.into()),
            }
        })?;
        timeline.store.flush(true)?;
        Failpoint::ImportWalIngested.pass();
        Ok(())
    }
}
