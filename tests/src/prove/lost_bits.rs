//! Visibility bits that the primary loses when it recovers from a crash without full-page writes.
//!
//! A record that clears a heap block's bits in the visibility map is replayed whatever the map page's LSN is: clearing leaves that LSN
//! alone. A record that sets them is replayed only if the map page is older. Replay from a redo position before both, over a map page
//! that was written out after both, clears the bits and then skips the record that set them again: they stay lost, under
//! the same LSN. It costs speed and no answer. With full-page writes the first record that sets a bit after a checkpoint brings the whole
//! page, so that it does not happen. PG 15, 18: heapam.c, heapam_xlog.c: heap_xlog_delete and its like, heap_xlog_visible.
//!
//! What follows the WAL from before has the bits. The proof that a difference is this one: the primary has no bit that we have not, and
//! each heap block's bits were last cleared, and set again, by records that one crash recovery has replayed.
//!
//! A later record that sets lost bits again changes the primary's page and stamps it; with us they stand, and nothing happens. From then
//! on the LSNs differ: the primary's is that of a record that changed nothing here, behind such a recovery.

use anyhow::{Context, Result, ensure};
use postgres::{Client, SimpleQueryMessage};
use postgres_ffi::Lsn;
use postgres_ffi::mask::visibility_map::is_subset;
use postgres_ffi::page::{PAGE_HEADER_LEN, Page, page_lsn};

use super::history::page_of;

/// Two bits per heap block, four blocks per byte; the lower one of each pair says all-visible. PG: visibilitymapdefs.h.
const BLOCKS_PER_BYTE: usize = 4;
const BOTH: u8 = 0b11;
const ALL_VISIBLE: u8 = 0b01;

/// The WAL that a recovery from a crash has replayed.
#[derive(Clone, Copy, Debug)]
pub struct Recovery {
    /// Where it began.
    pub redo_lsn: Lsn,
    /// At or behind its end.
    pub end_lsn: Lsn,
}

/// True if `theirs`, the primary's map page at `address` as of `request_lsn`, is ours without bits that `recoveries` have lost.
pub fn explains(
    session: &mut Client,
    timeline: &str,
    address: &str,
    (ours, theirs): (&Page, &Page),
    request_lsn: Lsn,
    recoveries: &[Recovery],
) -> Result<bool> {
    let Some(first_redo_lsn) = recoveries.iter().map(|recovery| recovery.redo_lsn).min() else { return Ok(false) };
    if !is_subset(theirs, ours) {
        return Ok(false);
    }
    let mut versions = Vec::new();
    for lsn in version_lsns(session, timeline, address, first_redo_lsn, request_lsn)? {
        let command = format!("PAGE GET {timeline} '{address}' AT '{lsn}'");
        versions.push((lsn, page_of(session, &command)?.context("a version without a page")?));
    }
    let lost = lost_blocks(ours, theirs).all(|heap_block| {
        let missing = bits_of(ours, heap_block) & !bits_of(theirs, heap_block);
        is_lost(heap_block, missing, &versions, recoveries)
    });
    Ok(lost && (page_lsn(ours) == page_lsn(theirs) || is_set_again(page_lsn(theirs), &versions, recoveries)))
}

fn bits_of(page: &Page, heap_block: usize) -> u8 {
    page[PAGE_HEADER_LEN + heap_block / BLOCKS_PER_BYTE] >> (heap_block % BLOCKS_PER_BYTE * 2) & BOTH
}

fn lost_blocks(ours: &Page, theirs: &Page) -> impl Iterator<Item = usize> {
    let block_count = (ours.len() - PAGE_HEADER_LEN) * BLOCKS_PER_BYTE;
    (0..block_count).filter(|heap_block| bits_of(ours, *heap_block) != bits_of(theirs, *heap_block))
}

/// True if one of `recoveries` loses the bits `missing`. `versions` of our page, oldest first.
fn is_lost(heap_block: usize, missing: u8, versions: &[(Lsn, Box<Page>)], recoveries: &[Recovery]) -> bool {
    let (mut cleared_lsn, mut set_lsn) = (None, None);
    for pair in versions.windows(2) {
        let [before, after] = [0, 1].map(|index: usize| bits_of(&pair[index].1, heap_block));
        let lsn = pair[1].0;
        if before & !after & ALL_VISIBLE != 0 {
            (cleared_lsn, set_lsn) = (Some(lsn), None);
        }
        if after & !before & missing != 0 {
            set_lsn = Some(lsn);
        }
    }
    let (Some(cleared_lsn), Some(set_lsn)) = (cleared_lsn, set_lsn) else { return false };
    recoveries.iter().any(|recovery| recovery.redo_lsn < cleared_lsn && set_lsn <= recovery.end_lsn)
}

/// True if the record at `lsn` changed nothing in our page, and bits that one of `recoveries` loses were there for it to set.
fn is_set_again(lsn: Option<Lsn>, versions: &[(Lsn, Box<Page>)], recoveries: &[Recovery]) -> bool {
    let Some(index) = versions.iter().position(|version| Some(version.0) == lsn) else { return false };
    let Some(before) = versions[..index].last() else { return false };
    let stands = &versions[index].1;
    stands == &before.1
        && (0..(stands.len() - PAGE_HEADER_LEN) * BLOCKS_PER_BYTE).any(|heap_block| {
            let bits = bits_of(stands, heap_block);
            bits != 0 && is_lost(heap_block, bits, &versions[..index], recoveries)
        })
}

/// LSNs of the versions of a page, oldest first: the last one at or below `from` and all up to `to`.
fn version_lsns(session: &mut Client, timeline: &str, address: &str, from: Lsn, to: Lsn) -> Result<Vec<Lsn>> {
    let command = format!("PAGE HISTORY {timeline} '{address}' TO '{to}'");
    let mut lsns = Vec::new();
    for message in session.simple_query(&command).with_context(|| command.clone())? {
        if let SimpleQueryMessage::Row(row) = message {
            let lsn: Lsn = row.try_get("lsn")?.context("a version without an LSN")?.parse()?;
            lsns.push(lsn);
            if lsn <= from {
                break;
            }
        }
    }
    lsns.dedup(); // A record and the image that was made of it and cached back share their LSN.
    ensure!(lsns.is_sorted_by(|newer, older| newer > older), "versions come newest first");
    lsns.reverse();
    Ok(lsns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PageServer, Postgres, Stop, TestDir, wait_until};
    use postgres_ffi::PgVersion;
    use postgres_ffi::page::ZERO_PAGE;
    use std::time::Duration;

    fn map(bits: u8) -> Box<Page> {
        let mut page = ZERO_PAGE;
        page[PAGE_HEADER_LEN] = bits;
        Box::new(page)
    }

    #[test]
    fn only_bits_cleared_and_set_within_one_recovery_are_lost() {
        let lsn = Lsn::new;
        let versions = [(lsn(10), map(1)), (lsn(20), map(0)), (lsn(30), map(3)), (lsn(40), map(0b111))];
        let is_lost = |theirs: u8, redo_lsn: u64, end_lsn: u64| {
            let recovery = Recovery { redo_lsn: lsn(redo_lsn), end_lsn: lsn(end_lsn) };
            super::is_lost(0, 0b111 & !theirs & BOTH, &versions, &[recovery])
        };
        assert!(is_lost(0b100, 15, 35));
        assert!(is_lost(0b101, 15, 30), "frozen alone");
        assert!(!is_lost(0b100, 20, 35), "cleared before it");
        assert!(!is_lost(0b100, 15, 29), "set after it");
        // The other block's bit was never cleared.
        let recovery = Recovery { redo_lsn: lsn(1), end_lsn: lsn(50) };
        assert!(!super::is_lost(1, 0b01, &versions, &[recovery]));
        assert_eq!(lost_blocks(&map(0b111), &map(0b011)).collect::<Vec<_>>(), [1]);
    }

    /// A stock 17: it can be told to write a page out.
    #[test]
    fn a_primary_without_full_page_writes_loses_bits_and_we_do_not() {
        let dir = TestDir::new("lost-bits").unwrap();
        let builder = Postgres::builder(PgVersion::V17).setting("full_page_writes", "off");
        let builder = builder.setting("autovacuum", "off").setting("checkpoint_timeout", "1h");
        let mut primary = builder.start(&dir).unwrap();
        let mut pageserver = PageServer::builder().start(&dir).unwrap();
        pageserver.expect_in_log("connection to the primary");
        pageserver.expect_in_log("redo process");
        pageserver.import("main", &primary.conninfo()).unwrap();
        primary.execute("CREATE EXTENSION pageinspect").unwrap();
        primary.execute("CREATE EXTENSION pg_buffercache").unwrap();
        primary.execute("CREATE TABLE t AS SELECT i FROM generate_series(1, 100) i").unwrap();
        for sql in ["VACUUM t", "CHECKPOINT"] {
            primary.connect().unwrap().batch_execute(sql).unwrap();
        }
        let redo_lsn = primary.current_lsn().unwrap();
        primary.execute("DELETE FROM t WHERE i = 5").unwrap();
        primary.connect().unwrap().batch_execute("VACUUM t").unwrap();
        let evicted = "SELECT bool_and(pg_buffercache_evict(bufferid)) FROM pg_buffercache
                        WHERE relfilenode = pg_relation_filenode('t') AND relforknumber = 2";
        assert_eq!(primary.query_text(evicted).unwrap(), "t");
        let read = |primary: &Postgres| -> Page {
            let page: Vec<u8> =
                primary.connect().unwrap().query_one("SELECT get_raw_page('t', 'vm', 0)", &[]).unwrap().get(0);
            page.try_into().unwrap()
        };
        let before = read(&primary);
        primary.execute("SELECT pg_logical_emit_message(true, 'harness', 'flush')").unwrap();
        primary.kill().unwrap();
        primary.start().unwrap();
        let theirs = read(&primary);
        assert_eq!(page_lsn(&before), page_lsn(&theirs));
        assert!(bits_of(&before, 0) & ALL_VISIBLE != 0 && bits_of(&theirs, 0) == 0, "a stock PostgreSQL has lost them");

        let end_lsn = primary.current_lsn().unwrap();
        let address = primary.query_text("SELECT '1663/5/' || pg_relation_filenode('t') || '/vm/0'").unwrap();
        wait_until("the page server", Duration::from_secs(60), || {
            Ok(pageserver.timeline("main", "last_record_lsn")?.parse::<Lsn>()? >= end_lsn)
        })
        .unwrap();
        let mut session = pageserver.connect().unwrap();
        let ours = page_of(&mut session, &format!("PAGE GET main '{address}' AT '{end_lsn}'")).unwrap().unwrap();
        assert_eq!(bits_of(&ours, 0), bits_of(&before, 0), "we have them");
        let mut explains = |ours: &Page, theirs: &Page, recoveries: &[Recovery]| {
            super::explains(&mut session, "main", &address, (ours, theirs), end_lsn, recoveries).unwrap()
        };
        assert!(explains(&ours, &theirs, &[Recovery { redo_lsn, end_lsn }]));
        assert!(!explains(&ours, &theirs, &[]));
        assert!(!explains(&ours, &theirs, &[Recovery { redo_lsn: end_lsn, end_lsn }]));
        assert!(!explains(&theirs, &ours, &[Recovery { redo_lsn, end_lsn }]), "the other way round");

        // Set again by a record that finds them set here, and so stamps nothing here.
        primary.connect().unwrap().batch_execute("VACUUM (DISABLE_PAGE_SKIPPING) t").unwrap();
        let theirs = read(&primary);
        let set_again_lsn = primary.current_lsn().unwrap();
        wait_until("the page server", Duration::from_secs(60), || {
            Ok(pageserver.timeline("main", "last_record_lsn")?.parse::<Lsn>()? >= set_again_lsn)
        })
        .unwrap();
        let ours = page_of(&mut session, &format!("PAGE GET main '{address}' AT '{set_again_lsn}'")).unwrap().unwrap();
        assert_eq!(ours[PAGE_HEADER_LEN..], theirs[PAGE_HEADER_LEN..]);
        assert!(page_lsn(&ours) < page_lsn(&theirs), "{:?} {:?}", page_lsn(&ours), page_lsn(&theirs));
        let mut explains = |theirs: &Page, recoveries: &[Recovery]| {
            super::explains(&mut session, "main", &address, (&ours, theirs), set_again_lsn, recoveries).unwrap()
        };
        assert!(explains(&theirs, &[Recovery { redo_lsn, end_lsn }]));
        assert!(!explains(&theirs, &[]));
        assert!(!explains(&theirs, &[Recovery { redo_lsn: end_lsn, end_lsn }]));
        let mut other = theirs;
        other[..8].copy_from_slice(&before[..8]);
        other[4] = other[4].wrapping_add(1);
        assert!(!explains(&other, &[Recovery { redo_lsn, end_lsn }]), "an LSN of no record");
        primary.stop(Stop::Fast).unwrap();
    }
}
