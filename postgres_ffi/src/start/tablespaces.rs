//! Tablespaces of a cluster, read from the pages of `pg_tablespace` without a server: an empty one leaves no other trace, and the first table in it
//! needs its directory.
//!
//! A row counts if the transaction that wrote it has committed and none that committed has deleted it.
//!
//! PG 14-18: src/include/catalog/pg_tablespace.h (oid comes first); src/include/access/htup_details.h (hint bits); src/include/access/transam.h,
//! FirstNormalObjectId.

use byteorder::{ByteOrder, LittleEndian};

use crate::inspect::HeapTuple;
use crate::page::Page;
use crate::page::layout::{ItemFlags, items};
use crate::slru::{FIRST_NORMAL_XID, XidStatus};
use crate::{Oid, TransactionId};

/// OID of the catalog: a shared one, found through the relation map. PG: pg_tablespace.h.
pub const TABLESPACE_CATALOG_OID: Oid = 1213;
/// Lower ones are those that every cluster has.
const FIRST_NORMAL_OID: Oid = 16_384;

const HEAP_XMAX_LOCK_ONLY: u16 = 0x0080;
const HEAP_XMIN_COMMITTED: u16 = 0x0100;
const HEAP_XMIN_INVALID: u16 = 0x0200;
const HEAP_XMAX_COMMITTED: u16 = 0x0400;
const HEAP_XMAX_INVALID: u16 = 0x0800;
const HEAP_XMAX_IS_MULTI: u16 = 0x1000;

/// The tablespaces in a page of `pg_tablespace`, but for those that every cluster has. `status` is asked for transactions of which the rows say
/// nothing. A row that does not fit its page is left out.
pub fn tablespaces(page: &Page, mut status: impl FnMut(TransactionId) -> XidStatus) -> Vec<Oid> {
    let mut found = Vec::new();
    for item in items(page).filter(|item| item.flags == ItemFlags::Normal) {
        let Some(bytes) = item.range().map(|range| &page[range]) else { continue };
        let Some(tuple) = HeapTuple::decode(bytes) else { continue };
        let Some(oid) = bytes.get(usize::from(tuple.header_len)..).and_then(|values| values.first_chunk::<4>()) else {
            continue;
        };
        let oid = LittleEndian::read_u32(oid);
        let mut is_committed = |xid| status(xid) == XidStatus::Committed;
        if oid >= FIRST_NORMAL_OID && is_written(&tuple, &mut is_committed) && !is_deleted(&tuple, &mut is_committed) {
            found.push(oid);
        }
    }
    found
}

fn is_written(tuple: &HeapTuple, is_committed: &mut impl FnMut(TransactionId) -> bool) -> bool {
    match tuple.infomask & (HEAP_XMIN_COMMITTED | HEAP_XMIN_INVALID) {
        HEAP_XMIN_INVALID => false,
        0 if tuple.xmin >= FIRST_NORMAL_XID => is_committed(tuple.xmin),
        _ => true,
    }
}

/// A row that several transactions hold was at most updated, and then its tablespace is still there.
fn is_deleted(tuple: &HeapTuple, is_committed: &mut impl FnMut(TransactionId) -> bool) -> bool {
    if tuple.infomask & (HEAP_XMAX_INVALID | HEAP_XMAX_LOCK_ONLY | HEAP_XMAX_IS_MULTI) != 0 {
        return false;
    }
    tuple.infomask & HEAP_XMAX_COMMITTED != 0 || (tuple.xmax >= FIRST_NORMAL_XID && is_committed(tuple.xmax))
}

#[cfg(test)]
mod tests {
    //! Rows made here, one in each state; a real server's are read in the tests of base backups.

    use super::*;
    use crate::page::ZERO_PAGE;

    const HEADER_LEN: usize = 24;

    fn page(rows: &[(Oid, u32, u32, u16)]) -> Page {
        let mut page = ZERO_PAGE;
        let mut upper = page.len();
        for (i, (oid, xmin, xmax, infomask)) in rows.iter().enumerate() {
            let len = HEADER_LEN + 8;
            upper -= len;
            let tuple = &mut page[upper..upper + len];
            tuple[..4].copy_from_slice(&xmin.to_le_bytes());
            tuple[4..8].copy_from_slice(&xmax.to_le_bytes());
            tuple[20..22].copy_from_slice(&infomask.to_le_bytes());
            tuple[22] = HEADER_LEN as u8;
            tuple[HEADER_LEN..HEADER_LEN + 4].copy_from_slice(&oid.to_le_bytes());
            let item_id = (len as u32) << 17 | 1 << 15 | upper as u32;
            page[24 + i * 4..28 + i * 4].copy_from_slice(&item_id.to_le_bytes());
        }
        let lower = (24 + rows.len() * 4) as u16;
        page[12..14].copy_from_slice(&lower.to_le_bytes());
        page[14..16].copy_from_slice(&(upper as u16).to_le_bytes());
        page[16..18].copy_from_slice(&8192_u16.to_le_bytes());
        page
    }

    #[test]
    fn rows_count_by_the_fate_of_their_transactions() {
        let status = |xid| match xid {
            700 => XidStatus::Committed,
            701 => XidStatus::Aborted,
            _ => XidStatus::InProgress,
        };
        let rows = [
            (1663, 2, 0, HEAP_XMIN_COMMITTED | HEAP_XMIN_INVALID | HEAP_XMAX_INVALID),
            (20_001, 700, 0, HEAP_XMAX_INVALID),
            (20_002, 701, 0, HEAP_XMAX_INVALID),
            (20_003, 702, 0, HEAP_XMAX_INVALID),
            (20_004, 600, 0, HEAP_XMIN_COMMITTED | HEAP_XMAX_INVALID),
            (20_005, 600, 0, HEAP_XMIN_INVALID | HEAP_XMAX_INVALID),
            (20_006, 600, 700, HEAP_XMIN_COMMITTED),
            (20_007, 600, 701, HEAP_XMIN_COMMITTED),
            (20_008, 600, 500, HEAP_XMIN_COMMITTED | HEAP_XMAX_COMMITTED),
            (20_009, 600, 700, HEAP_XMIN_COMMITTED | HEAP_XMAX_LOCK_ONLY),
            (20_010, 600, 700, HEAP_XMIN_COMMITTED | HEAP_XMAX_IS_MULTI),
        ];
        assert_eq!(tablespaces(&page(&rows), status), [20_001, 20_004, 20_007, 20_009, 20_010]);
    }

    #[test]
    fn nonsense_has_no_tablespaces_and_does_not_panic() {
        assert_eq!(tablespaces(&ZERO_PAGE, |_| XidStatus::Committed), []);
        for seed in 0..500_u32 {
            let mut page = page(&[(20_001, 700, 0, 0); 5]);
            for i in 0..40_u32 {
                let at = (seed.wrapping_mul(2_654_435_761).wrapping_add(i * 7919) % 8192) as usize;
                page[at] = page[at].wrapping_add((seed + i) as u8);
            }
            let _ = tablespaces(&page, |_| XidStatus::Committed);
        }
    }
}
