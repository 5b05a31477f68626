//! Goal: WAL is taken to its last whole record, wherever it ends; a hole and damage in front of written segments are told from an end; nothing
//! that the cluster needs is found missing only later. Method: a log of random records in segment files, each time with one thing wrong.

use postgres_ffi::{Lsn, PgVersion};
use tempfile::TempDir;

use super::*;
use crate::wal::WalLog;
use crate::wal::tests::{SEGMENT_BYTES, random_log};

const SYSTEM_ID: u64 = 7;

struct Rig {
    dir: TempDir,
    /// Every record's end, with the redo point in front.
    ends: Vec<Lsn>,
    segments: Vec<String>,
}

impl Rig {
    /// A log of some segments, the redo point in the first one.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (start_lsn, wal) = random_log(3, 700);
        fs::create_dir(dir.path().join("pg_wal")).unwrap();
        let mut segments = Vec::new();
        for (nth, bytes) in wal.chunks(SEGMENT_BYTES as usize).enumerate() {
            let segment_no = start_lsn.segment_no(SEGMENT_BYTES.into()) + nth as u64;
            let name = segment_file_name(1, segment_no, SEGMENT_BYTES);
            let mut whole = bytes.to_vec();
            whole.resize(SEGMENT_BYTES as usize, 0);
            fs::write(dir.path().join("pg_wal").join(&name), whole).unwrap();
            segments.push(name);
        }
        assert!(segments.len() >= 4, "{}", segments.len());
        let mut decoder = WalStreamDecoder::new(PgVersion::V15, start_lsn, SEGMENT_BYTES);
        decoder.feed(Bytes::from(wal));
        let mut ends = Vec::new();
        while let Ok(Some((_, end_lsn, _))) = decoder.next_record() {
            ends.push(end_lsn);
        }
        Rig { dir, ends: ends.split_off(5), segments }
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("pg_wal")
    }

    fn segment(&self, nth: usize) -> PathBuf {
        self.source().join(&self.segments[nth])
    }

    fn recovery(&self) -> Recovery {
        let whole =
            Whole { checkpoint_lsn: self.ends[2], min_recovery_lsn: None, backup_start_lsn: None, at_end_of_wal: true };
        Recovery { start_lsn: self.ends[0], timeline_id: 1, whole }
    }

    fn layout(&self) -> WalLayout {
        let directory = tempfile::tempdir_in(self.dir.path()).unwrap().keep();
        WalLayout { directory, version: PgVersion::V15, segment_bytes: SEGMENT_BYTES, system_id: SYSTEM_ID }
    }

    fn take(&self, recovery: &Recovery) -> Result<WalTaken, ImportError> {
        take_wal(&self.source(), recovery, &self.layout())
    }

    fn last_end(&self) -> Lsn {
        *self.ends.last().unwrap()
    }
}

#[test]
fn wal_is_taken_to_its_last_record_and_our_log_opens_there() {
    let rig = Rig::new();
    let layout = rig.layout();
    let taken = take_wal(&rig.source(), &rig.recovery(), &layout).unwrap();
    assert_eq!(taken, WalTaken { whole_lsn: rig.last_end(), end_lsn: rig.last_end(), timeline_id: 1 });
    let log = WalLog::open(layout, Lsn::ZERO).unwrap().unwrap();
    assert_eq!(log.flushed_record_end_lsn(), Some(rig.last_end()));
    // A standby is whole where it says, and WAL behind that is taken all the same.
    let mut recovery = rig.recovery();
    recovery.whole.at_end_of_wal = false;
    assert_eq!(rig.take(&recovery).unwrap(), WalTaken { whole_lsn: rig.ends[3], ..taken });
    let middle = rig.ends[rig.ends.len() / 2];
    recovery.whole.min_recovery_lsn = Some(middle);
    assert_eq!(rig.take(&recovery).unwrap().whole_lsn, middle);
}

#[test]
fn a_torn_end_is_an_end() {
    let rig = Rig::new();
    let last = rig.segments.len() - 1;
    let whole = fs::read(rig.segment(last)).unwrap();
    let used = whole.iter().rposition(|byte| *byte != 0).unwrap();
    for cut in [used, used / 2, used / 3, 100, 39, 21, 8, 1, 0] {
        // Zeroes behind, as in a segment that was made before it was needed; and a file that ends there.
        let mut torn = whole.clone();
        torn[cut..].fill(0);
        for bytes in [&torn[..], &torn[..cut]] {
            fs::write(rig.segment(last), bytes).unwrap();
            let taken = rig.take(&rig.recovery()).unwrap();
            assert!(rig.ends.contains(&taken.end_lsn) && taken.end_lsn < rig.last_end(), "{cut}: {taken:?}");
        }
    }
    // A segment that is to be used again holds what was there.
    fs::copy(rig.segment(0), rig.segment(last)).unwrap();
    assert!(rig.ends.contains(&rig.take(&rig.recovery()).unwrap().end_lsn));
    fs::remove_file(rig.segment(last)).unwrap();
    assert!(rig.ends.contains(&rig.take(&rig.recovery()).unwrap().end_lsn));
}

#[test]
fn a_hole_and_damage_are_no_end() {
    let rig = Rig::new();
    let away = rig.source().join("away");
    for nth in 0..rig.segments.len() - 1 {
        fs::rename(rig.segment(nth), &away).unwrap();
        let error = rig.take(&rig.recovery()).unwrap_err();
        assert!(matches!(&error, ImportError::WalHole { segment, .. } if *segment == rig.segments[nth]), "{error}");
        fs::rename(&away, rig.segment(nth)).unwrap();
    }
    for nth in 1..rig.segments.len() - 1 {
        let whole = fs::read(rig.segment(nth)).unwrap();
        let mut damaged = whole.clone();
        // The last bytes of a record that lies in this segment, in the middle of a page.
        let (first, size) = (rig.ends[0].segment_no(SEGMENT_BYTES.into()), u64::from(SEGMENT_BYTES));
        let is_here = |end: &&Lsn| end.segment_no(size) == first + nth as u64 && end.as_u64() % 8192 > 100;
        let end = rig.ends.iter().find(is_here).unwrap().segment_offset(size) as usize;
        damaged[end - 20..end - 8].iter_mut().for_each(|byte| *byte ^= 0xAA);
        fs::write(rig.segment(nth), damaged).unwrap();
        let error = rig.take(&rig.recovery()).unwrap_err();
        assert!(matches!(&error, ImportError::WalDamaged { segment, .. } if *segment == rig.segments[nth]), "{error}");
        fs::write(rig.segment(nth), whole).unwrap();
    }
    assert_eq!(rig.take(&rig.recovery()).unwrap().end_lsn, rig.last_end());
}

#[test]
fn what_the_cluster_needs_is_named() {
    let rig = Rig::new();
    let beyond = rig.last_end().checked_add(8).unwrap();
    let needs = |whole: Whole| rig.take(&Recovery { whole, ..rig.recovery() }).unwrap_err().to_string();
    let whole = rig.recovery().whole;
    let error = needs(Whole { checkpoint_lsn: beyond, ..whole });
    assert!(
        error.contains(&format!("the checkpoint at {beyond}")) && error.contains(rig.segments.last().unwrap()),
        "{error}"
    );
    let error = needs(Whole { min_recovery_lsn: Some(beyond), ..whole });
    assert!(error.contains(&format!("WAL up to {beyond}")), "{error}");
    let error = needs(Whole { backup_start_lsn: Some(rig.ends[0]), ..whole });
    assert!(error.contains("the record that ends the backup"), "{error}");
    // Nothing there at all.
    rig.segments.iter().for_each(|name| fs::remove_file(rig.source().join(name)).unwrap());
    let error = rig.take(&rig.recovery()).unwrap_err();
    assert!(matches!(&error, ImportError::WalMissing { segment, .. } if *segment == rig.segments[0]), "{error}");
}

#[test]
fn each_segment_is_the_one_of_its_timeline() {
    let rig = Rig::new();
    // Timeline 2 left timeline 1 in the middle of the second segment; from there on the files are its.
    let switch_lsn =
        rig.ends.iter().find(|end| end.segment_no(SEGMENT_BYTES.into()) > rig.ends[0].segment_no(SEGMENT_BYTES.into()));
    let history = format!("1\t{}\tno recovery target specified\n", switch_lsn.unwrap());
    fs::write(rig.source().join("00000002.history"), history).unwrap();
    for name in &rig.segments[1..] {
        fs::rename(rig.source().join(name), rig.source().join(name.replacen("00000001", "00000002", 1))).unwrap();
    }
    // What timeline 1 went on with is not of this history.
    fs::write(rig.segment(1), vec![0xAA; SEGMENT_BYTES as usize]).unwrap();
    let recovery = Recovery { timeline_id: 2, ..rig.recovery() };
    let layout = rig.layout();
    let taken = take_wal(&rig.source(), &recovery, &layout).unwrap();
    assert_eq!((taken.end_lsn, taken.timeline_id), (rig.last_end(), 2));
    assert!(layout.history_file(2).unwrap().is_some());
    // Without the newer timeline's file the older one's is not taken for it.
    fs::remove_file(rig.source().join(rig.segments[1].replacen("00000001", "00000002", 1))).unwrap();
    let error = rig.take(&recovery).unwrap_err();
    assert!(matches!(&error, ImportError::WalHole { segment, .. } if segment.starts_with("00000002")), "{error}");
}

#[test]
fn wal_of_another_cluster_and_impossible_positions_are_refused() {
    let rig = Rig::new();
    let layout = WalLayout { system_id: 8, ..rig.layout() };
    let recovery = Recovery { start_lsn: layout.segment_start(rig.ends[0]), ..rig.recovery() };
    assert!(matches!(take_wal(&rig.source(), &recovery, &layout), Err(ImportError::Wal { .. })));
    for start_lsn in [Lsn::new(1), Lsn::new(rig.ends[0].as_u64() + 1), Lsn::MAX] {
        assert!(rig.take(&Recovery { start_lsn, ..rig.recovery() }).is_err());
    }
}

#[test]
fn names_of_wal_files_are_known() {
    for name in ["000000010000000000000001", "00000001000000FF00000FFF", "00000002.history"] {
        assert!(is_wal_file(name), "{name}");
    }
    for name in
        ["", "../000000010000000000000001", "000000010000000000000001.partial", "archive_status/x", "backup_label"]
    {
        assert!(!is_wal_file(name), "{name}");
    }
}
