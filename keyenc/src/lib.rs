//! Order-preserving keys of the page store: what a version is of, and which version, to bytes and back.
//!
//! - Byte order of encoded keys is the order of the values: all versions of one object are neighbours, oldest first.
//! - Decoding borrows; wrong lengths, classes, forks and kinds are errors.
//! - Knows nothing of RocksDB, sockets or threads.
//!
//! ```text
//! version key, 31 bytes, big-endian
//! | timeline u32 | class u8 | a u32 | b u32 | c u32 | d u8 | e u32 | lsn u64 | kind u8 |
//! |<--- TimelineNo --->|<------------ Key, 18 bytes ------------>|<-- version: 9 -->|
//! ```

use std::fmt;

use postgres_ffi::{BlockNumber, ForkNumber, Lsn, Oid, RelTag, SlruKind};
use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of a [`Key`] in bytes.
pub const KEY_LEN: usize = 18;
/// Length of an encoded [`VersionKey`] in bytes.
pub const ENCODED_KEY_LEN: usize = 31;
/// Length of the part that all versions of one object share: the prefix for bloom filters.
pub const OBJECT_PREFIX_LEN: usize = 4 + KEY_LEN;

const _: () = assert!(size_of::<Layout>() == ENCODED_KEY_LEN);
const _: () = assert!(size_of::<KeyLayout>() == KEY_LEN);
const _: () = assert!(OBJECT_PREFIX_LEN + 8 + 1 == ENCODED_KEY_LEN);

/// A timeline's short number within one store; its 128-bit id stands in the metadata. 0 is never given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimelineNo(pub u32);

/// What kind of version this is. The order matters: at one LSN the image sorts last, so that a reverse seek meets it first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// The object does not exist from this LSN on. No value.
    Tombstone = 0,
    /// A record to apply to the version before it.
    Delta = 1,
    /// A record to apply to a page of zeroes: nothing older counts.
    InitDelta = 2,
    /// The whole object. For a page: 8,192 bytes, or none at all for a page of zeroes.
    Image = 3,
}

impl Kind {
    /// True when no older version is needed to know the object.
    pub fn ends_gather(self) -> bool {
        self != Kind::Delta
    }

    fn from_byte(byte: u8) -> Result<Self, KeyError> {
        [Self::Tombstone, Self::Delta, Self::InitDelta, Self::Image]
            .get(usize::from(byte))
            .copied()
            .ok_or(KeyError::Kind { kind: byte })
    }
}

/// Bytes that are not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Wrong number of bytes.
    #[error("key has the wrong length. expected=`{expected}`, length=`{length}`")]
    Length {
        /// The length it should have.
        expected: usize,
        /// The length it has.
        length: usize,
    },
    /// No class of object has this number.
    #[error("unknown class in key. class=`{class:#04x}`")]
    Class {
        /// The byte found.
        class: u8,
    },
    /// Not a fork, or not an SLRU.
    #[error("unknown fork or SLRU in key. number=`{number}`")]
    Fork {
        /// The byte found.
        number: u8,
    },
    /// No kind of version has this number.
    #[error("unknown kind of version in key. kind=`{kind}`")]
    Kind {
        /// The byte found.
        kind: u8,
    },
    /// A field that this class leaves empty is not zero.
    #[error("a field that must be zero is not. class=`{class:#04x}`")]
    NotZero {
        /// The class of the key.
        class: u8,
    },
}

/// Everything that a cluster consists of, as an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Object {
    /// How far the store holds this timeline, in our own format.
    Watermark,
    /// `global/pg_control`, as at import.
    ControlFile,
    /// The CheckPoint struct as WAL has it at that LSN (next xid, oid, multixact, ...).
    Checkpoint,
    /// The highest time of a transaction's end so far.
    CommitTime,
    /// A database directory exists.
    Database {
        /// Tablespace.
        spc_oid: Oid,
        /// Database.
        db_oid: Oid,
    },
    /// `pg_filenode.map` of a database (`global/` when `db_oid` is 0).
    RelationMap {
        /// Tablespace.
        spc_oid: Oid,
        /// Database.
        db_oid: Oid,
    },
    /// Blocks and relations of a database in a tablespace: the sum of its relation sizes.
    DatabaseSize {
        /// Tablespace.
        spc_oid: Oid,
        /// Database.
        db_oid: Oid,
    },
    /// Number of blocks of a relation fork.
    RelationSize {
        /// The relation.
        rel: RelTag,
        /// The fork.
        fork: ForkNumber,
    },
    /// Number of pages of an SLRU segment file.
    SlruSegment {
        /// The SLRU.
        kind: SlruKind,
        /// Segment number, as in its file name.
        segment_no: u32,
    },
    /// One page of an SLRU, numbered across segments.
    SlruPage {
        /// The SLRU.
        kind: SlruKind,
        /// Page number.
        page_no: u32,
    },
    /// Pages and segments of an SLRU: the sum of its segments.
    SlruSize {
        /// The SLRU.
        kind: SlruKind,
    },
    /// State file of a prepared transaction.
    TwoPhase {
        /// Full transaction id (epoch in the high half; up to 16 the epoch is 0 in file names, but not here).
        xid: u64,
    },
    /// Progress of a replication origin.
    ReplicationOrigin {
        /// Origin id.
        origin_id: u16,
    },
    /// One block of a relation fork.
    RelationBlock {
        /// The relation.
        rel: RelTag,
        /// The fork.
        fork: ForkNumber,
        /// The block.
        block_no: BlockNumber,
    },
}

mod class {
    pub const WATERMARK: u8 = 0x01;
    pub const CONTROL_FILE: u8 = 0x02;
    pub const CHECKPOINT: u8 = 0x03;
    pub const COMMIT_TIME: u8 = 0x04;
    pub const DATABASE: u8 = 0x08;
    pub const RELATION_MAP: u8 = 0x09;
    pub const DATABASE_SIZE: u8 = 0x0A;
    pub const RELATION_SIZE: u8 = 0x10;
    pub const SLRU_SEGMENT: u8 = 0x18;
    pub const SLRU_PAGE: u8 = 0x19;
    pub const SLRU_SIZE: u8 = 0x1A;
    pub const TWO_PHASE: u8 = 0x20;
    pub const REPLICATION_ORIGIN: u8 = 0x28;
    pub const RELATION_BLOCK: u8 = 0x40;
}

/// An [`Object`] in its 18 ordered bytes: what maps in memory are keyed by.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(transparent)]
pub struct Key([u8; KEY_LEN]);

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct KeyLayout {
    class: u8,
    a: U32,
    b: U32,
    c: U32,
    d: u8,
    e: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Layout {
    timeline: U32,
    key: Key,
    lsn: U64,
    kind: u8,
}

impl Key {
    /// The key of one block. The one constructor on the hot path, so it has a name of its own.
    pub fn block(rel: RelTag, fork: ForkNumber, block_no: BlockNumber) -> Self {
        Self::pack(class::RELATION_BLOCK, rel.spc_oid, rel.db_oid, rel.rel_number, fork as u8, block_no)
    }

    fn pack(class: u8, a: u32, b: u32, c: u32, d: u8, e: u32) -> Self {
        let layout = KeyLayout { class, a: a.into(), b: b.into(), c: c.into(), d, e: e.into() };
        Key(zerocopy::transmute!(layout))
    }

    /// The key whose bytes are `bytes`. They are checked by [`Key::object`], not here.
    pub fn from_bytes(bytes: &[u8]) -> Result<&Self, KeyError> {
        Key::ref_from_bytes(bytes).map_err(|_| KeyError::Length { expected: KEY_LEN, length: bytes.len() })
    }

    /// The 18 bytes.
    pub fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// What the key is the key of.
    pub fn object(&self) -> Result<Object, KeyError> {
        let KeyLayout { class, a, b, c, d, e } = zerocopy::transmute!(self.0);
        let (a, b, c, e) = (a.get(), b.get(), c.get(), e.get());
        let empty = |fields: &[u32]| {
            if fields.iter().all(|field| *field == 0) { Ok(()) } else { Err(KeyError::NotZero { class }) }
        };
        let rel = RelTag { spc_oid: a, db_oid: b, rel_number: c };
        let fork = || ForkNumber::from_number(d).ok_or(KeyError::Fork { number: d });
        let slru = || SlruKind::from_number(d).ok_or(KeyError::Fork { number: d });
        match class {
            class::WATERMARK => empty(&[a, b, c, d.into(), e]).map(|()| Object::Watermark),
            class::CONTROL_FILE => empty(&[a, b, c, d.into(), e]).map(|()| Object::ControlFile),
            class::CHECKPOINT => empty(&[a, b, c, d.into(), e]).map(|()| Object::Checkpoint),
            class::COMMIT_TIME => empty(&[a, b, c, d.into(), e]).map(|()| Object::CommitTime),
            class::DATABASE => empty(&[c, d.into(), e]).map(|()| Object::Database { spc_oid: a, db_oid: b }),
            class::RELATION_MAP => empty(&[c, d.into(), e]).map(|()| Object::RelationMap { spc_oid: a, db_oid: b }),
            class::DATABASE_SIZE => empty(&[c, d.into(), e]).map(|()| Object::DatabaseSize { spc_oid: a, db_oid: b }),
            class::RELATION_SIZE => empty(&[e]).and_then(|()| Ok(Object::RelationSize { rel, fork: fork()? })),
            class::SLRU_SEGMENT => {
                empty(&[a, b, c]).and_then(|()| Ok(Object::SlruSegment { kind: slru()?, segment_no: e }))
            }
            class::SLRU_PAGE => empty(&[a, b, c]).and_then(|()| Ok(Object::SlruPage { kind: slru()?, page_no: e })),
            class::SLRU_SIZE => empty(&[a, b, c, e]).and_then(|()| Ok(Object::SlruSize { kind: slru()? })),
            class::TWO_PHASE => {
                empty(&[c, d.into(), e]).map(|()| Object::TwoPhase { xid: u64::from(a) << 32 | u64::from(b) })
            }
            class::REPLICATION_ORIGIN => {
                let origin_id = u16::try_from(e).map_err(|_| KeyError::NotZero { class })?;
                empty(&[a, b, c, d.into()]).map(|()| Object::ReplicationOrigin { origin_id })
            }
            class::RELATION_BLOCK => Ok(Object::RelationBlock { rel, fork: fork()?, block_no: e }),
            _ => Err(KeyError::Class { class }),
        }
    }

    /// True for the key of a relation's block, without a look at the rest.
    pub fn is_block(&self) -> bool {
        self.0[0] == class::RELATION_BLOCK
    }

    /// First and last key of all relation sizes of a database in a tablespace: the list of its relations.
    pub fn relation_sizes_of_database(spc_oid: Oid, db_oid: Oid) -> (Self, Self) {
        (
            Self::pack(class::RELATION_SIZE, spc_oid, db_oid, 0, 0, 0),
            Self::pack(class::RELATION_SIZE, spc_oid, db_oid, u32::MAX, u8::MAX, u32::MAX),
        )
    }

    /// First and last key of all segments of an SLRU.
    pub fn segments_of_slru(kind: SlruKind) -> (Self, Self) {
        let segment = |segment_no| Self::from(Object::SlruSegment { kind, segment_no });
        (segment(0), segment(u32::MAX))
    }

    /// First and last keys of all objects that are no pages, the watermark left out: those in front of the pages of SLRUs, and those behind.
    pub fn objects_that_are_no_pages() -> [(Self, Self); 2] {
        let first = |class| Self::pack(class, 0, 0, 0, 0, 0);
        let last = |class| Self::pack(class, u32::MAX, u32::MAX, u32::MAX, u8::MAX, u32::MAX);
        [
            (first(class::WATERMARK + 1), last(class::SLRU_PAGE - 1)),
            (first(class::SLRU_PAGE + 1), last(class::RELATION_BLOCK - 1)),
        ]
    }

    /// First and last key of the class that `object` belongs to, whatever its fields.
    pub fn class_of(object: Object) -> (Self, Self) {
        let class = Key::from(object).0[0];
        (Self::pack(class, 0, 0, 0, 0, 0), Self::pack(class, u32::MAX, u32::MAX, u32::MAX, u8::MAX, u32::MAX))
    }
}

impl From<Object> for Key {
    fn from(object: Object) -> Self {
        match object {
            Object::Watermark => Self::pack(class::WATERMARK, 0, 0, 0, 0, 0),
            Object::ControlFile => Self::pack(class::CONTROL_FILE, 0, 0, 0, 0, 0),
            Object::Checkpoint => Self::pack(class::CHECKPOINT, 0, 0, 0, 0, 0),
            Object::CommitTime => Self::pack(class::COMMIT_TIME, 0, 0, 0, 0, 0),
            Object::Database { spc_oid, db_oid } => Self::pack(class::DATABASE, spc_oid, db_oid, 0, 0, 0),
            Object::RelationMap { spc_oid, db_oid } => Self::pack(class::RELATION_MAP, spc_oid, db_oid, 0, 0, 0),
            Object::DatabaseSize { spc_oid, db_oid } => Self::pack(class::DATABASE_SIZE, spc_oid, db_oid, 0, 0, 0),
            Object::RelationSize { rel, fork } => {
                Self::pack(class::RELATION_SIZE, rel.spc_oid, rel.db_oid, rel.rel_number, fork as u8, 0)
            }
            Object::SlruSegment { kind, segment_no } => {
                Self::pack(class::SLRU_SEGMENT, 0, 0, 0, kind as u8, segment_no)
            }
            Object::SlruPage { kind, page_no } => Self::pack(class::SLRU_PAGE, 0, 0, 0, kind as u8, page_no),
            Object::SlruSize { kind } => Self::pack(class::SLRU_SIZE, 0, 0, 0, kind as u8, 0),
            Object::TwoPhase { xid } => {
                Self::pack(class::TWO_PHASE, (xid >> 32) as u32, (xid & 0xFFFF_FFFF) as u32, 0, 0, 0)
            }
            Object::ReplicationOrigin { origin_id } => {
                Self::pack(class::REPLICATION_ORIGIN, 0, 0, 0, 0, origin_id.into())
            }
            Object::RelationBlock { rel, fork, block_no } => Self::block(rel, fork, block_no),
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.object() {
            Ok(object) => write!(f, "{object:?}"),
            Err(error) => write!(f, "{error}: {:02x?}", self.0),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.object() {
            Ok(Object::RelationBlock { rel, fork, block_no }) => write!(f, "{rel}/{fork}/{block_no}"),
            Ok(Object::SlruPage { kind, page_no }) => write!(f, "{kind}/{page_no}"),
            _ => write!(f, "{self:?}"),
        }
    }
}

/// One version of one object of one timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VersionKey {
    /// The timeline that holds it.
    pub timeline: TimelineNo,
    /// What it is a version of.
    pub key: Key,
    /// End LSN of the record that made it.
    pub lsn: Lsn,
    /// Record, image or tombstone.
    pub kind: Kind,
}

impl VersionKey {
    /// The 31 bytes that sort as the fields do.
    pub fn encode(&self) -> [u8; ENCODED_KEY_LEN] {
        let layout = Layout {
            timeline: self.timeline.0.into(),
            key: self.key,
            lsn: self.lsn.as_u64().into(),
            kind: self.kind as u8,
        };
        zerocopy::transmute!(layout)
    }

    /// The version that `bytes` stand for. Errors: wrong length, unknown kind, class or fork.
    pub fn decode(bytes: &[u8]) -> Result<Self, KeyError> {
        let layout = Layout::ref_from_bytes(bytes)
            .map_err(|_| KeyError::Length { expected: ENCODED_KEY_LEN, length: bytes.len() })?;
        layout.key.object()?;
        Ok(VersionKey {
            timeline: TimelineNo(layout.timeline.get()),
            key: layout.key,
            lsn: Lsn::new(layout.lsn.get()),
            kind: Kind::from_byte(layout.kind)?,
        })
    }

    /// LSN and kind of an encoded key, without a look at the rest. For walks over versions whose prefix is known.
    pub fn decode_version(bytes: &[u8]) -> Result<(Lsn, Kind), KeyError> {
        let layout = Layout::ref_from_bytes(bytes)
            .map_err(|_| KeyError::Length { expected: ENCODED_KEY_LEN, length: bytes.len() })?;
        Ok((Lsn::new(layout.lsn.get()), Kind::from_byte(layout.kind)?))
    }

    /// The 22 bytes that all versions of `key` on `timeline` begin with.
    pub fn object_prefix(timeline: TimelineNo, key: &Key) -> [u8; OBJECT_PREFIX_LEN] {
        let mut prefix = [0; OBJECT_PREFIX_LEN];
        prefix[..4].copy_from_slice(&timeline.0.to_be_bytes());
        prefix[4..].copy_from_slice(&key.0);
        prefix
    }
}

#[cfg(test)]
mod tests;
