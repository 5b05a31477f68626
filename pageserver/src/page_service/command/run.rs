//! Runs a command that gives rows. Streams and session commands are run by `connection`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use keyenc::Kind;
use postgres_ffi::rel::GLOBALTABLESPACE_OID;
use postgres_ffi::{Lsn, Oid, SlruKind};

use super::import::{import, with_progress};
use super::object::{self, ObjectClass};
use super::parse::FORMS;
use super::rows::Rows;
use super::time;
use super::verify;
use super::{Command, DatabaseAddress, PageAddress, SelectItem};
use crate::page_service::backend::{BackendError, BackendErrorKind, RepositoryBackend, TimelineBackend, TimelineInfo};
use crate::page_service::connection::SERVER_VERSION;
use crate::page_service::error::{Failure, PgError, sqlstate};
use crate::page_service::message::Value;
use crate::page_service::pagestream::lsn::Refusal;
use crate::page_service::server::Shared;
use crate::page_service::timeline_change::TimelineChange;

/// Runs `command` and gives its rows to `rows`. Errors of the backend, and `Failure::End` when the connection ends meanwhile.
pub(in crate::page_service) fn run(command: &Command, shared: &Shared, rows: &mut Rows<'_>) -> Result<(), Failure> {
    let repository = &*shared.repository;
    match command {
        Command::Help => help(rows),
        Command::TimelineList => repository.timelines()?.iter().try_for_each(|info| rows.row(&timeline_row(info))),
        Command::TimelineShow { timeline } => timeline_show(&repository.timeline_info(timeline)?, rows),
        Command::LastRecordLsn { timeline: Some(timeline) } => {
            let info = repository.timeline(None, timeline)?.info();
            rows.row(&[info.name.as_str().into(), lsn(info.last_record_lsn)])
        }
        Command::LastRecordLsn { timeline: None } => {
            let row = |info: &TimelineInfo| rows.row(&[info.name.as_str().into(), lsn(info.last_record_lsn)]);
            repository.timelines()?.iter().try_for_each(row)
        }
        Command::Lag { timeline } => {
            selected(repository, timeline)?.iter().try_for_each(|info| rows.row(&lag_row(info)))
        }
        Command::Sizes { timeline, at } => {
            for info in selected(repository, timeline)? {
                match repository.timeline(None, &info.id) {
                    // The others have sizes all the same.
                    Err(error) if timeline.is_none() && error.kind == BackendErrorKind::Corrupt => {
                        rows.notice(&error.message)?;
                    }
                    found => sizes(&info.name, &*found?, *at, rows)?,
                }
            }
            Ok(())
        }
        Command::LsnAtTime { timeline, time } => time::show_lsn(repository, timeline, *time, rows),
        Command::TimeAtLsn { timeline, at } => time::show_time(repository, timeline, *at, rows),
        Command::Status => status(shared, rows),
        Command::StoreStats => name_value_rows(repository.store_stats()?, rows),
        Command::RedoStats => name_value_rows(repository.redo_stats()?, rows),
        Command::Import { name, from } => {
            let info = import(repository, name, from, rows)?;
            rows.row(&timeline_row(&info))
        }
        Command::TimelineChange(change) => change_timeline(repository, change, rows),
        Command::Lease(command) => repository.lease(command)?.iter().try_for_each(|lease| rows.row(&lease.row())),
        Command::Gc(command) => {
            let answer = with_progress(rows, |progress| repository.gc(command, progress))?;
            answer.notices.iter().try_for_each(|notice| rows.notice(notice))?;
            answer.rows.iter().try_for_each(|row| rows.row(row))
        }
        Command::Size(command) => {
            let sizes = with_progress(rows, |progress| repository.sizes(command, progress))?;
            sizes.iter().try_for_each(|row| rows.row(row))
        }
        Command::Verify(options) => verify::verify(repository, options, rows),
        Command::Repair(request) => verify::repair(repository, request, rows),
        Command::DatabaseList { timeline, at } => {
            let (timeline, at) = timeline_at(repository, timeline, *at)?;
            let row =
                |(spc_oid, db_oid): (Oid, Oid)| rows.row(&[Value::Int(spc_oid.into()), Value::Int(db_oid.into())]);
            timeline.databases(at)?.into_iter().try_for_each(row)
        }
        Command::RelationList { timeline, database, at } => relation_list(repository, timeline, *database, *at, rows),
        Command::SlruList { timeline, at } => slru_list(repository, timeline, *at, rows),
        Command::ObjectList { timeline, class, at } => object_list(repository, timeline, *class, *at, rows),
        Command::PageGet { timeline, address, at } => page_get(repository, timeline, *address, *at, rows),
        Command::PageHistory { timeline, address, from, to } => {
            page_history(&*repository.timeline(None, timeline)?, *address, *from, *to, rows)
        }
        Command::ShowParameter { parameter } => rows.row(&[parameter.1.into()]),
        Command::Select { item } => rows.row(&[select_value(item)]),
        // They give no rows and are run by the connection.
        Command::Pagestream { .. }
        | Command::BaseBackup(_)
        | Command::WalGet { .. }
        | Command::Ignored { .. }
        | Command::Transaction { .. }
        | Command::Deallocate { .. } => Ok(()),
    }
}

fn name_value_rows(values: Vec<(String, String)>, rows: &mut Rows<'_>) -> Result<(), Failure> {
    values.into_iter().try_for_each(|(name, value)| rows.row(&[name.as_str().into(), Value::Text(value)]))
}

fn lsn(value: Option<Lsn>) -> Value {
    Value::display(value)
}

fn help(rows: &mut Rows<'_>) -> Result<(), Failure> {
    FORMS.iter().try_for_each(|(form, what)| rows.row(&[(*form).into(), (*what).into()]))
}

/// One timeline by name, or all.
fn selected(repository: &dyn RepositoryBackend, timeline: &Option<String>) -> Result<Vec<TimelineInfo>, BackendError> {
    match timeline {
        Some(timeline) => Ok(vec![repository.timeline_info(timeline)?]),
        None => repository.timelines(),
    }
}

fn timeline_row(info: &TimelineInfo) -> [Value; 9] {
    let (ancestor, ancestor_lsn) = info.ancestor.clone().unzip();
    [
        info.name.as_str().into(),
        info.state.as_str().into(),
        info.pg_version.map_or(Value::Null, |version| Value::Int(version.major().into())),
        Value::display(ancestor),
        lsn(ancestor_lsn),
        lsn(info.first_readable_lsn),
        lsn(info.last_record_lsn),
        info.tenant.as_str().into(),
        info.id.as_str().into(),
    ]
}

/// Bytes of WAL between the source's end and what can be read; `None` while the source has told nothing.
fn lag_bytes(info: &TimelineInfo) -> Option<u64> {
    Some(info.source_end_lsn?.saturating_sub(info.last_record_lsn?))
}

fn lag_row(info: &TimelineInfo) -> [Value; 7] {
    [
        info.name.as_str().into(),
        info.state.as_str().into(),
        lsn(info.source_end_lsn),
        lsn(info.received_lsn),
        lsn(info.last_record_lsn),
        lsn(info.durable_lsn),
        lag_bytes(info).map_or(Value::Null, Value::count),
    ]
}

fn timeline_show(info: &TimelineInfo, rows: &mut Rows<'_>) -> Result<(), Failure> {
    let (ancestor, ancestor_lsn) = info.ancestor.clone().unzip();
    let (oldest_wal_lsn, wal_needed_by) = info.oldest_wal.clone().unzip();
    for (name, value) in [
        ("name", info.name.as_str().into()),
        ("id", info.id.as_str().into()),
        ("tenant", info.tenant.as_str().into()),
        ("state", info.state.as_str().into()),
        ("pg_version", Value::display(info.pg_version)),
        ("ancestor", Value::display(ancestor)),
        ("ancestor_lsn", lsn(ancestor_lsn)),
        ("first_readable_lsn", lsn(info.first_readable_lsn)),
        ("last_record_lsn", lsn(info.last_record_lsn)),
        ("durable_lsn", lsn(info.durable_lsn)),
        ("received_lsn", lsn(info.received_lsn)),
        ("oldest_wal_lsn", lsn(oldest_wal_lsn)),
        ("wal_needed_by", Value::display(wal_needed_by.flatten())),
        ("source_end_lsn", lsn(info.source_end_lsn)),
        ("lag_bytes", Value::display(lag_bytes(info))),
        ("pg_timelines", Value::display(info.pg_timelines.as_deref())),
        ("primary", Value::display(info.primary.as_deref())),
        ("receiver", Value::display(info.receiver.as_deref())),
        ("last_error", Value::display(info.last_error.as_deref())),
    ] {
        rows.row(&[name.into(), value])?;
    }
    Ok(())
}

/// The timeline and the LSN to read at, checked to be readable. Commands never wait: a person sees at once that it is not there yet.
pub(super) fn timeline_at(
    repository: &dyn RepositoryBackend,
    timeline: &str,
    at: Option<Lsn>,
) -> Result<(Arc<dyn TimelineBackend>, Lsn), Failure> {
    let timeline = repository.timeline(None, timeline)?;
    let at = readable(&*timeline, at)?;
    Ok((timeline, at))
}

fn readable(timeline: &dyn TimelineBackend, at: Option<Lsn>) -> Result<Lsn, Failure> {
    let last_record_lsn = timeline.last_record_lsn();
    let at = at.unwrap_or(last_record_lsn);
    let first_readable_lsn = timeline.first_readable_lsn();
    if at > last_record_lsn {
        let message = format!("this LSN has not arrived yet. at=`{at}`, last_record_lsn=`{last_record_lsn}`");
        return Err(PgError::new(sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE, message).into());
    }
    if at < first_readable_lsn && !timeline.is_leased(at) {
        let refusal = Refusal::GarbageCollected { request_lsn: at, first_readable_lsn };
        return Err(PgError::new(sqlstate::INVALID_PARAMETER_VALUE, refusal.to_string()).into());
    }
    Ok(at)
}

/// All databases, and the shared relations even if the timeline does not list them.
fn databases_and_shared(timeline: &dyn TimelineBackend, at: Lsn) -> Result<Vec<(Oid, Oid)>, BackendError> {
    let mut databases = timeline.databases(at)?;
    if !databases.contains(&(GLOBALTABLESPACE_OID, 0)) {
        databases.push((GLOBALTABLESPACE_OID, 0));
    }
    databases.sort_unstable();
    Ok(databases)
}

fn sizes(name: &str, timeline: &dyn TimelineBackend, at: Option<Lsn>, rows: &mut Rows<'_>) -> Result<(), Failure> {
    let at = readable(timeline, at)?;
    for (spc_oid, db_oid) in databases_and_shared(timeline, at)? {
        rows.check_interrupts()?;
        let size = timeline.database_size(spc_oid, db_oid, at)?;
        rows.row(&[
            name.into(),
            lsn(Some(at)),
            Value::Int(spc_oid.into()),
            Value::Int(db_oid.into()),
            Value::count(size.count),
            Value::count(size.blocks),
            Value::count(size.bytes()),
        ])?;
    }
    Ok(())
}

fn status(shared: &Shared, rows: &mut Rows<'_>) -> Result<(), Failure> {
    let counters = &shared.counters;
    let uptime = shared.started_at.elapsed().unwrap_or_default();
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed).to_string();
    for (name, value) in [
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("process_id", std::process::id().to_string()),
        ("uptime_seconds", uptime.as_secs().to_string()),
        ("connections", shared.connection_count().to_string()),
        ("connections_max", shared.config.connections_max.to_string()),
        ("connections_total", count(&counters.connections_total)),
        ("connections_refused_total", count(&counters.refused_total)),
        ("pages_total", count(&counters.pages_total)),
        ("page_batches_total", count(&counters.batches_total)),
        ("stream_errors_total", count(&counters.stream_errors_total)),
    ] {
        rows.row(&[name.into(), Value::Text(value)])?;
    }
    Ok(())
}

fn change_timeline(
    repository: &dyn RepositoryBackend,
    change: &TimelineChange,
    rows: &mut Rows<'_>,
) -> Result<(), Failure> {
    let changed = with_progress(rows, |progress| repository.change_timeline(change, progress))?;
    changed.notices.iter().try_for_each(|notice| rows.notice(notice))?;
    rows.row(&timeline_row(&changed.info))
}

fn relation_list(
    repository: &dyn RepositoryBackend,
    timeline: &str,
    database: Option<DatabaseAddress>,
    at: Option<Lsn>,
    rows: &mut Rows<'_>,
) -> Result<(), Failure> {
    let (timeline, at) = timeline_at(repository, timeline, at)?;
    let databases = match database {
        Some(DatabaseAddress { spc_oid, db_oid }) => vec![(spc_oid, db_oid)],
        None => databases_and_shared(&*timeline, at)?,
    };
    for (spc_oid, db_oid) in databases {
        for (rel, fork, blocks) in timeline.relations(spc_oid, db_oid, at)? {
            rows.row(&[Value::display(Some(rel)), fork.name().into(), Value::Int(blocks.into())])?;
        }
    }
    Ok(())
}

fn slru_list(
    repository: &dyn RepositoryBackend,
    timeline: &str,
    at: Option<Lsn>,
    rows: &mut Rows<'_>,
) -> Result<(), Failure> {
    let (timeline, at) = timeline_at(repository, timeline, at)?;
    for kind in SlruKind::ALL {
        for (segment_no, pages) in timeline.slru_segments(kind, at)? {
            rows.row(&[kind.directory().into(), Value::Int(segment_no.into()), Value::Int(pages.into())])?;
        }
    }
    Ok(())
}

fn object_list(
    repository: &dyn RepositoryBackend,
    timeline: &str,
    class: Option<ObjectClass>,
    at: Option<Lsn>,
    rows: &mut Rows<'_>,
) -> Result<(), Failure> {
    let (timeline, at) = timeline_at(repository, timeline, at)?;
    let classes = class.map_or(ObjectClass::ALL.to_vec(), |class| vec![class]);
    for class in classes {
        rows.check_interrupts()?;
        for (object, value) in timeline.objects(class.template(), at)? {
            let address = Value::display(object::address(object));
            rows.row(&[class.name().into(), address, Value::count(value.len() as u64), Value::Bytes(value)])?;
        }
    }
    Ok(())
}

fn page_get(
    repository: &dyn RepositoryBackend,
    timeline: &str,
    address: PageAddress,
    at: Option<Lsn>,
    rows: &mut Rows<'_>,
) -> Result<(), Failure> {
    let (timeline, at) = timeline_at(repository, timeline, at)?;
    let mut block_count = Value::Null;
    if let PageAddress::Block { rel, fork, block_no } = address {
        let blocks = timeline.relation_size(rel, fork, at)?.ok_or_else(|| {
            BackendError::not_found(format!(
                "relation fork does not exist. relation=`{rel}`, fork=`{fork}`, lsn=`{at}`"
            ))
        })?;
        block_count = Value::Int(blocks.into());
        // A page of zeroes and a block that is not there are told apart: the latter is NULL.
        if block_no >= blocks {
            return rows.row(&[lsn(Some(at)), block_count, Value::Null]);
        }
    }
    let page = timeline.get_pages_at_lsn(&[(address.key(), at)]).pop().unwrap_or_else(|| {
        Err(BackendError::new(BackendErrorKind::Internal, "the timeline gave no answer for a page"))
    })?;
    let page = if page.is_empty() { bytes::Bytes::from_static(&postgres_ffi::page::ZERO_PAGE) } else { page };
    rows.row(&[lsn(Some(at)), block_count, Value::Bytes(page)])
}

fn page_history(
    timeline: &dyn TimelineBackend,
    address: PageAddress,
    from: Option<Lsn>,
    to: Option<Lsn>,
    rows: &mut Rows<'_>,
) -> Result<(), Failure> {
    let mut end = to.unwrap_or_else(|| timeline.last_record_lsn()).checked_add(1).unwrap_or(Lsn::MAX);
    let start = from.unwrap_or(Lsn::ZERO).min(end);
    loop {
        let versions = timeline.history(address.key(), start..end)?;
        let Some((oldest_lsn, ..)) = versions.last() else { return Ok(()) };
        end = *oldest_lsn;
        for (version_lsn, kind, value) in versions {
            let kind = match kind {
                Kind::Tombstone => "tombstone",
                Kind::Delta => "delta",
                Kind::InitDelta => "init_delta",
                Kind::Image => "image",
            };
            rows.row(&[lsn(Some(version_lsn)), kind.into(), Value::count(value.len() as u64), Value::Bytes(value)])?;
        }
    }
}

fn select_value(item: &SelectItem) -> Value {
    match item {
        SelectItem::Number(number) => Value::Int(*number),
        SelectItem::Text(text) => Value::Text(text.clone()),
        SelectItem::Version => Value::Text(format!("PostgreSQL {SERVER_VERSION}")),
        SelectItem::IsInRecovery => Value::Bool(false),
        SelectItem::Name(name) => (*name).into(),
    }
}
