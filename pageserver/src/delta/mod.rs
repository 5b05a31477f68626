//! What a Delta version holds, and how those that are ours apply to a page.
//!
//! The value of a `Kind::Delta` or `Kind::InitDelta` version is one tag byte and a body. Tag 0 is a PostgreSQL record, cut down for this
//! block; the others stand for changes that WAL implies without naming the page. Numbers are big-endian.
//!
//! ```text
//! | tag | what                  | body                                                                    | pages of
//! |  0  | PostgreSQL record     | XLogRecord                                                              | any relation
//! |  1  | CLOG status           | status u8, index u16 ...                                                | pg_xact
//! |  2  | multixact offsets     | (index u16, offset u32) ...                                             | pg_multixact/offsets
//! |  3  | multixact members     | first index u16, (status u8, xid u32) ...                               | pg_multixact/members
//! |  4  | commit timestamps     | time i64, origin u16, index u16 ...                                     | pg_commit_ts
//! |  5  | visibility map clear  | flags u8 (bits 0-1: the map's bits; bit 7: guarded by the page's LSN), index u16 ... | visibility map
//! |  6  | visibility map cut    | first heap block removed, its index u16                                 | visibility map
//! |  7  | free space map cut    | first slot cleared u16                                                  | free space map
//! |  8  | heap all visible      | nothing                                                                 | any heap
//! example: 01 01 0005 7fff = transactions 5 and 32767 of this CLOG page committed
//! ```
//!
//! - An index is a place within the page; it is checked when decoded, so applying cannot go out of bounds.
//! - [`apply()`] does what PostgreSQL's redo does to the same page: SLRU pages have no LSN, the maps' pages get one only where redo stamps it.
//! - **Never:** bytes of a version make us panic (tests cut and mutate them).

mod apply;
pub mod free_space_map;
pub mod visibility_map;

pub use apply::apply;

use postgres_ffi::slru::{
    CLOG_XACTS_PER_PAGE, COMMIT_TS_XACTS_PER_PAGE, MULTI_MEMBERS_PER_PAGE, MULTI_OFFSETS_PER_PAGE, XidStatus,
};
use postgres_ffi::{MultiXactOffset, TimestampTz, TransactionId};
use zerocopy::byteorder::big_endian::{I64, U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

mod tag {
    pub const POSTGRES: u8 = 0;
    pub const CLOG_STATUS: u8 = 1;
    pub const MULTI_OFFSETS: u8 = 2;
    pub const MULTI_MEMBERS: u8 = 3;
    pub const COMMIT_TS: u8 = 4;
    pub const VM_CLEAR: u8 = 5;
    pub const VM_TRUNCATE: u8 = 6;
    pub const FSM_TRUNCATE: u8 = 7;
    pub const HEAP_ALL_VISIBLE: u8 = 8;
}

/// The tag of a PostgreSQL record. The record follows it.
pub const POSTGRES_TAG: u8 = tag::POSTGRES;

/// In the flags of a visibility map clear: do nothing if the page's LSN is at or above the record's.
const LSN_GUARDED: u8 = 0x80;

/// Bytes that are no delta, or a delta that does not belong to the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DeltaError {
    /// No bytes at all.
    #[error("delta without a tag")]
    Empty,
    /// No delta has this tag.
    #[error("unknown delta tag. tag=`{tag}`")]
    UnknownTag {
        /// The byte found.
        tag: u8,
    },
    /// The body has a length that this tag cannot have.
    #[error("delta has the wrong length. tag=`{tag}`, length=`{length}`")]
    Length {
        /// Which delta.
        tag: u8,
        /// Bytes behind the tag.
        length: usize,
    },
    /// An index, status or flag is out of range.
    #[error("impossible value in a delta. tag=`{tag}`, value=`{value}`")]
    Value {
        /// Which delta.
        tag: u8,
        /// What was found.
        value: u32,
    },
    /// A PostgreSQL record was given to [`apply()`]; records are for the redo engines.
    #[error("a PostgreSQL record is not applied here")]
    NotOurs,
    /// The page was never initialised, and redo of this change does not initialise it.
    #[error("page is not initialised")]
    PageIsNew,
}

/// An index within a page.
pub type Index = U16;

/// Start of one multixact's members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct OffsetEntry {
    /// Place within the page.
    pub index: Index,
    /// Position in the members area.
    pub offset: U32,
}

/// One member of a multixact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct MemberEntry {
    /// What the transaction holds.
    pub status: u8,
    /// The transaction.
    pub xid: U32,
}

impl OffsetEntry {
    /// The entry at `index`.
    pub fn new(index: u16, offset: MultiXactOffset) -> Self {
        OffsetEntry { index: index.into(), offset: offset.into() }
    }
}

impl MemberEntry {
    /// The member `xid`.
    pub fn new(xid: TransactionId, status: u8) -> Self {
        MemberEntry { status, xid: xid.into() }
    }
}

/// A change to one page. Borrows from the version's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delta<'a> {
    /// A complete XLogRecord.
    Postgres(&'a [u8]),
    /// Transactions of one CLOG page ended.
    ClogStatus {
        /// How.
        status: XidStatus,
        /// Which.
        indexes: &'a [Index],
    },
    /// Entries of one page of multixact offsets.
    MultiOffsets(&'a [OffsetEntry]),
    /// Neighbouring entries of one page of multixact members.
    MultiMembers {
        /// Where they start.
        first_index: u16,
        /// The members.
        members: &'a [MemberEntry],
    },
    /// Transactions of one page of commit timestamps were committed.
    CommitTs {
        /// When.
        time: TimestampTz,
        /// From where, 0 for here.
        origin_id: u16,
        /// Which.
        indexes: &'a [Index],
    },
    /// Bits of heap blocks on one page of a visibility map are cleared.
    VisibilityMapClear {
        /// The record names the map's page: then redo looks at the page's LSN first and stamps it if a bit was set.
        lsn_guarded: bool,
        /// The bits that go.
        bits: u8,
        /// Of which heap blocks, as places within the page.
        indexes: &'a [Index],
    },
    /// The heap was cut: bits from this heap block to the page's end are cleared.
    VisibilityMapTruncate {
        /// Place within the page of the first heap block that is gone.
        first_index: u16,
    },
    /// The heap was cut: slots from this one to the page's end are cleared.
    FreeSpaceMapTruncate {
        /// The first slot cleared.
        first_slot: u16,
    },
    /// A heap page's tuples are visible to everyone, in a cluster that logs no hint bits: the flag is set and the page keeps its LSN.
    ///
    /// Where hint bits are logged the record itself is stored, and redo stamps the page. Which of the two it is was settled when the record
    /// came in, so that redo need not know what the cluster's settings were at that LSN.
    HeapAllVisible,
}

impl<'a> Delta<'a> {
    /// The delta that `value` holds. Errors: see [`DeltaError`]; a PostgreSQL record is not looked into.
    pub fn decode(value: &'a [u8]) -> Result<Self, DeltaError> {
        let (&tag, body) = value.split_first().ok_or(DeltaError::Empty)?;
        match tag {
            tag::POSTGRES => Ok(Delta::Postgres(body)),
            tag::CLOG_STATUS => {
                let (&status, rest) = body.split_first().ok_or(DeltaError::Length { tag, length: 0 })?;
                let status = XidStatus::from_number(status).ok_or(DeltaError::Value { tag, value: status.into() })?;
                Ok(Delta::ClogStatus { status, indexes: indexes(tag, rest, CLOG_XACTS_PER_PAGE)? })
            }
            tag::MULTI_OFFSETS => {
                let entries: &[OffsetEntry] = items(tag, body)?;
                for entry in entries {
                    check_below(tag, entry.index.get().into(), MULTI_OFFSETS_PER_PAGE)?;
                }
                Ok(Delta::MultiOffsets(entries))
            }
            tag::MULTI_MEMBERS => Self::decode_members(tag, body),
            tag::COMMIT_TS => {
                let (time, rest) = head::<I64>(tag, body)?;
                let (origin_id, rest) = head::<U16>(tag, rest)?;
                let indexes = indexes(tag, rest, COMMIT_TS_XACTS_PER_PAGE)?;
                Ok(Delta::CommitTs { time: time.get(), origin_id: origin_id.get(), indexes })
            }
            tag::VM_CLEAR => Self::decode_vm_clear(tag, body),
            tag::VM_TRUNCATE => {
                let first_index = only(tag, body, visibility_map::HEAP_BLOCKS_PER_PAGE)?;
                Ok(Delta::VisibilityMapTruncate { first_index })
            }
            tag::FSM_TRUNCATE => {
                Ok(Delta::FreeSpaceMapTruncate { first_slot: only(tag, body, free_space_map::SLOTS_PER_PAGE)? })
            }
            tag::HEAP_ALL_VISIBLE if body.is_empty() => Ok(Delta::HeapAllVisible),
            tag::HEAP_ALL_VISIBLE => Err(DeltaError::Length { tag, length: body.len() }),
            _ => Err(DeltaError::UnknownTag { tag }),
        }
    }

    fn decode_members(tag: u8, body: &'a [u8]) -> Result<Self, DeltaError> {
        let (first_index, rest) = head::<U16>(tag, body)?;
        let members: &[MemberEntry] = items(tag, rest)?;
        let end = first_index.get() as usize + members.len();
        if members.is_empty() || end > MULTI_MEMBERS_PER_PAGE as usize {
            return Err(DeltaError::Value { tag, value: end.min(u32::MAX as usize) as u32 });
        }
        Ok(Delta::MultiMembers { first_index: first_index.get(), members })
    }

    fn decode_vm_clear(tag: u8, body: &'a [u8]) -> Result<Self, DeltaError> {
        let (&flags, rest) = body.split_first().ok_or(DeltaError::Length { tag, length: 0 })?;
        let bits = flags & !LSN_GUARDED;
        if bits == 0 || bits & !visibility_map::VALID_BITS != 0 {
            return Err(DeltaError::Value { tag, value: flags.into() });
        }
        let indexes = indexes(tag, rest, visibility_map::HEAP_BLOCKS_PER_PAGE)?;
        Ok(Delta::VisibilityMapClear { lsn_guarded: flags & LSN_GUARDED != 0, bits, indexes })
    }

    /// Appends the bytes that [`Delta::decode`] reads to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Delta::Postgres(record) => {
                out.push(tag::POSTGRES);
                out.extend_from_slice(record);
            }
            Delta::ClogStatus { status, indexes } => {
                out.extend_from_slice(&[tag::CLOG_STATUS, *status as u8]);
                out.extend_from_slice(indexes.as_bytes());
            }
            Delta::MultiOffsets(entries) => {
                out.push(tag::MULTI_OFFSETS);
                out.extend_from_slice(entries.as_bytes());
            }
            Delta::MultiMembers { first_index, members } => {
                out.push(tag::MULTI_MEMBERS);
                out.extend_from_slice(&first_index.to_be_bytes());
                out.extend_from_slice(members.as_bytes());
            }
            Delta::CommitTs { time, origin_id, indexes } => {
                out.push(tag::COMMIT_TS);
                out.extend_from_slice(&time.to_be_bytes());
                out.extend_from_slice(&origin_id.to_be_bytes());
                out.extend_from_slice(indexes.as_bytes());
            }
            Delta::VisibilityMapClear { lsn_guarded, bits, indexes } => {
                let guard = if *lsn_guarded { LSN_GUARDED } else { 0 };
                out.extend_from_slice(&[tag::VM_CLEAR, bits | guard]);
                out.extend_from_slice(indexes.as_bytes());
            }
            Delta::VisibilityMapTruncate { first_index } => {
                out.push(tag::VM_TRUNCATE);
                out.extend_from_slice(&first_index.to_be_bytes());
            }
            Delta::FreeSpaceMapTruncate { first_slot } => {
                out.push(tag::FSM_TRUNCATE);
                out.extend_from_slice(&first_slot.to_be_bytes());
            }
            Delta::HeapAllVisible => out.push(tag::HEAP_ALL_VISIBLE),
        }
    }
}

fn check_below(tag: u8, value: u32, end: u32) -> Result<(), DeltaError> {
    if value < end { Ok(()) } else { Err(DeltaError::Value { tag, value }) }
}

fn items<T: FromBytes + KnownLayout + Immutable + Unaligned>(tag: u8, bytes: &[u8]) -> Result<&[T], DeltaError> {
    <[T]>::ref_from_bytes(bytes).map_err(|_| DeltaError::Length { tag, length: bytes.len() })
}

fn indexes(tag: u8, bytes: &[u8], end: u32) -> Result<&[Index], DeltaError> {
    let indexes: &[Index] = items(tag, bytes)?;
    for index in indexes {
        check_below(tag, index.get().into(), end)?;
    }
    Ok(indexes)
}

fn head<T: FromBytes + KnownLayout + Immutable + Unaligned>(tag: u8, bytes: &[u8]) -> Result<(&T, &[u8]), DeltaError> {
    T::ref_from_prefix(bytes).map_err(|_| DeltaError::Length { tag, length: bytes.len() })
}

fn only(tag: u8, bytes: &[u8], end: u32) -> Result<u16, DeltaError> {
    let value: [u8; 2] = bytes.try_into().map_err(|_| DeltaError::Length { tag, length: bytes.len() })?;
    let value = u16::from_be_bytes(value);
    check_below(tag, value.into(), end)?;
    Ok(value)
}

const _: () = assert!(size_of::<OffsetEntry>() == 6);
const _: () = assert!(size_of::<MemberEntry>() == 5);
// Every index fits its 16 bits.
const _: () = assert!(CLOG_XACTS_PER_PAGE <= 1 << 16);
const _: () = assert!(visibility_map::HEAP_BLOCKS_PER_PAGE <= 1 << 16);

#[cfg(test)]
mod tests;
