//! The header of each 8 KiB page of the log.
//!
//! - [`PageHeader::parse`] reads, [`PageHeader::check`] decides; neither believes the length or the address in the header.
//! - The timeline id is reported and not judged: which one is right is known to the receiver alone.
//!
//! Layout, little endian: xlp_magic u16, xlp_info u16, xlp_tli u32, xlp_pageaddr u64, xlp_rem_len u32, 4 bytes of padding; in the
//! first page of a segment then: xlp_sysid u64, xlp_seg_size u32, xlp_xlog_blcksz u32.
//! PG 15, 17, 18: src/include/access/xlog_internal.h, XLogPageHeaderData, XLogLongPageHeaderData;
//! src/backend/access/transam/xlogreader.c, XLogReaderValidatePageHeader.

use byteorder::{ByteOrder, LittleEndian};

use crate::{Lsn, PgVersion, TimeLineId};

/// Size of a WAL page. Clusters built with another XLOG_BLCKSZ are refused.
pub const WAL_PAGE_BYTES: usize = 8192;
/// Size of the header of most pages. PG: SizeOfXLogShortPHD.
pub const SHORT_HEADER_LEN: usize = 24;
/// Size of the header of the first page of a segment. PG: SizeOfXLogLongPHD.
pub const LONG_HEADER_LEN: usize = 40;
/// The smallest WAL segment. PG: xlog_internal.h, WalSegMinSize.
pub const SEGMENT_BYTES_MIN: u32 = 1024 * 1024;
/// The largest WAL segment. PG: xlog_internal.h, WalSegMaxSize.
pub const SEGMENT_BYTES_MAX: u32 = 1024 * 1024 * 1024;

/// The page starts with the rest of a record from the page before. PG: XLP_FIRST_IS_CONTRECORD.
pub const FIRST_IS_CONTRECORD: u16 = 0x0001;
/// The header is a long one. PG: XLP_LONG_HEADER.
pub const LONG_HEADER: u16 = 0x0002;
/// Images in this page may be removed by an archiver. PG: XLP_BKP_REMOVABLE.
pub const BKP_REMOVABLE: u16 = 0x0004;
/// The rest of the record from the page before was never written; another record stands in its place.
/// PG: XLP_FIRST_IS_OVERWRITE_CONTRECORD.
pub const FIRST_IS_OVERWRITE_CONTRECORD: u16 = 0x0008;
const ALL_FLAGS: u16 = 0x000F;

/// The header of a WAL page as it stands there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageHeader {
    /// Tells the version, see [`PgVersion::xlog_page_magic`].
    pub magic: u16,
    /// Flag bits.
    pub info: u16,
    /// PostgreSQL timeline of the first record on the page.
    pub timeline_id: TimeLineId,
    /// The page's own address.
    pub page_lsn: Lsn,
    /// Bytes of the record from the page before that are still to come, counted from this page on.
    pub rem_len: u32,
    /// What the long header has more.
    pub long: Option<LongPart>,
}

/// The part that only the first page of a segment has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongPart {
    /// The cluster's system identifier.
    pub system_id: u64,
    /// Its WAL segment size.
    pub segment_bytes: u32,
    /// Its WAL page size.
    pub page_bytes: u32,
}

/// What a page header must say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpectedPage {
    /// The server's version.
    pub version: PgVersion,
    /// Where the page starts.
    pub page_lsn: Lsn,
    /// The cluster's WAL segment size.
    pub segment_bytes: u32,
    /// The cluster, if known.
    pub system_id: Option<u64>,
}

/// Why a page header is not the one expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PageHeaderError {
    /// Not the magic of this version; 0 where nothing was written.
    #[error("wrong magic of a WAL page. magic=`{magic:#06x}`, expected=`{expected:#06x}`")]
    Magic {
        /// As it stands.
        magic: u16,
        /// Of this version.
        expected: u16,
    },
    /// Unknown flags, or a short header where a long one belongs, or the other way round.
    #[error("wrong flags of a WAL page. info=`{info:#06x}`")]
    Info {
        /// The flags.
        info: u16,
    },
    /// The page belongs elsewhere: a segment used again, not yet written over.
    #[error("wrong address of a WAL page. address=`{address}`")]
    Address {
        /// As it stands.
        address: Lsn,
    },
    /// Another cluster.
    #[error("WAL page of another cluster. system_id=`{system_id}`, expected=`{expected}`")]
    SystemId {
        /// As it stands.
        system_id: u64,
        /// Of our cluster.
        expected: u64,
    },
    /// Another segment size.
    #[error("wrong segment size in a WAL page. segment_bytes=`{segment_bytes}`, expected=`{expected}`")]
    SegmentSize {
        /// As it stands.
        segment_bytes: u32,
        /// Of our cluster.
        expected: u32,
    },
    /// A server built with another WAL page size.
    #[error("wrong size of a WAL page. page_bytes=`{page_bytes}`, expected=`{WAL_PAGE_BYTES}`")]
    PageSize {
        /// As it stands.
        page_bytes: u32,
    },
}

impl PageHeaderError {
    /// True when the page is sound but of another cluster, version or build; false when there is simply no page here.
    pub fn is_foreign(&self) -> bool {
        match self {
            Self::Magic { magic, .. } => PgVersion::from_xlog_page_magic(*magic).is_some(),
            Self::SystemId { .. } | Self::SegmentSize { .. } | Self::PageSize { .. } => true,
            Self::Info { .. } | Self::Address { .. } => false,
        }
    }
}

impl PageHeader {
    /// The header at the start of `bytes`; `None` when there are too few. [`LONG_HEADER_LEN`] bytes always suffice.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let short: &[u8; SHORT_HEADER_LEN] = bytes.first_chunk()?;
        let info = LittleEndian::read_u16(&short[2..4]);
        let long = if info & LONG_HEADER == 0 { None } else { Some(LongPart::parse(bytes.first_chunk()?)) };
        Some(PageHeader {
            magic: LittleEndian::read_u16(&short[0..2]),
            info,
            timeline_id: LittleEndian::read_u32(&short[4..8]),
            page_lsn: Lsn::new(LittleEndian::read_u64(&short[8..16])),
            rem_len: LittleEndian::read_u32(&short[16..20]),
            long,
        })
    }

    /// Size of this header in bytes, where the page's content starts.
    pub fn header_len(&self) -> usize {
        if self.long.is_some() { LONG_HEADER_LEN } else { SHORT_HEADER_LEN }
    }

    /// True when the page starts with the rest of a record.
    pub fn is_continued(&self) -> bool {
        self.info & FIRST_IS_CONTRECORD != 0
    }

    /// True when the rest of a record should be here and another record is.
    pub fn is_overwrite(&self) -> bool {
        self.info & FIRST_IS_OVERWRITE_CONTRECORD != 0
    }

    /// Checks all that can be said of a header without its neighbours.
    pub fn check(&self, expected: &ExpectedPage) -> Result<(), PageHeaderError> {
        let magic = expected.version.xlog_page_magic();
        if self.magic != magic {
            return Err(PageHeaderError::Magic { magic: self.magic, expected: magic });
        }
        let starts_segment = expected.page_lsn.segment_offset(u64::from(expected.segment_bytes)) == 0;
        if self.info & !ALL_FLAGS != 0 || starts_segment != self.long.is_some() {
            return Err(PageHeaderError::Info { info: self.info });
        }
        // The address before the rest: a segment that is used again may still carry anything.
        if self.page_lsn != expected.page_lsn {
            return Err(PageHeaderError::Address { address: self.page_lsn });
        }
        self.long.map_or(Ok(()), |long| long.check(expected))
    }
}

impl LongPart {
    fn parse(header: &[u8; LONG_HEADER_LEN]) -> Self {
        LongPart {
            system_id: LittleEndian::read_u64(&header[24..32]),
            segment_bytes: LittleEndian::read_u32(&header[32..36]),
            page_bytes: LittleEndian::read_u32(&header[36..40]),
        }
    }

    fn check(&self, expected: &ExpectedPage) -> Result<(), PageHeaderError> {
        if let Some(expected) = expected.system_id.filter(|expected| *expected != self.system_id) {
            return Err(PageHeaderError::SystemId { system_id: self.system_id, expected });
        }
        if self.segment_bytes != expected.segment_bytes {
            let (segment_bytes, expected) = (self.segment_bytes, expected.segment_bytes);
            return Err(PageHeaderError::SegmentSize { segment_bytes, expected });
        }
        if self.page_bytes as usize != WAL_PAGE_BYTES {
            return Err(PageHeaderError::PageSize { page_bytes: self.page_bytes });
        }
        Ok(())
    }
}

/// True for a WAL segment size that PostgreSQL allows: a power of two from 1 MiB to 1 GiB. PG: IsValidWalSegSize.
pub fn is_segment_size(segment_bytes: u32) -> bool {
    segment_bytes.is_power_of_two() && (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&segment_bytes)
}

const _: () = assert!(SHORT_HEADER_LEN < LONG_HEADER_LEN);
const _: () = assert!(SHORT_HEADER_LEN.is_multiple_of(8) && LONG_HEADER_LEN.is_multiple_of(8));

#[cfg(test)]
mod tests {
    use super::*;

    fn expected() -> ExpectedPage {
        ExpectedPage {
            version: PgVersion::V15,
            page_lsn: Lsn::new(0x100_0000),
            segment_bytes: 1 << 20,
            system_id: Some(0x1122),
        }
    }

    fn long_header() -> Vec<u8> {
        let mut bytes = vec![0x10, 0xD1, 0x03, 0, 1, 0, 0, 0];
        bytes.extend(0x100_0000_u64.to_le_bytes());
        bytes.extend(77_u32.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(0x1122_u64.to_le_bytes());
        bytes.extend((1_u32 << 20).to_le_bytes());
        bytes.extend(8192_u32.to_le_bytes());
        bytes
    }

    #[test]
    fn a_long_header_is_read_and_accepted() {
        let header = PageHeader::parse(&long_header()).expect("40 bytes");
        assert_eq!((header.header_len(), header.rem_len, header.timeline_id), (40, 77, 1));
        assert!(header.is_continued() && !header.is_overwrite());
        assert_eq!(header.check(&expected()), Ok(()));
        for short in 0..LONG_HEADER_LEN {
            assert_eq!(PageHeader::parse(&long_header()[..short]), None);
        }
    }

    #[test]
    fn each_wrong_field_is_refused_and_told_apart() {
        let broken = |at: usize, value: u8| {
            let mut bytes = long_header();
            bytes[at] = value;
            PageHeader::parse(&bytes).expect("40 bytes").check(&expected()).expect_err("must be refused")
        };
        assert!(matches!(broken(0, 0x0D), PageHeaderError::Magic { magic: 0xD10D, .. }));
        assert!(broken(0, 0x0D).is_foreign(), "version 14");
        assert!(!broken(0, 0).is_foreign());
        assert!(matches!(broken(2, 0x13), PageHeaderError::Info { info: 0x13 }));
        assert!(matches!(broken(2, 0x01), PageHeaderError::Info { info: 0x01 }), "a segment starts with a long header");
        assert!(matches!(broken(10, 9), PageHeaderError::Address { .. }));
        assert!(matches!(broken(24, 9), PageHeaderError::SystemId { .. }));
        assert!(matches!(broken(34, 9), PageHeaderError::SegmentSize { .. }));
        assert!(matches!(broken(37, 9), PageHeaderError::PageSize { .. }));
    }

    #[test]
    fn segment_sizes() {
        for (size, valid) in [(1 << 20, true), (1 << 30, true), (1 << 19, false), (1 << 31, false), (3 << 20, false)] {
            assert_eq!(is_segment_size(size), valid, "{size}");
        }
    }
}
