//! Backups as of LSNs near the ends of pages and segments, within records, and where the WAL in front of them is gone.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use pageserver::page_service::basebackup::BackupBegin;
use postgres_ffi::wal::page_header::WAL_PAGE_BYTES;
use postgres_ffi::{Lsn, PgVersion};
use tests::process::run;
use tests::{Postgres, Stop, TestDir, backup_server, wait_until};

use super::clone::{self, CLIENT_PROGRAMS, check_first_start};
use super::primary::{Followed, backup};

const SEGMENT_BYTES: u64 = 1 << 20;
const PAGE_BYTES: u64 = WAL_PAGE_BYTES as u64;
/// Tries to make a record end at a wanted place before something else writes one.
const PLACE_TRIES: usize = 50;

/// Where a record ends that was made to end there, and how many rows of `marks` are committed by then.
struct Place {
    what: &'static str,
    lsn: Lsn,
    marks: i64,
}

/// Writes a record that ends `before_end` bytes before the end of a page, or of a segment.
fn place_record_end(primary: &Postgres, unit_bytes: u64, before_end: u64) -> Result<Lsn> {
    let mut session = primary.connect()?;
    for _ in 0..PLACE_TRIES {
        let emit = |session: &mut postgres::Client, length: u64| -> Result<Lsn> {
            let sql = "SELECT pg_logical_emit_message(false, 'p', repeat('x', $1))::text";
            let length = i32::try_from(length)?;
            Ok(session.query_one(sql, &[&length])?.get::<_, String>(0).parse()?)
        };
        let start = emit(&mut session, 400)?.as_u64();
        // Far enough for the record's own header, never as far as the next unit's end.
        let mut end = (start + 600).next_multiple_of(unit_bytes) - before_end;
        if end < start + 600 {
            end += unit_bytes;
        }
        let page_count = end.div_ceil(PAGE_BYTES) - start / PAGE_BYTES - 1;
        let segment_count = end.div_ceil(SEGMENT_BYTES) - start / SEGMENT_BYTES - 1;
        let headers = page_count * 24 + segment_count * 16;
        // The rest of the record is the same for all messages of more than 255 bytes.
        let overhead = message_overhead(&mut session, &emit)?;
        let start = emit(&mut session, 400)?.as_u64();
        let Some(length) = (end - start).checked_sub(headers + overhead) else { continue };
        if start % unit_bytes > unit_bytes - before_end {
            continue;
        }
        let reached = emit(&mut session, length)?;
        if reached.as_u64() == end {
            return Ok(reached);
        }
    }
    bail!("no record ends {before_end} bytes before the end of {unit_bytes}")
}

/// What a message's record has besides the message, all aligned.
fn message_overhead(
    session: &mut postgres::Client,
    emit: &impl Fn(&mut postgres::Client, u64) -> Result<Lsn>,
) -> Result<u64> {
    for _ in 0..PLACE_TRIES {
        let (first, second) = (emit(session, 400)?.as_u64(), emit(session, 400)?.as_u64());
        if first / PAGE_BYTES == second / PAGE_BYTES && second % PAGE_BYTES > 0 && second - first < 600 {
            return Ok(second - first - 400);
        }
    }
    bail!("the server writes too much by itself")
}

fn marks(server: &Postgres) -> Result<i64> {
    Ok(server.connect()?.query_one("SELECT count(*) FROM marks WHERE mark LIKE 'place%'", &[])?.get(0))
}

fn make_places(followed: &Followed) -> Result<Vec<Place>> {
    let primary = &followed.primary;
    let mut places = Vec::new();
    for (what, unit_bytes, before_end) in [
        ("8 before a page end", PAGE_BYTES, 8),
        ("24 before a page end", PAGE_BYTES, 24),
        ("a page end", PAGE_BYTES, 0),
        ("64 before a page end", PAGE_BYTES, 64),
        ("8 before a segment end", SEGMENT_BYTES, 8),
        ("64 before a segment end", SEGMENT_BYTES, 64),
        ("a segment end", SEGMENT_BYTES, 0),
    ] {
        primary.execute(&format!("INSERT INTO marks VALUES ('place {what}', '')"))?;
        let lsn = place_record_end(primary, unit_bytes, before_end)?;
        places.push(Place { what, lsn, marks: marks(primary)? });
    }
    // The unused rest of a segment belongs to the switch.
    primary.execute("INSERT INTO marks VALUES ('place of a switch', '')")?;
    let switched: Lsn = primary.query_text("SELECT pg_switch_wal()")?.parse()?;
    let next = Lsn::new(switched.as_u64().next_multiple_of(SEGMENT_BYTES));
    places.push(Place { what: "behind a switch", lsn: next, marks: marks(primary)? });
    primary.execute("INSERT INTO marks VALUES ('place at the end', '')")?;
    Ok(places)
}

/// The first segment of the backup's new timeline, from its beginning, as `pg_waldump` reads it: everything up to our checkpoint, no complaint before it.
fn check_wal(server: &Postgres, branch_lsn: Lsn, expect_filler: bool) -> Result<()> {
    if server.version() != PgVersion::V15 {
        return Ok(());
    }
    let control = run(Command::new(PathBuf::from(CLIENT_PROGRAMS).join("pg_controldata")).arg(server.data_dir()))?;
    ensure!(control.contains("in production") && !control.contains("WARNING"), "{control}");
    let timeline_id = clone::timeline_of_history(server)?;
    let dump = clone::waldump(server, branch_lsn, timeline_id, SEGMENT_BYTES)?;
    let checkpoint = dump.lines().position(|line| line.contains("CHECKPOINT_SHUTDOWN") && line.contains("tli 4"));
    let checkpoint = checkpoint.with_context(|| format!("no checkpoint at {branch_lsn}:\n{dump}"))?;
    let complaints: Vec<_> = dump.lines().filter(|line| line.starts_with("pg_waldump:")).collect();
    ensure!(complaints.len() == 1 && complaints[0].contains("invalid record length"), "{complaints:?}");
    let records = dump.lines().take(checkpoint).filter(|line| line.starts_with("rmgr:"));
    let noops = records.clone().filter(|line| line.contains("NOOP")).count();
    ensure!(if expect_filler { noops == records.count() } else { noops == 0 }, "{dump}");
    Ok(())
}

fn check_place(followed: &Followed, place: &Place, expect_filler: bool) -> Result<()> {
    let version = followed.primary.version();
    let mut server = backup_server::unpacked(&followed.dir, version, backup(followed, Some(place.lsn), &[])?)?;
    ensure!(clone::branch_lsn(&server)? == place.lsn, "{}", clone::branch_lsn(&server)?);
    check_wal(&server, place.lsn, expect_filler)?;
    server.start()?;
    check_first_start(&server)?;
    let found = marks(&server)?;
    ensure!(found == place.marks, "{found} marks, not {}", place.marks);
    server.execute("INSERT INTO marks VALUES ('written', ''); UPDATE pgbench_tellers SET tbalance = 1")?;
    clone::check_crash(&mut server)?;
    server.stop(Stop::Fast)
}

fn begin(followed: &Followed, request_lsn: Lsn) -> Result<BackupBegin> {
    let mut client = followed.client()?;
    let backup = client.copy_out(&format!("BASEBACKUP main {request_lsn} --no-data"))?;
    Ok(backup.notices()[0].parse()?)
}

fn check_within_records(followed: &Followed) -> Result<()> {
    let primary = &followed.primary;
    let sql = "SELECT pg_logical_emit_message(false, 'p', repeat('x', 30000))";
    let end: Lsn = primary.query_text(sql)?.parse()?;
    followed.catch_up()?;
    // Of a record over four pages: its end, whatever byte was asked for; a page header's bytes among them.
    let page_lsn = Lsn::new((end.as_u64() - 10_000) / PAGE_BYTES * PAGE_BYTES);
    for request_lsn in [end.as_u64() - 1, end.as_u64() - 10_000, page_lsn.as_u64(), page_lsn.as_u64() + 8] {
        let branch_lsn = begin(followed, Lsn::new(request_lsn))?.branch_lsn;
        ensure!(branch_lsn == end, "{branch_lsn} for {request_lsn:#x} in the record that ends at {end}");
    }
    let switched: Lsn = primary.query_text("SELECT pg_switch_wal()")?.parse()?;
    followed.catch_up()?;
    let next = Lsn::new(switched.as_u64().next_multiple_of(SEGMENT_BYTES));
    let branch_lsn = begin(followed, Lsn::new(next.as_u64() - 100))?.branch_lsn;
    ensure!(branch_lsn == next, "{branch_lsn} in the unused rest of the segment in front of {next}");
    Ok(())
}

/// WAL files of the page server's one timeline, by name.
fn wal_files(followed: &Followed) -> Result<Vec<String>> {
    let timelines = followed.page_server.data_dir().join("timelines");
    let timeline = fs::read_dir(timelines)?.next().context("a timeline")??.path();
    let mut names = Vec::new();
    for entry in fs::read_dir(timeline.join("wal"))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

/// Writes until the WAL of `lsn` is gone from the page server's disk.
pub fn age_out(followed: &Followed, lsn: Lsn) -> Result<()> {
    let segment_no = lsn.segment_no(SEGMENT_BYTES);
    wait_until("old WAL to be removed", Duration::from_secs(120), || {
        followed.primary.execute("SELECT pg_logical_emit_message(false, 'p', repeat('x', 700000))")?;
        followed.catch_up()?;
        let suffix = format!("{segment_no:08X}");
        Ok(!wal_files(followed)?.iter().any(|name| name.ends_with(&suffix)))
    })
}

fn check_version(version: PgVersion) -> Result<()> {
    let dir = TestDir::new(&format!("positions-{version}"))?;
    let builder = Postgres::builder(version).wal_segment_mb(1).setting("autovacuum", "off");
    let config = "wal.keep_mib = 24\nstore.flush_interval_seconds = 1\nwait_lsn_timeout_seconds = 2";
    let followed = Followed::start_with(builder, dir, config)?;
    let places = make_places(&followed)?;
    followed.catch_up()?;
    for place in &places {
        check_place(&followed, place, false).with_context(|| format!("{} at {}", place.what, place.lsn))?;
    }
    check_within_records(&followed)?;
    check_refusals(&followed)?;
    age_out(&followed, places.last().context("places")?.lsn)?;
    for place in &places {
        check_place(&followed, place, true).with_context(|| format!("{} at {}, WAL gone", place.what, place.lsn))?;
    }
    Ok(())
}

fn check_refusals(followed: &Followed) -> Result<()> {
    let refused = |request: &str| -> Result<String> {
        let mut client = followed.client()?;
        match client.copy_out(request) {
            Ok(_) => bail!("{request} was not refused"),
            Err(error) => Ok(error.to_string()),
        }
    };
    let too_early = refused("BASEBACKUP main 0/1000028")?;
    ensure!(too_early.contains("22023") && too_early.contains("first readable"), "{too_early}");
    let too_late = refused("BASEBACKUP main FF/0")?;
    ensure!(too_late.contains("55000"), "{too_late}");
    let nowhere = refused("BASEBACKUP other")?;
    ensure!(nowhere.contains("42704"), "{nowhere}");
    Ok(())
}

#[test]
fn servers_start_wherever_a_record_ends() {
    check_version(PgVersion::V15).unwrap();
    if tests::versions().len() > 2 {
        for version in [PgVersion::V14, PgVersion::V16, PgVersion::V17, PgVersion::V18] {
            check_version(version).unwrap_or_else(|error| panic!("{version}: {error:?}"));
        }
    }
}
