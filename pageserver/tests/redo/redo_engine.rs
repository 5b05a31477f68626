//! The process engine with real records: pages equal PostgreSQL's own, errors are answers, processes come and go.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pageserver::redo::failed_input::FailedInput;
use pageserver::redo::process::{PostgresProgram, ProcessEngine, Program};
use pageserver::redo::{Engine, EngineRequest, RedoError};
use postgres_ffi::mask::compare_pages;
use postgres_ffi::{BLCKSZ, ForkNumber, PgVersion};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::cluster::{Cluster, chains, heap_requests};

const HEAP_AND_INDEX: &[&str] = &[
    "CREATE TABLE t (id int PRIMARY KEY, v text)",
    "INSERT INTO t SELECT i, repeat('x', i % 100) FROM generate_series(1, 2000) i",
    "UPDATE t SET v = v || 'y' WHERE id % 3 = 0",
    "DELETE FROM t WHERE id % 5 = 0",
    "VACUUM t",
    "INSERT INTO t SELECT i, 'again' FROM generate_series(3001, 3500) i",
];

fn whole_chains_give_the_pages_on_disk(version: PgVersion) {
    // Where hint bits are not logged the server gives redo no record that makes a page all-visible (`Delta::HeapAllVisible`).
    let cluster = Cluster::init(version, &["full_page_writes=off", "wal_log_hints=on"], &[]);
    cluster.sql(HEAP_AND_INDEX);
    let chains = chains(&cluster.records());
    let requests: Vec<_> = chains.into_values().filter(|chain| chain.fork == ForkNumber::Main).collect();
    let engine = cluster.engine();
    let answers = engine.redo(&requests);
    let mut compared = 0;
    for (request, answer) in requests.iter().zip(answers) {
        let tag = (request.rel, request.fork, request.block_no);
        let page = answer.unwrap_or_else(|error| panic!("{tag:?}: {error}"));
        let Some(on_disk) = cluster.page_on_disk(tag) else { continue };
        let comparison = compare_pages(&page, &on_disk, request.fork, request.block_no);
        assert!(!comparison.is_mismatch(), "{tag:?}, {} records: {comparison:?}", request.records.len());
        compared += 1;
    }
    assert!(compared >= 30, "only {compared} pages of {} compared", requests.len());
    assert_eq!((engine.stats().starts, engine.stats().refused), (1, 0));
}

#[test]
fn whole_chains_give_the_pages_on_disk_15() {
    whole_chains_give_the_pages_on_disk(PgVersion::V15);
}

#[test]
fn whole_chains_give_the_pages_on_disk_17() {
    whole_chains_give_the_pages_on_disk(PgVersion::V17);
}

#[test]
fn whole_chains_give_the_pages_on_disk_18() {
    whole_chains_give_the_pages_on_disk(PgVersion::V18);
}

#[test]
fn record_that_does_not_apply_is_an_answer_and_the_process_lives() {
    let shared = heap_requests();
    let (cluster, good) = &*shared;
    let engine = cluster.engine();
    let expected = engine.redo(good);
    let pid = engine.pid();
    let without_first =
        |request: &EngineRequest| EngineRequest { records: request.records[1..].to_vec(), ..request.clone() };
    let other_block = |request: &EngineRequest| EngineRequest { block_no: request.block_no + 1, ..request.clone() };
    let other_fork = |request: &EngineRequest| EngineRequest { fork: ForkNumber::Init, ..request.clone() };
    let other_rel = |request: &EngineRequest| {
        let mut request = request.clone();
        request.rel.rel_number += 1;
        request
    };
    let longest = good.iter().max_by_key(|request| request.records.len()).unwrap();
    for (bad, why) in [
        (without_first(longest), "zeroes"),
        (other_block(longest), "does not touch"),
        (other_fork(longest), "does not touch"),
        (other_rel(longest), "does not touch"),
    ] {
        let mut requests = good.to_vec();
        requests.insert(1, bad);
        let mut answers = engine.redo(&requests);
        let refused = answers.remove(1);
        assert!(refused.as_ref().is_err_and(|error| error.to_string().contains(why)), "{why}: {refused:?}");
        assert!(answers == expected, "another request was harmed: {why}");
    }
    assert_eq!((engine.pid(), engine.stats().starts, engine.stats().refused), (pid, 1, 4));
}

#[test]
fn mutated_records_never_harm_another_request() {
    const SEED: u64 = 1;
    const ROUNDS: usize = 1500;
    let shared = heap_requests();
    let (cluster, good) = &*shared;
    let mut config = cluster.engine_config();
    config.panics_max = 50;
    let engine = ProcessEngine::new(config);
    let expected = engine.redo(good);
    let mut random = SmallRng::seed_from_u64(SEED);
    let mut refused = 0;
    for _ in 0..ROUNDS {
        let mut bad = good[random.random_range(0..good.len())].clone();
        let victim = random.random_range(0..bad.records.len());
        let mut record = bad.records[victim].1.to_vec();
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..record.len());
            record[at] ^= 1 << random.random_range(0..8);
        }
        bad.records[victim].1 = record.into();
        let witness = random.random_range(0..good.len());
        let mut answers = engine.redo(&[bad, good[witness].clone()]);
        assert!(answers.pop().as_ref() == expected.get(witness), "witness {witness} is wrong");
        refused += usize::from(answers[0].is_err());
    }
    // Many a flipped bit lies in a tuple and only changes what the tuple says.
    assert!(refused > ROUNDS / 10, "{refused} of {ROUNDS} refused: {:?}", engine.stats());
}

#[test]
fn chain_longer_than_one_request_is_the_same_page() {
    let cluster = Cluster::init(PgVersion::V15, &["full_page_writes=off"], &[]);
    cluster.sql(&[
        "CREATE TABLE counter (id int, n int) WITH (fillfactor = 50)",
        "INSERT INTO counter VALUES (1, 0)",
        "DO $$ BEGIN FOR i IN 1..20000 LOOP UPDATE counter SET n = i; IF i % 20 = 0 THEN COMMIT; END IF; END LOOP; END $$",
    ]);
    let chain = chains(&cluster.records()).into_values().max_by_key(|chain| chain.records.len()).unwrap();
    assert!(chain.size_bytes() > 1024 * 1024, "{} bytes", chain.size_bytes());
    let engine = cluster.engine();
    let page = engine.redo(std::slice::from_ref(&chain)).pop().unwrap().unwrap();
    let on_disk = cluster.page_on_disk((chain.rel, chain.fork, chain.block_no)).unwrap();
    let comparison = compare_pages(&page, &on_disk, chain.fork, chain.block_no);
    assert!(!comparison.is_mismatch(), "{} records: {comparison:?}", chain.records.len());
    assert!(engine.stats().batches >= 2);
}

#[test]
fn many_at_once_start_one_process() {
    let shared = heap_requests();
    let (cluster, requests) = &*shared;
    let engine = cluster.engine();
    let expected = cluster.engine().redo(requests);
    std::thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| assert!(engine.redo(requests) == expected));
        }
    });
    assert_eq!(engine.stats().starts, 1);
    assert_eq!(engine.stats().requests, 50 * requests.len() as u64);
}

#[test]
fn killed_at_any_time_every_answer_is_right_or_an_error() {
    let shared = heap_requests();
    let (cluster, requests) = &*shared;
    let engine = cluster.engine();
    let expected = engine.redo(requests);
    let ended = AtomicBool::new(false);
    let (right, failed) = std::thread::scope(|scope| {
        let askers: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| {
                    let (mut right, mut failed) = (0, 0);
                    while !ended.load(Ordering::Relaxed) {
                        for (answer, expected) in engine.redo(requests).iter().zip(&expected) {
                            match answer {
                                Ok(page) => {
                                    assert!(expected.as_ref() == Ok(page), "a wrong page");
                                    right += 1;
                                }
                                Err(RedoError::EngineFailed { .. }) => failed += 1,
                                Err(error) => panic!("{error}"),
                            }
                        }
                    }
                    (right, failed)
                })
            })
            .collect();
        let mut random = SmallRng::seed_from_u64(2);
        let mut kills = 0;
        let started = Instant::now();
        // However long a start takes.
        while started.elapsed() < Duration::from_secs(4) || kills <= 20 || engine.stats().deaths <= 10 {
            assert!(started.elapsed() < Duration::from_secs(120), "only {kills} kills");
            std::thread::sleep(Duration::from_micros(random.random_range(0..30_000)));
            if let Some(pid) = engine.pid() {
                kills += u32::from(kill(Pid::from_raw(pid as i32), Signal::SIGKILL).is_ok());
            }
        }
        ended.store(true, Ordering::Relaxed);
        let counts = askers.into_iter().map(|asker| asker.join().unwrap());
        counts.fold((0, 0), |(right, failed), counts| (right + counts.0, failed + counts.1))
    });
    // What was in flight was tried again on a process that nobody killed.
    assert!(right > 100 && failed == 0, "right {right}, failed {failed}, {:?}", engine.stats());
}

#[test]
fn nothing_is_left_of_a_process() {
    let shared = heap_requests();
    let (cluster, requests) = &*shared;
    let work_dir = tempfile::tempdir().unwrap();
    if let Some(user) = crate::cluster::server_user() {
        std::os::unix::fs::chown(work_dir.path(), Some(user.uid.as_raw()), None).unwrap();
    }
    let mut config = cluster.engine_config();
    let Program::Postgres(program) = &mut config.program else { panic!("a PostgreSQL") };
    program.work_dir = Some(work_dir.path().to_owned());
    // Killed servers leave theirs for ever, and one of them may have had the same process id.
    let segments_before = shared_memory();
    let engine = ProcessEngine::new(config);
    assert!(engine.redo(requests).iter().all(Result::is_ok));
    let pid = engine.pid().unwrap();
    let proc_dir = format!("/proc/{pid}");
    let status = std::fs::read_to_string(format!("{proc_dir}/status")).unwrap();
    for line in ["Seccomp:\t2", "NoNewPrivs:\t1"] {
        assert!(status.contains(line), "{line} missing in {status}");
    }
    let descriptors = std::fs::read_dir(format!("{proc_dir}/fd")).unwrap().count();
    assert_eq!(descriptors, 3);
    assert_eq!(std::fs::read(format!("{proc_dir}/environ")).unwrap_or_default().len() as u64 / 1000, 0);
    // Its data directory is gone while it still runs, and its shared memory is marked to go with it.
    assert_eq!(std::fs::read_dir(work_dir.path()).unwrap().count(), 0);
    kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
    drop(engine);
    assert!(!std::path::Path::new(&proc_dir).exists(), "a zombie is left");
    let mut left = shared_memory();
    left.retain(|segment, creator| *creator == pid && !segments_before.contains_key(segment));
    assert_eq!(left.len(), 0, "{left:?}");
}

/// Segments of System V shared memory, and the processes that made them.
fn shared_memory() -> HashMap<u32, u32> {
    let segments = std::fs::read_to_string("/proc/sysvipc/shm").unwrap();
    // Columns: key shmid perms size cpid lpid ...
    let of_line = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        (columns[1].parse().unwrap(), columns[4].parse().unwrap())
    };
    segments.lines().skip(1).map(of_line).collect()
}

#[test]
fn failed_input_is_saved_and_fails_again_when_replayed() {
    let shared = heap_requests();
    let (cluster, requests) = &*shared;
    let dir = tempfile::tempdir().unwrap();
    let mut config = cluster.engine_config();
    config.failed_inputs_dir = Some(dir.path().join("failed"));
    config.failed_inputs_max = 2;
    let engine = ProcessEngine::new(config);
    let mut bad = requests[0].clone();
    bad.records[0].1 = Bytes::from_static(&[0; 30]);
    let messages: Vec<String> =
        (0..4).map(|_| engine.redo(&[bad.clone()])[0].clone().unwrap_err().to_string()).collect();
    let files: Vec<_> =
        std::fs::read_dir(dir.path().join("failed")).unwrap().map(|file| file.unwrap().path()).collect();
    assert_eq!(files.len(), 2);
    let input = FailedInput::read(&files[0]).unwrap();
    assert_eq!(input.request, bad);
    assert!(messages[0].contains(&input.message), "{messages:?} {}", input.message);
    // All that the replay needs is in the file, but for the programs.
    let mut config = cluster.engine_config();
    let Program::Postgres(program) = config.program else { panic!("a PostgreSQL") };
    let FailedInput { pg_control, wal_log_hints, .. } = input.clone();
    config.program = Program::Postgres(PostgresProgram { pg_control, wal_log_hints, ..program });
    config.version = input.version;
    let again = ProcessEngine::new(config).redo(&[input.request])[0].clone().unwrap_err().to_string();
    assert_eq!(again, messages[0]);
}

#[test]
fn wrong_control_file_is_an_error_that_says_so() {
    let cluster = Cluster::init(PgVersion::V15, &[], &[]);
    let mut config = cluster.engine_config();
    let Program::Postgres(program) = &mut config.program else { panic!("a PostgreSQL") };
    let mut damaged = program.pg_control.to_vec();
    damaged[60] ^= 1;
    program.pg_control = damaged.into();
    let request = EngineRequest {
        rel: postgres_ffi::RelTag { spc_oid: 1663, db_oid: 5, rel_number: 1 },
        fork: ForkNumber::Main,
        block_no: 0,
        base: Some(vec![0; BLCKSZ].into()),
        records: vec![],
    };
    let answer = ProcessEngine::new(config).redo(&[request]).pop().unwrap();
    let message = answer.unwrap_err().to_string();
    assert!(message.contains("checksum"), "{message}");
}

#[test]
fn idle_process_is_ended_and_comes_back() {
    let shared = heap_requests();
    let (cluster, requests) = &*shared;
    let mut config = cluster.engine_config();
    config.idle_timeout = Duration::from_secs(60);
    let engine = ProcessEngine::new(config);
    let expected = engine.redo(requests);
    engine.idle(Duration::from_secs(59));
    assert!(engine.pid().is_some());
    engine.idle(Duration::from_secs(60));
    assert_eq!(engine.pid(), None);
    assert!(engine.redo(requests) == expected);
    assert_eq!((engine.stats().starts, engine.stats().retired, engine.stats().deaths), (2, 1, 0));
}

#[test]
fn changed_cluster_gets_a_new_process() {
    let shared = heap_requests();
    let (cluster, requests) = &*shared;
    let engine = cluster.engine();
    let expected = engine.redo(requests);
    let before = engine.pid();
    engine.set_cluster(cluster.pg_control(), true);
    assert!(engine.redo(requests) == expected);
    assert_ne!(engine.pid(), before);
    // The start that follows uses what it was told.
    engine.set_cluster(Bytes::from_static(b"no control file"), true);
    assert!(matches!(engine.redo(requests)[0], Err(RedoError::CannotStart { .. })));
}
