//! Goal: we read of each record what PostgreSQL reads. Method: each row that pg_walinspect 15 to 18 and pg_waldump 15 gave, against our decoder.

use std::collections::HashSet;
use std::fmt::Write;

use anyhow::{Context, Result};
use postgres_ffi::page::BLCKSZ;
use postgres_ffi::wal::checks::build::RecordBuilder;
use postgres_ffi::wal::checks::check_decoded;
use postgres_ffi::wal::{BlockImage, Compression, DecodedBlock, DecodedRecord, rmgr};
use postgres_ffi::{ForkNumber, Lsn, PgVersion};

use crate::fixture::{Fixture, pg_waldump_15};

fn rmgr_name(record: &DecodedRecord) -> &'static str {
    rmgr::builtin_name(record.rmid).unwrap_or("?")
}

fn image_len(record: &DecodedRecord) -> usize {
    record.blocks.iter().filter_map(|block| block.image.as_ref()).map(|image| record.image_bytes(image).len()).sum()
}

/// As XLogRecGetBlockRefInfo writes it with details. PG 16: src/backend/access/rmgrdesc/rmgrdesc_utils.c and xlogdesc.c.
fn block_refs(record: &DecodedRecord) -> Result<String> {
    let mut text = String::new();
    for block in &record.blocks {
        let DecodedBlock { block_id, rel, fork, block_no, .. } = block;
        text += if *block_id == 0 { "" } else { " " };
        write!(text, "blkref #{block_id}: rel {rel} fork {fork} blk {block_no}")?;
        if let Some(image) = &block.image {
            text += &image_ref(record, image);
        }
    }
    Ok(text)
}

fn image_ref(record: &DecodedRecord, image: &BlockImage) -> String {
    let use_of_it = if image.apply { "" } else { " for WAL verification" };
    let mut text = format!(" (FPW{use_of_it}); hole: offset: {}, length: {}", image.hole_offset, image.hole_len);
    if let Some(compression) = image.compression {
        let method = match compression {
            Compression::Pglz => "pglz",
            Compression::Lz4 => "lz4",
            Compression::Zstd => "zstd",
        };
        let saved = BLCKSZ - usize::from(image.hole_len) - record.image_bytes(image).len();
        text += &format!(", compression saved: {saved}, method: {method}");
    }
    text
}

#[test]
fn each_record_is_what_pg_walinspect_says() -> Result<()> {
    for version in [PgVersion::V15, PgVersion::V16, PgVersion::V17, PgVersion::V18] {
        let fixture = Fixture::load(version)?;
        let (records, rows) = (fixture.records()?, fixture.rows()?);
        assert_eq!(records.len(), rows.len(), "{version}");
        for (record, row) in records.iter().zip(&rows) {
            let at = format!("{version} {}", row.start_lsn);
            assert_eq!(record.start_lsn, row.start_lsn, "{at}");
            assert_eq!(record.end_lsn, row.end_lsn, "{at}");
            assert_eq!(record.prev_lsn, row.prev_lsn, "{at}");
            assert_eq!(record.xid, row.xid, "{at}");
            assert_eq!(rmgr_name(record), row.rmgr, "{at}");
            assert_eq!(record.raw.len(), row.record_len, "{at}");
            assert_eq!(record.main_data().len(), row.main_data_len, "{at}");
            assert_eq!(image_len(record), row.image_len, "{at}");
            assert_eq!(block_refs(record)?, row.block_refs, "{at}");
        }
    }
    Ok(())
}

#[test]
fn each_record_is_what_pg_waldump_says() -> Result<()> {
    let records = Fixture::load(PgVersion::V15)?.records()?;
    let lines = pg_waldump_15()?;
    assert_eq!(records.len(), lines.len());
    for (record, line) in records.iter().zip(&lines) {
        let (head, rest) = line.split_once(", desc: ").context("a description")?;
        let lsn = |lsn: Lsn| format!("{:X}/{:08X}", lsn.as_u64() >> 32, lsn.as_u64() & 0xFFFF_FFFF);
        let ours = format!(
            "rmgr: {:<11} len (rec/tot): {:6}/{:6}, tx: {:10}, lsn: {}, prev {}",
            rmgr_name(record),
            record.raw.len() - image_len(record),
            record.raw.len(),
            record.xid,
            lsn(record.start_lsn),
            lsn(record.prev_lsn),
        );
        assert_eq!(ours, head);
        let mut refs = String::new();
        for block in &record.blocks {
            write!(refs, ", blkref #{}: rel {}", block.block_id, block.rel)?;
            if block.fork != ForkNumber::Main {
                write!(refs, " fork {}", block.fork)?;
            }
            write!(refs, " blk {}", block.block_no)?;
            refs += match &block.image {
                None => "",
                Some(image) if image.apply => " FPW",
                Some(_) => " FPW for WAL verification",
            };
        }
        assert_eq!(rest.find(", blkref #").map_or("", |at| &rest[at..]), refs, "{line}");
    }
    Ok(())
}

#[test]
fn every_image_gives_a_page_and_every_record_can_be_cut_down() -> Result<()> {
    for version in PgVersion::ALL {
        let mut methods = HashSet::new();
        for record in Fixture::load(version)?.records()? {
            check_decoded(version, &record);
            for (block, image) in record.blocks.iter().filter_map(|block| Some((block, block.image.as_ref()?))) {
                let at = format!("{version} {} block {}", record.start_lsn, block.block_id);
                let page = record.restore_image(image).with_context(|| at.clone())?;
                // An ordinary page says its own size and layout version: 8192 | 4. An image may also be of an empty page.
                assert!(page[18..20] == [0x04, 0x20] || page[..].iter().all(|byte| *byte == 0), "{at}");
                methods.insert((image.compression, image.apply));
            }
        }
        assert!(methods.contains(&(None, true)) && methods.contains(&(None, false)), "{version}: {methods:?}");
        assert!(methods.contains(&(Some(Compression::Pglz), true)), "{version}: {methods:?}");
        if version == PgVersion::V15 {
            assert!(
                methods.contains(&(Some(Compression::Lz4), true)) && methods.contains(&(Some(Compression::Zstd), true))
            );
        }
    }
    Ok(())
}

#[test]
fn the_log_of_14_reads_to_its_end() -> Result<()> {
    // 14 has nothing to compare with but itself: every record links to the one before and starts where that one ends.
    let records = Fixture::load(PgVersion::V14)?.records()?;
    assert_eq!(records.len(), 4136);
    for pair in records.windows(2) {
        assert_eq!(pair[1].prev_lsn, pair[0].start_lsn);
        let gap = pair[1].start_lsn.saturating_sub(pair[0].end_lsn);
        let at_boundary = pair[0].end_lsn.as_u64().is_multiple_of(8192);
        assert!(if at_boundary { gap == 24 || gap == 40 } else { gap == 0 }, "{}", pair[0].end_lsn);
    }
    let rmids: HashSet<_> = records.iter().map(|record| record.rmid).collect();
    assert!(rmids.len() >= 19, "{rmids:?}");
    Ok(())
}

#[test]
fn records_taken_apart_and_built_again_are_the_same() -> Result<()> {
    for version in PgVersion::ALL {
        for record in Fixture::load(version)?.records()? {
            let built = RecordBuilder::of(&record).build(version, record.prev_lsn);
            assert!(built == record.raw, "{version}, {}", record.start_lsn);
        }
    }
    Ok(())
}
