//! The meta page of an empty bloom index, and why a server that follows the WAL may lack the one in an init fork.
//!
//! The init fork of an unlogged relation is what a server starts that relation from after a crash, so everything in it has to be in
//! the WAL. contrib/bloom does so up to 15: a full-page image. From 16 on it fills the init fork in the same way as the main fork,
//! through generic WAL records, and those leave out whatever belongs to an unlogged relation, without a look at the fork. So the
//! fork's creation is in the WAL and its only page is not; the page carries no LSN. A stock standby then has an init fork
//! without blocks (`tests/tests/unlogged_bloom.rs` shows it, and that 14 and 15 are free of it).
//!
//! PG 15, 17, 18: contrib/bloom/blinsert.c, blbuildempty; blutils.c, BloomFillMetapage, BloomInitPage; bloom.h.
//! PG 18: src/backend/access/transam/generic_xlog.c, GenericXLogStart, GenericXLogFinish.

use byteorder::{ByteOrder, LittleEndian};

use crate::page::layout::Header;
use crate::page::{BLCKSZ, PAGE_HEADER_LEN, Page, page_lsn};

/// The block with the meta page. PG: bloom.h, BLOOM_METAPAGE_BLKNO.
pub const METAPAGE_BLOCK_NO: u32 = 0;
/// PG: bloom.h, BLOOM_MAGICK_NUMBER, the first word of the contents.
const MAGIC: u32 = 0xDBAC_0DED;
/// The special area of a meta page: no tuples, BLOOM_META, unused, BLOOM_PAGE_ID. PG: bloom.h, BloomPageOpaqueData.
const OPAQUE: [u16; 4] = [0, 1, 0, 0xFF83];
const OPAQUE_LEN: usize = 2 * OPAQUE.len();
const SPECIAL: usize = BLCKSZ - OPAQUE_LEN;
/// Start and end of the list of pages with room. PG: bloom.h, BloomMetaPageData.
const LIST_ENDS: std::ops::Range<usize> = PAGE_HEADER_LEN + 4..PAGE_HEADER_LEN + 8;
/// The list behind the options (a length word, the signature's length, bits of 32 columns); it fills the page.
const LIST: std::ops::Range<usize> = LIST_ENDS.end + 4 + 4 + 32 * 4..SPECIAL;

const _: () = assert!(LIST.end - LIST.start == 2004 * 4);

/// True for the meta page of an index without tuples that no WAL record has written: it has no LSN.
pub fn is_unlogged_empty_metapage(page: &Page) -> bool {
    let header = Header::read(page);
    let opaque = page[SPECIAL..].chunks_exact(2).map(LittleEndian::read_u16);
    let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    page_lsn(page).is_none()
        && [header.lower, header.upper, header.special] == [SPECIAL; 3]
        && header.flags == 0
        && opaque.eq(OPAQUE)
        && LittleEndian::read_u32(&page[PAGE_HEADER_LEN..]) == MAGIC
        && is_zero(&page[LIST_ENDS])
        && is_zero(&page[LIST])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::{ZERO_PAGE, set_page_lsn};
    use crate::{BlockNumber, Lsn};

    /// As PostgreSQL 18 makes it, for an index of one column with default options.
    fn metapage() -> Page {
        let mut page = ZERO_PAGE;
        for (at, word) in [(12, 8184_u16), (14, 8184), (16, 8184), (18, 0x2004), (8186, 1), (8190, 0xFF83)] {
            LittleEndian::write_u16(&mut page[at..], word);
        }
        for (at, word) in [(24, MAGIC), (32, 136 << 2), (36, 5), (40, 2)] {
            LittleEndian::write_u32(&mut page[at..], word);
        }
        page
    }

    #[test]
    fn knows_the_page_with_and_without_a_checksum() {
        let mut page = metapage();
        assert!(is_unlogged_empty_metapage(&page));
        crate::page::set_checksum(&mut page, METAPAGE_BLOCK_NO as BlockNumber);
        assert!(is_unlogged_empty_metapage(&page));
    }

    #[test]
    fn whatever_else_it_may_be_is_another_page() {
        assert!(!is_unlogged_empty_metapage(&ZERO_PAGE));
        let mut logged = metapage();
        set_page_lsn(&mut logged, Lsn::new(0x15_0000));
        assert!(!is_unlogged_empty_metapage(&logged));
        // Flags, lower, upper, special, magic, start and end of the list, the list, tuples, kind, page id.
        for at in [10, 12, 14, 16, 24, 28, 30, 168, 8183, 8184, 8186, 8190] {
            let mut changed = metapage();
            changed[at] ^= 2;
            assert!(!is_unlogged_empty_metapage(&changed), "byte {at}");
        }
    }
}
