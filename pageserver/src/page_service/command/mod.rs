//! Commands: text to [`Command`] ([`token`], [`parse`]), [`Command`] to rows ([`run`], [`object`]), rows to the wire ([`rows`]).
//!
//! `docs/protocol.md` lists every command with its columns.

pub mod import;
pub mod object;
pub mod parse;
pub mod rows;
pub mod run;
mod time;
pub mod token;
pub mod verify;

use std::fmt;
use std::str::FromStr;

use keyenc::{Key, Object};
use postgres_ffi::rel::RelTagParseError;
use postgres_ffi::{BlockNumber, ForkNumber, Lsn, Oid, RelTag, SlruKind};

use self::import::ImportFrom;
use self::object::ObjectClass;
use super::basebackup::BackupRequest;
use super::gc::GcCommand;
use super::lease::LeaseCommand;
use super::message::Column;
use super::pagestream::wire::Version;
use super::size::{self, SizeCommand};
use super::timeline_change::TimelineChange;
use crate::verify::VerifyOptions;
use crate::wall_time::TimeSpec;

/// One page of a timeline, as people write it: `1663/5/16384/main/7`, or `pg_xact/7` (pages are numbered across segments).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PageAddress {
    /// A block of a relation fork.
    Block {
        /// The relation.
        rel: RelTag,
        /// The fork.
        fork: ForkNumber,
        /// The block.
        block_no: BlockNumber,
    },
    /// A page of an SLRU.
    Slru {
        /// The SLRU.
        kind: SlruKind,
        /// The page.
        page_no: u32,
    },
}

/// The text is not the address of a page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a page address, expected TABLESPACE/DATABASE/RELFILENODE/FORK/BLOCK like 1663/5/16384/main/0, or pg_xact/0. value=`{value}`"
)]
pub struct PageAddressParseError {
    value: String,
}

impl PageAddress {
    /// The key of its versions.
    pub fn key(&self) -> Key {
        match *self {
            PageAddress::Block { rel, fork, block_no } => Key::block(rel, fork, block_no),
            PageAddress::Slru { kind, page_no } => Key::from(Object::SlruPage { kind, page_no }),
        }
    }
}

impl fmt::Display for PageAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PageAddress::Block { rel, fork, block_no } => write!(f, "{rel}/{fork}/{block_no}"),
            PageAddress::Slru { kind, page_no } => write!(f, "{kind}/{page_no}"),
        }
    }
}

impl FromStr for PageAddress {
    type Err = PageAddressParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_page_address(text).ok_or_else(|| PageAddressParseError { value: text.chars().take(64).collect() })
    }
}

fn parse_page_address(text: &str) -> Option<PageAddress> {
    let (object, number) = text.rsplit_once('/')?;
    let number = parse_number(number)?;
    if let Some(kind) = SlruKind::ALL.into_iter().find(|kind| kind.directory() == object) {
        return Some(PageAddress::Slru { kind, page_no: number });
    }
    let (rel, fork) = object.rsplit_once('/')?;
    let rel = rel.parse::<RelTag>().ok().filter(|_| !rel.contains('+'))?;
    Some(PageAddress::Block { rel, fork: fork.parse().ok()?, block_no: number })
}

/// A number of digits alone: `u32::from_str` would take a sign.
fn parse_number(digits: &str) -> Option<u32> {
    digits.parse().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()))
}

/// A relation fork or database where a command wants one narrowed down: `1663/5`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DatabaseAddress {
    /// Tablespace.
    pub spc_oid: Oid,
    /// Database.
    pub db_oid: Oid,
}

impl FromStr for DatabaseAddress {
    type Err = RelTagParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // A relation address with one part less; its error reads right for this one, too.
        let rel: RelTag = format!("{text}/0").parse()?;
        Ok(DatabaseAddress { spc_oid: rel.spc_oid, db_oid: rel.db_oid })
    }
}

/// A command, parsed. Names of timelines are as written: case counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `HELP`
    Help,
    /// `TIMELINE LIST`, `SHOW TIMELINES`
    TimelineList,
    /// `TIMELINE SHOW name`, `SHOW TIMELINE name`
    TimelineShow {
        /// The timeline.
        timeline: String,
    },
    /// `SHOW LAST_RECORD_LSN [name]`
    LastRecordLsn {
        /// One timeline, or all.
        timeline: Option<String>,
    },
    /// `SHOW LAG [name]`
    Lag {
        /// One timeline, or all.
        timeline: Option<String>,
    },
    /// `SHOW SIZES [name] [AT lsn]`
    Sizes {
        /// One timeline, or all.
        timeline: Option<String>,
        /// As of; the newest without.
        at: Option<Lsn>,
    },
    /// `SHOW LSN name AT TIME 'time'`
    LsnAtTime {
        /// The timeline.
        timeline: String,
        /// When.
        time: TimeSpec,
    },
    /// `SHOW TIME name [AT lsn]`
    TimeAtLsn {
        /// The timeline.
        timeline: String,
        /// As of; the newest without.
        at: Option<Lsn>,
    },
    /// `SHOW STATUS`
    Status,
    /// `STORE STATS`
    StoreStats,
    /// `SHOW REDO`
    RedoStats,
    /// `IMPORT name FROM 'conninfo'`, `... FROM DIRECTORY 'path'`, `... FROM TAR 'path'`
    Import {
        /// The timeline to make.
        name: String,
        /// The cluster.
        from: ImportFrom,
    },
    /// `BRANCH ...`, `TIMELINE FOLLOW`, `TIMELINE UNFOLLOW`, `TIMELINE DELETE`
    TimelineChange(TimelineChange),
    /// `LEASE ...`
    Lease(LeaseCommand),
    /// `GC ...`, `TIMELINE RETENTION`
    Gc(GcCommand),
    /// `SIZE [name] [AT lsn] [PINS]`
    Size(SizeCommand),
    /// `VERIFY [name] [RATE mib]`
    Verify(VerifyOptions),
    /// `REPAIR [name] [DRY RUN]`
    Repair(verify::RepairRequest),
    /// `DATABASE LIST name [AT lsn]`
    DatabaseList {
        /// The timeline.
        timeline: String,
        /// As of; the newest without.
        at: Option<Lsn>,
    },
    /// `RELATION LIST name [IN tablespace/database] [AT lsn]`
    RelationList {
        /// The timeline.
        timeline: String,
        /// Only this one.
        database: Option<DatabaseAddress>,
        /// As of; the newest without.
        at: Option<Lsn>,
    },
    /// `SLRU LIST name [AT lsn]`
    SlruList {
        /// The timeline.
        timeline: String,
        /// As of; the newest without.
        at: Option<Lsn>,
    },
    /// `OBJECT LIST name [CLASS class] [AT lsn]`
    ObjectList {
        /// The timeline.
        timeline: String,
        /// Only this class.
        class: Option<ObjectClass>,
        /// As of; the newest without.
        at: Option<Lsn>,
    },
    /// `PAGE GET name address [AT lsn]`
    PageGet {
        /// The timeline.
        timeline: String,
        /// The page.
        address: PageAddress,
        /// As of; the newest without.
        at: Option<Lsn>,
    },
    /// `PAGE HISTORY name address [FROM lsn] [TO lsn]`
    PageHistory {
        /// The timeline.
        timeline: String,
        /// The page.
        address: PageAddress,
        /// Oldest version wanted, inclusive.
        from: Option<Lsn>,
        /// Newest version wanted, inclusive.
        to: Option<Lsn>,
    },
    /// `PAGESTREAM_V2 [tenant] timeline`, `PAGESTREAM_V3 [tenant] timeline`
    Pagestream {
        /// Of the messages.
        version: Version,
        /// Only within this cluster.
        tenant: Option<String>,
        /// The timeline.
        timeline: String,
    },
    /// `BASEBACKUP [tenant] timeline [lsn] [--gzip] [--no-data] [--standby]`
    BaseBackup(BackupRequest),
    /// `WAL GET timeline file`
    WalGet {
        /// The timeline.
        timeline: String,
        /// A segment's or a history file's name.
        file: String,
    },
    /// `SHOW` of a parameter that drivers ask for
    ShowParameter {
        /// Its name and value.
        parameter: &'static (&'static str, &'static str),
    },
    /// `SELECT` of a constant or function that drivers ask for
    Select {
        /// The column and its value.
        item: SelectItem,
    },
    /// `SET` and the like: accepted, without effect
    Ignored {
        /// For CommandComplete.
        tag: &'static str,
    },
    /// `BEGIN`, `COMMIT`, `ROLLBACK`: how long portals live, nothing else
    Transaction {
        /// For CommandComplete.
        tag: &'static str,
        /// True for those that begin one.
        begins: bool,
    },
    /// `DEALLOCATE name`; all when `None`
    Deallocate {
        /// The statement.
        name: Option<String>,
    },
}

/// A connection string. Its `Debug` does not show it: it may hold a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Conninfo(pub String);

impl fmt::Debug for Conninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Conninfo(..)")
    }
}

/// What a minimal `SELECT` gives back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SelectItem {
    /// A number.
    Number(i64),
    /// A text.
    Text(String),
    /// `version()`
    Version,
    /// `pg_is_in_recovery()`: false, so that `target_session_attrs` of any kind finds us
    IsInRecovery,
    /// `current_database()`, `current_schema()`, `current_user`
    Name(&'static str),
}

impl Command {
    /// Columns of the rows that it gives; none: it gives no rows.
    pub fn columns(&self) -> &'static [Column] {
        const TIMELINES: &[Column] = &[
            Column::text("name"),
            Column::text("state"),
            Column::int8("pg_version"),
            Column::text("ancestor"),
            Column::text("ancestor_lsn"),
            Column::text("first_readable_lsn"),
            Column::text("last_record_lsn"),
            Column::text("tenant"),
            Column::text("id"),
        ];
        const NAME_VALUE: &[Column] = &[Column::text("name"), Column::text("value")];
        match self {
            Command::Help => const { &[Column::text("command"), Column::text("what_it_does")] },
            Command::TimelineList | Command::Import { .. } | Command::TimelineChange(_) => TIMELINES,
            Command::Lease(_) => super::lease::COLUMNS,
            Command::Gc(command) => command.columns(),
            Command::Size(_) => size::COLUMNS,
            Command::Verify(_) => verify::VERIFY_COLUMNS,
            Command::Repair(_) => verify::REPAIR_COLUMNS,
            Command::TimelineShow { .. } | Command::Status | Command::StoreStats | Command::RedoStats => NAME_VALUE,
            Command::LastRecordLsn { .. } => const { &[Column::text("timeline"), Column::text("last_record_lsn")] },
            Command::Lag { .. } => {
                const {
                    &[
                        Column::text("timeline"),
                        Column::text("state"),
                        Column::text("source_end_lsn"),
                        Column::text("received_lsn"),
                        Column::text("last_record_lsn"),
                        Column::text("durable_lsn"),
                        Column::int8("lag_bytes"),
                    ]
                }
            }
            Command::LsnAtTime { .. } | Command::TimeAtLsn { .. } => time::COLUMNS,
            Command::Sizes { .. } => {
                const {
                    &[
                        Column::text("timeline"),
                        Column::text("lsn"),
                        Column::int8("tablespace"),
                        Column::int8("database"),
                        Column::int8("relations"),
                        Column::int8("blocks"),
                        Column::int8("bytes"),
                    ]
                }
            }
            Command::DatabaseList { .. } => const { &[Column::int8("tablespace"), Column::int8("database")] },
            Command::RelationList { .. } => {
                const { &[Column::text("relation"), Column::text("fork"), Column::int8("blocks")] }
            }
            Command::SlruList { .. } => {
                const { &[Column::text("slru"), Column::int8("segment"), Column::int8("pages")] }
            }
            Command::ObjectList { .. } => {
                const { &[Column::text("class"), Column::text("address"), Column::int8("bytes"), Column::bytea("value")] }
            }
            Command::PageGet { .. } => const { &[Column::text("lsn"), Column::int8("blocks"), Column::bytea("page")] },
            Command::PageHistory { .. } => {
                const { &[Column::text("lsn"), Column::text("kind"), Column::int8("bytes"), Column::bytea("value")] }
            }
            Command::ShowParameter { .. } => const { &[Column::text("setting")] },
            Command::Select { item } => item.columns(),
            Command::Pagestream { .. }
            | Command::BaseBackup(_)
            | Command::WalGet { .. }
            | Command::Ignored { .. }
            | Command::Transaction { .. }
            | Command::Deallocate { .. } => &[],
        }
    }
}

impl SelectItem {
    fn columns(&self) -> &'static [Column] {
        match self {
            SelectItem::Number(_) => const { &[Column::int8("?column?")] },
            SelectItem::Text(_) => const { &[Column::text("?column?")] },
            SelectItem::Version => const { &[Column::text("version")] },
            SelectItem::IsInRecovery => const { &[Column::bool("pg_is_in_recovery")] },
            SelectItem::Name(_) => const { &[Column::text("name")] },
        }
    }
}
