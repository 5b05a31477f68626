//! Processes that do what they should not: each must end in an answer within its time, and leave nothing behind.
//!
//! Method: a shell script plays the process, through the same pipes and the same launch as PostgreSQL.

use std::time::{Duration, Instant};

use postgres_ffi::{BLCKSZ, ForkNumber, Lsn, RelTag};

use super::*;
use crate::redo::RedoErrorKind;

/// Says hello as PostgreSQL 15 would, in octal for `printf`.
const HELLO: &str = r"printf 'PGREDO\r\n\001\000\017\000\004\112\002\000\000\040\000\000\000\000\000\004\000\000\000\000\000\000\000\000';";
/// Reads one request of [`request`].
const READ_ONE: &str = "head -c 8272 >/dev/null;";
/// Header of a reply with a page to request 1.
const PAGE_HEADER: &str = r"printf 'AP\000\000\000\040\000\000\001\000\000\000\000\000\000\000';";
/// Refuses request 1 with "no way.." .
const REFUSE: &str = r"printf 'AP\001\000\010\000\000\000\001\000\000\000\000\000\000\000no way..';";

/// More than anything here takes, and less than the scripts sleep.
const LIMIT: Duration = Duration::from_secs(60);
/// Where the end of a timeout is waited for.
const SHORT: Duration = Duration::from_millis(400);

/// With time for everything.
fn engine(script: &str) -> ProcessEngine {
    engine_with(script, LIMIT, LIMIT)
}

/// With little time for an answer.
fn impatient(script: &str) -> ProcessEngine {
    engine_with(script, LIMIT, SHORT)
}

fn engine_with(script: &str, start_timeout: Duration, timeout: Duration) -> ProcessEngine {
    let args = vec!["-c".to_owned(), script.to_owned()];
    let mut config = ProcessConfig::new(Program::Other { path: "/bin/sh".into(), args }, PgVersion::V15);
    config.start_timeout = start_timeout;
    config.timeout = timeout;
    ProcessEngine::new(config)
}

fn request() -> EngineRequest {
    let rel = RelTag { spc_oid: 1663, db_oid: 5, rel_number: 16384 };
    let base = Some(vec![0; BLCKSZ].into());
    // 16 + 24 + 8192 + 16 + 24 = 8272 bytes on the wire.
    let records = vec![(Lsn::new(0x1000), vec![1; 24].into())];
    let request = EngineRequest { rel, fork: ForkNumber::Main, block_no: 0, base, records };
    assert_eq!(protocol::request_len(&request), 8272);
    request
}

/// The answers to `count` equal requests, within the limit.
fn answers(engine: ProcessEngine, count: usize) -> (Vec<Answer>, ProcessStats) {
    let started = Instant::now();
    let mut requests = vec![request(); count];
    for (block_no, request) in requests.iter_mut().enumerate() {
        request.block_no = block_no as u32;
    }
    let answers = engine.redo(&requests);
    assert!(started.elapsed() < LIMIT, "took {:?}", started.elapsed());
    let stats = engine.stats();
    drop(engine);
    (answers, stats)
}

fn message(answer: &Answer) -> String {
    answer.as_ref().err().map(ToString::to_string).unwrap_or_default()
}

#[test]
fn process_that_cannot_be_run_is_an_error_and_not_tried_again_at_once() {
    let config = ProcessConfig::new(Program::Other { path: "/nonexistent".into(), args: vec![] }, PgVersion::V15);
    let engine = ProcessEngine::new(config);
    for _ in 0..5 {
        let answer = engine.redo(&[request()]).pop().unwrap();
        assert!(message(&answer).contains("cannot run /nonexistent"), "{answer:?}");
        assert_eq!(answer.unwrap_err().kind(), RedoErrorKind::Unavailable);
    }
    assert_eq!(engine.stats().start_failures, 1);
}

#[test]
fn process_that_dies_at_once_tells_why() {
    let (answers, stats) = answers(engine("echo 'FATAL: no such thing' >&2; exit 3"), 1);
    let text = message(&answers[0]);
    assert!(text.contains("exit code 3") && text.contains("FATAL: no such thing"), "{text}");
    assert_eq!((stats.starts, stats.start_failures), (0, 1));
}

#[test]
fn process_that_is_killed_before_its_hello_is_started_once_more() {
    let dir = tempfile::tempdir().unwrap();
    let mark = dir.path().join("was here");
    let script = format!(
        "if mkdir '{}' 2>/dev/null; then kill -9 $$; fi; {HELLO} {READ_ONE} {REFUSE} sleep 1000",
        mark.display()
    );
    let (answers, stats) = answers(engine(&script), 1);
    assert!(message(&answers[0]).contains("no way"), "{answers:?}");
    assert!(mark.exists());
    assert_eq!((stats.starts, stats.start_failures), (1, 0));
}

#[test]
fn process_that_never_says_hello_is_killed() {
    let (answers, _) = answers(engine_with("sleep 1000", SHORT, LIMIT), 1);
    assert!(message(&answers[0]).contains("no hello in time"), "{answers:?}");
}

#[test]
fn hello_of_something_else_is_refused() {
    for script in ["echo 'Welcome to this program, it is nothing for you'", "cat /dev/zero"] {
        let (answers, _) = answers(engine(script), 1);
        assert!(message(&answers[0]).contains("no hello"), "{answers:?}");
    }
}

#[test]
fn process_that_hangs_is_killed_and_the_request_tried_once_more_alone() {
    let (answers, stats) = answers(impatient(&format!("{HELLO} sleep 1000")), 1);
    assert!(message(&answers[0]).contains("no reply in time"), "{answers:?}");
    assert_eq!(answers[0].as_ref().unwrap_err().kind(), RedoErrorKind::Corrupt);
    let expected = ProcessStats { starts: 2, kills_timeout: 2, requests: 2, records: 2, batches: 2, ..stats };
    assert_eq!(stats, expected);
    assert_eq!((stats.retried, stats.failed), (1, 1));
}

#[test]
fn process_that_does_not_even_read_is_killed() {
    // More than fits into the pipe.
    let script = format!("{HELLO} sleep 1000");
    let engine = impatient(&script);
    let mut long = request();
    long.records = vec![(Lsn::new(0x1000), vec![1; 900_000].into())];
    let started = Instant::now();
    let answer = engine.redo(&[long]).pop().unwrap();
    assert!(message(&answer).contains("no reply in time"), "{answer:?}");
    assert!(started.elapsed() < LIMIT);
}

#[test]
fn process_that_dies_in_mid_batch_harms_one_request() {
    // Refuses each request under its own id, and dies of block 2. Words of a request: 2 is the id, 7 the block.
    let script = format!(
        "{HELLO} while :; do set -- $(head -c 8272 | od -An -v -tu4); [ \"$8\" = 2 ] && exit 9;
         printf 'AP\\001\\000\\010\\000\\000\\000'; printf \"\\\\$(printf %o $3)\"; printf '\\000\\000\\000\\000\\000\\000\\000no way..'; done"
    );
    let (answers, stats) = answers(engine(&script), 5);
    for (block_no, answer) in answers.iter().enumerate() {
        let expected = if block_no == 2 { "process ended (exit code 9)" } else { "no way.." };
        assert!(message(answer).contains(expected), "{answers:?}");
    }
    // Two deaths: with all of them in flight, and with the one alone.
    assert_eq!((stats.failed, stats.refused, stats.deaths), (1, 4, 2));
    assert!((3..=5).contains(&stats.retried), "{stats:?}");
}

#[test]
fn answer_that_is_cut_short_is_no_page() {
    for (ending, timeout) in [("exit 0", LIMIT), ("sleep 1000", SHORT)] {
        let script = format!("{HELLO} {READ_ONE} {PAGE_HEADER} head -c 8000 /dev/zero; {ending}");
        let (answers, stats) = answers(engine_with(&script, LIMIT, timeout), 1);
        assert!(matches!(answers[0], Err(RedoError::EngineFailed { .. })), "{answers:?}");
        assert_eq!(stats.starts, 2);
    }
}

#[test]
fn garbage_is_no_page() {
    let scripts = [
        format!("{HELLO} cat /dev/urandom"),
        format!("{HELLO} {READ_ONE} cat /dev/zero"),
        // Right frame, but to request 0x7F01.
        format!(r"{HELLO} {READ_ONE} printf 'AP\001\000\010\000\000\000\001\177\000\000\000\000\000\000no way..'"),
        // Right frame, but the page is full of 'y'.
        format!("{HELLO} {READ_ONE} {PAGE_HEADER} yes y | tr -d '\\n' | head -c 8192"),
        // A page of zeroes is not what comes of a page with an LSN: the base has none, but it is no answer to id 1 twice.
        format!("{HELLO} {READ_ONE} {REFUSE} {REFUSE} {REFUSE} sleep 1000"),
    ];
    for (no, script) in scripts.iter().enumerate() {
        let (answers, stats) = answers(engine(script), 2);
        for answer in &answers {
            assert!(answer.is_err(), "{no}: {answers:?}");
        }
        assert!(stats.kills_garbage >= 1, "{no}: {stats:?} {answers:?}");
    }
}

#[test]
fn stderr_flood_blocks_nobody() {
    let flood = "head -c 3000000 /dev/zero | tr '\\0' 'e' >&2;";
    let script = format!("{HELLO} {flood} {READ_ONE} {flood} {REFUSE} {flood} sleep 1000");
    let engine = engine(&script);
    let answer = engine.redo(&[request()]).pop().unwrap();
    assert!(message(&answer).contains("no way"), "{answer:?}");
    // Two floods before the answer, but for what may still be in the pipe.
    assert!(engine.stderr_bytes().unwrap() >= 5_900_000);
}

#[test]
fn processes_that_it_started_go_with_it() {
    // A child of the process holds all its pipes.
    let script = format!("{HELLO} sleep 1000 & wait");
    let engine = engine(&script);
    assert!(engine.process().is_ok());
    let pid = engine.pid().unwrap();
    let group = |pid: u32| {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let stats = processes.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
        // pid (comm) state ppid pgrp
        let in_group = |stat: &String| stat.rsplit(") ").next().unwrap().split(' ').nth(2) == Some(&pid.to_string());
        stats.filter(in_group).count()
    };
    assert!(group(pid) >= 1);
    let started = Instant::now();
    drop(engine);
    assert!(started.elapsed() < LIMIT);
    // The child of the shell is init's to wait for; it may be seen dying for a moment.
    while group(pid) > 0 {
        assert!(started.elapsed() < LIMIT, "a process of the group survives");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn request_that_breaks_the_process_is_not_tried_again_for_a_while() {
    let engine = engine(&format!("{HELLO} {READ_ONE} kill -9 $$"));
    for _ in 0..3 {
        let answer = engine.redo(&[request()]).pop().unwrap();
        assert!(matches!(answer, Err(RedoError::EngineFailed { .. })), "{answer:?}");
    }
    let stats = engine.stats();
    assert_eq!((stats.failed, stats.quarantined, stats.deaths), (1, 2, 2));
}

#[test]
fn base_that_is_no_page_and_record_that_is_too_long_are_refused_unasked() {
    let engine = engine("exit 1");
    let mut short = request();
    short.base = Some(vec![0; 100].into());
    let mut long = request();
    long.records = vec![(Lsn::new(1), vec![0; protocol::BODY_BYTES_MAX].into())];
    let answers = engine.redo(&[short, long]);
    assert!(matches!(answers[0], Err(RedoError::Refused { .. })));
    assert!(matches!(answers[1], Err(RedoError::TooLong { .. })));
    assert_eq!(engine.stats().start_failures, 0);
}

#[test]
fn environment_and_descriptors_are_not_inherited() {
    let dir = tempfile::tempdir().unwrap();
    let held = std::fs::File::create(dir.path().join("held by us")).unwrap();
    let (answers, _) = answers(engine("env >&2; ls -l /proc/self/fd >&2; exit 1"), 1);
    drop(held);
    let text = message(&answers[0]);
    for name in ["PATH=/", "HOME", "CARGO", "USER", "held by us"] {
        assert!(!text.contains(name), "{text}");
    }
    assert!(text.contains("pipe:"), "{text}");
}
