//! The log's own records. PG 15, 17, 18: src/backend/access/rmgrdesc/xlogdesc.c, src/include/access/xlog_internal.h.

use super::body::{Body, Text, string};
use super::time::Time;
use crate::checkpoint::Checkpoint;
use crate::records::xlog::{self, EndOfRecovery, ParameterChange, operation as op};
use crate::wal::DecodedRecord;
use crate::{Lsn, PgVersion};

pub(super) fn describe(record: &DecodedRecord, version: PgVersion) -> Text {
    let body = Body::of(record);
    Ok(match record.operation() {
        op::CHECKPOINT_SHUTDOWN => checkpoint(body, version, "shutdown"),
        op::CHECKPOINT_ONLINE => checkpoint(body, version, "online"),
        op::NEXTOID => xlog::parse_next_oid(body.bytes)?.to_string(),
        op::BACKUP_END => Lsn::new(body.u64(0)?).to_string(),
        op::PARAMETER_CHANGE => parameters(&ParameterChange::parse(body.bytes)?),
        op::RESTORE_POINT => string(xlog::parse_restore_point(body.bytes)?.1),
        op::FPW_CHANGE => xlog::parse_fpw_change(body.bytes)?.to_string(),
        op::END_OF_RECOVERY => end_of_recovery(&EndOfRecovery::parse(body.bytes)?, version),
        op::OVERWRITE_CONTRECORD => {
            format!("lsn {}; time {}", Lsn::new(body.u64(0)?), Time(body.u64(8)?.cast_signed()))
        }
        op::CHECKPOINT_REDO if version >= PgVersion::V17 => format!("wal_level {}", wal_level(body.i32(0)?)),
        _ => String::new(),
    })
}

fn checkpoint(body: Body<'_>, version: PgVersion, kind: &str) -> String {
    let checkpoint = match Checkpoint::decode(version, body.bytes) {
        Ok(checkpoint) => checkpoint,
        Err(error) => return format!("does not decode: {error}"),
    };
    let level = match version {
        PgVersion::V14 | PgVersion::V15 | PgVersion::V16 => String::new(),
        _ => format!("wal_level {}; ", wal_level(checkpoint.wal_level)),
    };
    format!(
        "redo {}; tli {}; prev tli {}; fpw {}; {level}xid {}; oid {}; multi {}; offset {}; oldest xid {} in DB {}; \
         oldest multi {} in DB {}; oldest/newest commit timestamp xid: {}/{}; oldest running xid {}; {kind}",
        Lsn::new(checkpoint.redo),
        checkpoint.this_tli,
        checkpoint.prev_tli,
        checkpoint.full_page_writes,
        super::body::full_xid(checkpoint.next_xid),
        checkpoint.next_oid,
        checkpoint.next_multi,
        checkpoint.next_multi_offset,
        checkpoint.oldest_xid,
        checkpoint.oldest_xid_db,
        checkpoint.oldest_multi,
        checkpoint.oldest_multi_db,
        checkpoint.oldest_commit_ts_xid,
        checkpoint.newest_commit_ts_xid,
        checkpoint.oldest_active_xid
    )
}

fn parameters(change: &ParameterChange) -> String {
    let on_or_off = |is_on: bool| if is_on { "on" } else { "off" };
    format!(
        "max_connections={} max_worker_processes={} max_wal_senders={} max_prepared_xacts={} max_locks_per_xact={} wal_level={} \
         wal_log_hints={} track_commit_timestamp={}",
        change.max_connections,
        change.max_worker_processes,
        change.max_wal_senders,
        change.max_prepared_xacts,
        change.max_locks_per_xact,
        wal_level(change.wal_level),
        on_or_off(change.wal_log_hints),
        on_or_off(change.track_commit_timestamp)
    )
}

fn end_of_recovery(body: &EndOfRecovery, version: PgVersion) -> String {
    let mut text = format!("tli {}; prev tli {}; time {}", body.this_tli, body.prev_tli, Time(body.time));
    if let Some(level) = body.wal_level.filter(|_| version >= PgVersion::V17) {
        text += &format!("; wal_level {}", wal_level(level));
    }
    text
}

/// PG: src/include/access/xlog.h, WalLevel.
fn wal_level(level: i32) -> &'static str {
    match level {
        0 => "minimal",
        1 => "replica",
        2 => "logical",
        _ => "?",
    }
}
