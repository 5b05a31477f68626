//! Visibility bits that the primary loses when it recovers from a crash without full-page writes.
//!
//! A record that clears a heap block's bits in the visibility map is replayed whatever the map page's LSN is: clearing leaves that LSN
//! alone. A record that sets them is replayed only if the map page is older. Replay from a redo position before both, over a map page
//! that was written out after both, clears the bits and then skips the record that set them again: they stay lost, under
//! the same LSN. It costs speed and no answer. With full-page writes the first record that sets a bit after a checkpoint brings the whole
//! page, so that it does not happen. PG 15, 18: heapam.c, heapam_xlog.c: heap_xlog_delete and its like, heap_xlog_visible.
//!
//! The same goes for a truncation of the heap: replayed, it clears the bits behind the new end whatever the map page's LSN is, also those of blocks that
//! were made and set after it (PG 15, 18: storage.c, smgr_redo; visibilitymap.c, visibilitymap_prepare_truncate).
//!
//! What follows the WAL from before has the bits. The proof that a difference is this one: the primary has no bit that we have not, and
//! each heap block's bits were last cleared, or cut off, and set again, by records that one crash recovery has replayed.
//!
//! A later record that sets lost bits again changes the primary's page and stamps it; with us they stand, and nothing happens. From then
//! on the LSNs differ: the primary's is that of a record that changed nothing here, behind such a recovery.

use anyhow::{Context, Result, ensure};
use pageserver::delta::Delta;
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

/// Our page as a record left it.
struct Version {
    lsn: Lsn,
    page: Box<Page>,
    /// The record cut the heap: the first heap block that was gone, as a place within the page.
    cut_from: Option<u16>,
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
    let mut versions = Vec::new();
    for (lsn, cut_from) in records_of(session, timeline, address, first_redo_lsn, request_lsn)? {
        let command = format!("PAGE GET {timeline} '{address}' AT '{lsn}'");
        let page = page_of(session, &command)?.context("a version without a page")?;
        versions.push(Version { lsn, page, cut_from });
    }
    let lost = lost_blocks(ours, theirs).all(|heap_block| {
        let missing = bits_of(ours, heap_block) & !bits_of(theirs, heap_block);
        is_lost(heap_block, missing, &versions, recoveries)
    });
    let is_known = page_lsn(ours) == page_lsn(theirs) || is_set_again(page_lsn(theirs), &versions, recoveries);
    let explained = is_subset(theirs, ours) && lost && is_known;
    if !explained {
        print_bits(address, (ours, theirs), &versions, recoveries);
    }
    Ok(explained)
}

/// What each differing heap block's bits were at each version that changed them, for whoever has to find out why.
fn print_bits(address: &str, (ours, theirs): (&Page, &Page), versions: &[Version], recoveries: &[Recovery]) {
    for heap_block in lost_blocks(ours, theirs) {
        let mut changes = String::new();
        let mut before = None;
        for Version { lsn, page, .. } in versions {
            let bits = bits_of(page, heap_block);
            if before != Some(bits) {
                changes += &format!(" {bits:02b} from {lsn} on,");
                before = Some(bits);
            }
        }
        let (ours, theirs) = (bits_of(ours, heap_block), bits_of(theirs, heap_block));
        println!(
            "{address}: bits of heap block {heap_block}: ours {ours:02b}, the primary's {theirs:02b};{changes} {recoveries:?}"
        );
    }
}

fn bits_of(page: &Page, heap_block: usize) -> u8 {
    page[PAGE_HEADER_LEN + heap_block / BLOCKS_PER_BYTE] >> (heap_block % BLOCKS_PER_BYTE * 2) & BOTH
}

fn lost_blocks(ours: &Page, theirs: &Page) -> impl Iterator<Item = usize> {
    let block_count = (ours.len() - PAGE_HEADER_LEN) * BLOCKS_PER_BYTE;
    (0..block_count).filter(|heap_block| bits_of(ours, *heap_block) != bits_of(theirs, *heap_block))
}

/// True if one of `recoveries` loses the bits `missing`. `versions` of our page, oldest first.
fn is_lost(heap_block: usize, missing: u8, versions: &[Version], recoveries: &[Recovery]) -> bool {
    let (mut cleared_lsn, mut set_lsn) = (None, None);
    for pair in versions.windows(2) {
        let [before, after] = [0, 1].map(|index: usize| bits_of(&pair[index].page, heap_block));
        let Version { lsn, cut_from, .. } = pair[1];
        let is_cut_off = cut_from.is_some_and(|first| usize::from(first) <= heap_block);
        if before & !after & ALL_VISIBLE != 0 || is_cut_off {
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
fn is_set_again(lsn: Option<Lsn>, versions: &[Version], recoveries: &[Recovery]) -> bool {
    let Some(index) = versions.iter().position(|version| Some(version.lsn) == lsn) else { return false };
    let Some(before) = versions[..index].last() else { return false };
    let stands = &versions[index].page;
    stands == &before.page
        && (0..(stands.len() - PAGE_HEADER_LEN) * BLOCKS_PER_BYTE).any(|heap_block| {
            let bits = bits_of(stands, heap_block);
            bits != 0 && is_lost(heap_block, bits, &versions[..index], recoveries)
        })
}

/// LSNs of the versions of a page, oldest first, and where each cut the heap: the last one at or below `from` and all up to `to`.
fn records_of(
    session: &mut Client,
    timeline: &str,
    address: &str,
    from: Lsn,
    to: Lsn,
) -> Result<Vec<(Lsn, Option<u16>)>> {
    let command = format!("PAGE HISTORY {timeline} '{address}' TO '{to}'");
    let mut records: Vec<(Lsn, Option<u16>)> = Vec::new();
    for message in session.simple_query(&command).with_context(|| command.clone())? {
        if let SimpleQueryMessage::Row(row) = message {
            let lsn: Lsn = row.try_get("lsn")?.context("a version without an LSN")?.parse()?;
            let cut_from = cut_from(row.try_get("value")?.unwrap_or_default())?;
            if let Some(last) = records.last_mut() {
                if last.0 == lsn {
                    // A record and the image that was made of it and cached back share their LSN.
                    last.1 = last.1.or(cut_from);
                    continue;
                }
                ensure!(lsn < last.0, "versions come newest first");
                if last.0 <= from {
                    break;
                }
            }
            records.push((lsn, cut_from));
        }
    }
    records.reverse();
    Ok(records)
}

/// `value`: of a version, in hexadecimal, as psql shows it.
fn cut_from(value: &str) -> Result<Option<u16>> {
    let digits = value.strip_prefix("\\x").unwrap_or(value);
    let bytes = (0..digits.len() / 2).map(|at| u8::from_str_radix(&digits[at * 2..at * 2 + 2], 16));
    let bytes: Vec<u8> = bytes.collect::<Result<_, _>>().context("bytes in hexadecimal")?;
    Ok(match Delta::decode(&bytes) {
        Ok(Delta::VisibilityMapTruncate { first_index }) => Some(first_index),
        _ => None,
    })
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

    fn version(lsn: u64, bits: u8, cut_from: Option<u16>) -> Version {
        Version { lsn: Lsn::new(lsn), page: map(bits), cut_from }
    }

    #[test]
    fn bits_set_behind_a_cut_within_one_recovery_are_lost() {
        let lsn = Lsn::new;
        let versions = [version(10, 0, None), version(20, 0, Some(1)), version(30, 0b101, None)];
        let is_lost = |heap_block, redo_lsn, end_lsn| {
            let recovery = Recovery { redo_lsn: lsn(redo_lsn), end_lsn: lsn(end_lsn) };
            super::is_lost(heap_block, ALL_VISIBLE, &versions, &[recovery])
        };
        assert!(is_lost(1, 15, 30));
        assert!(!is_lost(0, 15, 30), "in front of the cut");
        assert!(!is_lost(1, 20, 30), "cut before it");
        assert!(!is_lost(1, 15, 29), "set after it");
    }

    #[test]
    fn only_bits_cleared_and_set_within_one_recovery_are_lost() {
        let lsn = Lsn::new;
        let versions = [(10, 1), (20, 0), (30, 3), (40, 0b111)].map(|(lsn, bits)| version(lsn, bits, None));
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
