//! Unpacks the recorded cases of redo into the corpora of the fuzz targets: one file each, by resource manager. Run it in this folder.

use std::path::Path;

use bytes::Bytes;
use postgres_ffi::PgVersion;
use postgres_ffi::redo::MANAGERS;
use postgres_ffi::redo::case::RedoCase;
use postgres_ffi::wal::{DecodeError, DecodedRecord, RecordHeader, rmgr};

/// The target of a resource manager, as its file is called.
fn target(rmid: u8) -> Option<&'static str> {
    Some(match rmid {
        rmgr::XLOG => "redo_xlog",
        rmgr::HEAP2 => "redo_heap2",
        rmgr::HEAP => "redo_heap",
        rmgr::BTREE => "redo_btree",
        rmgr::HASH => "redo_hash",
        rmgr::GIN => "redo_gin",
        rmgr::GIST => "redo_gist",
        rmgr::SEQ => "redo_seq",
        rmgr::SPGIST => "redo_spgist",
        rmgr::BRIN => "redo_brin",
        rmgr::GENERIC => "redo_generic",
        _ => return None,
    })
}

fn write(case: &RedoCase, target: &str, name: &str) -> std::io::Result<()> {
    let dir = Path::new("corpus").join(target);
    std::fs::create_dir_all(&dir)?;
    let mut seed = Vec::new();
    case.encode(&mut seed);
    std::fs::write(dir.join(name), seed)
}

/// The case as a record of XLOG, if a block of its record is an image to be put in place.
fn image_alone(case: &RedoCase) -> Result<Option<RedoCase>, DecodeError> {
    /// Where `xl_info` stands. PG: xlogrecord.h, XLogRecord.
    const INFO_AT: usize = 16;
    const XLOG_FPI: u8 = 0xB0;
    let record = DecodedRecord::decode(case.facts.version, case.end_lsn, case.end_lsn, case.record.clone())?;
    let has_image = record.blocks.iter().any(|block| block.image.as_ref().is_some_and(|image| image.apply));
    Ok(has_image.then(|| {
        let mut raw = case.record.to_vec();
        raw[INFO_AT] = XLOG_FPI; // `decode` found a whole header.
        RedoCase { record: raw.into(), ..case.clone() }
    }))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    assert!(MANAGERS.iter().all(|rmid| target(*rmid).is_some()));
    for version in PgVersion::ALL {
        let packed = std::fs::read(format!("../tests/data/redo/{version}.cases.zst"))?;
        let mut bytes = Bytes::from(zstd::stream::decode_all(&packed[..])?);
        let mut number = 0;
        while !bytes.is_empty() {
            let mut case = RedoCase::take(&mut bytes)?;
            case.image = None; // Half of the bytes, and a fuzzer has no use for it.
            let rmid = RecordHeader::parse(&case.record).ok_or("no record")?.rmid;
            number += 1;
            let name = format!("{version}-{number}");
            write(&case, target(rmid).ok_or("a record of no target")?, &name)?;
            // None of XLOG is recorded: its records are images alone. So are these, once their operation is one of its.
            if let Some(image) = image_alone(&case)? {
                write(&image, "redo_xlog", &name)?;
            }
        }
        println!("PostgreSQL {version}: {number} seeds");
    }
    Ok(())
}
