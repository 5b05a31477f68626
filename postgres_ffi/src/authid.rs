//! Rows of `pg_authid`: what a role is called, read from the pages of the shared catalog without a server.
//!
//! A role that was renamed leaves older rows behind, and a transaction that was rolled back leaves newer ones. The row that counts is the one
//! that a committed transaction has written and that no other such row follows. Deleted roles are not told apart: ask for roles that cannot be
//! dropped, as the bootstrap superuser.
//!
//! PG 14-18: src/include/catalog/pg_authid.h (oid, then rolname), pg_authid.dat (the bootstrap superuser); src/include/access/htup_details.h
//! (hint bits); src/include/c.h, NameData (64 bytes, ended by a NUL).

use byteorder::{ByteOrder, LittleEndian};

use crate::inspect::HeapTuple;
use crate::page::Page;
use crate::page::layout::{ItemFlags, items};
use crate::slru::{FIRST_NORMAL_XID, XidStatus};
use crate::{BlockNumber, Oid, TransactionId};

/// OID of the catalog: a shared one, found through the relation map. PG: pg_authid.h.
pub const AUTHID_OID: Oid = 1260;
/// OID of the role that initdb makes; it cannot be dropped. PG: pg_authid.dat.
pub const BOOTSTRAP_SUPERUSER_OID: Oid = 10;

const NAME_LEN: usize = 64;
const OID_LEN: usize = 4;
const HEAP_XMIN_COMMITTED: u16 = 0x0100;
const HEAP_XMIN_INVALID: u16 = 0x0200;
const HEAP_XMIN_FROZEN: u16 = HEAP_XMIN_COMMITTED | HEAP_XMIN_INVALID;

/// Whether the transaction that wrote a row has committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    Committed,
    Aborted,
    /// The row does not say; CLOG does.
    By(TransactionId),
}

/// One row of a role, current or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleRow {
    place: (BlockNumber, u16),
    /// Where the row stands that was written over this one; its own place when there is none.
    next: (BlockNumber, u16),
    written: Written,
    name: Vec<u8>,
}

/// The rows of the role `oid` in block `block_no` of `pg_authid`. A row that does not fit its page is left out.
pub fn role_rows(page: &Page, block_no: BlockNumber, oid: Oid) -> Vec<RoleRow> {
    let normal = items(page).filter(|item| item.flags == ItemFlags::Normal);
    normal
        .filter_map(|item| {
            let bytes = &page[item.range()?];
            let tuple = HeapTuple::decode(bytes)?;
            let values = &bytes[usize::from(tuple.header_len)..];
            let name = values.get(OID_LEN..OID_LEN + NAME_LEN)?;
            if LittleEndian::read_u32(values) != oid {
                return None;
            }
            Some(RoleRow {
                place: (block_no, item.offset_no),
                next: (tuple.ctid.block_no, tuple.ctid.offset_no),
                written: written(tuple.infomask, tuple.xmin),
                name: name.split(|byte| *byte == 0).next().unwrap_or_default().to_vec(),
            })
        })
        .collect()
}

fn written(infomask: u16, xmin: TransactionId) -> Written {
    match infomask & HEAP_XMIN_FROZEN {
        HEAP_XMIN_INVALID => Written::Aborted,
        0 if FIRST_NORMAL_XID <= xmin => Written::By(xmin),
        _ => Written::Committed,
    }
}

/// The role's name according to the row that counts among `rows`, which are all of the role's; `None` when there is not exactly one such row.
/// `status` is asked for transactions of which the rows say nothing.
pub fn current_name(rows: &[RoleRow], mut status: impl FnMut(TransactionId) -> XidStatus) -> Option<Vec<u8>> {
    let mut is_committed = |row: &&RoleRow| match row.written {
        Written::Committed => true,
        Written::Aborted => false,
        Written::By(xid) => status(xid) == XidStatus::Committed,
    };
    let committed: Vec<&RoleRow> = rows.iter().filter(&mut is_committed).collect();
    let is_followed = |row: &RoleRow| committed.iter().any(|newer| newer.place == row.next && newer.place != row.place);
    let mut last = committed.iter().filter(|row| !is_followed(row));
    match (last.next(), last.next()) {
        (Some(row), None) => Some(row.name.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    //! Rows made here, in the states that renaming leaves behind; a real server's are read in the tests of computes.

    use super::*;
    use crate::page::ZERO_PAGE;

    const HEADER_LEN: usize = 24;

    /// A page with one line pointer per row: name, xmin, hint bits, and where the next row stands.
    fn page(rows: &[(&str, u32, u16, u16)]) -> Page {
        let mut page = ZERO_PAGE;
        let mut upper = page.len();
        let lower = 24 + rows.len() * 4;
        for (i, (name, xmin, infomask, next)) in rows.iter().enumerate() {
            let len = HEADER_LEN + OID_LEN + NAME_LEN;
            upper -= 96;
            let tuple = &mut page[upper..upper + len];
            LittleEndian::write_u32(&mut tuple[0..4], *xmin);
            LittleEndian::write_u16(&mut tuple[16..18], *next);
            LittleEndian::write_u16(&mut tuple[20..22], *infomask);
            tuple[22] = HEADER_LEN as u8;
            LittleEndian::write_u32(&mut tuple[24..28], BOOTSTRAP_SUPERUSER_OID);
            tuple[28..28 + name.len()].copy_from_slice(name.as_bytes());
            let item = upper as u32 | 1 << 15 | (len as u32) << 17;
            LittleEndian::write_u32(&mut page[24 + i * 4..28 + i * 4], item);
        }
        LittleEndian::write_u16(&mut page[12..14], lower as u16);
        LittleEndian::write_u16(&mut page[14..16], upper as u16);
        LittleEndian::write_u16(&mut page[16..18], 8192);
        page
    }

    /// Transactions below 100 have committed.
    fn name(rows: &[(&str, u32, u16, u16)]) -> Option<String> {
        let status = |xid| if xid < 100 { XidStatus::Committed } else { XidStatus::Aborted };
        let rows = role_rows(&page(rows), 0, BOOTSTRAP_SUPERUSER_OID);
        current_name(&rows, status).map(|name| String::from_utf8(name).expect("UTF-8"))
    }

    #[test]
    fn the_last_committed_row_counts() {
        for (rows, expected) in [
            (&[("postgres", 1, 0, 1)][..], Some("postgres")),
            (&[("postgres", 500, HEAP_XMIN_FROZEN, 1)], Some("postgres")),
            (&[("old", 1, 0, 2), ("new", 50, 0, 2)], Some("new")),
            (&[("old", 1, 0, 2), ("rolled back", 150, 0, 2)], Some("old")),
            (&[("old", 1, 0, 2), ("rolled back", 50, HEAP_XMIN_INVALID, 2)], Some("old")),
            (&[("c", 60, 0, 1), ("a", 1, 0, 3), ("b", 50, 0, 1)], Some("c")),
            (&[("one", 1, 0, 1), ("another", 2, 0, 2)], None),
            (&[("rolled back", 150, 0, 1)], None),
            (&[], None),
        ] {
            assert_eq!(name(rows).as_deref(), expected, "{rows:?}");
        }
    }

    #[test]
    fn other_roles_and_broken_rows_are_left_out() {
        let mut page = page(&[("postgres", 1, 0, 1)]);
        assert!(role_rows(&page, 0, 11).is_empty());
        let upper = page.len() - 96;
        page[upper + 22] = 60; // Values would begin behind the tuple's end.
        assert!(role_rows(&page, 0, BOOTSTRAP_SUPERUSER_OID).is_empty());
        page[upper + 22] = 200;
        assert!(role_rows(&page, 0, BOOTSTRAP_SUPERUSER_OID).is_empty());
        page.fill(0xFF);
        assert!(role_rows(&page, 0, BOOTSTRAP_SUPERUSER_OID).is_empty());
    }
}
