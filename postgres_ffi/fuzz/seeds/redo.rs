//! Unpacks the recorded cases of redo into the corpora of the fuzz targets: one file each, by resource manager. Run it in this folder.

use std::path::Path;

use bytes::Bytes;
use postgres_ffi::PgVersion;
use postgres_ffi::redo::MANAGERS;
use postgres_ffi::redo::case::RedoCase;
use postgres_ffi::wal::{RecordHeader, rmgr};

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
            let dir = Path::new("corpus").join(target(rmid).ok_or("a record of no target")?);
            std::fs::create_dir_all(&dir)?;
            let mut seed = Vec::new();
            case.encode(&mut seed);
            number += 1;
            std::fs::write(dir.join(format!("{version}-{number}")), seed)?;
        }
        println!("PostgreSQL {version}: {number} seeds");
    }
    Ok(())
}
