//! Whether a page can be what a request makes. Cheap, and enough to tell an answer from noise.

use byteorder::{ByteOrder, LittleEndian};
use postgres_ffi::BLCKSZ;
use postgres_ffi::page::{
    PAGE_HEADER_LEN, PD_LOWER, PD_PAGESIZE_VERSION, PD_SPECIAL, PD_UPPER, Page, page_is_new, page_lsn,
};

use crate::redo::EngineRequest;

/// Page size and layout version as they stand on every page. PG 14-18: src/include/storage/bufpage.h, PG_PAGE_LAYOUT_VERSION.
const PAGESIZE_VERSION: u16 = BLCKSZ as u16 | 4;

/// Checks header and LSN of `page`. The error says what is wrong.
pub fn check(request: &EngineRequest, page: &Page) -> Result<(), String> {
    check_header(page)?;
    let lsn = page_lsn(page);
    // Redo stamps the end of a record, or leaves the LSN as it was (changes to maps that are not guarded by it).
    if request.records.iter().rev().any(|(end_lsn, _)| Some(*end_lsn) == lsn) {
        return Ok(());
    }
    let base_lsn = request.base.as_deref().and_then(|base| base.first_chunk()).and_then(page_lsn);
    if lsn == base_lsn { Ok(()) } else { Err(format!("page has an LSN that no record has. lsn=`{lsn:?}`")) }
}

fn check_header(page: &Page) -> Result<(), String> {
    if page_is_new(page) {
        return if page.iter().all(|byte| *byte == 0) { Ok(()) } else { Err("page without a header".to_owned()) };
    }
    let field = |at| LittleEndian::read_u16(&page[at..]);
    let (lower, upper, special) = (field(PD_LOWER), field(PD_UPPER), field(PD_SPECIAL));
    let ordered = PAGE_HEADER_LEN <= lower as usize && lower <= upper && upper <= special && special as usize <= BLCKSZ;
    if !ordered || field(PD_PAGESIZE_VERSION) != PAGESIZE_VERSION {
        return Err(format!("impossible page header. lower=`{lower}`, upper=`{upper}`, special=`{special}`"));
    }
    Ok(())
}
