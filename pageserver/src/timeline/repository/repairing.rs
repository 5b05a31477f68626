//! What a repair asks of the repository: files written again, segments taken from the primary, versions and files of nobody deleted, compaction resumed.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use keyenc::TimelineNo;
use tracing::{error, info};

use super::busy::Busy;
use super::{Repository, RepositoryError, tenants};
use crate::replication::{ConnInfo, ReplicationError, one_line};
use crate::sealed_file::copy;
use crate::timeline::metadata::METADATA_FILE_NAME;
use crate::timeline::{Timeline, TimelineState};
use crate::wal_receiver::fetch_segment;

impl Repository {
    /// Writes the file at `path`, below the data directory, and its copy again from what is known, or from that copy. False: what stood there is not known.
    pub(crate) fn write_file_again(&self, path: &Path) -> Result<bool, RepositoryError> {
        let _changes = self.changes.lock();
        let path = self.data_dir().join(path);
        if path == self.leases.path() {
            self.leases.write_again()?;
            return Ok(true);
        }
        if path == self.left_slots.path() {
            self.left_slots.write_again()?;
            return Ok(true);
        }
        if path.file_name().is_some_and(|name| name == tenants::FILE_NAME) {
            let _no_id_is_given_out = self.pg_timeline_ids.lock();
            let dir = path.parent().unwrap_or(&path);
            tenants::settle(dir)?;
            // Without the copy nothing is guessed: an id that is given twice cannot be taken back.
            return Ok(tenants::load(dir).is_ok() && copy::check(&path).is_ok());
        }
        let is_of = |timeline: &Arc<Timeline>| {
            path == self.timeline_dir(timeline.metadata().timeline_id).join(METADATA_FILE_NAME)
        };
        let Some(timeline) = self.timelines().into_iter().find(is_of) else { return Ok(false) };
        self.change_metadata(&timeline, |_| {})?;
        info!(timeline = %timeline.metadata().name, path = %path.display(), "metadata written again");
        Ok(true)
    }

    /// Takes segments of the timeline's WAL from its primary again. The receiver stands still meanwhile, and goes on where it was; a timeline that had stopped
    /// begins again. Errors: the primary does not have them, what it sends is no WAL that goes on, the disk; `BranchError::Busy`.
    /// False: `goes_on`, which is asked before each of them, said so; those before are in their places.
    pub(crate) fn fetch_segments(
        &self,
        timeline: &Arc<Timeline>,
        segment_nos: &[u64],
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Result<bool, RepositoryError> {
        let changes = self.changes.lock();
        timeline.check_here()?;
        let Some(primary) = timeline.metadata().primary.clone() else { return Ok(true) };
        let conninfo: ConnInfo = primary.conninfo.parse().map_err(ReplicationError::from)?;
        let layout = self.wal_layout(timeline);
        let needed_lsn = timeline.wal_end_lsn().max(timeline.own_last_record_lsn());
        let busy = self.begin_busy(timeline, Busy::Repaired)?;
        timeline.end_receiver();
        drop(changes); // Its primary may take its time.
        let mut fetch = || {
            for segment_no in segment_nos {
                if !goes_on() || self.is_closing.load(Ordering::SeqCst) {
                    return Ok(false);
                }
                fetch_segment(&conninfo, &primary.slot, &layout, *segment_no, needed_lsn)?;
                info!(timeline = %timeline.metadata().name, segment_no, "WAL segment taken from the primary again");
            }
            Ok(true)
        };
        let fetched = fetch();
        let _changes = self.changes.lock();
        drop(busy); // Before `changes`: else who waits to follow finds it in repair, and goes.
        if matches!(timeline.state(), TimelineState::Stopped { .. }) {
            self.change_metadata(timeline, |_| {})?; // It may have stopped since this is not known to be on disk.
        }
        timeline.begin_again();
        self.follow_again(timeline);
        fetched
    }

    /// True if no timeline has this number, and none comes or goes with it.
    fn is_nobodys(&self, no: TimelineNo) -> Result<bool, RepositoryError> {
        let is_taken = self.timelines().iter().any(|timeline| timeline.timeline_no() == no);
        Ok(!is_taken && !self.numbers_in_transit()?.contains(&no))
    }

    /// The number under which everything in the store's file stands, if no timeline has it.
    pub(crate) fn number_of_nobody_in(&self, sst_file: &Path) -> Result<Option<TimelineNo>, RepositoryError> {
        let name = sst_file.file_name().and_then(|name| name.to_str());
        let Some(no) = name.and_then(|name| self.store.only_number_in(name)) else { return Ok(None) };
        Ok(self.is_nobodys(no)?.then_some(no))
    }

    /// Lets compaction go on, and the timelines that could not begin to follow their primaries for want of room. The file that paused it is taken away first, if it is
    /// nobody's. Errors: it is still there and cannot be read; the store takes no writes, or is not to be written.
    pub(crate) fn resume_compaction(&self) -> Result<(), RepositoryError> {
        if let Some(file) = self.store.paused_file()
            && let Some(no) = self.number_of_nobody_in(Path::new(&file))?
        {
            self.delete_orphans(no)?;
        }
        self.store.resume_compaction()?;
        info!("compaction of the store goes on");
        if let Err(error) = self.follow_primaries() {
            error!(error = one_line(&error), "not all timelines that found no room to begin follow their primaries"); // Compaction goes on all the same.
        }
        Ok(())
    }

    /// Deletes versions under a number that no timeline has.
    pub(crate) fn delete_orphans(&self, no: TimelineNo) -> Result<(), RepositoryError> {
        let _changes = self.changes.lock();
        if !self.is_nobodys(no)? {
            return Ok(());
        }
        info!(timeline_no = no.0, "deleting versions that are nobody's");
        self.take_away_versions(no, true)
    }
}
