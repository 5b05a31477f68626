//! Pages that the primary has in its memory alone: no WAL, not dirty, gone with the buffer.
//!
//! SP-GiST takes a page for an inner tuple, initialises it in its buffer and finds that the block number has the wrong parity. It
//! lets go of the page without marking it dirty and without WAL, and takes another one; the first is used later, with WAL that
//! initialises it again, or thrown out of memory (PG 15, 18: src/backend/access/spgist/spgutils.c, allocNewBuffer). Whoever reads the buffer
//! meanwhile sees an empty SP-GiST page without an LSN where the file, every standby and the page server have what was there
//! before: nothing (zeroes), or a page without tuples that VACUUM has given back.
//!
//! Such a page is never in a file, so the comparison with a stopped server's directory knows nothing of it.

use postgres_ffi::mask::{PageKind, classify};
use postgres_ffi::page::layout::Header;
use postgres_ffi::page::{
    BLCKSZ, PAGE_HEADER_LEN, PD_LOWER, PD_PAGESIZE_VERSION, PD_SPECIAL, PD_UPPER, Page, ZERO_PAGE,
};
use postgres_ffi::{BlockNumber, ForkNumber};

/// The special area. PG: spgist_private.h, SpGistPageOpaqueData.
const SPECIAL: usize = BLCKSZ - 8;
const PAGE_ID: u16 = 0xFF82;
/// `flags` of an inner page, and of one in the tree of nulls.
const FLAGS: [u16; 2] = [0, 1 << 3];

/// True if `in_memory` is a page that SP-GiST has just taken and `ours` one that it may take.
pub fn is_taken_by_spgist(ours: &Page, in_memory: &Page, fork: ForkNumber, block_no: BlockNumber) -> bool {
    fork == ForkNumber::Main
        && FLAGS.iter().any(|flags| *in_memory == initialised(*flags))
        && (*ours == ZERO_PAGE
            || classify(ours, fork, block_no) == PageKind::Spgist && Header::read(ours).lower <= PAGE_HEADER_LEN)
}

/// Every byte of an inner page as it is made. PG: spgutils.c, SpGistInitPage.
fn initialised(flags: u16) -> Page {
    let mut page = ZERO_PAGE;
    let mut set = |offset: usize, value: u16| page[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
    set(PD_LOWER, PAGE_HEADER_LEN as u16);
    set(PD_UPPER, SPECIAL as u16);
    set(PD_SPECIAL, SPECIAL as u16);
    set(PD_PAGESIZE_VERSION, BLCKSZ as u16 | 4);
    set(SPECIAL, flags);
    set(BLCKSZ - 2, PAGE_ID);
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use postgres_ffi::Lsn;
    use postgres_ffi::page::set_page_lsn;

    fn is_taken(ours: &Page, in_memory: &Page) -> bool {
        is_taken_by_spgist(ours, in_memory, ForkNumber::Main, 53)
    }

    #[test]
    fn a_page_taken_from_zeroes_or_from_what_vacuum_gave_back_is_known() {
        let mut given_back = initialised(1 << 2); // A leaf before.
        set_page_lsn(&mut given_back, Lsn::new(0x15_0000));
        for flags in FLAGS {
            assert!(is_taken(&ZERO_PAGE, &initialised(flags)));
            assert!(is_taken(&given_back, &initialised(flags)));
        }
    }

    #[test]
    fn a_page_with_an_lsn_or_tuples_on_either_side_is_another_one() {
        let taken = initialised(0);
        let mut logged = taken;
        set_page_lsn(&mut logged, Lsn::new(0x15_0000));
        assert!(!is_taken(&ZERO_PAGE, &logged));
        let mut with_tuples = taken;
        with_tuples[PD_LOWER] += 4;
        assert!(!is_taken(&ZERO_PAGE, &with_tuples));
        assert!(!is_taken(&with_tuples, &taken));
        let mut of_another_kind = taken;
        of_another_kind[BLCKSZ - 2] = 0x81;
        assert!(!is_taken(&of_another_kind, &taken));
        assert!(!is_taken_by_spgist(&ZERO_PAGE, &taken, ForkNumber::Vm, 53));
        // A leaf is used at once.
        assert!(!is_taken(&ZERO_PAGE, &initialised(1 << 2)));
    }
}
