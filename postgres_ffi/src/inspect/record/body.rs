//! What stands in the main data of a record: numbers by tables, the rest in words.
//!
//! Bodies of fixed layout are tables here; those with lists or versions of their own are read by [`crate::records`].
//!
//! PG 15, 17, 18: src/include/access/{heapam,nbt,hash,gin,gist,spg,brin}_xlog.h (nbtxlog.h, ginxlog.h, gistxlog.h, spgxlog.h).

use byteorder::{ByteOrder, LittleEndian};

use super::time::Time;
use crate::checkpoint::Checkpoint;
use crate::inspect::fields::{Fields, Layout, Width::*};
use crate::records::RecordError;
use crate::records::dbase::{self, DatabaseRecord};
use crate::records::{multixact, relmap, replorigin, slru, smgr, standby, xact, xlog};
use crate::wal::{DecodedRecord, rmgr};
use crate::{Lsn, PgVersion};

/// The numbers of a record's body, for records of fixed layout.
pub(super) fn fields(version: PgVersion, record: &DecodedRecord) -> Option<Fields> {
    let layout = match record.rmid {
        rmgr::HEAP => heap(record.operation() & 0x70),
        rmgr::HEAP2 => heap2(version, record.operation() & 0x70),
        rmgr::BTREE => btree(record.operation()),
        rmgr::HASH => hash(record.operation()),
        rmgr::GIN => gin(record.operation()),
        rmgr::GIST => gist(record.operation()),
        rmgr::SPGIST => spgist(record.operation()),
        rmgr::BRIN => brin(record.operation() & 0x70),
        _ => return None,
    };
    Some(Fields::read(record.main_data(), layout)).filter(|fields| !fields.0.is_empty())
}

fn heap(operation: u8) -> Layout {
    match operation {
        0x00 => &[("off", 0, U16), ("flags", 2, U8)],
        0x10 => &[("xmax", 0, U32), ("off", 4, U16), ("infobits", 6, U8), ("flags", 7, U8)],
        0x20 | 0x40 => &[
            ("old_xmax", 0, U32),
            ("old_off", 4, U16),
            ("old_infobits", 6, U8),
            ("flags", 7, U8),
            ("new_xmax", 8, U32),
            ("new_off", 12, U16),
        ],
        0x30 => &[("database", 0, U32), ("relations", 4, U32), ("flags", 8, U8)],
        0x50 | 0x70 => &[("off", 0, U16)],
        0x60 => &[("xmax", 0, U32), ("off", 4, U16), ("infobits", 6, U8), ("flags", 7, U8)],
        _ => &[],
    }
}

fn heap2(version: PgVersion, operation: u8) -> Layout {
    let is_new_prune = version >= PgVersion::V17;
    match operation {
        0x10..=0x30 if is_new_prune => &[("reason", 0, U8), ("flags", 1, U8)],
        0x10 => &[("conflict_xid", 0, U32), ("redirected", 4, U16), ("dead", 6, U16)],
        0x20 => &[("unused", 0, U16)],
        0x30 if version >= PgVersion::V16 => &[("conflict_xid", 0, U32), ("plans", 4, U16)],
        0x30 => &[("cutoff_xid", 0, U32), ("tuples", 4, U16)],
        0x40 => &[("conflict_xid", 0, U32), ("flags", 4, U8)],
        0x50 => &[("flags", 0, U8), ("tuples", 2, U16)],
        0x60 => &[("xmax", 0, U32), ("off", 4, U16), ("infobits", 6, U8), ("flags", 7, U8)],
        _ => &[],
    }
}

fn btree(operation: u8) -> Layout {
    match operation {
        0x00 | 0x10 | 0x20 | 0x50 => &[("off", 0, U16)],
        0x30 | 0x40 => {
            &[("level", 0, U32), ("first_right_off", 4, U16), ("new_item_off", 6, U16), ("posting_off", 8, U16)]
        }
        0x60 => &[("intervals", 0, U16)],
        0x70 => &[("conflict_xid", 0, U32), ("deleted", 4, U16), ("updated", 6, U16)],
        0x80 | 0x90 => &[("left", 0, U32), ("right", 4, U32), ("level", 8, U32), ("safe_xid", 16, U64)],
        0xA0 => &[("root", 0, U32), ("level", 4, U32)],
        0xB0 => {
            &[("parent_off", 0, U16), ("leaf", 4, U32), ("left", 8, U32), ("right", 12, U32), ("top_parent", 16, U32)]
        }
        0xC0 => &[("deleted", 0, U16), ("updated", 2, U16)],
        0xD0 => &[("tablespace", 0, U32), ("database", 4, U32), ("relation", 8, U32), ("block", 12, U32)],
        _ => &[],
    }
}

fn hash(operation: u8) -> Layout {
    match operation {
        0x00 => &[("tuples", 0, F64), ("function", 8, U32), ("fill_factor", 12, U16)],
        0x10 => &[("bitmap_bytes", 0, U16)],
        0x20 => &[("off", 0, U16)],
        0x30 => &[("bitmap_bytes", 0, U16), ("bitmap_page_found", 2, U8)],
        0x40 => &[("new_bucket", 0, U32), ("old_bucket_flag", 4, U16), ("new_bucket_flag", 6, U16), ("flags", 8, U8)],
        0x60 => &[("old_bucket_flag", 0, U16), ("new_bucket_flag", 2, U16)],
        0x70 => &[("tuples", 0, U16), ("same_primary", 2, U8)],
        0x80 => {
            &[("prev", 0, U32), ("next", 4, U32), ("tuples", 8, U16), ("same_primary", 10, U8), ("same_prev", 11, U8)]
        }
        0x90 => &[("clear_dead_marking", 0, U8), ("primary", 1, U8)],
        0xB0 => &[("tuples", 0, F64)],
        0xC0 => &[("conflict_xid", 0, U32), ("tuples", 4, U16)],
        _ => &[],
    }
}

fn gin(operation: u8) -> Layout {
    match operation {
        0x10 => &[("bytes", 0, U32)],
        0x20 => &[("flags", 0, U16)],
        0x50 => &[("parent_off", 0, U16), ("right_link", 4, U32)],
        0x70 => &[("right_link", 0, U32), ("tuples", 4, U32)],
        _ => &[],
    }
}

fn gist(operation: u8) -> Layout {
    match operation {
        0x00 => &[("deleted", 0, U16), ("inserted", 2, U16)],
        0x10 => &[("conflict_xid", 0, U32), ("deleted", 4, U16)],
        0x20 => &[("tablespace", 0, U32), ("database", 4, U32), ("relation", 8, U32), ("block", 12, U32)],
        0x30 => &[("right_link", 0, U32), ("leaf", 16, U8), ("pages", 18, U16), ("follow_right", 20, U8)],
        0x60 => &[("delete_xid", 0, U64), ("downlink_off", 8, U16)],
        _ => &[],
    }
}

fn spgist(operation: u8) -> Layout {
    match operation {
        0x10 => &[
            ("new_page", 0, U8),
            ("nulls", 1, U8),
            ("off", 2, U16),
            ("head_off", 4, U16),
            ("parent_off", 6, U16),
            ("node", 8, U16),
        ],
        0x20 => &[("moves", 0, U16), ("new_page", 2, U8), ("replace_dead", 3, U8), ("nulls", 4, U8)],
        0x30 => &[("off", 0, U16), ("new_off", 2, U16), ("new_page", 4, U8)],
        0x40 => &[("prefix_off", 0, U16), ("postfix_off", 2, U16), ("new_page", 4, U8), ("same_page", 5, U8)],
        0x50 => &[("root_split", 0, U8), ("deleted", 2, U16), ("inserted", 4, U16)],
        0x60 => &[("dead", 0, U16), ("placeholders", 2, U16), ("moves", 4, U16), ("chains", 6, U16)],
        0x70 => &[("deleted", 0, U16)],
        0x80 => &[("placeholders", 0, U16), ("first_placeholder", 2, U16)],
        _ => &[],
    }
}

fn brin(operation: u8) -> Layout {
    match operation {
        0x00 => &[("pages_per_range", 0, U32), ("version", 4, U16)],
        0x10 => &[("heap_block", 0, U32), ("pages_per_range", 4, U32), ("off", 8, U16)],
        0x20 => &[("old_off", 0, U16), ("heap_block", 4, U32), ("pages_per_range", 8, U32), ("off", 12, U16)],
        0x30 => &[("off", 0, U16)],
        0x40 => &[("target_block", 0, U32)],
        0x50 => &[("pages_per_range", 0, U32), ("heap_block", 4, U32), ("off", 8, U16)],
        _ => &[],
    }
}

/// The body in words; empty when there is nothing to say.
pub(super) fn words(version: PgVersion, record: &DecodedRecord) -> Result<String, RecordError> {
    let data = record.main_data();
    match (record.rmid, record.operation()) {
        (rmgr::XLOG, operation) => xlog_words(version, operation, data),
        (rmgr::XACT, operation) => xact_words(version, record.info, operation & 0x70, data),
        (rmgr::SMGR, smgr::CREATE) => smgr::parse_create(data).map(|(rel, fork)| format!("rel: {rel}, fork: {fork}")),
        (rmgr::SMGR, smgr::TRUNCATE) => smgr::Truncate::parse(data).map(|body| {
            let smgr::Truncate { rel, block_count, main, vm, fsm } = body;
            format!("rel: {rel}, blocks: {block_count}, main: {main}, vm: {vm}, fsm: {fsm}")
        }),
        (rmgr::CLOG | rmgr::COMMIT_TS, slru::ZERO_PAGE) => {
            slru::parse_zero_page(version, data).map(|page_no| format!("page: {page_no}"))
        }
        (rmgr::CLOG, slru::TRUNCATE) => slru::ClogTruncate::parse(version, data).map(|body| {
            format!("page: {}, oldest_xid: {}, database: {}", body.cutoff_page_no, body.oldest_xid, body.oldest_xid_db)
        }),
        (rmgr::COMMIT_TS, slru::TRUNCATE) => slru::CommitTsTruncate::parse(version, data)
            .map(|body| format!("page: {}, oldest_xid: {}", body.cutoff_page_no, body.oldest_xid)),
        (rmgr::DBASE, operation) => database_words(version, operation, data),
        (rmgr::TBLSPC, _) => dbase::parse_tablespace(data).map(|oid| format!("tablespace: {oid}")),
        (rmgr::MULTIXACT, operation) => multixact_words(version, operation, data),
        (rmgr::RELMAP, relmap::UPDATE) => relmap::RelmapUpdate::parse(version, data)
            .map(|body| format!("tablespace: {}, database: {}, bytes: {}", body.spc_oid, body.db_oid, body.file.len())),
        (rmgr::STANDBY, standby::RUNNING_XACTS) => standby::RunningXacts::parse(data)
            .map(|body| format!("next_xid: {}, oldest_running_xid: {}", body.next_xid, body.oldest_running_xid)),
        (rmgr::STANDBY, standby::LOCK) => Ok(lock_words(data)),
        (rmgr::REPLORIGIN, 0x00) => replorigin::OriginSet::parse(data).map(|body| {
            let remote_lsn = Lsn::new(body.remote_lsn);
            format!("origin: {}, remote_lsn: {remote_lsn}, force: {}", body.origin_id, body.force)
        }),
        (rmgr::REPLORIGIN, 0x10) => replorigin::parse_drop(data).map(|origin| format!("origin: {origin}")),
        _ => Ok(String::new()),
    }
}

fn xlog_words(version: PgVersion, operation: u8, data: &[u8]) -> Result<String, RecordError> {
    match operation {
        0x00 | 0x10 => Ok(Checkpoint::decode(version, data).map_or_else(|error| error.to_string(), checkpoint_words)),
        0x30 => xlog::parse_next_oid(data).map(|oid| format!("next_oid: {oid}")),
        0x60 => xlog::ParameterChange::parse(data).map(|body| {
            format!(
                "max_connections: {}, max_worker_processes: {}, max_wal_senders: {}, max_prepared_transactions: {}, \
                 max_locks_per_transaction: {}, wal_level: {}, wal_log_hints: {}, track_commit_timestamp: {}",
                body.max_connections,
                body.max_worker_processes,
                body.max_wal_senders,
                body.max_prepared_xacts,
                body.max_locks_per_xact,
                body.wal_level,
                body.wal_log_hints,
                body.track_commit_timestamp
            )
        }),
        0x70 => xlog::parse_restore_point(data).map(|(_, name)| format!("name: {}", String::from_utf8_lossy(name))),
        0x80 => xlog::parse_fpw_change(data).map(|is_on| format!("full_page_writes: {is_on}")),
        0x90 => xlog::EndOfRecovery::parse(data)
            .map(|body| format!("timeline: {}, previous_timeline: {}", body.this_tli, body.prev_tli)),
        _ => Ok(String::new()),
    }
}

fn checkpoint_words(checkpoint: Checkpoint) -> String {
    format!(
        "redo: {}, timeline: {}, previous_timeline: {}, full_page_writes: {}, next_xid: {}:{}, next_oid: {}, next_multi: {}, \
         next_multi_offset: {}, oldest_xid: {} in database {}, oldest_multi: {} in database {}, commit_timestamps: {} to {}, \
         oldest_active_xid: {}",
        Lsn::new(checkpoint.redo),
        checkpoint.this_tli,
        checkpoint.prev_tli,
        checkpoint.full_page_writes,
        checkpoint.next_xid >> 32,
        checkpoint.next_xid & 0xFFFF_FFFF,
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

fn xact_words(version: PgVersion, info: u8, operation: u8, data: &[u8]) -> Result<String, RecordError> {
    match operation {
        0x00 | 0x20 | 0x30 | 0x40 => {
            let body = xact::XactEnd::parse(version, info, data)?;
            let mut words = format!("time: {}", Time(body.time));
            if let Some(xid) = body.twophase_xid {
                words.push_str(&format!(", prepared_xid: {xid}"));
            }
            push_list(&mut words, "subxacts", body.subxacts.iter());
            push_list(&mut words, "dropped", body.dropped.iter());
            Ok(words)
        }
        0x10 => {
            let body = xact::Prepare::parse(version, data)?;
            let mut words = format!("xid: {}, database: {}", body.xid, body.database);
            push_list(&mut words, "subxacts", body.subxacts(data).iter());
            Ok(words)
        }
        _ => Ok(String::new()),
    }
}

/// Adds `, NAME: a b c` unless the list is empty.
fn push_list(words: &mut String, name: &str, items: impl Iterator<Item = impl std::fmt::Display>) {
    let items: Vec<String> = items.map(|item| item.to_string()).collect();
    if !items.is_empty() {
        words.push_str(&format!(", {name}: {}", items.join(" ")));
    }
}

/// PG: standbydefs.h, xl_standby_locks: number i32, then xid, database and relation of each lock.
fn lock_words(data: &[u8]) -> String {
    let locks = data.get(4..).unwrap_or_default().chunks_exact(12).map(|lock| {
        let number = |at: usize| LittleEndian::read_u32(&lock[at..]);
        format!("xid {} relation {}/{}", number(0), number(4), number(8))
    });
    locks.collect::<Vec<_>>().join(", ")
}

fn database_words(version: PgVersion, operation: u8, data: &[u8]) -> Result<String, RecordError> {
    Ok(match DatabaseRecord::parse(version, operation, data)? {
        Some(DatabaseRecord::CreateFileCopy { target, template }) => {
            format!("copy {}/{} to {}/{}", template.spc_oid, template.db_oid, target.spc_oid, target.db_oid)
        }
        Some(DatabaseRecord::CreateWalLog { target }) => format!("directory {}/{}", target.spc_oid, target.db_oid),
        Some(DatabaseRecord::Drop { db_oid, tablespaces }) => {
            let mut words = format!("database: {db_oid}");
            push_list(&mut words, "tablespaces", tablespaces.iter());
            words
        }
        None => String::new(),
    })
}

fn multixact_words(version: PgVersion, operation: u8, data: &[u8]) -> Result<String, RecordError> {
    match operation {
        0x00 | 0x10 => slru::parse_zero_page(version, data).map(|page_no| format!("page: {page_no}")),
        0x20 => multixact::Create::parse(data).map(|body| {
            let mut words = format!("multi: {}, offset: {}", body.multi, body.offset);
            push_list(&mut words, "members", body.members().map(|member| format!("{}({})", member.xid, member.status)));
            words
        }),
        0x30 => multixact::Truncate::parse(data).map(|body| {
            format!(
                "multis: {} to {}, offsets: {} to {}, database: {}",
                body.start_multi, body.end_multi, body.start_offset, body.end_offset, body.oldest_multi_db
            )
        }),
        _ => Ok(String::new()),
    }
}
