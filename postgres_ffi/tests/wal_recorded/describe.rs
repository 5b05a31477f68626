//! Goal: a record's description is what PostgreSQL prints for it.
//! Method: each record of the recorded WAL against pg_walinspect 15 to 18 and pg_waldump 15. 14 left no descriptions: there, every record must
//! have a name and a body that can be read.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use postgres_ffi::PgVersion;
use postgres_ffi::inspect::record::RecordView;
use postgres_ffi::wal::describe::describe;

use crate::fixture::{Fixture, pg_waldump_15};

/// Our times as pg_walinspect has them: no zeroes at the end of the fraction, and the zone as an offset.
fn with_walinspect_times(detail: &str) -> String {
    let mut parts: Vec<&str> = detail.split(" UTC").collect();
    let last = parts.pop().unwrap_or_default();
    let times = parts.iter().map(|part| format!("{}+00", part.trim_end_matches('0').trim_end_matches('.')));
    times.chain([last.to_owned()]).collect()
}

#[test]
fn names_and_details_are_those_of_pg_walinspect() -> Result<()> {
    for version in [PgVersion::V15, PgVersion::V16, PgVersion::V17, PgVersion::V18] {
        let fixture = Fixture::load(version)?;
        let mut by_rmgr: BTreeMap<String, (u32, u32)> = BTreeMap::new();
        for (record, row) in fixture.records()?.iter().zip(fixture.rows()?) {
            let description = describe(record, version);
            assert_eq!(description.operation, row.operation, "{version} {}", row.start_lsn);
            let is_equal = with_walinspect_times(&description.detail) == row.description;
            if !is_equal {
                println!("{} {}\n{}\n{}", row.rmgr, row.operation, description.detail, row.description);
            }
            let (equal, all) = by_rmgr.entry(row.rmgr).or_default();
            *all += 1;
            *equal += u32::from(is_equal);
        }
        for (rmgr, (equal, all)) in &by_rmgr {
            println!("{version} {rmgr}: {equal} of {all} details equal");
        }
        assert!(by_rmgr.values().all(|(equal, all)| equal == all), "{version}");
        let rmgrs: BTreeSet<&str> = by_rmgr.keys().map(String::as_str).collect();
        for rmgr in RMGRS {
            assert!(rmgrs.contains(rmgr), "{version} {rmgr}");
        }
    }
    Ok(())
}

/// Resource managers that are in every recording.
const RMGRS: [&str; 20] = [
    "BRIN",
    "Btree",
    "Database",
    "Generic",
    "Gin",
    "Gist",
    "Hash",
    "Heap",
    "Heap2",
    "LogicalMessage",
    "MultiXact",
    "RelMap",
    "ReplicationOrigin",
    "SPGist",
    "Sequence",
    "Standby",
    "Storage",
    "Tablespace",
    "Transaction",
    "XLOG",
];

#[test]
fn lines_are_those_of_pg_waldump() -> Result<()> {
    let lines = pg_waldump_15()?;
    let records = Fixture::load(PgVersion::V15)?.records()?;
    assert_eq!(records.len(), lines.len());
    for (record, line) in records.iter().zip(lines) {
        assert_eq!(RecordView::new(PgVersion::V15, record).to_string(), line);
    }
    Ok(())
}

#[test]
fn each_record_of_14_has_a_name_and_a_detail() -> Result<()> {
    for record in Fixture::load(PgVersion::V14)?.records()? {
        let text = describe(&record, PgVersion::V14).to_string();
        assert!(!text.contains("UNKNOWN") && !text.contains("does not decode"), "{} {text}", record.start_lsn);
    }
    Ok(())
}
