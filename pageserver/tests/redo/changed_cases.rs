//! Records that no server wrote, on pages that none had: where PostgreSQL makes a page of them, redo in Rust makes the same page or none.
//!
//! Method: the recorded cases of every operation, each with something changed in it many times over ([`RedoCase::change`]: lengths, offsets, flags, line pointers, tuples'
//! heads), and with the page of another case. Both engines apply them. Where both give a page all bytes but the checksum are the same. That one refuses what the other takes is
//! no fault: redo in Rust asks for more of a page than PostgreSQL does without assertions, and for less of blocks that it is not to make.
//!
//! `PAGESERVER_TEST_CHANGES`: changed copies of each case (20), `PAGESERVER_TEST_SEED`: what is changed (1).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use pageserver::redo::native::NativeEngine;
use pageserver::redo::process::ProcessEngine;
use pageserver::redo::verify::{Comparison, compare_answers};
use pageserver::redo::{Engine, EngineRequest, NoEngine, RedoError};
use postgres_ffi::page::layout::Header;
use postgres_ffi::page::set_page_lsn;
use postgres_ffi::redo::case::{Changes, RedoCase};
use postgres_ffi::wal::describe::operation_name;
use postgres_ffi::wal::{DecodedRecord, RecordHeader, rmgr, trim};
use postgres_ffi::{Lsn, PgVersion};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::cluster::Cluster;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

fn cases(version: PgVersion) -> Vec<RedoCase> {
    let path = format!("../postgres_ffi/tests/data/redo/{version}.cases.zst");
    let packed = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let mut bytes = Bytes::from(zstd::stream::decode_all(&packed[..]).unwrap());
    let mut cases = Vec::new();
    while !bytes.is_empty() {
        cases.push(RedoCase::take(&mut bytes).unwrap());
    }
    cases
}

struct RandomChanges(SmallRng);

impl Changes for RandomChanges {
    fn below(&mut self, end: usize) -> usize {
        self.0.random_range(0..end)
    }

    /// One byte or two, by little: records and pages that nearly make sense go furthest. Of one change in eight some bytes go or come as well.
    fn change(&mut self, bytes: &mut Vec<u8>, len_max: usize) {
        if self.below(8) == 0 {
            let at = self.below(bytes.len() + 1);
            let count = 1 + self.below(8);
            if self.below(2) == 0 {
                bytes.drain(at..bytes.len().min(at + count));
            } else {
                bytes.splice(at..at, std::iter::repeat_n(self.below(4) as u8, count));
            }
            bytes.truncate(len_max);
        }
        if bytes.is_empty() {
            return;
        }
        for _ in 0..=self.below(2) {
            // The front of a body is where its numbers stand.
            let end = if self.below(2) == 0 { bytes.len() } else { bytes.len().min(24) };
            let byte = self.below(end);
            bytes[byte] = match self.below(8) {
                0 => bytes[byte].wrapping_add(1),
                1 => bytes[byte].wrapping_sub(1),
                2 => bytes[byte].wrapping_add(8),
                3 | 4 => bytes[byte] ^ 1 << self.below(8),
                5 => self.below(8) as u8,
                6 => 0,
                _ => self.below(256) as u8,
            };
        }
    }
}

fn rmid(case: &RedoCase) -> u8 {
    RecordHeader::parse(&case.record).unwrap().rmid
}

/// The case with something changed, and in one of eight with the page of another case of its resource manager.
fn changed(case: &RedoCase, cases: &[RedoCase], changes: &mut RandomChanges) -> RedoCase {
    let mut changed = case.clone();
    let other = &cases[changes.below(cases.len())];
    if changes.below(8) == 0 && rmid(other) == rmid(case) {
        changed.page = other.page.clone();
    } else {
        changed.change(changes);
    }
    if let Some(page) = &mut changed.page {
        set_page_lsn(page, Lsn::new(8));
    }
    changed
}

/// The case as an engine gets it: the record cut down for its block. `None` if there is nothing to compare: no record, or a page with a header that PostgreSQL's process is
/// ended for, whatever comes of it.
fn request(case: &RedoCase) -> Option<EngineRequest> {
    let record = DecodedRecord::decode(case.facts.version, case.end_lsn, case.end_lsn, case.record.clone()).ok()?;
    let of_case = |block: &&_| {
        let postgres_ffi::wal::DecodedBlock { rel, fork, block_no, .. } = **block;
        (rel, fork, block_no) == (case.address.rel, case.address.fork, case.address.block_no)
    };
    let block = record.blocks.iter().find(of_case)?;
    if case.page.as_ref().is_some_and(|page| !Header::read(page).is_sane()) {
        return None;
    }
    let mut cut_down = Vec::new();
    trim::trim_for_block(&record, block.block_id, &mut cut_down);
    Some(EngineRequest {
        rel: case.address.rel,
        fork: case.address.fork,
        block_no: case.address.block_no,
        base: case.page.as_ref().map(|page| Bytes::copy_from_slice(&page[..])),
        records: vec![(case.end_lsn, cut_down.into())],
    })
}

#[derive(Default)]
struct Counts {
    equal: u64,
    refused_by_both: u64,
    refused_by_native: u64,
    refused_by_postgres: u64,
    process_ended: u64,
}

fn compare(version: PgVersion) {
    let copies = setting("PAGESERVER_TEST_CHANGES", 20);
    let mut changes = RandomChanges(SmallRng::seed_from_u64(setting("PAGESERVER_TEST_SEED", 1)));
    let cluster = Cluster::init(version, &[], &[]);
    let process = ProcessEngine::new(cluster.engine_config());
    let native = NativeEngine::new(version, Arc::new(NoEngine));
    let cases = cases(version);
    let mut counts: BTreeMap<(u8, u8), Counts> = BTreeMap::new();
    let mut differences = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let operation = (rmid(case), RecordHeader::parse(&case.record).unwrap().info & 0xF0);
        let of_case = counts.entry(operation).or_default();
        let requests: Vec<_> = std::iter::once(request(case).expect("a case as it was recorded"))
            .chain((0..copies).filter_map(|_| request(&changed(case, &cases, &mut changes))))
            .collect();
        for ((request, native), postgres) in requests.iter().zip(native.redo(&requests)).zip(process.redo(&requests)) {
            match (&native, &postgres) {
                (Ok(_), Ok(_)) => match compare_answers(&native, &postgres) {
                    Comparison::Different(how) => differences.push(format!("case {number}, {how}: {request:?}")),
                    _equal => of_case.equal += 1,
                },
                (Err(_), Err(RedoError::Refused { .. })) => of_case.refused_by_both += 1,
                (Err(_), Ok(_)) => of_case.refused_by_native += 1,
                (Ok(_), Err(RedoError::Refused { .. })) => of_case.refused_by_postgres += 1,
                (_, Err(_no_word)) => of_case.process_ended += 1,
            }
        }
    }
    for ((rmid, operation), Counts { equal, refused_by_both, refused_by_native, refused_by_postgres, process_ended }) in
        &counts
    {
        let name = operation_name(version, *rmid, *operation).unwrap_or_default();
        println!(
            "{version} {:10} {name:22} equal {equal:6}, refused by both {refused_by_both:6}, by redo in Rust alone {refused_by_native:6}, \
             by PostgreSQL alone {refused_by_postgres:6}, PostgreSQL's process ended {process_ended:6}",
            rmgr::builtin_name(*rmid).unwrap(),
        );
        assert!(*equal > 0, "no page of {name} was compared");
    }
    let total = |count: fn(&Counts) -> u64| counts.values().map(count).sum::<u64>();
    let all = total(|c| c.equal + c.refused_by_both + c.refused_by_native + c.refused_by_postgres + c.process_ended);
    println!("{version}: {all} applications, {} pages equal, {} different", total(|c| c.equal), differences.len());
    assert!(differences.is_empty(), "{} pages differ, the first: {}", differences.len(), differences[0]);
    assert!(total(|c| c.equal) > all / 2 && total(|c| c.refused_by_both) > all / 100, "changes too wild, or too tame");
}

#[test]
fn changed_cases_give_postgresqls_page_or_none_15() {
    compare(PgVersion::V15);
}

#[test]
fn changed_cases_give_postgresqls_page_or_none_17() {
    compare(PgVersion::V17);
}

#[test]
fn changed_cases_give_postgresqls_page_or_none_18() {
    compare(PgVersion::V18);
}
