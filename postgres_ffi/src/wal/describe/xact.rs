//! Transactions. PG 15, 17, 18: src/backend/access/rmgrdesc/xactdesc.c, src/include/access/xact.h.

use super::body::{Body, Text, spaced, string};
use super::files::path;
use super::standby::{counted_invalidations, invalidations};
use super::time::Time;
use crate::records::fields::Fields;
use crate::records::xact::{self, Origin, Prepare, XactEnd, stats_item_len, xinfo};
use crate::records::{Ids, RecordError, Rels};
use crate::wal::DecodedRecord;
use crate::{ForkNumber, Lsn, PgVersion};

/// Length of xl_xact_prepare up to the counts, and of a relation and a message in the lists behind it.
const PREPARE_COUNTS_AT: usize = 28;
const REL_LEN: usize = 12;
const MESSAGE_LEN: usize = 16;
/// The lists of a prepared transaction begin at multiples of this.
const MAXALIGN: usize = 8;

pub(super) fn describe(record: &DecodedRecord, version: PgVersion) -> Text {
    let body = Body::of(record);
    match record.operation() & xact::OPERATION_MASK {
        xact::COMMIT | xact::COMMIT_PREPARED => commit(record, version),
        xact::ABORT | xact::ABORT_PREPARED => abort(record, version),
        xact::PREPARE => prepare(record, version),
        xact::ASSIGNMENT => {
            let subxacts = xact::parse_assignment(body.bytes)?;
            Ok(format!("xtop {}: subxacts:{}", body.u32(0)?, spaced(subxacts.iter())))
        }
        xact::INVALIDATIONS => counted_invalidations(body, version),
        _ => Ok(String::new()),
    }
}

fn commit(record: &DecodedRecord, version: PgVersion) -> Text {
    let end = XactEnd::parse(version, record.info, record.main_data())?;
    let dropped_file = (end.xinfo & xinfo::DROPS_RELCACHE_FILE != 0).then_some((end.db_oid, end.spc_oid));
    let if_set = |bit: u32, words: &str| if end.xinfo & bit != 0 { words.to_owned() } else { String::new() };
    Ok([
        head(&end),
        relations("rels", end.dropped, version),
        subxacts(end.subxacts),
        stats("", end.dropped_stats, version)?,
        invalidations(end.invalidations, dropped_file, version)?,
        if_set(xinfo::APPLY_FEEDBACK, "; apply_feedback"),
        if_set(xinfo::FORCE_SYNC_COMMIT, "; sync"),
        origin(record, end.origin),
    ]
    .concat())
}

fn abort(record: &DecodedRecord, version: PgVersion) -> Text {
    let end = XactEnd::parse(version, record.info, record.main_data())?;
    Ok([
        head(&end),
        relations("rels", end.dropped, version),
        subxacts(end.subxacts),
        origin(record, end.origin),
        stats("", end.dropped_stats, version)?,
    ]
    .concat())
}

/// The prepared transaction, if the record ends one, and the time.
fn head(end: &XactEnd<'_>) -> String {
    let prepared = end.twophase_xid.filter(|xid| *xid != 0).map_or_else(String::new, |xid| format!("{xid}: "));
    format!("{prepared}{}", Time(end.time))
}

fn relations(label: &str, rels: Rels<'_>, version: PgVersion) -> String {
    if rels.is_empty() {
        return String::new();
    }
    format!("; {label}:{}", spaced(rels.iter().map(|rel| path(rel, ForkNumber::Main, version))))
}

fn subxacts(xids: Ids<'_>) -> String {
    if xids.is_empty() { String::new() } else { format!("; subxacts:{}", spaced(xids.iter())) }
}

/// Kind, database and object of statistics that go away; from 18 the object has 64 bits, the low half first.
fn stats(label: &str, items: &[u8], version: PgVersion) -> Text {
    if items.is_empty() {
        return Ok(String::new());
    }
    let mut text = format!("; {label}dropped stats:");
    for item in items.chunks_exact(stats_item_len(version)) {
        let mut fields = Fields::new("xl_xact_stats_item", item);
        let (kind, db_oid) = (fields.i32()?, fields.u32()?);
        let object = if version >= PgVersion::V18 { fields.u64()? } else { fields.u32()?.into() };
        text += &format!(" {kind}/{db_oid}/{object}");
    }
    Ok(text)
}

fn origin(record: &DecodedRecord, origin: Option<Origin>) -> String {
    origin.map_or_else(String::new, |origin| {
        let (node, lsn) = (record.origin_id.unwrap_or_default(), Lsn::new(origin.remote_lsn));
        format!("; origin: node {node}, lsn {lsn}, at {}", Time(origin.time))
    })
}

/// The state of a prepared transaction: a head with counts, then lists in the order of the counts, each aligned.
fn prepare(record: &DecodedRecord, version: PgVersion) -> Text {
    let head = Prepare::parse(version, record.main_data())?;
    let mut fields = Body::of(record).from(PREPARE_COUNTS_AT)?;
    let has_stats = version >= PgVersion::V15;
    let subxact_count = fields.count()?;
    let (rel_count, aborted_rel_count) = (fields.count()?, fields.count()?);
    let stats_counts = if has_stats { (fields.count()?, fields.count()?) } else { (0, 0) };
    let message_count = fields.count()?;
    let drops_file = fields.u8()? != 0;
    fields.align(2);
    let gid_len = usize::from(fields.u16()?);
    fields.take(16)?; // The origin, which the head has.

    let mut items = |count: usize, len: usize| -> Result<&[u8], RecordError> {
        fields.align(MAXALIGN);
        fields.items(count, len)
    };
    let gid = string(items(gid_len, 1)?);
    let xids = items(subxact_count, 4)?;
    let (rels, aborted_rels) = (items(rel_count, REL_LEN)?, items(aborted_rel_count, REL_LEN)?);
    let stats_len = stats_item_len(version);
    let (committed_stats, aborted_stats) = (items(stats_counts.0, stats_len)?, items(stats_counts.1, stats_len)?);
    let messages = items(message_count, MESSAGE_LEN)?;
    // The tablespace is not in the record; PostgreSQL prints 0 for it.
    let dropped_file = drops_file.then_some((head.database, 0));
    Ok([
        format!("gid {gid}: {}", Time(head.prepared_at)),
        relations("rels(commit)", Rels(rels), version),
        relations("rels(abort)", Rels(aborted_rels), version),
        stats("commit ", committed_stats, version)?,
        stats("abort ", aborted_stats, version)?,
        subxacts(Ids(xids)),
        invalidations(messages, dropped_file, version)?,
        origin(record, record.origin_id.map(|_| head.origin)),
    ]
    .concat())
}
