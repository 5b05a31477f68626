//! The LSNs that clones are made of: some by chance, some by what the records around them do.

use std::fmt;

use anyhow::{Context, Result};
use postgres_ffi::wal::page_header::SHORT_HEADER_LEN;
use postgres_ffi::{Lsn, PgVersion};
use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

use super::wal_history::WalHistory;

/// Tries to find an LSN that was not chosen yet.
const TRIES: usize = 50;

/// Why an LSN was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The end of some record.
    Random,
    /// Within a transaction of many rows.
    MidTransaction,
    /// A B-tree page is split, and its parent does not know of it yet.
    BtreeSplit,
    /// Between the redo point of a checkpoint and its record.
    Checkpoint,
    /// CREATE DATABASE by blocks in the WAL is under way. From 15.
    CreateDatabaseBlocks,
    /// CREATE DATABASE by copying files is under way.
    CreateDatabaseFiles,
    /// The end of a record that lies in two segments.
    SpanEnd,
    /// Within such a record.
    SpanInside,
    /// The beginning of the segment behind a switch.
    AfterSwitch,
    /// In the rest of a segment that a switch left unused.
    InsideSwitch,
    /// In the header of a WAL page, between two records.
    PageHeader,
    /// The first LSN that can be read.
    FirstReadable,
    /// A transaction is prepared and not committed.
    Prepared,
    /// The end of a record and of a WAL page.
    PageBoundary,
    /// The last record before a crash of the primary, or the checkpoint that ended its recovery.
    Crash,
    /// A B-tree page is half dead: it is being deleted.
    HalfDeadPage,
    /// The CLOG has a new page.
    ClogPage,
    /// A multixact was made.
    MultiXact,
    /// A mapped catalog has new files.
    RelationMap,
    /// A relation was cut.
    Truncation,
    /// A database's files went away; the transaction has not ended.
    DropDatabase,
    /// An unlogged relation is being made.
    InitFork,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Random => "a record's end",
            Kind::MidTransaction => "middle of a long transaction",
            Kind::BtreeSplit => "B-tree split without downlink",
            Kind::Checkpoint => "between redo point and checkpoint",
            Kind::CreateDatabaseBlocks => "CREATE DATABASE, blocks",
            Kind::CreateDatabaseFiles => "CREATE DATABASE, files",
            Kind::SpanEnd => "end of a record in two segments",
            Kind::SpanInside => "inside a record in two segments",
            Kind::AfterSwitch => "after a segment switch",
            Kind::InsideSwitch => "behind a segment switch",
            Kind::PageHeader => "in a page header",
            Kind::FirstReadable => "first readable",
            Kind::Prepared => "PREPARE without COMMIT PREPARED",
            Kind::PageBoundary => "page boundary",
            Kind::Crash => "crash of the primary",
            Kind::HalfDeadPage => "half-dead B-tree page",
            Kind::ClogPage => "new CLOG page",
            Kind::MultiXact => "new multixact",
            Kind::RelationMap => "new relation map",
            Kind::Truncation => "truncation",
            Kind::DropDatabase => "DROP DATABASE without commit",
            Kind::InitFork => "new init fork",
        })
    }
}

impl Kind {
    /// What every full course has, at least once each.
    pub fn required(version: PgVersion) -> Vec<Kind> {
        let mut kinds = vec![
            Kind::FirstReadable,
            Kind::Random,
            Kind::MidTransaction,
            Kind::BtreeSplit,
            Kind::Checkpoint,
            Kind::CreateDatabaseFiles,
            Kind::SpanEnd,
            Kind::SpanInside,
            Kind::AfterSwitch,
            Kind::InsideSwitch,
            Kind::PageHeader,
            Kind::Prepared,
            Kind::PageBoundary,
            Kind::Crash,
        ];
        if version >= PgVersion::V15 {
            kinds.push(Kind::CreateDatabaseBlocks);
        }
        kinds
    }

    /// What the load may or may not bring.
    pub const OTHERS: [Kind; 7] = [
        Kind::HalfDeadPage,
        Kind::ClogPage,
        Kind::MultiXact,
        Kind::RelationMap,
        Kind::Truncation,
        Kind::DropDatabase,
        Kind::InitFork,
    ];
}

/// An LSN to clone at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Why.
    pub kind: Kind,
    /// What is asked for.
    pub request_lsn: Lsn,
}

impl Moment {
    /// Whether `branch_lsn` is a right answer to the request: the end of the record in which the request lies, or any place from the last record's end
    /// at or before the request on up to the request, where no record ends in between.
    pub fn allows(&self, history: &WalHistory, branch_lsn: Lsn) -> Result<bool> {
        let (start_lsn, end_lsn) = history.record(history.first_above(self.request_lsn));
        let is_end = start_lsn < self.request_lsn && branch_lsn == end_lsn;
        Ok(is_end || (history.last_end(self.request_lsn)? <= branch_lsn && branch_lsn <= self.request_lsn))
    }
}

/// One moment of each of `kinds`, then others up to `count`, ordered by LSN. Errors: the WAL has no place of one of `kinds`.
pub fn choose(
    history: &WalHistory,
    from_lsn: Lsn,
    kinds: &[Kind],
    count: usize,
    rng: &mut SmallRng,
) -> Result<Vec<Moment>> {
    let mut chosen = Vec::new();
    for kind in kinds.iter().take(count) {
        let moment = choose_one(history, from_lsn, *kind, &chosen, rng);
        chosen.push(moment.with_context(|| format!("the load brought no LSN of this kind: {kind}"))?);
    }
    let mut others = Kind::OTHERS;
    others.shuffle(rng);
    for kind in others.into_iter().chain(std::iter::repeat_n(Kind::Random, count)) {
        if chosen.len() < count {
            chosen.extend(choose_one(history, from_lsn, kind, &chosen, rng));
        }
    }
    chosen.sort_by_key(|moment| moment.request_lsn);
    Ok(chosen)
}

fn choose_one(
    history: &WalHistory,
    from_lsn: Lsn,
    kind: Kind,
    chosen: &[Moment],
    rng: &mut SmallRng,
) -> Option<Moment> {
    // The last record has none behind it, where PostgreSQL's recovery would stop.
    let all = history.first_above(from_lsn)..history.record_count() - 1;
    for _ in 0..TRIES {
        let range = match kind {
            Kind::Random => all.clone(),
            Kind::FirstReadable => all.start - 1..all.start,
            _ => {
                let places = history.places(kind);
                places.get(rng.random_range(0..places.len().max(1)))?.clone()
            }
        };
        let lowest = if kind == Kind::FirstReadable { range.start } else { all.start };
        let range = range.start.max(lowest)..range.end.min(all.end);
        if range.is_empty() {
            continue;
        }
        let (start_lsn, end_lsn) = history.record(rng.random_range(range));
        let request_lsn = match kind {
            Kind::FirstReadable => from_lsn,
            Kind::SpanInside | Kind::InsideSwitch => {
                Lsn::new(rng.random_range(start_lsn.as_u64() + 1..end_lsn.as_u64()))
            }
            Kind::PageHeader => Lsn::new(end_lsn.as_u64() + rng.random_range(1..SHORT_HEADER_LEN as u64)),
            _ => end_lsn,
        };
        if !chosen.iter().any(|moment| moment.request_lsn == request_lsn) {
            return Some(Moment { kind, request_lsn });
        }
    }
    None
}
