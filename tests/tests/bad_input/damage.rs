//! Flipped bits in the server's own files: found, named, never a wrong page; and all is well once they are back.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use pageserver::wal::WalFileName;
use postgres_ffi::wal::WalStreamDecoder;
use postgres_ffi::{Lsn, PgVersion};
use tests::{PageServer, Stop, wait_until};

use super::rig::{LIMIT, Rig, small_primary};

fn flip(file: &Path, at: u64) -> Result<()> {
    let file: File = OpenOptions::new().read(true).write(true).open(file)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    byte[0] ^= 0x10;
    Ok(file.write_all_at(&byte, at)?)
}

/// Files below `dir` that end in `extension`, with their sizes.
fn files(dir: &Path, extension: &str, found: &mut Vec<(PathBuf, u64)>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            files(&path, extension, found)?;
        } else if path.extension().is_some_and(|found| found == extension) {
            let size = fs::metadata(&path)?.len();
            found.push((path, size));
        }
    }
    Ok(())
}

#[test]
fn a_flipped_bit_in_a_store_file_is_an_error_and_never_a_wrong_page() -> Result<()> {
    const FLIPS: u64 = 12;
    let mut rig = Rig::start("bits-sst", small_primary(), PageServer::builder().config("page_cache_mib = 4")?)?;
    for expected in ["orrupt", "ingest stopped", "Read error", "checksum"] {
        rig.pageserver.expect_in_log(expected);
    }
    rig.write()?;
    rig.stop_and_compare()?;
    rig.pageserver.stop()?; // Everything is in files.
    let mut found = Vec::new();
    files(&rig.pageserver.data_dir().join("store"), "sst", &mut found)?;
    let (file, size) = found.into_iter().max_by_key(|(_, size)| *size).context("no file")?;
    let (mut noticed, mut refused) = (0, 0);
    for round in 0..FLIPS {
        let at = size * (2 * round + 1) / (2 * FLIPS);
        flip(&file, at)?;
        match rig.pageserver.start() {
            Ok(()) => {
                let outcome = rig.compare()?;
                let text = format!("byte {at} of {size}: {}{}", outcome.stdout, outcome.stderr);
                // 0: the bit is not where pages are. 2: some page is not given. 1 would be a page that is given and wrong.
                assert!(outcome.exit_code == 0 || outcome.exit_code == 2, "{text}");
                noticed += u64::from(outcome.exit_code == 2);
                rig.pageserver.kill()?;
            }
            Err(error) => {
                let text = format!("{error:?}");
                assert!(text.contains("orrupt") && !text.contains("panicked"), "{text}");
                refused += 1;
            }
        }
        flip(&file, at)?;
    }
    println!("of {FLIPS} flips {noticed} met by reads, {refused} at the start");
    assert!(2 * (noticed + refused) >= FLIPS, "hardly any flip hit anything: {noticed} and {refused} of {FLIPS}");
    rig.pageserver.start()?;
    let outcome = rig.compare()?;
    assert_eq!(outcome.exit_code, 0, "{}{}", outcome.stdout, outcome.stderr);
    Ok(())
}

/// WAL files of the timeline, oldest first.
fn segments(pageserver: &PageServer) -> Result<Vec<PathBuf>> {
    let timelines = pageserver.data_dir().join("timelines");
    let timeline = fs::read_dir(&timelines)?.next().context("no timeline")??.path();
    let mut found = Vec::new();
    for entry in fs::read_dir(timeline.join("wal"))? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.len() == 24) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// End of the last record before the first one in a segment that cannot be read.
fn last_whole_record(segment: &Path, name: &str) -> Result<Lsn> {
    const SEGMENT_BYTES: u32 = 1 << 20;
    let Some(WalFileName::Segment { segment_no, .. }) = WalFileName::parse(name, SEGMENT_BYTES) else {
        bail!("`{name}` is no segment");
    };
    let start_lsn = Lsn::new(segment_no * u64::from(SEGMENT_BYTES));
    let mut decoder = WalStreamDecoder::new_at_page(PgVersion::V15, start_lsn, SEGMENT_BYTES);
    decoder.feed(fs::read(segment)?.into());
    loop {
        match decoder.next_record() {
            Ok(Some(_)) => {}
            Ok(None) => bail!("nothing is wrong in {name}"),
            Err(_) => return Ok(decoder.last_record_end()),
        }
    }
}

#[test]
fn a_flipped_bit_in_our_wal_stops_before_the_record_that_it_is_in() -> Result<()> {
    // Nothing is flushed, so that a killed server has to read all of its WAL again.
    let mut rig = Rig::start("bits-wal", small_primary(), PageServer::builder())?;
    for expected in ["ingest stopped", "wal receiver", "ingest of WAL on disk failed", "WAL cannot be read"] {
        rig.pageserver.expect_in_log(expected);
    }
    for _ in 0..6 {
        rig.write()?;
    }
    let end_lsn = rig.catch_up()?;
    rig.primary.stop(Stop::Fast)?;
    wait_until("the shutdown checkpoint", LIMIT, || Ok(rig.last_record_lsn()? > end_lsn))?;
    let durable_lsn: Lsn = rig.pageserver.timeline("main", "durable_lsn")?.parse()?;
    rig.pageserver.kill()?;
    let segments = segments(&rig.pageserver)?;
    assert!(segments.len() > 4, "{segments:?}");

    // In the middle of a file that is long durable, well behind the watermark.
    let damaged = &segments[segments.len() / 2];
    flip(damaged, 500_003)?;
    let name = damaged.file_name().and_then(|name| name.to_str()).context("a name")?;
    match rig.pageserver.start() {
        Ok(()) => {
            rig.wait_for("state", "stopped")?;
            let reason = rig.pageserver.timeline("main", "last_error")?;
            assert!(reason.contains(name), "{reason}");
            let stopped_lsn = rig.last_record_lsn()?;
            assert!(durable_lsn < stopped_lsn && stopped_lsn < end_lsn, "{durable_lsn} {stopped_lsn} {end_lsn}");
            // What comes before the record is served.
            let (address, at) = (format!("{}/main/0", "1663/5/1259"), stopped_lsn);
            rig.page(&address, at)?;
            assert_eq!(stopped_lsn, last_whole_record(damaged, name)?, "right in front of the damaged record");
            // Following nobody any more, it says that there is more.
            rig.pageserver.expect_in_log("a replication slot stays");
            let told = rig.pageserver.pagectl()?.outcome(&["timeline", "unfollow", "main"])?;
            let told = format!("{}{}", told.stdout, told.stderr);
            assert!(told.contains(&format!("ingest had stopped at {stopped_lsn}")), "{told}");
            rig.pageserver.kill()?;
        }
        Err(error) => {
            let text = format!("{error:?}");
            assert!(text.contains(name) && !text.contains("panicked"), "{text}");
        }
    }
    flip(damaged, 500_003)?;
    rig.pageserver.start()?;
    rig.pageserver.pagectl()?.run(&["timeline", "follow", "main", "--conninfo", &rig.primary.conninfo()])?;
    let outcome = rig.compare()?; // It waits until the end has been read again.
    assert_eq!(outcome.exit_code, 0, "{}{}", outcome.stdout, outcome.stderr);
    Ok(())
}
