//! Ends of transactions: CLOG, commit timestamps, dropped files, prepared transactions. PG: src/backend/access/transam/xact.c, xact_redo.

use keyenc::{Kind, Object};
use postgres_ffi::records::RecordError;
use postgres_ffi::records::xact::{self, Prepare, XactEnd};
use postgres_ffi::slru::{XidStatus, xid_precedes};
use postgres_ffi::{Lsn, TransactionId};

use super::step::Step;
use super::{IngestError, WalIngest};

impl WalIngest {
    pub(super) fn ingest_xact(&mut self, step: &mut Step<'_>) -> Result<(), IngestError> {
        match step.record.info & xact::OPERATION_MASK {
            xact::COMMIT => self.end_transaction(step, XidStatus::Committed, false),
            xact::COMMIT_PREPARED => self.end_transaction(step, XidStatus::Committed, true),
            xact::ABORT => self.end_transaction(step, XidStatus::Aborted, false),
            xact::ABORT_PREPARED => self.end_transaction(step, XidStatus::Aborted, true),
            xact::PREPARE => self.prepare_transaction(step),
            xact::ASSIGNMENT => {
                let subxacts = xact::parse_assignment(step.record.main_data());
                let subxacts = subxacts.map_err(|source| step.bad_body(source))?;
                subxacts.iter().for_each(|xid| self.used_xid(xid));
                Ok(())
            }
            xact::INVALIDATIONS => Ok(()),
            _ => Err(step.unknown_operation()),
        }
    }

    /// PG: xact_redo_commit, xact_redo_abort.
    fn end_transaction(
        &mut self,
        step: &mut Step<'_>,
        status: XidStatus,
        was_prepared: bool,
    ) -> Result<(), IngestError> {
        let record = step.record;
        let end = XactEnd::parse(self.version, record.info, record.main_data());
        let end = end.map_err(|source| step.bad_body(source))?;
        let xid = if was_prepared { end.twophase_xid.unwrap_or(0) } else { record.xid };
        if xid < postgres_ffi::slru::FIRST_NORMAL_XID {
            let source = RecordError::Value { body: "xl_xact_commit/abort", field: "xid", value: xid.into() };
            return Err(step.bad_body(source));
        }
        let xids = std::iter::once(xid).chain(end.subxacts.iter());
        xids.clone().for_each(|xid| self.used_xid(xid));
        self.put_commit_time(step, end.time);
        if status == XidStatus::Committed && self.track_commit_timestamp {
            let time = end.origin.map_or(end.time, |origin| origin.time);
            self.set_commit_ts(step, xids.clone(), time, record.origin_id.unwrap_or(0))?;
            self.newest_commit_ts(end.subxacts.iter().last().unwrap_or(xid));
        }
        self.set_clog_status(step, xids, status)?;
        if let (Some(origin), Some(origin_id)) = (end.origin, record.origin_id) {
            self.advance_origin(step, origin_id, Lsn::new(origin.remote_lsn), false)?;
        }
        for rel in end.dropped.iter() {
            self.drop_relation(step, rel)?;
        }
        if was_prepared {
            step.put(Object::TwoPhase { xid: self.checkpoint.full_xid(xid) }, Kind::Tombstone, &[]);
        }
        Ok(())
    }

    /// PG: twophase.c, PrepareRedoAdd; the file is what CheckPointTwoPhase writes of the same record.
    fn prepare_transaction(&mut self, step: &mut Step<'_>) -> Result<(), IngestError> {
        let main_data = step.record.main_data();
        let prepare = Prepare::parse(self.version, main_data).map_err(|source| step.bad_body(source))?;
        let xids = std::iter::once(prepare.xid).chain(prepare.subxacts(main_data).iter());
        xids.for_each(|xid| self.used_xid(xid));
        let file = Prepare::state_file(main_data);
        step.put(Object::TwoPhase { xid: self.checkpoint.full_xid(prepare.xid) }, Kind::Image, &file);
        if let Some(origin_id) = step.record.origin_id {
            self.advance_origin(step, origin_id, Lsn::new(prepare.origin.remote_lsn), false)?;
        }
        Ok(())
    }

    fn used_xid(&mut self, xid: TransactionId) {
        self.checkpoint.advance_next_xid_past(xid);
    }

    /// Kept exact in memory. The stored one follows when the checkpoint data is put for another reason, at least each 1024 transactions: a
    /// branch started in between reports no time for the last few, until its own first commit.
    fn newest_commit_ts(&mut self, xid: TransactionId) {
        if xid_precedes(self.checkpoint.newest_commit_ts_xid, xid) {
            self.checkpoint.newest_commit_ts_xid = xid;
        }
    }
}
