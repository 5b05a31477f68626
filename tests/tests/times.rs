//! Goal: the LSN that a time gives is the one where PostgreSQL itself stops when it recovers to that time, and the time at an LSN is that
//! of the last end of a transaction there. Method: a stock primary with commits, aborts and prepared transactions from several sessions;
//! the ends of transactions as `pg_waldump` lists them (15; else `pagectl wal dump`) and as `pg_xact_commit_timestamp` tells them;
//! servers that recover from a base backup to `recovery_target_time`, whose last replayed LSN must be ours, to the byte.

#![allow(clippy::unwrap_used, reason = "a test; helpers of tests as well")]

use std::process::Command;
use std::time::Duration;

use pageserver::wall_time::WallTime;
use postgres_ffi::{Lsn, PgVersion};
use tests::standby::{Tablespaces, base_backup, start_recovery};
use tests::{PageServer, Postgres, TestDir, wait_until};

const LIMIT: Duration = Duration::from_secs(120);
const GRANULARITY: i64 = 1000;

/// The end of a transaction in WAL: where its record starts, and its time in microseconds since 2000.
#[derive(Debug, Clone, Copy)]
struct End {
    start_lsn: Lsn,
    time: i64,
}

/// Every end of a transaction from `start_lsn` on, as WAL tells it.
fn ends_in_wal(primary: &Postgres, pageserver: &PageServer, start_lsn: Lsn, end_lsn: Lsn) -> Vec<End> {
    let wal = primary.data_dir().join("pg_wal");
    let (start, end) = (start_lsn.to_string(), end_lsn.to_string());
    let program = primary.bin_dir().join("pg_waldump");
    let text = if program.exists() {
        let mut command = Command::new(program);
        command.env("TZ", "UTC").arg("--path").arg(&wal).args([
            "--rmgr",
            "Transaction",
            "--start",
            &start,
            "--end",
            &end,
        ]);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    } else {
        let wal = wal.to_str().unwrap();
        pageserver
            .pagectl()
            .unwrap()
            .run(&["wal", "dump", wal, "--rmgr", "Transaction", "--start", &start, "--end", &end])
            .unwrap()
    };
    text.lines().filter_map(end_of_transaction).collect()
}

/// `... lsn: 0/01940B48, prev ..., desc: COMMIT 2026-11-25 21:33:45.123456 UTC; ...`
fn end_of_transaction(line: &str) -> Option<End> {
    let desc = line.split_once("desc: ")?.1;
    if !(desc.starts_with("COMMIT") || desc.starts_with("ABORT")) {
        return None;
    }
    let lsn = line.split_once("lsn: ")?.1.split(',').next()?;
    let words: Vec<&str> = desc.split(' ').collect();
    let date = words.iter().position(|word| word.len() == 10 && word.as_bytes()[4] == b'-').expect("a time");
    let time: WallTime = format!("{} {}", words[date], words[date + 1]).parse().expect("a time");
    // pg_waldump of 15 writes the low half with eight digits.
    Some(End { start_lsn: lsn.parse().expect("an LSN"), time: time.as_postgres() })
}

fn time_text(time: i64) -> String {
    WallTime::from_postgres(time).to_string()
}

/// LSN and commit time that the page server tells for a time.
fn lsn_at(pageserver: &PageServer, time: i64) -> (Lsn, i64) {
    let rows = pageserver.query(&format!("SHOW LSN main AT TIME '{}'", time_text(time))).unwrap();
    let [timeline, lsn, commit_time] = &rows[0][..] else { panic!("{rows:?}") };
    assert_eq!((timeline.as_str(), rows.len()), ("main", 1));
    (lsn.parse().unwrap(), commit_time.parse::<WallTime>().unwrap().as_postgres())
}

fn time_at(pageserver: &PageServer, lsn: Lsn) -> i64 {
    let rows = pageserver.query(&format!("SHOW TIME main AT '{lsn}'")).unwrap();
    assert_eq!(rows[0][1], lsn.to_string());
    rows[0][2].parse::<WallTime>().unwrap().as_postgres()
}

/// Whether each end is stored, by the rule: it is later than the last stored one by a millisecond.
fn is_stored(ends: &[End]) -> Vec<bool> {
    let mut known = None;
    let is_stored = |end: &End| {
        let is_stored = known.is_none_or(|known: i64| end.time - known >= GRANULARITY);
        known = if is_stored { Some(end.time) } else { known };
        is_stored
    };
    ends.iter().map(is_stored).collect()
}

/// Commits from several sessions, some rolled back, some prepared; with pauses, so that there are times to tell apart.
fn run_load(primary: &Postgres) {
    primary.execute("CREATE TABLE t (session int, n int)").unwrap();
    std::thread::scope(|scope| {
        for session in 0..3 {
            scope.spawn(move || {
                let mut client = primary.connect().unwrap();
                for n in 0..40 {
                    let insert = format!("INSERT INTO t VALUES ({session}, {n})");
                    client.batch_execute(&insert).unwrap();
                    match n % 8 {
                        3 => client.batch_execute(&format!("BEGIN; {insert}; ROLLBACK")).unwrap(),
                        5 | 6 => {
                            client
                                .batch_execute(&format!("BEGIN; {insert}; PREPARE TRANSACTION 'p{session}'"))
                                .unwrap();
                            let end = if n % 8 == 5 { "COMMIT" } else { "ROLLBACK" };
                            client.batch_execute(&format!("{end} PREPARED 'p{session}'")).unwrap();
                        }
                        _ => {}
                    }
                    client.batch_execute(&format!("SELECT pg_sleep({})", 0.002 * f64::from(n % 4))).unwrap();
                }
            });
        }
    });
    // However fast the machine: some that have a few milliseconds for themselves.
    let mut alone = primary.connect().unwrap();
    for n in 0..40 {
        alone.batch_execute(&format!("INSERT INTO t VALUES (3, {n})")).unwrap();
        alone.batch_execute("SELECT pg_sleep(0.003)").unwrap();
    }
}

/// `pg_xact_commit_timestamp` of every row's transaction is the time of one of the ends.
fn check_commit_timestamps(primary: &Postgres, ends: &[End]) {
    let sql = "SELECT DISTINCT (extract(epoch FROM pg_xact_commit_timestamp(xmin) - timestamptz '2000-01-01 UTC') * 1000000)::bigint FROM t";
    let rows = primary.connect().unwrap().query(sql, &[]).unwrap();
    assert!(rows.len() > 100, "{}", rows.len());
    for row in rows {
        let time: i64 = row.get(0);
        assert!(ends.iter().any(|end| end.time == time), "no end at {}", time_text(time));
    }
}

/// Every time around every end, against the rule and against what PostgreSQL would do.
fn check_all(pageserver: &PageServer, ends: &[End], last_record_lsn: Lsn) {
    let is_stored = is_stored(ends);
    let mut checked = 0;
    for time in ends.iter().flat_map(|end| [end.time - 1, end.time, end.time + 999]) {
        if time < ends[0].time {
            continue;
        }
        let (lsn, commit_time) = lsn_at(pageserver, time);
        assert!(commit_time <= time);
        assert_eq!(time_at(pageserver, lsn), commit_time);
        let inside: Vec<&End> = ends.iter().filter(|end| end.start_lsn < lsn).collect();
        assert!(inside.iter().all(|end| end.time < time + GRANULARITY), "{} holds a later end", time_text(time));
        let first_later = (0..ends.len()).find(|nth| ends[*nth].time > time && is_stored[*nth]);
        match first_later {
            // The record before ends where this one starts, or a page header or padding before.
            Some(nth) => {
                let gap = ends[nth].start_lsn.as_u64() - lsn.as_u64();
                assert!(gap < 64, "{} ends at {lsn}, the next end starts at {}", time_text(time), ends[nth].start_lsn);
                assert_eq!(inside.len(), nth);
            }
            // The server goes on with records of its own, which end no transaction.
            None => assert!(last_record_lsn <= lsn, "{lsn} is below {last_record_lsn}"),
        }
        checked += 1;
    }
    assert!(checked > 300, "{checked}");
}

/// Times at which PostgreSQL and we must agree to the byte: nothing ended in the millisecond after.
fn unmistakable(ends: &[End]) -> Vec<i64> {
    let quiet = |time: i64| !ends.iter().any(|end| time < end.time && end.time <= time + GRANULARITY);
    ends.iter().map(|end| end.time).filter(|time| quiet(*time)).collect()
}

fn check(version: PgVersion) {
    let dir = TestDir::new("times").unwrap();
    let primary = Postgres::builder(version).setting("autovacuum", "off").start(&dir).unwrap();
    let begin_lsn = primary.current_lsn().unwrap();
    primary.execute("CREATE TABLE before_import AS SELECT 1").unwrap();
    let backup = dir.create_subdir("backup").unwrap().join("data");
    base_backup(&primary, &backup, Tablespaces::InPlace).unwrap();
    let pageserver = PageServer::builder().start(&dir).unwrap();
    pageserver.import("main", &primary.conninfo()).unwrap();
    let first_readable_lsn: Lsn = pageserver.timeline("main", "first_readable_lsn").unwrap().parse().unwrap();
    // Nothing has ended since the backup began; and what had ended before had ended when the control file was written.
    let imported = time_at(&pageserver, first_readable_lsn);
    let long_ago = ends_in_wal(&primary, &pageserver, begin_lsn, first_readable_lsn);
    assert!(!long_ago.is_empty() && long_ago.iter().all(|end| end.time < imported + 1_000_000));

    run_load(&primary);
    primary.execute("SELECT pg_switch_wal()").unwrap();
    primary.execute("CREATE TABLE after_the_switch AS SELECT 1").unwrap();
    let end_lsn = primary.current_lsn().unwrap();
    wait_until("everything to arrive", LIMIT, || {
        Ok(pageserver.timeline("main", "last_record_lsn")?.parse::<Lsn>()? >= end_lsn)
    })
    .unwrap();
    let ends = ends_in_wal(&primary, &pageserver, first_readable_lsn, end_lsn);
    assert!(ends.len() > 150, "{}", ends.len());
    check_commit_timestamps(&primary, &ends);
    let last_record_lsn: Lsn = pageserver.timeline("main", "last_record_lsn").unwrap().parse().unwrap();
    check_all(&pageserver, &ends, last_record_lsn);
    check_refusals_and_tools(&pageserver, &ends, imported);

    let times = unmistakable(&ends);
    assert!(times.len() > 30, "{}", times.len());
    check_branches(&pageserver, &ends);
    for time in [times[times.len() / 4], times[times.len() / 2] + 500, times[times.len() - 2]] {
        // The names of zones are not known yet where this parameter is read.
        let target = time_text(time).replace('Z', "+00");
        let settings = [("recovery_target_time", target), ("recovery_target_action", "pause".to_owned())];
        let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
        let recovered = start_recovery(&primary, &backup, &settings).unwrap();
        wait_until("recovery to pause at its target", LIMIT, || {
            Ok(recovered.query_text("SELECT pg_get_wal_replay_pause_state()")? == "paused")
        })
        .unwrap();
        let (lsn, _) = lsn_at(&pageserver, time);
        assert_eq!(recovered.current_lsn().unwrap(), lsn, "PostgreSQL {version}, {}", time_text(time));
    }
}

/// A branch at a time begins where the time says, and has its ancestor's times.
fn check_branches(pageserver: &PageServer, ends: &[End]) {
    for (nth, at) in [ends.len() / 3, ends.len() - 1].into_iter().enumerate() {
        let (name, time) = (format!("branch{nth}"), ends[at].time);
        // Nothing ends after the last one: its LSN is the last record's, and the primary may write one by itself.
        let (before_lsn, _) = lsn_at(pageserver, time);
        pageserver.query(&format!("BRANCH CREATE {name} FROM main AT TIME '{}'", time_text(time))).unwrap();
        let branch_lsn = pageserver.timeline(&name, "ancestor_lsn").unwrap();
        let (after_lsn, _) = lsn_at(pageserver, time);
        let is_between = (before_lsn..=after_lsn).contains(&branch_lsn.parse().unwrap());
        assert!(
            is_between && (at == ends.len() - 1 || before_lsn == after_lsn),
            "{before_lsn} {branch_lsn} {after_lsn}"
        );
        for time in ends[..at].iter().map(|end| end.time).step_by(10) {
            let on_branch = pageserver.query(&format!("SHOW LSN {name} AT TIME '{}'", time_text(time))).unwrap();
            let on_main = pageserver.query(&format!("SHOW LSN main AT TIME '{}'", time_text(time))).unwrap();
            assert_eq!(on_branch[0][1..], on_main[0][1..]);
        }
        // Nothing ends there: a time after the branch LSN's stays there.
        let newest = pageserver.query(&format!("SHOW LSN {name} AT TIME '2100-01-01'")).unwrap();
        assert_eq!(newest[0][1], branch_lsn);
    }
    let refused = pageserver.query("BRANCH CREATE too_old FROM main AT TIME '2000-01-01'").unwrap_err();
    assert!(format!("{refused:?}").contains("first_time="), "{refused:?}");
}

fn check_refusals_and_tools(pageserver: &PageServer, ends: &[End], imported: i64) {
    let pagectl = pageserver.pagectl().unwrap();
    let last = ends.last().unwrap();
    let json = pagectl.run(&["lsn", "--timeline", "main", "--time", &time_text(last.time - 1), "--json"]).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["lsn"].as_str().unwrap().parse::<Lsn>().unwrap(), lsn_at(pageserver, last.time - 1).0);
    let json = pagectl.run(&["time", "--timeline", "main", "--json"]).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let newest: WallTime = json["commit_time"].as_str().unwrap().parse().unwrap();
    assert!(newest.as_postgres() > ends.iter().map(|end| end.time).max().unwrap() - GRANULARITY);
    // Later than everything: the last record. Relative times are from now.
    pagectl.run(&["lsn", "--timeline", "main", "--time", "2100-01-01"]).unwrap();
    pagectl.run(&["lsn", "--timeline", "main", "--time=-0s"]).unwrap();
    // Earlier than everything: both times. The first is the first end after the import, or a second after the control file was written.
    let first_time = ends[0].time.min(imported + 1_000_000);
    for time in ["2000-01-01", "4000 days ago"] {
        let refused = pagectl.outcome(&["lsn", "--timeline", "main", "--time", time]).unwrap();
        assert_eq!(refused.exit_code, 2);
        let first = format!("first_time=`{}`, first_lsn=`", time_text(first_time));
        assert!(refused.stderr.contains(&first), "{}", refused.stderr);
    }
    let refused = pagectl.outcome(&["lsn", "--timeline", "main", "--time", "tomorrow"]).unwrap();
    assert!(refused.exit_code == 2 && refused.stderr.contains("not a time"), "{}", refused.stderr);
}

#[test]
fn a_time_is_where_recovery_to_it_stops() {
    tests::versions().into_iter().for_each(check);
}
