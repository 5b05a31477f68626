//! Goal: a time gives exactly the LSN where a plain walk over all records would have stopped, and what that promises holds of the records.
//! Method: random ends of transactions (clocks that stand, jump and go back) through real ingest into a real store, flushed and ingested
//! anew at random, on a timeline and a branch of it; two oracles: the rule applied record by record, and the promise checked on raw times.

use std::sync::Arc;

use bytes::Bytes;
use keyenc::TimelineNo;
use postgres_ffi::PgVersion;
use postgres_ffi::checkpoint::Checkpoint;
use postgres_ffi::records::xact;
use postgres_ffi::wal::{DecodedRecord, rmgr};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::config::Config;
use crate::ingest::{COMMIT_TIME_GRANULARITY_MICROS, TimelineReader, WalIngest};
use crate::redo::{NoEngine, RedoConfig, WalRedo};
use crate::store::{Batch, Store, StoreConfig};
use crate::timeline::metadata::{Ancestor, ClusterFacts, Imported};
use crate::timeline::version_cache::VersionCache;
use crate::timeline::{TenantId, TimelineId, TimelineMetadata};

const VERSION: PgVersion = PgVersion::V17;
const START_LSN: Lsn = Lsn::new(0x100_0028);
const GRANULARITY: i64 = COMMIT_TIME_GRANULARITY_MICROS;

/// End of a record, and the time in it if it ends a transaction.
type Line = (Lsn, Option<i64>);

struct Rig {
    store: Arc<Store>,
    redo: Arc<WalRedo>,
    _dir: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), &StoreConfig::default()).unwrap();
        Rig { store, redo: WalRedo::start(&RedoConfig::default(), Arc::new(NoEngine)), _dir: dir }
    }

    fn timeline(&self, no: u32, first_readable_lsn: Lsn, ancestor: Option<(&Arc<Timeline>, Lsn)>) -> Arc<Timeline> {
        let metadata = TimelineMetadata {
            format: TimelineMetadata::format(),
            tenant_id: TenantId::generate(),
            timeline_id: TimelineId::generate(),
            timeline_no: no,
            name: no.to_string(),
            ancestor: ancestor.map(|(timeline, lsn)| Ancestor { timeline_id: timeline.metadata().timeline_id, lsn }),
            cluster: ClusterFacts {
                pg_version: VERSION,
                system_identifier: 1,
                wal_segment_bytes: 16 << 20,
                data_checksums: false,
                pg_timeline_id: 1,
            },
            imported: ancestor.is_none().then_some(Imported::at(START_LSN, first_readable_lsn)),
            primary: None,
            retention: None,
            gc: None,
        };
        let store = self.store.timeline(TimelineNo(no)).unwrap();
        let ancestors = ancestor.into_iter().map(|(timeline, lsn)| (Arc::clone(timeline), lsn)).collect();
        let cache = Arc::new(VersionCache::new(1 << 20));
        Arc::new(Timeline::new(metadata, store, ancestors, Arc::clone(&self.redo), cache, &Config::default()))
    }

    /// An imported timeline that begins at `START_LSN`, with the time that the import put, if it put one.
    fn imported(&self, no: u32, first_readable_lsn: Lsn, time: Option<i64>) -> Arc<Timeline> {
        let timeline = self.timeline(no, first_readable_lsn, None);
        let checkpoint =
            Checkpoint { this_tli: 1, prev_tli: 1, next_xid: 1000, next_multi: 1, ..Checkpoint::default() };
        let mut batch = Batch::new();
        let mut put = |object: Object, value: &[u8]| batch.put(object.into(), START_LSN, Kind::Image, value);
        put(Object::Checkpoint, &checkpoint.encode(VERSION));
        put(Object::ControlFile, &[0; 8192]);
        if let Some(time) = time {
            put(Object::CommitTime, &CommitTime { time, before_lsn: None }.encode());
        }
        timeline.commit(&mut batch, START_LSN).unwrap();
        timeline
    }
}

/// A commit or abort with a time, or a record that says nothing of time.
fn record(start_lsn: Lsn, time: Option<i64>, info: u8) -> DecodedRecord {
    let (rmid, info, xid, main) = match time {
        Some(time) if info == xact::COMMIT_PREPARED || info == xact::ABORT_PREPARED => {
            let twophase = (1_u32 << 4).to_le_bytes();
            let main = [&time.to_le_bytes()[..], &twophase, &1234_u32.to_le_bytes()].concat();
            (rmgr::XACT, info | xact::HAS_INFO, 0, main)
        }
        Some(time) => (rmgr::XACT, info, 1234_u32, time.to_le_bytes().to_vec()),
        None => (rmgr::LOGICALMSG, 0, 1234, vec![7; 20]),
    };
    let total_len = 24 + 2 + main.len() as u32;
    let mut raw = [&total_len.to_le_bytes()[..], &xid.to_le_bytes(), &[0; 8], &[info, rmid, 0, 0], &[0; 4]].concat();
    raw.extend([255, main.len() as u8]);
    raw.extend(main);
    let end_lsn = Lsn::new(start_lsn.as_u64() + u64::from(total_len)).align_up();
    DecodedRecord::decode(VERSION, start_lsn, end_lsn, Bytes::from(raw)).unwrap()
}

/// Random records onto `timeline`; their lines. The clock starts at `clock`.
fn grow(timeline: &Arc<Timeline>, count: usize, clock: &mut i64, rng: &mut SmallRng) -> Vec<Line> {
    let mut ingest = WalIngest::new(VERSION, timeline.last_record_lsn(), &**timeline).unwrap();
    let mut batch = Batch::new();
    let mut lines = Vec::new();
    for _ in 0..count {
        *clock += match rng.random_range(0..10) {
            0 => -rng.random_range(0..5_000),
            1 | 2 => 0,
            3..6 => rng.random_range(0..600),
            6..9 => rng.random_range(0..3_000),
            _ => rng.random_range(0..10_000_000),
        };
        let infos = [xact::COMMIT, xact::ABORT, xact::COMMIT_PREPARED, xact::ABORT_PREPARED];
        let time = rng.random_bool(0.7).then_some(*clock);
        // Some WAL lies in between, as segment switches and page headers do.
        let start_lsn = ingest.last_record_lsn().checked_add(8 * rng.random_range(0..4)).unwrap();
        let record = record(start_lsn, time, infos[rng.random_range(0..4)]);
        ingest.ingest_record(&record, &mut batch, &**timeline).unwrap();
        lines.push((record.end_lsn, time));
        if rng.random_bool(0.1) {
            timeline.commit(&mut batch, record.end_lsn).unwrap();
            if rng.random_bool(0.3) {
                timeline.store.flush(true).unwrap();
            }
            if rng.random_bool(0.3) {
                ingest = WalIngest::new(VERSION, record.end_lsn, &**timeline).unwrap();
            }
        }
    }
    timeline.commit(&mut batch, ingest.last_record_lsn()).unwrap();
    lines
}

/// The rule, record by record: LSN and known time at `time`; `None` if there is no answer.
fn naive(lines: &[Line], imported: Option<i64>, first_readable_lsn: Lsn, time: i64) -> Option<(Lsn, i64)> {
    let (mut known, mut end_lsn) = (None, START_LSN);
    for (record_end_lsn, ended) in lines {
        if let Some(ended) = ended
            && known.is_none_or(|known: i64| *ended - known >= GRANULARITY)
        {
            if *ended > time {
                break;
            }
            known = Some(*ended);
        }
        end_lsn = *record_end_lsn;
    }
    // Before the first end the control file speaks, a second later.
    let known = known.or(imported.filter(|imported| imported + 1_000_000 <= time));
    known.filter(|_| first_readable_lsn <= end_lsn).map(|known| (end_lsn, known))
}

/// What an answer promises, on raw times: nothing in it is as late as a granularity after `time`; what comes next is later than `time`.
fn check_promise(lines: &[Line], time: i64, lsn: Lsn) {
    let mut inside = lines.iter().take_while(|(end_lsn, _)| *end_lsn <= lsn).filter_map(|(_, ended)| *ended);
    assert!(inside.all(|ended| ended < time + GRANULARITY), "an end after {time} in {lsn}");
    // PostgreSQL looks at ends of transactions alone; what stands between the last one and the next one changes nothing there.
    let mut outside = lines.iter().skip_while(|(end_lsn, _)| *end_lsn <= lsn);
    if let Some((end_lsn, ended)) = outside.next() {
        assert!(ended.is_some_and(|ended| ended > time), "{end_lsn} behind {lsn} was there at {time}: {ended:?}");
    }
}

fn check(timeline: &Timeline, lines: &[Line], imported: Option<i64>, first_readable_lsn: Lsn) -> (usize, usize) {
    let (mut answered, mut refused) = (0, 0);
    let stored_times = lines.iter().filter_map(|(_, ended)| *ended).chain(imported);
    for time in stored_times.flat_map(|ended| [-1, 0, 1, GRANULARITY, 999_999, 1_000_000].map(|by| ended + by)) {
        let found = timeline.lsn_at_time(WallTime::from_postgres(time));
        match (naive(lines, imported, first_readable_lsn, time), found) {
            (Some((lsn, known)), Ok(found)) => {
                assert_eq!(found, LsnAtTime { lsn, commit_time: WallTime::from_postgres(known) }, "{time}");
                assert_eq!(timeline.commit_time_at(lsn).unwrap(), Some(found.commit_time));
                check_promise(lines, time, lsn);
                answered += 1;
            }
            (None, Err(TimeError::BeforeFirst { time: asked, first_time, first_lsn })) => {
                assert_eq!(asked.as_postgres(), time);
                assert!(first_time > asked && first_lsn >= first_readable_lsn, "{time}: {first_time} {first_lsn}");
                // The time that the error names is the first that can be asked for.
                assert!(timeline.lsn_at_time(first_time).unwrap().lsn >= first_lsn);
                let just_before = WallTime::from_postgres(first_time.as_postgres() - 1);
                assert!(timeline.lsn_at_time(just_before).is_err());
                refused += 1;
            }
            (expected, found) => panic!("{time}: {expected:?}, but {found:?}"),
        }
    }
    (answered, refused)
}

#[test]
fn a_time_gives_the_lsn_where_a_walk_over_all_records_stops() {
    let seeds = std::env::var("SEED").map_or(0..12, |seed| {
        let seed = seed.parse().expect("SEED is a number");
        seed..seed + 1
    });
    let rig = Rig::new();
    let mut total = (0, 0);
    for seed in seeds {
        println!("SEED={seed}");
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut clock = rng.random_range(-1_000_000..850_000_000_000_000);
        let imported = rng.random_bool(0.7).then_some(clock + rng.random_range(-2_000_000..1_000_000));
        let no = seed as u32 * 4 + 1;
        // Somewhere among the records: the end of a base backup.
        let first_readable_lsn = START_LSN.checked_add(rng.random_range(0..2_000)).unwrap().align_up();
        let main = rig.imported(no, first_readable_lsn, imported);
        let mut lines = grow(&main, 300, &mut clock, &mut rng);
        let first_readable_lsn =
            lines.iter().map(|(end_lsn, _)| *end_lsn).find(|end_lsn| *end_lsn >= first_readable_lsn).unwrap();
        let count = |(a, b): (usize, usize), (c, d)| (a + c, b + d);
        // What garbage collection leaves begins anywhere: the same timeline, opened as such.
        let opened = |first_readable_lsn| {
            let main = rig.timeline(no, first_readable_lsn, None);
            main.last_record.advance(lines.last().unwrap().0);
            main
        };
        for _ in 0..10 {
            let last_lsn = lines[lines.len() / 2].0.as_u64();
            let first_readable_lsn = Lsn::new(rng.random_range(START_LSN.as_u64()..last_lsn)).align_up();
            total = count(total, check(&opened(first_readable_lsn), &lines, imported, first_readable_lsn));
        }
        // The backup's end is the end of a record.
        let main = opened(first_readable_lsn);
        total = count(total, check(&main, &lines, imported, first_readable_lsn));

        // A branch somewhere above, and its ancestor goes on.
        let branch_at = rng.random_range(150..lines.len());
        let branch = rig.timeline(no + 1, first_readable_lsn, Some((&main, lines[branch_at].0)));
        let mut branch_lines = lines[..=branch_at].to_vec();
        total = count(total, check(&branch, &branch_lines, imported, first_readable_lsn));
        let mut branch_clock = clock - rng.random_range(-3_000_000..3_000_000);
        branch_lines.extend(grow(&branch, 100, &mut branch_clock, &mut rng));
        lines.extend(grow(&main, 50, &mut clock, &mut rng));
        total = count(total, check(&branch, &branch_lines, imported, first_readable_lsn));
        total = count(total, check(&main, &lines, imported, first_readable_lsn));
    }
    println!("{} answered, {} refused", total.0, total.1);
    assert!(total.0 > 1000 && total.1 > 10, "{total:?}");
}

#[test]
fn an_old_store_knows_no_time_until_a_transaction_ends() {
    let rig = Rig::new();
    let timeline = rig.imported(1, START_LSN, None);
    assert_eq!(timeline.commit_time_at(START_LSN).unwrap(), None);
    let found = timeline.lsn_at_time(WallTime::from_postgres(7));
    assert!(matches!(found, Err(TimeError::Unknown { last_record_lsn: START_LSN })), "{found:?}");
    let mut ingest = WalIngest::new(VERSION, START_LSN, &*timeline).unwrap();
    let mut batch = Batch::new();
    let commit = record(START_LSN, Some(5_000), xact::COMMIT);
    ingest.ingest_record(&commit, &mut batch, &*timeline).unwrap();
    timeline.commit(&mut batch, commit.end_lsn).unwrap();
    assert_eq!(timeline.commit_time_at(START_LSN).unwrap(), None);
    assert_eq!(timeline.commit_time_at(commit.end_lsn).unwrap(), Some(WallTime::from_postgres(5_000)));
    assert_eq!(timeline.lsn_at_time(WallTime::from_postgres(5_000)).unwrap().lsn, commit.end_lsn);
    let error = timeline.lsn_at_time(WallTime::from_postgres(4_999)).unwrap_err().to_string();
    assert!(error.contains("time=`2000-01-01T00:00:00.004999Z`, first_time=`2000-01-01T00:00:00.005000Z`"), "{error}");
}

#[test]
fn damaged_values_and_lsns_out_of_reach_are_errors() {
    let rig = Rig::new();
    let timeline = rig.imported(1, START_LSN, Some(0));
    assert!(matches!(timeline.commit_time_at(Lsn::new(8)), Err(ReadError::BelowFirstReadable { .. })));
    assert!(matches!(timeline.commit_time_at(Lsn::MAX), Err(ReadError::NotYet { .. })));
    for (nth, (kind, value)) in
        [(Kind::Image, &b"short"[..]), (Kind::Tombstone, b""), (Kind::Delta, &[0; 16])].iter().enumerate()
    {
        let timeline = rig.imported(nth as u32 + 2, START_LSN, None);
        let mut batch = Batch::new();
        let lsn = START_LSN.checked_add(8).unwrap();
        batch.put(Object::CommitTime.into(), lsn, *kind, value);
        timeline.commit(&mut batch, lsn).unwrap();
        assert!(matches!(timeline.commit_time_at(lsn), Err(ReadError::Damaged { .. })), "{kind:?}");
        let found = timeline.lsn_at_time(WallTime::from_postgres(i64::MAX));
        assert!(matches!(found, Err(TimeError::Read(ReadError::Damaged { .. }))), "{kind:?} {found:?}");
    }
}

#[test]
fn times_at_the_ends_of_the_scale_do_no_harm() {
    let rig = Rig::new();
    let timeline = rig.imported(1, START_LSN, Some(i64::MIN));
    let mut ingest = WalIngest::new(VERSION, START_LSN, &*timeline).unwrap();
    let mut batch = Batch::new();
    for time in [i64::MAX, i64::MIN, 0, i64::MAX] {
        let record = record(ingest.last_record_lsn(), Some(time), xact::COMMIT);
        ingest.ingest_record(&record, &mut batch, &*timeline).unwrap();
    }
    timeline.commit(&mut batch, ingest.last_record_lsn()).unwrap();
    let lsn_at = |time| timeline.lsn_at_time(WallTime::from_postgres(time)).unwrap().lsn;
    assert_eq!(lsn_at(i64::MAX), ingest.last_record_lsn());
    assert!(matches!(timeline.lsn_at_time(WallTime::from_postgres(i64::MIN)), Err(TimeError::BeforeFirst { .. })));
    assert_eq!((lsn_at(0), lsn_at(i64::MAX - 1)), (START_LSN, START_LSN));
}
