//! The 8 KiB page: header, LSN, checksum.
//!
//! PG 14-18: src/include/storage/bufpage.h (PageHeaderData), src/include/storage/checksum_impl.h.

pub mod edit;
pub mod layout;

use byteorder::{ByteOrder, LittleEndian};

use crate::{BlockNumber, Lsn};

/// Size of a page in bytes. Clusters built with another BLCKSZ are refused at import.
pub const BLCKSZ: usize = 8192;
/// A whole page.
pub type Page = [u8; BLCKSZ];

/// Size of the page header up to the line pointers.
pub const PAGE_HEADER_LEN: usize = 24;
/// Offsets of the header's fields.
pub const PD_LSN: usize = 0;
/// `pd_checksum`, u16.
pub const PD_CHECKSUM: usize = 8;
/// `pd_flags`, u16.
pub const PD_FLAGS: usize = 10;
/// `pd_lower`, u16.
pub const PD_LOWER: usize = 12;
/// `pd_upper`, u16.
pub const PD_UPPER: usize = 14;
/// `pd_special`, u16.
pub const PD_SPECIAL: usize = 16;
/// `pd_pagesize_version`, u16.
pub const PD_PAGESIZE_VERSION: usize = 18;
/// `pd_prune_xid`, u32.
pub const PD_PRUNE_XID: usize = 20;

/// `pd_flags`: there are unused line pointers. PG: bufpage.h, PD_HAS_FREE_LINES.
pub const PD_HAS_FREE_LINES: u16 = 0x0001;
/// `pd_flags`: an update did not find room. PG: bufpage.h, PD_PAGE_FULL.
pub const PD_PAGE_FULL: u16 = 0x0002;
/// `pd_flags`: all tuples are visible to everyone. PG: bufpage.h, PD_ALL_VISIBLE.
pub const PD_ALL_VISIBLE: u16 = 0x0004;

/// All zeroes: what a block that was never written reads as.
pub static ZERO_PAGE: Page = [0; BLCKSZ];

/// The LSN stamped on the page; `None` if it carries none (a new page). Two 32-bit halves, high half first.
pub fn page_lsn(page: &Page) -> Option<Lsn> {
    let high = u64::from(LittleEndian::read_u32(&page[0..4]));
    let low = u64::from(LittleEndian::read_u32(&page[4..8]));
    Lsn::from_pg(high << 32 | low)
}

/// Stamps `lsn` on the page.
pub fn set_page_lsn(page: &mut Page, lsn: Lsn) {
    let value = lsn.as_u64();
    LittleEndian::write_u32(&mut page[0..4], (value >> 32) as u32);
    LittleEndian::write_u32(&mut page[4..8], (value & 0xFFFF_FFFF) as u32);
}

/// True for a page that was never initialised. PG: bufpage.h, PageIsNew (`pd_upper == 0`).
pub fn page_is_new(page: &Page) -> bool {
    LittleEndian::read_u16(&page[PD_UPPER..]) == 0
}

/// Writes a little-endian u16. Requires: it lies within the page.
pub(crate) fn put_u16(page: &mut Page, at: usize, value: u16) {
    LittleEndian::write_u16(&mut page[at..at + 2], value);
}

/// Writes a little-endian u32. Requires: it lies within the page.
pub(crate) fn put_u32(page: &mut Page, at: usize, value: u32) {
    LittleEndian::write_u32(&mut page[at..at + 4], value);
}

/// The checksum stored in the page.
pub fn stored_checksum(page: &Page) -> u16 {
    LittleEndian::read_u16(&page[PD_CHECKSUM..])
}

/// Writes the right checksum for `block_no` into the page. A new page is left alone, as PostgreSQL does (bufpage.c, PageSetChecksumCopy).
pub fn set_checksum(page: &mut Page, block_no: BlockNumber) {
    if !page_is_new(page) {
        let checksum = compute_checksum(page, block_no);
        LittleEndian::write_u16(&mut page[PD_CHECKSUM..PD_CHECKSUM + 2], checksum);
    }
}

const N_SUMS: usize = 32;
const FNV_PRIME: u32 = 16_777_619;
/// Initial values of the parallel sums. PG: checksum_impl.h, checksumBaseOffsets.
const BASE_OFFSETS: [u32; N_SUMS] = [
    0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C, 0xF8D4474F,
    0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB, 0xE58F764B, 0x187636BC,
    0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4, 0x783125BB, 0x6CA8EAA2, 0xE407EAC6,
    0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
];

/// The checksum that `page` must carry as block `block_no`; its stored checksum does not count.
/// PG: checksum_impl.h, pg_checksum_page.
pub fn compute_checksum(page: &Page, block_no: BlockNumber) -> u16 {
    let mut sums = BASE_OFFSETS;
    for (row_no, row) in page.chunks_exact(N_SUMS * 4).enumerate() {
        for (i, (sum, bytes)) in sums.iter_mut().zip(row.chunks_exact(4)).enumerate() {
            let mut word = LittleEndian::read_u32(bytes);
            if row_no == 0 && i == PD_CHECKSUM / 4 {
                word &= 0xFFFF_0000; // `pd_checksum` is the low half of this word.
            }
            *sum = mix(*sum, word);
        }
    }
    for _ in 0..2 {
        for sum in &mut sums {
            *sum = mix(*sum, 0);
        }
    }
    let folded = sums.iter().fold(0, |acc, sum| acc ^ sum) ^ block_no;
    (folded % 65_535 + 1) as u16
}

fn mix(sum: u32, word: u32) -> u32 {
    let tmp = sum ^ word;
    tmp.wrapping_mul(FNV_PRIME) ^ (tmp >> 17)
}

const _: () = assert!(BLCKSZ.is_multiple_of(N_SUMS * 4));
const _: () = assert!(PD_PRUNE_XID + 4 == PAGE_HEADER_LEN);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsn_is_stored_high_half_first() {
        let mut page = ZERO_PAGE;
        assert_eq!(page_lsn(&page), None);
        set_page_lsn(&mut page, Lsn::new(0x1_0000_0002));
        assert_eq!(page[..8], [1, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(page_lsn(&page), Some(Lsn::new(0x1_0000_0002)));
    }

    #[test]
    fn checksum_ignores_itself_and_depends_on_the_block() {
        let mut page = ZERO_PAGE;
        page[PD_UPPER] = 1;
        set_checksum(&mut page, 7);
        assert_eq!(stored_checksum(&page), compute_checksum(&page, 7));
        assert_ne!(compute_checksum(&page, 7), compute_checksum(&page, 8));
    }
}
