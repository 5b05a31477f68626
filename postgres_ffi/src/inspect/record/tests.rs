//! Oracle: the smallest record of each operation of a workload on all access methods, with the line that pg_waldump 15 printed for it
//! (up to the operation, and the blocks). Of 14, 17 and 18, for which there was no pg_waldump, every record must decode under a known name.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

const RECORDS: [(PgVersion, &str); 4] = [
    (PgVersion::V14, include_str!("../../../tests/data/records/pg14.txt")),
    (PgVersion::V15, include_str!("../../../tests/data/records/pg15.txt")),
    (PgVersion::V17, include_str!("../../../tests/data/records/pg17.txt")),
    (PgVersion::V18, include_str!("../../../tests/data/records/pg18.txt")),
];

/// Record and expected line of each pair of lines.
fn pairs(text: &'static str) -> impl Iterator<Item = (Lsn, Vec<u8>, &'static str)> {
    let lines: Vec<_> = text.lines().collect();
    let pairs: Vec<_> = lines.as_chunks::<2>().0.to_vec();
    pairs.into_iter().map(|[record, expected]| {
        let (lsn, hex) = record.split_once(' ').expect("position and bytes");
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
        let lsn = Lsn::new(u64::from_str_radix(lsn, 16).expect("position"));
        (lsn, (0..hex.len()).step_by(2).map(byte).collect(), expected)
    })
}

fn view(version: PgVersion, lsn: Lsn, raw: Vec<u8>) -> RecordView {
    let record = DecodedRecord::decode(version, lsn, lsn, Bytes::from(raw)).expect("decode");
    RecordView::new(version, &record)
}

#[test]
fn lines_are_those_of_pg_waldump() {
    for (version, text) in RECORDS {
        let mut count = 0;
        for (lsn, raw, expected) in pairs(text) {
            let view = view(version, lsn, raw);
            let line = view.to_string();
            let (start, blocks) = expected.split_once('|').expect("two parts");
            assert!(line.starts_with(start), "{version}\n{line}\n{start}");
            assert!(line.ends_with(blocks), "{version}\n{line}\n{blocks}");
            assert!(!line.contains("UNKNOWN") && !line.contains("does not decode"), "{version} {line}");
            count += 1;
        }
        assert!(count > 50, "{version} {count}");
    }
}

#[test]
fn bodies_say_what_they_do() {
    let lines: Vec<String> =
        pairs(RECORDS[1].1).map(|(lsn, raw, _)| view(RECORDS[1].0, lsn, raw).to_string()).collect();
    for expected in [
        "desc: INSERT_LEAF off ",
        "desc: CREATE_WAL_LOG create dir 1663/",
        "desc: COMMIT 2026-",
        "desc: RUNNING_XACTS nextXid ",
        "desc: CHECKPOINT_SHUTDOWN redo 0/",
        "desc: PRUNE latestRemovedXid ",
    ] {
        assert!(lines.iter().any(|line| line.contains(expected)), "{expected}");
    }
}

#[test]
fn operations_that_a_version_lacks_have_no_name() {
    assert_eq!(operation_name(PgVersion::V14, rmgr::DBASE, 0x10), Some("DROP"));
    assert_eq!(operation_name(PgVersion::V15, rmgr::DBASE, 0x10), Some("CREATE_WAL_LOG"));
    assert_eq!(operation_name(PgVersion::V16, rmgr::HEAP2, 0x10), Some("PRUNE"));
    assert_eq!(operation_name(PgVersion::V17, rmgr::HEAP2, 0x10), Some("PRUNE_ON_ACCESS"));
    assert_eq!(operation_name(PgVersion::V15, rmgr::XACT, 0x80), Some("COMMIT"));
    assert_eq!(operation_name(PgVersion::V15, rmgr::SEQ, 0x10), None);
    assert_eq!(operation_name(PgVersion::V15, 200, 0), None);
}

proptest! {
    /// Whatever stands behind the header: a line, not a panic.
    #[test]
    fn damaged_bodies_never_panic(
        version_no in 0..RECORDS.len(),
        record_no in 0usize..60,
        damage in prop::collection::vec((24usize..400, any::<u8>()), 0..8),
        info: Option<u8>,
        rmid: Option<u8>,
    ) {
        let (version, text) = RECORDS[version_no];
        let Some((lsn, mut raw, _)) = pairs(text).nth(record_no) else { return Ok(()) };
        raw[16] = info.unwrap_or(raw[16]);
        raw[17] = rmid.unwrap_or(raw[17]);
        for (at, value) in damage {
            if let Some(byte) = raw.get_mut(at) {
                *byte = value;
            }
        }
        if let Ok(record) = DecodedRecord::decode(version, lsn, lsn, Bytes::from(raw)) {
            let _ = RecordView::new(version, &record).to_string();
        }
    }
}
